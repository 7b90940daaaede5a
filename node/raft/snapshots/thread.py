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
            if not future.cancelled():
                self._loop.call_soon_threadsafe(done, future.exception())

        self._executor.submit(work).add_done_callback(ended)

    def close(self) -> None:
        """Waits for what is under way; what has not begun is dropped, and nobody told. Inside the loop."""
        self._executor.shutdown(cancel_futures=True)
