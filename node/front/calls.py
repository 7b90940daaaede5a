"""The calls a front has under way: what it sent to raft and apply, and where each answer goes.

A turn of the loop gathers requests into one batch for raft and one for apply; `flush` sends both. An answer names the
request's sequence, and goes to the sink that asked: a connection of the wire, a stream handler, or the JSON gateway,
all of which have the same two methods.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from kvorum import errors
from kvorum.errors import Status
from node.frames import FORWARD, HEADER_BYTES, Kind, Process
from node.front.leader_reads import LeaderReads
from node.requests import (
    FIRST_CHANGE_SEQUENCE,
    FIRST_READ_SEQUENCE,
    MORE,
    READ,
    RECORD,
    REPLY,
    Op,
    pack_batch,
    pack_record,
)

MAX_PROPOSALS: Final = 20_000
MAX_PROPOSAL_BYTES: Final = 64 << 20
MAX_READS: Final = 100_000
MAX_CHANGES: Final = 100
"""Bounds on what is under way between this front, raft and apply; beyond them a call is refused at once."""

BATCH_BYTES: Final = 1 << 20
"""A batch for raft is closed at this size, since a log entry should stay below it."""


UNTIMED: Final = frozenset(
    {
        *(Op.RANGE, Op.RANGE_STREAM, Op.DEFRAGMENT, Op.HASH, Op.HASH_KV),
        *(Op.LEASE_KEEP_ALIVE, Op.LEASE_TIME_TO_LIVE),
        Op.MOVE_LEADER,
    }
)
"""Work that may rightly take longer than the request timeout, and ends with the client's deadline; questions to the
leader, whose time is kept elsewhere; the wait for a new leader, which raft ends with an error of its own (MA25)."""


class Sink(Protocol):
    """Where the answer to a call goes; `token` is whatever the sink gave with the call (a stream id)."""

    def reply(self, token: int, message: bytes, /) -> object:
        """The call succeeded."""

    def fail(self, token: int, code: int, text: str, /) -> object:
        """The call ended with a gRPC status."""


class PartSink(Sink, Protocol):
    """A sink whose call may be answered in several parts, of which `reply` gets the last."""

    def part(self, token: int, message: bytes, /) -> object:
        """One more message, and others will follow."""


Send = Callable[[int, int, bytes], None]


class Calls:
    """Requests on their way, by sequence.

    `send(process, kind, payload)` hands a batch to a link; `call_soon` arms `flush` at the end of the loop's turn.
    `late(sent_at)` is what a request sent then, and not answered within the request timeout, ends with (P12).
    """

    def __init__(
        self,
        *,
        origin: int,
        member: int,
        incarnation: int,
        send: Send,
        call_soon: Callable[[Callable[[], None]], object],
        now: Callable[[], float],
        timeout_s: float,
        late: Callable[[float], Status] = lambda _sent_at: errors.TIMEOUT,
    ) -> None:
        self._origin = origin
        self._member = member
        self._incarnation = incarnation
        self._send = send
        self._call_soon = call_soon
        self._now = now
        self._timeout_s = timeout_s
        self._late = late
        self.leader_reads = LeaderReads(
            self,
            member_id=member,
            header=FORWARD.pack(member, incarnation, origin),
            send=send,
            call_soon=call_soon,
            now=now,
            timeout_s=timeout_s,
        )
        self._flush_armed = False
        self._waiting: dict[int, tuple[Sink, int, bool]] = {}  # the last says whether the request timeout applies
        self._records: list[bytes] = []
        self._records_bytes = 0
        self._next_proposal = 1
        self._reads: list[bytes] = []
        self._next_read = FIRST_READ_SEQUENCE
        self._changes: dict[int, float] = {}  # sent at, by sequence; answered in any order
        self._next_change = FIRST_CHANGE_SEQUENCE
        # what is under way, oldest first: (sent at, first sequence, sequence after the last, bytes)
        self._sent_proposals: deque[tuple[float, int, int, int]] = deque()
        self._sent_reads: deque[tuple[float, int, int, int]] = deque()
        # batches of proposals of which a later one was answered first: raft may have lost them
        self._overtaken: deque[tuple[float, int, int]] = deque()
        self.proposal_bytes = 0
        self.failed = 0
        """Proposals that were refused or never answered in time."""

    @property
    def waiting(self) -> int:
        """How many calls are under way."""
        return len(self._waiting)

    @property
    def waiting_proposals(self) -> int:
        """How many proposals were sent and not yet followed by an answered one (for metrics)."""
        return self._next_proposal - self._sent_proposals[0][1] if self._sent_proposals else len(self._records)

    def propose(self, sink: Sink, token: int, op: int, body: bytes) -> None:
        """Logs and executes a checked request; the sink gets its answer."""
        if len(self._waiting) >= MAX_PROPOSALS or self.proposal_bytes >= MAX_PROPOSAL_BYTES:
            self.failed += 1
            sink.fail(token, *errors.REQUEST_TOO_MANY_REQUESTS)
            return
        records = self._records
        size = len(body)
        if self._records_bytes + size > BATCH_BYTES and records:
            self._send_proposals()
            records = self._records
        self._waiting[self._next_proposal + len(records)] = (sink, token, True)
        records.append(RECORD.pack(size, op, 0, 0) + body)
        self._records_bytes += size
        self.proposal_bytes += size
        if not self._flush_armed:
            self._arm()

    @property
    def oldest_proposal_s(self) -> float | None:
        """When the oldest proposal was sent that waits for its answer."""
        sent = [batch[0][0] for batch in (self._overtaken, self._sent_proposals) if batch]
        return min(sent) if sent else None

    def read(self, sink: Sink, token: int, op: int, body: bytes, flags: int = 0) -> None:
        """Asks apply for something that needs no log; the sink gets the answer."""
        if len(self._waiting) >= MAX_READS:
            sink.fail(token, *errors.REQUEST_TOO_MANY_REQUESTS)
            return
        sequence = self._next_read + len(self._reads)
        self._waiting[sequence] = (sink, token, op not in UNTIMED)
        self._reads.append(READ.pack(len(body), op, flags, 0, sequence) + body)
        if not self._flush_armed:
            self._arm()

    def change(self, sink: Sink, token: int, op: int, body: bytes) -> None:
        """Asks raft for a change of the members or of the leader, at once; the sink gets its answer.

        These are few, and raft looks into each of them, so each is a batch of its own.
        """
        if len(self._changes) >= MAX_CHANGES:
            sink.fail(token, *errors.REQUEST_TOO_MANY_REQUESTS)
            return
        sequence = self._next_change
        self._next_change += 1
        self._waiting[sequence] = (sink, token, op not in UNTIMED)
        self._changes[sequence] = self._now()
        batch = pack_batch(self._origin, self._member, self._incarnation, sequence, [pack_record(op, body)])
        self._send(Process.RAFT, Kind.CHANGES, batch)

    def expect(self, sequence: int, sink: Sink, token: int) -> None:
        """The sink gets the answer that names `sequence`, which is none of this class's own."""
        self._waiting[sequence] = (sink, token, False)

    def forget(self, sequence: int) -> None:
        """No answer that names `sequence` is expected any more."""
        self._waiting.pop(sequence, None)

    def _arm(self) -> None:
        """A lone call leaves at once: waiting for the turn to end would gather nothing."""
        if len(self._waiting) == 1:
            self.flush()
        else:
            self._flush_armed = True
            self._call_soon(self.flush)

    def flush(self) -> None:
        """Sends what this turn gathered: at most one batch to raft and one to apply."""
        self._flush_armed = False
        if self._records:
            self._send_proposals()
        if self._reads:
            reads = self._reads
            self._reads = []
            self._sent_reads.append((self._now(), self._next_read, self._next_read + len(reads), 0))
            self._next_read += len(reads)
            self._send(Process.APPLY, Kind.READS, b"".join(reads))

    def _send_proposals(self) -> None:
        records = self._records
        self._records = []
        first = self._next_proposal
        self._next_proposal = first + len(records)
        self._sent_proposals.append((self._now(), first, self._next_proposal, self._records_bytes))
        self._records_bytes = 0
        self._send(
            Process.RAFT, Kind.PROPOSALS, pack_batch(self._origin, self._member, self._incarnation, first, records)
        )

    def on_replies(self, data: bytes) -> None:
        """A frame of replies; the caller flushes the wire's connections afterwards, once."""
        waiting = self._waiting
        unpack = REPLY.unpack_from
        header_bytes = REPLY.size
        at = HEADER_BYTES
        end = len(data)
        last_proposal = last_read = 0
        while at < end:
            sequence, length, code = unpack(data, at)
            at += header_bytes
            body = data[at : at + length]
            at += length
            if code == 0:
                call = waiting.pop(sequence, None)
                if call is not None:  # else it timed out here, and its answer comes too late
                    call[0].reply(call[1], body)
            elif code & MORE:
                call = waiting.get(sequence)
                if call is not None and not body:  # executed; the answer may take its time (C7)
                    waiting[sequence] = (call[0], call[1], False)
                elif call is not None:
                    call[0].part(call[1], body)  # type: ignore[attr-defined]  # only PartSinks ask for such
                continue
            else:
                call = waiting.pop(sequence, None)
                if call is not None:
                    call[0].fail(call[1], code, body.decode())
            if sequence < FIRST_CHANGE_SEQUENCE:
                last_proposal = sequence
            elif sequence >= FIRST_READ_SEQUENCE:
                last_read = sequence
            else:
                self._changes.pop(sequence, None)
        if last_proposal:
            sent = self._sent_proposals
            while sent and sent[0][2] <= last_proposal + 1:
                sent_at, first, after, size = sent.popleft()
                self.proposal_bytes -= size
                if first in waiting:
                    self._overtaken.append((sent_at, first, after))
        if last_read:
            sent = self._sent_reads
            while sent and sent[0][2] <= last_read + 1:
                sent.popleft()

    def expire(self) -> None:
        """Ends calls that waited longer than the request timeout: their outcome is unknown (P12)."""
        before = self._now() - self._timeout_s
        while self._sent_proposals and self._sent_proposals[0][0] < before:
            sent_at, first, after, size = self._sent_proposals.popleft()
            self.proposal_bytes -= size
            self._time_out(range(first, after), self._late(sent_at))
        while self._overtaken and self._overtaken[0][0] < before:
            sent_at, first, after = self._overtaken.popleft()
            self._time_out(range(first, after), self._late(sent_at))
        while self._sent_reads and self._sent_reads[0][0] < before:
            _, first, after, _ = self._sent_reads.popleft()
            self._time_out(range(first, after), errors.TIMEOUT)
        late = [n for n, sent_at in self._changes.items() if sent_at < before and self._waiting[n][2]]
        for sequence in late:
            self._time_out((sequence,), self._late(self._changes.pop(sequence)))
        self.leader_reads.expire()

    def _time_out(self, sequences: Iterable[int], status: Status) -> None:
        waiting = self._waiting
        self._fail([n for n in sequences if n in waiting and waiting[n][2]], status)

    def fail_all(self, status: Status = errors.STOPPED) -> None:
        """The member stops: everything that still waits ends with `status`."""
        self._changes.clear()
        self.leader_reads.end_all(status)
        self._fail(list(self._waiting), status)

    def _fail(self, sequences: list[int], status: Status) -> None:
        for sequence in sequences:
            call = self._waiting.pop(sequence, None)
            if call is not None:
                self.failed += 1
                call[0].fail(call[1], *status)
