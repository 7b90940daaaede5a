"""One worker: the shell that owns the loop and the sockets, and puts the services together."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import uvloop

from kvorum import errors, malloc
from kvorum.log import Logger
from kvorum.wire.limits import ClientLimits, ServerLimits
from kvorum.wire.routes import StreamOpen, UnaryHandler
from kvorum.wire.server import Server
from proxy import calls, metrics
from proxy.cache.learning import Learner
from proxy.cache.range_cache import RangeCache
from proxy.cache.reads import CachedReads, LearningUpstream
from proxy.cache.shared import open_shared
from proxy.callers import Callers
from proxy.calls import Relays
from proxy.config import Config, StartFailed
from proxy.kv import KvService
from proxy.lease.keep_alive import KeepAliveService
from proxy.leasing.guards import LeasingKeys
from proxy.leasing.way import LeasingWay
from proxy.listeners import BACKLOG, Place
from proxy.metrics import Figures, Measure
from proxy.pages import Pages
from proxy.registration import MemberList, Registration, Registry, registered_value
from proxy.siblings import Siblings
from proxy.tenants.namespaces_file import NamespacesFile, NamespacesFileError
from proxy.tenants.service import TenantService, read_namespaces_file
from proxy.tenants.shares import Shares
from proxy.tenants.tenant import LEASE_REVOKE
from proxy.tenants.tenants import Tenants
from proxy.tenants.tokens import Tokens
from proxy.tenants.tracking import Tracking
from proxy.tls import listen_context, upstream_context
from proxy.upstream.endpoints import Endpoint, Endpoints
from proxy.upstream.probes import Probes
from proxy.upstream.sync import Sync
from proxy.upstream.upstream import Dialing, Upstream
from proxy.upstream.way import Way
from proxy.watch.service import WatchService

GRPC_OVERHEAD_BYTES: Final = 512 * 1024
"""How much larger than a request a gRPC message may be before the wire itself refuses it, as at a member (P4, G1)."""

DRAIN_S: Final = 5.0
"""How long running calls are awaited at a stop."""

CONNECT_TIMEOUT_S: Final = 5.0
BACKOFF_MAX_S: Final = 1.0
"""The proxy stands near its members and speaks for many: it asks more often than one client would."""

WAITING_CALLS: Final = 100_000
"""Calls of all clients that wait while no member can be reached, each for `PATIENCE_S` at most."""


class Service(Protocol):
    """Some methods of the API."""

    def unary(self) -> dict[str, UnaryHandler]:
        """Handlers by path."""

    def streams(self) -> dict[str, StreamOpen]:
        """Handlers of streams by path."""


class PassThrough:
    """What is passed on as it is."""

    def __init__(self, upstream: Way, callers: Callers, relays: Relays) -> None:
        self._upstream = upstream
        self._callers = callers
        self._relays = relays

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
        return self._relays.of((calls.SNAPSHOT, calls.LOCK, calls.CAMPAIGN, calls.OBSERVE, calls.HEALTH_WATCH))


@dataclass(frozen=True, slots=True)
class Worker:
    """What one of the processes that serve together is given."""

    config: Config
    index: int
    run_dir: str | None
    """The directory in which workers meet; None when there is one."""
    clients: Place
    metrics: Place | None
    namespaces: NamespacesFile | None = None
    """What the namespaces file says, as it was when it could be used last."""


class Proxy:
    """The services of one worker, around one upstream."""

    def __init__(self, worker: Worker, logger: Logger) -> None:
        config = self._config = worker.config
        self._worker = worker
        self._logger = logger
        loop = self._loop = asyncio.get_running_loop()
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

        # The services. A later one takes the methods it has from those before it.
        tenants = tokens = None
        self._shares: Shares | None = None
        if worker.namespaces is not None:
            if worker.run_dir is not None:
                self._shares = Shares(f"{worker.run_dir}/tenants", worker.index, config.workers)
            tenants, tokens = Tenants(loop.time, self._shares), Tokens(self.upstream)
        self.callers = Callers(config.namespace.encode(), tenants, tokens)
        shared = None
        if worker.run_dir is not None and config.workers > 1:
            shared = open_shared(Path(worker.run_dir) / "seen", worker.index, config.workers)
        self.cache = RangeCache(shared=shared)
        learner = Learner(self.cache)
        self.leasing: LeasingWay | None = None
        if config.leasing_prefix:
            self.leasing = LeasingWay(
                self.upstream,
                LeasingKeys(config.namespace.encode(), config.leasing_prefix.encode()),
                now=loop.time,
                call_later=loop.call_later,
                logger=logger,
            )
        way = LearningUpstream(self.leasing or self.upstream, learner)
        self.relays = Relays(way, self.callers)
        owned = self.leasing.read if self.leasing is not None else None
        reads = CachedReads(way, self.callers, learner, ordered=config.serializable_ordering, owned=owned)
        self.keep_alives = KeepAliveService(
            way, self.callers, now=loop.time, call_soon=loop.call_soon, call_later=loop.call_later
        )
        self.watches = WatchService(
            way, self.callers.resolve, now=loop.time, call_soon=loop.call_soon, call_later=loop.call_later
        )
        services: list[Service] = [
            PassThrough(way, self.callers, self.relays),
            KvService(way, self.callers, self.relays, reads),
            self.keep_alives,
            self.watches,
        ]
        self._at_stop: list[Callable[[], None]] = [
            lambda: self.relays.stop(errors.STOPPED),
            lambda: self.keep_alives.stop(errors.STOPPED),
            lambda: self.watches.stop(errors.STOPPED),
        ]
        """Streams have no end of their own: told at a stop, their clients begin again elsewhere."""
        self._at_reload: list[Callable[[], None]] = []
        """Told of SIGHUP."""
        self._measures: list[Measure] = [self._own_figures, self.cache.figures, self.watches.figures]
        """What is published beside the wire's figures; every name must be in `metrics.SERIES`."""

        self._registry: Registry | None = None
        self._registration: Registration | None = None
        if config.advertise_client_url:
            services.append(self._member_list())

        tenancy: TenantService | None = None
        if tenants is not None and tokens is not None:
            assert worker.namespaces is not None
            tracking = Tracking(self.upstream, call_later=loop.call_later, now=loop.time, logger=logger)
            self.upstream.on_change(tracking.move)
            tenancy = TenantService(
                config.namespaces_file,
                worker.namespaces,
                tenants,
                tokens,
                self.callers,
                self.upstream,
                tracking,
                logger,
                knows_certificates=knows_certificates(config),
                is_first_worker=worker.index == 0,
            )
            services.append(tenancy)
            self._at_stop.append(tenancy.stop)
            self._at_reload.append(tenancy.reload)
            self._measures.append(tenancy.figures)

        if self.leasing is not None:
            self._at_stop.append(self.leasing.stop)
            self._measures.append(self.leasing.figures)

        unary: dict[str, UnaryHandler] = {}
        streams: dict[str, StreamOpen] = {}
        for service in services:
            unary.update(service.unary())
            streams.update(service.streams())
        if tenancy is not None:
            unary[LEASE_REVOKE] = tenancy.guard_revoke(unary[LEASE_REVOKE])
        self._siblings = Siblings(worker.run_dir, worker.index, config.workers, self.figures)
        pages = Pages(self.upstream, self._spawn, self._own_metrics, self._tls_of)
        limits = server_limits(config)
        # Only over TLS do browsers and curl speak HTTP/2 that is not gRPC (HT21).
        http2 = pages if self._listen_tls is not None else None
        self.server = Server(unary=unary, streams=streams, limits=limits, http1=pages, http2=http2)
        self._metrics_server = Server(unary={}, streams={}, limits=limits, http1=pages, http2=pages)

    # For the worker's run.

    async def listen(self) -> None:
        """Serve the clients that connect."""
        worker = self._worker
        if self._registry is not None:
            self._registry.start()
        if self._registration is not None:
            self._registration.start()
        if self.leasing is not None:
            self.leasing.start()
        await self._siblings.open()
        await self._open(self.server, worker.clients, self._listen_tls)
        if worker.metrics is not None:
            url = worker.config.metrics_addr
            assert url is not None
            await self._open(self._metrics_server, worker.metrics, self._listen_tls if url.is_secure else None)

    def reload(self) -> None:
        """SIGHUP: read again what may change."""
        for reload in self._at_reload:
            reload()

    async def stop(self) -> None:
        """No new connections; streams end at once, other calls are awaited for a while."""
        for listener in self._listeners:
            listener.close()
        self._worker.clients.close()
        if self._worker.metrics is not None:
            self._worker.metrics.close()
        for stop in self._at_stop:
            stop()
        self._probes.close()
        if self._sync is not None:
            self._sync.close()
        self._siblings.close()
        if self._registry is not None:
            self._registry.stop()
        left = asyncio.Event()
        if self._registration is not None:
            self._registration.stop(left.set)
        else:
            left.set()
        await asyncio.gather(self.server.shutdown(DRAIN_S), self._metrics_server.shutdown(DRAIN_S), left.wait())
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.upstream.close()
        if self._shares is not None:
            self._shares.close()

    def figures(self) -> Figures:
        """All that this worker counts."""
        return metrics.total([measure() for measure in self._measures] + [metrics.grpc_figures(self.server.routes)])

    # Within.

    def _member_list(self) -> MemberList:
        """Shows this proxy, or all that are registered; the first worker registers for all of them."""
        config = self._config
        name = socket.gethostname()
        later = self._loop.call_later
        if config.resolver_prefix:
            prefix = f"{config.namespace}{config.resolver_prefix}/".encode()
            registry = self._registry = Registry(self.upstream, prefix, call_later=later, logger=self._logger)
            self.upstream.on_change(registry.move)
            if self._worker.index == 0:
                registration = self._registration = Registration(
                    self.upstream,
                    prefix + config.advertise_client_url.encode(),
                    registered_value(config.advertise_client_url, name),
                    config.resolver_ttl_s,
                    call_later=later,
                    logger=self._logger,
                )
                registry.on_deleted = registration.on_deleted
                self.upstream.on_change(registration.move)
        return MemberList(self.callers, config.advertise_client_url, name, self._registry)

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


def knows_certificates(config: Config) -> bool:
    """Whether each client has shown a certificate of an authority that is trusted."""
    return config.listen_tls is not None and bool(config.listen_tls.trusted_ca_file)


def namespaces_file(config: Config) -> NamespacesFile | None:
    """What `--namespaces-file` says. Raises StartFailed."""
    if not config.namespaces_file:
        return None
    try:
        return read_namespaces_file(config.namespaces_file, knows_certificates=knows_certificates(config))
    except NamespacesFileError as error:
        raise StartFailed(str(error)) from None


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
