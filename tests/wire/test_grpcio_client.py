"""grpcio, which real clients are built on, as the client of our server."""

import queue
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from kvorum.wire.head import Head
from kvorum.wire.limits import ServerLimits
from kvorum.wire.routes import CancelReason
from kvorum.wire.server_calls import ServerStream
from kvorum.wire.server_connection import ServerConnection
from tests.wire.serving import DEADLINE_S, LOOPS, Echo, Serving, echo


def identity(message: bytes) -> bytes:
    return message


class Ear(Echo):
    """Keeps what it is told."""

    def __init__(self, stream: ServerStream, head: Head) -> None:
        super().__init__(stream, head)
        self.cancelled: list[CancelReason] = []
        self.half_closed = 0

    def on_cancel(self, reason: CancelReason) -> None:
        self.cancelled.append(reason)


class Service:
    """Methods for every kind of call."""

    def __init__(self) -> None:
        self.heads: list[Head] = []
        self.open: list[tuple[ServerConnection, int]] = []
        self.ears: list[Ear] = []

    def headed(self, connection: ServerConnection, stream_id: int, head: Head, message: bytes) -> None:
        self.heads.append(head)
        connection.reply(stream_id, message)

    def failing(self, connection: ServerConnection, stream_id: int, head: Head, message: bytes) -> None:
        connection.fail(stream_id, 11, message.decode())

    def silent(self, connection: ServerConnection, stream_id: int, head: Head, message: bytes) -> None:
        self.open.append((connection, stream_id))

    def ear(self, stream: ServerStream, head: Head) -> Ear:
        self.ears.append(Ear(stream, head))
        return self.ears[-1]


class Lister(Echo):
    """Server-stream: as many messages as the request says."""

    def on_message(self, message: bytes) -> None:
        for number in range(int(message)):
            self.stream.send(b"%d" % number)
        self.stream.end()


class Summer(Echo):
    """Client-stream: the sum of all messages."""

    def __init__(self, stream: ServerStream, head: Head) -> None:
        super().__init__(stream, head)
        self.total = 0

    def on_message(self, message: bytes) -> None:
        self.total += int(message)

    def on_half_close(self) -> None:
        self.stream.send(b"%d" % self.total)
        self.stream.end()


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture(params=list(LOOPS))
def serving(request: pytest.FixtureRequest, service: Service) -> Iterator[Serving]:
    unary = {"/t.S/Echo": echo, "/t.S/Headed": service.headed, "/t.S/Failing": service.failing}
    unary["/t.S/Silent"] = service.silent
    streams: dict[str, Any] = {"/t.S/List": Lister, "/t.S/Sum": Summer, "/t.S/Chat": Echo, "/t.S/Ear": service.ear}
    with Serving(unary=unary, streams=streams, loop=request.param, limits=ServerLimits()) as running:
        yield running


@pytest.fixture
def channel(serving: Serving) -> Iterator[grpc.Channel]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{serving.port}", options=options) as opened:
        yield opened


def unary(channel: grpc.Channel, method: str) -> Any:
    return channel.unary_unary(f"/t.S/{method}", identity, identity)


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, 65_530, 65_531, 300_000, 2 * 1024 * 1024])
def test_unary_echo_of_every_size(channel: grpc.Channel, size: int) -> None:
    message = bytes(range(256)) * (size // 256 + 1)
    assert unary(channel, "Echo")(message[:size], timeout=DEADLINE_S) == message[:size]


def test_many_calls_at_once(channel: grpc.Channel, serving: Serving) -> None:
    call = unary(channel, "Echo")
    futures = [call.future(b"%d" % number, timeout=DEADLINE_S) for number in range(500)]
    assert [future.result() for future in futures] == [b"%d" % number for number in range(500)]
    route = serving.server.routes["/t.S/Echo"]
    assert (route.started, route.received, route.ok, route.sent_messages, route.failed) == (500, 500, 500, 500, {})
    assert serving.call(lambda: serving.server.streams_open) == 0


def test_server_stream(channel: grpc.Channel) -> None:
    call = channel.unary_stream("/t.S/List", identity, identity)
    assert list(call(b"3000", timeout=DEADLINE_S)) == [b"%d" % number for number in range(3000)]


def test_client_stream(channel: grpc.Channel) -> None:
    call = channel.stream_unary("/t.S/Sum", identity, identity)
    assert call((b"%d" % number for number in range(1000)), timeout=DEADLINE_S) == b"499500"


def test_bidi_stream(channel: grpc.Channel) -> None:
    call = channel.stream_stream("/t.S/Chat", identity, identity)
    messages = [b"%d" % number * 1000 for number in range(200)]
    assert list(call(iter(messages), timeout=DEADLINE_S)) == messages


def test_a_fast_exchange_of_small_messages_is_no_flood(channel: grpc.Channel) -> None:
    """grpcio answers each message with WINDOW_UPDATEs and a PING, thousands a second: more than the burst allows."""
    call = channel.stream_stream("/t.S/Chat", identity, identity)
    sent: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    replies = call(iter(sent.get, b""), timeout=DEADLINE_S)
    for number in range(1, 8000):
        message = b"%d" % number
        sent.put(message)
        assert next(replies) == message
    sent.put(b"")
    assert list(replies) == []


def test_error_with_a_message_outside_of_ascii(channel: grpc.Channel) -> None:
    text = "größer als 100 %\n\x01"
    with pytest.raises(grpc.RpcError) as caught:
        unary(channel, "Failing")(text.encode(), timeout=DEADLINE_S)
    assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE
    assert caught.value.details() == text


def test_metadata_text_and_binary(channel: grpc.Channel, service: Service) -> None:
    metadata = (("token", "abc"), ("many", "1"), ("many", "2"), ("raw-bin", b"\x00\xff\x10"), ("raw-bin", b""))
    unary(channel, "Headed")(b"", metadata=metadata, timeout=DEADLINE_S)
    head = service.heads[0]
    assert head.path == "/t.S/Headed"
    assert head.authority.startswith("127.0.0.1:")
    assert dict(head.metadata) == {"token": ("abc",), "many": ("1", "2"), "raw-bin": (b"\x00\xff\x10", b"")}
    assert head.timeout_s is not None
    assert DEADLINE_S - 5 < head.timeout_s <= DEADLINE_S + 1


def test_deadline_ends_an_unanswered_call(channel: grpc.Channel, service: Service, serving: Serving) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        unary(channel, "Silent")(b"", timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    serving.wait(lambda: serving.server.streams_open == 0)
    connection, stream_id = service.open[0]
    assert serving.call(lambda: connection.reply(stream_id, b"late")) is False
    assert serving.call(lambda: connection.fail(stream_id, 13, "late")) is False


def test_cancel_of_a_unary_call(channel: grpc.Channel, service: Service, serving: Serving) -> None:
    call = unary(channel, "Silent").future(b"")
    serving.wait(lambda: bool(service.open))
    call.cancel()
    serving.wait(lambda: serving.server.streams_open == 0)
    assert serving.server.routes["/t.S/Silent"].failed == {1: 1}


def test_cancel_of_a_stream_is_told_once(channel: grpc.Channel, service: Service, serving: Serving) -> None:
    release = threading.Event()

    def requests() -> Iterator[bytes]:
        yield b"one"
        release.wait(DEADLINE_S)

    call = channel.stream_stream("/t.S/Ear", identity, identity)(requests())
    assert next(call) == b"one"
    call.cancel()
    release.set()
    serving.wait(lambda: bool(service.ears[0].cancelled))
    assert service.ears[0].cancelled == [CancelReason.RESET]
    serving.wait(lambda: serving.server.streams_open == 0)


def test_lost_connection_cancels_streams(channel: grpc.Channel, service: Service, serving: Serving) -> None:
    release = threading.Event()

    def requests() -> Iterator[bytes]:
        yield b"one"
        release.wait(DEADLINE_S)

    call = channel.stream_stream("/t.S/Ear", identity, identity)(requests())
    assert next(call) == b"one"
    channel.close()
    release.set()
    serving.wait(lambda: serving.server.connections_open == 0)
    assert len(service.ears[0].cancelled) == 1


@pytest.mark.parametrize("method", ["Echo", "Chat"])
def test_gzip_both_ways(channel: grpc.Channel, method: str) -> None:
    call = channel.stream_stream(f"/t.S/{method}", identity, identity)
    message = b"compressible " * 10_000
    answers = call(iter([message]), compression=grpc.Compression.Gzip, timeout=DEADLINE_S)
    assert list(answers) == [message]


@pytest.mark.parametrize("method", ["Echo", "Chat"])
def test_message_above_the_limit(channel: grpc.Channel, method: str) -> None:
    call = channel.stream_stream(f"/t.S/{method}", identity, identity)
    with pytest.raises(grpc.RpcError) as caught:
        list(call(iter([b"x" * 2_200_010]), timeout=DEADLINE_S))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.details() == "grpc: received message larger than max (2200010 vs. 2097152)"


def test_a_small_gzip_of_a_large_message(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        unary(channel, "Echo")(b"\0" * 50_000_000, compression=grpc.Compression.Gzip, timeout=DEADLINE_S)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.details() == "grpc: received message after decompression larger than max 2097152"


def test_deflate_is_unimplemented(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        unary(channel, "Echo")(b"x" * 1000, compression=grpc.Compression.Deflate, timeout=DEADLINE_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("path", "text"),
    [("/t.S/None", "unknown method None for service t.S"), ("/t.X/None", "unknown service t.X")],
)
def test_unknown_methods(channel: grpc.Channel, path: str, text: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(path, identity, identity)(b"", timeout=DEADLINE_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.details() == text


def test_graceful_shutdown_finishes_what_is_open(channel: grpc.Channel, service: Service, serving: Serving) -> None:
    call = unary(channel, "Silent").future(b"", timeout=DEADLINE_S)
    serving.wait(lambda: bool(service.open))
    done = serving.shutdown(DEADLINE_S)
    connection, stream_id = service.open[0]
    serving.wait(lambda: connection.goaway_sent is not None)
    assert serving.call(lambda: connection.reply(stream_id, b"kept")) is True
    assert call.result() == b"kept"
    done.result(DEADLINE_S)
    assert serving.server.connections_open == 0
