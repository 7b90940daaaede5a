"""RFC 9113, frame by frame: what a server's connection answers to the frames of a client."""

import pytest

from kvorum.wire import frames
from kvorum.wire.frames import ErrorCode
from kvorum.wire.head import Head
from kvorum.wire.limits import ServerLimits
from kvorum.wire.server_calls import ServerStream
from kvorum.wire.server_connection import ServerConnection
from tests.wire.peer import SETTINGS, Frame, ServerPeer, data, goaway, message, request_fields, reset
from tests.wire.serving import Echo, echo


def keep(core: ServerConnection, stream_id: int, head: Head, text: bytes) -> None:
    """A handler that answers later."""


@pytest.fixture
def peer() -> ServerPeer:
    return ServerPeer(
        unary={"/t.S/Echo": echo, "/t.S/Keep": keep},
        streams={"/t.S/Chat": Echo},
    ).started()


def test_the_handshake() -> None:
    peer = ServerPeer()
    answer = peer.feed(frames.PREFACE + SETTINGS)
    assert [frame.kind for frame in answer] == [frames.SETTINGS, frames.WINDOW_UPDATE, frames.SETTINGS]
    settings = answer[0].payload
    values = {
        int.from_bytes(settings[at : at + 2], "big"): int.from_bytes(settings[at + 2 : at + 6], "big")
        for at in range(0, len(settings), 6)
    }
    assert values == {frames.INITIAL_WINDOW_SIZE: 65_535}
    assert answer[1].number == 16 * 1024 * 1024 - 65_535
    assert answer[2] == Frame(frames.SETTINGS, frames.ACK, 0, b"")


def test_max_concurrent_streams_is_advertised_and_enforced() -> None:
    peer = ServerPeer(unary={"/t.S/Echo": keep}, limits=ServerLimits(max_concurrent_streams=2))
    settings = peer.feed(frames.PREFACE + SETTINGS)[0].payload
    assert b"\x00\x03\x00\x00\x00\x02" in settings
    assert peer.feed(peer.request(1), peer.request(3)) == []
    assert reset(peer.feed(peer.request(5)), 5) is ErrorCode.REFUSED_STREAM
    assert peer.core.reply(1, b"")
    peer.taken()
    assert peer.feed(peer.request(7)) == []


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\n\r\nxxxxxxxxx", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX", b"x"])
def test_a_wrong_preface(start: bytes) -> None:
    assert goaway(ServerPeer().feed(start)) == (ErrorCode.PROTOCOL_ERROR, "bad preface")


def test_the_first_frame_must_be_settings() -> None:
    for first in (frames.ping(b"12345678", ack=False), frames.SETTINGS_ACK, ServerPeer().request(1)):
        answer = ServerPeer().feed(frames.PREFACE + first)
        assert goaway(answer) == (ErrorCode.PROTOCOL_ERROR, "first frame is not SETTINGS")


FRAME = frames.frame
CONNECTION_ERRORS = {
    "frame too large": (FRAME(frames.DATA, 0, 1, b"x" * 16_385), ErrorCode.FRAME_SIZE_ERROR),
    "length alone is too large": (b"\xff\xff\xff\x00\x00\x00\x00\x00\x01", ErrorCode.FRAME_SIZE_ERROR),
    "unknown frame too large": (FRAME(0x20, 0, 0, b"x" * 16_385), ErrorCode.FRAME_SIZE_ERROR),
    "DATA on stream 0": (data(0, b"x"), ErrorCode.PROTOCOL_ERROR),
    "DATA on an idle stream": (data(5, b"x"), ErrorCode.PROTOCOL_ERROR),
    "DATA on a server's stream": (data(2, b"x"), ErrorCode.PROTOCOL_ERROR),
    "DATA with all padding": (FRAME(frames.DATA, 8, 1, b"\x03xy"), ErrorCode.PROTOCOL_ERROR),
    "DATA without pad length": (FRAME(frames.DATA, 8, 1, b""), ErrorCode.FRAME_SIZE_ERROR),
    "HEADERS on stream 0": (FRAME(frames.HEADERS, 4, 0, b"\x82"), ErrorCode.PROTOCOL_ERROR),
    "HEADERS on an even stream": (FRAME(frames.HEADERS, 4, 2, b"\x82"), ErrorCode.PROTOCOL_ERROR),
    "HEADERS with too much padding": (FRAME(frames.HEADERS, 12, 5, b"\x09\x82"), ErrorCode.PROTOCOL_ERROR),
    "HEADERS too short for priority": (FRAME(frames.HEADERS, 0x24, 5, b"\0\0\0\0"), ErrorCode.FRAME_SIZE_ERROR),
    "HEADERS that depends on itself": (FRAME(frames.HEADERS, 0x24, 5, b"\0\0\0\5\0\x82"), ErrorCode.PROTOCOL_ERROR),
    "undecodable block": (FRAME(frames.HEADERS, 4, 5, b"\xff"), ErrorCode.COMPRESSION_ERROR),
    "undecodable trailers": (FRAME(frames.HEADERS, 5, 1, b"\x80"), ErrorCode.COMPRESSION_ERROR),
    "interrupted block": (
        FRAME(frames.HEADERS, 0, 5, b"\x82") + frames.ping(b"x" * 8, ack=False),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "block continued on another stream": (
        FRAME(frames.HEADERS, 0, 5, b"\x82") + FRAME(frames.CONTINUATION, 4, 7, b"\x84"),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "continuation too large": (
        FRAME(frames.HEADERS, 0, 5, b"\x82") + FRAME(frames.CONTINUATION, 4, 5, b"\x84" * 16_385),
        ErrorCode.FRAME_SIZE_ERROR,
    ),
    "CONTINUATION without HEADERS": (FRAME(frames.CONTINUATION, 4, 1, b"\x82"), ErrorCode.PROTOCOL_ERROR),
    "PRIORITY on stream 0": (FRAME(frames.PRIORITY, 0, 0, b"\0" * 5), ErrorCode.PROTOCOL_ERROR),
    "RST_STREAM on stream 0": (frames.rst_stream(0, 8), ErrorCode.PROTOCOL_ERROR),
    "RST_STREAM on an idle stream": (frames.rst_stream(7, 8), ErrorCode.PROTOCOL_ERROR),
    "RST_STREAM of a wrong size": (FRAME(frames.RST_STREAM, 0, 1, b"\0" * 5), ErrorCode.FRAME_SIZE_ERROR),
    "SETTINGS on a stream": (FRAME(frames.SETTINGS, 0, 1, b""), ErrorCode.PROTOCOL_ERROR),
    "SETTINGS of a wrong size": (FRAME(frames.SETTINGS, 0, 0, b"\0" * 5), ErrorCode.FRAME_SIZE_ERROR),
    "SETTINGS ack with payload": (FRAME(frames.SETTINGS, 1, 0, b"\0" * 6), ErrorCode.FRAME_SIZE_ERROR),
    "ENABLE_PUSH 2": (frames.settings({frames.ENABLE_PUSH: 2}), ErrorCode.PROTOCOL_ERROR),
    "window too large": (frames.settings({frames.INITIAL_WINDOW_SIZE: 2**31}), ErrorCode.FLOW_CONTROL_ERROR),
    "frame size too small": (frames.settings({frames.MAX_FRAME_SIZE: 16_383}), ErrorCode.PROTOCOL_ERROR),
    "frame size too large": (frames.settings({frames.MAX_FRAME_SIZE: 2**24}), ErrorCode.PROTOCOL_ERROR),
    "PUSH_PROMISE": (FRAME(frames.PUSH_PROMISE, 4, 1, b"\0\0\0\2\x82"), ErrorCode.PROTOCOL_ERROR),
    "PING on a stream": (FRAME(frames.PING, 0, 1, b"x" * 8), ErrorCode.PROTOCOL_ERROR),
    "PING of a wrong size": (FRAME(frames.PING, 0, 0, b"x" * 7), ErrorCode.FRAME_SIZE_ERROR),
    "GOAWAY on a stream": (FRAME(frames.GOAWAY, 0, 1, b"\0" * 8), ErrorCode.PROTOCOL_ERROR),
    "GOAWAY of a wrong size": (FRAME(frames.GOAWAY, 0, 0, b"\0" * 7), ErrorCode.FRAME_SIZE_ERROR),
    "WINDOW_UPDATE of 0": (frames.window_update(0, 0), ErrorCode.PROTOCOL_ERROR),
    "WINDOW_UPDATE too large": (frames.window_update(0, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
    "WINDOW_UPDATE of a wrong size": (FRAME(frames.WINDOW_UPDATE, 0, 0, b"\0" * 3), ErrorCode.FRAME_SIZE_ERROR),
    "WINDOW_UPDATE on an idle stream": (frames.window_update(7, 1), ErrorCode.PROTOCOL_ERROR),
    "stream windows overflow by SETTINGS": (
        frames.window_update(1, 2**31 - 1 - 65_535) + frames.settings({frames.INITIAL_WINDOW_SIZE: 65_536}),
        ErrorCode.FLOW_CONTROL_ERROR,
    ),
}


@pytest.mark.parametrize("name", CONNECTION_ERRORS)
def test_connection_errors(peer: ServerPeer, name: str) -> None:
    octets, code = CONNECTION_ERRORS[name]
    assert peer.feed(peer.headers(1, request_fields("/t.S/Keep"))) == []
    assert goaway(peer.feed(octets))[0] is code
    assert not peer.core.alive
    assert not peer.core.streams
    assert peer.feed(peer.request(9)) == []
    assert peer.shared.routes["/t.S/Keep"].failed == {1: 1}


def test_a_lower_stream_id_is_closed(peer: ServerPeer) -> None:
    peer.echo(5)
    assert goaway(peer.feed(peer.headers(3, request_fields())))[0] is ErrorCode.STREAM_CLOSED


@pytest.mark.parametrize(
    ("octets", "code"),
    [
        (data(1, b"x"), ErrorCode.STREAM_CLOSED),
        (data(1, b"", end=True), ErrorCode.STREAM_CLOSED),
        (FRAME(frames.HEADERS, 5, 1, b"\x00\x01a\x01b"), ErrorCode.STREAM_CLOSED),
        (frames.window_update(1, 0), ErrorCode.PROTOCOL_ERROR),
        (frames.window_update(1, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
        (FRAME(frames.PRIORITY, 0, 1, b"\0" * 4), ErrorCode.FRAME_SIZE_ERROR),
    ],
)
def test_stream_errors_leave_the_connection(peer: ServerPeer, octets: bytes, code: ErrorCode) -> None:
    assert peer.feed(peer.request(1, path="/t.S/Keep")) == []
    assert reset(peer.feed(octets), 1) is code
    assert peer.core.reply(1, b"") is False
    assert peer.echo(3) == b"hello"


def test_data_after_the_end_of_a_finished_stream(peer: ServerPeer) -> None:
    peer.echo(1)
    assert reset(peer.feed(data(1, b"x")), 1) is ErrorCode.STREAM_CLOSED
    # Frames that were under way when that left are no further fault.
    assert peer.feed(data(1, b"x"), frames.window_update(1, 5), frames.rst_stream(1, 8)) == []
    assert peer.echo(3) == b"hello"


def malformed(*fields: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    return [*request_fields(), *fields]


@pytest.mark.parametrize(
    "fields",
    [
        [field for field in request_fields() if field[0] != b":method"],
        [field for field in request_fields() if field[0] != b":path"],
        [field for field in request_fields() if field[0] != b":scheme"],
        [(b":path", b""), *[field for field in request_fields() if field[0] != b":path"]],
        malformed((b":path", b"/late")),
        [(b":path", b"/twice"), *request_fields()],
        [(b":status", b"200"), *request_fields()],
        malformed((b"Upper", b"x")),
        malformed((b"connection", b"close")),
        malformed((b"transfer-encoding", b"chunked")),
        malformed((b"te", b"gzip")),
        malformed((b"a", b"line\r\nfeed")),
        malformed((b"a", b"nul\0")),
        malformed((b"sp ace", b"x")),
        malformed((b"", b"x")),
        [(b"only", b"trailers")],
    ],
)
def test_malformed_requests(peer: ServerPeer, fields: list[tuple[bytes, bytes]]) -> None:
    assert reset(peer.feed(peer.headers(1, fields)), 1) is ErrorCode.PROTOCOL_ERROR
    assert peer.echo(3) == b"hello"


def test_padding_priority_and_continuation(peer: ServerPeer) -> None:
    block = peer.block(request_fields())
    padded = FRAME(frames.HEADERS, 0x28, 1, b"\x03" + b"\0\0\0\0\x10" + block[:5] + b"\0\0\0")
    pieces = [FRAME(frames.CONTINUATION, 0, 1, block[at : at + 7]) for at in range(5, len(block), 7)]
    body = message(b"padded")
    padded_data = FRAME(frames.DATA, 9, 1, b"\x04" + body + b"\0\0\0\0")
    last = FRAME(frames.CONTINUATION, 4, 1, b"")
    answer = peer.feed(padded, *pieces, last, padded_data)
    assert [frame.kind for frame in answer] == [frames.HEADERS, frames.DATA, frames.HEADERS]
    assert answer[1].payload == body


def test_trailers_of_a_request_end_it(peer: ServerPeer) -> None:
    trailers = peer.headers(1, [(b"checksum", b"1")], end=True)
    answer = peer.feed(peer.headers(1, request_fields()), data(1, message(b"x")), trailers)
    assert answer[1].payload == message(b"x")


@pytest.mark.parametrize("end", [True, False])
def test_trailers_that_are_none(peer: ServerPeer, end: bool) -> None:
    fields = request_fields() if end else [(b"a", b"b")]
    peer.feed(peer.headers(1, request_fields()))
    assert reset(peer.feed(peer.headers(1, fields, end=end)), 1) is ErrorCode.PROTOCOL_ERROR


def test_frames_that_mean_nothing_here(peer: ServerPeer) -> None:
    unknown = FRAME(0x20, 0xFF, 3, b"extension")
    priority = FRAME(frames.PRIORITY, 0, 9, b"\0\0\0\1\x10")
    settings = frames.settings({0x99: 7, frames.ENABLE_PUSH: 1})
    assert peer.feed(unknown, priority) == []
    assert peer.feed(settings) == [Frame(frames.SETTINGS, frames.ACK, 0, b"")]
    assert peer.feed(frames.goaway(0, 0, b"bye")) == []
    assert peer.echo(1) == b"hello"


def test_reserved_bits_are_ignored(peer: ServerPeer) -> None:
    request = bytearray(peer.headers(1, request_fields()))
    request[5] |= 0x80
    body = bytearray(data(1, message(b"x"), end=True))
    body[5] |= 0x80
    answer = peer.feed(bytes(request + body))
    assert answer[1].payload == message(b"x")


def test_ping_is_acknowledged(peer: ServerPeer) -> None:
    assert peer.feed(frames.ping(b"12345678", ack=False)) == [Frame(frames.PING, frames.ACK, 0, b"12345678")]
    assert peer.feed(frames.ping(b"12345678", ack=True)) == []


# Flow control, outbound.


def test_a_reply_waits_for_the_stream_window() -> None:
    peer = ServerPeer().started({frames.INITIAL_WINDOW_SIZE: 10})
    answer = peer.feed(peer.request(1, b"x" * 20))
    assert [(frame.kind, len(frame.payload)) for frame in answer[1:]] == [(frames.DATA, 10)]
    answer = peer.feed(frames.window_update(1, 7))
    assert [(frame.kind, len(frame.payload)) for frame in answer] == [(frames.DATA, 7)]
    answer = peer.feed(frames.window_update(1, 100))
    assert [frame.kind for frame in answer] == [frames.DATA, frames.HEADERS]
    assert len(answer[0].payload) == 8
    assert peer.core.queued_bytes == 0
    assert not peer.core.streams


def test_initial_window_changes_in_flight() -> None:
    peer = ServerPeer().started({frames.INITIAL_WINDOW_SIZE: 10})
    peer.feed(peer.request(1, b"x" * 45))
    # 10 are sent; a window of 4 makes it -6, and one of 20 leaves 10 more.
    assert [frame.kind for frame in peer.feed(frames.settings({frames.INITIAL_WINDOW_SIZE: 4}))] == [frames.SETTINGS]
    assert peer.feed(frames.window_update(1, 6)) == []
    answer = peer.feed(frames.settings({frames.INITIAL_WINDOW_SIZE: 20}))
    assert [(frame.kind, len(frame.payload)) for frame in answer] == [(frames.SETTINGS, 0), (frames.DATA, 16)]
    answer = peer.feed(frames.settings({frames.INITIAL_WINDOW_SIZE: 100}))
    assert [frame.kind for frame in answer] == [frames.SETTINGS, frames.DATA, frames.HEADERS]


def test_the_connection_window_is_shared_in_turns() -> None:
    peer = ServerPeer().started({frames.INITIAL_WINDOW_SIZE: 2**31 - 1})
    for stream_id in (1, 3, 5):
        peer.feed(peer.request(stream_id, b"x" * 200_000))
    assert peer.core.credit == 0
    seen: list[int] = []
    for _ in range(40):
        answer = peer.feed(frames.window_update(0, 65_536))
        seen.extend([frame.stream_id for frame in answer if frame.kind == frames.DATA])
    assert not peer.core.streams
    # No stream has to wait for another's end.
    assert len(set(seen[:13])) == 3


def test_small_replies_pass_a_stream_that_is_stuck() -> None:
    peer = ServerPeer().started()
    peer.feed(peer.request(1, b"x" * 60_000))
    peer.feed(frames.window_update(0, 1_000_000))
    peer.feed(peer.request(3, b"x" * 100_000))
    assert peer.core.queued_bytes == 100_005 - 65_535
    assert peer.echo(5) == b"hello"
    answer = peer.feed(frames.window_update(3, 100_000))
    assert answer[-1].kind == frames.HEADERS
    assert sum(len(frame.payload) for frame in answer[:-1]) == 100_005 - 65_535


@pytest.mark.parametrize(("frame_size", "expected"), [(16_384, 7), (100_000, 2), (200_000, 1)])
def test_frames_keep_to_the_peers_size(frame_size: int, expected: int) -> None:
    peer = ServerPeer().started({frames.INITIAL_WINDOW_SIZE: 2**20, frames.MAX_FRAME_SIZE: frame_size})
    peer.feed(frames.window_update(0, 1_000_000))
    answer = peer.feed(peer.request(1, b"x" * 100_000))
    payloads = [frame.payload for frame in answer if frame.kind == frames.DATA]
    assert len(payloads) == expected
    assert max(len(payload) for payload in payloads) <= frame_size
    assert b"".join(payloads) == message(b"x" * 100_000)


def test_one_turn_sends_its_share() -> None:
    peer = ServerPeer(limits=ServerLimits(turn_bytes=100_000)).started({frames.INITIAL_WINDOW_SIZE: 2**31 - 1})
    peer.feed(frames.window_update(0, 10_000_000))
    peer.core.receive(peer.request(1, b"x" * 1_000_000), peer.now)
    sizes = []
    while peer.core.unfinished:
        sizes.append(len(peer.core.take()))
        peer.core.next_turn()
    assert len(sizes) >= 10
    assert max(sizes) < 110_000
    assert not peer.core.streams


def test_a_congested_socket_holds_data_but_not_control_frames(peer: ServerPeer) -> None:
    peer.core.set_congested(True)
    answer = peer.feed(peer.request(1, b"x"), frames.ping(b"12345678", ack=False))
    assert [frame.kind for frame in answer] == [frames.HEADERS, frames.PING]
    peer.core.set_congested(False)
    assert [frame.kind for frame in peer.taken()] == [frames.DATA, frames.HEADERS]


def test_new_streams_are_refused_while_too_much_is_queued() -> None:
    peer = ServerPeer(limits=ServerLimits(queued_bytes=1000)).started({frames.INITIAL_WINDOW_SIZE: 0})
    peer.feed(peer.request(1, b"x" * 2000))
    assert reset(peer.feed(peer.headers(3, request_fields())), 3) is ErrorCode.REFUSED_STREAM
    peer.feed(frames.window_update(1, 5000))
    peer.feed(frames.settings({frames.INITIAL_WINDOW_SIZE: 65_535}))
    assert peer.echo(5) == b"hello"


def test_reset_drops_what_is_queued() -> None:
    peer = ServerPeer().started({frames.INITIAL_WINDOW_SIZE: 0})
    peer.feed(peer.request(1, b"x" * 2000))
    assert peer.core.queued_bytes == 2005
    assert peer.feed(frames.rst_stream(1, ErrorCode.CANCEL)) == []
    assert peer.core.queued_bytes == 0
    assert not peer.core.streams


# Flow control, inbound.


def test_the_stream_window_is_enforced() -> None:
    limits = ServerLimits(stream_window_bytes=65_535)
    streams: list[ServerStream] = []

    def deaf(stream: ServerStream, head: Head) -> Echo:
        stream.pause_reading()
        streams.append(stream)
        return Echo(stream, head)

    peer = ServerPeer(streams={"/t.S/Deaf": deaf}, limits=limits).started()
    peer.feed(peer.headers(1, request_fields("/t.S/Deaf")))
    body = message(b"x" * 16_379)
    assert peer.feed(*[data(1, body)] * 3, data(1, body[:-1])) == []
    assert peer.core.unfinished_bytes == 65_535
    streams[0].resume_reading()
    answer = peer.taken()
    assert answer[0].kind == frames.HEADERS
    assert [frame.number for frame in answer if frame.kind == frames.WINDOW_UPDATE] == [65_535]
    streams[0].pause_reading()
    assert peer.core.unfinished_bytes == 16_383
    answer = peer.feed(*[data(1, b"x" * 16_384)] * 4)
    assert reset(answer, 1) is ErrorCode.FLOW_CONTROL_ERROR
    assert peer.core.unfinished_bytes == 0


def test_the_connection_window_is_enforced_and_given_back() -> None:
    limits = ServerLimits(stream_window_bytes=2**20, connection_window_bytes=100_000)
    peer = ServerPeer(unary={"/t.S/Keep": keep}, limits=limits).started()
    peer.feed(peer.headers(1, request_fields("/t.S/Keep")))
    start = message(b"x" * 1_000_000)[:10_000]
    assert peer.feed(data(1, start), *[data(1, b"\0" * 10_000)] * 4) == []
    assert [(frame.stream_id, frame.number) for frame in peer.feed(data(1, b"\0"))] == [(0, 50_001)]
    octets = b"".join([data(1, b"\0" * 10_000)] * 10) + data(1, b"\0")
    assert goaway(peer.feed(octets)) == (ErrorCode.FLOW_CONTROL_ERROR, "connection window exceeded")


def test_data_of_forgotten_streams_still_counts_for_the_connection() -> None:
    limits = ServerLimits(connection_window_bytes=100_000)
    peer = ServerPeer(unary={"/t.S/Keep": keep}, limits=limits).started()
    peer.feed(peer.headers(1, request_fields("/t.S/Keep")), frames.rst_stream(1, 8))
    assert peer.feed(data(1, b"x" * 10))[0].kind == frames.RST_STREAM
    answer = peer.feed(*[data(1, b"x" * 16_000)] * 4)
    assert [(frame.kind, frame.stream_id, frame.number) for frame in answer] == [(frames.WINDOW_UPDATE, 0, 64_010)]


def test_padding_counts_for_the_window() -> None:
    peer = ServerPeer(unary={"/t.S/Keep": keep}, limits=ServerLimits(stream_window_bytes=65_535)).started()
    peer.feed(peer.headers(1, request_fields("/t.S/Keep")))
    padded = FRAME(frames.DATA, 8, 1, b"\xff" + b"x" * 6 + b"\0" * 255)
    start = FRAME(frames.DATA, 8, 1, b"\xff" + message(b"x" * 10_000)[:6] + b"\0" * 255)
    answer = peer.feed(start, *[padded] * 125)
    assert [(frame.kind, frame.stream_id, frame.number) for frame in answer] == [(frames.WINDOW_UPDATE, 1, 126 * 262)]


# Ends.


def test_goaway_in_two_steps_loses_nothing(peer: ServerPeer) -> None:
    peer.feed(peer.request(1, path="/t.S/Keep"))
    peer.core.drain()
    first, ping = peer.taken()
    assert (first.kind, first.payload) == (frames.GOAWAY, b"\x7f\xff\xff\xff\0\0\0\0graceful_stop")
    # A request that crossed the GOAWAY is still served.
    peer.feed(peer.request(3, path="/t.S/Keep"))
    (second,) = peer.feed(frames.ping(ping.payload, ack=True))
    assert (second.kind, second.payload) == (frames.GOAWAY, b"\0\0\0\3\0\0\0\0")
    assert peer.feed(peer.request(5, path="/t.S/Keep")) == []
    assert not peer.core.drained
    assert peer.core.reply(1, b"one")
    assert peer.core.reply(3, b"three")
    assert len(peer.taken()) == 6
    assert peer.core.drained


def test_drain_goes_on_without_an_answer_to_its_ping(peer: ServerPeer) -> None:
    peer.core.drain()
    peer.taken()
    peer.core.tick(peer.now + 5.1)
    assert [frame.kind for frame in peer.taken()] == [frames.GOAWAY]
    assert peer.core.drained
