"""The benchmark's cases over clusters: what they measure and count, shown at the reference."""

import argparse
from collections.abc import Iterator

import pytest

from kvorum.pb.rpc_pb2 import RangeRequest
from loadtest import processes
from loadtest.bench import cases_named, ordered
from loadtest.cluster import Cluster
from loadtest.cluster_bench import ClusterBench, Writers, longest_gap
from loadtest.launcher import Kind
from loadtest.loads import LOADS, QUICK, cpu_s, own_load
from loadtest.targets import CASES, FIGURES
from tests.calls import Api
from tests.servers import start_reference_cluster

SIZES = QUICK._replace(share=0.01, idle_s=0.1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with start_reference_cluster() as cluster:
        yield cluster


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("cluster-")])
def test_every_case_measures_its_figures(cluster: Cluster, case: str) -> None:
    bench = ClusterBench(SIZES, {Kind.REFERENCE: cluster})
    bench.prepare([case])
    measured = bench.measure(case, Kind.REFERENCE)
    assert {figure.name for figure in FIGURES if figure.case == case} <= set(measured)
    assert min(measured.values()) > 0
    assert [processes.alive(member.pid) for member in cluster.members] == [True] * 3


def test_requests_are_spread_evenly_and_each_is_made_once(cluster: Cluster) -> None:
    with Api(cluster.addresses[0]) as api:
        before = api(RangeRequest(key=b"any")).header.revision
        load = LOADS["put"]._replace(requests=300, connections=3, streams=4)
        assert own_load(cluster.members, load)["throughput"] > 0
        assert api(RangeRequest(key=b"any")).header.revision == before + 300 + max(10, 300 // 20)


def test_the_cpu_of_all_members_counts(cluster: Cluster) -> None:
    assert cpu_s(cluster.members) > max(cpu_s([member]) for member in cluster.members)


def test_the_longest_pause_begins_with_the_event_or_a_write() -> None:
    assert longest_gap(10.0, [9.0, 9.9, 13.0, 14.0]) == 3.0
    assert longest_gap(10.0, [9.0, 10.5, 11.0, 14.0, 14.5]) == 3.0


def test_a_pause_is_seen(cluster: Cluster) -> None:
    leader = cluster.wait_for_leader()
    followers = [member for member in cluster.members if member is not leader]
    try:
        with Writers(followers) as writers:
            pause_s = writers.longest_pause(leader.suspend)
    finally:
        leader.resume()
    assert pause_s > 0.5  # no election can be over before most of an election timeout


def test_cases_are_chosen_by_name_or_beginning() -> None:
    assert cases_named("put") == ["put"]
    assert cases_named("cluster-get") == ["cluster-get-leader", "cluster-get-follower"]
    with pytest.raises(argparse.ArgumentTypeError, match="nothing is no case"):
        cases_named("nothing")


def test_idle_comes_first_and_clusters_last() -> None:
    assert ordered(["cluster-put-leader", "cluster-idle", "million-keys", "put", "idle"]) == [
        *("idle", "put", "million-keys"),
        *("cluster-idle", "cluster-put-leader"),
    ]
