"""Members that lag behind the log of the others are sent the store: real clusters, also when one ends meanwhile
(SN-8, RF-19, CL-18).
"""

import base64
import http.client
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import orjson
import pytest

from loadtest.cluster import Cluster, ask, running_cluster, status
from loadtest.launcher import Kind, Server, wait_until

PATIENCE_S = 30.0
VALUE_BYTES = 1_000_000
FLAGS = {"snapshot-count": "5", "snapshot-catchup-entries": "5", "max-wals": "1"}

RECEIVING = "receiving a snapshot"
RECEIVED = "received a snapshot"
RESTARTED = "all processes are started again"
INSTALLED = "installed a snapshot from the leader"


def write(server: Server, count: int) -> None:
    """So many puts of large values: a log is cut after the store was flushed, which is every 16 MiB."""
    for _ in range(count):
        value = base64.b64encode(os.urandom(VALUE_BYTES)).decode()
        key = base64.b64encode(os.urandom(2)).decode()
        ask(server.address, "/v3/kv/put", {"key": key, "value": value}, PATIENCE_S)


def hash_of(server: Server) -> tuple[int, int]:
    """(hash, revision) of the whole store."""
    reply = ask(server.address, "/v3/maintenance/hashkv", {}, PATIENCE_S)
    return int(reply["hash"]), int(reply["hash_revision"])


def count(server: Server, message: str) -> int:
    return server.log_path.read_text().count(f'"msg":"{message}"')


def wait_for(server: Server, message: str, before: int) -> None:
    wait_until(lambda: count(server, message) > before, f"{server.name}: {message}", PATIENCE_S)


def is_level_with(server: Server, other: Server) -> bool:
    try:
        return status(server).revision == status(other).revision
    except OSError:
        return False


def has_come_to(server: Server, message: str, before: int, other: Server) -> bool:
    return count(server, message) > before or is_level_with(server, other)


def figure(server: Server, series: str) -> float:
    """The sum of a series over its labels."""
    connection = http.client.HTTPConnection(server.address, timeout=PATIENCE_S)
    connection.request("GET", "/metrics")
    page = connection.getresponse().read().decode()
    connection.close()
    values = [line.rpartition(" ")[2] for line in page.splitlines() if re.match(series + r"[{ ]", line)]
    assert values, series
    return sum(map(float, values))


def snaps(server: Server) -> list[str]:
    """What lies where its snapshots pass through."""
    return [path.name for path in Path(server.data_dir, "member", "snap").iterdir()]


def catches_up(server: Server, others: list[Server]) -> None:
    """Wait until it serves, and has what the others have."""
    wait_until(server.is_ready, f"{server.name} to be ready", PATIENCE_S)
    level = f"{server.name} to catch up"
    wait_until(lambda: all(is_level_with(server, other) for other in others), level, PATIENCE_S)
    assert len({hash_of(member) for member in (server, *others)}) == 1
    wait_until(lambda: not snaps(server), f"{server.name} to leave nothing over", PATIENCE_S)


def follower_of(cluster: Cluster) -> Server:
    leader = cluster.wait_for_leader()
    return next(member for member in cluster.members if member is not leader)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with running_cluster(Kind.KVORUM, flags=FLAGS) as running:
        yield running


def compacted(server: Server) -> int:
    """Up to which index its log was cut last."""
    lines = [line for line in server.log_path.read_text().splitlines() if '"msg":"compacted Raft logs"' in line]
    return max((int(orjson.loads(line)["compact-index"]) for line in lines), default=0)


def leave_behind(cluster: Cluster, follower: Server) -> list[Server]:
    """Stop it, and write so much that the others' logs begin behind where it stopped; the others."""
    stood_at = status(follower).raft_applied_index
    follower.kill()
    others = [member for member in cluster.members if member is not follower]
    leader = cluster.wait_for_leader(lambda member: member is not follower)
    while compacted(leader) <= stood_at:
        write(leader, 5)
    return others


def test_a_member_that_was_away_is_sent_the_store(cluster: Cluster) -> None:
    follower = follower_of(cluster)
    others = leave_behind(cluster, follower)
    before = {message: count(follower, message) for message in (RECEIVED, RESTARTED, INSTALLED)}
    follower.start()
    catches_up(follower, others)
    assert {message: count(follower, message) - before[message] for message in before} == dict.fromkeys(before, 1)
    write(follower, 3)
    catches_up(others[1], [follower, others[0]])
    leader = cluster.wait_for_leader()
    assert figure(leader, "etcd_network_snapshot_send_success") == 1
    assert figure(leader, "etcd_snap_fsync_duration_seconds_count") >= 1
    assert figure(follower, "etcd_network_snapshot_receive_success") == 1
    assert figure(follower, "etcd_network_snapshot_receive_total_duration_seconds_count") == 1
    assert figure(follower, "etcd_snap_db_save_total_duration_seconds_count") == 1
    assert figure(leader, "etcd_disk_backend_snapshot_duration_seconds_count") == 1


def test_one_that_joins_has_everything(cluster: Cluster) -> None:
    leader = cluster.wait_for_leader()
    while not compacted(leader):
        write(leader, 5)
    member = follower_of(cluster)
    cluster.replace(member)
    catches_up(member, [other for other in cluster.members if other is not member])
    assert count(member, INSTALLED) == 1


def test_a_receiver_may_be_killed_at_any_time(cluster: Cluster) -> None:
    follower = follower_of(cluster)
    others = leave_behind(cluster, follower)
    for message in (RECEIVING, RECEIVED, RESTARTED, INSTALLED):
        before = count(follower, message)
        follower.launch()
        # What was decided before the kill is installed without being sent again.
        wait_until(partial(has_come_to, follower, message, before, others[0]), message, PATIENCE_S)
        follower.kill()
    follower.start()
    catches_up(follower, others)


def test_the_leader_is_killed_while_it_sends(cluster: Cluster) -> None:
    follower = follower_of(cluster)
    leave_behind(cluster, follower)
    leader = cluster.wait_for_leader(lambda member: member is not follower)
    before = count(follower, RECEIVING)
    follower.launch()
    wait_for(follower, RECEIVING, before)
    leader.kill()
    leader.start()
    catches_up(follower, [member for member in cluster.members if member is not follower])
    assert snaps(leader) == []
