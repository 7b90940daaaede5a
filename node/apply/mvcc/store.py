"""The store as the apply process sees it: requests and replies as the bytes of the API's messages.

Writes execute at once in memory, and readers see them at once; `commit` brings all of them and the cursor to the
database in one atomic write. When that write fails, nothing is lost: the same `commit` can be tried again, and reads
go on meanwhile.
"""

from collections.abc import Iterable
from typing import Final

from kvorum import errors
from kvorum.errors import ApiError
from kvorum.pb.rpc_pb2 import DeleteRangeRequest, PutRequest, RangeRequest, TxnRequest
from node.apply.mvcc.current import Current
from node.apply.mvcc.database import MIB, Cursor, Database, Position
from node.apply.mvcc.keyspace import Event, Keyspace, Leases
from node.apply.mvcc.message import VARINT, Headers, Identity, varint
from node.apply.mvcc.ranges import range_at_once
from node.apply.mvcc.rows import CURRENT, CURRENT_END
from node.apply.mvcc.txn import (
    Writing,
    check_put,
    delete_body,
    execute,
    plan,
    prev_kv_field,
    put_values,
)

CACHE_BYTES: Final = 32 * MIB

# A range of up to so many rows is answered at once: about a millisecond.
_SMALL_ROWS: Final = 1000


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
        self.keyspace = Keyspace(database, Current(database, keys, cache_bytes), leases, -1)
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
        size = len(request)
        # A request with nothing but a short key, and maybe `serializable`, needs no parsing: 1 us of 2.6.
        if size > 2 and request[0] == 10:
            key_size = request[1]
            if key_size < 128 and (key_size == size - 2 or (key_size == size - 4 and request.endswith(b"8\x01"))):
                return self._get(request[2 : 2 + key_size])
        message = RangeRequest.FromString(request)
        return self.header() + range_at_once(self.keyspace, message)

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

    def close(self) -> None:
        """Close the database. Whatever was not committed is gone; raft has it."""
        self.database.close()
