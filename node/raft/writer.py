"""What the consensus core wants on disk, in the order it wants it, and what it may say once it is there.

A sole voter waits for its disk in place: nothing could be done meanwhile, and what arrives gathers in the inbox. In a
cluster the wait happens in a thread, while the followers' disks work too; what is written meanwhile shares the next
wait. Without room for another segment the work stays here, unanswered, and is tried again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from kvorum.log import Logger
from node import stats
from node.raft.core.change import encode_conf_state
from node.raft.core.messages import ConfState, Entry, HardState, Message, Snapshot
from node.raft.wal.errors import LogFull
from node.raft.wal.log import WriteAheadLog
from node.raft.wal.record import Snapshot as SnapshotRecord

SLOW_SYNC_S: Final = 1.0

MAX_RESPONSES: Final = 100
"""What waits to be said beside work that finds no room."""

RETRY_S: Final = 0.5
"""What found no room in the log is tried again after this."""


class Disk(Protocol):
    """What runs aside of the loop."""

    def sync(self, done: Callable[[BaseException | None], None]) -> None:
        """`WriteAheadLog.sync` in a thread; then `done` in the loop."""

    def run(self, work: Callable[[], None]) -> None:
        """Slow work on files that the log does not wait for. What it raises is logged."""


class LogWriter:
    """Does the core's STORAGE_APPEND work. `deliver` takes the responses; `installed` a snapshot that is recorded."""

    def __init__(
        self,
        log: WriteAheadLog,
        disk: Disk,
        deliver: Callable[[Sequence[Message]], None],
        installed: Callable[[Snapshot], None],
        logger: Logger,
    ) -> None:
        self._log = log
        self._disk = disk
        self._deliver = deliver
        self._installed = installed
        self._logger = logger
        self._work: deque[Message] = deque()  # in order, the first one without room in the log
        self._responses: list[Message] = []  # for when what was written last is on disk
        self._snapshot: Snapshot | None = None
        self._unsynced = False
        self._commit = 0  # known, and not in the log
        self._kept_commit = log.hard_state.commit  # sure to be on disk: that which a log begins with is
        self._retry_at = 0.0
        self._segments = 0
        self.waits_inline = False
        """Whether this member is the only voter."""
        self.syncing = False
        """A thread waits for the disk."""
        self.written_bytes = 0
        self.fsync_s = stats.histogram("etcd_disk_wal_fsync_duration_seconds")
        self.write_s = stats.histogram("etcd_disk_wal_write_duration_seconds")
        self._snapshot_encoding_s = stats.histogram("etcd_debugging_snap_save_marshalling_duration_seconds")
        self._snapshot_fsync_s = stats.histogram("etcd_snap_fsync_duration_seconds")
        self._snapshot_s = stats.histogram("etcd_debugging_snap_save_total_duration_seconds")

    def figures(self) -> stats.Figures:
        """What is published of the log's disk."""
        return {
            "etcd_disk_wal_fsync_duration_seconds": self.fsync_s.snapshot(),
            "etcd_disk_wal_write_duration_seconds": self.write_s.snapshot(),
            "etcd_disk_wal_write_bytes_total": self.written_bytes,
            "etcd_debugging_snap_save_marshalling_duration_seconds": self._snapshot_encoding_s.snapshot(),
            "etcd_snap_fsync_duration_seconds": self._snapshot_fsync_s.snapshot(),
            "etcd_debugging_snap_save_total_duration_seconds": self._snapshot_s.snapshot(),
        }

    @property
    def stalled(self) -> bool:
        """There is no room for the log."""
        return bool(self._work)

    def room_for(self, size_bytes: int) -> bool:
        """Whether so much can be written, if need be in a new segment, which is made here then."""
        if self._work:
            return False
        try:
            self._log.reserve(size_bytes)
        except LogFull as error:
            self._logger.error("there is no room for the log", error=str(error))
            return False
        return True

    def write(self, work: Message) -> None:
        """One STORAGE_APPEND."""
        if self._work:
            promised = next((each for each in reversed(self._work) if each.term), None)
            vote = self._log.hard_state[:2] if promised is None else (promised.term, promised.vote)
            if work.entries or work.snapshot is not None or (work.term and (work.term, work.vote) != vote):
                self._work.append(work)
            else:  # only something to say, each time a heartbeat is answered: it waits with what is last
                last = self._work[-1]
                last.responses = _latest([*last.responses, *work.responses])
        elif not self._append(work):
            self._work.append(work)

    def write_alone(self, entries: Sequence[Entry]) -> None:
        """Entries of a sole voter, on disk on return. Raises LogFull, with nothing changed."""
        assert not self._work and not self.syncing
        began = time.perf_counter()
        self.written_bytes += self._log.append(entries)
        appended = time.perf_counter()
        self._log.sync()
        self.fsync_s.observe(time.perf_counter() - appended)
        self.write_s.observe(appended - began)
        self._commit = entries[-1][1]
        self._look_at_segments()

    def write_snapshot(self, index: int, term: int, state: ConfState) -> None:
        """The store is on disk up to an entry, at which the configuration was `state`; on disk on return.

        Raises LogFull, with nothing changed.
        """
        began = time.perf_counter()
        record = SnapshotRecord(index, term, encode_conf_state(state))
        encoded = time.perf_counter()
        self.written_bytes += self._log.append_snapshot(record)
        written = time.perf_counter()
        self._log.sync()
        ended = time.perf_counter()
        self.fsync_s.observe(ended - written)
        self._snapshot_encoding_s.observe(encoded - began)
        self._snapshot_fsync_s.observe(ended - written)
        self._snapshot_s.observe(ended - began)

    def keep_commit(self, index: int) -> bool:
        """Entries up to `index`, which the log has on disk, are committed: that is on disk, too, on return.

        False when there is no room for it; try again.
        """
        if index <= self._kept_commit:
            return True
        log = self._log
        term, vote, commit = log.hard_state
        try:
            if index > commit:
                self.written_bytes += log.append((), HardState(term, vote, index))
        except LogFull as error:
            self._logger.error("there is no room for the log, trying again", error=str(error))
            return False
        began = time.perf_counter()
        log.sync()
        self.fsync_s.observe(time.perf_counter() - began)
        self._kept_commit = index
        return True

    def tick(self, now: float) -> None:
        """There may be room again; and a commit index is written now and then, though nobody waits for it."""
        if self._work and now >= self._retry_at:
            self._retry_at = now + RETRY_S
            while self._work and self._append(self._work[0]):
                self._work.popleft()
        if self._commit and not self._work:
            self._keep_commit()

    def _keep_commit(self) -> None:
        term, vote, commit = self._log.hard_state
        if self._commit > commit:
            try:
                self.written_bytes += self._log.append((), HardState(term, vote, self._commit))
            except LogFull:
                return  # it is only for whoever has nothing else to begin with
        self._commit = 0

    def _append(self, work: Message) -> bool:
        log = self._log
        began = time.perf_counter()
        state: HardState | None = None
        if work.term:
            if (work.term, work.vote) == log.hard_state[:2]:
                # Alone it is no news that a member needs after a crash: apply knows how far it came, the leader knows
                # the rest. Written for each batch it would double what a put costs the log.
                self._commit = work.commit
            else:
                state = HardState(work.term, work.vote, work.commit)
        try:
            if work.snapshot is not None:
                snapshot = work.snapshot
                conf_state = encode_conf_state(snapshot.conf_state)
                self.written_bytes += log.append_snapshot(SnapshotRecord(snapshot.index, snapshot.term, conf_state))
                self._snapshot = snapshot
                self._unsynced = True
            if work.entries or state is not None:
                self.written_bytes += log.append(work.entries, state)
                self._unsynced = True
                self.write_s.observe(time.perf_counter() - began)
        except LogFull as error:
            self._logger.error("there is no room for the log, trying again", error=str(error))
            return False
        self._look_at_segments()
        if not self._unsynced and not self.syncing:
            self._deliver(work.responses)
            return True
        self._responses += work.responses  # behind those that wait
        if not self.syncing:
            self._begin_sync()
        return True

    def _look_at_segments(self) -> None:
        if self._log.segment_count != self._segments:
            self._segments = self._log.segment_count
            self._disk.run(self._log.prepare_segment)

    def _begin_sync(self) -> None:
        self._unsynced = False
        if self.waits_inline:
            began = time.perf_counter()
            self._log.sync()
            self.fsync_s.observe(time.perf_counter() - began)
            self._finish(self._take())
            return
        self.syncing = True
        began = time.perf_counter()
        waiting = self._take()

        def done(error: BaseException | None) -> None:
            if error is not None:
                raise error
            took_s = time.perf_counter() - began
            self.fsync_s.observe(took_s)
            if took_s > SLOW_SYNC_S:
                self._logger.warn("slow fdatasync", took=f"{took_s:.3f}s", expected_duration=f"{SLOW_SYNC_S:g}s")
            self.syncing = False
            if not self._unsynced:
                later = self._take()  # came meanwhile, and had nothing to sync
                self._finish((waiting[0] + later[0], waiting[1] or later[1]))
            elif self.waits_inline:  # the others left the cluster meanwhile
                self._finish(waiting)
                if self._unsynced and not self.syncing:
                    self._begin_sync()
            else:
                self._begin_sync()
                self._finish(waiting)

        self._disk.sync(done)

    def _take(self) -> tuple[list[Message], Snapshot | None]:
        taken = self._responses, self._snapshot
        self._responses, self._snapshot = [], None
        return taken

    def _finish(self, waiting: tuple[list[Message], Snapshot | None]) -> None:
        responses, snapshot = waiting
        if snapshot is not None:
            self._installed(snapshot)
        if responses:
            self._deliver(responses)


def _latest(responses: list[Message]) -> list[Message]:
    """What waits to be said, without what is long overtaken: each answer says what those before it said, and more."""
    old, new = responses[:-MAX_RESPONSES], responses[-MAX_RESPONSES:]
    return [response for response in old if response.snapshot is not None] + new
