"""The database under the store, in memory: what RocksDB promises, and at a crash no more than that.

Every write is atomic, and readers see the moment at which they began. RocksDB's own log is off, so a crash leaves what
was flushed, and of the writes since then some first ones (it flushes by itself as well), never a later without an
earlier one. `tests/sim/test_database.py` holds this against the real thing.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from operator import itemgetter
from random import Random
from typing import Any, Protocol

from node.apply.mvcc.database import Cursor, Database, overlay

_Rows = dict[bytes, bytes]
_Write = list[tuple[bytes, bytes | None]]


class _View:
    """Sorted rows that never change."""

    __slots__ = ("keys", "rows")

    def __init__(self, keys: list[bytes], rows: _Rows) -> None:
        self.keys = keys
        self.rows = rows

    def between(self, start: bytes | None, end: bytes | None) -> Iterator[bytes]:
        first = 0 if start is None else bisect_left(self.keys, start)
        last = len(self.keys) if end is None else bisect_left(self.keys, end)
        return islice(self.keys, first, max(first, last))


class _Seeker:
    """A raw iterator of rocksdict."""

    def __init__(self, view: _View) -> None:
        self._view = view
        self._at = -1

    def seek(self, row: bytes) -> None:
        self._at = bisect_left(self._view.keys, row)

    def seek_for_prev(self, row: bytes) -> None:
        self._at = bisect_right(self._view.keys, row) - 1

    def next(self) -> None:
        self._at += 1

    def prev(self) -> None:
        self._at -= 1

    def valid(self) -> bool:
        return 0 <= self._at < len(self._view.keys)

    def key(self) -> bytes:
        return self._view.keys[self._at]

    def value(self) -> bytes:
        return self._view.rows[self._view.keys[self._at]]


class DatabaseFiles:
    """What lies on the disk of one database, and what would after a crash."""

    def __init__(self, rows: _Rows | None = None, *, is_half: bool = False) -> None:
        self.is_half = is_half
        """A removal of it was begun and not finished."""
        self.flushed: _Rows = rows if rows is not None else {}
        self.unflushed: list[_Write] = []
        self.unflushed_bytes = 0

    def crash(self, random: Random) -> DatabaseFiles:
        """What the next process finds."""
        rows = dict(self.flushed)
        for write in self.unflushed[: random.randint(0, len(self.unflushed))]:
            _apply(rows, write)
        return DatabaseFiles(rows, is_half=self.is_half)


def _apply(rows: _Rows, write: _Write) -> None:
    for row, value in write:
        if value is None:
            rows.pop(row, None)
        else:
            rows[row] = value


Put = Callable[[str, DatabaseFiles], None]


class Disk(Protocol):
    """What a database lies on."""

    def before_write(self) -> None:
        """Raises when there is no room, or the member dies here."""

    def after_write(self) -> None:
        """Raises when the member dies here."""


class SimulatedDatabase(Database):
    """`Database` on `DatabaseFiles`: what it makes of rows and batches is the real code, where they lie is not."""

    def __init__(self, files: DatabaseFiles, put: Put | None = None, disk: Disk | None = None) -> None:
        """`put(path, files)` takes the checkpoints that are made."""
        self.files = files
        self._disk = disk
        self._put = put
        self._view = _View(sorted(files.flushed), dict(files.flushed))
        for write in files.unflushed:
            self._change(write)
        self._shared = False
        self._db: Any = self
        self.pending = {}
        self.closed = False
        self.position = self._load_position()

    def _look(self) -> _View:
        """The rows as they are now; the next write leaves them alone."""
        assert not self.closed, "read after it was closed"
        self._shared = True
        return self._view

    # reading

    def get(self, row: bytes) -> bytes | None:
        if row in self.pending:
            return self.pending[row]
        return self._view.rows.get(row)

    def get_many(self, rows: list[bytes]) -> list[bytes | None]:
        return [self.get(row) for row in rows]

    def scan_values(self, start: bytes, end: bytes) -> Iterator[bytes]:
        return map(itemgetter(1), self.scan(start, end))

    def scan_back(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        rows = reversed(list(self.committed(start, end)))
        changed = sorted((item for item in self.pending.items() if start <= item[0] < end), reverse=True)
        return overlay(rows, changed, back=True)

    def committed(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        view = self._look()
        rows = view.rows
        return ((key, rows[key]) for key in view.between(start, end))

    def keys(self, start: bytes, end: bytes) -> Iterator[bytes]:
        return self._look().between(start, end)

    def seeker(self) -> Any:
        return _Seeker(self._look())

    # writing

    def _write(self, rows: Iterable[tuple[bytes, bytes | None]]) -> None:
        assert not self.closed, "written after it was closed"
        if self._disk is not None:
            self._disk.before_write()
        write = list(rows)
        self.files.unflushed.append(write)
        self.files.unflushed_bytes += sum([len(row) + len(value or b"") for row, value in write])
        if self._shared:
            self._shared = False
            self._view = _View(self._view.keys[:], dict(self._view.rows))
        self._change(write)
        if self._disk is not None:
            self._disk.after_write()

    def _change(self, write: _Write) -> None:
        view = self._view
        for row, value in write:
            known = row in view.rows
            if value is not None:
                view.rows[row] = value
                if not known:
                    insort(view.keys, row)
            elif known:
                del view.rows[row]
                del view.keys[bisect_left(view.keys, row)]

    def flush(self) -> Cursor:
        if self._disk is not None:
            self._disk.before_write()
        self.files.flushed = self._look().rows
        self.files.unflushed = []
        self.files.unflushed_bytes = 0
        return self.position.cursor

    def checkpoint(self, path: str) -> None:
        assert self._put is not None
        self._put(path, DatabaseFiles(self._look().rows))

    def defragment(self, start: bytes | None = None, end: bytes | None = None) -> None:
        assert not self.closed

    # figures

    @property
    def size_bytes(self) -> int:
        return 100 * len(self._view.rows)

    @property
    def unflushed_bytes(self) -> int:
        return self.files.unflushed_bytes

    def close(self) -> None:
        self.closed = True
