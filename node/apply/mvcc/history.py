"""Past events for watchers that catch up: whole revisions, a slice at a time."""

from bisect import bisect_right
from collections.abc import Iterable
from typing import Final

from kvorum import errors
from kvorum.errors import ApiError
from node.apply.mvcc.database import Database
from node.apply.mvcc.keyspace import Change, Event
from node.apply.mvcc.message import deleted_key_value, key_of
from node.apply.mvcc.rows import HISTORY, MARK_BYTES, history_from, main_of, versions_of

# [start, end) of keys, end None when open.
Interval = tuple[bytes, bytes | None]

_TOMBSTONE_ROW_BYTES: Final = 1 + MARK_BYTES + 1


class KeyRanges:
    """A union of key ranges, to ask of many keys whether they lie in it."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, ranges: Iterable[Interval]) -> None:
        self._starts: list[bytes] = []
        self._ends: list[bytes | None] = []
        for start, end in sorted(ranges, key=lambda interval: interval[0]):
            if end is not None and start >= end:
                continue
            if self._starts and ((last := self._ends[-1]) is None or start <= last):
                if last is not None and (end is None or end > last):
                    self._ends[-1] = end
            else:
                self._starts.append(start)
                self._ends.append(end)

    def __contains__(self, key: bytes) -> bool:
        position = bisect_right(self._starts, key) - 1
        if position < 0:
            return False
        end = self._ends[position]
        return end is None or key < end


def read_history(
    database: Database,
    from_revision: int,
    to_revision: int,
    compacted_revision: int,
    *,
    max_rows: int,
    max_bytes: int,
    ranges: KeyRanges | None = None,
    want_prev: bool = False,
) -> tuple[list[Event], int]:
    """The events of [from_revision, to_revision] in `ranges` (None: all), and the last revision they are complete to.

    Whole revisions only: the slice ends after the one with which it has read `max_rows` rows or found `max_bytes` of
    KeyValues. Previous values are those before the event's transaction; one that is compacted is absent (WE10). Raises
    Compacted when `from_revision` lies below the compacted revision.
    """
    if from_revision < compacted_revision:
        raise ApiError(errors.COMPACTED)
    events: list[Event] = []
    changes: list[Change] = []
    # The state before the revision being read, of the keys seen in this slice: None is "not live".
    seen: dict[bytes, bytes | None] = {}
    seen_in_revision: dict[bytes, bytes | None] = {}
    previous = _PreviousValues(database, compacted_revision)
    revision = 0
    rows = 0
    size_bytes = 0
    for row, kv in database.committed(history_from(from_revision), history_from(to_revision + 1)):
        main = main_of(row)
        if main != revision:
            if changes:
                events.append((revision, changes if revision != compacted_revision else _last_of_each(changes)))
                changes = []
            if rows >= max_rows or size_bytes >= max_bytes:
                return events, revision
            seen.update(seen_in_revision)
            seen_in_revision.clear()
            revision = main
        rows += 1
        key = key_of(kv)
        if ranges is not None and key not in ranges:
            continue
        is_delete = len(row) == _TOMBSTONE_ROW_BYTES
        before = None
        if want_prev:
            before = seen[key] if key in seen else previous.before(key, main)
            seen[key] = before
            seen_in_revision[key] = None if is_delete else kv
            size_bytes += len(before or b"")
        size_bytes += len(kv)
        changes.append((is_delete, key, deleted_key_value(key, main) if is_delete else kv, before))
    if changes:
        events.append((revision, changes if revision != compacted_revision else _last_of_each(changes)))
    return events, to_revision


def _last_of_each(changes: list[Change]) -> list[Change]:
    """What a compaction to the revision of these changes leaves of them, whether it has deleted its rows yet or not."""
    last = {change[1]: position for position, change in enumerate(changes)}
    return [change for position, change in enumerate(changes) if last[change[1]] == position]


class _PreviousValues:
    """Looks up the version of a key before a revision, in one view of the database."""

    __slots__ = ("_compacted", "_database", "_seeker")

    def __init__(self, database: Database, compacted_revision: int) -> None:
        self._database = database
        self._seeker = database.seeker()
        self._compacted = compacted_revision

    def before(self, key: bytes, main: int) -> bytes | None:
        if main - 1 < self._compacted:
            return None
        prefix = versions_of(key)
        seeker = self._seeker
        seeker.seek_for_prev(prefix + main.to_bytes(8, "big"))
        if not seeker.valid():
            return None
        version: bytes = seeker.key()
        if not version.startswith(prefix) or seeker.value():
            return None
        return self._database.get(HISTORY + version[-MARK_BYTES:])
