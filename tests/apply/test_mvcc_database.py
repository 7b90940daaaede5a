"""The database under the store: bounds, the batch being built, failing writes, the cursor."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvorum.errors import ApiError
from kvorum.pb.rpc_pb2 import RangeRequest
from node.apply.mvcc.database import Cursor, Database, Position
from tests.apply.mvcc_store import DiskFullError, FailingDatabase, StoreUnderTest, delete_op, put_op, range_op, txn_op


@pytest.fixture
def database(tmp_path: Path) -> Iterator[FailingDatabase]:
    opened = FailingDatabase(str(tmp_path / "db"))
    yield opened
    opened.close()


def row(number: int) -> bytes:
    return b"k" + number.to_bytes(8, "big")


def test_scans_keep_their_own_bounds(database: Database) -> None:
    """Scans begun later, and ended, leave the bound of an earlier one alone."""
    database.write_apart((row(i), b"v") for i in range(100))
    for read in (database.scan, database.scan_values, database.keys):
        first = read(row(0), row(60))
        found = []
        for item in first:
            found.append(item)
            assert len(list(database.scan(row(0), row(7)))) == 7
            assert len(list(database.keys(b"a", row(0)))) == 0
        assert len(found) == 60


def test_a_scan_shows_the_moment_it_began(database: Database) -> None:
    database.write_apart((row(i), b"old") for i in range(0, 20, 2))
    database.pending[row(3)] = b"pending"
    database.pending[row(4)] = None
    scan = database.scan(row(0), row(20))
    back = database.scan_back(row(0), row(20))
    database.pending[row(5)] = b"later"
    database.write_apart([(row(7), b"later"), (row(0), None)])
    expected = [row(i) for i in (0, 2, 3, 6, 8, 10, 12, 14, 16, 18)]
    assert [key for key, _ in scan] == expected
    assert [key for key, _ in back] == expected[::-1]


def test_reads_see_the_batch_being_built(database: Database) -> None:
    database.write_apart([(b"ka", b"1"), (b"kb", b"2"), (b"kd", b"4")])
    database.pending |= {b"ka": b"one", b"kb": None, b"kc": b"three"}
    assert database.get(b"ka") == b"one"
    assert database.get(b"kb") is None
    assert database.get_many([b"ka", b"kb", b"kc", b"kd", b"ke"]) == [b"one", None, b"three", b"4", None]
    assert list(database.scan(b"k", b"l")) == [(b"ka", b"one"), (b"kc", b"three"), (b"kd", b"4")]
    assert list(database.scan_values(b"k", b"l")) == [b"one", b"three", b"4"]
    assert list(database.scan_back(b"k", b"l")) == [(b"kd", b"4"), (b"kc", b"three"), (b"ka", b"one")]
    assert list(database.scan_back(b"k", b"kd")) == [(b"kc", b"three"), (b"ka", b"one")]
    assert list(database.committed(b"k", b"l")) == [(b"ka", b"1"), (b"kb", b"2"), (b"kd", b"4")]


def test_failed_commit_loses_nothing(database: FailingDatabase) -> None:
    """Invariant 11: the rows stay, are readable, and go with the next commit."""
    database.pending[b"ka"] = b"1"
    database.failures = 2
    position = Position(Cursor(7, 3, 2), 5, 100)
    for _ in range(2):
        with pytest.raises(DiskFullError):
            database.commit(position)
        assert database.get(b"ka") == b"1"
        assert database.position.cursor == Cursor()
    database.commit(position)
    assert database.pending == {}
    assert database.position == position
    assert list(database.committed(b"k", b"l")) == [(b"ka", b"1")]


def test_cursor_and_data_survive_together(tmp_path: Path) -> None:
    """Invariant 2"""
    path = str(tmp_path / "db")
    database = Database(path)
    assert database.position == Position(Cursor(), 1, 0)
    position = Position(Cursor(index=7, requests_done=3, term=2), revision=5, row_bytes=12)
    database.pending[b"ka"] = b"1"
    database.commit(position)
    assert database.flush() == position.cursor
    database.pending[b"kb"] = b"2"  # never committed
    database.close()
    database = Database(path)
    assert database.position == position
    assert (database.get(b"ka"), database.get(b"kb")) == (b"1", None)
    assert database.size_bytes > 0
    database.close()


def test_what_was_flushed_is_in_a_checkpoint(tmp_path: Path, database: FailingDatabase) -> None:
    position = Position(Cursor(9, 0, 3), 2, 0)
    database.pending[b"ka"] = b"1"
    database.commit(position)
    database.flush()
    database.checkpoint(str(tmp_path / "checkpoint"))
    database.write_apart([(b"ka", b"later")])
    copy = Database(str(tmp_path / "checkpoint"))
    assert copy.position == position
    assert copy.get(b"ka") == b"1"
    copy.close()


def test_second_opening_is_refused(tmp_path: Path, database: FailingDatabase) -> None:
    with pytest.raises(Exception, match=r"(?i)lock"):
        Database(str(tmp_path / "db"))


def test_defragment_shrinks_the_files(database: FailingDatabase) -> None:
    """C10, MA18"""
    database.write_apart((row(i), bytes(1000)) for i in range(2000))
    database.flush()
    database.write_apart((row(i), None) for i in range(2000))
    database.flush()
    before = database.size_bytes
    database.defragment()
    assert database.size_bytes < before / 2
    assert list(database.scan(b"k", b"l")) == []


def test_memory_of_finished_requests_is_free_without_the_collector(tmp_path: Path) -> None:
    """Hot processes switch the cyclic collector off: no request may leave a cycle behind."""
    store = StoreUnderTest(tmp_path / "db")
    everything: dict[str, Any] = {"key": b"\0", "range_end": b"\0"}
    orders: list[dict[str, Any]] = [
        {},
        {"limit": 2, "min_mod_revision": 1},
        {"sort_order": 2},
        {"sort_target": 3, "sort_order": 1},
    ]

    def requests() -> None:
        for i in range(1200):
            store.put(b"k%d" % i, b"v", prev_kv=True, lease=1)
        revision = store.revision
        store.txn([put_op(b"a"), range_op(b"a", b"z", limit=3, revision=revision - 5), txn_op([delete_op(b"a", b"c")])])
        for options in orders:
            for at in (0, revision - 5, revision - 1000):
                request = RangeRequest(**everything, revision=at, **options)
                store.send_range(request)
                store.send_range(request, slice_rows=50)
                store.store.begin_range(request.SerializeToString())  # given up
        store.stream(RangeRequest(**everything, limit=30))
        store.store.begin_range_stream(RangeRequest(**everything).SerializeToString(), 1).step(5)
        with pytest.raises(ApiError):
            store.get(b"k", revision=revision + 1000)
        store.commit()
        store.store.take_events()
        store.store.history(revision - 1000, max_rows=100, max_bytes=1 << 20, want_prev=True)
        store.hash_kv()
        store.delete(b"\0", b"\0", prev_kv=True)
        store.compact(store.revision)
        store.delete_compacted()

    requests()
    gc.collect()
    gc.disable()
    try:
        requests()
        assert gc.collect() == 0
    finally:
        gc.enable()
    store.reopen()  # so that nothing holds the database's lock
    store.store.close()
