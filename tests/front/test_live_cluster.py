"""Three members that run: what any of them answers, and what each still does without a leader."""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvorum import errors
from kvorum.errors import Code, Status
from kvorum.pb.health_pb2 import HealthCheckRequest
from kvorum.pb.rpc_pb2 import (
    CompactionRequest,
    LeaseGrantRequest,
    LeaseKeepAliveRequest,
    LeaseLeasesRequest,
    LeaseTimeToLiveRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    StatusRequest,
    TxnRequest,
    WatchCreateRequest,
    WatchRequest,
)
from loadtest.cluster import Cluster
from loadtest.launcher import Server, wait_until
from tests.calls import Api, KeepAliveStream
from tests.servers import start_kvorum_cluster

ELECTION_S = 0.5
FLAGS = {"heartbeat-interval": "50", "election-timeout": "500", "front-workers": "1"}
HAS_LEADER = (("hasleader", "true"),)
WAIT_S = 20.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with start_kvorum_cluster(flags=FLAGS) as running:
        yield running


@contextlib.contextmanager
def connected(servers: Sequence[Server]) -> Iterator[list[Api]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Api(server.address)) for server in servers]


def followers_first(cluster: Cluster) -> list[Server]:
    """All members; the leader is the last."""
    leader = cluster.wait_for_leader()
    return [member for member in cluster.members if member is not leader] + [leader]


def keep_alive(stream: KeepAliveStream, lease_id: int) -> int:
    """The TTL that one more keep-alive is answered with."""
    before = len(stream.replies)
    stream.send(LeaseKeepAliveRequest(ID=lease_id))
    return stream.wait(lambda replies: replies[before:])[0].TTL


def test_P18_P19_what_one_member_acknowledged_every_other_shows(cluster: Cluster) -> None:
    with connected(cluster.members) as apis:
        for number in range(30):
            value = b"%d" % number
            apis[number % 3](PutRequest(key=b"seen", value=value))
            other = apis[(number + 1) % 3]
            assert other(RangeRequest(key=b"seen")).kvs[0].value == value
            third = apis[(number + 2) % 3]
            txn = third(TxnRequest(success=[RequestOp(request_range=RangeRequest(key=b"seen"))]))
            assert txn.responses[0].response_range.kvs[0].value == value
            (chunk,) = other.stream(RangeRequest(key=b"seen"))
            assert chunk.range_response.kvs[0].value == value


def test_L12_L13_L17_leases_are_asked_of_any_member(cluster: Cluster) -> None:
    with connected(followers_first(cluster)) as apis, contextlib.ExitStack() as stack:
        streams = [stack.enter_context(api.keep_alive()) for api in apis]
        for number, api in enumerate(apis, 1):
            api(LeaseGrantRequest(ID=number, TTL=60))
            api(PutRequest(key=b"leased%d" % number, lease=number))
            assert [keep_alive(stream, number) for stream in streams] == [60] * 3
            for asked in apis:
                found = asked(LeaseTimeToLiveRequest(ID=number, keys=True))
                assert (found.grantedTTL, list(found.keys)) == (60, [b"leased%d" % number])
        assert [keep_alive(stream, 999) for stream in streams] == [0] * 3
        assert [api(LeaseTimeToLiveRequest(ID=999)).TTL for api in apis] == [-1] * 3
        assert all({lease.ID for lease in api(LeaseLeasesRequest()).leases} >= {1, 2, 3} for api in apis)


def test_L22_a_lease_granted_anywhere_ends(cluster: Cluster) -> None:
    with connected(followers_first(cluster)) as apis:
        granted = apis[0](LeaseGrantRequest(TTL=1))
        apis[1](PutRequest(key=b"gone soon", lease=granted.ID))
        wait_until(lambda: apis[2](RangeRequest(key=b"gone soon")).count == 0, "the lease to end", WAIT_S)


def test_a_new_leader_answers_what_the_old_one_left(cluster: Cluster) -> None:
    members = followers_first(cluster)
    with connected(members[:2]) as (api, other), api.keep_alive(HAS_LEADER) as stream:
        api(LeaseGrantRequest(ID=50, TTL=60))
        assert keep_alive(stream, 50) == 60
        members[2].kill()
        assert keep_alive(stream, 50) == 60, "it waited for the new leader, of which one was found in time (WP11)"
        assert other(LeaseTimeToLiveRequest(ID=50)).grantedTTL == 60
        other(PutRequest(key=b"after", value=b"1"))
        assert api(RangeRequest(key=b"after")).kvs[0].value == b"1"
        cluster.start()


def test_without_a_leader(cluster: Cluster) -> None:
    """P11, P13, P18, L12, WP10 to WP12, HT2, HT3, MA2, G15: one member of three is left."""
    left, *others = followers_first(cluster)
    timeout = errors.TIMEOUT
    never_proposed = Status(Code.DEADLINE_EXCEEDED, "context deadline exceeded")
    serializable = RangeRequest(key=b"kept", serializable=True)
    with contextlib.ExitStack() as stack:
        api = stack.enter_context(Api(left.address))
        api(PutRequest(key=b"kept", value=b"1"))
        watching, asking = api.watch(HAS_LEADER), api.keep_alive(HAS_LEADER)
        patient = stack.enter_context(api.watch())
        for stream in (watching, patient):
            stream.send(WatchRequest(create_request=WatchCreateRequest(key=b"kept")))
            stream.wait(lambda replies: replies)
        for member in others:
            member.kill()
        assert watching.ended() == asking.ended() == errors.NO_LEADER
        watching.close()
        asking.close()
        expected = {
            "put": (PutRequest(key=b"a"), never_proposed),
            "compact": (CompactionRequest(revision=1, physical=True), never_proposed),
            "grant": (LeaseGrantRequest(TTL=60), never_proposed),
            "range": (RangeRequest(key=b"kept"), timeout),
            "txn": (TxnRequest(success=[RequestOp(request_range=RangeRequest(key=b"kept"))]), timeout),
            "time to live": (LeaseTimeToLiveRequest(ID=1), errors.NO_LEADER),
            "no key": (RangeRequest(), errors.EMPTY_KEY),
            "serializable": (serializable, None),
            "leases": (LeaseLeasesRequest(), None),
            "health": (HealthCheckRequest(), None),
        }
        began = time.monotonic()
        pool = stack.enter_context(ThreadPoolExecutor(len(expected)))
        calls = {name: pool.submit(api.outcome, request) for name, (request, _) in expected.items()}
        alive = stack.enter_context(api.keep_alive())
        alive.send(LeaseKeepAliveRequest(ID=1))
        for name, (_, status) in expected.items():
            outcome = calls[name].result()
            assert (outcome if isinstance(outcome, Status) else None) == status, name
        assert alive.ended() == errors.NO_LEADER
        assert time.monotonic() - began > 5 + 2 * ELECTION_S - 0.1, "P10"
        assert api.status(serializable, metadata=HAS_LEADER) == errors.NO_LEADER
        assert list(api(StatusRequest()).errors) == [errors.NO_LEADER.message]
        assert page(left, "/health")[1] == b'{"health":"false","reason":"RAFT NO LEADER"}\n'
        assert page(left, "/health?serializable=true")[0] == 200
        assert page(left, "/livez") == (200, b"ok\n")
        status_code, body = page(left, "/readyz")
        assert status_code == 503
        assert b"[-]linearizable_read failed: etcdserver: request timed out\n" in body
        cluster.start()
        api(PutRequest(key=b"kept", value=b"2"))
        patient.wait(lambda replies: any(event.kv.value == b"2" for reply in replies for event in reply.events))


def page(server: Server, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(server.address, timeout=WAIT_S)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()
