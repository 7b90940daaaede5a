"""The field rules of KV requests, row by row of the behaviour table (ids are its rows)."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from kvorum import errors
from kvorum.errors import ApiError, Status
from kvorum.pb.rpc_pb2 import Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest
from node import check
from tests.apply.mvcc_store import delete_op, put_op, range_op, txn_op

MAX_OPS = 128


def outcome(call: Callable[[], None]) -> Status | None:
    try:
        call()
    except ApiError as error:
        return error.status
    return None


def ranging(**fields: Any) -> RangeRequest:
    """A RangeRequest whose enums may be any number, as a peer can send."""
    return RangeRequest(**fields)


RANGES = {
    "R1 P7 empty key first": (ranging(sort_order=9, sort_target=9), errors.EMPTY_KEY),
    "P7 empty key with an end": (ranging(range_end=b"z"), errors.EMPTY_KEY),
    "R2 unknown order": (ranging(key=b"k", sort_order=3), errors.INVALID_SORT_OPTION),
    "R2 negative order": (ranging(key=b"k", sort_order=-1), errors.INVALID_SORT_OPTION),
    "R2 Z1 unknown target": (ranging(key=b"k", sort_target=5), errors.INVALID_SORT_OPTION),
    "R2 negative target": (ranging(key=b"k", sort_target=-1), errors.INVALID_SORT_OPTION),
    "R18 everything at once": (
        ranging(key=b"k", limit=-1, revision=-1, sort_order="DESCEND", sort_target="VALUE", count_only=True),
        None,
    ),
}


@pytest.mark.parametrize(("request_", "expected"), RANGES.values(), ids=RANGES.keys())
def test_range(request_: RangeRequest, expected: Status | None) -> None:
    assert outcome(lambda: check.check_range(request_)) == expected


STREAMS = {
    "RS2 range rules first": (ranging(key=b"k", sort_order=7, min_mod_revision=1), errors.INVALID_SORT_OPTION),
    "RS2 order before filter": (ranging(key=b"k", sort_order="DESCEND", min_mod_revision=1), check.STREAM_SORT),
    "RS2 another target": (ranging(key=b"k", sort_order="ASCEND", sort_target="MOD"), check.STREAM_SORT),
    "RS2 filter": (ranging(key=b"k", max_create_revision=-1), check.STREAM_FILTER),
    "RS2 key ascending is the default": (ranging(key=b"k", sort_order="ASCEND"), None),
    "RS2 a target without an order": (ranging(key=b"k", sort_target="MOD"), None),
}


@pytest.mark.parametrize(("request_", "expected"), STREAMS.values(), ids=STREAMS.keys())
def test_range_stream(request_: RangeRequest, expected: Status | None) -> None:
    assert outcome(lambda: check.check_range_stream(request_)) == expected


PUTS = {
    "PU1 empty key first": (PutRequest(value=b"v", ignore_value=True), errors.EMPTY_KEY),
    "PU1 value before lease": (
        PutRequest(key=b"k", value=b"v", ignore_value=True, lease=1, ignore_lease=True),
        errors.VALUE_PROVIDED,
    ),
    "PU1 lease": (PutRequest(key=b"k", lease=1, ignore_lease=True), errors.LEASE_PROVIDED),
    "PU4 both": (PutRequest(key=b"k", ignore_value=True, ignore_lease=True), None),
    "PU5 ignored and empty": (PutRequest(key=b"k", value=b"", ignore_value=True), None),
    "PU8 empty value": (PutRequest(key=b"k"), None),
}


@pytest.mark.parametrize(("request_", "expected"), PUTS.values(), ids=PUTS.keys())
def test_put(request_: PutRequest, expected: Status | None) -> None:
    assert outcome(lambda: check.check_put(request_)) == expected


def test_delete_range_empty_key() -> None:
    """P7"""
    assert outcome(lambda: check.check_delete_range(DeleteRangeRequest(range_end=b"z"))) == errors.EMPTY_KEY
    assert outcome(lambda: check.check_delete_range(DeleteRangeRequest(key=b"k"))) is None


def puts(count: int, prefix: bytes = b"k") -> list[RequestOp]:
    return [put_op(b"%b%d" % (prefix, i)) for i in range(count)]


def then(*operations: RequestOp) -> TxnRequest:
    return TxnRequest(success=operations)


def otherwise(*operations: RequestOp) -> TxnRequest:
    return TxnRequest(failure=operations)


CHILD_128 = [txn_op() for _ in range(128)]
ABSENT = Compare(key=b"k")

TXNS = {
    "T1 count before compares": (TxnRequest(compare=[Compare()], success=puts(129)), errors.TOO_MANY_OPS),
    "T1 compares before operations": (TxnRequest(compare=[Compare()], success=[RequestOp()]), errors.EMPTY_KEY),
    "T1 success before failure": (TxnRequest(success=[RequestOp()], failure=[put_op(b"")]), errors.KEY_NOT_FOUND),
    "T1 nested in order": (then(txn_op([RequestOp()]), put_op(b"")), errors.KEY_NOT_FOUND),
    "T1 operations before duplicates": (
        TxnRequest(success=[put_op(b"k"), put_op(b"k")], failure=[put_op(b"")]),
        errors.EMPTY_KEY,
    ),
    "T2 each list may be full": (TxnRequest(compare=[ABSENT] * 128, success=puts(128), failure=puts(128)), None),
    "T2 compares too many": (TxnRequest(compare=[ABSENT] * 129), errors.TOO_MANY_OPS),
    "T2 failure too many": (TxnRequest(failure=puts(129)), errors.TOO_MANY_OPS),
    "T3 one nested of 127": (then(txn_op(puts(127))), None),
    "T3 one nested of 128": (then(txn_op(puts(128))), errors.TOO_MANY_OPS),
    "T3 two nested of 126": (then(txn_op(puts(126, b"a")), txn_op(puts(126, b"b"))), None),
    "T3 two nested of 127": (then(txn_op(puts(127, b"a")), txn_op(puts(1, b"b"))), errors.TOO_MANY_OPS),
    "T3 126 puts and a nested put": (then(*puts(126), txn_op([put_op(b"x")])), None),
    "T3 127 puts and a nested put": (then(*puts(127), txn_op([put_op(b"x")])), errors.TOO_MANY_OPS),
    "T3 128 empty nested": (then(*CHILD_128), None),
    "T4 empty operation": (then(RequestOp()), errors.KEY_NOT_FOUND),
    "T4 empty operation, else": (otherwise(RequestOp()), errors.KEY_NOT_FOUND),
    "T5 empty put key": (otherwise(put_op(b"")), errors.EMPTY_KEY),
    "T5 empty range key": (otherwise(range_op(b"")), errors.EMPTY_KEY),
    "T5 empty delete key": (otherwise(delete_op(b"")), errors.EMPTY_KEY),
    "T5 value": (otherwise(put_op(b"k", b"v", ignore_value=True)), errors.VALUE_PROVIDED),
    "T5 lease": (otherwise(put_op(b"k", lease=1, ignore_lease=True)), errors.LEASE_PROVIDED),
    "T5 sort": (otherwise(range_op(b"k", sort_order=3)), errors.INVALID_SORT_OPTION),
    "T6 two puts": (then(put_op(b"k"), put_op(b"k")), errors.DUPLICATE_KEY),
    "T6 two puts, else": (otherwise(put_op(b"k"), put_op(b"k")), errors.DUPLICATE_KEY),
    "T6 put, delete": (then(put_op(b"k"), delete_op(b"k")), errors.DUPLICATE_KEY),
    "T6 delete, put": (then(delete_op(b"a", b"z"), put_op(b"k")), errors.DUPLICATE_KEY),
    "T6 delete ends at the key": (then(delete_op(b"a", b"k"), put_op(b"k")), None),
    "T6 delete of one key beside": (then(delete_op(b"k"), put_op(b"k\0")), None),
    "T6 overlapping deletes": (then(delete_op(b"a", b"m"), delete_op(b"b", b"z")), None),
    "T6 overlapping deletes cover": (
        then(delete_op(b"a", b"d"), delete_op(b"x", b"z"), delete_op(b"c", b"y"), put_op(b"k")),
        errors.DUPLICATE_KEY,
    ),
    "T6 ranges never count": (then(range_op(b"a", b"z"), put_op(b"k"), range_op(b"k")), None),
    "T6 success and failure apart": (TxnRequest(success=[put_op(b"k")], failure=[put_op(b"k")]), None),
    "T7 then and else of a child": (then(txn_op([put_op(b"k")], [put_op(b"k")])), None),
    "T7 child against parent's put": (then(put_op(b"k"), txn_op([put_op(b"k")])), errors.DUPLICATE_KEY),
    "T7 child's else against parent's put": (then(put_op(b"k"), txn_op([], [put_op(b"k")])), errors.DUPLICATE_KEY),
    "T7 child against parent's delete": (then(txn_op([put_op(b"k")]), delete_op(b"k")), errors.DUPLICATE_KEY),
    "T7 duplicate inside a child": (then(txn_op([put_op(b"k"), put_op(b"k")])), errors.DUPLICATE_KEY),
    "T7 two children": (then(txn_op([put_op(b"k")]), txn_op([], [put_op(b"k")])), errors.DUPLICATE_KEY),
    "T7 grandchild": (then(txn_op([txn_op([put_op(b"k")])]), put_op(b"k")), errors.DUPLICATE_KEY),
    "T8 child deletes, child puts": (then(txn_op([delete_op(b"k")]), txn_op([put_op(b"k")])), errors.DUPLICATE_KEY),
    "T8 child puts, child deletes": (then(txn_op([put_op(b"k")]), txn_op([delete_op(b"k")])), None),
    "T8 then puts, else deletes": (then(txn_op([put_op(b"k")], [delete_op(b"k")])), None),
    "T8 child deletes, parent puts": (then(put_op(b"k"), txn_op([], [delete_op(b"k")])), errors.DUPLICATE_KEY),
    "T9 Q3 from-key delete": (then(put_op(b"k"), delete_op(b"a", b"\0")), None),
    "T9 Q3 from-key delete of the key": (then(put_op(b"k"), delete_op(b"k", b"\0")), None),
    "T9 inverted delete": (then(put_op(b"k"), delete_op(b"z", b"a")), None),
    "T9 two zero bytes are an ordinary end": (then(put_op(b"\0"), delete_op(b"\0", b"\0\0")), errors.DUPLICATE_KEY),
}


@pytest.mark.parametrize(("request_", "expected"), TXNS.values(), ids=TXNS.keys())
def test_txn(request_: TxnRequest, expected: Status | None) -> None:
    assert outcome(lambda: check.check_txn(request_, MAX_OPS)) == expected


def test_deletes_cover_what_any_of_them_covers() -> None:
    """T6: against the plain definition, over random intervals."""
    randomness = random.Random(6)
    for _ in range(300):
        deletes = [
            (bytes([randomness.randrange(20)]), bytes([randomness.randrange(1, 20)]))
            for _ in range(randomness.randrange(6))
        ]
        key = bytes([randomness.randrange(1, 20)])
        operations = [delete_op(start, end) for start, end in deletes]
        covered = any(start <= key < end for start, end in deletes)
        expected = errors.DUPLICATE_KEY if covered else None
        assert outcome(partial(check.check_txn, then(*operations, put_op(key)), MAX_OPS)) == expected


KINDS = {
    "T28 T29 empty": (TxnRequest(), True, True),
    "T28 ranges in both branches": (TxnRequest(success=[range_op(b"k")], failure=[range_op(b"k")]), True, False),
    "T29 all serializable": (
        TxnRequest(success=[range_op(b"k", serializable=True)], failure=[range_op(b"k", serializable=True)]),
        True,
        True,
    ),
    "T29 one is not": (
        TxnRequest(success=[range_op(b"k", serializable=True)], failure=[range_op(b"k")]),
        True,
        False,
    ),
    "T28 a nested range is a write": (then(txn_op([range_op(b"k")])), False, None),
    "T28 a nested empty one is a write": (otherwise(txn_op()), False, None),
    "T28 delete": (otherwise(delete_op(b"k")), False, None),
    "T28 put": (TxnRequest(success=[range_op(b"k")], failure=[put_op(b"k")]), False, None),
}


@pytest.mark.parametrize(("request_", "read_only", "serializable"), KINDS.values(), ids=KINDS.keys())
def test_kind_of_txn(request_: TxnRequest, read_only: bool, serializable: bool | None) -> None:
    assert check.is_read_only(request_) == read_only
    if read_only:
        assert check.is_serializable(request_) == serializable


def test_puts_in_a_txn() -> None:
    """MA13: nested ones too, in either branch."""
    assert not check.has_put(then(range_op(b"k"), delete_op(b"k"), txn_op([delete_op(b"k")])))
    assert check.has_put(otherwise(put_op(b"k")))
    assert check.has_put(then(txn_op([], [txn_op([put_op(b"k")])])))
