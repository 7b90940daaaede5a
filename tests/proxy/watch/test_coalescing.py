"""Clients' watches share upstream ones: who joins whom, when, and what a member is spared."""

from __future__ import annotations

import pytest

from kvorum.pb.rpc_pb2 import WatchResponse
from tests.proxy.watch.assembly import ProxyClient, ProxyWorld


@pytest.fixture
def world() -> ProxyWorld:
    return ProxyWorld(ring_bytes=100_000)


def revisions(replies: list[WatchResponse]) -> list[int]:
    return [event.kv.mod_revision for reply in replies for event in reply.events]


def opened(world: ProxyWorld, **fields: object) -> ProxyClient:
    client = world.open()
    client.create(**fields)  # type: ignore[arg-type]  # a create's fields
    world.run()
    (reply,) = [reply for reply in client.take() if reply.created]
    assert not reply.canceled
    return client


def test_ten_thousand_watches_of_a_key_are_one_upstream_watch_on_one_stream(world: ProxyWorld) -> None:
    clients = [world.open() for _ in range(100)]
    for _ in range(100):
        for client in clients:
            client.create()
        world.settle()
    assert sum(len(client.take()) for client in clients) == 10_000
    assert (world.upstream_watches, world.upstream.opened) == (1, 1)
    at = world.put()
    world.run()
    assert all(revisions(client.take()) == [at] * 100 for client in clients)
    figures = world.service.figures()
    assert figures["etcd_grpc_proxy_watchers_coalescing_total"] == 9_999
    assert figures["etcd_grpc_proxy_events_coalescing_total"] == 9_999


def test_creates_of_one_turn_share_a_check_and_those_that_come_meanwhile_share_the_next(world: ProxyWorld) -> None:
    clients = [world.open() for _ in range(10)]
    for client in clients[:4]:
        client.create()
    world.step_soon()
    for client in clients[4:]:
        client.create()
    world.settle()
    assert all(len(client.take()) == 1 for client in clients)
    assert world.upstream.checks == 2


def test_many_ranges_are_checked_together(world: ProxyWorld) -> None:
    client = world.open()
    for number in range(120):
        client.create(b"k%d" % number)
    world.run()
    assert len(client.take()) == 120
    assert world.upstream.checks <= 4


def test_a_member_that_takes_fewer_operations_is_asked_one_by_one(world: ProxyWorld) -> None:
    world.upstream.most_ranges = 1
    client = world.open()
    for number in range(5):
        client.create(b"k%d" % number)
    world.run()
    assert [reply.created for reply in client.take()] == [True] * 5


@pytest.mark.parametrize(
    "fields", [{"prev_kv": True}, {"filters": [0]}, {"filters": [1]}, {"range_end": b"l"}, {"key": b"other"}]
)
def test_other_options_are_other_upstream_watches(world: ProxyWorld, fields: dict[str, object]) -> None:
    opened(world)
    opened(world, **fields)
    assert world.upstream_watches == 2


def test_progress_and_filters_in_another_order_change_nothing(world: ProxyWorld) -> None:
    opened(world, filters=[0, 1])
    opened(world, filters=[1, 0], progress_notify=True)
    assert world.upstream_watches == 1


def test_other_credentials_are_other_streams(world: ProxyWorld) -> None:
    opened(world)
    other = world.open(metadata={"token": ("secret",)})
    other.create()
    world.run()
    assert world.upstream.opened == world.upstream_watches == 2


def test_a_watch_from_the_past_catches_up_by_itself_and_then_joins(world: ProxyWorld) -> None:
    past = [world.put() for _ in range(3)]
    world.put(b"other")
    live = opened(world)
    client = world.open()
    client.create(start_revision=past[1])
    world.settle()
    assert world.upstream_watches == 2
    created, *replies = client.take()
    assert created.header.revision == world.store.revision
    assert revisions(replies) == past[1:]
    world.pass_time(1)
    assert world.upstream_watches == 1, "an answer to a progress request says that nothing is missing"
    at = world.put()
    world.run()
    assert revisions(client.take()) == revisions(live.take()) == [at]


def test_an_event_joins_them_too_where_a_member_s_answers_do_not_keep_their_promise(world: ProxyWorld) -> None:
    world.upstream.version = "3.5.7"
    past = world.put()
    world.put(b"other")
    live = opened(world)
    client = world.open()
    client.create(start_revision=past)
    client.progress()
    world.run()
    world.pass_time(5)
    assert world.upstream_watches == 2
    assert [reply.watch_id for reply in client.take()] == [0, 0], "created and the event, but no progress"
    at = world.put()
    world.run()
    assert world.upstream_watches == 1
    assert revisions(client.take()) == revisions(live.take()) == [at]


def test_watches_from_one_past_revision_share(world: ProxyWorld) -> None:
    past = [world.put() for _ in range(3)]
    world.put(b"other")
    opened(world)
    clients = [world.open() for _ in range(5)]
    for client in clients:
        client.create(start_revision=past[0])
    world.settle()
    assert world.upstream_watches == 2
    assert all(revisions(client.take()) == past for client in clients)


def test_a_watch_from_a_past_in_which_the_group_had_no_events_joins_at_once(world: ProxyWorld) -> None:
    opened(world)
    start = world.put(b"other")
    for _ in range(5):
        world.put(b"other")
    world.run()
    opened(world, start_revision=start)
    assert world.upstream_watches == 1


def test_a_future_start_needs_no_upstream_watch_of_its_own(world: ProxyWorld) -> None:
    live = opened(world)
    client = opened(world, start_revision=world.store.revision + 3)
    assert world.upstream_watches == 1
    at = [world.put() for _ in range(4)]
    world.run()
    assert revisions(live.take()) == at
    assert revisions(client.take()) == at[2:]


def test_the_last_watch_to_go_takes_the_upstream_watch_with_it(world: ProxyWorld) -> None:
    one, other = opened(world), opened(world)
    one.cancel(0)
    world.run()
    assert world.upstream_watches == 1
    assert other.handler is not None
    other.handler.on_cancel(None)
    world.run()
    assert world.upstream_watches == 0
    assert one.take()[-1].canceled


def test_the_last_stream_to_go_takes_the_upstream_streams_with_it(world: ProxyWorld) -> None:
    world.put()
    client = opened(world)
    opened(world, start_revision=1)
    for stream in list(next(iter(world.service._sessions.values())).streams):
        stream.on_cancel(None)
    assert not world.service._sessions and client.status is None
    assert all(end.handler is None for end in world.upstream.ends)
    assert world.service.figures() == {
        "etcd_grpc_proxy_watchers_coalescing_total": 0,
        "etcd_grpc_proxy_events_coalescing_total": 0,
    }


def test_W1_events_while_a_create_is_under_way_follow_the_created_reply(world: ProxyWorld) -> None:
    opened(world)
    client = world.open()
    client.create()
    world.step_soon()
    world.upstream.step_calls()  # answered
    created_at = world.store.revision
    at = world.put()
    world.run()
    created, event = client.take()
    assert (created.created, created.header.revision) == (True, created_at)
    assert revisions([event]) == [at]


def test_W10_an_event_that_overtakes_the_answer_to_a_create_is_given_after_it(world: ProxyWorld) -> None:
    opened(world)
    before = world.put()
    world.settle()
    client = world.open()
    client.create()
    world.step_soon()
    call = world.upstream.calls.popleft()
    answers: list[tuple[int, str, bytes]] = []
    world.upstream.calls.append(type(call)(call.path, call.message, lambda *a: answers.append(a), call.fields))
    world.upstream.step_calls()
    at = [world.put(), world.put()]
    world.settle()
    call.done(*answers[0])
    world.run()
    created, *events = client.take()
    assert created.header.revision == before
    assert revisions(events) == at, "kept for it"
    assert world.upstream_watches == 1


def test_a_put_answered_before_a_create_is_not_an_event_of_it(world: ProxyWorld) -> None:
    opened(world)
    at = world.put()  # its event is still on its way
    client = world.open()
    client.create()
    world.run()
    (created,) = client.take()
    assert created.header.revision == at


def test_progress_requests_share_one_upstream(world: ProxyWorld) -> None:
    clients = [opened(world) for _ in range(10)]
    for client in clients:
        for _ in range(50):
            client.progress()
    sent = world.upstream.ends[0].requests
    world.run()
    assert all([reply.watch_id for reply in client.take()] == [-1] for client in clients)
    assert world.upstream.ends[0].requests <= sent + 3


def test_many_future_starts_come_and_go(world: ProxyWorld) -> None:
    opened(world)
    client = world.open(mark_bytes=1 << 40)
    for start in range(2, 500):
        client.create(start_revision=start, watch_id=start)
        if start % 5:
            client.cancel(start)
        world.settle()
    client.take()
    (session,) = world.service._sessions.values()
    (group,) = session.groups.values()
    assert len(group._starts) <= 2 * len(group.later) + 64
    at = [world.put() for _ in range(20)]
    world.run()
    got = client.take()
    for start in range(5, 22, 5):
        own = [reply for reply in got if reply.watch_id == start]
        assert revisions(own) == [revision for revision in at if revision >= start]
    assert world.upstream_watches == 1
