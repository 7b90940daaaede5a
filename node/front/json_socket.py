"""A WebSocket on a /v3 path (J27, RFC 6455): a call's JSON objects as messages, in both directions.

To the gateway it is the exchange of a POST: each message goes into the body, each line of the reply is a message.
Frames are wsproto's; the handshake has been parsed by the wire, so only its answer is computed here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import generate_accept_token

from node.front.exchange import Exchange, Fields, field_values
from node.front.json_call import CallLater, Timer

VERSION: Final = "13"

MOST_UNSENT_BYTES: Final = 32 << 20
"""Replies that wait for the socket because their sender does not heed `writable`. At it: the connection is aborted."""

CLOSE_WAIT_S: Final = 2.0
"""From our close frame to the client's. At it: the connection is aborted."""

_BEARER: Final = "bearer"


class BadHandshakeError(Exception):
    """A request for a WebSocket that cannot be had: the HTTP status and text."""


def asks_for_socket(headers: Fields) -> bool:
    """Whether a request wants its connection to become a WebSocket; else it is a plain one."""
    return "websocket" in _tokens(headers, b"upgrade") and "upgrade" in _tokens(headers, b"connection")


def accept(exchange: Exchange) -> Fields:
    """The headers of the 101 that answers a handshake. Raises BadHandshakeError (RFC 6455, section 4.2)."""
    headers = exchange.headers
    keys = [value for name, value in headers if name == b"sec-websocket-key"]
    if exchange.method != "GET":
        raise BadHandshakeError(405, "Method Not Allowed\n")
    if field_values(headers, b"sec-websocket-version") != [VERSION] or len(keys) != 1 or not keys[0]:
        raise BadHandshakeError(400, "Bad Request\n")
    answer = [
        (b"Upgrade", b"websocket"),
        (b"Connection", b"Upgrade"),
        (b"Sec-WebSocket-Accept", generate_accept_token(keys[0])),
    ]
    if _tokens(headers, b"sec-websocket-protocol")[:1] == [_BEARER]:
        answer.append((b"Sec-WebSocket-Protocol", b"Bearer"))
    return answer


def call_headers(headers: Fields) -> list[tuple[bytes, bytes]]:
    """The headers of the call. A token in the cookie `token`, else in `Sec-WebSocket-Protocol: Bearer, TOKEN`, takes
    the place of `Authorization`, which no browser lets a script set."""
    token = ""
    offered = [part.strip() for value in field_values(headers, b"sec-websocket-protocol") for part in value.split(",")]
    if len(offered) > 1 and offered[0].lower() == _BEARER:
        token = offered[1]
    for value in field_values(headers, b"cookie"):
        for part in value.split(";"):
            name, _, given = part.strip().partition("=")
            if name == "token":
                token = given.strip('"')
    if not token:
        return list(headers)
    others = [field for field in headers if field[0] != b"authorization"]
    return [*others, (b"authorization", token.encode("utf-8", "replace"))]


def _tokens(headers: Fields, name: bytes) -> list[str]:
    """The elements of a comma-separated header, in lower case."""
    return [part.strip().lower() for value in field_values(headers, name) for part in value.split(",")]


class JsonSocket(asyncio.Protocol):
    """The protocol of a connection after its switch, and the exchange of the one call on it; see Exchange."""

    method = "POST"

    def __init__(
        self,
        handshake: Exchange,
        begin: Callable[[JsonSocket], None],
        call_later: CallLater,
        *,
        one_message: bool,
        limit_bytes: int,
    ) -> None:
        """`begin` starts the call once the connection is ours. With `one_message` the body ends after the first: the
        client of a call that does not stream cannot say so. A message may have `limit_bytes`."""
        self.target = handshake.target
        self.headers = call_headers(handshake.headers)
        self.on_disconnect: Callable[[], None] | None = None
        self.on_writable: Callable[[], None] | None = None
        self._begin = begin
        self._call_later = call_later
        self._one_message = one_message
        self._limit_bytes = limit_bytes
        self._message_bytes = 0
        self._socket = Connection(ConnectionType.SERVER)
        self._transport: asyncio.Transport | None = None
        self._congested = False
        self._timer: Timer | None = None
        self._on_chunk: Callable[[bytes], None] | None = None
        self._on_end: Callable[[], None] | None = None

    # what the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's, but have the same methods
        self._transport = cast(asyncio.Transport, transport)
        self._begin(self)

    def data_received(self, data: bytes) -> None:
        if self._socket.state not in (ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING):
            return  # what follows a close frame means nothing
        self._socket.receive_data(data)
        for event in self._socket.events():
            self._on_event(event)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._leave()

    def pause_writing(self) -> None:
        self._congested = True

    def resume_writing(self) -> None:
        self._congested = False
        if self.on_writable is not None:
            self.on_writable()

    # what the call does

    @property
    def writable(self) -> bool:
        """See Exchange."""
        return self._transport is not None and not self._congested

    def stream_body(self, on_chunk: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        """See Exchange."""
        self._on_chunk = on_chunk
        self._on_end = on_end

    def pause_reading(self) -> None:
        """See Exchange. Pings are not answered either: they wait behind the message that nobody takes."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """See Exchange."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def respond(self, _status: int, _headers: Fields, body: bytes) -> None:
        """See Exchange: one message; an error's status is also in its JSON."""
        self.write(body)
        self.finish()

    def start(self, _status: int, _headers: Fields) -> None:
        """See Exchange: nothing, the reply to the handshake was the head."""

    def write(self, chunk: bytes) -> None:
        """See Exchange: one message per line."""
        if self._socket.state is ConnectionState.OPEN:
            for line in chunk.split(b"\n"):
                if line:
                    self._send(TextMessage(data=line.decode()))

    def finish(self) -> None:
        """See Exchange: begins the closing handshake."""
        self._forget_call()
        self._close(CloseReason.NORMAL_CLOSURE)

    def switch(self, _headers: Fields, _protocol: asyncio.Protocol) -> bool:
        """See Exchange: never, this connection has been switched already."""
        return False

    # inside

    def _on_event(self, event: Event) -> None:
        match event:
            case TextMessage() | BytesMessage():
                self._on_message(event)
            case Ping():
                if self._socket.state is ConnectionState.OPEN:
                    self._send(event.response())
            case CloseConnection():
                self._on_close(event)
            case _:
                pass  # a pong is only an answer

    def _on_message(self, event: TextMessage | BytesMessage) -> None:
        """A message, or the next part of one."""
        if self._on_chunk is None:
            return  # the call has ended, or wants no more
        data = event.data.encode() if isinstance(event, TextMessage) else bytes(event.data)
        self._message_bytes += len(data)
        if self._message_bytes > self._limit_bytes:
            self._leave()
            self._close(CloseReason.MESSAGE_TOO_BIG)
            return
        self._on_chunk(data)
        if not event.message_finished:
            return
        self._message_bytes = 0
        on_chunk, on_end = self._on_chunk, self._on_end
        if on_chunk is None or on_end is None:
            return
        on_chunk(b"\n")  # so that two messages are never one number or name
        if self._one_message:
            self._on_chunk = self._on_end = None
            on_end()

    def _on_close(self, event: CloseConnection) -> None:
        """The client's close frame, or what it sent is no WebSocket's; then `event` says why, and is ours to send."""
        self._leave()
        if self._socket.state is ConnectionState.OPEN:
            self._close(event.code, event.reason or "")
        elif self._socket.state is ConnectionState.REMOTE_CLOSING:
            self._send(event.response())
        if self._socket.state is not ConnectionState.LOCAL_CLOSING and self._transport is not None:
            self._transport.close()

    def _close(self, code: int, reason: str = "") -> None:
        if self._socket.state is ConnectionState.OPEN:
            self._send(CloseConnection(code=code, reason=reason))
            if self._transport is not None:
                self._timer = self._call_later(CLOSE_WAIT_S, self._transport.abort)
                if not self._transport.is_closing():
                    self._transport.resume_reading()  # for the client's close frame; no error if it is not paused

    def _send(self, event: Event) -> None:
        data = self._socket.send(event)
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.write(data)
            if transport.get_write_buffer_size() > MOST_UNSENT_BYTES:
                transport.abort()

    def _leave(self) -> None:
        """The client is gone, or must go: the call hears it once."""
        on_disconnect = self.on_disconnect
        self._forget_call()
        if on_disconnect is not None:
            on_disconnect()

    def _forget_call(self) -> None:
        self.on_disconnect = self.on_writable = self._on_chunk = self._on_end = None
