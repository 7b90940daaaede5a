"""Watches that a member refuses or ends, callers that may not, names of a namespace, and the end of it all."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from kvorum import errors
from kvorum.errors import ApiError, Code
from kvorum.pb.rpc_pb2 import WatchResponse
from proxy.tenants.namespaces_file import Limits, TenantEntry
from proxy.tenants.tenant import Tenant
from proxy.watch.group import Group
from proxy.watch.line import Line
from proxy.watch.service import WatchService
from proxy.watch.session import Session
from proxy.watch.stream import WatchStream
from tests.proxy.watch.assembly import ProxyClient, ProxyWorld
from tests.proxy.watch.test_coalescing import opened, revisions
from tests.watch.assembly import Head

DENIED = "rpc error: code = PermissionDenied desc = etcdserver: permission denied"


@pytest.fixture
def world() -> ProxyWorld:
    return ProxyWorld(ring_bytes=100_000)


def test_W25_a_caller_that_may_not_read_is_refused_and_the_others_of_its_turn_are_not(world: ProxyWorld) -> None:
    world.upstream.denied.add(b"secret")
    client = world.open()
    client.create(b"k")
    client.create(b"secret")
    client.create(b"secret", watch_id=9)
    client.create(b"l")
    world.run()
    replies = client.take()
    assert [(one.created, one.canceled, one.watch_id) for one in replies] == [
        (True, False, 0),
        (True, True, -1),
        (True, True, -1),
        (True, False, 2),
    ]
    assert [one.cancel_reason for one in replies[1:3]] == [DENIED] * 2
    assert all(one.header.revision == world.store.revision for one in replies)
    world.upstream.denied.clear()
    client.create(b"secret", watch_id=9)
    world.run()
    assert not client.take()[0].canceled, "the id is free"


@pytest.mark.parametrize("status_code", [0, Code.PERMISSION_DENIED])
def test_W25_a_refusal_has_a_header_also_when_nothing_was_allowed_before(world: ProxyWorld, status_code: int) -> None:
    world.upstream.denied.add(b"secret")
    world.upstream.status_code = status_code
    client = world.open()
    client.create(b"secret")
    world.run()
    (refused,) = client.take()
    assert (refused.canceled, refused.cancel_reason) == (True, DENIED)
    assert refused.HasField("header")
    assert refused.header.revision == (0 if status_code else world.store.revision)
    client.create(b"k")
    world.run()
    (created,) = client.take()
    assert (created.canceled, created.header.revision) == (False, world.store.revision)


def test_W25_who_joins_a_group_is_checked_too(world: ProxyWorld) -> None:
    client = opened(world)
    world.upstream.denied.add(b"k")
    late = world.open()
    late.create()
    world.run()
    (refused,) = late.take()
    assert (refused.canceled, refused.cancel_reason) == (True, DENIED)
    at = world.put()
    world.run()
    assert revisions(client.take()) == [at], "W24: it runs on"
    assert late.take() == []


def test_a_create_canceled_before_its_answer_is_created_and_canceled(world: ProxyWorld) -> None:
    client = world.open()
    client.create(watch_id=4, progress_notify=True)
    client.cancel(4)
    world.put()
    world.run()
    assert [(one.created, one.canceled, one.watch_id) for one in client.take()] == [(True, False, 4), (False, True, 4)]
    assert world.upstream_watches == 0 and world.service.shared.watches == 0


def test_a_stream_that_ends_before_its_answer_leaves_nothing(world: ProxyWorld) -> None:
    opened(world)
    client = world.open()
    client.create(b"other", progress_notify=True)
    client.create(progress_notify=True)
    assert client.handler is not None
    client.handler.on_cancel(None)
    world.run()
    assert (world.upstream_watches, world.service.shared.watches) == (1, 1)
    (session,) = world.service._sessions.values()
    assert [group.notified for group in session.groups.values()] == [{}]


def test_W15_W16_a_compacted_watch_keeps_its_id_and_stops_progress_until_it_is_canceled(world: ProxyWorld) -> None:
    world.put()
    world.compact(world.put())
    client = opened(world, key=b"other")
    client.create(start_revision=2, watch_id=4)
    client.create(start_revision=1, watch_id=5)
    world.run()
    replies = client.take()
    assert [(one.watch_id, one.canceled, one.compact_revision) for one in replies] == [
        (4, False, 0),
        (5, False, 0),
        (4, True, 3),
        (5, True, 3),
    ]
    client.create(watch_id=4)
    client.progress()
    world.pass_time(3)
    (duplicate,) = client.take()
    assert (duplicate.watch_id, duplicate.canceled) == (-1, True)
    client.cancel(4)
    client.cancel(5)
    client.progress()
    world.run()
    assert [(one.watch_id, one.canceled) for one in client.take()] == [(4, True), (5, True), (-1, False)]
    assert world.service.shared.watches == 1


def test_a_member_that_ends_a_running_watch_ends_those_it_serves(world: ProxyWorld) -> None:
    client, other = opened(world, watch_id=3), opened(world)
    (end,) = world.upstream.ends
    assert end.handler is not None
    end.handler.on_message(WatchResponse(watch_id=1, canceled=True, cancel_reason=DENIED).SerializeToString())
    assert [(one.watch_id, one.cancel_reason) for one in client.take()] == [(3, DENIED)]
    assert [(one.watch_id, one.cancel_reason) for one in other.take()] == [(0, DENIED)]
    client.create(watch_id=3)
    at = world.put()
    world.run()
    created, *events = client.take()
    assert created.created and not created.canceled
    assert revisions(events) == [] and created.header.revision == at


def test_G8_garbage_ends_the_stream_and_its_watches(world: ProxyWorld) -> None:
    client = opened(world)
    assert client.handler is not None
    client.handler.on_message(b"\xff")
    assert client.status is not None and client.status[0] == Code.INTERNAL
    assert client.status[1].startswith("grpc: error unmarshalling request")
    client.handler.on_message(b"")
    client.handler.on_writable()
    world.run()
    assert world.upstream_watches == 0


def test_P16_a_stopping_proxy_ends_every_stream(world: ProxyWorld) -> None:
    clients = [opened(world), opened(world)]
    world.service.stop(errors.STOPPED)
    assert [client.status for client in clients] == [tuple(errors.STOPPED)] * 2
    assert not world.service._sessions


def test_a_caller_that_nobody_knows_is_refused() -> None:
    def refuse(connection: object, head: object) -> Any:
        raise ApiError(errors.PERMISSION_DENIED)

    world = ProxyWorld()
    service = WatchService(
        world.upstream, refuse, call_soon=world.soon.append, call_later=world.call_later, now=lambda: 0.0
    )
    client = ProxyClient(1000)
    assert service.open(client, Head()) is None
    assert client.status == tuple(errors.PERMISSION_DENIED)


@pytest.mark.parametrize(
    ("key", "range_end", "wanted"),
    [
        (b"k", b"", [b"k"]),
        (b"k", b"l", [b"k", b"kk"]),
        (b"k", b"\0", [b"k", b"kk", b"z"]),
        (b"", b"\0", [b"a", b"k", b"kk", b"z"]),
    ],
)
def test_PX22_a_namespace_is_all_there_is(key: bytes, range_end: bytes, wanted: list[bytes]) -> None:
    world = ProxyWorld(prefix=b"ns/")
    client = opened(world, key=key, range_end=range_end, prev_kv=True)
    names = (b"ns", b"ns/a", b"ns/k", b"ns/kk", b"ns/z", b"ns0", b"z", b"k")
    for name in names:
        world.put(name)
    for name in names:
        world.put(name)
    world.run()
    events = [event for reply in client.take() for event in reply.events]
    assert [event.kv.key for event in events] == wanted * 2
    assert [event.prev_kv.key for event in events] == [b""] * len(wanted) + wanted


def test_two_namespaces_share_nothing_but_the_stream() -> None:
    world = ProxyWorld(prefix=b"one/")
    one = opened(world, key=b"k")
    world.prefix = b"two/"
    two = opened(world, key=b"k")
    world.prefix = b"one/"
    again = opened(world, key=b"k")
    at = [world.put(b"one/k"), world.put(b"two/k")]
    world.run()
    assert [revisions(client.take()) for client in (one, two, again)] == [at[:1], at[1:], at[:1]]
    assert (world.upstream.opened, world.upstream_watches) == (1, 2)


def test_W7_W9_refusals_in_a_namespace_name_the_caller_s_own_range() -> None:
    world = ProxyWorld(prefix=b"ns/")
    client = world.open()
    client.create(b"b", b"a")
    client.create(b"b", start_revision=-1)
    world.run()
    assert [one.cancel_reason for one in client.take()] == [
        "mvcc: watcher range is empty",
        "etcdserver: mvcc: required revision has been compacted",
    ]


def test_a_tenant_has_so_many_watches_and_others_notice_nothing() -> None:
    world = ProxyWorld(prefix=b"acme/")
    entry = TenantEntry(name="acme", namespace=b"acme/", limits=Limits(watches=2))
    tenant = world.tenant = Tenant(entry, lambda: world.now_s)
    client = world.open()
    world.tenant = None
    other = world.open()
    for one in (client, other):
        for _ in range(3):
            one.create()
    world.run()
    *_, refused = client.take()
    assert (refused.created, refused.canceled, refused.watch_id) == (True, True, -1)
    assert refused.cancel_reason == (
        'rpc error: code = ResourceExhausted desc = tenant "acme" is over its limit: watches is 2'
    )
    assert not any(reply.canceled for reply in other.take())
    assert tenant.watches == 2
    client.cancel(0)
    client.create()
    world.run()
    assert [one.canceled for one in client.take()] == [True, False]
    assert client.handler is not None
    client.handler.on_cancel(None)
    assert tenant.watches == 0


def test_nothing_that_has_ended_waits_for_the_collector_of_cycles() -> None:
    """It never runs in a worker."""
    world = ProxyWorld(ring_bytes=100_000)
    past = world.put()
    world.put(b"other")
    gc.collect()
    gc.disable()
    try:
        kept = opened(world, key=b"other")
        client = world.open(mark_bytes=300)
        client.create(start_revision=past, progress_notify=True)
        client.create(start_revision=past + 5)
        client.create()
        client.create(b"k", b"z", watch_id=77, fragment=True)
        world.run()
        for _ in range(5):
            world.put(value=b"v" * 100)
        world.run()
        client.cancel(77)
        world.upstream.lose()
        world.pass_time(2)
        lone = world.open(metadata={"token": ("other",)})
        lone.create(start_revision=past)
        world.settle()
        objects = [*_objects_of(world)]
        assert {type(one) for one in objects} == {Session, Line, Group, WatchStream}
        for one in (client, lone):
            assert one.handler is not None
            one.handler.on_cancel(None)
            one.handler = None
        world.run()
        world.upstream.ends = [end for end in world.upstream.ends if end.handler is not None]
        world.member.timers = [timer for timer in world.member.timers if not timer.canceled]
        left = {id(one) for one in _objects_of(world)}
        weak = [weakref.ref(one) for one in objects if id(one) not in left]
        assert len(weak) > 5
        del objects, one
        assert not [ref() for ref in weak if ref() is not None]
    finally:
        gc.enable()
    assert kept.status is None


def _objects_of(world: ProxyWorld) -> Iterator[object]:
    for session in world.service._sessions.values():
        yield from (session, session._live, session._behind, *session.groups.values(), *session.streams)


def test_PX9_an_upstream_that_gives_watches_other_ids_is_told_from_a_member(world: ProxyWorld) -> None:
    client = world.open()
    client.create()
    world.step_soon()
    world.upstream.step_calls()
    (end,) = world.upstream.ends
    assert end.handler is not None
    end.handler.on_message(WatchResponse(watch_id=0, created=True).SerializeToString())
    assert client.status is not None and client.status[0] == Code.UNIMPLEMENTED
    assert "is this a member?" in client.status[1]
