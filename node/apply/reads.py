"""Requests that need no log: ranges, lease questions, hashes, members.

Small work is answered at once; long work becomes a task, a generator of slices of at most a few milliseconds, which the
shell runs in turn with everything else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from google.protobuf.message import DecodeError

from kvorum import errors
from kvorum.errors import ApiError, Code
from kvorum.pb.rpc_pb2 import (
    AuthStatusResponse,
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
    LeaseLeasesResponse,
    LeaseStatus,
    LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
    MemberListResponse,
)
from node.apply.figures import ApplyFigures
from node.apply.host import Job
from node.apply.lease import WAIT
from node.apply.machine import Machine
from node.apply.mvcc.store import Reading
from node.apply.outbox import Outbox
from node.apply.txn_read import TxnRead
from node.frames import HEADER_BYTES, Frame
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


class Reads:
    """Answers READS frames into the outbox; `run` goes on with the long ones.

    `now` is a monotonic clock, `run_aside` is `Host`'s. A keep-alive that waits for a revoke fails after
    `request_timeout_s`.
    """

    def __init__(
        self,
        machine: Machine,
        outbox: Outbox,
        figures: ApplyFigures,
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
        self._now = now
        self._run_aside = run_aside
        self._max_request_bytes = max_request_bytes
        self._request_timeout_s = request_timeout_s
        self._slow = slow
        self._waiting_keep_alives: list[tuple[int, int, int, float]] = []
        self._parked: dict[int, deque[tuple[bytes, int]]] = {}  # by front: frames, and how far each is answered
        self._tasks: deque[Task] = deque()
        self._queued: deque[Task] = deque()  # not begun
        self._defragment_asks: list[tuple[int, int]] = []
        self._defragmenting = False
        self._handlers: dict[int, Callable[[bytes], bytes]] = {
            Op.LEASE_TIME_TO_LIVE: self._time_to_live,
            Op.LEASE_LEASES: self._leases,
            Op.MEMBER_LIST: self._member_list,
            Op.AUTH_STATUS: self._auth_status,
        }

    @property
    def long_reads(self) -> int:
        """Those under way and those that wait to begin."""
        return len(self._tasks) + len(self._queued)

    def on_frame(self, frame: Frame) -> None:
        """Takes in the reads of a front, to be answered by `answer`."""
        parked = self._parked.get(frame.sender)
        if parked is None:
            parked = self._parked[frame.sender] = deque()
        parked.append((frame.data, HEADER_BYTES))

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
                data, at = parked.popleft()
                at = self._answer(front, data, at, until)
                if at < len(data):
                    parked.appendleft((data, at))
                    more = True
                    break
        return more

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

    def _answer(self, front: int, data: bytes, at: int, until: float) -> int:
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
                    begun = self._begin(front, sequence, op, body)
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

    def _begin(self, front: int, sequence: int, op: int, body: bytes) -> bytes | None:
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
                until = self._now() + self._request_timeout_s
                self._keep_alive(front, sequence, LeaseKeepAliveRequest.FromString(body).ID, until)
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
        self, front: int, sequence: int, op: int, begin: Callable[[], bytes | Reading], took_s: Histogram | None = None
    ) -> None:
        self._queued.append(self._stepped(front, sequence, op, begin, took_s))

    def _stepped(
        self, front: int, sequence: int, op: int, begin: Callable[[], bytes | Reading], histogram: Histogram | None
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

    def _streamed(self, front: int, sequence: int, body: bytes) -> Task:
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

    # leases and members

    def _keep_alive(self, front: int, sequence: int, lease_id: int, until: float) -> None:
        """Renews a lease. One whose revoke is under way is answered when that is decided (L9)."""
        header = self._machine.store.header()  # before the renewal (L11)
        now = self._now()
        try:
            ttl_s = self._machine.lessor.keep_alive(lease_id, now)
        except ApiError as error:
            self._outbox.fail(front, sequence, *error.status)
            return
        if ttl_s != WAIT:
            self._figures.renewed_leases += ttl_s > 0
            reply = header + LeaseKeepAliveResponse(ID=lease_id, TTL=ttl_s).SerializeToString()
            self._outbox.reply(front, sequence, reply)
        elif now < until:
            self._waiting_keep_alives.append((front, sequence, lease_id, until))
        else:  # its front has given up; whoever keeps asking must not pile up here
            self._outbox.fail(front, sequence, *errors.TIMEOUT)

    def retry_keep_alives(self) -> None:
        """A revoke may have been decided, or have taken too long: asks again for those that waited."""
        waiting = self._waiting_keep_alives
        self._waiting_keep_alives = []
        for front, sequence, lease_id, until in waiting:
            self._keep_alive(front, sequence, lease_id, until)

    def _time_to_live(self, body: bytes) -> bytes:
        request = LeaseTimeToLiveRequest.FromString(body)
        found = self._machine.lessor.time_to_live(request.ID, self._now(), keys=request.keys)
        response = LeaseTimeToLiveResponse(
            ID=request.ID, TTL=found.ttl_s, grantedTTL=found.granted_ttl_s, keys=found.keys
        )
        return self._machine.store.header() + response.SerializeToString()

    def _leases(self, _body: bytes) -> bytes:
        leases = [LeaseStatus(ID=lease_id) for lease_id in self._machine.lessor.leases()]
        return self._machine.store.header() + LeaseLeasesResponse(leases=leases).SerializeToString()

    def _member_list(self, _body: bytes) -> bytes:
        members = self._machine.membership.members()
        return self._machine.store.header(0) + MemberListResponse(members=members).SerializeToString()

    def _auth_status(self, _body: bytes) -> bytes:
        return self._machine.store.header() + AuthStatusResponse().SerializeToString()
