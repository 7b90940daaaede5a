"""The end of the log that is not yet known to be on disk, and a snapshot that is not yet installed."""

from collections.abc import Callable
from typing import TypeAlias

from node.raft.core.messages import Entry, LogLevel, Snapshot

Log: TypeAlias = Callable[[LogLevel, str], None]
"""Where log lines go."""


class Unstable:
    """`entries[i]` has index `offset + i`; those before `offset_in_progress` are handed out to be written.

    `offset` may lie before the end of the stable log: the next write then replaces what follows there.
    """

    __slots__ = ("_log", "entries", "offset", "offset_in_progress", "snapshot", "snapshot_in_progress")

    def __init__(self, offset: int, log: Log) -> None:
        self.entries: list[Entry] = []
        self.offset = offset
        self.offset_in_progress = offset
        self.snapshot: Snapshot | None = None
        self.snapshot_in_progress = False
        self._log = log

    def last_index(self) -> int | None:
        """The last index, if any entry or a snapshot is here."""
        if self.entries:
            return self.offset + len(self.entries) - 1
        return None if self.snapshot is None else self.snapshot.index

    def term_of(self, index: int) -> int | None:
        """The term of an entry here, or of the snapshot."""
        place = index - self.offset
        if place >= 0:
            return self.entries[place][0] if place < len(self.entries) else None
        snapshot = self.snapshot
        return snapshot.term if snapshot is not None and snapshot.index == index else None

    def next_entries(self) -> list[Entry]:
        """What is still to be handed out."""
        return self.entries[self.offset_in_progress - self.offset :]

    def has_next_entries(self) -> bool:
        """Whether anything is still to be handed out."""
        return self.offset_in_progress - self.offset < len(self.entries)

    def next_snapshot(self) -> Snapshot | None:
        """The snapshot, if it is still to be handed out."""
        return None if self.snapshot_in_progress else self.snapshot

    def accept(self) -> None:
        """Everything here is handed out."""
        self.offset_in_progress = self.offset + len(self.entries)
        self.snapshot_in_progress = self.snapshot is not None

    def stable_to(self, index: int, term: int) -> None:
        """The log on disk equals this one up to entry `index` of `term`, and no write under way will change that."""
        here = self.term_of(index)
        if here is None:
            self._log(LogLevel.INFO, f"entry at index {index} missing from unstable log; ignoring")
        elif index < self.offset:
            self._log(LogLevel.INFO, f"entry at index {index} matched unstable snapshot; ignoring")
        elif here != term:
            self._log(
                LogLevel.INFO,
                f"entry at (index,term)=({index},{term}) mismatched with entry at ({index},{here}) in unstable log; "
                "ignoring",
            )
        else:
            del self.entries[: index + 1 - self.offset]
            self.offset = index + 1
            self.offset_in_progress = max(self.offset_in_progress, self.offset)

    def stable_snapshot_to(self, index: int) -> None:
        """The snapshot up to `index` is installed."""
        if self.snapshot is not None and self.snapshot.index == index:
            self.snapshot = None
            self.snapshot_in_progress = False

    def restore(self, snapshot: Snapshot) -> None:
        """The log becomes this snapshot and nothing else."""
        self.entries = []
        self.offset = self.offset_in_progress = snapshot.index + 1
        self.snapshot = snapshot
        self.snapshot_in_progress = False

    def append(self, entries: list[Entry]) -> None:
        """Add entries, replacing what is here from the first one's index on."""
        first = entries[0][1]
        place = first - self.offset
        assert place <= len(self.entries), f"entry {first} behind {self.offset + len(self.entries)}"
        if place == len(self.entries):
            self.entries += entries
        elif place <= 0:
            self._log(LogLevel.INFO, f"replace the unstable entries from index {first}")
            self.entries = list(entries)
            self.offset = self.offset_in_progress = first
        else:
            self._log(LogLevel.INFO, f"truncate the unstable entries before index {first}")
            del self.entries[place:]
            self.entries += entries
            self.offset_in_progress = min(self.offset_in_progress, first)
