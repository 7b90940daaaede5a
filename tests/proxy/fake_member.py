"""Members that are this project's own wire, and do as a test tells them."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

import uvloop

from kvorum import errors
from kvorum.log import Level, LogFormat, Logger
from kvorum.wire import grpc
from kvorum.wire.head import Head
from kvorum.wire.limits import ClientLimits
from kvorum.wire.routes import CancelReason
from kvorum.wire.server import GrpcProtocol, Server
from kvorum.wire.server_calls import ServerStream
from kvorum.wire.server_connection import ServerConnection
from proxy.paths import LOCK, OBSERVE, PUT, RANGE, RANGE_STREAM, WATCH
from proxy.upstream.endpoints import Endpoint, Endpoints
from proxy.upstream.upstream import Dialing, Upstream

DEADLINE_S = 30.0
LIMITS = ClientLimits(connect_timeout_s=5.0, backoff_first_s=0.01, backoff_max_s=0.05)


class Fake:
    """A member that does as it is told: `act` says what becomes of a call."""

    def __init__(self) -> None:
        self._sock = reusable(0)  # holds the port, and refuses connections
        self.address = f"127.0.0.1:{self._sock.getsockname()[1]}"
        self.endpoint = Endpoint(self.address, None)
        self.act: Callable[[ServerConnection, int, str, bytes], None] = self.reply
        self.calls: list[str] = []
        self.heads: list[Head] = []
        self.streams: list[ServerStream] = []
        self.ears: list[Ears] = []
        """What has been heard on each stream."""
        self.held: list[tuple[ServerConnection, int]] = []
        self._server: Server | None = None
        self._listener: asyncio.Server | None = None

    def reply(self, connection: ServerConnection, stream_id: int, path: str, message: bytes) -> None:
        connection.reply(stream_id, self.address.encode() + b" " + message)

    def hold(self, connection: ServerConnection, stream_id: int, path: str, message: bytes) -> None:
        self.held.append((connection, stream_id))

    def no_leader(self, connection: ServerConnection, stream_id: int, path: str, message: bytes) -> None:
        connection.fail(stream_id, *errors.NO_LEADER)

    def _on_call(self, connection: ServerConnection, stream_id: int, head: Head, message: bytes) -> None:
        self.calls.append(head.path)
        self.heads.append(head)
        self.act(connection, stream_id, head.path, message)

    def _on_stream(self, stream: ServerStream, head: Head) -> Any:
        self.streams.append(stream)
        self.ears.append(Ears())
        return self.ears[-1]

    async def start(self) -> None:
        self._server = Server(
            unary={RANGE: self._on_call, PUT: self._on_call},
            streams=dict.fromkeys((WATCH, RANGE_STREAM, LOCK, OBSERVE), self._on_stream),
        )
        loop = asyncio.get_running_loop()
        port = self._sock.getsockname()[1]
        self._listener = await loop.create_server(self._server.protocol_factory, sock=reusable(port))

    async def stop(self, grace_s: float = 0.0) -> None:
        if self._listener is not None and self._server is not None:
            self._listener.close()
            await self._server.shutdown(grace_s)
            self._listener = self._server = None

    def close(self) -> None:
        self._sock.close()


class Ears:
    """The client's side of a stream."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.cancelled: CancelReason | None = None
        self.on_room: Callable[[], None] = lambda: None

    def on_message(self, message: bytes) -> None:
        self.messages.append(message)

    def on_half_close(self) -> None: ...

    def on_cancel(self, reason: CancelReason) -> None:
        self.cancelled = reason

    def on_writable(self) -> None:
        self.on_room()


class Told:
    """Where the answer of a call goes."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[tuple[int, str, bytes]] = asyncio.get_running_loop().create_future()

    def __call__(self, code: int, text: str, message: bytes) -> None:
        self.answer.set_result((code, text, message))


class Ended:
    """Where a stream's end goes."""

    def __init__(self) -> None:
        self.end: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        self.messages: list[bytes] = []

    def on_message(self, message: bytes) -> None:
        self.messages.append(message)

    def on_writable(self) -> None: ...

    def on_end(self, code: int, text: str, trailers: grpc.Metadata) -> None:
        self.end.set_result((code, text))


async def ask(
    upstream: Upstream, path: str, message: bytes = b"x", timeout_s: float | None = None
) -> tuple[int, bytes]:
    told = Told()
    upstream.call(path, message, told, None, timeout_s)
    code, text, reply = await told.answer
    return code, reply if not code else text.encode()


def with_members(count: int) -> Callable[[Callable[..., Awaitable[None]]], Callable[[], None]]:
    """Runs a test with that many members and an upstream whose first choice is the first of them."""

    def decorate(test: Callable[..., Awaitable[None]]) -> Callable[[], None]:
        def run() -> None:
            unhandled: list[dict[str, Any]] = []

            async def guarded() -> None:
                asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
                async with asyncio.timeout(DEADLINE_S):
                    members = [Fake() for _ in range(count)]
                    for member in members:
                        await member.start()
                    endpoints = Endpoints([member.endpoint for member in members], lambda found: found[0])
                    upstream = Upstream(endpoints, Dialing(LIMITS), Logger((), Level.ERROR, LogFormat.JSON))
                    try:
                        await test(upstream, *members)
                    finally:
                        await upstream.close()
                        for member in members:
                            await member.stop()
                            member.close()

            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(guarded())
            assert not unhandled

        run.__name__ = test.__name__
        return run

    return decorate


def reusable(port: int) -> socket.socket:
    """A bound socket that does not listen, and shares its port."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    return sock


def lose(connection: ServerConnection) -> None:
    """The member dies: its end of the connection is gone."""
    protocol: GrpcProtocol = cast("partial[None]", connection.wake).args[0]
    protocol.abort()


async def until(condition: Callable[[], bool]) -> None:
    """Some turns of the loop later; the test's own deadline bounds it."""
    while not condition():
        await asyncio.sleep(0.005)
