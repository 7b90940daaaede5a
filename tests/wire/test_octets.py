"""However the octets of an exchange are cut, the result is the same; however they are damaged, nothing escapes."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvorum.wire import frames
from kvorum.wire.calls import ClientStream, UnaryClientCall
from kvorum.wire.grpc import Metadata, frame, frame_gzip
from kvorum.wire.head import Head
from kvorum.wire.hpack import encode_stateless
from kvorum.wire.limits import ServerLimits
from kvorum.wire.routes import CancelReason
from kvorum.wire.server_calls import ServerStream
from kvorum.wire.server_connection import ServerConnection
from tests.wire.peer import ClientPeer, Peer, ServerPeer, body, data, message, request_fields
from tests.wire.serving import Echo


class Log:
    """What a server's handlers saw."""

    def __init__(self) -> None:
        self.lines: list[Any] = []

    def unary(self, core: ServerConnection, stream_id: int, head: Head, text: bytes) -> None:
        self.lines.append((stream_id, head.path, dict(head.metadata), head.timeout_s, text))
        core.reply(stream_id, text[::-1])

    def stream(self, stream: ServerStream, head: Head) -> Echo:
        lines = self.lines

        class Logged(Echo):
            def on_message(self, text: bytes) -> None:
                lines.append((stream.stream_id, text))
                super().on_message(text)

            def on_half_close(self) -> None:
                lines.append((stream.stream_id, "half-close"))
                super().on_half_close()

            def on_cancel(self, reason: CancelReason) -> None:
                lines.append((stream.stream_id, reason))

        lines.append((stream.stream_id, "open", dict(head.metadata)))
        return Logged(stream, head)


def server_exchange(log: Log) -> tuple[ServerPeer, bytes]:
    """A server, and octets for it with everything that is legal."""
    peer = ServerPeer(unary={"/t.S/Echo": log.unary}, streams={"/t.S/Chat": log.stream})
    block = peer.block(request_fields(more=[(b"token", b"abc"), (b"x-bin", b"AAE")]))
    octets = [
        frames.PREFACE,
        frames.settings({frames.INITIAL_WINDOW_SIZE: 50, frames.MAX_FRAME_SIZE: 20_000}),
        frames.SETTINGS_ACK,
        frames.frame(frames.HEADERS, 0x28, 1, b"\x02\0\0\0\0\x10" + block[:9] + b"\0\0"),
        frames.frame(frames.CONTINUATION, 0, 1, block[9:20]),
        frames.frame(frames.CONTINUATION, 4, 1, block[20:]),
        frames.ping(b"abcdefgh", ack=False),
        data(1, message(b"first request")[:4]),
        frames.frame(frames.DATA, 8, 1, b"\x03" + message(b"first request")[4:9] + b"\0\0\0"),
        data(1, message(b"first request")[9:], end=True),
        peer.headers(3, request_fields("/t.S/Chat", [(b"grpc-timeout", b"5S")])),
        data(3, message(b"one") + message(b"")[:3]),
        frames.frame(frames.PRIORITY, 0, 3, b"\0\0\0\0\1"),
        data(3, message(b"")[3:] + message(b"three")),
        peer.request(5, b"x" * 200),
        frames.window_update(5, 1_000),
        frames.frame(0x44, 0, 5, b"?"),
        peer.headers(7, request_fields("/t.S/Chat")),
        data(7, message(b"gone")),
        frames.rst_stream(7, 8),
        peer.headers(9, request_fields("/t.S/None"), end=True),
        frames.settings({frames.INITIAL_WINDOW_SIZE: 5_000}),
        data(3, b"", end=True),
        peer.request(11, b"last"),
    ]
    return peer, b"".join(octets)


def output(peer: Peer) -> bytes:
    return b"".join(
        [
            frames.frame(frame.kind, frame.flags, frame.stream_id, frame.payload)
            for frame in sorted(peer.taken(), key=lambda frame: frame.stream_id)
        ]
    )


def test_a_server_exchange_cut_anywhere() -> None:
    whole = Log()
    peer, octets = server_exchange(whole)
    peer.core.receive(octets, peer.now)
    expected = output(peer)
    assert len(whole.lines) == 11
    assert peer.core.fault is None
    assert not peer.core.streams
    for cut in range(1, len(octets)):
        log = Log()
        peer, _ = server_exchange(log)
        peer.core.receive(octets[:cut], peer.now)
        peer.core.receive(octets[cut:], peer.now)
        assert log.lines == whole.lines
        assert output(peer) == expected
    log = Log()
    peer, _ = server_exchange(log)
    for at in range(len(octets)):
        peer.core.receive(octets[at : at + 1], peer.now)
    assert log.lines == whole.lines
    assert peer.core.fault is None


class Replies:
    """What a client's calls saw."""

    def __init__(self) -> None:
        self.lines: list[Any] = []

    def done(self, code: int, text: str, reply: bytes) -> None:
        self.lines.append(("done", code, text, reply))

    def on_message(self, text: bytes) -> None:
        self.lines.append(text)

    def on_end(self, code: int, text: str, trailers: Metadata) -> None:
        self.lines.append(("end", code, text, dict(trailers)))

    def on_writable(self) -> None:
        pass


HEADERS = encode_stateless([(b":status", b"200"), (b"content-type", b"application/grpc+proto")])
HINTS = encode_stateless([(b":status", b"103"), (b"link", b"x")])
OK = encode_stateless([(b"grpc-status", b"0")])
BAD = encode_stateless([(b"grpc-status", b"9"), (b"grpc-message", b"100%25 %C3%A4"), (b"why-bin", b"AAE=")])


def client_exchange(replies: Replies) -> tuple[ClientPeer, bytes]:
    """A client with four calls open, and the octets of their replies."""
    peer = ClientPeer().started({frames.MAX_CONCURRENT_STREAMS: 10})
    core = peer.core
    for _ in range(3):
        core.start(UnaryClientCall("/t.S/Echo", (), None, b"?", lambda _: None, replies.done), peer.now)
    core.start(ClientStream("/t.S/Chat", (), None, lambda _: None, replies), peer.now)
    core.take()
    trailers_only = encode_stateless([(b":status", b"200"), (b"content-type", b"application/grpc")]) + BAD
    octets = [
        frames.frame(frames.HEADERS, 4, 7, HINTS),
        frames.frame(frames.HEADERS, 4, 7, HEADERS),
        frames.frame(frames.HEADERS, 0, 1, HEADERS[:3]),
        frames.frame(frames.CONTINUATION, 4, 1, HEADERS[3:]),
        data(7, message(b"one") + message(b"two") + b"\0"),
        data(1, message(b"reply")),
        frames.settings({frames.HEADER_TABLE_SIZE: 0}),
        frames.frame(frames.HEADERS, 5, 1, OK),
        frames.frame(frames.HEADERS, 5, 3, trailers_only),
        data(7, message(b"three")[1:]),
        frames.rst_stream(5, 0xB),
        frames.ping(b"12345678", ack=False),
        frames.frame(frames.HEADERS, 5, 7, BAD),
    ]
    return peer, b"".join(octets)


def test_a_client_exchange_cut_anywhere() -> None:
    expected = [
        b"one",
        b"two",
        ("done", 0, "", b"reply"),
        ("done", 9, "100% ä", b""),
        b"three",
        ("done", 8, "stream terminated by RST_STREAM with error code: ENHANCE_YOUR_CALM", b""),
        ("end", 9, "100% ä", {"why-bin": (b"\0\1",)}),
    ]
    size = len(client_exchange(Replies())[1])
    for cut in range(size):
        replies = Replies()
        peer, octets = client_exchange(replies)
        peer.core.receive(octets[:cut], peer.now)
        peer.core.receive(octets[cut:], peer.now)
        assert replies.lines == expected
        assert peer.core.fault is None
        assert not peer.core.streams


MUTATION = st.tuples(
    st.integers(0, 100_000), st.sampled_from(["flip", "drop", "insert", "repeat"]), st.integers(0, 255)
)


def mutate(octets: bytes, mutations: list[tuple[int, str, int]]) -> bytes:
    damaged = bytearray(octets)
    for where, what, value in mutations:
        at = where % max(1, len(damaged))
        match what:
            case "flip":
                damaged[at : at + 1] = bytes((value,))
            case "drop":
                del damaged[at : at + value % 12]
            case "insert":
                damaged[at:at] = bytes((value,)) * (value % 5 + 1)
            case "repeat":
                damaged[at:at] = damaged[at : at + value]
    return bytes(damaged)


@given(st.lists(MUTATION, min_size=1, max_size=6), st.integers(1, 400))
@settings(max_examples=400, deadline=None)
def test_a_damaged_exchange_never_raises_in_a_server(mutations: list[tuple[int, str, int]], step: int) -> None:
    log = Log()
    peer, octets = server_exchange(log)
    damaged = frames.PREFACE + mutate(octets[len(frames.PREFACE) :], mutations)
    for at in range(0, len(damaged), step):
        peer.core.receive(damaged[at : at + step], peer.now)
    check_accounts(peer)
    opened = {line[0] for line in log.lines if line[1] == "open"}
    peer.core.lost("end")
    assert not peer.core.streams
    cancelled = [line[0] for line in log.lines if isinstance(line[1], CancelReason)]
    assert len(set(cancelled)) == len(cancelled)
    assert set(cancelled) <= opened


@given(st.lists(MUTATION, min_size=1, max_size=6), st.integers(1, 400))
@settings(max_examples=400, deadline=None)
def test_a_damaged_exchange_never_raises_in_a_client(mutations: list[tuple[int, str, int]], step: int) -> None:
    replies = Replies()
    peer, octets = client_exchange(replies)
    damaged = mutate(octets, mutations)
    for at in range(0, len(damaged), step):
        peer.core.receive(damaged[at : at + step], peer.now)
    check_accounts(peer)
    peer.core.lost("end")
    # Every call has ended exactly once.
    assert sum(isinstance(line, tuple) for line in replies.lines) == 4


@given(st.binary(max_size=600))
@settings(max_examples=300, deadline=None)
def test_random_octets_never_raise(octets: bytes) -> None:
    peer = ServerPeer().started()
    peer.feed(octets)
    check_accounts(peer)


def check_accounts(peer: Peer) -> None:
    """The sums of a connection are those of its streams."""
    streams = peer.core.streams.values()
    assert peer.core.queued_bytes == sum(stream.queued_bytes for stream in streams)
    held = [stream.reader.held_bytes for stream in streams if stream.reader is not None]
    whole = [len(stream.message) + 5 for stream in streams if getattr(stream, "message", None) and stream.reader]
    assert peer.core.unfinished_bytes <= sum(held) + sum(whole)
    assert peer.core.unfinished_bytes >= 0


@pytest.mark.parametrize("gzip", [False, True])
def test_a_message_cut_into_data_frames_anywhere(gzip: bool) -> None:
    got: list[bytes] = []

    def collect(core: ServerConnection, stream_id: int, head: Head, text: bytes) -> None:
        got.append(text)
        core.reply(stream_id, b"")

    text = b"some message, " * 5
    payload = frame_gzip(text) if gzip else frame(text)
    peer = ServerPeer(unary={"/t.S/Echo": collect}, limits=ServerLimits()).started()
    more = [(b"grpc-encoding", b"gzip")] if gzip else []
    for cut in range(len(payload) + 1):
        stream_id = 2 * cut + 1
        peer.feed(peer.headers(stream_id, request_fields(more=more)))
        answer = peer.feed(data(stream_id, payload[:cut]), body(stream_id, payload[cut:]))
        assert [frame.kind for frame in answer] == [frames.HEADERS, frames.DATA, frames.HEADERS]
    assert got == [text] * (len(payload) + 1)
