"""Changes of members at raft's drivers: who may ask for one, when it is made, and who answers reads meanwhile."""

from math import inf
from pathlib import Path

import pytest

from kvorum import errors
from kvorum.pb.internal_pb2 import MemberChange
from kvorum.pb.rpc_pb2 import Member, MoveLeaderRequest, PutRequest
from node.child import Role
from node.frames import (
    HEADER_BYTES,
    LEADING,
    Kind,
    Process,
    pack,
    unpack,
)
from node.membership import Membership
from node.raft.core import ChangeType, ConfChange, EntryType, Message, MessageType, encode_change
from node.requests import Op, pack_batch, pack_record
from tests.apply.entries import INCARNATION, batch
from tests.apply.shell import FRONT, child_context
from tests.raft.driver_group import MEMBERS, A, B, C, D, Group, RaftUnderTest, data, founded, founding, proposal, url
from tests.raft.simulated_disk import SimulatedDisk

PUT = batch(PutRequest(key=b"k", value=b"\0"), origin=FRONT, first=1)


def test_a_removed_leader_hands_on_tells_the_others_and_ends(group: Group) -> None:
    leader = group.elect(A)
    for member in MEMBERS:
        group[member].driver.membership.learn(Membership.restore(founded(*MEMBERS).state()).state())
    group.clock.now_s += 10
    group.ask(B, Op.MEMBER_REMOVE, MemberChange(ID=A))
    group.settle()
    assert group[B].refusals() == []
    group.tick(2)
    assert leader.ended == []
    group.tick(12)
    assert leader.ended, "a second after it gave its removal to apply"
    assert "permanently removed" in leader.ended[0]
    assert group[B].driver.state()["leader"] in (B, C)
    assert A in group[B].wire.removed
    assert set(group[B].wire.members) == {C}


def test_changes_asked_for_at_once_are_made_one_after_the_other(group: Group) -> None:
    leader = group.elect(A)
    for asked, port in ((A, 1), (B, 2), (C, 3), (A, 4)):
        group.ask(asked, Op.MEMBER_UPDATE, MemberChange(ID=C, peerURLs=[f"http://127.0.0.1:{port}"]))
    group.tick()
    changes = [entry for entry in leader.entries() if entry[2] == EntryType.CONF_CHANGE]
    assert len(changes) == 4
    (urls,) = {member.wire.members[C] for name, member in group.members.items() if name != C}
    assert urls[0] in {f"http://127.0.0.1:{port}" for port in (1, 2, 3, 4)}


def test_a_change_waits_for_the_first_entry_of_a_new_leader_s_term(group: Group) -> None:
    group.elect(A)
    group.ask(A, Op.MOVE_LEADER, MoveLeaderRequest(targetID=B))
    while not group[B].driver.leads:
        group.network.deliver()
        for member in (A, C):
            group[member].disk_thread.finish()
        if not group[B].driver.leads:
            group[B].disk_thread.finish()
    group.ask(B, Op.MEMBER_UPDATE, MemberChange(ID=C, peerURLs=["http://127.0.0.1:9"]))
    group.settle()
    assert [type_ for _, _, type_, _ in group[B].entries()][-2:] == [EntryType.NORMAL, EntryType.CONF_CHANGE]


def test_one_that_joins_goes_on_answering_members_that_the_log_s_beginning_does_not_know(group: Group) -> None:
    remotes = {member: (url(member),) for member in (A, C, D)}
    joins = RaftUnderTest(group.child, SimulatedDisk(), member=B, members=(), remotes=remotes).start()
    assert set(joins.wire.members) == {A, C, D}
    founding_entry = (1, 1, EntryType.FOUNDING, founding((A, C)))
    sent = Message(MessageType.APP, B, D, 5, entries=[founding_entry], commit=1)
    joins.driver.on_messages(D, [sent])
    joins.disk_thread.finish()
    assert joins.entries(), "it executed the founding, of A and C"
    assert set(joins.wire.members) == {A, C, D}, "D leads, and was added later"
    joins.stop()


def test_a_sole_voter_gives_its_grant_back_before_another_member_can_vote(tmp_path: Path) -> None:
    child = child_context(tmp_path, Role.RAFT, "--strict-reconfig-check=false")
    alone = RaftUnderTest(child, SimulatedDisk(), member=A, members=(A,)).start()
    assert alone.leadership()[-1][3], "it answers reads by itself"
    alone.entries()
    change = MemberChange(ID=D, peerURLs=[url(D)])
    record = pack_record(Op.MEMBER_ADD, change.SerializeToString())
    alone.propose(unpack(pack(FRONT, Kind.CHANGES, 0, pack_batch(FRONT, A, INCARNATION, 1, [record]))))
    assert alone.entries() == []
    assert not alone.leadership()[-1][3]
    alone.tell(Kind.GRANT_RETURNED, b"")
    (entry,) = alone.entries()
    assert entry[2] == EntryType.CONF_CHANGE
    assert alone.leadership() == []
    assert set(alone.wire.members) == {D}
    alone.propose(proposal())
    alone.disk_thread.finish()
    assert alone.entries() == [], "two of two must have it now"
    alone.stop()
    child.lifeline.close()


def test_a_change_that_every_member_refuses_gives_the_grant_again(tmp_path: Path) -> None:
    child = child_context(tmp_path, Role.RAFT, "--strict-reconfig-check=false")
    alone = RaftUnderTest(child, SimulatedDisk(), member=A, members=(A,)).start()
    record = pack_record(Op.MEMBER_UPDATE, Member(ID=D, peerURLs=[url(D)]).SerializeToString())
    alone.propose(unpack(pack(FRONT, Kind.CHANGES, 0, pack_batch(FRONT, A, INCARNATION, 1, [record]))))
    alone.tell(Kind.GRANT_RETURNED, b"")
    _, _, catch_up_to, solo = alone.leadership()[-1]
    assert solo and catch_up_to == alone.entries()[-1][0], "what others may have answered for is executed first"
    alone.stop()
    child.lifeline.close()


def test_a_sole_voter_has_no_grant_while_somebody_learns_from_it(tmp_path: Path) -> None:
    """A learner may have executed, and shown, what the voter's own apply has not."""
    child = child_context(tmp_path, Role.RAFT, "--strict-reconfig-check=false")
    alone = RaftUnderTest(child, SimulatedDisk(), member=A, members=(A,)).start()
    learner = MemberChange(ID=D, peerURLs=[url(D)], isLearner=True).SerializeToString()

    def change(sequence: int, op: Op) -> None:
        batch = pack_batch(FRONT, A, INCARNATION, sequence, [pack_record(op, learner)])
        alone.propose(unpack(pack(FRONT, Kind.CHANGES, 0, batch)))

    change(1, Op.MEMBER_ADD)
    alone.tell(Kind.GRANT_RETURNED, b"")
    assert alone.entries()[-1][2] == EntryType.CONF_CHANGE
    assert not alone.leadership()[-1][3]
    alone.links.take(Process.APPLY, Kind.LEADING)
    alone.driver.tick()
    assert alone.leadership() == []
    (leading,) = alone.links.take(Process.APPLY, Kind.LEADING)
    assert LEADING.unpack_from(leading, HEADER_BYTES)[1] < inf, "its leadership is confirmed again and again"
    change(2, Op.MEMBER_REMOVE)
    assert alone.entries()[-1][2] == EntryType.CONF_CHANGE
    assert alone.leadership()[-1][3]
    alone.stop()
    child.lifeline.close()


def test_force_new_cluster_drops_the_others_and_keeps_the_data(group: Group, tmp_path: Path) -> None:
    group.elect(A)
    group[B].propose(proposal())
    group.settle()
    group[B].stop()
    child = child_context(tmp_path / "forced", Role.RAFT, "--force-new-cluster")
    last = group[B].wal.last_index
    forced = RaftUnderTest(child, group[B].disk.killed(), member=B, members=())
    forced.start()
    entries = forced.entries()
    assert sum(map(len, data(entries))) == len(PUT)
    assert [type_ for _, _, type_, _ in entries[last:]][:2] == [EntryType.CONF_CHANGE] * 2
    assert forced.leadership()[-1][1] == B
    assert forced.leadership() == [] and forced.wire.members == {}
    forced.propose(proposal(first=9))
    assert forced.entries()
    forced.stop()
    again = RaftUnderTest(child, forced.disk.killed(), member=B, members=()).start()
    written = again.wal.last_index
    assert written == forced.wal.last_index + 1, "only the new term's empty entry"
    again.stop()
    del group.members[B]
    child.lifeline.close()


def test_a_member_without_a_leader_refuses_by_the_rules_first(group: Group) -> None:
    """M5, MA24: what it can tell by itself it tells; the rest would need a leader."""
    lonely = group.elect(A)
    for member in MEMBERS:
        group[member].driver.membership.learn(Membership.restore(founded(*MEMBERS).state()).state())
    group.network.cut = {B, C}
    group.tick(30)
    assert lonely.driver.state()["leader"] == 0
    lonely.refusals()
    asked: list[tuple[Op, MemberChange | MoveLeaderRequest, errors.Status]] = [
        (Op.MEMBER_ADD, MemberChange(ID=D, peerURLs=[url(D)]), errors.UNHEALTHY),
        (Op.MEMBER_REMOVE, MemberChange(ID=A), errors.UNHEALTHY),
        (Op.MEMBER_REMOVE, MemberChange(ID=B), errors.NO_LEADER),  # one that is down may go
        (Op.MEMBER_UPDATE, MemberChange(ID=A, peerURLs=[url(D)]), errors.NO_LEADER),
        (Op.MEMBER_PROMOTE, MemberChange(ID=B), errors.NO_LEADER),
        (Op.MOVE_LEADER, MoveLeaderRequest(targetID=B), errors.NOT_LEADER),
    ]
    for op, body, status in asked:
        group.ask(A, op, body)
        assert lonely.refusals() == [(77, status.code, status.message.encode())], op


def test_a_change_that_the_core_drops_when_its_turn_comes_ends_nothing(group: Group) -> None:
    leader = group.elect(A)
    group.ask(A, Op.MEMBER_UPDATE, MemberChange(ID=C, peerURLs=["http://127.0.0.1:1"]))
    no_change = Message(MessageType.PROP, A, B, entries=[(0, 0, EntryType.CONF_CHANGE, b"no change")])
    leader.driver.on_messages(B, [no_change])
    group.ask(A, Op.MEMBER_UPDATE, MemberChange(ID=C, peerURLs=["http://127.0.0.1:2"]))
    group.settle()
    assert [type_ for _, _, type_, _ in leader.entries()] == [EntryType.CONF_CHANGE] * 2


@pytest.mark.parametrize("op", [Op.MEMBER_REMOVE, Op.MOVE_LEADER, Op.PUT])
def test_only_promotions_are_taken_from_another_member(group: Group, op: Op) -> None:
    leader = group.elect(A)
    record = pack_record(op, MemberChange(ID=C).SerializeToString())
    leader.driver.on_forward(B, b"c" + pack_batch(FRONT, B, INCARNATION, 1, [record]))
    assert "dropped what a member sent" in leader.log.lines[-1]
    group.settle()
    assert not leader.entries() and not group[B].refusals()


def test_a_learner_that_asks_for_a_voter_has_the_grant_taken_back_first(tmp_path: Path) -> None:
    child = child_context(tmp_path, Role.RAFT, "--strict-reconfig-check=false")
    alone = RaftUnderTest(child, SimulatedDisk(), member=A, members=(A,)).start()
    alone.leadership()
    alone.entries()
    record = pack_record(Op.MEMBER_ADD, MemberChange(ID=D, peerURLs=[url(D)]).SerializeToString())
    context = pack_batch(FRONT, B, INCARNATION, 1, [record])
    change = encode_change(ConfChange(((ChangeType.ADD_VOTER, D),), context=context))
    asked = Message(MessageType.PROP, A, B, entries=[(0, 0, EntryType.CONF_CHANGE, change)])
    alone.driver.on_messages(B, [asked])
    assert alone.entries() == []
    assert [solo for *_, solo in alone.leadership()] == [False]
    alone.tell(Kind.GRANT_RETURNED, b"")
    assert [type_ for _, _, type_, _ in alone.entries()] == [EntryType.CONF_CHANGE]
    assert alone.leadership() == []
    alone.stop()
    child.lifeline.close()


def test_no_grant_is_given_between_changes_asked_for_at_once(tmp_path: Path) -> None:
    child = child_context(tmp_path, Role.RAFT, "--strict-reconfig-check=false")
    alone = RaftUnderTest(child, SimulatedDisk(), member=A, members=(A,)).start()
    alone.leadership()
    for sequence, port in enumerate((1, 2)):
        change = MemberChange(ID=A, peerURLs=[f"http://127.0.0.1:{port}"])
        record = pack_record(Op.MEMBER_UPDATE, change.SerializeToString())
        alone.propose(unpack(pack(FRONT, Kind.CHANGES, 0, pack_batch(FRONT, A, INCARNATION, sequence, [record]))))
    alone.entries()
    assert [solo for *_, solo in alone.leadership()] == [False]
    alone.tell(Kind.GRANT_RETURNED, b"")
    last = alone.entries()[-1]
    assert last[2] == EntryType.CONF_CHANGE
    ((_, _, catch_up_to, solo),) = alone.leadership()
    assert solo and catch_up_to == last[0]
    alone.stop()
    child.lifeline.close()


def test_promotions_are_counted_where_they_are_decided(group: Group) -> None:
    leader = group.elect(A)
    learner = group.add(D, ()).start()
    learner.driver.membership.learn(founded(*MEMBERS).state())
    group.tick(60)  # until all have been connected for long enough
    group.ask(A, Op.MEMBER_ADD, MemberChange(ID=D, peerURLs=[url(D)], isLearner=True))
    group.network.cut = {D}
    group.settle()
    promotion = MemberChange(ID=D)
    group.ask(A, Op.MEMBER_PROMOTE, promotion)
    group.ask(B, Op.MEMBER_PROMOTE, promotion)
    group.ask(A, Op.MEMBER_PROMOTE, MemberChange(ID=0xE))
    group.settle()
    group.network.cut = set()
    group.tick(10)
    assert learner.driver.state()["metrics"]["etcd_server_is_learner"] == 1
    group.ask(B, Op.MEMBER_PROMOTE, promotion)
    group.tick(2)
    group.ask(A, Op.MEMBER_PROMOTE, MemberChange(ID=B))
    group.settle()
    figures = leader.driver.state()["metrics"]
    assert figures["etcd_server_learner_promote_successes"] == 1
    assert figures["etcd_server_learner_promote_failures"] == [
        [[errors.LEARNER_NOT_READY.message], 2],
        [[errors.MEMBER_NOT_FOUND.message], 1],
        [[errors.MEMBER_NOT_LEARNER.message], 1],
    ]
    for member in (B, C, D):
        figures = group[member].driver.state()["metrics"]
        assert figures["etcd_server_learner_promote_successes"] == 0
        assert figures["etcd_server_learner_promote_failures"] == []
        assert figures["etcd_server_is_learner"] == 0
