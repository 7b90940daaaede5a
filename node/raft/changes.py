"""What raft decides about a change of members or of the leader before it enters the log: values in, values out.

A change passes three checks (M5): who asks, at the front; the rules here, which protect the quorum and look at
connections, so they hold for the asked member at this moment; and `Membership.check` when it is executed, which decides
alike on every member.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from kvorum import errors
from kvorum.errors import Status
from kvorum.pb.internal_pb2 import MemberChange
from kvorum.pb.rpc_pb2 import Member, MoveLeaderResponse
from node.membership import Membership
from node.raft.core.change import ChangeType, ConfChange, decode_change
from node.raft.core.messages import Entry, EntryType
from node.requests import BATCH, FORMAT_VERSION, RECORD, REPLY, Op, are_batches, batches

HEALTHY_S: Final = 5.0
"""A member counts as connected when it has been so for more than this."""


CHANGES: Final = frozenset({Op.MEMBER_ADD, Op.MEMBER_REMOVE, Op.MEMBER_UPDATE, Op.MEMBER_PROMOTE})


class Asked(NamedTuple):
    """One request of a CHANGES frame; `batch` is the bytes that become the context of the logged change."""

    origin: int
    sequence: int
    op: int
    body: bytes
    batch: bytes


def asked(payload: bytes, at: int = 0) -> Iterator[Asked]:
    """The requests of a CHANGES frame, whose batches begin at `at`: each is a batch of its own."""
    for batch in batches(payload, at):
        assert batch.size == 1, "a change of members shares its batch"
        length, op, _, _ = RECORD.unpack_from(payload, batch.records_at)
        body_at = batch.records_at + RECORD.size
        assert body_at + length == batch.end
        whole = payload[at : batch.end]
        at = batch.end
        yield Asked(batch.origin, batch.first_sequence, op, payload[body_at : batch.end], whole)


def passed_on(payload: bytes) -> Asked | None:
    """What another member passes on for the leader to decide: one promotion. None: the payload is no such thing."""
    ask = _sole(payload)
    return ask if ask is not None and ask.op == Op.MEMBER_PROMOTE else None


def _sole(payload: bytes) -> Asked | None:
    """One batch of one change; None: the payload, which another member has sent, is no such thing."""
    body_at = BATCH.size + RECORD.size
    if len(payload) < body_at:
        return None
    length, version, _, _, size, _, _, _ = BATCH.unpack_from(payload)
    body_bytes, op, flags, _ = RECORD.unpack_from(payload, BATCH.size)
    if (length, version, size, flags, body_at + body_bytes) != (len(payload), FORMAT_VERSION, 1, 0, length):
        return None
    try:
        MemberChange.FromString(payload[body_at:])
    except DecodeError:
        return None
    return next(asked(payload)) if op in CHANGES else None


def is_proposal(entries: Sequence[Entry]) -> bool:
    """Whether what another member proposes can be logged: batches of requests, or one change of members.

    What the requests say is not looked at: members trust each other so far, and TLS makes sure who they are.
    """
    types = {entry[2] for entry in entries}
    if types == {EntryType.NORMAL}:
        return all(are_batches(entry[3]) for entry in entries)
    if types != {EntryType.CONF_CHANGE} or len(entries) != 1:
        return False
    try:
        change = decode_change(entries[0][3])
    except ValueError:
        return False
    ask = _sole(change.context)
    if ask is None:
        return False
    asked_for = MemberChange.FromString(ask.body)
    # The core passes over a change of nobody, but the list of members would have one more.
    return bool(asked_for.ID or ask.op != Op.MEMBER_ADD) and conf_change(ask.op, asked_for, ask.batch) == change


def conf_change(op: int, change: MemberChange, batch: bytes) -> ConfChange:
    """The change as it is proposed to the core; `batch` is what apply executes of it."""
    match op:
        case Op.MEMBER_ADD:
            type_ = ChangeType.ADD_LEARNER if change.isLearner else ChangeType.ADD_VOTER
        case Op.MEMBER_PROMOTE:
            type_ = ChangeType.ADD_VOTER
        case Op.MEMBER_REMOVE:
            type_ = ChangeType.REMOVE
        case Op.MEMBER_UPDATE:
            type_ = ChangeType.UPDATE
        case _:
            raise AssertionError(f"op {op} changes no members")
    return ConfChange(((type_, change.ID),), context=batch)


class Surroundings(NamedTuple):
    """What the asked member knows when it is asked.

    `connected_since`: of the members that it is connected with now, since when (monotonic seconds, as `now`).
    `matches`: while it leads, up to which entry each member's log is known to equal its own, itself included; else
    empty. `strict`: whether the rules that protect the quorum are in force (--strict-reconfig-check).
    """

    member_id: int
    membership: Membership
    connected_since: Mapping[int, float]
    matches: Mapping[int, int]
    now: float
    strict: bool


def refusal(op: int, change: MemberChange, here: Surroundings) -> Status | None:
    """Why the change must not be proposed; None: it may. Whether it is valid shows when it is executed.

    A promotion is decided by the leader alone: another member answers NOT_LEADER, and the caller forwards it instead.
    """
    match op:
        case Op.MEMBER_PROMOTE:
            return _may_promote(change.ID, here)
        case Op.MEMBER_ADD if here.strict:
            return _may_add(change, here)
        case Op.MEMBER_REMOVE if here.strict:
            return _may_remove(change.ID, here)
        case _:
            return None


def _may_add(change: MemberChange, here: Surroundings) -> Status | None:
    """M12, M13. From one voter to two is allowed, or no cluster could grow."""
    voters = list(here.membership.voters())
    sole = len(voters) == 1
    if not change.isLearner:
        started = _started(voters)
        if started < _quorum(len(voters) + 1) and not (sole and started == 1):
            return errors.MEMBER_NOT_ENOUGH_STARTED
    if not sole and _connected(voters, here) < _quorum(len(voters) + 1):
        return errors.UNHEALTHY
    return None


def _may_remove(member_id: int, here: Surroundings) -> Status | None:
    """M15. What is down may go: it is not part of the quorum at work."""
    member = here.membership.get(member_id)
    if member is not None and member.isLearner:
        return None
    voters = list(here.membership.voters())
    left = [voter for voter in voters if voter.ID != member_id]
    if not left or _started(left) < _quorum(len(left)):
        return errors.MEMBER_NOT_ENOUGH_STARTED
    if member_id != here.member_id and member_id not in here.connected_since:
        return None
    if _connected(voters, here) - 1 < _quorum(len(voters) - 1):
        return errors.UNHEALTHY
    return None


def _may_promote(member_id: int, here: Surroundings) -> Status | None:
    """M24: the learner has nine tenths of what the leader has; it counts as started."""
    if not here.matches:
        return errors.NOT_LEADER
    match = here.matches.get(member_id)
    if match is None:
        return errors.MEMBER_NOT_FOUND
    if match * 10 < here.matches[here.member_id] * 9:
        return errors.LEARNER_NOT_READY
    if here.strict:
        voters = list(here.membership.voters())
        if _started(voters) + 1 < _quorum(len(voters) + 1):
            return errors.MEMBER_NOT_ENOUGH_STARTED
    return None


def _quorum(voters: int) -> int:
    return voters // 2 + 1


def _started(members: Iterable[Member]) -> int:
    """How many have published their names (M8)."""
    return sum(bool(member.name) for member in members)


def _connected(voters: Collection[Member], here: Surroundings) -> int:
    since = here.connected_since
    before = here.now - HEALTHY_S
    return sum(voter.ID == here.member_id or since.get(voter.ID, here.now) < before for voter in voters)


class Transfers:
    """MoveLeader calls that wait until the member they name leads.

    Replies are (process that asked, packed reply).
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[int, float, Asked]] = []  # target, deadline, who asks

    def __len__(self) -> int:
        return len(self._waiting)

    def on_leader(self, leader: int) -> list[tuple[int, bytes]]:
        """Another member leads, or none (0): answers the calls that asked for this one."""
        done = [ask for target, _, ask in self._waiting if target == leader]
        self._waiting = [waiting for waiting in self._waiting if waiting[0] != leader]
        return [(ask.origin, moved(ask)) for ask in done]

    def expire(self, now: float) -> list[tuple[int, bytes]]:
        """Ends the calls whose deadline has come (MA25)."""
        late = [ask for _, deadline, ask in self._waiting if deadline <= now]
        self._waiting = [waiting for waiting in self._waiting if waiting[1] > now]
        return [(ask.origin, refused(ask, errors.TIMEOUT_LEADER_TRANSFER)) for ask in late]

    def wait(self, target: int, ask: Asked, deadline: float) -> None:
        """The transfer to `target` has begun."""
        self._waiting.append((target, deadline, ask))


def transfer_refusal(target: int, member_id: int, leader: int, membership: Membership) -> Status | None:
    """Why `member_id`, which knows that `leader` leads, cannot hand its leadership to `target` (MA24, M27).

    None where it can, or where the target leads already and nothing is left to do.
    """
    if leader != member_id:
        return errors.NOT_LEADER
    member = membership.get(target)
    if member is None or member.isLearner:
        return errors.BAD_LEADER_TRANSFEREE
    return None


def moved(ask: Asked) -> bytes:
    """The packed reply: the named member leads (MA24: without a header)."""
    body = MoveLeaderResponse().SerializeToString()
    return REPLY.pack(ask.sequence, len(body), 0) + body


def refused(ask: Asked, status: Status) -> bytes:
    """The packed reply: the call fails with `status`."""
    text = status.message.encode()
    return REPLY.pack(ask.sequence, len(text), status.code) + text
