"""Requests per second, as a bucket of tokens: a second's worth may come at once."""

from __future__ import annotations


class TokenBucket:
    """Filled with `rate` tokens a second, and holds at most a second's worth, but at least one.

    A refused request takes nothing, so a tenant that asks too often still gets its rate.
    """

    __slots__ = ("_at", "_level", "capacity", "rate")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self.capacity = max(rate, 1.0)
        self._level = self.capacity
        self._at = now

    def set_rate(self, rate: float) -> None:
        """From now on; what is in the bucket stays, as far as it fits."""
        self.rate = rate
        self.capacity = max(rate, 1.0)
        self._level = min(self._level, self.capacity)

    def take(self, now: float) -> bool:
        """Whether one more request may go on at `now` (seconds of any clock that does not go back)."""
        level = self._level + (now - self._at) * self.rate
        if level > self.capacity:
            level = self.capacity
        self._at = now
        if level < 1.0:
            self._level = level
            return False
        self._level = level - 1.0
        return True

    def spend(self, tokens: float) -> None:
        """Others took these from the same allowance; the level may fall below nothing, by at most a second's worth."""
        self._level = max(self._level - tokens, -self.capacity)
