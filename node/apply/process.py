"""The apply process of a member: it owns the database, executes what is committed, and answers reads.

One turn: take in what the links brought; execute the entries and write them, with the cursor, in one atomic write; then
send their replies, then their events; then answer the reads; then run slices of long work. So whatever a client was
told is in the database, and whatever watch was told can be read.
"""

from __future__ import annotations

import gc
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Final

from kvorum.pb.rpc_pb2 import AlarmRequest, AlarmType, CompactionRequest, LeaseRevokeRequest
from node import malloc, membership
from node.apply import alarms, lease
from node.apply.alarms import Alarms
from node.apply.auto_compaction import AutoCompaction, Periodic, Revision
from node.apply.checkpoint import Checkpoints
from node.apply.compactor import Compactor
from node.apply.feed import Feed
from node.apply.figures import ApplyFigures
from node.apply.flusher import Flusher
from node.apply.host import Host, ProcessHost, Stopped
from node.apply.lease import Lessor
from node.apply.machine import Machine
from node.apply.mvcc.database import Database
from node.apply.mvcc.message import Identity
from node.apply.outbox import Outbox
from node.apply.reads import Reads
from node.apply.space import is_no_space, shortage
from node.child import ChildContext
from node.config import CompactionMode
from node.frames import APPLIED, CHECKPOINT_ASK, FLUSHED, HEADER_BYTES, LEADERSHIP, SERVING, Frame, Kind, Process
from node.front.state import answer
from node.link import Streams
from node.link_zmq import Arrivals, BlockingReader, Links
from node.log import Logger
from node.membership import Membership
from node.requests import REPLY, Op, pack_batch, pack_record

TICK_S: Final = 0.5
"""How often leases, the quota and automatic compaction are looked at; also how long a poll may sleep."""

TURN_S: Final = 0.004
"""Entries and slices of long work are worked off for so long each, then what arrived meanwhile is looked at."""

TASK_PATIENCE_S: Final = 0.01

RETRY_S: Final = 1.0
"""A failed write (a full disk) is tried again after this."""

LOOK_BYTES: Final = 1 << 20
"""After so many logged bytes the quota and the disk are looked at, without waiting for the tick."""

LONGEST_KEEP_ALIVE_WAIT_S: Final = 1.0
"""Leases expire only when all keep-alives that came were answered, but do not wait longer than this."""

THREAD_SWITCH_S: Final = 0.0002


class Apply:
    """The shell around machine, reads and feed, turn by turn.

    Of `child` only the settings and the ids are read; whatever else is outside comes by `links` and `host`.
    """

    def __init__(self, child: ChildContext, links: Streams, logger: Logger, host: Host) -> None:
        """Opens the database. Raises Stopped, and CannotOpen unless the disk is full: then it waits."""
        config = self._config = child.config
        self._child = child
        self._links = links
        self._host = host
        self._now = host.now
        self._logger = logger
        self._fronts = [Process.FRONT + i for i in range(config.front_workers)]
        started = host.now()
        self._lessor = Lessor()
        store = self._store = host.open_store(self._lessor, Identity(child.cluster_id, child.member_id, 0))
        database = store.database
        self._lessor.restore(_table(database, lease.LEASE_TABLE), _table(database, lease.ATTACHED_TABLE))
        self._alarms = Alarms(_table(database, alarms.TABLE))
        self._membership = Membership(_table(database, membership.TABLE))
        self._outbox = Outbox(links.outlet, links.send)
        self._figures = ApplyFigures()
        self._compactor = Compactor(
            store.compaction,
            self._outbox,
            self._figures,
            host.now,
            logger,
            batch_limit=config.compaction_batch_limit,
            sleep_interval_s=config.compaction_sleep_interval_s,
        )
        self._machine = Machine(
            member_id=child.member_id,
            incarnation=child.incarnation,
            store=store,
            lessor=self._lessor,
            membership=self._membership,
            alarms=self._alarms,
            physical=self._compactor,
        )
        self._reads = Reads(
            self._machine,
            self._outbox,
            self._figures,
            host.now,
            host.run_aside,
            max_request_bytes=config.max_request_bytes,
            request_timeout_s=5 + 2 * config.election_timeout_s,
            slow=self._on_long_read,
        )
        self._feed = Feed(store.history)
        logger.info("opened the database", took_s=round(host.now() - started, 3), revision=store.revision)
        self._term = 0
        self._catch_up_to = 0
        self._serving = False
        self._working = host.working
        self._entries: deque[Frame] = deque()
        self._loaded: Frame | None = None
        self._executed: list[Frame] = []  # and not committed yet
        self._uncommitted = False
        self._retry_at = 0.0
        self._requests_committed = 0
        self._bytes_since_look = 0
        self._next_tick_at = 0.0
        self._more_reads = False
        self._all_read_at = 0.0
        self._next_own_sequence = 1
        self._compaction_asked: dict[int, int] = {}
        self._no_space_asked: int | None = None
        self._auto_compaction = _auto_compaction(config, host.now())
        self._more_tasks = False
        self._flusher = Flusher(database, logger, host.run_aside)
        self._checkpoints = Checkpoints(
            database,
            config.snap_path,
            logger,
            run_aside=host.run_aside,
            read=host.read_checkpoint,
            now=host.now,
            free_bytes=host.free_bytes,
            took=self._figures.snapshot_s.observe,
        )

    def start(self) -> None:
        """Says where the store stands, and opens the streams: what follows comes by `turn`."""
        links = self._links
        cursor = self._machine.cursor
        links.send_control(
            Process.RAFT,
            Kind.APPLIED,
            APPLIED.pack(cursor.index, cursor.term) + self._membership.state().SerializeToString(),
        )
        links.open(Process.RAFT, Kind.ENTRIES)
        links.open(Process.RAFT, Kind.REPLIES)

    def patience_s(self) -> float:
        """How long nothing needs to be done unless something arrives."""
        if self._more_tasks or self._more_reads or self._feed.asked:
            return 0
        now = self._now()
        until = self._next_tick_at
        if self._entries or self._machine.busy or self._uncommitted:
            until = min(until, self._retry_at)
        if self._reads.long_reads or self._checkpoints.busy:  # they wait for a thread, or for their front
            until = min(until, now + TASK_PATIENCE_S)
        due_at = self._compactor.due_at
        if due_at is not None:
            until = min(until, due_at)
        return max(0.0, until - now)

    def turn(self, arrivals: Arrivals) -> None:
        """Does what arrived, and what the time asks for."""
        now = self._now()
        self._host.beat(now)
        for frame in arrivals.control:
            self._on_control(frame)
        for frame in arrivals.data:
            if frame.kind == Kind.ENTRIES:
                self._entries.append(frame)
            elif frame.kind == Kind.READS:
                self._reads.on_frame(frame)
            else:
                assert frame.kind == Kind.REPLIES, f"apply got a frame of kind {frame.kind}"
                self._on_refused(frame)
        if self._entries or self._machine.busy or self._uncommitted:
            self._execute(now)
        # Leases granted just now count from here, so what the execution took is never at their expense.
        now = self._now()
        self._lessor.turn(now)
        if (
            not self._serving
            and self._machine.applied_term >= self._term > 0
            and self._machine.applied_index >= self._catch_up_to
        ):
            self._begin_serving(now)
        self._more_reads = self._reads.answer()
        self._outbox.flush()
        now = self._now()
        if not self._more_reads or now - self._all_read_at > LONGEST_KEEP_ALIVE_WAIT_S:
            self._all_read_at = now
            self._expire_leases(now)
        self._more_tasks = self._reads.run(now + TURN_S)
        self._compactor.run()
        checkpoint = self._checkpoints.poll()
        if checkpoint is not None:
            self._links.send_control(Process.RAFT, Kind.CHECKPOINT, checkpoint)
        if now >= self._next_tick_at:
            self._next_tick_at = now + TICK_S
            self._tick(now)
        self._outbox.flush()
        self._send_events()

    def _on_control(self, frame: Frame) -> None:
        kind = frame.kind
        if kind == Kind.WATCH_ASK:
            self._feed.on_ask(frame.data, HEADER_BYTES)
        elif kind == Kind.CHECKPOINT_ASK:
            self._checkpoints.ask(*CHECKPOINT_ASK.unpack_from(frame.data, HEADER_BYTES))
        elif kind == Kind.STATE_ASK:
            self._links.send_control(frame.sender, Kind.STATE, answer(frame, self._state()))
        elif kind == Kind.LEADERSHIP:
            self._term, _, self._catch_up_to, _ = LEADERSHIP.unpack_from(frame.data, HEADER_BYTES)
            self._store.set_term(self._term)

    # entries

    def _execute(self, now: float) -> None:
        """Executes what has arrived, for one turn's time, and writes it at once.

        Without room on the disk it waits, and reads go on.
        """
        if now < self._retry_at:
            return
        if not self._uncommitted:  # else these were executed before, and only the write has to be repeated
            self._execute_slices(now)
            self._uncommitted = True
        began = self._now()
        try:
            with self._working:
                self._store.commit(self._machine.cursor)
        except Exception as error:
            if not is_no_space(error):
                raise
            self._retry_at = now + RETRY_S
            self._logger.error("cannot write to the database, trying again", error=str(error))
            self._raise_no_space(str(error))
            return
        self._figures.commit_s.observe(self._now() - began)
        self._uncommitted = False
        size = sum(frame.end - frame.start for frame in self._executed)
        if size:
            self._links.consume(Process.RAFT, Kind.ENTRIES, size)
        self._executed.clear()
        machine = self._machine
        self._flusher.wrote(machine.requests - self._requests_committed, size)
        self._requests_committed = machine.requests
        self._bytes_since_look += size
        if self._bytes_since_look >= LOOK_BYTES:
            self._watch_space()
        replies = machine.replies
        if replies:
            machine.replies = {}
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

    def _execute_slices(self, now: float) -> None:
        machine = self._machine
        until = now + TURN_S
        with self._working:
            while now < until:
                if not machine.busy:
                    if not self._entries:
                        return
                    self._loaded = self._entries.popleft()
                    machine.load(self._loaded.data)
                if machine.step():
                    assert self._loaded is not None
                    self._executed.append(self._loaded)
                    self._loaded = None
                before, now = now, self._now()
                if now - before > self._config.warning_apply_duration_s:
                    self._figures.slow_applies += 1
                    self._warn_slow(now - before, index=machine.applied_index + machine.busy)

    def _warn_slow(self, took_s: float, **fields: object) -> None:
        """P20."""
        expected = f"{self._config.warning_apply_duration_s * 1000:g}ms"
        took = f"{took_s * 1000:.3f}ms"
        self._logger.warn("apply request took too long", took=took, expected_duration=expected, **fields)

    def _on_long_read(self, op: int, took_s: float, size_bytes: int) -> None:
        if took_s > self._config.warning_apply_duration_s:
            self._figures.slow_applies += 1
            self._warn_slow(took_s, prefix="read-only " + Op(op).name.lower(), response_size=size_bytes)

    def _expire_leases(self, now: float) -> None:
        if self._serving:
            for lease_id in self._lessor.expired(now):
                self._figures.expired_leases += 1
                self._propose(Op.LEASE_REVOKE, LeaseRevokeRequest(ID=lease_id).SerializeToString())

    def _begin_serving(self, now: float) -> None:
        """The first entry of this term is applied, and with it the whole log as found at start."""
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
        self._reads.retry_keep_alives()
        self._watch_space()

    def _watch_space(self) -> None:
        """Raises NOSPACE when the quota or the disk runs out, and flushes if that is due."""
        self._bytes_since_look = 0
        database = self._store.database
        free_bytes = self._host.free_bytes()
        unflushed_bytes = database.unflushed_bytes
        if self._serving:
            reason = shortage(database.size_bytes, self._config.quota_backend_bytes, free_bytes, unflushed_bytes)
            if reason is not None:
                self._raise_no_space(reason)
        flushed = self._flusher.tick(self._now(), has_room=free_bytes >= unflushed_bytes)
        if flushed is not None:
            self._links.send_control(Process.RAFT, Kind.FLUSHED, FLUSHED.pack(flushed))

    def _propose(self, op: Op, body: bytes) -> int:
        """Logs a request of apply's own; returns its sequence."""
        sequence = self._next_own_sequence
        self._next_own_sequence += 1
        batch = pack_batch(
            Process.APPLY, self._child.member_id, self._child.incarnation, sequence, [pack_record(op, body)]
        )
        self._links.send(Process.RAFT, Kind.PROPOSALS, batch)
        return sequence

    def _on_refused(self, frame: Frame) -> None:
        """Raft had no room in the log for what apply itself proposed."""
        self._links.consume(frame.sender, frame.kind, frame.end - frame.start)
        self._on_own_replies(split_replies(frame.data))

    def _on_own_replies(self, packed: Iterable[bytes]) -> None:
        """Answers to apply's own requests. A refused revoke is proposed again by the lessor (L31)."""
        for reply in packed:
            sequence, _, code = REPLY.unpack_from(reply)
            if sequence == self._no_space_asked:
                self._no_space_asked = None
            revision = self._compaction_asked.pop(sequence, None)
            if revision is None or self._auto_compaction is None:
                continue
            if code == 0:
                self._auto_compaction.done(self._now(), revision)
                self._logger.info("completed auto compaction", revision=revision)
            else:
                text = reply[REPLY.size :].decode()
                self._logger.warn("failed auto compaction", revision=revision, error=text)

    def _raise_no_space(self, reason: str) -> None:
        mine = self._child.member_id
        asked = self._no_space_asked is not None
        if asked or not self._serving or any(a.memberID == mine for a in self._alarms.active(AlarmType.NOSPACE)):
            return
        self._logger.warn("raising the NOSPACE alarm", reason=reason)
        request = AlarmRequest(action=AlarmRequest.ACTIVATE, memberID=mine, alarm=AlarmType.NOSPACE)
        self._no_space_asked = self._propose(Op.ALARM, request.SerializeToString())

    # the rest

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
            "alarms": [alarms.describe(alarm) for alarm in self._alarms.active()],
            "alarm_types": [alarm.alarm for alarm in self._alarms.active()],
            "metrics": self._figures.snapshot(store, self._machine, self._config.quota_backend_bytes),
        }

    def close(self) -> None:
        """Flushes, so that the next start has nothing to replay, and closes the database."""
        self._host.close()
        with self._host.long_operation("flushing the database"):
            self._reads.close()
            self._checkpoints.close()
            self._flusher.close()
            self._store.close()


def split_replies(data: bytes) -> Iterator[bytes]:
    """The packed replies of a frame, one by one."""
    at = HEADER_BYTES
    while at < len(data):
        end = at + REPLY.size + REPLY.unpack_from(data, at)[1]
        yield data[at:end]
        at = end


def _table(database: Database, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    return database.scan(prefix, bytes((prefix[0] + 1,)))


def _auto_compaction(config: Any, now: float) -> AutoCompaction | None:
    settings = config.auto_compaction
    if not settings.enabled:
        return None
    if settings.mode is CompactionMode.PERIODIC:
        return Periodic(settings.retention_s, now)
    return Revision(settings.retention_revisions, now)


def main(child: ChildContext) -> None:
    """Runs the apply process until the supervisor says stop."""
    malloc.keep_large_buffers()
    sys.setswitchinterval(THREAD_SWITCH_S)
    logger = Logger.open(child.config.log)
    fronts = [Process.FRONT + i for i in range(child.config.front_workers)]
    links = Links(child.run_dir, Process.APPLY, [Process.RAFT, Process.WATCH, *fronts])
    try:
        config = child.config
        host = ProcessHost(config.db_path, config.snap_path, child.lifeline, logger)
        apply = Apply(child, links, logger, host)
    except Stopped:
        links.close()
        return
    gc.freeze()
    gc.disable()
    child.lifeline.ready()
    apply.start()
    reader = BlockingReader(links, child.lifeline)
    while (arrivals := reader.wait(apply.patience_s())) is not None:
        apply.turn(arrivals)
    links.close()
    apply.close()
