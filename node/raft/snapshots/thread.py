"""The thread in which raft's process does what may wait for the disk, when the loop must not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from node.raft.snapshots.receiver import Done


class OneThread:
    """A `RunAside`: work in the order given, one at a time; `done` is told in the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self._loop = loop
        self._executor = ThreadPoolExecutor(1, name)

    def __call__(self, work: Callable[[], None], done: Done) -> None:
        def ended(future: Future[None]) -> None:
            self._loop.call_soon_threadsafe(done, future.exception())

        self._executor.submit(work).add_done_callback(ended)

    def close(self) -> None:
        """Waits for what is under way, drops what has not begun. Inside the loop, whose callbacks still come."""
        self._executor.shutdown(cancel_futures=True)
