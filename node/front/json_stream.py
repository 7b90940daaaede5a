"""A streaming call of the JSON gateway: the request's body holds JSON objects, the reply is a line per message."""

from __future__ import annotations

from collections import deque
from typing import Final

from kvorum.errors import Code
from kvorum.wire import grpc
from kvorum.wire.limits import ServerLimits
from kvorum.wire.routes import CancelReason, StreamHandler, StreamRoute
from node.front import json_messages
from node.front.exchange import JSON, Request
from node.front.json_call import (
    ASIDE_BYTES,
    DEADLINE_TEXT,
    REPLY_HEADERS,
    Head,
    Terms,
    Timer,
    error_body,
    refuse,
    request_message,
    status_of,
    too_large,
)
from node.front.json_messages import JsonError
from node.front.json_objects import JsonObjects
from node.front.json_routes import Route

QUEUE_BYTES: Final = ServerLimits().stream_queue_bytes
"""Messages that wait to become JSON because the service does not heed `writable`. At it: RESOURCE_EXHAUSTED."""


class BodyStream:
    """One streaming call over HTTP/1.1 (J23-J26). It is the stream object that the service writes to.

    The reply begins with the first message, so that an error before it can still choose the HTTP status. Messages that
    are large become JSON in the side thread, and what is sent after them waits for them.
    """

    def __init__(self, terms: Terms, request: Request, route: Route, head: Head, served: StreamRoute) -> None:
        self.head = head
        self._terms = terms
        self._request = request
        self._exchange = request.exchange
        self._route = route
        self._served = served
        self._objects = JsonObjects(terms.text_bytes)
        self._handler: StreamHandler | None = None
        self._timer: Timer | None = None
        self._started = False
        self._ended = False
        self._paused = False
        self._delivering = False
        self._body_ended = False
        self._half_closed = False
        self._delivered = False
        self._counted = False
        self._waiting: deque[list[bytes]] = deque()  # the first is with the side thread
        self._waiting_bytes = 0
        self._last: tuple[int, str] | None = None  # how the call ended, while messages before that wait

    def begin(self) -> None:
        """Opens the call at its service, and begins to read the body."""
        if self.head.timeout_s is not None:
            self._timer = self._terms.call_later(self.head.timeout_s, self._on_deadline)
        if self._route.client_streaming:
            self._count_start()
        # the services' streams know no wire: what BodyStream has is all they need
        handler = self._served.open(self, self.head)  # type: ignore[arg-type]
        if not self._ended:  # the service may have refused at once
            self._handler = handler
            self._exchange.on_disconnect = self._on_disconnect
            self._exchange.on_writable = self._on_writable
            self._exchange.stream_body(self._on_body, self._on_body_end)

    # what the wire tells

    def _on_body(self, chunk: bytes) -> None:
        if self._ended or self._half_closed:
            return
        self._objects.feed(chunk)
        if self._route.client_streaming:
            self._deliver()
        elif self._objects.buffered_bytes > self._terms.text_bytes:
            self._fail(*too_large(self._objects.buffered_bytes, self._terms.message_bytes))

    def _on_body_end(self) -> None:
        if self._ended or self._half_closed:
            return
        self._body_ended = True
        if self._route.client_streaming:
            self._deliver()
            return
        try:
            message = request_message(self._objects, self._route)
        except JsonError as error:
            self._fail(Code.INVALID_ARGUMENT, str(error))
            return
        self._count_start()
        self._to_service(message)
        self._half_close()

    def _on_disconnect(self) -> None:
        handler = self._handler
        self._waiting.clear()
        if not self._ended:
            self._count_end(Code.CANCELLED)
            self._close()
            if handler is not None:
                handler.on_cancel(CancelReason.LOST)

    def _on_writable(self) -> None:
        if self._handler is not None and self.writable:
            self._handler.on_writable()

    # what the service calls

    @property
    def connection(self) -> object:
        """What the stream runs on."""
        return self._exchange

    @property
    def writable(self) -> bool:
        """False while the client is behind."""
        return not self._waiting and self._exchange.writable

    @property
    def buffered_bytes(self) -> int:
        """Messages that wait here; the others are the connection's at once, and it ends when they are too many."""
        return self._waiting_bytes

    def send(self, message: bytes) -> None:
        """One reply message."""
        self._write([message])

    def send_framed(self, framed: bytes, _messages: int = 1) -> None:
        """Reply messages, each after its five octets of gRPC framing."""
        messages = []
        at = 0
        end = len(framed)
        while at < end:
            _, size = grpc.unpack_prefix(framed, at)
            at += grpc.PREFIX_SIZE
            messages.append(framed[at : at + size])
            at += size
        self._write(messages)

    def end(self, code: int = 0, text: str = "") -> None:
        """The call is over (J24)."""
        if self._ended:
            return
        self._count_end(code)
        self._close()
        if self._waiting:
            self._last = (code, text)
        else:
            self._finish(code, text)

    def _finish(self, code: int, text: str) -> None:
        if code == Code.OK:
            self._start(200, JSON)
        else:
            self._start(status_of(code), JSON)
            self._exchange.write(b'{"error":' + error_body(code, text) + b"}\n")
        self._exchange.finish()

    def pause_reading(self) -> None:
        """No more messages until `resume_reading`."""
        if not self._paused:
            self._paused = True
            self._exchange.pause_reading()

    def resume_reading(self) -> None:
        """Ends a pause: what has arrived is delivered."""
        if self._paused:
            self._paused = False
            self._exchange.resume_reading()
            self._deliver()

    # inside

    def _deliver(self) -> None:
        """Gives the service the messages that are complete, one by one: each may pause or end the call."""
        if self._delivering:
            return  # the service resumed from within on_message; the loop below goes on
        self._delivering = True
        try:
            while not (self._paused or self._ended or self._half_closed):
                text = self._objects.next()
                if text is not None:
                    message = self._route.request()
                    json_messages.decode(json_messages.parse(text), message)
                    self._to_service(message.SerializeToString())
                elif not self._body_ended:
                    return
                elif self._objects.pending:
                    raise JsonError("unexpected end of JSON input")
                else:
                    self._half_close()
        except JsonError as error:
            # as at the reference: after a good object, a bad one is where the body ends
            if self._delivered:
                self._half_close()
            else:
                self._fail(Code.INVALID_ARGUMENT, str(error))
        except OverflowError as error:
            self._fail(*too_large(error.args[0], self._terms.message_bytes))
        finally:
            self._delivering = False

    def _to_service(self, message: bytes) -> None:
        if len(message) > self._terms.message_bytes:
            self._fail(*too_large(len(message), self._terms.message_bytes))
            return
        self._delivered = True
        self._served.received += 1
        self._terms.traffic.received_bytes += len(message)
        assert self._handler is not None, "a call that is not ended has its handler"
        self._handler.on_message(message)

    def _half_close(self) -> None:
        if not self._half_closed:
            self._half_closed = True
            if not self._ended and self._handler is not None:
                self._handler.on_half_close()

    def _write(self, messages: list[bytes]) -> None:
        if self._ended:
            return
        size = sum([len(message) for message in messages])
        self._served.sent += len(messages)
        self._terms.traffic.sent_bytes += size
        if not self._waiting and size <= ASIDE_BYTES:
            self._put(self._lines(messages))
        elif self._waiting_bytes > QUEUE_BYTES:
            self._fail(Code.RESOURCE_EXHAUSTED, "grpc: stream queue is full", CancelReason.OVERFLOW)
        else:
            self._waiting.append(messages)
            self._waiting_bytes += size
            if len(self._waiting) == 1:
                self._convert()

    def _convert(self) -> None:
        messages = self._waiting[0]
        self._terms.run_aside(lambda: self._lines(messages), self._on_lines)

    def _on_lines(self, lines: bytes) -> None:
        """The first that wait are JSON."""
        if not self._waiting:
            return  # the client has gone meanwhile
        self._waiting_bytes -= sum([len(message) for message in self._waiting.popleft()])
        self._put(lines)
        if self._waiting:
            self._convert()
        elif self._last is not None:
            self._finish(*self._last)
        else:
            self._on_writable()

    def _lines(self, messages: list[bytes]) -> bytes:
        """A line per message; what is sent together leaves as one chunk."""
        from_string = self._route.reply.FromString
        return b"".join([b'{"result":' + json_messages.encode(from_string(message)) + b"}\n" for message in messages])

    def _put(self, lines: bytes) -> None:
        self._start(200, *REPLY_HEADERS)
        self._exchange.write(lines)

    def _start(self, status: int, *headers: tuple[bytes, bytes]) -> None:
        if not self._started:
            self._started = True
            self._exchange.start(status, (*self._request.always, *headers))

    def _on_deadline(self) -> None:
        self._fail(Code.DEADLINE_EXCEEDED, DEADLINE_TEXT, CancelReason.DEADLINE)

    def _fail(self, code: int, text: str, reason: CancelReason = CancelReason.FAULT) -> None:
        """Ends the call without the service's doing."""
        if self._ended:
            return
        handler = self._handler
        if code == Code.INVALID_ARGUMENT:
            reason = CancelReason.RESET  # as at the reference, whose gateway reads JSON and cancels what is bad
        if self._delivered or self._started:
            self.end(code, text)
        else:
            # a client whose JSON is bad has cancelled its call, for those who count them
            self._count_end(Code.CANCELLED if code == Code.INVALID_ARGUMENT else code)
            self._close()
            refuse(self._request, code, text)
        if handler is not None:
            handler.on_cancel(reason)

    def _count_start(self) -> None:
        self._counted = True
        self._served.started += 1

    def _count_end(self, code: int) -> None:
        if not self._counted:
            return
        if code == Code.OK:
            self._served.ok += 1
        else:
            self._served.count_failed(code)

    def _close(self) -> None:
        self._ended = True
        self._handler = None  # it refers to this stream, and nobody collects cycles here
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
