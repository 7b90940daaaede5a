"""Which keep-alives become renewals upstream: the core of keep-alive coalescing.

A lease is renewed upstream at most once per interval, a third of its TTL, however many streams ask:

- Asks that come while a renewal is under way share its reply.
- A stream that asks soon after a renewal gets what is left of the TTL, rounded down: never more than the lease has.
- A member would have renewed for each of them; so the lease is *owed* a renewal, which happens at the end of the
  interval, and the lease lives at least as long as at a member.
- A stream that has had a reply to this renewal and asks again wants another one, and gets it: at once, or `REPEAT_S`
  after the last renewal, however fast it asks. So does one for whom less than a second is left.

A lease that upstream does not know (TTL 0) is remembered by nobody: only those who asked are told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Final

from kvorum.pb.rpc_pb2 import LeaseKeepAliveResponse

REPEAT_S: Final = 0.1
"""Renewals that a stream causes by asking again and again have at least this between them."""

MAX_INTERVAL_S: Final = 60.0
"""The longest interval. A lease revoked elsewhere is noticed by its end; and what is owed must be renewed while the
asker's token, good for five minutes by default, surely is."""

MAX_LEASES: Final = 100_000
"""Leases that are remembered, about 700 bytes each. Beyond it a renewal serves only those who already wait for it."""

MAX_IN_FLIGHT: Final = 10_000
"""Renewals sent and not answered. What is beyond it waits here."""

Ask = tuple[int, int]
"""(stream, token): the stream's number, and its own number for the ask."""


class _Lease:
    """One lease that is asked for, or was renewed less than an interval ago."""

    __slots__ = (
        "asked_at",
        "due_at",
        "header",
        "heap_at",
        "owed",
        "renewed_at",
        "sent_at",
        "served",
        "ttl_s",
        "waiting",
    )

    def __init__(self) -> None:
        self.waiting: dict[int, list[int]] = {}
        """Tokens by stream."""
        self.served: set[int] = set()
        """Streams that have had an answer since the last renewal."""
        self.ttl_s = 0
        """By the answer to the last renewal; 0: there was none."""
        self.header = b""
        """Of that answer, encoded: a message for each lease would take half a kilobyte more."""
        self.renewed_at = 0.0
        """When that renewal was sent: the member renewed no earlier."""
        self.asked_at = 0.0
        """When somebody asked last who was answered without a renewal of his own, or shares one already sent."""
        self.owed = False
        """Somebody was, since the last renewal."""
        self.sent_at: float | None = None
        """When the renewal under way was sent."""
        self.due_at = 0.0
        """When to look at it again."""
        self.heap_at = -1.0
        """The entry of the heap that counts; -1: none."""

    def asks(self) -> list[Ask]:
        return [(stream, token) for stream, tokens in self.waiting.items() for token in tokens]

    def wait(self, stream: int, tokens: list[int]) -> None:
        waiting = self.waiting.get(stream)
        if waiting is None:
            self.waiting[stream] = tokens
        else:
            waiting += tokens


class Renewals:
    """The leases of one upstream stream. Time is in seconds on any clock that does not go back."""

    def __init__(self) -> None:
        self._leases: dict[int, _Lease] = {}
        self._queue: dict[int, None] = {}  # to be sent, in this order
        self._in_flight: deque[tuple[int, _Lease]] = deque()  # answered in the order sent (L7)
        self._window = MAX_IN_FLIGHT
        self._heap: list[tuple[float, int]] = []
        self.renewals = 0
        """How many were sent."""

    @property
    def idle(self) -> bool:
        """Nothing is under way, remembered or owed."""
        return not self._leases and not self._in_flight

    @property
    def queued(self) -> bool:
        """Whether `take` may give something to send."""
        return bool(self._queue) and len(self._in_flight) < self._window

    @property
    def wanted(self) -> bool:
        """Whether the upstream stream is needed now."""
        return bool(self._queue or self._in_flight)

    @property
    def oldest_sent_at(self) -> float | None:
        """When the oldest renewal under way was sent."""
        return self._in_flight[0][1].sent_at if self._in_flight else None

    @property
    def due_at(self) -> float | None:
        """When `tick` has something to do."""
        return self._heap[0][0] if self._heap else None

    def ask(self, stream: int, token: int, lease_id: int, now: float) -> bytes | None:
        """A client's keep-alive: its reply, a LeaseKeepAliveResponse; or None, and it waits for a renewal."""
        lease = self._leases.get(lease_id)
        if lease is None:
            lease = self._leases[lease_id] = _Lease()
        if lease.ttl_s and lease.sent_at is None and lease_id not in self._queue:
            left_s = int(lease.renewed_at + lease.ttl_s - now)
            if left_s >= 1 and stream not in lease.served:
                lease.served.add(stream)
                lease.owed = True
                lease.asked_at = now
                # Fields of a message may be joined as they are encoded.
                return lease.header + LeaseKeepAliveResponse(ID=lease_id, TTL=left_s).SerializeToString()
            if now < lease.renewed_at + REPEAT_S:
                if not lease.waiting:
                    self._look_at(lease_id, lease, lease.renewed_at + REPEAT_S)
                lease.wait(stream, [token])
                return None
        lease.wait(stream, [token])
        if lease.sent_at is None:
            self._queue[lease_id] = None
        else:
            lease.asked_at = now
        return None

    def leave(self, stream: int, lease_ids: Iterable[int]) -> None:
        """The stream has ended, with asks for these leases unanswered. What nobody else wants is not sent."""
        for lease_id in lease_ids:
            lease = self._leases.get(lease_id)
            if lease is not None and lease.waiting.pop(stream, None) is not None:
                self._drop_unwanted(lease_id, lease)

    def take(self, now: float, limit: int) -> list[int]:
        """The leases to be renewed now, at most `limit` of them, for the caller to send in this order."""
        taken: list[int] = []
        room = min(limit, self._window - len(self._in_flight))
        while self._queue and len(taken) < room:
            lease_id = next(iter(self._queue))
            del self._queue[lease_id]
            lease = self._leases[lease_id]
            if not lease.waiting:
                assert lease.owed and lease.ttl_s
                if now >= lease.asked_at + lease.ttl_s:  # more was promised to nobody; upstream was away that long
                    del self._leases[lease_id]
                    continue
            lease.sent_at = now
            self._in_flight.append((lease_id, lease))
            taken.append(lease_id)
        self.renewals += len(taken)
        return taken

    def answered(self, reply: LeaseKeepAliveResponse) -> list[Ask]:
        """Upstream answered a renewal; those who get this reply. Raises ValueError when it is not the oldest one's."""
        if not self._in_flight or self._in_flight[0][0] != reply.ID:
            raise ValueError(f"an answer for lease {reply.ID:016x}, which was not next")
        lease_id, lease = self._in_flight.popleft()
        if not self._queue:
            self._window = MAX_IN_FLIGHT
        sent_at, lease.sent_at = lease.sent_at, None
        assert sent_at is not None
        asks = lease.asks()
        if self._leases.get(lease_id) is not lease:  # revoked since it was sent
            return asks
        if reply.TTL <= 0 or len(self._leases) > MAX_LEASES:
            del self._leases[lease_id]
            return asks
        lease.ttl_s = reply.TTL
        lease.header = LeaseKeepAliveResponse(header=reply.header).SerializeToString()
        lease.renewed_at = sent_at
        lease.owed = lease.asked_at > sent_at  # a member would have renewed once more
        lease.served = set(lease.waiting)
        lease.waiting.clear()
        self._look_at(lease_id, lease, sent_at + min(reply.TTL / 3, MAX_INTERVAL_S))
        return asks

    def lost(self) -> None:
        """The upstream stream ended, and nobody is to blame: what was under way is to be sent again, first."""
        again: dict[int, None] = {}
        while self._in_flight:
            lease_id, lease = self._in_flight.popleft()
            lease.sent_at = None
            known = self._leases.setdefault(lease_id, lease)
            if known is not lease:  # asked for again since it was revoked
                for stream, tokens in lease.waiting.items():
                    known.wait(stream, tokens)
            if known.sent_at is None:
                again[lease_id] = None
        again.update(self._queue)
        self._queue = again
        for lease_id in list(again):
            self._drop_unwanted(lease_id, self._leases[lease_id])

    def refused(self) -> list[Ask]:
        """The upstream stream ended with an error for one of the renewals under way.

        When only one is, those who wait for it get the error. Else it is not known which: all are sent again, one by
        one, and nobody gets it yet.
        """
        if len(self._in_flight) != 1:
            if self._in_flight:
                self._window = 1
            self.lost()
            return []
        lease_id, lease = self._in_flight.popleft()
        if self._leases.get(lease_id) is lease:
            del self._leases[lease_id]
        if not self._queue:
            self._window = MAX_IN_FLIGHT
        return lease.asks()

    def fail(self) -> list[Ask]:
        """The upstream stream ended with an error for all who wait: they get it. What is owed stays owed."""
        self._window = MAX_IN_FLIGHT
        self.lost()
        asks: list[Ask] = []
        for lease_id, lease in list(self._leases.items()):
            if lease.waiting:
                asks += lease.asks()
                lease.waiting.clear()
                self._drop_unwanted(lease_id, lease)
        return asks

    def forget(self, lease_id: int) -> None:
        """The lease was revoked: what is remembered of it is wrong, and so may be the answer under way."""
        lease = self._leases.pop(lease_id, None)
        if lease is None:
            return
        self._queue.pop(lease_id, None)
        if lease.sent_at is None and lease.waiting:
            fresh = self._leases[lease_id] = _Lease()
            fresh.waiting = lease.waiting
            self._queue[lease_id] = None

    def tick(self, now: float) -> None:
        """Looks at what is due: owed renewals are queued, what nobody asked for again is forgotten."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            at, lease_id = heappop(heap)
            lease = self._leases.get(lease_id)
            if lease is None or lease.heap_at != at:
                continue
            lease.heap_at = -1.0
            if lease.due_at > at:
                self._look_at(lease_id, lease, lease.due_at)
            elif lease.sent_at is not None or lease_id in self._queue:
                continue  # its answer sets the next time
            elif lease.waiting or lease.owed:
                self._queue[lease_id] = None
            else:
                del self._leases[lease_id]

    def _drop_unwanted(self, lease_id: int, lease: _Lease) -> None:
        """Forgets what nobody waits for, nor is promised."""
        if lease.waiting or lease.owed or lease.sent_at is not None:
            return
        self._queue.pop(lease_id, None)
        if not lease.ttl_s or lease.heap_at < 0:
            del self._leases[lease_id]

    def _look_at(self, lease_id: int, lease: _Lease, at: float) -> None:
        """Sees that `tick` comes to the lease at that time. Mostly a lease has one entry in the heap: a later time is
        found when the earlier one has come."""
        lease.due_at = at
        if lease.heap_at < 0 or at < lease.heap_at:
            lease.heap_at = at
            heappush(self._heap, (at, lease_id))
