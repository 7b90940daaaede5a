"""Rows M and MA that need several members: how a cluster grows, shrinks, learns and hands its leadership on."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from kvorum import errors
from kvorum.errors import Code, Status
from kvorum.pb.health_pb2 import HealthCheckRequest, HealthCheckResponse
from kvorum.pb.rpc_pb2 import (
    AlarmRequest,
    CompactionRequest,
    DefragmentRequest,
    HashKVRequest,
    LeaseGrantRequest,
    Member,
    MemberAddRequest,
    MemberListRequest,
    MemberPromoteRequest,
    MemberRemoveRequest,
    MoveLeaderRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    StatusRequest,
    StatusResponse,
    TxnRequest,
)
from loadtest.cluster import Cluster
from loadtest.launcher import Kind, Server, wait_until
from tests.calls import Api
from tests.differential.side import differs
from tests.servers import SUBJECT, start_kvorum_cluster, start_reference_cluster

GROWING_S = 60.0
"""A change may have to wait until every connection has stood for five seconds, on a busy machine."""

ELSEWHERE = "http://127.0.0.1:1"


class Members:
    """A cluster, a connection to each of its members, and those that joined it since it was founded."""

    def __init__(self, kind: Kind, cluster: Cluster) -> None:
        self.kind = kind
        self.cluster = cluster
        self.log_path = cluster.members[0].log_path
        self._apis: dict[str, Api] = {}
        self._stack = contextlib.ExitStack()

    def api(self, server: Server) -> Api:
        if server.name not in self._apis:
            self._apis[server.name] = self._stack.enter_context(Api(server.address))
        return self._apis[server.name]

    def status(self, server: Server) -> StatusResponse:
        reply: StatusResponse = self.api(server)(StatusRequest())
        return reply

    def id_of(self, server: Server) -> int:
        return int(self.status(server).header.member_id)

    def listed(self, server: Server) -> list[Member]:
        return list(self.api(server)(MemberListRequest(linearizable=True)).members)

    def leader_and_followers(self) -> tuple[Server, list[Server]]:
        leader = self.cluster.wait_for_leader()
        return leader, [member for member in self.cluster.members if member is not leader]

    def ask(self, server: Server, request: Message) -> Any:
        """The reply, or the status it failed with; 3.5.1 drops a change that comes too early after another."""
        api = self.api(server)
        if self.kind is Kind.KVORUM and SUBJECT is Kind.KVORUM:
            return api.outcome(request)
        for _ in range(10):
            outcome = api.outcome(request, timeout_s=3.0)
            if not (isinstance(outcome, Status) and outcome.code == Code.DEADLINE_EXCEEDED):
                return outcome
        raise TimeoutError(f"never answered: {request}")

    def ask_until_healthy(self, server: Server, request: Message) -> Any:
        """The reply to a change, once the strict rules find the cluster connected for long enough."""
        outcome = self.outcome_when_healthy(server, request)
        assert not isinstance(outcome, Status), outcome
        return outcome

    def outcome_when_healthy(self, server: Server, request: Message) -> Any:
        """The reply or the status; each member has its own view of how long the others have been connected."""
        outcomes: list[Any] = []

        def accepted() -> bool:
            outcomes.append(self.ask(server, request))
            return outcomes[-1] not in (errors.UNHEALTHY, errors.MEMBER_NOT_ENOUGH_STARTED)

        wait_until(accepted, f"the cluster to be healthy for {request}", GROWING_S)
        return outcomes[-1]

    def ask_until_ready(self, server: Server, learner: int) -> Any:
        """The reply to a promotion, once the learner has caught up."""
        outcomes: list[Any] = []

        def accepted() -> bool:
            outcomes.append(self.ask(server, MemberPromoteRequest(ID=learner)))
            return outcomes[-1] != errors.LEARNER_NOT_READY  # type: ignore[no-any-return]

        wait_until(accepted, "the learner to be ready", GROWING_S)
        return outcomes[-1]

    def join(self, via: Server, name: str, directory: Path, *, learner: bool = False) -> tuple[Server, Any]:
        """Adds a member that does not run yet, and what the cluster answered."""
        (directory / name).mkdir()
        server = Server(SUBJECT if self.kind is Kind.KVORUM else Kind.REFERENCE, directory / name, {}, name)
        self._stack.callback(server.close)
        url = f"http://{server.peer_address}"
        reply = self.ask_until_healthy(via, MemberAddRequest(peerURLs=[url], isLearner=learner))
        others = [(member.name, url) for member in reply.members if member.name for url in member.peerURLs]
        server.flags = {
            "initial-cluster": ",".join(f"{name}={url}" for name, url in [*others, (name, url)]),
            "initial-cluster-state": "existing",
        }
        return server, reply

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def founded(kind: Kind) -> Iterator[Callable[[int], Members]]:
    """Makes a cluster of so many members, all started."""
    with contextlib.ExitStack() as stack:

        def make(size: int) -> Members:
            start = start_kvorum_cluster if kind is Kind.KVORUM else start_reference_cluster
            members = Members(kind, stack.enter_context(start(size)))
            stack.callback(members.close)
            return members

        yield make


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="joining-") as path:
        yield Path(path)


def test_M8_M12_M13_M14_growing_from_one_to_three(founded: Callable[[int], Members], directory: Path) -> None:
    members = founded(1)
    (first,) = members.cluster.members
    second, reply = members.join(first, "m2", directory)
    assert reply.member.name == ""
    third = MemberAddRequest(peerURLs=[ELSEWHERE])
    assert members.ask(first, third) == errors.MEMBER_NOT_ENOUGH_STARTED
    second.start()
    assert members.ask(first, third) == errors.UNHEALTHY
    (published,) = [member for member in members.listed(first) if member.ID == reply.member.ID]
    assert (published.name, list(published.clientURLs)) == ("m2", [f"http://{second.address}"])
    assert members.listed(second) == members.listed(first)
    members.api(second)(PutRequest(key=b"a", value=b"1"))
    third_server, _ = members.join(second, "m3", directory)
    third_server.start()
    assert members.api(third_server)(RangeRequest(key=b"a")).kvs[0].value == b"1"
    assert members.status(third_server).header.cluster_id == members.status(first).header.cluster_id  # M28


@differs("X19")
def test_M13_adding_while_a_minority_is_down(founded: Callable[[int], Members], directory: Path) -> None:
    """Four voters of which three are here: with a fifth as down too there is still a quorum of five."""
    members = founded(3)
    first, second, third = members.cluster.members
    fourth, _ = members.join(first, "m4", directory)
    fourth.start()
    members.ask_until_healthy(first, MemberAddRequest(peerURLs=[ELSEWHERE], isLearner=True))
    third.kill()
    assert second.running
    members.ask_until_healthy(first, MemberAddRequest(peerURLs=["http://127.0.0.1:2"]))


def test_M15_M16_M17_removing_what_is_down_and_what_is_needed(founded: Callable[[int], Members]) -> None:
    members = founded(3)
    leader, (other, down) = members.leader_and_followers()
    down_id, other_id = members.id_of(down), members.id_of(other)
    before = members.listed(leader)
    down.kill()

    def refused_as_unhealthy() -> bool:
        """The lost connection may be noticed a moment later; five seconds of the other one may be to come."""
        return bool(members.ask(leader, MemberRemoveRequest(ID=other_id)) == errors.UNHEALTHY)

    assert refused_as_unhealthy()
    reply = members.ask_until_healthy(leader, MemberRemoveRequest(ID=down_id))
    left = [member for member in before if member.ID != down_id]
    assert list(reply.members) == left
    assert members.ask(leader, MemberRemoveRequest(ID=down_id)) == errors.MEMBER_NOT_FOUND
    members.api(other)(PutRequest(key=b"a"))
    assert members.listed(other) == left


def test_M18_M19_a_removed_leader_answers_and_ends(founded: Callable[[int], Members]) -> None:
    members = founded(3)
    leader, others = members.leader_and_followers()
    leader_id = members.id_of(leader)
    reply = members.ask_until_healthy(leader, MemberRemoveRequest(ID=leader_id))
    assert leader_id not in [member.ID for member in reply.members]
    assert leader.wait_ended() == 0
    log = leader.log_path.read_text()
    assert "the member has been permanently removed from the cluster" in log
    assert "data-dir used by this member must be removed" in log
    members.cluster.wait_for_leader()
    for other in others:
        members.api(other)(PutRequest(key=b"a"))
        assert members.listed(other) == list(reply.members)


def test_M17_M18_a_removed_follower_ends_and_cannot_come_back(founded: Callable[[int], Members]) -> None:
    members = founded(3)
    leader, (follower, _) = members.leader_and_followers()
    members.ask_until_healthy(leader, MemberRemoveRequest(ID=members.id_of(follower)))
    assert follower.wait_ended() == 0
    members.api(leader)(PutRequest(key=b"a"))
    left = members.listed(leader)
    follower.launch()
    assert follower.wait_ended(GROWING_S) == 0
    assert members.listed(leader) == left


NOT_FOR_LEARNERS: list[Message] = [
    PutRequest(key=b"a"),
    RangeRequest(key=b"a"),
    TxnRequest(success=[RequestOp(request_range=RangeRequest(key=b"a", serializable=True))]),
    CompactionRequest(revision=1),
    LeaseGrantRequest(TTL=60),
    MemberListRequest(),
    MemberAddRequest(peerURLs=[ELSEWHERE]),
    AlarmRequest(),
    HashKVRequest(),
    DefragmentRequest(),
]


def test_M11_M23_M24_M25_M26_M27_a_learner_is_added_serves_little_and_is_promoted(
    founded: Callable[[int], Members], directory: Path
) -> None:
    members = founded(3)
    leader, (follower, _) = members.leader_and_followers()
    members.api(leader)(PutRequest(key=b"a", value=b"1"))
    learner, reply = members.join(follower, "m4", directory, learner=True)
    added = reply.member
    another = MemberAddRequest(peerURLs=[ELSEWHERE], isLearner=True)
    assert members.outcome_when_healthy(leader, another) == errors.TOO_MANY_LEARNERS
    assert members.ask(leader, MemberPromoteRequest(ID=added.ID)) == errors.LEARNER_NOT_READY
    assert members.ask(follower, MemberPromoteRequest(ID=added.ID)) == errors.LEARNER_NOT_READY
    learner.start()
    api = members.api(learner)
    status = members.status(learner)
    assert (status.isLearner, status.leader, status.header.member_id) == (True, members.id_of(leader), added.ID)
    local = RangeRequest(key=b"a", serializable=True)
    wait_until(lambda: bool(api(local).kvs), "the learner to have what was put before it joined")
    refused = errors.NOT_SUPPORTED_FOR_LEARNER
    if members.kind is SUBJECT is Kind.KVORUM:
        assert api(HealthCheckRequest()).status == HealthCheckResponse.SERVING
    else:  # X18
        refused = refused._replace(code=Code.UNAVAILABLE)
        assert api.status(HealthCheckRequest()) == refused
    for request in NOT_FOR_LEARNERS:
        assert api.status(request) == refused, request
    assert members.api(leader).status(MoveLeaderRequest(targetID=added.ID)) == errors.BAD_LEADER_TRANSFEREE
    promoted = members.ask_until_ready(follower, added.ID)
    assert [member.ID for member in promoted.members if member.isLearner] == []
    assert members.ask(leader, MemberPromoteRequest(ID=added.ID)) == errors.MEMBER_NOT_LEARNER
    wait_until(lambda: not members.status(learner).isLearner, "the learner to know that it votes")
    members.api(learner)(PutRequest(key=b"a", value=b"2"))


def test_M15_a_learner_that_is_down_may_go(founded: Callable[[int], Members], directory: Path) -> None:
    members = founded(3)
    leader, (follower, _) = members.leader_and_followers()
    _, reply = members.join(leader, "m4", directory, learner=True)
    follower.kill()
    removed = members.ask(leader, MemberRemoveRequest(ID=reply.member.ID))
    assert reply.member not in removed.members


def test_MA24_moving_the_leader(founded: Callable[[int], Members]) -> None:
    members = founded(3)
    leader, (follower, other) = members.leader_and_followers()
    leader_id, follower_id, other_id = (members.id_of(server) for server in (leader, follower, other))
    for target in (leader_id, follower_id, other_id, 7):
        assert members.api(follower).status(MoveLeaderRequest(targetID=target)) == errors.NOT_LEADER
    assert members.api(leader).status(MoveLeaderRequest(targetID=7)) == errors.BAD_LEADER_TRANSFEREE
    term = members.status(leader).raftTerm
    reply = members.api(leader)(MoveLeaderRequest(targetID=leader_id))
    assert not reply.HasField("header")
    assert members.status(leader).raftTerm == term
    assert not members.api(leader)(MoveLeaderRequest(targetID=follower_id)).HasField("header")
    assert members.status(leader).leader == follower_id
    assert members.cluster.wait_for_leader() is follower
    members.api(other)(PutRequest(key=b"a"))


@differs("MA25")
def test_MA25_moving_the_leader_to_a_member_that_is_down(founded: Callable[[int], Members]) -> None:
    members = founded(3)
    leader, (follower, _) = members.leader_and_followers()
    target = members.id_of(follower)
    follower.kill()
    assert members.api(leader).status(MoveLeaderRequest(targetID=target)) == errors.TIMEOUT_LEADER_TRANSFER
    members.api(leader)(PutRequest(key=b"a"))


def test_M9_MA2_what_a_member_without_a_leader_answers(founded: Callable[[int], Members]) -> None:
    members = founded(3)
    first, *others = members.cluster.members
    before = members.listed(first)
    for other in others:
        other.kill()
    wait_until(lambda: members.status(first).leader == 0, "the member to have lost its leader")
    status = members.status(first)
    assert list(status.errors) == [errors.NO_LEADER.message]
    assert list(members.api(first)(MemberListRequest()).members) == before
    linearizable = members.api(first).status(MemberListRequest(linearizable=True), timeout_s=12.0)
    assert linearizable.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)
    assert members.api(first).status(MemberAddRequest(peerURLs=[ELSEWHERE])) == errors.UNHEALTHY
    assert members.api(first).status(MoveLeaderRequest(targetID=before[0].ID)) == errors.NOT_LEADER
