"""What raft decides about a change of members or of the leader before it is proposed (M5, M11-M15, M24, MA24)."""

from collections.abc import Iterable

import pytest

from kvorum import errors
from kvorum.errors import Code, Status
from kvorum.pb.internal_pb2 import MemberChange, MembershipState
from kvorum.pb.rpc_pb2 import Member
from node.frames import HEADER_BYTES, Kind, Process, pack
from node.membership import Membership
from node.raft.changes import (
    HEALTHY_S,
    Asked,
    Surroundings,
    Transfers,
    asked,
    conf_change,
    moved,
    refusal,
    refused,
    transfer_refusal,
)
from node.raft.core.change import ChangeType
from node.requests import REPLY, Op, pack_batch, pack_record

ADD, REMOVE, UPDATE, PROMOTE = Op.MEMBER_ADD, Op.MEMBER_REMOVE, Op.MEMBER_UPDATE, Op.MEMBER_PROMOTE
NOW = 100.0
LONG_AGO = NOW - HEALTHY_S - 1
NEW, ME = 99, 1


def membership(started: int, unstarted: int = 0, learners: int = 0) -> Membership:
    """Voters 1, 2, … of which the first are started; then learners 11, 12, …"""
    members = [Member(ID=1 + i, name="m" if i < started else "") for i in range(started + unstarted)]
    members += [Member(ID=11 + i, name="l", isLearner=True) for i in range(learners)]
    return Membership.restore(MembershipState(members=members))


def surroundings(
    members: Membership,
    connected: Iterable[int] = (),
    *,
    since: float = LONG_AGO,
    matches: dict[int, int] | None = None,
    strict: bool = True,
) -> Surroundings:
    return Surroundings(ME, members, dict.fromkeys(connected, since), matches or {}, NOW, strict)


def add(here: Surroundings, *, learner: bool = False) -> Status | None:
    return refusal(ADD, MemberChange(ID=NEW, isLearner=learner), here)


@pytest.mark.parametrize(
    ("started", "unstarted", "status"),
    [
        (1, 0, None),  # the exception, or no cluster could grow
        (1, 1, errors.MEMBER_NOT_ENOUGH_STARTED),  # M14
        (2, 0, None),
        (2, 1, errors.MEMBER_NOT_ENOUGH_STARTED),
        (3, 0, None),
        (3, 1, None),
        (3, 2, errors.MEMBER_NOT_ENOUGH_STARTED),
        (0, 1, errors.MEMBER_NOT_ENOUGH_STARTED),
    ],
)
def test_M12_M14_a_voter_needs_a_quorum_of_started_voters(started: int, unstarted: int, status: Status | None) -> None:
    here = surroundings(membership(started, unstarted), range(2, 10))
    assert add(here) == status
    assert add(here, learner=True) is None
    assert add(here._replace(strict=False)) is None


@pytest.mark.parametrize(
    ("voters", "connected", "status"),
    [
        (1, 0, None),
        (2, 0, errors.UNHEALTHY),
        (2, 1, None),
        (3, 1, errors.UNHEALTHY),
        (3, 2, None),
        (4, 1, errors.UNHEALTHY),
        (4, 2, None),
        (5, 2, errors.UNHEALTHY),
        (5, 3, None),
    ],
)
@pytest.mark.parametrize("learner", [False, True])
def test_M13_X19_an_addition_needs_connections_to_a_quorum_with_the_new_member_as_down(
    voters: int, connected: int, status: Status | None, learner: bool
) -> None:
    here = surroundings(membership(voters, learners=3), [*range(2, 2 + connected), 11, 12, 13])  # learners do not count
    assert add(here, learner=learner) == status
    assert add(here._replace(strict=False), learner=learner) is None


def test_M13_a_connection_counts_after_five_seconds() -> None:
    members = membership(2)
    assert add(surroundings(members, [2], since=NOW - HEALTHY_S - 0.001)) is None
    assert add(surroundings(members, [2], since=NOW - HEALTHY_S)) == errors.UNHEALTHY


def remove(here: Surroundings, member_id: int) -> Status | None:
    return refusal(REMOVE, MemberChange(ID=member_id), here)


def test_M15_a_removal_leaves_a_quorum_of_started_voters() -> None:
    assert remove(surroundings(membership(1)), ME) == errors.MEMBER_NOT_ENOUGH_STARTED
    assert remove(surroundings(membership(1, learners=1)), ME) == errors.MEMBER_NOT_ENOUGH_STARTED
    two_and_one = membership(2, 1)
    assert remove(surroundings(two_and_one, [2]), 2) == errors.MEMBER_NOT_ENOUGH_STARTED
    assert remove(surroundings(two_and_one, [2]), 3) is None
    assert remove(surroundings(two_and_one, [2], strict=False), 2) is None


def test_M15_a_removal_leaves_a_quorum_of_connected_voters_unless_its_target_is_down() -> None:
    three = membership(3)
    assert remove(surroundings(three, [2]), 3) is None  # it is down
    assert remove(surroundings(three, [2]), 2) == errors.UNHEALTHY
    assert remove(surroundings(three, [2]), ME) == errors.UNHEALTHY
    assert remove(surroundings(three, [2, 3]), 2) is None
    assert remove(surroundings(three, [2, 3]), ME) is None
    assert remove(surroundings(three, [2, 3], since=NOW), 2) == errors.UNHEALTHY
    assert remove(surroundings(three, [], since=NOW), 2) is None
    assert remove(surroundings(three, [2], strict=False), 2) is None


def test_M15_a_learner_may_always_be_removed() -> None:
    assert remove(surroundings(membership(1, 2, learners=1), [11]), 11) is None


def test_M16_whether_a_member_is_known_shows_when_its_removal_is_executed() -> None:
    assert remove(surroundings(membership(1)), NEW) is None
    assert remove(surroundings(membership(3), [2, 3]), NEW) is None


def promote(here: Surroundings, member_id: int) -> Status | None:
    return refusal(PROMOTE, MemberChange(ID=member_id), here)


def test_M24_promotion_is_refused_for_progress_then_for_the_match_then_by_the_strict_rule() -> None:
    matches = {1: 1000, 2: 1000, 11: 899}
    weak = membership(1, 2, learners=1)  # with the learner 2 of 4 are started
    here = surroundings(weak, matches=matches)
    assert promote(here, NEW) == errors.MEMBER_NOT_FOUND
    assert promote(here, 11) == errors.LEARNER_NOT_READY
    ready = here._replace(matches={**matches, 11: 900})
    assert promote(ready, 11) == errors.MEMBER_NOT_ENOUGH_STARTED
    assert promote(ready._replace(strict=False), 11) is None
    assert promote(here._replace(strict=False), 11) == errors.LEARNER_NOT_READY
    assert promote(ready._replace(membership=membership(1, 1, learners=1)), 11) is None
    assert promote(ready._replace(membership=membership(3)), 2) is None  # a voter: refused when it is executed


def test_M23_only_the_leader_decides_about_a_promotion() -> None:
    assert promote(surroundings(membership(1, learners=1)), 11) == errors.NOT_LEADER


def test_an_update_has_no_strict_rule() -> None:
    assert refusal(UPDATE, MemberChange(ID=NEW), surroundings(membership(1, 2))) is None


def test_an_added_member_votes_or_learns_and_the_batch_travels_along() -> None:
    voter, learner = MemberChange(ID=NEW), MemberChange(ID=NEW, isLearner=True)
    types = [
        (ADD, voter, ChangeType.ADD_VOTER),
        (ADD, learner, ChangeType.ADD_LEARNER),
        (REMOVE, voter, ChangeType.REMOVE),
        (UPDATE, learner, ChangeType.UPDATE),
        (PROMOTE, voter, ChangeType.ADD_VOTER),
    ]
    for op, change, type_ in types:
        made = conf_change(op, change, b"batch")
        assert (made.changes, made.context, made.enters_joint) == (((type_, NEW),), b"batch", False)


def test_a_frame_of_changes_is_read_one_by_one() -> None:
    changes = [MemberChange(ID=5, peerURLs=["http://h:1"], max_learners=1), MemberChange(ID=6)]
    bodies = [change.SerializeToString() for change in changes]
    packed = [
        pack_batch(Process.FRONT + 1, ME, 7, 40 + i, [pack_record(op, body)])
        for i, (op, body) in enumerate(zip([ADD, REMOVE], bodies, strict=True))
    ]
    frame = pack(Process.FRONT + 1, Kind.CHANGES, 0, b"".join(packed))
    assert list(asked(frame, HEADER_BYTES)) == [
        Asked(Process.FRONT + 1, 40, ADD, bodies[0], packed[0]),
        Asked(Process.FRONT + 1, 41, REMOVE, bodies[1], packed[1]),
    ]
    with pytest.raises(AssertionError):
        list(asked(pack_batch(Process.FRONT, ME, 7, 1, [pack_record(ADD, b"")] * 2)))


def test_MA24_M27_leadership_goes_from_the_leader_to_a_voter() -> None:
    members = membership(3, learners=1)
    assert transfer_refusal(2, ME, 2, members) == errors.NOT_LEADER
    assert transfer_refusal(NEW, ME, 0, members) == errors.NOT_LEADER
    assert transfer_refusal(NEW, ME, ME, members) == errors.BAD_LEADER_TRANSFEREE
    assert transfer_refusal(11, ME, ME, members) == errors.BAD_LEADER_TRANSFEREE
    assert transfer_refusal(2, ME, ME, members) is None
    assert transfer_refusal(ME, ME, ME, members) is None


def ask(sequence: int) -> Asked:
    return Asked(Process.FRONT, sequence, Op.MOVE_LEADER, b"", b"")


def test_MA24_MA25_a_transfer_ends_when_its_target_leads_or_at_its_deadline() -> None:
    transfers = Transfers()
    for sequence, (target, deadline) in enumerate([(2, 10.0), (3, 10.0), (2, 20.0), (3, 30.0)], 1):
        transfers.wait(target, ask(sequence), deadline)
    assert transfers.on_leader(0) == []
    assert transfers.on_leader(2) == [(Process.FRONT, moved(ask(1))), (Process.FRONT, moved(ask(3)))]
    assert transfers.on_leader(2) == []
    assert transfers.expire(9.9) == []
    ((process, reply),) = transfers.expire(10.0)
    assert process == Process.FRONT
    assert reply == refused(ask(2), errors.TIMEOUT_LEADER_TRANSFER)
    assert len(transfers) == 1
    sequence, length, code = REPLY.unpack_from(reply)
    assert (sequence, code) == (2, Code.UNKNOWN)
    assert reply[REPLY.size :] == b"etcdserver: request timed out, leader transfer took too long"
    assert length == len(reply) - REPLY.size
    assert REPLY.unpack(moved(ask(4))) == (4, 0, 0)  # MA24: no header
