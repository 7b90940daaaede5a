"""The rules by which the supervisor judges its children: a pure core; times are seconds of a monotonic clock.

A member lives and dies as a whole, so one bad child ends its generation.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from kvorum.lifeline import Word

UNREADY_MAX: Final = 3
"""Generations in a row that may die before they are ready."""

BACK_OFF_S: Final = (0.0, 0.1, 0.2, 0.4, 0.8, 1.0)
"""Waits before the next generation, after the first, second, … that did not live long."""

READY_BACK_OFF_S: Final = 0.2
"""The longest wait after a generation that had served: clients are waiting for the next."""

LIVED_LONG_S: Final = 10.0

FIRST_WORD_LIMIT_S: Final = 30.0
"""What a child may take to load its program before it says anything. Several members that start at once on a busy
machine of two cores have been seen to take 10 s; to kill and start them again makes it worse.
"""


class State(Enum):
    """Where a generation stands."""

    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    RESTARTING = "restarting"
    FINISHED = "finished"


@dataclass(slots=True)
class _Child:
    heard_s: float
    limit_s: float
    ready: bool = False
    long_operation: str = ""
    last_error: str = ""


class Generation:
    """The children of one generation, by name, and what was heard of them."""

    def __init__(self, names: Iterable[str], now_s: float, silence_limit_s: float) -> None:
        self._children = {name: _Child(now_s, max(silence_limit_s, FIRST_WORD_LIMIT_S)) for name in names}
        self._silence_limit_s = silence_limit_s
        self.state = State.STARTING
        self.failed_child = ""
        self.reason = ""
        """Why it failed, finished or is to be followed by another, in words for the log."""

    def heard(self, name: str, word: Word, text: str, now_s: float) -> None:
        """A message came from a child that has not ended."""
        child = self._children[name]
        child.heard_s = now_s
        child.limit_s = self._silence_limit_s
        match word:
            case Word.BEAT:
                pass
            case Word.READY:
                child.ready = True
                if self.state is State.STARTING and all(child.ready for child in self._children.values()):
                    self.state = State.READY
            case Word.LONG_BEGIN:
                child.long_operation = text
            case Word.LONG_END:
                child.long_operation = ""
            case Word.FAILED:
                child.last_error = text
            case Word.FINISHED:
                if self.state in (State.STARTING, State.READY):
                    self.state, self.reason = State.FINISHED, text
            case Word.RESTART:
                if self.state in (State.STARTING, State.READY):
                    self.state, self.reason = State.RESTARTING, text
            case Word.STOP:
                raise AssertionError("a child does not say stop")

    def ended(self, name: str, exit_status: int | None) -> None:
        """A child is gone: `exit_status` is its exit code, or minus the number of the signal that killed it."""
        error = self._children[name].last_error
        if exit_status is None:
            how = "is gone"
        elif exit_status < 0:
            how = f"killed by signal {-exit_status}"
        else:
            how = f"exited with {exit_status}"
        self.fail(name, f"{error} ({how})" if error else how)

    def check(self, now_s: float) -> None:
        """Fail the generation if a child was silent for too long."""
        for name, child in self._children.items():
            if not child.long_operation and now_s - child.heard_s >= child.limit_s:
                self.fail(name, f"silent for {child.limit_s:g} s")

    def next_check_s(self) -> float | None:
        """When silence would next be too long; None while all are in long operations."""
        due = [child.heard_s + child.limit_s for child in self._children.values() if not child.long_operation]
        return min(due) if due else None

    def fail(self, name: str, reason: str) -> None:
        """A child is of no use; the first reason counts."""
        if self.state in (State.STARTING, State.READY):
            self.state, self.failed_child, self.reason = State.FAILED, name, reason


class Restarts:
    """When the next generation begins after one has ended, or that there is none."""

    def __init__(self) -> None:
        self._unready = 0
        self._short_lived = 0

    def after_failure(self, was_ready: bool, lived_s: float) -> float | None:
        """Seconds to wait before the next generation; None: the member gives up."""
        self._unready = 0 if was_ready else self._unready + 1
        if self._unready == UNREADY_MAX:
            return None
        wait_s = self._back_off_s(lived_s)
        return min(wait_s, READY_BACK_OFF_S) if was_ready else wait_s

    def after_request(self, lived_s: float) -> float:
        """Seconds to wait before the generation that one of the last has asked for."""
        self._unready = 0
        return self._back_off_s(lived_s)

    def _back_off_s(self, lived_s: float) -> float:
        self._short_lived = 0 if lived_s >= LIVED_LONG_S else self._short_lived + 1
        return BACK_OFF_S[min(max(self._short_lived - 1, 0), len(BACK_OFF_S) - 1)]
