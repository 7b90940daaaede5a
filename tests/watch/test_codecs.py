"""What the processes tell each other comes out as it went in."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvorum.pb.mvcc_pb2 import Event, KeyValue
from kvorum.pb.rpc_pb2 import WatchResponse
from kvorum.watch_replies import varint
from node.events import (
    Gap,
    History,
    HistoryAsk,
    Marker,
    MarkerAsk,
    Revision,
    decode,
    decode_ask,
    encode_ask,
    encode_gap,
    encode_history,
    encode_marker,
    encode_revision,
)
from node.watch.watcher import event_field
from node.watches import (
    ASK,
    ITEM,
    Create,
    decode_watches,
    encode_cancel,
    encode_create,
    encode_events,
)

numbers = st.integers(0, 2**63 - 1)
small = st.binary(max_size=20)
change = st.tuples(st.booleans(), small, small, st.none() | small)
changes = st.lists(change, min_size=1, max_size=4)


def without_prev(some: list[tuple[bool, bytes, bytes, bytes | None]]) -> list[tuple[bool, bytes, bytes, bytes | None]]:
    return [(is_delete, key, kv, None) for is_delete, key, kv, _ in some]


@settings(max_examples=100, deadline=None)
@given(
    numbers, numbers, changes, st.booleans(), st.lists(st.tuples(numbers, changes), max_size=3), st.binary(max_size=9)
)
def test_events(
    one: int,
    two: int,
    some: list[tuple[bool, bytes, bytes, bytes | None]],
    with_prev: bool,
    past: list[tuple[int, list[tuple[bool, bytes, bytes, bytes | None]]]],
    before: bytes,
) -> None:
    data = before + b"".join(
        (
            encode_revision(one, some, with_prev),
            encode_marker(one, two, -1),
            encode_gap(one, two),
            encode_history(one, two, one, 5, past, with_prev),
            encode_history(one, two, one, 5, None, with_prev),
            encode_revision(two, some[:1], with_prev),
        )
    )
    kept = some if with_prev else without_prev(some)
    kept_past = [(revision, items if with_prev else without_prev(items)) for revision, items in past]
    first, marker, gap, history, refused, last = decode(data, len(before))
    assert isinstance(first, Revision) and first[:3] == (one, with_prev, kept)
    assert isinstance(last, Revision) and last[:3] == (two, with_prev, kept[:1])
    assert marker == Marker(one, two, -1)
    assert gap == Gap(one, two)
    assert history == History(one, two, one, 5, False, kept_past)
    assert refused == History(one, two, one, 5, True, [])


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(
        st.builds(MarkerAsk, numbers, st.booleans(), st.booleans()),
        st.builds(
            HistoryAsk,
            numbers,
            numbers,
            st.integers(0, 2**32 - 1),
            st.integers(0, 2**32 - 1),
            st.booleans(),
            st.none() | st.lists(st.tuples(small, small), max_size=5).map(tuple),
        ),
    )
)
def test_asks(ask: MarkerAsk | HistoryAsk) -> None:
    assert decode_ask(b"..." + encode_ask(ask), 3) == ask


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.none(),
            numbers,
            st.builds(Create, numbers, small, small, st.integers(-(2**63), 2**63 - 1), st.integers(0, 15)),
        )
    )
)
def test_watches(items: list[Create | int | None]) -> None:
    data = b"".join(
        ASK if item is None else encode_create(item) if isinstance(item, Create) else encode_cancel(item)
        for item in items
    )
    assert list(decode_watches(b"ab" + data, 2)) == items


@pytest.mark.parametrize("groups", [[7], [7, 8, 1 << 60]])
def test_events_for_one_group_look_like_those_for_several(groups: list[int]) -> None:
    data = encode_events(5, groups, 3, b"events")
    item, count, number, size, revision = ITEM.unpack_from(data)
    assert (item, count, number, revision) == (3, len(groups), 3, 5)
    assert list(struct.unpack_from(f"<{count}Q", data, ITEM.size)) == groups
    assert data[ITEM.size + 8 * count :] == b"events" and size == len(data) - ITEM.size


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 2**32, 2**63 - 1])
def test_varint_is_protobuf_s(number: int) -> None:
    expected = KeyValue(version=number).SerializeToString()
    assert (b"\x20" + varint(number) if number else b"") == expected


@pytest.mark.parametrize("value_bytes", [0, 100, 127, 128, 20_000])
@pytest.mark.parametrize("is_delete", [False, True])
@pytest.mark.parametrize("prev", [None, KeyValue(key=b"k", value=b"p" * 300, version=3)])
@pytest.mark.parametrize("with_prev", [False, True])
def test_event_fields_are_what_protobuf_writes(
    value_bytes: int, is_delete: bool, prev: KeyValue | None, with_prev: bool
) -> None:
    kv = KeyValue(key=b"k", value=b"v" * value_bytes, mod_revision=5)
    event = Event(type=Event.DELETE if is_delete else Event.PUT, kv=kv)
    if with_prev and prev is not None:
        event.prev_kv.CopyFrom(prev)
    change = (is_delete, b"k", kv.SerializeToString(), None if prev is None else prev.SerializeToString())
    assert event_field(change, with_prev) == WatchResponse(events=[event]).SerializeToString()
