"""Range and RangeStream, row by row of the behaviour table (docstrings and ids name its rows)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvorum import errors
from kvorum.errors import ApiError, Status
from kvorum.pb.mvcc_pb2 import KeyValue
from kvorum.pb.rpc_pb2 import RangeRequest, RangeStreamResponse
from node.apply.mvcc import past
from node.apply.mvcc.store import SMALL_ROWS
from tests.apply.mvcc_store import MAX_REQUEST_BYTES, StoreUnderTest, finish, keys

EVERYTHING = {"key": b"\0", "range_end": b"\0"}


@pytest.fixture(params=[0, past.BACK_ROWS], ids=["scan", "rewind"])
def way_back(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to read a past revision, one after the other."""
    monkeypatch.setattr(past, "BACK_ROWS", request.param)


@pytest.fixture
def store(tmp_path: Path, way_back: None) -> Iterator[StoreUnderTest]:
    """Keys a to e, written in the order c, a, e, b, d at revisions 2 to 6; b again at 7."""
    opened = StoreUnderTest(tmp_path / "db")
    for key, value in ((b"c", b"3"), (b"a", b"5"), (b"e", b"1"), (b"b", b"9"), (b"d", b"2")):
        opened.put(key, value, lease=1)
    opened.put(b"b", b"4", lease=1)
    opened.commit()
    yield opened
    opened.store.close()


def status_of(store: StoreUnderTest, **fields: Any) -> Status:
    with pytest.raises(ApiError) as raised:
        store.get(**fields)
    return raised.value.status


RANGES: dict[str, tuple[dict[str, Any], list[bytes], bool, int]] = {
    "P8 one key": ({"key": b"a"}, [b"a"], False, 1),
    "P8 absent key": ({"key": b"aa"}, [], False, 0),
    "P8 from key on": ({"key": b"c", "range_end": b"\0"}, [b"c", b"d", b"e"], False, 3),
    "P8 half-open": ({"key": b"b", "range_end": b"d"}, [b"b", b"c"], False, 2),
    "P8 inverted": ({"key": b"d", "range_end": b"b"}, [], False, 0),
    "P8 end at the key": ({"key": b"d", "range_end": b"d"}, [], False, 0),
    "P8 two zero bytes are an ordinary end": ({"key": b"\0", "range_end": b"\0\0"}, [], False, 0),
    "R3 negative limit": ({**EVERYTHING, "limit": -5}, [b"a", b"b", b"c", b"d", b"e"], False, 5),
    "R4 negative revision": ({"key": b"a", "revision": -3}, [b"a"], False, 1),
    "R6 revision 1": ({**EVERYTHING, "revision": 1}, [], False, 0),
    "R4 current revision by number": ({**EVERYTHING, "revision": 7}, [b"a", b"b", b"c", b"d", b"e"], False, 5),
    "R4 past revision": ({**EVERYTHING, "revision": 3}, [b"a", b"c"], False, 2),
    "R7 count ignores the limit": ({**EVERYTHING, "limit": 2}, [b"a", b"b"], True, 5),
    "R7 and so in the past": ({**EVERYTHING, "limit": 2, "revision": 6}, [b"a", b"b"], True, 5),
    "R7 count ignores filters": ({**EVERYTHING, "min_mod_revision": 6}, [b"b", b"d"], False, 5),
    "R8 count only": ({**EVERYTHING, "count_only": True, "limit": 1, "max_mod_revision": 2}, [], False, 5),
    "R8 count only in the past": ({**EVERYTHING, "count_only": True, "limit": 1, "revision": 4}, [], False, 3),
    "R9 more after filtering": ({**EVERYTHING, "max_mod_revision": 4, "limit": 2}, [b"a", b"c"], True, 5),
    "R9 nothing left after filtering": (
        {**EVERYTHING, "max_mod_revision": 4, "limit": 3},
        [b"a", b"c", b"e"],
        False,
        5,
    ),
    "R10 limit equal to the keys": ({**EVERYTHING, "limit": 5}, [b"a", b"b", b"c", b"d", b"e"], False, 5),
    "R10 limit above": ({**EVERYTHING, "limit": 1 << 62}, [b"a", b"b", b"c", b"d", b"e"], False, 5),
    "R11 max mod": ({**EVERYTHING, "max_mod_revision": 3}, [b"a", b"c"], False, 5),
    "R11 min create": ({**EVERYTHING, "min_create_revision": 4}, [b"b", b"d", b"e"], False, 5),
    "R11 max create": ({**EVERYTHING, "max_create_revision": 2}, [b"c"], False, 5),
    "R11 a negative maximum is active": ({**EVERYTHING, "max_mod_revision": -1}, [], False, 5),
    "R11 a negative minimum is active": (
        {**EVERYTHING, "min_mod_revision": -1},
        [b"a", b"b", b"c", b"d", b"e"],
        False,
        5,
    ),
    "R13 key ascending": ({**EVERYTHING, "sort_order": "ASCEND", "limit": 2}, [b"a", b"b"], True, 5),
    "R12 key descending": ({**EVERYTHING, "sort_order": "DESCEND", "limit": 2}, [b"e", b"d"], True, 5),
    "R12 key descending, many": (
        {**EVERYTHING, "sort_order": "DESCEND", "limit": 4},
        [b"e", b"d", b"c", b"b"],
        True,
        5,
    ),
    "R12 key descending, past": (
        {**EVERYTHING, "sort_order": "DESCEND", "limit": 2, "revision": 3},
        [b"c", b"a"],
        False,
        2,
    ),
    "R12 sort before the limit": (
        {**EVERYTHING, "sort_order": "ASCEND", "sort_target": "MOD", "limit": 2},
        [b"c", b"a"],
        True,
        5,
    ),
    "R12 filter before sort": (
        {**EVERYTHING, "sort_order": "DESCEND", "sort_target": "CREATE", "max_mod_revision": 4, "limit": 2},
        [b"e", b"a"],
        True,
        5,
    ),
    "R14 a target without an order": (
        {**EVERYTHING, "sort_target": "MOD", "limit": 2},
        [b"c", b"a"],
        True,
        5,
    ),
    "R14 only limit + 1 keys are sorted": (
        {**EVERYTHING, "sort_target": "VALUE", "limit": 3},
        [b"d", b"c", b"b"],
        True,
        5,
    ),
    "R14 without a limit": ({**EVERYTHING, "sort_target": "VALUE"}, [b"e", b"d", b"c", b"b", b"a"], False, 5),
    "R15 Q2 equal values in key order": (
        {**EVERYTHING, "sort_order": "ASCEND", "sort_target": "VERSION"},
        [b"a", b"c", b"d", b"e", b"b"],
        False,
        5,
    ),
    "R16 by value, keys only": (
        {**EVERYTHING, "sort_order": "DESCEND", "sort_target": "VALUE", "keys_only": True},
        [b"a", b"b", b"c", b"d", b"e"],
        False,
        5,
    ),
    "R18 one key, limit and sort": (
        {"key": b"a", "limit": 1, "sort_order": "DESCEND", "sort_target": "VERSION"},
        [b"a"],
        False,
        1,
    ),
    "R18 one key, count": ({"key": b"a", "count_only": True}, [], False, 1),
    "R18 one absent key, count": ({"key": b"zz", "count_only": True}, [], False, 0),
    "R20 all prefixes of 0xff": ({"key": b"\xff", "range_end": b"\0"}, [], False, 0),
}


@pytest.mark.parametrize(("fields", "expected", "more", "count"), RANGES.values(), ids=RANGES.keys())
def test_range(store: StoreUnderTest, fields: dict[str, Any], expected: list[bytes], more: bool, count: int) -> None:
    """The same at once, and in slices of one row."""
    for slice_rows in (None, 1):
        response = store.send_range(RangeRequest(**fields), slice_rows=slice_rows)
        assert (keys(response), response.more, response.count) == (expected, more, count)
        assert response.header.revision == 7  # V8: also when an old revision was asked


def test_revision_errors(store: StoreUnderTest) -> None:
    """R4, R5: on ranges without keys, with count_only and keys_only too."""
    store.compact(4)
    for options in ({}, {"count_only": True}, {"keys_only": True}, {"range_end": b"zz"}):
        assert status_of(store, key=b"x", revision=8, **options) == errors.FUTURE_REV
        assert status_of(store, key=b"x", revision=3, **options) == errors.COMPACTED
        assert store.get(b"x", revision=4, **options).count == 0
    assert keys(store.get(b"a", b"z", revision=4)) == [b"a", b"c", b"e"]


def test_keys_only(store: StoreUnderTest) -> None:
    """R17, X2: no value, and no lease unless the values were needed for the sort."""
    (whole,) = store.get(b"b").kvs
    (shown,) = store.get(b"b", keys_only=True).kvs
    whole.ClearField("value")
    sorted_by_value = store.get(b"b", keys_only=True, sort_target="VALUE").kvs[0]
    assert sorted_by_value == whole
    whole.ClearField("lease")
    assert shown == whole
    assert store.get(b"b", keys_only=True, revision=7).kvs[0] == whole


def test_deleted_key_is_visible_before(store: StoreUnderTest) -> None:
    """R19"""
    store.delete(b"a")
    assert store.get(b"a", revision=8).count == 0
    assert store.get(b"a", revision=7).kvs[0].value == b"5"
    assert store.get(b"a").count == 0


def test_requests_for_one_key_in_every_encoding(store: StoreUnderTest) -> None:
    """The short cut for a lone key answers as the long way does, and mistakes no other request for one."""
    long_key = b"k" * 200
    store.put(long_key, b"v")
    store.put(b"8\x01", b"v")
    for request in (
        RangeRequest(key=b"a"),
        RangeRequest(key=b"a", serializable=True),
        RangeRequest(key=b"8\x01"),
        RangeRequest(key=b"8\x01", serializable=True),
        RangeRequest(key=long_key, serializable=True),
        RangeRequest(key=b"a", keys_only=True),
        RangeRequest(key=b"a", limit=1),
        RangeRequest(key=b"a", revision=1),
        RangeRequest(key=b"aa", serializable=True),
    ):
        wordy = RangeRequest(limit=request.limit or -1)
        wordy.MergeFrom(request)
        assert store.send_range(request) == store.send_range(wordy)
        assert store.send_range(request, slice_rows=1) == store.send_range(wordy)


@pytest.fixture
def large(tmp_path: Path, way_back: None) -> Iterator[StoreUnderTest]:
    opened = StoreUnderTest(tmp_path / "db")
    for i in range(SMALL_ROWS + 500):
        opened.put(b"k%05d" % i, b"v%d" % (i % 7), lease=1)
    opened.commit()
    yield opened
    opened.store.close()


@pytest.mark.parametrize("fields", [{}, {"sort_target": "VALUE", "sort_order": "DESCEND"}, {"sort_order": "DESCEND"}])
@pytest.mark.parametrize("revision", [0, SMALL_ROWS + 300])
def test_long_read_keeps_its_view(large: StoreUnderTest, fields: dict[str, Any], revision: int) -> None:
    """Invariant 9: writes, deletes and a compaction between the slices do not show."""
    request = RangeRequest(key=b"\0", range_end=b"\0", revision=revision, **fields)
    expected = large.send_range(request)
    reading = large.store.begin_range(request.SerializeToString())
    assert not isinstance(reading, bytes)
    message = None
    step = 0
    while message is None:
        message = reading.step(100)
        large.put(b"k%05d" % step, b"changed")
        large.put(b"new%d" % step)
        large.delete(b"k%05d" % (SMALL_ROWS + step))
        if step % 3 == 0:
            large.commit()
        step += 1
    assert step > 10
    assert type(expected).FromString(message) == expected


def test_past_read_overtaken_by_a_compaction_ends_compacted(large: StoreUnderTest) -> None:
    large.delete(b"\0", b"\0")
    request = RangeRequest(key=b"\0", range_end=b"\0", revision=SMALL_ROWS + 300)
    reading = large.store.begin_range(request.SerializeToString())
    assert not isinstance(reading, bytes)
    assert reading.step(1) is None
    large.compact(large.revision)
    large.delete_compacted()
    with pytest.raises(ApiError) as raised:
        finish(reading, 100)
    assert raised.value.status == errors.COMPACTED


# --- RangeStream -----------------------------------------------------------------------------------------------------


def test_stream_grows_its_chunks(large: StoreUnderTest) -> None:
    """RS4, RS6, RS7: 10 rows, then twice as many each time; header, count and more on the last message alone."""
    messages = [message.range_response for message in large.stream(RangeRequest(key=b"\0", range_end=b"\0"))]
    sizes = [len(message.kvs) for message in messages]
    assert sizes == [10, 20, 40, 80, 160, 320, 640, 230]
    assert all(not message.HasField("header") and not message.count for message in messages[:-1])
    assert messages[-1].header == large.get(b"k").header
    assert (messages[-1].count, messages[-1].more) == (1500, False)
    assert [kv for message in messages for kv in message.kvs] == list(large.get(b"\0", b"\0").kvs)


def test_stream_shrinks_its_chunks(tmp_path: Path) -> None:
    """RS4: never below one row."""
    store = StoreUnderTest(tmp_path / "db")
    for i in range(8):
        store.put(b"k%d" % i, bytes(MAX_REQUEST_BYTES - 100))
    sizes = [len(m.range_response.kvs) for m in store.stream(RangeRequest(key=b"k", range_end=b"l"))]
    assert sizes == [8]
    for i in range(8, 24):
        store.put(b"k%02d" % i, bytes(MAX_REQUEST_BYTES - 100))
    sizes = [len(m.range_response.kvs) for m in store.stream(RangeRequest(key=b"k", range_end=b"l"))]
    assert sizes == [10, 5, 2, 2, 2, 2, 1]
    store.store.close()


STREAMS: dict[str, tuple[dict[str, Any], list[int], int, bool]] = {
    "RS3 count only": ({**EVERYTHING, "count_only": True}, [0], 1500, False),
    "RS3 count only with a limit": ({**EVERYTHING, "count_only": True, "limit": 1}, [0], 1500, False),
    "RS4 limit below the first chunk": ({**EVERYTHING, "limit": 3}, [3], 1500, True),
    "RS4 RS8 never above what is left": ({**EVERYTHING, "limit": 35}, [10, 20, 5], 1500, True),
    "RS8 limit is all there is": ({"key": b"k00000", "range_end": b"k00012", "limit": 12}, [10, 2], 12, False),
    "RS9 negative limit": ({**EVERYTHING, "limit": -1}, [1500], 1500, False),
    "RS10 empty range": ({"key": b"z", "range_end": b"\0"}, [0], 0, False),
    "RS10 inverted": ({"key": b"z", "range_end": b"a"}, [0], 0, False),
    "RS7 past revision": ({**EVERYTHING, "revision": 14}, [10, 3], 13, False),
    "one key": ({"key": b"k00001"}, [1], 1, False),
    "one absent key": ({"key": b"nothing"}, [0], 0, False),
}


@pytest.mark.parametrize(("fields", "sizes", "count", "more"), STREAMS.values(), ids=STREAMS.keys())
def test_stream(large: StoreUnderTest, fields: dict[str, Any], sizes: list[int], count: int, more: bool) -> None:
    for slice_rows in (1 << 30, 7):
        messages = [m.range_response for m in large.stream(RangeRequest(**fields), slice_rows=slice_rows)]
        assert [len(message.kvs) for message in messages] == sizes
        assert (messages[-1].count, messages[-1].more) == (count, more)
        assert messages[-1].header.revision == large.revision  # RS6: also when an old revision was asked


def test_stream_keys_only(large: StoreUnderTest) -> None:
    """R17"""
    (first, *_) = large.stream(RangeRequest(key=b"\0", range_end=b"\0", keys_only=True))
    assert all(not kv.value and not kv.lease and kv.version for kv in first.range_response.kvs)


@pytest.mark.parametrize("release", [False, True])
def test_stream_is_one_snapshot(large: StoreUnderTest, release: bool) -> None:
    """RS5, V8: writes between the messages do not show, also when the stream let go of its view meanwhile."""
    expected = list(large.get(b"\0", b"\0").kvs)
    revision = large.revision
    stream = large.store.begin_range_stream(
        RangeRequest(key=b"\0", range_end=b"\0").SerializeToString(), MAX_REQUEST_BYTES
    )
    found: list[KeyValue] = []
    step = 0
    while not stream.done:
        message = stream.step(1000)
        if message is None:
            continue
        response = RangeStreamResponse.FromString(message).range_response
        found += response.kvs
        if release:
            stream.release()
        large.put(b"k%05d" % step, b"changed")
        large.delete(b"k%05d" % (700 + step))
        large.put(b"k%05d+" % (800 + step))
        large.commit()
        step += 1
    assert found == expected
    assert (response.header.revision, response.count) == (revision, 1500)


def test_stream_overtaken_by_a_compaction(large: StoreUnderTest) -> None:
    """RS11: the error comes after partial data."""
    stream = large.store.begin_range_stream(
        RangeRequest(key=b"\0", range_end=b"\0").SerializeToString(), MAX_REQUEST_BYTES
    )
    assert stream.step(1000) is not None
    stream.release()
    large.put(b"k")
    large.compact(large.revision)
    with pytest.raises(ApiError) as raised:
        stream.step(1000)
    assert raised.value.status == errors.COMPACTED


def test_stream_revision_errors(large: StoreUnderTest) -> None:
    for revision, status in ((large.revision + 1, errors.FUTURE_REV), (3, errors.COMPACTED)):
        if status is errors.COMPACTED:
            large.compact(4)
        with pytest.raises(ApiError) as raised:
            large.stream(RangeRequest(key=b"k", revision=revision))
        assert raised.value.status == status
