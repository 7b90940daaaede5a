"""HTTP/1.1 on the same port as gRPC, parsed by h11: JSON, health and metrics are written against this.

One exchange at a time per connection; pipelined requests wait for it. An exchange's body and reply are independent:
a reply may begin before the body has ended, and stay open after it.
"""

import asyncio
from collections.abc import Callable, Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import Protocol

import h11

from kvorum.wire.limits import ServerLimits

Headers = Sequence[tuple[bytes, bytes]]

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_WRITE_HIGH = 256 * 1024
_WRITE_LOW = 64 * 1024
_PIPELINED_BYTES = 64 * 1024  # held while an exchange is open; then the socket is not read
_CLOSE_LINGER_S = 2.0  # for the client to read the reply to a request that was not read to its end


class Http1Handler(Protocol):
    """What serves the requests."""

    def handle(self, exchange: "Http1Exchange") -> None:
        """A request's headers have arrived. The handler answers now or later; called once per request."""


class Http1Exchange:
    """One request and its reply.

    Callbacks are plain attributes: `on_disconnect` is called once when the client goes before the reply is finished,
    `on_writable` when `writable` turned true again. What is written after the end is dropped.
    """

    __slots__ = (
        "_connection",
        "_on_body",
        "_on_chunk",
        "_on_end",
        "_whole",
        "ended",
        "has_body",
        "headers",
        "method",
        "on_disconnect",
        "on_writable",
        "started",
        "target",
    )

    def __init__(self, connection: "Http1Connection", request: h11.Request) -> None:
        self._connection: Http1Connection | None = connection
        self.method = request.method.decode("ascii")
        self.target = request.target.decode("latin-1")
        """Path and query as they came."""
        self.headers: list[tuple[bytes, bytes]] = list(request.headers)
        """Names in lower case."""
        names = dict(self.headers)
        self.has_body = b"transfer-encoding" in names or names.get(b"content-length", b"0") != b"0"
        self.on_disconnect: Callable[[], None] | None = None
        self.on_writable: Callable[[], None] | None = None
        self.started = False
        """Whether a status has been sent."""
        self.ended = False
        """Whether the reply is finished, or can no longer be: nothing of the exchange reaches the client now."""
        self._whole: bytearray | None = None
        self._on_body: Callable[[bytes], None] | None = None
        self._on_chunk: Callable[[bytes], None] | None = None
        self._on_end: Callable[[], None] | None = None

    @property
    def peer(self) -> str:
        """The client's address."""
        return self._connection.peer if self._connection is not None else ""

    @property
    def peer_common_name(self) -> str | None:
        """CN of the verified client certificate."""
        return self._connection.peer_common_name if self._connection is not None else None

    @property
    def writable(self) -> bool:
        """False while more than 256 KiB wait for the socket."""
        return self._connection is not None and not self._connection.congested

    def header(self, name: bytes) -> bytes | None:
        """First value of a header, by its lower-case name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def read_body(self, done: Callable[[bytes], None]) -> None:
        """Call `done` with the whole body; a body above the limit is answered with 413 and `done` is not called."""
        self._whole = bytearray()
        self._on_body = done
        if self._connection is not None:
            self._connection.want_body()

    def stream_body(self, on_chunk: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        """Call `on_chunk` with each part of the body as it comes, then `on_end`."""
        self._on_chunk = on_chunk
        self._on_end = on_end
        if self._connection is not None:
            self._connection.want_body()

    def pause_reading(self) -> None:
        """Stop the body; the socket is not read meanwhile."""
        if self._connection is not None:
            self._connection.pause(body=True)

    def resume_reading(self) -> None:
        if self._connection is not None:
            self._connection.resume(body=True)

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """The whole reply."""
        if self.ended or self._connection is None:
            return
        assert not self.started
        self.started = True
        self._connection.send_head(status, [*headers, (b"content-length", b"%d" % len(body))])
        self._connection.send_chunk(body)
        self._finish()

    def start(self, status: int, headers: Headers) -> None:
        """Begin a reply of unknown length: chunked, or until close for an HTTP/1.0 client."""
        if self.ended or self._connection is None:
            return
        assert not self.started
        self.started = True
        self._connection.send_head(status, headers)

    def write(self, chunk: bytes) -> None:
        """One part of the body, sent at once."""
        if not self.ended and self._connection is not None:
            self._connection.send_chunk(chunk)

    def finish(self) -> None:
        """End a reply that `start` began."""
        if not self.ended:
            self._finish()

    def switch(self, headers: Headers, protocol: asyncio.Protocol) -> bool:
        """Answer 101 with these headers and hand the transport to another protocol (WebSocket, for one); its
        `connection_made` is called first. False, and nothing done, when the request does not ask for an upgrade or
        has a body, or the client is gone."""
        connection = self._connection
        if connection is None or self.has_body or self.header(b"upgrade") is None:
            return False
        assert not self.started
        self.started = True
        self._release()
        connection.switch(headers, protocol)
        return True

    def _finish(self) -> None:
        connection = self._connection
        self._release()
        if connection is not None:
            connection.finish()

    # For the connection.

    @property
    def reads_body(self) -> bool:
        return self._on_body is not None or self._on_chunk is not None

    def feed(self, chunk: bytes, limit_bytes: int) -> bool:
        """A part of the body; False when the body is too large."""
        if self._on_chunk is not None:
            self._on_chunk(chunk)
        elif self._whole is not None:
            if len(self._whole) + len(chunk) > limit_bytes:
                return False
            self._whole += chunk
        return True

    def end_body(self) -> None:
        on_body, on_end, whole = self._on_body, self._on_end, self._whole
        self._on_body = self._on_chunk = self._on_end = self._whole = None
        if on_body is not None and whole is not None:
            on_body(bytes(whole))
        elif on_end is not None:
            on_end()

    def lose(self) -> None:
        """The client is gone."""
        on_disconnect = self.on_disconnect
        if not self.ended:
            self._release()
            if on_disconnect is not None:
                on_disconnect()

    def _release(self) -> None:
        self.ended = True
        self._connection = None
        self.on_disconnect = self.on_writable = None
        self._on_body = self._on_chunk = self._on_end = self._whole = None


class Http1Connection(asyncio.Protocol):
    """The transport's protocol once the first bytes are not HTTP/2's."""

    def __init__(
        self,
        transport: asyncio.Transport,
        handler: Http1Handler,
        limits: ServerLimits,
        *,
        accepted_at: float,
        peer: str,
        peer_common_name: str | None,
        on_lost: Callable[["Http1Connection"], None],
    ) -> None:
        self._transport = transport
        self._handler = handler
        self._limits = limits
        self._on_lost: Callable[[Http1Connection], None] | None = on_lost
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.http1_header_bytes)
        self._exchange: Http1Exchange | None = None
        self._pumping = False
        self._paused = {"body": False, "pipeline": False}
        self._discarded_bytes = 0
        self._draining = False
        self._close_by: float | None = None
        self._time = asyncio.get_running_loop().time
        self._waiting_since = accepted_at
        """When the client last moved, while it is the client's turn."""
        self._first = True
        self._successor: asyncio.Protocol | None = None
        self.congested = False
        self.peer = peer
        self.peer_common_name = peer_common_name
        transport.set_write_buffer_limits(high=_WRITE_HIGH, low=_WRITE_LOW)

    # From the transport.

    def data_received(self, data: bytes) -> None:
        if self._successor is not None:
            self._successor.data_received(data)
            return
        if self._close_by is not None:
            return
        if self._waits_for_body():
            self._waiting_since = self._time()
        self._receive(data)

    def eof_received(self) -> bool:
        # A client that half-closes after its request may still want the reply; one with a stream open has left.
        if self._successor is not None:
            return bool(self._successor.eof_received())
        exchange = self._exchange
        if exchange is None or exchange.on_disconnect is not None or self._body_is_due():
            return False
        if not self._transport.can_write_eof():
            return False  # TLS has no half-close
        self._draining = True
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.lose()
        successor, self._successor = self._successor, None
        if successor is not None:
            successor.connection_lost(exc)
        on_lost, self._on_lost = self._on_lost, None
        if on_lost is not None:
            on_lost(self)

    def pause_writing(self) -> None:
        self.congested = True
        if self._successor is not None:
            self._successor.pause_writing()

    def resume_writing(self) -> None:
        self.congested = False
        if self._successor is not None:
            self._successor.resume_writing()
        exchange = self._exchange
        if exchange is not None and exchange.on_writable is not None:
            exchange.on_writable()

    # From the server.

    def tick(self, now: float) -> None:
        """Look at the clock; called about once a second."""
        if self._successor is not None:
            return
        if self._close_by is not None:
            if now > self._close_by:
                self._transport.abort()
            return
        if self._exchange is not None and not self._waits_for_body():
            return
        limits = self._limits
        if now - self._waiting_since > (limits.preface_timeout_s if self._first else limits.http1_idle_timeout_s):
            self._transport.abort()

    def drain(self) -> None:
        """Finish the exchange that is open, then close."""
        self._draining = True
        if self._exchange is None and self._successor is None and self._close_by is None:
            self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    # From the exchange.

    def want_body(self) -> None:
        if self._h11.they_are_waiting_for_100_continue:
            self._write(self._h11.send(h11.InformationalResponse(status_code=100, headers=[], reason=_REASONS[100])))
        self._waiting_since = self._time()
        self._pump()

    def send_head(self, status: int, headers: Headers) -> None:
        out = [(b"date", formatdate(usegmt=True).encode()), *headers]
        if self._draining or self._h11.they_are_waiting_for_100_continue:
            out.append((b"connection", b"close"))
        self._write(self._h11.send(h11.Response(status_code=status, headers=out, reason=_REASONS.get(status, b""))))

    def send_chunk(self, chunk: bytes) -> None:
        exchange = self._exchange
        if chunk and exchange is not None and exchange.method != "HEAD":
            self._write(self._h11.send(h11.Data(data=chunk)))
            if self._transport.get_write_buffer_size() > self._limits.stream_queue_bytes:
                self._transport.abort()

    def finish(self) -> None:
        self._write(self._h11.send(h11.EndOfMessage()))
        self._exchange = None
        self._discarded_bytes = 0
        if self._paused["body"]:
            self.resume(body=True)
        self._pump()

    def switch(self, headers: Headers, successor: asyncio.Protocol) -> None:
        connection = self._h11
        self._exchange = None
        while connection.their_state is h11.SEND_BODY:
            connection.next_event()  # the end of the empty body
        reply = h11.InformationalResponse(status_code=101, headers=list(headers), reason=_REASONS[101])
        self._write(connection.send(reply))
        self._successor = successor
        if any(self._paused.values()):  # by what was pipelined behind an earlier request
            self._paused = {"body": False, "pipeline": False}
            self._transport.resume_reading()
        successor.connection_made(self._transport)
        if self.congested:
            successor.pause_writing()
        early = bytes(connection.trailing_data[0])
        if early:
            successor.data_received(early)

    def pause(self, *, body: bool) -> None:
        before = any(self._paused.values())
        self._paused["body" if body else "pipeline"] = True
        if not before and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self, *, body: bool) -> None:
        before = any(self._paused.values())
        self._paused["body" if body else "pipeline"] = False
        if before and not any(self._paused.values()) and not self._transport.is_closing():
            self._transport.resume_reading()
        if body:
            self._waiting_since = self._time()
            self._pump()

    # Within.

    def _body_is_due(self) -> bool:
        """Whether the client has not sent all of its request's body."""
        return self._h11.their_state is h11.SEND_BODY

    def _waits_for_body(self) -> bool:
        """Whether it is the client's turn: the handler wants more of the body."""
        exchange = self._exchange
        return exchange is not None and exchange.reads_body and not self._paused["body"] and self._body_is_due()

    def _receive(self, data: bytes) -> None:
        try:
            self._h11.receive_data(data)
        except h11.RemoteProtocolError as error:
            self._refuse(error.error_status_hint, str(error))
            return
        self._pump()

    def _pump(self) -> None:
        """Take what h11 has, as far as the exchange wants it."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while (
                self._close_by is None and self._successor is None and not self._transport.is_closing() and self._step()
            ):
                pass
        except h11.RemoteProtocolError as error:
            self._refuse(error.error_status_hint, str(error))
        finally:
            self._pumping = False
        if self._successor is not None:
            return
        held = len(self._h11.trailing_data[0])
        if held > _PIPELINED_BYTES and not self._paused["pipeline"]:
            self.pause(body=False)
        elif held <= _PIPELINED_BYTES and self._paused["pipeline"]:
            self.resume(body=False)

    def _serves(self) -> bool:
        return self._close_by is None and self._successor is None and not self._transport.is_closing()

    def _step(self) -> bool:
        """One event; False when nothing more can be done now."""
        connection = self._h11
        exchange = self._exchange
        if self._paused["body"]:
            return False
        if connection.our_state is h11.MUST_CLOSE or connection.our_state is h11.CLOSED:
            self._close()
            return False
        if exchange is None and connection.our_state is h11.DONE and connection.their_state is h11.DONE:
            if self._draining:
                self._close()
                return False
            connection.start_next_cycle()
            self._waiting_since = self._time()
        if exchange is not None and exchange.has_body and not exchange.reads_body and self._body_is_due():
            return False
        event = connection.next_event()
        if isinstance(event, h11.Request):
            self._first = False
            self._waiting_since = self._time()
            self._exchange = Http1Exchange(self, event)
            self._handler.handle(self._exchange)
        elif isinstance(event, h11.Data):
            if exchange is None:
                # The reply is out; the rest of the body is read so that the connection can go on.
                self._discarded_bytes += len(event.data)
                if self._discarded_bytes > self._limits.http1_body_bytes:
                    self._close()
                    return False
            elif not exchange.feed(bytes(event.data), self._limits.http1_body_bytes):
                self._refuse(413, "request body too large")
                return False
        elif isinstance(event, h11.EndOfMessage):
            if exchange is not None:
                exchange.end_body()
        elif isinstance(event, h11.ConnectionClosed):
            self._close()
            return False
        else:
            assert event is h11.NEED_DATA or event is h11.PAUSED
            return False
        return True

    def _refuse(self, status: int, text: str) -> None:
        """Answer a request that cannot be served, if no answer has begun, and close."""
        exchange, self._exchange = self._exchange, None
        if self._h11.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = text.encode() + b"\n"
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
            self.send_head(status, [*headers, (b"content-length", b"%d" % len(body))])
            self._write(self._h11.send(h11.Data(data=body)))
            self._write(self._h11.send(h11.EndOfMessage()))
        if exchange is not None:
            exchange.lose()
        self._close()

    def _close(self) -> None:
        """End our side; unread input would otherwise make the kernel drop the reply."""
        if self._close_by is not None or self._transport.is_closing():
            return
        if self._transport.can_write_eof():
            self._close_by = self._time() + _CLOSE_LINGER_S
            if any(self._paused.values()):
                self._paused = {"body": False, "pipeline": False}
                self._transport.resume_reading()
            self._transport.write_eof()
        else:
            self._transport.close()

    def _write(self, data: bytes | None) -> None:
        if data and not self._transport.is_closing():
            self._transport.write(data)
