"""What the workers of one proxy tell each other for their caches, in memory that all of them map.

A client's next connection may reach another worker. So what a worker learns of keys must count in the others before
its client has the answer: that rules out messages. Each worker writes to a region of its own, which has no lock since
nobody else writes there, and looks into the others' when it is about to use a reply it has kept.

A region is 64-bit numbers: a few for all keys, then the greatest revision by the key's checksum. Keys that share a
place make a cache forget more than it must, never less.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Final
from zlib import crc32

_RANGES: Final = 0
"""The greatest revision that a whole range is known of."""
_ANY: Final = 1
"""The greatest revision that anything is known of."""
_COMPACTED: Final = 2
_CLEARED: Final = 3
"""How often everything was to be forgotten."""
_KEYS: Final = 8

PLACES: Final = 1 << 16
REGION_BYTES: Final = 8 * (_KEYS + PLACES)


class Shared:
    """The regions of all workers, as seen by one of them."""

    def __init__(self, regions: list[memoryview], index: int) -> None:
        """`regions`: 64-bit unsigned, REGION_BYTES each; `index` is this worker's own."""
        self._own = regions[index]
        self._others = regions[:index] + regions[index + 1 :]

    def note_key(self, key: bytes, revision: int) -> None:
        """A key is known not to be older than this."""
        self._raise(_KEYS + (crc32(key) & (PLACES - 1)), revision)
        self._raise(_ANY, revision)

    def note_range(self, revision: int) -> None:
        """A range is known as of this revision."""
        self._raise(_RANGES, revision)
        self._raise(_ANY, revision)

    def note_compaction(self, revision: int) -> None:
        """Earlier revisions are compacted."""
        self._raise(_COMPACTED, revision)

    def note_clear(self) -> None:
        """Everything is to be forgotten."""
        self._own[_CLEARED] += 1

    def key(self, key: bytes) -> int:
        """An entry of this key that is older is not to be used."""
        place = _KEYS + (crc32(key) & (PLACES - 1))
        return max([max(other[place], other[_RANGES]) for other in self._others])

    @property
    def any(self) -> int:
        """An entry of a range that is older is not to be used."""
        return max([other[_ANY] for other in self._others])

    @property
    def compacted(self) -> int:
        """An entry of an earlier revision is not to be used."""
        return max([other[_COMPACTED] for other in self._others])

    @property
    def cleared(self) -> int:
        """Changes when everything is to be forgotten."""
        return sum([other[_CLEARED] for other in self._others])

    def _raise(self, place: int, revision: int) -> None:
        own = self._own
        if revision > own[place]:
            own[place] = revision


def open_shared(path: Path, index: int, count: int) -> Shared:
    """Maps the file that the workers 0 to `count` - 1 share; whoever is first makes it. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.ftruncate(descriptor, count * REGION_BYTES)
        mapped = memoryview(mmap.mmap(descriptor, count * REGION_BYTES))
    finally:
        os.close(descriptor)
    regions = [mapped[at : at + REGION_BYTES].cast("Q") for at in range(0, count * REGION_BYTES, REGION_BYTES)]
    return Shared(regions, index)
