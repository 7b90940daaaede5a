"""Changes of members at the state machine: their replies, their errors, and their replay after a crash."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvorum import errors
from kvorum.pb.internal_pb2 import MemberChange
from kvorum.pb.rpc_pb2 import (
    Member,
    MemberAddResponse,
    MemberPromoteResponse,
    MemberRemoveResponse,
    MemberUpdateResponse,
    PutRequest,
    ResponseHeader,
)
from node.apply.machine import BrokenInvariant
from node.raft.core.messages import EntryType
from node.requests import Op, pack_batch, pack_record
from tests.apply.entries import (
    FRONT,
    INCARNATION,
    MEMBER,
    TERM,
    MachineUnderTest,
    batch,
    changed,
    founding,
    frame,
    normal,
)
from tests.apply.mvcc_store import IDENTITY

LEARNER = MemberChange(ID=MEMBER - 1, peerURLs=["http://h:1"], isLearner=True, max_learners=1)
ADDED = Member(ID=MEMBER - 1, peerURLs=["http://h:1"], isLearner=True)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[MachineUnderTest]:
    opened = MachineUnderTest(tmp_path / "db")
    opened.execute(founding(), normal(batch(PutRequest(key=b"k"))))
    opened.store.set_term(TERM)
    yield opened
    opened.close()


def change(machine: MachineUnderTest, op: Op, asked: MemberChange) -> tuple[int, bytes]:
    ((_, code, body),) = machine.execute(changed(op, asked))
    return code, body


def test_M2_M6_every_change_answers_with_all_members_in_order_and_a_header_without_revision(
    machine: MachineUnderTest,
) -> None:
    (founder,) = machine.membership.members()
    header = ResponseHeader(cluster_id=IDENTITY.cluster_id, member_id=MEMBER, raft_term=TERM)
    code, body = change(machine, Op.MEMBER_ADD, LEARNER)
    assert (code, MemberAddResponse.FromString(body)) == (
        0,
        MemberAddResponse(header=header, member=ADDED, members=[ADDED, founder]),
    )
    updated = Member(ID=ADDED.ID, peerURLs=["http://h:2"], isLearner=True)
    code, body = change(machine, Op.MEMBER_UPDATE, MemberChange(ID=ADDED.ID, peerURLs=["http://h:2"]))
    assert (code, MemberUpdateResponse.FromString(body)) == (
        0,
        MemberUpdateResponse(header=header, members=[updated, founder]),
    )
    updated.isLearner = False
    code, body = change(machine, Op.MEMBER_PROMOTE, MemberChange(ID=ADDED.ID))
    assert (code, MemberPromoteResponse.FromString(body)) == (
        0,
        MemberPromoteResponse(header=header, members=[updated, founder]),
    )
    code, body = change(machine, Op.MEMBER_REMOVE, MemberChange(ID=MEMBER))
    assert (code, MemberRemoveResponse.FromString(body)) == (0, MemberRemoveResponse(header=header, members=[updated]))


def test_a_change_makes_no_revision(machine: MachineUnderTest) -> None:
    before = machine.store.revision
    change(machine, Op.MEMBER_ADD, LEARNER)
    assert machine.store.revision == before


@pytest.mark.parametrize(
    ("op", "asked", "status"),
    [
        (Op.MEMBER_ADD, MemberChange(ID=MEMBER), errors.MEMBER_EXIST),
        (Op.MEMBER_ADD, MemberChange(ID=5, peerURLs=["http://127.0.0.1:2380"]), errors.PEER_URL_EXIST),
        (Op.MEMBER_REMOVE, MemberChange(ID=5), errors.MEMBER_NOT_FOUND),
        (Op.MEMBER_UPDATE, MemberChange(ID=5), errors.MEMBER_NOT_FOUND),
        (Op.MEMBER_PROMOTE, MemberChange(ID=MEMBER), errors.MEMBER_NOT_LEARNER),
    ],
)
def test_a_change_that_is_not_valid_is_answered_with_its_error_and_changes_nothing(
    machine: MachineUnderTest, op: Op, asked: MemberChange, status: errors.Status
) -> None:
    before = (machine.membership.state(), machine.membership.changes, machine.rows())
    code, text = change(machine, op, asked)
    assert (code, text.decode()) == status
    assert (machine.membership.state(), machine.membership.changes, machine.rows()) == before


def test_what_was_changed_is_found_after_a_start_with_the_removed_ids(machine: MachineUnderTest) -> None:
    change(machine, Op.MEMBER_ADD, LEARNER)
    change(machine, Op.MEMBER_ADD, MemberChange(ID=5, peerURLs=["http://h:5"]))
    change(machine, Op.MEMBER_REMOVE, MemberChange(ID=5))
    before = machine.membership.state()
    assert list(before.removed) == [5]
    machine.reopen()
    assert machine.membership.state() == before
    assert machine.membership.is_removed(5)


@pytest.mark.parametrize("committed", [False, True])
def test_a_change_is_executed_once_however_a_crash_falls(machine: MachineUnderTest, committed: bool) -> None:
    """Twice would answer `member ID already exist`, and another member's bytes would differ."""
    entries = [changed(Op.MEMBER_ADD, LEARNER), normal(batch(PutRequest(key=b"a"), first=2))]
    machine.machine.load(frame(machine.machine.applied_index + 1, *entries))
    while not machine.machine.step():
        pass
    if committed:
        machine.commit()
    machine.reopen()
    machine.execute(*entries[machine.machine.applied_index - 2 :])
    assert machine.machine.applied_index == 4
    assert machine.membership.get(ADDED.ID) == ADDED


@pytest.mark.usefixtures("tiny_slices")
def test_no_commit_falls_between_a_change_and_the_end_of_its_entry(machine: MachineUnderTest) -> None:
    """Raft starts with the members of the cursor's entry: with those of half an entry it would refuse the change."""
    put = normal(batch(PutRequest(key=b"a"), PutRequest(key=b"b")))
    machine.machine.load(frame(3, put, changed(Op.MEMBER_ADD, LEARNER), put))
    seen = set()
    ended = False
    while not ended:
        ended = machine.machine.step()
        cursor = machine.machine.cursor
        seen.add((cursor.index, cursor.requests_done, machine.membership.get(ADDED.ID) is not None))
    assert {(2, 1, False), (3, 0, False), (4, 1, True), (5, 0, True)} <= seen
    assert not {(index, done, added) for index, done, added in seen if added and index < 4}


@pytest.fixture
def tiny_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.apply.machine.SLICE_BYTES", 0)


def test_only_this_generations_own_changes_are_answered(machine: MachineUnderTest) -> None:
    assert machine.execute(changed(Op.MEMBER_ADD, LEARNER, incarnation=INCARNATION + 1)) == []
    assert machine.membership.get(ADDED.ID) == ADDED


def test_the_end_of_a_joint_configuration_changes_no_members(machine: MachineUnderTest) -> None:
    before = machine.membership.changes
    assert machine.execute((TERM, EntryType.CONF_CHANGE_V2, b"")) == []
    assert machine.membership.changes == before


def test_a_change_is_executed_only_from_a_change_s_entry(machine: MachineUnderTest) -> None:
    """Raft must have been told of it, or its voters would part from the members."""
    packed = pack_batch(FRONT, MEMBER, INCARNATION, 1, [pack_record(Op.MEMBER_ADD, LEARNER.SerializeToString())])
    with pytest.raises(BrokenInvariant, match="entry 3, request 0"):
        machine.execute(normal(packed))


def test_an_unknown_form_of_change_stops_the_member(machine: MachineUnderTest) -> None:
    with pytest.raises(BrokenInvariant, match="entry 3: a membership change in format 255"):
        machine.execute((TERM, EntryType.CONF_CHANGE, b"\xff" + changed(Op.MEMBER_ADD, LEARNER)[2]))


def test_a_put_in_a_change_stops_the_member(machine: MachineUnderTest) -> None:
    with pytest.raises(BrokenInvariant, match="entry 3, request 0"):
        machine.execute(changed(Op.PUT, LEARNER))
