"""Whether a correct store could have shown its clients what they saw.

Every revision but the first has one transaction that made it, and every reply says at which revision it was given. So
the order in which things happened need not be searched for, as in general (Wing & Gong, "Testing and Verifying
Concurrent Objects", 1993): a write stands at its own revision, a read right after the one it names. What remains is to
check that each reply is what its request gives in that place, that the places agree with real time, and that every
revision was made by somebody, once: by an acknowledged write, or by one whose outcome is unknown, or by a lease's end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from google.protobuf.message import Message

from kvorum import errors
from kvorum.errors import ApiError, Status
from kvorum.pb.mvcc_pb2 import Event
from kvorum.pb.rpc_pb2 import (
    CompactionRequest,
    DeleteRangeRequest,
    LeaseKeepAliveResponse,
    PutRequest,
    RangeRequest,
    RangeResponse,
    TxnRequest,
    TxnResponse,
)
from tests.linearizability.history import History, Operation, Request, Session, one_line
from tests.linearizability.leases import Leases
from tests.linearizability.replay import Execution, Replay
from tests.linearizability.watching import check_watch


def check(history: History, *, clock_error: float = 0.0) -> list[str]:
    """Every way in which the history cannot be that of one correct store; empty for a correct one.

    `clock_error` is how much faster than the clients' clock a server's may run, as a fraction of the time that passes:
    leases end by the server's.
    """
    replay = Replay(history.revisions)
    placed = [_Placed.of(operation) for operation in history.operations]
    known = _known(history, placed)
    leases = Leases(history, replay, _first_seen(known), clock_error)
    problems = [*replay.problems]
    problems += _check_replies(replay, placed)
    problems += _check_real_time(known, placed)
    problems += _check_sessions(placed)
    problems += _check_makers(replay, known, placed, leases)
    problems += _check_compactions(placed)
    problems += leases.problems
    for number, watch in enumerate(history.watches):
        problems += [f"watch {number}: {problem}" for problem in check_watch(watch, replay)]
    return problems


@dataclass(slots=True)
class _Placed:
    """An operation and its place: the revision it was answered at (0: unknown), and whether it made that revision."""

    operation: Operation
    revision: int
    wrote: bool
    fresh: bool  # must show all that was known when it began

    @classmethod
    def of(cls, operation: Operation) -> _Placed:
        reply = operation.outcome
        if reply is None or isinstance(reply, Status | LeaseKeepAliveResponse):  # that one's header is the leader's
            return cls(operation, 0, False, False)
        wrote = isinstance(operation.request, PutRequest) or _has_written(reply)
        return cls(operation, reply.header.revision, wrote, not _is_serializable(operation.request))


def _has_written(reply: Message) -> bool:
    if not isinstance(reply, TxnResponse):
        return bool(getattr(reply, "deleted", 0))
    return any(
        part.HasField("response_put")
        or part.response_delete_range.deleted > 0
        or (part.HasField("response_txn") and _has_written(part.response_txn))
        for part in reply.responses
    )


def _is_serializable(request: Request) -> bool:
    """Whether the request allows an answer that is not the newest; what is logged is always new."""
    if isinstance(request, RangeRequest):
        return request.serializable
    if isinstance(request, TxnRequest):
        operations = [*request.success, *request.failure]
        return bool(operations) and all(
            operation.HasField("request_range") and operation.request_range.serializable for operation in operations
        )
    return False


def _execute(execution: Execution, request: Request) -> Message | None:
    """The reply that the request must get, its header's other fields empty; None for what changes no key."""
    match request:
        case RangeRequest():
            return execution.range(request)
        case PutRequest():
            return execution.put(request)
        case DeleteRangeRequest():
            return execution.delete_range(request)
        case TxnRequest():
            return execution.txn(request)
        case _:
            return None


# replies


def _check_replies(replay: Replay, placed: Iterable[_Placed]) -> list[str]:
    problems = []
    for one in placed:
        operation, revision = one.operation, one.revision
        if not revision:
            continue
        if revision > replay.last:
            problems.append(f"answered at a revision that was lost: {operation}")
            continue
        execution = Execution(replay, revision - one.wrote)
        try:
            expected = _execute(execution, operation.request)
        except ApiError as error:
            problems.append(f"should have failed with {error.status}: {operation}")
            continue
        if expected is None:
            continue
        if one.wrote != bool(execution.events):
            problems.append(
                f"changes {_lines(execution.events)} at {revision}, but was answered otherwise: {operation}"
            )
        elif one.wrote and not same_events(execution.events, replay.events(revision)):
            problems.append(f"acknowledged, but revision {revision} is {_lines(replay.events(revision))}: {operation}")
        elif _bare(operation.outcome) != expected:
            problems.append(f"should have been answered with {one_line(expected)}: {operation}")
    return problems


def _lines(events: Iterable[Event]) -> str:
    return " ".join(one_line(event) for event in events)


def _bare(reply: object) -> Message:
    """A reply whose header has the revision alone."""
    assert isinstance(reply, Message)
    bare = type(reply)()
    bare.CopyFrom(reply)
    revision = reply.header.revision  # type: ignore[attr-defined]  # every reply of the API has a header
    bare.header.Clear()  # type: ignore[attr-defined]
    bare.header.revision = revision  # type: ignore[attr-defined]
    return bare


def same_events(ones: Sequence[Event], others: Sequence[Event]) -> bool:
    """Whether two transactions changed the same; previous values are not compared."""
    return len(ones) == len(others) and all(
        one.type == other.type and one.kv == other.kv for one, other in zip(ones, others, strict=True)
    )


# real time


class _Known(NamedTuple):
    """At that time somebody had seen that revision."""

    at_s: float
    revision: int


def _known(history: History, placed: Iterable[_Placed]) -> list[_Known]:
    known = [_Known(one.operation.ended_s, one.revision) for one in placed if one.revision]
    known += [
        _Known(received.at_s, received.events[-1].kv.mod_revision)
        for watch in history.watches
        for received in watch.received
        if received.events
    ]
    known += [_Known(seen_s, number) for number, _, seen_s in history.revisions if seen_s < math.inf]
    return sorted(known)


def _first_seen(known: Iterable[_Known]) -> dict[int, float]:
    """Since when each revision is known to be there: whoever sees one knows of all before it."""
    first: dict[int, float] = {}
    for at_s, revision in known:
        for seen in range(len(first) + 2, revision + 1):
            first[seen] = at_s
    return first


class _Floor:
    """The highest revision anybody had seen before a time; asked in order of time."""

    def __init__(self, known: Sequence[_Known]) -> None:
        self._known = known
        self._at = 0
        self._revision = 0

    def before(self, time_s: float) -> int:
        while self._at < len(self._known) and self._known[self._at].at_s < time_s:
            self._revision = max(self._revision, self._known[self._at].revision)
            self._at += 1
        return self._revision


def _check_real_time(known: Sequence[_Known], placed: Sequence[_Placed]) -> list[str]:
    """What was seen before an operation began lies before it: a later write is newer, a later read not older."""
    problems = []
    floor = _Floor(known)
    for one in sorted(placed, key=lambda one: one.operation.began_s):
        least = floor.before(one.operation.began_s)
        if one.revision and one.fresh and one.revision < least + one.wrote:
            problems.append(f"stale: revision {least} was known before it began: {one.operation}")
    return problems


def _check_sessions(placed: Sequence[_Placed]) -> list[str]:
    """One life of a member never goes back."""
    problems = []
    by_session: dict[Session, list[_Placed]] = {}
    for one in placed:
        if one.revision:
            by_session.setdefault(one.operation.session, []).append(one)
    for of_session in by_session.values():
        floor = _Floor(sorted(_Known(one.operation.ended_s, one.revision) for one in of_session))
        for one in sorted(of_session, key=lambda one: one.operation.began_s):
            known = floor.before(one.operation.began_s)
            if one.revision < known:
                problems.append(f"back in time: this member had answered at {known} before: {one.operation}")
    return problems


# who made each revision


class _Attempt(NamedTuple):
    """A request with an unknown outcome, and the highest revision known when it began."""

    operation: Operation
    known: int


def _check_makers(replay: Replay, known: Sequence[_Known], placed: Sequence[_Placed], leases: Leases) -> list[str]:
    problems = []
    makers: dict[int, Operation] = {}
    for one in placed:
        if one.wrote:
            other = makers.setdefault(one.revision, one.operation)
            if other is not one.operation:
                problems.append(f"both were acknowledged with revision {one.revision}: {other} and {one.operation}")
    floor = _Floor(known)
    attempts = [
        _Attempt(one.operation, floor.before(one.operation.began_s))
        for one in sorted(placed, key=lambda one: one.operation.began_s)
        if one.operation.outcome is None
        and isinstance(one.operation.request, PutRequest | DeleteRangeRequest | TxnRequest)
    ]
    unclaimed = [
        revision
        for revision in range(2, replay.last + 1)
        if revision not in makers and leases.ended_by(revision) is None
    ]
    candidates = {
        revision: [number for number, attempt in enumerate(attempts) if _could_make(replay, attempt, revision)]
        for revision in unclaimed
    }
    made_by = _match(candidates)
    for revision in unclaimed:
        if revision not in made_by:
            why = "by no request" if not candidates[revision] else "by one that made another revision"
            problems.append(f"revision {revision} was made {why}: {_lines(replay.events(revision))}")
    return problems


def _could_make(replay: Replay, attempt: _Attempt, revision: int) -> bool:
    if revision <= attempt.known:
        return False
    events = replay.events(revision)
    if not _may_touch(attempt.operation.request, events[0] if events else None):
        return False
    execution = Execution(replay, revision - 1)
    try:
        _execute(execution, attempt.operation.request)
    except ApiError:
        return False
    return bool(execution.events) and same_events(execution.events, events)


def _may_touch(request: Request, event: Event | None) -> bool:
    """Spares most executions: a put of another value cannot have made this event."""
    if event is None or not isinstance(request, PutRequest):
        return event is not None
    return event.kv.key == request.key and (request.ignore_value or event.kv.value == request.value)


def _match(candidates: dict[int, list[int]]) -> dict[int, int]:
    """As many revisions as possible, each with an attempt of its own: augmenting paths (Kuhn, 1955)."""
    owner: dict[int, int] = {}  # attempt -> revision

    def assign(revision: int, tried: set[int]) -> bool:
        for attempt in candidates[revision]:
            if attempt in tried:
                continue
            tried.add(attempt)
            if attempt not in owner or assign(owner[attempt], tried):
                owner[attempt] = revision
                return True
        return False

    for revision in candidates:
        assign(revision, set())
    return {revision: attempt for attempt, revision in owner.items()}


# compaction


def _check_compactions(placed: Sequence[_Placed]) -> list[str]:
    """After a compaction is acknowledged no fresh read shows what lies below; before one began, all can be read."""
    problems = []
    compactions = [one for one in placed if isinstance(one.operation.request, CompactionRequest)]
    for one in placed:
        operation = one.operation
        asked = operation.request.revision if isinstance(operation.request, RangeRequest | CompactionRequest) else 0
        if asked <= 0:
            continue
        if operation.outcome == errors.COMPACTED:
            began = [
                other.operation.began_s
                for other in compactions
                if other is not one
                and _compacts_beyond(other.operation, asked, isinstance(operation.request, CompactionRequest))
            ]
            if min(began, default=math.inf) > operation.ended_s:
                problems.append(f"nobody had compacted that: {operation}")
        elif one.revision and one.fresh and isinstance(operation.outcome, RangeResponse):
            problems += [
                f"a revision compacted before it began: {operation}"
                for other in compactions
                if other.revision
                and other.operation.ended_s < operation.began_s
                and _compacts_beyond(other.operation, asked, False)
            ]
    return problems


def _compacts_beyond(operation: Operation, asked: int, inclusive: bool) -> bool:
    assert isinstance(operation.request, CompactionRequest)
    if isinstance(operation.outcome, Status):
        return False
    return operation.request.revision > asked or (inclusive and operation.request.revision == asked)
