"""Transactions, row by row of the behaviour table (docstrings and ids name its rows)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvorum import errors
from kvorum.errors import ApiError, Status
from kvorum.pb.mvcc_pb2 import KeyValue
from kvorum.pb.rpc_pb2 import Compare, RequestOp, ResponseHeader, TxnRequest
from tests.apply.mvcc_store import StoreUnderTest, delete_op, keys, put_op, range_op, txn_op


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StoreUnderTest]:
    """`a` = 1 at revision 2, with lease 1; `b` = 2 at revisions 3 and 4."""
    opened = StoreUnderTest(tmp_path / "db")
    opened.put(b"a", b"1", lease=1)
    opened.put(b"b", b"x")
    opened.put(b"b", b"2")
    opened.commit()
    opened.store.take_events()
    yield opened
    opened.store.close()


def compare(key: bytes, **fields: Any) -> Compare:
    return Compare(key=key, **fields)


EQUAL, GREATER, LESS, NOT_EQUAL = range(4)

COMPARES: dict[str, tuple[Compare, bool]] = {
    "version =": (compare(b"b", target="VERSION", version=2), True),
    "version >": (compare(b"b", target="VERSION", result=GREATER, version=2), False),
    "create <": (compare(b"b", target="CREATE", result=LESS, create_revision=4), True),
    "mod !=": (compare(b"b", target="MOD", result=NOT_EQUAL, mod_revision=3), True),
    "mod =": (compare(b"b", target="MOD", mod_revision=3), False),
    "lease =": (compare(b"a", target="LEASE", lease=1), True),
    "lease of a key without": (compare(b"b", target="LEASE", lease=0), True),
    "value =": (compare(b"a", target="VALUE", value=b"1"), True),
    "T18 value > in byte order": (compare(b"a", target="VALUE", result=GREATER, value=b"0\xff"), True),
    "T18 value <": (compare(b"a", target="VALUE", result=LESS, value=b"10"), True),
    "T13 T14 absent create = 0": (compare(b"x", target="CREATE"), True),
    "T14 absent version = 0": (compare(b"x", target="VERSION"), True),
    "T14 absent mod = 0": (compare(b"x", target="MOD"), True),
    "T13 absent lease > 0": (compare(b"x", target="LEASE", result=GREATER), False),
    "T13 absent version < 1": (compare(b"x", target="VERSION", result=LESS, version=1), True),
    "T13 absent value =": (compare(b"x", target="VALUE", value=b""), False),
    "T13 absent value !=": (compare(b"x", target="VALUE", result=NOT_EQUAL, value=b"1"), False),
    "T15 every key": (compare(b"a", range_end=b"z", target="MOD", result=LESS, mod_revision=5), True),
    "T15 one key fails": (compare(b"a", range_end=b"z", target="VERSION", version=1), False),
    "T15 from key on": (compare(b"b", range_end=b"\0", target="VERSION", version=2), True),
    "T15 no key, = 0": (compare(b"x", range_end=b"z", target="VERSION"), True),
    "T15 no key, > 0": (compare(b"x", range_end=b"z", target="VERSION", result=GREATER), False),
    "T15 no key, value": (compare(b"x", range_end=b"z", target="VALUE", result=NOT_EQUAL, value=b"1"), False),
    "T15 inverted is no key": (compare(b"b", range_end=b"a", target="MOD"), True),
    "T16 no union member": (compare(b"b", target="VERSION", result=GREATER), True),
    "T16 another member": (compare(b"b", target="VERSION", result=GREATER, mod_revision=100), True),
    "T16 value against another member": (compare(b"a", target="VALUE", result=GREATER, version=9), True),
    "T17 unknown result": (compare(b"b", target="VERSION", result=9, version=77), True),
    "T17 unknown target is equal": (compare(b"b", target=9, version=77), True),
    "T17 unknown target is not unequal": (compare(b"b", target=9, result=NOT_EQUAL, version=77), False),
}


@pytest.mark.parametrize(("condition", "holds"), COMPARES.values(), ids=COMPARES.keys())
def test_compare(store: StoreUnderTest, condition: Compare, holds: bool) -> None:
    assert store.txn(compare=[condition]).succeeded == holds
    assert store.txn(compare=[compare(b"a", target="MOD", mod_revision=2), condition]).succeeded == holds


def test_empty_compare_succeeds(store: StoreUnderTest) -> None:
    """T11, T12"""
    response = store.txn()
    assert response.succeeded
    assert not store.txn(compare=[compare(b"a", target="MOD")]).succeeded
    assert response.header.revision == store.revision == 4


def test_nested_compares_see_the_state_before_all(store: StoreUnderTest) -> None:
    """T10"""
    absent = [compare(b"new", target="CREATE")]
    response = store.txn([put_op(b"new"), txn_op([put_op(b"then")], [put_op(b"else")], absent)])
    assert response.responses[1].response_txn.succeeded
    assert keys(store.get(b"c", b"z")) == [b"new", b"then"]


def test_responses_of_nested_txns(store: StoreUnderTest) -> None:
    """T25, T26, T27: headers inside carry the revision alone, nested ones nothing at all."""
    response = store.txn(
        [
            range_op(b"a"),
            delete_op(b"none"),
            txn_op([put_op(b"c"), range_op(b"a", b"z", count_only=True), txn_op()]),
            delete_op(b"none"),
            delete_op(b"b"),
            range_op(b"a", b"z", count_only=True),
        ]
    )
    before, after = ResponseHeader(revision=4), ResponseHeader(revision=5)
    first, nothing, nested, later_nothing, deleted, last = response.responses
    assert first.response_range.header == before
    assert nothing.response_delete_range.header == before
    assert nested.response_txn.HasField("header")
    assert nested.response_txn.header == ResponseHeader()
    put, counted, empty = nested.response_txn.responses
    assert put.response_put.header == after
    assert (counted.response_range.header, counted.response_range.count) == (after, 3)
    assert empty.response_txn.succeeded
    assert empty.response_txn.HasField("header")
    assert later_nothing.response_delete_range.header == after
    assert (deleted.response_delete_range.header, deleted.response_delete_range.deleted) == (after, 1)
    assert last.response_range.count == 2
    assert response.header == store.get(b"a").header  # T24: complete, with the new revision
    assert response.header.revision == 5


def failure_of(store: StoreUnderTest, *operations: RequestOp) -> Status:
    with pytest.raises(ApiError) as raised:
        store.txn([put_op(b"first"), *operations])
    assert store.revision == 4
    assert not store.database.pending
    assert store.store.take_events() == []
    return raised.value.status


FAILURES: dict[str, tuple[list[RequestOp], Status]] = {
    "T19 lease": ([put_op(b"a", lease=99)], errors.LEASE_NOT_FOUND),
    "T19 absent key": ([put_op(b"x", ignore_value=True)], errors.KEY_NOT_FOUND),
    "T19 future revision": ([range_op(b"a", revision=5)], errors.FUTURE_REV),
    "T19 nested": ([txn_op([txn_op([range_op(b"a", revision=5)])])], errors.FUTURE_REV),
    "T19 all puts before all ranges": ([range_op(b"a", revision=5), put_op(b"a", lease=99)], errors.LEASE_NOT_FOUND),
    "T19 puts in order": ([put_op(b"x", ignore_lease=True), put_op(b"a", lease=99)], errors.KEY_NOT_FOUND),
    "PU1 lease before key": ([put_op(b"x", ignore_value=True, lease=99)], errors.LEASE_NOT_FOUND),
    "T21 key put in the same txn": ([put_op(b"x"), put_op(b"x", ignore_value=True)], errors.KEY_NOT_FOUND),
    "T22 the txn's own revision": ([range_op(b"a", revision=5)], errors.FUTURE_REV),
    "T22 -2 before the first compaction": ([range_op(b"a", revision=-2)], errors.COMPACTED),
    "T4 empty operation": ([RequestOp()], errors.KEY_NOT_FOUND),
}


@pytest.mark.parametrize(("operations", "status"), FAILURES.values(), ids=FAILURES.keys())
def test_failure_writes_nothing(store: StoreUnderTest, operations: list[RequestOp], status: Status) -> None:
    """T19: also the put that stands first"""
    assert failure_of(store, *operations) == status


def test_branch_not_taken_does_not_matter(store: StoreUnderTest) -> None:
    """T20"""
    bad = [put_op(b"x", ignore_value=True), put_op(b"y", lease=99), range_op(b"a", revision=99)]
    assert store.txn([put_op(b"ok")], bad).succeeded
    assert store.txn([txn_op([], bad)]).succeeded


def test_negative_revisions_inside(store: StoreUnderTest) -> None:
    """T22: before the first compaction -1 passes; after it every negative one is compacted."""
    assert keys(store.txn([range_op(b"a", b"z", revision=-1)]).responses[0].response_range) == [b"a", b"b"]
    store.compact(3)
    assert failure_of_after_compaction(store, -1) == errors.COMPACTED
    assert failure_of_after_compaction(store, 2) == errors.COMPACTED
    assert store.txn([range_op(b"a", revision=3)]).responses[0].response_range.count == 1


def failure_of_after_compaction(store: StoreUnderTest, revision: int) -> Status:
    with pytest.raises(ApiError) as raised:
        store.txn([range_op(b"a", revision=revision)])
    return raised.value.status


def test_reads_inside(store: StoreUnderTest) -> None:
    """T23: revision 0 sees the writes before it in the txn, an older one does not."""
    response = store.txn(
        [
            put_op(b"a", b"new"),
            range_op(b"a"),
            range_op(b"a", revision=4),
            range_op(b"a", b"z", revision=3),
            delete_op(b"b"),
            range_op(b"\0", b"\0"),
            range_op(b"\0", b"\0", revision=4, sort_order="DESCEND"),
        ]
    )
    _, now, before, long_before, _, all_now, all_before = (op.response_range for op in response.responses)
    assert now.kvs[0].value == b"new"
    assert before.kvs[0].value == b"1"
    assert [kv.value for kv in long_before.kvs] == [b"1", b"x"]
    assert keys(all_now) == [b"a"]
    assert [kv.value for kv in all_before.kvs] == [b"2", b"1"]


def test_scans_inside_see_the_batch(store: StoreUnderTest) -> None:
    """T23 on ranges long enough to be scanned, and on ranges at revisions not committed yet."""
    for i in range(30):
        store.put(b"n%02d" % i, b"%d" % i)
    uncommitted = store.revision
    response = store.txn(
        [
            put_op(b"n05", b"changed"),
            delete_op(b"n07", b"n09"),
            range_op(b"n", b"o"),
            range_op(b"n", b"o", sort_order="DESCEND", limit=25),
            range_op(b"n", b"o", revision=uncommitted),
            range_op(b"n", b"o", revision=uncommitted - 10),
        ]
    )
    _, _, now, back, before, earlier = (op.response_range for op in response.responses)
    expected = [b"n%02d" % i for i in range(30) if i not in (7, 8)]
    assert keys(now) == expected
    assert now.kvs[5].value == b"changed"
    assert keys(back) == expected[::-1][:25]
    assert [kv.value for kv in before.kvs] == [b"%d" % i for i in range(30)]
    assert earlier.count == 20


def test_prev_kv_inside(store: StoreUnderTest) -> None:
    """T34: the state at that moment of the txn."""
    response = store.txn(
        [
            txn_op([put_op(b"k", b"1", prev_kv=True)]),
            txn_op([delete_op(b"k", prev_kv=True)]),
        ]
    )
    put, delete = (op.response_txn.responses[0] for op in response.responses)
    assert not put.response_put.HasField("prev_kv")
    assert delete.response_delete_range.prev_kvs[0].value == b"1"


def test_put_then_delete_of_one_key(store: StoreUnderTest) -> None:
    """V6, T9, WE13, WE10: both rows and both events, at one revision; the previous value is that before the txn."""
    store.txn([put_op(b"a", b"new"), delete_op(b"a", b"\0")])
    ((revision, changes),) = store.store.take_events()
    before = KeyValue(key=b"a", value=b"1", create_revision=2, mod_revision=2, version=1, lease=1).SerializeToString()
    written = KeyValue(key=b"a", value=b"new", create_revision=2, mod_revision=5, version=2)
    assert revision == 5
    assert [(change[0], change[1]) for change in changes] == [(False, b"a"), (True, b"a"), (True, b"b")]
    assert changes[0][2:] == (written.SerializeToString(), before)
    assert changes[1][2:] == (KeyValue(key=b"a", mod_revision=5).SerializeToString(), before)
    store.commit()
    assert store.get(b"a").count == 0
    assert store.get(b"a", revision=5).count == 0
    assert store.get(b"a", revision=4).count == 1
    assert store.store.history(5, max_rows=10, max_bytes=1 << 20, want_prev=True)[0] == [(5, changes)]
    assert store.leases.attached[1] == set()


def test_delete_then_put_of_one_key(store: StoreUnderTest) -> None:
    """T33: sub revisions count over the whole txn; the key begins anew."""
    store.txn([txn_op([delete_op(b"a", b"\0")]), txn_op([put_op(b"a", b"new"), put_op(b"c")])])
    store.commit()
    (kv,) = store.get(b"a").kvs
    assert kv == KeyValue(key=b"a", value=b"new", create_revision=5, mod_revision=5, version=1)
    assert keys(store.get(b"\0", b"\0", revision=5)) == [b"a", b"c"]
    ((_, changes),) = store.store.history(5, max_rows=10, max_bytes=1 << 20)[0]
    assert [change[1] for change in changes] == [b"a", b"b", b"a", b"c"]


def test_ignored_value_of_a_key_deleted_in_the_same_txn(store: StoreUnderTest) -> None:
    """Z4: the check saw the key, the put cannot fail any more: value and lease are empty."""
    store.txn([delete_op(b"a", b"\0"), put_op(b"a", ignore_value=True, ignore_lease=True)])
    assert store.get(b"a").kvs[0] == KeyValue(key=b"a", create_revision=5, mod_revision=5, version=1)


def test_events_in_operation_order(store: StoreUnderTest) -> None:
    """T32, V2"""
    store.txn([put_op(b"z"), delete_op(b"a", b"c"), txn_op([put_op(b"y")])])
    ((revision, changes),) = store.store.take_events()
    assert (revision, [change[1] for change in changes]) == (5, [b"z", b"a", b"b", b"y"])
    assert store.get(b"z").kvs[0].mod_revision == store.get(b"y").kvs[0].mod_revision == 5


def test_read_only_txn(store: StoreUnderTest) -> None:
    """T29, T30: a txn that only reads leaves no revision, no event and nothing to commit."""
    response = store.send_txn(TxnRequest(success=[range_op(b"a"), range_op(b"b", serializable=True)]))
    assert [op.response_range.kvs[0].value for op in response.responses] == [b"1", b"2"]
    assert response.header.revision == 4
    assert not store.database.pending
