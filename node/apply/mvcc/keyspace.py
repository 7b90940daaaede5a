"""The keys and their versions: what every part of the store reads, and the two writes it knows."""

from typing import Final, Protocol

from node.apply.mvcc.current import Current, Entry
from node.apply.mvcc.database import Database
from node.apply.mvcc.message import deleted_key_value, key_value, tombstone
from node.apply.mvcc.rows import CURRENT, HISTORY, TOMBSTONE, mark, versions_of

# One change, as the watch process wants it: whether it is a deletion, the key, the KeyValue of the event, and the
# KeyValue before the whole transaction or None. A plain tuple: one is made for every put.
Change = tuple[bool, bytes, bytes, bytes | None]
# All changes of one revision, in order.
Event = tuple[int, list[Change]]

NEVER_COMPACTED: Final = -1

# The bytes of a history row's key, and of a version row's key beside the user key.
_HISTORY_KEY_BYTES: Final = 18
_VERSION_KEY_BYTES: Final = 20


class Leases(Protocol):
    """What the store asks of the leases. It calls `attach` and `detach` while it executes, in the log's order."""

    def exists(self, lease_id: int) -> bool:
        """Whether a put may name the lease."""

    def attach(self, key: bytes, lease_id: int) -> None:
        """The key belongs to the lease from now on."""

    def detach(self, key: bytes, lease_id: int) -> None:
        """The key, attached to the lease until now, has left it."""


class Keyspace:
    """Live keys and history over one database, with the batch that is being built.

    `revision` is that of the last change executed, whether committed or not; `committed_revision` that of the last
    commit. History up to `compacted_revision` may be gone.
    """

    __slots__ = ("committed_revision", "compacted_revision", "current", "database", "leases", "revision", "row_bytes")

    def __init__(self, database: Database, current: Current, leases: Leases, compacted_revision: int) -> None:
        self.database = database
        self.current = current
        self.leases = leases
        self.revision = database.position.revision
        self.committed_revision = self.revision
        self.row_bytes = database.position.row_bytes
        self.compacted_revision = compacted_revision

    def put(self, key: bytes, value: bytes, lease: int, main: int, sub: int) -> tuple[bytes, Entry | None]:
        """Write one version of a key at (main, sub); returns its KeyValue and the entry before."""
        current = self.current
        previous = current.get(key)
        if previous is None:
            create_revision = main
            version = 1
            old_lease = 0
        else:
            _, create_revision, _, version, old_lease = previous
            version += 1
            self.row_bytes -= len(previous[0])
        kv = key_value(key, create_revision, main, version, value, lease)
        current.put(key, (kv, create_revision, main, version, lease))
        revision_mark = mark(main, sub)
        pending = self.database.pending
        pending[HISTORY + revision_mark] = kv
        pending[CURRENT + key] = kv
        pending[versions_of(key) + revision_mark] = b""
        # A zero byte in a key is escaped to two; one too few in a size estimate does not matter here.
        self.row_bytes += 2 * len(kv) + len(key) + (_HISTORY_KEY_BYTES + _VERSION_KEY_BYTES)
        if previous is None:
            self.row_bytes += len(key) + 1
        if old_lease != lease:
            if old_lease:
                self.leases.detach(key, old_lease)
            if lease:
                self.leases.attach(key, lease)
        return kv, previous

    def delete(self, key: bytes, previous: Entry, main: int, sub: int) -> bytes:
        """Delete a live key at (main, sub), `previous` being its entry. Returns the KeyValue of the event."""
        self.current.delete(key)
        revision_mark = mark(main, sub)
        kv = tombstone(key)
        pending = self.database.pending
        pending[HISTORY + revision_mark + TOMBSTONE] = kv
        pending[CURRENT + key] = None
        pending[versions_of(key) + revision_mark] = TOMBSTONE
        self.row_bytes += len(kv) + _HISTORY_KEY_BYTES + _VERSION_KEY_BYTES + 2 - len(previous[0]) - 1
        if previous[4]:
            self.leases.detach(key, previous[4])
        return deleted_key_value(key, main)


def interval(key: bytes, range_end: bytes) -> tuple[bytes, bytes | None]:
    """A request's key and range_end as [start, end), end None when open (behaviour.md P8)."""
    if not range_end:
        return key, key + b"\0"
    if range_end == b"\0":
        return key, None
    return key, range_end
