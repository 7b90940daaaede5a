"""The write-ahead log as the consensus core reads it: it begins where the log was compacted, not where its files do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from node.raft.core.messages import Entry, Snapshot

if TYPE_CHECKING:
    from node.raft.wal.log import WriteAheadLog


class LogStorage:
    """`core.Storage` over the log's files.

    Files are released whole and a few are always kept, so they hold more than `--snapshot-catchup-entries` asks for.
    What lies before `compact` is no longer sent: a member so far behind is served faster by a snapshot.
    """

    __slots__ = ("_compacted", "_log", "_read", "_term_of", "offered", "wanted")

    def __init__(self, log: WriteAheadLog) -> None:
        self._log = log
        self._read = log.read
        self._term_of = log.term_of
        self._compacted = 0
        self.offered: Snapshot | None = None
        """What a member too far behind is sent."""
        self.wanted = False
        """A snapshot was asked for, and there was none to offer."""

    @property
    def first_index(self) -> int:
        """See `Storage`."""
        return max(self._log.first_index, self._compacted + 1)

    @property
    def last_index(self) -> int:
        """See `Storage`."""
        return self._log.last_index

    def term_of(self, index: int) -> int | None:
        """See `Storage`."""
        return self._term_of(index) if index >= self._compacted else None

    def read(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """See `Storage`."""
        return self._read(low, high, max_bytes)

    def snapshot(self) -> Snapshot | None:
        """See `Storage`. One that the log does not continue from is of no use."""
        offered = self.offered
        if offered is None or offered.index + 1 < self.first_index:
            self.wanted = True
            return None
        return offered

    def compact(self, index: int) -> None:
        """Entries up to `index`, which are all applied, are not sent any more."""
        self._compacted = max(self._compacted, index)
