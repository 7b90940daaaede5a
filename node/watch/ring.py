"""The most recent revisions, in memory, so that who is behind by a little needs no disk."""

from __future__ import annotations

from typing import Final

from node.events import RevisionChanges

RING_BYTES: Final = 16 << 20

_TRIM: Final = 1024
"""Evicted entries are cut off the list once there are so many."""

ENTRY_OVERHEAD_BYTES: Final = 300
"""What a revision takes in memory beyond its keys and values: a list, two tuples, three bytes objects."""


class Ring:
    """A gapless run of revisions, the last of which is the stream's; the oldest go when `limit_bytes` is passed.

    `first` is the oldest revision here (the next one, when empty), `first_with_prev` the oldest from which on previous
    values are here too.
    """

    __slots__ = ("_entries", "_gone", "_sizes", "first", "first_with_prev", "limit_bytes", "size_bytes")

    def __init__(self, limit_bytes: int = RING_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.first = 1
        self.first_with_prev = 1
        self.size_bytes = 0
        self._entries: list[RevisionChanges] = []
        self._sizes: list[int] = []
        self._gone = 0

    def reset(self, revision: int) -> None:
        """Empties the ring: the next revision is the one after `revision`."""
        self.first = self.first_with_prev = revision + 1
        self.size_bytes = 0
        self._entries.clear()
        self._sizes.clear()
        self._gone = 0

    def append(self, entry: RevisionChanges, size_bytes: int, has_prev: bool) -> None:
        """The next revision, its changes and their size."""
        entries = self._entries
        gone = self._gone
        assert entry[0] == self.first + len(entries) - gone, "a revision is missing in the ring"
        entries.append(entry)
        size_bytes += ENTRY_OVERHEAD_BYTES
        self._sizes.append(size_bytes)
        self.size_bytes += size_bytes
        if not has_prev:
            self.first_with_prev = entry[0] + 1
        if self.size_bytes > self.limit_bytes:
            sizes = self._sizes
            size = self.size_bytes
            while size > self.limit_bytes:
                size -= sizes[gone]
                entries[gone] = (0, [])
                gone += 1
                self.first += 1
            self.size_bytes = size
            if gone >= _TRIM:
                del entries[:gone], sizes[:gone]
                gone = 0
            self._gone = gone
            self.first_with_prev = max(self.first_with_prev, self.first)

    def first_for(self, wants_prev: bool) -> int:
        """From which revision on a watcher can be served from here."""
        return self.first_with_prev if wants_prev else self.first

    def slice(self, start: int, max_revisions: int, max_bytes: int) -> list[RevisionChanges]:
        """Revisions from `start` on, which is not before `first`: at least one if there is one."""
        at = start - self.first + self._gone
        assert at >= self._gone
        end = min(len(self._entries), at + max_revisions)
        size = 0
        for index in range(at, end):
            size += self._sizes[index]
            if size > max_bytes and index > at:
                end = index
                break
        return self._entries[at:end]
