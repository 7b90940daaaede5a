"""HashKV and Hash: checksums over the store, a slice at a time over one consistent view.

HashKV is CRC-32C over the bytes `key` and then key and value of every history row that a compaction to the compacted
revision leaves, up to the asked revision (behaviour.md H1 to H5). Whether that compaction has deleted its rows yet
makes no difference.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Final, NamedTuple

import google_crc32c

from node.apply.mvcc.database import Database
from node.apply.mvcc.message import key_of, varint
from node.apply.mvcc.rows import HISTORY, MARK_BYTES, META, history_from, versions_of

_TABLE_NAME: Final = b"key"
_TOMBSTONE_ROW_BYTES: Final = 1 + MARK_BYTES + 1
_NO_SUCCESSOR: Final = b"\xff" * 8
_CHUNK_ROWS: Final = 100
_SLICE_BYTES: Final = 2 << 20


class KeyValueHash(NamedTuple):
    """What HashKV answers: comparable between members where all but `hash` is equal (H10)."""

    hash: int
    compact_revision: int
    revision: int

    def body(self) -> bytes:
        """The HashKVResponse without its header."""
        return b"".join(
            tag + varint(number)
            for tag, number in ((b"\x10", self.hash), (b"\x18", self.compact_revision), (b" ", self.revision))
            if number
        )


class HashRun:
    """HashKV at `revision`, the store being compacted at `compacted`; the view is that of creation.

    A row at or below the compacted revision counts when it is its key's last version up to the asked one and no
    tombstone. If no key at all lives at the asked revision, that rule is off (H5), and what the compaction leaves
    counts: as long as no live key is found both sums are kept.
    """

    __slots__ = (
        "_compacted",
        "_history",
        "_live",
        "_revision",
        "_seeker",
        "_sum",
        "_sum_if_dead",
        "result",
        "revision",
    )

    def __init__(self, database: Database, revision: int, compacted: int) -> None:
        self._history = database.committed(HISTORY, history_from(max(revision, 0) + 1))
        self._seeker = database.seeker()
        self._revision = max(revision, 0).to_bytes(8, "big")
        self._compacted = max(compacted, 0).to_bytes(8, "big")
        # Nothing lies at or below 0, so before a compaction there is nothing to decide.
        self._live = compacted <= 0
        self._sum: int = google_crc32c.value(_TABLE_NAME)
        self._sum_if_dead = self._sum
        self.result = KeyValueHash(0, compacted, revision)

    def step(self, rows: int) -> bool:
        """Read up to `rows` rows, or 2 MiB; True when `result` stands."""
        kept: list[bytes] = []
        kept_if_dead: list[bytes] = []
        slice_bytes = 0
        at_end = False
        while rows > 0 and slice_bytes < _SLICE_BYTES and not at_end:
            chunk = list(islice(self._history, min(rows, _CHUNK_ROWS)))
            at_end = len(chunk) < min(rows, _CHUNK_ROWS)
            rows -= len(chunk)
            for row, kv in chunk:
                slice_bytes += len(kv)
                self._add(row, kv, kept, kept_if_dead)
        self._sum = google_crc32c.extend(self._sum, b"".join(kept))
        if not self._live:
            self._sum_if_dead = google_crc32c.extend(self._sum_if_dead, b"".join(kept_if_dead))
        if at_end:
            self.result = self.result._replace(hash=self._sum if self._live else self._sum_if_dead)
        return at_end

    def body(self) -> bytes:
        """The HashKVResponse without its header."""
        return self.result.body()

    def _add(self, row: bytes, kv: bytes, kept: list[bytes], kept_if_dead: list[bytes]) -> None:
        main = row[1:9]
        is_tombstone = len(row) == _TOMBSTONE_ROW_BYTES
        if main > self._compacted:
            kept.append(row[1:] + kv)
            if not self._live:
                kept_if_dead.append(row[1:] + kv)
                self._live = not is_tombstone and self._successor(row, kv) > self._revision
        elif not is_tombstone:
            successor = self._successor(row, kv)
            if successor > self._revision:
                kept.append(row[1:] + kv)
                self._live = True
            if not self._live and successor > self._compacted:
                kept_if_dead.append(row[1:] + kv)

    def _successor(self, row: bytes, kv: bytes) -> bytes:
        """The main revision of the key's next version, as 8 bytes."""
        prefix = versions_of(key_of(kv))
        seeker = self._seeker
        seeker.seek(prefix + row[1 : 1 + MARK_BYTES])
        assert seeker.valid(), f"a history row without its version row: {row!r}"
        seeker.next()
        if seeker.valid():
            following: bytes = seeker.key()
            if following.startswith(prefix):
                return following[-MARK_BYTES : -MARK_BYTES + 8]
        return _NO_SUCCESSOR


class StorageHash:
    """Hash (H12): every table but the meta rows. Depends on how far compaction has come; for tests."""

    __slots__ = ("_rows", "sum")

    def __init__(self, database: Database) -> None:
        self._rows: Iterator[tuple[bytes, bytes]] = database.committed(b"", b"\xff")
        self.sum: int = google_crc32c.value(b"")

    def step(self, rows: int) -> bool:
        """Read up to `rows` rows; True when `sum` stands."""
        chunk = list(islice(self._rows, rows))
        self.sum = google_crc32c.extend(
            self.sum, b"".join(row + value for row, value in chunk if not row.startswith(META))
        )
        return len(chunk) < rows

    def body(self) -> bytes:
        """The HashResponse without its header."""
        return b"\x10" + varint(self.sum)
