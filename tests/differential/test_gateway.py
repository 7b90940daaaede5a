"""Rows J: the JSON gateway."""

import base64
import http.client
import json
import socket
from collections.abc import Iterator
from typing import IO, Any

import pytest

from kvorum.pb.rpc_pb2 import LeaseRevokeRequest, StatusRequest
from loadtest.launcher import Kind
from tests.differential.side import Side, differs
from tests.servers import start

CORS = {
    "Access-Control-Allow-Methods": "POST, GET, OPTIONS, PUT, DELETE",
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Headers": "accept, content-type, authorization",
}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Answer:
    """A whole HTTP answer."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, int, str]:
        """(HTTP status, gRPC code, message)."""
        return self.status, self.json["code"], self.json["message"]


def ask(
    api: Side, path: str, body: Any = None, *, method: str = "POST", headers: dict[str, str] | None = None
) -> Answer:
    """One request; `body` is sent as it is when it is text, else as JSON."""
    connection = http.client.HTTPConnection(api.address, timeout=20)
    try:
        data = body if isinstance(body, str | None) else json.dumps(body)
        connection.request(method, path, data, headers or {})
        return Answer(connection.getresponse())
    finally:
        connection.close()


def put(api: Side, name: str, value: bytes = b"", **fields: Any) -> Any:
    return ask(api, "/v3/kv/put", {"key": b64(api.key(name)), "value": b64(value), **fields}).json


def test_J1_J3_J4_J5_names_and_forms_out(api: Side) -> None:
    lease = api.grant()
    at = int(put(api, "a", b"\xff\xfe", lease=lease)["header"]["revision"])
    answer = ask(api, "/v3/kv/range", {"key": b64(api.key("a"))}).json
    assert answer["kvs"] == [
        {
            "key": b64(api.key("a")),
            "create_revision": str(at),
            "mod_revision": str(at),
            "version": "1",
            "value": "//4=",
            "lease": str(lease),
        }
    ]
    assert answer["count"] == "1"
    assert set(answer["header"]) == {"cluster_id", "member_id", "revision", "raft_term"}
    assert all(isinstance(value, str) for value in answer["header"].values())
    assert "more" not in answer
    deleted = ask(api, "/v3/kv/deleterange", {"key": b64(api.key("a")), "prev_kv": True}).json
    assert set(deleted) == {"header", "deleted", "prev_kvs"}
    assert set(ask(api, "/v3/kv/range", {"key": b64(api.key("a"))}).json) == {"header"}


def test_J1_names_declared_in_capitals_stay(api: Side) -> None:
    granted = ask(api, "/v3/lease/grant", {"TTL": "600"}).json
    assert set(granted) == {"header", "ID", "TTL"}
    left = ask(api, "/v3/lease/timetolive", {"ID": granted["ID"], "keys": True}).json
    assert set(left) == {"header", "ID", "TTL", "grantedTTL"}
    status = ask(api, "/v3/maintenance/status", {}).json
    assert {"dbSize", "raftTerm", "raftIndex", "dbSizeInUse"} <= set(status)
    assert {"ID", "name", "peerURLs", "clientURLs"} == set(ask(api, "/v3/cluster/member/list", {}).json["members"][0])


@pytest.mark.parametrize("name", ["range_end", "rangeEnd"])
def test_J2_names_in(api: Side, name: str) -> None:
    put(api, "a")
    answer = ask(api, "/v3/kv/range", {"key": b64(api.prefix), name: b64(api.end), "no_such_field": {"x": [1]}})
    assert answer.json["count"] == "1"


@pytest.mark.parametrize("limit", [1, "1"])
def test_J4_64_bit_integers_come_in_as_number_or_text(api: Side, limit: int | str) -> None:
    put(api, "a")
    put(api, "b")
    answer = ask(api, "/v3/kv/range", {"key": b64(api.prefix), "range_end": b64(api.end), "limit": limit}).json
    assert (len(answer["kvs"]), answer["more"], answer["count"]) == (1, True, "2")


@differs("X33")
def test_J5_url_safe_and_unpadded_base64(api: Side) -> None:
    api.prefix = b"\xfb\xef\xff" + api.prefix
    api.put("a")
    unpadded = base64.urlsafe_b64encode(api.key("a")).decode().rstrip("=")
    assert ask(api, "/v3/kv/range", {"key": unpadded}).json["count"] == "1"


def test_J5_what_is_no_base64_is_refused(api: Side) -> None:
    answer = ask(api, "/v3/kv/range", {"key": "!!!!"})
    assert (answer.status, answer.json["code"]) == (400, 3)


@pytest.mark.parametrize("order", ["DESCEND", 2])
def test_J6_enums_come_in_as_name_or_number(api: Side, order: str | int) -> None:
    put(api, "a")
    put(api, "b")
    fields = {"key": b64(api.prefix), "range_end": b64(api.end), "sort_order": order}
    kvs = ask(api, "/v3/kv/range", fields).json["kvs"]
    assert [base64.b64decode(kv["key"]) for kv in kvs] == [api.key("b"), api.key("a")]


def test_J6_an_unknown_name_is_refused_and_names_go_out(fresh: Side) -> None:
    answer = ask(fresh, "/v3/kv/range", {"key": b64(b"a"), "sort_order": "SIDEWAYS"})
    assert (answer.status, answer.json["code"]) == (400, 3)
    raised = ask(fresh, "/v3/maintenance/alarm", {"action": "ACTIVATE", "memberID": "5", "alarm": "NOSPACE"}).json
    assert raised["alarms"] == [{"memberID": "5", "alarm": "NOSPACE"}]


def test_J7_oneofs_go_by_the_member_s_name(api: Side) -> None:
    key = b64(api.key("a"))
    body = {
        "compare": [{"key": key, "target": "CREATE", "create_revision": "0"}],
        "success": [{"request_put": {"key": key, "value": b64(b"1")}}],
        "failure": [{"requestRange": {"key": key}}],
    }
    first, second = ask(api, "/v3/kv/txn", body).json, ask(api, "/v3/kv/txn", body).json
    assert first["succeeded"] is True and "response_put" in first["responses"][0]
    assert "succeeded" not in second
    assert second["responses"][0]["response_range"]["kvs"][0]["value"] == b64(b"1")


@differs("X33")
def test_J7_two_members_of_a_oneof_are_refused(api: Side) -> None:
    key = b64(api.key("a"))
    body = {"success": [{"request_put": {"key": key}, "request_range": {"key": key}}]}
    assert ask(api, "/v3/kv/txn", body).status == 400


def test_J8_a_field_given_null_is_unset(api: Side) -> None:
    put(api, "a")
    assert ask(api, "/v3/kv/range", {"key": b64(api.key("a")), "range_end": None, "limit": None}).json["count"] == "1"


@pytest.mark.parametrize("body", [None, "", "{}"])
def test_J9_an_empty_body_is_an_empty_message(api: Side, body: str | None) -> None:
    assert ask(api, "/v3/maintenance/status", body).json["leader"]


@pytest.mark.parametrize("body", ["{", '{"key": ', "[]", "x", '{"key": 7}', '{"limit": "one"}', '{"limit": 1.5}'])
def test_J11_bad_json_is_an_invalid_argument(api: Side, body: str) -> None:
    answer = ask(api, "/v3/kv/range", body)
    assert (answer.status, answer.json["code"]) == (400, 3)
    assert answer.json["message"]


def test_J12_J13_content_types(api: Side) -> None:
    answer = ask(api, "/v3/kv/range", {"key": b64(b"a")}, headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Grpc-Metadata-Content-Type"] == "application/grpc"
    assert not answer.body.endswith(b"\n")


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/v3/kv/range", {}, (400, 3, "etcdserver: key is not provided")),
        ("/v3/lease/revoke", {"ID": 4711}, (404, 5, "etcdserver: requested lease not found")),
        (
            "/v3/kv/range",
            {"key": "YQ==", "revision": 1 << 62},
            (400, 11, "etcdserver: mvcc: required revision is a future revision"),
        ),
        ("/v3/maintenance/transfer-leadership", {"targetID": 1}, (400, 9, "etcdserver: bad leader transferee")),
    ],
)
def test_J14_J15_errors(api: Side, path: str, body: dict[str, Any], error: tuple[int, int, str]) -> None:
    answer = ask(api, path, body)
    assert answer.error == error
    assert answer.headers["Content-Type"] == "application/json"


@differs("X33")
def test_J14_an_error_has_code_and_message_alone(api: Side) -> None:
    assert set(ask(api, "/v3/kv/range", {}).json) == {"code", "message"}


@differs("X33")
def test_J16_J17_wrong_method_and_unknown_path(api: Side) -> None:
    assert ask(api, "/v3/kv/range", method="GET").error == (501, 12, "Method Not Allowed")
    assert ask(api, "/v3/kv/nothing", {}).error == (404, 5, "Not Found")


def test_J18_the_beta_path_is_an_alias(api: Side) -> None:
    assert ask(api, "/v3beta/maintenance/status", {}).json["version"]
    assert ask(api, "/v3alpha/maintenance/status", {}).status == 404


@differs("X33")
def test_J19_hashkv(api: Side) -> None:
    assert int(ask(api, "/v3/maintenance/hashkv", {}).json["hash_revision"]) == api.revision


def test_J20_the_gateway_can_be_off(kind: Kind) -> None:
    with start(kind, {"enable-grpc-gateway": "false"}) as server, Side(kind, server) as api:
        assert ask(api, "/v3/kv/range", {"key": "YQ=="}).status == 404
        assert ask(api, "/health", method="GET").status == 200
        api(StatusRequest())


@pytest.mark.parametrize("timeout", ["10S", "5000m"])
def test_J22_grpc_timeout_and_metadata_headers(api: Side, timeout: str) -> None:
    headers = {"Grpc-Timeout": timeout, "Grpc-Metadata-hasleader": "true"}
    assert ask(api, "/v3/kv/range", {"key": b64(b"a")}, headers=headers).status == 200


def test_J22_P15_a_deadline_ends_a_call_that_waits(api: Side) -> None:
    one, two = api.grant(), api.grant()
    name = b64(api.key("lock"))
    assert ask(api, "/v3/lock/lock", {"name": name, "lease": one}).status == 200
    waiting = ask(api, "/v3/lock/lock", {"name": name, "lease": two}, headers={"Grpc-Timeout": "300m"})
    assert (waiting.status, waiting.json["code"]) == (504, 4)
    api(LeaseRevokeRequest(ID=one))


def lines(connection: http.client.HTTPConnection, path: str, body: str) -> Iterator[Any]:
    """The objects of a streamed answer, one per line, as they come."""
    connection.request("POST", path, body)
    response = connection.getresponse()
    assert response.status == 200
    assert response.headers["Transfer-Encoding"] == "chunked"
    while line := response.readline():
        assert line.endswith(b"\n")
        yield json.loads(line)


def test_J23_J25_watch(api: Side) -> None:
    connection = http.client.HTTPConnection(api.address, timeout=20)
    create = {"key": b64(api.prefix), "range_end": b64(api.end)}
    body = "".join(json.dumps({"create_request": create | {"watch_id": watch_id}}) for watch_id in ("0", "7"))
    try:
        answers = lines(connection, "/v3/watch", body)
        first, second = next(answers)["result"], next(answers)["result"]
        assert first["created"] is True and "watch_id" not in first
        assert (second["created"], second["watch_id"]) == (True, "7")
        api.put("a", b"1")
        api.delete("a")
        found: dict[str, list[Any]] = {"0": [], "7": []}
        while min(map(len, found.values())) < 2:
            result = next(answers)["result"]
            found[result.get("watch_id", "0")] += result["events"]
    finally:
        connection.close()
    for put_event, delete_event in found.values():
        assert "type" not in put_event and put_event["kv"]["value"] == b64(b"1")
        assert (delete_event["type"], set(delete_event["kv"])) == ("DELETE", {"key", "mod_revision"})


def test_J26_lease_keep_alive(api: Side) -> None:
    lease = api.grant(600)
    connection = http.client.HTTPConnection(api.address, timeout=20)
    try:
        found = list(lines(connection, "/v3/lease/keepalive", json.dumps({"ID": lease}) + json.dumps({"ID": 4711})))
    finally:
        connection.close()
    assert [(line["result"]["ID"], line["result"].get("TTL")) for line in found] == [
        (str(lease), "600"),
        ("4711", None),
    ]


def stream_error(line: Any) -> int:
    """The gRPC code of an error line; where it stands differs by version."""
    error = line["error"] if isinstance(line.get("error"), dict) else line
    code: int = error["code"] if "code" in error else error["grpc_code"]
    return code


def test_J24_an_error_ends_a_stream_as_a_line(api: Side) -> None:
    body = {"create_request": {"key": b64(api.key("a"))}}
    answer = ask(api, "/v3/watch", body, headers={"Grpc-Timeout": "300m"})
    created, error = map(json.loads, answer.body.splitlines())
    assert (answer.status, created["result"]["created"]) == (200, True)
    assert stream_error(error) in (4, 2)  # the gateway's deadline, or the same as UNKNOWN from the cut stream


def test_J24_an_error_before_the_first_line_sets_the_status(api: Side) -> None:
    answer = ask(api, "/v3/election/observe", {"name": b64(api.key("e"))}, headers={"Grpc-Timeout": "300m"})
    # the deadline ends the call at the gateway or, as UNKNOWN, inside Observe: what counts is that both agree
    assert (answer.status, stream_error(answer.json)) in ((504, 4), (500, 2))


def test_MA23_snapshot_over_http(api: Side) -> None:
    connection = http.client.HTTPConnection(api.address, timeout=60)
    try:
        results = [line["result"] for line in lines(connection, "/v3/maintenance/snapshot", "{}")]
    finally:
        connection.close()
    assert "remaining_bytes" not in results[-1] and len(base64.b64decode(results[-1]["blob"])) == 32
    assert sum(len(base64.b64decode(result["blob"])) for result in results) % 512 == 32


def websocket_frame(text: bytes) -> bytes:
    """One masked text frame (RFC 6455, section 5.2) of less than 126 bytes; the mask is zero, so the text stays."""
    assert len(text) < 126
    return bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text


def websocket_texts(file: IO[bytes]) -> Iterator[Any]:
    """The objects of the text frames that come."""
    while len(head := file.read(2)) == 2:
        opcode, length = head[0] & 15, head[1] & 127
        if length >= 126:
            length = int.from_bytes(file.read(2 if length == 126 else 8), "big")
        data = file.read(length)
        if opcode == 1:
            yield json.loads(data)


def test_J27_websocket(api: Side) -> None:
    host, port = api.address.split(":")
    upgrade = (
        f"GET /v3/watch HTTP/1.1\r\nHost: {api.address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    create = json.dumps({"create_request": {"key": b64(api.key("a"))}})
    with socket.create_connection((host, int(port)), timeout=20) as connection, connection.makefile("rb") as file:
        connection.sendall(upgrade.encode())
        assert file.readline().startswith(b"HTTP/1.1 101 ")
        lines = (line.rstrip(b"\r\n").partition(b": ") for line in iter(file.readline, b"\r\n"))
        headers = {name.lower(): value for name, _, value in lines}
        assert headers[b"sec-websocket-accept"] == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        connection.sendall(websocket_frame(create.encode()))
        answers = websocket_texts(file)
        assert next(answers)["result"]["created"] is True
        api.put("a", b"1")
        assert next(answers)["result"]["events"][0]["kv"]["value"] == b64(b"1")


@pytest.mark.parametrize("path", ["/v3/lease/leases", "/v3/kv/lease/leases"])
def test_L19_lease_paths(api: Side, path: str) -> None:
    lease = api.grant()
    assert str(lease) in [found["ID"] for found in ask(api, path, {}).json["leases"]]
    prefix = path.removesuffix("leases")
    assert ask(api, prefix + "timetolive", {"ID": str(lease)}).json["grantedTTL"] == "3600"
    assert ask(api, prefix + "revoke", {"ID": str(lease)}).status == 200


@pytest.mark.parametrize(("method", "path"), [("GET", "/health"), ("POST", "/v3/kv/range"), ("GET", "/nowhere")])
def test_J28_cors_headers_on_every_reply(api: Side, method: str, path: str) -> None:
    answer = ask(api, path, "{}" if method == "POST" else None, method=method)
    assert {name: answer.headers[name] for name in CORS} == CORS


def test_J28_options_on_any_path(api: Side) -> None:
    for path in ("/", "/v3/kv/put", "/nowhere"):
        answer = ask(api, path, method="OPTIONS")
        assert (answer.status, answer.body) == (200, b"")
        assert {name: answer.headers[name] for name in CORS} == CORS


def test_J29_listed_origins(kind: Kind) -> None:
    with start(kind, {"cors": "http://one.example:80,http://two.example:80"}) as server, Side(kind, server) as api:
        for origin, allowed in (("http://two.example:80", "http://two.example:80"), ("http://three.example:80", None)):
            answer = ask(api, "/health", method="GET", headers={"Origin": origin})
            assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, allowed)


def test_J30_host_whitelist(kind: Kind) -> None:
    with start(kind, {"host-whitelist": "good.example"}) as server, Side(kind, server) as api:
        assert ask(api, "/health", method="GET", headers={"Host": "good.example:1234"}).status == 200
        refused = ask(api, "/health", method="GET", headers={"Host": "bad.example"})
        assert (refused.status, b"CVE-2018-5702" in refused.body) == (421, True)
        assert refused.headers["Access-Control-Allow-Origin"] is None
        api(StatusRequest())
