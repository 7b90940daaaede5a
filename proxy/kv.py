"""The KV service: the caller's namespace and limits, the cache, and the way up."""

from __future__ import annotations

from typing import Final

from kvorum.wire.routes import StreamOpen, UnaryHandler
from proxy.cache.reads import CachedReads
from proxy.callers import Callers
from proxy.calls import Relays, pass_through
from proxy.paths import RANGE_STREAM
from proxy.upstream.way import Way

PATHS: Final = tuple(f"/etcdserverpb.KV/{name}" for name in ("Put", "DeleteRange", "Txn", "Compact"))


class KvService:
    """Reads and writes of keys."""

    def __init__(self, upstream: Way, callers: Callers, relays: Relays, reads: CachedReads) -> None:
        self._upstream = upstream
        self._callers = callers
        self._relays = relays
        self._reads = reads

    def unary(self) -> dict[str, UnaryHandler]:
        return pass_through(self._upstream, self._callers, PATHS) | self._reads.unary()

    def streams(self) -> dict[str, StreamOpen]:
        return self._relays.of((RANGE_STREAM,))
