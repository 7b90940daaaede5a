"""Members of a cluster that die behind a proxy: clients see at most errors that they may retry."""

import time
from collections.abc import Iterator

import pytest

from kvorum.errors import ApiError, Code
from kvorum.pb.rpc_pb2 import (
    LeaseGrantRequest,
    LeaseKeepAliveRequest,
    MemberListRequest,
    PutRequest,
    RangeRequest,
    StatusRequest,
)
from loadtest.cluster import Cluster, status
from loadtest.launcher import Server, wait_until
from tests.calls import Api
from tests.servers import start_kvorum_cluster, start_proxy

DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with start_kvorum_cluster(3) as cluster:
        yield cluster


@pytest.fixture
def whole(cluster: Cluster) -> Iterator[Cluster]:
    """All members run, before and after."""
    cluster.start()
    cluster.wait_for_leader()
    yield cluster
    cluster.start()


def in_use(api: Api, cluster: Cluster) -> Server:
    """The member that the proxy speaks to."""
    member_id = api(StatusRequest()).header.member_id
    return next(member for member in cluster.running if status(member).member_id == member_id)


def put_for_sure(api: Api, key: bytes, value: bytes) -> None:
    """As a client does: again after an error that says that it may."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            api(PutRequest(key=key, value=value), timeout_s=10.0)
            return
        except ApiError as error:
            assert error.status.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED), error.status
            assert time.monotonic() < deadline, error.status


def test_the_member_in_use_dies(whole: Cluster) -> None:
    with start_proxy(whole.addresses) as proxy, Api(proxy.address) as api:
        api(PutRequest(key=b"failover/a", value=b"1"))
        for n in range(2):
            dead = in_use(api, whole)
            dead.kill()
            put_for_sure(api, b"failover/a", b"%d" % n)
            assert api(RangeRequest(key=b"failover/a")).kvs[0].value == b"%d" % n
            assert in_use(api, whole) is not dead
            dead.start()


def test_reads_notice_nothing(whole: Cluster) -> None:
    with start_proxy(whole.addresses) as proxy, Api(proxy.address) as api:
        api(PutRequest(key=b"failover/b", value=b"1"))
        leader = whole.wait_for_leader()
        used = in_use(api, whole)
        if used is leader:  # an election is another matter: here a follower is to die
            whole.move_leader(next(member for member in whole.members if member is not used))
            whole.wait_for_leader(lambda found: found is not used)
        used.kill()
        for serializable in (True, False):
            read = api(RangeRequest(key=b"failover/b", serializable=serializable))
            assert read.kvs[0].value == b"1"


def test_all_die_and_come_back(whole: Cluster) -> None:
    with start_proxy(whole.addresses) as proxy, Api(proxy.address) as api:
        api(PutRequest(key=b"failover/c", value=b"1"))
        for member in whole.members:
            member.kill()
        whole.start()
        put_for_sure(api, b"failover/c", b"2")
        assert api(RangeRequest(key=b"failover/c")).kvs[0].value == b"2"


def test_keep_alives_keep_leases_alive_when_the_leader_dies_and_when_all_do(whole: Cluster) -> None:
    with start_proxy(whole.addresses) as proxy, Api(proxy.address) as api, api.keep_alive() as stream:
        lease = api(LeaseGrantRequest(TTL=30)).ID

        def renew() -> None:
            asked = len(stream.replies)
            stream.send(LeaseKeepAliveRequest(ID=lease))
            (reply,) = stream.wait(lambda replies: replies[asked:], timeout_s=DEADLINE_S)
            assert (reply.ID, reply.TTL) == (lease, 30)

        renew()
        leader = whole.wait_for_leader()
        leader.kill()
        renew()
        leader.start()
        for member in whole.members:
            member.kill()
        stream.send(LeaseKeepAliveRequest(ID=lease))
        whole.start()
        answered = stream.wait(lambda replies: replies if len(replies) == 3 else [], timeout_s=DEADLINE_S)
        assert [reply.TTL for reply in answered] == [30] * 3
        renew()
        assert stream.status is None


def test_owned_keys_are_never_old_when_the_endpoint_in_use_dies(whole: Cluster) -> None:
    flags = {"experimental-leasing-prefix": "leasing/"}
    with (
        start_proxy(whole.addresses, flags) as one,
        start_proxy(whole.addresses, flags) as other,
        Api(one.address) as reader,
        Api(other.address) as writer,
    ):
        for n in range(6):
            put_for_sure(writer, b"failover/owned", b"%d" % n)
            for _ in range(3):
                assert reader(RangeRequest(key=b"failover/owned")).kvs[0].value == b"%d" % n
            if n % 3 == 1:
                dead = in_use(reader, whole)
                dead.kill()
                assert reader(RangeRequest(key=b"failover/owned")).kvs[0].value == b"%d" % n
                dead.start()


def test_a_member_that_stands_still_is_left(whole: Cluster) -> None:
    with start_proxy(whole.addresses) as proxy, Api(proxy.address) as api:
        api(PutRequest(key=b"failover/d", value=b"1"))
        used = in_use(api, whole)
        used.suspend()
        try:
            put_for_sure(api, b"failover/d", b"2")
        finally:
            used.resume()


def test_endpoints_follow_the_members(whole: Cluster) -> None:
    first, *others = whole.members
    flags = {"endpoints-auto-sync-interval": "100ms", "advertise-client-url": ""}
    with start_proxy([first.address], flags) as proxy, Api(proxy.address) as api:
        assert len(api(MemberListRequest()).members) == 3

        def followed() -> bool:
            return all(other.address in proxy.log_path.read_text() for other in others)

        wait_until(followed, "the endpoints to be those of all members")
        first.kill()
        put_for_sure(api, b"failover/e", b"1")
