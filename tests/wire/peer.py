"""A server's or client's core without I/O, spoken to in frames; header blocks are checked by the hpack package."""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hpack import Decoder, Encoder

from kvorum.wire import frames
from kvorum.wire.calls import ClientCall
from kvorum.wire.client_connection import ClientConnection
from kvorum.wire.connection import Connection
from kvorum.wire.frames import ErrorCode
from kvorum.wire.limits import ClientLimits, ServerLimits
from kvorum.wire.routes import ServerShared, StreamOpen, UnaryHandler
from kvorum.wire.server_connection import ServerConnection
from tests.wire.serving import echo

Fields = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Frame:
    """A frame of our core's output."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes

    @property
    def number(self) -> int:
        """The payload of RST_STREAM or WINDOW_UPDATE."""
        return int(struct.unpack(">I", self.payload)[0])


def split(data: bytes) -> list[Frame]:
    """The frames of complete output."""
    found = []
    while data:
        assert len(data) >= 9
        size = int.from_bytes(data[:3], "big")
        stream_id = int.from_bytes(data[5:9], "big")
        assert len(data) >= 9 + size
        found.append(Frame(data[3], data[4], stream_id, data[9 : 9 + size]))
        data = data[9 + size :]
    return found


def request_fields(path: str = "/t.S/Echo", more: Iterable[tuple[bytes, bytes]] = ()) -> Fields:
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"a"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        *more,
    ]


class Peer:
    """The other end of a core: encodes requests, decodes what comes."""

    core: Connection

    def __init__(self) -> None:
        self.now = 1000.0
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.woken = 0

    def wake(self, core: object) -> None:
        self.woken += 1

    def feed(self, *data: bytes) -> list[Frame]:
        """Give octets to the core; the frames it answers."""
        self.core.receive(b"".join(data), self.now)
        return self.taken()

    def taken(self) -> list[Frame]:
        """All the output there is, over as many turns as it takes."""
        output = self.core.take()
        while self.core.unfinished and not self.core.closed:
            self.core.next_turn()
            output += self.core.take()
        return split(output)

    def block(self, fields: Fields) -> bytes:
        return bytes(self.encoder.encode(fields))

    def headers(self, stream_id: int, fields: Fields, *, end: bool = False) -> bytes:
        return frames.frame(frames.HEADERS, 4 | (1 if end else 0), stream_id, self.block(fields))

    def fields(self, frame: Frame) -> dict[bytes, bytes]:
        """The decoded block of a HEADERS frame."""
        assert frame.kind == frames.HEADERS
        assert frame.flags & frames.END_HEADERS
        return dict(self.decoder.decode(frame.payload, raw=True))


def data(stream_id: int, payload: bytes, *, end: bool = False) -> bytes:
    return frames.frame(frames.DATA, 1 if end else 0, stream_id, payload)


def body(stream_id: int, payload: bytes) -> bytes:
    """DATA frames of at most 16,384 octets, the last with END_STREAM."""
    starts = range(0, len(payload) or 1, 16_384)
    return b"".join([data(stream_id, payload[at : at + 16_384], end=at + 16_384 >= len(payload)) for at in starts])


def message(payload: bytes) -> bytes:
    return struct.pack(">BI", 0, len(payload)) + payload


SETTINGS = frames.settings({})


class ServerPeer(Peer):
    """A client of a server core; `started` has the handshake behind it."""

    core: ServerConnection

    def __init__(
        self,
        *,
        unary: Mapping[str, UnaryHandler] | None = None,
        streams: Mapping[str, StreamOpen] | None = None,
        limits: ServerLimits | None = None,
    ) -> None:
        super().__init__()
        default: dict[str, UnaryHandler] = {"/t.S/Echo": echo}
        self.shared = ServerShared(
            dict(unary if unary is not None else default), dict(streams or {}), limits or ServerLimits()
        )
        self.core = ServerConnection(self.shared, self.wake, self.now, "peer")

    def started(self, settings: dict[int, int] | None = None) -> "ServerPeer":
        self.feed(frames.PREFACE, frames.settings(settings or {}), frames.SETTINGS_ACK)
        return self

    def request(self, stream_id: int, text: bytes = b"", path: str = "/t.S/Echo") -> bytes:
        """A whole unary request."""
        return self.headers(stream_id, request_fields(path)) + body(stream_id, message(text))

    def echo(self, stream_id: int, text: bytes = b"hello") -> bytes:
        """A whole call of Echo: the message of its reply."""
        answer = self.feed(self.request(stream_id, text))
        assert [frame.kind for frame in answer] == [frames.HEADERS, frames.DATA, frames.HEADERS]
        assert self.fields(answer[2]) == {b"grpc-status": b"0"}
        return answer[1].payload[5:]

    def status(self, frame: Frame) -> tuple[int, str]:
        fields = self.fields(frame)
        assert frame.flags & frames.END_STREAM
        return int(fields[b"grpc-status"]), fields.get(b"grpc-message", b"").decode()


class ClientPeer(Peer):
    """A server of a client core."""

    core: ClientConnection

    def __init__(self, limits: ClientLimits | None = None) -> None:
        super().__init__()
        self.ready = 0
        self.refused: list[ClientCall] = []
        self.core = ClientConnection(
            limits or ClientLimits(),
            self.wake,
            self.now,
            authority="a",
            scheme="http",
            user_agent="test",
            on_ready=self._count_ready,
            unprocessed=self._refuse,
        )

    def _count_ready(self) -> None:
        self.ready += 1

    def _refuse(self, call: ClientCall) -> bool:
        self.refused.append(call)
        return False

    def started(self, settings: dict[int, int] | None = None) -> "ClientPeer":
        self.core.take()
        self.feed(frames.settings(settings or {}), frames.SETTINGS_ACK)
        return self


def goaway(answer: list[Frame]) -> tuple[ErrorCode, str]:
    """Code and text of the GOAWAY that must be the last frame."""
    assert answer, "no answer"
    assert answer[-1].kind == frames.GOAWAY, answer
    payload = answer[-1].payload
    return ErrorCode(int.from_bytes(payload[4:8], "big")), payload[8:].decode()


def reset(answer: list[Frame], stream_id: int) -> ErrorCode:
    """Code of the RST_STREAM that must be the only frame."""
    assert [(frame.kind, frame.stream_id) for frame in answer] == [(frames.RST_STREAM, stream_id)], answer
    return ErrorCode(answer[0].number)
