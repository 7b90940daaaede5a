"""The asyncio client: a channel to one address, with calls as coroutines and as callbacks.

    channel = Channel("127.0.0.1:2379")
    reply = await channel.unary("/package.Service/Method", message, timeout_s=5)
    await channel.close()

The channel connects when the first call needs it, again after a loss, and waits longer after each failure. A call
that waits while an attempt to connect fails is told so with UNAVAILABLE. A unary call that the server surely did not
act on (REFUSED_STREAM, or above the last stream of a GOAWAY) is sent once more.
"""

import asyncio
import random
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, cast

from kvorum import __version__
from kvorum.errors import Code
from kvorum.wire import grpc
from kvorum.wire.calls import CANCELLED_TEXT, CallHandler, ClientCall, ClientStream, UnaryClientCall, UnaryDone
from kvorum.wire.client_connection import DEADLINE_TEXT, ClientConnection
from kvorum.wire.deadlines import Deadlines
from kvorum.wire.direct import hand_over, plain_descriptor
from kvorum.wire.limits import ClientLimits

_TICK_S = 1.0
_CLOSE_S = 1.0  # for a server to take our last words
_READ_AHEAD_BYTES = 256 * 1024
_WRITE_HIGH = 256 * 1024
_WRITE_LOW = 64 * 1024

GivenMetadata = Mapping[str, str | bytes | Iterable[str | bytes]]

ConnectionCheck = Callable[[asyncio.BaseTransport], str | None]
"""Is shown a connection that has been made, after the TLS handshake; a text refuses it."""


class RpcError(Exception):
    """A call ended with a status other than OK."""

    def __init__(self, code: int, text: str, trailers: grpc.Metadata = grpc.NO_METADATA) -> None:
        super().__init__(code, text)
        self.code = code
        """gRPC status code."""
        self.text = text
        self.trailers = trailers
        """The server's trailing metadata."""


class Channel:
    """Calls to one server: `host:port`, or `unix:PATH`."""

    def __init__(
        self,
        address: str,
        *,
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
        limits: ClientLimits | None = None,
        check: ConnectionCheck | None = None,
        on_lost: Callable[["Channel", str], None] | None = None,
    ) -> None:
        """`server_name` is what the server's certificate must be for, instead of the host. `on_lost` is told that a
        connection, or an attempt to get one, has failed, and why, before the calls that end by it are."""
        self.address = address
        self.check = check
        self._on_lost = on_lost
        self.limits = limits if limits is not None else ClientLimits()
        self._tls = tls
        self._server_name = server_name
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[ClientCall] = deque()
        self._protocol: ClientProtocol | None = None
        self._going: set[ClientProtocol] = set()
        self._connecting: asyncio.Task[None] | None = None
        self._failures = 0
        self._not_before = 0.0
        self._deadlines = Deadlines()
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._deadline_at = float("inf")
        self._tick_timer: asyncio.TimerHandle | None = None
        self._keepalive_factor = 1
        self._closed = False
        self._authority = "localhost" if address.startswith("unix:") else address

    @property
    def connected(self) -> bool:
        """Whether calls can leave at once."""
        return self._protocol is not None and self._protocol.connection.ready

    # Calls with callbacks.

    def call(
        self,
        path: str,
        message: bytes,
        done: UnaryDone,
        metadata: GivenMetadata | None = None,
        timeout_s: float | None = None,
    ) -> UnaryClientCall:
        """A unary call; `done` gets (code, text, message), never within this call. Raises ValueError for metadata
        that cannot be sent."""
        call = UnaryClientCall(path, self._fields(metadata), self._deadline(timeout_s), message, self._settled, done)
        self.launch(call)
        return call

    def cancel(self, call: ClientCall) -> None:
        """End a call now; its owner is told CANCELLED."""
        self._end(call, Code.CANCELLED, CANCELLED_TEXT)

    def open(
        self,
        path: str,
        handler: CallHandler,
        metadata: GivenMetadata | None = None,
        timeout_s: float | None = None,
    ) -> ClientStream:
        """A streaming call whose replies go to the handler."""
        call = ClientStream(path, self._fields(metadata), self._deadline(timeout_s), self._settled, handler)
        self.launch(call)
        return call

    def launch(self, call: UnaryClientCall | ClientStream) -> None:
        """Begin a call that has been made elsewhere, or has ended at another channel and was restarted."""
        call.settled = self._settled
        if call.deadline_at is not None:
            now = self._loop.time()
            call.slot = self._deadlines.add(call, self, now, max(0.0, call.deadline_at - now))
            self._watch_deadlines()
        protocol = self._protocol
        if protocol is not None and not self._waiting and protocol.connection.can_start:
            protocol.connection.start(call, self._loop.time())
        elif self._closed:
            self._loop.call_soon(self._end, call, Code.CANCELLED, "grpc: the client connection is closing")
        elif len(self._waiting) >= self.limits.waiting_calls:
            self._loop.call_soon(self._end, call, Code.RESOURCE_EXHAUSTED, "grpc: too many waiting calls")
        else:
            self._waiting.append(call)
            self._connect()

    def flush(self) -> None:
        """Write what calls have produced. Optional: it happens in the next turn of the loop anyway."""
        if self._protocol is not None:
            self._protocol.write()

    def drop(self) -> None:
        """Cut the connection that is there: its calls, and those that wait for it, end with UNAVAILABLE."""
        for protocol in [*self._going, *([self._protocol] if self._protocol is not None else [])]:
            protocol.abort()
        self._fail_waiting(Code.UNAVAILABLE, "connection closed")

    # Calls as coroutines.

    async def unary(
        self, path: str, message: bytes, metadata: GivenMetadata | None = None, timeout_s: float | None = None
    ) -> bytes:
        """The reply to a message; raises RpcError, and ValueError for metadata that cannot be sent."""
        future: asyncio.Future[bytes] = self._loop.create_future()

        def done(code: int, text: str, reply: bytes) -> None:
            if future.done():
                return
            if code:
                future.set_exception(RpcError(code, text))
            else:
                future.set_result(reply)

        call = self.call(path, message, done, metadata, timeout_s)
        try:
            return await future
        except asyncio.CancelledError:
            self.cancel(call)
            raise

    def stream(self, path: str, metadata: GivenMetadata | None = None, timeout_s: float | None = None) -> "Call":
        """A streaming call: `send`, `half_close`, and the replies by `async for`."""
        inbox = _Inbox()
        return Call(self, self.open(path, inbox, metadata, timeout_s), inbox)

    async def close(self) -> None:
        """End all calls with CANCELLED and close the connection."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        self._fail_waiting(Code.CANCELLED, "grpc: the client connection is closing")
        protocols = [*self._going, *([self._protocol] if self._protocol is not None else [])]
        for protocol in protocols:
            protocol.leave()
        if protocols:
            await asyncio.wait([protocol.lost for protocol in protocols], timeout=_CLOSE_S)
            for protocol in protocols:
                protocol.abort()
            await asyncio.wait([protocol.lost for protocol in protocols])
        for timer in (self._tick_timer, self._deadline_timer):
            if timer is not None:
                timer.cancel()

    # Within.

    @staticmethod
    def _fields(metadata: GivenMetadata | None) -> tuple[tuple[bytes, bytes], ...]:
        return tuple(grpc.encode_metadata(metadata)) if metadata else ()

    def _deadline(self, timeout_s: float | None) -> float | None:
        return None if timeout_s is None else self._loop.time() + timeout_s

    def _settled(self, call: ClientCall) -> None:
        self._deadlines.discard(call, call.slot)
        call.slot = 0

    def _end(self, call: ClientCall, code: int, text: str) -> None:
        """End a call from our side, wherever it is."""
        if call.finished:
            return
        if call.connection is not None:
            call.connection.abandon(call, code, text)
        else:
            if call in self._waiting:
                self._waiting.remove(call)
            call.finish(code, text, grpc.NO_METADATA)

    def _fail_waiting(self, code: int, text: str) -> None:
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            call.finish(code, text, grpc.NO_METADATA)

    def _start_waiting(self) -> None:
        """The connection takes calls."""
        protocol = self._protocol
        while self._waiting and protocol is not None and protocol.connection.can_start:
            call = self._waiting.popleft()
            if not call.finished:
                protocol.connection.start(call, self._loop.time())

    def _unprocessed(self, call: ClientCall) -> bool:
        if call.retried or not isinstance(call, UnaryClientCall) or self._closed:
            return False
        call.retried = True
        call.restart()
        self._waiting.append(call)
        self._loop.call_soon(self._connect)
        return True

    def _connect(self) -> None:
        """See that waiting calls get a connection."""
        protocol = self._protocol
        if protocol is not None and protocol.connection.going:
            self._protocol = None
            self._going.add(protocol)
        if self._protocol is not None:
            self._start_waiting()
        elif self._connecting is None and not self._closed and self._waiting:
            self._connecting = self._loop.create_task(self._attempts())

    async def _attempts(self) -> None:
        """Try until there is a connection or nobody waits for one."""
        try:
            while self._waiting:
                pause_s = self._not_before - self._loop.time()
                if pause_s > 0:
                    await asyncio.sleep(pause_s)
                try:
                    async with asyncio.timeout(self.limits.connect_timeout_s):
                        protocol = await self._attempt()
                        await protocol.became_ready
                except (OSError, ValueError, OverflowError) as error:
                    # The latter two: names and ports that cannot be. An end of the connection within the TLS handshake
                    # comes without a text.
                    reason = str(error) or ("timed out" if isinstance(error, TimeoutError) else "connection reset")
                    if self._protocol is not None:
                        self._protocol.abort()
                    self._back_off()
                    if self._on_lost is not None:
                        self._on_lost(self, reason)
                    self._fail_waiting(Code.UNAVAILABLE, f"connection error: {reason}")
                    continue
                self._failures = 0
                return
        finally:
            self._connecting = None

    async def _attempt(self) -> "ClientProtocol":
        try:
            return await self._made()
        except BaseException:
            if self._protocol is not None:
                self._protocol.forsake()
            raise

    async def _made(self) -> "ClientProtocol":
        """A connection, its first bytes written."""
        if self.address.startswith("unix:"):
            path = self.address.removeprefix("unix:")
            name = (self._server_name or "localhost") if self._tls is not None else None
            _, protocol = await self._loop.create_unix_connection(
                self._new_protocol, path, ssl=self._tls, server_hostname=name
            )
            return protocol
        host, _, port = self.address.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        name = (self._server_name or host) if self._tls is not None else None
        failure: OSError | None = None
        for place, number in await self._places(host, int(port or 0)):  # as in URLs: no port is one nobody listens at
            try:
                _, protocol = await self._loop.create_connection(
                    self._new_protocol, place, number, ssl=self._tls, server_hostname=name
                )
            except OSError as error:
                failure = error
            else:
                return protocol
        assert failure is not None, "a name without addresses is an error"
        raise failure

    async def _places(self, host: str, port: int) -> list[tuple[str, int]]:
        """The addresses of a host. Given up early, it leaves nothing behind: uvloop's `create_connection`, which could
        look for them, leaves the resolver's error to the loop's handler."""
        found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        places: list[tuple[str, int]] = []
        for family, _, _, _, address in found:
            scope = f"%{address[3]}" if family == socket.AF_INET6 and len(address) == 4 and address[3] else ""
            places.append((f"{address[0]}{scope}", port))
        return places

    def _back_off(self) -> None:
        limits = self.limits
        pause_s = min(limits.backoff_first_s * 2**self._failures, limits.backoff_max_s)
        self._failures = min(self._failures + 1, 30)
        self._not_before = self._loop.time() + pause_s * random.uniform(0.8, 1.2)

    def _new_protocol(self) -> "ClientProtocol":
        return ClientProtocol(self)

    # For the protocol.

    def new_connection(self, protocol: "ClientProtocol") -> ClientConnection:
        """The core of a connection that has just been made."""
        self._protocol = protocol
        if self._tick_timer is None:
            self._tick_timer = self._loop.call_later(_TICK_S, self._tick)
        return ClientConnection(
            self.limits,
            protocol.wake,
            self._loop.time(),
            authority=self._authority,
            scheme="http" if self._tls is None else "https",
            user_agent=f"kvorum/{__version__}",
            on_ready=self._start_waiting,
            unprocessed=self._unprocessed,
            keepalive_factor=self._keepalive_factor,
        )

    def losing(self, protocol: "ClientProtocol", reason: str) -> None:
        """The connection is lost; its calls have not been told yet."""
        if self._on_lost is not None and self._protocol is protocol and protocol.became_ready.done():
            self._on_lost(self, reason)

    def gone(self, protocol: "ClientProtocol") -> None:
        """The connection is lost."""
        if protocol.connection.too_many_pings:
            self._keepalive_factor *= 2
        self._going.discard(protocol)
        if self._protocol is protocol:
            self._protocol = None
        if self._waiting:
            self._connect()

    def _watch_deadlines(self) -> None:
        at = self._deadlines.next_at()
        if at is not None and at < self._deadline_at:
            if self._deadline_timer is not None:
                self._deadline_timer.cancel()
            self._deadline_at = at
            self._deadline_timer = self._loop.call_at(at, self._expire)

    def _expire(self) -> None:
        self._deadline_timer = None
        self._deadline_at = float("inf")
        for call, _ in self._deadlines.expire(self._loop.time()):
            call.slot = 0
            self._end(call, Code.DEADLINE_EXCEEDED, DEADLINE_TEXT)
        self._watch_deadlines()

    def _tick(self) -> None:
        self._tick_timer = None
        now = self._loop.time()
        protocols = [*self._going, *([self._protocol] if self._protocol is not None else [])]
        for protocol in protocols:
            protocol.connection.tick(now)
            protocol.write()
        if protocols:
            self._tick_timer = self._loop.call_later(_TICK_S, self._tick)


class ClientProtocol(asyncio.Protocol):
    """A connection's transport and its core."""

    connection: ClientConnection

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._flush_scheduled = False
        self._refusal: str | None = None
        self._descriptor = -1
        self.became_ready: asyncio.Future[None] = self._loop.create_future()
        """Done when the server's SETTINGS have come; fails with ConnectionError when the connection ends before."""
        self.lost: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH, low=_WRITE_LOW)
        self._descriptor = plain_descriptor(transport)
        session: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        self.connection = self._channel.new_connection(self)
        check = self._channel.check
        if session is not None and session.selected_alpn_protocol() != "h2":
            self._refusal = "the server does not offer HTTP/2"
        elif check is not None:
            self._refusal = check(transport)
        if self._refusal is not None:
            self._transport.abort()
            return
        self.write()

    def data_received(self, data: bytes) -> None:
        connection = self.connection
        connection.receive(data, self._loop.time())
        if connection.ready and not self.became_ready.done():
            self.became_ready.set_result(None)
        self.write()
        connection.room()

    def pause_writing(self) -> None:
        self.connection.set_congested(True)

    def resume_writing(self) -> None:
        self.connection.set_congested(False)
        self.write()
        self.connection.room()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.lost.done():
            return
        text = str(exc) if exc is not None else self.connection.going_text or "connection closed by the server"
        if self.connection.fault is not None:
            text = self.connection.fault.text
        if self._refusal is not None:
            text = self._refusal
        self._channel.losing(self, text)
        self.connection.lost(text)
        self._transport = None
        if not self.became_ready.done():
            self.became_ready.set_exception(ConnectionError(text))
            # Nobody may be waiting for it any more.
            self.became_ready.exception()
        self.lost.set_result(None)
        self._channel.gone(self)

    def wake(self, connection: Any) -> None:
        """The connection has output."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush_soon)

    def write(self) -> None:
        """Give this turn's output to the transport."""
        transport = self._transport
        connection = self.connection
        if transport is None or transport.is_closing():
            connection.out.clear()
            return
        data = connection.take()
        if data:
            hand_over(self._descriptor, transport, data)
        if connection.unfinished:
            self._loop.call_soon(self._next_turn)
        elif connection.closed or connection.drained:
            transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def forsake(self) -> None:
        """The attempt was given up when the connection had just been made: uvloop then closes it without a word, and
        its descriptor may soon be another file's."""
        self.abort()
        self.connection_lost(ConnectionAbortedError("the attempt to connect was given up"))

    def leave(self) -> None:
        """Close the connection."""
        self.connection.leave()
        self.write()
        if self._transport is not None:
            self._transport.close()

    def _flush_soon(self) -> None:
        self._flush_scheduled = False
        self.write()

    def _next_turn(self) -> None:
        self.connection.next_turn()
        self.write()
        self.connection.room()


class _Inbox:
    """Replies of a streaming call until a coroutine takes them."""

    def __init__(self) -> None:
        self.messages: deque[bytes] = deque()
        self.held_bytes = 0
        self.end: tuple[int, str, grpc.Metadata] | None = None
        self.changed = asyncio.Event()
        self.paused: Callable[[], None] | None = None

    def on_message(self, message: bytes) -> None:
        self.messages.append(message)
        self.held_bytes += len(message) + 64
        self.changed.set()
        if self.held_bytes > _READ_AHEAD_BYTES and self.paused is not None:
            self.paused()

    def on_end(self, code: int, text: str, trailers: grpc.Metadata) -> None:
        self.end = (code, text, trailers)
        self.changed.set()

    def on_writable(self) -> None:
        self.changed.set()


class Call:
    """A streaming call for coroutines. `async for message in call` ends when the server ends with OK, and raises
    RpcError when it ends with anything else."""

    def __init__(self, channel: Channel, stream: ClientStream, inbox: _Inbox) -> None:
        self._channel = channel
        self._stream = stream
        self._inbox = inbox
        inbox.paused = stream.pause_reading

    @property
    def initial_metadata(self) -> grpc.Metadata:
        """The server's headers, once a message or the end has come."""
        return self._stream.initial_metadata

    async def send(self, message: bytes) -> None:
        """One message, when there is room for it; raises RpcError when the call has ended."""
        inbox = self._inbox
        while inbox.end is None and self._stream.connection is not None and not self._stream.writable:
            inbox.changed.clear()
            await inbox.changed.wait()
        if inbox.end is not None:
            raise RpcError(*inbox.end)
        self._stream.send(message)

    def half_close(self) -> None:
        """No more messages will be sent."""
        self._stream.half_close()

    def cancel(self) -> None:
        """End the call now."""
        self._channel.cancel(self._stream)

    async def read(self) -> bytes | None:
        """The next message; None when the server has ended the call with OK, RpcError when with anything else."""
        inbox = self._inbox
        while not inbox.messages:
            if inbox.end is not None:
                if inbox.end[0]:
                    raise RpcError(*inbox.end)
                return None
            inbox.changed.clear()
            await inbox.changed.wait()
        message = inbox.messages.popleft()
        inbox.held_bytes -= len(message) + 64
        if not inbox.messages:
            self._stream.resume_reading()
        return message

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (message := await self.read()) is not None:
            yield message
