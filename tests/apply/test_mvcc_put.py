"""Revisions, puts and deletes, row by row of the behaviour table (docstrings and ids name its rows)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvorum import errors
from kvorum.errors import ApiError
from kvorum.pb.mvcc_pb2 import KeyValue
from kvorum.pb.rpc_pb2 import DeleteRangeResponse, ResponseHeader
from node.apply.mvcc import past
from tests.apply.mvcc_store import IDENTITY, StoreUnderTest, keys


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StoreUnderTest]:
    opened = StoreUnderTest(tmp_path / "db")
    yield opened
    opened.store.close()


def kv_of(store: StoreUnderTest, key: bytes) -> KeyValue:
    (kv,) = store.get(key).kvs
    return kv


def test_empty_store(store: StoreUnderTest) -> None:
    """V1"""
    assert store.revision == 1
    assert store.get(b"k").header.revision == 1
    assert store.put(b"k", b"v").header.revision == 2
    assert kv_of(store, b"k") == KeyValue(key=b"k", value=b"v", create_revision=2, mod_revision=2, version=1)


def test_header(store: StoreUnderTest) -> None:
    """V7, V9: ids, revision and term; the term changes with `set_term`."""
    header = ResponseHeader(
        cluster_id=IDENTITY.cluster_id, member_id=IDENTITY.member_id, revision=2, raft_term=IDENTITY.raft_term
    )
    assert store.put(b"k").header == header
    store.store.set_term(9)
    header.raft_term = 9
    assert store.get(b"k").header == header


def test_change_without_effect_adds_no_revision(store: StoreUnderTest) -> None:
    """V3, V9, T12, T31"""
    store.put(b"k")
    assert store.delete(b"absent").header.revision == 2
    assert store.txn().header.revision == 2
    assert not store.store.delete_keys([b"absent"])
    assert store.revision == 2
    assert [event[0] for event in store.store.take_events()] == [2]


def test_same_value_is_a_change(store: StoreUnderTest) -> None:
    """V4, V5"""
    store.put(b"k", b"v")
    store.put(b"k", b"v")
    assert kv_of(store, b"k") == KeyValue(key=b"k", value=b"v", create_revision=2, mod_revision=3, version=2)
    store.delete(b"k")
    store.put(b"k", b"v")
    assert kv_of(store, b"k") == KeyValue(key=b"k", value=b"v", create_revision=5, mod_revision=5, version=1)


def test_lease_must_exist_before_the_key_must(store: StoreUnderTest) -> None:
    """PU1"""
    with pytest.raises(ApiError) as raised:
        store.put(b"absent", lease=99, ignore_value=True)
    assert raised.value.status == errors.LEASE_NOT_FOUND
    for options in ({"ignore_value": True}, {"ignore_lease": True}, {"ignore_value": True, "lease": 1}):
        with pytest.raises(ApiError) as raised:
            store.put(b"absent", **options)
        assert raised.value.status == errors.KEY_NOT_FOUND
    assert store.revision == 1
    assert not store.database.pending


def test_ignore_value(store: StoreUnderTest) -> None:
    """PU2: the value stays, the lease becomes the request's."""
    store.put(b"k", b"v", lease=1)
    store.put(b"k", ignore_value=True, lease=2)
    assert kv_of(store, b"k") == KeyValue(key=b"k", value=b"v", create_revision=2, mod_revision=3, version=2, lease=2)
    store.put(b"k", ignore_value=True)
    assert kv_of(store, b"k").lease == 0
    assert kv_of(store, b"k").value == b"v"


def test_ignore_lease(store: StoreUnderTest) -> None:
    """PU3, PU4"""
    store.put(b"k", b"v", lease=1)
    store.put(b"k", b"w", ignore_lease=True)
    store.put(b"k", ignore_value=True, ignore_lease=True)
    assert kv_of(store, b"k") == KeyValue(key=b"k", value=b"w", create_revision=2, mod_revision=4, version=3, lease=1)
    assert store.leases.attached[1] == {b"k"}


def test_key_moves_between_leases(store: StoreUnderTest) -> None:
    """PU6, P9, L28, D6; a negative lease id is one like any other (L4)."""
    store.put(b"k", lease=1)
    store.put(b"k", lease=2)
    assert (store.leases.attached[1], store.leases.attached[2]) == (set(), {b"k"})
    store.put(b"k", lease=-7)
    assert kv_of(store, b"k").lease == -7
    store.put(b"k")
    assert store.leases.attached[-7] == set()
    store.put(b"k", lease=1)
    store.delete(b"k")
    assert store.leases.attached[1] == set()


def test_prev_kv(store: StoreUnderTest) -> None:
    """PU7"""
    assert not store.put(b"k", b"1", prev_kv=True).HasField("prev_kv")
    before = kv_of(store, b"k")
    assert store.put(b"k", b"2", prev_kv=True).prev_kv == before
    assert not store.put(b"k", b"3").HasField("prev_kv")


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 1 << 21])
def test_value_and_key_sizes(store: StoreUnderTest, size: int) -> None:
    """PU8, PU9: the bytes are canonical protobuf at every length of a length."""
    key = b"k" + b"x" * size
    store.put(key, b"v" * size)
    expected = KeyValue(key=key, value=b"v" * size, create_revision=2, mod_revision=2, version=1)
    assert store.store.take_events()[0][1][0][2] == expected.SerializeToString()
    assert kv_of(store, key) == expected
    store.commit()
    store.reopen()
    assert kv_of(store, key) == expected
    assert store.get(key, keys_only=True).kvs[0].key == key


def test_delete_range(store: StoreUnderTest) -> None:
    """D1, D2, P8"""
    for key in (b"c", b"a", b"b", b"d"):
        store.put(key, key.upper(), lease=1)
    before = list(store.get(b"b", b"d").kvs)
    response = store.delete(b"b", b"d", prev_kv=True)
    assert response.deleted == 2
    assert list(response.prev_kvs) == before
    assert store.delete(b"a", prev_kv=False) == DeleteRangeResponse(header=store.get(b"a").header, deleted=1)
    assert store.leases.attached[1] == {b"d"}


def test_delete_everything(store: StoreUnderTest) -> None:
    """D3, D4, D7: one revision, tombstones in key order; the event holds key and mod_revision only."""
    names = [b"k%03d" % i for i in range(300)]
    for name in reversed(names):
        store.put(name, b"v")
    store.store.take_events()
    revision = store.revision
    assert store.delete(b"\0", b"\0").deleted == 300
    ((event_revision, changes),) = store.store.take_events()
    assert event_revision == store.revision == revision + 1
    assert [change[1] for change in changes] == names
    assert [KeyValue.FromString(change[2]) for change in changes] == [
        KeyValue(key=name, mod_revision=revision + 1) for name in names
    ]
    assert keys(store.get(b"\0", b"\0")) == []
    assert keys(store.get(b"\0", b"\0", revision=revision)) == names


@pytest.mark.parametrize("end", [b"k", b"a"])
def test_inverted_delete(store: StoreUnderTest, end: bytes) -> None:
    """D5, P8"""
    store.put(b"k")
    assert store.delete(b"k", end).deleted == 0
    assert store.revision == 2


def test_events(store: StoreUnderTest) -> None:
    """WE7, WE8, WE11: each revision's changes, with the KeyValue before."""
    store.put(b"k", b"1")
    store.put(b"k", b"2")
    store.delete(b"k")
    created = KeyValue(key=b"k", value=b"1", create_revision=2, mod_revision=2, version=1).SerializeToString()
    updated = KeyValue(key=b"k", value=b"2", create_revision=2, mod_revision=3, version=2).SerializeToString()
    deleted = KeyValue(key=b"k", mod_revision=4).SerializeToString()
    assert store.store.take_events() == [
        (2, [(False, b"k", created, None)]),
        (3, [(False, b"k", updated, created)]),
        (4, [(True, b"k", deleted, updated)]),
    ]
    assert store.store.take_events() == []


def test_delete_keys(store: StoreUnderTest) -> None:
    """L20, WE12: the keys of a revoked lease go in one revision, in the order given."""
    for key in (b"a", b"b", b"c"):
        store.put(key, lease=1)
    store.store.take_events()
    assert store.store.delete_keys([b"a", b"c", b"gone"])
    ((revision, changes),) = store.store.take_events()
    assert revision == store.revision == 5
    assert [change[1] for change in changes] == [b"a", b"c"]
    assert store.leases.attached[1] == {b"b"}


@pytest.mark.parametrize("back_rows", [0, past.BACK_ROWS], ids=["scan", "rewind"])
def test_keys_with_zero_bytes_and_prefixes_of_each_other(
    store: StoreUnderTest, monkeypatch: pytest.MonkeyPatch, back_rows: int
) -> None:
    """The escape of version rows keeps order: historic reads see exactly the keys that were there."""
    monkeypatch.setattr(past, "BACK_ROWS", back_rows)
    names = sorted([b"a", b"a\0", b"a\0\0", b"a\0\x01", b"a\0\xff", b"a\x01", b"a\xff", b"\0", b"\0\0", b"\xff", b"b"])
    for name in names:
        store.put(name)
    revision = store.revision
    for name in names:
        store.put(name)
    assert keys(store.get(b"\0", b"\0", revision=revision)) == names
    for name in names:
        assert keys(store.get(name, revision=revision)) == [name]
        assert keys(store.get(name, b"\0", revision=revision)) == [key for key in names if key >= name]
        if name != b"\0":  # as an end that means "from key on"
            assert keys(store.get(b"\0", name, revision=revision)) == [key for key in names if key < name]


def test_reads_from_disk_what_the_cache_let_go(tmp_path: Path) -> None:
    """A cache of a few entries, so that keys come from all three places: cache, batch being built, database."""
    store = StoreUnderTest(tmp_path / "db", cache_bytes=2000)
    for i in range(200):
        store.put(b"k%d" % (i % 20), b"%d" % i, lease=1 + i % 2)
        if i % 30 == 0:
            store.commit()
        assert kv_of(store, b"k%d" % (i * 7 % (min(i, 19) + 1))).version >= 1
    assert [kv_of(store, b"k%d" % i).value for i in range(20)] == [b"%d" % (180 + i) for i in range(20)]
    assert [kv_of(store, b"k%d" % i).version for i in range(20)] == [10] * 20
    store.delete(b"k3")
    assert not store.get(b"k3").kvs
    store.put(b"k3", b"again")
    assert kv_of(store, b"k3").version == 1
    store.store.close()


def test_cache_without_room(tmp_path: Path) -> None:
    """Every entry is pushed out at once, so that each operation meets its key in the old generation."""
    store = StoreUnderTest(tmp_path / "db", cache_bytes=0)
    for value in (b"1", b"2"):
        store.put(b"k", value)
        assert kv_of(store, b"k").value == value
    store.delete(b"k")
    assert not store.get(b"k").kvs
    store.put(b"k", b"3")
    assert kv_of(store, b"k").version == 1
    store.put(b"other")
    assert kv_of(store, b"k").value == b"3"
    store.store.close()
