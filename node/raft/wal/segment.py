"""The names of the log's files and what stands at the head of each."""

import re
from typing import Final

from node.raft.wal.record import (
    FORMAT_VERSION,
    HardState,
    RecordType,
    SegmentHead,
    Snapshot,
    encode,
    encode_hard_state,
    encode_segment_head,
    encode_snapshot,
)

SEGMENT_BYTES: Final = 64_000_000
NEXT_SEGMENT_NAME: Final = "0.tmp"
_NAME: Final = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.wal", re.ASCII)


def segment_name(sequence: int, first_index: int) -> str:
    """The name of a segment: its place in the sequence, and the index that its first entry was expected to have."""
    return f"{sequence:016x}-{first_index:016x}.wal"


def parse_segment_name(name: str) -> tuple[int, int] | None:
    """(sequence, first index), or None when the file is no segment."""
    match = _NAME.fullmatch(name)
    return (int(match[1], 16), int(match[2], 16)) if match else None


def encode_head(
    sequence: int,
    first_index: int,
    previous_term: int,
    previous_crc: int,
    metadata: bytes,
    hard_state: HardState,
    snapshot: Snapshot,
) -> tuple[bytes, int]:
    """The records that begin a segment, and the chain after them.

    They repeat all that the log must know beside entries, so every segment before may be removed.
    """
    chain = 0  # a reader may begin at any segment; `previous_crc` ties this one to the one before
    parts: list[bytes] = []
    head = SegmentHead(FORMAT_VERSION, previous_crc, sequence, first_index, previous_term)
    for record_type, payload in (
        (RecordType.SEGMENT_HEAD, encode_segment_head(head)),
        (RecordType.METADATA, metadata),
        (RecordType.HARD_STATE, encode_hard_state(hard_state)),
        (RecordType.SNAPSHOT, encode_snapshot(snapshot)),
    ):
        record, chain = encode(record_type, payload, chain, 0)
        parts.append(record)
    return b"".join(parts), chain
