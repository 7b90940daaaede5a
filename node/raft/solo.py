"""What a sole voter decides: it elects itself, and an entry is committed once it is on its own disk.

Values in, values out; the shell (`process.py`) owns the log, the links and the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from node.raft.core.messages import EntryType
from node.raft.wal.record import Entry, HardState

ENTRY_BYTES: Final = 1 << 20
"""An entry holds batches up to this size, unless one batch alone is larger."""


@dataclass(slots=True)
class SoleVoter:
    """The state of a cluster of one: `term`, the last index of the log, and up to where it is committed."""

    member: int
    term: int
    last_index: int
    commit: int

    def campaign(self, bootstrap: bytes | None) -> tuple[HardState, list[Entry]]:
        """Becomes leader of the next term at once. Returns the hard state and the entries to put on disk.

        `bootstrap` is the membership of a new cluster; it becomes the log's first entry, of term 1, before the
        election, as if every later member had agreed on it.
        """
        entries: list[Entry] = []
        if bootstrap is not None:
            assert self.last_index == 0 and self.term == 0, "a log that holds entries cannot be bootstrapped"
            self.term = 1
            entries.append(self._entry(EntryType.FOUNDING, bootstrap))
        self.term += 1
        entries.append(self._entry(EntryType.NORMAL, b""))
        return HardState(self.term, self.member, self.commit), entries

    def propose(self, batches: list[bytes]) -> list[Entry]:
        """Entries for the batches of one turn, in order; they are committed when they are on disk (`synced`)."""
        entries: list[Entry] = []
        pending: list[bytes] = []
        size = 0
        for batch in batches:
            if pending and size + len(batch) > ENTRY_BYTES:
                entries.append(self._entry(EntryType.NORMAL, b"".join(pending)))
                pending = []
                size = 0
            pending.append(batch)
            size += len(batch)
        if pending:
            entries.append(self._entry(EntryType.NORMAL, b"".join(pending)))
        return entries

    def synced(self) -> int:
        """Everything appended is on disk: returns the new commit index."""
        self.commit = self.last_index
        return self.commit

    def _entry(self, type_: EntryType, data: bytes) -> Entry:
        self.last_index += 1
        return self.term, self.last_index, type_, data
