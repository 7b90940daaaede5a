"""What the processes with an event loop (front, raft) have in common: run until told to stop, never go on broken."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable
from typing import Final, Protocol

import uvloop

from node.child import ChildContext
from node.link_zmq import Links, LoopReader

TICK_S: Final = 0.5


class Shell(Protocol):
    """One process's work."""

    @property
    def links(self) -> Links:
        """Its inboxes, read here."""

    def on_control(self) -> bool:
        """Control frames may have come. Returns whether some were left."""

    def on_data(self) -> bool:
        """Data frames may have come. Returns whether some were left."""

    def tick(self) -> None:
        """Called each `TICK_S`."""

    async def stop(self) -> None:
        """The supervisor said stop: ends what is under way in order."""


Fail = Callable[[BaseException], None]
"""Ends the process with this error, and with it the generation."""


def run(child: ChildContext, build: Callable[[Fail], Shell]) -> None:
    """Runs the shell that `build` makes, inside a running loop, until the supervisor says stop or something fails."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(child, build))


async def _run(child: ChildContext, build: Callable[[Fail], Shell]) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    failures: list[BaseException] = []

    def fail(error: BaseException) -> None:
        failures.append(error)
        stopped.set()

    def guarded(step: Callable[[], bool | None]) -> Callable[[], bool]:
        """A loop only logs what a callback raises; a process must not go on after it."""

        def run_step() -> bool:
            try:
                return bool(step())
            except BaseException as error:
                fail(error)
                return False

        return run_step

    shell = build(fail)
    tick = guarded(shell.tick)

    def on_tick() -> None:
        child.lifeline.beat(time.monotonic())
        tick()
        loop.call_later(TICK_S, on_tick)

    def on_lifeline() -> None:
        if child.lifeline.stop_requested():
            stopped.set()

    def on_unhandled(_loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        error = context.get("exception")
        fail(error if isinstance(error, BaseException) else RuntimeError(str(context.get("message"))))

    loop.set_exception_handler(on_unhandled)
    LoopReader(shell.links.control_fd, guarded(shell.on_control), loop.add_reader, loop.call_soon)
    LoopReader(shell.links.data_fd, guarded(shell.on_data), loop.add_reader, loop.call_soon)
    loop.add_reader(child.lifeline.fileno(), on_lifeline)
    on_tick()
    # The cores make no cycles, so a collection would only cost time; what start-up left is never looked at again.
    gc.freeze()
    gc.disable()
    await stopped.wait()
    if failures:
        raise failures[0]
    await shell.stop()
    shell.links.close()
