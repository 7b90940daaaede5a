"""Requests and replies of the leasing protocol: what is put around a read or a write, and taken off its answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from kvorum.pb.mvcc_pb2 import KeyValue
from kvorum.pb.rpc_pb2 import (
    Compare,
    DeleteRangeRequest,
    DeleteRangeResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RequestOp,
    ResponseOp,
    TxnRequest,
    TxnResponse,
)
from kvorum.ranges import FROM_KEY, end_of_prefix

REVOKE: Final = b"REVOKE"
"""The value by which a writer asks the owner of a leasing key to give it up."""

MAX_GUARDS: Final = 100
"""Keys that are guarded one by one. A member takes 128 comparisons; beyond this many their whole range is guarded."""

Range = tuple[bytes, bytes]
"""(start, end); no end: one key."""


@dataclass(frozen=True, slots=True)
class LeasingKeys:
    """Where leasing keys are: `<namespace><prefix><key without the namespace>`."""

    namespace: bytes
    prefix: bytes

    @property
    def start(self) -> bytes:
        """What all of them begin with."""
        return self.namespace + self.prefix

    @property
    def end(self) -> bytes:
        """The end of their range."""
        return end_of_prefix(self.start)

    def of(self, key: bytes) -> bytes:
        """The leasing key of a key, in the namespace both."""
        return self.start + key[len(self.namespace) :]

    def key(self, leasing_key: bytes) -> bytes:
        """The key of a leasing key."""
        return self.namespace + leasing_key[len(self.start) :]

    def of_range(self, start: bytes, end: bytes) -> Range:
        """The leasing keys of a range of keys."""
        if end == FROM_KEY or (self.namespace and not end.startswith(self.namespace)):
            return self.of(start), self.end
        return self.of(start), self.of(end)

    def is_one(self, key: bytes) -> bool:
        """Whether a key is a leasing key itself: those have no others."""
        return key.startswith(self.start)


def created(leasing_key: bytes, result: Compare.CompareResult, revision: int, end: bytes = b"") -> Compare:
    """A comparison of creation revisions; of all leasing keys of a range when there is an end."""
    return Compare(key=leasing_key, range_end=end, target=Compare.CREATE, result=result, create_revision=revision)


def get(key: bytes, end: bytes = b"") -> RequestOp:
    return RequestOp(request_range=RangeRequest(key=key, range_end=end))


def acquire(key: bytes, leasing_key: bytes, lease: int) -> TxnRequest:
    """Reads the key, and makes the leasing key for `lease` unless there is one, or the key has a lease and may vanish
    by itself."""
    return TxnRequest(
        compare=[
            created(leasing_key, Compare.EQUAL, 0),
            Compare(key=key, target=Compare.LEASE, result=Compare.EQUAL, lease=0),
        ],
        success=[get(key), RequestOp(request_put=PutRequest(key=leasing_key, lease=lease))],
        failure=[get(key)],
    )


def ask_for(leasing_key: bytes, revision: int) -> TxnRequest:
    """Asks the owner of a leasing key created at `revision` to give it up."""
    put = PutRequest(key=leasing_key, value=REVOKE, ignore_lease=True)
    return TxnRequest(compare=[created(leasing_key, Compare.EQUAL, revision)], success=[RequestOp(request_put=put)])


def give_up(leasing_keys: Iterable[tuple[bytes, int]]) -> TxnRequest:
    """Deletes leasing keys, given with the revisions of their creation, if all of them are still the same."""
    request = TxnRequest()
    for leasing_key, revision in leasing_keys:
        request.compare.append(created(leasing_key, Compare.EQUAL, revision))
        request.success.append(RequestOp(request_delete_range=DeleteRangeRequest(key=leasing_key)))
    return request


def writes(operations: Iterable[RequestOp]) -> Iterator[Range]:
    """What the operations, nested ones too, may write."""
    for operation in operations:
        match operation.WhichOneof("request"):
            case "request_put":
                yield operation.request_put.key, b""
            case "request_delete_range":
                yield operation.request_delete_range.key, operation.request_delete_range.range_end
            case "request_txn":
                yield from writes(operation.request_txn.success)
                yield from writes(operation.request_txn.failure)


def targets(operation: RequestOp, leasing: LeasingKeys) -> tuple[list[bytes], list[Range]]:
    """(keys, ranges) that need a guard for an operation to be done."""
    keys: dict[bytes, None] = {}
    ranges: dict[Range, None] = {}
    for start, end in writes([operation]):
        if end:
            ranges[start, end] = None
        elif not leasing.is_one(start):
            keys[start] = None
    if len(keys) > MAX_GUARDS:
        ranges[min(keys), max(keys) + b"\0"] = None
        keys = {}
    return list(keys), list(ranges)


def guarded(
    operation: RequestOp,
    keys: Iterable[tuple[bytes, int]],
    ranges: Iterable[Range],
    leasing: LeasingKeys,
    watched: Iterable[bytes],
) -> TxnRequest:
    """The operation, done if nobody else owns what it writes; else the leasing keys in its way are read.

    `keys` are given with their own leasing key's revision, 0 where it is not owned. The keys `watched` are read after
    the operation.
    """
    request = TxnRequest(success=[operation, *[get(key) for key in watched]])
    for key, revision in keys:
        leasing_key = leasing.of(key)
        request.compare.append(created(leasing_key, Compare.LESS, revision + 1))
        request.failure.append(get(leasing_key))
    for start, end in ranges:
        first, last = leasing.of_range(start, end)
        request.compare.append(created(first, Compare.LESS, 1, last))
        request.failure.append(get(first, last))
    return request


def found(responses: Iterable[ResponseOp]) -> list[KeyValue]:
    """The keys that gets have found."""
    return [kv for response in responses for kv in response.response_range.kvs]


def only(response: ResponseOp) -> KeyValue | None:
    """What the get of one key has found."""
    kvs = response.response_range.kvs
    return kvs[0] if kvs else None


def unwrap(reply: TxnResponse) -> PutResponse | DeleteRangeResponse | TxnResponse:
    """The answer to the operation that was guarded, with the header it has when it is asked for alone."""
    response = reply.responses[0]
    inner: PutResponse | DeleteRangeResponse | TxnResponse
    match response.WhichOneof("response"):
        case "response_put":
            inner = response.response_put
        case "response_delete_range":
            inner = response.response_delete_range
        case _:
            inner = response.response_txn
    inner.header.CopyFrom(reply.header)
    return inner
