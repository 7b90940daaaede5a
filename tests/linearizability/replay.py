"""The store's states, as its log of revisions gives them, and what a request does to one: the plainest Python there is.

No code of the store is used here, so that the two can be held against each other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kvorum import errors
from kvorum.errors import ApiError
from kvorum.pb.mvcc_pb2 import Event, KeyValue
from kvorum.pb.rpc_pb2 import (
    Compare,
    DeleteRangeRequest,
    DeleteRangeResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    ResponseHeader,
    TxnRequest,
    TxnResponse,
)
from tests.linearizability.history import Revision, one_line

_TARGETS = ("version", "create_revision", "mod_revision", "value", "lease")
_SORT_FIELDS = ("key", "version", "create_revision", "mod_revision", "value")


def contains(key: bytes, range_end: bytes, candidate: bytes) -> bool:
    """Whether the range [key, range_end) of the API holds a key."""
    if not range_end:
        return candidate == key
    return candidate >= key and (range_end == b"\0" or candidate < range_end)


class _Path(NamedTuple):
    """Which branch a transaction takes, and each of those nested in that branch."""

    succeeded: bool
    nested: list[_Path]


class _Versions(NamedTuple):
    revisions: list[int]
    values: list[KeyValue | None]  # None: deleted


class Replay:
    """Every state the store had. `problems` says where the log is none that a store can have made."""

    def __init__(self, revisions: Iterable[Revision]) -> None:
        self.problems: list[str] = []
        self.last = 1
        self._versions: dict[bytes, _Versions] = {}
        self._keys: list[bytes] = []
        self._events: dict[int, tuple[Event, ...]] = {}
        for revision in revisions:
            self._add(revision)
        self._keys = sorted(self._versions)

    def events(self, revision: int) -> tuple[Event, ...]:
        """What a revision changed; nothing for one that is not in the log."""
        return self._events.get(revision, ())

    def at(self, key: bytes, revision: int) -> KeyValue | None:
        """A key's value in the state that a revision left."""
        versions = self._versions.get(key)
        if versions is None:
            return None
        place = bisect_right(versions.revisions, revision)
        return versions.values[place - 1] if place else None

    def within(self, key: bytes, range_end: bytes, revision: int) -> list[KeyValue]:
        """The live keys of a range in the state that a revision left, in order."""
        if not range_end:
            keys: Sequence[bytes] = [key]
        else:
            keys = [candidate for candidate in self._keys if contains(key, range_end, candidate)]
        found = (self.at(candidate, revision) for candidate in keys)
        return [kv for kv in found if kv is not None]

    def attached(self, lease_id: int, revision: int) -> list[bytes]:
        """The keys that hang on a lease in the state that a revision left, sorted."""
        kvs = (self.at(key, revision) for key in self._keys)
        return [kv.key for kv in kvs if kv is not None and kv.lease == lease_id]

    def _add(self, revision: Revision) -> None:
        number, events, _ = revision
        if number != self.last + 1:
            self.problems.append(f"revision {number} follows {self.last} in the log")
        if not events:
            self.problems.append(f"revision {number} changes nothing")
        self.last = number
        self._events[number] = events
        for event in events:
            key = event.kv.key
            before = self.at(key, number - 1)
            problem = _impossible(event, number, before)
            if problem:
                self.problems.append(
                    f"revision {number}: {problem}: {one_line(event)} after {before and one_line(before)}"
                )
            versions = self._versions.setdefault(key, _Versions([], []))
            if versions.revisions and versions.revisions[-1] == number:
                self.problems.append(f"revision {number} changes {key!r} twice")
            versions.revisions.append(number)
            versions.values.append(None if event.type == Event.DELETE else event.kv)


def _impossible(event: Event, number: int, before: KeyValue | None) -> str | None:
    kv = event.kv
    if kv.mod_revision != number:
        return "an event of another revision"
    if event.type == Event.DELETE:
        return "it deletes what is not there" if before is None else None
    expected = (number, 1) if before is None else (before.create_revision, before.version + 1)
    return None if (kv.create_revision, kv.version) == expected else "version or create revision are wrong"


class Execution:
    """One request executed in the state that `revision` left: the events it makes, then at `revision` + 1."""

    def __init__(self, replay: Replay, revision: int) -> None:
        self._replay = replay
        self._revision = revision
        self._changed: dict[bytes, KeyValue | None] = {}
        self.events: list[Event] = []

    @property
    def header(self) -> ResponseHeader:
        """Revision alone: the other fields are those of whoever answers."""
        return ResponseHeader(revision=self._revision + bool(self.events))

    def range(self, request: RangeRequest) -> RangeResponse:
        """Raises FUTURE_REV. What was compacted is not known here."""
        if request.revision > self._revision:
            raise ApiError(errors.FUTURE_REV)
        if request.revision > 0:
            found = self._replay.within(request.key, request.range_end, request.revision)
        else:
            found = self._within(request.key, request.range_end)
        response = RangeResponse(header=self.header, count=len(found))
        if request.count_only:
            return response
        kept = [kv for kv in found if _passes(kv, request)]
        limit = request.limit
        if request.sort_order == RangeRequest.NONE and not _filters(request) and limit > 0:
            kept = kept[: limit + 1]
        name = _SORT_FIELDS[request.sort_target]
        if name != "key" or request.sort_order == RangeRequest.DESCEND:
            kept.sort(key=lambda kv: getattr(kv, name), reverse=request.sort_order == RangeRequest.DESCEND)
        response.more = 0 < limit < len(kept)
        for kv in kept[:limit] if limit > 0 else kept:
            shown = response.kvs.add()
            shown.CopyFrom(kv)
            if request.keys_only:
                shown.ClearField("value")
                if request.sort_target != RangeRequest.VALUE:
                    shown.ClearField("lease")
        return response

    def put(self, request: PutRequest) -> PutResponse:
        """Raises KEY_NOT_FOUND."""
        main = self._revision + 1
        before = self._get(request.key)
        kv = KeyValue(key=request.key, value=request.value, lease=request.lease)
        kv.mod_revision = kv.create_revision = main
        kv.version = 1
        if before is not None:
            kv.create_revision = before.create_revision
            kv.version = before.version + 1
        if request.ignore_value or request.ignore_lease:
            if before is None:
                raise ApiError(errors.KEY_NOT_FOUND)
            kv.value = before.value if request.ignore_value else kv.value
            kv.lease = before.lease if request.ignore_lease else kv.lease
        self._changed[request.key] = kv
        self.events.append(Event(type=Event.PUT, kv=kv))
        return PutResponse(header=self.header, prev_kv=before if request.prev_kv else None)

    def delete_range(self, request: DeleteRangeRequest) -> DeleteRangeResponse:
        """Every key of the range that is there."""
        found = self._within(request.key, request.range_end)
        self.delete([kv.key for kv in found])
        return DeleteRangeResponse(header=self.header, deleted=len(found), prev_kvs=found if request.prev_kv else ())

    def delete(self, keys: Iterable[bytes]) -> None:
        """Those keys, which are there."""
        main = self._revision + 1
        for key in keys:
            self._changed[key] = None
            self.events.append(Event(type=Event.DELETE, kv=KeyValue(key=key, mod_revision=main)))

    def txn(self, request: TxnRequest) -> TxnResponse:
        """All compares first, nested ones too; then the operations. Raises what they raise."""
        response = self._txn(request, self._path(request))
        response.header.CopyFrom(self.header)
        return response

    def _path(self, request: TxnRequest) -> _Path:
        succeeded = all(self._holds(compare) for compare in request.compare)
        operations = request.success if succeeded else request.failure
        nested = [self._path(operation.request_txn) for operation in operations if operation.HasField("request_txn")]
        return _Path(succeeded, nested)

    def _txn(self, request: TxnRequest, path: _Path) -> TxnResponse:
        response = TxnResponse(header=ResponseHeader(), succeeded=path.succeeded)
        nested = iter(path.nested)
        for operation in request.success if path.succeeded else request.failure:
            answer = response.responses.add()
            match operation.WhichOneof("request"):
                case "request_put":
                    answer.response_put.CopyFrom(self.put(operation.request_put))
                case "request_range":
                    answer.response_range.CopyFrom(self.range(operation.request_range))
                case "request_delete_range":
                    answer.response_delete_range.CopyFrom(self.delete_range(operation.request_delete_range))
                case "request_txn":
                    answer.response_txn.CopyFrom(self._txn(operation.request_txn, next(nested)))
        return response

    def _holds(self, compare: Compare) -> bool:
        name = _TARGETS[compare.target]
        found = self._within(compare.key, compare.range_end)
        if not found and name == "value":
            return False
        wanted = getattr(compare, name)
        for kv in found or [KeyValue()]:
            actual = getattr(kv, name)
            held = {
                Compare.EQUAL: actual == wanted,
                Compare.NOT_EQUAL: actual != wanted,
                Compare.GREATER: actual > wanted,
                Compare.LESS: actual < wanted,
            }[compare.result]
            if not held:
                return False
        return True

    def _get(self, key: bytes) -> KeyValue | None:
        return self._changed[key] if key in self._changed else self._replay.at(key, self._revision)

    def _within(self, key: bytes, range_end: bytes) -> list[KeyValue]:
        found = {kv.key: kv for kv in self._replay.within(key, range_end, self._revision)}
        for changed, kv in self._changed.items():
            if contains(key, range_end, changed):
                if kv is None:
                    found.pop(changed, None)
                else:
                    found[changed] = kv
        return [found[key] for key in sorted(found)]


def _filters(request: RangeRequest) -> bool:
    return bool(
        request.min_mod_revision
        or request.max_mod_revision
        or request.min_create_revision
        or request.max_create_revision
    )


def _passes(kv: KeyValue, request: RangeRequest) -> bool:
    return (
        (not request.min_mod_revision or kv.mod_revision >= request.min_mod_revision)
        and (not request.max_mod_revision or kv.mod_revision <= request.max_mod_revision)
        and (not request.min_create_revision or kv.create_revision >= request.min_create_revision)
        and (not request.max_create_revision or kv.create_revision <= request.max_create_revision)
    )
