"""Checkpoints of the store for members that need one: made beside apply's turns, one at a time, when raft asks.

RocksDB makes a checkpoint of hard links and so in milliseconds, but flushes first, and holds Python's lock all the
while (36 ms for a memtable of 20 MiB). So a thread flushes before, without the lock, until little is left.

Writes go on, so only the checkpoint itself knows what it holds: its cursor, and the members as of there. The cursor may
lie inside an entry; the checkpoint then is one of the entry before, and whoever starts from it resumes inside the next
entry, as after a crash.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from kvorum.log import Logger
from node.apply.contents import CheckpointError, Contents
from node.apply.host import Job
from node.apply.mvcc.database import MIB, Cursor
from node.apply.space import RESERVE_BYTES
from node.frames import CHECKPOINT
from node.raft.snapshots.places import OUTGOING, Files

SMALL_BYTES: Final = 2 * MIB
"""A memtable that counts as flushed: an empty one takes some KiB, the first write a MiB."""

FLUSHES_MAX: Final = 5

_TEXT_MAX_BYTES: Final = 2000


class Checkpointed(Protocol):
    """The database."""

    @property
    def unflushed_bytes(self) -> int:
        """What memory alone holds."""

    def flush(self) -> Cursor:
        """Make everything committed durable."""

    def checkpoint(self, path: str) -> None:
        """Hard links of the files at `path`."""


class Checkpoints:
    """What raft asked for, and what became of it. `run_aside`, `read`, `now` and `free_bytes` are `Host`'s."""

    def __init__(
        self,
        database: Checkpointed,
        snap_path: str,
        logger: Logger,
        *,
        run_aside: Callable[[str, Callable[[], None]], Job],
        read: Callable[[str], Contents],
        now: Callable[[], float],
        free_bytes: Callable[[], int],
        took: Callable[[float], None],
    ) -> None:
        """`took` is told how many seconds each has taken."""
        self._database = database
        self._snap_path = snap_path
        self._logger = logger
        self._run_aside = run_aside
        self._now = now
        self._free_bytes = free_bytes
        self._took = took
        self._read = read
        self._number = 0  # of the ask under way
        self._waiting = 0  # of the ask after it; raft has forgotten any between them
        self._job: Job | None = None
        self._answer = b""

    @property
    def busy(self) -> bool:
        """Whether `poll` will have something to say soon."""
        return self._job is not None

    def ask(self, number: int) -> None:
        """Raft needs a checkpoint; begun at once unless one is being made."""
        if self._job is None:
            self._number = number
            self._job = self._run_aside("checkpoint", self._make)
        else:
            self._waiting = number

    def poll(self) -> bytes | None:
        """The payload of a CHECKPOINT frame, once an ask is answered. It never blocks."""
        if self._job is None or self._job.is_alive():
            return None
        self._job.join()
        self._job = None
        answer, self._answer = self._answer, b""
        waiting, self._waiting = self._waiting, 0
        if waiting:
            self.ask(waiting)
        return answer

    def close(self) -> None:
        """Waits for what is under way."""
        if self._job is not None:
            self._job.join()
            self._job = None

    def _make(self) -> None:
        """In a thread of its own, which may not raise."""
        began = self._now()
        path = f"{self._snap_path}/{OUTGOING}{self._number}"
        try:
            self._write(path)
            contents = self._read(path)
        except Exception as error:  # the database names the reason in its text alone
            self._logger.error("cannot make a snapshot for a follower", error=str(error))
            self._answer = self._failure(str(error))
            self._remove(path)
            return
        self._took(self._now() - began)
        name = path.encode()
        head = CHECKPOINT.pack(self._number, contents.index, contents.term, len(name))
        self._answer = head + name + contents.membership

    def _write(self, path: str) -> None:
        database = self._database
        free_bytes = self._free_bytes()
        unflushed_bytes = database.unflushed_bytes
        if free_bytes < unflushed_bytes + RESERVE_BYTES:  # a flush that fails stops all writes for seconds
            raise CheckpointError(f"the disk has {free_bytes} bytes left, and {unflushed_bytes} must be flushed first")
        for _ in range(FLUSHES_MAX):
            database.flush()
            if database.unflushed_bytes <= SMALL_BYTES:
                break
        database.checkpoint(path)

    def _failure(self, text: str) -> bytes:
        reason = text.encode("utf-8", "backslashreplace")[:_TEXT_MAX_BYTES]
        return CHECKPOINT.pack(self._number, 0, 0, len(reason)) + reason

    def _remove(self, path: str) -> None:
        try:
            Files().remove(path)
        except OSError as error:
            self._logger.warn("cannot remove a snapshot that failed", path=path, error=str(error))
