"""The open write-ahead log: what a member must find again after it stopped at any moment.

Threads. Everything belongs to the thread of raft's loop, except `sync`, `prepare_segment` and `remove_released`: each
of these may run in a helper thread, one call of each at a time, while the loop's thread does anything else here but
`close`. A `sync` covers all that was appended before it began; an `append` that runs meanwhile needs a later one.
"""

import errno
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Final, NamedTuple, NoReturn, Self

from node.raft.wal.entries import EntryCache, EntryIndex
from node.raft.wal.errors import Compacted, LogDamaged, LogError, LogFailed, LogFull
from node.raft.wal.files import Directory, File
from node.raft.wal.record import (
    ENTRY_FIXED_BYTES,
    HEADER_BYTES,
    Entry,
    HardState,
    RecordType,
    Snapshot,
    decode_entry,
    encode,
    encode_entries,
    encode_hard_state,
    encode_snapshot,
    payload_at,
    record_size,
)
from node.raft.wal.replay import NO_SNAPSHOT, Replay, place_snapshot
from node.raft.wal.segment import NEXT_SEGMENT_NAME, SEGMENT_BYTES, encode_head, parse_segment_name, segment_name

CACHE_BYTES: Final = 64 << 20
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class TornTail(NamedTuple):
    """A write that power loss interrupted was found at the log's end and cut. It was never acknowledged."""

    file: str
    offset: int


class _Segment:
    __slots__ = ("capacity", "file", "first_index", "head_end", "name", "sequence")

    def __init__(self, name: str, sequence: int, first_index: int, head_end: int, capacity: int, file: File) -> None:
        self.name = name
        self.sequence = sequence
        self.first_index = first_index
        self.head_end = head_end  # always on disk: the head is synced before the segment gets its name
        self.capacity = capacity
        self.file = file


def _segments_of(directory: Directory) -> list[tuple[int, int, str]]:
    return sorted((*parsed, name) for name in directory.names() if (parsed := parse_segment_name(name)))


def holds_log(directory: Directory) -> bool:
    """Whether there is a log to open; else one must be created."""
    return bool(_segments_of(directory))


class WriteAheadLog:
    """Entries, hard states and snapshots in order, readable back; made by `create` or `open`.

    `metadata` is what `create` was given; `hard_state` and `snapshot` are the latest appended; `torn` is what `open`
    had to cut, if anything; `ignored` are names in the directory that are no segments.
    """

    def __init__(
        self, directory: Directory, replay: Replay, segments: list[_Segment], end: int, segment_bytes: int, fsync: bool
    ) -> None:
        """For `create` and `open`; `end`: the offset behind the last record of the last segment."""
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._fsync = fsync
        self.metadata = replay.metadata
        self.hard_state = replay.hard_state
        self.snapshot = replay.snapshot
        self._entries: EntryIndex = replay.entries
        self._cache: EntryCache = replay.cache
        self._chain = replay.chain
        self._segments = segments
        self.torn: TornTail | None = None
        self.ignored: tuple[str, ...] = ()
        # One tuple each, replaced as a whole, so that a helper thread reads both halves from the same moment.
        self._tail = (segments[-1], end)
        self._synced = (segments[-1].sequence, end)
        self._snapshot_at = (-1, 0)
        self._released: list[_Segment] = []
        self._prepared: File | None = None
        self._prepare_lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._failure: LogFailed | None = None

    @classmethod
    def create(
        cls,
        directory: Directory,
        metadata: bytes,
        *,
        snapshot: Snapshot = NO_SNAPSHOT,
        segment_bytes: int = SEGMENT_BYTES,
        cache_bytes: int = CACHE_BYTES,
        fsync: bool = True,
    ) -> Self:
        """A new log in a directory that holds none; it is on disk on return.

        `metadata`: bytes of the caller's that name the member; `snapshot`: where the log begins. `fsync` False
        (`--unsafe-no-fsync`) syncs nothing ever: a crash of the machine may then lose or damage the log.
        Raises LogFull; OSError when the directory cannot be written.
        """
        if holds_log(directory):
            raise LogError("the directory holds a log already")
        replay = Replay(cache_bytes)
        replay.metadata = metadata
        replay.snapshot = snapshot
        place_snapshot(replay.entries, snapshot)
        first_index = snapshot.index + 1
        head, replay.chain = encode_head(0, first_index, snapshot.term, 0, metadata, replay.hard_state, snapshot)
        file = _make_segment_file(directory, segment_bytes, fsync)
        segment = _install(directory, file, head, 0, first_index, max(segment_bytes, len(head)), fsync)
        return cls(directory, replay, [segment], segment.head_end, segment_bytes, fsync)

    @classmethod
    def open(
        cls,
        directory: Directory,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        cache_bytes: int = CACHE_BYTES,
        fsync: bool = True,
    ) -> Self:
        """The log as it was left, its torn tail cut. Raises LogDamaged, and OSError when a file cannot be read."""
        found = _segments_of(directory)
        if not found:
            raise LogError("the directory holds no log")
        replay = Replay(cache_bytes)
        segments: list[_Segment] = []
        end = 0
        try:
            for sequence, first_index, name in found:
                file = directory.open(name)
                segment = _Segment(name, sequence, first_index, 0, file.size(), file)
                segments.append(segment)
                data = file.read(0, segment.capacity)
                is_last = sequence == found[-1][0]
                segment.head_end, end = replay.segment(name, sequence, first_index, data, last=is_last)
            replay.finish()
            last = segments[-1]
            if replay.torn:
                last.file.truncate(end)
            if replay.torn or last.capacity < segment_bytes:
                try:
                    last.file.allocate(segment_bytes)
                    last.capacity = max(last.file.size(), segment_bytes)
                except OSError as error:
                    if error.errno not in _NO_SPACE:
                        raise
                    last.capacity = end  # the next append needs a new segment, and says so if there is no room
            # What was read may never have been synced: make it so before anyone builds on it.
            if fsync:
                last.file.sync()
                directory.sync()
        except BaseException:
            for segment in segments:
                segment.file.close()
            raise
        log = cls(directory, replay, segments, end, segment_bytes, fsync)
        if replay.torn:
            log.torn = TornTail(last.name, end)
        names = {segment.name for segment in segments} | {NEXT_SEGMENT_NAME}
        log.ignored = tuple(sorted(set(directory.names()) - names))
        return log

    @property
    def first_index(self) -> int:
        """The oldest entry held; last_index + 1 when none is."""
        return self._entries.boundary_index + 1

    @property
    def last_index(self) -> int:
        """The newest entry's index; that of the snapshot, or 0, when no entry is held."""
        return self._entries.last_index

    @property
    def last_term(self) -> int:
        """The term of the entry at last_index."""
        return self._entries.last_term

    def term_of(self, index: int) -> int | None:
        """The term of an entry held, or of the one just before the first; None when the log does not know it."""
        return self._entries.term_of(index)

    def append(self, entries: Sequence[Entry], hard_state: HardState | None = None) -> int:
        """Write entries and then the hard state, in one system call; on disk only after `sync`.

        The entries have no gap among them; the first one's index is at most last_index + 1, and all entries from there
        on are replaced. Returns the bytes written. Raises LogFull, with nothing changed, and LogFailed.
        15 us for one entry of 15 KiB with a hard state, 10 of them in the kernel.
        """
        if self._failure is not None:
            raise self._failure
        if entries:
            first = entries[0][1]
            assert self.snapshot.index < first <= self._entries.last_index + 1, f"entry {first}: {self.snapshot}"
        segment, begin = self._tail
        parts, offsets, end, chain = encode_entries(entries, self._chain, begin, self._synced_offset(segment))
        if hard_state is not None:
            record, chain = encode(
                RecordType.HARD_STATE, encode_hard_state(hard_state), chain, end - self._synced_offset(segment)
            )
            parts.append(record)
            end += len(record)
        if end > segment.capacity:
            self._cut(end - begin)
            return self.append(entries, hard_state)
        self._write(segment, begin, parts)
        self._chain = chain
        if hard_state is not None:
            self.hard_state = hard_state
        if entries:
            add, sequence = self._entries.add, segment.sequence
            for (term, index, _, _), offset in zip(entries, offsets, strict=True):
                add(sequence, index, term, offset)
            self._cache.add(entries)
        self._tail = (segment, end)
        return end - begin

    def append_snapshot(self, snapshot: Snapshot) -> int:
        """Write that the state up to a snapshot is kept elsewhere; on disk only after `sync`.

        Entries stay when the log holds the snapshot's last one; else it is newer than the log, or the log went another
        way, and every entry is dropped: the next one is snapshot.index + 1. Returns the record's bytes. Raises LogFull
        and LogFailed, as `append`.
        """
        if self._failure is not None:
            raise self._failure
        assert snapshot.index >= self.snapshot.index
        segment, begin = self._tail
        payload = encode_snapshot(snapshot)
        if begin + record_size(len(payload)) > segment.capacity:
            self._cut(record_size(len(payload)))
            segment, begin = self._tail
        record, chain = encode(RecordType.SNAPSHOT, payload, self._chain, begin - self._synced_offset(segment))
        self._write(segment, begin, [record])
        self._chain = chain
        self.snapshot = snapshot
        if place_snapshot(self._entries, snapshot):
            self._cache.clear()
        end = begin + len(record)
        self._snapshot_at = (segment.sequence, end)
        self._tail = (segment, end)
        return end - begin

    def sync(self) -> None:
        """Return when all that was appended before is on disk (fdatasync).

        Raises LogFailed when the disk cannot say so, and from then on at every call: what it kept is not known.
        """
        with self._sync_lock:
            if self._failure is not None:
                raise self._failure
            segment, end = self._tail
            self._sync_file(segment.file, segment.name)
            self._synced = (segment.sequence, end)

    def read(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Entries low, …, high - 1: the first at least, then as many as fit in max_bytes of records.

        Both lie within [first_index, last_index + 1] and low < high. Raises Compacted when low < first_index;
        LogDamaged when the disk gives back something else than was written; OSError.
        """
        entries = self._entries
        if low <= entries.boundary_index:
            raise Compacted(f"entry {low} is not in the log, which begins at {entries.boundary_index + 1}")
        assert low < high <= entries.last_index + 1
        result: list[Entry] = []
        cache = self._cache
        while low < high:
            if low >= cache.first_index:
                entry = cache[low]
                max_bytes -= record_size(ENTRY_FIXED_BYTES + len(entry[3]))
                if max_bytes < 0 and result:
                    break
                result.append(entry)
                low += 1
                continue
            read, max_bytes = self._read_span(low, min(high, cache.first_index), max_bytes, first=not result)
            if not read:
                break
            result += read
            low += len(read)
        return result

    def _read_span(self, low: int, high: int, max_bytes: int, *, first: bool) -> tuple[list[Entry], int]:
        """Entries from `low` on that lie in one segment, in one read; (entries, what is left of max_bytes)."""
        span = self._entries.span_of(low)
        segment = self._segments[span.sequence - self._segments[0].sequence]
        high = min(high, span.end)
        # Between two entries there may be other records, also entries since replaced: an upper bound of the size.
        count = 0
        begin = span.offsets[low - span.first]
        end = begin
        while low + count < high:
            end_next = self._end_of(segment, span.offsets, low + count - span.first)
            if count and end_next - begin > max_bytes:
                break
            count, end = count + 1, end_next
            if end - begin > max_bytes:
                break
        data = segment.file.read(begin, end - begin)
        result: list[Entry] = []
        for index in range(low, low + count):
            offset = span.offsets[index - span.first]
            payload = payload_at(data, offset - begin)
            if payload is None or len(payload) < ENTRY_FIXED_BYTES:
                raise LogDamaged(segment.name, offset, "a record with a wrong checksum")
            entry = decode_entry(payload)
            if entry[1] != index or entry[0] != self._entries.term_of(index):
                raise LogDamaged(segment.name, offset, f"entry {entry[1]} where entry {index} was written")
            max_bytes -= record_size(len(payload))
            if max_bytes < 0 and (result or not first):
                break
            result.append(entry)
        return result, max_bytes

    def _end_of(self, segment: _Segment, offsets: Sequence[int], place: int) -> int:
        if place + 1 < len(offsets):
            return offsets[place + 1]
        header = segment.file.read(offsets[place], HEADER_BYTES)
        return offsets[place] + record_size(int.from_bytes(header[4:8], "little"))

    def release(self, index: int, max_segments: int) -> list[str]:
        """Entries up to `index` are no longer needed: let go of the oldest segments that hold no others.

        Keeps at least `max_segments` segments (`--max-wals`); 0 keeps all. The snapshot must cover `index`, and be
        synced, else nothing happens yet. Returns the names; the files go with the next `remove_released`.
        """
        assert index <= self.snapshot.index
        names: list[str] = []
        if not max_segments or self._synced < self._snapshot_at:
            return names
        segments = self._segments
        while len(segments) > max_segments and segments[1].first_index <= index + 1:
            segment = segments.pop(0)
            self._released.append(segment)
            names.append(segment.name)
        if names:
            self._entries.forget_before(segments[0].sequence)
            self._cache.forget_before(self.first_index)
        return names

    def remove_released(self) -> None:
        """Delete the files of released segments, oldest first and each for good, so that no gap can come up.

        For a helper thread: deleting a segment and syncing the directory take milliseconds. Raises OSError; the rest
        is tried again at the next call.
        """
        while self._released:
            segment = self._released[0]
            self._directory.remove(segment.name)
            if self._fsync:
                self._directory.sync()
            del self._released[0]
            with self._sync_lock:  # a sync may still be under way on the file that it found as the last one
                segment.file.close()

    def prepare_segment(self) -> None:
        """Make the next segment's file, unless it is there, so that no append waits for it.

        For a helper thread, at the start and after each cut (`segment_count` changes). Raises LogFull; the log goes on
        while its last segment has room. Other OSErrors come as they are.
        """
        with self._prepare_lock:
            if self._prepared is None:
                self._prepared = _make_segment_file(self._directory, self._segment_bytes, self._fsync)

    def reserve(self, size_bytes: int) -> None:
        """See that records of so many bytes can be appended, in a segment made now if need be. Raises LogFull, OSError.

        A file system that copies on write may still refuse the append.
        """
        segment, end = self._tail
        if end + size_bytes > segment.capacity:
            self.prepare_segment()

    @property
    def segment_count(self) -> int:
        """How many segments hold the log, released ones not counted."""
        return len(self._segments)

    def close(self) -> None:
        """Let go of all files and of the directory, without a sync. No other call may be under way."""
        for segment in self._segments + self._released:
            segment.file.close()
        if self._prepared is not None:
            self._prepared.close()
        self._directory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _synced_offset(self, segment: _Segment) -> int:
        sequence, offset = self._synced
        return offset if self._fsync and sequence == segment.sequence else segment.head_end

    def _write(self, segment: _Segment, offset: int, parts: Sequence[bytes]) -> None:
        try:
            segment.file.write(offset, parts)
        except OSError as error:
            # Half a record may stand there, which would look like damage at the next start: take it away. No room in
            # spite of fallocate is what a file system may say that copies on write.
            try:
                segment.file.truncate(offset)
                segment.file.truncate(segment.capacity)
            except OSError as second:
                self._fail(f"{segment.name}: {error}; then {second}", error)
            if error.errno in _NO_SPACE:
                raise LogFull(f"{segment.name}: {error}") from error
            self._fail(f"{segment.name}: {error}", error)

    def _sync_file(self, file: File, name: str) -> None:
        if self._fsync:
            try:
                file.sync()
            except OSError as error:
                self._fail(f"{name}: {error}", error)

    def _fail(self, reason: str, cause: BaseException) -> NoReturn:
        self._failure = LogFailed(reason)
        raise self._failure from cause

    def _cut(self, needed_bytes: int) -> None:
        """Go on in a new segment, with room for at least `needed_bytes` of records."""
        segment, end = self._tail
        self._sync_file(segment.file, segment.name)
        self._synced = (segment.sequence, end)
        sequence, first_index = segment.sequence + 1, self._entries.last_index + 1
        head, chain = encode_head(
            sequence,
            first_index,
            self._entries.last_term,
            self._chain,
            self.metadata,
            self.hard_state,
            self.snapshot,
        )
        capacity = max(self._segment_bytes, len(head) + needed_bytes)
        with self._prepare_lock:
            file, self._prepared = self._prepared, None
            try:
                if file is None:
                    file = _make_segment_file(self._directory, self._segment_bytes, self._fsync)
                new = _install(self._directory, file, head, sequence, first_index, capacity, self._fsync)
            except OSError as error:
                self._fail(f"{NEXT_SEGMENT_NAME}: {error}", error)
        self._chain = chain
        self._segments.append(new)
        self._tail = (new, new.head_end)
        self._synced = (new.sequence, new.head_end)


def _make_segment_file(directory: Directory, size_bytes: int, fsync: bool) -> File:
    """A file of zeros under the name of the next segment. Raises LogFull, with nothing left behind; OSError."""
    try:
        file = directory.create(NEXT_SEGMENT_NAME)
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise LogFull(f"{NEXT_SEGMENT_NAME}: {error}") from error
        raise
    try:
        file.allocate(size_bytes)
        if fsync:
            file.sync()
    except OSError as error:
        file.close()
        directory.remove(NEXT_SEGMENT_NAME)
        if error.errno in _NO_SPACE:
            raise LogFull(f"{NEXT_SEGMENT_NAME}: {error}") from error
        raise
    return file


def _install(
    directory: Directory, file: File, head: bytes, sequence: int, first_index: int, capacity: int, fsync: bool
) -> _Segment:
    """Make the prepared file a segment, on disk under its name; closes it when that fails.

    Raises LogFull, with nothing left behind; OSError.
    """
    name = segment_name(sequence, first_index)
    try:
        file.allocate(capacity)
        file.write(0, [head])
        if fsync:
            file.sync()
        directory.rename(NEXT_SEGMENT_NAME, name)
        if fsync:
            directory.sync()
    except OSError as error:
        file.close()
        if error.errno in _NO_SPACE and NEXT_SEGMENT_NAME in directory.names():
            directory.remove(NEXT_SEGMENT_NAME)
            raise LogFull(f"{NEXT_SEGMENT_NAME}: {error}") from error
        raise
    return _Segment(name, sequence, first_index, len(head), capacity, file)
