"""Replies that take time."""

from abc import ABC, abstractmethod


class Reading(ABC):
    """A reply that is worked out in slices, while others are served."""

    __slots__ = ()

    @abstractmethod
    def step(self, rows: int) -> bytes | None:
        """Work off about so many rows, of 0.3 to 5 us each, or 2 MiB of them; the reply when that was all.

        Raises what the request may raise. Not to be called again after either.
        """
