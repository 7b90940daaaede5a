"""Is this member well? The checks behind /health, /livez and /readyz (HT1-HT13).

Every check ends in a callback, in this turn of the loop or a later one; one that stays silent ends by its time limit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from enum import StrEnum
from typing import Final, Protocol

from kvorum import errors
from kvorum.pb.rpc_pb2 import AlarmType
from node.front.json_call import CallLater, Timer

Outcome = str | None
"""None when the check passed, else why it did not."""

Done = Callable[[Outcome], None]


class Probes(Protocol):
    """What the checks ask of the member."""

    def range(self, serializable: bool, done: Done) -> None:
        """Reads one key, and tells the error's text if that fails."""

    def alarms(self, done: Callable[[Sequence[int] | None], None]) -> None:
        """The types of the alarms that are active, or None when they cannot be told."""

    def has_leader(self) -> bool:
        """Whether the member knows a leader."""

    def is_learner(self) -> bool:
        """Whether the member is a learner."""


class Check(StrEnum):
    """The checks of /livez and /readyz by name."""

    DATA_CORRUPTION = "data_corruption"
    SERIALIZABLE_READ = "serializable_read"
    LINEARIZABLE_READ = "linearizable_read"
    NON_LEARNER = "non_learner"


LIVEZ: Final = (Check.SERIALIZABLE_READ,)
READYZ: Final = (Check.DATA_CORRUPTION, Check.SERIALIZABLE_READ, Check.LINEARIZABLE_READ, Check.NON_LEARNER)
"""HT6."""

TIMED_OUT: Final = errors.TIMEOUT.message


class Once:
    """Passes on the first outcome it is told, or a time-out; whatever comes later is dropped."""

    __slots__ = ("_done", "_timed_out", "_timer")

    def __init__(self, call_later: CallLater, limit_s: float, done: Done, timed_out: str = TIMED_OUT) -> None:
        self._done: Done | None = done
        self._timed_out = timed_out
        self._timer: Timer | None = call_later(limit_s, self._on_limit)

    def __call__(self, outcome: Outcome) -> None:
        done, self._done = self._done, None
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        if done is not None:
            done(outcome)

    def _on_limit(self) -> None:
        self(self._timed_out)


class HealthChecks:
    """Runs the checks. `limit_s` is how long one may take."""

    def __init__(self, probes: Probes, call_later: CallLater, limit_s: float) -> None:
        self._probes = probes
        self._call_later = call_later
        self._limit_s = limit_s

    def health(self, *, excluded_alarms: Collection[str], serializable: bool, done: Done) -> None:
        """/health: the reason why the member is not well, or None (HT2, HT3)."""
        once = Once(self._call_later, self._limit_s, done, f"RANGE ERROR:{TIMED_OUT}")

        def on_range(error: Outcome) -> None:
            once(None if error is None else f"RANGE ERROR:{error}")

        def on_alarms(alarms: Sequence[int] | None) -> None:
            if alarms is None:
                on_range(TIMED_OUT)
                return
            for alarm in alarms:
                name = AlarmType.Name(alarm) if alarm in AlarmType.values() else "UNKNOWN"
                if name not in excluded_alarms:
                    once(f"ALARM {name if name in ('NOSPACE', 'CORRUPT') else 'UNKNOWN'}")
                    return
            if not serializable and not self._probes.has_leader():
                once("RAFT NO LEADER")
            else:
                self._probes.range(serializable, on_range)

        self._probes.alarms(on_alarms)

    def run(self, checks: Iterable[Check], done: Callable[[dict[Check, Outcome]], None]) -> None:
        """Runs some of the named checks at the same time; `done` gets all outcomes, in the order of `checks`."""
        outcomes: dict[Check, Outcome] = {}
        wanted = tuple(checks)
        if not wanted:
            done({})

        def ender(check: Check) -> Done:
            def end(outcome: Outcome) -> None:
                outcomes[check] = outcome
                if len(outcomes) == len(wanted):
                    done({check: outcomes[check] for check in wanted})

            return end

        for check in wanted:
            self._start(check, Once(self._call_later, self._limit_s, ender(check)))

    def _start(self, check: Check, done: Done) -> None:
        match check:
            case Check.SERIALIZABLE_READ:
                self._probes.range(True, done)
            case Check.LINEARIZABLE_READ:
                self._probes.range(False, done)
            case Check.NON_LEARNER:
                done("not supported for learner" if self._probes.is_learner() else None)
            case Check.DATA_CORRUPTION:

                def on_alarms(alarms: Sequence[int] | None) -> None:
                    if alarms is None:
                        done(TIMED_OUT)
                    else:
                        done("alarm activated: CORRUPT" if AlarmType.CORRUPT in alarms else None)

                self._probes.alarms(on_alarms)
