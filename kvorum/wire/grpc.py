"""gRPC over HTTP/2: messages, statuses, timeouts and metadata (grpc/grpc, doc/PROTOCOL-HTTP2.md)."""

import base64
import binascii
import zlib
from collections.abc import Iterable, Mapping
from struct import Struct
from types import MappingProxyType
from typing import Final

from kvorum.errors import Code
from kvorum.wire import hpack

PREFIX_SIZE: Final = 5
"""Octets before each message: the compressed flag and the length."""

pack_prefix: Final = Struct(">BI").pack
unpack_prefix: Final = Struct(">BI").unpack_from

CONTENT_TYPE: Final = b"application/grpc"

Metadata = Mapping[str, tuple[str | bytes, ...]]
"""Lower-case names; values of names that end in -bin are bytes, the others str."""

NO_METADATA: Final[Metadata] = MappingProxyType({})

MAX_TIMEOUT_S: Final = 99_999_999 * 3600.0

_TIMEOUT_UNITS: Final = {0x48: 3600.0, 0x4D: 60.0, 0x53: 1.0, 0x6D: 1e-3, 0x75: 1e-6, 0x6E: 1e-9}  # H M S m u n


class MessageFault(Exception):
    """A message cannot be read: the call ends with this status."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def frame(message: bytes) -> bytes:
    """The message with its prefix, not compressed."""
    return pack_prefix(0, len(message)) + message


def frame_gzip(message: bytes) -> bytes:
    """The message with its prefix, compressed. Level 1: twice the speed for a tenth more octets."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    packed = packer.compress(message) + packer.flush()
    return pack_prefix(1, len(packed)) + packed


def gunzip(packed: bytes, limit_bytes: int) -> bytes:
    """The message inside, at most `limit_bytes` of it ever unpacked; raises MessageFault."""
    unpacker = zlib.decompressobj(31)
    try:
        message = unpacker.decompress(packed, limit_bytes + 1)
    except zlib.error as error:
        raise MessageFault(Code.INTERNAL, f"grpc: failed to decompress the received message: {error}") from None
    if len(message) > limit_bytes:
        raise MessageFault(
            Code.RESOURCE_EXHAUSTED, f"grpc: received message after decompression larger than max {limit_bytes}"
        )
    if not unpacker.eof:
        raise MessageFault(Code.INTERNAL, "grpc: failed to decompress the received message: unexpected EOF")
    return message


def too_large(size_bytes: int, limit_bytes: int) -> MessageFault:
    return MessageFault(
        Code.RESOURCE_EXHAUSTED, f"grpc: received message larger than max ({size_bytes} vs. {limit_bytes})"
    )


class MessageReader:
    """Puts the messages of one stream together from DATA payloads."""

    __slots__ = ("_buffer", "_gzip", "_limit")

    def __init__(self, limit_bytes: int, *, gzip: bool) -> None:
        self._buffer = bytearray()
        self._limit = limit_bytes
        self._gzip = gzip

    @property
    def held_bytes(self) -> int:
        """Octets of messages not yet given out."""
        return len(self._buffer)

    def feed(self, data: bytes | memoryview) -> None:
        """Add octets."""
        self._buffer += data

    def next(self) -> bytes | None:
        """The next message if it is complete; raises MessageFault, as soon as its prefix shows it."""
        buffer = self._buffer
        if len(buffer) < PREFIX_SIZE:
            return None
        flag, size = unpack_prefix(buffer)
        check_prefix(flag, size, self._limit, gzip=self._gzip)
        end = PREFIX_SIZE + size
        if len(buffer) < end:
            return None
        with memoryview(buffer) as view:
            message = bytes(view[PREFIX_SIZE:end])
        del buffer[:end]
        return gunzip(message, self._limit) if flag else message


def check_prefix(flag: int, size_bytes: int, limit_bytes: int, *, gzip: bool) -> None:
    """Raise MessageFault for a prefix that cannot begin a message we take."""
    if flag > 1:
        raise MessageFault(Code.INTERNAL, f"grpc: received unexpected payload format {flag}")
    if flag and not gzip:
        raise MessageFault(Code.INTERNAL, "grpc: compressed flag set with identity or empty encoding")
    if size_bytes > limit_bytes:
        raise too_large(size_bytes, limit_bytes)


def parse_timeout(text: bytes) -> float | None:
    """grpc-timeout in seconds; None when it is malformed."""
    digits = text[:-1]
    unit = _TIMEOUT_UNITS.get(text[-1]) if text else None
    if unit is None or not 1 <= len(digits) <= 8 or not digits.isdigit():
        return None
    return int(digits) * unit


def format_timeout(timeout_s: float) -> bytes:
    """A grpc-timeout of at most eight digits, rounded up; what is past is 1 nanosecond."""
    for unit, per_s in (("n", 1e9), ("u", 1e6), ("m", 1e3), ("S", 1.0), ("M", 1 / 60), ("H", 1 / 3600)):
        count = timeout_s * per_s
        if count <= 99_999_999:
            whole = int(count)
            return f"{max(1, whole + (whole < count))}{unit}".encode()
    return b"99999999H"


def encode_text(text: str) -> bytes:
    """grpc-message: UTF-8, percent-encoded outside of printable ASCII."""
    raw = text.encode("utf-8", "replace")
    if raw.isascii() and text.isprintable() and b"%" not in raw:
        return raw
    return b"".join(
        [bytes((octet,)) if 0x20 <= octet <= 0x7E and octet != 0x25 else b"%%%02X" % octet for octet in raw]
    )


def decode_text(raw: bytes) -> str:
    """The reverse; what is no valid escape stands for itself."""
    if b"%" not in raw:
        return raw.decode("utf-8", "replace")
    pieces = raw.split(b"%")
    text = bytearray(pieces[0])
    for piece in pieces[1:]:
        try:
            text += bytes((int(piece[:2], 16),)) if len(piece) >= 2 and piece[:2].isalnum() else b"%" + piece[:2]
        except ValueError:
            text += b"%" + piece[:2]
        text += piece[2:]
    return text.decode("utf-8", "replace")


def decode_metadata(fields: Iterable[hpack.Field]) -> Metadata:
    """Custom metadata from header fields; raises ValueError with the name of a -bin field that is not base64."""
    metadata: dict[str, tuple[str | bytes, ...]] = {}
    for raw_name, raw_value in fields:
        name = raw_name.decode("latin-1")
        values: tuple[str | bytes, ...]
        if raw_name.endswith(b"-bin"):
            # Several values may be joined by commas; padding is optional.
            try:
                values = tuple([_decode_bin(part) for part in raw_value.split(b",")])
            except binascii.Error:
                raise ValueError(name) from None
        else:
            # Values that are no UTF-8 must stay visible as such (`invalid client api version`), hence the escapes.
            values = (raw_value.decode("utf-8", "surrogateescape"),)
        metadata[name] = metadata[name] + values if name in metadata else values
    return MappingProxyType(metadata) if metadata else NO_METADATA


def _decode_bin(text: bytes) -> bytes:
    text = text.strip().rstrip(b"=")
    return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)


def encode_metadata(metadata: Mapping[str, str | bytes | Iterable[str | bytes]]) -> list[hpack.Field]:
    """Header fields of custom metadata; a name that ends in -bin takes bytes.

    Raises ValueError for a name or a value that HTTP/2 cannot carry, or a name that gRPC keeps for itself.
    """
    fields = []
    for name, given in metadata.items():
        raw_name = name.encode("ascii").lower()
        if not raw_name or not _NAME_OCTETS.issuperset(raw_name) or raw_name.startswith(b"grpc-"):
            raise ValueError(f"metadata name {name!r}")
        for value in (given,) if isinstance(given, (str, bytes)) else given:
            raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
            if raw_name.endswith(b"-bin"):
                raw = base64.b64encode(raw).rstrip(b"=")
            elif b"\0" in raw or b"\r" in raw or b"\n" in raw or raw != raw.strip():
                raise ValueError(f"metadata value of {name!r}")
            fields.append((raw_name, raw))
    return fields


_NAME_OCTETS: Final = frozenset(b"0123456789abcdefghijklmnopqrstuvwxyz_-.")
