"""What a log's bytes say: segments in, the log's state or damage out. No file is touched."""

from typing import Final

from node.raft.wal.entries import EntryCache, EntryIndex
from node.raft.wal.errors import LogDamaged
from node.raft.wal.record import (
    HardState,
    Record,
    RecordReader,
    RecordType,
    SegmentHead,
    Snapshot,
    decode_entry,
    decode_hard_state,
    decode_segment_head,
    decode_snapshot,
)
from node.raft.wal.tail import Ending, ending

NO_SNAPSHOT: Final = Snapshot(0, 0, b"")
NO_HARD_STATE: Final = HardState(0, 0, 0)


def place_snapshot(entries: EntryIndex, snapshot: Snapshot) -> bool:
    """Make the log begin behind a snapshot whose last entry it does not hold; whether that dropped all entries."""
    if snapshot.index < entries.boundary_index or entries.term_of(snapshot.index) == snapshot.term:
        return False
    entries.reset(snapshot.index, snapshot.term)
    return True


class Replay:
    """The state after the segments given so far; give them in the order of their sequence."""

    def __init__(self, cache_bytes: int) -> None:
        self.metadata = b""
        self.hard_state = NO_HARD_STATE
        self.snapshot = NO_SNAPSHOT
        self.entries = EntryIndex(0, 0)
        self.cache = EntryCache(cache_bytes)
        self.chain = 0
        self.torn = False
        self._sequence: int | None = None
        self._name = ""
        self._head_types: list[int] = []

    def segment(self, name: str, sequence: int, first_index: int, data: bytes, *, last: bool) -> tuple[int, int]:
        """Take one segment's bytes; its name said `sequence` and `first_index`.

        Returns (offset behind its head, offset behind its last whole record). Sets `torn` when a torn tail follows
        there, which only the last segment may have. Raises LogDamaged.
        """
        if self._sequence is not None and sequence != self._sequence + 1:
            raise LogDamaged(name, 0, f"the segment of sequence {self._sequence + 1} is missing before it")
        previous = self._sequence
        self._sequence, self._name = sequence, name
        self._head_types = [RecordType.SEGMENT_HEAD, RecordType.METADATA, RecordType.HARD_STATE, RecordType.SNAPSHOT]
        head_end = 0
        reader = RecordReader(data)
        for record in reader:
            try:
                if self._head_types:
                    self._head_record(record, previous is None, first_index)
                    continue
                if not head_end:
                    head_end = record.offset
                self._record(record)
            except ValueError as error:
                raise LogDamaged(name, record.offset, str(error)) from None
        if self._head_types:
            raise LogDamaged(name, reader.offset, "the segment's head is not whole")
        verdict = ending(data, reader.offset, reader.chain)
        if verdict is Ending.DAMAGED or (verdict is Ending.TORN and not last):
            raise LogDamaged(name, reader.offset, "a record with a wrong checksum")
        self.torn = verdict is Ending.TORN
        self.chain = reader.chain
        return head_end or reader.offset, reader.offset

    def finish(self) -> None:
        """No segment follows. Raises LogDamaged when entries behind the snapshot are missing."""
        if self.snapshot.index < self.entries.boundary_index:
            reason = f"entries {self.snapshot.index + 1} to {self.entries.boundary_index} are missing"
            raise LogDamaged(self._name, 0, reason)

    def _head_record(self, record: Record, is_first: bool, first_index: int) -> None:
        expected = self._head_types.pop(0)
        if record.type != expected:
            raise ValueError(f"a record of type {record.type} where type {expected} belongs")
        match expected:
            case RecordType.SEGMENT_HEAD:
                self._segment_head(decode_segment_head(record.payload), is_first, first_index)
            case RecordType.METADATA:
                if not is_first and record.payload != self.metadata:
                    raise ValueError("another member's segment")
                self.metadata = record.payload
            case _:
                self._record(record)

    def _segment_head(self, head: SegmentHead, is_first: bool, first_index: int) -> None:
        if head.sequence != self._sequence or head.first_index != first_index:
            raise ValueError(f"the segment calls itself {head.sequence:x}-{head.first_index:x}")
        if is_first:
            self.entries.reset(first_index - 1, head.previous_term)
        elif head.previous_crc != self.chain:
            raise ValueError("it does not continue the segment before: wrong checksum")
        elif first_index != self.entries.last_index + 1:
            raise ValueError(f"entries {self.entries.last_index + 1} to {first_index - 1} are missing before it")

    def _record(self, record: Record) -> None:
        # In order of how often they occur.
        if record.type == RecordType.ENTRY:
            entry = decode_entry(record.payload)
            term, index, _, _ = entry
            entries = self.entries
            if not 0 < index <= entries.last_index + 1:
                raise ValueError(f"entry {index} behind entry {entries.last_index}")
            assert self._sequence is not None
            entries.add(self._sequence, index, term, record.offset)
            if entries.last_index == entries.boundary_index:
                self.cache.clear()
            else:
                self.cache.add((entry,))
        elif record.type == RecordType.HARD_STATE:
            self.hard_state = decode_hard_state(record.payload)
        elif record.type == RecordType.SNAPSHOT:
            self.snapshot = decode_snapshot(record.payload)
            if place_snapshot(self.entries, self.snapshot):
                self.cache.clear()
        else:
            raise ValueError(f"a record of type {record.type} has no place here")
