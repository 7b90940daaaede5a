"""A wire server on an event loop of its own in a thread, so that blocking clients can be the test's peer."""

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

import uvloop

from kvorum.wire.head import Head
from kvorum.wire.limits import ServerLimits
from kvorum.wire.routes import CancelReason, StreamOpen, UnaryHandler
from kvorum.wire.server import Server
from kvorum.wire.server_calls import ServerStream
from kvorum.wire.server_connection import ServerConnection

Result = TypeVar("Result")

DEADLINE_S = 20.0
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


class Echo:
    """Answers every message with itself; ends when the client half-closes."""

    def __init__(self, stream: ServerStream, head: Head) -> None:
        self.stream: ServerStream = stream
        self.head = head

    def on_message(self, message: bytes) -> None:
        self.stream.send(message)

    def on_half_close(self) -> None:
        self.stream.end()

    def on_cancel(self, reason: CancelReason) -> None:
        pass

    def on_writable(self) -> None:
        pass


def echo(connection: ServerConnection, stream_id: int, head: Head, message: bytes) -> None:
    connection.reply(stream_id, message)


class Serving:
    """`with Serving(unary=…, streams=…) as serving:` a server on `serving.port`."""

    def __init__(
        self,
        *,
        unary: Mapping[str, UnaryHandler] | None = None,
        streams: Mapping[str, StreamOpen] | None = None,
        limits: ServerLimits | None = None,
        loop: str = "asyncio",
        ssl: Any = None,
        unix: str | None = None,
        port: int = 0,
        grace_s: float = 0.0,
        **more: Any,
    ) -> None:
        self._arguments: dict[str, Any] = {"unary": unary or {}, "streams": streams or {}, "limits": limits, **more}
        self._ssl = ssl
        self._unix = unix
        self._grace_s = grace_s
        self.port = port
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(LOOPS[loop],))
        self.errors: list[dict[str, Any]] = []
        """What the loop's exception handler was told: the test fails for it."""

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.result(DEADLINE_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        if kind is None:
            assert not self.errors, self.errors

    def call(self, function: Callable[[], Result]) -> Result:
        """Run on the server's loop, give its result."""

        async def run() -> Result:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(DEADLINE_S)

    def wait(self, condition: Callable[[], bool]) -> None:
        """Until the condition holds, as seen on the server's loop."""

        async def poll() -> None:
            while not condition():
                await asyncio.sleep(0.005)

        asyncio.run_coroutine_threadsafe(asyncio.wait_for(poll(), DEADLINE_S), self.loop).result(DEADLINE_S + 1)

    def shutdown(self, grace_s: float) -> "Future[None]":
        """Begin the server's graceful end."""
        return asyncio.run_coroutine_threadsafe(self.server.shutdown(grace_s), self.loop)

    def _run(self, factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self._stop = asyncio.Event()
        try:
            self.server = Server(**self._arguments)
            if self._unix is not None:
                listener = await self.loop.create_unix_server(self.server.protocol_factory, self._unix, ssl=self._ssl)
            else:
                listener = await self.loop.create_server(
                    self.server.protocol_factory, "127.0.0.1", self.port, ssl=self._ssl
                )
                self.port = listener.sockets[0].getsockname()[1]
        except BaseException as error:
            self._started.set_exception(error)
            return
        self._started.set_result(None)
        await self._stop.wait()
        listener.close()
        await self.server.shutdown(self._grace_s)
        await listener.wait_closed()
