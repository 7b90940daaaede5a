"""Which version of each key a past revision sees.

A revision shortly before the current one is found by going back: the keys changed since are looked up, all others are
as they are now. Pages of a long list, which all ask for the first page's revision, are read so. Any other revision is
found by a scan of all versions in the range.
"""

from collections.abc import Iterator
from itertools import islice
from operator import itemgetter
from typing import Final, NamedTuple

from kvorum import errors
from kvorum.errors import ApiError
from node.apply.mvcc.database import Database, overlay
from node.apply.mvcc.keyspace import Keyspace
from node.apply.mvcc.message import key_of
from node.apply.mvcc.rows import (
    CURRENT,
    CURRENT_END,
    HISTORY,
    MARK_BYTES,
    VERSIONS_END,
    history_from,
    versions_from,
    versions_of,
)

# Going back reads so many rows of history at most (0.4 us each), and looks up so many keys (10 us each): 3 ms.
BACK_ROWS: Final = 2000
BACK_KEYS: Final = 200
_CHUNK_ROWS: Final = 100


class PastScan:
    """The history rows that were live in [start, end) at revision `at`, in key order, found a slice at a time.

    It reads every version of every key of the range, 0.5 us each, from one consistent view: later writes and
    compactions do not show.
    """

    __slots__ = ("_at", "_best", "_key", "_versions", "rows")

    def __init__(self, database: Database, start: bytes, end: bytes | None, at: int) -> None:
        stop = VERSIONS_END if end is None else versions_from(end)
        first = versions_from(start)
        self._versions: Iterator[tuple[bytes, bytes]] = database.scan(first, stop) if first < stop else iter(())
        # A main revision at or below `at` sorts below this.
        self._at = (at + 1).to_bytes(8, "big")
        self._key = b""
        self._best: bytes | None = None
        self.rows: list[bytes] = []

    def advance(self, count: int) -> bool:
        """Read up to `count` versions; True when `rows` is complete."""
        at = self._at
        key = self._key
        best = self._best
        found = self.rows
        versions = list(islice(self._versions, count))
        for row, tombstone in versions:
            row_key = row[:-MARK_BYTES]
            if row_key != key:
                if best is not None:
                    found.append(best)
                    best = None
                key = row_key
            revision_mark = row[-MARK_BYTES:]
            if revision_mark < at:
                best = None if tombstone else HISTORY + revision_mark
        self._key = key
        self._best = best
        if len(versions) == count:
            return False
        if best is not None:
            found.append(best)
            self._best = None
        return True


def version_at(database: Database, key: bytes, at: int) -> bytes | None:
    """The history row of the version of one key that revision `at` sees; None where it was not live."""
    prefix = versions_of(key)
    for row, tombstone in database.scan_back(prefix, prefix + (at + 1).to_bytes(8, "big")):
        return None if tombstone else HISTORY + row[-MARK_BYTES:]
    return None


def values_of(database: Database, rows: list[bytes]) -> Iterator[bytes]:
    """The KeyValues of history rows. Raises Compacted where one is gone: the compaction came after the scan."""
    for first in range(0, len(rows), _CHUNK_ROWS):
        for kv in database.get_many(rows[first : first + _CHUNK_ROWS]):
            if kv is None:
                raise ApiError(errors.COMPACTED)
            yield kv


class Rewound(NamedTuple):
    """A range of the current table and how it was at a past revision: rows to lay over it, and the live keys then."""

    start: bytes
    end: bytes
    changed: list[tuple[bytes, bytes | None]]
    live_keys: int

    def values(self, database: Database, *, back: bool) -> Iterator[bytes]:
        """The KeyValues in key order, or `back`; the view is that of the call."""
        if back:
            rows = overlay(database.scan_back(self.start, self.end), self.changed[::-1], back=True)
        elif self.changed:
            rows = overlay(database.scan(self.start, self.end), self.changed)
        else:
            return database.scan_values(self.start, self.end)
        return map(itemgetter(1), rows)


def rewind(keyspace: Keyspace, start: bytes, end: bytes | None, at: int) -> Rewound | None:
    """[start, end) at revision `at`, which is not compacted; None when too much has happened since."""
    database = keyspace.database
    changed: dict[bytes, bytes | None] = {}
    since = database.scan(history_from(at + 1), history_from(keyspace.revision + 1))
    rows = list(islice(since, BACK_ROWS + 1))
    if len(rows) > BACK_ROWS:
        return None
    for _, kv in rows:
        key = key_of(kv)
        if key >= start and (end is None or key < end):
            changed[key] = None
    if len(changed) > BACK_KEYS:
        return None
    first, last = keyspace.current.ranks(start, end)
    live = last - first
    index = keyspace.current.index
    for key in changed:
        row = version_at(database, key, at)
        if row is not None:
            changed[key] = database.get(row)
            live += 1
        live -= key in index
    return Rewound(
        CURRENT + start,
        CURRENT_END if end is None else CURRENT + max(start, end),
        sorted((CURRENT + key, kv) for key, kv in changed.items()),
        live,
    )
