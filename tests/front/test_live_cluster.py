"""Three members that run: what any of them answers and publishes, and what each still does without a leader."""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc
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
    MemberPromoteRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    StatusRequest,
    TxnRequest,
    WatchCreateRequest,
    WatchRequest,
)
from loadtest.cluster import Cluster, status
from loadtest.launcher import Server, wait_until
from tests.calls import Api, KeepAliveStream
from tests.front.metrics_table import PUBLISHED, families, labels_of
from tests.servers import start_kvorum_cluster

ELECTION_S = 0.5
FLAGS = {"heartbeat-interval": "50", "election-timeout": "500", "front-workers": "1"}
HAS_LEADER = (("hasleader", "true"),)
WAIT_S = 20.0

CLUSTER_SERIES = ("etcd_server_", "etcd_network_", "etcd_disk_", "etcd_snap_", "etcd_debugging_snap_")
NOTHING_YET = {
    "etcd_server_client_requests_total",
    "etcd_server_healthcheck",
    "etcd_server_healthchecks_total",
    "etcd_server_learner_promote_failures",
    *[name for name in PUBLISHED if name.startswith("etcd_network_snapshot_")],
}
"""Series that have no sample before something was counted, since what their labels say is not known before."""


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


def test_HT16_every_member_publishes_the_series_of_clusters(cluster: Cluster) -> None:
    for member in cluster.members:
        found = families(page(member, "/metrics")[1].decode())
        for name, (type_, labels) in PUBLISHED.items():
            if name.startswith(CLUSTER_SERIES):
                assert found[name].type == type_, name
                assert labels_of(found[name]) in (labels, ()), name
                assert found[name].samples or name in NOTHING_YET, name


def test_HT16_figures_of_a_leader_and_of_followers(cluster: Cluster) -> None:
    members = followers_first(cluster)
    ids = [f"{status(member).member_id:x}" for member in members]
    before = [Scrape(member) for member in members]
    with connected(members) as apis:
        for number in range(5):
            apis[number % 3](PutRequest(key=b"counted", value=b"%d" % number))
        assert apis[0].status(MemberPromoteRequest(ID=1)) == errors.MEMBER_NOT_FOUND
        assert [api(RangeRequest(key=b"counted")).kvs[0].value for api in apis] == [b"4"] * 3
    wait_until(lambda: all(Scrape(member).round_trips(2) for member in members), "round trips", WAIT_S)
    after = [Scrape(member) for member in members]
    for me, old, new, leads in zip(ids, before, after, (0, 0, 1), strict=True):
        others = {other for other in ids if other != me}

        moved = partial(moved_between, old, new)

        assert new.of("etcd_server_is_leader") == leads
        assert new.of("etcd_server_has_leader") == 1
        assert new.of("etcd_server_leader_changes_seen_total") >= 1
        assert moved("etcd_server_proposals_committed_total") >= 5
        assert moved("etcd_server_proposals_applied_total") >= 5
        assert moved("etcd_disk_wal_fsync_duration_seconds_count") >= 5
        assert moved("etcd_disk_wal_write_duration_seconds_count") >= 5
        assert moved("etcd_disk_wal_write_bytes_total") > 5 * len(b"counted")
        assert moved("etcd_disk_backend_commit_duration_seconds_count") >= 5
        for name in ("is_learner", "proposals_pending", "proposals_failed_total", "snapshot_apply_in_progress_total"):
            assert new.of(f"etcd_server_{name}") == 0, name
        assert new.by("etcd_network_known_peers", "Remote") == dict.fromkeys(others, 1), "each by its id"
        assert {dict(labels)["Local"] for name, labels in new.values if name == "etcd_network_known_peers"} == {me}
        assert new.by("etcd_network_active_peers", "Remote") == dict.fromkeys(others, 1)
        assert new.by("etcd_network_disconnected_peers_total", "Remote").keys() == others
        for name, label in (("sent", "To"), ("received", "From")):
            assert new.by(f"etcd_network_peer_{name}_bytes_total", label).keys() == others
            assert new.by(f"etcd_network_peer_{name}_failures_total", label).keys() == others
        for other in others if leads else ids[2:]:
            assert moved("etcd_network_peer_sent_bytes_total", To=other) > 5 * len(b"counted")
            assert moved("etcd_network_peer_received_bytes_total", From=other) > 0
        refusals = moved("etcd_server_learner_promote_failures_total", Reason=errors.MEMBER_NOT_FOUND.message)
        assert refusals == leads, "counted where it is decided"


def test_HT16_a_stream_that_breaks_is_counted(cluster: Cluster) -> None:
    member = cluster.members[0]
    before = Scrape(member).by("etcd_network_server_stream_failures_total", "API", "Type")
    with grpc.insecure_channel(member.address) as channel:
        for path in ("/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease/LeaseKeepAlive"):
            with pytest.raises(grpc.RpcError, match="error unmarshalling request"):
                list(channel.stream_stream(path)(iter([b"\xff\xff"]), timeout=WAIT_S))
    after = Scrape(member).by("etcd_network_server_stream_failures_total", "API", "Type")
    assert {labels: after[labels] - count for labels, count in before.items()} == {
        ("watch", "receive"): 1,
        ("watch", "send"): 0,
        ("lease-keepalive", "receive"): 1,
        ("lease-keepalive", "send"): 0,
    }


def test_HT16_a_member_that_stops_is_known_and_not_active(cluster: Cluster) -> None:
    gone, _, leader = followers_first(cluster)
    remote = f"{status(gone).member_id:x}"
    labels = {"Local": f"{status(leader).member_id:x}", "Remote": remote}
    before = Scrape(leader)
    gone.kill()
    wait_until(lambda: not Scrape(leader).of("etcd_network_active_peers", **labels), "it to be missed", WAIT_S)
    failed = "etcd_network_peer_sent_failures_total"
    wait_until(lambda: Scrape(leader).of(failed, To=remote) > before.of(failed, To=remote), "failures", WAIT_S)
    after = Scrape(leader)
    assert after.of("etcd_network_known_peers", **labels) == 1
    lost = "etcd_network_disconnected_peers_total"
    assert after.of(lost, **labels) == before.of(lost, **labels) + 1
    assert after.of("etcd_server_is_leader") == 1
    cluster.start()
    wait_until(lambda: bool(Scrape(leader).of("etcd_network_active_peers", **labels)), "it to be back", WAIT_S)


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
        figures = Scrape(left)
        assert figures.of("etcd_server_has_leader") == figures.of("etcd_server_is_leader") == 0
        assert figures.of("etcd_server_slow_read_indexes_total") >= 1
        assert figures.of("etcd_server_proposals_failed_total") >= 3
        assert set(figures.by("etcd_network_active_peers", "Remote").values()) == {0}
        assert b"[-]linearizable_read failed: etcdserver: request timed out\n" in body
        cluster.start()
        api(PutRequest(key=b"kept", value=b"2"))
        patient.wait(lambda replies: any(event.kv.value == b"2" for reply in replies for event in reply.events))


def moved_between(old: Scrape, new: Scrape, name: str, **labels: str) -> float:
    return new.of(name, **labels) - old.of(name, **labels)


class Scrape:
    """What a member publishes just now."""

    def __init__(self, server: Server) -> None:
        self.values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families(page(server, "/metrics")[1].decode()).values()
            for sample in family.samples
        }

    def of(self, name: str, **labels: str) -> float:
        """A sample's value; 0 for one that is not there yet because of its labels."""
        key = (name, frozenset(labels.items()))
        assert labels or key in self.values, name
        return self.values.get(key, 0.0)

    def by(self, name: str, *labels: str) -> dict[Any, float]:
        """The values of a series by one label, or by several."""
        found = {}
        for (sample, given), value in self.values.items():
            if sample == name:
                of = tuple([dict(given)[label] for label in labels])
                found[of if len(of) > 1 else of[0]] = value
        return found

    def round_trips(self, peers: int) -> bool:
        """Whether a round trip to each of so many others was measured."""
        counts = self.by("etcd_network_peer_round_trip_time_seconds_count", "To")
        return len(counts) == peers and all(counts.values())


def page(server: Server, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(server.address, timeout=WAIT_S)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()
