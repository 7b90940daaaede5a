"""Leasing with real members and proxies, the reference's among them."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple
from urllib.request import urlopen

import pytest

from kvorum.pb.rpc_pb2 import (
    Compare,
    DeleteRangeRequest,
    LeaseGrantRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)
from loadtest.launcher import Kind, Server, wait_until
from tests.calls import Api
from tests.servers import start_proxy

PREFIX = "leasing/"
FLAGS = {"experimental-leasing-prefix": PREFIX}


class Side(NamedTuple):
    """A proxy and a client of it."""

    proxy: Server
    api: Api

    def get(self, key: bytes) -> bytes | None:
        kvs = self.api(RangeRequest(key=key)).kvs
        return kvs[0].value if kvs else None

    def put(self, key: bytes, value: bytes) -> None:
        self.api(PutRequest(key=key, value=value))


def figure(proxy: Server, name: str) -> int:
    with urlopen(f"http://{proxy.address}/proxy/metrics", timeout=30) as page:
        return next(
            int(float(line.split()[1])) for line in page.read().decode().splitlines() if line.startswith(f"{name} ")
        )


def hits(side: Side) -> int:
    return figure(side.proxy, "kvorum_grpc_proxy_leasing_hits_total")


@pytest.fixture(scope="module", params=["", "ns/"], ids=["plain", "namespace"])
def namespace(request: pytest.FixtureRequest) -> str:
    """Of both proxies."""
    named: str = request.param
    return named


@pytest.fixture(scope="module")
def sides(kvorum_server: Server, namespace: str) -> Iterator[tuple[Side, Side]]:
    """Ours, and the reference's proxy, at the same member with the same prefix."""
    with ExitStack() as stack:
        found: list[Side] = []
        flags = FLAGS | ({"namespace": namespace} if namespace else {})
        for kind in (Kind.KVORUM, Kind.REFERENCE):
            proxy = stack.enter_context(start_proxy([kvorum_server.address], flags, kind))
            found.append(Side(proxy, stack.enter_context(Api(proxy.address))))
        ours, theirs = found
        wait_until(lambda: _owns(ours, b"ready"), "the session of the proxy")
        yield ours, theirs


def _owns(side: Side, key: bytes) -> bool:
    """Whether reads of the key are answered by the proxy itself; they make it owned."""
    side.get(key)
    before = hits(side)
    side.get(key)
    return hits(side) > before


def test_reads_of_an_owned_key_are_the_proxy_s(sides: tuple[Side, Side]) -> None:
    ours, _ = sides
    ours.put(b"own", b"1")
    assert _owns(ours, b"own")
    ours.put(b"own", b"2")
    before = hits(ours)
    assert ours.get(b"own") == b"2"
    assert hits(ours) == before + 1


def test_a_key_that_the_reference_owns_is_asked_for(sides: tuple[Side, Side], direct: Api, namespace: str) -> None:
    ours, theirs = sides
    leasing_key = RangeRequest(key=f"{namespace}leasing/theirs".encode())
    theirs.get(b"theirs")
    assert direct(leasing_key).kvs[0].lease
    ours.put(b"theirs", b"1")
    assert not direct(leasing_key).kvs
    assert theirs.get(b"theirs") == b"1"


@pytest.mark.parametrize("turned", [False, True])
def test_each_proxy_sees_the_other_s_writes_at_once(sides: tuple[Side, Side], turned: bool) -> None:
    one, other = sides[::-1] if turned else sides
    key = b"both/%d" % turned
    for number in range(8):
        value = b"%d" % number
        for _ in range(2):
            one.get(key)  # acquires, unless it has been asked for a moment ago
        other.put(key, value)
        assert one.get(key) == other.get(key) == value
        one.put(key, value + b"!")
        assert other.get(key) == one.get(key) == value + b"!"


@pytest.mark.parametrize("turned", [False, True])
def test_ranges_and_transactions_ask_the_other(sides: tuple[Side, Side], turned: bool) -> None:
    one, other = sides[::-1] if turned else sides
    keys = [b"many/%d/%d" % (turned, number) for number in range(3)]
    for key in keys:
        one.put(key, b"1")
        one.get(key)
    start = b"many/%d/" % turned
    put = RequestOp(request_put=PutRequest(key=keys[0], value=b"2"))
    guard = Compare(key=keys[1], target=Compare.VALUE, result=Compare.EQUAL, value=b"1")
    assert other.api(TxnRequest(compare=[guard], success=[put])).succeeded
    assert one.get(keys[0]) == b"2"
    one.get(keys[2])
    assert other.api(DeleteRangeRequest(key=start, range_end=start[:-1] + b"0")).deleted == 3
    assert [one.get(key) for key in keys] == [None] * 3


def test_a_dead_proxy_s_keys_come_free(sides: tuple[Side, Side], kvorum_server: Server, namespace: str) -> None:
    ours, _ = sides
    with start_proxy([kvorum_server.address], {**FLAGS, "namespace": namespace}) as proxy, Api(proxy.address) as api:
        third = Side(proxy, api)
        wait_until(lambda: _owns(third, b"stopped"), "ownership")
        proxy.stop()
    ours.put(b"stopped", b"1")  # its lease was revoked
    assert ours.get(b"stopped") == b"1"


def test_keys_with_leases_are_not_owned(sides: tuple[Side, Side], direct: Api) -> None:
    ours, _ = sides
    lease = ours.api(LeaseGrantRequest(TTL=2)).ID
    ours.api(PutRequest(key=b"leased", value=b"1", lease=lease))
    assert ours.get(b"leased") == b"1" and not _owns(ours, b"leased")
    wait_until(lambda: ours.get(b"leased") is None, "the lease to end")
