"""A member's log: what is on disk, what is not yet, and how far it is committed, applied and being applied."""

from collections.abc import Sequence

from node.raft.core.messages import NO_LIMIT, Entry, LogLevel, Snapshot, encoded_size
from node.raft.core.storage import Storage, limited
from node.raft.core.unstable import Log, Unstable


class RaftLog:
    """applied <= applying <= committed <= last_index. `applying`: handed out to be applied.

    At most `max_applying_bytes` of entries are handed out and not yet applied; a single larger entry is, alone.
    """

    __slots__ = (
        "_log",
        "_max_applying_bytes",
        "_paused",
        "_storage",
        "applied",
        "applying",
        "applying_bytes",
        "committed",
        "unstable",
    )

    def __init__(self, storage: Storage, max_applying_bytes: int, log: Log) -> None:
        self._storage = storage
        self._max_applying_bytes = max_applying_bytes
        self._log = log
        self._paused = False
        self.unstable = Unstable(storage.last_index + 1, log)
        self.committed = self.applying = self.applied = storage.first_index - 1
        self.applying_bytes = 0

    def __str__(self) -> str:
        unstable = self.unstable
        return (
            f"committed={self.committed}, applied={self.applied}, applying={self.applying}, "
            f"unstable.offset={unstable.offset}, unstable.offsetInProgress={unstable.offset_in_progress}, "
            f"len(unstable.Entries)={len(unstable.entries)}"
        )

    def first_index(self) -> int:
        """The oldest entry held; last_index + 1 when none is."""
        snapshot = self.unstable.snapshot
        return self._storage.first_index if snapshot is None else snapshot.index + 1

    def last_index(self) -> int:
        """The newest entry's index; that of the snapshot, or 0, when no entry is held."""
        unstable = self.unstable
        if unstable.entries:
            return unstable.offset + len(unstable.entries) - 1
        return self._storage.last_index if unstable.snapshot is None else unstable.snapshot.index

    def term_of(self, index: int) -> int | None:
        """The term of an entry held, or of the one just before the first; None when the log does not know it."""
        term = self.unstable.term_of(index)
        if term is not None:
            return term
        if self.first_index() - 1 <= index <= self.last_index():
            return self._storage.term_of(index)
        return None

    def last(self) -> tuple[int, int]:
        """(term, index) of the last entry."""
        index = self.last_index()
        term = self.term_of(index)
        assert term is not None, f"the term of the last entry, {index}, is not known"
        return term, index

    def is_up_to_date(self, term: int, index: int) -> bool:
        """Whether a log that ends in this entry is at least as good as ours (Raft paper, section 5.4.1)."""
        return (term, index) >= self.last()

    def read(self, low: int, high: int, max_bytes: int) -> list[Entry]:
        """Entries low, …, high - 1, which the log must hold: the first at least, then as many as fit in max_bytes."""
        unstable = self.unstable
        offset = unstable.offset
        if low >= offset:
            return limited(unstable.entries[low - offset : high - offset], max_bytes)
        entries = self._storage.read(low, min(high, offset), max_bytes)
        if high <= offset or len(entries) < offset - low:
            return entries
        return limited(entries + unstable.entries[: high - offset], max_bytes)

    def read_from(self, low: int, max_bytes: int) -> list[Entry]:
        """Entries from `low` on, which must not be compacted; none when `low` lies behind the log."""
        high = self.last_index() + 1
        return self.read(low, high, max_bytes) if low < high else []

    def append(self, entries: list[Entry]) -> None:
        """Add entries, replacing what follows the first one's index; never what is committed."""
        assert entries[0][1] > self.committed, f"entry {entries[0][1]} is behind commit index {self.committed}"
        self.unstable.append(entries)

    def maybe_append(self, term: int, index: int, entries: list[Entry], committed: int) -> int | None:
        """What a leader sends: entries that follow the entry (term, index). The last index matched, None if not there.

        What the log has already is not written again; a conflict replaces it and all that follows.
        """
        if self.term_of(index) != term:
            return None
        last = index + len(entries)
        new = self._first_new(entries)
        if new < len(entries):
            self.append(entries[new:] if new else entries)
        self.commit_to(min(committed, last))
        return last

    def _first_new(self, entries: list[Entry]) -> int:
        """The place of the first entry that the log does not hold; the number of entries when it holds all."""
        for place, (term, index, _, _) in enumerate(entries):
            here = self.term_of(index)
            if here == term:
                continue
            if here is not None:
                self._log(
                    LogLevel.INFO,
                    f"found conflict at index {index} [existing term: {here}, conflicting term: {term}]",
                )
                assert index > self.committed, f"entry {index} conflicts with the committed one"
            return place
        return len(entries)

    def find_conflict(self, index: int, term: int) -> tuple[int, int]:
        """(index, term) of the last entry up to `index` with a term up to `term`; term 0 when it is not known.

        Another log that has `term` at `index` cannot equal this one behind that entry: terms never fall in a log.
        """
        while index > 0:
            here = self.term_of(index)
            if here is None:
                return index, 0
            if here <= term:
                return index, here
            index -= 1
        return 0, 0

    def commit_to(self, index: int) -> None:
        """Everything up to `index` is committed."""
        if index > self.committed:
            assert index <= self.last_index(), (
                f"entry {index} is committed, but the log ends at {self.last_index()}: was it damaged, cut or lost?"
            )
            self.committed = index

    def maybe_commit(self, term: int, index: int) -> bool:
        """A quorum holds everything up to `index`: commit that if it is news and of the leader's own `term`.

        Raft paper, section 5.4.2: entries of earlier terms are committed only by one of this term behind them.
        """
        if index > self.committed and self.term_of(index) == term:
            self.commit_to(index)
            return True
        return False

    def appliable_index(self, *, allow_unstable: bool) -> int:
        """Up to where entries may be handed out to be applied."""
        return self.committed if allow_unstable else min(self.committed, self.unstable.offset - 1)

    def has_next_committed(self, *, allow_unstable: bool) -> bool:
        """Whether entries are to be handed out to be applied. None are before a snapshot is installed."""
        if self._paused or self.unstable.snapshot is not None:
            return False
        return self.applying < self.appliable_index(allow_unstable=allow_unstable)

    def next_committed(self, *, allow_unstable: bool) -> list[Entry]:
        """The entries to be handed out to be applied."""
        if not self.has_next_committed(allow_unstable=allow_unstable):
            return []
        room = self._max_applying_bytes - self.applying_bytes
        assert room > 0
        return self.read(self.applying + 1, self.appliable_index(allow_unstable=allow_unstable) + 1, room)

    def accept_applying(self, index: int, size_bytes: int, *, allow_unstable: bool) -> None:
        """Entries up to `index`, of this size on the wire, were handed out to be applied."""
        assert self.applying < index <= self.committed
        self.applying = index
        self.applying_bytes += size_bytes
        # Also when the next entry would not fit: else it would be handed out alone, whatever its size.
        self._paused = self.applying_bytes >= self._max_applying_bytes or index < self.appliable_index(
            allow_unstable=allow_unstable
        )

    def applying_size(self, entries: Sequence[Entry]) -> int:
        """What entries handed out count against the limit; nothing without one."""
        if self._max_applying_bytes >= NO_LIMIT:
            return 0
        return sum([encoded_size(entry) for entry in entries])

    def applied_to(self, index: int, size_bytes: int) -> None:
        """Everything up to `index` is applied; entries of this size are no longer under way."""
        assert self.applied <= index <= self.committed, f"applied {index}, not in [{self.applied}, {self.committed}]"
        self.applied = index
        self.applying = max(self.applying, index)
        self.applying_bytes = max(0, self.applying_bytes - size_bytes)
        self._paused = self.applying_bytes >= self._max_applying_bytes

    def kept(self, index: int) -> None:
        """Entries up to `index` were appended to the stable log directly; they are committed and applied."""
        unstable = self.unstable
        assert not unstable.entries and unstable.snapshot is None
        unstable.offset = unstable.offset_in_progress = index + 1
        self.committed = self.applying = self.applied = index

    def snapshot(self) -> Snapshot | None:
        """A snapshot to send; None: not now."""
        return self.unstable.snapshot or self._storage.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """The log becomes this snapshot and nothing else."""
        self._log(
            LogLevel.INFO,
            f"log [{self}] starts to restore snapshot [index: {snapshot.index}, term: {snapshot.term}]",
        )
        self.committed = snapshot.index
        self.unstable.restore(snapshot)

    def stable_to(self, index: int, term: int) -> None:
        """See `Unstable.stable_to`."""
        self.unstable.stable_to(index, term)
