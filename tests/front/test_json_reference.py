"""The JSON text itself, side by side: the same body to the reference's gateway, and to ours in front of its gRPC port.

Rows where 3.7 differs from the reference at hand (error bodies, 404 and 405 forms) are not compared here.
"""

from __future__ import annotations

import http.client
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import grpc
import orjson
import pytest

from loadtest.launcher import Server
from node.front.access import Access
from node.front.json_gateway import Gateway
from node.front.json_routes import METHODS, Route
from tests.front.http_fake import FakeClock, FakeExchange, run_inline
from tests.servers import start_reference

WAIT_S = 10.0


@pytest.fixture(scope="module")
def reference() -> Iterator[Server]:
    with start_reference() as server:
        yield server


class Ours:
    """Our gateway; each call goes on to the reference as gRPC."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        unary = {path: self._forward(route) for path, route in METHODS.items() if not route.server_streaming}
        streams = {path: self._open(route) for path, route in METHODS.items() if route.server_streaming}
        self._gateway = Gateway(
            unary=unary,
            streams=streams,
            call_later=FakeClock().call_later,
            run_aside=run_inline,
            message_bytes=2 << 20,
        )

    def close(self) -> None:
        self._channel.close()

    def _forward(self, route: Route) -> Any:
        call = self._channel.unary_unary(route.path)

        def handle(sink: Any, token: int, _head: object, message: bytes) -> None:
            try:
                sink.reply(token, call(message, timeout=WAIT_S))
            except grpc.RpcError as error:
                sink.fail(token, error.code().value[0], error.details())

        return handle

    def _open(self, route: Route) -> Any:
        call = self._channel.stream_stream(route.path)

        class Forward:
            """Collects the requests; at their end sends them on and writes all replies."""

            def __init__(self, stream: Any, _head: object) -> None:
                self._stream = stream
                self._messages: list[bytes] = []

            def on_message(self, message: bytes) -> None:
                self._messages.append(message)

            def on_half_close(self) -> None:
                for reply in call(iter(self._messages), timeout=WAIT_S):
                    self._stream.send(reply)
                self._stream.end(0, "")

            def on_cancel(self, reason: object) -> None:
                raise AssertionError(reason)

            def on_writable(self) -> None:
                raise AssertionError("nothing was held back")

        return Forward

    def ask(self, path: str, body: bytes) -> tuple[int | None, bytes, dict[str, str]]:
        exchange = FakeExchange("POST", path)
        request = Access().admit(exchange)
        assert request is not None
        self._gateway.handle(request)
        exchange.body(body)
        return exchange.status, exchange.reply, exchange.reply_headers


def ask_reference(address: str, path: str, body: bytes) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection(address, timeout=WAIT_S)
    try:
        connection.request("POST", path, body)
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        for name in ("date", "content-length", "transfer-encoding"):
            headers.pop(name, None)
        return response.status, response.read(), headers
    finally:
        connection.close()


@pytest.fixture(scope="module")
def ours(reference: Server) -> Iterator[Ours]:
    gateway = Ours(reference.address)
    yield gateway
    gateway.close()


def b64(data: bytes) -> str:
    return b64encode(data).decode()


KEY, VALUE, ALL = b64(b"json/a"), b64(b"\xfb\xff<&>"), b64(b"\0")

SETUP = [
    ("/v3/kv/put", f'{{"key":"{KEY}","value":"{VALUE}"}}'),
    ("/v3/kv/put", f'{{"key":"{b64(b"json/b")}"}}'),
    ("/v3/lease/grant", '{"TTL":"1000","ID":77}'),
    ("/v3/kv/put", f'{{"key":"{b64(b"json/c")}","value":"eA==","lease":"77"}}'),
]

READS = [
    ("/v3/kv/range", f'{{"key":"{KEY}"}}'),
    ("/v3/kv/range", f'{{"key":"{KEY}","rangeEnd":"{ALL}","sortOrder":"DESCEND","sort_target":"MOD"}}'),
    ("/v3/kv/range", f'{{"key":"{KEY}","range_end":"{ALL}","limit":1,"keysOnly":true,"unknown":[{{}}]}}'),
    ("/v3/kv/range", f'{{"key":"{KEY}","range_end":"{ALL}","countOnly":true,"serializable":true}}'),
    ("/v3/kv/range", f'{{"key":"{b64(b"nothing")}"}}'),
    ("/v3/kv/range", f'{{"key":"{KEY}"}} {{"key":"ignored'),
    ("/v3beta/kv/range", f'{{"key":"{KEY}","limit":null,"sort_order":0}}'),
    (
        "/v3/kv/txn",
        f'{{"compare":[{{"key":"{KEY}","target":"VALUE","result":"EQUAL","value":"{VALUE}"}}],'
        f'"success":[{{"request_range":{{"key":"{KEY}"}}}},{{"requestTxn":{{"failure":[]}}}}],"failure":[]}}',
    ),
    ("/v3/kv/txn", "{}"),
    ("/v3/kv/txn", ""),
    ("/v3/lease/timetolive", '{"ID":"78","keys":true}'),
    ("/v3/kv/lease/timetolive", '{"ID":"78"}'),
    ("/v3/lease/leases", "{}"),
    ("/v3/lease/keepalive", '{"ID":"77"}{"ID":78}\n'),
    ("/v3/cluster/member/list", "{}"),
    ("/v3/maintenance/alarm", "{}"),
    ("/v3/maintenance/hash", "{}"),
    ("/v3/maintenance/defragment", "{}"),
    ("/v3/auth/role/list", "{}"),
    ("/v3/auth/user/list", "{}"),
]


def test_replies_are_the_same_text_with_the_same_headers(reference: Server, ours: Ours) -> None:
    for path, body in SETUP:
        assert ours.ask(path, body.encode())[0] == 200
    for path, body in READS:
        # what apply stamps on an alarm or a hash does not change between the two calls: neither writes a revision
        assert ours.ask(path, body.encode()) == ask_reference(reference.address, path, body.encode()), path


def test_writes_are_the_same_up_to_the_revisions(reference: Server, ours: Ours) -> None:
    writes = [
        ("/v3/kv/put", f'{{"key":"{KEY}","value":"eA==","prev_kv":true}}'),
        ("/v3/kv/put", f'{{"key":"{b64(b"json/other")}","prevKv":true,"lease":0}}'),
        ("/v3/kv/txn", f'{{"success":[{{"request_put":{{"key":"{KEY}"}}}}]}}'),
        ("/v3/kv/deleterange", f'{{"key":"{b64(b"json/none")}"}}'),
    ]

    def shape(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: shape(item) for name, item in value.items() if not name.endswith(("revision", "version"))}
        return [shape(item) for item in value] if isinstance(value, list) else value

    for path, body in writes:
        ours.ask(path, body.encode())  # so that there is a previous value in both
        status, text, headers = ours.ask(path, body.encode())
        expected_status, expected_text, expected_headers = ask_reference(reference.address, path, body.encode())
        assert (status, headers) == (expected_status, expected_headers)
        assert shape(orjson.loads(text)) == shape(orjson.loads(expected_text))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v3/kv/put", '{"key":""}'),
        ("/v3/kv/range", '{"key":"eA==","revision":"1000000"}'),
        ("/v3/lease/revoke", '{"ID":"999"}'),
        ("/v3/lease/grant", '{"TTL":"100","ID":"77"}'),
        ("/v3/auth/enable", "{}"),
        ("/v3/kv/compaction", '{"revision":"1000000"}'),
        ("/v3/maintenance/transfer-leadership", '{"targetID":"5"}'),
        ("/v3/auth/role/get", '{"role":"nobody"}'),
    ],
)
def test_errors_have_the_same_status_code_and_message(reference: Server, ours: Ours, path: str, body: str) -> None:
    ours.ask("/v3/lease/grant", b'{"TTL":"1000","ID":77}')
    status, text, headers = ours.ask(path, body.encode())
    expected_status, expected_text, expected_headers = ask_reference(reference.address, path, body.encode())
    expected = orjson.loads(expected_text)
    assert (status, orjson.loads(text)) == (expected_status, {key: expected[key] for key in ("code", "message")})
    assert headers == expected_headers


@pytest.mark.parametrize("body", ["[]", "x", '{"key":', '{"limit":"abc"}', '{"sort_order":"FOO"}', '{"key":"!"}'])
def test_bad_bodies_have_the_same_status_and_code(reference: Server, ours: Ours, body: str) -> None:
    status, text, _ = ours.ask("/v3/kv/range", body.encode())
    expected_status, expected_text, _ = ask_reference(reference.address, "/v3/kv/range", body.encode())
    assert (status, orjson.loads(text)["code"]) == (expected_status, orjson.loads(expected_text)["code"]) == (400, 3)
