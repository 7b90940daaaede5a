"""The Watch service of a proxy: clients' streams, and the sessions that serve them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from kvorum.errors import ApiError, Code, Status
from kvorum.wire.calls import Fields
from kvorum.wire.routes import StreamHandler, StreamOpen, UnaryHandler
from proxy.namespaces.namespace import Namespace
from proxy.paths import WATCH
from proxy.tenants.tenant import Tenant
from proxy.upstream.way import CallLater, CallSoon
from proxy.watch.session import Session, Shared, Upstream
from proxy.watch.stream import WatchStream


class Caller(Protocol):
    """What is used of a caller."""

    @property
    def metadata(self) -> Fields: ...

    @property
    def prefix(self) -> bytes: ...

    @property
    def tenant(self) -> Tenant | None: ...


class WatchService:
    """Opens Watch streams. `call_soon` and `call_later` are the loop's."""

    def __init__(
        self,
        upstream: Upstream,
        resolve: Callable[[Any, Any], Caller],
        *,
        call_soon: CallSoon,
        call_later: CallLater,
        now: Callable[[], float],
    ) -> None:
        self.shared = Shared(upstream, call_soon, call_later, now)
        self._resolve = resolve
        self._sessions: dict[Fields, Session] = {}
        self._namespaces: dict[bytes, Namespace] = {}

    def unary(self) -> dict[str, UnaryHandler]:
        """The service has no unary method."""
        return {}

    def streams(self) -> dict[str, StreamOpen]:
        """Handlers of streams by path."""
        return {WATCH: self.open}

    def open(self, wire: Any, head: Any) -> StreamHandler | None:
        """The wire's opener."""
        try:
            caller = self._resolve(wire.connection, head)
        except ApiError as error:
            wire.end(*error.status)
            return None
        session = self._sessions.get(caller.metadata)
        if session is None:
            session = self._sessions[caller.metadata] = Session(self.shared, caller.metadata)
        stream = WatchStream(self, session, wire, self._namespace(caller.prefix), caller.tenant)
        session.streams[stream] = None
        return stream

    def _namespace(self, prefix: bytes) -> Namespace | None:
        """One object for each namespace, so that its watches find each other."""
        if not prefix:
            return None
        namespace = self._namespaces.get(prefix)
        if namespace is None:
            namespace = self._namespaces[prefix] = Namespace(prefix)
        return namespace

    def on_stream_ended(self, stream: WatchStream, session: Session) -> None:
        """A stream is gone; the last one of a session takes it with it."""
        session.remove(stream)
        if not session.streams:
            session.close()
            del self._sessions[session.metadata]

    def stop(self, status: Status) -> None:
        """The proxy stops."""
        for session in list(self._sessions.values()):
            for stream in list(session.streams):
                stream.end(Code(status.code), status.message)

    def move(self) -> None:
        """Another endpoint is in use: the streams go there too."""
        for session in list(self._sessions.values()):
            session.move()

    # figures for the metrics

    @property
    def upstream_watches(self) -> int:
        """Watches at members."""
        return sum(session.upstream_watches for session in self._sessions.values())

    def figures(self) -> dict[str, int]:
        """For the metrics: clients' watches that have no upstream watch of their own, and events given to clients that
        the member did not send once more for them."""
        return {
            "etcd_grpc_proxy_watchers_coalescing_total": max(0, self.shared.watches - self.upstream_watches),
            "etcd_grpc_proxy_events_coalescing_total": self.shared.events_coalesced,
        }
