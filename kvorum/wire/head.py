"""What a request's header block means to a gRPC server. One `Head` serves all requests with the same block."""

from collections.abc import Callable
from typing import Final, NamedTuple

from kvorum.errors import Code
from kvorum.wire import grpc, hpack

_FORBIDDEN: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)  # RFC 9113, section 8.2.2
_PSEUDO: Final = frozenset((b":method", b":scheme", b":path", b":authority"))
_TRANSPORT: Final = frozenset(
    (
        b"content-type",
        b"te",
        b"user-agent",
        b"content-length",
        b"grpc-encoding",
        b"grpc-accept-encoding",
        b"grpc-timeout",
        b"grpc-message-type",
        b"host",
    )
)
_BAD_VALUE: Final = (b"\0", b"\r", b"\n")
NOT_GRPC: Final = 415
"""The HTTP status for a content type that is not gRPC's."""

_UPPER: Final = frozenset(range(0x41, 0x5B))


class Refusal:
    """How a request ends that never reaches a handler: trailers only, under this HTTP status."""

    __slots__ = ("code", "fields", "http_status", "text")

    def __init__(self, code: int, text: str, http_status: int = 200, fields: tuple[hpack.Field, ...] = ()) -> None:
        self.code = code
        self.text = text
        self.http_status = http_status
        self.fields = fields


class HttpRequest(NamedTuple):
    """A request that is not gRPC, for the servers that serve such."""

    method: bytes
    target: bytes
    fields: tuple[hpack.Field, ...]
    """Without pseudo-header fields; `host` is there when the request has an authority."""


class Head:
    """One decoded request header block."""

    __slots__ = (
        "authority",
        "gzip",
        "http",
        "malformed",
        "metadata",
        "path",
        "refusal",
        "route",
        "timeout_s",
        "trailers",
    )

    path: str
    """`/package.Service/Method`."""
    metadata: grpc.Metadata
    authority: str
    timeout_s: float | None
    """grpc-timeout, from the arrival of the request."""
    gzip: bool
    """Whether the request says grpc-encoding: gzip; the reply then is gzip too."""
    route: object
    """What the server's table has for the path."""
    malformed: bool
    """No valid HTTP/2 request (RFC 9113, section 8.1.1): a stream error PROTOCOL_ERROR."""
    trailers: bool
    """A valid block without pseudo-header fields: what may end a request stream."""
    refusal: Refusal | None
    http: HttpRequest | None
    """The request, where `refusal` is that its content type is not gRPC's."""

    def with_timeout(self, text: bytes) -> "Head":
        """The same request with this grpc-timeout."""
        head = Head.__new__(Head)
        head.path = self.path
        head.metadata = self.metadata
        head.authority = self.authority
        head.gzip = self.gzip
        head.route = self.route
        head.malformed = self.malformed
        head.trailers = self.trailers
        head.refusal = self.refusal
        head.timeout_s = grpc.parse_timeout(text)
        head.http = self.http
        if self.http is not None:
            head.http = self.http._replace(fields=(*self.http.fields, (b"grpc-timeout", text)))
        if head.timeout_s is None and head.refusal is None:
            head.refusal = _bad_timeout(text)
            head.route = None
        return head


def _bad_timeout(text: bytes) -> Refusal:
    shown = text.decode("utf-8", "backslashreplace")
    return Refusal(Code.INTERNAL, f'malformed grpc-timeout: "{shown}"', 400)


def _valid(name: bytes, value: bytes) -> bool:
    """RFC 9113, sections 8.2 and 8.2.1."""
    return (
        bool(name)
        and not _UPPER.intersection(name)
        and name not in _FORBIDDEN
        and b":" not in name[1:]
        and b" " not in name
        and not any(octet in value for octet in _BAD_VALUE)
        and (name != b"te" or value == b"trailers")
    )


def parse_request(fields: list[hpack.Field] | None, routes: Callable[[str], object]) -> Head:
    """The head of a request block; None: it was above the size limit. `routes` gives what serves a path, or a Refusal.

    Errors are in the head: `malformed`, or `refusal` with the status that grpc-go answers.
    """
    head = Head.__new__(Head)
    head.path = head.authority = ""
    head.metadata = grpc.NO_METADATA
    head.timeout_s = head.route = head.refusal = head.http = None
    head.gzip = head.malformed = head.trailers = False
    if fields is None:
        head.refusal = Refusal(Code.RESOURCE_EXHAUSTED, "grpc: received header list larger than max")
        return head
    pseudo: dict[bytes, bytes] = {}
    regular: list[hpack.Field] = []
    for name, value in fields:
        if name.startswith(b":"):
            if regular or name not in _PSEUDO or name in pseudo or any(octet in value for octet in _BAD_VALUE):
                head.malformed = True
            pseudo[name] = value
        else:
            if not _valid(name, value):
                head.malformed = True
            regular.append((name, value))
    if not pseudo:
        head.trailers = not head.malformed
        return head
    path = pseudo.get(b":path", b"")
    if head.malformed or b":method" not in pseudo or b":scheme" not in pseudo or not path:
        head.malformed = True
        return head
    head.path = path.decode("utf-8", "surrogateescape")
    values = dict(regular)
    head.authority = pseudo.get(b":authority", values.get(b"host", b"")).decode("utf-8", "surrogateescape")
    head.refusal = _check_grpc(head, pseudo[b":method"], values)
    if head.refusal is not None and head.refusal.http_status == NOT_GRPC:
        authority = pseudo.get(b":authority")
        if authority is not None and b"host" not in values:
            regular.append((b"host", authority))
        head.http = HttpRequest(pseudo[b":method"], path, tuple(regular))
    if head.refusal is None:
        try:
            head.metadata = grpc.decode_metadata([field for field in regular if field[0] not in _TRANSPORT])
        except ValueError as error:
            head.refusal = Refusal(Code.INTERNAL, f"malformed binary metadata in header {str(error)!r}", 400)
    if head.refusal is None:
        found = routes(head.path)
        if isinstance(found, Refusal):
            head.refusal = found
        else:
            head.route = found
    return head


def _check_grpc(head: Head, method: bytes, values: dict[bytes, bytes]) -> Refusal | None:
    content_type = values.get(b"content-type", b"")
    subtype = content_type[len(grpc.CONTENT_TYPE) :]
    if not content_type.lower().startswith(grpc.CONTENT_TYPE) or subtype[:1] not in (b"", b"+", b";"):
        shown = content_type.decode("utf-8", "backslashreplace")
        return Refusal(Code.INVALID_ARGUMENT, f'invalid gRPC request content-type "{shown}"', NOT_GRPC)
    if method != b"POST":
        shown = method.decode("utf-8", "backslashreplace")
        text = f'Received a HEADERS frame with :method "{shown}" which should be POST'
        return Refusal(Code.INTERNAL, text, 405)
    timeout = values.get(b"grpc-timeout")
    if timeout is not None:
        head.timeout_s = grpc.parse_timeout(timeout)
        if head.timeout_s is None:
            return _bad_timeout(timeout)
    encoding = values.get(b"grpc-encoding", b"identity")
    if encoding == b"gzip":
        head.gzip = True
    elif encoding != b"identity":
        shown = encoding.decode("utf-8", "backslashreplace")
        return Refusal(
            Code.UNIMPLEMENTED,
            f'grpc: Decompressor is not installed for grpc-encoding "{shown}"',
            fields=((b"grpc-accept-encoding", b"identity,gzip"),),
        )
    return None
