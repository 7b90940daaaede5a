"""The JSON gateway: POST /v3/... with a JSON body is the gRPC call of the same name (J1-J26).

It calls the services' own handlers in place of the wire: for a unary call it is the sink that gets the answer, for
a stream the stream object. Its marshalling is `json_messages`, its paths `json_routes`, its streams `json_stream`,
its WebSockets `json_socket`. Calls count as gRPC calls do, as at the reference, whose gateway is a gRPC client.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kvorum.errors import Code
from kvorum.wire import grpc
from kvorum.wire.routes import Route as CountedRoute
from kvorum.wire.routes import StreamOpen, StreamRoute, UnaryHandler, UnaryRoute
from node.front import json_messages
from node.front.exchange import Request
from node.front.json_call import (
    ASIDE_BYTES,
    DEADLINE_TEXT,
    REPLY_HEADERS,
    CallLater,
    Head,
    Terms,
    Timer,
    Traffic,
    metadata_of,
    refuse,
    request_message,
    too_large,
)
from node.front.json_messages import JsonError
from node.front.json_objects import JsonObjects
from node.front.json_routes import ROUTES, Route
from node.front.json_socket import VERSION, BadHandshakeError, JsonSocket, accept, asks_for_socket
from node.front.json_stream import BodyStream
from node.front.side_thread import RunAside

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
        run_aside: RunAside,
        message_bytes: int,
    ) -> None:
        self.routes: dict[str, CountedRoute] = {path: UnaryRoute(path, handler) for path, handler in unary.items()}
        """The calls that are served, by gRPC path, with their counts."""
        self.routes.update({path: StreamRoute(path, stream_open) for path, stream_open in streams.items()})
        self.traffic = Traffic()
        self._terms = Terms(call_later, run_aside, message_bytes, self.traffic)

    def handle(self, request: Request) -> None:
        """Serves a request whose path begins with /v3/ or /v3beta/ (J16-J18)."""
        path = request.path
        if path.startswith(BETA_PREFIX):
            path = PREFIX + path[len(BETA_PREFIX) :]
        route = ROUTES.get(path)
        if route is None:
            refuse(request, Code.NOT_FOUND, "Not Found")
        elif asks_for_socket(request.exchange.headers):
            self._open_socket(request, route)
        elif request.method != "POST":
            refuse(request, Code.UNIMPLEMENTED, "Method Not Allowed")
        else:
            self._call(request, route)

    def _open_socket(self, request: Request, route: Route) -> None:
        exchange = request.exchange
        try:
            headers = accept(exchange)
        except BadHandshakeError as error:
            request.text(*error.args, (b"Sec-WebSocket-Version", VERSION.encode()))
            return
        socket = JsonSocket(
            exchange,
            lambda opened: self._call(Request(opened), route),
            self._terms.call_later,
            one_message=not route.client_streaming,
            limit_bytes=self._terms.text_bytes,
        )
        if not exchange.switch(headers, socket):  # it has a body
            request.text(400, "Bad Request\n")

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
        served = self.routes.get(route.path)
        if isinstance(served, StreamRoute):
            BodyStream(self._terms, request, route, head, served).begin()
        elif isinstance(served, UnaryRoute):
            UnaryCall(self._terms, request, route, head, served).begin()
        else:
            service, _, method = route.path[1:].partition("/")
            refuse(request, Code.UNIMPLEMENTED, f"unknown method {method} for service {service}")


class UnaryCall:
    """One unary call: gathers the body, calls the handler, answers once. It is the sink that handlers answer to."""

    __slots__ = ("_answered", "_called", "_head", "_objects", "_request", "_route", "_served", "_terms", "_timer")

    def __init__(self, terms: Terms, request: Request, route: Route, head: Head, served: UnaryRoute) -> None:
        self._terms = terms
        self._request = request
        self._route = route
        self._head = head
        self._served = served
        self._called = False
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
        self._called = True
        self._served.started += 1
        if len(message) > self._terms.message_bytes:
            self.fail(0, *too_large(len(message), self._terms.message_bytes))
        else:
            self._served.received += 1
            self._terms.traffic.received_bytes += len(message)
            # the services' handlers know no wire: a sink is all they need of the connection
            self._served.handler(self, 0, self._head, message)  # type: ignore[arg-type]

    def reply(self, _token: int, message: bytes) -> None:
        """The call succeeded."""
        if self._answered:
            return
        self._end()
        self._served.ok += 1
        self._terms.traffic.sent_bytes += len(message)
        if len(message) > ASIDE_BYTES:
            from_string = self._route.reply.FromString
            self._terms.run_aside(lambda: json_messages.encode(from_string(message)), self._respond)
        else:
            self._respond(json_messages.encode(self._route.reply.FromString(message)))

    def fail(self, _token: int, code: int, text: str) -> None:
        """The call ended with a gRPC status."""
        if not self._answered:
            self._end()
            if self._called:
                self._served.count_failed(code)
            refuse(self._request, code, text)

    def _respond(self, body: bytes) -> None:
        self._request.respond(200, REPLY_HEADERS, body)

    def _on_deadline(self) -> None:
        self.fail(0, Code.DEADLINE_EXCEEDED, DEADLINE_TEXT)

    def _end(self) -> None:
        self._answered = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
