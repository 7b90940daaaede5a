"""Which endpoint the next connection goes to (behaviour GW1, GW2; RFC 2782, "Usage rules"): a core.

Only active endpoints are chosen, and of these only those of the lowest priority value. Among them the choice goes round
if none has a weight; else it is drawn by weight, and those of weight 0 together are chosen once in a hundred times: the
RFC wants "a very small chance" for them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

WEIGHTLESS_SHARE: Final = 0.01


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where connections can go. `host` is a name or an address without brackets."""

    host: str
    port: int
    priority: int = 0
    weight: int = 0

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Balance:
    """The endpoints, known by their place in `endpoints`, and which of them are inactive. At first all are active.

    `random` draws from [0, 1).
    """

    def __init__(self, endpoints: Sequence[Endpoint], random: Callable[[], float]) -> None:
        self.endpoints = tuple(endpoints)
        self._random = random
        self._inactive: set[int] = set()
        self._turn = 0

    def pick(self) -> int | None:
        """The endpoint for a new connection; None if none is active."""
        active = [place for place in range(len(self.endpoints)) if place not in self._inactive]
        if not active:
            return None
        endpoints = self.endpoints
        lowest = min(endpoints[place].priority for place in active)
        weighted: list[int] = []
        weightless: list[int] = []
        for place in active:
            if endpoints[place].priority == lowest:
                (weighted if endpoints[place].weight else weightless).append(place)
        if weighted and not (weightless and self._random() < WEIGHTLESS_SHARE):
            return self._draw(weighted)
        place = weightless[self._turn % len(weightless)]
        self._turn += 1
        return place

    def deactivate(self, place: int) -> bool:
        """Choose it no more. True if it was active."""
        was_active = place not in self._inactive
        self._inactive.add(place)
        return was_active

    def activate(self, place: int) -> None:
        """It may be chosen again."""
        self._inactive.discard(place)

    def is_active(self, place: int) -> bool:
        return place not in self._inactive

    def _draw(self, weighted: Sequence[int]) -> int:
        left = self._random() * sum(self.endpoints[place].weight for place in weighted)
        for place in weighted:
            left -= self.endpoints[place].weight
            if left < 0:
                return place
        return weighted[-1]  # rounding: the draw was next to the sum
