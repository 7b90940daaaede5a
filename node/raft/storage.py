"""The write-ahead log as the consensus core reads it: it begins where the log was compacted, not where its files do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from node.raft.core.messages import Entry, Snapshot

if TYPE_CHECKING:
    from node.raft.wal.log import WriteAheadLog


class LogStorage:
    """`core.Storage` over the log's files.

    Files are released whole and a few are always kept, so they hold more than `--snapshot-catchup-entries` asks for.
    What lies before `compact` is no longer sent: a member so far behind is served faster by a snapshot.
    """

    __slots__ = ("_compacted", "_log", "_offer", "_read", "_term_of")

    def __init__(self, log: WriteAheadLog, offer: Callable[[int], Snapshot | None]) -> None:
        """`offer` gives the snapshot for a member that is too far behind, none older than the index it is told."""
        self._log = log
        self._offer = offer
        self._read = log.read
        self._term_of = log.term_of
        self._compacted = 0

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
        return self._offer(self.first_index - 1)

    def compact(self, index: int) -> None:
        """Entries up to `index`, which are all applied, are not sent any more."""
        self._compacted = max(self._compacted, index)
