"""Which version of each key a past revision sees."""

from collections.abc import Iterator
from itertools import islice

from node.apply.mvcc.database import Database
from node.apply.mvcc.rows import HISTORY, MARK_BYTES, VERSIONS_END, versions_from, versions_of


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
