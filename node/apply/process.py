"""The apply process of a member: it owns the database, executes what is committed, and answers reads.

One turn: take in what the links brought; execute the entries and write them, with the cursor, in one atomic write; then
send their replies, then their events; then answer the reads; then run slices of long work. So whatever a client was
told is in the database, and whatever watch was told can be read.
"""

from __future__ import annotations

import gc
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from kvorum import errors, malloc
from kvorum.log import Logger
from kvorum.pb.rpc_pb2 import AlarmType
from node import membership
from node.apply import alarms, lease
from node.apply.alarms import Alarms
from node.apply.auto_compaction import of_settings
from node.apply.checkpoint import Checkpoints
from node.apply.compactor import Compactor
from node.apply.feed import Feed
from node.apply.figures import ApplyFigures
from node.apply.flusher import Flusher
from node.apply.host import Host, ProcessHost, Stopped
from node.apply.leadership import Leadership
from node.apply.lease import Lessor
from node.apply.machine import Machine
from node.apply.mvcc.database import Database
from node.apply.mvcc.message import Identity
from node.apply.outbox import Outbox
from node.apply.own_requests import OwnRequests, split_replies
from node.apply.reads import Reads
from node.apply.space import is_no_space, shortage
from node.child import ChildContext
from node.frames import (
    APPLIED,
    CHECKPOINT_ASK,
    FLUSHED,
    GRANT_RETURNED,
    HEADER_BYTES,
    LEADERSHIP,
    LEADING,
    PROGRESS,
    READ_ASK,
    READ_INDEX,
    SERVING,
    Frame,
    Kind,
    Process,
)
from node.front.state import answer
from node.link import Streams
from node.link_zmq import Arrivals, BlockingReader, Links
from node.membership import Membership
from node.requests import Op

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

PROGRESS_S: Final = 0.1
"""Raft is told as often how far the log is applied."""

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
        request_timeout_s = 5 + 2 * config.election_timeout_s
        self._leadership = Leadership(child.member_id, self._lessor, config.election_timeout_s)
        self._reads = Reads(
            self._machine,
            self._outbox,
            self._figures,
            self._leadership,
            host.now,
            host.run_aside,
            max_request_bytes=config.max_request_bytes,
            request_timeout_s=request_timeout_s,
            slow=self._on_long_read,
        )
        self._feed = Feed(store.history)
        logger.info("opened the database", took_s=round(host.now() - started, 3), revision=store.revision)
        self._read_index = self._reads.read_index
        self._serving = False
        self._members_told = 0  # of the changes that the membership counts
        self._has_progress = False  # that raft was not told of
        self._progress_at = 0.0
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
        self._own = OwnRequests(
            member_id=child.member_id,
            incarnation=child.incarnation,
            send=links.send,
            auto_compaction=of_settings(config.auto_compaction, host.now()),
            logger=logger,
            timeout_s=request_timeout_s,
        )
        self._more_tasks = False
        self._flusher = Flusher(database, logger, host.run_aside, config.snapshot_count)
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
        members = self._membership.state().SerializeToString()
        links.send_control(Process.RAFT, Kind.APPLIED, APPLIED.pack(cursor.index, cursor.term) + members)
        self._tell_members()
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
        if self._read_index.waiting and (due_at := self._read_index.due_at) is not None:
            until = min(until, due_at)
        if self._has_progress:
            until = min(until, self._progress_at)
        return max(0.0, until - now)

    def turn(self, arrivals: Arrivals) -> None:
        """Does what arrived, and what the time asks for."""
        now = self._now()
        self._host.beat(now)
        for frame in arrivals.control:
            self._on_control(frame, now)
        for frame in arrivals.data:
            if frame.kind == Kind.ENTRIES:
                self._entries.append(frame)
            elif frame.kind == Kind.READS:
                self._reads.on_frame(frame)
            elif frame.kind == Kind.FORWARDS:
                self._on_forwards(frame)
            else:
                assert frame.kind == Kind.REPLIES, f"apply got a frame of kind {frame.kind}"
                self._on_refused(frame)
        if self._read_index.waiting:
            self._ask_index(now)
        if self._entries or self._machine.busy or self._uncommitted:
            self._execute(now)
        # Leases granted just now count from here, so what the execution took is never at their expense.
        now = self._now()
        self._lessor.turn(now)
        if not self._leadership.settled:
            self._follow_leadership(now)
        if self._read_index.waiting:
            self._reads.release(self._read_index.ready(self._machine.applied_index))
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
        if self._has_progress and now >= self._progress_at:
            self._tell_progress(now)
        self._outbox.flush()
        self._send_events()

    def _on_control(self, frame: Frame, now: float) -> None:
        kind, data = frame.kind, frame.data
        if kind == Kind.WATCH_ASK:
            self._feed.on_ask(data, HEADER_BYTES)
        elif kind == Kind.CHECKPOINT_ASK:
            self._checkpoints.ask(*CHECKPOINT_ASK.unpack_from(data, HEADER_BYTES))
        elif kind == Kind.STATE_ASK:
            self._links.send_control(frame.sender, Kind.STATE, answer(frame, self._state()))
        elif kind == Kind.READ_INDEX:
            self._read_index.on_index(*READ_INDEX.unpack_from(data, HEADER_BYTES))
        elif kind == Kind.LEADING:
            term, valid_until = LEADING.unpack_from(data, HEADER_BYTES)
            self._leadership.on_confirmed(term, valid_until, now)
            self._reads.leases.retry()
        else:
            assert kind == Kind.LEADERSHIP, f"apply got a control frame of kind {kind}"
            self._on_leadership(frame, now)

    # leadership

    def _on_leadership(self, frame: Frame, now: float) -> None:
        term, leader, catch_up_to, solo = LEADERSHIP.unpack_from(frame.data, HEADER_BYTES)
        self._store.set_term(term)
        returned = self._leadership.on_leadership(term, leader, catch_up_to, solo, now)
        self._reads.fail(self._read_index.on_leadership(term, leader), errors.LEADER_CHANGED)
        self._reads.leases.retry()
        if returned:  # what was asked before is answered from a store that held everything then
            self._links.send_control(Process.RAFT, Kind.GRANT_RETURNED, GRANT_RETURNED.pack(term))

    def _follow_leadership(self, now: float) -> None:
        """More of the log is applied since raft spoke of leadership."""
        leadership, machine = self._leadership, self._machine
        leadership.on_applied(machine.applied_index, machine.applied_term, now)
        if not leadership.settled:
            return
        self._reads.leases.retry()
        if leadership.granted:
            self._reads.release(self._read_index.release())
        if not self._serving:
            self._serving = True
            for front in self._fronts:
                self._links.send_control(front, Kind.SERVING, SERVING.pack(self._store.revision))

    def _ask_index(self, now: float) -> None:
        """Asks raft for a read index, if it is time, for what came in this turn, too; gives up what waited too long."""
        read_index = self._read_index
        due_at = read_index.due_at
        if due_at is not None and now >= due_at:
            self._reads.fail(read_index.expired(now), errors.TIMEOUT)
        number = read_index.ask(now)
        if number is not None:
            self._links.send_control(Process.RAFT, Kind.READ_ASK, READ_ASK.pack(number))

    def _on_forwards(self, frame: Frame) -> None:
        if not self._reads.on_forwards(frame):
            self._logger.warn("dropped what another member forwarded", size=frame.end - frame.start)

    def _tell_members(self) -> None:
        self._members_told = self._membership.changes
        members = self._membership.state().SerializeToString()
        for process in (Process.RAFT, *self._fronts):
            self._links.send_control(process, Kind.MEMBERS, members)

    def _tell_progress(self, now: float) -> None:
        self._has_progress = False
        self._progress_at = now + PROGRESS_S
        self._links.send_control(Process.RAFT, Kind.PROGRESS, PROGRESS.pack(self._machine.applied_index))

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
        self._has_progress = True
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
                    self._own.on_replies(packed, self._now())
                else:
                    self._outbox.add(process, packed)
            self._outbox.flush()
        self._reads.leases.retry()
        if self._members_told != self._membership.changes:
            self._tell_members()
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
                self._own.revoke(lease_id)

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
        self._own.compact(self._store.revision, now, leads=self._leadership.is_primary)
        self._reads.leases.retry()
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

    def _on_refused(self, frame: Frame) -> None:
        """Raft had no room in the log for what apply itself proposed."""
        self._links.consume(frame.sender, frame.kind, frame.end - frame.start)
        self._own.on_replies(split_replies(frame.data), self._now())

    def _raise_no_space(self, reason: str) -> None:
        mine = self._child.member_id
        if self._serving and not any(a.memberID == mine for a in self._alarms.active(AlarmType.NOSPACE)):
            self._own.raise_no_space(reason, self._now())

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
            "metrics": self._figures.snapshot(store, self._machine, self._read_index, self._config.quota_backend_bytes),
        }

    def close(self) -> None:
        """Flushes, so that the next start has nothing to replay, and closes the database."""
        self._host.close()
        with self._host.long_operation("flushing the database"):
            self._reads.close()
            self._checkpoints.close()
            self._flusher.close()
            self._store.close()


def _table(database: Database, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    return database.scan(prefix, bytes((prefix[0] + 1,)))


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
