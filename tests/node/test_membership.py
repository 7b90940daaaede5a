"""The members as the log makes them: founded, published, changed, and found again after a start."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvorum import errors
from kvorum.errors import Status
from kvorum.pb.internal_pb2 import ClusterVersion, Founding, MemberChange, Publish
from kvorum.pb.rpc_pb2 import Member
from node.membership import TABLE, VERSION, Membership, Row
from node.raft.changes import conf_change
from node.raft.core.change import ChangeType
from node.requests import Op
from tests.apply.entries import MEMBER, MachineUnderTest, batch, founding, normal


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[MachineUnderTest]:
    opened = MachineUnderTest(tmp_path / "db")
    yield opened
    opened.close()


def test_a_founded_member_has_no_client_urls_until_it_publishes_them(machine: MachineUnderTest) -> None:
    machine.execute(founding(), normal())
    (member,) = machine.membership.members()
    assert (member.ID, list(member.clientURLs)) == (MEMBER, [])
    machine.execute(normal(batch(Publish(member_id=MEMBER, name="other", client_urls=["http://a:1", "http://b:2"]))))
    (member,) = machine.membership.members()
    assert (member.name, list(member.clientURLs)) == ("other", ["http://a:1", "http://b:2"])
    assert list(member.peerURLs) == ["http://127.0.0.1:2380"]


def test_members_and_the_cluster_version_are_found_after_a_start(machine: MachineUnderTest) -> None:
    machine.execute(founding(), normal(batch(ClusterVersion(version="3.7.0"))))
    before = machine.membership.members()
    machine.reopen()
    assert machine.membership.members() == before
    assert machine.membership.cluster_version == "3.7.0"


def test_one_that_is_no_member_publishes_nothing(machine: MachineUnderTest) -> None:
    machine.execute(founding(), normal(batch(Publish(member_id=MEMBER + 1, name="x"))))
    assert [member.name for member in machine.membership.members()] == ["m1"]


def test_M6_members_are_listed_by_id() -> None:
    membership = Membership()
    membership.found(Founding(members=[Member(ID=1 << 63), Member(ID=2), Member(ID=9)]).SerializeToString())
    assert [member.ID for member in membership.members()] == [2, 9, 1 << 63]


A, B, C = 10, 20, 30
ADD, REMOVE, UPDATE, PROMOTE = Op.MEMBER_ADD, Op.MEMBER_REMOVE, Op.MEMBER_UPDATE, Op.MEMBER_PROMOTE


def founded(*members: Member) -> Membership:
    membership = Membership()
    membership.found(Founding(members=members).SerializeToString())
    return membership


def publish(member_id: int, version: str = "3.7.0") -> bytes:
    return Publish(member_id=member_id, name="m", version=version).SerializeToString()


def voter(member_id: int) -> Member:
    return Member(ID=member_id, name=f"m{member_id}", peerURLs=[f"http://h:{member_id}"], clientURLs=["http://c:1"])


def change(member_id: int, *urls: str, learner: bool = False, max_learners: int | None = None) -> MemberChange:
    return MemberChange(ID=member_id, peerURLs=urls, isLearner=learner, max_learners=max_learners)


def test_M4_an_addition_is_refused_for_a_removed_id_then_a_known_id_then_a_known_url_then_learners() -> None:
    """Each of these is wrong in every way that the ones before it are not."""
    membership = founded(voter(A), voter(B), Member(ID=C, isLearner=True, peerURLs=["http://h:30"]))
    membership.execute(REMOVE, change(B))
    taken = "http://h:10"
    cases: list[tuple[MemberChange, Status | None]] = [
        (change(B, taken, learner=True, max_learners=1), errors.MEMBER_NOT_FOUND),
        (change(A, taken, learner=True, max_learners=1), errors.MEMBER_EXIST),
        (change(40, "http://x:1", taken, learner=True, max_learners=1), errors.PEER_URL_EXIST),
        (change(40, "http://x:1", learner=True, max_learners=1), errors.TOO_MANY_LEARNERS),
        (change(40, "http://x:1", learner=True, max_learners=2), None),
        (change(40, "http://x:1", learner=True), None),
        (change(40, "http://x:1", max_learners=0), None),
        (change(40, "http://h:20"), None),  # a removed member's URL is free
    ]
    for asked, status in cases:
        assert membership.check(ADD, asked) == status, asked


def test_M7_an_added_member_has_neither_name_nor_client_urls() -> None:
    membership = founded(voter(A))
    asked = change(B, "http://x:1", "http://x:2", learner=True)
    asked.name, asked.clientURLs[:] = "b", ["http://c:1"]
    membership.execute(ADD, asked)
    assert membership.get(B) == Member(ID=B, peerURLs=["http://x:1", "http://x:2"], isLearner=True)


@pytest.mark.parametrize("op", [REMOVE, UPDATE, PROMOTE])
def test_M16_M17_no_change_names_an_unknown_or_a_removed_member(op: Op) -> None:
    membership = founded(voter(A), voter(B), voter(C))
    assert membership.check(op, change(40, "http://x:1")) == errors.MEMBER_NOT_FOUND
    membership.execute(REMOVE, change(B))
    assert membership.check(op, change(B, "http://x:1")) == errors.MEMBER_NOT_FOUND
    assert membership.is_removed(B)
    assert not membership.is_removed(A)


def test_the_last_voter_stays() -> None:
    membership = founded(voter(A), voter(B))
    assert membership.check(REMOVE, change(A)) is None
    membership.execute(REMOVE, change(A))
    membership.execute(ADD, change(C, "http://x:1", learner=True))
    assert membership.check(REMOVE, change(B)) == errors.MEMBER_NOT_ENOUGH_STARTED
    assert membership.check(REMOVE, change(C)) is None


def test_M20_M22_an_update_changes_the_peer_urls_and_nothing_else() -> None:
    learner = Member(ID=B, name="b", peerURLs=["http://h:20"], clientURLs=["http://c:2"], isLearner=True)
    membership = founded(voter(A), learner)
    assert membership.check(UPDATE, change(B, "http://h:20", "http://h:10")) == errors.PEER_URL_EXIST
    same_and_new = change(B, "http://h:20", "http://x:1")
    assert membership.check(UPDATE, same_and_new) is None
    membership.execute(UPDATE, same_and_new)
    learner.peerURLs[:] = ["http://h:20", "http://x:1"]
    assert membership.get(B) == learner


def test_M24_only_a_learner_is_promoted_and_it_keeps_the_rest() -> None:
    learner = Member(ID=B, name="b", peerURLs=["http://h:20"], clientURLs=["http://c:2"], isLearner=True)
    membership = founded(voter(A), learner)
    assert membership.check(PROMOTE, change(A)) == errors.MEMBER_NOT_LEARNER
    assert membership.check(PROMOTE, change(B)) is None
    membership.execute(PROMOTE, change(B))
    learner.isLearner = False
    assert membership.get(B) == learner


def test_one_that_does_not_execute_it_learns_what_was_published() -> None:
    knows, learns = founded(voter(A)), founded(voter(A))
    publish = Publish(member_id=A, name="a", client_urls=["http://c:1"], version="3.7.0")
    knows.publish(publish.SerializeToString())
    learns.learn(knows.state())
    assert learns.state() == knows.state()
    assert learns.cluster_version == "3.7.0"


def test_a_learner_that_publishes_stays_a_learner() -> None:
    membership = founded(voter(A), Member(ID=B, peerURLs=["http://h:20"], isLearner=True))
    membership.publish(Publish(member_id=B, name="b", client_urls=["http://c:2"]).SerializeToString())
    assert membership.get(B) == Member(
        ID=B, name="b", peerURLs=["http://h:20"], clientURLs=["http://c:2"], isLearner=True
    )


def test_every_change_is_counted_and_a_member_once_handed_out_stays_as_it_is() -> None:
    membership = founded(voter(A), Member(ID=B, isLearner=True))
    seen = [membership.changes]
    before = membership.members()
    copies = [member.SerializeToString() for member in before]
    says = Publish(member_id=B, name="b", client_urls=["http://c:2"]).SerializeToString()
    steps: list[Callable[[], list[Row]]] = [
        lambda: membership.publish(says),
        lambda: membership.execute(UPDATE, change(B, "http://x:1")),
        lambda: membership.execute(PROMOTE, change(B)),
        lambda: membership.execute(ADD, change(C, "http://x:2")),
        lambda: membership.execute(REMOVE, change(B)),
        lambda: membership.set_cluster_version(ClusterVersion(version="3.7.0").SerializeToString()),
    ]
    for step in steps:
        assert len(step()) == 1
        seen.append(membership.changes)
    assert seen == sorted(set(seen))
    assert [member.SerializeToString() for member in before] == copies
    membership.publish(says)  # no member any more
    assert membership.changes == seen[-1]


def test_M29_the_cluster_speaks_the_lowest_level_of_its_members_once_they_published() -> None:
    membership = founded(voter(A), voter(B), voter(C))
    assert membership.cluster_version == ""
    levels = []
    for says in [
        publish(A, "3.7.2"),
        publish(B, "3.8.0"),
        publish(A, "3.8.1"),
        publish(C, "3.7.0"),
        publish(C, "3.10.0"),
    ]:
        membership.publish(says)
        levels.append(membership.cluster_version)
    assert levels == ["3.7.0", "3.7.0", "3.8.0", "3.8.0", "3.8.0"]  # what it spoke once it speaks for ever
    membership.publish(publish(B, "3.9.4"))
    membership.publish(publish(A, "4.0.0"))
    assert membership.cluster_version == "3.9.0"


def test_M29_the_level_rises_when_the_last_old_member_goes() -> None:
    membership = founded(voter(A), voter(B))
    membership.publish(publish(A, "3.7.0"))
    membership.publish(publish(B, "3.8.0"))
    rows = membership.execute(REMOVE, change(A))
    assert membership.cluster_version == "3.8.0"
    key = TABLE + A.to_bytes(8, "big")
    assert rows == [
        (key, b""),
        (key + VERSION, None),
        (TABLE, ClusterVersion(version="3.8.0").SerializeToString()),
    ]


class Restored(RuleBasedStateMachine):
    """Any valid changes: apply's rows and raft's view of the same log always say the same."""

    urls = st.lists(st.integers(1, 6).map("http://h:{}".format), min_size=1, max_size=2, unique=True)
    ids = st.integers(1, 9)

    def __init__(self) -> None:
        super().__init__()
        self.apply = Membership()
        self.raft = Membership()
        self.rows: dict[bytes, bytes] = {}
        self.ever: set[int] = set()
        self.core: set[tuple[int, bool]] = set()  # (id, learns)

    def store(self, rows: list[Row]) -> None:
        for key, value in rows:
            if value is None:
                del self.rows[key]
            else:
                self.rows[key] = value

    @initialize(members=st.sets(ids, min_size=1, max_size=3))
    def found(self, members: set[int]) -> None:
        data = Founding(
            members=[Member(ID=i, name=f"m{i}", peerURLs=[f"http://f:{i}"]) for i in sorted(members)]
        ).SerializeToString()
        self.store(self.apply.found(data))
        self.raft.found(data)
        self.ever = set(members)
        self.core = {(member, False) for member in members}

    @rule(member=ids, version=st.sampled_from(["", "3.7.0", "3.7.5", "3.8.1"]))
    def publish(self, member: int, version: str) -> None:
        before = self.apply.cluster_version
        self.store(self.apply.publish(publish(member, version)))
        assert self.apply.cluster_version >= before

    @rule(
        op=st.sampled_from([ADD, ADD, REMOVE, UPDATE, PROMOTE]),
        member=ids,
        peer_urls=urls,
        learner=st.booleans(),
        limit=st.none() | st.integers(0, 2),
    )
    def change(self, op: Op, member: int, peer_urls: list[str], learner: bool, limit: int | None) -> None:
        asked = change(member, *peer_urls, learner=learner, max_learners=limit)
        before = self.apply.state()
        refused = self.apply.check(op, asked)
        assert refused == self.raft.check(op, asked)
        assert self.apply.state() == before
        if refused is not None:
            return
        if op == ADD:
            assert member not in self.ever
            self.ever.add(member)
        self.store(self.apply.execute(op, asked))
        self.raft.execute(op, asked)
        ((type_, named),) = conf_change(op, asked, b"").changes
        if type_ is not ChangeType.UPDATE:
            self.core -= {(named, False), (named, True)}
            if type_ is not ChangeType.REMOVE:
                self.core.add((named, type_ is ChangeType.ADD_LEARNER))

    @invariant()
    def all_agree(self) -> None:
        state = self.apply.state()
        assert Membership(self.rows.items()).state() == state
        assert Membership.restore(state).state() == state
        conf_state = self.apply.conf_state()
        assert conf_state == self.raft.conf_state() == Membership.restore(state).conf_state()
        learners = {(member, True) for member in conf_state.learners}
        assert learners | {(member, False) for member in conf_state.voters} == self.core
        ids = [member.ID for member in state.members]
        assert ids == sorted(ids)
        assert {*ids, *state.removed} == self.ever
        assert not {*ids} & {*state.removed}
        urls = [url for member in state.members for url in member.peerURLs]
        assert len(set(urls)) == len(urls)
        assert conf_state.voters or not self.ever

    @invariant()
    def a_restart_goes_on_alike(self) -> None:
        restarted = Membership(self.rows.items())
        assert restarted.publish(publish(1, "3.9.0")) == copy.deepcopy(self.apply).publish(publish(1, "3.9.0"))


TestRestored = Restored.TestCase
TestRestored.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
