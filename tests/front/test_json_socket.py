"""WebSockets on /v3 paths (J27, RFC 6455), spoken to with wsproto's client."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from kvorum.errors import Code
from kvorum.pb.rpc_pb2 import (
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
    RangeRequest,
    RangeResponse,
    WatchRequest,
    WatchResponse,
)
from kvorum.wire.server_connection import CancelReason
from node.front.access import Access
from node.front.json_gateway import Gateway
from node.front.json_socket import CLOSE_WAIT_S, MOST_UNSENT_BYTES, JsonSocket
from tests.front.http_fake import FakeClock, FakeExchange, FakeStreams, FakeTransport, FakeUnary, run_inline

Headers = dict[str, str | None]

MESSAGE_BYTES = 1000
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
HANDSHAKE = {
    "Host": "a",
    "Connection": "keep-alive, Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": KEY,
}
CREATE = '{"create_request":{"key":"Zm9v"}}'


class World:
    """A gateway with a watch, a keep-alive and a range behind it."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.watch = FakeStreams(WatchRequest)
        self.keep_alive = FakeStreams(LeaseKeepAliveRequest)
        self.range = FakeUnary(RangeRequest)
        self.range.answer = RangeResponse(count=1)
        self.gateway = Gateway(
            unary={"/etcdserverpb.KV/Range": self.range},
            streams={
                "/etcdserverpb.Watch/Watch": self.watch,
                "/etcdserverpb.Lease/LeaseKeepAlive": self.keep_alive,
            },
            call_later=self.clock.call_later,
            run_aside=run_inline,
            message_bytes=MESSAGE_BYTES,
        )

    def ask(
        self, path: str = "/v3/watch", headers: Headers | None = None, *, method: str = "GET", has_body: bool = False
    ) -> FakeExchange:
        """A handshake with some headers changed, or left out where they are None."""
        kept = {name: value for name, value in {**HANDSHAKE, **(headers or {})}.items() if value is not None}
        exchange = FakeExchange(method, path, kept)
        exchange.has_body = has_body
        request = Access().admit(exchange)
        assert request is not None
        self.gateway.handle(request)
        return exchange

    def open(self, path: str = "/v3/watch", headers: Headers | None = None) -> Client:
        return Client(self.ask(path, headers))


class Client:
    """The other end of a connection that was switched."""

    def __init__(self, exchange: FakeExchange) -> None:
        assert exchange.status == 101
        assert isinstance(exchange.switched, JsonSocket)
        self.server = exchange.switched
        self.transport: FakeTransport = exchange.transport
        self._socket = Connection(ConnectionType.CLIENT)

    def send(self, *events: Event) -> None:
        self.receive(b"".join(self._socket.send(event) for event in events))

    def receive(self, data: bytes) -> None:
        self.server.data_received(data)

    def say(self, text: str) -> None:
        self.send(TextMessage(data=text))

    def frames(self, *events: Event) -> bytes:
        return b"".join(self._socket.send(event) for event in events)

    @property
    def events(self) -> list[Event]:
        """What the server has sent since the last look."""
        self._socket.receive_data(bytes(self.transport.written))
        self.transport.written.clear()
        return list(self._socket.events())

    @property
    def messages(self) -> list[Any]:
        return [orjson.loads(event.data) for event in self.events if isinstance(event, TextMessage)]


@pytest.fixture
def world() -> World:
    return World()


def test_the_handshake_is_answered_as_the_rfc_has_it(world: World) -> None:
    """RFC 6455, section 1.3, has this key and this answer."""
    exchange = world.ask()
    assert exchange.status == 101
    assert exchange.reply_headers == {
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
    }


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-WebSocket-Key": None},
        {"Sec-WebSocket-Key": ""},
        {"Sec-WebSocket-Version": None},
        {"Sec-WebSocket-Version": "8"},
    ],
)
def test_a_bad_handshake(world: World, headers: Headers) -> None:
    exchange = world.ask("/v3/watch", headers)
    assert (exchange.status, exchange.reply) == (400, b"Bad Request\n")
    assert exchange.reply_headers["sec-websocket-version"] == "13"
    assert exchange.reply_headers["access-control-allow-origin"] == "*"
    assert exchange.switched is None and world.watch.stream is None


def test_a_handshake_with_a_body(world: World) -> None:
    assert world.ask(has_body=True).status == 400
    assert world.watch.stream is None


def test_a_handshake_is_a_get(world: World) -> None:
    exchange = world.ask(method="POST")
    assert (exchange.status, exchange.reply) == (405, b"Method Not Allowed\n")


@pytest.mark.parametrize("headers", [{"Connection": None}, {"Upgrade": None}, {"Upgrade": "h2c"}])
def test_what_asks_for_no_websocket_is_a_plain_request(world: World, headers: Headers) -> None:
    assert world.ask("/v3/watch", headers).status == 501
    plain = world.ask("/v3/watch", headers, method="POST")
    plain.body(CREATE.encode())
    assert len(world.watch.requests) == 1


def test_an_unknown_path_is_not_switched(world: World) -> None:
    assert world.ask("/v3/nowhere").status == 404


@pytest.mark.parametrize("path", ["/v3/watch", "/v3beta/watch"])
def test_a_watch(world: World, path: str) -> None:
    client = world.open(path)
    client.say(CREATE)
    assert [request.create_request.key for request in world.watch.requests] == [b"foo"]
    world.watch.stream.send(WatchResponse(created=True).SerializeToString())
    world.watch.stream.send(WatchResponse(watch_id=7).SerializeToString())
    assert client.messages == [{"result": {"created": True}}, {"result": {"watch_id": "7"}}]
    client.say('{"progress_request":{}}')
    assert len(world.watch.requests) == 2
    assert world.watch.told[-1][0] == "message"


def test_messages_sent_together_are_messages_of_their_own(world: World) -> None:
    client = world.open()
    client.say(CREATE)
    one, two = (WatchResponse(watch_id=number).SerializeToString() for number in (1, 2))
    framed = b"".join(b"\0" + len(message).to_bytes(4, "big") + message for message in (one, two))
    world.watch.stream.send_framed(framed, 2)
    assert client.messages == [{"result": {"watch_id": "1"}}, {"result": {"watch_id": "2"}}]


def test_a_keep_alive(world: World) -> None:
    client = world.open("/v3/lease/keepalive")
    for lease in ("5", "6"):
        client.say(f'{{"ID":"{lease}"}}')
    assert [request.ID for request in world.keep_alive.requests] == [5, 6]
    world.keep_alive.stream.send(LeaseKeepAliveResponse(ID=5, TTL=9).SerializeToString())
    assert client.messages == [{"result": {"ID": "5", "TTL": "9"}}]


def test_a_call_that_does_not_stream_answers_the_first_message(world: World) -> None:
    """The reference waits for the end of the client's messages, after which it can answer no more."""
    client = world.open("/v3/kv/range")
    client.send(TextMessage(data='{"key":"Zm9v"}'), TextMessage(data='{"key":"YmFy"}'))
    assert world.range.asked == RangeRequest(key=b"foo")
    message, close = client.events
    assert isinstance(message, TextMessage) and orjson.loads(message.data) == {"count": "1"}
    assert isinstance(close, CloseConnection) and close.code == 1000


@pytest.mark.parametrize("event", [TextMessage, BytesMessage])
@pytest.mark.parametrize("at", [1, 10, len(CREATE) - 1])
def test_fragments_make_one_message(world: World, event: Any, at: int) -> None:
    client = world.open()
    data: Any = CREATE if event is TextMessage else CREATE.encode()
    client.send(event(data=data[:at], message_finished=False), Ping(b"between"))
    assert not world.watch.requests
    assert client.events == [Pong(b"between")]
    client.send(event(data=data[at:], message_finished=True))
    assert len(world.watch.requests) == 1


def test_any_split_of_the_bytes_gives_the_same(world: World) -> None:
    client = world.open()
    octets = client.frames(Ping(b"x"), TextMessage(data=CREATE), TextMessage(data='{"progress_request":{}}'))
    for at in range(len(octets)):
        client.receive(octets[at : at + 1])
    assert len(world.watch.requests) == 2
    assert client.events == [Pong(b"x")]


def test_two_messages_are_never_one_value(world: World) -> None:
    client = world.open("/v3/lease/keepalive")
    client.say('{"ID":1')
    client.say("2}")
    assert client.messages[0]["code"] == Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ({"Sec-WebSocket-Protocol": "Bearer, some.token"}, "some.token"),
        ({"Sec-WebSocket-Protocol": "bearer,some.token", "Authorization": "other"}, "some.token"),
        ({"Cookie": "a=b; token=from.cookie"}, "from.cookie"),
        ({"Cookie": 'token="quoted"', "Sec-WebSocket-Protocol": "Bearer, other"}, "quoted"),
        ({"Authorization": "plain"}, "plain"),
        ({"Cookie": "tokens=x; Token=y; token="}, None),
        ({"Sec-WebSocket-Protocol": "Bearer"}, None),
        ({"Sec-WebSocket-Protocol": "chat, x"}, None),
    ],
)
def test_the_token_becomes_metadata(world: World, headers: Headers, token: str | None) -> None:
    world.open("/v3/watch", headers)
    assert world.watch.head.metadata.get("authorization") == (None if token is None else (token,))


@pytest.mark.parametrize(
    ("offered", "chosen"), [("Bearer, t", "Bearer"), ("Bearer", "Bearer"), ("chat", None), ("chat, Bearer", None)]
)
def test_the_subprotocol(world: World, offered: str, chosen: str | None) -> None:
    exchange = world.ask("/v3/watch", {"Sec-WebSocket-Protocol": offered})
    assert exchange.reply_headers.get("sec-websocket-protocol") == chosen


def test_j22_other_headers_are_metadata_and_deadline(world: World) -> None:
    client = world.open("/v3/watch", {"Grpc-Metadata-hasleader": "true", "Grpc-Timeout": "3S"})
    assert world.watch.head.metadata == {"hasleader": ("true",)}
    (timer,) = world.clock.running
    assert timer.delay_s == 3.0
    client.say(CREATE)
    timer.fire()
    assert client.messages == [{"error": {"code": 4, "message": "context deadline exceeded"}}]


def test_pings_are_answered(world: World) -> None:
    client = world.open()
    client.send(Ping(b"hi"), Pong(b"unasked"))
    assert client.events == [Pong(b"hi")]


def test_the_client_closes(world: World) -> None:
    client = world.open()
    client.say(CREATE)
    client.send(CloseConnection(code=1001, reason="bye"))
    assert client.events == [CloseConnection(code=1001, reason="bye")]
    assert client.transport.closed
    assert world.watch.told[-1] == ("cancel", CancelReason.LOST)
    client.receive(b"anything")
    client.server.connection_lost(None)
    assert [told[0] for told in world.watch.told].count("cancel") == 1


def test_the_connection_is_lost(world: World) -> None:
    client = world.open()
    client.say(CREATE)
    client.server.connection_lost(None)
    assert world.watch.told[-1] == ("cancel", CancelReason.LOST)
    world.watch.stream.send(WatchResponse().SerializeToString())
    assert not client.transport.written


def test_the_service_ends_the_call(world: World) -> None:
    client = world.open()
    client.say(CREATE)
    crossing = client.frames(TextMessage(data=CREATE), Ping(b"x"))
    world.watch.stream.end(Code.UNAVAILABLE, "etcdserver: no leader")
    message, close = client.events
    assert isinstance(message, TextMessage) and isinstance(close, CloseConnection)
    assert orjson.loads(message.data) == {"error": {"code": 14, "message": "etcdserver: no leader"}}
    assert close.code == 1000
    assert not client.transport.closed
    client.receive(crossing)
    assert len(world.watch.requests) == 1
    assert not client.transport.written
    client.send(CloseConnection(code=1000))
    assert client.transport.closed
    client.server.connection_lost(None)
    assert not world.clock.running


def test_a_client_that_does_not_answer_the_close_is_cut_off(world: World) -> None:
    client = world.open()
    client.say(CREATE)
    world.watch.stream.end(0, "")
    (timer,) = world.clock.running
    assert timer.delay_s == CLOSE_WAIT_S
    timer.fire()
    assert client.transport.aborted


def test_bad_json_at_first(world: World) -> None:
    client = world.open()
    client.say("nope")
    message, close = client.events
    assert isinstance(message, TextMessage) and isinstance(close, CloseConnection)
    assert orjson.loads(message.data)["code"] == Code.INVALID_ARGUMENT


def test_bad_json_after_good_ends_only_the_clients_side(world: World) -> None:
    """As seen on 3.5.1."""
    client = world.open()
    client.say(CREATE)
    client.say("nope")
    assert world.watch.told[-1] == ("half_close",)
    world.watch.stream.send(WatchResponse(watch_id=7).SerializeToString())
    assert client.messages == [{"result": {"watch_id": "7"}}]


@pytest.mark.parametrize(
    ("octets", "code"),
    [
        (b"\x83\x80\0\0\0\0", 1002),  # a reserved opcode
        (b"\x81\x05hello", 1002),  # not masked
        (b"\xf1\x80\0\0\0\0", 1002),  # reserved bits
        (b"\x81\x82\0\0\0\0\xff\xff", 1007),  # text that is no UTF-8
        (b"\x89\xfe\x01\0\0\0\0\0", 1002),  # a ping of 256 octets
    ],
)
def test_frames_that_are_none(world: World, octets: bytes, code: int) -> None:
    client = world.open()
    client.say(CREATE)
    client.receive(octets)
    (close,) = client.events
    assert isinstance(close, CloseConnection) and close.code == code
    assert world.watch.told[-1] == ("cancel", CancelReason.LOST)
    assert [timer.delay_s for timer in world.clock.running] == [CLOSE_WAIT_S]


@pytest.mark.parametrize("fragments", [1, 100])
def test_a_message_over_the_limit(world: World, fragments: int) -> None:
    client = world.open()
    limit = 2 * MESSAGE_BYTES + 65_536
    client.send(TextMessage(data='{"x":"', message_finished=False))
    for number in range(fragments):
        assert not world.watch.told
        client.send(TextMessage(data="x" * (limit // fragments + 1), message_finished=number == fragments - 1))
    (close,) = client.events
    assert isinstance(close, CloseConnection) and close.code == 1009
    assert world.watch.told == [("cancel", CancelReason.LOST)]


def test_a_message_over_the_limit_of_requests(world: World) -> None:
    client = world.open()
    client.say('{"create_request":{"key":"%s"}}' % ("eHh4" * MESSAGE_BYTES))
    assert client.messages[0]["code"] == Code.RESOURCE_EXHAUSTED
    assert not world.watch.requests


def test_a_stream_that_pauses_stops_the_socket(world: World) -> None:
    client = world.open()
    world.watch.on_message_do = lambda _request: world.watch.stream.pause_reading()
    client.send(TextMessage(data=CREATE), TextMessage(data=CREATE))
    assert (len(world.watch.requests), client.transport.paused) == (1, True)
    world.watch.on_message_do = lambda _request: None
    world.watch.stream.resume_reading()
    assert (len(world.watch.requests), client.transport.paused) == (2, False)


def test_a_paused_socket_still_sees_the_close_frame_of_a_call_that_ended(world: World) -> None:
    client = world.open()
    world.watch.on_message_do = lambda _request: world.watch.stream.pause_reading()
    client.say(CREATE)
    world.watch.stream.end(0, "")
    assert not client.transport.paused


def test_a_client_that_does_not_read(world: World) -> None:
    client = world.open()
    client.say(CREATE)
    client.server.pause_writing()
    assert not world.watch.stream.writable
    client.server.resume_writing()
    assert world.watch.stream.writable
    assert world.watch.told[-1] == ("writable",)


def test_a_service_that_does_not_heed_writable(world: World) -> None:
    client = world.open()
    client.say(CREATE)
    client.transport.unsent_bytes = MOST_UNSENT_BYTES
    world.watch.stream.send(WatchResponse(created=True).SerializeToString())
    assert not client.transport.aborted
    client.transport.unsent_bytes += 1
    world.watch.stream.send(WatchResponse(created=True).SerializeToString())
    assert client.transport.aborted


def test_pings_of_a_client_that_reads_no_pong(world: World) -> None:
    client = world.open()
    client.transport.unsent_bytes = MOST_UNSENT_BYTES + 1
    client.send(Ping(b"x"))
    assert client.transport.aborted


def test_nothing_of_an_ended_call_refers_to_its_service(world: World) -> None:
    client = world.open()
    client.say(CREATE)
    world.watch.stream.end(0, "")
    kept = vars(client.server)
    assert [kept[name] for name in ("on_disconnect", "on_writable", "_on_chunk", "_on_end")] == [None] * 4
