"""The HTTP side of a member that runs: pages, JSON and WebSockets over real processes and sockets."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import shutil
import socket
import subprocess
import threading
from base64 import b64decode, b64encode
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Event, Ping, Pong, Request, TextMessage

from kvorum import API_VERSION
from loadtest.launcher import Kind, Port, Server
from tests.servers import start_kvorum, start_reference

WAIT_S = 20.0


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with start_kvorum() as running:
        yield running


@pytest.fixture(scope="module")
def reference() -> Iterator[Server]:
    with start_reference() as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(server.address, timeout=WAIT_S)
    yield connection
    connection.close()


@pytest.fixture(scope="module")
def secure() -> Iterator[str]:
    """The URL of a member that speaks TLS."""
    port = Port()
    try:
        url = f"https://127.0.0.1:{port.number}"
        with start_kvorum({"listen-client-urls": url, "advertise-client-urls": url, "auto-tls": "true"}):
            yield url
    finally:
        port.release()


class Reply:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.reason = response.reason
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def get(client: http.client.HTTPConnection, path: str, method: str = "GET", **headers: str) -> Reply:
    client.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    return Reply(client.getresponse())


def post(client: http.client.HTTPConnection, path: str, request: dict[str, Any]) -> Reply:
    client.request("POST", path, json.dumps(request))
    return Reply(client.getresponse())


def b64(text: str) -> str:
    return b64encode(text.encode()).decode()


def put(client: http.client.HTTPConnection, key: str, value: str) -> Reply:
    return post(client, "/v3/kv/put", {"key": b64(key), "value": b64(value)})


Sample = tuple[str, frozenset[tuple[str, str]]]


def metrics(client: http.client.HTTPConnection) -> dict[Sample, float]:
    reply = get(client, "/metrics")
    assert reply.status == 200
    assert reply.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(reply.body.decode())
        for sample in family.samples
    }


def sample(name: str, **labels: str) -> Sample:
    return name, frozenset(labels.items())


def test_ht1_to_ht15_pages(client: http.client.HTTPConnection) -> None:
    health = get(client, "/health")
    assert (health.status, health.reason, health.body) == (200, "OK", b'{"health":"true","reason":""}')
    for page in ("/livez", "/readyz", "/readyz/linearizable_read", "/health?serializable=true"):
        assert get(client, page).status == 200, page
    lines = get(client, "/readyz?verbose").body.decode().splitlines()
    assert lines[-1] == "ok" and len(lines) == 5
    assert all(line.startswith("[+]") for line in lines[:-1])
    assert get(client, "/version").json == {
        "etcdserver": API_VERSION,
        "etcdcluster": API_VERSION,
        "storage": API_VERSION,
    }
    lost = get(client, "/nowhere")
    assert (lost.status, lost.reason, lost.body) == (404, "Not Found", b"404 page not found\n")


def test_ht16_the_figures_are_true(client: http.client.HTTPConnection) -> None:
    before = metrics(client)
    for number in range(5):
        assert put(client, f"metrics/{number}", "value").status == 200
    post(client, "/v3/kv/range", {"key": b64("metrics/0")})
    assert post(client, "/v3/kv/put", {"value": b64("no key")}).status == 400
    get(client, "/health")
    after = metrics(client)

    def moved(name: str, **labels: str) -> float:
        return after[sample(name, **labels)] - before.get(sample(name, **labels), 0.0)

    kv_put = {"grpc_service": "etcdserverpb.KV", "grpc_method": "Put", "grpc_type": "unary"}
    assert moved("etcd_mvcc_put_total") == 5
    assert moved("grpc_server_started_total", **kv_put) == 6
    assert moved("grpc_server_handled_total", grpc_code="OK", **kv_put) == 5
    assert moved("grpc_server_handled_total", grpc_code="InvalidArgument", **kv_put) == 1
    assert moved("grpc_server_msg_received_total", **kv_put) == 6
    assert moved("grpc_server_msg_sent_total", **kv_put) == 5
    assert moved("etcd_server_client_requests_total", client_api_version="unknown", type="unary") == 7
    assert moved("etcd_server_health_success_total") == 1  # the parser's name: it puts `_total` to every counter
    assert moved("etcd_network_client_grpc_received_bytes_total") > 0
    assert moved("etcd_debugging_mvcc_current_revision") == 5
    assert after[sample("etcd_server_has_leader")] == after[sample("etcd_server_is_leader")] == 1
    assert after[sample("etcd_server_version", server_version=API_VERSION)] == 1
    assert after[sample("etcd_cluster_version", cluster_version=API_VERSION.rpartition(".")[0])] == 1
    assert after[sample("etcd_mvcc_db_total_size_in_bytes")] > 0
    assert after[sample("process_resident_memory_bytes")] > 50 << 20  # of several processes
    processes = {dict(labels)["process"]: up for (name, labels), up in after.items() if name == "kvorum_process_up"}
    assert processes == {"raft": 1, "apply": 1, "watch": 1, "front0": 1}


def test_ht16_gzip(client: http.client.HTTPConnection) -> None:
    reply = get(client, "/metrics", Accept_Encoding="gzip")
    assert reply.headers["Content-Encoding"] == "gzip"
    assert b"\netcd_server_has_leader 1" in gzip.decompress(reply.body)


def test_ht16_scrapes_at_once_are_all_answered(server: Server) -> None:
    statuses: list[int] = []

    def scrape() -> None:
        with contextlib.closing(http.client.HTTPConnection(server.address, timeout=WAIT_S)) as connection:
            statuses.append(get(connection, "/metrics").status)

    scrapers = [threading.Thread(target=scrape) for _ in range(10)]
    for scraper in scrapers:
        scraper.start()
    for scraper in scrapers:
        scraper.join(WAIT_S)
    assert statuses == [200] * 10


def test_ht17_debug_vars(client: http.client.HTTPConnection, server: Server) -> None:
    page = get(client, "/debug/vars").json
    assert page["cmdline"] == server.command()
    assert page["raft.status"]["raftState"] == "StateLeader"
    assert page["raft.status"]["applied"] <= page["raft.status"]["commit"]
    assert page["memstats"]["Alloc"] > 0


def test_j28_cors(client: http.client.HTTPConnection) -> None:
    for reply in (get(client, "/health"), get(client, "/nowhere"), get(client, "/v3/kv/put", "OPTIONS")):
        assert reply.headers["Access-Control-Allow-Origin"] == "*"
    assert get(client, "/v3/kv/put", "OPTIONS").status == 200


def test_json_put_range_and_txn(client: http.client.HTTPConnection) -> None:
    assert put(client, "json/a", "1").json["header"]["revision"]
    found = post(client, "/v3/kv/range", {"key": b64("json/a")}).json
    assert (found["count"], b64decode(found["kvs"][0]["value"])) == ("1", b"1")
    txn = post(
        client,
        "/v3/kv/txn",
        {
            "compare": [{"key": b64("json/a"), "target": "VALUE", "value": b64("1")}],
            "success": [{"request_put": {"key": b64("json/a"), "value": b64("2")}}],
            "failure": [{"request_range": {"key": b64("json/a")}}],
        },
    ).json
    assert txn["succeeded"] is True
    assert "response_put" in txn["responses"][0]
    assert post(client, "/v3/kv/put", {"value": "AA=="}).json == {
        "code": 3,
        "message": "etcdserver: key is not provided",
    }


def test_a_large_range_is_whole(client: http.client.HTTPConnection, server: Server) -> None:
    """So large that it becomes JSON beside the loop; what follows on the connection comes after it."""
    for number in range(50):
        puts = [{"request_put": {"key": b64(f"large/{number:03}/{n:03}"), "value": b64("x" * 50)}} for n in range(100)]
        assert post(client, "/v3/kv/txn", {"success": puts}).status == 200
    body = json.dumps({"key": b64("large/"), "range_end": b64("large0")}).encode()
    head = b"POST /v3/kv/range HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection(address(server), WAIT_S) as connection:
        connection.sendall(head + body + b"GET /version HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        first = http.client.HTTPResponse(connection)
        first.begin()
        found = json.loads(first.read())
        assert found["count"] == "5000"
        assert [b64decode(kv["key"]).decode() for kv in found["kvs"]] == [
            f"large/{number:03}/{n:03}" for number in range(50) for n in range(100)
        ]


class Lines:
    """The lines of a streaming reply, read one at a time."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response

    def next(self) -> Any:
        return json.loads(self._response.readline())["result"]


def test_j25_watch(client: http.client.HTTPConnection, server: Server) -> None:
    client.request("POST", "/v3/watch", json.dumps({"create_request": {"key": b64("watched")}}))
    lines = Lines(client.getresponse())
    assert lines.next()["created"] is True
    with contextlib.closing(http.client.HTTPConnection(server.address, timeout=WAIT_S)) as other:
        put(other, "watched", "1")
        post(other, "/v3/kv/deleterange", {"key": b64("watched")})
        seen: list[Any] = []
        while len(seen) < 2:
            seen += lines.next()["events"]
    assert [event.get("type", "PUT") for event in seen] == ["PUT", "DELETE"]
    assert b64decode(seen[0]["kv"]["value"]) == b"1"


def test_j26_lease_keep_alive(client: http.client.HTTPConnection) -> None:
    lease = post(client, "/v3/lease/grant", {"TTL": 100}).json["ID"]
    client.request("POST", "/v3/lease/keepalive", json.dumps({"ID": lease}))
    alive, gone = (json.loads(line)["result"] for line in [client.getresponse().read(), _unknown_lease(client)])
    assert (alive["ID"], alive["TTL"]) == (lease, "100")
    assert gone["ID"] == "1" and "TTL" not in gone


def _unknown_lease(client: http.client.HTTPConnection) -> bytes:
    client.request("POST", "/v3/lease/keepalive", '{"ID":1}')
    return client.getresponse().read()


def address(server: Server) -> tuple[str, int]:
    host, _, port = server.address.rpartition(":")
    return host, int(port)


class Socket:
    """A WebSocket client."""

    def __init__(self, server: Server, path: str) -> None:
        self._connection = socket.create_connection(address(server), WAIT_S)
        self._socket = WSConnection(ConnectionType.CLIENT)
        self._events: list[Event] = []
        self.send(Request(host=server.address, target=path))
        assert isinstance(self.next(), AcceptConnection)

    def send(self, event: Event) -> None:
        self._connection.sendall(self._socket.send(event))

    def say(self, request: dict[str, Any]) -> None:
        self.send(TextMessage(data=json.dumps(request)))

    def next(self) -> Event:
        while not self._events:
            data = self._connection.recv(65_536)
            assert data, "closed"
            self._socket.receive_data(data)
            self._events += self._socket.events()
        return self._events.pop(0)

    def result(self) -> Any:
        event = self.next()
        assert isinstance(event, TextMessage) and event.message_finished
        return json.loads(event.data)["result"]

    def at_end(self) -> bool:
        return self._connection.recv(1) == b""

    def close(self) -> None:
        self._connection.close()


@pytest.mark.parametrize("kind", [Kind.KVORUM, Kind.REFERENCE])
def test_j27_watch_by_websocket(kind: Kind, request: pytest.FixtureRequest) -> None:
    """The same conversation with either server."""
    server: Server = request.getfixturevalue("server" if kind is Kind.KVORUM else "reference")
    with (
        contextlib.closing(http.client.HTTPConnection(server.address, timeout=WAIT_S)) as client,
        contextlib.closing(Socket(server, "/v3/watch")) as watch,
    ):
        watch.say({"create_request": {"key": b64("socket"), "watch_id": 5}})
        assert watch.result()["created"] is True
        watch.say({"create_request": {"key": b64("other"), "watch_id": 6}})
        assert watch.result()["watch_id"] == "6"
        put(client, "socket", "1")
        delivered = watch.result()
        assert (delivered["watch_id"], delivered["events"][0]["kv"]["version"]) == ("5", "1")
        watch.say({"cancel_request": {"watch_id": 5}})
        assert watch.result()["canceled"] is True
        watch.send(Ping(payload=b"there?"))
        assert watch.next() == Pong(payload=b"there?")
        watch.send(CloseConnection(code=1000))
        assert isinstance(watch.next(), CloseConnection)
        assert watch.at_end()


def test_j27_a_closed_websocket_closes_its_stream(client: http.client.HTTPConnection, server: Server) -> None:
    before = metrics(client)[sample("etcd_debugging_mvcc_watch_stream_total")]
    with contextlib.closing(Socket(server, "/v3/watch")) as watch:
        watch.say({"create_request": {"key": b64("socket")}})
        assert watch.result()["created"] is True
        assert metrics(client)[sample("etcd_debugging_mvcc_watch_stream_total")] == before + 1
        watch.send(CloseConnection(code=1000))
        assert isinstance(watch.next(), CloseConnection)
    assert metrics(client)[sample("etcd_debugging_mvcc_watch_stream_total")] == before


def test_j27_keep_alive_by_websocket(client: http.client.HTTPConnection, server: Server) -> None:
    lease = post(client, "/v3/lease/grant", {"TTL": 100}).json["ID"]
    with contextlib.closing(Socket(server, "/v3/lease/keepalive")) as keep_alive:
        for _ in range(3):
            keep_alive.say({"ID": lease})
            assert keep_alive.result()["TTL"] == "100"


def test_j27_a_bad_handshake(client: http.client.HTTPConnection) -> None:
    reply = get(client, "/v3/watch", Connection="Upgrade", Upgrade="websocket", Sec_WebSocket_Version="13")
    assert (reply.status, reply.reason) == (400, "Bad Request")


def test_the_end_of_a_member_closes_sockets_and_answers_scrapes() -> None:
    """A scrape under way when the member stops is answered or its connection closed; the member ends in order."""
    with start_kvorum() as server:
        watch = Socket(server, "/v3/watch")
        scraper = socket.create_connection(address(server), WAIT_S)
        with contextlib.closing(watch), contextlib.closing(scraper):
            watch.say({"create_request": {"key": b64("k")}})
            assert watch.result()["created"] is True
            scraper.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
            assert server.stop() == -15
            events = [watch.next()]
            while not isinstance(events[-1], CloseConnection):
                events.append(watch.next())
            page = b""
            while data := scraper.recv(65_536):
                page += data
            assert page == b"" or b"etcd_server_has_leader" in page


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
@pytest.mark.parametrize("version", ["--http2", "--http1.1"])
def test_ht21_with_tls_both_versions_of_http_serve_pages_and_json(secure: str, version: str) -> None:
    def curl(path: str, *options: str) -> tuple[str, bytes]:
        command = ["curl", "-sk", "-m", "20", version, "-w", "\n%{http_version} %{http_code}", *options, secure + path]
        body, _, status = subprocess.run(command, capture_output=True, check=True).stdout.rpartition(b"\n")
        return status.decode(), body

    number = version.removeprefix("--http").removesuffix(".0")
    assert curl("/health") == (f"{number} 200", b'{"health":"true","reason":""}')
    assert curl("/nowhere") == (f"{number} 404", b"404 page not found\n")
    status, _ = curl("/v3/kv/put", "-d", json.dumps({"key": b64("k"), "value": b64("x" * 60_000)}))
    assert status == f"{number} 200"
    status, body = curl("/v3/kv/range", "-d", json.dumps({"key": b64("k")}))
    assert status == f"{number} 200"
    assert json.loads(body)["count"] == "1"
    status, body = curl("/metrics", "--compressed")
    assert status == f"{number} 200" and b"etcd_server_has_leader 1" in body
    lease = json.loads(curl("/v3/lease/grant", "-d", '{"TTL":100}')[1])["ID"]
    status, body = curl("/v3/lease/keepalive", "-d", json.dumps({"ID": lease}))
    assert json.loads(body)["result"]["TTL"] == "100"
