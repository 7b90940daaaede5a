"""Compaction: what a compacted revision lets go is deleted in slices, in the background.

A version is let go when a later one of its key stands at or below the compacted revision; a tombstone below it, too,
but not one exactly at it (behaviour.md C4, C5). Each such version has its successor among the rows written since the
compaction before, so a compaction walks those and looks up each one's predecessor: its cost is that of the writes
since, not of the store.
"""

from collections import deque
from struct import Struct
from typing import Final, NamedTuple

from node.apply.mvcc.database import Database
from node.apply.mvcc.hashing import HashRun, KeyValueHash
from node.apply.mvcc.message import key_of
from node.apply.mvcc.rows import (
    COMPACTION_FINISHED,
    COMPACTION_SCHEDULED,
    HISTORY,
    MARK_BYTES,
    history_from,
    main_of,
    versions_of,
)

# The hashes kept, and the compactions that wait: beyond, the newest takes the place of the one before it.
_HASHES: Final = 10
_WAITING: Final = 16

_SCHEDULED: Final = Struct(">q")
_FINISHED: Final = Struct(">qQ")


class _Target(NamedTuple):
    revision: int
    compacted_before: int
    hashed: bool


class Compaction:
    """The compactions of one database, one after the other; those found scheduled at start are resumed (C8).

    `compacted_revision` is the one scheduled last (-1: none), `finished_revision` the last whose rows are gone.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        scheduled = database.get(COMPACTION_SCHEDULED)
        finished = database.get(COMPACTION_FINISHED)
        self.compacted_revision: int = -1 if scheduled is None else _SCHEDULED.unpack(scheduled)[0]
        self.finished_revision: int
        self.freed_bytes: int
        self.finished_revision, self.freed_bytes = (-1, 0) if finished is None else _FINISHED.unpack(finished)
        self._waiting: deque[_Target] = deque()
        self._hash_run: HashRun | None = None
        self._position: bytes | None = None
        self._hashes: list[KeyValueHash] = []
        if self.compacted_revision > self.finished_revision:
            # An interrupted compaction leaves no hash (H9).
            self._waiting.append(_Target(self.compacted_revision, self.finished_revision, hashed=False))

    def schedule(self, revision: int) -> None:
        """Compact to `revision`; the mark becomes part of the batch being built."""
        assert revision > self.compacted_revision
        before = self.compacted_revision
        if len(self._waiting) == _WAITING:
            self._waiting.pop()
        self._waiting.append(_Target(revision, before, hashed=True))
        self._database.pending[COMPACTION_SCHEDULED] = _SCHEDULED.pack(revision)
        self.compacted_revision = revision

    @property
    def idle(self) -> bool:
        """Whether nothing is scheduled that is not finished."""
        return not self._waiting

    def hash_of(self, revision: int) -> KeyValueHash | None:
        """The hash taken when the store was compacted to `revision`, if it is one of the last ten since start (H8)."""
        return next((stored for stored in self._hashes if stored.revision == revision), None)

    def step(self, rows: int) -> bool:
        """Do one slice of about `rows` rows, 12 us each, with one write of its own; True when idle.

        Does nothing while the batch that scheduled it is not committed. Raises the database's error; the slice is then
        repeated by the next call.
        """
        if not self._waiting or COMPACTION_SCHEDULED in self._database.pending:
            return not self._waiting
        target = self._waiting[0]
        if target.hashed and self._position is None:
            if self._hash_run is None:
                self._hash_run = HashRun(self._database, target.revision, target.compacted_before)
            if not self._hash_run.step(rows):
                return False
        if self._position is None:
            # Rows at the finished revision, too: a tombstone there was kept until now.
            self._position = history_from(max(self.finished_revision, 0))
        if self._delete_slice(target, rows):
            self._finish(target)
        return not self._waiting

    def release(self) -> None:
        """Let go of the view of the database that a hash in progress holds; it begins anew with the next step."""
        self._hash_run = None

    def _delete_slice(self, target: _Target, count: int) -> bool:
        assert self._position is not None
        database = self._database
        seeker = database.seeker()
        deleted: dict[bytes, bytes | None] = {}
        freed_bytes = 0
        predecessors: list[bytes] = []
        row = b""
        walked = 0
        for row, kv in database.committed(self._position, history_from(target.revision + 1)):
            walked += 1
            prefix = versions_of(key_of(kv))
            version = prefix + row[1 : 1 + MARK_BYTES]
            if len(row) > 1 + MARK_BYTES and main_of(row) < target.revision:
                deleted[row] = deleted[version] = None
                freed_bytes += len(row) + len(kv) + len(version) + 1
            seeker.seek(version)
            assert seeker.valid(), f"a history row without its version row: {row!r}"
            seeker.prev()
            if seeker.valid() and seeker.key().startswith(prefix):
                predecessor: bytes = seeker.key()
                tombstone: bytes = seeker.value()
                history_row = HISTORY + predecessor[-MARK_BYTES:] + tombstone
                if predecessor not in deleted:
                    deleted[predecessor] = deleted[history_row] = None
                    freed_bytes += len(predecessor) + len(tombstone) + len(history_row)
                    predecessors.append(history_row)
            if walked == count:
                break
        freed_bytes += sum(len(kv) for kv in database.get_many(predecessors) if kv is not None)
        if deleted:
            deleted[COMPACTION_FINISHED] = _FINISHED.pack(self.finished_revision, self.freed_bytes + freed_bytes)
            database.write_apart(deleted.items())
            self.freed_bytes += freed_bytes
        self._position = row + b"\0" if row else self._position
        return walked < count

    def _finish(self, target: _Target) -> None:
        self._database.write_apart([(COMPACTION_FINISHED, _FINISHED.pack(target.revision, self.freed_bytes))])
        if self._hash_run is not None:
            self._hashes.append(self._hash_run.result)
            del self._hashes[:-_HASHES]
        self._waiting.popleft()
        self._hash_run = None
        self._position = None
        self.finished_revision = target.revision
