"""gRPC over HTTP/2 on a plain socket, for load: many requests in one write, replies counted and checked, little else.

A load generator has to cost clearly less than the server it loads. So the header block of a connection's first request
fills the dynamic table and all later ones are six indexes; a turn sends all its requests in one write; and replies are
checked by their frames alone: each stream must end after exactly one whole message (a gRPC error carries none).
"""

import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
MAX_WINDOW = (1 << 31) - 1
DEFAULT_WINDOW = 65_535
MAX_FRAME_BYTES = 16_384  # what every server takes (RFC 9113, section 6.5.2)
TOP_UP_BYTES = 1 << 28


class LoadError(Exception):
    """The server did something other than answer."""


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One HTTP/2 frame (RFC 9113, section 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def grpc_message(body: bytes) -> bytes:
    """A message in gRPC's framing, not compressed."""
    return b"\0" + len(body).to_bytes(4, "big") + body


def _indexed_literal(name: bytes, value: bytes) -> bytes:
    """A literal field that enters the dynamic table (RFC 7541, section 6.2.1), both shorter than 127 bytes."""
    return b"\x40" + bytes((len(name),)) + name + bytes((len(value),)) + value


def header_blocks(path: bytes) -> tuple[bytes, bytes]:
    """(the first request's block, the block of every later one) of a connection that calls `path` alone."""
    post, http = b"\x83", b"\x86"
    fields = (
        (b":path", path),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )
    first = post + http + b"".join(_indexed_literal(name, value) for name, value in fields)
    # the newest entry of the dynamic table is 62
    later = post + http + bytes(0x80 | 62 + age for age in reversed(range(len(fields))))
    return first, later


class Connection:
    """One connection: `send` many requests, `receive` what has come; `ended` counts whole, checked replies."""

    def __init__(self, address: str, path: bytes) -> None:
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        settings = frame(SETTINGS, 0, 0, struct.pack(">HI", 4, MAX_WINDOW))
        window = frame(WINDOW_UPDATE, 0, 0, (MAX_WINDOW - DEFAULT_WINDOW).to_bytes(4, "big"))
        self.socket.sendall(PREFACE + settings + window)
        self.ended = 0
        self.send_window = DEFAULT_WINDOW
        self._first_block, self._block = header_blocks(path)
        self._next_stream = 1
        self._unread = b""
        self._missing: dict[int, int] = {}  # stream to the bytes its message still lacks
        self._received = 0

    def close(self) -> None:
        self.socket.close()

    def send(self, messages: list[bytes]) -> int:
        """Sends a request for each message (already in gRPC framing) that the window has room for; returns how many."""
        stream, window = self._next_stream, self.send_window
        block = self._first_block if stream == 1 else self._block
        out: list[bytes] = []
        for message in messages:
            size = len(message)
            assert size <= MAX_FRAME_BYTES, "a request is one frame here"
            if size > window:
                break
            window -= size
            number = stream.to_bytes(4, "big")
            out += (
                len(block).to_bytes(3, "big"), b"\x01\x04", number, block,
                size.to_bytes(3, "big"), b"\x00\x01", number, message,
            )  # fmt: skip
            stream += 2
            block = self._block
        sent = (stream - self._next_stream) >> 1
        self._next_stream, self.send_window = stream, window
        self.socket.sendall(b"".join(out))
        return sent

    def receive(self) -> None:
        """Waits for bytes and takes in all whole frames; raises LoadError for anything that is not an answer."""
        data = self.socket.recv(1 << 20)
        if not data:
            raise LoadError(f"the server closed the connection after {self.ended} replies")
        data = self._unread + data if self._unread else data
        at, size, missing = 0, len(data), self._missing
        while size - at >= 9:
            end = at + 9 + (data[at] << 16 | data[at + 1] << 8 | data[at + 2])
            if end > size:
                break
            kind, flags = data[at + 3], data[at + 4]
            if kind == DATA:
                self._take_data(int.from_bytes(data[at + 5 : at + 9], "big"), data, at + 9, end)
                if flags & END_STREAM:
                    raise LoadError("a reply without trailers")
            elif kind == HEADERS:
                if flags & END_STREAM:
                    stream = int.from_bytes(data[at + 5 : at + 9], "big")
                    if missing.pop(stream, -1) != 0:
                        raise LoadError(f"stream {stream} ended without a whole message: {data[at + 9 : end]!r}")
                    self.ended += 1
            else:
                self._control(kind, flags, data[at + 5 : at + 9], data[at + 9 : end])
            at = end
        self._unread = data[at:]

    def _take_data(self, stream: int, data: bytes, at: int, end: int) -> None:
        missing = self._missing
        if stream not in missing:
            if end - at < 5:
                raise LoadError("a message's length split over frames is not expected")
            if data[at]:
                raise LoadError("a compressed reply")
            missing[stream] = int.from_bytes(data[at + 1 : at + 5], "big") + 5
        missing[stream] -= end - at
        self._received += end - at
        if self._received >= TOP_UP_BYTES:
            self.socket.sendall(frame(WINDOW_UPDATE, 0, 0, self._received.to_bytes(4, "big")))
            self._received = 0

    def _control(self, kind: int, flags: int, stream: bytes, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            self.socket.sendall(frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            self.socket.sendall(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE and stream == b"\0\0\0\0":  # a request is far smaller than its stream's window
            self.send_window += int.from_bytes(payload, "big")
        elif kind == RST_STREAM and payload == b"\0\0\0\0" and int.from_bytes(stream, "big") not in self._missing:
            pass  # NO_ERROR behind a whole reply: a server that had not yet read the request's end (RFC 9113, 8.1)
        elif kind in (RST_STREAM, GOAWAY):
            raise LoadError(f"the server sent {'RST_STREAM' if kind == RST_STREAM else 'GOAWAY'}: {payload!r}")
