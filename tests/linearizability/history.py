"""What clients of a cluster asked and were told, in the form that the checker judges.

Whoever runs clients, in a simulation or against real processes, records this. Times are those of one clock that all
clients share, in seconds; it need not be anything that a server sees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from google.protobuf.message import Message
from google.protobuf.text_format import MessageToString

from kvorum import errors
from kvorum.errors import Code, Status
from kvorum.pb.mvcc_pb2 import Event
from kvorum.pb.rpc_pb2 import (
    CompactionRequest,
    CompactionResponse,
    DeleteRangeRequest,
    DeleteRangeResponse,
    LeaseGrantRequest,
    LeaseGrantResponse,
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
    LeaseRevokeRequest,
    LeaseRevokeResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    TxnRequest,
    TxnResponse,
)

Request = (
    PutRequest
    | DeleteRangeRequest
    | TxnRequest
    | RangeRequest
    | CompactionRequest
    | LeaseGrantRequest
    | LeaseRevokeRequest
    | LeaseKeepAliveRequest
)

Reply = (
    PutResponse
    | DeleteRangeResponse
    | TxnResponse
    | RangeResponse
    | CompactionResponse
    | LeaseGrantResponse
    | LeaseRevokeResponse
    | LeaseKeepAliveResponse
)


_UNKNOWN_OUTCOMES = (Code.CANCELLED, Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.INTERNAL, Code.UNAVAILABLE)


def is_refusal(status: Status) -> bool:
    """Whether the error says that nothing was done; else the request may have been done, or may still be."""
    return status == errors.REQUEST_TOO_MANY_REQUESTS or status.code not in _UNKNOWN_OUTCOMES


class Session(NamedTuple):
    """One life of one server as a client sees it: within it, time does not go back even for serializable reads."""

    member: int
    generation: int


@dataclass(frozen=True, slots=True)
class Operation:
    """One request and what became of it.

    `outcome` is the reply; or the error it was refused with, when that error says that nothing was done; or None when
    nobody knows: a timeout, a lost connection, a leader that changed meanwhile. Then it may have happened, once, at any
    time after it began, also after `ended_s`.
    """

    began_s: float
    ended_s: float
    session: Session
    request: Request
    outcome: Reply | Status | None

    def __str__(self) -> str:
        outcome = self.outcome
        answer = "?" if outcome is None else outcome.message if isinstance(outcome, Status) else one_line(outcome)
        span = f"{self.began_s:.6f} to {self.ended_s:.6f} s at {self.session.member:x}/{self.session.generation}"
        return f"{type(self.request).__name__} {one_line(self.request)} -> {answer} ({span})"


def one_line(message: Message) -> str:
    """A message as text for people."""
    return "{" + MessageToString(message, as_one_line=True) + "}"


class Received(NamedTuple):
    """One answer of a watch: its events in order (none: progress), and the header's revision."""

    at_s: float
    revision: int
    events: tuple[Event, ...]


@dataclass(slots=True)
class Watch:
    """What one watcher was sent, over all its streams: it resumes after the last revision it has seen.

    `start_revision` is that of the first event it is owed: what was asked, or 1 more than the revision of the `created`
    answer. `seen_to`, if known, is a revision up to which it must have received everything.
    """

    key: bytes
    range_end: bytes
    start_revision: int
    prev_kv: bool = False
    no_puts: bool = False
    no_deletes: bool = False
    received: list[Received] = field(default_factory=list)
    seen_to: int = 0

    def resume_revision(self) -> int:
        """From which revision on the next stream is to be asked."""
        last = self.received[-1] if self.received else None
        if last is None:
            return self.start_revision
        return (last.events[-1].kv.mod_revision if last.events else last.revision) + 1


class Revision(NamedTuple):
    """One revision of the store: its events in the order in which its transaction wrote.

    `seen_s`: a time at which it certainly was in the store of a member, if the recorder can look that deep.
    """

    number: int
    events: tuple[Event, ...]
    seen_s: float = math.inf


@dataclass(slots=True)
class History:
    """A whole run. `revisions` is the store's log from revision 2 on, as it is agreed at the end."""

    operations: list[Operation] = field(default_factory=list)
    watches: list[Watch] = field(default_factory=list)
    revisions: list[Revision] = field(default_factory=list)
