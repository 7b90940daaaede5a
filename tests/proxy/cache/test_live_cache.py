"""Serializable reads through a proxy's cache, with a member behind it."""

from collections.abc import Iterator
from contextlib import ExitStack
from urllib.request import urlopen

import pytest

from kvorum import errors
from kvorum.pb.rpc_pb2 import (
    CompactionRequest,
    Compare,
    DeleteRangeRequest,
    LeaseGrantRequest,
    LeaseRevokeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
    WatchCreateRequest,
    WatchRequest,
)
from loadtest.launcher import Server, wait_until
from tests.calls import Api
from tests.servers import start_proxy


@pytest.fixture
def figures(proxy: Server) -> "Figures":
    return Figures(proxy)


class Figures:
    """Hits and misses since the last look."""

    def __init__(self, proxy: Server) -> None:
        self._proxy = proxy
        self._seen = self._read()

    def _read(self) -> tuple[int, int]:
        with urlopen(f"http://{self._proxy.address}/proxy/metrics", timeout=30) as page:
            lines = [line.split() for line in page.read().decode().splitlines() if not line.startswith("#")]
        found = {line[0]: float(line[1]) for line in lines if len(line) == 2}
        assert found["kvorum_grpc_proxy_cache_bytes"] >= found["etcd_grpc_proxy_cache_keys_total"]
        return int(found["etcd_grpc_proxy_cache_hits_total"]), int(found["etcd_grpc_proxy_cache_misses_total"])

    def take(self) -> tuple[int, int]:
        seen, self._seen = self._seen, self._read()
        return self._seen[0] - seen[0], self._seen[1] - seen[1]


@pytest.fixture
def elsewhere(direct: Api) -> Iterator[Api]:
    yield direct
    direct(DeleteRangeRequest(key=b"cache/", range_end=b"cache0"))


def read(api: Api, key: bytes, *, serializable: bool = True, range_end: bytes = b"") -> list[bytes]:
    return [kv.value for kv in api(RangeRequest(key=key, range_end=range_end, serializable=serializable)).kvs]


def test_hits_refreshes_and_own_writes(api: Api, elsewhere: Api, figures: Figures) -> None:
    key, prefix, end = b"cache/hits/a", b"cache/hits/", b"cache/hits0"
    api(PutRequest(key=key, value=b"1"))
    assert read(api, key) == read(api, key) == read(api, key) == [b"1"]
    assert read(api, prefix, range_end=end) == read(api, prefix, range_end=end) == [b"1"]
    assert figures.take() == (3, 2)
    elsewhere(PutRequest(key=key, value=b"2"))
    assert read(api, key, serializable=False) == [b"2"]
    assert read(api, key) == [b"2"]
    assert read(api, prefix, range_end=end) == [b"2"]
    assert figures.take() == (1, 1)
    api(PutRequest(key=key, value=b"3"))
    assert read(api, key) == read(api, prefix, range_end=end) == [b"3"]
    guard = Compare(key=key, target=Compare.VALUE, result=Compare.EQUAL, value=b"3")
    put = RequestOp(request_put=PutRequest(key=key, value=b"4"))
    api(TxnRequest(compare=[guard], success=[RequestOp(request_txn=TxnRequest(success=[put]))]))
    assert read(api, key) == read(api, prefix, range_end=end) == [b"4"]
    api(DeleteRangeRequest(key=prefix, range_end=end))
    assert read(api, key) == read(api, prefix, range_end=end) == []
    assert figures.take() == (0, 6)


def test_keys_of_a_revoked_lease_are_gone(api: Api, elsewhere: Api) -> None:
    lease = api(LeaseGrantRequest(TTL=600)).ID
    api(PutRequest(key=b"cache/leased", lease=lease))
    assert len(read(api, b"cache/leased")) == 1
    api(LeaseRevokeRequest(ID=lease))
    assert read(api, b"cache/leased") == []


@pytest.mark.parametrize("through_the_proxy", [True, False])
def test_PX5_compacted_revisions_are_refused(api: Api, elsewhere: Api, through_the_proxy: bool) -> None:
    old = api(PutRequest(key=b"cache/compacted", value=b"1")).header.revision
    now = api(PutRequest(key=b"cache/compacted", value=b"2")).header.revision
    asked = RangeRequest(key=b"cache/compacted", revision=old, serializable=True)
    assert api(asked) == api(asked)
    if through_the_proxy:
        api(CompactionRequest(revision=now))
    else:
        elsewhere(CompactionRequest(revision=now))
        assert api.status(RangeRequest(key=b"cache/b", revision=old)) == errors.COMPACTED
    assert api.status(asked) == errors.COMPACTED
    current = RangeRequest(key=b"cache/compacted", revision=now, serializable=True)
    assert api(current).kvs[0].value == api(current).kvs[0].value == b"2"


def test_what_a_watcher_was_told_is_not_unknown_to_reads(api: Api, elsewhere: Api) -> None:
    elsewhere(PutRequest(key=b"cache/watched/a", value=b"1"))
    with api.watch() as stream:
        stream.send(WatchRequest(create_request=WatchCreateRequest(key=b"cache/watched/", range_end=b"cache/watched0")))
        stream.wait(lambda replies: replies)
        assert read(api, b"cache/watched/a") == read(api, b"cache/watched/", range_end=b"cache/watched0") == [b"1"]
        elsewhere(PutRequest(key=b"cache/watched/a", value=b"2"))
        stream.wait(lambda replies: [event for reply in replies for event in reply.events])
        assert read(api, b"cache/watched/a") == read(api, b"cache/watched/", range_end=b"cache/watched0") == [b"2"]


def test_a_write_elsewhere_is_seen_in_time(api: Api, elsewhere: Api) -> None:
    elsewhere(PutRequest(key=b"cache/aged", value=b"1"))
    assert read(api, b"cache/aged") == [b"1"]
    elsewhere(PutRequest(key=b"cache/aged", value=b"2"))
    wait_until(lambda: read(api, b"cache/aged") == [b"2"], "the reply to grow old")


def test_what_one_worker_has_written_no_other_forgets(kvorum_server: Server) -> None:
    with start_proxy([kvorum_server.address], {"workers": "2"}) as proxy, ExitStack() as stack:
        apis = [stack.enter_context(Api(proxy.address)) for _ in range(8)]
        for number in range(5):
            value = b"%d" % number
            apis[number](PutRequest(key=b"cache/workers", value=value))
            for api in apis:
                assert read(api, b"cache/workers") == read(api, b"cache/w", range_end=b"cache/x") == [value]
                assert read(api, b"cache/workers") == read(api, b"cache/w", range_end=b"cache/x") == [value]
