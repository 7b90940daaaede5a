"""Keep-alives through a proxy in front of a member."""

from collections.abc import Iterator
from contextlib import ExitStack
from urllib.request import urlopen

import pytest

from kvorum import errors
from kvorum.errors import Status
from kvorum.pb.rpc_pb2 import (
    LeaseGrantRequest,
    LeaseKeepAliveRequest,
    LeaseRevokeRequest,
    LeaseTimeToLiveRequest,
)
from loadtest.launcher import Server
from tests.calls import OK, Api, KeepAliveStream
from tests.servers import start_kvorum, start_proxy


def ask(stream: KeepAliveStream, lease: int) -> int:
    """The TTL that a keep-alive is answered with."""
    seen = len(stream.replies)
    stream.send(LeaseKeepAliveRequest(ID=lease))
    (reply,) = stream.wait(lambda replies: replies[seen:])
    assert reply.ID == lease
    return int(reply.TTL)


def renewals(member: Server) -> int:
    """How often the member has renewed a lease."""
    with urlopen(f"http://{member.address}/metrics", timeout=30) as page:
        for line in page.read().decode().splitlines():
            name, _, value = line.rpartition(" ")
            if name == "etcd_debugging_lease_renewed_total":
                return int(float(value))
    raise AssertionError("no such metric")


def test_many_streams_cause_one_renewal(kvorum_server: Server, proxy: Server) -> None:
    with ExitStack() as stack:
        apis = [stack.enter_context(Api(proxy.address)) for _ in range(10)]
        lease = apis[0](LeaseGrantRequest(TTL=600)).ID
        before = renewals(kvorum_server)
        streams = [stack.enter_context(api.keep_alive()) for api in apis for _ in range(5)]
        assert ask(streams[0], lease) == 600
        for stream in streams[1:]:
            assert 500 < ask(stream, lease) < 600
        assert renewals(kvorum_server) == before + 1
        assert ask(streams[7], lease) == 600
        assert renewals(kvorum_server) == before + 2


def test_L8_L10_unknown_leases_and_half_close(api: Api) -> None:
    lease = api(LeaseGrantRequest(TTL=600)).ID
    with api.keep_alive() as stream:
        assert [ask(stream, number) for number in (lease, 4711, 0, lease)] == [600, 0, 0, 600]
        stream.half_close()
        assert stream.ended() == OK


def test_L10_half_close_with_answers_under_way(api: Api) -> None:
    for _ in range(20):
        with api.keep_alive() as stream:
            for lease in (4711, 4712):
                stream.send(LeaseKeepAliveRequest(ID=lease))
            stream.half_close()
            assert stream.ended() == OK
            assert [reply.TTL for reply in stream.replies] == [0, 0]


def test_a_lease_revoked_through_the_proxy_is_gone_at_once(api: Api) -> None:
    lease = api(LeaseGrantRequest(TTL=600)).ID
    with api.keep_alive() as first, api.keep_alive() as second:
        assert ask(first, lease) == 600
        api(LeaseRevokeRequest(ID=lease))
        assert ask(second, lease) == 0
    assert api.status(LeaseRevokeRequest(ID=lease)) == errors.LEASE_NOT_FOUND


@pytest.fixture
def own_member() -> Iterator[Server]:
    with start_kvorum() as server:
        yield server


def test_keep_alives_outlive_the_member_s_death(own_member: Server) -> None:
    with start_proxy([own_member.address]) as proxy, Api(proxy.address) as api, api.keep_alive() as stream:
        lease = api(LeaseGrantRequest(TTL=600)).ID
        assert ask(stream, lease) == 600
        own_member.kill()
        stream.send(LeaseKeepAliveRequest(ID=lease))
        stream.send(LeaseKeepAliveRequest(ID=4711))
        own_member.start()
        replies = stream.wait(lambda replies: replies[1:] if len(replies) == 3 else [])
        assert [(reply.ID, reply.TTL) for reply in replies] == [(lease, 600), (4711, 0)]
        assert api(LeaseTimeToLiveRequest(ID=lease)).TTL > 0


def test_a_stopping_proxy_ends_its_streams_as_a_member_does(kvorum_server: Server) -> None:
    with start_proxy([kvorum_server.address]) as proxy, Api(proxy.address) as api, api.keep_alive() as stream:
        lease = api(LeaseGrantRequest(TTL=600)).ID
        assert ask(stream, lease) == 600
        proxy.stop()
        assert stream.ended() == Status(*errors.STOPPED)
