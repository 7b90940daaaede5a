"""Calls through an upstream to members that come and go; the members are this project's own wire."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from kvorum import errors
from kvorum.errors import Code
from kvorum.log import Level, LogFormat, Logger
from kvorum.wire import grpc
from kvorum.wire.head import Head
from kvorum.wire.limits import ClientLimits
from kvorum.wire.routes import CancelReason
from kvorum.wire.server import Server
from kvorum.wire.server_calls import ServerStream
from kvorum.wire.server_connection import ServerConnection
from proxy.upstream import upstream as upstream_module
from proxy.upstream.endpoints import Endpoint, Endpoints
from proxy.upstream.probes import Probes
from proxy.upstream.upstream import Dialing, Upstream, encode

RANGE = "/etcdserverpb.KV/Range"
PUT = "/etcdserverpb.KV/Put"
WATCH = "/etcdserverpb.Watch/Watch"
DEADLINE_S = 30.0
LIMITS = ClientLimits(connect_timeout_s=5.0, backoff_first_s=0.01, backoff_max_s=0.05)


class Fake:
    """A member that does as it is told: `act` says what becomes of a call."""

    def __init__(self) -> None:
        self._sock = reusable(0)  # holds the port, and refuses connections
        self.address = f"127.0.0.1:{self._sock.getsockname()[1]}"
        self.endpoint = Endpoint(self.address, None)
        self.act: Callable[[ServerConnection, int, str, bytes], None] = self.reply
        self.calls: list[str] = []
        self.heads: list[Head] = []
        self.streams: list[ServerStream] = []
        self.held: list[tuple[ServerConnection, int]] = []
        self._server: Server | None = None
        self._listener: asyncio.Server | None = None

    def reply(self, connection: ServerConnection, stream_id: int, path: str, message: bytes) -> None:
        connection.reply(stream_id, self.address.encode() + b" " + message)

    def hold(self, connection: ServerConnection, stream_id: int, path: str, message: bytes) -> None:
        self.held.append((connection, stream_id))

    def no_leader(self, connection: ServerConnection, stream_id: int, path: str, message: bytes) -> None:
        connection.fail(stream_id, *errors.NO_LEADER)

    def _on_call(self, connection: ServerConnection, stream_id: int, head: Head, message: bytes) -> None:
        self.calls.append(head.path)
        self.heads.append(head)
        self.act(connection, stream_id, head.path, message)

    def _on_stream(self, stream: ServerStream, head: Head) -> Any:
        self.streams.append(stream)
        return _Ears()

    async def start(self) -> None:
        self._server = Server(unary={RANGE: self._on_call, PUT: self._on_call}, streams={WATCH: self._on_stream})
        loop = asyncio.get_running_loop()
        port = self._sock.getsockname()[1]
        self._listener = await loop.create_server(self._server.protocol_factory, sock=reusable(port))

    async def stop(self, grace_s: float = 0.0) -> None:
        if self._listener is not None and self._server is not None:
            self._listener.close()
            await self._server.shutdown(grace_s)
            self._listener = self._server = None

    def close(self) -> None:
        self._sock.close()


class _Ears:
    def on_message(self, message: bytes) -> None: ...
    def on_half_close(self) -> None: ...
    def on_cancel(self, reason: CancelReason) -> None: ...
    def on_writable(self) -> None: ...


class Told:
    """Where the answer of a call goes."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[tuple[int, str, bytes]] = asyncio.get_running_loop().create_future()

    def __call__(self, code: int, text: str, message: bytes) -> None:
        self.answer.set_result((code, text, message))


class Ended:
    """Where a stream's end goes."""

    def __init__(self) -> None:
        self.end: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()

    def on_message(self, message: bytes) -> None: ...
    def on_writable(self) -> None: ...

    def on_end(self, code: int, text: str, trailers: grpc.Metadata) -> None:
        self.end.set_result((code, text))


async def ask(
    upstream: Upstream, path: str, message: bytes = b"x", timeout_s: float | None = None
) -> tuple[int, bytes]:
    told = Told()
    upstream.call(path, message, told, None, timeout_s)
    code, text, reply = await told.answer
    return code, reply if not code else text.encode()


def with_members(count: int) -> Callable[[Callable[..., Awaitable[None]]], Callable[[], None]]:
    """Runs a test with that many members and an upstream whose first choice is the first of them."""

    def decorate(test: Callable[..., Awaitable[None]]) -> Callable[[], None]:
        def run() -> None:
            unhandled: list[dict[str, Any]] = []

            async def guarded() -> None:
                asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
                async with asyncio.timeout(DEADLINE_S):
                    members = [Fake() for _ in range(count)]
                    for member in members:
                        await member.start()
                    endpoints = Endpoints([member.endpoint for member in members], lambda found: found[0])
                    upstream = Upstream(endpoints, Dialing(LIMITS), Logger((), Level.ERROR, LogFormat.JSON))
                    try:
                        await test(upstream, *members)
                    finally:
                        await upstream.close()
                        for member in members:
                            await member.stop()
                            member.close()

            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(guarded())
            assert not unhandled

        run.__name__ = test.__name__
        return run

    return decorate


@with_members(2)
async def test_all_calls_go_to_the_one_in_use(upstream: Upstream, one: Fake, other: Fake) -> None:
    for _ in range(3):
        assert await ask(upstream, RANGE) == (0, one.address.encode() + b" x")
    assert not other.calls


@with_members(1)
async def test_metadata_arrives_given_as_a_mapping_or_encoded(upstream: Upstream, one: Fake) -> None:
    for metadata in ({"token": "abc"}, encode({"token": "abc"})):
        told = Told()
        upstream.call(RANGE, b"", told, metadata, 20.0)
        await told.answer
        assert one.heads[-1].metadata == {"token": ("abc",)}
        timeout_s = one.heads[-1].timeout_s
        assert timeout_s is not None and 15.0 < timeout_s <= 20.0


@with_members(2)
async def test_calls_that_never_left_go_to_the_next_whatever_they_are(
    upstream: Upstream, one: Fake, other: Fake
) -> None:
    changes: list[Endpoint] = []
    upstream.on_change(lambda: changes.append(upstream.endpoints.current))
    await one.stop()
    assert (await ask(upstream, PUT))[0] == 0
    assert (await ask(upstream, RANGE))[0] == 0
    assert other.calls == [PUT, RANGE]
    assert changes == [other.endpoint]
    assert upstream.changes == 1


@with_members(2)
async def test_a_read_under_way_when_its_member_is_lost_is_made_again(
    upstream: Upstream, one: Fake, other: Fake
) -> None:
    one.act = lambda connection, stream_id, path, message: lose(connection)
    assert await ask(upstream, RANGE) == (0, other.address.encode() + b" x")
    assert one.calls == [RANGE]


@with_members(2)
async def test_a_write_under_way_when_its_member_is_lost_is_not(upstream: Upstream, one: Fake, other: Fake) -> None:
    one.act = lambda connection, stream_id, path, message: lose(connection)
    assert (await ask(upstream, PUT))[0] == Code.UNAVAILABLE
    assert other.calls == []
    assert (await ask(upstream, PUT))[0] == 0
    assert other.calls == [PUT]


@with_members(3)
async def test_a_read_refused_for_want_of_a_leader_is_asked_of_each_once(
    upstream: Upstream, one: Fake, other: Fake, third: Fake
) -> None:
    for member in (one, other, third):
        member.act = member.no_leader
    assert await ask(upstream, RANGE) == (Code.UNAVAILABLE, errors.NO_LEADER.message.encode())
    assert (one.calls, other.calls, third.calls) == ([RANGE], [RANGE], [RANGE])
    third.act = third.reply
    assert await ask(upstream, RANGE) == (0, third.address.encode() + b" x")
    assert upstream.endpoints.current == one.endpoint, "one answer alone does not move all"


@with_members(2)
async def test_a_write_refused_for_want_of_a_leader_is_told_so(upstream: Upstream, one: Fake, other: Fake) -> None:
    one.act = one.no_leader
    assert await ask(upstream, PUT) == (Code.UNAVAILABLE, errors.NO_LEADER.message.encode())
    assert not other.calls


@with_members(2)
async def test_calls_wait_while_nobody_can_be_reached(upstream: Upstream, one: Fake, other: Fake) -> None:
    await one.stop()
    await other.stop()
    waiting = [asyncio.ensure_future(ask(upstream, path)) for path in (PUT, RANGE)]
    await until(lambda: upstream.changes >= 4)
    assert not any(call.done() for call in waiting)
    await other.start()
    assert [code for code, _ in await asyncio.gather(*waiting)] == [0, 0]


@with_members(1)
async def test_they_wait_no_longer_than_their_own_deadline(upstream: Upstream, one: Fake) -> None:
    await one.stop()
    assert (await ask(upstream, PUT, timeout_s=0.05))[0] == Code.DEADLINE_EXCEEDED


def test_and_no_longer_than_a_member_would_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream_module, "PATIENCE_S", 0.1)

    @with_members(1)
    async def check(upstream: Upstream, one: Fake) -> None:
        await one.stop()
        code, text = await ask(upstream, PUT)
        assert code == Code.UNAVAILABLE
        assert text.startswith(b"connection error")

    check()


@with_members(2)
async def test_a_stream_ends_with_its_member_and_the_next_goes_to_another(
    upstream: Upstream, one: Fake, other: Fake
) -> None:
    ended = Ended()
    upstream.open(WATCH, ended).send(b"create")
    await until(lambda: bool(one.streams))
    await one.stop()
    assert (await ended.end)[0] == Code.UNAVAILABLE
    upstream.open(WATCH, Ended()).send(b"create")
    await until(lambda: bool(other.streams))


@with_members(1)
async def test_a_call_that_is_cancelled_is_told_so(upstream: Upstream, one: Fake) -> None:
    one.act = one.hold
    told = Told()
    ticket = upstream.call(RANGE, b"", told)
    await until(lambda: bool(one.held))
    upstream.cancel(ticket)
    assert (await told.answer)[0] == Code.CANCELLED


@with_members(2)
async def test_endpoints_that_leave_the_cluster_are_left(upstream: Upstream, one: Fake, other: Fake) -> None:
    assert (await ask(upstream, RANGE))[0] == 0
    ended = Ended()
    upstream.open(WATCH, ended).send(b"create")
    await until(lambda: bool(one.streams))
    upstream.replace([other.endpoint])
    assert (await ended.end)[0] in (Code.CANCELLED, Code.UNAVAILABLE)
    assert await ask(upstream, RANGE) == (0, other.address.encode() + b" x")


def test_a_member_that_does_not_serve_is_left_by_probing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.upstream.probes.INTERVAL_S", 0.02)

    @with_members(2)
    async def check(upstream: Upstream, one: Fake, other: Fake) -> None:
        one.act = one.no_leader
        ended = Ended()
        upstream.open(WATCH, ended).send(b"create")
        await until(lambda: bool(one.streams))
        probes = Probes(upstream)
        await until(lambda: upstream.endpoints.current == other.endpoint)
        assert (await ended.end)[0] == Code.UNAVAILABLE, "its streams begin again where they are served"
        probes.close()

    check()


def test_without_a_member_that_serves_nobody_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.upstream.probes.INTERVAL_S", 0.02)

    @with_members(2)
    async def check(upstream: Upstream, one: Fake, other: Fake) -> None:
        one.act = one.no_leader
        other.act = other.no_leader
        probes = Probes(upstream)
        await until(lambda: len(other.calls) >= 5)
        assert upstream.endpoints.current == one.endpoint
        probes.close()

    check()


def reusable(port: int) -> socket.socket:
    """A bound socket that does not listen, and shares its port."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    return sock


def lose(connection: ServerConnection) -> None:
    """The member dies: its end of the connection is gone."""
    connection.wake.__self__._transport.abort()  # type: ignore[attr-defined]


async def until(condition: Callable[[], bool]) -> None:
    """Some turns of the loop later; the test's own deadline bounds it."""
    while not condition():
        await asyncio.sleep(0.005)
