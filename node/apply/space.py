"""Room for data: the quota, the disk's free space, and what tells a full disk from a broken one."""

from __future__ import annotations

from typing import Final

MIB: Final = 1 << 20

RESERVE_BYTES: Final = 16 * MIB
"""What the disk must still have beyond what memory holds for it, so that an alarm comes before writes fail."""

_NO_SPACE: Final = ("No space left on device", "Disk quota exceeded")


def is_no_space(error: Exception) -> bool:
    """Whether the database could not write for want of room: it goes on by itself once there is some.

    rocksdict raises plain Exceptions and names the reason in their text alone.
    """
    return type(error) is Exception and any(text in str(error) for text in _NO_SPACE)


def shortage(size_bytes: int, quota_bytes: int | None, free_bytes: int, unflushed_bytes: int) -> str | None:
    """Why NOSPACE is to be raised (MA14, MA15), or None.

    `unflushed_bytes` are in memory and will be written to the disk; a quota of None is no limit.
    """
    if quota_bytes is not None and size_bytes >= quota_bytes:
        return f"the database has {size_bytes} bytes, and its quota is {quota_bytes}"
    if free_bytes < unflushed_bytes + RESERVE_BYTES:
        return f"the disk has {free_bytes} bytes left"
    return None
