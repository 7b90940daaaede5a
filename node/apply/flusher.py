"""Makes what was written durable from time to time, in a thread, and says how far that is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from kvorum.log import Logger
from node.apply.host import Job
from node.apply.mvcc.database import Cursor
from node.apply.space import is_no_space

FLUSH_REQUESTS: Final = 10_000
FLUSH_BYTES: Final = 16 << 20
"""A flush begins after so many requests or logged bytes: it bounds what is replayed after a crash."""

RETRY_S: Final = 5.0
"""A flush that failed is tried again after this."""


class Flushes(Protocol):
    """The database."""

    def flush(self) -> Cursor:
        """Make everything committed durable; returns the cursor that is durable then."""


class Flusher:
    """Flushes a database when enough was written since it was flushed last. `run_aside` is `Host`'s.

    `most_requests` may be less than `FLUSH_REQUESTS`: raft's snapshots come with a flush (--snapshot-count).
    """

    def __init__(
        self,
        database: Flushes,
        logger: Logger,
        run_aside: Callable[[str, Callable[[], None]], Job],
        most_requests: int = FLUSH_REQUESTS,
    ) -> None:
        self._database = database
        self._most_requests = most_requests
        self._logger = logger
        self._run_aside = run_aside
        self._thread: Job | None = None
        self._flushed: Cursor | None = None
        self._error: Exception | None = None
        self._requests = 0
        self._bytes = 0
        self._under_way = (0, 0)
        self._not_before = 0.0

    def wrote(self, requests: int, size_bytes: int) -> None:
        """So many more requests, of so many logged bytes, were committed."""
        self._requests += requests
        self._bytes += size_bytes

    def tick(self, now: float, *, has_room: bool) -> int | None:
        """The raft index up to which the database is durable, if that is news; begins the next flush if it is due.

        Without room none begins: a flush that fails stops all writes for seconds. Raises what a flush raised, unless
        it was that the disk is full.
        """
        thread = self._thread
        if thread is not None:
            if thread.is_alive():
                return None
            thread.join()
            self._thread = None
        flushed, self._flushed = self._flushed, None
        error, self._error = self._error, None
        if error is not None:
            if not is_no_space(error):
                raise error
            self._logger.error("cannot flush the database, trying again", error=str(error))
            self._requests += self._under_way[0]
            self._bytes += self._under_way[1]
            self._not_before = now + RETRY_S
        self._under_way = (0, 0)
        due = self._requests >= min(self._most_requests, FLUSH_REQUESTS) or self._bytes >= FLUSH_BYTES
        if due and has_room and now >= self._not_before:
            self._under_way = (self._requests, self._bytes)
            self._requests = self._bytes = 0
            self._thread = self._run_aside("flush", self._flush)
        return None if flushed is None else flushed.index

    def close(self) -> None:
        """Waits for the flush under way, then flushes the rest. A full disk is no error: raft's log has everything."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._flush()
        if self._error is not None:
            if not is_no_space(self._error):
                raise self._error
            self._logger.error("cannot flush the database", error=str(self._error))

    def _flush(self) -> None:
        try:
            self._flushed = self._database.flush()
        except Exception as error:
            self._error = error
