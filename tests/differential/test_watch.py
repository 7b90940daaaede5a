"""Rows W: watchers are created and canceled."""

import pytest

from kvorum import errors
from kvorum.pb.mvcc_pb2 import Event
from kvorum.pb.rpc_pb2 import (
    DeleteRangeRequest,
    PutRequest,
    WatchCancelRequest,
    WatchCreateRequest,
    WatchRequest,
)
from tests.calls import WatchStream
from tests.differential.side import Side, batches, canceled, differs, events

NOPUT, NODELETE = WatchCreateRequest.NOPUT, WatchCreateRequest.NODELETE
DUPLICATE = "mvcc: duplicate watch ID provided on the WatchStream"
EMPTY_RANGE = "mvcc: watcher range is empty"


def cancel(stream: WatchStream, watch_id: int) -> None:
    stream.send(WatchRequest(cancel_request=WatchCancelRequest(watch_id=watch_id)))


def test_W1_W2_W10_created_comes_first_with_the_current_revision(api: Side) -> None:
    at = api.put("a", b"before").header.revision
    with api.watch() as stream:
        created = api.create(stream)
        header = api.put("a", b"after").header
        assert events(stream, 1)[0].kv.value == b"after"
        reply = batches(stream)[0]
    assert (created.header.revision, created.watch_id, created.created, len(created.events)) == (at, 0, True, 0)
    assert created.cancel_reason == "" and created.compact_revision == 0 and not created.canceled
    for ours in (created.header, reply.header):
        assert (ours.cluster_id, ours.member_id, ours.raft_term) == (
            header.cluster_id,
            header.member_id,
            header.raft_term,
        )


def test_W3_automatic_ids_count_per_stream_and_skip_those_in_use(api: Side) -> None:
    with api.watch() as one, api.watch() as two:
        assert [api.create(one, watch_id=given).watch_id for given in (0, 2, 0, 0, 7, 0)] == [0, 2, 1, 3, 7, 4]
        assert api.create(two).watch_id == 0


@pytest.mark.parametrize("watch_id", [1, 1 << 40, (1 << 63) - 1, -2])
def test_W4_a_client_s_id_is_taken(api: Side, watch_id: int) -> None:
    with api.watch() as stream:
        assert api.create(stream, watch_id=watch_id).watch_id == watch_id
        api.put("a", b"1")
        assert events(stream, 1, watch_id)[0].kv.value == b"1"


def test_W5_a_duplicate_id_is_refused_and_the_first_lives_on(api: Side) -> None:
    with api.watch() as stream:
        api.create(stream, watch_id=5)
        again = api.create(stream, watch_id=5)
        assert (again.watch_id, again.created, again.canceled, again.cancel_reason) == (-1, True, True, DUPLICATE)
        api.put("a", b"1")
        assert events(stream, 1, 5)[0].kv.value == b"1"


def test_W6_W17_a_canceled_id_is_free_again(api: Side) -> None:
    with api.watch() as stream:
        api.create(stream, watch_id=5)
        at = api.put("a").header.revision
        events(stream, 1, 5)
        cancel(stream, 5)
        reply = canceled(stream, 5)
        assert (reply.header.revision, reply.cancel_reason, reply.compact_revision) == (at, "", 0)
        api.put("a")
        created = api.create(stream, watch_id=5)
        assert (created.watch_id, created.canceled) == (5, False)
        assert len(batches(stream, 5)) == 1


@pytest.mark.parametrize(("key", "range_end"), [("b", "a"), ("a", "a")])
def test_W7_an_empty_range_is_refused(api: Side, key: str, range_end: str) -> None:
    with api.watch() as stream:
        reply = api.create(stream, key, range_end=api.key(range_end))
        assert (reply.watch_id, reply.created, reply.canceled, reply.cancel_reason) == (-1, True, True, EMPTY_RANGE)
        assert api.create(stream).watch_id == 0


def test_W8_an_empty_key_is_one_zero_byte(api: Side) -> None:
    everything = {"key": b"", "range_end": b"\0"}
    with api.watch() as stream:
        api.create(stream, key=b"", watch_id=1)
        api.create(stream, watch_id=2, **everything)
        api.create(stream, key=b"\xff\xff", range_end=b"\0", watch_id=3)
        for key in (b"\0", b"a", b"\xff\xff"):
            api(PutRequest(key=key))
            api(DeleteRangeRequest(key=key))
        keys = {
            watch_id: {event.kv.key for event in events(stream, n, watch_id)}
            for watch_id, n in ((1, 2), (2, 6), (3, 2))
        }
    assert keys == {1: {b"\0"}, 2: {b"\0", b"a", b"\xff\xff"}, 3: {b"\xff\xff"}}


@differs("X9")
def test_W9_a_negative_start_is_refused(api: Side) -> None:
    with api.watch() as stream:
        reply = api.create(stream, start_revision=-1)
    assert (reply.watch_id, reply.created, reply.canceled, reply.compact_revision) == (-1, True, True, 0)
    assert reply.cancel_reason == errors.COMPACTED.message


def test_W11_W12_starts_at_the_current_and_at_a_future_revision(api: Side) -> None:
    now = api.put("a", b"0").header.revision
    with api.watch() as stream:
        api.create(stream, watch_id=1, start_revision=now)
        api.create(stream, watch_id=2, start_revision=now + 2)
        api.create(stream, watch_id=3, start_revision=now + 1)
        for value in (b"1", b"2"):
            api.put("a", value)
        found = {
            watch_id: [event.kv.value for event in events(stream, n, watch_id)]
            for watch_id, n in ((1, 3), (2, 1), (3, 2))
        }
    assert found == {1: [b"0", b"1", b"2"], 2: [b"2"], 3: [b"1", b"2"]}


def test_W13_a_start_at_the_compacted_revision_is_served(api: Side) -> None:
    at = api.put("a", b"1").header.revision
    api.put("a", b"2")
    api.compact(at, physical=True)
    with api.watch() as stream:
        api.create(stream, start_revision=at)
        assert [event.kv.value for event in events(stream, 2)] == [b"1", b"2"]


def test_W14_a_start_below_is_created_then_canceled(api: Side) -> None:
    api.put("a")
    at = api.put("a").header.revision
    now = api.put("a").header.revision
    api.compact(at)
    with api.watch() as stream:
        created = api.create(stream, start_revision=at - 1)
        reply = canceled(stream)
    assert (created.canceled, created.watch_id) == (False, 0)
    assert now <= created.header.revision <= api.revision
    assert (reply.compact_revision, reply.cancel_reason, reply.header.revision, reply.created) == (at, "", 0, False)


@differs("Q4")
def test_W15_after_a_compaction_cancel_the_stream_serves_on_and_the_id_can_be_had(api: Side) -> None:
    api.put("a")
    at = api.put("a").header.revision
    api.compact(at)
    with api.watch() as stream:
        api.create(stream, watch_id=3, start_revision=at - 1)
        canceled(stream, 3)
        cancel(stream, 3)
        assert api.create(stream, watch_id=3).watch_id == 3
        api.put("a", b"1")
        assert events(stream, 1, 3)[0].kv.value == b"1"


def test_W18_W19_unknown_ids_and_empty_requests_are_not_answered(api: Side) -> None:
    with api.watch() as stream:
        cancel(stream, 99)
        stream.send(WatchRequest())
        api.create(stream)
        assert len(stream.replies) == 1


def test_W20_events_go_on_after_the_client_half_closes(api: Side) -> None:
    with api.watch() as stream:
        api.create(stream)
        stream.half_close()
        for value in (b"1", b"2"):
            api.put("a", value)
        assert [event.kv.value for event in events(stream, 2)] == [b"1", b"2"]


def test_W22_many_watchers_on_one_stream(api: Side) -> None:
    with api.watch() as stream:
        for _ in range(300):
            create = WatchCreateRequest(key=api.prefix, range_end=api.end)
            stream.send(WatchRequest(create_request=create))
        created = stream.wait(lambda replies: replies if len(replies) == 300 else [])
        assert [reply.watch_id for reply in created] == list(range(300))
        api.put("a", b"1")
        stream.wait(lambda replies: len(replies) == 600)
        assert {reply.watch_id for reply in stream.replies if reply.events} == set(range(300))


@pytest.mark.parametrize(
    ("filters", "kinds"),
    [
        ([], [Event.PUT, Event.DELETE]),
        ([NOPUT], [Event.DELETE]),
        ([NODELETE], [Event.PUT]),
        ([NODELETE, NODELETE], [Event.PUT]),
        ([9], [Event.PUT, Event.DELETE]),
        ([NOPUT, NODELETE], []),
    ],
    ids=str,
)
def test_W23_filters(api: Side, filters: list[int], kinds: list[int]) -> None:
    with api.watch() as stream:
        api.create(stream, filters=filters, watch_id=1)
        api.create(stream, "end", watch_id=2)
        api.put("a")
        api.delete("a")
        api.put("end")
        events(stream, 1, 2)
        # the end mark may overtake: a filtered watcher of the same range has it last
        expected = len(kinds) + (NOPUT not in filters)
        assert [event.type for event in events(stream, expected, 1)][: len(kinds)] == kinds
        assert all(reply.events for reply in stream.replies if reply.watch_id == 1 and not reply.created)
