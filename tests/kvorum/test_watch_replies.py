"""The framing of replies, read back with protobuf."""

import struct
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvorum.pb.mvcc_pb2 import Event, KeyValue
from kvorum.pb.rpc_pb2 import ResponseHeader, WatchResponse
from kvorum.watch_replies import (
    CANCELED,
    CHUNK_BYTES,
    CREATED,
    MAX_SHARED,
    Headers,
    Reply,
    canceled_compacted,
    refused,
    split_events,
    watch_id_field,
)

INT64 = st.integers(-(2**63), 2**63 - 1)
UINT64 = st.integers(0, 2**64 - 1)


def messages(framed: bytes) -> list[WatchResponse]:
    found = []
    at = 0
    while at < len(framed):
        flag, size = struct.unpack_from(">BI", framed, at)
        assert flag == 0
        found.append(WatchResponse.FromString(framed[at + 5 : at + 5 + size]))
        at += 5 + size
    assert at == len(framed)
    return found


def event(size_bytes: int, name: bytes = b"k") -> Event:
    return Event(kv=KeyValue(key=name, value=b"v" * size_bytes, mod_revision=7))


@given(UINT64, UINT64, st.integers(0, 2**63 - 1), UINT64, INT64)
def test_fields_are_what_protobuf_writes(cluster: int, member: int, revision: int, term: int, watch_id: int) -> None:
    header = ResponseHeader(cluster_id=cluster, member_id=member, revision=revision, raft_term=term)
    headers = Headers(cluster, member)
    ours = headers.at(revision, term)
    assert ours == WatchResponse(header=header).SerializeToString()
    assert headers.at(revision, term) == ours, "the second time from what was kept"
    id_field = watch_id_field(watch_id)
    created = WatchResponse(header=header, watch_id=watch_id, created=True)
    assert ours + id_field + CREATED == created.SerializeToString()
    canceled = WatchResponse(header=header, watch_id=watch_id, canceled=True)
    assert ours + id_field + CANCELED == canceled.SerializeToString()
    compacted = WatchResponse(header=header, watch_id=watch_id, canceled=True, compact_revision=300)
    assert canceled_compacted(ours, id_field, 300) == compacted.SerializeToString()
    no = WatchResponse(header=header, watch_id=-1, created=True, canceled=True, cancel_reason="é" * 100)
    assert refused(ours, "é" * 100) == no.SerializeToString()


@pytest.mark.parametrize("count", [1, 2, 500])
@pytest.mark.parametrize("value_bytes", [0, 256, CHUNK_BYTES])
def test_a_chunk_holds_a_whole_message_for_each_watch(count: int, value_bytes: int) -> None:
    header = Headers(1, 2).at(9, 3)
    body = WatchResponse(events=[event(value_bytes)]).SerializeToString()
    reply = Reply(header, (body,), 1)
    ids = [watch_id_field(200 + number) for number in range(count)]
    chunks = list(reply.chunks(ids))
    assert sum(number for _, number in chunks) == count
    assert all(len(framed) <= max(CHUNK_BYTES, len(body) + 100) for framed, _ in chunks)
    replies = [one for framed, _ in chunks for one in messages(framed)]
    assert [one.watch_id for one in replies] == [200 + number for number in range(count)]
    for one in replies:
        assert one.header == ResponseHeader(cluster_id=1, member_id=2, revision=9, raft_term=3)
        assert list(one.events) == [event(value_bytes)]
    assert reply.framed(ids[0]) == messages_of(reply, ids[0])


def messages_of(reply: Reply, id_field: bytes) -> bytes:
    message = reply.header + id_field + reply.tails[0]
    return struct.pack(">BI", 0, len(message)) + message


def test_lone_watches_with_the_same_id_share_their_bytes_and_few_are_kept() -> None:
    reply = Reply(b"", (b"",), 1)
    assert reply.framed(b"") is reply.framed(b"")
    for number in range(100):
        reply.framed(watch_id_field(number))
        assert len(reply._framed) <= MAX_SHARED


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=30), st.integers(60, 600), st.integers(-1, 300))
def test_fragments_hold_all_events_in_order_and_stay_below_the_limit(
    sizes: list[int], limit_bytes: int, watch_id: int
) -> None:
    header = Headers(1, 2).at(9, 3)
    events = [event(size, b"%d" % number) for number, size in enumerate(sizes)]
    body = WatchResponse(events=events).SerializeToString()
    tails = split_events(body, len(header) + 11, limit_bytes)
    reply = Reply(header, tails, len(events))
    replies = messages(reply.framed(watch_id_field(watch_id)))
    assert [one for reply in replies for one in reply.events] == events
    assert [one.fragment for one in replies] == [True] * (len(replies) - 1) + [False]
    assert {one.watch_id for one in replies} == {watch_id}
    for one in replies:
        assert len(one.events) == 1 or one.ByteSize() < limit_bytes
    for one, after in pairwise(replies):
        grown = WatchResponse()
        grown.CopyFrom(one)
        grown.events.append(after.events[0])
        assert grown.ByteSize() + 12 >= limit_bytes, "a piece is as large as it may be"
    if len(header) + 11 + len(body) < limit_bytes:
        assert len(replies) == 1


def test_the_pieces_of_a_reply_follow_each_other_for_each_watch() -> None:
    body = WatchResponse(events=[event(100), event(100), event(100)]).SerializeToString()
    reply = Reply(b"", split_events(body, 0, 150), 3)
    ids = [watch_id_field(1), watch_id_field(2)]
    replies = [one for framed, _ in reply.chunks(ids) for one in messages(framed)]
    assert [(one.watch_id, one.fragment) for one in replies] == [
        (1, True),
        (1, True),
        (1, False),
        (2, True),
        (2, True),
        (2, False),
    ]
