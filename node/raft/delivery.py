"""Committed entries on their way to apply, as far as it has credit; the rest stays in the log's files until it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from node.frames import ENTRY_HEADER, Kind, Process
from node.link import Streams
from node.raft.core import Entry
from node.raft.wal.log import WriteAheadLog

SEND_BYTES: Final = 1 << 20
"""A frame of entries read back for apply (after a start, or when it had no credit) holds about this much."""


class Delivery:
    """What the core gave out to be applied (`handed`), and how much of it apply was sent, and has executed."""

    def __init__(self, links: Streams, log: WriteAheadLog, now: Callable[[], float]) -> None:
        self._links = links
        self._log = log
        self._now = now
        self.handed = 0
        """The last entry given out."""
        self.backlog_bytes = 0
        """Of entries given out and not sent."""
        self.executed = 0
        """The last entry that apply executed."""
        self._executed_at = 0.0
        self._sent = 0
        self._stopped = False

    def start(self, index: int) -> None:
        """Apply has executed everything up to `index`."""
        self.handed = self._sent = self.executed = index
        self._executed_at = self._now()

    def on_progress(self, executed: int) -> None:
        """Apply says how far it is."""
        self.executed = executed
        self._executed_at = self._now()

    def be_patient(self) -> None:
        """From now on apply is given as much time as if it had just moved."""
        self._executed_at = self._now()

    def stands_still(self, patience_s: float) -> bool:
        """Whether there is something to execute, and apply has not moved for so long."""
        return self.executed < self.handed and self._now() - self._executed_at >= patience_s

    def hand_out(self, entries: list[Entry]) -> None:
        """The next entries are committed, and on this member's own disk."""
        self.handed = entries[-1][1]
        self.send(entries)

    def stop(self) -> None:
        """The log may hold what is left no more: the next generation begins behind it."""
        self._stopped = True

    def send(self, fresh: list[Entry] | None = None) -> None:
        """Sends what apply has credit for; `fresh` need not be read back."""
        if self._stopped:
            return
        links = self._links
        outlet = links.outlet(Process.APPLY, Kind.ENTRIES)
        if fresh and (fresh[0][1] != self._sent + 1 or not outlet.open()):
            self.backlog_bytes += _data_bytes(fresh)
            fresh = None
        pack = ENTRY_HEADER.pack
        while self._sent < self.handed and outlet.open():
            if fresh:
                entries, fresh = fresh, None
            else:
                entries = self._log.read(self._sent + 1, self.handed + 1, SEND_BYTES)
                self.backlog_bytes -= _data_bytes(entries)
            parts: list[bytes] = []
            for term, index, type_, data in entries:
                parts.append(pack(index, term, type_, len(data)))
                parts.append(data)
            self._sent = entries[-1][1]
            links.send(Process.APPLY, Kind.ENTRIES, b"".join(parts))


def _data_bytes(entries: list[Entry]) -> int:
    return sum([len(entry[3]) for entry in entries])
