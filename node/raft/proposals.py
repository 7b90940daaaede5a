"""Proposals on their way into the log: gathered into entries, and held while nobody could take them.

A proposal is proposed once. One that was handed to the core may be lost with its leader; whoever asked is told by the
request timeout that its outcome is unknown. One that is still here was given to nobody, so it can wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

ENTRY_BYTES: Final = 1 << 20
"""An entry holds batches up to this size, unless one batch alone is larger."""

MAX_HELD_BYTES: Final = 64 << 20
"""What waits for a leader; beyond it proposals are refused."""


class Held(NamedTuple):
    """A batch of requests. `sender`: the process of this member that asked, 0 for another member."""

    until: float
    sender: int
    data: bytes


class Proposals:
    """Batches that wait, oldest first."""

    def __init__(self) -> None:
        self._held: deque[Held] = deque()
        self.held_bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, batch: Held) -> bool:
        """Keeps a batch; False when too much waits already."""
        if self.held_bytes >= MAX_HELD_BYTES:
            return False
        self._held.append(batch)
        self.held_bytes += len(batch.data)
        return True

    def put_back(self, batches: Sequence[Held]) -> None:
        """What `take` gave, nobody took."""
        self._held.extendleft(reversed(batches))
        self.held_bytes += sum([len(batch.data) for batch in batches])

    def forget(self, sender: int) -> None:
        """Nothing that this process asked for waits any more."""
        self._held = deque([batch for batch in self._held if batch.sender != sender])
        self.held_bytes = sum([len(batch.data) for batch in self._held])

    def take(self, now: float) -> list[Held]:
        """Everything that waits and is not too old: whoever waited longer was told that its time is over."""
        batches = [batch for batch in self._held if batch.until > now]
        self._held.clear()
        self.held_bytes = 0
        return batches


def entries_of(batches: Sequence[bytes]) -> list[bytes]:
    """The data of entries that hold the batches, in order."""
    if len(batches) == 1:
        return list(batches)
    entries: list[bytes] = []
    pending: list[bytes] = []
    size = 0
    for batch in batches:
        if pending and size + len(batch) > ENTRY_BYTES:
            entries.append(b"".join(pending))
            pending = []
            size = 0
        pending.append(batch)
        size += len(batch)
    if pending:
        entries.append(b"".join(pending))
    return entries
