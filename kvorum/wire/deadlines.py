"""Deadlines of many calls under one timer: calls that end in the same slot of 10 ms share a bucket.

A timer per call would cost 2 us and a callback object; a dict entry costs 0.2 us and is gone when the call is.
"""

import heapq
from typing import Any, Final

SLOTS_PER_S: Final = 100

_FARTHEST_S: Final = 30 * 86400.0  # later ones are looked at again then


class Deadlines:
    """Which calls end when. Times are the loop's, in seconds; a call is any hashable object."""

    __slots__ = ("_buckets", "_order")

    def __init__(self) -> None:
        self._buckets: dict[int, dict[Any, Any]] = {}
        self._order: list[int] = []

    def add(self, call: Any, owner: Any, now: float, timeout_s: float) -> int:
        """The slot of a call that may take `timeout_s` from now; it never ends early and at most 10 ms late."""
        slot = int((now + min(timeout_s, _FARTHEST_S)) * SLOTS_PER_S) + 1
        bucket = self._buckets.get(slot)
        if bucket is None:
            bucket = self._buckets[slot] = {}
            heapq.heappush(self._order, slot)
        bucket[call] = owner
        return slot

    def discard(self, call: Any, slot: int) -> None:
        """The call has ended."""
        bucket = self._buckets.get(slot)
        if bucket is not None:
            bucket.pop(call, None)

    def next_at(self) -> float | None:
        """When to call `expire`, None while nothing is due ever."""
        order = self._order
        while order and not self._buckets[order[0]]:
            del self._buckets[heapq.heappop(order)]
        return order[0] / SLOTS_PER_S if order else None

    def expire(self, now: float) -> list[tuple[Any, Any]]:
        """The calls whose time has come, with their owners."""
        due: list[tuple[Any, Any]] = []
        while self._order and self._order[0] <= now * SLOTS_PER_S:
            due.extend(self._buckets.pop(heapq.heappop(self._order)).items())
        return due
