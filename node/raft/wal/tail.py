"""Where a segment's whole records stop: a clean end, a torn tail, or damage. Bytes in, a verdict out.

A member that loses power in the middle of a write finds some sectors of it written and others still zero, as the
segment was made. Such a tail was never acknowledged and is cut. Anything else means that the disk lost or changed what
was acknowledged, and to go on would be to forget it. So the tail is torn only if

1. the file ends inside the record, or the part of the record that lies in some 512-byte sector is all zero, and
2. no later record says that this place had been synced before it was written. (Writes between two syncs reach the disk
   in any order, so whole records may well follow a torn one.)
"""

import re
import struct
from enum import Enum
from typing import Final

from node.raft.wal.record import HEADER_BYTES, PAD, RecordType, header_at, record_size

SECTOR_BYTES: Final = 512
_BLOCK_BYTES: Final = 1 << 20
_ZEROS: Final = bytes(_BLOCK_BYTES)
_CHECKSUM: Final = struct.Struct("<I")
# What a record boundary looks like: a pad byte, then a type and three zeros. Looked at again in full where it matches.
_BOUNDARY: Final = re.compile(rb"(?=%b[\x01-%b]\0\0\0)" % (re.escape(bytes([PAD])), bytes([max(RecordType)])))


class Ending(Enum):
    """What stands behind the last whole record of a segment."""

    CLEAN = "zeros or nothing"
    TORN = "a write that power loss interrupted"
    DAMAGED = "damage"


def ending(data: bytes, offset: int, chain: int) -> Ending:
    """The verdict on `data` from `offset` on, where no whole record stands; `chain` is that before `offset`."""
    if _is_zero(data, offset, len(data)):
        return Ending.CLEAN
    header = header_at(data, offset, chain)
    if header is None:
        # Of the record only its head is known to be here. A sector that was not written is zero up to its end.
        next_offset = offset
        torn = offset + HEADER_BYTES > len(data) or _has_zero_sector(
            data, offset, _sector_end(offset + HEADER_BYTES - 1)
        )
    else:
        next_offset = offset + record_size(header[1])
        torn = next_offset > len(data) or _has_zero_sector(data, offset, next_offset)
    return Ending.TORN if torn and not _synced_since(data, offset, next_offset) else Ending.DAMAGED


def _sector_end(offset: int) -> int:
    return offset - offset % SECTOR_BYTES + SECTOR_BYTES


def _has_zero_sector(data: bytes, begin: int, end: int) -> bool:
    end = min(end, len(data))
    while begin < end:
        sector_end = min(_sector_end(begin), end)
        if _is_zero(data, begin, sector_end):
            return True
        begin = sector_end
    return False


def _is_zero(data: bytes, begin: int, end: int) -> bool:
    while begin < end:
        block_end = min(begin + _BLOCK_BYTES, end)
        if not _ZEROS.startswith(data[begin:block_end]):
            return False
        begin = block_end
    return True


def _synced_since(data: bytes, offset: int, next_offset: int) -> bool:
    """Whether a record at or behind `next_offset` was written when `offset` was already on disk.

    The length of the record at `offset` may be lost, so later records are found by their form: behind the pad of the
    one before, whose checksum is the chain that their own head checksum continues. Data that was made to look so can
    only make the verdict stricter.
    """
    for match in _BOUNDARY.finditer(data, max(offset, next_offset - 1)):
        begin = match.start() + 1
        if begin % 8:
            continue
        for pad_bytes in range(1, 9):
            checksum_at = begin - pad_bytes - 4
            if checksum_at < offset or data[begin - pad_bytes] != PAD:
                break
            (chain,) = _CHECKSUM.unpack_from(data, checksum_at)
            header = header_at(data, begin, chain)
            if header is not None:
                if begin - header[2] > offset:
                    return True
                break
    return False
