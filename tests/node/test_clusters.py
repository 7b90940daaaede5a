"""Clusters of real members: founded, joined, stopped and started in parts, left, reduced to one by force (behaviour
S39-S41, S50-S53, M17, M18, CL-2, CL-3, CL-6, CL-16, CL-18, RR-2, RR-3, RR-5).
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from kvorum.self_signed import write_certificate
from loadtest.cluster import Cluster, RefusedError, ask, running_cluster, status
from loadtest.launcher import Kind, Server, wait_until

PATIENCE_S = 15.0
REMOVED = "the member has been permanently removed from the cluster"


def put(server: Server, value: str) -> None:
    ask(server.address, "/v3/kv/put", {"key": "aw==", "value": value}, PATIENCE_S)


def got(server: Server) -> list[str]:
    """The value of the key that `put` writes, by a linearizable read."""
    reply = ask(server.address, "/v3/kv/range", {"key": "aw=="}, PATIENCE_S)
    return [kv["value"] for kv in reply.get("kvs", ())]


def members(server: Server) -> dict[str, int]:
    """The names and ids of the members as that one lists them."""
    listed = ask(server.address, "/v3/cluster/member/list", {}, PATIENCE_S)["members"]
    return {member.get("name", ""): int(member["ID"]) for member in listed}


def change(server: Server, path: str, request: Mapping[str, Any]) -> None:
    """A change of members, asked for until the cluster is found healthy: links must have stood for 5 s (M13)."""

    def done() -> bool:
        try:
            ask(server.address, f"/v3/cluster/member/{path}", request, PATIENCE_S)
        except RefusedError as error:
            assert str(error) == "etcdserver: unhealthy cluster"
            return False
        return True

    wait_until(done, f"member {path}")


def last_lines(server: Server, count: int) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in server.log_tail(count).splitlines()]


def refused(server: Server) -> str:
    """Start a member that cannot: why, by the last line of its log."""
    server.launch()
    assert server.wait_ended(PATIENCE_S) == 1
    (line,) = last_lines(server, 1)
    assert line["msg"] == "discovery failed"
    return str(line["error"])


def leaves(server: Server) -> None:
    """Wait until a member that was removed has ended by itself (M18, S53)."""
    assert server.wait_ended(PATIENCE_S) == 0
    told = {line["msg"]: line for line in last_lines(server, 20)}
    assert told["server error"]["error"] == REMOVED
    assert "data-dir used by this member must be removed" in told


@pytest.fixture(scope="class")
def cluster() -> Iterator[Cluster]:
    with running_cluster(Kind.KVORUM) as running:
        yield running


class TestThreeMembers:
    """The life of one cluster: each test goes on where the one before it ended."""

    def test_founders_know_each_other_by_the_ids_of_their_urls(self, cluster: Cluster) -> None:
        """CL-3, M28."""
        cluster.wait_for_leader()
        known = [members(member) for member in cluster.members]
        assert known == [{member.name: status(member).member_id for member in cluster.members}] * 3
        put(cluster.members[0], "MQ==")
        assert [got(member) for member in cluster.members] == [["MQ=="]] * 3

    def test_one_stops_the_others_go_on_and_it_comes_back_with_its_data(self, cluster: Cluster) -> None:
        """CL-2; CL-6, S40: what the flags say of the cluster does not count any more."""
        member = cluster.members[0]
        member.stop()
        put(cluster.members[1], "Mg==")
        told = member.flags["initial-cluster"]
        member.flags |= {"initial-cluster": "x=http://127.0.0.1:1", "initial-cluster-state": "existing"}
        member.start()
        member.flags |= {"initial-cluster": told, "initial-cluster-state": "new"}
        assert got(member) == ["Mg=="]

    def test_a_leader_that_stops_hands_on(self, cluster: Cluster) -> None:
        """S50."""
        leader = cluster.wait_for_leader()
        leader.stop()
        heir = cluster.wait_for_leader(lambda member: member is not leader)
        put(heir, "Mw==")
        assert "leadership transfer starting" in leader.log_path.read_text()
        leader.start()
        assert got(leader) == ["Mw=="]

    def test_data_of_an_earlier_day_ends_a_member_and_nobody_else(self, cluster: Cluster, tmp_path: Path) -> None:
        """What it acknowledged since is gone, so it may not vote as if it had not; with its own data it comes back."""
        leader = cluster.wait_for_leader()
        member = next(member for member in cluster.members if member is not leader)
        member.stop()
        shutil.copytree(member.data_dir, tmp_path / "earlier")
        member.start()
        for _ in range(10):
            put(member, "Mw==")
        member.stop()
        member.data_dir.rename(tmp_path / "own")
        (tmp_path / "earlier").rename(member.data_dir)
        member.launch()
        assert member.wait_ended(PATIENCE_S) == 1
        (line,) = last_lines(member, 1)
        assert "is committed, but the log ends at" in line["error"]
        assert "was it damaged, cut or lost?" in line["error"]
        put(leader, "Mw==")
        member.wipe()
        (tmp_path / "own").rename(member.data_dir)
        member.start()
        assert got(member) == ["Mw=="]

    def test_a_member_that_lost_its_data_is_not_let_in_as_new(self, cluster: Cluster) -> None:
        """S39, CL-18."""
        member = next(member for member in cluster.members if member is not cluster.wait_for_leader())
        member_id = status(member).member_id
        member.kill()
        member.wipe()
        assert refused(member) == f"member {member_id:x} has already been bootstrapped"

    def test_one_that_joins_must_know_the_cluster(self, cluster: Cluster) -> None:
        """S38, RR-3."""
        member = next(member for member in cluster.members if not member.running)
        told = member.flags["initial-cluster"]
        member.flags["initial-cluster-state"] = "existing"
        member.flags["initial-cluster"] = f"{told},x=http://127.0.0.1:1"
        assert refused(member).endswith("member count is unequal")
        member.flags["initial-cluster"] = told.replace(member.peer_address, "127.0.0.1:1")
        assert "PeerURLs: no match found for existing member" in refused(member)
        member.flags["initial-cluster"] = told

    def test_it_is_removed_and_added_anew(self, cluster: Cluster) -> None:
        """RR-2, CL-16, CL-18: under an id of its own, with everything that the cluster has."""
        member = next(member for member in cluster.members if not member.running)
        before = members(cluster.wait_for_leader())
        cluster.replace(member)
        assert got(member) == ["Mw=="]
        after = members(cluster.wait_for_leader())
        assert after.keys() == before.keys()
        assert {name for name in after if after[name] != before[name]} == {member.name}

    def test_one_that_is_removed_ends_and_never_comes_back(self, cluster: Cluster) -> None:
        """M17, M18, S53, RR-5."""
        leader = cluster.wait_for_leader()
        member = next(member for member in cluster.members if member is not leader)
        change(leader, "remove", {"ID": str(status(member).member_id)})
        leaves(member)
        member.launch()
        leaves(member)
        assert len(members(leader)) == 2

    def test_a_new_cluster_of_one_is_forced(self, cluster: Cluster) -> None:
        """S41: the data stays; the other ends when it hears of it."""
        first, second = cluster.running
        cluster.stop()
        first.flags["force-new-cluster"] = "true"
        first.start()
        del first.flags["force-new-cluster"]
        assert list(members(first)) == [first.name]
        assert got(first) == ["Mw=="]
        put(first, "NA==")
        second.launch()
        leaves(second)
        first.stop()
        first.start()
        assert (list(members(first)), got(first)) == ([first.name], ["NA=="])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    directory = tmp_path_factory.mktemp("tls")
    cert, key = str(directory / "cert.pem"), str(directory / "key.pem")
    write_certificate(cert, key, ["127.0.0.1"], 1)
    return cert, key


@pytest.mark.parametrize("is_auto", [True, False])
def test_members_speak_tls(certificate: tuple[str, str], tmp_path: Path, is_auto: bool) -> None:
    """Certificates that each makes for itself, or those of an authority, shown by both sides."""
    cert, key = certificate
    files = {
        "peer-cert-file": cert,
        "peer-key-file": key,
        "peer-trusted-ca-file": cert,
        "peer-client-cert-auth": "true",
    }
    cluster = Cluster(Kind.KVORUM, tmp_path, 2, {"peer-auto-tls": "true"} if is_auto else files)
    for member in cluster.members:
        told = member.flags["initial-cluster"].replace("http:", "https:")
        url = f"https://{member.peer_address}"
        member.flags |= {"listen-peer-urls": url, "initial-advertise-peer-urls": url, "initial-cluster": told}
    try:
        cluster.start()
        put(cluster.members[0], "MQ==")
        assert got(cluster.members[1]) == ["MQ=="]
        member = cluster.members[0]
        member_id = status(member).member_id
        member.kill()
        member.wipe()
        assert refused(member) == f"member {member_id:x} has already been bootstrapped"
    finally:
        cluster.close()


def test_the_leader_of_two_is_removed() -> None:
    """M18, M19: the other one leads alone, and lets it go."""
    with running_cluster(Kind.KVORUM, 2) as two:
        leader = two.wait_for_leader()
        other = next(member for member in two.members if member is not leader)
        change(leader, "remove", {"ID": str(status(leader).member_id)})
        leaves(leader)
        put(other, "MQ==")
        other.kill()
        other.start()
        assert (list(members(other)), got(other)) == ([other.name], ["MQ=="])
