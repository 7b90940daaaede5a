"""The front's HTTP side behind the real wire: the bytes that a client sees on its connection."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest

from kvorum.pb.rpc_pb2 import PutRequest, PutResponse, ResponseHeader, WatchRequest, WatchResponse
from kvorum.wire.server import Server
from kvorum.wire.server_connection import CancelReason
from node.front.access import Access
from node.front.health_checks import HealthChecks
from node.front.http_pages import ClientHttp, Pages
from node.front.json_gateway import Gateway
from tests.front.http_fake import FakeStreams, FakeUnary, run_inline
from tests.front.test_http_pages import FakeMember

WAIT_S = 10.0
PUT, WATCH = "/etcdserverpb.KV/Put", "/etcdserverpb.Watch/Watch"

Talk = Callable[["Client"], Awaitable[None]]


class Client:
    """A connection, and the services behind it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, put: Any, watch: Any) -> None:
        self._reader = reader
        self.writer = writer
        self.put = put
        self.watch = watch
        self._seen = b""

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def post(self, path: str, body: bytes, *headers: bytes) -> None:
        head = b"".join(header + b"\r\n" for header in (b"Host: a", b"Content-Length: %d" % len(body), *headers))
        self.send(b"POST %s HTTP/1.1\r\n%s\r\n%s" % (path.encode(), head, body))

    async def until(self, pattern: bytes) -> bytes:
        """Reads until the pattern is found, and takes what is up to its end."""
        async with asyncio.timeout(WAIT_S):
            while not (found := re.search(pattern, self._seen, re.DOTALL)):
                data = await self._reader.read(65_536)
                assert data, f"closed after {self._seen!r}"
                self._seen += data
        taken, self._seen = self._seen[: found.end()], self._seen[found.end() :]
        return taken

    async def told(self, name: str) -> None:
        """Waits until the watch service is told something."""
        async with asyncio.timeout(WAIT_S):
            while name not in [told[0] for told in self.watch.told]:
                await asyncio.sleep(0.001)


def serve(talk: Talk) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        put, watch = FakeUnary(PutRequest), FakeStreams(WatchRequest)
        put.answer = PutResponse(header=ResponseHeader(revision=2))
        services: dict[str, Any] = {PUT: put}
        streams: dict[str, Any] = {WATCH: watch}
        member = FakeMember()
        gateway = Gateway(
            unary=services, streams=streams, call_later=loop.call_later, run_aside=run_inline, message_bytes=2 << 20
        )
        pages = Pages(member, HealthChecks(member, loop.call_later, 7.0), run_inline)
        server = Server(unary=services, streams=streams, http1=ClientHttp(Access(), pages, gateway))
        listener = await loop.create_server(server.protocol_factory, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
        try:
            await talk(Client(reader, writer, put, watch))
        finally:
            writer.close()
            listener.close()
            await server.shutdown(0)

    asyncio.run(run())


def test_j13_a_put_byte_for_byte() -> None:
    async def talk(client: Client) -> None:
        client.post("/v3/kv/put", b'{"key":"Zm9v"}')
        body = b'{"header":{"revision":"2"}}'
        reply = await client.until(re.escape(body))
        head = re.sub(rb"(?i)date: [^\r]+\r\n", b"", reply).partition(b"\r\n\r\n")[0].split(b"\r\n")
        assert head[0].startswith(b"HTTP/1.1 200 ")
        assert sorted(line.lower() for line in head[1:]) == [
            b"access-control-allow-headers: accept, content-type, authorization",
            b"access-control-allow-methods: post, get, options, put, delete",
            b"access-control-allow-origin: *",
            b"content-length: 27",
            b"content-type: application/json",
            b"grpc-metadata-content-type: application/grpc",
        ]
        assert client.put.asked == PutRequest(key=b"foo")

    serve(talk)


def test_a_connection_is_kept_for_the_next_request() -> None:
    async def talk(client: Client) -> None:
        for _ in range(3):
            client.post("/v3/kv/put", b"{}")
            await client.until(rb'"revision":"2"\}\}')
        client.send(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET /nowhere HTTP/1.1\r\nHost: a\r\n\r\n")
        await client.until(rb'\{"health":"true","reason":""\}')
        assert b"HTTP/1.1 404" in await client.until(rb"404 page not found\n")
        assert len(client.put.calls) == 3

    serve(talk)


def test_a_value_at_the_request_limit_passes_as_base64() -> None:
    async def talk(client: Client) -> None:
        value = "eHh4" * ((1 << 20) // 2)
        client.post("/v3/kv/put", b'{"key":"Zm9v","value":"%s"}' % value.encode())
        await client.until(rb'"revision":"2"\}\}')
        assert len(client.put.asked.value) == 3 * ((1 << 20) // 2)

    serve(talk)


def test_a_body_far_over_the_limit_is_refused() -> None:
    async def talk(client: Client) -> None:
        client.send(b"POST /v3/kv/put HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n" + b"x" * (5 << 20))
        reply = await client.until(rb'"code":8[^}]+\}')
        assert reply.startswith(b"HTTP/1.1 429")

    serve(talk)


def test_j25_a_watch_stays_open_and_flushes_each_line() -> None:
    async def talk(client: Client) -> None:
        client.post("/v3/watch", b'{"create_request":{"key":"Zm9v"}}')
        await client.told("half_close")
        stream = client.watch.stream
        stream.send(WatchResponse(created=True).SerializeToString())
        head = await client.until(rb'\{"result":\{"created":true\}\}\n\r\n')
        assert b"transfer-encoding: chunked" in head.lower()
        stream.send(WatchResponse(events=[{"kv": {"key": b"foo"}}]).SerializeToString())
        await client.until(rb'\{"result":\{"events":\[\{"kv":\{"key":"Zm9v"\}\}\]\}\}\n\r\n')
        stream.end(14, "etcdserver: no leader")
        last = await client.until(rb"\r\n0\r\n\r\n")
        assert orjson.loads(last.split(b"\r\n")[1]) == {"error": {"code": 14, "message": "etcdserver: no leader"}}

    serve(talk)


def test_j25_objects_are_served_before_the_body_ends() -> None:
    async def talk(client: Client) -> None:
        client.send(b"POST /v3/watch HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        for text in (b'{"create_request":{"ke', b'y":"Zm9v"}}{"progress_request":{}}'):
            client.send(b"%x\r\n%s\r\n" % (len(text), text))
        await client.told("message")
        client.watch.stream.send(WatchResponse(created=True).SerializeToString())
        await client.until(rb'"created":true')
        assert [request.WhichOneof("request_union") for request in client.watch.requests] == [
            "create_request",
            "progress_request",
        ]

    serve(talk)


@pytest.mark.parametrize("created", [False, True])
def test_j25_a_client_that_leaves_cancels_its_watch(created: bool) -> None:
    async def talk(client: Client) -> None:
        client.post("/v3/watch", b'{"create_request":{"key":"Zm9v"}}')
        await client.told("half_close")
        if created:
            client.watch.stream.send(WatchResponse(created=True).SerializeToString())
            await client.until(rb'"created":true')
        client.writer.close()
        await client.told("cancel")
        assert client.watch.told[-1] == ("cancel", CancelReason.LOST)
        client.watch.stream.send(WatchResponse().SerializeToString())

    serve(talk)


def test_j22_a_deadline_of_a_unary_call() -> None:
    async def talk(client: Client) -> None:
        client.put.answer = None
        client.post("/v3/kv/put", b"{}", b"Grpc-Timeout: 10m")
        reply = await client.until(rb"context deadline exceeded")
        assert reply.startswith(b"HTTP/1.1 504")

    serve(talk)


def test_ht4_head_has_no_body() -> None:
    async def talk(client: Client) -> None:
        client.send(b"HEAD /health HTTP/1.1\r\nHost: a\r\n\r\nGET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        head = await client.until(rb"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 405")
        assert b"content-length: 19" in head.lower()
        assert (await client.until(rb"\r\n\r\n")).startswith(b"HTTP/1.1 200")

    serve(talk)
