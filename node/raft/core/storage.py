"""What the core reads of the log on disk, and a log in memory for simulations."""

from collections.abc import Sequence
from typing import Protocol

from node.raft.core.messages import NO_LIMIT, ConfState, Entry, HardState, Snapshot, encoded_size


class Storage(Protocol):
    """The stable log. Only what the core was told is stable may be missing from the core's own memory.

    What changes it (appends, compaction, installed snapshots) happens between two calls of the core, never within one.
    Only entries that were handed out to be applied may be compacted.
    """

    @property
    def first_index(self) -> int:
        """The oldest entry held; last_index + 1 when none is."""
        ...

    @property
    def last_index(self) -> int:
        """The newest entry's index; that of the snapshot, or 0, when no entry is held."""
        ...

    def term_of(self, index: int) -> int | None:
        """The term of an entry held, or of the one just before the first; None when the log does not know it."""
        ...

    def read(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Entries low, …, high - 1: the first at least, then as many as fit in max_bytes.

        first_index <= low < high <= last_index + 1.
        """
        ...

    def snapshot(self) -> Snapshot | None:
        """A snapshot for a member that needs entries older than first_index; None: not now, ask again later.

        Of the newest state applied: a member refuses one whose configuration does not name it.
        """
        ...


def limited(entries: list[Entry], max_bytes: int) -> list[Entry]:
    """As many entries from the front as fit in max_bytes, at least one."""
    if max_bytes >= NO_LIMIT:
        return entries
    size = 0
    for count, entry in enumerate(entries):
        size += encoded_size(entry)
        if size > max_bytes and count:
            return entries[:count]
    return entries


class MemoryStorage:
    """A stable log in memory: everything written is stable at once. Implements `Storage`."""

    def __init__(self) -> None:
        self.hard_state = HardState(0, 0, 0)
        self.installed = Snapshot(0, 0, ConfState())
        self.offered: Snapshot | None = None  # what `snapshot` gives; none: the one installed, if any
        self._boundary = (0, 0)  # (index, term) of the entry before the first
        self._entries: list[Entry] = []

    @property
    def first_index(self) -> int:
        """See `Storage`."""
        return self._boundary[0] + 1

    @property
    def last_index(self) -> int:
        """See `Storage`."""
        return self._boundary[0] + len(self._entries)

    def term_of(self, index: int) -> int | None:
        """See `Storage`."""
        boundary, term = self._boundary
        if index == boundary:
            return term
        if boundary < index <= boundary + len(self._entries):
            return self._entries[index - boundary - 1][0]
        return None

    def read(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """See `Storage`."""
        begin = self._boundary[0] + 1
        assert begin <= low < high <= begin + len(self._entries)
        return limited(self._entries[low - begin : high - begin], max_bytes)

    def snapshot(self) -> Snapshot | None:
        """See `Storage`."""
        if self.offered is not None:
            return self.offered
        return self.installed if self.installed.index else None

    def append(self, entries: Sequence[Entry]) -> None:
        """Write entries without a gap; what follows the first one's index is replaced, what was compacted is not."""
        if not entries:
            return
        boundary = self._boundary[0]
        first = entries[0][1]
        assert first <= self.last_index + 1, f"entry {first} behind {self.last_index}"
        if first <= boundary:
            entries = [entry for entry in entries if entry[1] > boundary]
            if not entries:
                return
            first = boundary + 1
        del self._entries[first - boundary - 1 :]
        self._entries += entries

    def install(self, snapshot: Snapshot) -> None:
        """The log begins behind the snapshot; every entry is dropped."""
        assert snapshot.index > self.installed.index, "a snapshot older than the one installed"
        self.installed = snapshot
        self._boundary = (snapshot.index, snapshot.term)
        self._entries = []

    def compact(self, index: int) -> None:
        """Drop the entries up to `index`, which lies within the log."""
        assert self.first_index <= index <= self.last_index
        boundary = self._boundary[0]
        term = self._entries[index - boundary - 1][0]
        del self._entries[: index - boundary]
        self._boundary = (index, term)
