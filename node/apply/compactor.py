"""The pace of compactions: slices short enough to hold nobody up, with pauses between them (C6)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from kvorum.log import Logger
from node.apply.figures import ApplyFigures
from node.apply.mvcc.compaction import Compaction
from node.apply.outbox import Outbox
from node.apply.space import is_no_space

MOST_ROWS: Final = 100
"""A slice: a row takes about 12 us, so 1 to 2 ms."""

SLOW_S: Final = 0.004
"""A slice that takes longer (values of a mebibyte, a slow disk) is followed by one of half as many rows."""

RETRY_S: Final = 1.0
"""A slice that failed (a full disk) is tried again after this."""


class Compactor:
    """Runs the compaction under way, and holds the replies that wait for its end.

    `batch_limit` rows are followed by a pause of `sleep_interval_s` in all, as the flags say.
    """

    def __init__(
        self,
        compaction: Compaction,
        outbox: Outbox,
        figures: ApplyFigures,
        now: Callable[[], float],
        logger: Logger,
        *,
        batch_limit: int,
        sleep_interval_s: float,
    ) -> None:
        self._compaction = compaction
        self._outbox = outbox
        self._figures = figures
        self._now = now
        self._logger = logger
        self._batch_limit = batch_limit
        self._sleep_interval_s = sleep_interval_s
        self._most_rows = self._rows = min(batch_limit, MOST_ROWS)
        self._waiting: deque[tuple[int, int, int, bytes]] = deque()
        self._began_at: float | None = None  # of the compaction under way
        self._next_at = 0.0

    @property
    def due_at(self) -> float | None:
        """When `run` has something to do; None without a compaction."""
        return None if self._compaction.idle else self._next_at

    def wait(self, origin: int, sequence: int, reply: bytes) -> None:
        """See PhysicalWaits. An empty part tells the front that the request itself is executed."""
        self._outbox.part(origin, sequence, b"")
        self._waiting.append((self._compaction.compacted_revision, origin, sequence, reply))

    def run(self) -> None:
        """A slice of the compaction under way, if it is time. Raises the database's error, unless the disk is full."""
        compaction = self._compaction
        started = self._now()
        if compaction.idle or started < self._next_at:
            return
        if self._began_at is None:
            self._began_at = started
        rows = self._rows
        finished_before = compaction.finished_revision
        try:
            compaction.step(rows)
        except Exception as error:
            if not is_no_space(error):
                raise
            self._logger.error("cannot compact the database, trying again", error=str(error))
            self._next_at = started + RETRY_S
            return
        ended = self._now()
        took_s = ended - started
        self._figures.compaction_slice_ms.observe(took_s * 1000)
        self._next_at = ended + self._sleep_interval_s * rows / self._batch_limit
        self._rows = max(1, rows // 2) if took_s > SLOW_S else min(self._most_rows, rows * 2)
        if compaction.finished_revision != finished_before:
            self._figures.on_compacted(ended - self._began_at)
            self._began_at = None if compaction.idle else ended
            self._logger.info("finished scheduled compaction", compact_revision=compaction.finished_revision)
            while self._waiting and self._waiting[0][0] <= compaction.finished_revision:
                _, front, sequence, reply = self._waiting.popleft()
                self._outbox.reply(front, sequence, reply)
