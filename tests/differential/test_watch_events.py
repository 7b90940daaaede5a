"""Rows WE and WP: events, fragments and progress."""

import itertools
from collections.abc import Iterator

import pytest

from kvorum.pb.mvcc_pb2 import Event, KeyValue
from kvorum.pb.rpc_pb2 import (
    CompactionRequest,
    DeleteRangeRequest,
    LeaseRevokeRequest,
    TxnRequest,
    WatchCreateRequest,
    WatchProgressRequest,
    WatchRequest,
    WatchResponse,
)
from loadtest.launcher import Kind
from tests.calls import WatchStream
from tests.differential.side import Side, batches, delete_op, differs, events, put_op
from tests.servers import start

FRAGMENT_BYTES = 1_572_864 + 524_288


def progress(stream: WatchStream) -> None:
    stream.send(WatchRequest(progress_request=WatchProgressRequest()))


def is_progress(reply: WatchResponse, watch_id: int) -> bool:
    return reply.watch_id == watch_id and not (reply.events or reply.created or reply.canceled)


def test_WE1_WE7_a_live_reply_has_the_revision_of_its_events(api: Side) -> None:
    lease = api.grant()
    with api.watch() as stream:
        api.create(stream)
        first = api.put("a", b"1", lease=lease).header.revision
        second = api(TxnRequest(success=[put_op(api.key("a"), b"2"), put_op(api.key("b"))])).header.revision
        events(stream, 3)
        one, two = batches(stream)
    assert (one.header.revision, two.header.revision) == (first, second)
    assert [event.kv.mod_revision for event in two.events] == [second, second]
    a = KeyValue(key=api.key("a"), value=b"1", create_revision=first, mod_revision=first, version=1, lease=lease)
    assert one.events[0] == Event(type=Event.PUT, kv=a)


def test_WE2_a_catch_up_reply_has_the_current_revision(api: Side) -> None:
    first = api.put("a").header.revision
    now = api.put("b").header.revision
    with api.watch() as stream:
        api.create(stream, "a", start_revision=first)
        assert events(stream, 1)[0].kv.mod_revision == first
        assert batches(stream)[0].header.revision == now


def test_WE3_a_catch_up_reply_holds_at_most_1000_revisions_and_splits_none(api: Side) -> None:
    first = api.revision + 1
    for _ in range(1250):
        api(TxnRequest(success=[put_op(api.key("a")), put_op(api.key("b"))]))
    with api.watch() as stream:
        api.create(stream, start_revision=first)
        found = events(stream, 2500)
        revisions = [{event.kv.mod_revision for event in reply.events} for reply in batches(stream)]
    assert [event.kv.mod_revision for event in found] == [first + number // 2 for number in range(2500)]
    assert all(len(of) <= 1000 for of in revisions)
    assert all(max(one) < min(two) for one, two in itertools.pairwise(revisions))


def test_WE5_a_stream_that_is_not_read_gets_every_event_once_later(api: Side) -> None:
    value, count = bytes(100_000), 300  # far more than flow control and any buffer of replies hold
    requests = [WatchRequest(create_request=WatchCreateRequest(key=api.key("a")))]
    with api.watch_unread(requests) as replies:
        assert next(replies).created
        first = api.put("a", value).header.revision
        for _ in range(count - 1):
            api.put("a", value)
        seen: list[int] = []
        while len(seen) < count:
            seen += [event.kv.mod_revision for event in next(replies).events]
    assert seen == list(range(first, first + count))
    api(CompactionRequest(revision=first + count - 1))


def test_WE9_create_and_update_are_told_apart(api: Side) -> None:
    with api.watch() as stream:
        api.create(stream)
        api.put("a")
        api.put("a")
        create, update = events(stream, 2)
    assert create.kv.create_revision == create.kv.mod_revision
    assert update.kv.create_revision < update.kv.mod_revision


def test_WE10_WE11_prev_kv_is_the_state_before_the_whole_txn(api: Side) -> None:
    a = api.key("a")
    with api.watch() as stream:
        api.create(stream, prev_kv=True)
        api.put("a", b"1")
        before = api.get("a").kvs[0]
        api(TxnRequest(success=[put_op(a, b"2")]))
        last = api.get("a").kvs[0]
        api.delete("a")
        create, update, delete = events(stream, 3)
    assert not create.HasField("prev_kv")
    assert update.prev_kv == before
    assert (delete.type, delete.prev_kv) == (Event.DELETE, last)


def test_WE10_prev_kv_of_two_changes_in_one_txn(api: Side) -> None:
    api.prefix = b"\xf0" + api.prefix
    api.put("a", b"0")
    before = api.get("a").kvs[0]
    with api.watch() as stream:
        api.create(stream, prev_kv=True)
        api(TxnRequest(success=[put_op(api.key("a"), b"1"), delete_op(api.key("a"), b"\0")]))
        put, delete = events(stream, 2)
    assert put.prev_kv == delete.prev_kv == before


def test_WE10_prev_kv_is_absent_when_its_revision_is_compacted(api: Side) -> None:
    api.put("a", b"1")
    at = api.put("a", b"2").header.revision
    api.put("a", b"3")
    api.compact(at, physical=True)
    with api.watch() as stream:
        api.create(stream, prev_kv=True, start_revision=at)
        second, third = events(stream, 2)
    assert not second.HasField("prev_kv")
    assert third.prev_kv.value == b"2"


def test_WE8_WE11_without_prev_kv_a_delete_has_no_old_value(api: Side) -> None:
    api.put("a", b"1")
    with api.watch() as stream:
        api.create(stream)
        at = api.delete("a").header.revision
        assert events(stream, 1)[0] == Event(type=Event.DELETE, kv=KeyValue(key=api.key("a"), mod_revision=at))


def test_WE12_a_revoke_deletes_all_keys_of_the_lease_at_one_revision_in_order(api: Side) -> None:
    lease = api.grant()
    for name in ("c", "a", "b"):
        api.put(name, lease=lease)
    with api.watch() as stream:
        api.create(stream)
        at = api(LeaseRevokeRequest(ID=lease)).header.revision
        found = events(stream, 3)
        assert len(batches(stream)) == 1
    assert [(event.type, api.names([event.kv]), event.kv.mod_revision) for event in found] == [
        (Event.DELETE, name, at) for name in "abc"
    ]


@pytest.mark.parametrize("fragment", [True, False])
def test_WE14_WE15_WE16_a_reply_beyond_the_limit_is_cut_only_when_asked(api: Side, fragment: bool) -> None:
    for name in "abcde":
        api.put(name, name.encode() * 1_000_000)
    with api.watch() as stream:
        api.create(stream, prev_kv=True, fragment=fragment)
        at = api(DeleteRangeRequest(key=api.prefix, range_end=api.end)).header.revision
        found = events(stream, 5)
        pieces = batches(stream)
    assert [event.prev_kv.value[:1] for event in found] == [b"a", b"b", b"c", b"d", b"e"]
    assert all((piece.header.revision, piece.watch_id) == (at, 0) for piece in pieces)
    if fragment:
        assert len(pieces) > 1
        assert [piece.fragment for piece in pieces] == [True] * (len(pieces) - 1) + [False]
        assert all(len(piece.events) == 1 or piece.ByteSize() < FRAGMENT_BYTES for piece in pieces)
    else:
        assert [piece.fragment for piece in pieces] == [False]
    api(CompactionRequest(revision=at))


def test_WE14_a_small_reply_is_not_cut(api: Side) -> None:
    with api.watch() as stream:
        api.create(stream, fragment=True)
        api.put("a")
        events(stream, 1)
        assert [reply.fragment for reply in batches(stream)] == [False]


def test_WP6_manual_progress_is_one_reply_for_the_whole_stream(api: Side) -> None:
    with api.watch() as stream:
        api.create(stream, watch_id=1)
        api.create(stream, "b", watch_id=2)
        at = api.put("a").header.revision
        events(stream, 1, 1)
        progress(stream)
        reply = stream.wait(lambda replies: [reply for reply in replies if is_progress(reply, -1)])[0]
    assert (reply.header.revision, reply.cancel_reason, reply.compact_revision) == (at, "", 0)


@differs("X12")
def test_WP7_no_progress_without_watchers(api: Side) -> None:
    with api.watch() as stream:
        progress(stream)
        api.create(stream)
        at = api.put("a").header.revision
        events(stream, 1)
        progress(stream)
        stream.wait(lambda replies: any(is_progress(reply, -1) for reply in replies))
        assert [reply.header.revision for reply in stream.replies if is_progress(reply, -1)] == [at]


@differs("X13")
def test_WP6_no_manual_progress_before_a_future_start(api: Side) -> None:
    at = api.put("a").header.revision
    with api.watch() as stream:
        api.create(stream, start_revision=at + 2)
        progress(stream)
        api.put("a")
        progress(stream)
        api.put("a")
        events(stream, 1)
        progress(stream)
        stream.wait(lambda replies: any(is_progress(reply, -1) for reply in replies))
        seen = [reply.header.revision for reply in stream.replies if is_progress(reply, -1)]
    assert seen[-1] == at + 2 and min(seen) >= at + 2


@differs("X14")
def test_WP5_WP8_no_event_at_or_below_a_progress_reply_follows_it(api: Side) -> None:
    first = api.revision + 1
    for _ in range(200):
        api.put("a")
    with api.watch() as stream:
        api.create(stream, start_revision=first)
        for _ in range(200):
            api.put("a")
            progress(stream)
        events(stream, 400)
        progress(stream)
        stream.wait(lambda replies: any(is_progress(r, -1) and r.header.revision == first + 399 for r in replies))
        promised = 0
        for reply in stream.replies:
            if is_progress(reply, -1):
                promised = max(promised, reply.header.revision)
            assert all(event.kv.mod_revision > promised for event in reply.events)


@pytest.fixture
def ticking(kind: Kind) -> Iterator[Side]:
    """A server that sends progress ten times a second."""
    with start(kind, {"watch-progress-notify-interval": "100ms"}) as server, Side(kind, server) as side:
        yield side


def test_WP1_WP2_progress_notify(ticking: Side) -> None:
    at = ticking.put("a").header.revision
    with ticking.watch() as stream:
        ticking.create(stream, watch_id=1, progress_notify=True)
        ticking.create(stream, watch_id=2)
        ticking.put("b")
        events(stream, 1, 1)
        seen = stream.wait(lambda replies: found if len(found := [r for r in replies if is_progress(r, 1)]) > 1 else [])
        assert {reply.header.revision for reply in seen} == {at + 1}
        assert not any(is_progress(reply, 2) for reply in stream.replies)


@differs("X13")
def test_WP4_no_progress_before_a_future_start(ticking: Side) -> None:
    at = ticking.put("a").header.revision
    with ticking.watch() as stream:
        ticking.create(stream, watch_id=1, progress_notify=True, start_revision=at + 2)
        ticking.create(stream, watch_id=2, progress_notify=True)
        stream.wait(lambda replies: len([reply for reply in replies if is_progress(reply, 2)]) > 2)
        assert not any(is_progress(reply, 1) for reply in stream.replies)
        ticking.put("a")
        ticking.put("a")
        stream.wait(lambda replies: any(is_progress(r, 1) and r.header.revision == at + 2 for r in replies))


def test_WP13_hasleader_with_a_leader_changes_nothing(api: Side) -> None:
    for value in ("true", "1"):
        with api.watch([("hasleader", value)]) as stream:
            api.create(stream)
            api.put("a")
            events(stream, 1)
        assert api.get("a").count == 1


def test_WP14_a_client_that_resumes_misses_and_repeats_nothing(api: Side) -> None:
    with api.watch() as stream:
        next_revision = api.create(stream).header.revision + 1
        api.put("a", b"1")
        next_revision = events(stream, 1)[-1].kv.mod_revision + 1
    api.put("a", b"2")
    with api.watch() as stream:
        api.create(stream, start_revision=next_revision)
        api.put("a", b"3")
        assert [event.kv.value for event in events(stream, 2)] == [b"2", b"3"]
