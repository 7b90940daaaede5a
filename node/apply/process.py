"""The apply process of a member: it owns the database, executes what is committed, and answers reads.

One turn: take in what the links brought; execute the entries and write them, with the cursor, in one atomic write; then
send their replies, then their events; then answer the reads; then run slices of long work. So whatever a client was
told is in the database, and whatever watch was told can be read.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from kvorum.pb.rpc_pb2 import AlarmRequest, AlarmType, CompactionRequest, LeaseRevokeRequest
from node.apply import alarms, lease, membership
from node.apply.alarms import Alarms
from node.apply.auto_compaction import AutoCompaction, Periodic, Revision
from node.apply.feed import Feed
from node.apply.figures import ApplyFigures
from node.apply.lease import Lessor
from node.apply.machine import Machine
from node.apply.membership import Membership
from node.apply.mvcc.database import Database
from node.apply.mvcc.message import Identity
from node.apply.mvcc.store import Store
from node.apply.outbox import Outbox
from node.apply.reads import Reads
from node.child import ChildContext
from node.config import CompactionMode
from node.frames import APPLIED, FLUSHED, HEADER_BYTES, LEADERSHIP, SERVING, Frame, Kind, Process
from node.front.state import answer
from node.link_zmq import Arrivals, BlockingReader, Links
from node.log import Logger
from node.requests import REPLY, Op, pack_batch, pack_record

TICK_S: Final = 0.5
"""How often leases, the quota and automatic compaction are looked at; also how long a poll may sleep."""

TURN_S: Final = 0.004
"""Slices of long work run this long, then what arrived meanwhile is looked at."""

TASK_PATIENCE_S: Final = 0.01

COMPACTION_ROWS: Final = 500
"""A slice of a compaction: 3 ms."""

RETRY_S: Final = 1.0
"""A failed write (a full disk) is tried again after this."""

FLUSH_REQUESTS: Final = 10_000
FLUSH_BYTES: Final = 16 << 20
"""A flush begins after so many requests or logged bytes: it bounds what is replayed after a crash."""

THREAD_SWITCH_S: Final = 0.0002


class Apply:
    """The shell around machine, reads and feed: links, database, time."""

    def __init__(self, child: ChildContext, links: Links, logger: Logger) -> None:
        config = self._config = child.config
        self._child = child
        self._links = links
        self._logger = logger
        self._fronts = [Process.FRONT + i for i in range(config.front_workers)]
        started = time.monotonic()
        self._lessor = Lessor()
        with child.lifeline.long_operation("opening the database"):
            store = self._store = Store.open(
                config.db_path, self._lessor, Identity(child.cluster_id, child.member_id, 0)
            )
        database = store.database
        self._lessor.restore(_table(database, lease.LEASE_TABLE), _table(database, lease.ATTACHED_TABLE))
        self._alarms = Alarms(_table(database, alarms.TABLE))
        self._membership = Membership(_table(database, membership.TABLE))
        self._machine = Machine(
            member_id=child.member_id,
            incarnation=child.incarnation,
            store=store,
            lessor=self._lessor,
            membership=self._membership,
            alarms=self._alarms,
            physical=self,
        )
        self._outbox = Outbox(links.outlet, links.send)
        self._figures = ApplyFigures()
        self._reads = Reads(self._machine, self._outbox, self._figures, time.monotonic, config.max_request_bytes)
        self._feed = Feed(store.history)
        logger.info("opened the database", took_s=round(time.monotonic() - started, 3), revision=store.revision)
        self._term = 0
        self._catch_up_to = 0
        self._serving = False
        self._entries: deque[Frame] = deque()
        self._retry_at = 0.0
        self._unsent: list[Frame] = []
        self._next_tick_at = 0.0
        self._next_own_sequence = 1
        self._compaction_asked: dict[int, int] = {}
        self._auto_compaction = _auto_compaction(config)
        self._physical: deque[tuple[int, int, int, bytes]] = deque()
        self._next_compaction_at = 0.0
        self._more_tasks = False
        self._flusher: threading.Thread | None = None
        self._flushed: list[int] = []
        self._requests_at_flush = 0
        self._bytes_since_flush = 0

    def run(self) -> None:
        """Until the supervisor says stop."""
        links = self._links
        cursor = self._machine.cursor
        links.send_control(Process.RAFT, Kind.APPLIED, APPLIED.pack(cursor.index, cursor.term))
        links.open(Process.RAFT, Kind.ENTRIES)
        reader = BlockingReader(links, self._child.lifeline)
        while (arrivals := reader.wait(self._patience_s())) is not None:
            self._turn(arrivals)

    def _patience_s(self) -> float:
        """How long nothing needs to be done unless something arrives."""
        if self._more_tasks or self._feed.asked:
            return 0
        until = self._next_tick_at
        if self._reads.tasks:  # they wait for a thread, or for their front
            until = min(until, time.monotonic() + TASK_PATIENCE_S)
        if not self._store.compaction.idle:
            until = min(until, self._next_compaction_at)
        return max(0.0, until - time.monotonic())

    def _turn(self, arrivals: Arrivals) -> None:
        now = time.monotonic()
        self._child.lifeline.beat(now)
        for frame in arrivals.control:
            self._on_control(frame)
        reads: list[Frame] = []
        for frame in arrivals.data:
            if frame.kind == Kind.ENTRIES:
                self._entries.append(frame)
            else:
                assert frame.kind == Kind.READS, f"apply got a frame of kind {frame.kind}"
                reads.append(frame)
        if self._entries or self._unsent:
            self._execute(now)
        # Leases granted just now count from here, so what the execution took is never at their expense.
        now = time.monotonic()
        self._lessor.turn(now)
        if not self._serving and self._machine.applied_term >= self._term > 0:
            self._begin_serving(now)
        if reads:
            for frame in reads:
                self._reads.on_frame(frame)
            self._outbox.flush()
        self._reads.unpark()
        now = time.monotonic()
        if self._serving:
            for lease_id in self._lessor.expired(now):
                self._figures.expired_leases += 1
                self._propose(Op.LEASE_REVOKE, LeaseRevokeRequest(ID=lease_id).SerializeToString())
        self._more_tasks = self._reads.run(now + TURN_S)
        self._run_compaction(now)
        if now >= self._next_tick_at:
            self._next_tick_at = now + TICK_S
            self._tick(now)
        self._outbox.flush()
        self._send_events()

    def _on_control(self, frame: Frame) -> None:
        kind = frame.kind
        if kind == Kind.WATCH_ASK:
            self._feed.on_ask(frame.data, HEADER_BYTES)
        elif kind == Kind.STATE_ASK:
            self._links.send_control(frame.sender, Kind.STATE, answer(frame, self._state()))
        else:
            assert kind == Kind.LEADERSHIP, f"apply got a control frame of kind {kind}"
            self._term, _, self._catch_up_to, _ = LEADERSHIP.unpack_from(frame.data, HEADER_BYTES)
            self._store.set_term(self._term)

    # entries

    def _execute(self, now: float) -> None:
        """Executes what has arrived and writes it at once; without room on the disk it waits, and reads go on."""
        if now < self._retry_at:
            return
        if not self._unsent:  # else these were executed before, and only the write has to be repeated
            while self._entries:
                frame = self._entries.popleft()
                self._machine.execute(frame.data)
                self._unsent.append(frame)
        executed = time.monotonic()
        try:
            self._store.commit(self._machine.cursor)
        except Exception as error:
            if type(error) is not Exception:  # rocksdict raises just this for whatever the disk refuses
                raise
            self._retry_at = now + RETRY_S
            self._logger.error("cannot write to the database, trying again", error=str(error))
            self._raise_no_space()
            return
        self._figures.commit_s.observe(time.monotonic() - executed)
        if executed - now > self._config.warning_apply_duration_s:
            self._figures.slow_applies += 1
            self._logger.warn("apply request took too long", took_s=round(executed - now, 3))
        self._retry_at = 0.0
        for frame in self._unsent:
            size = frame.end - frame.start
            self._bytes_since_flush += size
            self._links.consume(Process.RAFT, Kind.ENTRIES, size)
        self._unsent.clear()
        replies = self._machine.replies
        if replies:
            self._machine.replies = {}
            for process, packed in replies.items():
                if process == Process.APPLY:
                    self._on_own_replies(packed)
                else:
                    self._outbox.add(process, packed)
            self._outbox.flush()
        self._reads.retry_keep_alives()
        events = self._store.take_events()
        self._figures.on_events(events)
        self._feed.on_revisions(events, with_prev=True)

    def _begin_serving(self, now: float) -> None:
        """The first entry of this term is applied, and with it the whole log as found at start."""
        assert self._machine.applied_index > self._catch_up_to
        self._serving = True
        self._lessor.promote(now, extend_s=self._config.election_timeout_s)
        for front in self._fronts:
            self._links.send_control(front, Kind.SERVING, SERVING.pack(self._store.revision))

    def _send_events(self) -> None:
        """Sends watch what is due; one slice of history at most, so that other work gets its turn."""
        outlet = self._links.outlet(Process.WATCH, Kind.EVENTS)
        store = self._store
        payload = self._feed.take(outlet.open(), store.keyspace.committed_revision, store.compacted_revision)
        if payload is not None:
            self._links.send(Process.WATCH, Kind.EVENTS, payload)

    def _run_compaction(self, now: float) -> None:
        """A slice of the compaction under way, and a pause before the next one (C6)."""
        compaction = self._store.compaction
        if compaction.idle or now < self._next_compaction_at:
            return
        limit = self._config.compaction_batch_limit
        rows = min(limit, COMPACTION_ROWS)
        started = time.monotonic()
        try:
            compaction.step(rows)
        except Exception as error:
            if type(error) is not Exception:
                raise
            self._logger.error("cannot compact the database, trying again", error=str(error))
            self._next_compaction_at = now + RETRY_S
            return
        self._figures.compaction_slice_ms.observe((time.monotonic() - started) * 1000)
        self._next_compaction_at = now + self._config.compaction_sleep_interval_s * rows / limit
        if compaction.idle:
            self._figures.on_compacted()
            self._logger.info("finished scheduled compaction", compact_revision=compaction.finished_revision)
        while self._physical and self._physical[0][0] <= compaction.finished_revision:
            _, front, sequence, reply = self._physical.popleft()
            self._outbox.reply(front, sequence, reply)

    # by the clock

    def _tick(self, now: float) -> None:
        if not self._serving:
            return
        if self._auto_compaction is not None:
            revision = self._auto_compaction.tick(now, self._store.revision)
            if revision is not None:
                self._logger.info("starting auto compaction", revision=revision)
                body = CompactionRequest(revision=revision).SerializeToString()
                self._compaction_asked[self._propose(Op.COMPACT, body)] = revision
        quota = self._config.quota_backend_bytes
        if quota is not None and self._store.database.size_bytes >= quota:
            self._raise_no_space()
        self._flush_if_due()

    def _propose(self, op: Op, body: bytes) -> int:
        """Logs a request of apply's own; returns its sequence."""
        sequence = self._next_own_sequence
        self._next_own_sequence += 1
        batch = pack_batch(
            Process.APPLY, self._child.member_id, self._child.incarnation, sequence, [pack_record(op, body)]
        )
        self._links.send(Process.RAFT, Kind.PROPOSALS, batch)
        return sequence

    def _on_own_replies(self, packed: list[bytes]) -> None:
        for reply in packed:
            sequence, _, code = REPLY.unpack_from(reply)
            revision = self._compaction_asked.pop(sequence, None)
            if revision is None or self._auto_compaction is None:
                continue
            if code == 0:
                self._auto_compaction.done(time.monotonic(), revision)
                self._logger.info("completed auto compaction", revision=revision)
            else:
                text = reply[REPLY.size :].decode()
                self._logger.warn("failed auto compaction", revision=revision, error=text)

    def _raise_no_space(self) -> None:
        mine = self._child.member_id
        if any(alarm.memberID == mine for alarm in self._alarms.active(AlarmType.NOSPACE)):
            return
        request = AlarmRequest(action=AlarmRequest.ACTIVATE, memberID=mine, alarm=AlarmType.NOSPACE)
        self._propose(Op.ALARM, request.SerializeToString())

    def _flush_if_due(self) -> None:
        """Makes what is written durable in a thread, and tells raft how far that is."""
        while self._flushed:
            self._links.send_control(Process.RAFT, Kind.FLUSHED, FLUSHED.pack(self._flushed.pop(0)))
        if self._flusher is not None and self._flusher.is_alive():
            return
        requests = self._machine.requests - self._requests_at_flush
        if requests < FLUSH_REQUESTS and self._bytes_since_flush < FLUSH_BYTES:
            return
        self._requests_at_flush = self._machine.requests
        self._bytes_since_flush = 0
        self._flusher = threading.Thread(target=self._flush, name="flush")
        self._flusher.start()

    def _flush(self) -> None:
        try:
            self._flushed.append(self._store.database.flush().index)
        except Exception as error:
            if type(error) is not Exception:
                raise
            self._logger.error("cannot flush the database", error=str(error))

    # the rest

    def wait(self, origin: int, sequence: int, reply: bytes) -> None:
        """See PhysicalWaits."""
        self._physical.append((self._store.compacted_revision, origin, sequence, reply))

    def _state(self) -> dict[str, Any]:
        store = self._store
        size, in_use = store.sizes()
        return {
            "cluster_id": self._child.cluster_id,
            "member_id": self._child.member_id,
            "applied": self._machine.applied_index,
            "revision": store.revision,
            "db_size": size,
            "db_size_in_use": in_use,
            "quota": self._config.quota_backend_bytes or 0,
            "cluster_version": self._membership.cluster_version,
            "alarms": [
                f"memberID:{alarm.memberID} alarm:{AlarmType.Name(alarm.alarm)}" for alarm in self._alarms.active()
            ],
            "alarm_types": [alarm.alarm for alarm in self._alarms.active()],
            "metrics": self._figures.snapshot(store, self._machine, self._config.quota_backend_bytes),
        }

    def close(self) -> None:
        """Flushes, so that the next start has nothing to replay, and closes the database."""
        if self._flusher is not None:
            self._flusher.join()
        with self._child.lifeline.long_operation("flushing the database"):
            self._flush()
            self._store.close()


def _table(database: Database, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    return database.scan(prefix, bytes((prefix[0] + 1,)))


def _auto_compaction(config: Any) -> AutoCompaction | None:
    settings = config.auto_compaction
    if not settings.enabled:
        return None
    now = time.monotonic()
    if settings.mode is CompactionMode.PERIODIC:
        return Periodic(settings.retention_s, now)
    return Revision(settings.retention_revisions, now)


def main(child: ChildContext) -> None:
    """Runs the apply process until the supervisor says stop."""
    sys.setswitchinterval(THREAD_SWITCH_S)
    logger = Logger.open(child.config.log)
    fronts = [Process.FRONT + i for i in range(child.config.front_workers)]
    links = Links(child.run_dir, Process.APPLY, [Process.RAFT, Process.WATCH, *fronts])
    apply = Apply(child, links, logger)
    gc.freeze()
    gc.disable()
    child.lifeline.ready()
    apply.run()
    links.close()
    apply.close()
