"""Raft's drivers of three members, message by message: what leaves, what waits, and what apply is told."""

from pathlib import Path

import pytest

from kvorum import errors
from kvorum.pb.internal_pb2 import MemberChange
from kvorum.pb.rpc_pb2 import MoveLeaderRequest, PutRequest
from node.child import Role
from node.frames import (
    FORWARD,
    HEADER_BYTES,
    LEADING,
    READ_ASK,
    READ_INDEX,
    Frame,
    Kind,
    Process,
    pack,
    unpack,
)
from node.membership import Membership
from node.raft import changes
from node.raft.core import ChangeType, ConfChange, Entry, EntryType, Message, MessageType, Snapshot, encode_change
from node.requests import REPLY, Op, pack_batch, pack_record
from tests.apply.entries import INCARNATION, batch
from tests.apply.shell import FRONT, child_context
from tests.raft.driver_group import KIB, MEMBERS, A, B, C, D, Group, RaftUnderTest, data, founded, proposal, url
from tests.raft.simulated_disk import SimulatedDisk

PUT = batch(PutRequest(key=b"k", value=b"\0"), origin=FRONT, first=1)


def test_founders_elect_one_of_them_and_all_tell_their_apply(group: Group) -> None:
    group.tick(30)
    leader = group.leader()
    assert leader in MEMBERS
    for member in group.members.values():
        term, lead, catch_up_to, solo = member.leadership()[-1]
        assert (lead, solo) == (leader, False)
        founding, first = member.entries()
        assert founding[:3] == (1, 1, EntryType.FOUNDING)
        assert first == (2, term, EntryType.NORMAL, b"")
        assert catch_up_to == 2, "what the quorum had committed when it was asked"


def test_an_entry_is_given_to_apply_where_it_is_on_disk_once_a_majority_has_it(group: Group) -> None:
    """Invariant 1."""
    leader = group.elect(A)
    leader.propose(proposal())
    assert leader.entries() == []
    leader.disk_thread.finish()
    assert leader.entries() == [], "on one of three disks"
    group.network.deliver()
    assert group[B].entries() == []
    group[B].disk_thread.finish()
    group.network.deliver()
    assert data(leader.entries()) == [PUT], "on two of three"
    group.network.deliver()
    assert data(group[B].entries()) == [PUT]
    assert group[C].entries() == [], "committed, but not on its own disk"
    group.settle()
    assert data(group[C].entries()) == [PUT]


def test_what_comes_while_the_disk_is_busy_becomes_one_entry(group: Group) -> None:
    leader = group.elect(A)
    leader.propose(proposal(first=1))
    leader.propose(proposal(first=2))
    leader.propose(proposal(first=3))
    group.settle()
    assert [len(each) for each in data(leader.entries())] == [len(PUT), 2 * len(PUT)]


def test_a_follower_s_proposals_go_by_way_of_the_leader_and_each_once(group: Group) -> None:
    group.elect(A)
    group[B].propose(proposal(first=1), proposal(first=2))
    group.settle()
    for member in MEMBERS:
        assert b"".join(data(group[member].entries())) == PUT + batch(
            PutRequest(key=b"k", value=b"\0"), origin=FRONT, first=2
        )


def test_without_a_leader_proposals_wait_and_go_to_the_next_one_once(group: Group) -> None:
    group.elect(A)
    group.network.cut = {A}
    group.tick(25)
    assert group[B].driver.state()["leader"] in (B, C)
    group.network.cut = {A, B, C}
    group.tick(45)
    assert group[B].driver.state()["leader"] == 0
    group[B].propose(proposal())
    group.network.cut = set()
    group.tick(40)
    assert group.leader()
    assert sum(map(len, data(group[C].entries()))) == len(PUT)


def test_proposals_wait_for_the_connection_to_the_leader(group: Group) -> None:
    group.elect(A)
    members, group[B].wire.members = group[B].wire.members, {}
    group[B].propose(proposal())
    group.tick(3)
    assert data(group[B].entries()) == []
    group[B].wire.members = members
    group.tick()
    assert data(group[B].entries()) == [PUT]


def test_proposals_that_waited_longer_than_the_request_timeout_are_not_proposed(group: Group) -> None:
    group.elect(A)
    group.network.cut = {A, B, C}
    group.tick(25)
    group[B].propose(proposal())
    group.clock.now_s += 8
    group.network.cut = set()
    group.tick(40)
    assert group.leader()
    assert data(group[B].entries()) == []


def test_too_much_that_waits_is_refused(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.raft.proposals.MAX_HELD_BYTES", 100)
    group.network.cut = {A, B, C}
    group[B].propose(proposal(200))
    group[B].propose(proposal(200, first=5, count=2))
    code, text = errors.REQUEST_TOO_MANY_REQUESTS
    assert group[B].refusals() == [(5, code, text.encode()), (6, code, text.encode())]


@pytest.mark.parametrize("member", MEMBERS)
def test_a_read_index_is_answered_on_every_member_after_a_quorum_confirmed_the_leader(
    group: Group, member: int
) -> None:
    group.elect(A).propose(proposal())
    group.settle()
    asking = group[member]
    asking.tell(Kind.READ_ASK, READ_ASK.pack(5))
    assert not asking.links.take(Process.APPLY, Kind.READ_INDEX)
    group.settle()
    (answer,) = asking.links.take(Process.APPLY, Kind.READ_INDEX)
    assert READ_INDEX.unpack_from(answer, HEADER_BYTES) == (5, group[A].wal.last_index)


def test_a_leader_cut_off_answers_no_read(group: Group) -> None:
    leader = group.elect(A)
    group.network.cut = {A}
    leader.tell(Kind.READ_ASK, READ_ASK.pack(5))
    group.tick(30)
    assert not leader.links.take(Process.APPLY, Kind.READ_INDEX)
    assert leader.driver.state()["leader"] == 0, "and it stepped down, for want of a quorum"


def test_leadership_holds_for_less_than_an_election_timeout_after_a_quorum_was_asked(group: Group) -> None:
    leader = group.elect(A)
    group.tick()
    (told,) = leader.links.take(Process.APPLY, Kind.LEADING)
    term, until = LEADING.unpack_from(told, HEADER_BYTES)
    assert term == leader.driver.state()["term"]
    assert until == pytest.approx(group.clock.now_s + 0.8)
    group.network.cut = {A}
    group.tick(3)
    assert not leader.links.take(Process.APPLY, Kind.LEADING)
    assert not group[B].links.take(Process.APPLY, Kind.LEADING)


def test_a_leader_whose_apply_stands_still_hands_leadership_on(group: Group) -> None:
    leader = group.elect(A)
    leader.propose(proposal())
    group.settle()
    group.tick(15, stalled=A)
    assert group.leader() in (B, C)


ANSWERS = REPLY.pack(1, 7, 0) + b"answers"


def forwards(member: int, payload: bytes) -> Frame:
    return unpack(pack(FRONT, Kind.FORWARDS, 0, FORWARD.pack(member, INCARNATION, FRONT) + payload))


def test_questions_to_the_leader_s_apply_and_their_answers_travel_between_the_members(group: Group) -> None:
    group.elect(A)
    group[B].propose(forwards(B, b"questions"))
    group.settle()
    (asked,) = group[A].links.take(Process.APPLY, Kind.FORWARDS)
    assert asked[HEADER_BYTES:] == FORWARD.pack(B, INCARNATION, FRONT) + b"questions"
    answer = FORWARD.pack(B, INCARNATION, FRONT) + ANSWERS
    group[A].propose(unpack(pack(Process.APPLY, Kind.FORWARD_REPLIES, 0, answer)))
    group.settle()
    (answered,) = group[B].links.take(FRONT, Kind.REPLIES)
    assert answered[HEADER_BYTES:] == ANSWERS
    of_another_generation = FORWARD.pack(B, INCARNATION + 1, FRONT) + ANSWERS
    group[A].propose(unpack(pack(Process.APPLY, Kind.FORWARD_REPLIES, 0, of_another_generation)))
    group.settle()
    assert not group[B].links.take(FRONT, Kind.REPLIES)


def test_a_move_of_the_leader_is_answered_when_the_other_leads(group: Group) -> None:
    leader = group.elect(A)
    group.ask(A, Op.MOVE_LEADER, MoveLeaderRequest(targetID=C))
    assert leader.refusals() == []
    group.settle()
    assert group.leader() == C
    assert leader.refusals() == [(77, 0, b"")]
    group.ask(A, Op.MOVE_LEADER, MoveLeaderRequest(targetID=C))
    assert [code for _, code, _ in leader.refusals()] == [errors.NOT_LEADER.code]


def test_its_state_says_since_when_it_is_connected_with_the_others(group: Group) -> None:
    since = dict(group.elect(A).driver.state()["connected_since"])
    assert since == {member: group[A].wire.connected_since(member) for member in (B, C)}


def test_a_move_to_a_member_that_is_gone_fails_after_an_election_timeout(group: Group) -> None:
    leader = group.elect(A)
    group.network.cut = {C}
    group.ask(A, Op.MOVE_LEADER, MoveLeaderRequest(targetID=C))
    leader.propose(proposal())
    group.tick(12)
    status = errors.TIMEOUT_LEADER_TRANSFER
    assert leader.refusals() == [(77, status.code, status.message.encode())]
    assert sum(map(len, data(leader.entries()))) == len(PUT), "what came meanwhile waited"


NO_FORWARDS = [
    b"",
    b"?",
    b"a",
    b"a" + bytes(30),
    b"c",
    b"c" + bytes(60),
    b"a" + FORWARD.pack(A, INCARNATION, FRONT) + b"a",
]


@pytest.mark.parametrize("payload", NO_FORWARDS, ids=repr)
def test_what_members_do_not_send_each_other_is_dropped(group: Group, payload: bytes) -> None:
    leader = group.elect(A)
    leader.driver.on_forward(B, payload)
    assert not leader.refusals()
    assert "dropped what a member sent" in leader.log.lines[-1]


def test_a_read_under_a_strange_context_is_answered_to_nobody(group: Group) -> None:
    group.elect(A)
    term = group[B].driver.standing[0]
    answer = Message(MessageType.READ_INDEX_RESP, B, A, term, index=1, entries=[(0, 0, EntryType.NORMAL, b"short")])
    group[B].driver.on_messages(A, [answer])
    assert not group[B].links.take(Process.APPLY, Kind.READ_INDEX)


def test_answers_from_the_leader_that_a_front_does_not_take_are_dropped(group: Group) -> None:
    """It asks again."""
    group.elect(A)
    reply = FORWARD.pack(B, INCARNATION, FRONT) + REPLY.pack(1, 4, 0) + b"text"
    outlet = group[B].links.outlet(FRONT, Kind.REPLIES)
    outlet.position = outlet.granted - 1
    for _ in range(2):
        group[B].driver.on_forward(A, b"a" + reply)
    group.ask(B, Op.MOVE_LEADER, MoveLeaderRequest(targetID=C))  # a refusal of its own finds no credit either
    assert len(group[B].links.take(FRONT, Kind.REPLIES)) == 1


def test_what_apply_asked_for_under_one_leader_is_not_proposed_under_the_next(group: Group) -> None:
    """A lease that was over for the last leader may have been renewed by the next one."""
    group.elect(A)
    group.network.cut = {B, C}
    group.tick(25)
    assert group[A].driver.state()["leader"] == 0
    group[A].propose(proposal(sender=Process.APPLY), proposal(first=2))
    group.network.cut = set()
    group.tick(40)
    assert group.leader()
    assert data(group[A].entries()) == [batch(PutRequest(key=b"k", value=b"\0"), origin=FRONT, first=2)]


def test_what_apply_asked_for_is_forgotten_with_the_leadership_also_if_it_waited_for_the_disk(group: Group) -> None:
    leader = group.elect(A)
    leader.propose(proposal(first=2))  # the disk is busy with this one
    leader.propose(proposal(sender=Process.APPLY))
    group.network.cut = {B, C}
    for _ in range(25):
        group.clock.now_s += 0.1
        leader.driver.tick()
    assert leader.driver.state()["leader"] == 0
    group.network.cut = set()
    group.tick(40)
    assert group.leader()
    assert b"".join(data(leader.entries())) in (b"", batch(PutRequest(key=b"k", value=b"\0"), origin=FRONT, first=2))


def test_while_a_snapshot_is_recorded_apply_gets_nothing_of_the_log_that_it_replaces(tmp_path: Path) -> None:
    child = child_context(tmp_path, Role.RAFT)
    behind = RaftUnderTest(child, SimulatedDisk(), 1, member=B, members=MEMBERS).start()
    entries = [(2, index, EntryType.NORMAL, PUT) for index in range(2, 5)]
    behind.driver.on_messages(A, [Message(MessageType.APP, B, A, 2, 1, 1, entries=entries, commit=4)])
    while behind.disk_thread.finish():
        pass
    assert behind.driver.standing == (2, 4)
    state = Membership.restore(founded(*MEMBERS).state())
    snapshot = Snapshot(100, 2, state.conf_state(), state.state().SerializeToString())
    behind.driver.on_snapshot_received(Message(MessageType.SNAP, B, A, 2, snapshot=snapshot))
    behind.entries()
    behind.grant(1 << 20)
    assert behind.entries() == []
    behind.disk_thread.finish()
    assert behind.received.decided == [100] and len(behind.ended) == 1
    behind.stop()
    child.lifeline.close()


NOBODY = MemberChange(peerURLs=[url(D)])
ADDS_NOBODY = pack_batch(FRONT, B, INCARNATION, 77, [pack_record(Op.MEMBER_ADD, NOBODY.SerializeToString())])


@pytest.mark.parametrize(
    "entry",
    [
        (0, 0, EntryType.NORMAL, b""),
        (0, 0, EntryType.NORMAL, b"no batch at all, though it is long enough to hold the header of one"),
        (0, 0, EntryType.NORMAL, PUT[:-1]),
        (0, 0, EntryType.NORMAL, PUT + b"x"),
        (0, 0, EntryType.FOUNDING, b""),
        (0, 0, EntryType.CONF_CHANGE, b""),
        (0, 0, EntryType.CONF_CHANGE, b"no change"),
        (0, 0, EntryType.CONF_CHANGE, encode_change(ConfChange(((ChangeType.REMOVE, C),)))),
        (0, 0, EntryType.CONF_CHANGE, encode_change(ConfChange(((ChangeType.REMOVE, C),), context=PUT))),
        (0, 0, EntryType.CONF_CHANGE, encode_change(changes.conf_change(Op.MEMBER_ADD, NOBODY, ADDS_NOBODY))),
        (0, 0, EntryType.CONF_CHANGE_V2, b""),
    ],
)
def test_what_another_member_proposes_must_be_a_proposal(group: Group, entry: Entry) -> None:
    """In the log it would end every member that executes it, at every start."""
    leader = group.elect(A)
    last = leader.wal.last_index
    leader.driver.on_messages(B, [Message(MessageType.PROP, A, B, entries=[entry])])
    group.settle()
    assert leader.wal.last_index == last
    assert leader.log.has("dropped a proposal that is none")


def test_what_is_to_be_said_while_there_is_no_room_for_the_log_is_bounded(group: Group) -> None:
    group.elect(A)
    follower = group[B]
    follower.disk.free_bytes = 0
    for number in range(30):
        group[A].propose(proposal(5 * KIB, first=1 + number))
        group.settle()
    assert follower.log.has("there is no room for the log")
    group.tick(300)
    writer = follower.driver._writer
    assert sum(len(work.responses) for work in writer._work) < 300
    follower.disk.free_bytes = 1 << 30
    group.tick(20)
    assert follower.wal.last_index == group[A].wal.last_index


def fill_log(leader: RaftUnderTest, group: Group) -> int:
    """Proposals until one is refused for want of room; how many were not."""
    taken = 0
    while not (refused := leader.refusals()):
        assert taken < 100, "there was always room"
        taken += 1
        leader.propose(proposal(5 * KIB, first=taken))
        group.settle()
    assert refused == [(taken, errors.NO_SPACE.code, errors.NO_SPACE.message.encode())]
    return taken - 1


def test_a_leader_without_room_for_its_log_hands_leadership_on_to_one_that_has_some(group: Group) -> None:
    leader = group.elect(A)
    leader.disk.free_bytes = 0
    taken = fill_log(leader, group)
    group.tick(20)
    assert group.leader() in (B, C)
    assert leader.log.has("there is no room for the log; handing leadership on")
    leader.propose(proposal(5 * KIB, first=taken + 2))
    group.settle()
    of_another = group[group.leader()]
    assert len(data(of_another.entries())) == taken + 1, "also what the log of the first leader had no room for"
    leader.disk.free_bytes = 1 << 30
    group.tick(20)
    assert leader.wal.last_index == of_another.wal.last_index
    assert len(data(leader.entries())) == taken + 1


def test_where_nobody_has_room_for_the_log_the_leader_stays(group: Group) -> None:
    """It can still say how far the log was agreed on, and so answer reads."""
    leader = group.elect(A)
    for member in MEMBERS:
        group[member].disk.free_bytes = 0
    taken = fill_log(leader, group)
    group.tick(50)
    assert group.leader() == A
    leader.tell(Kind.READ_ASK, READ_ASK.pack(5))
    group.settle()
    ((number, index),) = (
        READ_INDEX.unpack_from(sent, HEADER_BYTES) for sent in leader.links.take(Process.APPLY, Kind.READ_INDEX)
    )
    assert number == 5 and index <= leader.wal.last_index
    for member in MEMBERS:
        group[member].disk.free_bytes = 1 << 30
    group.tick(20)
    leader.propose(proposal(5 * KIB, first=taken + 2))
    group.settle()
    assert len(data(leader.entries())) == taken + 1, "what waited for room is in the log, too"
