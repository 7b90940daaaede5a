"""Virtual time: what happens in a run happens in the order of this queue, and every choice comes from its seed."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from random import Random


class Timer:
    """Something that will happen, unless it is cancelled."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """It will not happen."""
        self.callback = None


class Scheduler:
    """The events to come, by time and then in the order in which they were set up. `now_s` is the world's own time."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now_s = 0.0
        self.elapsed_s = 0.0
        """What the turn being made has taken so far: what it does now happens so much later."""
        self.events = 0
        """How many have happened."""
        self._queue: list[tuple[float, int, Timer]] = []
        self._number = 0

    def at(self, time_s: float, callback: Callable[[], None]) -> Timer:
        """Calls back at that time, or at once if it is past."""
        timer = Timer(callback)
        self._number += 1
        heappush(self._queue, (max(time_s, self.now_s), self._number, timer))
        return timer

    def after(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Calls back after that time."""
        return self.at(self.now_s + self.elapsed_s + delay_s, callback)

    def run_until(self, time_s: float, done: Callable[[], bool] | None = None) -> bool:
        """Lets time pass up to then, or until `done()`, asked after each event, says so; returns whether it did."""
        queue = self._queue
        while queue and queue[0][0] <= time_s:
            at_s, _, timer = heappop(queue)
            callback = timer.callback
            if callback is None:
                continue
            self.now_s = at_s
            self.events += 1
            timer.callback = None
            callback()
            if done is not None and done():
                return True
        self.now_s = max(self.now_s, time_s)
        return False


class MemberClock:
    """A member's monotonic clock: it began somewhere, and runs a little fast or slow."""

    def __init__(self, scheduler: Scheduler, began_at: float, rate: float) -> None:
        self._scheduler = scheduler
        self._began_at = began_at
        self.rate = rate

    def __call__(self) -> float:
        return self._began_at + (self._scheduler.now_s + self._scheduler.elapsed_s) * self.rate

    def after(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Calls back when so much time has passed by this clock."""
        return self._scheduler.after(delay_s / self.rate, callback)
