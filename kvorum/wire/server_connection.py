"""The server's side of one gRPC connection, without I/O: requests to handlers, replies to octets."""

from collections.abc import Callable
from struct import Struct
from typing import Any, Final

from kvorum.errors import Code
from kvorum.wire import frames, grpc, hpack
from kvorum.wire.connection import Connection, ConnectionFault
from kvorum.wire.flow import Stream
from kvorum.wire.frames import ErrorCode
from kvorum.wire.head import Head, parse_request
from kvorum.wire.http2 import Http2Exchange
from kvorum.wire.routes import (
    CancelReason,
    Route,
    ServerShared,
    StreamHandler,
    StreamOpen,
    StreamRoute,
    UnaryHandler,
    UnaryRoute,
)
from kvorum.wire.server_calls import ServerStream, UnaryCall

# What a handler is written with, from one place.
__all__ = ["CancelReason", "Route", "ServerConnection", "ServerStream", "StreamHandler", "StreamOpen", "UnaryHandler"]

DEADLINE_TEXT: Final = "context deadline exceeded"

_PING_STRIKES: Final = 2
_IDLE_PING_GAP_S: Final = 7200.0
_DRAIN_PING_TIMEOUT_S: Final = 5.0  # then the peer has had time enough to see the first GOAWAY
_DRAIN_PING: Final = b"kv-drain"
_ALIVE_PING: Final = b"kv-alive"

_REPLY_BLOCK: Final = hpack.encode_stateless([(b":status", b"200"), (b"content-type", grpc.CONTENT_TYPE)])
_REPLY_BLOCK_GZIP: Final = _REPLY_BLOCK + hpack.encode_stateless([(b"grpc-encoding", b"gzip")])
_OK_BLOCK: Final = hpack.encode_stateless([(b"grpc-status", b"0")])

# A reply is HEADERS, DATA, HEADERS. The parts around the message are constant but for stream id and size, so each is
# one struct call: 0.35 us for both, against 1.1 us for concatenating frames.
_pack_reply: Final = Struct(f">5sI{len(_REPLY_BLOCK)}sIBIBI").pack
_pack_ok: Final = Struct(f">5sI{len(_OK_BLOCK)}s").pack
_REPLY_HEAD: Final = frames.head(frames.HEADERS, frames.END_HEADERS, 0, len(_REPLY_BLOCK))[:5]
_OK_HEAD: Final = frames.head(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 0, len(_OK_BLOCK))[:5]


class ServerConnection(Connection):
    """One client's connection."""

    __slots__ = (
        "_accepted_at",
        "_drain_began_at",
        "_first_block",
        "_idle_since",
        "_last_ping_at",
        "_pinged_at",
        "_quick_limit",
        "_sent_at_ping",
        "_strikes",
        "_trailers",
        "context",
        "draining",
        "max_streams",
        "peer",
        "peer_common_name",
        "server_limits",
        "shared",
    )

    def __init__(
        self,
        shared: ServerShared,
        wake: Callable[[Any], None],
        now: float,
        peer: str = "",
        peer_common_name: str | None = None,
    ) -> None:
        self.shared = shared
        self.server_limits = shared.limits
        self.peer = peer
        """Address of the client, `host:port`, or the path of the unix socket."""
        self.peer_common_name = peer_common_name
        """CN of the verified client certificate."""
        self.context: Any = None
        """What the handlers keep about this client."""
        self.draining = False
        self.max_streams = min(shared.limits.max_concurrent_streams, shared.limits.streams_hard_limit)
        # Our blocks never use the peer's dynamic table. The first one says so by a size update to 0, which every table
        # size the peer may ask for later allows (RFC 7541, section 4.2); so the constant blocks stay right.
        self._first_block = b"\x20"
        self._quick_limit = 0
        """Largest DATA of a reply in one piece: 0 until the first block is out, then the peer's frame size."""
        self._trailers: dict[tuple[int, str, bool], bytes] = {}
        self._accepted_at = now
        self._idle_since: float | None = now
        self._pinged_at: float | None = None
        self._last_ping_at = float("-inf")
        self._sent_at_ping = (0, 0)
        self._strikes = 0
        self._drain_began_at: float | None = None
        super().__init__(shared.limits, wake, now)

    # For handlers.

    @property
    def alive(self) -> bool:
        """Whether replies can still reach the client."""
        return not self.closed

    def reply(self, stream_id: int, message: bytes) -> bool:
        """End a unary call with OK and this message; False when the call is gone."""
        call = self.streams.get(stream_id)
        if call is None or call.tail is not None:
            return False
        size = len(message) + 5
        if (
            size <= self.credit
            and size <= call.send_window
            and size <= self._quick_limit
            and call.remote_closed
            and not call.head.gzip
        ):
            del self.streams[stream_id]
            if call.slot:
                self.shared.deadlines.discard(call, call.slot)
            self.credit -= size
            self.out += (
                _pack_reply(_REPLY_HEAD, stream_id, _REPLY_BLOCK, size << 8, 0, stream_id, 0, size - 5),
                message,
                _pack_ok(_OK_HEAD, stream_id, _OK_BLOCK),
            )
            call.route.ok += 1
            if not self.dirty:
                self.dirty = True
                self.wake(self)
            return True
        self._drop_deadline(call)
        call.route.ok += 1
        self.send_reply_headers(call)
        self._send(call, grpc.frame_gzip(message) if call.head.gzip else grpc.frame(message))
        self._send_tail(call, _pack_ok(_OK_HEAD, stream_id, _OK_BLOCK))
        return True

    def fail(self, stream_id: int, code: int, text: str) -> bool:
        """End a unary call with an error; False when the call is gone."""
        call = self.streams.get(stream_id)
        if call is None or call.tail is not None:
            return False
        self.end_stream(call, code, text, False)
        return True

    # For streams, calls and exchanges.

    def send_reply_headers(self, stream: Any) -> None:
        block = self._take_first_block() + (_REPLY_BLOCK_GZIP if stream.head.gzip else _REPLY_BLOCK)
        self.out.append(frames.frame(frames.HEADERS, frames.END_HEADERS, stream.id, block))

    def send_data(self, stream: Stream, data: bytes) -> None:
        self._send(stream, data)

    def send_http_headers(self, exchange: Http2Exchange, block: bytes) -> None:
        block = self._take_first_block() + block
        self.out.append(frames.headers(exchange.id, block, end_stream=False, max_frame_size=self.peer_max_frame))
        self._touch()

    def send_tail(self, stream: Stream, tail: bytes) -> None:
        self._send_tail(stream, tail)

    def reset_http(self, exchange: Http2Exchange, code: ErrorCode) -> None:
        self._reset(exchange, code)

    def throttle(self, stream: Stream) -> None:
        self._throttle(stream)

    def replenish(self, stream: Stream) -> None:
        self._replenish(stream)

    def end_stream(self, stream: Any, code: int, text: str, headers_sent: bool) -> None:
        """Trailers, or trailers only."""
        route = stream.route
        if code:
            route.count_failed(code)
        else:
            route.ok += 1
        self._drop_deadline(stream)
        block = self._trailer_block(code, text, headers_sent)
        if not headers_sent:
            block = self._take_first_block() + block
        self._send_tail(stream, frames.headers(stream.id, block, end_stream=True, max_frame_size=self.peer_max_frame))

    def overflow(self, stream: ServerStream) -> None:
        """The handler goes on writing to a stream that nobody reads."""
        handler, stream.handler = stream.handler, None
        stream.route.count_failed(Code.RESOURCE_EXHAUSTED)
        self._forget(stream)
        self._remember_reset(stream.id)
        block = self._trailer_block(Code.RESOURCE_EXHAUSTED, "grpc: stream queue is full", True)
        self.out.append(frames.headers(stream.id, block, end_stream=True, max_frame_size=self.peer_max_frame))
        self.out.append(frames.rst_stream(stream.id, ErrorCode.NO_ERROR))
        self._touch()
        if handler is not None:
            handler.on_cancel(CancelReason.OVERFLOW)

    def hold(self, stream: Any, data: memoryview) -> bool:
        """Keep octets of an incomplete message; False when that is too much and the stream has been ended."""
        self.unfinished_bytes += len(data)
        stream.reader.feed(data)
        if self.unfinished_bytes <= self.limits.unfinished_bytes:
            return True
        text = "grpc: too many unfinished messages on the connection"
        if isinstance(stream, ServerStream):
            stream.cancel(Code.RESOURCE_EXHAUSTED, text, CancelReason.FAULT)
        else:
            self.fail(stream.id, Code.RESOURCE_EXHAUSTED, text)
        return False

    def expire(self, call: Any) -> None:
        """The deadline of a call has passed."""
        call.slot = 0
        if isinstance(call, ServerStream):
            call.cancel(Code.DEADLINE_EXCEEDED, DEADLINE_TEXT, CancelReason.DEADLINE)
        else:
            self.fail(call.id, Code.DEADLINE_EXCEEDED, DEADLINE_TEXT)

    # For the shell.

    def tick(self, now: float) -> None:
        """Look at the clock; called about once a second."""
        if self.closed:
            return
        self.now = now
        limits = self.server_limits
        if not self._settings_seen and now - self._accepted_at > limits.preface_timeout_s:
            self._fail(ConnectionFault(ErrorCode.SETTINGS_TIMEOUT, "no preface"))
        elif not self.last_peer_id and now - self._accepted_at > limits.first_request_timeout_s:
            self._fail(ConnectionFault(ErrorCode.NO_ERROR, "no request"))
        elif self._pinged_at is not None:
            if self.last_received > self._pinged_at:
                self._pinged_at = None
            elif now - self._pinged_at > limits.keepalive_timeout_s:
                self._fail(ConnectionFault(ErrorCode.NO_ERROR, "keepalive ping not answered"))
        elif now - self.last_received > limits.keepalive_interval_s:
            self._pinged_at = now
            self.out.append(frames.ping(_ALIVE_PING, ack=False))
        if self._drain_began_at is not None and self.goaway_sent is None:
            if now - self._drain_began_at > _DRAIN_PING_TIMEOUT_S:
                self._finish_drain()
        elif self.streams:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = max(now - 1.0, self.last_received)
        elif (
            limits.idle_timeout_s is not None
            and now - max(self._idle_since, self.last_received) > limits.idle_timeout_s
        ):
            self.drain(b"max_idle")

    def drain(self, text: bytes = b"graceful_stop") -> None:
        """Begin to end the connection: nothing that is under way is lost.

        Two steps, since a GOAWAY crosses requests that are on their way (RFC 9113, section 6.8): first one that names
        no stream, with a PING; when that is acknowledged the peer has seen it, and the second names the last stream.
        """
        if self.draining or self.closed:
            return
        self.draining = True
        self.out.append(frames.goaway(frames.MAX_STREAM_ID, ErrorCode.NO_ERROR, text))
        self.out.append(frames.ping(_DRAIN_PING, ack=False))
        self._drain_began_at = self.now
        self._touch()

    @property
    def drained(self) -> bool:
        """Whether the connection may be closed: the second GOAWAY is out and no call is open."""
        return self.draining and self.goaway_sent is not None and not self.streams and not self.out

    # What the core calls.

    def _own_settings(self) -> dict[int, int]:
        settings = super()._own_settings()
        if self.server_limits.max_concurrent_streams < frames.UNLIMITED_STREAMS:
            settings[frames.MAX_CONCURRENT_STREAMS] = self.server_limits.max_concurrent_streams
        return settings

    def _on_settings(self) -> None:
        if not self._first_block:
            self._quick_limit = self.peer_max_frame

    def _interpret(self, fields: list[hpack.Field] | None) -> Head:
        return parse_request(fields, self.shared.find)

    def _vary(self, head: Head, timeout: bytes) -> Head:
        return head.with_timeout(timeout)

    def _on_headers(self, stream_id: int, head: Head, end_stream: bool) -> None:
        if stream_id <= self.last_peer_id or not stream_id & 1:
            self._on_late_headers(stream_id, head, end_stream)
            return
        self.last_peer_id = stream_id
        route = head.route
        if route is None or len(self.streams) >= self.max_streams or self.goaway_sent is not None:
            self._on_refused(stream_id, head, end_stream)
            return
        if self.queued_bytes > self.limits.queued_bytes:
            self._reset_for_fault(stream_id, ErrorCode.REFUSED_STREAM)
            return
        assert isinstance(route, Route)
        route.started += 1
        if isinstance(route, UnaryRoute):
            call = UnaryCall(stream_id, self.peer_initial_window, self.limits.stream_window_bytes, head, route)
            self.streams[stream_id] = call
            if head.timeout_s is not None:
                call.slot = self.shared.deadlines.add(call, self, self.now, head.timeout_s)
            if end_stream:
                call.remote_closed = True
                call.on_end_without_data(self)
            return
        assert isinstance(route, StreamRoute)
        stream = ServerStream(self, stream_id, head, route)
        self.streams[stream_id] = stream
        stream.remote_closed = end_stream
        if head.timeout_s is not None:
            stream.slot = self.shared.deadlines.add(stream, self, self.now, head.timeout_s)
        handler = route.open(stream, head)
        if stream.tail is None and not stream.local_closed:
            assert handler is not None, "a stream that goes on has a handler"
            stream.handler = handler
            if end_stream:
                stream.on_end_without_data(self)

    def _on_refused(self, stream_id: int, head: Head, end_stream: bool) -> None:
        """A request that reaches no handler."""
        if self.goaway_sent is not None:
            # Sent before the peer saw our last GOAWAY; the peer repeats it elsewhere.
            self._remember_reset(stream_id)
            return
        if head.malformed or head.trailers:
            self._reset_for_fault(stream_id, ErrorCode.PROTOCOL_ERROR)
            return
        if len(self.streams) >= self.max_streams:
            self._reset_for_fault(stream_id, ErrorCode.REFUSED_STREAM)
            return
        if head.http is not None and self.shared.http is not None:
            if self.queued_bytes > self.limits.queued_bytes:
                self._reset_for_fault(stream_id, ErrorCode.REFUSED_STREAM)
                return
            exchange = Http2Exchange(self, stream_id, head.http)
            exchange.remote_closed = end_stream
            self.streams[stream_id] = exchange
            self.shared.http.handle(exchange)
            return
        refusal = head.refusal
        assert refusal is not None
        block = self._take_first_block() + hpack.encode_stateless(
            [
                (b":status", b"%d" % refusal.http_status),
                (b"content-type", grpc.CONTENT_TYPE),
                (b"grpc-status", b"%d" % refusal.code),
                (b"grpc-message", grpc.encode_text(refusal.text)),
                *refusal.fields,
            ]
        )
        self.out.append(frames.headers(stream_id, block, end_stream=True, max_frame_size=self.peer_max_frame))
        if not end_stream:
            self.out.append(frames.rst_stream(stream_id, ErrorCode.NO_ERROR))
            self._remember_reset(stream_id)

    def _on_late_headers(self, stream_id: int, head: Head, end_stream: bool) -> None:
        """A block on a stream that was opened before: trailers."""
        if self._is_idle(stream_id):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS on an even stream")
        stream = self.streams.get(stream_id)
        if stream is None:
            if stream_id not in self._reset_ids:
                raise ConnectionFault(ErrorCode.STREAM_CLOSED, "HEADERS on a closed stream")
            self._charge(1)
        elif stream.remote_closed:
            self._reset_for_fault(stream_id, ErrorCode.STREAM_CLOSED)
        elif not head.trailers or not end_stream:
            self._reset_for_fault(stream_id, ErrorCode.PROTOCOL_ERROR)
        else:
            stream.remote_closed = True
            stream.on_end_without_data(self)

    def _on_data(self, stream: Any, data: bytes, start: int, end: int, end_stream: bool) -> None:
        stream.on_data(self, data, start, end, end_stream)

    def _on_reset(self, stream: Any, code: int) -> None:
        stream.on_gone(self, CancelReason.RESET)

    def _on_lost(self, stream: Any, text: str) -> None:
        stream.on_gone(self, CancelReason.LOST)

    def _on_writable(self, stream: Any) -> None:
        if isinstance(stream, ServerStream):
            if stream.handler is not None:
                stream.handler.on_writable()
        elif isinstance(stream, Http2Exchange) and stream.on_writable is not None:
            stream.on_writable()

    def _local_end(self, stream: Any) -> None:
        # The client may still be sending: it learns that nobody reads (RFC 9113, section 8.1).
        finished = stream.remote_closed
        self._forget(stream)
        if not finished:
            self._remember_reset(stream.id)
            self.out.append(frames.rst_stream(stream.id, ErrorCode.NO_ERROR))

    def _forget(self, stream: Any) -> None:
        super()._forget(stream)
        self._drop_deadline(stream)
        if stream.reader is not None and stream.reader.held_bytes:
            self.unfinished_bytes -= stream.reader.held_bytes
            stream.reader = grpc.MessageReader(0, gzip=False)

    def _on_ping(self) -> None:
        """Keepalive enforcement: pings without work between them may come only so often."""
        work = (self.sent_data_bytes, self.last_peer_id)
        worked = work != self._sent_at_ping
        self._sent_at_ping = work
        gap = self.server_limits.keepalive_min_time_s if self.streams else _IDLE_PING_GAP_S
        early = self.now - self._last_ping_at < gap
        self._last_ping_at = self.now
        if worked:
            self._strikes = 0
        elif early:
            self._strikes += 1
            if self._strikes > _PING_STRIKES:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")

    def _on_pong(self, payload: bytes) -> None:
        if payload == _DRAIN_PING and self.draining and self.goaway_sent is None:
            self._finish_drain()

    def _finish_drain(self) -> None:
        """The second step of `drain`."""
        self.goaway_sent = self.last_peer_id
        self.out.append(frames.goaway(self.last_peer_id, ErrorCode.NO_ERROR, b""))
        self._touch()

    def _take_first_block(self) -> bytes:
        """What goes before the first block of the connection."""
        prefix, self._first_block = self._first_block, b""
        self._quick_limit = self.peer_max_frame
        return prefix

    def _drop_deadline(self, call: Any) -> None:
        if call.slot:
            self.shared.deadlines.discard(call, call.slot)
            call.slot = 0

    def _trailer_block(self, code: int, text: str, headers_sent: bool) -> bytes:
        """Trailers, with the reply's own headers where none were sent. Cached: error texts are few."""
        key = (code, text, headers_sent)
        block = self._trailers.get(key)
        if block is None:
            fields = [] if headers_sent else [(b":status", b"200"), (b"content-type", grpc.CONTENT_TYPE)]
            fields.append((b"grpc-status", b"%d" % code))
            if text:
                fields.append((b"grpc-message", grpc.encode_text(text)))
            block = hpack.encode_stateless(fields)
            if len(text) <= 256:
                if len(self._trailers) >= 64:
                    self._trailers.clear()
                self._trailers[key] = block
        return block
