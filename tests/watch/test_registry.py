"""The rules of the watch process: what it asks of apply, who is served when, and what it holds."""

from collections.abc import Callable

import pytest

from node.events import HistoryAsk, MarkerAsk, decode_ask
from node.watch import catchup
from node.watch.outbox import FRAME_BYTES
from node.watch.registry import LINGER_S, MAX_RANGES
from node.watch.watcher import Place
from tests.watch.assembly import Client, World


def asks(world: World) -> list[MarkerAsk | HistoryAsk]:
    return [decode_ask(ask) for ask in world.asks]


def step(world: World) -> None:
    """One turn of each process."""
    for number in range(len(world.fronts)):
        world.step_front(number)
    world.step_watch()
    world.step_apply()


def events_of(client: Client) -> list[int]:
    return [event.kv.mod_revision for reply in client.take() for event in reply.events]


def test_the_creates_of_a_turn_share_a_marker_and_one_is_under_way_at_a_time() -> None:
    world = World()
    client = world.fronts[0].open()
    client.create()
    client.create(prev_kv=True)
    world.step_front()
    world.step_watch()
    assert asks(world) == [MarkerAsk(1, True, True)]
    client.create()
    client.progress()
    world.step_front()
    world.step_watch()
    assert len(world.asks) == 1
    world.run()
    assert [reply.watch_id for reply in client.take() if reply.created] == [0, 1, 2]


def test_without_watchers_no_event_is_sent() -> None:
    world = World()
    world.put()
    world.run()
    assert world.events_link.outlet.position == 0 and not world.feed.wants_events


def test_interest_is_lowered_some_time_after_the_last_who_had_it() -> None:
    world = World()
    client = world.fronts[0].open()
    client.create()
    client.create(prev_kv=True)
    world.run()
    assert (world.feed.wants_events, world.feed.wants_prev) == (True, True)
    client.cancel(1)
    world.run()
    world.now_s += LINGER_S - 1
    world.run()
    assert (world.feed.wants_events, world.feed.wants_prev) == (True, True)
    world.now_s += 1
    world.run()
    assert (world.feed.wants_events, world.feed.wants_prev) == (True, False)
    client.cancel(0)
    world.run()
    world.now_s += LINGER_S
    world.run()
    assert (world.feed.wants_events, world.feed.wants_prev) == (False, False)
    position = world.events_link.outlet.position
    world.put()
    world.run()
    assert world.events_link.outlet.position == position
    assert not world.asks, "what nobody wants is not asked about again"


def test_what_was_missed_while_nobody_watched_comes_from_the_history() -> None:
    world = World()
    client = world.fronts[0].open()
    client.create()
    world.run()
    client.cancel(0)
    world.run()
    world.now_s += LINGER_S
    world.run()
    start = world.put()
    world.put()
    world.run()
    client.create(start_revision=start)
    world.run()
    world.put()
    world.run()
    assert events_of(client) == [start, start + 1, start + 2]


@pytest.mark.parametrize("behind", range(6))
def test_the_ring_s_boundary(behind: int) -> None:
    world = World(ring_bytes=3 * 400)  # some three revisions
    keeper, client = world.fronts[0].open(), world.fronts[0].open()
    keeper.create()
    world.run()
    for _ in range(10):
        last = world.put()
    world.run()
    first = world.registry._ring.first
    assert last - 5 < first < last
    client.create(start_revision=last + 1 - behind) if behind else client.create()
    world.run()
    assert (world.store.reads > 0) is (last + 1 - behind < first)
    world.put()
    world.run()
    assert events_of(client) == list(range(last + 1 - behind, last + 2))


def test_a_thousand_who_come_back_at_once_share_the_scan_and_the_bytes() -> None:
    world = World()
    clients = [world.fronts[0].open() for _ in range(1000)]
    start = world.put(value=b"v" * 1000)
    for _ in range(99):
        world.put(value=b"v" * 1000)
    for client in clients:
        client.create(start_revision=start)
    world.run()
    assert world.store.reads == 1
    assert world.fronts[0].deliveries_link.outlet.position < 300_000
    assert all(events_of(client) == list(range(start, start + 100)) for client in clients)


def test_with_many_ranges_behind_all_keys_are_asked_for() -> None:
    world = World()
    client = world.fronts[0].open()
    start = world.put()
    for count in (MAX_RANGES, MAX_RANGES + 1):
        for number in range(count):
            client.create(b"k%d" % number, start_revision=start)
        world.step_front()
        world.step_watch()
        world.step_apply()
        world.step_watch()
        (ask,) = asks(world)
        assert isinstance(ask, HistoryAsk)
        assert (ask.ranges is None) is (count > MAX_RANGES)
        world.run()
        for number in range(count):
            client.cancel(number + (MAX_RANGES if count > MAX_RANGES else 0))
        world.run()


def test_live_watchers_do_not_wait_for_those_who_catch_up() -> None:
    world = World()
    live, late = world.fronts[0].open(), world.fronts[0].open()
    live.create(b"live")
    for _ in range(20_000):
        world.put()
    world.run()
    live.take()
    late.create(start_revision=2)
    turns = 0
    while not world.registry.behind or turns < 5:
        step(world)
        turns += 1
        assert turns < 20
    for _ in range(10):
        at = world.put(b"live")
        world.step_apply()
        world.step_watch()
        world.step_front()
        assert events_of(live) == [at]
        assert world.registry.behind
    world.run()
    assert events_of(late) == list(range(2, 20_002))


def test_nobody_can_hold_the_scan_down() -> None:
    world = World(ring_bytes=0)
    steady, restless = world.fronts[0].open(), world.fronts[0].open()
    for _ in range(10_000):
        world.put()
    steady.create(start_revision=6000)
    for _ in range(10):
        restless.create(start_revision=2)
        step(world)
    for _ in range(60):
        restless.create(start_revision=2)
        step(world)
        restless.take()
    assert events_of(steady) == list(range(6000, 10_002))
    assert world.registry.behind


def test_a_slice_with_too_many_matches_is_cut_and_taken_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catchup, "MAX_HITS", 100)
    for ring_bytes in (0, 1 << 24):
        world = World(ring_bytes=ring_bytes)
        keeper, client = world.fronts[0].open(), world.fronts[0].open(mark_bytes=1 << 40)
        keeper.create(b"none")
        world.run()
        start = world.put()
        for _ in range(299):
            world.put()
        world.run()
        for number in range(7):
            client.create(b"k", b"k%d" % number, start_revision=start)
        world.run()
        got: dict[int, list[int]] = {}
        for reply in client.take():
            got.setdefault(reply.watch_id, []).extend(event.kv.mod_revision for event in reply.events)
        assert got == {number: list(range(start, start + 300)) for number in range(7)}


def test_X16_events_for_a_front_that_gives_no_credit_are_not_queued() -> None:
    world = World(fronts=2, window_bytes=1 << 20)
    slow, quick = world.fronts[0].open(mark_bytes=1 << 40), world.fronts[1].open(mark_bytes=1 << 40)
    for client in (slow, quick):
        client.create()
        client.create(b"k", b"l")
    world.run()
    slow.take()
    link = world.fronts[0].deliveries_link
    link.granting = False
    wanted = []
    for _ in range(400):
        wanted.append(world.put(value=b"v" * 10_000))
        world.step_apply()
        world.step_watch()
        world.step_front(1)
        assert world.registry.pending_bytes < FRAME_BYTES + 30_000
    assert link.outlet.position - link.inlet.position < (1 << 20) + FRAME_BYTES
    assert world.registry.behind == 2
    link.granting = True
    world.run()
    assert world.registry.behind == 0
    for client in (slow, quick):
        assert [event.kv.mod_revision for reply in client.take() if reply.watch_id for event in reply.events] == wanted


def test_progress_is_not_promised_while_a_front_has_no_credit() -> None:
    world = World(window_bytes=3000)
    client = world.fronts[0].open()
    client.create()
    world.run()
    client.take()
    link = world.fronts[0].deliveries_link
    link.granting = False
    for _ in range(60):
        world.put(value=b"v" * 100)
        world.step_apply()
        world.step_watch()
    assert world.registry.behind == 1
    client.progress()
    world.step_front()
    world.run()
    link.granting = True
    link.grant()
    world.run()
    replies = client.take()
    seen = 0
    for reply in replies:
        if reply.watch_id == -1:
            assert seen >= reply.header.revision
        for event in reply.events:
            seen = event.kv.mod_revision
    assert seen == world.store.revision


def test_answers_come_through_without_credit_once_there_is_some() -> None:
    world = World(window_bytes=10)
    client = world.fronts[0].open()
    for _ in range(100):
        client.create()
    world.run()
    assert len(client.take()) == 100


def test_a_cancel_that_crosses_the_end_by_compaction_is_harmless() -> None:
    world = World()
    client = world.fronts[0].open()
    world.put()
    world.compact(world.put())
    client.create(start_revision=2)
    world.step_front()
    world.step_watch()
    world.step_apply()
    world.step_watch()
    client.cancel(0)
    world.run()
    assert [(one.created, one.canceled, one.compact_revision) for one in client.take()] == [
        (True, False, 0),
        (False, True, 0),
    ]
    assert world.registry.watchers == 0


def places(world: World) -> dict[bytes, Place]:
    """Where the watchers of the only front stand, by the key they watch."""
    (front,) = world.registry._fronts.values()
    return {watcher.key_range[0]: watcher.place for watcher in front.watchers.values()}


def asked(world: World, client: Client) -> None:
    client.create()
    world.step_front()
    world.step_watch()


def live(world: World, client: Client) -> None:
    client.create()
    world.run()


def future(world: World, client: Client) -> None:
    client.create(start_revision=world.store.revision + 10)
    world.run()


def ring(world: World, client: Client) -> None:
    client.create(start_revision=3)
    world.step_front()
    world.step_watch()
    world.step_apply()
    world.registry.on_events(world.events_link.receive(), 0)


def history(world: World, client: Client) -> None:
    for _ in range(100):
        world.put(value=b"v" * 5000)  # more than the ring holds
    world.run()
    ring(world, client)


def queued(world: World, client: Client) -> None:
    for _ in range(3000):
        world.put(value=b"v" * 500)
    world.run()
    other = world.fronts[0].open()
    other.create(b"other", start_revision=2)
    world.step_front()
    world.step_watch()
    world.step_apply()
    world.step_watch()
    client.create(start_revision=3)
    world.step_front()
    world.step_watch()
    world.step_apply()  # answers the first slice
    world.step_apply()  # answers the marker
    world.step_watch(1)  # asks for the second slice
    world.step_watch(1)


def stalled(world: World, client: Client) -> None:
    client.create()
    world.run()
    link = world.fronts[0].deliveries_link
    link.outlet.granted = link.outlet.position
    world.put()
    world.step_apply()
    world.step_watch()


@pytest.mark.parametrize("bring", [asked, live, future, ring, history, queued, stalled])
def test_a_watcher_may_be_canceled_wherever_it_stands(bring: Callable[[World, Client], None]) -> None:
    world = World(ring_bytes=200_000)
    keeper, client = world.fronts[0].open(), world.fronts[0].open()
    keeper.create(b"keeper")
    world.run()
    for _ in range(5):
        world.put()
    world.run()
    bring(world, client)
    assert places(world)[b"k"] is Place[bring.__name__.upper()]
    count = world.registry.watchers
    client.cancel(0)
    world.step_front()
    world.step_watch(0)
    assert b"k" not in places(world) and world.registry.watchers == count - 1
    world.fronts[0].deliveries_link.outlet.granted = 1 << 40
    world.fronts[0].deliveries_link.inlet.granted = 1 << 40
    world.put(b"keeper")
    world.run()
    assert len(events_of(keeper)) == 1
    assert world.registry.behind == 0
