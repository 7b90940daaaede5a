"""`--namespaces-file`: tenants of one proxy, in front of a member."""

import itertools
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from kvorum import errors
from kvorum.errors import Code, Status
from kvorum.pb.mvcc_pb2 import Event
from kvorum.pb.rpc_pb2 import (
    AlarmRequest,
    AuthEnableRequest,
    AuthUserListRequest,
    CompactionRequest,
    DefragmentRequest,
    DeleteRangeRequest,
    HashKVRequest,
    LeaseGrantRequest,
    LeaseLeasesRequest,
    MemberAddRequest,
    MemberListRequest,
    PutRequest,
    RangeRequest,
    SnapshotRequest,
    StatusRequest,
    TxnRequest,
    WatchCancelRequest,
    WatchCreateRequest,
    WatchRequest,
    WatchResponse,
)
from loadtest import processes
from loadtest.launcher import Server
from tests.calls import Api
from tests.servers import start_proxy

DEADLINE_S = 30.0

FILE = """
tenants:
  - {name: alpha, namespace: alpha/, authorities: [alpha.test]}
  - {name: beta, namespace: beta/, authorities: [beta.test]}
  - name: small
    namespace: small/
    authorities: [small.test]
    limits: {keys: 3, bytes: 100}
  - name: slow
    namespace: slow/
    authorities: [slow.test]
    limits: {requests_per_second: 1}
  - name: narrow
    namespace: narrow/
    authorities: [narrow.test]
    limits: {watches: 2}
"""

Connect = Callable[[str], Api]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "not so within the deadline"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tenants") / "tenants.yaml"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def tenants_proxy(kvorum_server: Server, file: Path) -> Iterator[Server]:
    with start_proxy([kvorum_server.address], {"namespaces-file": str(file)}) as proxy:
        yield proxy


@pytest.fixture
def tenant(tenants_proxy: Server) -> Iterator[Connect]:
    """Opens connections of tenants, by name."""
    opened: list[Api] = []

    def connect(name: str) -> Api:
        opened.append(Api(tenants_proxy.address, authority=f"{name}.test:2379"))
        return opened[-1]

    yield connect
    for api in opened:
        api.close()


def everything(api: Api) -> list[bytes]:
    return [kv.key for kv in api(RangeRequest(key=b"\0", range_end=b"\0")).kvs]


def test_each_tenant_has_keys_of_its_own(tenant: Connect, direct: Api) -> None:
    alpha, beta = tenant("alpha"), tenant("beta")
    alpha(PutRequest(key=b"a", value=b"of alpha"))
    beta(PutRequest(key=b"a", value=b"of beta"))
    assert alpha(RangeRequest(key=b"a")).kvs[0].value == b"of alpha"
    assert everything(alpha) == [b"a"]
    assert beta(DeleteRangeRequest(key=b"\0", range_end=b"\0")).deleted == 1
    assert everything(beta) == []
    assert direct(RangeRequest(key=b"alpha/a")).count == 1


def test_who_is_no_tenant_is_refused(tenants_proxy: Server) -> None:
    with Api(tenants_proxy.address) as stranger:
        status = stranger.status(RangeRequest(key=b"a"))
        assert (status.code, status.message) == (Code.PERMISSION_DENIED, "no namespace is served to this caller")


@pytest.mark.parametrize(
    "request_",
    [
        CompactionRequest(revision=1),
        DefragmentRequest(),
        HashKVRequest(),
        MemberAddRequest(peerURLs=["http://127.0.0.1:1"]),
        LeaseLeasesRequest(),
        AuthEnableRequest(),
        AuthUserListRequest(),
        AlarmRequest(action="DEACTIVATE", alarm="NOSPACE"),
    ],
)
def test_what_concerns_the_whole_cluster_is_no_tenant_s(tenant: Connect, request_: object) -> None:
    assert tenant("alpha").status(request_).code == Code.PERMISSION_DENIED  # type: ignore[arg-type]


def test_nor_is_a_snapshot(tenant: Connect) -> None:
    with pytest.raises(errors.ApiError) as raised:
        list(tenant("alpha").stream(SnapshotRequest()))
    assert raised.value.status.code == Code.PERMISSION_DENIED
    assert "it concerns the whole cluster" in raised.value.status.message


def test_what_harms_nobody_is(tenant: Connect) -> None:
    alpha = tenant("alpha")
    for request in (StatusRequest(), MemberListRequest(), AlarmRequest(), LeaseGrantRequest(TTL=60)):
        alpha(request)


def test_limits_of_keys_and_bytes(tenant: Connect, direct: Api) -> None:
    small = tenant("small")
    for key in (b"a", b"b", b"c"):
        small(PutRequest(key=key, value=b"1"))
    status = small.status(PutRequest(key=b"d"))
    assert (status.code, status.message) == (Code.RESOURCE_EXHAUSTED, 'tenant "small" is over its limit: keys is 3')
    small(PutRequest(key=b"a", value=b"an update"))
    txn = TxnRequest(success=[{"request_put": PutRequest(key=b"d")}])
    assert small.status(txn).message == 'tenant "small" is over its limit: keys is 3'
    large = PutRequest(key=b"a", value=b"x" * 100)
    assert small.status(large).message == 'tenant "small" is over its limit: bytes is 100'
    # What is deleted makes room at once, whoever deleted it.
    for number in range(20):
        small(DeleteRangeRequest(key=b"a"))
        small(PutRequest(key=b"a", value=b"%d" % number))
        direct(DeleteRangeRequest(key=b"small/b"))
        small(PutRequest(key=b"b", value=b"%d" % number))
    assert small.status(PutRequest(key=b"d")).code == Code.RESOURCE_EXHAUSTED
    assert direct(RangeRequest(key=b"small/", range_end=b"small0", count_only=True)).count == 3
    small(DeleteRangeRequest(key=b"\0", range_end=b"\0"))
    for key in (b"e", b"f", b"g"):
        small(PutRequest(key=key))
    small(DeleteRangeRequest(key=b"\0", range_end=b"\0"))


def test_two_proxies_agree_on_what_a_tenant_stores(
    tenant: Connect, kvorum_server: Server, file: Path, direct: Api
) -> None:
    small = tenant("small")
    with (
        start_proxy([kvorum_server.address], {"namespaces-file": str(file)}) as other,
        Api(other.address, authority="small.test") as elsewhere,
    ):
        small(PutRequest(key=b"a"))
        elsewhere(PutRequest(key=b"b"))
        direct(PutRequest(key=b"small/c"))
        fresh = itertools.count()

        def is_refused(api: Api) -> bool:
            return api.status(PutRequest(key=b"x%d" % next(fresh))).code == Code.RESOURCE_EXHAUSTED

        for api in (small, elsewhere):
            wait_for(partial(is_refused, api))
        elsewhere(DeleteRangeRequest(key=b"\0", range_end=b"\0"))
        small(PutRequest(key=b"d"))
        small(DeleteRangeRequest(key=b"\0", range_end=b"\0"))


def test_requests_per_second(tenant: Connect) -> None:
    slow, beta = tenant("slow"), tenant("beta")
    statuses = [slow.status(RangeRequest(key=b"a")) for _ in range(20)]
    refused = [status for status in statuses if status.code == Code.RESOURCE_EXHAUSTED]
    assert refused
    assert refused[0].message == 'tenant "slow" is over its limit: requests_per_second is 1'
    beta(RangeRequest(key=b"a"))
    wait_for(lambda: slow.status(RangeRequest(key=b"a")).code == Code.OK)


def created(replies: list[WatchResponse], count: int) -> list[WatchResponse]:
    found = [reply for reply in replies if reply.created]
    return found if len(found) >= count else []


def test_watches(tenant: Connect) -> None:
    narrow = tenant("narrow")
    with narrow.watch() as one, narrow.watch() as other:
        for stream in (one, other):
            stream.send(WatchRequest(create_request=WatchCreateRequest(key=b"k")))
            assert not stream.wait(lambda replies: created(replies, 1))[0].canceled
        other.send(WatchRequest(create_request=WatchCreateRequest(key=b"m")))
        refused = other.wait(lambda replies: created(replies, 2))[1]
        assert refused.canceled
        assert refused.watch_id == -1
        assert refused.cancel_reason == (
            'rpc error: code = ResourceExhausted desc = tenant "narrow" is over its limit: watches is 2'
        )
        one.send(WatchRequest(cancel_request=WatchCancelRequest(watch_id=0)))
        one.wait(lambda replies: [reply for reply in replies if reply.canceled])
        other.send(WatchRequest(create_request=WatchCreateRequest(key=b"m")))
        assert not other.wait(lambda replies: created(replies, 3))[2].canceled
    wait_for(lambda: watches_of("narrow", tenant) == 0)


def watches_of(name: str, tenant: Connect) -> float:
    page = urllib.request.urlopen(f"http://{tenant(name).address}/proxy/metrics", timeout=DEADLINE_S).read().decode()
    prefix = f'kvorum_grpc_proxy_tenant_watches{{tenant="{name}"}} '
    return float(next(line.removeprefix(prefix) for line in page.splitlines() if line.startswith(prefix)))


def test_two_tenants_watch_everything_and_see_their_own(tenant: Connect) -> None:
    everything_request = WatchRequest(create_request=WatchCreateRequest(range_end=b"\0", prev_kv=True))
    alpha, beta = tenant("alpha"), tenant("beta")
    with alpha.watch() as of_alpha, beta.watch() as of_beta:
        for stream in (of_alpha, of_beta):
            stream.send(everything_request)
            stream.wait(lambda replies: created(replies, 1))
        for number in range(20):
            alpha(PutRequest(key=b"w", value=b"alpha %d" % number))
            beta(PutRequest(key=b"w", value=b"beta %d" % number))
        for name, stream in (("alpha", of_alpha), ("beta", of_beta)):
            wanted = [(b"w", f"{name} {number}".encode()) for number in range(20)]

            def seen(replies: list[WatchResponse], wanted: list[tuple[bytes, bytes]] = wanted) -> list[Event]:
                events = [event for reply in replies for event in reply.events]
                return events if [(event.kv.key, event.kv.value) for event in events] == wanted else []

            events = stream.wait(seen)
            assert all(event.prev_kv.key == b"w" for event in events[1:])
    for api in (alpha, beta):
        api(DeleteRangeRequest(key=b"w"))


def test_a_reload_ends_the_watches_of_those_that_it_moves_and_no_other(
    tenant: Connect, tenants_proxy: Server, file: Path
) -> None:
    everything_request = WatchRequest(create_request=WatchCreateRequest(range_end=b"\0"))
    with tenant("alpha").watch() as of_alpha, tenant("beta").watch() as of_beta, tenant("slow").watch() as of_slow:
        for stream in (of_alpha, of_beta, of_slow):
            stream.send(everything_request)
            stream.wait(lambda replies: created(replies, 1))
        try:
            file.write_text(
                FILE.replace("namespace: beta/", "namespace: elsewhere/").replace("name: slow", "name: swift")
            )
            os.kill(tenants_proxy.pid, signal.SIGHUP)
            assert of_beta.ended() == Status(Code.UNAVAILABLE, 'the namespace of tenant "beta" has changed')
            assert of_slow.ended() == Status(Code.PERMISSION_DENIED, 'tenant "slow" is not served any more')
            tenant("alpha")(PutRequest(key=b"w"))
            of_alpha.wait(lambda replies: [reply for reply in replies if reply.events])
        finally:
            file.write_text(FILE)
            os.kill(tenants_proxy.pid, signal.SIGHUP)
            wait_for(lambda: tenant("slow").status(RangeRequest(key=b"a")).code != Code.PERMISSION_DENIED)


def test_several_workers_share_limits_and_reload_together(kvorum_server: Server, tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text(FILE)
    flags = {"namespaces-file": str(path), "workers": "2"}
    with start_proxy([kvorum_server.address], flags) as proxy:
        opened = [Api(proxy.address, authority="slow.test") for _ in range(8)]  # some at each worker
        began = time.monotonic()
        statuses = [api.status(RangeRequest(key=b"a")) for _ in range(3) for api in opened]
        assert [status.code for status in statuses].count(Code.OK) <= 2 + time.monotonic() - began
        over = 'tenant "slow" is over its limit: requests_per_second is 1'
        assert over in [status.message for status in statuses]
        path.write_text(FILE.replace("requests_per_second: 1", "requests_per_second: 100000"))
        os.kill(proxy.pid, signal.SIGHUP)
        wait_for(lambda: all(api.status(RangeRequest(key=b"a")).code == Code.OK for api in opened * 3))
        for api in opened:
            api.close()


def test_a_reload_drops_no_connection(tenant: Connect, tenants_proxy: Server, file: Path) -> None:
    alpha, small = tenant("alpha"), tenant("small")
    alpha(DeleteRangeRequest(key=b"\0", range_end=b"\0"))
    alpha(PutRequest(key=b"r"))
    small(PutRequest(key=b"a"))
    try:
        file.write_text(FILE + "  - {name: gamma}")
        os.kill(tenants_proxy.pid, signal.SIGHUP)
        wait_for(lambda: "the namespaces file was not reloaded" in tenants_proxy.log_path.read_text())
        assert "is missing" in tenants_proxy.log_path.read_text()
        assert everything(alpha) == [b"r"]
        assert small.status(PutRequest(key=b"a")).code == Code.OK
        file.write_text(FILE.replace("keys: 3", "keys: 1").replace("- {name: beta", "- {name: delta"))
        os.kill(tenants_proxy.pid, signal.SIGHUP)
        fresh = itertools.count()
        over = 'tenant "small" is over its limit: keys is 1'
        wait_for(lambda: small.status(PutRequest(key=b"z%d" % next(fresh))).message == over)
        assert everything(alpha) == [b"r"]
    finally:
        file.write_text(FILE)
        os.kill(tenants_proxy.pid, signal.SIGHUP)
        small(DeleteRangeRequest(key=b"\0", range_end=b"\0"))
        small(PutRequest(key=b"a"))
        wait_for(lambda: small.status(PutRequest(key=b"b")).code == Code.OK)
        small(DeleteRangeRequest(key=b"\0", range_end=b"\0"))
        alpha(DeleteRangeRequest(key=b"\0", range_end=b"\0"))


def test_a_worker_starts_again_while_the_file_is_broken(kvorum_server: Server, tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text(FILE)
    with start_proxy([kvorum_server.address], {"namespaces-file": str(path), "workers": "2"}) as proxy:
        path.write_text("tenants: [{name: alpha, ")
        os.kill(proxy.pid, signal.SIGHUP)
        log = proxy.log_path
        wait_for(lambda: log.read_text().count("the namespaces file was not reloaded") == 2)
        died = processes.children(proxy.pid)[0]
        processes.send(died, signal.SIGKILL)
        wait_for(lambda: died not in (now := processes.children(proxy.pid)) and len(now) == 2)
        for _ in range(10):  # some at the new worker
            with Api(proxy.address, authority="alpha.test") as api:
                api(RangeRequest(key=b"a"), wait_for_ready=True)
        assert "a worker failed" not in log.read_text()


def test_a_broken_file_ends_the_start(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(FILE + "  - {name: gamma, namespace: alpha/x, users: [g]}")
    command = [sys.executable, "-m", "proxy", "start", "--listen-addr=127.0.0.1:0", f"--namespaces-file={path}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert ended.returncode == 1
    assert f"{path}:17: tenants[5].namespace: b'alpha/x' overlaps the namespace b'alpha/'" in ended.stderr
