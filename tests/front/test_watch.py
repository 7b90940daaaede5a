"""Rows W of the contract: watches are created and canceled."""

from typing import Any

import pytest

from kvorum import errors
from kvorum.pb.mvcc_pb2 import Event
from kvorum.pb.rpc_pb2 import WatchCreateRequest, WatchRequest, WatchResponse
from node.front.member import RECEIVE, WATCH
from tests.watch.assembly import CLUSTER_ID, MEMBER_ID, TERM, Client, World

NOPUT, NODELETE = WatchCreateRequest.NOPUT, WatchCreateRequest.NODELETE
DUPLICATE = "mvcc: duplicate watch ID provided on the WatchStream"
EMPTY_RANGE = "mvcc: watcher range is empty"


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def client(world: World) -> Client:
    return world.fronts[0].open()


def keys(reply: WatchResponse) -> list[bytes]:
    return [event.kv.key for event in reply.events]


def revisions(replies: list[WatchResponse]) -> list[int]:
    return [event.kv.mod_revision for reply in replies for event in reply.events]


def created(world: World, client: Client, **fields: Any) -> WatchResponse:
    client.create(**fields)
    world.run()
    (reply,) = client.take()
    assert reply.created
    return reply


def test_W1_created_has_the_current_revision_and_comes_before_any_event(world: World, client: Client) -> None:
    at = world.put()
    client.create(start_revision=at)
    world.run()
    first, second = client.take()
    assert (first.created, first.watch_id, first.header.revision, len(first.events)) == (True, 0, at, 0)
    assert not first.canceled and not first.cancel_reason and not first.compact_revision
    assert revisions([second]) == [at]


def test_W1_events_that_happen_meanwhile_follow_the_created_reply(world: World, client: Client) -> None:
    client.create()
    world.step_front()
    world.step_watch()
    world.step_apply()
    at = world.store.revision
    world.put()
    world.run()
    first, second = client.take()
    assert first.created and first.header.revision == at
    assert revisions([second]) == [at + 1]


def test_W2_every_reply_has_the_member_s_header(world: World, client: Client) -> None:
    client.create()
    world.run()
    world.put()
    world.run()
    client.progress()
    client.cancel(0)
    world.run()
    replies = client.take()
    assert len(replies) == 3
    for reply in replies:
        header = reply.header
        assert (header.cluster_id, header.member_id, header.raft_term) == (CLUSTER_ID, MEMBER_ID, TERM)
        assert header.revision == reply.header.revision > 0


def test_W3_automatic_ids_count_per_stream_and_skip_those_in_use(world: World, client: Client) -> None:
    other = world.fronts[0].open()
    given = [created(world, client, watch_id=wanted).watch_id for wanted in (0, 2, 0, 0, 7, 0)]
    assert given == [0, 2, 1, 3, 7, 4]
    assert created(world, other).watch_id == 0


@pytest.mark.parametrize("watch_id", [1, 127, 128, 1 << 40, (1 << 63) - 1, -1, -2])
def test_W4_a_client_s_id_is_taken_as_it_is(world: World, client: Client, watch_id: int) -> None:
    assert created(world, client, watch_id=watch_id).watch_id == watch_id
    at = world.put()
    world.run()
    (reply,) = client.take()
    assert (reply.watch_id, revisions([reply])) == (watch_id, [at])


def test_W5_a_duplicate_id_is_refused_and_the_first_lives_on(world: World, client: Client) -> None:
    created(world, client, watch_id=5)
    client.create(watch_id=5)
    world.put()
    world.run()
    refused, reply = sorted(client.take(), key=lambda one: len(one.events))
    assert (refused.created, refused.canceled, refused.watch_id) == (True, True, -1)
    assert refused.cancel_reason == DUPLICATE
    assert refused.header.revision == world.store.revision
    assert reply.watch_id == 5


def test_W6_an_id_is_free_again_after_its_cancel(world: World, client: Client) -> None:
    created(world, client, watch_id=5)
    client.cancel(5)
    client.create(watch_id=5)
    world.run()
    canceled, again = client.take()
    assert canceled.canceled and again.created and not again.canceled and again.watch_id == 5
    at = world.put()
    world.run()
    assert revisions(client.take()) == [at]


@pytest.mark.parametrize(("key", "range_end"), [(b"b", b"a"), (b"b", b"b"), (b"ba", b"b"), (b"b", b"\0a")])
def test_W7_an_empty_range_is_refused(world: World, client: Client, key: bytes, range_end: bytes) -> None:
    client.create(key, range_end)
    world.run()
    (reply,) = client.take()
    assert (reply.created, reply.canceled, reply.watch_id) == (True, True, -1)
    assert reply.cancel_reason == EMPTY_RANGE


@pytest.mark.parametrize(
    ("key", "range_end", "wanted"),
    [
        (b"", b"", [b"\0"]),
        (b"b", b"\0", [b"b", b"bb", b"c"]),
        (b"", b"\0", [b"\0", b"a", b"b", b"bb", b"c"]),
        (b"\0", b"\0", [b"\0", b"a", b"b", b"bb", b"c"]),
        (b"b", b"c", [b"b", b"bb"]),
        (b"b", b"", [b"b"]),
    ],
)
@pytest.mark.parametrize("live", [True, False])
def test_W8_ranges(world: World, client: Client, key: bytes, range_end: bytes, wanted: list[bytes], live: bool) -> None:
    start = world.store.revision + 1
    if live:
        client.create(key, range_end)
        world.run()
    for one in (b"\0", b"a", b"b", b"bb", b"c"):
        world.put(one)
    world.run()
    if not live:
        client.create(key, range_end, start_revision=start)
        world.run()
    assert [one for reply in client.take() for one in keys(reply)] == wanted


def test_W9_a_negative_start_is_refused(world: World, client: Client) -> None:
    client.create(start_revision=-1)
    world.run()
    (reply,) = client.take()
    assert (reply.created, reply.canceled, reply.watch_id, reply.compact_revision) == (True, True, -1, 0)
    assert reply.cancel_reason == errors.COMPACTED.message


def test_W10_start_0_gets_what_comes_after_the_created_header(world: World, client: Client) -> None:
    world.put()
    at = created(world, client).header.revision
    assert at == world.store.revision
    world.put()
    world.run()
    assert revisions(client.take()) == [at + 1]


def test_W11_start_at_the_current_revision_replays_it(world: World, client: Client) -> None:
    world.put()
    at = world.put()
    client.create(start_revision=at)
    world.run()
    assert revisions(client.take()) == [at]


def test_W12_a_future_start_gets_nothing_older(world: World, client: Client) -> None:
    at = world.put()
    assert created(world, client, start_revision=at + 3).header.revision == at
    for _ in range(4):
        world.put()
        world.run()
    assert revisions(client.take()) == [at + 3, at + 4]


def test_W12_X15_a_future_start_is_kept_through_a_gap_in_the_events() -> None:
    world = World(window_bytes=40)
    client = world.fronts[0].open()
    at = world.put()
    created(world, client, start_revision=at + 4)
    world.events_link.granting = False
    for _ in range(6):
        world.put()
        world.run()
    world.events_link.granting = True
    world.events_link.grant()
    world.run()
    assert world.feed.gaps == 1
    assert revisions(client.take()) == [at + 4, at + 5, at + 6]


def test_W13_start_at_the_compacted_revision_is_allowed(world: World, client: Client) -> None:
    at = world.put()
    world.put()
    world.compact(at)
    client.create(start_revision=at)
    world.run()
    assert revisions(client.take()) == [at, at + 1]


def test_W14_start_below_the_compacted_revision_ends_the_watch(world: World, client: Client) -> None:
    at = world.put()
    world.put()
    world.compact(at + 1)
    client.create(start_revision=at, watch_id=4)
    world.run()
    first, second = client.take()
    assert first.created and not first.canceled and first.header.revision == at + 1
    assert (second.watch_id, second.canceled, second.compact_revision) == (4, True, at + 1)
    assert (second.header.revision, second.header.member_id, second.cancel_reason) == (0, MEMBER_ID, "")
    world.put()
    world.run()
    assert client.take() == []


def test_W15_the_id_of_a_compacted_watch_is_taken_until_it_is_canceled(world: World, client: Client) -> None:
    world.put()
    world.compact(world.put())
    client.create(start_revision=2, watch_id=4)
    client.create(watch_id=4)
    world.run()
    assert [(one.watch_id, one.canceled) for one in client.take()] == [(4, False), (4, True), (-1, True)]
    client.cancel(4)
    world.run()
    (reply,) = client.take()
    assert (reply.watch_id, reply.canceled, reply.compact_revision) == (4, True, 0)
    assert not created(world, client, watch_id=4).canceled


def test_W16_a_compacted_watch_stops_whole_stream_progress(world: World, client: Client) -> None:
    created(world, client)
    world.put()
    world.compact(world.put())
    client.create(start_revision=2)
    world.run()
    client.take()
    client.progress()
    world.run()
    assert client.take() == []
    client.cancel(1)
    client.progress()
    world.run()
    assert [one.watch_id for one in client.take()] == [1, -1]


def test_W17_cancel(world: World, client: Client) -> None:
    created(world, client)
    at = world.put(b"other")
    client.cancel(0)
    world.put()
    world.run()
    (reply,) = client.take()
    assert (reply.canceled, reply.created, reply.watch_id) == (True, False, 0)
    assert (reply.cancel_reason, reply.compact_revision) == ("", 0)
    assert reply.header.revision == at + 1


def test_W17_no_event_follows_the_canceled_reply_even_when_it_was_on_its_way(world: World, client: Client) -> None:
    created(world, client)
    world.put()
    world.step_apply()
    world.step_watch()
    client.cancel(0)
    world.run()
    replies = client.take()
    assert replies[-1].canceled and not any(reply.canceled for reply in replies[:-1])


def test_W18_cancel_of_an_unknown_id_is_not_answered(world: World, client: Client) -> None:
    client.cancel(9)
    world.run()
    assert client.take() == []
    assert created(world, client).watch_id == 0


def test_W19_a_request_with_nothing_in_it_is_ignored(world: World, client: Client) -> None:
    client.request(WatchRequest())
    world.run()
    assert client.take() == [] and client.status is None
    assert created(world, client).watch_id == 0


def test_G8_garbage_ends_the_stream(world: World, client: Client) -> None:
    created(world, client)
    assert client.handler is not None
    client.handler.on_message(b"\xff\xff")
    assert client.status is not None
    code, text = client.status
    assert code == 13 and text.startswith("grpc: error unmarshalling request: ")
    assert world.fronts[0].member.stream_failures[WATCH, RECEIVE] == 1
    world.put()
    world.run()
    assert world.registry.watchers == 0


def test_W20_a_half_closed_stream_goes_on(world: World, client: Client) -> None:
    created(world, client)
    assert client.handler is not None
    client.handler.on_half_close()
    at = world.put()
    world.run()
    assert revisions(client.take()) == [at] and client.status is None


def test_W21_the_end_of_a_stream_ends_its_watches(world: World, client: Client) -> None:
    other = world.fronts[0].open()
    created(world, client)
    created(world, client)
    created(world, other)
    assert client.handler is not None
    client.handler.on_cancel(None)
    world.put()
    world.run()
    assert client.take() == []
    assert len(other.take()) == 1
    assert world.registry.watchers == 1
    assert world.fronts[0].deliveries.state() == {"watch_streams": 1, "watchers": 1, "watch_events": 1}


def test_W22_many_watches_on_one_stream(world: World, client: Client) -> None:
    for _ in range(50):
        for _ in range(100):
            client.create()
        world.run()
    assert [one.watch_id for one in client.take()] == list(range(5000))
    world.put()
    world.run()
    assert sorted(one.watch_id for one in client.take()) == list(range(5000))
    assert world.registry.watchers == 1, "alike watches of a stream are one registration"


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ([], [Event.PUT, Event.DELETE]),
        ([NOPUT], [Event.DELETE]),
        ([NODELETE], [Event.PUT]),
        ([NOPUT, NODELETE], []),
        ([NOPUT, NOPUT], [Event.DELETE]),
    ],
)
@pytest.mark.parametrize("how", ["live", "ring", "history", "txn"])
def test_W23_filters_and_no_empty_replies(
    world: World, client: Client, filters: list[int], wanted: list[int], how: str
) -> None:
    if how in ("live", "txn"):
        created(world, client, filters=filters)
    elif how == "ring":
        created(world, world.fronts[0].open())
    start = world.put()
    if how == "txn":
        world.txn((b"k", None), (b"x", b""))
    else:
        world.delete()
    world.run()
    if how in ("ring", "history"):
        client.create(start_revision=start, filters=filters)
        world.run()
        client.read()
        assert client.replies.pop(0).created
    replies = client.take()
    assert all(reply.events for reply in replies)
    assert [event.type for reply in replies for event in reply.events] == wanted


def test_W23_unknown_filters_are_ignored(world: World, client: Client) -> None:
    create = WatchCreateRequest(key=b"k").SerializeToString() + b"\x28\x07"
    assert client.handler is not None
    client.handler.on_message(b"\x0a" + bytes((len(create),)) + create)
    world.run()
    at = world.put()
    world.run()
    assert revisions(client.take()) == [at]


def test_K11_created_replies_keep_the_order_of_creates(world: World, client: Client) -> None:
    world.put()
    world.compact(world.put())
    client.create(watch_id=0)
    client.create(b"b", b"a")
    client.create(watch_id=7, start_revision=2)
    client.create(watch_id=7)
    client.create(start_revision=-5)
    client.create(watch_id=0)
    world.run()
    assert [one.watch_id for one in client.take() if one.created] == [0, -1, 7, -1, -1, 1]


def test_WP10_hasleader_without_a_leader_is_refused_at_once(world: World) -> None:
    world.fronts[0].member.leader = 0
    refused = world.fronts[0].open(metadata={"hasleader": ("true",)})
    assert refused.status == errors.NO_LEADER
    for value in ("True", "1", "false"):
        assert world.fronts[0].open(metadata={"hasleader": (value,)}).status is None
    assert created(world, world.fronts[0].open()).created, "WE19: without hasleader it is served"


def test_WP11_WP12_WP13_a_lost_leader_ends_the_streams_that_wanted_one(world: World) -> None:
    front = world.fronts[0]
    wanting = front.open(metadata={"hasleader": ("true",)})
    others = [front.open(metadata={"hasleader": ("false", "true")}), front.open()]
    for client in (wanting, *others):
        created(world, client)
    front.service.end_leaderless()
    assert wanting.status == errors.NO_LEADER
    world.put()
    world.run()
    assert [len(one.take()) for one in others] == [1, 1]


def test_P16_a_stopping_member_ends_every_stream(world: World) -> None:
    clients = [world.fronts[0].open() for _ in range(3)]
    created(world, clients[0])
    world.fronts[0].service.end_all()
    assert [client.status for client in clients] == [errors.STOPPED] * 3
    world.run()
    assert world.registry.watchers == 0 and not world.fronts[0].deliveries.streams
