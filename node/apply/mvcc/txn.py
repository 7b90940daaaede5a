"""Transactions: compares, the checks before the first write, and the operations of the branch taken.

The path through nested transactions is fixed by compares against the state before the whole transaction (behaviour.md
T10); then every operation on it is checked against that same state (T19); only then is anything written, and from there
on nothing can fail.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Final, NamedTuple

from kvorum import errors
from kvorum.errors import ApiError
from kvorum.pb.mvcc_pb2 import KeyValue
from kvorum.pb.rpc_pb2 import Compare, DeleteRangeRequest, PutRequest, RangeRequest, TxnRequest
from node.apply.mvcc.current import Entry
from node.apply.mvcc.keyspace import Change, Keyspace, interval
from node.apply.mvcc.message import INNER_TXN_HEADER, Headers, repeated, varint
from node.apply.mvcc.ranges import range_at_once
from node.apply.mvcc.rows import CURRENT, CURRENT_END

_EQUAL: Final = Compare.CompareResult.EQUAL
_GREATER: Final = Compare.CompareResult.GREATER
_LESS: Final = Compare.CompareResult.LESS
_NOT_EQUAL: Final = Compare.CompareResult.NOT_EQUAL
_VERSION: Final = Compare.CompareTarget.VERSION
_CREATE: Final = Compare.CompareTarget.CREATE
_MOD: Final = Compare.CompareTarget.MOD
_VALUE: Final = Compare.CompareTarget.VALUE
_LEASE: Final = Compare.CompareTarget.LEASE

# What an absent key compares as (T13, T14).
_ABSENT: Final[Entry] = (b"", 0, 0, 0, 0)
# Deleting so few keys, each is looked up alone, for the cache; above, one scan is cheaper.
_LOOK_UPS: Final = 4


class Path(NamedTuple):
    """The branch a transaction takes, nested ones resolved too."""

    succeeded: bool
    steps: "list[PutRequest | RangeRequest | DeleteRangeRequest | Path]"


class Writing:
    """One write transaction: its revision, its next sub revision, and the changes it makes."""

    __slots__ = ("_before", "_keyspace", "changes", "main", "sub")

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace
        self.main = keyspace.revision + 1
        self.sub = 0
        self.changes: list[Change] = []
        # Each key's KeyValue before the transaction: what events of a key written twice show as previous (WE10).
        self._before: dict[bytes, bytes | None] = {}

    def put(self, key: bytes, value: bytes, lease: int) -> Entry | None:
        """Write a key; returns its entry before."""
        kv, previous = self._keyspace.put(key, value, lease, self.main, self.sub)
        self._changed(False, key, kv, previous)
        return previous

    def delete(self, key: bytes, range_end: bytes, *, prev_kv: bool) -> tuple[int, list[bytes]]:
        """Delete a range in key order (D3); returns the number of keys and, when asked, their KeyValues."""
        current = self._keyspace.current
        start, end = interval(key, range_end)
        first, last = current.ranks(start, end)
        if first == last:
            return 0, []
        keys: list[bytes] = current.index[first:last]
        entries = self._entries(keys, CURRENT_END if end is None else CURRENT + end)
        self.delete_entries(keys, entries)
        return len(keys), [entry[0] for entry in entries] if prev_kv else []

    def _entries(self, keys: list[bytes], stop: bytes) -> list[Entry]:
        current = self._keyspace.current
        if len(keys) <= _LOOK_UPS:
            found = [entry for key in keys if (entry := current.get(key)) is not None]
        else:
            kvs = islice(self._keyspace.database.scan_values(CURRENT + keys[0], stop), len(keys))
            found = [entry_of(kv) for kv in kvs]
        assert len(found) == len(keys)
        return found

    def delete_entries(self, keys: list[bytes], entries: list[Entry]) -> None:
        """Delete live keys, given with their entries."""
        for key, entry in zip(keys, entries, strict=True):
            self._changed(True, key, self._keyspace.delete(key, entry, self.main, self.sub), entry)

    def _changed(self, is_delete: bool, key: bytes, kv: bytes, previous: Entry | None) -> None:
        before = self._before.setdefault(key, None if previous is None else previous[0])
        self.changes.append((is_delete, key, kv, before))
        self.sub += 1
        # From the first write on, reads of this transaction show its revision (T25).
        self._keyspace.revision = self.main


def entry_of(kv: bytes) -> Entry:
    """The entry of a live key's KeyValue."""
    parsed = KeyValue.FromString(kv)
    return kv, parsed.create_revision, parsed.mod_revision, parsed.version, parsed.lease


def plan(keyspace: Keyspace, request: TxnRequest) -> Path:
    """Evaluate the compares, and check every operation on the path taken.

    Raises LeaseNotFound or KeyNotFound of the first put that fails, else FutureRev or Compacted of the first range.
    """
    path = _resolve(keyspace, request)
    operations = list(_operations(path))
    for operation in operations:
        if isinstance(operation, PutRequest):
            check_put(keyspace, operation)
    for operation in operations:
        if isinstance(operation, RangeRequest):
            _check_range(keyspace, operation.revision)
    return path


def _resolve(keyspace: Keyspace, request: TxnRequest) -> Path:
    succeeded = all(holds(keyspace, compare) for compare in request.compare)
    steps: list[PutRequest | RangeRequest | DeleteRangeRequest | Path] = []
    for operation in request.success if succeeded else request.failure:
        match operation.WhichOneof("request"):
            case "request_put":
                steps.append(operation.request_put)
            case "request_range":
                steps.append(operation.request_range)
            case "request_delete_range":
                steps.append(operation.request_delete_range)
            case "request_txn":
                steps.append(_resolve(keyspace, operation.request_txn))
            case None:
                raise ApiError(errors.KEY_NOT_FOUND)
    return Path(succeeded, steps)


def _operations(path: Path) -> Iterator[PutRequest | RangeRequest | DeleteRangeRequest]:
    for step in path.steps:
        if isinstance(step, Path):
            yield from _operations(step)
        else:
            yield step


def check_put(keyspace: Keyspace, request: PutRequest) -> None:
    """Raise LeaseNotFound, then KeyNotFound (PU1)."""
    if request.lease and not keyspace.leases.exists(request.lease):
        raise ApiError(errors.LEASE_NOT_FOUND)
    if (request.ignore_value or request.ignore_lease) and keyspace.current.get(request.key) is None:
        raise ApiError(errors.KEY_NOT_FOUND)


def _check_range(keyspace: Keyspace, revision: int) -> None:
    # Unlike in a range of its own, a negative revision is not the current one here but a small one (T22).
    if revision == 0:
        return
    if revision > keyspace.revision:
        raise ApiError(errors.FUTURE_REV)
    if revision < keyspace.compacted_revision:
        raise ApiError(errors.COMPACTED)


def holds(keyspace: Keyspace, compare: Compare) -> bool:
    """Whether a compare holds now; over a range, for every key in it (T13 to T18)."""
    if not compare.range_end:
        entry = keyspace.current.get(compare.key)
        return _entry_holds(compare, entry) if entry is not None else _absent_holds(compare)
    start, end = interval(compare.key, compare.range_end)
    first, last = keyspace.current.ranks(start, end)
    if first == last:
        return _absent_holds(compare)
    stop = CURRENT_END if end is None else CURRENT + end
    kvs = keyspace.database.scan_values(CURRENT + keyspace.current.index[first], stop)
    return all(_entry_holds(compare, entry_of(kv)) for kv in kvs)


def _absent_holds(compare: Compare) -> bool:
    return compare.target != _VALUE and _entry_holds(compare, _ABSENT)


def _entry_holds(compare: Compare, entry: Entry) -> bool:
    # A target of another union member reads as 0 or empty (T16); an unknown target compares as equal (T17).
    target = compare.target
    if target == _VALUE:
        value = KeyValue.FromString(entry[0]).value
        return _result_holds(compare.result, (value > compare.value) - (value < compare.value))
    if target == _MOD:
        difference = entry[2] - compare.mod_revision
    elif target == _VERSION:
        difference = entry[3] - compare.version
    elif target == _CREATE:
        difference = entry[1] - compare.create_revision
    elif target == _LEASE:
        difference = entry[4] - compare.lease
    else:
        difference = 0
    return _result_holds(compare.result, difference)


def _result_holds(result: int, difference: int) -> bool:
    if result == _EQUAL:
        return difference == 0
    if result == _GREATER:
        return difference > 0
    if result == _LESS:
        return difference < 0
    if result == _NOT_EQUAL:
        return difference != 0
    return True  # an unknown result (T17)


def put_values(request: PutRequest, previous: Entry | None) -> tuple[bytes, int]:
    """The value and the lease that a put writes, those it ignores taken from the key as it is (PU2 to PU4).

    A key that an earlier operation of the same transaction deleted has neither.
    """
    value = request.value
    lease = request.lease
    if request.ignore_value:
        value = b"" if previous is None else KeyValue.FromString(previous[0]).value
    if request.ignore_lease:
        lease = 0 if previous is None else previous[4]
    return value, lease


def execute(keyspace: Keyspace, path: Path, writing: Writing) -> bytes:
    """Run the operations of a checked path; returns the TxnResponse without its header."""
    parts = [b"\x10\x01"] if path.succeeded else []
    for step in path.steps:
        if isinstance(step, PutRequest):
            tag, body = b"\x12", _put(keyspace, step, writing)
        elif isinstance(step, RangeRequest):
            tag, body = b"\n", range_at_once(keyspace, step, Headers.inner(keyspace.revision))
        elif isinstance(step, DeleteRangeRequest):
            deleted = delete_body(writing, step)
            tag, body = b"\x1a", Headers.inner(keyspace.revision) + deleted
        else:
            tag, body = b'"', INNER_TXN_HEADER + execute(keyspace, step, writing)
        operation = tag + varint(len(body)) + body
        parts += (b"\x1a", varint(len(operation)), operation)
    return b"".join(parts)


def _put(keyspace: Keyspace, request: PutRequest, writing: Writing) -> bytes:
    key = request.key
    if request.ignore_value or request.ignore_lease:
        value, lease = put_values(request, keyspace.current.get(key))
    else:
        value, lease = request.value, request.lease
    previous = writing.put(key, value, lease)
    return Headers.inner(writing.main) + prev_kv_field(request, previous)


def prev_kv_field(request: PutRequest, previous: Entry | None) -> bytes:
    """Field 2 of a PutResponse: the key before, when asked for and there was one (PU7)."""
    if not request.prev_kv or previous is None:
        return b""
    return b"\x12" + varint(len(previous[0])) + previous[0]


def delete_body(writing: Writing, request: DeleteRangeRequest) -> bytes:
    """Delete, and return the DeleteRangeResponse without its header."""
    deleted, prev_kvs = writing.delete(request.key, request.range_end, prev_kv=request.prev_kv)
    return (b"\x10" + varint(deleted) if deleted else b"") + repeated(b"\x1a", prev_kvs)
