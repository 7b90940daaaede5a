"""A thread beside a front's loop, for the few replies whose making would hold every other client up."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NoReturn, Protocol, TypeVar

T = TypeVar("T")

SWITCH_INTERVAL_S: Final = 0.0002
"""How long the thread may keep the interpreter's lock while the loop waits for it. Python's 5 ms would be the delay of
every turn of the loop for as long as the thread works."""


class RunAside(Protocol):
    """Does `work` beside the loop, then calls `done` with its result in a later turn of the loop."""

    def __call__(self, work: Callable[[], T], done: Callable[[T], None]) -> None:
        """`work` must not touch what the loop changes. What it raises ends the process, as in the loop itself."""


class SideThread:
    """One thread, started by the first work there is; works run one after the other, in order.

    Nothing bounds how many wait: who uses it has one under way at a time, per connection or at all.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._executor: ThreadPoolExecutor | None = None
        self._closed = False

    def run(self, work: Callable[[], T], done: Callable[[T], None]) -> None:
        """See RunAside. After `close` nothing is run: those who asked have no connection any more."""
        if self._closed:
            return
        if self._executor is None:
            sys.setswitchinterval(SWITCH_INTERVAL_S)
            self._executor = ThreadPoolExecutor(1, "side")
        # Not loop.run_in_executor: its pair of futures is a reference cycle that holds the result, 200 KiB for a page
        # of metrics, and fronts run without the collector of cycles.
        self._executor.submit(self._run, work, done)

    def close(self) -> None:
        """Drops what has not begun and waits for what has, so that nothing calls a loop that is closed."""
        self._closed = True
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None

    def _run(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        try:
            result = work()
        except BaseException as error:
            self._loop.call_soon_threadsafe(_raise, error)
        else:
            self._loop.call_soon_threadsafe(done, result)


def _raise(error: BaseException) -> NoReturn:
    raise error
