"""What the apply process needs of its surroundings: time, threads and the disk. A simulated cluster gives it others."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, Protocol

from kvorum.lifeline import Lifeline
from kvorum.log import Logger
from node.apply.contents import Contents, read_apart
from node.apply.installed import install, remove_outgoing
from node.apply.lease import Lessor
from node.apply.mvcc.message import Identity
from node.apply.mvcc.store import Store
from node.apply.progress import Progress
from node.apply.space import is_no_space
from node.raft.snapshots.places import Files

RETRY_S: Final = 1.0
"""A database that could not be opened for want of room on the disk is tried again after this."""


class Stopped(Exception):
    """The supervisor said stop before the database could be opened."""


class CannotOpen(Exception):
    """The database cannot be opened; the member must not start."""


class Job(Protocol):
    """Work that runs beside the process's turns; a `threading.Thread` is one."""

    def is_alive(self) -> bool:
        """Whether it has not ended."""

    def join(self) -> None:
        """Waits for its end."""


class Host(Protocol):
    """The surroundings. `now` is monotonic seconds; `working` is entered around work that may take long."""

    now: Callable[[], float]
    working: AbstractContextManager[None]

    def beat(self, now: float) -> None:
        """A turn begins."""

    def long_operation(self, name: str) -> AbstractContextManager[None]:
        """Entered around work that may rightly take many seconds, when no turns are made."""

    def open_store(self, lessor: Lessor, identity: Identity) -> Store:
        """Opens the member's database, or the snapshot that takes its place. Raises Stopped and CannotOpen."""

    def free_bytes(self) -> int:
        """What is left on the disk of the database."""

    def run_aside(self, name: str, work: Callable[[], None]) -> Job:
        """Starts work that must not hold up the turns; it handles its own exceptions."""

    def read_checkpoint(self, path: str) -> Contents:
        """What a checkpoint holds; called aside, and may take long. Raises CheckpointError."""

    def close(self) -> None:
        """No more turns are made."""


class ProcessHost:
    """The surroundings of a real process."""

    def __init__(self, db_path: str, snap_path: str, lifeline: Lifeline, logger: Logger) -> None:
        self.now: Callable[[], float] = time.monotonic
        self.working: AbstractContextManager[None] = Progress(lifeline)
        self.beat: Callable[[float], None] = lifeline.beat
        self.long_operation: Callable[[str], AbstractContextManager[None]] = lifeline.long_operation
        self._progress = self.working
        self.read_checkpoint: Callable[[str], Contents] = read_apart
        self._db_path = db_path
        self._snap_path = snap_path
        self._lifeline = lifeline
        self._logger = logger

    def open_store(self, lessor: Lessor, identity: Identity) -> Store:
        """See Host. With a full disk it waits."""
        with self._lifeline.long_operation("opening the database"):
            installed = self._install()
            store = self._open(lessor, identity)
        index = store.cursor.index
        if installed is not None and index != installed:
            store.close()
            raise CannotOpen(f"{self._db_path}: the snapshot of entry {installed} holds entry {index} instead")
        return store

    def _open(self, lessor: Lessor, identity: Identity) -> Store:
        while True:
            try:
                return Store.open(self._db_path, lessor, identity)
            except Exception as error:
                if not is_no_space(error):
                    raise CannotOpen(f"cannot open the database {self._db_path}: {error}") from error
                self._logger.error("cannot open the database, trying again", error=str(error))
            select.select([self._lifeline], [], [], RETRY_S)
            if self._lifeline.stop_requested():
                raise Stopped

    def _install(self) -> int | None:
        files = Files()
        try:
            remove_outgoing(self._snap_path, files)
            installed = install(self._db_path, self._snap_path, files)
        except OSError as error:
            raise CannotOpen(f"cannot install a snapshot: {error}") from error
        if installed is not None:
            self._logger.info("installed a snapshot from the leader", snapshot_index=installed)
        return installed

    def free_bytes(self) -> int:
        """See Host."""
        disk = os.statvfs(self._db_path)
        return disk.f_bavail * disk.f_frsize

    def run_aside(self, name: str, work: Callable[[], None]) -> Job:
        """See Host."""
        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        """See Host."""
        self._progress.close()
