"""Requests that need no log: ranges, lease questions, hashes, members.

Small work is answered at once; long work becomes a task, a generator of slices of at most a few milliseconds, which the
shell runs in turn with everything else.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from google.protobuf.message import DecodeError

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
from node.apply.lease import WAIT
from node.apply.machine import Machine
from node.apply.mvcc.store import Reading
from node.apply.outbox import Outbox
from node.frames import HEADER_BYTES, Frame
from node.requests import READ, REPLY, Op
from node.stats import Histogram

Task = Iterator[bool]
"""Yields after each slice: whether it can go on at once, or waits for its front to take what was sent."""

SLICE_ROWS: Final = 1000
"""A slice of long work: about a millisecond."""

MAX_TASKS: Final = 1000
"""Long reads at the same time; what comes beyond them waits with the reads of its front."""


class Reads:
    """Answers READS frames into the outbox. `tasks` are the slices that are left to run."""

    def __init__(
        self, machine: Machine, outbox: Outbox, figures: ApplyFigures, now: Callable[[], float], max_request_bytes: int
    ) -> None:
        self._machine = machine
        self._outbox = outbox
        self._figures = figures
        self._now = now
        self._max_request_bytes = max_request_bytes
        self._waiting_keep_alives: list[tuple[int, int, int]] = []
        self._parked: dict[int, deque[bytes]] = {}
        self.tasks: deque[Task] = deque()
        self._handlers: dict[int, Callable[[bytes], bytes]] = {
            Op.TXN_READ: self._txn,
            Op.LEASE_TIME_TO_LIVE: self._time_to_live,
            Op.LEASE_LEASES: self._leases,
            Op.MEMBER_LIST: self._member_list,
            Op.AUTH_STATUS: self._auth_status,
        }

    def on_frame(self, frame: Frame) -> None:
        """Answers the reads of one front, or parks them while it has no room for replies."""
        parked = self._parked.get(frame.sender)
        if parked or not self._room(frame.sender):
            self._parked.setdefault(frame.sender, deque()).append(frame.data)
        else:
            self._answer(frame.sender, frame.data)

    def unpark(self) -> None:
        """Goes on with parked reads as far as there is credit."""
        for front, parked in self._parked.items():
            while parked and self._room(front):
                self._answer(front, parked.popleft())
                self._outbox.flush()

    def run(self, until: float) -> bool:
        """Runs slices in turn until that time; returns whether there are more to run at once."""
        tasks = self.tasks
        waiting: list[Task] = []
        while tasks and self._now() < until:
            task = tasks.popleft()
            can_go_on = next(task, None)
            if can_go_on:
                tasks.append(task)
            elif can_go_on is not None:
                waiting.append(task)
        more = bool(tasks)
        tasks.extend(waiting)
        return more

    def _room(self, front: int) -> bool:
        return self._outbox.open(front) and len(self.tasks) < MAX_TASKS

    def _answer(self, front: int, data: bytes) -> None:
        replies: list[bytes] = []
        begin_range = self._machine.store.begin_range
        handlers = self._handlers
        unpack = READ.unpack_from
        pack_reply = REPLY.pack
        at = HEADER_BYTES
        end = len(data)
        ranges = 0
        while at < end:
            length, op, _, _, sequence = unpack(data, at)
            at += READ.size
            body = data[at : at + length]
            at += length
            try:
                if op == Op.RANGE:
                    ranges += 1
                    read = begin_range(body)
                    if isinstance(read, Reading):
                        self._later(front, sequence, read)
                        continue
                    reply = read
                elif op in handlers:
                    reply = handlers[op](body)
                else:
                    self._begin(front, sequence, op, body)
                    continue
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

    def _begin(self, front: int, sequence: int, op: int, body: bytes) -> None:
        """Work that takes several slices, or an answer that has to wait."""
        store = self._machine.store
        if op == Op.LEASE_KEEP_ALIVE:
            self._keep_alive(front, sequence, LeaseKeepAliveRequest.FromString(body).ID)
        elif op == Op.HASH_KV:
            self._later(front, sequence, store.begin_hash_kv(body), self._figures.hash_rev_s)
        elif op == Op.HASH:
            self._later(front, sequence, store.begin_hash(), self._figures.hash_s)
        elif op == Op.DEFRAGMENT:
            self.tasks.append(self._defragmented(front, sequence))
        else:
            assert op == Op.RANGE_STREAM, f"apply got a read of kind {op}"
            stream = self._streamed(front, sequence, body)
            self.tasks.append(self._guarded(front, sequence, stream))

    def _later(self, front: int, sequence: int, reading: Reading, took_s: Histogram | None = None) -> None:
        self.tasks.append(self._guarded(front, sequence, self._stepped(front, sequence, reading, took_s)))

    def _stepped(self, front: int, sequence: int, reading: Reading, took_s: Histogram | None) -> Task:
        started = self._now()
        while (reply := reading.step(SLICE_ROWS)) is None:
            yield True
        if took_s is not None:
            took_s.observe(self._now() - started)
        self._outbox.reply(front, sequence, reply)

    def _defragmented(self, front: int, sequence: int) -> Task:
        """Defragment: RocksDB rewrites its files in a thread, and everything else goes on (MA18)."""
        errors: list[str] = []

        def work() -> None:
            try:
                self._machine.store.database.flush()
                self._machine.store.database.defragment()
            except Exception as error:
                errors.append(str(error))

        started = self._now()
        self._figures.defrag_inflight += 1
        thread = threading.Thread(target=work, name="defragment")
        thread.start()
        while thread.is_alive():
            yield False
        self._figures.defrag_inflight -= 1
        self._figures.defrag_s.observe(self._now() - started)
        if errors:
            self._outbox.fail(front, sequence, Code.UNKNOWN, errors[0])
        else:
            self._outbox.reply(front, sequence, b"")

    def _streamed(self, front: int, sequence: int, body: bytes) -> Task:
        """A RangeStream goes on as its front takes what was sent; meanwhile it holds no view of the database."""
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

    def _guarded(self, front: int, sequence: int, task: Task) -> Task:
        try:
            yield from task
        except ApiError as error:
            self._outbox.fail(front, sequence, *error.status)
        except DecodeError as error:
            self._outbox.fail(front, sequence, Code.INTERNAL, f"grpc: error unmarshalling request: {error}")

    # leases and members

    def _keep_alive(self, front: int, sequence: int, lease_id: int) -> None:
        """Renews a lease. One whose revoke is under way is answered when that is decided (L9)."""
        header = self._machine.store.header()  # before the renewal (L11)
        try:
            ttl_s = self._machine.lessor.keep_alive(lease_id, self._now())
        except ApiError as error:
            self._outbox.fail(front, sequence, *error.status)
            return
        if ttl_s == WAIT:
            self._waiting_keep_alives.append((front, sequence, lease_id))
            return
        reply = header + LeaseKeepAliveResponse(ID=lease_id, TTL=ttl_s).SerializeToString()
        self._outbox.reply(front, sequence, reply)

    def retry_keep_alives(self) -> None:
        """A revoke may have been decided: asks again for those that waited."""
        waiting = self._waiting_keep_alives
        self._waiting_keep_alives = []
        for front, sequence, lease_id in waiting:
            self._keep_alive(front, sequence, lease_id)

    def _txn(self, body: bytes) -> bytes:
        self._figures.read_txns += 1
        return self._machine.store.txn(body)

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
