"""Requests and replies of the KV service, in place.

Nothing may pass by that is not known here: a field of a later API version could carry a key, so callers parse with
`calls.py`, which drops unknown fields.
"""

from collections.abc import Iterable

from kvorum.pb.mvcc_pb2 import KeyValue
from kvorum.pb.rpc_pb2 import (
    DeleteRangeRequest,
    DeleteRangeResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    RangeStreamResponse,
    RequestOp,
    ResponseOp,
    TxnRequest,
    TxnResponse,
)
from proxy.namespaces.namespace import ForeignKeyError, Namespace


def prefix_range(namespace: Namespace, request: RangeRequest) -> None:
    """Also for RangeStream, which asks with the same message."""
    request.key, request.range_end = namespace.interval(request.key, request.range_end)


def prefix_put(namespace: Namespace, request: PutRequest) -> None:
    request.key = namespace.key(request.key)


def prefix_delete_range(namespace: Namespace, request: DeleteRangeRequest) -> None:
    request.key, request.range_end = namespace.interval(request.key, request.range_end)


def prefix_txn(namespace: Namespace, request: TxnRequest) -> None:
    """Compares and both branches, at every depth."""
    for compare in request.compare:
        compare.key, compare.range_end = namespace.interval(compare.key, compare.range_end)
    _prefix_branch(namespace, request.success)
    _prefix_branch(namespace, request.failure)


def _prefix_branch(namespace: Namespace, branch: Iterable[RequestOp]) -> None:
    for operation in branch:
        match operation.WhichOneof("request"):
            case "request_put":
                put = operation.request_put
                put.key = namespace.key(put.key)
            case "request_range":
                prefix_range(namespace, operation.request_range)
            case "request_delete_range":
                prefix_delete_range(namespace, operation.request_delete_range)
            case "request_txn":
                prefix_txn(namespace, operation.request_txn)


def strip_kvs(namespace: Namespace, kvs: Iterable[KeyValue]) -> None:
    # 0.32 us for each key; without the check 0.26 us. `Namespace.strip` would make it 0.4 us.
    prefix = namespace.prefix
    size = len(prefix)
    for kv in kvs:
        key = kv.key
        if not key.startswith(prefix):
            raise ForeignKeyError(f"a reply within the namespace {prefix!r} has the key {key!r}")
        kv.key = key[size:]


def strip_range(namespace: Namespace, response: RangeResponse) -> None:
    strip_kvs(namespace, response.kvs)


def strip_range_stream(namespace: Namespace, response: RangeStreamResponse) -> None:
    """One message of the stream."""
    if response.HasField("range_response"):
        strip_kvs(namespace, response.range_response.kvs)


def strip_put(namespace: Namespace, response: PutResponse) -> None:
    if response.HasField("prev_kv"):
        strip_kvs(namespace, (response.prev_kv,))


def strip_delete_range(namespace: Namespace, response: DeleteRangeResponse) -> None:
    strip_kvs(namespace, response.prev_kvs)


def strip_txn(namespace: Namespace, response: TxnResponse) -> None:
    for operation in response.responses:
        _strip_operation(namespace, operation)


def _strip_operation(namespace: Namespace, operation: ResponseOp) -> None:
    match operation.WhichOneof("response"):
        case "response_range":
            strip_kvs(namespace, operation.response_range.kvs)
        case "response_put":
            strip_put(namespace, operation.response_put)
        case "response_delete_range":
            strip_kvs(namespace, operation.response_delete_range.prev_kvs)
        case "response_txn":
            strip_txn(namespace, operation.response_txn)


def shows_keys(request: TxnRequest) -> bool:
    """Whether the reply to a transaction may name a key."""
    for branch in (request.success, request.failure):
        for operation in branch:
            match operation.WhichOneof("request"):
                case "request_put":
                    shows = operation.request_put.prev_kv
                case "request_delete_range":
                    shows = operation.request_delete_range.prev_kv
                case "request_range":
                    shows = not operation.request_range.count_only
                case "request_txn":
                    shows = shows_keys(operation.request_txn)
                case _:
                    shows = False
            if shows:
                return True
    return False
