"""HTTP/2 frames (RFC 9113, sections 4 and 6): names of the numbers, and packing."""

from enum import IntEnum
from struct import Struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends first (section 3.4)."""

HEADER_SIZE: Final = 9

# Frame types (section 6). Plain ints: they are compared once per frame, and an IntEnum member costs 4 times an int.
DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20

HEADER_TABLE_SIZE: Final = 0x1
ENABLE_PUSH: Final = 0x2
MAX_CONCURRENT_STREAMS: Final = 0x3
INITIAL_WINDOW_SIZE: Final = 0x4
MAX_FRAME_SIZE: Final = 0x5
MAX_HEADER_LIST_SIZE: Final = 0x6

DEFAULT_WINDOW: Final = 65_535
MAX_WINDOW: Final = 2**31 - 1
DEFAULT_FRAME_SIZE: Final = 16_384
LARGEST_FRAME_SIZE: Final = 2**24 - 1
MAX_STREAM_ID: Final = 2**31 - 1
UNLIMITED_STREAMS: Final = 2**32 - 1


class ErrorCode(IntEnum):
    """Section 7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


unpack_head: Final = Struct(">IBI").unpack_from
"""(length << 8 | type, flags, stream id with its reserved bit) of a frame at an offset."""

pack_head: Final = Struct(">IBI").pack
"""The nine octets before a payload, of the same three numbers."""

_pack_u32: Final = Struct(">I").pack
_pack_reset: Final = Struct(">IBII").pack
_pack_setting: Final = Struct(">HI").pack


def head(kind: int, flags: int, stream_id: int, size: int) -> bytes:
    """The nine octets before a payload of `size` octets."""
    return pack_head(size << 8 | kind, flags, stream_id)


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """A whole frame."""
    return pack_head(len(payload) << 8 | kind, flags, stream_id) + payload


def headers(stream_id: int, block: bytes, *, end_stream: bool, max_frame_size: int) -> bytes:
    """A header block as one HEADERS frame and as many CONTINUATION frames as it needs."""
    flags = END_STREAM if end_stream else 0
    if len(block) <= max_frame_size:
        return pack_head(len(block) << 8 | HEADERS, flags | END_HEADERS, stream_id) + block
    pieces = [frame(HEADERS, flags, stream_id, block[:max_frame_size])]
    for start in range(max_frame_size, len(block), max_frame_size):
        last = END_HEADERS if start + max_frame_size >= len(block) else 0
        pieces.append(frame(CONTINUATION, last, stream_id, block[start : start + max_frame_size]))
    return b"".join(pieces)


def rst_stream(stream_id: int, code: int) -> bytes:
    return _pack_reset(4 << 8 | RST_STREAM, 0, stream_id, code)


def window_update(stream_id: int, increment: int) -> bytes:
    return _pack_reset(4 << 8 | WINDOW_UPDATE, 0, stream_id, increment)


def settings(values: dict[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join([_pack_setting(key, value) for key, value in values.items()]))


SETTINGS_ACK: Final = head(SETTINGS, ACK, 0, 0)


def ping(payload: bytes, *, ack: bool) -> bytes:
    return frame(PING, ACK if ack else 0, 0, payload)


def goaway(last_stream_id: int, code: int, text: bytes) -> bytes:
    return frame(GOAWAY, 0, 0, _pack_u32(last_stream_id) + _pack_u32(code) + text)
