"""The JSON gateway: POST /v3/... with a JSON body is the gRPC call of the same name (J1-J26).

It calls the services' own handlers in place of the wire: for a unary call it is the sink that gets the answer, for
a stream the stream object. Its marshalling is `json_messages`, its paths `json_routes`, its streams `json_stream`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kvorum.errors import Code
from kvorum.wire import grpc
from node.front import json_messages
from node.front.exchange import Request
from node.front.json_call import (
    DEADLINE_TEXT,
    REPLY_HEADERS,
    CallLater,
    Head,
    Terms,
    Timer,
    metadata_of,
    refuse,
    request_message,
    too_large,
)
from node.front.json_messages import JsonError
from node.front.json_objects import JsonObjects
from node.front.json_routes import ROUTES, Route
from node.front.json_stream import BodyStream, StreamOpen
from node.front.member import UnaryHandler

PREFIX: Final = "/v3/"
BETA_PREFIX: Final = "/v3beta/"


class Gateway:
    """Serves the paths below /v3/. `message_bytes` bounds one request message, as it does on gRPC (P4)."""

    def __init__(
        self,
        *,
        unary: Mapping[str, UnaryHandler],
        streams: Mapping[str, StreamOpen],
        call_later: CallLater,
        message_bytes: int,
    ) -> None:
        self._unary = unary
        self._streams = streams
        self._terms = Terms(call_later, message_bytes)

    def handle(self, request: Request) -> None:
        """Serves a request whose path begins with /v3/ or /v3beta/ (J16-J18)."""
        path = request.path
        if path.startswith(BETA_PREFIX):
            path = PREFIX + path[len(BETA_PREFIX) :]
        route = ROUTES.get(path)
        if route is None:
            refuse(request, Code.NOT_FOUND, "Not Found")
        elif request.method != "POST":
            refuse(request, Code.UNIMPLEMENTED, "Method Not Allowed")
        else:
            self._call(request, route)

    def _call(self, request: Request, route: Route) -> None:
        timeout_s = None
        timeout = request.header(b"grpc-timeout")
        if timeout:
            timeout_s = grpc.parse_timeout(timeout.encode())
            if timeout_s is None:
                refuse(request, Code.INVALID_ARGUMENT, f"invalid grpc-timeout: {timeout}")
                return
        try:
            metadata = metadata_of(request.exchange.headers)
        except ValueError as error:
            refuse(request, Code.INVALID_ARGUMENT, f"invalid binary header {error}")
            return
        head = Head(route.path, metadata, timeout_s, request.header(b"host") or "")
        if route.server_streaming or route.client_streaming:
            stream_open = self._streams.get(route.path)
            if stream_open is not None:
                BodyStream(self._terms, request, route, head, stream_open).begin()
                return
        else:
            handler = self._unary.get(route.path)
            if handler is not None:
                UnaryCall(self._terms, request, route, head, handler).begin()
                return
        service, _, method = route.path[1:].partition("/")
        refuse(request, Code.UNIMPLEMENTED, f"unknown method {method} for service {service}")


class UnaryCall:
    """One unary call: gathers the body, calls the handler, answers once. It is the sink that handlers answer to."""

    __slots__ = ("_answered", "_handler", "_head", "_objects", "_request", "_route", "_terms", "_timer")

    def __init__(self, terms: Terms, request: Request, route: Route, head: Head, handler: UnaryHandler) -> None:
        self._terms = terms
        self._request = request
        self._route = route
        self._head = head
        self._handler = handler
        self._objects = JsonObjects(terms.text_bytes)
        self._answered = False
        self._timer: Timer | None = None

    def begin(self) -> None:
        """Starts the deadline, and the reading of the body."""
        if self._head.timeout_s is not None:
            self._timer = self._terms.call_later(self._head.timeout_s, self._on_deadline)
        self._request.exchange.stream_body(self._on_body, self._on_body_end)

    def _on_body(self, chunk: bytes) -> None:
        if self._answered:
            return
        self._objects.feed(chunk)
        if self._objects.buffered_bytes > self._terms.text_bytes:
            self.fail(0, *too_large(self._objects.buffered_bytes, self._terms.message_bytes))

    def _on_body_end(self) -> None:
        if self._answered:
            return
        try:
            message = request_message(self._objects, self._route)
        except JsonError as error:
            self.fail(0, Code.INVALID_ARGUMENT, str(error))
            return
        if len(message) > self._terms.message_bytes:
            self.fail(0, *too_large(len(message), self._terms.message_bytes))
        else:
            self._handler(self, 0, self._head, message)

    def reply(self, _token: int, message: bytes) -> None:
        """The call succeeded."""
        if not self._answered:
            self._end()
            body = json_messages.encode(self._route.reply.FromString(message))
            self._request.respond(200, REPLY_HEADERS, body)

    def fail(self, _token: int, code: int, text: str) -> None:
        """The call ended with a gRPC status."""
        if not self._answered:
            self._end()
            refuse(self._request, code, text)

    def _on_deadline(self) -> None:
        self.fail(0, Code.DEADLINE_EXCEEDED, DEADLINE_TEXT)

    def _end(self) -> None:
        self._answered = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
