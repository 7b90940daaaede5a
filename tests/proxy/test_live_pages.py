"""Health and metrics of a proxy over plain HTTP (PX23, PX24), and its end."""

import http.client
import json
import signal

import pytest

from kvorum.pb.rpc_pb2 import PutRequest
from loadtest import processes
from loadtest.launcher import Server, wait_until
from loadtest.proxies import Proxy
from tests.calls import Api
from tests.servers import SUBJECT, start_kvorum, start_proxy


def get(address: str, path: str, method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, timeout=30.0)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def figures(page: bytes) -> dict[str, float]:
    """Samples of a page of metrics: name with labels to value."""
    lines = [line for line in page.decode().splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


@pytest.mark.parametrize("path", ["/health", "/proxy/health"])
def test_health(proxy: Server, path: str) -> None:
    status, body = get(proxy.address, path)
    assert (status, json.loads(body)) == (200, {"health": "true", "reason": ""})


def test_other_pages_are_not_there(proxy: Server) -> None:
    for path in ("/", "/version", "/v3/kv/range", "/debug/vars"):
        assert get(proxy.address, path) == (404, b"404 page not found\n")
    assert get(proxy.address, "/health", "POST")[0] == 405


def test_metrics_are_the_member_s(proxy: Server) -> None:
    status, page = get(proxy.address, "/metrics")
    assert status == 200
    assert "etcd_server_has_leader" in figures(page)


def test_own_metrics(proxy: Server, api: Api) -> None:
    label = '{grpc_code="OK",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"}'
    before = figures(get(proxy.address, "/proxy/metrics")[1]).get(f"grpc_server_handled_total{label}", 0.0)
    api(PutRequest(key=b"pages/a"))
    status, page = get(proxy.address, "/proxy/metrics")
    assert status == 200
    after = figures(page)
    assert after[f"grpc_server_handled_total{label}"] == before + 1
    assert after["kvorum_grpc_proxy_endpoint_serving"] == 1
    assert after["etcd_grpc_proxy_watchers_coalescing_total"] == 0
    assert after["etcd_grpc_proxy_events_coalescing_total"] >= 0
    assert b"# TYPE etcd_grpc_proxy_events_coalescing_total counter\n" in page
    assert b"# TYPE etcd_grpc_proxy_watchers_coalescing_total gauge\n" in page


def test_without_a_member(tmp_path_factory: pytest.TempPathFactory) -> None:
    with start_kvorum() as member:
        metrics = Server(SUBJECT, tmp_path_factory.mktemp("ports"))  # for its ports alone
        try:
            with start_proxy([member.address], {"metrics-addr": f"http://{metrics.address}"}) as proxy:
                for address in (proxy.address, metrics.address):
                    assert get(address, "/health")[0] == 200
                assert get(metrics.address, "/proxy/metrics")[0] == 200
                member.kill()
                status, body = get(metrics.address, "/health")
                assert status == 503
                assert json.loads(body)["health"] == "false"
                assert json.loads(body)["reason"].startswith("GET ERROR:")
                assert get(metrics.address, "/proxy/health")[0] == 503
                assert get(metrics.address, "/metrics") == (500, b"Internal server error\n")
                assert get(metrics.address, "/proxy/metrics")[0] == 200
        finally:
            metrics.close()


def test_a_graceful_end_is_a_death_by_the_signal(kvorum_server: Server) -> None:
    with start_proxy([kvorum_server.address]) as proxy, Api(proxy.address) as api:
        api(PutRequest(key=b"pages/b"))
        with api.watch() as stream:
            assert proxy.stop() == -signal.SIGTERM
            assert stream.ended().message == "etcdserver: server stopped"


def test_several_workers(kvorum_server: Server) -> None:
    with start_proxy([kvorum_server.address], {"workers": "2"}) as proxy:
        assert isinstance(proxy, Proxy)

        def puts() -> tuple[float, float]:
            found = figures(get(proxy.address, "/proxy/metrics")[1])
            done = [value for name, value in found.items() if "handled_total" in name and '"Put"' in name]
            return found["kvorum_grpc_proxy_workers"], sum(done)

        for _ in range(20):  # each on a connection of its own, so that both workers get some
            with Api(proxy.address) as api:
                api(PutRequest(key=b"workers/a"))
        assert puts() == (2, 20), "whichever worker is asked tells of all"
        first, second = processes.children(proxy.pid)
        processes.send(first, signal.SIGHUP)
        processes.send(proxy.pid, signal.SIGHUP)
        processes.send(second, signal.SIGKILL)

        def restarted() -> bool:
            now = processes.children(proxy.pid)
            return len(now) == 2 and second not in now and puts()[0] == 2

        wait_until(restarted, "the worker to be started again")
        assert first in processes.children(proxy.pid)
        for _ in range(10):
            with Api(proxy.address) as api:
                api(PutRequest(key=b"workers/b"), wait_for_ready=True)
        assert proxy.stop() == -signal.SIGTERM
