"""One process of a simulated member: it makes turns, each of which takes time, and hears nothing meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf
from typing import Protocol

from tests.sim.clock import MemberClock, Scheduler, Timer

LOOK_S = 0.00002
"""What passes between two looks at the clock within a turn."""


class Crash(BaseException):
    """The member dies here, in the middle of whatever it does."""


class Owner(Protocol):
    """The generation that a process belongs to."""

    alive: bool

    def on_crash(self) -> None:
        """A process of it died."""

    def on_failure(self, process: str, error: BaseException) -> None:
        """A process of it raised what it must not raise."""


class Worker:
    """Turns of one process. `turn` returns after how many seconds it wants another one without being woken (inf: none).

    `post` runs something in a turn: what arrives from outside the member, timers, ends of disk writes.
    """

    def __init__(self, name: str, owner: Owner, scheduler: Scheduler, clock: MemberClock) -> None:
        self.name = name
        self.turn: Callable[[], float] = lambda: inf
        self._owner = owner
        self._scheduler = scheduler
        self._clock = clock
        self._posted: deque[Callable[[], None]] = deque()
        self._busy_until = 0.0
        self._timer: Timer | None = None
        self._due_s = inf
        self._running = False

    @property
    def alive(self) -> bool:
        """Whether its generation lives."""
        return self._owner.alive

    def now(self) -> float:
        """The member's monotonic clock, which goes on while a turn is made."""
        if self._running:
            self._scheduler.elapsed_s += LOOK_S
        return self._clock()

    def wake(self) -> None:
        """There is something to do."""
        self._make_turn_at(self._scheduler.now_s)

    def post(self, work: Callable[[], None]) -> None:
        """Runs `work` in the next turn, unless the member dies before."""
        if self._owner.alive:
            self._posted.append(work)
            self.wake()

    def later(self, delay_s: float, work: Callable[[], None]) -> Timer:
        """Runs `work` in a turn when so much time has passed by the member's clock."""
        return self._clock.after(delay_s, lambda: self.post(work))

    def pause(self, seconds: float) -> None:
        """It stands still so long."""
        self._busy_until = max(self._busy_until, self._scheduler.now_s) + seconds
        if self._timer is not None:
            due_s = self._due_s
            self._timer.cancel()
            self._timer = None
            self._make_turn_at(due_s)

    def _make_turn_at(self, time_s: float) -> None:
        if not self._owner.alive or self._running:
            return
        due_s = max(time_s, self._busy_until)
        if self._timer is not None:
            if self._due_s <= due_s:
                return
            self._timer.cancel()
        self._due_s = due_s
        self._timer = self._scheduler.at(due_s, self._run)

    def _run(self) -> None:
        self._timer = None
        if not self._owner.alive:
            return
        scheduler = self._scheduler
        self._running = True
        try:
            for _ in range(len(self._posted)):
                self._posted.popleft()()
                if not self._owner.alive:  # it ended itself
                    return
            patience_s = self.turn()
        except Crash:
            self._owner.on_crash()
            return
        except BaseException as error:
            self._owner.on_failure(self.name, error)
            return
        finally:
            self._running = False
            took_s = scheduler.elapsed_s
            scheduler.elapsed_s = 0.0
        self._busy_until = scheduler.now_s + took_s + scheduler.random.uniform(0.00001, 0.0001)
        if self._posted:
            patience_s = 0.0
        if patience_s < inf:
            self._make_turn_at(self._busy_until + patience_s / self._clock.rate)
