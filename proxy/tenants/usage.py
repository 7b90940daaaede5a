"""How many keys and bytes a tenant stores, as a pure core: what the cluster holds, and what is on its way there.

The size of each key is known from one reading of the namespace and from the events since, so what a write adds is
known before it is made and costs no read. Writes of this process count from the moment they leave until the events
that hold them have come; a write of which nobody knows whether it was made, until the clock says that it would have
been seen. Writes of others count when their events come: several proxies judge by the same figures, and together may
pass a limit by what they had under way in the same moment.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Final

from kvorum.pb.mvcc_pb2 import Event, KeyValue
from kvorum.pb.rpc_pb2 import PutRequest, RequestOp, TxnRequest

UNKNOWN_OUTCOME_S: Final = 15.0
"""A write without an answer is made or lost within this: a member gives up after 7 s (P12)."""


class Growth:
    """What a write may add at most."""

    __slots__ = ("bytes", "keys", "sizes")

    def __init__(self) -> None:
        self.sizes: dict[bytes, int] = {}
        """The greatest size that each of its keys may get; of a transaction over both branches."""
        self.keys = 0
        """How many keys are new, as far as is known; of a transaction in the branch that adds more."""
        self.bytes = 0


class Usage:
    """The keys of one namespace, under whole names, and their sizes without the prefix.

    A key with writes on their way counts with the greatest of the sizes it has and may get.
    """

    def __init__(self, prefix_bytes: int) -> None:
        self._prefix_bytes = prefix_bytes
        self._sizes: dict[bytes, int] = {}
        self._reading: dict[bytes, int] | None = None
        self._expected: dict[bytes, list[int]] = {}  # the greatest size it may get, writes on their way
        self._acknowledged: list[tuple[int, int, Growth]] = []
        self._unknown: list[tuple[float, int, Growth]] = []
        self._sequence = 0
        self.revision: int | None = None
        """Everything up to here is counted; None: nothing is known, the namespace has to be read."""
        self.is_followed = False
        """Whether events come as they happen; while they do not, the figures may be old."""
        self.bytes = 0
        """What the cluster holds, as far as is known."""
        self.held_keys = 0
        """What writes on their way may add to it."""
        self.held_bytes = 0

    @property
    def keys(self) -> int:
        """How many the cluster holds, as far as is known."""
        return len(self._sizes)

    # What the cluster holds.

    def begin_reading(self) -> None:
        """The namespace will be read from its beginning; what was known is forgotten when that is done."""
        self._reading = {}

    def on_page(self, kvs: Iterable[KeyValue]) -> None:
        """Some keys, as they are at the revision that is read."""
        assert self._reading is not None
        cut = self._prefix_bytes
        for kv in kvs:
            key = kv.key
            self._reading[key] = len(key) - cut + len(kv.value)

    def end_reading(self, revision: int) -> None:
        """All was read, at this revision."""
        assert self._reading is not None
        self._sizes, self._reading = self._reading, None
        self.bytes = sum(self._sizes.values())
        self.held_keys = sum(key not in self._sizes for key in self._expected)
        self.held_bytes = sum(max(0, expected[0] - self._sizes.get(key, 0)) for key, expected in self._expected.items())
        self.revision = revision
        self._release(revision)

    def lose(self) -> None:
        """The figures cannot be followed any more: until they are read again nothing is known."""
        self.revision = None
        self.is_followed = False
        self._reading = None

    def forget(self) -> None:
        """The cluster has gone back to an earlier state: what was known does not hold, and the revisions at which
        writes were acknowledged come anew."""
        self.lose()
        for _, _, growth in self._acknowledged:
            self.on_refused(growth)
        self._acknowledged.clear()

    def on_events(self, events: Iterable[Event], revision: int) -> None:
        """Events in order; with them everything up to `revision` is known."""
        sizes = self._sizes
        cut = self._prefix_bytes
        for event in events:
            kv = event.kv
            key = kv.key
            size = len(key) - cut + len(kv.value) if event.type == Event.PUT else 0
            before = sizes.get(key, 0)
            self.bytes += size - before
            expected = self._expected.get(key)
            if expected is not None:
                self._recount(expected[0], before, -1)
                self._recount(expected[0], size, 1)
            if size:
                sizes[key] = size
            else:
                sizes.pop(key, None)
        self.on_progress(revision)

    def on_progress(self, revision: int) -> None:
        """No event up to `revision` will come any more."""
        if self.revision is not None and revision > self.revision:
            self.revision = revision
            self._release(revision)

    # What is on its way.

    @property
    def waits_for(self) -> int | None:
        """The least revision at which a write that was acknowledged will be seen; None: all were."""
        return self._acknowledged[0][0] if self._acknowledged else None

    def growth_of_put(self, request: PutRequest) -> Growth:
        """What a put adds; keys under whole names."""
        growth = Growth()
        self._add_put(growth, request)
        return growth

    def growth_of_key(self, key: bytes, size: int) -> Growth:
        """What it adds that `key` comes to be, with `size` bytes of value."""
        growth = Growth()
        self._add(growth, key, len(key) - self._prefix_bytes + size)
        return growth

    def growth_of_txn(self, request: TxnRequest) -> Growth:
        """What a transaction adds: of each pair of branches the one that adds more. Its deletes are not counted on."""
        growth = Growth()
        self._add_txn(growth, request)
        return growth

    def _add_txn(self, growth: Growth, request: TxnRequest) -> None:
        success, failure = Growth(), Growth()
        self._add_branch(success, request.success)
        self._add_branch(failure, request.failure)
        growth.keys += max(success.keys, failure.keys)
        growth.bytes += max(success.bytes, failure.bytes)
        for branch in (success, failure):
            for key, size in branch.sizes.items():
                growth.sizes[key] = max(size, growth.sizes.get(key, 0))

    def _add_branch(self, growth: Growth, branch: Iterable[RequestOp]) -> None:
        for operation in branch:
            kind = operation.WhichOneof("request")
            if kind == "request_put":
                self._add_put(growth, operation.request_put)
            elif kind == "request_txn":
                self._add_txn(growth, operation.request_txn)

    def _add_put(self, growth: Growth, request: PutRequest) -> None:
        if not request.ignore_value:  # that keeps the value, and there must be one
            self._add(growth, request.key, len(request.key) - self._prefix_bytes + len(request.value))

    def _add(self, growth: Growth, key: bytes, size: int) -> None:
        known = max(self._sizes.get(key, 0), growth.sizes.get(key, 0))
        expected = self._expected.get(key)
        if expected is not None and expected[0] > known:
            known = expected[0]
        if not known:  # a key has at least one byte
            growth.keys += 1
        if size > known:
            growth.bytes += size - known
        growth.sizes[key] = max(size, growth.sizes.get(key, 0))

    def fits(self, growth: Growth, most_keys: int | None, most_bytes: int | None) -> str | None:
        """The limit that a write would pass, or None. What adds nothing always fits."""
        if growth.keys and most_keys is not None and len(self._sizes) + self.held_keys + growth.keys > most_keys:
            return "keys"
        if growth.bytes and most_bytes is not None and self.bytes + self.held_bytes + growth.bytes > most_bytes:
            return "bytes"
        return None

    def hold(self, growth: Growth) -> None:
        """The write leaves."""
        for key, size in growth.sizes.items():
            known = self._sizes.get(key, 0)
            expected = self._expected.get(key)
            if expected is None:
                self._expected[key] = [size, 1]
                self._recount(size, known, 1)
            else:
                expected[1] += 1
                if size > expected[0]:
                    self._recount(expected[0], known, -1)
                    expected[0] = size
                    self._recount(size, known, 1)

    def on_refused(self, growth: Growth) -> None:
        """The write was surely not made, or is counted."""
        for key in growth.sizes:
            expected = self._expected[key]
            expected[1] -= 1
            if not expected[1]:
                self._recount(expected[0], self._sizes.get(key, 0), -1)
                del self._expected[key]

    def _recount(self, expected: int, known: int, sign: int) -> None:
        """Adds or takes away what a key on its way counts beyond what is known of it."""
        if not known:
            self.held_keys += sign
        if expected > known:
            self.held_bytes += sign * (expected - known)

    def on_acknowledged(self, growth: Growth, revision: int) -> None:
        """The write was made, if it changed anything, at or before `revision`."""
        if self.revision is not None and revision <= self.revision:
            self.on_refused(growth)
        else:
            self._sequence += 1
            heapq.heappush(self._acknowledged, (revision, self._sequence, growth))

    def on_unknown(self, growth: Growth, now: float) -> None:
        """Nobody knows whether the write was made."""
        self._sequence += 1
        heapq.heappush(self._unknown, (now + UNKNOWN_OUTCOME_S, self._sequence, growth))

    def expire(self, now: float) -> None:
        """Looks at the clock: what is unknown for long enough was lost, or its events have come."""
        while self._unknown and self._unknown[0][0] <= now:
            self.on_refused(heapq.heappop(self._unknown)[2])

    def _release(self, revision: int) -> None:
        while self._acknowledged and self._acknowledged[0][0] <= revision:
            self.on_refused(heapq.heappop(self._acknowledged)[2])
