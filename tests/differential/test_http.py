"""Rows HT: health, version and metrics over HTTP/1.1, on client and peer URLs."""

import gzip
import http.client
import json
import socket
from pathlib import Path

import pytest

from kvorum import API_VERSION
from kvorum.pb.rpc_pb2 import CORRUPT, NOSPACE, AlarmRequest, MemberListRequest, StatusRequest
from loadtest.launcher import Kind, Port
from tests.calls import Api
from tests.differential.side import Side, differs
from tests.differential.test_gateway import Answer, ask
from tests.servers import start

HEALTH_TYPE = "text/plain; charset=utf-8"


def get(api: Side, path: str, method: str = "GET", headers: dict[str, str] | None = None) -> Answer:
    return ask(api, path, method=method, headers=headers)


def get_at(address: str, path: str) -> Answer:
    """GET at any address."""
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.request("GET", path)
        return Answer(connection.getresponse())
    finally:
        connection.close()


def alarm(api: Side, alarm: int, action: AlarmRequest.AlarmAction = AlarmRequest.ACTIVATE) -> None:
    api(AlarmRequest(action=action, memberID=5, alarm=alarm))  # type: ignore[arg-type]


@pytest.mark.parametrize("query", ["", "?serializable=true", "?exclude=NOSPACE", "?other=1", "?serializable=x"])
def test_HT1_HT3_HT5_health(api: Side, query: str) -> None:
    answer = get(api, "/health" + query)
    assert (answer.status, answer.body) == (200, b'{"health":"true","reason":""}')
    assert answer.headers["Content-Type"] == HEALTH_TYPE


def test_HT2_HT3_HT5_HT12_bad_health_names_the_reason(fresh: Side) -> None:
    alarm(fresh, NOSPACE)
    answer = get(fresh, "/health")
    assert (answer.status, answer.body) == (503, b'{"health":"false","reason":"ALARM NOSPACE"}\n')
    assert answer.headers["Content-Type"] == HEALTH_TYPE
    assert get(fresh, "/health?exclude=NOSPACE").json == {"health": "true", "reason": ""}
    assert get(fresh, "/health?exclude=nospace").status == 503
    alarm(fresh, CORRUPT)
    assert get(fresh, "/health?exclude=NOSPACE").json == {"health": "false", "reason": "ALARM CORRUPT"}
    assert get(fresh, "/health?exclude=NOSPACE&exclude=CORRUPT").status == 200


@differs("MA11")
def test_HT2_an_unknown_alarm_is_bad_health_too(fresh: Side) -> None:
    alarm(fresh, 9)
    assert get(fresh, "/health").json == {"health": "false", "reason": "ALARM UNKNOWN"}


@pytest.mark.parametrize("method", ["POST", "HEAD", "PUT", "DELETE"])
def test_HT4_health_is_get_only(api: Side, method: str) -> None:
    answer = get(api, "/health", method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET")
    assert answer.body == (b"" if method == "HEAD" else b"Method Not Allowed\n")


CHECKS = {
    "/livez": {"serializable_read"},
    "/readyz": {"data_corruption", "serializable_read", "linearizable_read", "non_learner"},
}


@differs("X32")
@pytest.mark.parametrize("page", CHECKS)
def test_HT6_HT7_HT9_HT13_checks_that_pass(api: Side, page: str) -> None:
    assert (get(api, page).status, get(api, page).body) == (200, b"ok\n")
    *checks, last = get(api, page + "?verbose").body.decode().splitlines()
    assert {line.removeprefix("[+]").removesuffix(" ok") for line in checks} == CHECKS[page]
    assert last == "ok"
    for name in CHECKS[page]:
        assert (get(api, f"{page}/{name}").status, get(api, f"{page}/{name}?exclude={name}").body) == (200, b"ok\n")
    assert get(api, page + "/nothing").status == 404


@differs("X32")
def test_HT8_HT10_HT11_HT12_checks_that_fail(fresh: Side) -> None:
    alarm(fresh, NOSPACE)
    assert get(fresh, "/livez").status == get(fresh, "/readyz").status == 200
    alarm(fresh, CORRUPT)
    answer = get(fresh, "/readyz")
    found = set(answer.body.decode().splitlines())
    assert answer.status == 503
    assert found == {
        "[-]data_corruption failed: alarm activated: CORRUPT",
        "[+]serializable_read ok",
        "[+]linearizable_read ok",
        "[+]non_learner ok",
    }
    assert get(fresh, "/readyz/data_corruption").status == 503
    assert get(fresh, "/livez").status == 200
    assert get(fresh, "/readyz?exclude=data_corruption&exclude=nothing").body == b"ok\n"
    everything = "&".join(f"exclude={name}" for name in CHECKS["/readyz"])
    assert get(fresh, "/readyz?" + everything).body == b"ok\n"


def test_HT15_version(api: Side) -> None:
    version = get(api, "/version")
    assert {"etcdserver", "etcdcluster"} <= set(version.json)
    assert version.json["etcdserver"] == api(StatusRequest()).version
    assert get(api, "/version", "POST").status == 405


@differs("X32")
def test_HT15_version_of_the_storage(api: Side) -> None:
    expected = {"etcdserver": API_VERSION, "etcdcluster": API_VERSION, "storage": API_VERSION}
    assert get(api, "/version").json == expected


def test_HT16_metrics(api: Side) -> None:
    answer = get(api, "/metrics")
    assert (answer.status, answer.headers["Content-Type"].startswith("text/plain; version=0.0.4; charset=utf-8")) == (
        200,
        True,
    )
    assert b"\netcd_server_has_leader 1" in answer.body
    zipped = get(api, "/metrics", headers={"Accept-Encoding": "gzip"})
    assert zipped.headers["Content-Encoding"] == "gzip"
    assert b"etcd_server_has_leader 1" in gzip.decompress(zipped.body)


def test_HT17_debug_vars(api: Side) -> None:
    answer = get(api, "/debug/vars")
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert {"cmdline", "memstats", "file_descriptor_limit", "raft.status"} <= set(answer.json)
    assert get(api, "/debug/vars", "POST").status == 405


@pytest.mark.parametrize("path", ["/", "/debug/pprof/", "/config/local/log", "/v2/keys", "/v2/machines", "/nowhere"])
def test_HT18_HT19_HT20_unknown_pages(api: Side, path: str) -> None:
    answer = get(api, path)
    assert (answer.status, answer.body.strip()) == (404, b"404 page not found")


def test_HT21_one_connection_takes_request_after_request(api: Side) -> None:
    connection = http.client.HTTPConnection(api.address, timeout=20)
    try:
        for path, status in (("/health", 200), ("/nowhere", 404), ("/health", 200)):
            connection.request("GET", path)
            assert Answer(connection.getresponse()).status == status
    finally:
        connection.close()


@differs("X17")
def test_HT22_http_urls_of_their_own(kind: Kind) -> None:
    port = Port()
    http_address = f"127.0.0.1:{port.number}"
    try:
        with start(kind, {"listen-client-http-urls": f"http://{http_address}"}) as server, Side(kind, server) as api:
            assert get_at(http_address, "/health").status == 200
            api(StatusRequest())
            with pytest.raises((http.client.HTTPException, ConnectionError)):
                get(api, "/health")
    finally:
        port.release()


def test_HT23_HT24_metrics_urls(kind: Kind) -> None:
    port = Port()
    metrics = f"127.0.0.1:{port.number}"
    try:
        with start(kind, {"listen-metrics-urls": f"http://{metrics}"}) as server, Side(kind, server) as api:
            for address in (metrics, server.address):
                assert get_at(address, "/health").status == 200
                assert b"etcd_server_has_leader" in get_at(address, "/metrics").body
            assert get_at(metrics, "/version").status == 404
            api(StatusRequest())
            with Api(metrics) as other:
                assert other.status(StatusRequest(), timeout_s=2).code != 0
    finally:
        port.release()


def test_HT25_HT26_peer_urls(api: Side) -> None:
    peer = api.server.peer_address
    listed = api(MemberListRequest())
    answer = get_at(peer, "/members")
    (member,) = answer.json
    assert (member["id"], member["name"]) == (listed.members[0].ID, "m1")
    assert member["peerURLs"] == [f"http://{peer}"] and member["clientURLs"] == [f"http://{api.address}"]
    assert "isLearner" not in member
    assert answer.headers["X-Etcd-Cluster-ID"] == f"{listed.header.cluster_id:x}"
    assert get_at(peer, "/version").status == 200
    for path in ("/health", "/metrics", "/nowhere"):
        assert get_at(peer, path).status == 404


def test_HT27_unix_sockets(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the file is made in the working directory
    with start(kind, {"listen-client-urls": "unix://localhost:1234"}) as _:
        with Api(f"unix:{tmp_path}/localhost:1234") as api:
            assert api(StatusRequest()).leader
        with socket.socket(socket.AF_UNIX) as plain:
            plain.connect(str(tmp_path / "localhost:1234"))
            plain.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            body = b"".join(iter(lambda: plain.recv(65536), b""))
        assert json.loads(body.split(b"\r\n\r\n", 1)[1])["health"] == "true"
