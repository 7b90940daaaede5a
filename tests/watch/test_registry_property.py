"""Whatever happens, every watcher gets every revision it wants, once, in order and whole."""

from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvorum import watch_replies
from node.watch import catchup, outbox, registry
from tests.watch.assembly import World
from tests.watch.client_steps import create_alike, finish, play
from tests.watch.oracle import StreamOracle

OPERATIONS = [
    *("put", "put", "put", "put", "txn", "txn", "delete", "compact"),
    *("create", "create", "create_alike", "cancel", "progress", "read", "read", "time"),
    *("step_apply", "step_watch", "step_front", "step_front", "run", "run"),
    *("stop_events", "stop_deliveries", "go"),
]

# windows between the processes, the ring, what a stream buffers, what is kept for slow streams: ample, or small enough
# to be always in the way
SIZES = [
    (1 << 20, 1 << 20, 1 << 20, 0),
    (600, 2500, 300, 300),
    (300, 4000, 1000, 1 << 20),
    (5000, 100_000, 200, 0),
    (5000, 100_000, 200, 1 << 20),
]


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that every limit is met: streams fill up between watches, frames within a revision, slices end early."""
    monkeypatch.setattr(watch_replies, "CHUNK_BYTES", 100)
    monkeypatch.setattr(outbox, "FRAME_BYTES", 200)
    monkeypatch.setattr(registry, "SLICE_BYTES", 2000)
    monkeypatch.setattr(registry, "MAX_REVISIONS", 4)
    monkeypatch.setattr(catchup, "MAX_REVISIONS", 4)
    monkeypatch.setattr(catchup, "MAX_HITS", 20)


step = st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 255), st.integers(0, 255), st.integers(0, 31))


class Script:
    """Plays a list of steps."""

    def __init__(self, windows: int, ring_bytes: int, mark_bytes: int, max_owed_bytes: int) -> None:
        self.world = World(fronts=2, window_bytes=windows, ring_bytes=ring_bytes)
        for front in self.world.fronts:
            front.deliveries._fragment_bytes = 300
            front.deliveries.max_owed_bytes = max_owed_bytes
        places = [self.world.fronts[0], self.world.fronts[0], self.world.fronts[1]]
        self.streams = [StreamOracle(self.world, front.open(mark_bytes)) for front in places]

    def play(self, name: str, a: int, b: int, c: int) -> None:
        world = self.world
        stream = self.streams[a % 3]
        match name:
            case "create_alike":
                create_alike(stream, 5, 0)
            case "stop_events":
                world.events_link.granting = False
            case "stop_deliveries":
                world.fronts[a % 2].deliveries_link.granting = False
            case "go":
                self.go()
            case "step_apply":
                world.step_apply(with_prev=a % 4 != 0)
            case "step_watch":
                world.step_watch(1 + a % 3)
            case "step_front":
                world.step_front(a % 2, 1 + b % 3)
            case "run":
                world.run()
            case "time":
                world.now_s += b / 16
            case _:
                play(world, stream, name, a, b, c)

    def go(self) -> None:
        for link in (self.world.events_link, *(front.deliveries_link for front in self.world.fronts)):
            link.granting = True
            link.grant()

    def finish(self) -> None:
        self.go()
        finish(self.streams, self.world.run)
        assert not any(front.deliveries.owed_bytes for front in self.world.fronts)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(step, max_size=80))
def test_every_revision_once_in_order_and_whole(
    sizes: tuple[int, int, int, int], steps: list[tuple[str, int, int, int]]
) -> None:
    script = Script(*sizes)
    for name, a, b, c in steps:
        script.play(name, a, b, c)
    script.finish()


@pytest.mark.parametrize("seed", range(0, 100, 25))
def test_long_histories(seed: int) -> None:
    for number in range(seed, seed + 25):
        random = Random(number)
        script = Script(*random.choice(SIZES))
        for _ in range(random.randrange(100, 400)):
            script.play(random.choice(OPERATIONS), random.randrange(256), random.randrange(256), random.randrange(32))
        script.finish()
