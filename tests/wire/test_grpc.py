"""gRPC's own grammar: timeouts, texts, metadata, messages; and the calls that grpc-go refuses."""

import gzip
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.wire import frames, grpc
from kvorum.wire.deadlines import Deadlines
from kvorum.wire.frames import ErrorCode
from kvorum.wire.head import Head
from kvorum.wire.limits import ServerLimits
from kvorum.wire.routes import CancelReason
from kvorum.wire.server_calls import ServerStream
from kvorum.wire.server_connection import ServerConnection
from tests.wire.peer import Fields, Frame, ServerPeer, data, message, request_fields
from tests.wire.serving import Echo, echo


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"4m", 0.004), (b"5u", 5e-6), (b"6n", 6e-9), (b"99999999S", 99999999)],
)
def test_timeouts(text: bytes, seconds: float) -> None:
    assert grpc.parse_timeout(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", [b"", b"S", b"1", b"1s", b"-1S", b"123456789S", b"1.5S", b" 1S", b"1SS", b"\xb2S"])
def test_malformed_timeouts(text: bytes) -> None:
    assert grpc.parse_timeout(text) is None


@given(st.floats(0, 3e11))
def test_a_formatted_timeout_is_never_shorter(seconds: float) -> None:
    text = grpc.format_timeout(seconds)
    assert len(text) <= 9
    parsed = grpc.parse_timeout(text)
    assert parsed is not None
    assert parsed >= min(seconds, grpc.MAX_TIMEOUT_S) * (1 - 1e-12)
    assert parsed <= seconds * 1.001 + 1e-9


@given(st.text())
def test_texts_survive(text: str) -> None:
    raw = grpc.encode_text(text)
    assert all(0x20 <= octet <= 0x7E for octet in raw)
    assert grpc.decode_text(raw) == text.encode("utf-8", "replace").decode()


@pytest.mark.parametrize(
    ("raw", "text"), [(b"%", "%"), (b"%4", "%4"), (b"%zz!", "%zz!"), (b"a%41%", "aA%"), (b"%+1", "%+1")]
)
def test_what_is_no_escape_stands_for_itself(raw: bytes, text: str) -> None:
    assert grpc.decode_text(raw) == text


@given(st.binary())
def test_texts_of_any_octets_decode(raw: bytes) -> None:
    assert isinstance(grpc.decode_text(raw), str)


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9_.-]{0,10}-bin", fullmatch=True), st.lists(st.binary(), min_size=1)))
def test_binary_metadata_survives(metadata: dict[str, list[bytes]]) -> None:
    metadata = {name: values for name, values in metadata.items() if not name.startswith("grpc-")}
    decoded = grpc.decode_metadata(grpc.encode_metadata(metadata))
    assert decoded == {name: tuple(values) for name, values in metadata.items()}


def test_binary_metadata_with_padding_and_commas() -> None:
    assert grpc.decode_metadata([(b"a-bin", b"AAE=, AA"), (b"a-bin", b"")])["a-bin"] == (b"\0\1", b"\0", b"")
    with pytest.raises(ValueError, match="a-bin"):
        grpc.decode_metadata([(b"a-bin", b"?")])


def test_text_metadata_that_is_no_utf8_stays_visible() -> None:
    value = grpc.decode_metadata([(b"client-api-version", b"\xff")])["client-api-version"][0]
    assert isinstance(value, str)
    with pytest.raises(UnicodeEncodeError):
        value.encode()


@given(st.lists(st.tuples(st.binary(max_size=300), st.booleans()), max_size=6), st.integers(1, 50))
def test_messages_put_together(messages: list[tuple[bytes, bool]], step: int) -> None:
    octets = b"".join([grpc.frame_gzip(text) if packed else grpc.frame(text) for text, packed in messages])
    reader = grpc.MessageReader(1_000, gzip=True)
    got = []
    for at in range(0, len(octets), step):
        reader.feed(octets[at : at + step])
        while (text := reader.next()) is not None:
            got.append(text)
    assert got == [text for text, _ in messages]
    assert reader.held_bytes == 0


def test_gunzip_stops_at_the_limit() -> None:
    packed = gzip.compress(b"\0" * 10_000_000)
    assert grpc.gunzip(gzip.compress(b"x" * 100), 100) == b"x" * 100
    for bad, limit, code in ((packed, 1_000, 8), (b"junk", 1_000, 13), (gzip.compress(b"x")[:-3], 1_000, 13)):
        with pytest.raises(grpc.MessageFault) as caught:
            grpc.gunzip(bad, limit)
        assert caught.value.code == code


def test_deadlines_in_slots() -> None:
    deadlines = Deadlines()
    assert deadlines.next_at() is None
    slots = {name: deadlines.add(name, "owner", 100.0, timeout) for name, timeout in (("a", 1), ("b", 1.001), ("c", 5))}
    assert slots["a"] == slots["b"]
    assert deadlines.next_at() == pytest.approx(101.01)
    assert deadlines.expire(101.0) == []
    deadlines.discard("b", slots["b"])
    assert deadlines.expire(101.02) == [("a", "owner")]
    deadlines.discard("c", slots["c"])
    assert deadlines.next_at() is None
    deadlines.discard("c", slots["c"])
    assert deadlines.expire(200.0) == []


def test_deadlines_leave_nothing_behind() -> None:
    deadlines = Deadlines()
    live = deadlines.add("live", "owner", 0.0, 60.0)
    for number in range(5_000):
        deadlines.discard(number, deadlines.add(number, "owner", 0.0, 3_600.0 + number))
    assert len(deadlines._buckets) == 1
    assert len(deadlines._order) <= 1_002
    assert deadlines.next_at() == pytest.approx(60.01)
    deadlines.discard("live", live)
    assert deadlines.next_at() is None


# Requests that reach no handler.


def ask(fields: Fields, *, end: bool = False) -> dict[bytes, bytes]:
    """The trailers-only answer."""
    peer = ServerPeer(unary={"/t.S/Echo": echo}).started()
    answer = peer.feed(peer.headers(1, fields, end=end))
    expected = [frames.HEADERS] if end else [frames.HEADERS, frames.RST_STREAM]
    assert [frame.kind for frame in answer] == expected
    assert answer[0].flags & frames.END_STREAM
    if not end:
        assert answer[1].number == ErrorCode.NO_ERROR
        # The body that follows is nobody's fault.
        assert peer.feed(data(1, message(b"x")), data(1, b"", end=True)) == []
    assert peer.echo(3) == b"hello"
    return peer.fields(answer[0])


def changed(name: bytes, value: bytes | None) -> Fields:
    fields = [field for field in request_fields() if field[0] != name]
    if value is None:
        return fields
    return [(name, value), *fields] if name.startswith(b":") else [*fields, (name, value)]


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize(
    ("fields", "status", "code", "text"),
    [
        (changed(b"content-type", None), 415, 3, 'invalid gRPC request content-type ""'),
        (changed(b"content-type", b"application/json"), 415, 3, 'invalid gRPC request content-type "application/json"'),
        (
            changed(b"content-type", b"application/grpcx"),
            415,
            3,
            'invalid gRPC request content-type "application/grpcx"',
        ),
        (changed(b":method", b"GET"), 405, 13, 'Received a HEADERS frame with :method "GET" which should be POST'),
        (changed(b"grpc-timeout", b"1x"), 400, 13, 'malformed grpc-timeout: "1x"'),
        (changed(b"a-bin", b"?"), 400, 13, "malformed binary metadata in header 'a-bin'"),
        (
            changed(b"grpc-encoding", b"zstd"),
            200,
            12,
            'grpc: Decompressor is not installed for grpc-encoding "zstd"',
        ),
        (changed(b":path", b"/t.S/None"), 200, 12, "unknown method None for service t.S"),
        (changed(b":path", b"/t.X/Echo"), 200, 12, "unknown service t.X"),
        (
            changed(b":path", b"/grpc.reflection.v1.ServerReflection/X"),
            200,
            12,
            "unknown service grpc.reflection.v1.ServerReflection",
        ),
        (changed(b":path", b"/none"), 200, 12, 'malformed method name: "/none"'),
    ],
)
def test_refusals(fields: Fields, status: int, code: int, text: str, end: bool) -> None:
    answer = ask(fields, end=end)
    assert answer[b":status"] == b"%d" % status
    assert answer[b"grpc-status"] == b"%d" % code
    assert answer[b"grpc-message"].decode() == text
    assert answer[b"content-type"] == b"application/grpc"
    assert (b"grpc-accept-encoding" in answer) == ("Decompressor" in text)


@pytest.mark.parametrize("content_type", [b"application/grpc", b"application/grpc+proto", b"application/grpc;x=y"])
def test_content_types_of_grpc(content_type: bytes) -> None:
    peer = ServerPeer().started()
    fields = changed(b"content-type", content_type)
    assert len(peer.feed(peer.headers(1, fields), data(1, message(b""), end=True))) == 3


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        (b"", 13, "grpc: no message in a unary request"),
        (b"\0\0\0", 13, "unexpected EOF"),
        (message(b"abc")[:-1], 13, "unexpected EOF"),
        (message(b"a") + message(b"b"), 13, "grpc: more than one message in a unary request"),
        (message(b"a") + b"\0", 13, "grpc: more than one message in a unary request"),
        (b"\1\0\0\0\1x", 13, "grpc: compressed flag set with identity or empty encoding"),
        (b"\2\0\0\0\1x", 13, "grpc: received unexpected payload format 2"),
        (b"\0\x7f\xff\xff\xff", 8, "grpc: received message larger than max (2147483647 vs. 1000)"),
    ],
)
@pytest.mark.parametrize("separate_end", [False, True])
def test_unary_bodies_that_are_not_one_message(body: bytes, code: int, text: str, separate_end: bool) -> None:
    peer = ServerPeer(limits=ServerLimits(message_bytes=1_000)).started()
    body_frames = [data(1, body), data(1, b"", end=True)] if separate_end else [data(1, body, end=True)]
    answer = peer.feed(peer.headers(1, request_fields()), *body_frames)
    assert peer.status(answer[0]) == (code, text)
    assert peer.shared.routes["/t.S/Echo"].failed == {code: 1}
    assert peer.core.unfinished_bytes == 0
    assert peer.echo(3) == b"hello"


def test_a_request_that_is_too_large_fails_at_its_first_octets() -> None:
    peer = ServerPeer(limits=ServerLimits(message_bytes=1_000)).started()
    answer = peer.feed(peer.headers(1, request_fields()), data(1, b"\0\0\0\x03\xe9"))
    assert peer.status(answer[0]) == (8, "grpc: received message larger than max (1001 vs. 1000)")
    assert (answer[1].kind, answer[1].number) == (frames.RST_STREAM, ErrorCode.NO_ERROR)


def test_the_limit_itself_fits() -> None:
    peer = ServerPeer(limits=ServerLimits(message_bytes=1_000)).started()
    assert peer.echo(1, b"x" * 1_000) == b"x" * 1_000


def test_a_gzip_request_gets_a_gzip_reply() -> None:
    peer = ServerPeer().started()
    fields = request_fields(more=[(b"grpc-encoding", b"gzip")])
    answer = peer.feed(peer.headers(1, fields), data(1, grpc.frame_gzip(b"x" * 1_000), end=True))
    assert peer.fields(answer[0])[b"grpc-encoding"] == b"gzip"
    assert answer[1].payload[0] == 1
    assert gzip.decompress(answer[1].payload[5:]) == b"x" * 1_000
    # A message of such a request need not be compressed.
    answer = peer.feed(peer.headers(3, fields), data(3, message(b"plain"), end=True))
    assert gzip.decompress(answer[1].payload[5:]) == b"plain"


# Calls and their ends.


def keep(core: ServerConnection, stream_id: int, head: Head, text: bytes) -> None:
    """A handler that answers later."""


def test_an_answer_outside_of_receive_wakes_the_shell_once() -> None:
    peer = ServerPeer(unary={"/t.S/Keep": keep}).started()
    peer.feed(peer.request(1, path="/t.S/Keep"), peer.request(3, path="/t.S/Keep"))
    assert peer.woken == 0
    assert peer.core.reply(1, b"a")
    assert peer.core.fail(3, 14, "no leader")
    assert peer.woken == 1
    assert [frame.kind for frame in peer.taken()] == [frames.HEADERS, frames.DATA, frames.HEADERS, frames.HEADERS]
    assert not peer.core.reply(1, b"again")
    assert not peer.core.fail(3, 14, "again")
    assert not peer.core.reply(99, b"never")


def test_a_reply_that_waits_for_its_window_is_a_reply() -> None:
    peer = ServerPeer().started({frames.INITIAL_WINDOW_SIZE: 0})
    peer.feed(peer.request(1, b"x"))
    assert not peer.core.reply(1, b"second")
    assert not peer.core.fail(1, 13, "second")


def test_the_deadline_of_a_unary_call() -> None:
    peer = ServerPeer(unary={"/t.S/Keep": keep}).started()
    fields = request_fields("/t.S/Keep", [(b"grpc-timeout", b"100m")])
    peer.feed(peer.headers(1, fields), data(1, message(b""), end=True))
    peer.feed(peer.headers(3, fields), data(3, message(b""), end=True))
    assert peer.core.reply(3, b"in time")
    peer.taken()
    assert peer.shared.deadlines.expire(peer.now + 0.1) == []
    ((call, core),) = peer.shared.deadlines.expire(peer.now + 0.12)
    core.expire(call)
    assert peer.status(peer.taken()[0]) == (4, "context deadline exceeded")
    assert not peer.core.reply(1, b"late")
    assert peer.shared.deadlines.next_at() is None
    assert peer.shared.routes["/t.S/Keep"].failed == {4: 1}


class Told(Echo):
    """Keeps what it is told."""

    def __init__(self, stream: ServerStream, head: Head) -> None:
        super().__init__(stream, head)
        self.told: list[Any] = []

    def on_message(self, message: bytes) -> None:
        self.told.append(message)

    def on_half_close(self) -> None:
        self.told.append("half-close")

    def on_cancel(self, reason: CancelReason) -> None:
        self.told.append(reason)

    def on_writable(self) -> None:
        self.told.append("writable")


class Streaming:
    """A server peer with one stream open."""

    def __init__(self, *, window: int = 65_535, timeout: bytes | None = None, end: bool = False) -> None:
        self.handlers: list[Told] = []
        self.peer = ServerPeer(streams={"/t.S/Told": self.open}).started({frames.INITIAL_WINDOW_SIZE: window})
        more = [(b"grpc-timeout", timeout)] if timeout is not None else []
        self.peer.feed(self.peer.headers(1, request_fields("/t.S/Told", more), end=end))
        self.handler = self.handlers[0]
        self.stream = self.handler.stream
        self.told = self.handler.told

    def open(self, stream: ServerStream, head: Head) -> Told:
        self.handlers.append(Told(stream, head))
        return self.handlers[-1]

    def kinds(self) -> list[int]:
        return [frame.kind for frame in self.peer.taken()]


def test_messages_and_the_half_close() -> None:
    streaming = Streaming()
    two = message(b"a") + message(b"b")
    streaming.peer.feed(data(1, two), data(1, message(b"c")[:3]), data(1, message(b"c")[3:], end=True))
    assert streaming.told == [b"a", b"b", b"c", "half-close"]
    streaming.stream.send(b"reply")
    streaming.stream.end(0)
    assert streaming.kinds() == [frames.HEADERS, frames.DATA, frames.HEADERS]
    assert streaming.told[-1] == "half-close"


def test_a_stream_whose_request_is_headers_only() -> None:
    assert Streaming(end=True).told == ["half-close"]


def test_a_half_close_inside_a_message() -> None:
    streaming = Streaming()
    answer = streaming.peer.feed(data(1, message(b"abc")[:-1], end=True))
    assert streaming.peer.status(answer[0]) == (13, "unexpected EOF")
    assert streaming.told == [CancelReason.FAULT]


def test_an_end_before_any_message_is_trailers_only() -> None:
    streaming = Streaming()
    streaming.stream.end(5, "not found")
    answer = streaming.peer.taken()
    assert streaming.peer.status(answer[0]) == (5, "not found")
    assert answer[1] == Frame(frames.RST_STREAM, 0, 1, b"\0\0\0\0")
    assert streaming.told == []
    streaming.stream.send(b"late")
    streaming.stream.end()
    assert streaming.kinds() == []


def test_the_deadline_of_a_stream() -> None:
    streaming = Streaming(timeout=b"1S")
    streaming.stream.send(b"x")
    streaming.peer.taken()
    for call, core in streaming.peer.shared.deadlines.expire(streaming.peer.now + 1.02):
        core.expire(call)
    answer = streaming.peer.taken()
    assert streaming.peer.status(answer[0]) == (4, "context deadline exceeded")
    assert streaming.told == [CancelReason.DEADLINE]
    streaming.peer.feed(frames.rst_stream(1, 8))
    assert streaming.told == [CancelReason.DEADLINE]


def test_reset_and_loss_are_told_once() -> None:
    streaming = Streaming()
    streaming.peer.feed(frames.rst_stream(1, 8))
    streaming.peer.core.lost("gone")
    assert streaming.told == [CancelReason.RESET]
    streaming = Streaming()
    streaming.peer.core.lost("gone")
    streaming.peer.core.lost("gone")
    assert streaming.told == [CancelReason.LOST]
    assert streaming.stream.handler is None


def test_a_stream_that_ended_with_octets_waiting_is_not_cancelled_by_the_loss() -> None:
    streaming = Streaming(window=0)
    streaming.stream.send(b"x")
    streaming.stream.end()
    streaming.peer.feed(frames.rst_stream(1, 8))
    assert streaming.told == []


def test_an_ended_stream_still_flows_out_while_the_client_goes_on_sending() -> None:
    streaming = Streaming(window=3)
    streaming.stream.send(b"hello")
    streaming.stream.end()
    assert streaming.kinds() == [frames.HEADERS, frames.DATA]
    assert streaming.peer.feed(data(1, message(b"ignored"))) == []
    answer = streaming.peer.feed(frames.window_update(1, 100))
    assert [frame.kind for frame in answer] == [frames.DATA, frames.HEADERS, frames.RST_STREAM]
    assert streaming.told == []


def test_water_marks() -> None:
    streaming = Streaming(window=0)
    assert streaming.stream.writable
    streaming.stream.send(b"x" * 256 * 1024)
    assert not streaming.stream.writable
    assert streaming.stream.buffered_bytes == 256 * 1024 + 5
    streaming.peer.feed(frames.window_update(0, 10_000_000), frames.window_update(1, 192 * 1024 + 4))
    assert streaming.told == []
    streaming.peer.feed(frames.window_update(1, 1))
    assert streaming.told == ["writable"]
    assert streaming.stream.writable
    streaming.peer.feed(frames.window_update(1, 1))
    assert streaming.told == ["writable"]


def test_what_only_the_turn_s_share_held_back_makes_room() -> None:
    """With large windows no WINDOW_UPDATE comes that could tell."""
    streaming = Streaming(window=10_000_000)
    streaming.peer.feed(frames.window_update(0, 10_000_000))
    streaming.stream.send(b"x" * 1024 * 1024)
    streaming.stream.send(b"x" * 512 * 1024)
    assert not streaming.stream.writable
    assert streaming.told == []
    assert streaming.kinds().count(frames.DATA) > 90
    assert streaming.stream.buffered_bytes == 0
    assert streaming.told == ["writable"]


def test_a_congested_socket_makes_streams_wait() -> None:
    streaming = Streaming()
    streaming.peer.core.set_congested(True)
    assert not streaming.stream.writable
    streaming.stream.send(b"x")
    assert streaming.stream.buffered_bytes == 6
    assert streaming.kinds() == [frames.HEADERS]
    streaming.peer.core.set_congested(False)
    assert streaming.kinds() == [frames.DATA]
    assert streaming.told == ["writable"]


def test_an_offer_is_sent_when_the_stream_is_writable() -> None:
    streaming = Streaming()
    assert streaming.stream.offer(message(b"first"), 1)
    assert streaming.kinds() == [frames.HEADERS, frames.DATA]
    assert streaming.stream.offer(message(b"more") * 2, 2)
    answer = streaming.peer.taken()
    assert [(frame.kind, frame.flags, frame.stream_id) for frame in answer] == [(frames.DATA, 0, 1)]
    assert answer[0].payload == message(b"more") * 2
    assert streaming.peer.shared.routes["/t.S/Told"].sent_messages == 3


def test_an_offer_that_is_refused_leaves_nothing_behind_and_is_told_when_there_is_room() -> None:
    streaming = Streaming()
    streaming.stream.send(b"headers are out")
    streaming.kinds()
    streaming.peer.core.set_congested(True)
    assert not streaming.stream.offer(message(b"x"), 1)
    assert streaming.stream.buffered_bytes == 0
    streaming.peer.core.set_congested(False)
    assert streaming.kinds() == []
    assert streaming.told == ["writable"]
    assert streaming.stream.offer(message(b"x"), 1)
    assert streaming.kinds() == [frames.DATA]


def test_an_offer_beyond_the_window_is_queued_and_the_next_one_above_the_mark_refused() -> None:
    streaming = Streaming(window=10)
    assert streaming.stream.offer(b"x" * 300_000, 1)
    assert streaming.stream.buffered_bytes == 299_990
    assert not streaming.stream.offer(b"y", 1)
    assert streaming.stream.buffered_bytes == 299_990


def test_an_offer_to_a_stream_that_has_ended_is_dropped() -> None:
    streaming = Streaming()
    streaming.stream.send(b"x")
    streaming.stream.end()
    streaming.kinds()
    assert streaming.stream.offer(message(b"late"), 1)
    assert streaming.kinds() == []


def test_framed_messages_of_a_fan_out() -> None:
    streaming = Streaming()
    framed = b"".join([message(b"%d" % number) for number in range(5_000)])
    streaming.stream.send_framed(framed, 5_000)
    answer = streaming.peer.taken()
    assert b"".join([frame.payload for frame in answer if frame.kind == frames.DATA]) == framed
    assert [len(frame.payload) for frame in answer[1:-1]] == [16_384] * (len(answer) - 2)
    assert streaming.peer.shared.routes["/t.S/Told"].sent_messages == 5_000


def test_paused_reading_holds_messages_and_the_window() -> None:
    streaming = Streaming()
    streaming.stream.pause_reading()
    chunk = message(b"x" * 15_995)
    assert streaming.peer.feed(*[data(1, chunk)] * 4) == []
    assert streaming.told == []
    assert streaming.peer.core.unfinished_bytes == 64_000
    streaming.peer.feed(data(1, b"", end=True))
    streaming.stream.resume_reading()
    assert streaming.told == [b"x" * 15_995] * 4 + ["half-close"]
    assert streaming.peer.core.unfinished_bytes == 0


def test_a_handler_that_pauses_between_two_messages() -> None:
    streaming = Streaming()
    told = streaming.told

    def once(text: bytes) -> None:
        told.append(text)
        streaming.stream.pause_reading()

    streaming.handler.on_message = once  # type: ignore[assignment, method-assign]  # a handler for this test alone
    streaming.peer.feed(data(1, message(b"a") + message(b"b"), end=True))
    assert told == [b"a"]
    streaming.stream.resume_reading()
    assert told == [b"a", b"b"]
    streaming.stream.resume_reading()
    assert told == [b"a", b"b", "half-close"]


def test_a_handler_that_ends_the_stream_as_it_opens() -> None:
    def refuse(stream: ServerStream, head: Head) -> Told:
        stream.end(16, "no token")
        return Told(stream, head)

    peer = ServerPeer(streams={"/t.S/Told": refuse}).started()
    answer = peer.feed(peer.headers(1, request_fields("/t.S/Told")), data(1, message(b"x")))
    assert peer.status(answer[0]) == (16, "no token")
    assert not peer.core.streams
    assert peer.shared.routes["/t.S/Told"].failed == {16: 1}


def test_counts_of_a_method() -> None:
    streaming = Streaming()
    streaming.peer.feed(data(1, message(b"a") + message(b"b")))
    streaming.stream.send(b"x")
    streaming.stream.end(0)
    route = streaming.peer.shared.routes["/t.S/Told"]
    assert (route.service, route.method) == ("t.S", "Told")
    assert (route.started, route.received, route.sent_messages, route.ok, route.failed) == (1, 2, 1, 1, {})


def test_heads_are_shared_and_timeouts_are_not() -> None:
    heads: list[Head] = []

    def collect(core: ServerConnection, stream_id: int, head: Head, text: bytes) -> None:
        heads.append(head)
        core.reply(stream_id, b"")

    peer = ServerPeer(unary={"/t.S/Echo": collect}).started()
    for number in range(4):
        peer.feed(peer.request(2 * number + 1))
    assert heads[2] is heads[3]
    for number in range(4, 100):
        more = [(b"token", b"t"), (b"grpc-timeout", b"%dm" % (number * 1_000))]
        peer.feed(peer.headers(2 * number + 1, request_fields(more=more)), data(2 * number + 1, message(b""), end=True))
        assert heads[-1].timeout_s == number
        assert heads[-1].metadata == {"token": ("t",)}
    assert heads[-1].metadata is heads[-2].metadata
