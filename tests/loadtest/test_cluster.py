"""The launcher of clusters and the faults it makes, shown at the reference."""

from collections.abc import Iterator

import pytest

from loadtest import processes
from loadtest.cluster import Cluster, RefusedError, ask, running_cluster, status
from loadtest.launcher import Kind, Server, wait_until

PUT = {"key": "aw==", "value": "dg=="}


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    with running_cluster(Kind.REFERENCE, relayed=True) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: Cluster) -> Cluster:
    """The three members, connected and with a leader."""
    assert shared.links is not None
    shared.links.heal()
    shared.wait_for_leader()
    return shared


def put(server: Server) -> int:
    return int(ask(server.address, "/v3/kv/put", PUT, 10.0)["header"]["revision"])


def followers(cluster: Cluster) -> list[Server]:
    leader = cluster.wait_for_leader()
    return [member for member in cluster.members if member is not leader]


def test_members_agree_and_speak_through_the_relays_alone(cluster: Cluster) -> None:
    said = cluster.statuses()
    assert sorted(said) == ["m1", "m2", "m3"]
    assert len({one.member_id for one in said.values()}) == 3
    assert len({one.leader for one in said.values()}) == 1
    assert cluster.links is not None
    assert {source for source, _ in cluster.links.connections} == {"m1", "m2", "m3"}


def test_an_isolated_leader_is_followed_by_another(cluster: Cluster) -> None:
    old = cluster.wait_for_leader()
    assert cluster.links is not None
    cluster.links.isolate(old.name)
    new = cluster.wait_for_leader(lambda member: member is not old)
    revision = put(new)
    assert status(old).revision < revision
    cluster.links.heal()
    wait_until(lambda: status(old).revision >= revision, "the old leader to catch up")


def test_a_follower_that_hears_but_is_not_heard(cluster: Cluster) -> None:
    """Entries reach it; its own messages, and what it forwards, reach nobody."""
    silent = followers(cluster)[0]
    assert cluster.links is not None
    cluster.links.block(*((silent.name, other.name) for other in cluster.members if other is not silent))
    leader = cluster.wait_for_leader()
    revision = put(leader)
    wait_until(lambda: status(silent).revision >= revision, "the entry to come")
    with pytest.raises(TimeoutError):
        ask(silent.address, "/v3/kv/put", PUT, 0.5)


def test_a_suspended_leader_loses_its_place_and_comes_back(cluster: Cluster) -> None:
    old = cluster.wait_for_leader()
    old.suspend()
    assert old.suspended
    new = cluster.wait_for_leader(lambda member: member is not old)
    old.resume()
    leader_id = status(new).member_id
    wait_until(lambda: status(old).leader == leader_id, "the old leader to follow")


def test_leadership_is_moved(cluster: Cluster) -> None:
    target = followers(cluster)[0]
    cluster.move_leader(target)
    assert cluster.wait_for_leader(lambda member: member is target) is target


def test_a_killed_member_comes_back_on_its_data(cluster: Cluster) -> None:
    member = cluster.wait_for_leader()
    before = status(member)
    member.kill()
    with pytest.raises(ConnectionRefusedError):
        status(member)
    revision = put(cluster.wait_for_leader())
    member.start()
    assert status(member).member_id == before.member_id
    wait_until(lambda: status(member).revision >= revision, "the member to catch up")


def test_a_wiped_member_is_replaced_by_a_new_one(cluster: Cluster) -> None:
    revision = put(cluster.members[0])
    member = followers(cluster)[0]
    before = status(member).member_id
    cluster.replace(member)
    assert status(member).member_id != before
    wait_until(lambda: status(member).revision >= revision, "the new member to have all data")
    assert len(ask(member.address, "/v3/cluster/member/list", {})["members"]) == 3


def test_a_refusal_has_its_code_and_message(cluster: Cluster) -> None:
    with pytest.raises(RefusedError, match="member not found") as refusal:
        ask(cluster.members[0].address, "/v3/cluster/member/remove", {"ID": "1"}, 10.0)
    assert refusal.value.code == 5


def test_nothing_of_a_cluster_is_left() -> None:
    with running_cluster(Kind.REFERENCE, 2) as cluster:
        pids = [pid for member in cluster.members for pid in processes.tree(member.pid)]
        assert len(cluster.addresses) == len(set(cluster.addresses)) == 2
        cluster.members[0].suspend()
    assert not any(map(processes.alive, pids))
