"""When the leader compacts by itself: to the revision of one period ago, or to a number of revisions ago (C12-C15).

Pure: `tick` takes the time and the store's revision, and says what to compact to, if anything.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from node import config

HOUR_S: Final = 3600.0
REVISION_INTERVAL_S: Final = 300.0
SAMPLES_PER_INTERVAL: Final = 10


class AutoCompaction(Protocol):
    """Either mode."""

    def tick(self, now_s: float, revision: int) -> int | None:
        """The revision to compact to now, or None. Called at any rate; it keeps its own times."""

    def done(self, now_s: float, revision: int) -> None:
        """The compaction to `revision` was agreed on. One that fails is asked for again at a later tick."""


class Periodic:
    """Keeps the history of the last `period_s` seconds, sampled ten times per interval (of at most an hour)."""

    def __init__(self, period_s: float, now_s: float) -> None:
        self._interval_s = min(period_s, HOUR_S)
        self._sample_s = self._interval_s / SAMPLES_PER_INTERVAL
        self._samples: deque[int] = deque(maxlen=max(1, round(period_s / self._sample_s)))
        self._next_sample_at = now_s
        self._due_at = now_s + period_s
        self._last = 0

    def tick(self, now_s: float, revision: int) -> int | None:
        """See AutoCompaction."""
        if now_s < self._next_sample_at:
            return None
        self._next_sample_at = now_s + self._sample_s
        target = self._samples[0] if self._samples else 0
        self._samples.append(revision)
        if now_s < self._due_at or target <= self._last:
            return None
        return target

    def done(self, now_s: float, revision: int) -> None:
        """See AutoCompaction."""
        self._last = revision
        self._due_at = now_s + self._interval_s


class Revision:
    """Keeps the last `retention` revisions; looks every five minutes."""

    def __init__(self, retention: int, now_s: float) -> None:
        self._retention = retention
        self._due_at = now_s + REVISION_INTERVAL_S
        self._last = 0

    def tick(self, now_s: float, revision: int) -> int | None:
        """See AutoCompaction."""
        if now_s < self._due_at:
            return None
        self._due_at = now_s + REVISION_INTERVAL_S
        target = revision - self._retention
        return target if target > self._last else None

    def done(self, now_s: float, revision: int) -> None:
        """See AutoCompaction."""
        self._last = revision


def of_settings(settings: config.AutoCompaction, now_s: float) -> AutoCompaction | None:
    """Automatic compaction as the flags want it; None when it is off (C14)."""
    if not settings.enabled:
        return None
    if settings.mode is config.CompactionMode.PERIODIC:
        return Periodic(settings.retention_s, now_s)
    return Revision(settings.retention_revisions, now_s)
