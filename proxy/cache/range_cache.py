"""The range cache: replies to reads, kept for serializable reads of the same.

A serializable read may see an old state, but never, from here, one in which a key is older than this proxy has already
shown it, or knows it to be: whatever it learns of later revisions drops what it holds of earlier ones.

- What is learnt of one key (a write, a read, an event) is looked up, and drops what holds the key at once.
- What is learnt of a range is noted; an entry is compared with the notes of its time when it is next asked for. So
  nothing here takes longer with more entries.
- A reply is kept only if its revision is at least the greatest that this proxy has seen. Replies of a member that lags
  behind, or that were under way while a write was answered, are not.
- An entry is used for `MAX_AGE_S`: nobody tells the proxy of writes and compactions elsewhere, nor of a restored
  backup, after which even a past revision is another one.

Reads at a revision of their own show the past, whatever is learnt; a compaction ends them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from kvorum.ranges import covers, overlap
from proxy.cache.shared import Shared

CACHE_BYTES: Final = 64 << 20
"""Bound of the cache: requests, replies, and `ENTRY_BYTES` each."""

ENTRY_BYTES: Final = 700
"""What an entry takes beside its request and its reply: 580 as measured with 40,000 of one short key each, and room for
tables that have just grown."""

MAX_SHARE: Final = 8
"""A reply larger than this part of the bound is not kept."""

MAX_AGE_S: Final = 5.0
"""How long an entry is used."""

MAX_NOTES: Final = 128
"""Ranges that notes are kept of. Entries not asked for since a note that is gone are dropped."""

MAX_ODD_RANGES: Final = 64
"""Kept entries whose range is neither one key nor a prefix: each costs a comparison with every key that is learnt."""

EntryKey = tuple[str, bytes, bytes]
"""(token, namespace, request as it came): who may see the reply, and to what."""


class Entry:
    """A kept reply."""

    __slots__ = (
        "at_revision",
        "end",
        "fresh_until",
        "key",
        "looked_at",
        "reply",
        "revision",
        "size",
        "start",
    )

    def __init__(
        self,
        key: EntryKey,
        start: bytes,
        end: bytes,
        revision: int,
        reply: bytes,
        at_revision: int,
        fresh_until: float,
        looked_at: int,
    ) -> None:
        self.key = key
        self.start = start
        self.end = end
        self.revision = revision
        """The header's: the state that the reply shows, unless the request named another."""
        self.reply = reply
        self.at_revision = at_revision
        """The revision that the request asked for; 0: the latest."""
        self.fresh_until = fresh_until
        self.looked_at = looked_at
        """The number of the last note that it was compared with."""
        self.size = len(key[1]) + len(key[2]) + len(reply) + ENTRY_BYTES


class RangeCache:
    """The entries of one worker. Ranges are as requests give them: an empty end is one key, a zero byte no end."""

    def __init__(self, size_bytes: int = CACHE_BYTES, shared: Shared | None = None) -> None:
        """`shared` is what the other workers of this proxy know; None: there are none."""
        self._bound_bytes = size_bytes
        self._shared = shared
        self._cleared = 0
        self._entries: OrderedDict[EntryKey, Entry] = OrderedDict()
        # Entries of the latest state, by what they cover.
        self._keys: dict[bytes, list[Entry]] = {}
        self._prefixes: dict[bytes, list[Entry]] = {}
        self._prefix_lengths: dict[int, int] = {}
        self._odd: dict[EntryKey, Entry] = {}
        # (start, end) -> (revision, number), the oldest note first.
        self._notes: OrderedDict[tuple[bytes, bytes], tuple[int, int]] = OrderedDict()
        self._noted = 0
        self._forgotten = 0
        """The number of the latest note that is gone."""
        self._compacted = 0
        self.newest = 0
        """The greatest revision that any reply has shown."""
        self.size_bytes = 0
        self.hits = 0
        self.misses = 0

    @property
    def listens(self) -> bool:
        """Whether it matters what keys calls have shown, and not only at which revision."""
        return bool(self._entries) or self._shared is not None

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, token: str, prefix: bytes, request: bytes, now: float) -> bytes | None:
        """The kept reply to these bytes of a serializable read."""
        key = (token, prefix, request)
        entry = self._entries.get(key)
        if entry is None:
            return None
        if (
            now >= entry.fresh_until
            or (entry.looked_at != self._noted and not self._holds(entry))
            or (self._shared is not None and not self._holds_elsewhere(entry, self._shared))
        ):
            if key in self._entries:
                self._drop(entry)
            return None
        self._entries.move_to_end(key)
        self.hits += 1
        return entry.reply

    def confirm(self, key: EntryKey, reply: bytes, now: float) -> bool:
        """Whether just this reply is kept already, of the latest revision that is known: then it is as fresh as new.

        For reads of what does not change it takes the place of `put`, at a tenth of its cost.
        """
        entry = self._entries.get(key)
        if entry is None or entry.reply != reply or entry.revision < self.newest:
            return False
        entry.fresh_until = max(entry.fresh_until, now + MAX_AGE_S)
        return True

    def put(
        self,
        key: EntryKey,
        start: bytes,
        end: bytes,
        revision: int,
        reply: bytes,
        now: float,
        *,
        at_revision: int = 0,
    ) -> bool:
        """Keeps a reply as the answer to `key`; whether it may be kept.

        `revision` is the reply's; `at_revision` the one that was asked for, 0 for the latest. What the reply shows is
        to be told before, with `saw_key` or `saw_range`.
        """
        # The request alone is bounded by the wire, so an entry is at most one message of it larger than the share.
        if len(reply) > self._bound_bytes // MAX_SHARE or len(key[2]) > self._bound_bytes // MAX_SHARE:
            return False
        if at_revision < self._compacted if at_revision else revision < self.newest:
            return False
        entries = self._entries
        old = entries.get(key)
        if old is not None:
            self._drop(old)
        entry = Entry(key, start, end, revision, reply, at_revision, now + MAX_AGE_S, self._noted)
        entries[key] = entry
        self.size_bytes += entry.size
        if not at_revision:
            self._index(entry)
        while self.size_bytes > self._bound_bytes:
            self._drop(next(iter(entries.values())))
        return True

    # What the proxy learns.

    def saw(self, revision: int) -> None:
        """A reply had this revision in its header. Every reply does, whatever else is learnt from it."""
        if revision > self.newest:
            self.newest = revision

    def saw_key(self, key: bytes, since: int) -> None:
        """The key's value has changed at revision `since`, or is known not to be older."""
        if self._shared is not None:
            self._shared.note_key(key, since)
        if not self._entries:
            return
        held = self._keys.get(key)
        if held is not None:
            self._drop_older(held, since)
        if self._prefixes:
            # Kept prefixes have few lengths: one lookup each, however many there are.
            for length in list(self._prefix_lengths):
                held = self._prefixes.get(key[:length]) if length <= len(key) else None
                if held is not None:
                    self._drop_older(held, since)
        if self._odd:
            self._drop_older([entry for entry in self._odd.values() if covers(entry.start, entry.end, key)], since)

    def saw_range(self, start: bytes, end: bytes, revision: int) -> None:
        """All keys of the range are known as of `revision`."""
        if not end:
            self.saw_key(start, revision)
            return
        if self._shared is not None:
            self._shared.note_range(revision)
        if not self._entries:
            return
        known = self._notes.get((start, end))
        # What has been kept since that note has at least its revision.
        if known is None or known[0] < revision:
            self._note(start, end, revision)

    def lost_sight(self, start: bytes, end: bytes) -> None:
        """The range may have changed: a write ended in an error that does not say."""
        if self._shared is not None:
            # What the others have kept may be newer than all that this worker has seen.
            self._shared.note_clear()
        if not end:
            self.saw_key(start, self.newest + 1)
            return
        if self._entries:
            self._note(start, end, self.newest + 1)

    def saw_compaction(self, revision: int) -> None:
        """What was before this revision is compacted."""
        if self._shared is not None:
            self._shared.note_compaction(revision)
        if revision > self._compacted:
            self._compacted = revision
            self._noted += 1

    def clear(self) -> None:
        """Forgets all entries: who may read what has changed."""
        if self._shared is not None:
            self._shared.note_clear()
        self._forget_all()

    def figures(self) -> dict[str, int]:
        """The cache's part of the metrics."""
        return {
            "etcd_grpc_proxy_cache_hits_total": self.hits,
            "etcd_grpc_proxy_cache_misses_total": self.misses,
            "etcd_grpc_proxy_cache_keys_total": len(self._entries),
            "kvorum_grpc_proxy_cache_bytes": self.size_bytes,
        }

    # Within.

    def _forget_all(self) -> None:
        self._entries.clear()
        self._keys.clear()
        self._prefixes.clear()
        self._prefix_lengths.clear()
        self._odd.clear()
        self._notes.clear()
        self._forgotten = self._noted
        self.size_bytes = 0

    def _note(self, start: bytes, end: bytes, revision: int) -> None:
        notes = self._notes
        place = (start, end)
        if place in notes:
            del notes[place]
        elif len(notes) >= MAX_NOTES:
            self._forgotten = notes.popitem(last=False)[1][1]
        self._noted += 1
        notes[place] = (revision, self._noted)

    def _holds(self, entry: Entry) -> bool:
        """Whether an entry still holds, in view of the notes since it was last looked at."""
        if entry.at_revision:
            if entry.at_revision < self._compacted:
                return False
        else:
            if entry.looked_at < self._forgotten:
                return False
            for (start, end), (revision, number) in reversed(self._notes.items()):
                if number <= entry.looked_at:
                    break
                if entry.revision < revision and overlap(entry.start, entry.end, start, end):
                    return False
        entry.looked_at = self._noted
        return True

    def _holds_elsewhere(self, entry: Entry, shared: Shared) -> bool:
        """Whether an entry holds in view of what the other workers know."""
        if shared.cleared != self._cleared:
            self._cleared = shared.cleared
            self._forget_all()
            return False
        if entry.at_revision:
            return entry.at_revision >= shared.compacted
        return entry.revision >= (shared.any if entry.end else shared.key(entry.start))

    def _drop_older(self, entries: Iterable[Entry], since: int) -> None:
        for entry in [entry for entry in entries if entry.revision < since]:
            self._drop(entry)

    def _index(self, entry: Entry) -> None:
        if not entry.end:
            self._keys.setdefault(entry.start, []).append(entry)
        elif is_prefix(entry.start, entry.end):
            held = self._prefixes.get(entry.start)
            if held is None:
                held = self._prefixes[entry.start] = []
                length = len(entry.start)
                self._prefix_lengths[length] = self._prefix_lengths.get(length, 0) + 1
            held.append(entry)
        else:
            if len(self._odd) >= MAX_ODD_RANGES:
                self._drop(next(iter(self._odd.values())))
            self._odd[entry.key] = entry

    def _drop(self, entry: Entry) -> None:
        del self._entries[entry.key]
        self.size_bytes -= entry.size
        if entry.at_revision:
            return
        if not entry.end:
            held = self._keys[entry.start]
            held.remove(entry)
            if not held:
                del self._keys[entry.start]
        elif is_prefix(entry.start, entry.end):
            held = self._prefixes[entry.start]
            held.remove(entry)
            if not held:
                del self._prefixes[entry.start]
                length = len(entry.start)
                self._prefix_lengths[length] -= 1
                if not self._prefix_lengths[length]:
                    del self._prefix_lengths[length]
        else:
            del self._odd[entry.key]


def is_prefix(start: bytes, end: bytes) -> bool:
    """Whether the range is all keys that begin with `start`."""
    return bool(start) and start[-1] < 0xFF and end[:-1] == start[:-1] and end[-1] == start[-1] + 1
