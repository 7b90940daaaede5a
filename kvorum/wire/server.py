"""The asyncio server: one listener's connections, plain or TLS, gRPC and HTTP/1.1 on one port.

    server = Server(unary={"/package.Service/Method": handler}, streams={}, limits=ServerLimits())
    listener = await loop.create_server(server.protocol_factory, sock=sock, ssl=context)

Handlers are called inside `data_received`; what they answer goes out with one write per connection at its end, or by
`flush` when they answer later.
"""

import asyncio
import ssl
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

from kvorum.wire import frames
from kvorum.wire.direct import hand_over, plain_descriptor
from kvorum.wire.http1 import Http1Connection, Http1Handler
from kvorum.wire.http2 import Http2Handler
from kvorum.wire.limits import ServerLimits
from kvorum.wire.routes import Route, ServerShared, StreamOpen, UnaryHandler
from kvorum.wire.server_connection import ServerConnection

_TICK_S = 1.0
_LINGER_S = 2.0  # for the peer to read our last words before the socket is closed under it
_WRITE_HIGH = 256 * 1024
_WRITE_LOW = 64 * 1024


class Server:
    """Serves gRPC (and HTTP/1.1, when given a handler) on the listeners its `protocol_factory` is given to."""

    def __init__(
        self,
        *,
        unary: Mapping[str, UnaryHandler],
        streams: Mapping[str, StreamOpen],
        limits: ServerLimits | None = None,
        http1: Http1Handler | None = None,
        http2: Http2Handler | None = None,
    ) -> None:
        """Paths are `/package.Service/Method`. Without `http1` a connection that is not HTTP/2 is closed; without
        `http2` a request on HTTP/2 that is not gRPC is refused."""
        self.http1 = http1
        self.limits = limits if limits is not None else ServerLimits()
        self._shared = ServerShared(dict(unary), dict(streams), self.limits, http2)
        self._loop = asyncio.get_running_loop()
        self._dirty: list[GrpcProtocol] = []
        self._flush_scheduled = False
        self._protocols: set[ServedProtocol] = set()
        self._tick_timer: asyncio.TimerHandle | None = None
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._deadline_at = float("inf")
        self._stopping = False
        self._all_closed: asyncio.Future[None] | None = None
        self.connections_accepted = 0
        self.connections_refused = 0
        self.bytes_received = 0
        self.bytes_sent = 0

    # Counts.

    @property
    def routes(self) -> Mapping[str, Route]:
        """Counts of each method, by path."""
        return self._shared.routes

    @property
    def connections_open(self) -> int:
        return len(self._protocols)

    @property
    def streams_open(self) -> int:
        """Calls that are open now, on all connections."""
        return sum([len(protocol.connection.streams) for protocol in self._grpc_protocols()])

    # Output.

    def protocol_factory(self) -> asyncio.Protocol:
        """For `loop.create_server` and `loop.create_unix_server`."""
        return AcceptedProtocol(self)

    def flush(self) -> None:
        """Write what handlers have answered since. Optional: it happens in the next turn of the loop anyway."""
        dirty = self._dirty
        if dirty:
            self._dirty = []
            for protocol in dirty:
                protocol.write()
        self.watch_deadlines()

    async def shutdown(self, grace_s: float) -> None:
        """Tell clients to go, wait for their calls for up to `grace_s`, then close all. Close the listeners first."""
        self._stopping = True
        for protocol in list(self._protocols):
            protocol.drain()
        if self._protocols:
            self._all_closed = self._loop.create_future()
            await asyncio.wait([self._all_closed], timeout=grace_s)
        for protocol in list(self._protocols):
            protocol.abort()
        if self._protocols:
            if self._all_closed is None or self._all_closed.done():
                self._all_closed = self._loop.create_future()
            await self._all_closed
        for timer in (self._tick_timer, self._deadline_timer):
            if timer is not None:
                timer.cancel()

    # For the protocols.

    @property
    def shared(self) -> ServerShared:
        return self._shared

    def add(self, protocol: "ServedProtocol") -> bool:
        """Register a connection; False when there is no room for it."""
        limit = self.limits.connections
        if self._stopping or (limit is not None and len(self._protocols) >= limit):
            self.connections_refused += 1
            return False
        self.connections_accepted += 1
        self._protocols.add(protocol)
        if self._tick_timer is None:
            self._tick_timer = self._loop.call_later(_TICK_S, self._tick)
        return True

    def replace(self, old: "AcceptedProtocol", new: "ServedProtocol") -> None:
        self._protocols.discard(old)
        self._protocols.add(new)

    def remove(self, protocol: "ServedProtocol") -> None:
        self._protocols.discard(protocol)
        if not self._protocols and self._all_closed is not None and not self._all_closed.done():
            self._all_closed.set_result(None)

    def wake(self, protocol: "GrpcProtocol", connection: ServerConnection) -> None:
        """The protocol's connection has output."""
        self._dirty.append(protocol)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush_soon)

    def watch_deadlines(self) -> None:
        """Set the one timer to the earliest deadline."""
        at = self._shared.deadlines.next_at()
        if at is not None and at < self._deadline_at:
            if self._deadline_timer is not None:
                self._deadline_timer.cancel()
            self._deadline_at = at
            self._deadline_timer = self._loop.call_at(at, self._expire)

    def _flush_soon(self) -> None:
        self._flush_scheduled = False
        self.flush()

    def _expire(self) -> None:
        self._deadline_timer = None
        self._deadline_at = float("inf")
        for call, connection in self._shared.deadlines.expire(self._loop.time()):
            connection.expire(call)
        self.flush()

    def _tick(self) -> None:
        self._tick_timer = None
        now = self._loop.time()
        for protocol in list(self._protocols):
            protocol.tick(now)
        if self._protocols:
            self._tick_timer = self._loop.call_later(_TICK_S, self._tick)

    def _grpc_protocols(self) -> list["GrpcProtocol"]:
        return [protocol for protocol in self._protocols if isinstance(protocol, GrpcProtocol)]


class AcceptedProtocol(asyncio.Protocol):
    """A connection of which not enough is known: HTTP/2 or HTTP/1.1."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._seen = b""
        self._accepted_at = 0.0
        self._added = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's, but have the same methods.
        self._transport = cast(asyncio.Transport, transport)
        self._accepted_at = asyncio.get_running_loop().time()
        self._added = self._server.add(self)
        if not self._added:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        seen = self._seen = self._seen + data
        if not self._added:
            return
        transport = self._transport
        assert transport is not None
        if len(seen) < len(frames.PREFACE) and frames.PREFACE.startswith(seen):
            return
        server = self._server
        protocol: GrpcProtocol | Http1Connection
        if seen.startswith(frames.PREFACE):
            protocol = GrpcProtocol(server, transport, self._accepted_at)
        elif server.http1 is not None:
            protocol = Http1Connection(
                transport,
                server.http1,
                server.limits,
                accepted_at=self._accepted_at,
                peer=peer_name(transport),
                peer_common_name=common_name(transport),
                on_lost=server.remove,
            )
        else:
            transport.abort()
            return
        server.replace(self, protocol)
        transport.set_protocol(protocol)
        protocol.data_received(seen)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._added:
            self._server.remove(self)

    def tick(self, now: float) -> None:
        if now - self._accepted_at > self._server.limits.preface_timeout_s:
            self.abort()

    def drain(self) -> None:
        self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class GrpcProtocol(asyncio.Protocol):
    """An HTTP/2 connection's transport and its core."""

    def __init__(self, server: Server, transport: asyncio.Transport, accepted_at: float) -> None:
        self._server = server
        self._transport = transport
        self._time = asyncio.get_running_loop().time
        self._paused_reading = False
        self._control_backlog = 0
        self._close_by: float | None = None
        transport.set_write_buffer_limits(high=_WRITE_HIGH, low=_WRITE_LOW)
        self._descriptor = plain_descriptor(transport)
        self.connection = ServerConnection(
            server.shared, partial(server.wake, self), accepted_at, peer_name(transport), common_name(transport)
        )

    def data_received(self, data: bytes) -> None:
        server = self._server
        connection = self.connection
        server.bytes_received += len(data)
        connection.receive(data, self._time())
        self.write()
        server.watch_deadlines()

    def pause_writing(self) -> None:
        self.connection.set_congested(True)

    def resume_writing(self) -> None:
        self._control_backlog = 0
        if self._paused_reading:
            self._paused_reading = False
            self._transport.resume_reading()
        self.connection.set_congested(False)
        self.write()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.remove(self)
        self.connection.lost("connection lost" if exc is None else str(exc))
        self._server.flush()

    def write(self) -> None:
        """Give this turn's output to the transport."""
        connection = self.connection
        transport = self._transport
        if transport.is_closing() or self._close_by is not None:
            connection.out.clear()
            connection.dirty = False
            return
        data = connection.take()
        if data:
            self._server.bytes_sent += len(data)
            hand_over(self._descriptor, transport, data)
            if connection.congested:
                self._check_backlog(len(data))
        if connection.rounds and connection.unfinished:
            asyncio.get_running_loop().call_soon(self._next_turn)
        elif connection.closed or (connection.draining and connection.drained):
            self._say_goodbye()

    def tick(self, now: float) -> None:
        if self._close_by is not None:
            if now > self._close_by:
                self._transport.abort()
            return
        self.connection.tick(now)
        self.write()

    def drain(self) -> None:
        self.connection.drain()
        self.write()

    def abort(self) -> None:
        self._transport.abort()

    def _next_turn(self) -> None:
        if not self._transport.is_closing():
            self.connection.next_turn()
            self.write()

    def _check_backlog(self, size: int) -> None:
        """The socket was full before this, or is now: see what piles up."""
        limits = self._server.limits
        if self._transport.get_write_buffer_size() > _WRITE_HIGH + limits.turn_bytes + limits.control_backlog_bytes:
            self._transport.abort()
        elif not self._paused_reading and self.connection.queued_bytes > limits.queued_bytes // 2:
            self._paused_reading = True
            self._transport.pause_reading()

    def _say_goodbye(self) -> None:
        """End our side; the peer gets a moment to read why before the socket goes."""
        if self._close_by is None:
            self._close_by = self._time() + _LINGER_S
            self.connection.lost("connection closed")
            if self._transport.can_write_eof():
                self._transport.write_eof()
            else:
                self._transport.close()


ServedProtocol = AcceptedProtocol | GrpcProtocol | Http1Connection


def peer_name(transport: asyncio.BaseTransport) -> str:
    """Address of the other end: `host:port`, or the path of a unix socket (often empty)."""
    name: Any = transport.get_extra_info("peername")
    if isinstance(name, tuple):
        host, port = name[0], name[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return name if isinstance(name, str) else ""


def common_name(transport: asyncio.BaseTransport) -> str | None:
    """CN of the verified certificate of the other end; None without one."""
    session: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    certificate = session.getpeercert() if session is not None else None
    if not certificate:
        return None
    subject: Any = certificate.get("subject", ())
    for relative_name in subject:
        for key, value in relative_name:
            if key == "commonName":
                return str(value)
    return None
