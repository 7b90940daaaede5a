"""Ranges of keys as the API gives them, (key, range_end): no end is one key, one zero byte no end at all (P8)."""

from typing import Final

FROM_KEY: Final = b"\0"
"""The range end that means: every key from here on."""


def covers(start: bytes, end: bytes, key: bytes) -> bool:
    """Whether the range holds the key."""
    if not end:
        return key == start
    return start <= key and (end == FROM_KEY or key < end)


def overlap(start: bytes, end: bytes, other_start: bytes, other_end: bytes) -> bool:
    """Whether two ranges have a key in common, or could."""
    if not end:
        return covers(other_start, other_end, start)
    if not other_end:
        return covers(start, end, other_start)
    return (end == FROM_KEY or other_start < end) and (other_end == FROM_KEY or start < other_end)


def end_of_prefix(prefix: bytes) -> bytes:
    """The end of the range of all keys with a prefix (R20); FROM_KEY for one of 0xff bytes alone."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else FROM_KEY
