"""Which keys this proxy owns, and what it knows of each: the core of leasing.

A key is owned while its leasing key exists with this proxy's session lease: every writer that keeps to the protocol
then asks for the key before it changes it. So what is known of an owned key is the latest, and may be answered as a
linearizable read. Ownership ends, here before anywhere else,

- when a writer elsewhere asks for it (the leasing key gets the value REVOKE),
- when the leasing key is gone,
- before the session lease can have expired, as judged by when its last renewal was sent,
- when the outcome of a write of one's own is not known.

While a write of one's own is under way reads go to a member.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from kvorum.pb.mvcc_pb2 import KeyValue
from kvorum.pb.rpc_pb2 import RangeResponse, ResponseHeader
from kvorum.ranges import covers

MAX_OWNED: Final = 10_000
"""Keys owned at once; the one not read for the longest is given back for another."""

MAX_REMEMBERED: Final = 10_000
"""Ends of ownership that are remembered. An acquisition whose answer is older than one forgotten does not count."""

BLOCKED_S: Final = 2.0
"""A key that a writer elsewhere has asked for is not acquired again for this long, as at the reference."""


class Owned:
    """An owned key."""

    __slots__ = ("known_at", "reply", "revision", "writing")

    def __init__(self, revision: int, known_at: int, reply: bytes) -> None:
        self.revision = revision
        """Of the leasing key's creation."""
        self.known_at = known_at
        """The revision of what is known of the key."""
        self.reply = reply
        """The RangeResponse to a read of the key."""
        self.writing = 0
        """Writes of one's own under way."""


class Ownership:
    """The owned keys. Revisions are the cluster's; time is in seconds on any clock that does not go back."""

    def __init__(self) -> None:
        self._owned: OrderedDict[bytes, Owned] = OrderedDict()
        self._acquiring: set[bytes] = set()
        # key -> (revision, until when it is not acquired), the earliest first
        self._ended: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        self._forgotten = 0
        self._range_writes = 0
        self.lease = 0
        """The session's lease; 0: none, and nothing may be owned."""
        self.valid_until = 0.0
        """Until when the session's lease surely lives."""
        self.hits = 0

    def __len__(self) -> int:
        return len(self._owned)

    def __contains__(self, key: bytes) -> bool:
        return key in self._owned

    # Reads.

    def read(self, key: bytes, now: float) -> bytes | None:
        """The reply to a linearizable read of the key; None when a member must be asked."""
        owned = self._owned.get(key)
        if owned is None or owned.writing or now >= self.valid_until:
            return None
        self._owned.move_to_end(key)
        self.hits += 1
        return owned.reply

    def begin_acquire(self, key: bytes, now: float) -> bool:
        """Whether to acquire the key now; then one of the two that follow is to be called."""
        if not self.lease or now >= self.valid_until or self._range_writes:
            return False
        if key in self._owned or key in self._acquiring:
            return False
        ended = self._ended.get(key)
        if ended is not None and now < ended[1]:
            return False
        self._acquiring.add(key)
        return True

    def acquired(self, key: bytes, lease: int, header: ResponseHeader, kv: KeyValue | None) -> tuple[bytes, int] | None:
        """The leasing key was created for `lease` in the transaction with this header, in which the key was read. Some
        other key that is no longer owned for it, with its leasing key's revision, or None."""
        self._acquiring.discard(key)
        ended = self._ended.get(key)
        revision = header.revision
        if lease != self.lease or revision <= self._forgotten or (ended is not None and revision <= ended[0]):
            return None  # it has ended again before the answer came
        self._owned[key] = Owned(revision, revision, reply_of(header, kv))
        if len(self._owned) <= MAX_OWNED:
            return None
        oldest, owned = self._owned.popitem(last=False)
        return oldest, owned.revision

    def not_acquired(self, key: bytes) -> None:
        """It was not, or that is not known."""
        self._acquiring.discard(key)

    # Writes of one's own.

    def revision(self, key: bytes) -> int:
        """The revision of the creation of the leasing key, for a write's guard: 0 when the key is not owned."""
        owned = self._owned.get(key)
        return 0 if owned is None else owned.revision

    def begin_write(self, keys: Iterable[bytes]) -> None:
        """Writes to these keys, all owned, leave."""
        for key in keys:
            self._owned[key].writing += 1

    def end_write(self, keys: Iterable[tuple[bytes, int]]) -> None:
        """They have ended: (key, its leasing key's revision as it was then)."""
        for key, revision in keys:
            owned = self._owned.get(key)
            if owned is not None and owned.revision == revision:
                owned.writing -= 1

    def wrote(self, key: bytes, revision: int, header: ResponseHeader, kv: KeyValue | None) -> None:
        """A write left the key as this. Not to be called for one whose leasing key is another than at its beginning."""
        owned = self._owned.get(key)
        if owned is not None and owned.revision == revision and header.revision > owned.known_at:
            owned.known_at = header.revision
            owned.reply = reply_of(header, kv)

    def begin_range_write(self, start: bytes, end: bytes) -> list[tuple[bytes, int]]:
        """A write to a whole range leaves: nothing is acquired until it ends. The keys in it that were owned, and are
        no longer, with the revisions of their leasing keys, which are to be deleted."""
        self._range_writes += 1
        given_up = [(key, owned.revision) for key, owned in self._owned.items() if covers(start, end, key)]
        for key, _ in given_up:
            del self._owned[key]
        return given_up

    def end_range_write(self) -> None:
        """It has ended."""
        self._range_writes -= 1

    # Ends.

    def end(self, key: bytes, revision: int, until: float = 0.0) -> bool:
        """Ownership that began before `revision` has ended, and the key is not acquired until that time. Whether it was
        owned."""
        owned = self._owned.get(key)
        ends = owned is not None and owned.revision < revision
        if ends:
            del self._owned[key]
        known = self._ended.pop(key, (0, 0.0))
        self._ended[key] = (max(known[0], revision), max(known[1], until))
        if len(self._ended) > MAX_REMEMBERED:
            self._forgotten = max(self._forgotten, self._ended.popitem(last=False)[1][0])
        return ends

    def ended_after(self, key: bytes, revision: int) -> bool:
        """Whether the leasing key is known to have ended after this revision."""
        ended = self._ended.get(key)
        return ended is not None and ended[0] > revision

    def end_all(self) -> None:
        """The session is over."""
        self._owned.clear()
        self.lease = 0
        self.valid_until = 0.0


def reply_of(header: ResponseHeader, kv: KeyValue | None) -> bytes:
    """The RangeResponse to a read of one key."""
    if kv is None:
        return RangeResponse(header=header).SerializeToString()
    return RangeResponse(header=header, kvs=[kv], count=1).SerializeToString()
