"""The services of the API, put together around one upstream.

Calls go from a client's connection through its caller's namespace and limits, then the cache and the leased keys, to
the upstream; and back.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from kvorum import errors
from kvorum.log import Logger
from kvorum.wire.routes import StreamOpen, UnaryHandler
from proxy import calls, paths
from proxy.cache.learning import Learner
from proxy.cache.range_cache import RangeCache
from proxy.cache.reads import CachedReads, LearningUpstream
from proxy.cache.shared import open_shared
from proxy.callers import Callers
from proxy.calls import Relays
from proxy.lease.keep_alive import KeepAliveService
from proxy.leasing.guards import LeasingKeys
from proxy.leasing.way import LeasingWay
from proxy.metrics import Figures, Measure, total
from proxy.paths import LEASE_REVOKE
from proxy.registration import MemberList, Registration, Registry, registered_value
from proxy.tenants.service import TenantService
from proxy.tenants.shares import Shares
from proxy.tenants.tenants import Tenants
from proxy.tenants.tokens import Tokens
from proxy.tenants.tracking import Tracking
from proxy.upstream.upstream import Upstream
from proxy.upstream.way import Way
from proxy.watch.service import WatchService
from proxy.worker import Worker, knows_certificates


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
        passed = (
            *paths.WRITES,
            *paths.LEASE,
            *paths.CLUSTER,
            *paths.MAINTENANCE,
            *paths.AUTH,
            paths.UNLOCK,
            *paths.ELECTION,
            paths.HEALTH_CHECK,
        )
        return calls.pass_through(self._upstream.call, self._callers, passed)

    def streams(self) -> dict[str, StreamOpen]:
        return self._relays.of(
            (paths.RANGE_STREAM, paths.SNAPSHOT, paths.LOCK, paths.CAMPAIGN, paths.OBSERVE, paths.HEALTH_WATCH)
        )


class Services:
    """All methods of the API: `unary` and `streams`, by path."""

    def __init__(self, worker: Worker, upstream: Upstream, logger: Logger) -> None:
        config = worker.config
        loop = asyncio.get_running_loop()
        self._worker = worker
        self._upstream = upstream
        self._logger = logger

        # Who calls.
        tenants = tokens = None
        self._shares: Shares | None = None
        if worker.namespaces is not None:
            if worker.run_dir is not None:
                self._shares = Shares(f"{worker.run_dir}/tenants", worker.index, config.workers)
            tenants, tokens = Tenants(loop.time, self._shares), Tokens(upstream)
        self.callers = Callers(os.fsencode(config.namespace), tenants, tokens)

        # What stands before the upstream.
        shared = None
        if worker.run_dir is not None and config.workers > 1:
            shared = open_shared(Path(worker.run_dir) / "seen", worker.index, config.workers)
        self.cache = RangeCache(shared=shared)
        learner = Learner(self.cache)
        self.leasing: LeasingWay | None = None
        if config.leasing_prefix:
            self.leasing = LeasingWay(
                upstream,
                LeasingKeys(os.fsencode(config.namespace), os.fsencode(config.leasing_prefix)),
                now=loop.time,
                call_later=loop.call_later,
                logger=logger,
            )
        way = LearningUpstream(self.leasing or upstream, learner)

        # A later service takes the methods it has from those before it.
        self.relays = Relays(way, self.callers)
        owned = self.leasing.read if self.leasing is not None else None
        reads = CachedReads(way, self.callers, learner, ordered=config.serializable_ordering, owned=owned)
        self.keep_alives = KeepAliveService(
            way, self.callers, now=loop.time, call_soon=loop.call_soon, call_later=loop.call_later
        )
        self.watches = WatchService(
            way, self.callers.resolve, now=loop.time, call_soon=loop.call_soon, call_later=loop.call_later
        )
        upstream.on_change(self.watches.move)
        services: list[Service] = [
            PassThrough(way, self.callers, self.relays),
            reads,
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
        self._measures: list[Measure] = [self.cache.figures, self.watches.figures]
        """What is published beside the wire's figures; every name must be in `metrics.SERIES`."""

        self._registry: Registry | None = None
        self._registration: Registration | None = None
        if config.advertise_client_url:
            services.append(self._member_list())

        tenancy: TenantService | None = None
        if tenants is not None and tokens is not None:
            assert worker.namespaces is not None
            tracking = Tracking(upstream, call_later=loop.call_later, now=loop.time, logger=logger)
            upstream.on_change(tracking.move)
            tenancy = TenantService(
                config.namespaces_file,
                worker.namespaces,
                tenants,
                tokens,
                self.callers,
                upstream,
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

        self.unary: dict[str, UnaryHandler] = {}
        self.streams: dict[str, StreamOpen] = {}
        for service in services:
            self.unary.update(service.unary())
            self.streams.update(service.streams())
        if tenancy is not None:
            self.unary[LEASE_REVOKE] = tenancy.guard_revoke(self.unary[LEASE_REVOKE])

    def start(self) -> None:
        """Begin what goes on by itself: the proxy is about to serve."""
        if self._registry is not None:
            self._registry.start()
        if self._registration is not None:
            self._registration.start()
        if self.leasing is not None:
            self.leasing.start()

    def reload(self) -> None:
        """SIGHUP: read again what may change."""
        for reload in self._at_reload:
            reload()

    def stop(self, left: Callable[[], None]) -> None:
        """End all streams; `left` is called when the proxy has taken its leave of the cluster."""
        for stop in self._at_stop:
            stop()
        if self._registry is not None:
            self._registry.stop()
        if self._registration is not None:
            self._registration.stop(left)
        else:
            left()

    def close(self) -> None:
        """No call is under way any more."""
        if self._shares is not None:
            self._shares.close()

    def figures(self) -> Figures:
        """What the services count."""
        return total([measure() for measure in self._measures])

    def _member_list(self) -> MemberList:
        """Shows this proxy, or all that are registered; the first worker registers for all of them."""
        config = self._worker.config
        name = socket.gethostname()
        later = asyncio.get_running_loop().call_later
        if config.resolver_prefix:
            prefix = os.fsencode(f"{config.namespace}{config.resolver_prefix}/")
            registry = self._registry = Registry(self._upstream, prefix, call_later=later, logger=self._logger)
            self._upstream.on_change(registry.move)
            if self._worker.index == 0:
                registration = self._registration = Registration(
                    self._upstream,
                    prefix + config.advertise_client_url.encode(),
                    registered_value(config.advertise_client_url, name),
                    config.resolver_ttl_s,
                    call_later=later,
                    logger=self._logger,
                )
                registry.on_deleted = registration.on_deleted
                self._upstream.on_change(registration.move)
        return MemberList(self.callers, config.advertise_client_url, name, self._registry)
