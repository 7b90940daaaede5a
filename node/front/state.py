"""Asks the member's processes for their state: what Status, the health pages and the metrics are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import orjson

from node.frames import HEADER_BYTES, STATE_ASK, Frame, Kind

States = dict[int, dict[str, Any]]
"""By process: what it answered. A process that did not answer in time is missing."""

TIMEOUT_S: Final = 2.0


class StateAsks:
    """Asks under way; `send_control(process, kind, payload)` and `call_later(delay_s, callback)` are the shell's."""

    def __init__(
        self,
        send_control: Callable[[int, int, bytes], None],
        call_later: Callable[[float, Callable[[], None]], Any],
    ) -> None:
        self._send_control = send_control
        self._call_later = call_later
        self._next = 1
        self._asks: dict[int, tuple[set[int], States, Callable[[States], None], Any]] = {}

    def ask(self, processes: set[int], done: Callable[[States], None]) -> None:
        """Calls `done` once: when all have answered, or with what is there after `TIMEOUT_S`."""
        number = self._next
        self._next += 1
        timer = self._call_later(TIMEOUT_S, lambda: self._finish(number))
        self._asks[number] = (set(processes), {}, done, timer)
        for process in processes:
            self._send_control(process, Kind.STATE_ASK, STATE_ASK.pack(number))

    def on_state(self, frame: Frame) -> None:
        """A process answered."""
        (number,) = STATE_ASK.unpack_from(frame.data, HEADER_BYTES)
        ask = self._asks.get(number)
        if ask is None:
            return  # it came after the time-out
        missing, states, _, _ = ask
        states[frame.sender] = orjson.loads(frame.data[HEADER_BYTES + STATE_ASK.size :])
        missing.discard(frame.sender)
        if not missing:
            self._finish(number)

    def _finish(self, number: int) -> None:
        ask = self._asks.pop(number, None)
        if ask is not None:
            _, states, done, timer = ask
            timer.cancel()
            done(states)


def answer(frame: Frame, state: dict[str, Any]) -> bytes:
    """The payload of the STATE frame that answers an ask."""
    return frame.data[HEADER_BYTES : HEADER_BYTES + STATE_ASK.size] + orjson.dumps(state)
