"""Deadlines of many calls under one timer: calls that end in the same slot of 10 ms share a bucket.

A timer per call would cost 2 us and a callback object; a dict entry costs 0.2 us and is gone when the call is.
"""

import heapq
from typing import Any, Final

SLOTS_PER_S: Final = 100

_STALE_SLOTS: Final = 1000  # abandoned entries of the heap that are put up with


class Deadlines:
    """Which calls end when. Times are the loop's, in seconds; a call is any hashable object."""

    __slots__ = ("_buckets", "_order", "_stale")

    def __init__(self) -> None:
        self._buckets: dict[int, dict[Any, Any]] = {}
        self._order: list[int] = []
        """A heap of slots; those whose bucket is gone are skipped, and swept out when they are many: a client that
        sets deadlines of hours to calls of microseconds leaves nothing behind."""
        self._stale = 0

    def add(self, call: Any, owner: Any, now: float, timeout_s: float) -> int:
        """The slot of a call that may take `timeout_s` from now; it never ends early and at most 10 ms late."""
        slot = int((now + timeout_s) * SLOTS_PER_S) + 1
        bucket = self._buckets.get(slot)
        if bucket is None:
            bucket = self._buckets[slot] = {}
            heapq.heappush(self._order, slot)
        bucket[call] = owner
        return slot

    def discard(self, call: Any, slot: int) -> None:
        """The call has ended."""
        bucket = self._buckets.get(slot)
        if bucket is None:
            return
        bucket.pop(call, None)
        if not bucket:
            del self._buckets[slot]
            self._stale += 1
            if self._stale > _STALE_SLOTS and self._stale > len(self._buckets):
                self._order = list(self._buckets)
                heapq.heapify(self._order)
                self._stale = 0

    def next_at(self) -> float | None:
        """When to call `expire`, None while nothing is due ever."""
        order = self._order
        while order and order[0] not in self._buckets:
            heapq.heappop(order)
        return order[0] / SLOTS_PER_S if order else None

    def expire(self, now: float) -> list[tuple[Any, Any]]:
        """The calls whose time has come, with their owners."""
        due: list[tuple[Any, Any]] = []
        while self._order and self._order[0] <= now * SLOTS_PER_S:
            due.extend(self._buckets.pop(heapq.heappop(self._order), {}).items())
        return due
