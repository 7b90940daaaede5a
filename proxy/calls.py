"""Calls that are passed on as the bytes that came, and answered with the bytes that came back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import Final

from kvorum.errors import ApiError, Code, Status
from kvorum.wire import grpc
from kvorum.wire.calls import ClientStream
from kvorum.wire.head import Head
from kvorum.wire.routes import CancelReason, StreamHandler, StreamOpen, UnaryHandler
from kvorum.wire.server_calls import ServerStream
from kvorum.wire.server_connection import ServerConnection
from proxy.callers import Caller, Callers
from proxy.namespaces.passage import Later, Passage, Retry
from proxy.paths import CAMPAIGN, HEALTH_WATCH, LOCK, OBSERVE, RANGE_STREAM, SNAPSHOT
from proxy.upstream.upstream import PATIENCE_S
from proxy.upstream.way import Call, Way

ENDLESS: Final = frozenset({LOCK, CAMPAIGN, OBSERVE, HEALTH_WATCH})
"""Calls that may last for ever."""

REPEATABLE_STREAMS: Final = frozenset({RANGE_STREAM, SNAPSHOT, OBSERVE, HEALTH_WATCH})
"""Calls that change nothing."""


def answer(connection: ServerConnection, stream_id: int, code: int, text: str, message: bytes) -> None:
    """Hand the upstream's answer to the caller."""
    if code:
        connection.fail(stream_id, code, text)
    else:
        connection.reply(stream_id, message)


def answer_through(
    passage: Passage, connection: ServerConnection, stream_id: int, code: int, text: str, message: bytes
) -> None:
    """The same for a caller in a namespace."""
    answer(connection, stream_id, *passage.settle(code, text, message))


def pass_through(call: Call, callers: Callers, paths: Iterable[str]) -> dict[str, UnaryHandler]:
    """Handlers of unary calls, passed on by `call`; nothing is looked at but what the caller's namespace asks for."""
    return {path: _passing(call, callers, path) for path in paths}


def _passing(call: Call, callers: Callers, path: str) -> UnaryHandler:
    resolve = callers.resolve_or_wait

    def handle(connection: ServerConnection, stream_id: int, head: Head, message: bytes) -> None:
        try:
            caller = resolve(connection, head)
            request, passage = (message, None) if caller.plain else caller.enter(path, message)
        except ApiError as error:
            connection.fail(stream_id, *error.status)
        except Later as later:
            later.join(again(handle, connection, stream_id, head, message), len(message))
        else:
            done = partial(answer, connection, stream_id)
            if passage is not None:
                done = partial(answer_through, passage, connection, stream_id)
            call(path, request, done, caller.metadata, head.timeout_s)

    return handle


def again(handler: UnaryHandler, connection: ServerConnection, stream_id: int, head: Head, message: bytes) -> Retry:
    """Makes a unary call once more from its beginning, unless its caller has gone."""

    def retry(status: Status | None) -> None:
        if status is not None:
            connection.fail(stream_id, *status)
        elif stream_id in connection.streams:
            handler(connection, stream_id, head, message)

    return retry


class Relays:
    """Calls that are one request and a stream of replies, or that wait for long.

    Lock and Campaign have one reply, but wait until it is their turn; a caller that leaves must be seen, so that its
    place in the queue is given up.
    """

    def __init__(self, upstream: Way, callers: Callers) -> None:
        self.upstream = upstream
        self.callers = callers
        self.open: set[Relay] = set()

    def of(self, paths: Iterable[str]) -> dict[str, StreamOpen]:
        """Their handlers."""
        return {path: self._opening(path) for path in paths}

    def stop(self, status: Status) -> None:
        """End those that have no end of their own."""
        for relay in list(self.open):
            if relay.path in ENDLESS:
                relay.end(status)

    def _opening(self, path: str) -> StreamOpen:
        def open_relay(stream: ServerStream, head: Head) -> StreamHandler:
            relay = Relay(self, stream, head, path)
            self.open.add(relay)
            return relay

        return open_relay


class Relay:
    """The client's side: one request, and replies as fast as the client reads them."""

    def __init__(self, relays: Relays, stream: ServerStream, head: Head, path: str) -> None:
        self.stream = stream
        self.path = path
        self._relays = relays
        self._head = head
        self._caller: Caller | None = None
        self._loop = asyncio.get_running_loop()
        self._deadline_at = None if head.timeout_s is None else self._loop.time() + head.timeout_s
        self._give_up_at = 0.0
        self._message: bytes | None = None
        self._passage: Passage | None = None
        self._cancelled = False
        self._call: ClientStream | None = None

    def on_message(self, message: bytes) -> None:
        if self._message is not None:
            self.end(Status(Code.INTERNAL, "grpc: more than one message in a unary request"))
            return
        self._message = message
        self._enter(message)

    def _enter(self, message: bytes) -> None:
        try:
            self._caller = self._relays.callers.resolve_or_wait(self.stream.connection, self._head)
            self._message, self._passage = self._caller.enter(self.path, message)
        except ApiError as error:
            self.end(error.status)
        except Later as later:
            later.join(partial(self._enter_again, message), len(message))
        else:
            if self._caller.tenant is not None:
                self._caller.tenant.streams[self] = self.end
            self._ask()

    def _enter_again(self, message: bytes, status: Status | None) -> None:
        if status is not None:
            self.end(status)
        elif not self._cancelled:
            self._enter(message)

    def on_half_close(self) -> None:
        if self._message is None:
            self.end(Status(Code.INTERNAL, "grpc: no message in a unary request"))

    def on_cancel(self, reason: CancelReason) -> None:
        self.cancel()

    def on_writable(self) -> None:
        if self._call is not None:
            self._call.resume_reading()

    def on_reply(self, message: bytes) -> None:
        """One reply from upstream."""
        if self._passage is not None:
            try:
                message = self._passage.reply(message)
            except ApiError as error:
                self.end(error.status)
                return
        self.stream.send(message)
        if not self.stream.writable and self._call is not None:
            self._call.pause_reading()

    def on_reply_end(self, code: int, text: str) -> None:
        """The upstream has ended the call."""
        call, self._call = self._call, None
        if call is None:
            return
        unsent = call.connection is None
        unanswered = call.head is None and self.path in REPEATABLE_STREAMS
        if code == Code.UNAVAILABLE and (unsent or unanswered) and self._may_repeat():
            self._ask()
        else:
            if self._passage is not None:
                self._passage.end(code)
            self.end(Status(code, text))

    def end(self, status: Status) -> None:
        """End both sides."""
        self.cancel()
        self.stream.end(*status)

    def cancel(self) -> None:
        """End the upstream's side."""
        self._cancelled = True
        self._relays.open.discard(self)
        if self._caller is not None and self._caller.tenant is not None:
            self._caller.tenant.streams.pop(self, None)
        call, self._call = self._call, None
        if call is not None:
            if self._passage is not None:
                self._passage.end(Code.CANCELLED)
            call.cancel()

    def _ask(self) -> None:
        assert self._message is not None
        assert self._caller is not None
        timeout_s = None if self._deadline_at is None else self._deadline_at - self._loop.time()
        call = self._call = self._relays.upstream.open(self.path, _Replies(self), self._caller.metadata, timeout_s)
        call.send(self._message)
        call.half_close()

    def _may_repeat(self) -> bool:
        now = self._loop.time()
        if not self._give_up_at:
            self._give_up_at = now + PATIENCE_S
        return now < self._give_up_at


class _Replies:
    """The upstream's side."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def on_message(self, message: bytes) -> None:
        self._relay.on_reply(message)

    def on_end(self, code: int, text: str, trailers: grpc.Metadata) -> None:
        self._relay.on_reply_end(code, text)

    def on_writable(self) -> None:
        """The one request has left."""
