"""Which entries the log holds: where each lies, its term, and the latest ones themselves."""

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from node.raft.wal.record import Entry

_ENTRY_OVERHEAD_BYTES: Final = 240  # tuple, two numbers, the head of bytes, a place in the dict: sys.getsizeof


class Span:
    """The entries first, first + 1, … whose records lie in one segment, in order of their offsets."""

    __slots__ = ("first", "offsets", "sequence")

    def __init__(self, sequence: int, first: int) -> None:
        self.sequence = sequence
        self.first = first
        self.offsets: array[int] = array("Q")

    @property
    def end(self) -> int:
        """The index behind the last entry."""
        return self.first + len(self.offsets)


class EntryIndex:
    """The entries (boundary index, last index], without a gap: 8 bytes each and some for every change of term.

    Nothing is held at or below the boundary but the term of the entry there, which a follower's log is compared with.
    """

    __slots__ = ("_run_starts", "_run_terms", "_spans", "boundary_index", "boundary_term", "last_index", "last_term")

    def __init__(self, boundary_index: int, boundary_term: int) -> None:
        self.reset(boundary_index, boundary_term)

    def reset(self, boundary_index: int, boundary_term: int) -> None:
        """Forget every entry; the next one is boundary index + 1."""
        self.boundary_index = boundary_index
        self.boundary_term = boundary_term
        self.last_index = boundary_index
        self.last_term = boundary_term
        self._spans: list[Span] = []
        # Runs of one term: run i begins at _run_starts[i].
        self._run_starts: list[int] = []
        self._run_terms: list[int] = []

    def add(self, sequence: int, index: int, term: int, offset: int) -> None:
        """An entry was written to a segment; it takes the place of all entries from `index` on."""
        if index <= self.last_index:
            self._truncate(index)
            if index <= self.boundary_index:
                # The segment that held what came before is gone: this entry serves only as the new boundary.
                self.reset(index, term)
                return
        assert index == self.last_index + 1, f"entry {index} after {self.last_index}"
        spans = self._spans
        if not spans or spans[-1].sequence != sequence:
            spans.append(Span(sequence, index))
        spans[-1].offsets.append(offset)
        if not self._run_terms or self._run_terms[-1] != term:
            self._run_starts.append(index)
            self._run_terms.append(term)
        self.last_index = index
        self.last_term = term

    def _truncate(self, index: int) -> None:
        spans = self._spans
        while spans and spans[-1].first >= index:
            spans.pop()
        if spans and spans[-1].end > index:
            del spans[-1].offsets[index - spans[-1].first :]
        starts = self._run_starts
        while starts and starts[-1] >= index:
            starts.pop()
            self._run_terms.pop()
        self.last_index = max(index - 1, self.boundary_index)
        self.last_term = self._run_terms[-1] if starts else self.boundary_term

    def forget_before(self, sequence: int) -> None:
        """The segments before `sequence` are gone, and their entries with them."""
        spans = self._spans
        gone = 0
        while gone < len(spans) and spans[gone].sequence < sequence:
            gone += 1
        if not gone:
            return
        boundary = spans[gone - 1].end - 1
        term = self.term_of(boundary)
        assert term is not None
        del spans[:gone]
        self.boundary_index, self.boundary_term = boundary, term
        run = bisect_right(self._run_starts, boundary + 1) - 1
        if boundary == self.last_index:
            self._run_starts.clear()
            self._run_terms.clear()
        else:
            del self._run_starts[:run]
            del self._run_terms[:run]
            self._run_starts[0] = boundary + 1

    def term_of(self, index: int) -> int | None:
        """The term of an entry, also of the one at the boundary; None when it is not known here."""
        if index == self.last_index:
            return self.last_term
        if index <= self.boundary_index:
            return self.boundary_term if index == self.boundary_index else None
        if index > self.last_index:
            return None
        return self._run_terms[bisect_right(self._run_starts, index) - 1]

    def span_of(self, index: int) -> Span:
        """The span that an entry held here lies in."""
        assert self.boundary_index < index <= self.last_index
        spans = self._spans
        return spans[bisect_right(spans, index, key=lambda span: span.first) - 1]


class EntryCache:
    """The latest entries, bounded in bytes; what falls out is read from the segments."""

    __slots__ = ("_entries", "_limit_bytes", "_size_bytes", "first_index", "next_index")

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._entries: dict[int, Entry] = {}  # first_index, …, next_index - 1, without a gap
        self._size_bytes = 0
        self.first_index = 0
        self.next_index = 0

    @property
    def size_bytes(self) -> int:
        """About the memory held, in bytes."""
        return self._size_bytes

    def add(self, entries: Sequence[Entry]) -> None:
        """Entries without a gap; they take the place of all from the first one's index on."""
        cached = self._entries
        first = entries[0][1]
        if first != self.next_index:
            if self.first_index < first < self.next_index:
                for index in range(first, self.next_index):
                    self._size_bytes -= len(cached.pop(index)[3]) + _ENTRY_OVERHEAD_BYTES
            else:
                self.clear()
                self.first_index = first
        size = self._size_bytes
        for entry in entries:
            cached[entry[1]] = entry
            size += len(entry[3]) + _ENTRY_OVERHEAD_BYTES
        self.next_index = entries[-1][1] + 1
        oldest = self.first_index
        while size > self._limit_bytes:
            size -= len(cached.pop(oldest)[3]) + _ENTRY_OVERHEAD_BYTES
            oldest += 1
        self.first_index = oldest
        self._size_bytes = size

    def clear(self) -> None:
        """Forget every entry."""
        self._entries.clear()
        self._size_bytes = 0
        self.first_index = self.next_index = 0

    def forget_before(self, index: int) -> None:
        """Forget the entries below `index`."""
        end = min(index, self.next_index)
        for oldest in range(self.first_index, end):
            self._size_bytes -= len(self._entries.pop(oldest)[3]) + _ENTRY_OVERHEAD_BYTES
        self.first_index = max(self.first_index, end)

    def __getitem__(self, index: int) -> Entry:
        return self._entries[index]
