"""The thread beside raft's loop."""

import asyncio
import threading
from functools import partial

from node.raft.snapshots.thread import OneThread
from tests.raft.peers.members import run, until

Told = list[tuple[int, BaseException | None]]


def tell(told: Told, number: int, error: BaseException | None) -> None:
    told.append((number, error))


def test_work_is_done_in_order_and_told_in_the_loop() -> None:
    async def test() -> None:
        thread = OneThread(asyncio.get_running_loop(), "test")
        done: list[int] = []
        told: Told = []
        for number in range(5):
            thread(partial(done.append, number), partial(tell, told, number))
        assert told == []
        await until(lambda: len(told) == 5)
        assert done == list(range(5))
        assert told == [(number, None) for number in range(5)]
        thread.close()

    run(test)


def test_an_error_is_told_and_the_next_is_done() -> None:
    async def test() -> None:
        thread = OneThread(asyncio.get_running_loop(), "test")
        error = OSError("broken")
        told: Told = []

        def fail() -> None:
            raise error

        thread(fail, partial(tell, told, 1))
        thread(lambda: None, partial(tell, told, 2))
        await until(lambda: len(told) == 2)
        assert told == [(1, error), (2, None)]
        thread.close()

    run(test)


def test_what_has_not_begun_is_dropped_at_the_end() -> None:
    async def test() -> None:
        thread = OneThread(asyncio.get_running_loop(), "test")
        begun, go_on = threading.Event(), threading.Event()
        told: Told = []

        def wait() -> None:
            begun.set()
            go_on.wait()

        thread(wait, partial(tell, told, 1))
        thread(lambda: None, partial(tell, told, 2))
        begun.wait()
        threading.Timer(0.01, go_on.set).start()
        thread.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert told == [(1, None)]

    run(test)
