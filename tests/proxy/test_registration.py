"""The member list of a proxy, and its registration beside others."""

import socket
from collections.abc import Iterator

import pytest

from kvorum.log import Level, LogFormat, Logger
from kvorum.pb.mvcc_pb2 import Event
from kvorum.pb.rpc_pb2 import (
    DeleteRangeRequest,
    LeaseGrantResponse,
    LeaseKeepAliveResponse,
    LeaseRevokeRequest,
    LeaseTimeToLiveRequest,
    Member,
    MemberListRequest,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    WatchRequest,
    WatchResponse,
)
from loadtest.launcher import Kind, Server
from proxy.paths import KEEP_ALIVE, LEASE_GRANT, LEASE_REVOKE, PUT, RANGE, WATCH
from proxy.registration import Registration, Registry, registered_member, registered_value
from tests.calls import Api
from tests.proxy.fakes import FakeUpstream, Timers
from tests.proxy.tenants.test_live_tenants import wait_for
from tests.servers import start_proxy

LOGGER = Logger((lambda _level, _line: None,), Level.INFO, LogFormat.JSON)


def test_PX25_what_is_written() -> None:
    value = registered_value("10.0.0.1:23790", "host")
    assert value == b'{"Op":0,"Addr":"10.0.0.1:23790","Metadata":"{\\"name\\":\\"host\\"}"}'
    assert registered_member(value) == Member(name="host", clientURLs=["10.0.0.1:23790"])


@pytest.mark.parametrize(
    "value", [b"", b"{", b"[]", b'{"Op":1,"Addr":"a"}', b'{"Op":0}', b'{"Addr":"a","Metadata":"{"}', b"\xff"]
)
def test_what_is_no_registration(value: bytes) -> None:
    assert registered_member(value) is None


class Registering:
    """A registration among fakes."""

    def __init__(self) -> None:
        self.upstream = FakeUpstream()
        self.timers = Timers()
        self.registration = Registration(
            self.upstream, b"p/me", b"value", 6, call_later=self.timers.call_later, logger=LOGGER
        )

    def register(self, lease: int) -> None:
        self.upstream.answer(LEASE_GRANT, LeaseGrantResponse(ID=lease, TTL=6))
        put = PutRequest.FromString(self.upstream.answer(PUT, PutResponse()))
        assert put == PutRequest(key=b"p/me", value=b"value", lease=lease)


@pytest.fixture
def registering() -> Registering:
    made = Registering()
    made.registration.start()
    return made


def test_the_lease_is_renewed_at_a_third_of_its_time(registering: Registering) -> None:
    registering.register(7)
    for _ in range(3):
        registering.timers.advance(2.0)
        stream = registering.upstream.streams[0]
        assert len(stream.take()) == 1
        stream.handler.on_message(LeaseKeepAliveResponse(ID=7, TTL=6).SerializeToString())
    assert [stream.path for stream in registering.upstream.streams] == [KEEP_ALIVE]


def test_a_lost_lease_is_granted_anew(registering: Registering) -> None:
    registering.register(7)
    registering.timers.advance(2.0)
    registering.upstream.streams[0].handler.on_message(LeaseKeepAliveResponse(ID=7).SerializeToString())
    registering.register(8)


def test_a_failure_is_tried_again(registering: Registering) -> None:
    registering.upstream.refuse(LEASE_GRANT, 14, "no")
    registering.timers.advance(1.0)
    registering.upstream.answer(LEASE_GRANT, LeaseGrantResponse(ID=7, TTL=6))
    registering.upstream.refuse(PUT, 14, "no")
    registering.timers.advance(1.0)
    registering.register(8)
    registering.timers.advance(1.9)
    assert not registering.upstream.streams  # the chain of the first lease has ended
    registering.timers.advance(0.1)
    assert len(registering.upstream.streams) == 1


def test_a_lost_stream_is_opened_again_and_asks_once(registering: Registering) -> None:
    registering.register(7)
    registering.timers.advance(2.0)
    registering.upstream.streams[0].end(14, "lost")
    registering.timers.advance(1.0)
    assert len(registering.upstream.streams) == 2
    assert len(registering.upstream.streams[1].take()) == 1
    registering.upstream.streams[1].handler.on_message(LeaseKeepAliveResponse(ID=7, TTL=6).SerializeToString())
    registering.upstream.streams[1].end(14, "lost")  # with no ask under way: the next is due anyway
    registering.timers.advance(2.0)
    assert len(registering.upstream.streams) == 3
    assert len(registering.upstream.streams[2].take()) == 1


def test_another_endpoint_gets_the_renewals(registering: Registering) -> None:
    registering.register(7)
    registering.timers.advance(2.0)
    registering.registration.move()  # the ask there may never be answered
    registering.timers.advance(1.0)
    assert len(registering.upstream.streams[1].take()) == 1


def test_a_key_that_somebody_deleted_is_written_again(registering: Registering) -> None:
    registering.register(7)
    registering.registration.on_deleted(b"p/other")
    assert not registering.upstream.calls
    registering.registration.on_deleted(b"p/me")
    assert PutRequest.FromString(registering.upstream.answer(PUT, PutResponse())).lease == 7


def test_the_lease_is_revoked_at_the_stop(registering: Registering) -> None:
    registering.register(7)
    done: list[bool] = []
    registering.registration.stop(lambda: done.append(True))
    assert not done
    assert LeaseRevokeRequest.FromString(registering.upstream.refuse(LEASE_REVOKE, 14, "away")).ID == 7
    assert done
    registering.timers.advance(10.0)
    assert not registering.upstream.streams


def test_the_registry_follows() -> None:
    upstream, timers = FakeUpstream(), Timers()
    registry = Registry(upstream, b"p/", call_later=timers.call_later, logger=LOGGER)
    deleted: list[bytes] = []
    registry.on_deleted = deleted.append
    registry.start()
    upstream.refuse(RANGE, 14, "away")
    timers.advance(1.0)
    kvs = [{"key": b"p/b", "value": registered_value("b:1", "hb")}, {"key": b"p/x", "value": b"junk"}]
    read = RangeRequest.FromString(upstream.answer(RANGE, RangeResponse(header={"revision": 5}, kvs=kvs)))
    assert (read.key, read.range_end) == (b"p/", b"p0")
    stream = upstream.streams[0]
    assert stream.path == WATCH
    assert WatchRequest.FromString(stream.take()[0]).create_request.start_revision == 6
    put = Event(kv={"key": b"p/a", "value": registered_value("a:1", "ha"), "mod_revision": 7})
    delete = Event(type=Event.DELETE, kv={"key": b"p/b", "mod_revision": 8})
    stream.handler.on_message(WatchResponse(events=[put]).SerializeToString())
    assert [member.name for member in registry.members] == ["ha", "hb"]
    stream.handler.on_message(WatchResponse(events=[delete]).SerializeToString())
    assert [member.clientURLs[0] for member in registry.members] == ["a:1"]
    assert deleted == [b"p/b"]
    stream.end(14, "lost")
    timers.advance(1.0)
    kvs = [{"key": b"p/a", "value": registered_value("a:1", "ha")}, {"key": b"p/c", "value": registered_value("c", "")}]
    upstream.answer(RANGE, RangeResponse(header={"revision": 3}, kvs=kvs))  # restored: its revisions begin anew
    assert WatchRequest.FromString(upstream.streams[1].take()[0]).create_request.start_revision == 4
    assert [member.clientURLs[0] for member in registry.members] == ["a:1", "c"]
    upstream.streams[1].handler.on_message(WatchResponse(canceled=True, compact_revision=20).SerializeToString())
    timers.advance(1.0)
    upstream.answer(RANGE, RangeResponse(header={"revision": 30}))
    assert registry.members == []
    assert deleted == [b"p/b", b"p/a", b"p/c"]
    registry.stop()
    timers.advance(1.0)
    assert not upstream.calls


# Live, beside the reference.


@pytest.fixture(params=list(Kind), ids=lambda kind: kind.value)
def pair(
    request: pytest.FixtureRequest, kvorum_server: Server, reference_server: Server
) -> Iterator[tuple[Kind, Server]]:
    kind: Kind = request.param
    yield kind, kvorum_server if kind is Kind.KVORUM else reference_server


def test_PX1_a_proxy_shows_itself(pair: tuple[Kind, Server]) -> None:
    kind, member = pair
    flags = {"advertise-client-url": "proxy.test:1"}
    with start_proxy([member.address], flags, kind) as proxy, Api(proxy.address) as api:
        reply = api(MemberListRequest())
        assert list(reply.members) == [Member(name=socket.gethostname(), clientURLs=["proxy.test:1"])]
        assert not reply.HasField("header")


def test_PX1_without_an_address_it_shows_the_members(pair: tuple[Kind, Server]) -> None:
    kind, member = pair
    with (
        start_proxy([member.address], {"advertise-client-url": ""}, kind) as proxy,
        Api(proxy.address) as api,
        Api(member.address) as direct,
    ):
        assert api(MemberListRequest()).members == direct(MemberListRequest()).members


def test_PX25_GP9_registered_proxies_show_each_other(pair: tuple[Kind, Server]) -> None:
    kind, member = pair
    flags = {"resolver-prefix": "___proxies", "resolver-ttl": "60", "namespace": "reg/"}

    def addresses(api: Api) -> set[str]:
        return {member.clientURLs[0] for member in api(MemberListRequest()).members}

    with (
        start_proxy([member.address], {**flags, "advertise-client-url": "one.test:1"}, kind) as one,
        Api(one.address) as first,
        Api(member.address) as direct,
    ):
        with start_proxy([member.address], {**flags, "advertise-client-url": "two.test:1"}, kind) as two:
            with Api(two.address) as second:
                for api in (first, second):
                    wait_for(lambda api=api: addresses(api) == {"one.test:1", "two.test:1"})  # type: ignore[misc]
            kvs = direct(RangeRequest(key=b"reg/___proxies/", range_end=b"reg/___proxies0")).kvs
            assert [kv.key for kv in kvs] == [b"reg/___proxies/one.test:1", b"reg/___proxies/two.test:1"]
            assert registered_member(kvs[0].value) == Member(name=socket.gethostname(), clientURLs=["one.test:1"])
            assert direct(LeaseTimeToLiveRequest(ID=kvs[0].lease)).grantedTTL == 60
        if kind is Kind.KVORUM:  # the reference leaves its key to the lease's end
            wait_for(lambda: addresses(first) == {"one.test:1"})
            lost = direct(RangeRequest(key=kvs[0].key)).kvs[0].lease
            direct(LeaseRevokeRequest(ID=lost))
            wait_for(lambda: direct(RangeRequest(key=kvs[0].key)).count == 1)
    direct_left = DeleteRangeRequest(key=b"reg/", range_end=b"reg0")
    with Api(member.address) as direct:
        direct(direct_left)
