"""Linearizable reads: which wait for a read index, and when they may be answered (Raft thesis, section 6.4).

Raft is asked at which index the cluster was committed at some moment after the reads came; once the store has applied
that index, they may be answered from it. One ask at a time is under way, for all reads that came before it left; those
that come later gather for the next. Values in, values out: the shell sends the asks and executes the reads.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from kvorum.pb.rpc_pb2 import RangeRequest
from node.apply.outbox import Reader
from node.requests import LINEARIZABLE, READ, Op

RETRY_S: Final = 0.5
"""An ask that is not answered for so long is repeated (P13)."""

MAX_WAITING: Final = 200_000
MAX_WAITING_BYTES: Final = 64 << 20
"""Bounds on what waits here: frames of reads, and their bytes. What comes beyond is refused."""


class Waiting(NamedTuple):
    """Reads of one reader: the records in `data[at:]`, to be given up at `until`."""

    reader: Reader
    data: bytes
    at: int
    until: float


class ReadIndex:
    """The reads that wait. `now` is monotonic seconds, `timeout_s` how long a read waits for its index (P13).

    Once the index is known, a read waits without limit for the store to apply it: that is only a question of time.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._next: deque[Waiting] = deque()  # wait for the next ask
        self._asked: deque[Waiting] = deque()  # the ask under way is theirs
        self._asked_at = 0.0
        self._asked_under = (0, 0)
        self._first_number = 1  # of the asks made for them: any of these may be answered
        self._last_number = 0
        self._known: deque[tuple[int, deque[Waiting]]] = deque()  # with their index, which is not applied yet
        self._leadership = (0, 0)
        self.waiting = 0
        self.waiting_bytes = 0
        self.slow = 0
        """Asks that were repeated, however often, and perhaps given up in the end."""
        self.failed = 0
        """Asks whose leader changed before they were answered."""

    def add(self, reader: Reader, data: bytes, at: int, now: float) -> bool:
        """These reads wait for the next ask. False: too much waits already, and they must be refused."""
        size = len(data) - at
        if self.waiting >= MAX_WAITING or self.waiting_bytes + size > MAX_WAITING_BYTES:
            return False
        self._next.append(Waiting(reader, data, at, now + self._timeout_s))
        self.waiting += 1
        self.waiting_bytes += size
        return True

    def ask(self, now: float) -> int | None:
        """The number of an ask that must leave now, if one must. No number is used twice."""
        if self._asked:
            if now - self._asked_at < RETRY_S:
                return None
            if self._last_number == self._first_number:
                self.slow += 1
        elif self._next:
            self._asked, self._next = self._next, self._asked
            self._asked_under = self._leadership
            self._first_number = self._last_number + 1
        else:
            return None
        self._last_number += 1
        self._asked_at = now
        return self._last_number

    def on_index(self, number: int, index: int) -> None:
        """Raft answered an ask; one whose reads have been given up is answered in vain."""
        if self._asked and number >= self._first_number:
            assert number <= self._last_number, "raft answered an ask that was not made"
            self._known.append((index, self._asked))
            self._asked = deque()

    def ready(self, applied_index: int) -> deque[Waiting]:
        """The reads that may be answered now that the store has applied `applied_index`."""
        found: deque[Waiting] = deque()
        known = self._known
        while known and known[0][0] <= applied_index:
            found += known.popleft()[1]
        return self._taken(found)

    def on_leadership(self, term: int, leader: int) -> deque[Waiting]:
        """Who leads now; 0: nobody is known to. Returns the reads that fail with `leader changed` (P14)."""
        if not leader or (term, leader) == self._leadership:
            return deque()
        self._leadership = (term, leader)
        if not self._asked or self._asked_under == self._leadership:
            return deque()
        self.failed += 1
        return self._taken(self._give_up())

    def expired(self, now: float) -> deque[Waiting]:
        """The reads that have waited too long for an index."""
        found: deque[Waiting] = deque()
        if self._asked and self._asked[-1].until <= now:
            found = self._give_up()
        for queue in (self._asked, self._next):
            while queue and queue[0].until <= now:
                found.append(queue.popleft())
        return self._taken(found)

    def release(self) -> deque[Waiting]:
        """All of them, since this member alone decides now."""
        found = self._asked
        self._asked = deque()
        for _, waiting in self._known:
            found += waiting
        self._known.clear()
        found += self._next
        self._next.clear()
        return self._taken(found)

    @property
    def due_at(self) -> float | None:
        """When `ask` or `expired` has something to do though nothing comes."""
        if self._asked:
            return min(self._asked_at + RETRY_S, self._asked[0].until)
        return self._next[0].until if self._next else None

    def _give_up(self) -> deque[Waiting]:
        found, self._asked = self._asked, deque()
        return found

    def _taken(self, found: deque[Waiting]) -> deque[Waiting]:
        self.waiting -= len(found)
        for one in found:
            self.waiting_bytes -= len(one.data) - one.at
        return found


def split(data: bytes, at: int) -> tuple[bytes | None, bytes | None]:
    """The READ records in `data[at:]` that need a read index, and those that do not.

    None stands for no record. What comes back begins with `data[:at]`, too; when all records are of one kind it is
    `data` itself, so the common case copies nothing.
    """
    unpack = READ.unpack_from
    header_bytes = READ.size
    end = len(data)
    waits: list[tuple[int, int]] = []
    others: list[tuple[int, int]] = []
    start = at
    while start < end:
        length, op, flags, _, _ = unpack(data, start)
        after = start + header_bytes + length
        if flags & LINEARIZABLE or (op == Op.RANGE and not _is_serializable(data, start + header_bytes, after)):
            waits.append((start, after))
        else:
            others.append((start, after))
        start = after
    if not others:
        return data, None
    if not waits:
        return None, data
    skipped = data[:at]
    return (
        skipped + b"".join([data[start:after] for start, after in waits]),
        skipped + b"".join([data[start:after] for start, after in others]),
    )


def _is_serializable(data: bytes, start: int, end: int) -> bool:
    """Whether the RangeRequest in `data[start:end]` asks to be read here. One that does not parse needs no index.

    The field is the byte `8` and a one. To find no such byte takes 0.15 us, to find the field after a lone short key
    0.3 us, parsing 0.6 us.
    """
    if data.find(b"8", start, end) < 0:
        return False
    if data[start] == 10 and start + data[start + 1] + 4 == end and data.endswith(b"8\x01", start, end):
        return True
    try:
        return RangeRequest.FromString(data[start:end]).serializable
    except DecodeError:
        return True
