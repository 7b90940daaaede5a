"""What the workers of one proxy have used of each tenant's requests and watches, in memory that they share.

A file in the proxy's run directory, mapped by all workers: for each tenant a row with its tag, then two numbers for
each worker. A worker writes its own numbers only and reads those of the others, so nothing needs a lock but the claim
of a row. A limit holds for all workers together; what two admit in the same microsecond may pass it.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
from typing import Final, Protocol

ROWS: Final = 16384
"""More than tenants of a file (`MOST_TENANTS`), since rows of tenants that are gone stay."""

_TAG_BYTES: Final = 8


class Share(Protocol):
    """One tenant's row, as a worker sees it."""

    @property
    def watches(self) -> int:
        """Of all workers together."""

    def add_request(self) -> None:
        """This worker admitted one more."""

    def take_others(self) -> int:
        """How many requests other workers admitted since the last call."""

    def add_watches(self, count: int) -> None:
        """This worker has so many more, or fewer."""


class OwnShare:
    """The row of a worker that is alone."""

    __slots__ = ("watches",)

    def __init__(self) -> None:
        self.watches = 0

    def add_request(self) -> None:
        """Nobody else needs to know."""

    def take_others(self) -> int:
        return 0

    def add_watches(self, count: int) -> None:
        self.watches += count


class Shares:
    """The rows of all tenants; worker `index` of `count`."""

    def __init__(self, path: str, index: int, count: int) -> None:
        """Opens the file, and makes it when it is not there. Raises OSError."""
        self._index = index
        self._count = count
        self._row_words = 1 + 2 * count
        size_bytes = ROWS * self._row_words * 8
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            os.ftruncate(self._fd, size_bytes)
            self._map = mmap.mmap(self._fd, size_bytes)
            self._words = memoryview(self._map).cast("q")
            # Whoever had this worker's place before is gone, and its watches with it.
            for row in range(0, ROWS * self._row_words, self._row_words):
                if self._words[row]:
                    self._words[row + 2 + 2 * index] = 0
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Rows may not be used any more."""
        self._words.release()
        self._map.close()
        os.close(self._fd)

    def row(self, name: str) -> SharedRow:
        """The row of the tenant of that name, claimed when there is none."""
        tag = (
            int.from_bytes(
                hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:_TAG_BYTES], "little", signed=True
            )
            or 1
        )
        words = self._words
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            for step in range(ROWS):
                at = (tag + step) % ROWS * self._row_words
                if words[at] in (0, tag):
                    words[at] = tag
                    return SharedRow(words, at + 1, self._index, self._count)
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        raise AssertionError("more tenants than rows")


class SharedRow:
    """A row in the shared memory: requests and watches of each worker in turn."""

    __slots__ = ("_others", "_own", "_seen", "_watches", "_words")

    def __init__(self, words: memoryview[int], at: int, index: int, count: int) -> None:
        self._words = words
        self._own = at + 2 * index
        self._others = [at + 2 * other for other in range(count) if other != index]
        self._watches = [at + 2 * worker + 1 for worker in range(count)]
        self._seen = self._others_requests()

    def _others_requests(self) -> int:
        words = self._words
        return sum([words[at] for at in self._others])

    @property
    def watches(self) -> int:
        words = self._words
        return sum([words[at] for at in self._watches])

    def add_request(self) -> None:
        self._words[self._own] += 1

    def take_others(self) -> int:
        requests = self._others_requests()
        taken, self._seen = requests - self._seen, requests
        return taken

    def add_watches(self, count: int) -> None:
        self._words[self._own + 1] += count
