"""Rows WP of the contract: progress."""

from typing import Any

import pytest

from kvorum.pb.rpc_pb2 import WatchResponse
from tests.watch.assembly import Client, World

INTERVAL_S = 105.0  # 100 and 5%: the assembly's random number is 0.5


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def client(world: World) -> Client:
    return world.fronts[0].open()


def watch(world: World, client: Client, key: bytes = b"k", **fields: Any) -> None:
    client.create(key, **fields)
    world.run()
    assert client.take()[0].created


def is_progress(reply: WatchResponse) -> bool:
    return not (reply.created or reply.canceled or reply.events or reply.fragment)


def ask(world: World, client: Client) -> list[WatchResponse]:
    client.progress()
    world.run()
    return client.take()


def test_WP1_WP2_progress_comes_each_interval(world: World, client: Client) -> None:
    watch(world, client, progress_notify=True)
    watch(world, client)
    at = world.put(b"other")
    world.pass_time(INTERVAL_S - 1)
    assert client.take() == []
    world.pass_time(1)
    (reply,) = client.take()
    assert is_progress(reply) and (reply.watch_id, reply.header.revision) == (0, at)
    world.pass_time(3 * INTERVAL_S)
    assert len(client.take()) == 3


def test_WP1_the_interval_counts_from_the_stream_s_opening(world: World, client: Client) -> None:
    world.pass_time(2.5 * INTERVAL_S)
    watch(world, client, progress_notify=True)
    world.pass_time(0.5 * INTERVAL_S)
    assert len(client.take()) == 1


def test_WP3_a_watch_that_got_an_event_is_left_out_once(world: World, client: Client) -> None:
    watch(world, client, progress_notify=True)
    watch(world, client, b"l", progress_notify=True)
    world.put()
    world.run()
    client.take()
    world.pass_time(INTERVAL_S)
    assert [reply.watch_id for reply in client.take()] == [1]
    world.pass_time(INTERVAL_S)
    assert [reply.watch_id for reply in client.take()] == [0, 1]


def test_WP3_an_event_before_a_watch_was_created_does_not_count(world: World, client: Client) -> None:
    watch(world, client, progress_notify=True)
    world.put()
    world.run()
    client.take()
    watch(world, client, progress_notify=True)  # shares the registration of the first
    world.pass_time(INTERVAL_S)
    assert [reply.watch_id for reply in client.take()] == [1]


def test_WP3_pausing_the_stream_does_not_count_as_an_event(world: World) -> None:
    client = world.fronts[0].open(mark_bytes=100)
    watch(world, client, progress_notify=True)
    watch(world, client, b"l")
    world.put(b"l", b"v" * 200)
    world.run()
    client.take()
    world.run()
    world.pass_time(INTERVAL_S)
    assert [reply.watch_id for reply in client.take()] == [0]


def test_WP4_no_progress_before_the_start_revision(world: World, client: Client) -> None:
    watch(world, client, start_revision=world.store.revision + 2, progress_notify=True)
    assert ask(world, client) == []
    world.put(b"other")
    assert ask(world, client) == []
    world.pass_time(INTERVAL_S)
    assert client.take() == []
    at = world.put(b"other")
    assert [reply.header.revision for reply in ask(world, client)] == [at]
    world.pass_time(INTERVAL_S)
    assert [reply.header.revision for reply in client.take()] == [at]


def test_K7_progress_for_a_watch_from_the_next_revision_waits_for_that_revision(world: World, client: Client) -> None:
    read = world.put()
    watch(world, client, start_revision=read + 1)
    assert ask(world, client) == [], "silence is fine"
    at = world.put(b"other")
    assert [reply.header.revision for reply in ask(world, client)] == [at]


def test_WP4_WP6_no_progress_while_a_watch_catches_up(world: World, client: Client) -> None:
    start = world.put()
    for _ in range(3000):
        world.put(b"other")
    client.create(start_revision=start, progress_notify=True)
    world.step_front()
    world.step_watch()
    world.step_apply()
    world.step_watch()  # answered, and behind
    client.progress()
    world.step_front()
    world.step_watch()
    world.step_apply()
    world.step_watch()
    world.step_front()
    assert not any(is_progress(reply) and not reply.created for reply in client.take())
    world.run()
    client.take()
    assert len(ask(world, client)) == 1


def test_WP5_WP8_progress_comes_after_the_events_up_to_its_revision(world: World, client: Client) -> None:
    watch(world, client)
    at = world.put()
    client.progress()
    world.put()
    world.run()
    replies = client.take()
    assert [is_progress(reply) for reply in replies] == [False, False, True]
    assert replies[-1].header.revision == at + 1


def test_WP6_one_reply_for_the_whole_stream(world: World, client: Client) -> None:
    for _ in range(3):
        watch(world, client)
    (reply,) = ask(world, client)
    assert is_progress(reply) and (reply.watch_id, reply.header.revision) == (-1, world.store.revision)
    watch(world, client, start_revision=world.store.revision + 5)
    assert ask(world, client) == [], "one of them begins later"


def test_WP7_no_watch_no_answer(world: World, client: Client) -> None:
    assert ask(world, client) == []
    watch(world, client)
    client.cancel(0)
    client.progress()
    world.run()
    assert [reply.canceled for reply in client.take()] == [True]


@pytest.mark.parametrize("notify", [True, False])
def test_WP9_a_stream_that_takes_nothing_gets_no_progress(world: World, notify: bool) -> None:
    client = world.fronts[0].open(mark_bytes=150)
    watch(world, client, progress_notify=True)
    watch(world, client, b"l")
    if not notify:
        client.progress()
        world.step_front()
    at = world.put(b"l", b"v" * 200)
    if notify:
        world.run()
        world.pass_time(INTERVAL_S)
    world.run()
    (reply,) = client.take()
    assert [event.kv.mod_revision for event in reply.events] == [at]
    world.run()
    assert client.take() == []


def test_a_paused_stream_gets_no_progress_before_it_has_gone_on(world: World) -> None:
    client = world.fronts[0].open(mark_bytes=150)
    watch(world, client)
    client.progress()
    world.step_front()
    world.put(value=b"v" * 200)
    world.step_apply()
    world.step_watch()
    world.put()  # comes while the stream is paused
    world.step_front()
    client.buffered_bytes = 0  # it takes something again, and has not been told yet
    world.run()
    client.progress()
    world.run()
    assert not any(is_progress(reply) for reply in client.take() if not reply.created)


def test_no_progress_is_asked_for_twice_at_a_time(world: World, client: Client) -> None:
    watch(world, client, progress_notify=True)
    world.fronts[0].deliveries_link.granting = False
    link = world.fronts[0].deliveries_link
    link.outlet.granted = link.outlet.position
    world.pass_time(10 * INTERVAL_S)
    assert len(world.fronts[0].deliveries._asked) == 1


def test_ended_streams_do_not_pile_up_in_the_timer(world: World) -> None:
    front = world.fronts[0]
    kept = front.open()
    watch(world, kept, progress_notify=True)
    for _ in range(1000):
        client = front.open()
        client.create(progress_notify=True)
        assert client.handler is not None
        client.handler.on_cancel(None)
        world.run()
    assert len(front.deliveries._ticks) <= 130
    assert len([timer for timer in world.timers if not timer.canceled]) == 1
    world.pass_time(INTERVAL_S)
    assert len(kept.take()) == 1
    world.pass_time(INTERVAL_S)
    assert len(kept.take()) == 1
