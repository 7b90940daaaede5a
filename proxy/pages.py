"""What a proxy serves over plain HTTP: health and metrics, its own and the cluster's (PX23, PX24)."""

from __future__ import annotations

import random
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import orjson

from proxy import health
from proxy.fetch import FetchFailed, fetch
from proxy.upstream.endpoints import Endpoint
from proxy.upstream.upstream import Upstream

TEXT: Final = (b"Content-Type", b"text/plain; charset=utf-8")
METRICS: Final = (b"Content-Type", b"text/plain; version=0.0.4")
JSON: Final = (b"Content-Type", b"application/json")
NO_SNIFF: Final = (b"X-Content-Type-Options", b"nosniff")
HEALTHY: Final = b'{"health":"true","reason":""}'


class Exchange(Protocol):
    """One request and its reply: the wire's, of HTTP/1.1 or HTTP/2."""

    method: str
    target: str

    def respond(self, status: int, headers: Any, body: bytes) -> None:
        """The whole reply."""


class Pages:
    """Serves the pages. `spawn` runs a coroutine; `own_metrics` gives the page /proxy/metrics."""

    def __init__(
        self,
        upstream: Upstream,
        spawn: Callable[[Awaitable[None]], object],
        own_metrics: Callable[[], Awaitable[bytes]],
        tls: Callable[[Endpoint], ssl.SSLContext | None],
    ) -> None:
        self._upstream = upstream
        self._spawn = spawn
        self._own_metrics = own_metrics
        self._tls = tls

    def handle(self, exchange: Exchange) -> None:
        """Serve one request."""
        try:
            path = urlsplit(exchange.target).path
        except ValueError:
            path = ""
        if path not in ("/metrics", "/health", "/proxy/metrics", "/proxy/health"):
            exchange.respond(404, (TEXT, NO_SNIFF), b"404 page not found\n")
        elif exchange.method not in ("GET", "HEAD"):
            headers = (TEXT, NO_SNIFF, (b"Allow", b"GET"))
            exchange.respond(405, headers, b"Method Not Allowed\n")
        elif path == "/health":
            health.check_get(self._upstream, lambda reason: _say_health(exchange, reason))
        elif path == "/proxy/health":
            health.check_all(self._upstream, lambda reason: _say_health(exchange, reason))
        elif path == "/proxy/metrics":
            self._spawn(self._say_own_metrics(exchange))
        else:
            self._spawn(self._say_member_metrics(exchange))

    async def _say_own_metrics(self, exchange: Exchange) -> None:
        exchange.respond(200, (METRICS,), await self._own_metrics())

    async def _say_member_metrics(self, exchange: Exchange) -> None:
        """The page of one member, whichever answers first when asked in a random order."""
        endpoints = self._upstream.endpoints.all
        random.shuffle(endpoints)
        for endpoint in endpoints:
            try:
                page = await fetch(endpoint, "/metrics", self._tls(endpoint))
            except FetchFailed:
                continue
            exchange.respond(200, (METRICS,), page)
            return
        exchange.respond(500, (TEXT, NO_SNIFF), b"Internal server error\n")


def _say_health(exchange: Exchange, reason: str | None) -> None:
    if reason is None:
        exchange.respond(200, (JSON,), HEALTHY)
    else:
        exchange.respond(503, (JSON,), orjson.dumps({"health": "false", "reason": reason}))
