"""The client's side of one gRPC connection, without I/O: calls to octets, replies to callbacks."""

from collections.abc import Callable
from typing import Any, Final

from kvorum.errors import Code
from kvorum.wire import frames, grpc, hpack
from kvorum.wire.calls import ClientCall, ClientStream, Fields
from kvorum.wire.connection import Connection, ConnectionFault
from kvorum.wire.frames import ErrorCode
from kvorum.wire.limits import ClientLimits
from kvorum.wire.reply_head import ReplyHead, code_of_http, code_of_reset, parse_reply

DEADLINE_TEXT: Final = "context deadline exceeded"

_ALIVE_PING: Final = b"kv-alive"
_CACHED_BLOCKS: Final = 256


class ClientConnection(Connection):
    """One connection to a server."""

    __slots__ = (
        "_authority",
        "_blocks",
        "_common_fields",
        "_held_ends",
        "_keepalive_interval_s",
        "_pinged_at",
        "_unprocessed",
        "client_limits",
        "going",
        "going_text",
        "on_ready",
        "ready",
        "too_many_pings",
    )

    is_client = True

    def __init__(
        self,
        limits: ClientLimits,
        wake: Callable[[Any], None],
        now: float,
        *,
        authority: str,
        scheme: str,
        user_agent: str,
        on_ready: Callable[[], None],
        unprocessed: Callable[[ClientCall], bool],
        keepalive_factor: int = 1,
    ) -> None:
        """`on_ready` is called when calls can be started, or more of them; `unprocessed` is asked about a call that
        the server surely did not act on, and says whether it was started again elsewhere; `keepalive_factor` grows when
        a server has found our pings too many."""
        self.client_limits = limits
        interval_s = limits.keepalive_interval_s
        self._keepalive_interval_s = None if interval_s is None else interval_s * keepalive_factor
        self.ready = False
        """Whether the server's SETTINGS have come."""
        self.going = False
        """Whether the server has said that it takes no more calls here."""
        self.going_text = ""
        self.too_many_pings = False
        self.on_ready: Callable[[], None] | None = on_ready
        self._unprocessed: Callable[[ClientCall], bool] | None = unprocessed
        self._pinged_at: float | None = None
        self._held_ends: dict[int, ReplyHead] = {}
        """Trailers of calls that are not being read."""
        self._blocks: dict[tuple[str, Fields], tuple[int, bytes]] = {}
        self._common_fields: tuple[list[hpack.Field], list[hpack.Field]] = (
            [(b":method", b"POST"), (b":scheme", scheme.encode()), (b":authority", authority.encode())],
            [
                (b"content-type", grpc.CONTENT_TYPE),
                (b"te", b"trailers"),
                (b"user-agent", user_agent.encode()),
                (b"grpc-accept-encoding", b"identity,gzip"),
            ],
        )
        super().__init__(limits, wake, now)

    # For the channel.

    @property
    def drained(self) -> bool:
        """Whether the server has told us to go and nothing is open any more."""
        return self.going and not self.streams

    @property
    def can_start(self) -> bool:
        """Whether a call can be started now."""
        return (
            self.ready
            and not self.going
            and not self.closed
            and len(self.streams) < self.peer_max_streams
            and self.queued_bytes <= self.limits.queued_bytes
            and self.next_id <= frames.MAX_STREAM_ID
        )

    def start(self, call: ClientCall, now: float) -> None:
        """Send a call's headers and what it has to say. Only while `can_start`."""
        stream_id = self.next_id
        self.next_id = stream_id + 2
        block = self._block(call.path, call.fields)
        if call.deadline_at is not None:
            # Never indexed: it differs each time, and would push out of the table what does not.
            timeout = grpc.format_timeout(max(0.0, call.deadline_at - now))
            block += hpack.encode_literal(b"grpc-timeout", timeout)
        call.id = stream_id
        call.send_window = self.peer_initial_window
        call.recv_window = self.limits.stream_window_bytes
        call.connection = self
        self.streams[stream_id] = call
        self.out.append(frames.headers(stream_id, block, end_stream=False, max_frame_size=self.peer_max_frame))
        self._touch()
        call.begin(self)

    def tick(self, now: float) -> None:
        """Look at the clock; called about once a second."""
        if self.closed or self._keepalive_interval_s is None:
            return
        self.now = now
        if self._pinged_at is not None:
            if self.last_received > self._pinged_at:
                self._pinged_at = None
            elif now - self._pinged_at > self.client_limits.keepalive_timeout_s:
                self._fail(ConnectionFault(ErrorCode.NO_ERROR, "keepalive ping not answered"))
        elif now - self.last_received > self._keepalive_interval_s and (
            self.streams or self.client_limits.keepalive_without_streams
        ):
            self._pinged_at = now
            self.out.append(frames.ping(_ALIVE_PING, ack=False))
            self._touch()

    def leave(self) -> None:
        """Say that we go; open calls end with CANCELLED."""
        if not self.closed:
            self.out.append(frames.goaway(0, ErrorCode.NO_ERROR, b""))
            for call in list(self.streams.values()):
                self.abandon(call, Code.CANCELLED, "grpc: the client connection is closing")
            self.lost("grpc: the client connection is closing")

    # For calls.

    def send_only_message(self, call: ClientCall, message: bytes) -> None:
        """A unary request: its DATA ends our side."""
        size = len(message) + grpc.PREFIX_SIZE
        if size <= self.credit and size <= call.send_window and size <= self.peer_max_frame:
            self.credit -= size
            call.send_window -= size
            call.local_closed = True
            head = frames.head(frames.DATA, frames.END_STREAM, call.id, size)
            self.out += (head + grpc.pack_prefix(0, len(message)), message)
        else:
            self._send(call, grpc.frame(message))
            self.half_close(call)

    def send_stream_data(self, call: ClientCall, data: bytes) -> None:
        """Messages of a streaming call."""
        if call.queued_bytes and call.queued_bytes + len(data) > self.limits.stream_queue_bytes:
            self.abandon(call, Code.RESOURCE_EXHAUSTED, "grpc: stream queue is full")
        else:
            self._send(call, data)

    def half_close(self, call: ClientCall) -> None:
        self._send_tail(call, frames.head(frames.DATA, frames.END_STREAM, call.id, 0))

    def throttle(self, call: ClientCall) -> None:
        self._throttle(call)

    def resume(self, call: ClientCall) -> None:
        """The call is being read again."""
        self._give(call)
        if not call.finished and call.reading:
            self._replenish(call)
            head = self._held_ends.pop(call.id, None)
            if head is not None:
                self._finish(call, head)

    def abandon(self, call: ClientCall, code: int, text: str) -> None:
        """End a call from our side."""
        if call.id in self.streams:
            self._reset(call, ErrorCode.CANCEL)
        call.finish(code, text, grpc.NO_METADATA)
        self.room()

    # What the core calls.

    def _own_settings(self) -> dict[int, int]:
        return {frames.ENABLE_PUSH: 0, **super()._own_settings()}

    def _interpret(self, fields: list[hpack.Field] | None) -> ReplyHead:
        return parse_reply(fields)

    def _on_settings(self) -> None:
        self.ready = True
        self.room()

    def _on_headers(self, stream_id: int, head: ReplyHead, end_stream: bool) -> None:
        call = self.streams.get(stream_id)
        if call is None:
            if self._is_idle(stream_id):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS on an idle stream")
            self._charge(1)
        elif call.remote_closed:
            self._reset_for_fault(stream_id, ErrorCode.STREAM_CLOSED)
        elif head.too_large:
            self.abandon(call, Code.RESOURCE_EXHAUSTED, "grpc: received header list larger than max")
        elif call.head is None:
            if end_stream or not head.begins:
                self._on_no_beginning(call, head, end_stream)
            else:
                call.head = head
                if isinstance(call, ClientStream):
                    call.initial_metadata = head.metadata
        elif head.malformed or head.http_status is not None or not end_stream:
            self._reset_for_fault(stream_id, ErrorCode.PROTOCOL_ERROR)
        else:
            call.remote_closed = True
            self._end(call, head)

    def _on_no_beginning(self, call: ClientCall, head: ReplyHead, end_stream: bool) -> None:
        """The first headers of a reply that ends with them, or is not what was expected."""
        http_status = head.http_status
        informational = http_status is not None and http_status < 200
        if head.malformed or http_status is None or (informational and end_stream):
            self._reset_for_fault(call.id, ErrorCode.PROTOCOL_ERROR)
        elif informational:
            self._charge(1)
        elif end_stream:
            call.head = head
            call.remote_closed = True
            self._end(call, head)
        elif http_status != 200:
            self.abandon(call, code_of_http(http_status), _http_text(http_status))
        elif not head.content_type.startswith(grpc.CONTENT_TYPE):
            shown = head.content_type.decode("utf-8", "backslashreplace")
            self.abandon(call, Code.UNKNOWN, f'malformed header: unexpected content-type "{shown}"')
        else:
            text = f'grpc: Decompressor is not installed for grpc-encoding "{head.unknown_encoding}"'
            self.abandon(call, Code.UNIMPLEMENTED, text)

    def _on_data(self, stream: Any, data: bytes, start: int, end: int, end_stream: bool) -> None:
        call: ClientCall = stream
        head = call.head
        if head is None:
            self._reset_for_fault(call.id, ErrorCode.PROTOCOL_ERROR)
            return
        reader = call.reader
        whole = False
        if call.reading and (reader is None or not reader.held_bytes) and end - start >= 5:
            flag, size = grpc.unpack_prefix(data, start)
            whole = not flag and size == end - start - 5 and size <= self.limits.message_bytes
        if whole:
            call.on_message(data[start + 5 : end])
        else:
            if reader is None:
                # Most calls never need one: that spares 0.9 us for each.
                reader = call.reader = grpc.MessageReader(self.limits.message_bytes, gzip=head.gzip)
            self.unfinished_bytes += end - start
            reader.feed(memoryview(data)[start:end])
            if self.unfinished_bytes > self.limits.unfinished_bytes:
                self.abandon(call, Code.RESOURCE_EXHAUSTED, "grpc: too many unfinished messages on the connection")
            else:
                self._give(call)
        if end_stream and not call.finished:
            self._end(call, _NO_TRAILERS)

    def _on_reset(self, stream: Any, code: int) -> None:
        name = ErrorCode(code).name if code <= ErrorCode.HTTP_1_1_REQUIRED else str(code)
        text = f"stream terminated by RST_STREAM with error code: {name}"
        if code == ErrorCode.REFUSED_STREAM:
            self._not_processed(stream, text)
        else:
            stream.finish(code_of_reset(code), text, grpc.NO_METADATA)
        self.room()

    def _on_lost(self, stream: Any, text: str) -> None:
        stream.finish(Code.UNAVAILABLE, text, grpc.NO_METADATA)

    def _on_writable(self, stream: Any) -> None:
        if isinstance(stream, ClientStream) and stream.handler is not None:
            stream.handler.on_writable()

    def _local_end(self, stream: Any) -> None:
        """The server's end is what ends a call."""

    def _on_goaway(self, last_id: int, code: int, text: bytes) -> None:
        self.going = True
        self.going_text = f"the server is going away: {text.decode('utf-8', 'backslashreplace') or code}"
        if code == ErrorCode.ENHANCE_YOUR_CALM and text == b"too_many_pings":
            self.too_many_pings = True
        for call in [call for call in self.streams.values() if call.id > last_id]:
            self._forget(call)
            self._not_processed(call, self.going_text)

    def _forget(self, stream: Any) -> None:
        super()._forget(stream)
        self._held_ends.pop(stream.id, None)
        if stream.reader is not None:
            self.unfinished_bytes -= stream.reader.held_bytes
            stream.reader = None

    def lost(self, text: str) -> None:
        super().lost(text)
        # They lead back to the channel, and from there to this connection.
        self.on_ready = None
        self._unprocessed = None

    # Within.

    def _block(self, path: str, fields: Fields) -> bytes:
        """The header block of a call but for its deadline."""
        key = (path, fields)
        encoder = self.encoder
        version, block = self._blocks.get(key, (-1, b""))
        if version == encoder.version:
            return block
        version = encoder.version
        pseudo, regular = self._common_fields
        block = encoder.encode([*pseudo, (b":path", path.encode()), *regular, *fields])
        if version == encoder.version:
            # It added nothing to the table, so it may be sent again while the table stays.
            if len(self._blocks) >= _CACHED_BLOCKS:
                self._blocks.clear()
            self._blocks[key] = (version, block)
        return block

    def room(self) -> None:
        """Say so when calls can be started."""
        if self.on_ready is not None and self.can_start:
            self.on_ready()

    def _not_processed(self, call: ClientCall, text: str) -> None:
        """The server surely did not act on the call: it may be started again."""
        if self._unprocessed is None or not self._unprocessed(call):
            call.finish(Code.UNAVAILABLE, text, grpc.NO_METADATA)

    def _give(self, call: ClientCall) -> None:
        """Hand over the messages that are complete."""
        while call.reading and not call.finished and call.reader is not None:
            before = call.reader.held_bytes
            try:
                message = call.reader.next()
            except grpc.MessageFault as fault:
                self.abandon(call, fault.code, fault.text)
                return
            if message is None:
                return
            self.unfinished_bytes -= before - call.reader.held_bytes
            call.on_message(message)

    def _end(self, call: ClientCall, head: ReplyHead) -> None:
        """The server has ended the call; a call that is not being read hears of it when it has read the rest."""
        if call.reading or call.reader is None or not call.reader.held_bytes:
            self._finish(call, head)
        else:
            self._held_ends[call.id] = head

    def _finish(self, call: ClientCall, head: ReplyHead) -> None:
        partial = call.reader is not None and call.reader.held_bytes
        if not call.local_closed:
            self._reset(call, ErrorCode.NO_ERROR)
        elif call.reader is None and not call.throttled:
            del self.streams[call.id]  # nothing is held or queued that `_forget` would drop
        else:
            self._forget(call)
        code, text = head.status, head.text
        if code is None:
            if head.http_status is not None and head.http_status != 200:
                code, text = code_of_http(head.http_status), _http_text(head.http_status)
            else:
                code, text = Code.INTERNAL, "server closed the stream without sending trailers"
        elif partial and not code:
            code, text = Code.INTERNAL, "unexpected EOF"
        call.finish(code, text, head.metadata)
        self.room()


_NO_TRAILERS: Final = parse_reply([])


def _http_text(http_status: int) -> str:
    return f"unexpected HTTP status code received from server: {http_status}"
