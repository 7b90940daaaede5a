"""Work beside the loop: order, errors, the end."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from node.front.side_thread import SideThread

WAIT_S = 10.0


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with asyncio.Runner() as runner:
        yield runner.get_loop()


@pytest.fixture
def side(loop: asyncio.AbstractEventLoop) -> Iterator[SideThread]:
    thread = SideThread(loop)
    yield thread
    thread.close()


def test_results_come_back_in_the_loop_and_in_order(loop: asyncio.AbstractEventLoop, side: SideThread) -> None:
    results: list[tuple[int, bool]] = []
    loop_thread = threading.get_ident()

    async def run() -> None:
        ended = loop.create_future()
        for number in range(100):
            side.run(
                lambda number=number: (number, threading.get_ident()),  # type: ignore[misc]  # mypy: default of a lambda
                lambda result: results.append((result[0], result[1] != threading.get_ident() == loop_thread)),
            )
        side.run(lambda: None, ended.set_result)
        await asyncio.wait_for(ended, WAIT_S)

    loop.run_until_complete(run())
    assert results == [(number, True) for number in range(100)]


def test_the_loop_goes_on_while_work_is_under_way(loop: asyncio.AbstractEventLoop, side: SideThread) -> None:
    may_end = threading.Event()

    async def run() -> str:
        ended: asyncio.Future[bool] = loop.create_future()
        side.run(lambda: may_end.wait(WAIT_S), ended.set_result)
        other: asyncio.Future[None] = loop.create_future()
        loop.call_later(0.001, other.set_result, None)
        await other
        assert not ended.done()
        may_end.set()
        return "in time" if await asyncio.wait_for(ended, WAIT_S) else "late"

    assert loop.run_until_complete(run()) == "in time"


def test_what_work_raises_reaches_the_loop(loop: asyncio.AbstractEventLoop, side: SideThread) -> None:
    async def run() -> object:
        seen: asyncio.Future[object] = loop.create_future()
        loop.set_exception_handler(lambda _loop, context: seen.set_result(context.get("exception")))
        side.run(lambda: [][0], lambda _result: None)
        return await asyncio.wait_for(seen, WAIT_S)

    assert isinstance(loop.run_until_complete(run()), IndexError)


def test_close_waits_for_what_runs_and_drops_what_waits(loop: asyncio.AbstractEventLoop, side: SideThread) -> None:
    began, may_end = threading.Event(), threading.Event()
    done: list[str] = []

    def first() -> str:
        began.set()
        assert may_end.wait(WAIT_S)
        return "first"

    side.run(first, done.append)
    side.run(lambda: "second", done.append)
    assert began.wait(WAIT_S)
    threading.Timer(0.01, may_end.set).start()
    side.close()
    side.run(lambda: "third", done.append)
    loop.run_until_complete(asyncio.sleep(0))
    assert done == ["first"]


def test_close_without_work_starts_no_thread(side: SideThread) -> None:
    before = threading.active_count()
    side.close()
    side.close()
    assert threading.active_count() == before


def test_a_result_is_not_kept_by_a_reference_cycle(loop: asyncio.AbstractEventLoop, side: SideThread) -> None:
    """Fronts run without the collector: what a cycle holds is never freed."""

    class Page:
        pass

    async def run() -> None:
        ended: Future[None] = Future()
        side.run(Page, lambda _page: ended.set_result(None))
        await asyncio.wait_for(asyncio.wrap_future(ended), WAIT_S)

    gc.collect()
    gc.disable()
    try:
        loop.run_until_complete(run())
        side.close()  # until the thread has returned it may hold its last result
        kept: list[Any] = [thing for thing in gc.get_objects() if isinstance(thing, Page)]
        assert not kept
    finally:
        gc.enable()
