"""HTTP/2 (RFC 9113) without I/O, for both roles: octets in, calls of the subclass's hooks and octets out.

`receive` never raises for anything a peer sends: a fault of the connection ends in GOAWAY and `closed`, a fault of a
stream in RST_STREAM. No event objects: a hook is a direct call with the frame's place in the buffer, and a header
block that was seen before is one dict lookup (0.1 us against 6 us for decoding it).
"""

from collections.abc import Callable
from typing import Any, Final

from kvorum.wire import frames, hpack
from kvorum.wire.flow import Sender, Stream
from kvorum.wire.frames import ErrorCode
from kvorum.wire.limits import ConnectionLimits

_RESET_MEMORY: Final = 1024  # ids of streams we reset, whose late frames are no fault of the peer's
_WORK_PER_STREAM: Final = 8  # control frames a new stream pays for
_WORK_PER_WRITE: Final = 8  # likewise a message sent: grpcio answers each with two WINDOW_UPDATEs and a PING
_WORK_BYTES: Final = 512  # DATA sent that pays for a control frame


class ConnectionFault(Exception):
    """The peer broke the protocol or a limit: the connection ends with this code (RFC 9113, section 5.4.1)."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Connection(Sender):
    """One end of an HTTP/2 connection. Subclasses are the gRPC server's and the client's side."""

    __slots__ = (
        "_block_cache",
        "_control_budget",
        "_control_credited",
        "_control_time",
        "_decoder",
        "_key_cache",
        "_preface",
        "_recv_window",
        "_reset_budget",
        "_reset_ids",
        "_reset_time",
        "_rest",
        "_settings_seen",
        "closed",
        "encoder",
        "fault",
        "goaway_sent",
        "last_peer_id",
        "last_received",
        "next_id",
        "now",
        "peer_max_streams",
        "received_bytes",
        "unfinished_bytes",
    )

    is_client = False

    def __init__(self, limits: ConnectionLimits, wake: Callable[[Any], None], now: float) -> None:
        super().__init__(limits, wake)
        self.now = now
        self.last_received = now
        self.received_bytes = 0
        self.closed = False
        """Nothing more is received; what is in the output is still to be written, then the transport closed."""
        self.fault: ConnectionFault | None = None
        self.goaway_sent: int | None = None
        """Last stream id of the last GOAWAY we sent."""
        self.last_peer_id = 0
        self.next_id = 1
        """Of the next stream we open (client)."""
        self.peer_max_streams = frames.UNLIMITED_STREAMS
        self.encoder = hpack.Encoder()
        self.unfinished_bytes = 0
        """Received and held: incomplete messages, and what streams that are not being read have got."""
        self._decoder = hpack.Decoder(limits.header_list_bytes, varying=None if self.is_client else b"grpc-timeout")
        self._block_cache: dict[bytes, Any] = {}
        self._key_cache: dict[hpack.Key, Any] = {}
        self._rest = b""
        self._preface = b"" if self.is_client else frames.PREFACE
        self._settings_seen = False
        self._recv_window = limits.connection_window_bytes
        self._reset_ids: dict[int, None] = {}
        self._control_budget = limits.control_frames_burst
        self._control_time = now
        self._control_credited = 0
        self._reset_budget = float(limits.resets_burst)
        self._reset_time = now
        if self.is_client:
            self.out.append(frames.PREFACE)
        self.out.append(frames.settings(self._own_settings()))
        self.out.append(frames.window_update(0, limits.connection_window_bytes - frames.DEFAULT_WINDOW))

    # What the subclass does.

    def _own_settings(self) -> dict[int, int]:
        return {frames.INITIAL_WINDOW_SIZE: self.limits.stream_window_bytes}

    def _interpret(self, fields: list[hpack.Field] | None) -> Any:
        """The meaning of a header block, an immutable value that all equal blocks share; None: it was too large."""
        raise NotImplementedError

    def _vary(self, head: Any, timeout: bytes) -> Any:
        """The same with this grpc-timeout."""
        raise NotImplementedError

    def _on_headers(self, stream_id: int, head: Any, end_stream: bool) -> None:
        raise NotImplementedError

    def _on_data(self, stream: Any, data: bytes, start: int, end: int, end_stream: bool) -> None:
        """Payload of a DATA frame: `data[start:end]`. The stream's window is already charged."""
        raise NotImplementedError

    def _on_reset(self, stream: Any, code: int) -> None:
        """The stream was ended by either side's RST_STREAM; it is already forgotten."""
        raise NotImplementedError

    def _on_lost(self, stream: Any, text: str) -> None:
        """The connection ended under the stream; it is already forgotten."""
        raise NotImplementedError

    def _on_ping(self) -> None:
        """A PING came and is acknowledged."""

    def _on_pong(self, payload: bytes) -> None:
        """Our PING was acknowledged."""

    def _on_goaway(self, last_id: int, code: int, text: bytes) -> None:
        """The peer will not serve streams above `last_id`."""

    def _on_settings(self) -> None:
        """The peer's settings changed."""

    # Input.

    def receive(self, data: bytes, now: float) -> None:
        """Octets from the peer; `now` is the loop's time in seconds."""
        if self.closed:
            return
        self.now = self.last_received = now
        self.received_bytes += len(data)
        self.dirty = True
        if self._rest:
            data = self._rest + data
            self._rest = b""
        pos = 0
        size = len(data)
        unpack_head = frames.unpack_head
        streams = self.streams
        block_cache = self._block_cache
        half_window = self.limits.stream_window_bytes >> 1
        try:
            if self._preface:
                if size < len(self._preface):
                    if data != self._preface[:size]:
                        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "bad preface")
                    self._rest = data
                    return
                if not data.startswith(self._preface):
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "bad preface")
                pos = len(self._preface)
                self._preface = b""
            while size - pos >= 9:
                length, flags, stream_id = unpack_head(data, pos)
                kind = length & 0xFF
                length >>= 8
                start = pos + 9
                end = start + length
                if length > 16384:
                    raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame too large")
                if end > size:
                    break
                stream_id &= 0x7FFFFFFF
                if kind == 0 and not flags & 0x8:
                    stream = streams.get(stream_id)
                    if (
                        stream is not None
                        and length <= stream.recv_window
                        and length <= self._recv_window
                        and not stream.remote_closed
                        and (length or flags & 0x1)
                    ):
                        # Unpadded DATA within its windows: all that well-behaved peers send.
                        self._recv_window -= length
                        if flags & 0x1:
                            stream.remote_closed = True
                            self._on_data(stream, data, start, end, True)
                        else:
                            stream.recv_window -= length
                            self._on_data(stream, data, start, end, False)
                            if stream.recv_window < half_window and stream.reading:
                                self._replenish(stream)
                        pos = end
                        continue
                elif kind == 1 and flags & 0x2C == 0x4 and self._settings_seen:
                    # A whole block without padding and priority.
                    block = data[start:end]
                    head = block_cache.get(block)
                    if head is None:
                        head = self._decode(block)
                    self._on_headers(stream_id, head, bool(flags & 0x1))
                    pos = end
                    if self.closed:
                        return
                    continue
                if not self._settings_seen and (kind != frames.SETTINGS or flags & frames.ACK):
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "first frame is not SETTINGS")
                if kind == frames.DATA:
                    self._on_data_frame(flags, stream_id, data, start, end)
                elif kind == frames.HEADERS:
                    end = self._on_headers_frame(flags, stream_id, data, start, end)
                    if not end:
                        break
                else:
                    handle = _HANDLERS.get(kind)
                    if handle is None:
                        self._charge(1)
                    else:
                        handle(self, flags, stream_id, data, start, end)
                pos = end
                if self.closed:
                    return
        except ConnectionFault as fault:
            self._fail(fault)
            return
        if pos < size:
            self._rest = data[pos:] if pos else data
        if self._recv_window < self.limits.connection_window_bytes >> 1:
            self.out.append(frames.window_update(0, self.limits.connection_window_bytes - self._recv_window))
            self._recv_window = self.limits.connection_window_bytes

    def lost(self, text: str) -> None:
        """The transport is gone, or is being closed: every open stream ends."""
        self.closed = True
        for stream in list(self.streams.values()):
            self._forget(stream)
            self._on_lost(stream, text)
        self.wake = _no_wake

    # For the subclass.

    def _fail(self, fault: ConnectionFault) -> None:
        """End the connection with GOAWAY."""
        if self.closed:
            return
        self.fault = fault
        self.out.append(frames.goaway(self.last_peer_id, fault.code, fault.text.encode()))
        self.goaway_sent = self.last_peer_id
        self.lost(fault.text)

    def _reset(self, stream: Any, code: int) -> None:
        """End a stream of ours with RST_STREAM; no hook is called."""
        self._forget(stream)
        self._remember_reset(stream.id)
        self.out.append(frames.rst_stream(stream.id, code))
        self._touch()

    def _reset_for_fault(self, stream_id: int, code: ErrorCode) -> None:
        """A stream error (section 5.4.2) that is the peer's fault, so it counts as a reset of the peer's."""
        self._charge_reset()
        self.out.append(frames.rst_stream(stream_id, code))
        self._remember_reset(stream_id)
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._forget(stream)
            self._on_reset(stream, code)

    def _remember_reset(self, stream_id: int) -> None:
        ids = self._reset_ids
        ids[stream_id] = None
        if len(ids) > _RESET_MEMORY:
            del ids[next(iter(ids))]

    def _replenish(self, stream: Stream) -> None:
        """Give the peer back what it has sent on a stream that is being read, once half the window is used."""
        window = self.limits.stream_window_bytes
        if stream.recv_window < window >> 1 and not stream.remote_closed:
            self.out.append(frames.window_update(stream.id, window - stream.recv_window))
            stream.recv_window = window
            self._touch()

    def _charge(self, cost: int) -> None:
        """Count frames that do no work."""
        self._control_budget -= cost
        if self._control_budget >= 0:
            return
        work = (
            (self.last_peer_id + self.next_id) // 2 * _WORK_PER_STREAM
            + self.sent_writes * _WORK_PER_WRITE
            + self.sent_data_bytes // _WORK_BYTES
        )
        earned = work - self._control_credited
        earned += int((self.now - self._control_time) * self.limits.control_frames_per_s)
        self._control_credited = work
        self._control_time = self.now
        self._control_budget = min(self._control_budget + earned, self.limits.control_frames_burst)
        if self._control_budget < 0:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many control frames")

    def _charge_reset(self) -> None:
        """Count a stream that ended before its time."""
        earned = (self.now - self._reset_time) * self.limits.resets_per_s
        self._reset_time = self.now
        self._reset_budget = min(self._reset_budget + earned, self.limits.resets_burst) - 1
        if self._reset_budget < 0:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many resets")

    def _decode(self, block: bytes) -> Any:
        decoder = self._decoder
        try:
            key = decoder.decode(block)
        except hpack.HpackError as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, str(error)) from None
        cache = self._block_cache
        if decoder.changed and cache:
            cache.clear()
        limits = self.limits
        head = self._key_cache.get(key)
        if head is None:
            try:
                fields = decoder.fields(key)
            except hpack.HeaderListTooLarge:
                return self._interpret(None)
            head = self._interpret(fields)
            size = sum([len(name) + len(value) for name, value in fields])
            if size > limits.head_cache_item_bytes or len(block) > limits.head_cache_item_bytes:
                return head if decoder.varying_value is None else self._vary(head, decoder.varying_value)
            if len(self._key_cache) >= limits.head_cache_entries:
                self._key_cache.clear()
            self._key_cache[key] = head
        if decoder.varying_value is not None:
            return self._vary(head, decoder.varying_value)
        if not decoder.changed:
            if len(cache) >= limits.head_cache_entries:
                cache.clear()
            cache[block] = head
        return head

    def _is_idle(self, stream_id: int) -> bool:
        """Whether nobody has opened this stream yet (section 5.1)."""
        if self.is_client:
            return not stream_id & 1 or stream_id >= self.next_id
        return not stream_id & 1 or stream_id > self.last_peer_id

    def _unpad(self, flags: int, data: bytes, start: int, end: int) -> tuple[int, int]:
        if not flags & frames.PADDED:
            return start, end
        if start == end:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "padded frame without pad length")
        padding = data[start]
        if start + 1 + padding > end:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding longer than the frame")
        return start + 1, end - padding

    # Frames, off the fast lane.

    def _on_data_frame(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        length = end - start
        self._recv_window -= length
        if self._recv_window < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection window exceeded")
        if self._is_idle(stream_id):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "DATA on an idle stream")
        start, end = self._unpad(flags, data, start, end)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._charge(1)
            if stream_id not in self._reset_ids:
                self._reset_for_fault(stream_id, ErrorCode.STREAM_CLOSED)
            return
        if stream.remote_closed:
            self._reset_for_fault(stream_id, ErrorCode.STREAM_CLOSED)
            return
        if length > stream.recv_window:
            self._reset_for_fault(stream_id, ErrorCode.FLOW_CONTROL_ERROR)
            return
        end_stream = bool(flags & frames.END_STREAM)
        if start == end and not end_stream:
            self._charge(1)
        stream.recv_window -= length
        stream.remote_closed = end_stream
        self._on_data(stream, data, start, end, end_stream)
        if stream.reading and not stream.remote_closed:
            self._replenish(stream)

    def _on_headers_frame(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> int:
        """A block with padding, priority or CONTINUATION: the position after it, 0 when it is not all there.

        The whole sequence is one unit (section 6.10: nothing may come between), so nothing is kept while it is
        incomplete; it is bounded by `header_list_bytes` and `continuation_frames`.
        """
        size = len(data)
        start, block_end = self._unpad(flags, data, start, end)
        if flags & frames.WITH_PRIORITY:
            start += 5
            if start > block_end:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
            if int.from_bytes(data[start - 5 : start - 1], "big") & 0x7FFFFFFF == stream_id:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "stream depends on itself")
        pieces = [data[start:block_end]]
        total = block_end - start
        done = flags & frames.END_HEADERS
        while not done:
            if len(pieces) > self.limits.continuation_frames or total > self.limits.header_list_bytes:
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too large")
            if size - end < 9:
                return 0
            length, more_flags, more_id = frames.unpack_head(data, end)
            if length & 0xFF != frames.CONTINUATION or more_id & 0x7FFFFFFF != stream_id:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "header block interrupted")
            length >>= 8
            if length > frames.DEFAULT_FRAME_SIZE:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "frame too large")
            start = end + 9
            end = start + length
            if end > size:
                return 0
            pieces.append(data[start:end])
            total += length
            done = more_flags & frames.END_HEADERS
        if total > self.limits.header_list_bytes:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too large")
        block = b"".join(pieces)
        head = self._block_cache.get(block)
        if head is None:
            head = self._decode(block)
        self._on_headers(stream_id, head, bool(flags & frames.END_STREAM))
        return end

    def _on_priority_frame(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        if not stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        self._charge(1)
        if end - start != 5:
            if self._is_idle(stream_id):
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PRIORITY of a wrong size")
            self._reset_for_fault(stream_id, ErrorCode.FRAME_SIZE_ERROR)

    def _on_rst_stream_frame(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        if end - start != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM of a wrong size")
        if self._is_idle(stream_id):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "RST_STREAM on an idle stream")
        stream = self.streams.get(stream_id)
        if stream is None:
            self._charge(1)
            return
        if not self.is_client:
            self._charge_reset()
        self._forget(stream)
        self._on_reset(stream, int.from_bytes(data[start:end], "big"))

    def _on_settings_frame(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        self._charge(1)
        if flags & frames.ACK:
            if start != end:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS acknowledgement with a payload")
            return
        if (end - start) % 6:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a wrong size")
        self._settings_seen = True
        self._charge((end - start) // 48)
        window = self.peer_initial_window
        for at in range(start, end, 6):
            name = int.from_bytes(data[at : at + 2], "big")
            value = int.from_bytes(data[at + 2 : at + 6], "big")
            if name == frames.HEADER_TABLE_SIZE:
                self.encoder.set_table_size(value)
            elif name == frames.ENABLE_PUSH:
                if value > 1 or (value and self.is_client):
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "bad ENABLE_PUSH")
            elif name == frames.MAX_CONCURRENT_STREAMS:
                self.peer_max_streams = value
            elif name == frames.INITIAL_WINDOW_SIZE:
                if value > frames.MAX_WINDOW:
                    raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE too large")
                window = value
            elif name == frames.MAX_FRAME_SIZE:
                if not frames.DEFAULT_FRAME_SIZE <= value <= frames.LARGEST_FRAME_SIZE:
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "bad MAX_FRAME_SIZE")
                self.peer_max_frame = value
        # Section 6.9.2: the change applies to every open stream, and may make a window negative.
        # The acknowledgement goes first: until the peer has it, it may hold us to the old window.
        self.out.append(frames.SETTINGS_ACK)
        change = window - self.peer_initial_window
        self.peer_initial_window = window
        if change:
            self._charge(len(self.streams) // 64)
            for stream in list(self.streams.values()):
                if not stream.local_closed and not self._grant_stream(stream, change):
                    raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "stream window overflows")
        self._on_settings()

    def _on_push_promise_frame(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE refused")

    def _on_ping_frame(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if end - start != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PING of a wrong size")
        self._charge(1)
        if flags & frames.ACK:
            self._on_pong(data[start:end])
        else:
            self.out.append(frames.ping(data[start:end], ack=True))
            self._on_ping()

    def _on_goaway_frame(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        if end - start < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY of a wrong size")
        self._charge(1)
        last_id = int.from_bytes(data[start : start + 4], "big") & 0x7FFFFFFF
        code = int.from_bytes(data[start + 4 : start + 8], "big")
        self._on_goaway(last_id, code, data[start + 8 : end])

    def _on_window_update_frame(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        if end - start != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE of a wrong size")
        self._charge(1)
        increment = int.from_bytes(data[start:end], "big") & 0x7FFFFFFF
        if not stream_id:
            if not increment:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            if not self._grant_connection(increment):
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "connection window overflows")
            return
        if self._is_idle(stream_id):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE on an idle stream")
        stream = self.streams.get(stream_id)
        if stream is None:
            return
        if not increment:
            self._reset_for_fault(stream_id, ErrorCode.PROTOCOL_ERROR)
        elif not self._grant_stream(stream, increment):
            self._reset_for_fault(stream_id, ErrorCode.FLOW_CONTROL_ERROR)

    def _on_continuation_frame(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")


def _no_wake(connection: object) -> None:
    """Nobody writes the output of a connection that is lost."""


_HANDLERS: Final = {
    frames.PRIORITY: Connection._on_priority_frame,
    frames.RST_STREAM: Connection._on_rst_stream_frame,
    frames.SETTINGS: Connection._on_settings_frame,
    frames.PUSH_PROMISE: Connection._on_push_promise_frame,
    frames.PING: Connection._on_ping_frame,
    frames.GOAWAY: Connection._on_goaway_frame,
    frames.WINDOW_UPDATE: Connection._on_window_update_frame,
    frames.CONTINUATION: Connection._on_continuation_frame,
}
