"""What writers and clients do in the random tests of watches, of a member's and of a proxy's."""

from collections.abc import Callable
from typing import Protocol

from tests.watch.oracle import StreamOracle
from tests.watch.store import Store

KEYS = [b"a", b"aa", b"ab", b"b", b"c"]
RANGES = [(b"a", b""), (b"aa", b""), (b"a", b"b"), (b"a", b"b\0"), (b"a", b"\0"), (b"\0", b"\0"), (b"b", b"a")]


class Writable(Protocol):
    """A store that watches are of."""

    @property
    def store(self) -> Store: ...

    def put(self, key: bytes, value: bytes) -> int: ...

    def txn(self, *operations: tuple[bytes, bytes | None]) -> int: ...

    def delete(self, key: bytes) -> int: ...

    def compact(self, revision: int) -> None: ...


def play(world: Writable, stream: StreamOracle, name: str, a: int, b: int, c: int) -> None:
    """One step: a write to the world, or something that the stream's client does. a and b are below 256, c below 32."""
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
        case "cancel":
            stream.cancel(b % 9)
        case "progress":
            stream.client.progress()
        case "read":
            stream.client.read(b * 16)
            stream.check()
        case _:
            raise AssertionError(f"no step {name}")


def create_alike(stream: StreamOracle, count: int, start: int) -> None:
    """Several watches of the same range."""
    for _ in range(count):
        stream.create(b"a", b"\0", start, watch_id=0, prev_kv=False, noput=False, nodelete=False, fragment=False)


def finish(streams: list[StreamOracle], settle: Callable[[], None]) -> None:
    """Everything that is still to come arrives, and is what was wanted."""
    for _ in range(10_000):
        settle()
        if not any(stream.client.buffer for stream in streams):
            break
        for stream in streams:
            stream.client.read()
            stream.check()
    for stream in streams:
        stream.finish()
