"""Requests that need no log: ranges, lease questions, hashes, members.

Small work is answered at once; long work becomes a task, a generator of slices of at most a few milliseconds, which the
shell runs in turn with everything else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final

from google.protobuf.message import DecodeError

from kvorum import errors
from kvorum.errors import ApiError, Code, Status
from kvorum.pb.rpc_pb2 import AuthStatusResponse, MemberListResponse, RangeRequest
from node.apply.figures import ApplyFigures
from node.apply.host import Job
from node.apply.leadership import Leadership
from node.apply.lease_reads import LeaseReads
from node.apply.machine import Machine
from node.apply.mvcc.store import Reading
from node.apply.outbox import Outbox, Reader
from node.apply.read_index import ReadIndex, Waiting, split
from node.apply.txn_read import TxnRead
from node.check import check_range
from node.frames import FORWARD, HEADER_BYTES, Frame
from node.requests import READ, REPLY, Op
from node.stats import Histogram

Task = Iterator[bool]
"""Yields after each slice: whether it can go on at once, or waits for a thread or for its front."""

SLICE_ROWS: Final = 1000
"""A slice of long work: about a millisecond."""

TURN_S: Final = 0.004
"""The reads of one front in one turn take about this; what is left waits for the next turn."""

LOOK: Final = 15
"""The clock is looked at before every 16th range: for each it would add 5 % to a get."""

MAX_TASKS: Final = 64
MAX_WAITING: Final = 1000
"""Long reads under way at the same time, each with its view of the database, and those without one that wait for credit
or a thread; those beyond begin later."""

Slow = Callable[[int, float, int], None]
"""Is told of a long read that took longer than it should: op, seconds, bytes of the reply."""


FORWARDED: Final = frozenset({Op.LEASE_KEEP_ALIVE, Op.LEASE_TIME_TO_LIVE})
"""What other members' fronts may ask here."""

MAX_FORWARDS: Final = 10_000
"""Frames of forwarded questions that wait for their turn."""

Parked = tuple[bytes, int, bool]
"""A frame, how far it is answered, and whether the store holds all that was acknowledged before it came."""


class Reads:
    """Answers READS frames into the outbox; `run` goes on with the long ones.

    `now` is a monotonic clock, `run_aside` is `Host`'s. What has to wait for others fails after `request_timeout_s`.
    """

    def __init__(
        self,
        machine: Machine,
        outbox: Outbox,
        figures: ApplyFigures,
        leadership: Leadership,
        now: Callable[[], float],
        run_aside: Callable[[str, Callable[[], None]], Job],
        *,
        max_request_bytes: int,
        request_timeout_s: float,
        slow: Slow,
    ) -> None:
        self._machine = machine
        self._outbox = outbox
        self._figures = figures
        self._leadership = leadership
        self._now = now
        self._run_aside = run_aside
        self._max_request_bytes = max_request_bytes
        self._slow = slow
        self.read_index = ReadIndex(request_timeout_s)
        self.leases = LeaseReads(machine, outbox, figures, now, leadership, self.read_index, request_timeout_s)
        self._parked: dict[int, deque[Parked]] = {}  # by front
        self._forwards: deque[tuple[bytes, Parked]] = deque()
        self._tasks: deque[Task] = deque()
        self._queued: deque[Task] = deque()  # not begun
        self._defragment_asks: list[tuple[Reader, int]] = []
        self._defragmenting = False
        self._handlers: dict[int, Callable[[bytes], bytes]] = {
            Op.LEASE_LEASES: lambda _body: self.leases.leases(),
            Op.MEMBER_LIST: self._member_list,
            Op.AUTH_STATUS: self._auth_status,
        }

    @property
    def long_reads(self) -> int:
        """Those under way and those that wait to begin."""
        return len(self._tasks) + len(self._queued)

    def on_frame(self, frame: Frame) -> None:
        """Takes in the reads of a front: those that need a read index wait for one, the others for `answer`."""
        if self._leadership.granted:
            self._park(frame.sender, frame.data, HEADER_BYTES, True)
        else:
            self._sort(frame.sender, frame.data, HEADER_BYTES)

    def on_forwards(self, frame: Frame) -> bool:
        """Takes in what fronts of other members ask of the leader; they ask again for what is not answered.

        False: it is not of that form, or too much waits, and it is dropped.
        """
        data = frame.data
        at = HEADER_BYTES + FORWARD.size
        if len(self._forwards) >= MAX_FORWARDS or not _is_forward(data, at):
            return False
        reader = data[HEADER_BYTES:at]
        if self._leadership.granted:
            self._park(reader, data, at, True)
        else:
            self._sort(reader, data, at)
        return True

    def _sort(self, reader: Reader, data: bytes, at: int) -> None:
        waits, others = split(data, at)
        if waits is not None:
            now = self._now()
            if not self._leadership.leader:
                waits = self._without_faulty(reader, waits, at)
            if len(waits) > at and not self.read_index.add(reader, waits, at, now):
                self.fail([Waiting(reader, waits, at, now)], errors.REQUEST_TOO_MANY_REQUESTS)
        if others is not None:
            self._park(reader, others, at, False)

    def _park(self, reader: Reader, data: bytes, at: int, is_current: bool) -> None:
        if isinstance(reader, bytes):
            self._forwards.append((reader, (data, at, is_current)))
            return
        parked = self._parked.get(reader)
        if parked is None:
            parked = self._parked[reader] = deque()
        parked.append((data, at, is_current))

    def release(self, ready: Iterable[Waiting]) -> None:
        """These have what they waited for, and wait for `answer` now."""
        for reader, data, at, _ in ready:
            self._park(reader, data, at, True)

    def fail(self, given_up: Iterable[Waiting], status: Status) -> None:
        """These get no read index. A range with a fault of its own gets the error of that (P1)."""
        for reader, data, at, _ in given_up:
            data = self._without_faulty(reader, data, at)
            for sequence, _, _, _ in _records(data, at):
                self._outbox.fail(reader, sequence, *status)

    def _without_faulty(self, reader: Reader, data: bytes, at: int) -> bytes:
        """Answers the ranges that can only fail; the others are returned, after `data[:at]`."""
        kept = [data[:at]]
        for sequence, op, body, record in _records(data, at):
            status = _fault(body) if op == Op.RANGE else None
            if status is None:
                kept.append(record)
            else:
                self._outbox.fail(reader, sequence, *status)
        return b"".join(kept)

    def answer(self) -> bool:
        """Answers what came, for each front as far as it has credit for replies, and its share of the turn goes.

        Returns whether there is more to answer at once.
        """
        more = False
        for front, parked in self._parked.items():
            if not parked or not self._outbox.open(front):
                continue
            until = self._now() + TURN_S
            while parked:
                data, at, is_current = parked.popleft()
                at = self._answer(front, data, at, until, is_current)
                if at < len(data):
                    parked.appendleft((data, at, is_current))
                    more = True
                    break
        if self._forwards:
            more = self._answer_forwards() or more
        return more

    def _answer_forwards(self) -> bool:
        until = self._now() + TURN_S
        while self._forwards:
            reader, (data, at, is_current) = self._forwards.popleft()
            at = self._answer(reader, data, at, until, is_current)
            if at < len(data):
                self._forwards.appendleft((reader, (data, at, is_current)))
                return True
        return False

    def run(self, until: float) -> bool:
        """Runs slices in turn until that time; returns whether there are more to run at once."""
        tasks = self._tasks
        queued = self._queued
        waiting: list[Task] = []
        while self._now() < until:
            if queued and len(tasks) < MAX_TASKS and len(waiting) < MAX_WAITING:
                tasks.append(queued.popleft())
            if not tasks:
                break
            task = tasks.popleft()
            can_go_on = next(task, None)
            if can_go_on:
                tasks.append(task)
            elif can_go_on is not None:
                waiting.append(task)
        more = bool(tasks or (queued and len(waiting) < MAX_WAITING))
        tasks.extend(waiting)
        return more

    def close(self) -> None:
        """Lets go of all views of the database; what was asked stays unanswered."""
        self._tasks.clear()
        self._queued.clear()

    def _answer(self, front: Reader, data: bytes, at: int, until: float, is_current: bool) -> int:
        """Answers the reads from offset `at` on while there is time; returns the offset of the first one left."""
        replies: list[bytes] = []
        begin_range = self._machine.store.begin_range
        handlers = self._handlers
        unpack = READ.unpack_from
        pack_reply = REPLY.pack
        now = self._now
        end = len(data)
        ranges = 0
        while at < end:
            if not ranges & LOOK and now() >= until:
                break
            length, op, _, _, sequence = unpack(data, at)
            at += READ.size
            body = data[at : at + length]
            at += length
            try:
                if op == Op.RANGE:
                    ranges += 1
                    read = begin_range(body)
                    if type(read) is not bytes:  # isinstance asks the abstract class first: 0.2 us
                        # Begun once more when its turn comes: until then this view would grow old.
                        self._later(front, sequence, op, partial(begin_range, body))
                        continue
                    reply = read
                elif op in handlers:
                    reply = handlers[op](body)
                else:
                    begun = self._begin(front, sequence, op, body, is_current)
                    if begun is None:
                        continue
                    reply = begun
            except ApiError as error:
                code, text = error.status
                message = text.encode()
                replies.append(pack_reply(sequence, len(message), code) + message)
            except DecodeError as error:
                message = f"grpc: error unmarshalling request: {error}".encode()
                replies.append(pack_reply(sequence, len(message), Code.INTERNAL) + message)
            else:
                replies.append(pack_reply(sequence, len(reply), 0) + reply)
        self._figures.ranges += ranges
        self._outbox.add(front, replies)
        return at

    def _begin(self, front: Reader, sequence: int, op: int, body: bytes, is_current: bool) -> bytes | None:
        """Work that may take several slices, or an answer that has to wait: then None."""
        store = self._machine.store
        match op:
            case Op.TXN_READ:
                self._figures.read_txns += 1
                txn = TxnRead(store.keyspace, body, store.header())
                if txn.rows <= SLICE_ROWS:
                    while (reply := txn.step(SLICE_ROWS)) is None:
                        pass
                    return reply
                self._later(front, sequence, op, lambda: TxnRead(store.keyspace, body, store.header()))
            case Op.LEASE_KEEP_ALIVE:
                self.leases.keep_alive(front, sequence, body, is_current=is_current)
            case Op.LEASE_TIME_TO_LIVE:
                self.leases.time_to_live(front, sequence, body)
            case Op.HASH_KV:
                self._later(front, sequence, op, partial(store.begin_hash_kv, body), self._figures.hash_rev_s)
            case Op.HASH:
                self._later(front, sequence, op, store.begin_hash, self._figures.hash_s)
            case Op.DEFRAGMENT:
                self._defragment_asks.append((front, sequence))
                if not self._defragmenting:
                    self._defragmenting = True
                    self._queued.append(self._defragmented())
            case _:
                assert op == Op.RANGE_STREAM, f"apply got a read of kind {op}"
                self._queued.append(self._streamed(front, sequence, body))
        return None

    # long reads

    def _later(
        self,
        front: Reader,
        sequence: int,
        op: int,
        begin: Callable[[], bytes | Reading],
        took_s: Histogram | None = None,
    ) -> None:
        self._queued.append(self._stepped(front, sequence, op, begin, took_s))

    def _stepped(
        self, front: Reader, sequence: int, op: int, begin: Callable[[], bytes | Reading], histogram: Histogram | None
    ) -> Task:
        while not self._outbox.open(front):
            yield False
        started = self._now()
        try:
            reading = begin()
            if isinstance(reading, bytes):  # what it asks for became less meanwhile
                reply = reading
            else:
                while (slice_ := reading.step(SLICE_ROWS)) is None:
                    yield True
                reply = slice_
        except ApiError as error:
            self._outbox.fail(front, sequence, *error.status)
            return
        took_s = self._now() - started
        if histogram is not None:
            histogram.observe(took_s)
        self._slow(op, took_s, len(reply))
        self._outbox.reply(front, sequence, reply)

    def _streamed(self, front: Reader, sequence: int, body: bytes) -> Task:
        """A RangeStream goes on as its front takes what was sent; meanwhile it holds no view of the database."""
        try:
            stream = self._machine.store.begin_range_stream(body, self._max_request_bytes)
            while not stream.done:
                if not self._outbox.open(front):
                    stream.release()
                    yield False
                    continue
                message = stream.step(SLICE_ROWS)
                if message is None:
                    yield True
                elif stream.done:
                    self._outbox.reply(front, sequence, message)
                else:
                    self._outbox.part(front, sequence, message)
                    self._outbox.flush()
                    yield True
        except ApiError as error:
            self._outbox.fail(front, sequence, *error.status)

    def _defragmented(self) -> Task:
        """Defragment: RocksDB rewrites its files in a thread, and everything else goes on (MA18).

        Those that ask meanwhile are answered by the next run: it begins after they asked.
        """
        database = self._machine.store.database
        while self._defragment_asks:
            asks = self._defragment_asks
            self._defragment_asks = []
            failures: list[str] = []

            def work(failures: list[str] = failures) -> None:
                try:
                    database.flush()
                    database.defragment()
                except Exception as error:  # the database's own; the client is told
                    failures.append(str(error))

            started = self._now()
            self._figures.defrag_inflight = 1
            thread = self._run_aside("defragment", work)
            while thread.is_alive():
                yield False
            self._figures.defrag_inflight = 0
            self._figures.defrag_s.observe(self._now() - started)
            for front, sequence in asks:
                if failures:
                    self._outbox.fail(front, sequence, Code.UNKNOWN, failures[0])
                else:
                    self._outbox.reply(front, sequence, b"")
        self._defragmenting = False

    def _member_list(self, _body: bytes) -> bytes:
        members = self._machine.membership.members()
        return self._machine.store.header(0) + MemberListResponse(members=members).SerializeToString()

    def _auth_status(self, _body: bytes) -> bytes:
        return self._machine.store.header() + AuthStatusResponse().SerializeToString()


def _records(data: bytes, at: int) -> Iterator[tuple[int, int, bytes, bytes]]:
    """(sequence, op, body, whole record) of each READ record."""
    while at < len(data):
        length, op, _, _, sequence = READ.unpack_from(data, at)
        body_at = at + READ.size
        after = body_at + length
        yield sequence, op, data[body_at:after], data[at:after]
        at = after


def _is_forward(data: bytes, at: int) -> bool:
    """Whether `data[at:]` is one READ record after the other, of ops that may be forwarded: another member sent it."""
    while at + READ.size <= len(data):
        length, op, _, _, _ = READ.unpack_from(data, at)
        if op not in FORWARDED:
            return False
        at += READ.size + length
    return at == len(data)


def _fault(body: bytes) -> Status | None:
    """What a RangeRequest is refused with wherever it is read, if anything."""
    try:
        check_range(RangeRequest.FromString(body))
    except ApiError as error:
        return error.status
    except DecodeError as error:
        return Status(Code.INTERNAL, f"grpc: error unmarshalling request: {error}")
    return None
