"""A simulated member: its disk, its threads' work, and how badly things go for it."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from node.raft.core import Config, MemoryStorage, Message, RawNode, Snapshot
from node.raft.core.raft import Raft


class Disk(MemoryStorage):
    """A member's log on disk. A commit index alone is written without a sync: a crash may lose it."""

    def __init__(self) -> None:
        super().__init__()
        self.synced_hard_state = self.hard_state
        self.busy = False  # no snapshot can be made now
        self.flush: Callable[[], Snapshot] = lambda: self.installed

    def snapshot(self) -> Snapshot | None:
        """Of the newest state, which gets on disk for it."""
        return None if self.busy else self.flush()

    def holds(self, index: int, term: int) -> bool:
        """Whether the entry, or a state that comprises it, is on this disk."""
        return index < self.first_index or self.term_of(index) == term


@dataclass(slots=True)
class Member:
    """A member, down when it has no node. `applied` is in memory, `flushed` is what its state machine has on disk."""

    config: Config
    disk: Disk
    node: RawNode | None = None
    append_work: deque[Message] = field(default_factory=deque)
    apply_work: deque[Message] = field(default_factory=deque)
    local: deque[Message] = field(default_factory=deque)
    applied: int = 0
    flushed: int = 0
    seen_commit: int = 0
    seen_term: int = 0

    @property
    def id(self) -> int:
        """Its id in the group."""
        return self.config.id

    @property
    def raft(self) -> Raft:
        """The core's state, to be looked at."""
        assert self.node is not None
        return self.node._raft


@dataclass(frozen=True, slots=True)
class Chaos:
    """How badly things go: chances per message or per step."""

    drop: float
    duplicate: float
    reorder: float
    crash: float
    partition: float
    change: float


CALM = Chaos(drop=0, duplicate=0, reorder=0, crash=0, partition=0, change=0)
