"""What unary and streaming calls of the JSON gateway share: headers in, statuses and errors out, the limits."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

import orjson

from kvorum.errors import Code
from kvorum.wire import grpc
from node.front import json_messages
from node.front.exchange import JSON, Fields, Request
from node.front.json_messages import JsonError
from node.front.json_objects import JsonObjects
from node.front.json_routes import Route
from node.front.side_thread import RunAside

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


class Head(NamedTuple):
    """What services see of a call's headers (J21, J22), as `kvorum.wire` gives it for gRPC."""

    path: str
    metadata: grpc.Metadata
    timeout_s: float | None
    authority: str


class Traffic:
    """The bytes of messages to and from calls, for the metrics: as if they had come by gRPC."""

    __slots__ = ("received_bytes", "sent_bytes")

    def __init__(self) -> None:
        self.received_bytes = 0
        self.sent_bytes = 0


ASIDE_BYTES: Final = 64 * 1024
"""Replies above this size become JSON in the side thread: 64 KiB of small keys take 1.3 ms, 10,000 keys 30 ms. What
the thread cannot yield, since it is one call of a library, takes 1 ms of these 30."""


class Terms(NamedTuple):
    """What every call is bound to. `message_bytes` bounds one request message, as it does on gRPC (P4)."""

    call_later: CallLater
    run_aside: RunAside
    message_bytes: int
    traffic: Traffic

    @property
    def text_bytes(self) -> int:
        """The most JSON that one message may be: base64 takes 4/3; the same with every octet escaped takes more."""
        return 2 * self.message_bytes + 65_536


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
    """The gRPC metadata that HTTP headers become: `Authorization`, and what begins with `Grpc-Metadata-`.

    Raises ValueError with the name of a `-bin` header that is no base64.
    """
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
