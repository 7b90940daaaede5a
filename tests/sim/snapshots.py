"""Snapshots of a simulated member: received whole, in one moment, but kept and decided on as the real ones."""

from __future__ import annotations

from collections.abc import Callable

from node.raft.core import Message
from node.raft.driver import Driver
from node.raft.snapshots import places
from tests.sim.clock import Scheduler
from tests.sim.database import DatabaseFiles
from tests.sim.directories import Directories
from tests.sim.worker import Worker


class MemberSnapshots:
    """`ReceivedSnapshots` of the driver, and what stands for the real receiver: one snapshot at a time."""

    def __init__(self, snap_path: str, databases: Directories, worker: Worker, scheduler: Scheduler) -> None:
        self.driver: Driver
        self._snap_path = snap_path
        self._databases = databases
        self._worker = worker
        self._scheduler = scheduler
        self._index = 0  # of the one that waits for the core's word, or was decided on

    # ReceivedSnapshots

    def decide(self, index: int) -> None:
        """See ReceivedSnapshots."""
        assert index == self._index
        places.decide(self._snap_path, index, self._databases)

    def refuse(self, index: int) -> None:
        """See ReceivedSnapshots."""
        assert index == self._index
        self._index = 0
        self._aside(lambda: places.refuse(self._snap_path, index, self._databases))

    def is_decided(self) -> bool:
        """See ReceivedSnapshots."""
        return places.decided(self._snap_path, self._databases) is not None

    def remove(self, path: str) -> None:
        """See ReceivedSnapshots."""
        self._databases.remove(path)

    # Snapshots

    def checkpoint(self, path: str) -> DatabaseFiles:
        """See Snapshots."""
        return DatabaseFiles(dict(self._databases.open(path).flushed))

    def receive(self, message: Message, files: DatabaseFiles) -> bool:
        """See Snapshots."""
        snapshot = message.snapshot
        assert snapshot is not None
        term, commit = self.driver.standing
        if message.term < term or self._index:
            return False
        if snapshot.index <= commit:
            return True
        index = self._index = snapshot.index
        arriving = places.place(self._snap_path, index, places.RECEIVING)
        names = self._databases.names(self._snap_path)
        if index in places.indexes(names, places.RECEIVED):  # one that was refused is not removed yet
            self._index = 0
            return False

        def write() -> None:
            self._databases.remove(arriving)
            self._databases.put(arriving, files)
            places.accept(self._snap_path, index, self._databases)
            self.driver.on_snapshot_received(message)

        self._aside(write)
        return True

    def _aside(self, work: Callable[[], None]) -> None:
        self._scheduler.after(self._scheduler.random.uniform(0.001, 0.2), lambda: self._worker.post(work))
