"""Whatever happens to the proxy, its clients and its members: every watcher gets every revision it wants, once, in
order and whole; nothing after its cancel; and `created` and progress replies say what is true."""

from __future__ import annotations

from random import Random
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvorum import watch_replies
from proxy.watch import batch, group, line, session
from tests.proxy.watch.assembly import ProxyWorld
from tests.watch.assembly import World
from tests.watch.client_steps import create_alike, finish, play
from tests.watch.oracle import StreamOracle

OPERATIONS = [
    *("put", "put", "put", "put", "txn", "txn", "delete", "compact"),
    *("create", "create", "create_alike", "create_alike", "cancel", "progress", "progress", "read", "read", "leave"),
    *("soon", "soon", "calls", "calls", "requests", "requests", "member", "member", "replies", "replies"),
    *("time", "time", "run", "run", "lose", "down", "up", "up", "switch", "stall", "go"),
]

# what a stream takes before it is full, and what groups keep for those that are: ample, or always in the way
SIZES = [(1 << 20, 1 << 20, 1 << 20), (300, 1 << 20, 1 << 20), (200, 600, 1 << 20), (200, 1 << 20, 1500), (150, 0, 0)]

step = st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 255), st.integers(0, 255), st.integers(0, 31))


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that every limit is met."""
    monkeypatch.setattr(watch_replies, "CHUNK_BYTES", 100)
    monkeypatch.setattr(batch, "FRAGMENT_BYTES", 300)
    monkeypatch.setattr(line, "SEND_BYTES", 50)
    monkeypatch.setattr(session, "MOST_ASKS", 3)
    monkeypatch.setattr(session, "RANGES_OF_TXN", 2)


class Script:
    """Plays a list of steps."""

    def __init__(self, mark_bytes: int, kept_bytes: int, all_kept_bytes: int) -> None:
        self.world = ProxyWorld(fronts=2, ring_bytes=2500)
        self.world.upstream.most_ranges = 1 if kept_bytes == 600 else 128
        self.world.service.shared.max_kept_bytes = all_kept_bytes
        self.mark_bytes = mark_bytes
        self.kept_bytes = kept_bytes
        self.streams = [self.open(), self.open(), self.open()]
        self.left: list[StreamOracle] = []

    def open(self) -> StreamOracle:
        return StreamOracle(cast(World, self.world), self.world.open(self.mark_bytes))

    def play(self, name: str, a: int, b: int, c: int) -> None:
        world = self.world
        upstream = world.upstream
        stream = self.streams[a % 3]
        match name:
            case "create_alike":
                create_alike(stream, 3, b % 3)
            case "leave":
                if c < 8:
                    assert stream.client.handler is not None
                    stream.client.handler.on_cancel(None)
                    self.streams[a % 3] = self.open()
            case "soon":
                world.step_soon()
            case "calls":
                upstream.step_calls()
            case "requests":
                for end in list(upstream.ends):
                    end.step_requests(1 + b % 3)
            case "member":
                world.step_apply(with_prev=a % 4 != 0)
                world.step_watch(1 + a % 3)
                world.member.step_front(0, 1 + b % 3)
                world.member.step_front(1, c % 3)
            case "replies":
                for end in list(upstream.ends):
                    end.step_replies(1 + b % 3)
            case "time":
                world.fire(b / 400)
            case "run":
                world.run()
            case "lose":
                if c < 16:
                    upstream.lose()
            case "down":
                if c < 8:
                    upstream.up = False
                    upstream.lose()
            case "up":
                upstream.up = True
            case "switch":
                if c < 16:
                    upstream.switch()
            case "stall":
                upstream.stall(True)
            case "go":
                upstream.stall(False)
            case _:
                play(world, stream, name, a, b, c)

    def finish(self) -> None:
        world = self.world
        world.upstream.up = True
        world.upstream.stall(False)
        finish(self.streams, lambda: world.pass_time(2.0))
        for stream in self.streams:
            assert stream.client.handler is not None
            stream.client.handler.on_cancel(None)
        shared = world.service.shared
        assert (shared.kept_bytes, shared.watches, world.service.upstream_watches) == (0, 0, 0)
        world.settle()
        assert world.upstream_watches == 0


def play_all(sizes: tuple[int, int, int], steps: list[tuple[str, int, int, int]]) -> None:
    kept_bytes = group.KEPT_BYTES
    group.KEPT_BYTES = sizes[1]  # type: ignore[misc]  # a limit made small
    try:
        script = Script(*sizes)
        for name, a, b, c in steps:
            script.play(name, a, b, c)
        script.finish()
    finally:
        group.KEPT_BYTES = kept_bytes  # type: ignore[misc]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(step, max_size=80))
def test_every_revision_once_in_order_and_whole(
    sizes: tuple[int, int, int], steps: list[tuple[str, int, int, int]]
) -> None:
    play_all(sizes, steps)


@pytest.mark.parametrize("seed", range(0, 80, 20))
def test_long_histories(seed: int) -> None:
    for number in range(seed, seed + 20):
        random = Random(number)
        sizes = random.choice(SIZES)
        steps = [
            (random.choice(OPERATIONS), random.randrange(256), random.randrange(256), random.randrange(32))
            for _ in range(random.randrange(100, 400))
        ]
        play_all(sizes, steps)
