"""HTTP requests on HTTP/2: what is not gRPC on a listener with TLS, where browsers and curl choose HTTP/2 themselves.

The exchange has what `Http1Exchange` has, so that one handler serves both; the core's streams carry it.
"""

from collections.abc import Callable, Sequence
from email.utils import formatdate
from typing import TYPE_CHECKING, Final, Protocol

from kvorum.wire import frames, hpack
from kvorum.wire.flow import Stream
from kvorum.wire.frames import ErrorCode
from kvorum.wire.head import HttpRequest
from kvorum.wire.routes import CancelReason

if TYPE_CHECKING:
    import asyncio

    from kvorum.wire.server_connection import ServerConnection

Headers = Sequence[tuple[bytes, bytes]]

_CONNECTION_FIELDS: Final = frozenset((b"connection", b"keep-alive", b"transfer-encoding", b"upgrade"))
"""What a handler may say to HTTP/1.1, and nobody in HTTP/2 (RFC 9113, section 8.2.2)."""


class Http2Handler(Protocol):
    """What serves the requests."""

    def handle(self, exchange: "Http2Exchange") -> None:
        """A request's headers have arrived. The handler answers now or later; called once per request."""


class HeldBody:
    """Parts of a body that nobody wants yet; a stream's window bounds them."""

    __slots__ = ("held_bytes", "parts")

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.held_bytes = 0


class Http2Exchange(Stream):
    """One request and its reply; see `Http1Exchange`. The stream is not read before `stream_body`."""

    __slots__ = (
        "_connection",
        "_on_chunk",
        "_on_end",
        "headers",
        "method",
        "on_disconnect",
        "on_writable",
        "reader",
        "slot",
        "started",
        "target",
    )

    def __init__(self, connection: "ServerConnection", stream_id: int, request: HttpRequest) -> None:
        super().__init__(stream_id, connection.peer_initial_window, connection.limits.stream_window_bytes)
        self._connection = connection
        self.method = request.method.decode("latin-1")
        self.target = request.target.decode("latin-1")
        self.headers: list[tuple[bytes, bytes]] = list(request.fields)
        """Names in lower case; `host` is the request's authority."""
        self.on_disconnect: Callable[[], None] | None = None
        self.on_writable: Callable[[], None] | None = None
        self.started = False
        self.reading = False
        self.reader = HeldBody()
        self.slot = 0  # a deadline is the handler's affair
        self._on_chunk: Callable[[bytes], None] | None = None
        self._on_end: Callable[[], None] | None = None

    @property
    def ended(self) -> bool:
        """Whether the reply is finished, or can no longer be: nothing of the exchange reaches the client now."""
        return self.local_closed or self.tail is not None

    @property
    def peer(self) -> str:
        """The client's address."""
        return self._connection.peer

    @property
    def peer_common_name(self) -> str | None:
        """CN of the verified client certificate."""
        return self._connection.peer_common_name

    @property
    def writable(self) -> bool:
        """False above the high-water mark, or while the socket takes nothing: `on_writable` will be called then."""
        if self.ended or self.throttled:
            return False
        if self._connection.congested:
            self._connection.throttle(self)
            return False
        return True

    def stream_body(self, on_chunk: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        """Call `on_chunk` with each part of the body as it comes, then `on_end`."""
        self._on_chunk = on_chunk
        self._on_end = on_end
        self.resume_reading()

    def pause_reading(self) -> None:
        """Stop the body; at most the stream's window is held meanwhile."""
        self.reading = False

    def resume_reading(self) -> None:
        """Go on with what is held and what comes."""
        if self._on_chunk is not None and not self.reading:
            self.reading = True
            self._give()
            if self.reading and not self.remote_closed:
                self._connection.replenish(self)

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """The whole reply."""
        if not self.ended:
            self.start(status, [*headers, (b"content-length", b"%d" % len(body))])
            self.write(body)
            self.finish()

    def start(self, status: int, headers: Headers) -> None:
        """Begin a reply of unknown length."""
        if self.ended:
            return
        assert not self.started
        self.started = True
        fields = [(b":status", b"%d" % status), (b"date", formatdate(usegmt=True).encode())]
        fields += [(name.lower(), value) for name, value in headers if name.lower() not in _CONNECTION_FIELDS]
        self._connection.send_http_headers(self, hpack.encode_stateless(fields))

    def write(self, chunk: bytes) -> None:
        """One part of the body, sent at once."""
        if self.ended or not chunk or self.method == "HEAD":
            return
        connection = self._connection
        if self.queued_bytes and self.queued_bytes + len(chunk) > connection.limits.stream_queue_bytes:
            self._abort()
        else:
            connection.send_data(self, chunk)

    def finish(self) -> None:
        """End a reply that `start` began."""
        if not self.ended:
            self._release()
            self._connection.send_tail(self, frames.head(frames.DATA, frames.END_STREAM, self.id, 0))

    def switch(self, _headers: Headers, _protocol: "asyncio.Protocol") -> bool:
        """Never: HTTP/2 has no upgrade, and a WebSocket over it (RFC 8441) is not offered."""
        return False

    # For the connection.

    def on_data(self, connection: "ServerConnection", data: bytes, start: int, end: int, end_stream: bool) -> None:
        if start == end or self.ended:
            pass
        elif self.reading and not self.reader.parts and self._on_chunk is not None:
            self._on_chunk(data[start:end])
        else:
            self.reader.parts.append(data[start:end])
            self.reader.held_bytes += end - start
            connection.unfinished_bytes += end - start
            if connection.unfinished_bytes > connection.limits.unfinished_bytes:
                self._abort()
        if end_stream:
            self._give()

    def on_end_without_data(self, connection: "ServerConnection") -> None:
        """END_STREAM came with headers or trailers."""
        self._give()

    def on_gone(self, connection: "ServerConnection", reason: CancelReason) -> None:
        on_disconnect = self.on_disconnect
        self._release()
        if on_disconnect is not None:
            on_disconnect()

    def _give(self) -> None:
        """Hand over what is held, then the end."""
        held = self.reader
        while self.reading and held.parts and self._on_chunk is not None:
            part = held.parts.pop(0)
            held.held_bytes -= len(part)
            self._connection.unfinished_bytes -= len(part)
            self._on_chunk(part)
        if self.reading and self.remote_closed and not held.parts:
            on_end, self._on_chunk, self._on_end = self._on_end, None, None
            if on_end is not None:
                on_end()

    def _abort(self) -> None:
        """The client sends or leaves unread more than we hold."""
        on_disconnect = self.on_disconnect
        self._release()
        self._connection.reset_http(self, ErrorCode.ENHANCE_YOUR_CALM)
        if on_disconnect is not None:
            on_disconnect()

    def _release(self) -> None:
        self.on_disconnect = self.on_writable = self._on_chunk = self._on_end = None
