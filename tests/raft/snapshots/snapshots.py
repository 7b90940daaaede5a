"""Snapshots that tests send: a directory that looks like a checkpoint, its SNAP message, a receiver and its disk."""

import random
from collections import deque
from collections.abc import Callable
from pathlib import Path

from node.raft.core import ConfState, Message, MessageType, Snapshot
from node.raft.peers.codec import encode
from node.raft.peers.identity import Identity
from node.raft.snapshots.places import Files
from node.raft.snapshots.receiver import Done, Receiver, Standing
from node.raft.snapshots.sender import describe
from node.raft.snapshots.transfer import encode_header
from tests.apply.shell import Clock, Lines

CLUSTER = 0xC1
LEADER, FOLLOWER, OTHER = 1, 2, 3
TERM, INDEX = 5, 1000

SIZES = {"CURRENT": 16, "MANIFEST-000005": 900, "OPTIONS-000007": 0, "000004.log": 0, "000008.sst": 700_000}


def make_checkpoint(directory: Path, sizes: dict[str, int] | None = None, seed: int = 1) -> Path:
    """Files of these sizes, and what lies beside them in a database and is not sent."""
    directory.mkdir()
    source = random.Random(seed)
    for name, size_bytes in (SIZES if sizes is None else sizes).items():
        (directory / name).write_bytes(source.randbytes(size_bytes))
    (directory / "LOG").write_text("what the database says of itself")
    (directory / "LOCK").touch()
    return directory


def snap(
    index: int = INDEX, *, term: int = TERM, sender: int = LEADER, to: int = FOLLOWER, snapshot_term: int = TERM
) -> Message:
    conf_state = ConfState(voters=(LEADER, FOLLOWER, OTHER))
    return Message(MessageType.SNAP, to, sender, term, snapshot=Snapshot(index, snapshot_term, conf_state, b"members"))


def encoded(message: Message) -> bytes:
    return b"".join(encode([message]))


def header_of(message: Message, checkpoint: Path) -> bytes:
    return encode_header(encoded(message), describe(str(checkpoint)))


def contents(directory: Path) -> dict[str, bytes]:
    """What is sent of a directory, by name."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name not in ("LOG", "LOCK")}


class Aside:
    """The receiver's thread. `run` does the work of the next job, or of all; the loop is told when it has ended."""

    def __init__(self) -> None:
        self.jobs: deque[tuple[Callable[[], None], Done]] = deque()
        self.at_once = True

    def __call__(self, work: Callable[[], None], done: Done) -> None:
        self.jobs.append((work, done))
        if self.at_once:
            self.run()

    def run(self, count: int = 1 << 30) -> None:
        while self.jobs and count:
            work, done = self.jobs.popleft()
            count -= 1
            try:
                work()
            except Exception as error:
                done(error)
            else:
                done(None)


class ReceiverUnderTest:
    """A receiver in a directory; what it told the driver is in `received`."""

    def __init__(self, directory: Path, run_aside: Callable[[Callable[[], None], Done], None] | None = None) -> None:
        self.snap = directory / "snap"
        self.snap.mkdir(parents=True, exist_ok=True)
        self.received: list[Message] = []
        self.standing = Standing(TERM, 10)
        self.removed: set[int] = set()
        self.clock = Clock()
        self.log = Lines()
        self.aside = Aside()
        self.receiver = Receiver(
            identity=Identity(CLUSTER, FOLLOWER),
            snap_path=str(self.snap),
            removed=lambda: self.removed,
            standing=lambda: self.standing,
            on_received=self.received.append,
            run_aside=run_aside if run_aside is not None else self.aside,
            now=self.clock,
            logger=self.log.logger,
            files=Files(),
        )

    def names(self) -> list[str]:
        """What lies in the snap directory."""
        return sorted(path.name for path in self.snap.iterdir())
