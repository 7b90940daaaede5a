"""One worker: the shell that owns the loop and the sockets, and puts the services together."""

from __future__ import annotations

import asyncio
import gc
import random
import signal
import socket
from collections.abc import Callable
from typing import Final, Protocol

import uvloop

from kvorum import errors, malloc
from kvorum.log import Logger
from kvorum.urls import split_host_port
from kvorum.wire.limits import ClientLimits, ServerLimits
from kvorum.wire.routes import StreamOpen, UnaryHandler
from kvorum.wire.server import Server
from proxy import calls
from proxy.callers import Callers
from proxy.config import Config
from proxy.kv import KvService
from proxy.lease.keep_alive import KeepAliveService
from proxy.upstream.endpoints import Endpoints
from proxy.upstream.upstream import Dialing, Upstream

BACKLOG: Final = 4096
DRAIN_S: Final = 5.0
"""How long running calls are awaited at a stop."""

CONNECT_TIMEOUT_S: Final = 5.0
BACKOFF_MAX_S: Final = 1.0
"""The proxy stands near its members and speaks for many: it asks more often than one client would."""


class Service(Protocol):
    """Some methods of the API."""

    def unary(self) -> dict[str, UnaryHandler]:
        """Handlers by path."""

    def streams(self) -> dict[str, StreamOpen]:
        """Handlers of streams by path."""


class PassThrough:
    """What is passed on as it is."""

    def __init__(self, upstream: Upstream, callers: Callers) -> None:
        self._upstream = upstream
        self._callers = callers

    def unary(self) -> dict[str, UnaryHandler]:
        paths = (
            *calls.LEASE,
            *calls.CLUSTER,
            *calls.MAINTENANCE,
            *calls.AUTH,
            calls.UNLOCK,
            *calls.ELECTION,
            calls.HEALTH_CHECK,
        )
        return calls.pass_through(self._upstream, self._callers, paths)

    def streams(self) -> dict[str, StreamOpen]:
        paths = (calls.SNAPSHOT, calls.LOCK, calls.CAMPAIGN, calls.OBSERVE, calls.HEALTH_WATCH)
        return calls.relays(self._upstream, self._callers, paths)


class Proxy:
    """The services of one worker, around one upstream."""

    def __init__(self, config: Config, logger: Logger) -> None:
        self._config = config
        self._logger = logger
        self._loop = asyncio.get_running_loop()
        self.upstream = Upstream(Endpoints(config.endpoints, random.choice), dialing(config), logger)
        self.callers = Callers(config.namespace.encode())
        self.keep_alives = KeepAliveService(
            self.upstream,
            self.callers,
            now=self._loop.time,
            call_soon=self._loop.call_soon,
            call_later=self._loop.call_later,
        )
        # A later service takes the methods it has from those before it.
        services: list[Service] = [
            PassThrough(self.upstream, self.callers),
            KvService(self.upstream, self.callers),
            self.keep_alives,
        ]
        unary: dict[str, UnaryHandler] = {}
        streams: dict[str, StreamOpen] = {}
        for service in services:
            unary.update(service.unary())
            streams.update(service.streams())
        self.server = Server(unary=unary, streams=streams, limits=server_limits(config))
        self._listeners: list[asyncio.Server] = []

    async def listen(self, sock: socket.socket) -> None:
        """Serve the clients that connect to this socket."""
        factory = self.server.protocol_factory
        self._listeners.append(await self._loop.create_server(factory, sock=sock, backlog=BACKLOG))

    async def stop(self) -> None:
        """No new connections; calls under way are awaited for a while."""
        for listener in self._listeners:
            listener.close()
        self.keep_alives.stop(errors.STOPPED)
        await self.server.shutdown(DRAIN_S)
        await self.upstream.close()


def server_limits(config: Config) -> ServerLimits:
    """The wire's limits towards clients."""
    return ServerLimits()


def dialing(config: Config) -> Dialing:
    """How members are connected to."""
    limits = ClientLimits(
        connect_timeout_s=CONNECT_TIMEOUT_S,
        backoff_max_s=BACKOFF_MAX_S,
    )
    return Dialing(limits)


def bind(address: str, *, reuse_port: bool) -> socket.socket:
    """A socket bound to `host:port`. Raises OSError."""
    parts = split_host_port(address)
    assert parts is not None
    host, port = parts
    host = "127.0.0.1" if host == "localhost" else host
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, int(port)))
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def run(config: Config, logger: Logger) -> int:
    """Run one worker until it is told to stop; its exit code."""
    malloc.keep_large_buffers()
    sock = bind(config.listen_addr, reuse_port=config.workers > 1)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(config, logger, sock, lambda: None))


async def _run(config: Config, logger: Logger, sock: socket.socket, on_ready: Callable[[], None]) -> int:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    failures: list[BaseException] = []

    def on_unhandled(_loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        error = context.get("exception")
        failures.append(error if isinstance(error, BaseException) else RuntimeError(str(context.get("message"))))
        stopped.set()

    loop.set_exception_handler(on_unhandled)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    proxy = Proxy(config, logger)
    await proxy.listen(sock)
    logger.info("started gRPC proxy", address=config.listen_addr)
    on_ready()
    # The cores make no cycles, so a collection would only cost time.
    gc.freeze()
    gc.disable()
    await stopped.wait()
    if failures:
        raise failures[0]
    await proxy.stop()
    return 0
