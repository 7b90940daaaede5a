"""The h2 package as the peer of both cores, driving random legal exchanges: nothing is lost, in whatever order."""

import struct
from collections import defaultdict
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from hypothesis import given, settings
from hypothesis import strategies as st

from kvorum.wire import grpc as wire_grpc
from kvorum.wire.calls import ClientStream, UnaryClientCall
from kvorum.wire.limits import ClientLimits, ServerLimits
from tests.wire.peer import ClientPeer, ServerPeer, message, request_fields
from tests.wire.serving import Echo

SETTING = st.sampled_from(
    [{h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: size} for size in (0, 1, 100, 20_000, 65_535, 1_000_000)]
    + [{h2.settings.SettingCodes.MAX_FRAME_SIZE: size} for size in (16_384, 20_000, 100_000)]
    + [{h2.settings.SettingCodes.HEADER_TABLE_SIZE: size} for size in (0, 64, 4_096)]
)
SIZES = st.sampled_from([0, 1, 10, 1_000, 16_379, 16_380, 40_000, 70_000])
STEP = st.one_of(
    st.tuples(st.just("unary"), SIZES, st.integers(1, 20_000), st.booleans()),
    st.tuples(st.just("chat"), st.lists(SIZES, max_size=4), st.integers(1, 20_000), st.booleans()),
    st.tuples(st.just("settings"), SETTING),
    st.tuples(st.just("ping")),
    st.tuples(st.just("reset")),
    st.tuples(st.just("acknowledge"), st.integers(1, 30_000)),
    st.tuples(st.just("congest"), st.booleans()),
)


class H2Client:
    """h2 as the client of a server core."""

    def __init__(self) -> None:
        limits = ServerLimits(stream_window_bytes=65_535, turn_bytes=30_000, connection_window_bytes=200_000)
        self.peer = ServerPeer(streams={"/t.S/Chat": Echo}, limits=limits)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
        self.h2.initiate_connection()
        self.received: dict[int, bytes] = defaultdict(bytes)
        self.unacknowledged: dict[int, int] = defaultdict(int)
        self.trailers: dict[int, dict[bytes, bytes]] = {}
        self.expected: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.pongs = 0
        self.exchange()

    def exchange(self) -> None:
        """Carry octets until both are quiet."""
        while True:
            out = self.h2.data_to_send()
            if out:
                self.peer.core.receive(out, self.peer.now)
                assert self.peer.core.fault is None, self.peer.core.fault
            answer = self.peer.core.take()
            if self.peer.core.unfinished:
                self.peer.core.next_turn()
            if not out and not answer:
                return
            for event in self.h2.receive_data(answer):
                self.note(event)

    def note(self, event: Any) -> None:
        match event:
            case h2.events.DataReceived():
                self.received[event.stream_id] += event.data
                self.unacknowledged[event.stream_id] += event.flow_controlled_length
            case h2.events.TrailersReceived():
                self.trailers[event.stream_id] = dict(event.headers)
            case h2.events.StreamEnded():
                self.ended.add(event.stream_id)
            case h2.events.PingAckReceived():
                self.pongs += 1
            case h2.events.StreamReset() | h2.events.ConnectionTerminated():
                raise AssertionError(event)

    def acknowledge(self, size: int) -> None:
        for stream_id, owed in list(self.unacknowledged.items()):
            part = min(size, owed)
            if part:
                self.h2.acknowledge_received_data(part, stream_id)
                self.unacknowledged[stream_id] -= part

    def send(self, path: str, payload: bytes, chunk: int, padded: bool) -> None:
        stream_id = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream_id, request_fields(path))
        self.expected[stream_id] = payload
        sent = 0
        while sent < len(payload):
            self.exchange()
            room = min(self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size, chunk)
            room -= 10 if padded else 0
            assert room > 0, "the server gives no window back"
            self.h2.send_data(stream_id, payload[sent : sent + room], pad_length=9 if padded else None)
            sent += room
        self.h2.end_stream(stream_id)

    def step(self, step: tuple[Any, ...]) -> None:
        match step:
            case ("unary", size, chunk, padded):
                self.send("/t.S/Echo", message(b"u" * size), chunk + 10, padded)
            case ("chat", sizes, chunk, padded):
                payload = b"".join([message(bytes((65 + at,)) * size) for at, size in enumerate(sizes)])
                self.send("/t.S/Chat", payload, chunk + 10, padded)
            case ("settings", values):
                self.h2.update_settings(values)
            case ("ping",):
                self.peer.now += 7200.0  # as often as the keepalive rule allows
                self.h2.ping(b"12345678")
            case ("reset",):
                for stream_id in sorted(set(self.expected) - self.ended)[:1]:
                    self.h2.reset_stream(stream_id, 8)
                    del self.expected[stream_id]
                    self.ended.add(stream_id)
            case ("acknowledge", size):
                self.acknowledge(size)
            case ("congest", congested):
                self.peer.core.set_congested(congested)
        self.exchange()

    def finish(self) -> None:
        self.peer.core.set_congested(False)
        self.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 65_535})
        self.exchange()
        while set(self.expected) - self.ended:
            before = sum(len(text) for text in self.received.values())
            self.acknowledge(1_000_000)
            self.exchange()
            after = sum(len(text) for text in self.received.values())
            assert after > before or not set(self.expected) - self.ended, "stuck"


@given(st.lists(STEP, max_size=12))
@settings(max_examples=60, deadline=None)
def test_server_core_with_h2_as_the_client(steps: list[tuple[Any, ...]]) -> None:
    client = H2Client()
    for step in steps:
        client.step(step)
    client.finish()
    for stream_id, payload in client.expected.items():
        assert client.received[stream_id] == payload
        assert client.trailers[stream_id] == {b"grpc-status": b"0"} if payload else True
    core = client.peer.core
    assert not core.streams
    assert core.queued_bytes == core.unfinished_bytes == 0
    assert client.pongs == sum(step == ("ping",) for step in steps)


CALL = st.one_of(
    st.tuples(st.just("unary"), SIZES),
    st.tuples(st.just("chat"), st.lists(SIZES, max_size=4)),
    st.tuples(st.just("cancel")),
    st.tuples(st.just("settings"), SETTING),
    st.tuples(st.just("reply"), st.integers(1, 20_000)),
    st.tuples(st.just("congest"), st.booleans()),
)


class Collector:
    """A call's replies."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.ends: list[int] = []

    def on_message(self, text: bytes) -> None:
        self.messages.append(text)

    def on_end(self, code: int, text: str, trailers: wire_grpc.Metadata) -> None:
        self.ends.append(code)

    def on_writable(self) -> None:
        pass


class H2Server:
    """h2 as the server of a client core: echoes octets as its windows and the test allow."""

    def __init__(self) -> None:
        limits = ClientLimits(stream_window_bytes=65_535, turn_bytes=30_000, connection_window_bytes=200_000)
        self.peer = ClientPeer(limits)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        self.h2.initiate_connection()
        self.echoes: dict[int, bytes] = {}
        self.half_closed: set[int] = set()
        self.owed: dict[int, int] = defaultdict(int)
        self.calls: list[tuple[UnaryClientCall | ClientStream, Collector, list[bytes]]] = []
        self.cancelled: set[int] = set()
        self.exchange()
        assert self.peer.core.can_start

    def exchange(self) -> None:
        while True:
            out = self.h2.data_to_send()
            if out:
                self.peer.core.receive(out, self.peer.now)
                assert self.peer.core.fault is None, self.peer.core.fault
            answer = self.peer.core.take()
            if self.peer.core.unfinished:
                self.peer.core.next_turn()
            if not out and not answer:
                return
            for event in self.h2.receive_data(answer):
                match event:
                    case h2.events.RequestReceived():
                        self.echoes[event.stream_id] = b""
                        fields = [(b":status", b"200"), (b"content-type", b"application/grpc")]
                        self.h2.send_headers(event.stream_id, fields)
                    case h2.events.DataReceived():
                        self.echoes[event.stream_id] += event.data
                        self.owed[event.stream_id] += event.flow_controlled_length
                    case h2.events.StreamEnded():
                        self.half_closed.add(event.stream_id)
                    case h2.events.StreamReset():
                        self.echoes.pop(event.stream_id, None)
                    case h2.events.ConnectionTerminated():
                        raise AssertionError(event)

    def reply(self, size: int) -> bool:
        """Send what windows allow, at most `size` octets of each stream; whether anything was sent."""
        moved = False
        for stream_id, owed in list(self.owed.items()):
            part = min(owed, size)
            if part:
                self.h2.acknowledge_received_data(part, stream_id)
                self.owed[stream_id] -= part
                moved = True
        for stream_id in list(self.echoes):
            room = min(self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size, size)
            text = self.echoes[stream_id][: max(room, 0)]
            if text:
                self.h2.send_data(stream_id, text)
                self.echoes[stream_id] = self.echoes[stream_id][len(text) :]
                moved = True
            if stream_id in self.half_closed and not self.echoes[stream_id]:
                self.h2.send_headers(stream_id, [(b"grpc-status", b"0")], end_stream=True)
                del self.echoes[stream_id]
                moved = True
        self.exchange()
        return moved

    def step(self, step: tuple[Any, ...]) -> None:
        core = self.peer.core
        match step:
            case ("unary", size):
                collector = Collector()

                def done(code: int, text: str, reply: bytes) -> None:
                    collector.ends.append(code)
                    collector.messages.append(reply)

                call = UnaryClientCall("/t.S/Echo", (), None, b"u" * size, lambda _: None, done)
                core.start(call, self.peer.now)
                self.calls.append((call, collector, [b"u" * size]))
            case ("chat", sizes):
                collector = Collector()
                stream = ClientStream("/t.S/Chat", ((b"token", b"t"),), None, lambda _: None, collector)
                messages = [bytes((65 + at,)) * size for at, size in enumerate(sizes)]
                core.start(stream, self.peer.now)
                for text in messages:
                    stream.send(text)
                stream.half_close()
                self.calls.append((stream, collector, messages))
            case ("cancel",):
                for at, (open_call, collector, _) in enumerate(self.calls):
                    if not collector.ends:
                        core.abandon(open_call, 1, "")
                        self.cancelled.add(at)
                        break
            case ("settings", values):
                self.h2.update_settings(values)
            case ("reply", size):
                self.reply(size)
            case ("congest", congested):
                core.set_congested(congested)
        self.exchange()


@given(st.lists(CALL, max_size=12))
@settings(max_examples=60, deadline=None)
def test_client_core_with_h2_as_the_server(steps: list[tuple[Any, ...]]) -> None:
    server = H2Server()
    for step in steps:
        server.step(step)
    server.peer.core.set_congested(False)
    server.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 65_535})
    server.exchange()
    while server.reply(1_000_000):
        pass
    for at, (_, collector, messages) in enumerate(server.calls):
        assert collector.ends == [1 if at in server.cancelled else 0]
        if at not in server.cancelled:
            assert collector.messages == messages
    core = server.peer.core
    assert not core.streams
    assert core.queued_bytes == core.unfinished_bytes == 0


def test_the_length_prefix_is_big_endian() -> None:
    assert wire_grpc.frame(b"abc") == b"\0" + struct.pack(">I", 3) + b"abc" == message(b"abc")
