"""Our client: against grpcio's server, and against ours."""

import asyncio
import gc
import socket
from collections.abc import Awaitable, Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest

from kvorum.wire.client import Channel, RpcError
from kvorum.wire.head import Head
from kvorum.wire.limits import ClientLimits, ServerLimits
from kvorum.wire.routes import CancelReason
from kvorum.wire.server_calls import ServerStream
from kvorum.wire.server_connection import ServerConnection
from tests.wire.serving import DEADLINE_S, LOOPS, Echo, Serving, echo


def run(loop: str, test: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine on the loop; what its exception handler hears fails the test."""
    errors: list[dict[str, Any]] = []

    async def guarded() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        async with asyncio.timeout(DEADLINE_S):
            await test()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(guarded())
    assert not errors


def headed(connection: ServerConnection, stream_id: int, head: Head, message: bytes) -> None:
    text = repr(sorted((name, value) for name, value in head.metadata.items()))
    connection.reply(stream_id, text.encode())


def failing(connection: ServerConnection, stream_id: int, head: Head, message: bytes) -> None:
    connection.fail(stream_id, 9, message.decode())


class Ours:
    """The peer: our server in a thread."""

    def __init__(self) -> None:
        self.silent: list[tuple[ServerConnection, int]] = []
        self.cancelled: list[CancelReason] = []
        unary = {"/t.S/Echo": echo, "/t.S/Headed": headed, "/t.S/Fail": failing, "/t.S/Silent": self.keep}
        self.serving = Serving(unary=unary, streams={"/t.S/Chat": self.chat})

    def keep(self, connection: ServerConnection, stream_id: int, head: Head, message: bytes) -> None:
        self.silent.append((connection, stream_id))

    def chat(self, stream: ServerStream, head: Head) -> Echo:
        told = self.cancelled

        class Chat(Echo):
            def on_cancel(self, reason: CancelReason) -> None:
                told.append(reason)

        return Chat(stream, head)


class Theirs:
    """The peer: grpcio's server."""

    def service(self, details: Any) -> Any:
        match details.method:
            case "/t.S/Echo":
                return grpc.unary_unary_rpc_method_handler(lambda message, context: message)
            case "/t.S/Headed":
                return grpc.unary_unary_rpc_method_handler(self.headed)
            case "/t.S/Fail":
                return grpc.unary_unary_rpc_method_handler(self.fail)
            case "/t.S/Chat":
                return grpc.stream_stream_rpc_method_handler(lambda messages, context: messages)
        return None

    def headed(self, message: bytes, context: Any) -> bytes:
        merged: dict[str, list[str | bytes]] = {}
        for name, value in context.invocation_metadata():
            if name != "user-agent":
                merged.setdefault(name, []).append(value)
        return repr(sorted((name, tuple(values)) for name, values in merged.items())).encode()

    def fail(self, message: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("why-bin", b"\x00\x01"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, message.decode())
        return b""


@pytest.fixture(scope="module", params=["ours", "grpcio", "grpcio gzip"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "ours":
        with Ours().serving as serving:
            yield f"127.0.0.1:{serving.port}"
        return
    compression = grpc.Compression.Gzip if "gzip" in request.param else None
    options = [("grpc.max_receive_message_length", -1)]
    server = grpc.server(futures.ThreadPoolExecutor(4), options=options, compression=compression)
    handlers = type("Handlers", (Theirs, grpc.GenericRpcHandler), {})
    server.add_generic_rpc_handlers((handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, 65_530, 65_531, 300_000, 1_500_000])
def test_unary_echo_of_every_size(address: str, loop: str, size: int) -> None:
    async def test() -> None:
        channel = Channel(address)
        message = (bytes(range(256)) * (size // 256 + 1))[:size]
        assert await channel.unary("/t.S/Echo", message, timeout_s=DEADLINE_S) == message
        await channel.close()

    run(loop, test)


@pytest.mark.parametrize("loop", LOOPS)
def test_many_calls_at_once(address: str, loop: str) -> None:
    async def test() -> None:
        channel = Channel(address)
        calls = [channel.unary("/t.S/Echo", b"%d" % number) for number in range(300)]
        assert await asyncio.gather(*calls) == [b"%d" % number for number in range(300)]
        await channel.close()

    run(loop, test)


def test_metadata(address: str) -> None:
    async def test() -> None:
        channel = Channel(address)
        given: dict[str, str | bytes | list[str]] = {"token": "abc", "Many": ["1", "2"], "raw-bin": b"\x00\xff"}
        for _ in range(3):
            reply = await channel.unary("/t.S/Headed", b"", metadata=given, timeout_s=DEADLINE_S)
            assert reply == repr([("many", ("1", "2")), ("raw-bin", (b"\x00\xff",)), ("token", ("abc",))]).encode()
        with pytest.raises(ValueError, match="metadata name"):
            await channel.unary("/t.S/Headed", b"", metadata={"bad name": "x"})
        with pytest.raises(ValueError, match="metadata name"):
            await channel.unary("/t.S/Headed", b"", metadata={"grpc-status": "0"})
        with pytest.raises(ValueError, match="metadata value"):
            await channel.unary("/t.S/Headed", b"", metadata={"x": "a\r\nb"})
        await channel.close()

    run("asyncio", test)


def test_errors(address: str) -> None:
    async def test() -> None:
        channel = Channel(address)
        with pytest.raises(RpcError) as caught:
            await channel.unary("/t.S/Fail", "weiß 100%".encode())
        assert (caught.value.code, caught.value.text) == (9, "weiß 100%")
        with pytest.raises(RpcError) as caught:
            await channel.unary("/t.S/None", b"")
        assert caught.value.code == 12
        await channel.close()

    run("asyncio", test)


@pytest.mark.parametrize("loop", LOOPS)
def test_stream_both_ways(address: str, loop: str) -> None:
    async def test() -> None:
        channel = Channel(address)
        call = channel.stream("/t.S/Chat", timeout_s=DEADLINE_S)
        messages = [b"%d" % number * 1000 for number in range(300)]

        async def send() -> None:
            for message in messages:
                await call.send(message)
            call.half_close()

        sending = asyncio.create_task(send())
        assert [message async for message in call] == messages
        await sending
        await channel.close()

    run(loop, test)


def test_deadline_and_cancel() -> None:
    async def test() -> None:
        channel = Channel(f"127.0.0.1:{ours.serving.port}")
        with pytest.raises(RpcError) as caught:
            await channel.unary("/t.S/Silent", b"", timeout_s=0.05)
        assert (caught.value.code, caught.value.text) == (4, "context deadline exceeded")
        task = asyncio.create_task(channel.unary("/t.S/Silent", b""))
        await asyncio.to_thread(ours.serving.wait, lambda: len(ours.silent) == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(ours.serving.wait, lambda: ours.serving.server.streams_open == 0)
        call = channel.stream("/t.S/Chat")
        await call.send(b"x")
        assert await call.read() == b"x"
        call.cancel()
        with pytest.raises(RpcError) as caught:
            await call.read()
        assert caught.value.code == 1
        with pytest.raises(RpcError):
            await call.send(b"y")
        await asyncio.to_thread(ours.serving.wait, lambda: ours.cancelled == [CancelReason.RESET])
        await channel.close()

    ours = Ours()
    with ours.serving:
        run("asyncio", test)


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    async def test() -> None:
        channel = Channel(f"127.0.0.1:{port}", limits=ClientLimits(backoff_first_s=0.01))
        for _ in range(3):
            with pytest.raises(RpcError) as caught:
                await channel.unary("/t.S/Echo", b"")
            assert caught.value.code == 14
            assert caught.value.text.startswith("connection error: ")
        await channel.close()

    run("asyncio", test)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:", f"127.0.0.1:{1 << 70}", "127.0.0.1:port", f"{'a' * 70}.x:1", "a..x:1", "\u00fc.invalid:1", ":1", ""],
)
def test_an_address_that_cannot_be_is_one_where_nobody_listens(address: str, loop: str) -> None:
    async def test() -> None:
        channel = Channel(address)
        with pytest.raises(RpcError, match="connection error: ") as caught:
            await channel.unary("/t.S/Echo", b"")
        assert caught.value.code == 14
        await channel.close()

    run(loop, test)


@pytest.mark.parametrize("loop", LOOPS)
def test_one_that_closes_while_its_host_is_looked_up_leaves_nothing_behind(loop: str) -> None:
    async def test() -> None:
        running = asyncio.get_running_loop()
        for _ in range(5):
            channel = Channel("no-such-host.invalid:1")
            call = asyncio.ensure_future(channel.unary("/t.S/Echo", b""))
            while not call.done():
                await asyncio.sleep(0)
                await channel.close()
            assert isinstance(call.exception(), RpcError)
            with pytest.raises(OSError):
                await running.getaddrinfo("no-such-host.invalid", 1)
            del channel, call
            gc.collect()

    run(loop, test)


@pytest.mark.parametrize("loop", LOOPS)
def test_one_that_closes_in_the_moment_it_is_connected_is_closed(loop: str) -> None:
    async def test() -> None:
        closing: list[asyncio.Task[None]] = []

        def close(_: asyncio.BaseTransport) -> None:
            closing.append(asyncio.ensure_future(channel.close()))

        with socket.create_server(("127.0.0.1", 0)) as mute:
            channel = Channel(f"127.0.0.1:{mute.getsockname()[1]}", check=close)
            with pytest.raises(RpcError):
                await channel.unary("/t.S/Echo", b"")
            await closing[0]
            there, _ = mute.accept()
            with there:
                there.settimeout(DEADLINE_S)
                while await asyncio.to_thread(there.recv, 1000):
                    pass

    run(loop, test)


def test_a_server_that_never_sends_settings() -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            limits = ClientLimits(connect_timeout_s=0.05, backoff_first_s=0.01)
            channel = Channel(f"127.0.0.1:{mute.getsockname()[1]}", limits=limits)
            with pytest.raises(RpcError) as caught:
                await channel.unary("/t.S/Echo", b"")
            assert (caught.value.code, caught.value.text) == (14, "connection error: timed out")
            await channel.close()

    run("asyncio", test)


def test_reconnects_after_the_server_restarts() -> None:
    async def test() -> None:
        first = Ours().serving
        await asyncio.to_thread(first.__enter__)
        port = first.port
        channel = Channel(f"127.0.0.1:{port}", limits=ClientLimits(backoff_first_s=0.01, backoff_max_s=0.05))
        assert await channel.unary("/t.S/Echo", b"one") == b"one"
        await asyncio.to_thread(first.__exit__, None, None, None)
        with pytest.raises(RpcError) as caught:
            await channel.unary("/t.S/Echo", b"lost")
        assert caught.value.code == 14
        second = Serving(unary={"/t.S/Echo": echo}, port=port)
        await asyncio.to_thread(second.__enter__)
        while True:
            try:
                assert await channel.unary("/t.S/Echo", b"two") == b"two"
                break
            except RpcError as error:
                assert error.code == 14
        await channel.close()
        await asyncio.to_thread(second.__exit__, None, None, None)

    run("asyncio", test)


def test_goaway_moves_new_calls_to_a_new_connection() -> None:
    async def test() -> None:
        channel = Channel(f"127.0.0.1:{ours.serving.port}")
        old = asyncio.create_task(channel.unary("/t.S/Silent", b""))
        await asyncio.to_thread(ours.serving.wait, lambda: len(ours.silent) == 1)
        connection, stream_id = ours.silent[0]
        ours.serving.call(connection.drain)
        await asyncio.to_thread(ours.serving.wait, lambda: connection.goaway_sent is not None)
        assert await channel.unary("/t.S/Echo", b"new") == b"new"
        assert ours.serving.call(lambda: connection.reply(stream_id, b"old")) is True
        assert await old == b"old"
        await asyncio.to_thread(ours.serving.wait, lambda: ours.serving.server.connections_open == 1)
        assert ours.serving.server.connections_accepted == 2
        await channel.close()

    ours = Ours()
    with ours.serving:
        run("asyncio", test)


def test_calls_wait_for_max_concurrent_streams() -> None:
    limits = ServerLimits(max_concurrent_streams=3)
    with Serving(unary={"/t.S/Echo": echo}, limits=limits) as serving:

        async def test() -> None:
            channel = Channel(f"127.0.0.1:{serving.port}")
            calls = [channel.unary("/t.S/Echo", b"%d" % number) for number in range(50)]
            assert await asyncio.gather(*calls) == [b"%d" % number for number in range(50)]
            await channel.close()

        run("asyncio", test)
        assert serving.server.routes["/t.S/Echo"].ok == 50


def test_waiting_calls_are_bounded() -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            limits = ClientLimits(connect_timeout_s=0.2, waiting_calls=2)
            channel = Channel(f"127.0.0.1:{mute.getsockname()[1]}", limits=limits)
            calls = [channel.unary("/t.S/Echo", b"") for _ in range(3)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert [result.code for result in results if isinstance(result, RpcError)] == [14, 14, 8]
            await channel.close()

    run("asyncio", test)


def test_close_ends_what_is_open() -> None:
    async def test() -> None:
        channel = Channel(f"127.0.0.1:{ours.serving.port}")
        task = asyncio.create_task(channel.unary("/t.S/Silent", b""))
        await asyncio.to_thread(ours.serving.wait, lambda: len(ours.silent) == 1)
        await channel.close()
        with pytest.raises(RpcError) as caught:
            await task
        assert caught.value.code == 1
        with pytest.raises(RpcError) as caught:
            await channel.unary("/t.S/Echo", b"")
        assert caught.value.code == 1

    ours = Ours()
    with ours.serving:
        run("asyncio", test)


def test_a_slow_reader_stops_the_server() -> None:
    sent = 0

    class Source(Echo):
        def on_message(self, message: bytes) -> None:
            self.on_writable()

        def on_half_close(self) -> None:
            pass

        def on_writable(self) -> None:
            nonlocal sent
            while self.stream.writable and sent < 20_000:
                sent += 1
                self.stream.send(b"x" * 1000)
            if sent == 20_000:
                self.stream.end()

    with Serving(unary={"/t.S/Echo": echo}, streams={"/t.S/Source": Source}) as serving:

        async def test() -> None:
            channel = Channel(f"127.0.0.1:{serving.port}")
            call = channel.stream("/t.S/Source")
            await call.send(b"go")
            call.half_close()
            assert await call.read() == b"x" * 1000
            # Other calls of the connection go on while this one stands.
            for _ in range(50):
                assert await channel.unary("/t.S/Echo", b"y") == b"y"
            standing = serving.call(lambda: sent)
            assert standing < 3_000
            assert serving.call(lambda: sent) == standing
            assert len([message async for message in call]) == 19_999
            await channel.close()

        run("asyncio", test)
