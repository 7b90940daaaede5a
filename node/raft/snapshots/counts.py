"""What is counted of snapshots that other members send here, over the generation that such a snapshot begins."""

from __future__ import annotations

from typing import Final

import orjson

from kvorum.log import Logger
from node.raft.snapshots.places import FIGURES, Files
from node.stats import Figures, Histogram, add, histogram

SENDERS_MAX: Final = 64
"""Members with counts of their own. At it: those of others are not counted."""

_SUCCESSES: Final = "etcd_network_snapshot_receive_success"


class SenderCounts:
    """Of one sender."""

    __slots__ = ("duration_s", "failures", "successes")

    def __init__(self) -> None:
        self.successes = 0
        self.failures = 0
        self.duration_s: Histogram = histogram("etcd_network_snapshot_receive_total_duration_seconds")


class ReceivedCounts:
    """Counts since the member's start, or since its processes were last started for another reason than a snapshot.

    A snapshot that was received ends the process that counted it, so what was counted is given on in a file.
    """

    def __init__(self, snap_path: str, files: Files, logger: Logger) -> None:
        self._path = f"{snap_path}/{FIGURES}"
        self._files = files
        self._logger = logger
        self._senders: dict[int, SenderCounts] = {}
        self.fsync_s: Histogram = histogram("etcd_snap_db_fsync_duration_seconds")
        self.save_s: Histogram = histogram("etcd_snap_db_save_total_duration_seconds")
        self._before: Figures = {}
        try:
            given = files.take(self._path)
            if given is not None:
                self._before = orjson.loads(given)
                self.totals()
        except (OSError, ValueError, KeyError, TypeError) as error:  # not readable, or cut by a loss of power
            self._before = {}
            logger.warn("lost what was counted of snapshots", error=str(error))

    def of(self, sender: int) -> SenderCounts | None:
        """A member's counts, if there is room for them."""
        counts = self._senders.get(sender)
        if counts is None and len(self.totals()[_SUCCESSES]) < SENDERS_MAX:
            counts = self._senders[sender] = SenderCounts()
        return counts

    def totals(self) -> Figures:
        """All counts, by series."""
        senders = [(f"{member:x}", counts) for member, counts in self._senders.items()]
        own: Figures = {
            _SUCCESSES: [[[name], counts.successes] for name, counts in senders],
            "etcd_network_snapshot_receive_failures": [[[name], counts.failures] for name, counts in senders],
            "etcd_network_snapshot_receive_total_duration_seconds": [
                [[name], counts.duration_s.snapshot()] for name, counts in senders
            ],
            "etcd_snap_db_fsync_duration_seconds": self.fsync_s.snapshot(),
            "etcd_snap_db_save_total_duration_seconds": self.save_s.snapshot(),
        }
        return {name: add(self._before[name], figure) for name, figure in own.items()} if self._before else own

    def give_on(self) -> None:
        """To the next generation, which begins with a snapshot."""
        try:
            self._files.write(self._path, orjson.dumps(self.totals()))
        except OSError as error:
            self._logger.warn("cannot give on what was counted of snapshots", error=str(error))
