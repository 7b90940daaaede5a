"""Rows WE of the contract: what watches are told."""

from typing import Any

import pytest

from kvorum.pb.mvcc_pb2 import Event, KeyValue
from kvorum.pb.rpc_pb2 import WatchResponse
from node.watch.ring import RING_BYTES
from tests.watch.assembly import Client, World

MAX_REQUEST_BYTES = 1_572_864
FRAGMENT_BYTES = MAX_REQUEST_BYTES + 524_288


@pytest.fixture
def world() -> World:
    return World(ring_bytes=RING_BYTES)


@pytest.fixture
def client(world: World) -> Client:
    return world.fronts[0].open(mark_bytes=1 << 40)


def watch(world: World, client: Client, key: bytes = b"k", range_end: bytes = b"", **fields: Any) -> None:
    client.create(key, range_end, **fields)
    world.run()
    client.read()
    assert client.replies.pop(0).created


def shape(replies: list[WatchResponse]) -> list[tuple[int, list[tuple[bytes, int]]]]:
    """(header's revision, [(key, mod_revision)]) of each reply."""
    return [
        (reply.header.revision, [(event.kv.key, event.kv.mod_revision) for event in reply.events]) for reply in replies
    ]


def test_WE1_a_live_reply_is_one_revision_and_has_its_revision(world: World, client: Client) -> None:
    watch(world, client, b"a", b"c")
    one = world.txn((b"a", b"1"), (b"b", b"2"), (b"c", b"3"))
    two = world.put(b"a")
    world.run()
    assert shape(client.take()) == [(one, [(b"a", one), (b"b", one)]), (two, [(b"a", two)])]


@pytest.mark.parametrize("ring", [True, False])
def test_WE2_a_catch_up_reply_has_the_store_s_revision(world: World, client: Client, ring: bool) -> None:
    if ring:
        watch(world, world.fronts[0].open())
    revisions = [world.put(), world.put(b"other"), world.put()]
    world.run()
    watch(world, client, start_revision=revisions[0])
    now = world.store.revision
    assert shape(client.take()) == [(now, [(b"k", revisions[0]), (b"k", revisions[2])])]
    assert (world.store.reads == 0) is ring


@pytest.mark.parametrize("ring", [True, False])
def test_WE3_a_catch_up_reply_has_at_most_1000_revisions(world: World, client: Client, ring: bool) -> None:
    if ring:
        watch(world, world.fronts[0].open(mark_bytes=1 << 40))
    first = world.put()
    for _ in range(2499):
        world.txn((b"k", b"1"), (b"l", b"2"))
    world.run()
    watch(world, client, b"k", b"m", start_revision=first)
    replies = client.take()
    sizes = [len({event.kv.mod_revision for event in reply.events}) for reply in replies]
    assert sum(sizes) == 2500
    if ring:
        assert sizes == [1000, 1000, 500]
        assert world.store.reads == 0
    assert max(sizes) <= 1000
    whole = [event.kv.mod_revision for reply in replies for event in reply.events]
    assert whole == sorted(whole) and len(whole) == 1 + 2 * 2499


def test_WE3_2500_revisions_of_the_history_come_as_1000_1000_500(world: World, client: Client) -> None:
    first = world.put()
    for _ in range(2499):
        world.put()
    watch(world, client, start_revision=first)
    assert [len(reply.events) for reply in client.take()] == [1000, 1000, 500]


def test_WE5_WE15_a_full_stream_loses_and_repeats_nothing(world: World) -> None:
    client = world.fronts[0].open(mark_bytes=200)
    watch(world, client)
    revisions = []
    for _ in range(300):
        revisions.append(world.put())
        world.run()
    assert len(client.buffer) < 10
    got: list[int] = []
    while client.buffer:
        got += [event.kv.mod_revision for reply in client.take() for event in reply.events]
        world.run()
    assert got == revisions


def test_WE7_WE9_a_put_event_has_the_whole_key_value_and_no_type(world: World, client: Client) -> None:
    watch(world, client)
    created = world.put(value=b"1")
    updated = world.put(value=b"2")
    world.run()
    one, two = (reply.events[0] for reply in client.take())
    assert one.kv == KeyValue(key=b"k", value=b"1", create_revision=created, mod_revision=created, version=1)
    assert two.kv == KeyValue(key=b"k", value=b"2", create_revision=created, mod_revision=updated, version=2)
    assert one.type == Event.PUT
    assert b"\x08" not in one.SerializeToString()[:1], "type 0 is not on the wire"


@pytest.mark.parametrize("prev_kv", [False, True])
@pytest.mark.parametrize("how", ["live", "ring", "history"])
def test_WE8_WE10_WE11_deletes_and_previous_values(world: World, client: Client, how: str, prev_kv: bool) -> None:
    if how == "live":
        watch(world, client, prev_kv=prev_kv)
    elif how == "ring":
        watch(world, world.fronts[0].open(), prev_kv=True)
    first = world.put(value=b"1")
    second = world.put(value=b"2")
    third = world.delete()
    world.run()
    if how != "live":
        watch(world, client, start_revision=first, prev_kv=prev_kv)
    events = [event for reply in client.take() for event in reply.events]
    assert [event.type for event in events] == [Event.PUT, Event.PUT, Event.DELETE]
    assert events[2].kv == KeyValue(key=b"k", mod_revision=third)
    assert [event.HasField("prev_kv") for event in events] == [False, prev_kv, prev_kv]
    if prev_kv:
        assert events[1].prev_kv == KeyValue(key=b"k", value=b"1", create_revision=first, mod_revision=first, version=1)
        assert (events[2].prev_kv.value, events[2].prev_kv.mod_revision) == (b"2", second)
    assert (world.store.reads > 0) is (how == "history")


def test_WE10_the_ring_does_not_serve_previous_values_it_was_not_given(world: World, client: Client) -> None:
    watch(world, world.fronts[0].open())
    first = world.put(value=b"1")
    world.put(value=b"2")
    world.run()
    watch(world, client, start_revision=first, prev_kv=True)
    assert [event.prev_kv.value for reply in client.take() for event in reply.events] == [b"", b"1"]
    assert world.store.reads == 1
    world.put(value=b"3")
    world.run()
    assert [event.prev_kv.value for reply in client.take() for event in reply.events] == [b"2"]


@pytest.mark.parametrize("ring", [True, False])
def test_WE10_a_compacted_previous_value_is_absent(world: World, client: Client, ring: bool) -> None:
    if ring:
        watch(world, world.fronts[0].open(), prev_kv=True)
    world.put(value=b"1")
    second = world.put(value=b"2")
    world.compact(second)
    world.put(value=b"3")
    world.run()
    watch(world, client, start_revision=second, prev_kv=True)
    assert (world.store.reads == 0) is ring
    assert [event.prev_kv.value for reply in client.take() for event in reply.events] == [b"", b"2"]


def test_WE12_many_deletes_of_one_revision_keep_their_order(world: World, client: Client) -> None:
    watch(world, client, b"a", b"z")
    names = [b"b", b"c", b"d", b"e"]
    world.txn(*((name, b"") for name in names))
    world.run()
    client.take()
    at = world.txn(*((name, None) for name in names))
    world.run()
    assert shape(client.take()) == [(at, [(name, at) for name in names])]


def test_WE13_put_then_delete_of_one_key_in_one_revision(world: World, client: Client) -> None:
    watch(world, client)
    at = world.txn((b"k", b"1"), (b"k", None))
    world.run()
    (reply,) = client.take()
    assert [event.type for event in reply.events] == [Event.PUT, Event.DELETE]
    assert {event.kv.mod_revision for event in reply.events} == {at}


def big_txn(world: World, count: int, value_bytes: int) -> int:
    return world.txn(*((b"k%03d" % number, b"v" * value_bytes) for number in range(count)))


@pytest.mark.parametrize("how", ["live", "catch-up"])
@pytest.mark.parametrize("watches", [1, 3])
def test_WE14_WE15_a_large_reply_is_cut_when_asked(world: World, client: Client, how: str, watches: int) -> None:
    start = world.store.revision + 1
    if how == "live":
        for _ in range(watches):
            watch(world, client, b"k", b"l", fragment=True)
    big_txn(world, 5, 1_000_000)
    world.put(b"k")
    world.run()
    if how == "catch-up":
        for _ in range(watches):
            client.create(b"k", b"l", fragment=True, start_revision=start)
        world.run()
    replies = [reply for reply in client.take() if not reply.created]
    by_watch: dict[int, list[WatchResponse]] = {}
    for reply in replies:
        by_watch.setdefault(reply.watch_id, []).append(reply)
    assert len(by_watch) == watches
    pieces = [reply for reply in replies if reply.events[0].kv.key != b"k"]
    assert len(pieces) == 3 * watches
    for at in range(0, len(pieces), 3):
        three = pieces[at : at + 3]
        assert [piece.fragment for piece in three] == [True, True, False]
        assert len({piece.watch_id for piece in three}) == 1, "the pieces of one reply follow each other"
        assert len({piece.header.SerializeToString() for piece in three}) == 1
        assert all(piece.ByteSize() < FRAGMENT_BYTES for piece in three)
        names = [event.kv.key for piece in three for event in piece.events if event.kv.key != b"k"]
        assert names == [b"k%03d" % number for number in range(5)]


def test_WE14_a_single_larger_event_goes_whole(world: World, client: Client) -> None:
    watch(world, client, fragment=True)
    world.put(value=b"v" * (FRAGMENT_BYTES + 1))
    world.run()
    (reply,) = client.take()
    assert not reply.fragment and reply.ByteSize() > FRAGMENT_BYTES


def test_WE14_a_reply_below_the_limit_is_not_cut(world: World, client: Client) -> None:
    watch(world, client, b"k", b"l", fragment=True)
    big_txn(world, 2, FRAGMENT_BYTES // 2 - 200)
    world.run()
    (reply,) = client.take()
    assert not reply.fragment and FRAGMENT_BYTES - 1000 < reply.ByteSize() < FRAGMENT_BYTES


def test_WE16_without_fragment_a_reply_goes_whole(world: World, client: Client) -> None:
    watch(world, client, b"k", b"l")
    big_txn(world, 5, 1_000_000)
    world.run()
    (reply,) = client.take()
    assert len(reply.events) == 5 and not reply.fragment and reply.ByteSize() > 5_000_000


def test_WE20_WP14_a_resume_from_the_created_header_gets_events_of_that_revision(world: World, client: Client) -> None:
    world.put()
    client.create()
    world.run()
    (created,) = client.take()
    watch(world, client, start_revision=created.header.revision)
    assert shape(client.take()) == [(created.header.revision, [(b"k", created.header.revision)])]


@pytest.mark.parametrize("others", [0, 2])
def test_K6_kubernetes_resumes_after_the_revision_it_read(world: World, client: Client, others: int) -> None:
    for _ in range(others):
        watch(world, world.fronts[0].open(), b"/", b"0", prev_kv=True)
    read = world.put(b"/pods/a", b"1")
    missed = world.delete(b"/pods/a")
    world.run()
    watch(world, client, b"/pods/", b"/pods0", start_revision=read + 1, prev_kv=True, progress_notify=True)
    (reply,) = client.take()
    assert reply.events[0].kv.mod_revision == missed and reply.events[0].prev_kv.value == b"1"


def test_watches_of_one_front_share_an_event_s_bytes_on_the_link() -> None:
    world = World()
    clients = [world.fronts[0].open() for _ in range(50)]
    for client in clients:
        watch(world, client, b"a", b"z")
        watch(world, client, b"k")
    link = world.fronts[0].deliveries_link
    before = link.outlet.position
    world.put(value=b"v" * 10_000)
    world.run()
    assert link.outlet.position - before < 11_000
    assert [len(client.take()) for client in clients] == [2] * 50


def test_two_fronts_and_different_flags_of_one_range() -> None:
    world = World(fronts=2)
    plain, full, other = world.fronts[0].open(), world.fronts[0].open(), world.fronts[1].open()
    watch(world, plain)
    watch(world, full, prev_kv=True)
    watch(world, other, filters=[1])
    world.put(value=b"1")
    world.put(value=b"2")
    world.delete()
    world.run()
    seen = [[event for reply in client.take() for event in reply.events] for client in (plain, full, other)]
    assert [len(events) for events in seen] == [3, 3, 2]
    assert [event.prev_kv.value for event in seen[1]] == [b"", b"1", b"2"]
    assert not any(event.HasField("prev_kv") for event in seen[0] + seen[2])
