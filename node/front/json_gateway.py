"""The JSON gateway: POST /v3/... with a JSON body is the gRPC call of the same name (J1-J26).

It calls the services' own handlers in place of the wire: for a unary call it is the sink that gets the answer, for
a stream the stream object. Its marshalling is `json_messages`, its paths `json_routes`, its streams `json_stream`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson

from kvorum.errors import Code
from kvorum.wire import grpc
from kvorum.wire.server_connection import StreamHandler
from node.front import json_messages
from node.front.exchange import JSON, Fields, Request
from node.front.json_messages import JsonError
from node.front.json_objects import JsonObjects
from node.front.json_routes import ROUTES, Route
from node.front.member import UnaryHandler

PREFIX: Final = "/v3/"
BETA_PREFIX: Final = "/v3beta/"

HTTP_STATUS: Final = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}
"""J15."""

REPLY_HEADERS: Final[Fields] = (JSON, (b"Grpc-Metadata-Content-Type", b"application/grpc"))
"""J13."""

_METADATA_PREFIX: Final = b"grpc-metadata-"
_LINE_BREAKS: Final = re.compile(r"[\r\n]+")
DEADLINE_TEXT: Final = "context deadline exceeded"


class Timer(Protocol):
    """What `call_later` gives."""

    def cancel(self) -> None:
        """The callback is not called any more."""


CallLater = Callable[[float, Callable[[], None]], Timer]
"""(delay in seconds, callback)."""


StreamOpen = Callable[[Any, Any], StreamHandler]
"""(stream, head) -> its handler."""


@dataclass(frozen=True, slots=True)
class Head:
    """What services see of a call's headers (J21, J22), as `kvorum.wire` gives it for gRPC."""

    path: str
    metadata: grpc.Metadata
    timeout_s: float | None
    authority: str


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
        self.unary = unary
        self.streams = streams
        self.call_later = call_later
        self.message_bytes = message_bytes

    @property
    def text_bytes(self) -> int:
        """The most JSON that one message may be: base64 takes 4/3, the same with every byte escaped much more."""
        return 2 * self.message_bytes + 65_536

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
        from node.front.json_stream import BodyStream

        timeout_s = None
        timeout = request.header(b"grpc-timeout")
        if timeout:
            timeout_s = grpc.parse_timeout(timeout.encode())
            if timeout_s is None:
                refuse(request, Code.INVALID_ARGUMENT, f"invalid grpc-timeout: {timeout}")
                return
        head = Head(route.path, metadata_of(request.exchange.headers), timeout_s, request.header(b"host") or "")
        if route.server_streaming or route.client_streaming:
            stream_open = self.streams.get(route.path)
            if stream_open is not None:
                BodyStream(self, request, route, head, stream_open).begin()
                return
        else:
            handler = self.unary.get(route.path)
            if handler is not None:
                UnaryCall(self, request, route, head, handler).begin()
                return
        service, _, method = route.path[1:].partition("/")
        refuse(request, Code.UNIMPLEMENTED, f"unknown method {method} for service {service}")


class UnaryCall:
    """One unary call: gathers the body, calls the handler, answers once. It is the sink that handlers answer to."""

    __slots__ = ("_answered", "_gateway", "_handler", "_head", "_objects", "_request", "_route", "_timer")

    def __init__(self, gateway: Gateway, request: Request, route: Route, head: Head, handler: UnaryHandler) -> None:
        self._gateway = gateway
        self._request = request
        self._route = route
        self._head = head
        self._handler = handler
        self._objects = JsonObjects(gateway.text_bytes)
        self._answered = False
        self._timer: Timer | None = None

    def begin(self) -> None:
        """Starts the deadline, and the reading of the body."""
        if self._head.timeout_s is not None:
            self._timer = self._gateway.call_later(self._head.timeout_s, self._on_deadline)
        self._request.exchange.stream_body(self._on_body, self._on_body_end)

    def _on_body(self, chunk: bytes) -> None:
        if self._answered:
            return
        self._objects.feed(chunk)
        if self._objects.buffered_bytes > self._gateway.text_bytes:
            self.fail(0, *too_large(self._objects.buffered_bytes, self._gateway.message_bytes))

    def _on_body_end(self) -> None:
        if self._answered:
            return
        try:
            message = request_message(self._objects, self._route)
        except JsonError as error:
            self.fail(0, Code.INVALID_ARGUMENT, str(error))
            return
        if len(message) > self._gateway.message_bytes:
            self.fail(0, *too_large(len(message), self._gateway.message_bytes))
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


def request_message(objects: JsonObjects, route: Route) -> bytes:
    """The message that a complete body of a non-streaming request gives: its first object (J9, J10).

    Raises JsonError.
    """
    message = route.request()
    text = objects.next()
    if text is not None:
        json_messages.decode(json_messages.parse(text), message)
    elif objects.pending:
        raise JsonError("unexpected end of JSON input")
    return message.SerializeToString()


def too_large(size_bytes: int, limit_bytes: int) -> tuple[int, str]:
    """How a request over the limit of messages ends (P4)."""
    return Code.RESOURCE_EXHAUSTED, f"grpc: received message larger than max ({size_bytes} vs. {limit_bytes})"


def metadata_of(headers: Fields) -> grpc.Metadata:
    """The gRPC metadata that HTTP headers become: `Authorization`, and what begins with `Grpc-Metadata-`."""
    fields = []
    for name, value in headers:
        if name == b"authorization":
            fields.append((name, value))
        elif name.startswith(_METADATA_PREFIX) and len(name) > len(_METADATA_PREFIX):
            fields.append((name[len(_METADATA_PREFIX) :], value))
    return grpc.decode_metadata(fields) if fields else grpc.NO_METADATA


def status_of(code: int) -> int:
    """The HTTP status of a gRPC code."""
    return HTTP_STATUS.get(Code(code), 500) if code in Code._value2member_map_ else 500


def refuse(request: Request, code: int, text: str) -> None:
    """Answers with an error (J14)."""
    headers: tuple[tuple[bytes, bytes], ...] = (JSON,)
    if code == Code.UNAUTHENTICATED:
        headers = (JSON, (b"WWW-Authenticate", _LINE_BREAKS.sub(" ", text).encode("ascii", "replace")))
    request.respond(status_of(code), headers, error_body(code, text))


def error_body(code: int, text: str) -> bytes:
    """{"code":N,"message":"…"}."""
    return orjson.dumps({"code": int(code), "message": text})
