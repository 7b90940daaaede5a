"""What a peer could make large or frequent has a limit, and ends in the right GOAWAY."""

from collections.abc import Callable

import pytest

from kvorum.wire import frames
from kvorum.wire.frames import ErrorCode
from kvorum.wire.head import Head
from kvorum.wire.limits import ServerLimits
from kvorum.wire.routes import CancelReason
from kvorum.wire.server_calls import ServerStream
from kvorum.wire.server_connection import ServerConnection
from tests.wire.peer import Peer, ServerPeer, body, data, goaway, message, request_fields, reset
from tests.wire.serving import Echo


def keep(core: ServerConnection, stream_id: int, head: Head, text: bytes) -> None:
    """A handler that answers later."""


def started(limits: ServerLimits | None = None) -> ServerPeer:
    return ServerPeer(unary={"/t.S/Keep": keep}, limits=limits).started()


def until_goaway(peer: Peer, octets: Callable[[int], bytes], most: int) -> int:
    """How many times the octets were taken before the connection ended."""
    for number in range(most):
        answer = peer.feed(octets(number))
        if not peer.core.closed:
            continue
        assert goaway(answer)[0] is ErrorCode.ENHANCE_YOUR_CALM
        return number
    raise AssertionError("no end")


PRIORITY = frames.frame(frames.PRIORITY, 0, 9, b"\0\0\0\1\x10")
FLOODS = {
    "SETTINGS": frames.settings({}),
    "SETTINGS acknowledgement": frames.SETTINGS_ACK,
    "PRIORITY": PRIORITY,
    "WINDOW_UPDATE": frames.window_update(0, 1),
    "WINDOW_UPDATE of a stream": frames.window_update(1, 1),
    "WINDOW_UPDATE of a finished stream": frames.window_update(3, 1),
    "RST_STREAM of a finished stream": frames.rst_stream(3, 8),
    "empty DATA": data(1, b""),
    "empty padded DATA": frames.frame(frames.DATA, 8, 1, b"\x01\0"),
    "DATA of a reset stream": data(5, b"x"),
    "unknown": frames.frame(0x77, 0, 0, b""),
    "PING acknowledgement": frames.ping(b"x" * 8, ack=True),
    "GOAWAY": frames.goaway(0, 0, b""),
}


@pytest.mark.parametrize("name", FLOODS)
def test_frames_that_do_no_work(name: str) -> None:
    peer = started(ServerLimits(control_frames_burst=500))
    peer.feed(peer.headers(1, request_fields("/t.S/Keep")))
    peer.feed(peer.request(3, path="/t.S/None"))
    peer.feed(peer.headers(5, request_fields("/t.S/Keep")), frames.rst_stream(5, 8))
    assert 450 <= until_goaway(peer, lambda _: FLOODS[name], 700) <= 550


def test_pings_that_follow_work_are_within_the_control_budget() -> None:
    peer = started(ServerLimits(control_frames_burst=500, keepalive_min_time_s=0))
    peer.feed(peer.headers(1, request_fields("/t.S/Keep")))
    assert 450 <= until_goaway(peer, lambda _: frames.ping(b"x" * 8, ack=False), 700) <= 550


def test_work_pays_for_control_frames() -> None:
    peer = ServerPeer(limits=ServerLimits(control_frames_burst=100)).started()
    for number in range(500):
        peer.feed(peer.request(2 * number + 1), frames.window_update(0, 5), *[PRIORITY] * 6)
    assert peer.core.alive


def test_time_pays_for_control_frames() -> None:
    peer = started(ServerLimits(control_frames_burst=100, control_frames_per_s=10))
    for _ in range(50):
        peer.feed(*[PRIORITY] * 90)
        peer.now += 10
    assert peer.core.alive


def test_many_settings_in_one_frame_cost_more() -> None:
    peer = started(ServerLimits(control_frames_burst=500))
    large = frames.frame(frames.SETTINGS, 0, 0, b"\0\x99\0\0\0\0" * 2_700)
    assert until_goaway(peer, lambda _: large, 10) <= 2


def test_rapid_reset() -> None:
    peer = started(ServerLimits(resets_burst=100))

    def open_and_reset(number: int) -> bytes:
        return peer.headers(2 * number + 1, request_fields("/t.S/Keep")) + frames.rst_stream(2 * number + 1, 8)

    assert until_goaway(peer, open_and_reset, 200) == 100
    assert not peer.core.streams


def test_rapid_reset_by_way_of_the_server() -> None:
    """A fault of the stream makes the server reset it, and its handler's work is lost just as well."""
    peer = started(ServerLimits(resets_burst=100))

    def open_and_break(number: int) -> bytes:
        return peer.request(2 * number + 1, path="/t.S/Keep") + frames.window_update(2 * number + 1, 0)

    assert until_goaway(peer, open_and_break, 200) == 100


def test_resets_at_a_human_pace() -> None:
    peer = started(ServerLimits(resets_burst=10, resets_per_s=5))
    for number in range(100):
        stream_id = 2 * number + 1
        peer.feed(peer.headers(stream_id, request_fields("/t.S/Keep")), frames.rst_stream(stream_id, 8))
        peer.now += 0.21
    assert peer.core.alive


def test_malformed_requests_are_bounded() -> None:
    peer = started(ServerLimits(resets_burst=100))
    assert until_goaway(peer, lambda number: peer.headers(2 * number + 1, [(b"a", b"b")]), 200) == 100


def test_continuation_flood() -> None:
    peer = started()
    peer.feed(frames.frame(frames.HEADERS, 0, 1, b"\x82"))
    pieces = [frames.frame(frames.CONTINUATION, 0, 1, b"")] * 40
    assert goaway(peer.feed(*pieces)) == (ErrorCode.ENHANCE_YOUR_CALM, "header block too large")


def test_a_block_without_end() -> None:
    peer = started()
    peer.feed(frames.frame(frames.HEADERS, 0, 1, b"\x82" * 16_384))
    pieces = [frames.frame(frames.CONTINUATION, 0, 1, b"\x82" * 16_384)] * 4
    assert goaway(peer.feed(*pieces)) == (ErrorCode.ENHANCE_YOUR_CALM, "header block too large")


def test_a_header_list_above_the_limit_fails_the_call_only() -> None:
    peer = ServerPeer().started()
    # One entry of the table, named again and again: few octets on the wire (the "bomb" of section 7.3).
    entry = b"\x40\x01b" + b"\x7f\xa1\x1e" + b"x" * 4_000
    block = peer.block(request_fields()) + entry + b"\xbe" * 100
    answer = peer.feed(frames.frame(frames.HEADERS, 5, 1, block))
    assert peer.status(answer[0]) == (8, "grpc: received header list larger than max")


def test_an_index_bomb_is_not_kept() -> None:
    peer = started()
    block = b"\x40\x01b" + b"\x7f\xa1\x1e" + b"x" * 4_000
    peer.feed(frames.frame(frames.HEADERS, 5, 1, peer.block(request_fields()) + block))
    for number in range(50):
        peer.feed(frames.frame(frames.HEADERS, 5, 2 * number + 3, b"\xbe" * (number % 16 + 1)))
    assert len(peer.core._block_cache) <= 1


def test_caches_of_heads_are_bounded() -> None:
    peer = ServerPeer().started()
    for number in range(2_000):
        fields = request_fields(more=[(b"token", b"%d" % number)])
        peer.feed(peer.headers(2 * number + 1, fields), body(2 * number + 1, message(b"")))
    assert len(peer.core._key_cache) <= 256
    assert len(peer.core._block_cache) <= 256


def test_a_huge_hpack_string_is_cut_short() -> None:
    peer = started()
    block = b"\x00\x01a\x7f\x80\x80\x80\x08"
    assert goaway(peer.feed(frames.frame(frames.HEADERS, 4, 1, block)))[0] is ErrorCode.COMPRESSION_ERROR


def test_streams_without_end_are_bounded() -> None:
    peer = started(ServerLimits(streams_hard_limit=50))
    for number in range(50):
        assert peer.feed(peer.request(2 * number + 1, path="/t.S/Keep")) == []
    assert reset(peer.feed(peer.request(101, path="/t.S/Keep")), 101) is ErrorCode.REFUSED_STREAM


def test_unfinished_messages_are_bounded() -> None:
    peer = started(ServerLimits(unfinished_bytes=100_000))
    large = message(b"x" * 50_000)[:49_999]
    for stream_id in (1, 3):
        peer.feed(peer.headers(stream_id, request_fields("/t.S/Keep")))
        for at in range(0, len(large), 10_000):
            assert not [
                frame
                for frame in peer.feed(data(stream_id, large[at : at + 10_000]))
                if frame.kind != frames.WINDOW_UPDATE
            ]
    assert peer.core.unfinished_bytes == 2 * 49_999
    peer.feed(peer.headers(5, request_fields("/t.S/Keep")))
    answer = peer.feed(data(5, large[:10_000]))
    assert peer.status(answer[0]) == (8, "grpc: too many unfinished messages on the connection")
    assert answer[1].kind == frames.RST_STREAM
    peer.feed(frames.rst_stream(1, 8), frames.rst_stream(3, 8))
    assert peer.core.unfinished_bytes == 0


def test_many_tiny_data_frames_make_one_message() -> None:
    got: list[bytes] = []

    def collect(core: ServerConnection, stream_id: int, head: Head, text: bytes) -> None:
        got.append(text)
        core.reply(stream_id, b"")

    peer = ServerPeer(unary={"/t.S/Echo": collect}).started()
    payload = message(bytes(range(256)) * 20)
    peer.feed(peer.headers(1, request_fields()))
    peer.feed(*[data(1, payload[at : at + 1]) for at in range(len(payload))])
    peer.feed(data(1, b"", end=True))
    assert got == [bytes(range(256)) * 20]


def test_a_handler_that_does_not_heed_writable_loses_its_stream() -> None:
    cancelled: list[CancelReason] = []
    streams: list[ServerStream] = []

    class Deaf(Echo):
        def on_cancel(self, reason: CancelReason) -> None:
            cancelled.append(reason)

    def opened(stream: ServerStream, head: Head) -> Deaf:
        streams.append(stream)
        return Deaf(stream, head)

    limits = ServerLimits(stream_queue_bytes=100_000)
    peer = ServerPeer(streams={"/t.S/Deaf": opened}, limits=limits).started({frames.INITIAL_WINDOW_SIZE: 0})
    peer.feed(peer.headers(1, request_fields("/t.S/Deaf")))
    stream = streams[0]
    for _ in range(10):
        stream.send(b"x" * 20_000)
    answer = peer.taken()
    assert peer.status(answer[1]) == (8, "grpc: stream queue is full")
    assert cancelled == [CancelReason.OVERFLOW]
    assert peer.core.queued_bytes == 0
    stream.send(b"late")
    stream.end()
    assert peer.taken() == []


# The clock.


def test_time_to_preface() -> None:
    peer = ServerPeer()
    peer.feed(frames.PREFACE[:10])
    peer.core.tick(peer.now + 9)
    assert peer.core.alive
    peer.core.tick(peer.now + 10.1)
    assert goaway(peer.taken()) == (ErrorCode.SETTINGS_TIMEOUT, "no preface")


def test_time_to_first_request() -> None:
    peer = started()
    peer.core.tick(peer.now + 119)
    assert peer.core.alive
    peer.core.tick(peer.now + 121)
    assert goaway(peer.taken()) == (ErrorCode.NO_ERROR, "no request")


def test_idle_time_is_off_by_default_and_graceful() -> None:
    peer = ServerPeer().started()
    peer.echo(1)
    peer.core.tick(peer.now + 5_000)
    assert peer.taken() == []
    peer = ServerPeer(limits=ServerLimits(idle_timeout_s=60)).started()
    peer.echo(1)
    start = peer.now
    for second in range(1, 60):
        peer.core.tick(start + second)
    assert peer.taken() == []
    for second in range(60, 63):
        peer.core.tick(start + second)
    assert [frame.kind for frame in peer.taken()] == [frames.GOAWAY, frames.PING]


# Keepalive.


def ping(peer: ServerPeer, times: int, gap_s: float) -> int:
    """How many pings, so far apart, are answered."""
    for number in range(times):
        answer = peer.feed(frames.ping(b"x" * 8, ack=False))
        if not peer.core.alive:
            assert goaway(answer) == (ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")
            return number
        peer.now += gap_s
    return times


def test_pings_with_a_stream_open_may_be_five_seconds_apart() -> None:
    peer = started()
    peer.feed(peer.headers(1, request_fields("/t.S/Keep")))
    assert ping(peer, 50, 5.0) == 50
    peer = started()
    peer.feed(peer.headers(1, request_fields("/t.S/Keep")))
    # The first ping follows the request; three strikes end the connection.
    assert ping(peer, 50, 4.9) == 3


def test_pings_without_streams_may_be_two_hours_apart() -> None:
    peer = started()
    assert ping(peer, 50, 7200.0) == 50
    peer = started()
    assert ping(peer, 50, 7199.0) == 3


def test_work_between_pings_takes_the_strikes_back() -> None:
    peer = ServerPeer().started()
    for number in range(20):
        peer.echo(2 * number + 1)
        assert ping(peer, 3, 0.1) == 3


def test_the_least_gap_is_configurable() -> None:
    peer = started(ServerLimits(keepalive_min_time_s=1.0))
    peer.feed(peer.headers(1, request_fields("/t.S/Keep")))
    assert ping(peer, 50, 1.0) == 50


def test_the_server_pings_after_silence_and_gives_up() -> None:
    peer = started(ServerLimits(keepalive_interval_s=100, keepalive_timeout_s=20))
    peer.feed(peer.headers(1, request_fields("/t.S/Keep")))
    peer.core.tick(peer.now + 99)
    assert peer.taken() == []
    peer.core.tick(peer.now + 101)
    (sent,) = peer.taken()
    assert (sent.kind, sent.flags) == (frames.PING, 0)
    peer.now += 110
    peer.feed(frames.ping(sent.payload, ack=True))
    for second in (10, 30, 90):
        peer.core.tick(peer.now + second)
    assert peer.taken() == []
    peer.core.tick(peer.now + 101)
    peer.core.tick(peer.now + 122)
    answer = peer.taken()
    assert [frame.kind for frame in answer] == [frames.PING, frames.GOAWAY]
    assert goaway(answer)[1] == "keepalive ping not answered"
    assert not peer.core.streams
