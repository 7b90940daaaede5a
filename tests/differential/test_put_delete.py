"""Rows PU and D: Put and DeleteRange."""

import pytest

from kvorum import errors
from kvorum.errors import Status
from kvorum.pb.mvcc_pb2 import KeyValue
from kvorum.pb.rpc_pb2 import DeleteRangeRequest, LeaseTimeToLiveRequest, PutRequest
from tests.differential.side import Side, events

UNKNOWN_LEASE = 4711


def lease_keys(api: Side, lease: int) -> list[bytes]:
    return sorted(api(LeaseTimeToLiveRequest(ID=lease, keys=True)).keys)


@pytest.mark.parametrize(
    ("request_of", "status"),
    [
        (PutRequest(value=b"x", ignore_value=True), errors.EMPTY_KEY),
        (PutRequest(key=b"absent", value=b"x", ignore_value=True, ignore_lease=True, lease=1), errors.VALUE_PROVIDED),
        (PutRequest(key=b"absent", ignore_lease=True, lease=UNKNOWN_LEASE), errors.LEASE_PROVIDED),
        (PutRequest(key=b"absent", ignore_value=True, lease=UNKNOWN_LEASE), errors.LEASE_NOT_FOUND),
        (PutRequest(key=b"absent", lease=UNKNOWN_LEASE), errors.LEASE_NOT_FOUND),
        (PutRequest(key=b"absent", ignore_value=True), errors.KEY_NOT_FOUND),
        (PutRequest(key=b"absent", ignore_lease=True), errors.KEY_NOT_FOUND),
    ],
    ids=str,
)
def test_PU1_order_of_checks(api: Side, request_of: PutRequest, status: Status) -> None:
    before = api.revision
    assert api.status(request_of) == status
    assert api.revision == before


def test_PU2_PU5_ignore_value_keeps_the_value_and_sets_the_lease(api: Side) -> None:
    lease = api.grant()
    first = api.put("a", b"1").header.revision
    api.put("a", ignore_value=True, lease=lease)
    kv = api.get("a").kvs[0]
    assert (kv.value, kv.lease, kv.version, kv.create_revision) == (b"1", lease, 2, first)
    api.put("a", ignore_value=True)
    kv = api.get("a").kvs[0]
    assert (kv.value, kv.lease, kv.version) == (b"1", 0, 3)
    assert lease_keys(api, lease) == []


def test_PU3_ignore_lease_keeps_the_lease(api: Side) -> None:
    lease = api.grant()
    api.put("a", b"1", lease=lease)
    api.put("a", b"2", ignore_lease=True)
    kv = api.get("a").kvs[0]
    assert (kv.value, kv.lease, kv.version) == (b"2", lease, 2)


def test_PU4_both_move_only_the_revisions_and_make_an_event(api: Side) -> None:
    lease = api.grant()
    api.put("a", b"1", lease=lease)
    with api.watch() as stream:
        api.create(stream)
        at = api.put("a", ignore_value=True, ignore_lease=True).header.revision
        kv = events(stream, 1)[0].kv
    assert (kv.value, kv.lease, kv.version, kv.mod_revision) == (b"1", lease, 2, at)


def test_PU6_L28_a_put_without_lease_detaches_and_with_another_moves(api: Side) -> None:
    one, two = api.grant(), api.grant()
    api.put("a", lease=one)
    api.put("a", lease=one)
    assert lease_keys(api, one) == [api.key("a")]
    api.put("a", lease=two)
    assert (lease_keys(api, one), lease_keys(api, two)) == ([], [api.key("a")])
    api.put("a")
    assert lease_keys(api, two) == []


def test_PU7_prev_kv(api: Side) -> None:
    assert not api.put("a", b"1", prev_kv=True).HasField("prev_kv")
    before = api.get("a").kvs[0]
    assert api.put("a", b"2", prev_kv=True).prev_kv == before
    assert not api.put("a", b"3").HasField("prev_kv")


def test_PU8_an_empty_value_is_legal(api: Side) -> None:
    api.put("a", b"1")
    api.put("a", b"")
    assert api.get("a").kvs[0].value == b""


def test_PU9_a_key_of_any_size(api: Side) -> None:
    api.put("k" * 100_000, b"1")
    assert api.get("k" * 100_000).kvs[0].value == b"1"
    api.delete("k" * 100_000)


def test_D1_D2_prev_kvs_are_complete_and_only_sent_when_asked(api: Side) -> None:
    lease = api.grant()
    api.put("b", b"2", lease=lease)
    api.put("a", b"1")
    api.put("c", b"3")
    kvs = list(api.get("a", range_end=api.key("c")).kvs)
    reply = api.delete("a", range_end=api.key("c"), prev_kv=True)
    assert (reply.deleted, list(reply.prev_kvs)) == (2, kvs)
    reply = api.delete("c")
    assert (reply.deleted, len(reply.prev_kvs)) == (1, 0)


def test_D3_D7_tombstones_come_in_key_order_with_key_and_revision_only(api: Side) -> None:
    lease = api.grant()
    for name in ("c", "a", "b"):
        api.put(name, b"1", lease=lease)
    with api.watch() as stream:
        api.create(stream)
        at = api(DeleteRangeRequest(key=api.prefix, range_end=api.end)).header.revision
        kvs = [event.kv for event in events(stream, 3)]
    assert kvs == [KeyValue(key=api.key(name), mod_revision=at) for name in "abc"]


def test_D4_from_zero_byte_on_is_everything(fresh: Side) -> None:
    for name in (b"\0", b"a", b"\xff\xff"):
        fresh(PutRequest(key=name))
    reply = fresh(DeleteRangeRequest(key=b"\0", range_end=b"\0"))
    assert (reply.deleted, reply.header.revision) == (3, 5)


def test_D5_an_inverted_range_deletes_nothing(api: Side) -> None:
    at = api.put("a").header.revision
    reply = api.delete("b", range_end=api.key("a"))
    assert (reply.deleted, reply.header.revision) == (0, at)


def test_D6_a_deleted_key_leaves_its_lease(api: Side) -> None:
    lease = api.grant()
    api.put("a", lease=lease)
    api.delete("a")
    assert lease_keys(api, lease) == []
