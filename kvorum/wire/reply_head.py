"""What a reply's header block means to a gRPC client: headers, trailers, or both in one."""

from typing import Final

from kvorum.errors import Code
from kvorum.wire import grpc, hpack
from kvorum.wire.frames import ErrorCode

_TRANSPORT: Final = frozenset(
    (b"content-type", b"grpc-encoding", b"grpc-accept-encoding", b"grpc-status", b"grpc-message", b"trailer", b"date")
)

# grpc/grpc, doc/http-grpc-status-mapping.md.
_CODE_OF_HTTP: Final = {
    400: Code.INTERNAL,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.UNIMPLEMENTED,
    429: Code.UNAVAILABLE,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.UNAVAILABLE,
}

# doc/PROTOCOL-HTTP2.md, Errors.
_CODE_OF_RESET: Final = {
    ErrorCode.REFUSED_STREAM: Code.UNAVAILABLE,
    ErrorCode.CANCEL: Code.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: Code.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: Code.PERMISSION_DENIED,
}


class ReplyHead:
    """One decoded block of a reply; shared by all replies with the same block."""

    __slots__ = (
        "begins",
        "content_type",
        "gzip",
        "http_status",
        "malformed",
        "metadata",
        "status",
        "text",
        "too_large",
        "unknown_encoding",
    )

    http_status: int | None
    """None: trailers."""
    status: int | None
    """grpc-status."""
    text: str
    """grpc-message."""
    metadata: grpc.Metadata
    gzip: bool
    content_type: bytes
    unknown_encoding: str | None
    malformed: bool
    too_large: bool
    """The block was above the size limit; nothing else is known of it."""
    begins: bool
    """These are the headers before messages, and nothing is wrong with them: known once for all calls, it spares each
    five comparisons."""


def parse_reply(fields: list[hpack.Field] | None) -> ReplyHead:
    """The head of a block; None: it was above the size limit."""
    head = ReplyHead()
    head.http_status = head.status = head.unknown_encoding = None
    head.text = ""
    head.metadata = grpc.NO_METADATA
    head.gzip = head.malformed = False
    head.content_type = b""
    head.too_large = fields is None
    head.begins = False
    if fields is None:
        return head
    regular: list[hpack.Field] = []
    for name, value in fields:
        if name == b":status" and not regular and head.http_status is None and len(value) == 3 and value.isdigit():
            head.http_status = int(value)
        elif name[:1] == b":" or name != name.lower():
            head.malformed = True
        else:
            regular.append((name, value))
    for name, value in regular:
        if name == b"grpc-status":
            head.status = int(value) if value.isdigit() and len(value) < 10 else Code.UNKNOWN
        elif name == b"grpc-message":
            head.text = grpc.decode_text(value)
        elif name == b"content-type":
            head.content_type = value
        elif name == b"grpc-encoding" and value != b"identity":
            head.gzip = value == b"gzip"
            if not head.gzip:
                head.unknown_encoding = value.decode("utf-8", "backslashreplace")
    try:
        head.metadata = grpc.decode_metadata([field for field in regular if field[0] not in _TRANSPORT])
    except ValueError:
        head.malformed = True
    is_grpc = head.http_status == 200 and head.content_type.startswith(grpc.CONTENT_TYPE)
    head.begins = is_grpc and head.unknown_encoding is None and not head.malformed
    return head


def code_of_http(http_status: int) -> Code:
    """The gRPC code for an HTTP status without a grpc-status."""
    return _CODE_OF_HTTP.get(http_status, Code.UNKNOWN)


def code_of_reset(code: int) -> Code:
    """The gRPC code for a RST_STREAM of the server's."""
    return _CODE_OF_RESET.get(ErrorCode(code), Code.INTERNAL) if 0 <= code <= 0xD else Code.INTERNAL
