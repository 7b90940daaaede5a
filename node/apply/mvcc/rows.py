"""Where each row of the store lies in the database: the tables and their keys.

A table is a one-byte prefix. The three tables of keys and their bytes:

- history `k` + main (8 bytes, big-endian) + `_` + sub (8 bytes) [+ `t` for a tombstone]: the KeyValue message
- current `c` + user key: the KeyValue message of a live key
- versions `v` + escaped user key + main + `_` + sub: empty, or `t` for a tombstone

A `revision mark` below is the 17 bytes main + `_` + sub, the same in all tables. History without its prefix is the
row format that HashKV is defined over (behaviour.md H2, H3).
"""

import struct
from typing import Final

HISTORY: Final = b"k"
CURRENT: Final = b"c"
VERSIONS: Final = b"v"
META: Final = b"m"

HISTORY_END: Final = b"l"
CURRENT_END: Final = b"d"
VERSIONS_END: Final = b"w"

CURSOR: Final = META + b"cursor"
COMPACTION_SCHEDULED: Final = META + b"compaction-scheduled"
COMPACTION_FINISHED: Final = META + b"compaction-finished"

TOMBSTONE: Final = b"t"
MARK_BYTES: Final = 17
SUB_ZERO: Final = b"_" + bytes(8)

_MARK: Final = struct.Struct(">QcQ")
_KEY_END: Final = b"\0\x01"


def mark(main: int, sub: int) -> bytes:
    """The 17-byte revision mark."""
    return _MARK.pack(main, b"_", sub)


def main_of(row: bytes) -> int:
    """The main revision of a history row's key."""
    return int.from_bytes(row[1:9], "big")


def history_from(main: int) -> bytes:
    """The least possible history row of a main revision."""
    return HISTORY + main.to_bytes(8, "big")


def versions_of(key: bytes) -> bytes:
    """What all version rows of a key begin with.

    A zero byte becomes 00 ff and the key ends with 00 01, so that rows sort by user key first, then by revision, also
    when one key is the beginning of another.
    """
    return VERSIONS + key.replace(b"\0", b"\0\xff") + _KEY_END


def versions_from(key: bytes) -> bytes:
    """The least possible version row of any key >= `key`."""
    return VERSIONS + key.replace(b"\0", b"\0\xff")


def key_of_version(row: bytes) -> bytes:
    """The user key of a version row."""
    return row[1 : -MARK_BYTES - len(_KEY_END)].replace(b"\0\xff", b"\0")
