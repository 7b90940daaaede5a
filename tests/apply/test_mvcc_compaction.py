"""Compaction, HashKV, Hash and history, row by row of the behaviour table (docstrings and ids name its rows)."""

from collections.abc import Callable, Iterator
from pathlib import Path

import google_crc32c
import pytest

from kvorum import errors
from kvorum.errors import ApiError, Status
from kvorum.pb.mvcc_pb2 import KeyValue
from kvorum.pb.rpc_pb2 import HashKVResponse, HashResponse
from node.apply.mvcc.history import KeyRanges
from node.apply.mvcc.rows import CURRENT, HISTORY, HISTORY_END, VERSIONS
from tests.apply.mvcc_store import DiskFullError, StoreUnderTest, delete_op, finish, keys, put_op, txn_op

NAME_ALONE = 1084519789


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StoreUnderTest]:
    """a at 2, 3 and 6; b at 4, deleted at 5; c at 7, deleted at 8 and put again at 9."""
    opened = StoreUnderTest(tmp_path / "db")
    opened.put(b"a", b"1")
    opened.put(b"a", b"2")
    opened.put(b"b", b"1")
    opened.delete(b"b")
    opened.put(b"a", b"3")
    opened.put(b"c", b"1")
    opened.delete(b"c")
    opened.put(b"c", b"2")
    opened.commit()
    yield opened
    opened.store.close()


def history_rows(store: StoreUnderTest) -> list[int]:
    """The main revisions of the rows that are there."""
    return [int.from_bytes(row[1:9], "big") for row, _ in store.database.committed(HISTORY, HISTORY_END)]


def failure(call: Callable[..., object], *arguments: int) -> Status:
    with pytest.raises(ApiError) as raised:
        call(*arguments)
    return raised.value.status


def test_errors(store: StoreUnderTest) -> None:
    """C1, C2"""
    assert failure(store.compact, -1) == errors.COMPACTED
    assert failure(store.compact, 10) == errors.FUTURE_REV
    assert store.compact(0).header.revision == 9
    assert store.store.compacted_revision == 0
    assert failure(store.compact, 0) == errors.COMPACTED
    assert store.compact(9).header.revision == 9  # C3
    assert failure(store.compact, 9) == errors.COMPACTED
    assert failure(store.compact, -5) == errors.COMPACTED


LEFT = {
    0: [2, 3, 4, 5, 6, 7, 8, 9],
    2: [2, 3, 4, 5, 6, 7, 8, 9],
    3: [3, 4, 5, 6, 7, 8, 9],
    4: [3, 4, 5, 6, 7, 8, 9],
    5: [3, 5, 6, 7, 8, 9],  # C5: the tombstone at the compacted revision stays
    6: [6, 7, 8, 9],
    7: [6, 7, 8, 9],
    8: [6, 8, 9],
    9: [6, 9],
}


@pytest.mark.parametrize("revision", LEFT)
@pytest.mark.parametrize("slice_rows", [1, 1000])
def test_what_stays(store: StoreUnderTest, revision: int, slice_rows: int) -> None:
    """C4, C5: everything readable from the compacted revision on stays readable, and nothing else is kept."""
    readable = range(max(revision, 1), 10)
    before = {at: store.get(b"\0", b"\0", revision=at).kvs for at in readable}
    store.compact(revision)
    store.delete_compacted(slice_rows)
    assert history_rows(store) == LEFT[revision]
    versions = sum(1 for _ in store.database.keys(VERSIONS, b"w"))
    assert versions == len(LEFT[revision])
    assert {at: store.get(b"\0", b"\0", revision=at).kvs for at in readable} == before
    assert store.store.compaction.finished_revision == revision


def test_one_compaction_after_another_leaves_what_one_leaves(store: StoreUnderTest) -> None:
    """C5: a kept tombstone goes with the next compaction; waiting ones run in order."""
    for revision in (3, 5, 8):
        store.compact(revision)
        store.delete_compacted()
    assert history_rows(store) == LEFT[8]
    store.compact(9)
    store.delete_compacted()
    assert history_rows(store) == LEFT[9]


def test_many_waiting_compactions(tmp_path: Path) -> None:
    """The queue has a bound: beyond it, one compaction does for two."""
    store = StoreUnderTest(tmp_path / "db")
    for _ in range(40):
        store.put(b"k")
    for revision in range(2, 41):
        store.compact(revision)
    store.delete_compacted(3)
    assert history_rows(store) == [40, 41]
    assert store.store.compaction.finished_revision == 40
    store.store.close()


def test_nothing_is_deleted_before_the_commit(store: StoreUnderTest) -> None:
    """C6: a crash between the two must not find rows gone that the store still promises."""
    store.compact(9)
    assert not store.store.compaction.step(1000)
    assert history_rows(store) == LEFT[0]
    store.commit()
    assert store.store.compaction.step(1000)
    assert history_rows(store) == LEFT[9]


@pytest.mark.parametrize("steps", range(9))
def test_resumed_after_a_restart(store: StoreUnderTest, steps: int) -> None:
    """C8, H9: from whatever point; the interrupted one leaves no hash."""
    store.compact(9)
    store.commit()
    while store.store.compaction.hash_of(9) is None and steps > 0:
        store.store.compaction.step(3 if steps > 5 else 100)
        steps -= 1
    finished = store.store.compaction.idle
    store.reopen()
    assert store.store.compacted_revision == 9
    assert store.store.compaction.idle == finished
    store.delete_compacted(2)
    assert history_rows(store) == LEFT[9]
    assert store.store.compaction.hash_of(9) is None


def test_failed_slice_is_repeated(store: StoreUnderTest) -> None:
    """Invariant 11"""
    store.compact(8)
    store.commit()
    for _ in range(20):
        store.database.failures = 1
        try:
            store.store.compaction.step(1)
        except DiskFullError:
            assert not store.store.compaction.idle
        store.database.failures = 0
    store.delete_compacted(1)
    assert history_rows(store) == LEFT[8]


def test_same_key_twice_in_one_revision(store: StoreUnderTest) -> None:
    """V6: the later sub revision is the one that stays; a live key is never lost."""
    store.txn([put_op(b"p", b"1"), delete_op(b"p", b"\0")])
    store.txn([txn_op([delete_op(b"a", b"\0")]), txn_op([put_op(b"a", b"new")])])
    store.compact(11)
    store.delete_compacted()
    assert keys(store.get(b"\0", b"\0", revision=11)) == [b"a"]
    assert store.get(b"a").kvs[0].value == b"new"


def test_size_in_use(store: StoreUnderTest) -> None:
    """C10: the figure counts exactly the bytes of the rows there are, also after a restart."""

    def row_bytes() -> int:
        tables = ((HISTORY, HISTORY_END), (CURRENT, b"d"), (VERSIONS, b"w"))
        return sum(len(row) + len(value) for start, end in tables for row, value in store.database.scan(start, end))

    def counted() -> int:
        return store.store.keyspace.row_bytes - store.store.compaction.freed_bytes

    assert counted() == row_bytes()
    store.compact(9)
    store.delete_compacted(2)
    assert counted() == row_bytes()
    store.reopen()
    assert counted() == row_bytes()
    size_bytes, in_use_bytes = store.store.sizes()
    assert 0 < in_use_bytes <= size_bytes


# --- HashKV ----------------------------------------------------------------------------------------------------------


def test_hash_by_definition(store: StoreUnderTest) -> None:
    """H1, H2, H3"""
    data = b"key"
    for main, kv in (
        (2, KeyValue(key=b"a", create_revision=2, mod_revision=2, version=1, value=b"1")),
        (3, KeyValue(key=b"a", create_revision=2, mod_revision=3, version=2, value=b"2")),
        (4, KeyValue(key=b"b", create_revision=4, mod_revision=4, version=1, value=b"1")),
        (5, KeyValue(key=b"b")),
    ):
        data += main.to_bytes(8, "big") + b"_" + bytes(8) + (b"t" if main == 5 else b"") + kv.SerializeToString()
    response = store.hash_kv(5)
    assert response.hash == google_crc32c.value(data)
    assert response == HashKVResponse(  # H7
        header=store.get(b"a").header, hash=response.hash, compact_revision=-1, hash_revision=5
    )


def put_row(main: int, key: bytes, value: bytes, create_revision: int, version: int) -> bytes:
    kv = KeyValue(key=key, create_revision=create_revision, mod_revision=main, version=version, value=value)
    return main.to_bytes(8, "big") + b"_" + bytes(8) + kv.SerializeToString()


@pytest.mark.parametrize("delete_rows", [False, True])
def test_hash_leaves_out_what_was_overwritten_since_the_compaction(tmp_path: Path, delete_rows: bool) -> None:
    """H4, H5: below the compacted revision only the versions that live at the asked one count."""
    store = StoreUnderTest(tmp_path / "db")
    for key in (b"a", b"b", b"a"):
        store.put(key, b"v")
    store.compact(3)
    store.commit()
    if delete_rows:
        store.delete_compacted()
    assert store.hash_kv(4).hash == google_crc32c.value(
        b"key" + put_row(3, b"b", b"v", 3, 1) + put_row(4, b"a", b"v", 2, 2)
    )
    store.store.close()


@pytest.mark.parametrize("delete_rows", [False, True])
def test_hash_without_a_live_key(tmp_path: Path, delete_rows: bool) -> None:
    """H5: with an empty keep set the rule is off, and what the compaction leaves counts."""
    store = StoreUnderTest(tmp_path / "db")
    store.put(b"a", b"old")
    store.put(b"a", b"v")
    store.put(b"b", b"v")
    store.delete(b"a", b"z")
    store.compact(4)
    store.commit()
    if delete_rows:
        store.delete_compacted()
    tombstones = b"".join(
        (5).to_bytes(8, "big") + b"_" + sub.to_bytes(8, "big") + b"t" + KeyValue(key=key).SerializeToString()
        for sub, key in enumerate((b"a", b"b"))
    )
    rows = put_row(3, b"a", b"v", 2, 2) + put_row(4, b"b", b"v", 4, 1)
    assert store.hash_kv(5).hash == google_crc32c.value(b"key" + rows + tombstones)
    store.store.close()


def test_hash_revisions(store: StoreUnderTest) -> None:
    """H6"""
    assert store.hash_kv(1).hash == store.hash_kv(-4).hash == NAME_ALONE
    assert store.hash_kv(0) == store.hash_kv(9)
    assert failure(store.hash_kv, 10) == errors.FUTURE_REV
    store.compact(4)
    assert failure(store.hash_kv, 3) == errors.COMPACTED
    assert store.hash_kv(4).compact_revision == 4


@pytest.mark.parametrize("compacted", [0, 4, 5, 8, 9])
@pytest.mark.parametrize("slice_rows", [1, 1000])
def test_hash_does_not_depend_on_progress(store: StoreUnderTest, compacted: int, slice_rows: int) -> None:
    """H4, H5, invariant 3: the same before, while and after the rows are deleted, also with no live key left."""
    store.delete(b"a", b"\0")
    store.compact(compacted)
    store.commit()
    readable = [at for at in range(max(compacted, 1), 11) if at != compacted]
    before = {at: store.hash_kv(at, slice_rows=slice_rows).hash for at in readable}
    while not store.store.compaction.idle:
        store.store.compaction.step(1)
        assert {at: store.hash_kv(at, slice_rows=slice_rows).hash for at in readable} == before


def test_hash_keeps_its_view(store: StoreUnderTest) -> None:
    """Invariant 9: writes and a compaction between the slices do not show."""
    expected = store.hash_kv()
    reading = store.store.begin_hash_kv(b"")
    assert reading.step(1) is None
    store.put(b"later")
    store.compact(9)
    store.delete_compacted()
    assert HashKVResponse.FromString(finish(reading, 1)) == expected


def test_hashes_of_compactions(tmp_path: Path) -> None:
    """H8: the ten newest, with the compacted revision before."""
    store = StoreUnderTest(tmp_path / "db")
    store.put(b"k")
    expected = {}
    for revision in range(2, 14):
        store.put(b"k")
        store.commit()
        expected[revision] = store.hash_kv(revision)
        store.compact(revision)
        store.delete_compacted(2)
    for revision in range(4, 14):
        response = store.hash_kv(revision)
        assert response.hash == expected[revision].hash
        assert response.compact_revision == expected[revision].compact_revision == revision - 1
    assert failure(store.hash_kv, 3) == errors.COMPACTED
    store.store.close()


def test_storage_hash(store: StoreUnderTest) -> None:
    """H12: over the tables without the cursor."""
    first = HashResponse.FromString(finish(store.store.begin_hash(), 2))
    store.commit()
    assert HashResponse.FromString(finish(store.store.begin_hash(), 1000)) == first
    store.put(b"z")
    store.commit()
    assert HashResponse.FromString(finish(store.store.begin_hash(), 1000)).hash != first.hash


# --- history ---------------------------------------------------------------------------------------------------------


def revisions(
    store: StoreUnderTest, start: int, max_rows: int = 1000, ranges: KeyRanges | None = None
) -> tuple[list[int], int]:
    events, to_revision = store.store.history(start, max_rows=max_rows, max_bytes=1 << 20, ranges=ranges)
    return [revision for revision, _ in events], to_revision


def test_history(store: StoreUnderTest) -> None:
    """WE6, WE7, WE8, W11: all events from a revision on, as they were when they happened."""
    expected = store.store.take_events()
    assert store.store.history(2, max_rows=1000, max_bytes=1 << 20, want_prev=True) == (expected, 9)
    assert store.store.history(6, max_rows=1000, max_bytes=1 << 20, want_prev=True) == (expected[4:], 9)
    without = [(revision, [(*change[:3], None) for change in changes]) for revision, changes in expected]
    assert store.store.history(2, max_rows=1000, max_bytes=1 << 20)[0] == without
    assert revisions(store, 10) == ([], 9)  # W12


def test_history_slices_hold_whole_revisions(store: StoreUnderTest) -> None:
    """Invariant 6: a single huge revision is returned whole."""
    store.txn([put_op(b"k%d" % i, b"v") for i in range(20)])
    store.put(b"last")
    store.commit()
    assert revisions(store, 8, max_rows=1) == ([8], 8)
    assert revisions(store, 9, max_rows=2) == ([9, 10], 10)
    events, to_revision = store.store.history(10, max_rows=1, max_bytes=1)
    assert ([len(changes) for _, changes in events], to_revision) == ([20], 10)
    assert revisions(store, 11, max_rows=1) == ([11], 11)


def test_history_of_ranges(store: StoreUnderTest) -> None:
    """Rows outside count as work, but not as events."""
    ranges = KeyRanges([(b"b", b"c"), (b"x", None), (b"z", b"y")])
    assert revisions(store, 2, ranges=ranges) == ([4, 5], 9)
    assert revisions(store, 2, max_rows=3, ranges=ranges) == ([4], 4)
    assert revisions(store, 6, max_rows=2, ranges=ranges) == ([], 7)


def test_history_ends_at_the_last_commit(store: StoreUnderTest) -> None:
    """Invariant 6: no event before its write is readable after a crash."""
    store.put(b"pending")
    assert revisions(store, 9) == ([9], 9)
    store.commit()
    assert revisions(store, 9) == ([9, 10], 10)


@pytest.mark.parametrize("delete_rows", [False, True])
def test_history_after_a_compaction(store: StoreUnderTest, delete_rows: bool) -> None:
    """W13, W14, C5, WE10: from the compacted revision on; a previous value below it is absent."""
    store.compact(5)
    store.commit()
    if delete_rows:
        store.delete_compacted()
    assert failure(lambda: revisions(store, 4)) == errors.COMPACTED
    events, _ = store.store.history(5, max_rows=1000, max_bytes=1 << 20, want_prev=True)
    assert events[0] == (5, [(True, b"b", KeyValue(key=b"b", mod_revision=5).SerializeToString(), None)])
    assert events[1][1][0][3] is not None  # the value of `a` at 5


@pytest.mark.parametrize("delete_rows", [False, True])
def test_history_of_the_compacted_revision(store: StoreUnderTest, delete_rows: bool) -> None:
    """W13, V6: of a key written twice in it the last, whether the rows are deleted yet or not."""
    store.txn([put_op(b"p"), put_op(b"q"), delete_op(b"p", b"\0")])
    store.compact(10)
    store.commit()
    if delete_rows:
        store.delete_compacted()
    for later in (False, True):
        if later:
            store.put(b"later")
            store.commit()
        ((revision, changes), *_), _ = store.store.history(10, max_rows=1000, max_bytes=1 << 20)
        assert (revision, [change[:2] for change in changes]) == (10, [(True, b"p"), (True, b"q")])


def test_key_ranges() -> None:
    ranges = KeyRanges(
        [(b"d", b"f"), (b"a", b"b"), (b"e", b"h"), (b"b", b"c"), (b"m", b"l"), (b"x", None), (b"y", b"z")]
    )
    inside = [chr(c) for c in range(ord("a"), ord("z") + 1) if chr(c).encode() in ranges]
    assert inside == list("abdefgxyz")
    assert b"\xff" in ranges
    assert b"" not in ranges
    assert b"a" not in KeyRanges([])
