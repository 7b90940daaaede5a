"""Slow clients, and clients that ask too much: what is held for them is bounded, and nothing is lost."""

import gc

import pytest

from kvorum.pb.rpc_pb2 import WatchResponse
from kvorum.watch_replies import CHUNK_BYTES
from node.front.watch import MAX_PENDING, MAX_PENDING_BYTES
from tests.watch.assembly import Client, World


def read_all(world: World, client: Client) -> list[WatchResponse]:
    """Reads until nothing comes any more."""
    replies = client.take()
    while True:
        world.run()
        more = client.take()
        if not more:
            return replies
        replies += more


def by_watch(replies: list[WatchResponse]) -> dict[int, list[int]]:
    revisions: dict[int, list[int]] = {}
    for reply in replies:
        revisions.setdefault(reply.watch_id, []).extend(event.kv.mod_revision for event in reply.events)
    return revisions


@pytest.mark.parametrize("watches", [1, 40, 300])
@pytest.mark.parametrize("value_bytes", [10, 5000])
def test_a_stream_that_nobody_reads_holds_one_delivery_past_its_mark(watches: int, value_bytes: int) -> None:
    world = World()
    client = world.fronts[0].open(mark_bytes=10_000)
    other = world.fronts[0].open(mark_bytes=1 << 40)
    for _ in range(watches):
        client.create()
    other.create()
    world.run()
    read_all(world, client)
    wanted = []
    for _ in range(100):
        wanted.append(world.put(value=b"v" * value_bytes))
        world.run()
    one_delivery = max(CHUNK_BYTES, 200 + value_bytes)
    assert client.most_buffered_bytes <= 10_000 + one_delivery
    assert client.largest_send_bytes <= one_delivery
    assert by_watch(other.take()[1:]) == {0: wanted}, "the other stream did not wait"
    assert by_watch(read_all(world, client)) == dict.fromkeys(range(watches), wanted)
    at = world.put()
    assert by_watch(read_all(world, client)) == {number: [at] for number in range(watches)}
    assert world.registry.watchers == 2 and world.registry.behind == 0


def slow_catch_up(world: World, streams: int, watches: int) -> list[Client]:
    """Streams with watches that were all served a few revisions late, and took it for some of the watches only."""
    front = world.fronts[0]
    clients = [front.open(mark_bytes=10_000) for _ in range(streams)]
    for client in clients:
        for _ in range(watches):
            client.create()
    world.run()
    for client in clients:
        read_all(world, client)
    for _ in range(20):
        world.put(value=b"v" * 1000)
    world.run()
    for client in clients:
        client.take()
    world.run()
    return clients


def test_a_reply_that_was_cut_short_is_kept_once_for_all_streams_and_not_asked_for_again() -> None:
    world = World()
    clients = slow_catch_up(world, 5, 40)
    front = world.fronts[0]
    assert 19_000 < front.deliveries.owed_bytes < 25_000
    position = front.deliveries_link.outlet.position
    replies = [read_all(world, client) for client in clients]
    assert front.deliveries_link.outlet.position - position < 5 * 40 * 100, "nothing comes twice from watch"
    assert front.deliveries.owed_bytes == 0
    for one in replies:
        got = by_watch(one)
        assert len(got) == 40 and all(revisions[-1] == 21 for revisions in got.values())


@pytest.mark.parametrize("how", ["cancel", "end", "read"])
def test_what_is_kept_is_let_go(how: str) -> None:
    world = World()
    (client,) = slow_catch_up(world, 1, 40)
    deliveries = world.fronts[0].deliveries
    assert deliveries.owed_bytes
    if how == "cancel":
        for watch_id in range(40):
            client.cancel(watch_id)
        read_all(world, client)
    elif how == "end":
        assert client.handler is not None
        client.handler.on_cancel(None)
    else:
        read_all(world, client)
    assert deliveries.owed_bytes == 0


def test_no_more_is_kept_than_allowed_and_nothing_is_lost_by_it() -> None:
    world = World()
    world.fronts[0].deliveries.max_owed_bytes = 10_000
    (client,) = slow_catch_up(world, 1, 40)
    assert world.fronts[0].deliveries.owed_bytes == 0
    got = by_watch(read_all(world, client))
    assert all(revisions[-1] == 21 for revisions in got.values())


def test_a_paused_stream_costs_the_watch_process_nothing() -> None:
    world = World()
    client = world.fronts[0].open(mark_bytes=100)
    client.create()
    world.run()
    client.take()
    world.put(value=b"v" * 200)
    world.run()
    assert world.registry.watchers == 0
    position = world.fronts[0].deliveries_link.outlet.position
    for _ in range(50):
        world.put()
        world.run()
    assert world.fronts[0].deliveries_link.outlet.position == position
    assert len(by_watch(read_all(world, client))[0]) == 51


def test_a_paused_watch_may_be_canceled_and_its_id_used_again() -> None:
    world = World()
    client = world.fronts[0].open(mark_bytes=100)
    for _ in range(3):
        client.create()
    world.run()
    client.take()
    world.put(value=b"v" * 200)
    world.run()
    first = client.take()
    client.cancel(1)
    client.create(watch_id=1)
    world.put()
    replies = first + read_all(world, client)
    world.put()
    replies += read_all(world, client)
    assert by_watch(replies)[0] == by_watch(replies)[2] == [2, 3, 4]
    ones = [reply for reply in replies if reply.watch_id == 1]
    controls = [reply for reply in ones if reply.created or reply.canceled]
    assert [(reply.created, reply.canceled) for reply in controls] == [(False, True), (True, False)]
    after = ones[ones.index(controls[1]) + 1 :]
    assert by_watch(after) == {1: [revision for revision in (3, 4) if revision > controls[1].header.revision]}


def test_a_paused_watch_that_is_overtaken_by_a_compaction_ends() -> None:
    world = World()
    client = world.fronts[0].open(mark_bytes=100)
    client.create(watch_id=3)
    world.run()
    client.take()
    at = world.put(value=b"v" * 200)
    world.run()
    world.put()
    world.compact(world.put())
    replies = read_all(world, client)
    assert [event.kv.mod_revision for reply in replies for event in reply.events] == [at]
    assert (replies[-1].watch_id, replies[-1].canceled, replies[-1].compact_revision) == (3, True, at + 2)


def test_C9_a_live_watch_whose_key_rests_is_not_touched_by_a_compaction_though_its_stream_is_paused() -> None:
    world = World()
    client = world.fronts[0].open(mark_bytes=100)
    client.create(b"rests")
    client.create(b"k")
    world.run()
    client.take()
    for _ in range(20):
        world.put(b"other")
    world.run()
    world.compact(world.store.revision)
    world.put(value=b"v" * 200)  # pauses the stream
    world.run()
    read_all(world, client)
    at = world.put(b"rests")
    assert by_watch(read_all(world, client)) == {0: [at]}


def test_a_stream_that_ends_while_it_is_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    clients = [world.fronts[0].open() for _ in range(5)]
    for client in clients:
        for _ in range(1 + clients.index(client) % 2):
            client.create()
    world.run()
    for client in clients:
        client.take()
    for breaking in (clients[2], clients[3]):

        def send_framed(_framed: bytes, _messages: int, breaking: Client = breaking) -> None:
            handler, breaking.handler = breaking.handler, None
            if handler is not None:  # as the wire does when a queue overflows: once
                handler.on_cancel(None)

        monkeypatch.setattr(breaking, "send_framed", send_framed)
    world.put()
    world.run()
    world.put()
    world.run()
    assert [len(client.take()) for client in clients] == [2, 4, 0, 0, 2]
    assert world.registry.watchers == 3


def test_requests_faster_than_their_answers_stop_the_reading() -> None:
    world = World()
    client = world.fronts[0].open()
    for number in range(1000):
        if number % 3:
            client.create()
        else:
            client.progress()
    assert not client.reading
    assert len(world.fronts[0].deliveries._asked) == MAX_PENDING
    assert len(client.held) == 1000 - MAX_PENDING
    world.run()
    assert client.reading and not client.held
    assert len([reply for reply in client.take() if reply.created]) == 666


def test_large_requests_stop_the_reading_by_their_bytes() -> None:
    world = World()
    client = world.fronts[0].open()
    for _ in range(10):
        client.create(b"k" * (MAX_PENDING_BYTES // 3))
    assert len(client.held) == 7
    world.run()
    assert len([reply for reply in client.take() if reply.created]) == 10


def test_a_stream_that_takes_nothing_is_not_read() -> None:
    world = World()
    client = world.fronts[0].open(mark_bytes=100)
    client.create()
    world.run()
    client.take()
    world.put(value=b"v" * 200)
    world.run()
    for _ in range(10):
        client.create()
    assert len(client.held) == 9
    client.take()
    world.run()
    assert len(read_all(world, client)) + len(client.replies) >= 10
    assert client.reading


@pytest.mark.parametrize("mark_bytes", [1 << 20, 100])
def test_no_reference_cycles_are_left_behind(mark_bytes: int) -> None:
    world = World(ring_bytes=2000)
    keeper = world.fronts[0].open(mark_bytes=1 << 40)
    keeper.create()
    world.run()
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            start = world.put()
            client = world.fronts[0].open(mark_bytes=mark_bytes)
            client.create()
            client.create(b"a", b"z", start_revision=start)
            client.create(start_revision=1 << 40)
            client.progress()
            world.run()
            world.put(value=b"v" * 200)
            world.run()
            client.take()
            client.cancel(0)
            world.run()
            assert client.handler is not None
            client.handler.on_cancel(None)
            client.handler = None
            world.run()
        found = gc.collect()
    finally:
        gc.enable()
    assert found == 0
