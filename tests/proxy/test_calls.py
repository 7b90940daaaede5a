"""Calls that pass through: what a member hears of them, and what their callers do."""

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kvorum import errors
from kvorum.errors import Code
from kvorum.wire.client import Channel, RpcError
from kvorum.wire.server import Server
from proxy.callers import Callers
from proxy.calls import Relays, pass_through
from proxy.paths import LOCK, OBSERVE, PUT, RANGE, RANGE_STREAM
from proxy.upstream.upstream import Upstream
from tests.proxy.fake_member import Ended, Fake, reusable, until, with_members

PIECE = b"x" * 64 * 1024
PIECES = 400


class Front:
    """A proxy's calls on a port, and a client of it."""

    def __init__(self, channel: Channel, relays: Relays) -> None:
        self.channel = channel
        self.relays = relays


@asynccontextmanager
async def front_of(upstream: Upstream) -> AsyncIterator[Front]:
    callers = Callers()
    relays = Relays(upstream, callers)
    unary = pass_through(upstream.call, callers, (RANGE, PUT))
    server = Server(unary=unary, streams=relays.of((RANGE_STREAM, LOCK, OBSERVE)))
    sock = reusable(0)
    listener = await asyncio.get_running_loop().create_server(server.protocol_factory, sock=sock)
    channel = Channel(f"127.0.0.1:{sock.getsockname()[1]}")
    try:
        yield Front(channel, relays)
    finally:
        await channel.close()
        listener.close()
        await server.shutdown(1.0)


@with_members(1)
async def test_what_means_something_to_a_member_is_passed_on(upstream: Upstream, one: Fake) -> None:
    async with front_of(upstream) as front:
        given = {"token": "t", "hasleader": "true", "client-api-version": "3.6.0", "x-other": "y", "authorization": "z"}
        await front.channel.unary(RANGE, b"q", given, 20.0)
        passed = {name: (value,) for name, value in given.items() if name != "x-other"}
        assert one.heads[-1].metadata == passed
        timeout_s = one.heads[-1].timeout_s
        assert timeout_s is not None and 15.0 < timeout_s <= 20.0
        await front.channel.unary(RANGE, b"q")
        assert one.heads[-1].metadata == {}, "the next caller on the connection is another"
        assert one.heads[-1].timeout_s is None


@with_members(1)
async def test_an_error_is_passed_on_as_it_came(upstream: Upstream, one: Fake) -> None:
    one.act = lambda connection, stream_id, path, message: void(connection.fail(stream_id, 99, "a text: \u00e4%"))
    async with front_of(upstream) as front:
        try:
            await front.channel.unary(PUT, b"q")
        except RpcError as error:
            assert (error.code, error.text) == (99, "a text: \u00e4%")
        else:
            raise AssertionError("no error")


@with_members(1)
async def test_a_client_that_does_not_read_holds_up_itself_alone(upstream: Upstream, one: Fake) -> None:
    async with front_of(upstream) as front:
        slow = Ended()
        call = front.channel.open(RANGE_STREAM, slow)
        call.pause_reading()
        call.send(b"all")
        call.half_close()
        await until(lambda: bool(one.streams) and bool(one.ears[0].messages))
        stream = one.streams[0]
        sent = 0

        def send_more() -> None:
            nonlocal sent
            while sent < PIECES and stream.writable:
                stream.send(PIECE)
                sent += 1
            if sent == PIECES:
                stream.end()

        one.ears[0].on_room = send_more
        send_more()
        for _ in range(20):
            assert await front.channel.unary(PUT, b"q") == one.address.encode() + b" q"
        assert sent < PIECES / 10, "what nobody reads waits at the member"
        call.resume_reading()
        assert await slow.end == (0, "")
        assert slow.messages == [PIECE] * PIECES


@with_members(1)
async def test_a_caller_that_leaves_is_followed(upstream: Upstream, one: Fake) -> None:
    async with front_of(upstream) as front:
        waiting = Ended()
        call = front.channel.open(LOCK, waiting)
        call.send(b"name")
        call.half_close()
        await until(lambda: bool(one.ears) and one.ears[0].messages == [b"name"])
        call.cancel()
        assert (await waiting.end)[0] == Code.CANCELLED
        await until(lambda: one.ears[0].cancelled is not None)
        assert not front.relays.open


@with_members(2)
async def test_a_call_that_never_left_goes_to_the_next_member(upstream: Upstream, one: Fake, other: Fake) -> None:
    async with front_of(upstream) as front:
        await one.stop()
        ended = Ended()
        call = front.channel.open(LOCK, ended)
        call.send(b"name")
        call.half_close()
        await until(lambda: bool(other.ears) and other.ears[0].messages == [b"name"])
        other.streams[0].send(b"locked")
        other.streams[0].end()
        assert await ended.end == (0, "")
        assert ended.messages == [b"locked"]


@with_members(2)
async def test_a_stream_that_has_begun_ends_with_its_member(upstream: Upstream, one: Fake, other: Fake) -> None:
    async with front_of(upstream) as front:
        ended = Ended()
        call = front.channel.open(OBSERVE, ended)
        call.send(b"name")
        call.half_close()
        await until(lambda: bool(one.streams) and bool(one.ears[0].messages))
        one.streams[0].send(b"leader")
        await until(lambda: ended.messages == [b"leader"])
        await one.stop()
        assert (await ended.end)[0] == Code.UNAVAILABLE
        assert not other.streams


@with_members(2)
async def test_a_read_on_a_stream_is_made_again_while_nothing_was_answered(
    upstream: Upstream, one: Fake, other: Fake
) -> None:
    async with front_of(upstream) as front:
        ended = Ended()
        call = front.channel.open(RANGE_STREAM, ended)
        call.send(b"all")
        call.half_close()
        await until(lambda: bool(one.streams) and bool(one.ears[0].messages))
        await one.stop()
        await until(lambda: bool(other.streams) and other.ears[0].messages == [b"all"])
        other.streams[0].end()
        assert await ended.end == (0, "")


@with_members(1)
async def test_a_request_is_one_message(upstream: Upstream, one: Fake) -> None:
    async with front_of(upstream) as front:
        none = Ended()
        front.channel.open(LOCK, none).half_close()
        assert await none.end == (Code.INTERNAL, "grpc: no message in a unary request")
        two = Ended()
        call = front.channel.open(LOCK, two)
        call.send(b"1")
        call.send(b"2")
        assert await two.end == (Code.INTERNAL, "grpc: more than one message in a unary request")
        assert not front.relays.open


@with_members(1)
async def test_at_a_stop_calls_without_an_end_get_one(upstream: Upstream, one: Fake) -> None:
    async with front_of(upstream) as front:
        endless, finite = Ended(), Ended()
        for path, ended in ((OBSERVE, endless), (RANGE_STREAM, finite)):
            call = front.channel.open(path, ended)
            call.send(b"q")
            call.half_close()
        await until(lambda: len(one.streams) == 2)
        front.relays.stop(errors.STOPPED)
        assert await endless.end == tuple(errors.STOPPED)
        next(stream for stream in one.streams if stream.head.path == RANGE_STREAM).end()
        assert await finite.end == (0, "")


def void(_value: object) -> None:
    """Nothing."""


@with_members(2)
async def test_calls_leave_no_garbage_behind(upstream: Upstream, one: Fake, other: Fake) -> None:
    async def some(front: Front) -> None:
        for path in (RANGE, PUT):
            await front.channel.unary(path, b"q", {"token": "t"}, 20.0)
        ended = Ended()
        call = front.channel.open(RANGE_STREAM, ended)
        call.send(b"all")
        call.half_close()
        await until(lambda: bool(one.streams))
        one.streams.pop().end()
        await ended.end
        gone = Ended()
        call = front.channel.open(LOCK, gone)
        call.send(b"name")
        await until(lambda: bool(one.streams))
        one.streams.pop()
        call.cancel()
        await gone.end
        one.act = one.no_leader
        await front.channel.unary(RANGE, b"q")
        one.act = one.reply
        one.ears.clear()

    async with front_of(upstream) as front:
        await some(front)
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                await some(front)
            await asyncio.sleep(0.05)
            assert gc.collect() == 0
        finally:
            gc.enable()
