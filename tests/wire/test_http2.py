"""HTTP requests that are not gRPC on HTTP/2: given frames, these calls of the handler; given replies, these frames."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvorum.wire import frames
from kvorum.wire.frames import ErrorCode
from kvorum.wire.http2 import Http2Exchange
from kvorum.wire.limits import ServerLimits
from tests.wire.peer import Frame, ServerPeer, body, data, reset

Fields = list[tuple[bytes, bytes]]
WINDOW = 65_535


def fields(method: bytes = b"GET", path: bytes = b"/x?y", more: Fields | None = None) -> Fields:
    pseudo = [(b":method", method), (b":scheme", b"https"), (b":path", path), (b":authority", b"a:1")]
    return [*pseudo, *(more or [])]


class Site:
    """Keeps the exchanges, and what each is told."""

    def __init__(self) -> None:
        self.exchanges: list[Http2Exchange] = []
        self.told: list[str | bytes] = []
        self.read_at_once = False

    def handle(self, exchange: Http2Exchange) -> None:
        self.exchanges.append(exchange)
        exchange.on_disconnect = lambda: self.told.append("gone")
        exchange.on_writable = lambda: self.told.append("writable")
        if self.read_at_once:
            self.read(exchange)

    def read(self, exchange: Http2Exchange) -> None:
        exchange.stream_body(self.told.append, lambda: self.told.append("end"))

    @property
    def body(self) -> bytes:
        return b"".join([part for part in self.told if isinstance(part, bytes)])


class World:
    """A core that serves HTTP and gRPC, and a client of it."""

    def __init__(self, limits: ServerLimits | None = None, settings: dict[int, int] | None = None) -> None:
        self.site = Site()
        self.peer = ServerPeer(limits=limits)
        self.peer.shared.http = self.site
        self.peer.started(settings)

    def ask(self, request: Fields, *rest: bytes, end: bool = True, stream_id: int = 1) -> list[Frame]:
        return self.peer.feed(self.peer.headers(stream_id, request, end=end), *rest)

    @property
    def exchange(self) -> Http2Exchange:
        (exchange,) = self.site.exchanges
        return exchange

    def reply(self) -> tuple[dict[bytes, bytes], bytes]:
        """The whole reply, which has ended."""
        head, *rest = self.peer.taken()
        assert rest[-1].flags & frames.END_STREAM
        assert all(frame.kind == frames.DATA for frame in rest)
        return self.peer.fields(head), b"".join([frame.payload for frame in rest])


@pytest.fixture
def world() -> World:
    return World()


def test_a_request_and_its_reply(world: World) -> None:
    assert world.ask(fields(more=[(b"accept", b"*/*")])) == []
    exchange = world.exchange
    assert (exchange.method, exchange.target, exchange.peer) == ("GET", "/x?y", "peer")
    assert exchange.headers == [(b"accept", b"*/*"), (b"host", b"a:1")]
    exchange.respond(200, [(b"Content-Type", b"text/plain"), (b"Connection", b"close")], b"hello")
    head, content = world.reply()
    assert head.pop(b"date").endswith(b"GMT")
    assert (head, content) == (
        {b":status": b"200", b"content-type": b"text/plain", b"content-length": b"5"},
        b"hello",
    )
    assert not world.peer.core.streams


def test_grpc_is_served_beside_it(world: World) -> None:
    world.ask(fields())
    assert world.peer.echo(3, b"hello") == b"hello"
    world.exchange.respond(404, [], b"no")
    assert world.reply()[1] == b"no"


def test_without_a_handler_it_is_refused_as_before() -> None:
    peer = ServerPeer().started()
    (answer,) = peer.feed(peer.headers(1, fields(), end=True))
    assert peer.fields(answer)[b":status"] == b"415"


def test_a_host_of_the_request_stands(world: World) -> None:
    world.ask(fields(more=[(b"host", b"b")]))
    assert world.exchange.headers == [(b"host", b"b")]


def test_the_varying_timeout_is_a_header_too(world: World) -> None:
    for number, timeout in enumerate((b"1S", b"2S", b"2S")):
        world.ask(fields(more=[(b"grpc-timeout", timeout)]), stream_id=2 * number + 1)
    assert [dict(exchange.headers)[b"grpc-timeout"] for exchange in world.site.exchanges] == [b"1S", b"2S", b"2S"]


def test_head_has_no_body(world: World) -> None:
    world.ask(fields(b"HEAD"))
    world.exchange.respond(200, [], b"hello")
    head, content = world.reply()
    assert (head[b"content-length"], content) == (b"5", b"")


@given(st.lists(st.integers(0, 20_000), max_size=5))
def test_a_body_arrives_in_order_then_its_end(sizes: list[int]) -> None:
    world = World()
    world.site.read_at_once = True
    parts = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    octets = b"".join(parts)
    world.ask(fields(b"POST"), body(1, octets), end=False)
    assert world.site.body == octets
    assert world.site.told[-1] == "end" and world.site.told.count("end") == 1


def test_a_body_is_held_until_it_is_wanted(world: World) -> None:
    assert world.ask(fields(b"POST"), data(1, b"a" * 16_384), data(1, b"b" * 16_384, end=True), end=False) == []
    assert world.site.told == []
    assert world.peer.core.unfinished_bytes == 32_768
    world.site.read(world.exchange)
    assert world.site.told == [b"a" * 16_384, b"b" * 16_384, "end"]
    assert world.peer.core.unfinished_bytes == 0


def test_a_body_that_is_not_wanted_gets_no_more_window() -> None:
    world = World(ServerLimits(stream_window_bytes=WINDOW))
    answer = world.ask(fields(b"POST"), *[data(1, b"x" * 16_000)] * 4, end=False)
    assert answer == []
    answer = world.peer.feed(data(1, b"x" * 16_000))
    assert reset(answer, 1) is ErrorCode.FLOW_CONTROL_ERROR
    assert world.site.told == ["gone"]
    assert world.peer.core.unfinished_bytes == 0


def test_pause_and_resume(world: World) -> None:
    world.site.read_at_once = True
    world.ask(fields(b"POST"), end=False)
    exchange = world.exchange
    exchange.pause_reading()
    world.peer.feed(data(1, b"one"), data(1, b"two", end=True))
    assert world.site.told == []
    exchange.resume_reading()
    assert world.site.told == [b"one", b"two", "end"]


def test_a_pause_while_what_was_held_is_given() -> None:
    world = World()
    world.ask(fields(b"POST"), data(1, b"one"), data(1, b"two", end=True), end=False)
    exchange = world.exchange

    def take(part: bytes) -> None:
        world.site.told.append(part)
        exchange.pause_reading()

    exchange.stream_body(take, lambda: world.site.told.append("end"))
    for expected in ([b"one"], [b"one", b"two"], [b"one", b"two", "end"]):
        assert world.site.told == expected
        exchange.resume_reading()


def test_trailers_end_a_body(world: World) -> None:
    world.site.read_at_once = True
    world.ask(fields(b"POST"), data(1, b"x"), end=False)
    world.peer.feed(world.peer.headers(1, [(b"a", b"b")], end=True))
    assert world.site.told == [b"x", "end"]


def test_too_much_held_on_a_connection() -> None:
    world = World(ServerLimits(unfinished_bytes=20_000))
    answer = world.ask(fields(b"POST"), data(1, b"x" * 16_000), data(1, b"x" * 16_000), end=False)
    assert reset(answer, 1) is ErrorCode.ENHANCE_YOUR_CALM
    assert world.site.told == ["gone"]
    assert world.peer.core.unfinished_bytes == 0


def test_a_reply_before_the_end_of_the_body(world: World) -> None:
    world.site.read_at_once = True
    world.ask(fields(b"POST"), end=False)
    world.exchange.respond(400, [], b"no")
    head, *rest = world.peer.taken()
    assert world.peer.fields(head)[b":status"] == b"400"
    assert reset(rest[-1:], 1) is ErrorCode.NO_ERROR
    assert world.peer.feed(data(1, b"late", end=True)) == []
    assert world.site.told == []


def test_a_streamed_reply(world: World) -> None:
    world.ask(fields())
    exchange = world.exchange
    exchange.start(200, [])
    (head,) = world.peer.taken()
    assert not head.flags & frames.END_STREAM
    for part in (b"one", b"two"):
        exchange.write(part)
        (frame,) = world.peer.taken()
        assert frame.payload == part
    exchange.finish()
    exchange.write(b"dropped")
    (frame,) = world.peer.taken()
    assert (frame.payload, frame.flags) == (b"", frames.END_STREAM)


def test_a_client_that_does_not_read(world: World) -> None:
    world.ask(fields())
    exchange = world.exchange
    exchange.start(200, [])
    exchange.write(b"x" * 500_000)
    assert not exchange.writable
    world.peer.taken()
    exchange.finish()
    assert list(world.peer.core.streams) == [1]
    answer = world.peer.feed(frames.window_update(0, 500_000), frames.window_update(1, 500_000))
    assert answer[-1].flags & frames.END_STREAM
    assert not world.peer.core.streams


def test_writable_again(world: World) -> None:
    world.ask(fields())
    exchange = world.exchange
    exchange.start(200, [])
    exchange.write(b"x" * 500_000)
    assert not exchange.writable
    world.peer.feed(frames.window_update(0, 500_000), frames.window_update(1, 500_000))
    assert exchange.writable
    assert world.site.told == ["writable"]


def test_a_handler_that_does_not_heed_writable() -> None:
    world = World(ServerLimits(stream_queue_bytes=100_000))
    world.ask(fields())
    world.exchange.start(200, [])
    for _ in range(4):
        world.exchange.write(b"x" * 60_000)
    assert reset(world.peer.taken()[-1:], 1) is ErrorCode.ENHANCE_YOUR_CALM
    assert world.site.told == ["gone"]


@pytest.mark.parametrize("way", ["reset", "lost"])
def test_a_client_that_leaves(world: World, way: str) -> None:
    world.ask(fields())
    exchange = world.exchange
    if way == "reset":
        world.peer.feed(frames.rst_stream(1, ErrorCode.CANCEL))
    else:
        world.peer.core.lost("gone")
    assert world.site.told == ["gone"]
    assert not exchange.writable
    exchange.respond(200, [], b"late")
    assert world.peer.taken() == []


def test_streams_over_the_limit_are_refused() -> None:
    world = World(ServerLimits(max_concurrent_streams=1))
    world.ask(fields())
    assert reset(world.ask(fields(), stream_id=3), 3) is ErrorCode.REFUSED_STREAM
    assert len(world.site.exchanges) == 1


def test_a_connection_with_too_much_queued_takes_no_request() -> None:
    world = World(ServerLimits(queued_bytes=100_000))
    world.ask(fields())
    world.exchange.start(200, [])
    world.exchange.write(b"x" * 300_000)
    world.peer.taken()
    assert reset(world.ask(fields(), stream_id=3), 3) is ErrorCode.REFUSED_STREAM


def test_a_drain_waits_for_the_reply(world: World) -> None:
    world.ask(fields())
    world.peer.core.drain()
    world.peer.taken()
    world.peer.feed(frames.ping(b"kv-drain", ack=True))
    assert not world.peer.core.drained
    world.exchange.respond(200, [], b"")
    world.peer.taken()
    assert world.peer.core.drained


def test_there_is_no_upgrade(world: World) -> None:
    world.ask(fields())
    assert world.exchange.switch([], object()) is False  # type: ignore[arg-type]  # it is not looked at
