"""Whatever happens, every watcher gets every revision it wants, once, in order and whole."""

from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvorum import watch_replies
from node.watch import catchup, outbox, registry
from tests.watch.assembly import World
from tests.watch.oracle import StreamOracle

KEYS = [b"a", b"aa", b"ab", b"b", b"c"]
RANGES = [(b"a", b""), (b"aa", b""), (b"a", b"b"), (b"a", b"b\0"), (b"a", b"\0"), (b"\0", b"\0"), (b"b", b"a")]

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
        live = sorted(world.store.current)
        match name:
            case "put":
                world.put(KEYS[a % 5], bytes([b]) * (c * 8))
            case "txn":
                keys = KEYS[: 1 + a % 5]
                world.txn(*((key, None if key in live and b >> i & 1 else b"t" * c) for i, key in enumerate(keys)))
            case "delete":
                if live:
                    world.delete(live[a % len(live)])
            case "compact":
                revision = 1 + b % world.store.revision
                if revision > world.store.compacted and c < 8:
                    world.compact(revision)
            case "create":
                revision = world.store.revision
                start = [0, 0, revision, revision + 1, revision + 3, max(1, revision - 2), 1 + b % revision][b % 7]
                stream.create(
                    *RANGES[(a + b) % len(RANGES)],
                    start,
                    watch_id=b % 4 if c & 16 else 0,
                    prev_kv=c & 1 != 0,
                    noput=c & 6 == 2,
                    nodelete=c & 6 == 4,
                    fragment=c & 8 != 0,
                )
            case "create_alike":
                for _ in range(5):
                    stream.create(
                        b"a", b"\0", 0, watch_id=0, prev_kv=False, noput=False, nodelete=False, fragment=False
                    )
            case "cancel":
                stream.cancel(b % 9)
            case "progress":
                stream.client.progress()
            case "read":
                stream.client.read(b * 16)
                stream.check()
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

    def go(self) -> None:
        for link in (self.world.events_link, *(front.deliveries_link for front in self.world.fronts)):
            link.granting = True
            link.grant()

    def finish(self) -> None:
        self.go()
        for _ in range(10_000):
            self.world.run()
            if not any(stream.client.buffer for stream in self.streams):
                break
            for stream in self.streams:
                stream.client.read()
                stream.check()
        for stream in self.streams:
            stream.finish()
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
