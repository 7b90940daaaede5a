"""Rows G: what gRPC itself promises, over grpcio and, where that hides it, over HTTP/2 frames of the h2 package."""

import gzip
import socket
import time
from types import TracebackType
from typing import Self

import grpc
import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import pytest

from kvorum import errors
from kvorum.errors import Code, Status
from kvorum.pb.health_pb2 import HealthCheckRequest, HealthCheckResponse
from kvorum.pb.rpc_pb2 import PutRequest, RangeRequest, RangeResponse, StatusRequest
from tests.calls import OK
from tests.differential.side import Side, differs

RANGE = "/etcdserverpb.KV/Range"
Headers = list[tuple[str, str]]


class Wire:
    """One HTTP/2 connection in clear text."""

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self._socket = socket.create_connection((host, int(port)), timeout=15)
        self.connection = h2.connection.H2Connection(
            h2.config.H2Configuration(header_encoding="utf-8", validate_outbound_headers=False)
        )
        self.connection.initiate_connection()
        self.events: list[h2.events.Event] = []
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._socket.close()

    def flush(self) -> None:
        self._socket.sendall(self.connection.data_to_send())

    def receive(self, *, answer: bool = True) -> bool:
        """Takes in what has come; False at the end of the connection."""
        data = self._socket.recv(65536)
        for event in self.connection.receive_data(data) if data else ():
            self.events.append(event)
            if isinstance(event, h2.events.DataReceived):
                self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        if answer:
            self.flush()
        return bool(data)

    def send(self, headers: Headers, body: bytes = b"", *, end: bool = True) -> int:
        stream = self.connection.get_next_available_stream_id()
        self.connection.send_headers(stream, headers, end_stream=False)
        self.connection.send_data(stream, body, end_stream=end)
        self.flush()
        return stream

    def call(self, headers: Headers, body: bytes) -> tuple[dict[str, str], bytes, dict[str, str]]:
        """(response headers, body, trailers); trailers-only replies have all in the headers."""
        stream = self.send(headers, body)
        while not any(isinstance(e, h2.events.StreamEnded) and e.stream_id == stream for e in self.events):
            assert self.receive(), self.events
        response: dict[str, str] = {}
        trailers: dict[str, str] = {}
        data = b""
        for event in self.events:
            if isinstance(event, h2.events.ResponseReceived) and event.stream_id == stream:
                response = text(event.headers)
            elif isinstance(event, h2.events.TrailersReceived) and event.stream_id == stream:
                trailers = text(event.headers)
            elif isinstance(event, h2.events.DataReceived) and event.stream_id == stream:
                data += event.data
        return response, data, trailers


def text(headers: object) -> dict[str, str]:
    assert isinstance(headers, list)
    return {str(name): str(value) for name, value in headers}


def head(path: str = RANGE, **other: str) -> Headers:
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost"}
    fields |= {"content-type": "application/grpc", "te": "trailers"}
    fields |= {name.replace("_", "-"): value for name, value in other.items()}
    return list(fields.items())


def message(body: bytes, compressed: bool = False) -> bytes:
    return bytes([compressed]) + len(body).to_bytes(4, "big") + body


def range_of(api: Side, name: str) -> bytes:
    return RangeRequest(key=api.key(name)).SerializeToString()


def test_G2_a_reply_larger_than_the_request_limit_goes_in_one_message(api: Side) -> None:
    for name in "abcde":
        api.put(name, bytes(1_000_000))
    assert api.all().ByteSize() > 5_000_000


def test_G4_many_streams_at_once(api: Side) -> None:
    with Wire(api.address) as wire:
        body = message(range_of(api, "a"))
        streams = {wire.send(head(), body) for _ in range(1000)}
        ended: set[int] = set()
        while ended < streams:
            assert wire.receive()
            ended = {e.stream_id for e in wire.events if isinstance(e, h2.events.StreamEnded) and e.stream_id}
        assert not any(isinstance(event, h2.events.StreamReset) for event in wire.events)


@pytest.mark.parametrize(
    ("metadata", "status"),
    [
        ([("client-api-version", "3.5.1")], OK),
        ([("hasleader", "true")], OK),
        ([("x-anything", "1"), ("y-bin", b"\xff\x00")], OK),
        ([("client-api-version", "3"), ("client-api-version", "4")], OK),
    ],
)
def test_G5_metadata_read(api: Side, metadata: list[tuple[str, str]], status: Status) -> None:
    assert api.status(RangeRequest(key=api.key("a")), metadata=metadata) == status


def test_G6_no_metadata_sent(api: Side) -> None:
    with Wire(api.address) as wire:
        response, data, trailers = wire.call(head(), message(range_of(api, "a")))
    assert (response, trailers["grpc-status"]) == ({":status": "200", "content-type": "application/grpc"}, "0")
    assert set(trailers) <= {"grpc-status", "grpc-message"} and not trailers.get("grpc-message")
    assert RangeResponse.FromString(data[5:]).header.member_id


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/etcdserverpb.KV/Nothing", "unknown method Nothing for service etcdserverpb.KV"),
        ("/no.such.Service/Range", "unknown service no.such.Service"),
        (
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            "unknown service grpc.reflection.v1alpha.ServerReflection",
        ),
        ("/grpc.channelz.v1.Channelz/GetServers", "unknown service grpc.channelz.v1.Channelz"),
    ],
)
def test_G7_G16_unknown_methods_and_services(api: Side, path: str, text: str) -> None:
    assert api.raw(path, b"") == (Status(Code.UNIMPLEMENTED, text), b"")


@pytest.mark.parametrize("body", [b"\xff\xff", b"\x0a\xff", b"\x0a\x05ab"])
def test_G8_garbage_in_the_message(api: Side, body: bytes) -> None:
    status, _ = api.raw(RANGE, body)
    assert status.code == Code.INTERNAL
    assert status.message.startswith("grpc: error unmarshalling request: ")
    assert api.status(RangeRequest(key=api.key("a"))) == OK


def test_G9_unknown_fields_are_ignored(api: Side) -> None:
    status, reply = api.raw(RANGE, range_of(api, "a") + b"\xa2\x06\x03xyz" + b"\x98\x06\x07")
    assert status == OK and RangeResponse.FromString(reply).header.revision


def test_G10_gzip_both_ways(api: Side) -> None:
    api.put("a", b"v" * 5000)
    body = gzip.compress(range_of(api, "a"))
    with Wire(api.address) as wire:
        headers = head(grpc_encoding="gzip", grpc_accept_encoding="identity,gzip")
        response, data, trailers = wire.call(headers, message(body, compressed=True))
    assert (response["grpc-encoding"], data[0], trailers["grpc-status"]) == ("gzip", 1, "0")
    assert RangeResponse.FromString(gzip.decompress(data[5:])).kvs[0].value == b"v" * 5000
    status, _ = api.raw(RANGE, range_of(api, "a"), compression=grpc.Compression.Gzip)
    assert status == OK


def test_G10_another_encoding_is_unimplemented(api: Side) -> None:
    with Wire(api.address) as wire:
        response, _, trailers = wire.call(head(grpc_encoding="snappy"), message(b"x", compressed=True))
    assert (response | trailers)["grpc-status"] == str(int(Code.UNIMPLEMENTED))


@differs("G11")
def test_G11_wrong_content_type(api: Side) -> None:
    with Wire(api.address) as wire:
        response, _, trailers = wire.call(head(content_type="text/plain"), message(range_of(api, "a")))
    assert (response[":status"], (response | trailers)["grpc-status"]) == ("415", str(int(Code.INVALID_ARGUMENT)))


@differs("G11")
def test_G11_not_post(api: Side) -> None:
    headers = [(name, "GET" if name == ":method" else value) for name, value in head()]
    with Wire(api.address) as wire:
        response, _, _ = wire.call(headers, message(range_of(api, "a")))
    assert response[":status"] == "405"


def goaway(wire: Wire) -> h2.events.ConnectionTerminated | None:
    found = [event for event in wire.events if isinstance(event, h2.events.ConnectionTerminated)]
    return found[0] if found else None


def test_G12_too_many_pings_end_the_connection(api: Side) -> None:
    with Wire(api.address) as wire:
        for _ in range(5):
            wire.connection.ping(b"12345678")
        wire.flush()
        # silent from here on: a byte sent after the server has closed could cost what it said last
        while goaway(wire) is None:
            assert wire.receive(answer=False), "closed without GOAWAY"
        end = goaway(wire)
    assert end is not None
    assert (end.error_code, end.additional_data) == (h2.errors.ErrorCodes.ENHANCE_YOUR_CALM, b"too_many_pings")


def test_G12_data_resets_the_strikes(api: Side) -> None:
    with Wire(api.address) as wire:
        for _ in range(6):
            wire.connection.ping(b"12345678")
            wire.call(head(), message(range_of(api, "a")))
        assert goaway(wire) is None


def test_G14_settings(api: Side) -> None:
    with Wire(api.address) as wire:
        while not any(isinstance(event, h2.events.RemoteSettingsChanged) for event in wire.events):
            assert wire.receive()
        settings = wire.connection.remote_settings
        assert settings.initial_window_size == 65_535
        assert settings.max_header_list_size in (None, 16 << 20)


def test_G15_health(api: Side) -> None:
    assert api(HealthCheckRequest()).status == HealthCheckResponse.SERVING
    assert api.status(HealthCheckRequest(service="etcdserverpb.KV")) == Status(Code.NOT_FOUND, "unknown service")
    assert next(api.stream(HealthCheckRequest())).status == HealthCheckResponse.SERVING


def test_G1_P3_size_limits(api: Side) -> None:
    assert api.status(PutRequest(key=api.key("a"), value=bytes(1_600_000))) == errors.REQUEST_TOO_LARGE
    status = api.status(PutRequest(key=api.key("a"), value=bytes(2_200_000)))
    assert status.code == Code.RESOURCE_EXHAUSTED and status.message.endswith("vs. 2097152)")
    assert api.status(StatusRequest()) == OK


@differs("G5")
def test_G5_an_api_version_that_is_not_utf_8(api: Side) -> None:
    with Wire(api.address) as wire:
        wire.connection.config.header_encoding = None
        headers = [(name.encode(), value.encode()) for name, value in head()] + [(b"client-api-version", b"\xff")]
        stream = wire.send(headers, message(range_of(api, "a")))  # type: ignore[arg-type]
        deadline = time.monotonic() + 15
        while not any(isinstance(e, h2.events.StreamEnded) and e.stream_id == stream for e in wire.events):
            assert wire.receive() and time.monotonic() < deadline
        found = {name: value for e in wire.events for name, value in getattr(e, "headers", None) or []}
    assert found[b"grpc-message"].decode() == errors.INVALID_CLIENT_API_VERSION.message
