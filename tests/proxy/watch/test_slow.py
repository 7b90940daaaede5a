"""A stream that takes nothing: it delays nobody, what is kept for it is bounded, and it loses nothing."""

from __future__ import annotations

import pytest

from proxy.watch import group
from proxy.watch.stream import MAX_PENDING
from tests.proxy.watch.assembly import ProxyClient, ProxyWorld
from tests.proxy.watch.test_coalescing import opened, revisions


@pytest.fixture
def world() -> ProxyWorld:
    return ProxyWorld(ring_bytes=100_000)


def slow(world: ProxyWorld, mark_bytes: int = 200, **fields: object) -> ProxyClient:
    client = world.open(mark_bytes)
    client.create(**fields)  # type: ignore[arg-type]  # a create's fields
    world.run()
    (created,) = client.take()
    assert created.created
    return client


def drained(world: ProxyWorld, client: ProxyClient) -> list[int]:
    got: list[int] = []
    while client.buffer:
        got += revisions(client.take())
        world.run()
    return got


def test_a_full_stream_delays_nobody_and_is_given_what_was_kept(world: ProxyWorld) -> None:
    client, other = slow(world), opened(world)
    at = [world.put(value=b"v" * 100) for _ in range(20)]
    world.run()
    assert revisions(other.take()) == at
    assert client.most_buffered_bytes < 600
    assert drained(world, client) == at
    assert world.upstream.ends[0].requests == 1, "no upstream watch was made for it"
    assert world.service.shared.kept_bytes == 0


def test_watches_of_one_stream_are_cut_between_them(world: ProxyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvorum.watch_replies.CHUNK_BYTES", 100)
    client = world.open(400)
    for _ in range(10):
        client.create()
    world.run()
    while client.buffer:
        client.take()
        world.run()
    at = [world.put(value=b"v" * 50) for _ in range(3)]
    world.run()
    assert client.most_buffered_bytes < 1000
    got: dict[int, list[int]] = {}
    while client.buffer:
        for reply in client.take():
            got.setdefault(reply.watch_id, []).extend(revisions([reply]))
        world.run()
    assert got == dict.fromkeys(range(10), at)
    assert world.upstream_watches == 1


@pytest.mark.parametrize("limit", ["group", "all"])
def test_beyond_what_is_kept_it_catches_up_from_upstream(
    world: ProxyWorld, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    if limit == "group":
        monkeypatch.setattr(group, "KEPT_BYTES", 2000)
    else:
        world.service.shared.max_kept_bytes = 2000
    client, other = slow(world), opened(world)
    at = []
    for _ in range(50):
        at.append(world.put(value=b"v" * 100))
        world.settle()
        assert world.service.shared.kept_bytes <= 2000
    assert revisions(other.take()) == at
    assert drained(world, client) == at
    world.pass_time(2)
    assert world.upstream_watches == 1


def test_one_that_never_reads_holds_a_bounded_part_of_what_came(
    world: ProxyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "KEPT_BYTES", 3000)
    client = slow(world)
    for _ in range(200):
        world.put(value=b"v" * 100)
        world.settle()
        assert world.service.shared.kept_bytes <= 3000
    assert client.most_buffered_bytes < 600
    assert client.handler is not None
    client.handler.on_cancel(None)
    assert world.service.shared.kept_bytes == 0


def test_a_parked_watch_can_be_canceled(world: ProxyWorld) -> None:
    client = slow(world)
    at = [world.put(value=b"v" * 100) for _ in range(5)]
    world.run()
    client.cancel(0)
    world.run()
    replies = client.take()
    assert replies[-1].canceled and revisions(replies) == at[: len(replies) - 1]
    world.run()
    assert client.take() == []
    assert (world.service.shared.kept_bytes, world.upstream_watches) == (0, 0)


def test_WE10_a_compaction_while_it_is_parked_ends_it_when_nothing_is_kept(
    world: ProxyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "KEPT_BYTES", 0)
    client = slow(world)
    at = [world.put(value=b"v" * 100) for _ in range(10)]
    world.run()
    world.compact(at[-1])
    got = client.take()
    world.run()
    (canceled,) = client.take()
    assert revisions(got) == at[: len(got)]
    assert (canceled.canceled, canceled.compact_revision) == (True, at[-1])


def test_requests_of_a_stream_that_wait_are_bounded(world: ProxyWorld) -> None:
    client = world.open()
    for _ in range(3 * MAX_PENDING):
        client.create()
    assert len(client.held) == 2 * MAX_PENDING
    world.run()
    assert not client.held and len(client.take()) == 3 * MAX_PENDING


def test_a_stream_that_does_not_read_is_not_read(world: ProxyWorld) -> None:
    client = world.open(mark_bytes=100)
    for _ in range(100):
        client.create()
    world.run()
    assert client.held or len(client.buffer) == 100
    client.create()
    client.create()
    assert client.held
    while client.buffer:
        client.take()
        world.run()
    assert not client.held


def test_a_stalled_upstream_stream_gets_what_it_is_owed_when_it_takes_it(world: ProxyWorld) -> None:
    opened(world)
    world.upstream.stall(True)
    clients = [world.open() for _ in range(3)]
    for number, client in enumerate(clients):
        client.create(b"k%d" % number)
    clients[0].cancel(0)
    world.settle()
    at = world.put(b"k1")
    world.upstream.stall(False)
    world.run()
    assert revisions(clients[1].take()) == [at]
    assert world.upstream_watches == 3


def test_a_future_start_that_is_missed_is_not_held_against_it(
    world: ProxyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs nothing from before its start, however long the group's position had stood still."""
    monkeypatch.setattr(group, "KEPT_BYTES", 0)
    client = slow(world, start_revision=20)
    client.create(b"other")
    world.run()
    client.take()
    at = world.put(b"other", value=b"v" * 400)
    world.settle()  # full
    while world.store.revision < 19:
        world.put(b"third")
    first = world.put()
    world.settle()
    world.compact(first - 2)
    assert drained(world, client) == [at, first]
