"""The store as the apply process sees it: requests and replies as the bytes of the API's messages.

Writes execute at once in memory, and readers see them at once; `commit` brings all of them and the cursor to the
database in one atomic write. When that write fails, nothing is lost: the same `commit` can be tried again, and reads
go on meanwhile.
"""

from collections.abc import Iterable
from typing import Final

from kvorum import errors
from kvorum.errors import ApiError
from kvorum.pb.rpc_pb2 import (
    CompactionRequest,
    DeleteRangeRequest,
    HashKVRequest,
    PutRequest,
    RangeRequest,
    TxnRequest,
)
from node.apply.mvcc.compaction import Compaction
from node.apply.mvcc.current import Current
from node.apply.mvcc.database import MIB, Cursor, Database, Position
from node.apply.mvcc.hashing import HashRun, StorageHash
from node.apply.mvcc.history import KeyRanges, read_history
from node.apply.mvcc.keyspace import Event, Keyspace, Leases
from node.apply.mvcc.message import VARINT, Headers, Identity, varint
from node.apply.mvcc.ranges import ALL_ROWS, RangeRead, range_at_once
from node.apply.mvcc.reading import Reading
from node.apply.mvcc.rows import CURRENT, CURRENT_END
from node.apply.mvcc.stream import RangeStream
from node.apply.mvcc.txn import (
    Writing,
    check_put,
    delete_body,
    execute,
    plan,
    prev_kv_field,
    put_values,
)
from node.check import check_range

__all__ = ["Reading", "Store"]

CACHE_BYTES: Final = 32 * MIB

# A range of up to so many rows is answered at once: about a millisecond.
SMALL_ROWS: Final = 1000


class _Hashing(Reading):
    """A checksum: steps `run` until it is done, then takes the body from it."""

    __slots__ = ("_header", "_run")

    def __init__(self, header: bytes, run: HashRun | StorageHash) -> None:
        self._header = header
        self._run = run

    def step(self, rows: int) -> bytes | None:
        return self._header + self._run.body() if self._run.step(rows) else None


class _Ready(Reading):
    """A reply that is there already."""

    __slots__ = ("_reply",)

    def __init__(self, reply: bytes) -> None:
        self._reply = reply

    def step(self, rows: int) -> bytes | None:
        return self._reply


class Store:
    """The multi-version store over one database.

    The requests were checked (`node.check`); what can still fail raises `ApiError` before anything is written.
    """

    def __init__(
        self, database: Database, leases: Leases, identity: Identity, *, cache_bytes: int = CACHE_BYTES
    ) -> None:
        """Load the index of live keys: 0.3 us a key."""
        self.database = database
        keys = [row[1:] for row in database.keys(CURRENT, CURRENT_END)]
        self.compaction = Compaction(database)
        self.keyspace = Keyspace(
            database, Current(database, keys, cache_bytes), leases, self.compaction.compacted_revision
        )
        self.cursor = database.position.cursor
        self._headers = Headers(identity)
        self._events: list[Event] = []

    @classmethod
    def open(cls, path: str, leases: Leases, identity: Identity) -> "Store":
        """Open the database at `path`, creating it when there is none."""
        return cls(Database(path), leases, identity)

    @property
    def revision(self) -> int:
        """That of the last change executed; 1 is the empty store."""
        return self.keyspace.revision

    @property
    def compacted_revision(self) -> int:
        """Below it nothing can be read; -1 before the first compaction."""
        return self.keyspace.compacted_revision

    def set_term(self, raft_term: int) -> None:
        """From now on headers carry this term."""
        self._headers = Headers(self._headers.identity._replace(raft_term=raft_term))

    def header(self, revision: int | None = None) -> bytes:
        """Field 1 of a reply, with the current revision by default."""
        return self._headers.full(self.keyspace.revision if revision is None else revision)

    # --- writes ------------------------------------------------------------------------------------------------------

    def put(self, request: bytes) -> bytes:
        """PutRequest to PutResponse. Raises LeaseNotFound, KeyNotFound."""
        message = PutRequest.FromString(request)
        keyspace = self.keyspace
        key = message.key
        lease = message.lease
        if message.ignore_value or message.ignore_lease:
            check_put(keyspace, message)
            value, lease = put_values(message, keyspace.current.get(key))
        else:
            if lease and not keyspace.leases.exists(lease):
                raise ApiError(errors.LEASE_NOT_FOUND)
            value = message.value
        revision = keyspace.revision + 1
        kv, previous = keyspace.put(key, value, lease, revision, 0)
        keyspace.revision = revision
        self._events.append((revision, [(False, key, kv, None if previous is None else previous[0])]))
        if message.prev_kv:
            return self._headers.full(revision) + prev_kv_field(message, previous)
        return self._headers.full(revision)

    def delete_range(self, request: bytes) -> bytes:
        """DeleteRangeRequest to DeleteRangeResponse."""
        writing = Writing(self.keyspace)
        body = delete_body(writing, DeleteRangeRequest.FromString(request))
        self._finish(writing)
        return self.header() + body

    def txn(self, request: bytes) -> bytes:
        """TxnRequest to TxnResponse, for read-only ones too. Raises what the checks of its path raise, see `plan`."""
        path = plan(self.keyspace, TxnRequest.FromString(request))
        writing = Writing(self.keyspace)
        body = execute(self.keyspace, path, writing)
        self._finish(writing)
        return self.header() + body

    def delete_keys(self, keys: Iterable[bytes]) -> bool:
        """Delete those of the keys that live, as one transaction in the order given; whether there was any.

        For a revoked lease, whose keys come sorted (L20).
        """
        writing = Writing(self.keyspace)
        for key in keys:
            entry = self.keyspace.current.get(key)
            if entry is not None:
                writing.delete_entries([key], [entry])
        self._finish(writing)
        return writing.sub > 0

    def compact(self, request: bytes) -> bytes:
        """CompactionRequest to CompactionResponse, when scheduled; `compaction.step` deletes, later.

        Raises Compacted for a revision at or below the last one, FutureRev for one above the current (C1, C2). A
        physical one is done when `compaction.finished_revision` has reached it (C7).
        """
        revision = CompactionRequest.FromString(request).revision
        if revision <= self.keyspace.compacted_revision:
            raise ApiError(errors.COMPACTED)
        if revision > self.keyspace.revision:
            raise ApiError(errors.FUTURE_REV)
        self.compaction.schedule(revision)
        self.keyspace.compacted_revision = revision
        return self.header()

    def _finish(self, writing: Writing) -> None:
        if writing.changes:
            self._events.append((writing.main, writing.changes))

    def commit(self, cursor: Cursor) -> None:
        """Write everything since the last commit, and the cursor, atomically.

        Raises the database's error; then nothing is lost, and the call can be repeated.
        """
        keyspace = self.keyspace
        self.database.commit(Position(cursor, keyspace.revision, keyspace.row_bytes))
        keyspace.committed_revision = keyspace.revision
        self.cursor = cursor

    def take_events(self) -> list[Event]:
        """The events of every revision since the last call, in order. Take them after `commit`."""
        events = self._events
        self._events = []
        return events

    # --- reads -------------------------------------------------------------------------------------------------------

    def range(self, request: bytes) -> bytes:
        """RangeRequest to RangeResponse, at once. Raises FutureRev, Compacted."""
        key = _lone_key(request)
        if key is not None:
            return self._get(key)
        return range_at_once(self.keyspace, RangeRequest.FromString(request), self.header())

    def _get(self, key: bytes) -> bytes:
        keyspace = self.keyspace
        entry = keyspace.current.get(key)
        if entry is None:
            return self._headers.full(keyspace.revision)
        kv = entry[0]
        size = len(kv)
        return b"".join(
            (
                self._headers.full(keyspace.revision),
                b"\x12",
                VARINT[size] if size < 16384 else varint(size),
                kv,
                b" \x01",
            )
        )

    def begin_range(self, request: bytes) -> bytes | Reading:
        """As `range`, but a long one as a `Reading`, to be stepped while others are served.

        The request need not be checked: raises DecodeError, EmptyKey, InvalidSortOption (P7, R1, R2), too.
        """
        key = _lone_key(request)
        if key is not None:
            return self._get(key)
        message = RangeRequest.FromString(request)
        check_range(message)
        read = RangeRead(self.keyspace, message, self.header())
        if read.rows <= SMALL_ROWS and (response := read.step(ALL_ROWS)) is not None:
            return response
        return read

    def begin_range_stream(self, request: bytes, max_request_bytes: int) -> RangeStream:
        """RangeRequest to RangeStreamResponses, one by one. Raises FutureRev, Compacted."""
        return RangeStream(self.keyspace, self._headers, RangeRequest.FromString(request), max_request_bytes)

    def begin_hash_kv(self, request: bytes) -> Reading:
        """HashKVRequest to HashKVResponse. Raises FutureRev, Compacted (H6)."""
        revision = HashKVRequest.FromString(request).revision
        stored = self.compaction.hash_of(revision) if revision > 0 else None
        if stored is not None:
            return _Ready(self.header() + stored.body())
        if revision > self.keyspace.committed_revision:
            raise ApiError(errors.FUTURE_REV)
        if 0 < revision < self.keyspace.compacted_revision:
            raise ApiError(errors.COMPACTED)
        asked = revision or self.keyspace.committed_revision
        return _Hashing(self.header(), HashRun(self.database, asked, self.keyspace.compacted_revision))

    def begin_hash(self) -> Reading:
        """HashResponse: over the whole storage."""
        return _Hashing(self.header(), StorageHash(self.database))

    def history(
        self,
        from_revision: int,
        *,
        max_rows: int,
        max_bytes: int,
        ranges: KeyRanges | None = None,
        want_prev: bool = False,
    ) -> tuple[list[Event], int]:
        """Past events from `from_revision` on, up to the last commit, as `read_history` says. Raises Compacted."""
        return read_history(
            self.database,
            from_revision,
            self.keyspace.committed_revision,
            self.keyspace.compacted_revision,
            max_rows=max_rows,
            max_bytes=max_bytes,
            ranges=ranges,
            want_prev=want_prev,
        )

    # --- figures -----------------------------------------------------------------------------------------------------

    def sizes(self) -> tuple[int, int]:
        """dbSize and dbSizeInUse in bytes: what the files and memtables hold, and the rows that are not let go."""
        size_bytes = self.database.size_bytes
        return size_bytes, min(size_bytes, self.keyspace.row_bytes - self.compaction.freed_bytes)

    def close(self) -> None:
        """Close the database. Whatever was not committed is gone; raft has it. Drop all readings before."""
        self.compaction.release()
        self.database.close()


def _lone_key(request: bytes) -> bytes | None:
    """The key of a RangeRequest that holds nothing but a short key, and maybe `serializable`.

    Such a request is the commonest of all, and read off its bytes in 0.25 us; parsing and asking for 13 fields costs
    1.2 us.
    """
    size = len(request)
    if size > 2 and request[0] == 10:
        key_size = request[1]
        if 0 < key_size < 128 and (key_size == size - 2 or (key_size == size - 4 and request.endswith(b"8\x01"))):
            return request[2 : 2 + key_size]
    return None
