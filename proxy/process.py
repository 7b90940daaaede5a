"""One worker: the shell that owns the loop and the sockets around the services."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol

import uvloop

from kvorum import malloc
from kvorum.log import Logger
from kvorum.wire.limits import ClientLimits, ServerLimits
from kvorum.wire.server import Server
from proxy import metrics
from proxy.config import Config
from proxy.listeners import BACKLOG, Place
from proxy.metrics import Figures
from proxy.pages import Pages
from proxy.services import Services
from proxy.siblings import Siblings
from proxy.tls import listen_context, upstream_context
from proxy.upstream.endpoints import Endpoint, Endpoints
from proxy.upstream.probes import Probes
from proxy.upstream.sync import Sync
from proxy.upstream.upstream import Dialing, Upstream
from proxy.worker import Worker

GRPC_OVERHEAD_BYTES: Final = 512 * 1024
"""How much larger than a request a gRPC message may be before the wire itself refuses it, as at a member (P4, G1)."""

DRAIN_S: Final = 5.0
"""How long running calls are awaited at a stop."""

CONNECT_TIMEOUT_S: Final = 5.0
BACKOFF_MAX_S: Final = 1.0
"""The proxy stands near its members and speaks for many: it asks more often than one client would."""

WAITING_CALLS: Final = 100_000
"""Calls of all clients that wait while no member can be reached, each for `PATIENCE_S` at most."""


class Proxy:
    """One worker: listeners and pages on one side, an upstream on the other, the services between them."""

    def __init__(self, worker: Worker, logger: Logger) -> None:
        config = self._config = worker.config
        self._worker = worker
        self._logger = logger
        self._loop = asyncio.get_running_loop()
        self._listen_tls = listen_context(config.listen_tls) if config.listen_tls is not None else None
        self._fetch_tls = upstream_context(config.upstream_tls, alpn=("http/1.1",))
        self._tasks: set[asyncio.Task[None]] = set()
        self._rendering = asyncio.Lock()
        self._listeners: list[asyncio.Server] = []

        # The way up.
        self.upstream = Upstream(Endpoints(config.endpoints, random.choice), dialing(config), logger)
        self._probes = Probes(self.upstream)
        self._sync: Sync | None = None
        if config.endpoints_auto_sync_interval_s > 0:
            self._sync = Sync(self.upstream, config.endpoints_auto_sync_interval_s, logger)

        self.services = Services(worker, self.upstream, logger)
        self._siblings = Siblings(worker.run_dir, worker.index, config.workers, self.figures)
        pages = Pages(self.upstream, self._spawn, self._own_metrics, self._tls_of)
        limits = server_limits(config)
        # Only over TLS do browsers and curl speak HTTP/2 that is not gRPC (HT21).
        http2 = pages if self._listen_tls is not None else None
        self.server = Server(
            unary=self.services.unary, streams=self.services.streams, limits=limits, http1=pages, http2=http2
        )
        self._metrics_server = Server(unary={}, streams={}, limits=limits, http1=pages, http2=pages)

    # For the worker's run.

    async def listen(self) -> None:
        """Serve the clients that connect."""
        worker = self._worker
        self.services.start()
        await self._siblings.open()
        await self._open(self.server, worker.clients, self._listen_tls)
        if worker.metrics is not None:
            url = worker.config.metrics_addr
            assert url is not None
            await self._open(self._metrics_server, worker.metrics, self._listen_tls if url.is_secure else None)

    def reload(self) -> None:
        """SIGHUP: read again what may change."""
        self.services.reload()

    async def stop(self) -> None:
        """No new connections; streams end at once, other calls are awaited for a while."""
        for listener in self._listeners:
            listener.close()
        self._worker.clients.close()
        if self._worker.metrics is not None:
            self._worker.metrics.close()
        self._probes.close()
        if self._sync is not None:
            self._sync.close()
        self._siblings.close()
        left = asyncio.Event()
        self.services.stop(left.set)
        await asyncio.gather(self.server.shutdown(DRAIN_S), self._metrics_server.shutdown(DRAIN_S), left.wait())
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.upstream.close()
        self.services.close()

    def figures(self) -> Figures:
        """All that this worker counts."""
        return metrics.total([self._own_figures(), self.services.figures(), metrics.grpc_figures(self.server.routes)])

    # Within.

    async def _open(self, server: Server, place: Place, tls: ssl.SSLContext | None) -> None:
        sock = place.socket()
        if sock.family == socket.AF_UNIX:
            opened = self._loop.create_unix_server(server.protocol_factory, sock=sock, ssl=tls, backlog=BACKLOG)
        else:
            opened = self._loop.create_server(server.protocol_factory, sock=sock, ssl=tls, backlog=BACKLOG)
        self._listeners.append(await opened)

    def _own_figures(self) -> Figures:
        return {
            "kvorum_grpc_proxy_endpoint_changes_total": self.upstream.changes,
            "kvorum_grpc_proxy_endpoint_serving": int(self.upstream.serving),
            "kvorum_grpc_proxy_client_connections": self.server.connections_open,
            "kvorum_grpc_proxy_client_received_bytes_total": self.server.bytes_received,
            "kvorum_grpc_proxy_client_sent_bytes_total": self.server.bytes_sent,
        }

    async def _own_metrics(self) -> bytes:
        figures = await self._siblings.figures()
        async with self._rendering:
            return await self._loop.run_in_executor(None, _render, figures)

    def _tls_of(self, endpoint: Endpoint) -> ssl.SSLContext | None:
        wanted = self._config.upstream_tls.wanted if endpoint.secure is None else endpoint.secure
        return self._fetch_tls if wanted else None

    def _spawn(self, work: Awaitable[None]) -> None:
        assert isinstance(work, Coroutine)
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._loop.call_exception_handler({"message": "a task failed", "exception": error})


def _render(figures: Figures) -> bytes:
    from proxy.metrics_page import render  # with a large library

    return render(figures)


def server_limits(config: Config) -> ServerLimits:
    """The wire's limits towards clients."""
    return ServerLimits(
        message_bytes=config.max_send_bytes + GRPC_OVERHEAD_BYTES,
        max_concurrent_streams=config.max_concurrent_streams,
        keepalive_min_time_s=config.keepalive.min_time_s,
        keepalive_interval_s=config.keepalive.interval_s,
        keepalive_timeout_s=config.keepalive.timeout_s,
    )


def dialing(config: Config) -> Dialing:
    """How members are connected to. Raises StartFailed."""
    limits = ClientLimits(
        message_bytes=config.max_recv_bytes,
        keepalive_interval_s=config.keepalive.dial_time_s,
        keepalive_timeout_s=config.keepalive.dial_timeout_s,
        keepalive_without_streams=config.keepalive.permit_without_stream,
        connect_timeout_s=CONNECT_TIMEOUT_S,
        backoff_max_s=BACKOFF_MAX_S,
        waiting_calls=WAITING_CALLS,
    )
    tls = upstream_context(config.upstream_tls)
    return Dialing(limits, tls if config.upstream_tls.wanted else None, tls)


class Control(Protocol):
    """What tells a worker to stop."""

    def attach(self, stop: Callable[[], None], reload: Callable[[], None]) -> None:
        """The loop runs, the proxy does not serve yet."""

    def ready(self) -> None:
        """The proxy serves."""


def run(worker: Worker, logger: Logger, control: Control) -> None:
    """Run one worker until it is told to stop. Raises what no worker may go on after."""
    malloc.keep_large_buffers()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(worker, logger, control))


async def _run(worker: Worker, logger: Logger, control: Control) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    failures: list[BaseException] = []

    def on_unhandled(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        failures.append(error if isinstance(error, BaseException) else RuntimeError(str(context.get("message"))))
        stopped.set()

    loop.set_exception_handler(on_unhandled)
    proxy = Proxy(worker, logger)
    control.attach(stopped.set, proxy.reload)
    await proxy.listen()
    control.ready()
    # The cores make no cycles, so a collection would only cost time.
    gc.freeze()
    gc.disable()
    await stopped.wait()
    if failures:
        raise failures[0]
    await proxy.stop()
