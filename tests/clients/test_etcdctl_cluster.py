"""etcdctl's commands for members, endpoints and leaders: three members of kvorum answer as three of the reference.

Ids follow from the ports, and with them the order of members: ids and addresses are replaced by the members' names, and
lines compared in sorted order.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest

from kvorum import errors
from kvorum.pb.rpc_pb2 import MemberListRequest, MemberRemoveRequest, StatusRequest
from loadtest.cluster import Cluster
from loadtest.launcher import Kind, wait_until
from tests.calls import Api
from tests.clients.etcdctl import Said, comparable, run
from tests.servers import start_kvorum_cluster, start_reference_cluster

ADDED = "http://127.0.0.1:1,http://127.0.0.1:2"
HEALTHY_S = 60.0


class Side:
    """One of the two clusters; its member m1 leads whenever a test begins."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.server = cluster.members[0]
        self._apis = {member.name: Api(member.address) for member in cluster.members}
        self._names: dict[int, str] = {}
        self._added = 0
        self.learn()

    def close(self) -> None:
        for api in self._apis.values():
            api.close()

    def api(self, name: str = "m1") -> Api:
        return self._apis[name]

    def learn(self) -> None:
        """Members without a name are the one that a test has added."""
        for member in self.api()(MemberListRequest(linearizable=True)).members:
            self._names[member.ID] = member.name or "added"
            if not member.name:
                self._added = member.ID

    def id(self, name: str) -> str:
        """As etcdctl takes it."""
        founders = {known: member for member, known in self._names.items() if known != "added"}
        return f"{founders.get(name, self._added):x}"

    def begin(self) -> None:
        """Only the founders are left, and m1 leads."""
        for member in self.api()(MemberListRequest(linearizable=True)).members:
            if not member.name:
                self.api()(MemberRemoveRequest(ID=member.ID))
        if self.api()(StatusRequest()).leader != int(self.id("m1"), 16):
            self.cluster.move_leader(self.server)
        wait_until(lambda: self.cluster.wait_for_leader() is self.server, "m1 to lead")

    def says(self, line: str) -> Said:
        """Runs the line, in which `{m1}` stands for a member's id, at m1; once more while it finds itself unhealthy.

        3.5.1 drops a change that comes too early after another: there one without an answer is repeated too.
        """
        line = re.sub(r"\{(\w+)\}", lambda found: self.id(found[1]), line)
        said: list[Said] = []

        def answered() -> bool:
            said.append(run(self.server, *line.split()))
            dropped = self.cluster.kind is Kind.REFERENCE and "deadline exceeded" in said[-1].error
            return not dropped and errors.UNHEALTHY.message not in said[-1].error

        wait_until(answered, f"the cluster to be healthy for {line}", HEALTHY_S)
        self.learn()
        return said[-1]

    def comparable(self, text: str) -> list[str]:
        """The output's lines in order, without what belongs to one cluster."""
        if text.startswith(("{", "[")):
            text = json.dumps(self._canonical(json.loads(text)), indent=1)
        for member in self.cluster.members:
            text = text.replace(member.address, f"CLIENT-{member.name}").replace(
                member.peer_address, f"PEER-{member.name}"
            )
        for member_id, name in self._names.items():
            text = re.sub(rf"\b({member_id:x}|{member_id})\b", f"ID-{name}", text)
        text = comparable(text, self.server)
        text = re.sub(r"(?<![\d.])\d+\.\d+\.\d+(?![\d.])", "#version", text)
        text = re.sub(r'(?<=INITIAL_CLUSTER=")[^"]*', lambda found: ",".join(sorted(found[0].split(","))), text)
        text = re.sub(r"\b[\d.]+ [kM]B\b", "#size", text)
        text = re.sub(
            r"(true|false) \| (true|false) \| \d+ \| \d+ \| \d+ \|", r"\1 | \2 | #term | #index | #index |", text
        )
        text = re.sub(r"(true|false), (true|false), \d+, \d+, \d+,", r"\1, \2, #term, #index, #index,", text)
        return sorted(re.sub(" +", " ", line) for line in text.splitlines() if not line.startswith("+"))

    def _canonical(self, value: Any) -> Any:
        """Lists in the order of the members' names, as far as their items name one; figures of the moment left out."""
        if isinstance(value, list):
            return sorted(map(self._canonical, value), key=lambda item: json.dumps(self._named(item)))
        if isinstance(value, Mapping):
            own = {"raft_term", "raftTerm", "raftIndex", "raftAppliedIndex", "dbSize", "dbSizeInUse", "version", "took"}
            own |= {"storageVersion", "dbSizeQuota", "downgradeInfo", "cluster_id", "Took"}  # X30
            return {key: self._canonical(item) for key, item in value.items() if key not in own}
        return value

    def _named(self, item: Any) -> Any:
        return json.loads(re.sub(r"\d{12,}", lambda found: f'"{self._names.get(int(found[0]))}"', json.dumps(item)))


class Two(NamedTuple):
    """The clusters side by side."""

    kvorum: Side
    reference: Side


@pytest.fixture(scope="module")
def clusters() -> Iterator[Two]:
    with ExitStack() as stack:
        sides = []
        for start in (start_kvorum_cluster, start_reference_cluster):
            side = Side(stack.enter_context(start(3)))
            stack.callback(side.close)
            sides.append(side)
        yield Two(*sides)


@pytest.fixture
def two(clusters: Two) -> Two:
    for side in clusters:
        side.begin()
    return clusters


SCENARIOS = {
    "list": [f"member list -w {form}" for form in ("simple", "table", "json", "fields")] + ["member list"],
    "status": [f"endpoint status --cluster -w {form}" for form in ("simple", "table", "json")],
    "health": [f"endpoint health --cluster -w {form}" for form in ("simple", "table", "json")],
    "hashkv": ["put a 1", "endpoint hashkv --cluster", "endpoint hashkv --cluster -w table"],
    "learner": [
        f"member add m4 --learner --peer-urls={ADDED}",
        "member list -w table",
        "member list -w fields",
        "member list -w json",
        "member add m5 --learner --peer-urls=http://127.0.0.1:2",
        "member add m5 --learner --peer-urls=http://127.0.0.1:5",
        "member promote {added}",
        "member promote {m2}",
        "move-leader {added}",
        "member remove {added}",
        "member remove {added}",
        "member list",
    ],
    "add": [
        "member add m4 --peer-urls=http://127.0.0.1:3",
        "member list",
        "member remove {added} -w json",
        "member add m4 --peer-urls=127.0.0.1:3",
        "member add m4",
        "member add",
        "member remove",
        "member remove x",
        "member remove 7",
    ],
    "update": [
        "member update 7 --peer-urls=http://127.0.0.1:4",
        "member update {m3}",
        "member add m4 --learner --peer-urls=http://127.0.0.1:4",
        "member update {m3} --peer-urls=http://127.0.0.1:4",
    ],
    "move-leader": [
        "move-leader 7",
        "move-leader {m1}",
        "move-leader {m2}",
        "move-leader {m1}",
        "move-leader",
        "move-leader x",
    ],
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_is_answered_alike(two: Two, name: str) -> None:
    for line in SCENARIOS[name]:
        ours, theirs = (side.says(line) for side in two)
        ours_out, theirs_out = (side.comparable(said.out) for side, said in zip(two, (ours, theirs), strict=True))
        assert ours_out == theirs_out, line
        assert (ours.status, two.kvorum.comparable(ours.error)) == (
            theirs.status,
            two.reference.comparable(theirs.error),
        ), line
