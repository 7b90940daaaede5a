"""The stream in which a snapshot travels: `/kvorum.Peer/Snapshot`, and the bytes of its messages (little-endian).

Sender: a HEADER, which says all of what will come; then chunks, file by file and from front to back; then half-close.

| HEADER | 1 kind, 3 padding, 4 number of files, 4 length of the SNAP message, 4 padding; the SNAP message (`codec`); |
| | per file: 8 size, 4 CRC-32C, 1 length of the name, the name |
| CHUNK | 1 kind, 3 padding, 4 number of the file, 8 offset in it, 4 CRC-32C of the data, 4 padding; the data |

Receiver: one PLACE as soon as it is ready, 1 kind, 3 padding, 4 number of a file, 8 offset in it: there the chunks are
to begin, since what is before has arrived already, in a stream that broke. Then the status: OK says that all of it is
on disk. A status of `FINAL` is the receiver's last word; with others it is worth trying again.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from google_crc32c import extend

from kvorum.errors import Code
from kvorum.wire.limits import KIB
from node.raft.core import Message, MessageType
from node.raft.peers.codec import decode

SNAPSHOT: Final = "/kvorum.Peer/Snapshot"

CHUNK_BYTES: Final = 256 * KIB
"""Data of a chunk: about a millisecond of the receiver's loop, so that heartbeats pass between two."""

CHUNK_MAX_BYTES: Final = 1024 * KIB
FILES_MAX: Final = 10_000
"""RocksDB's files have 32 MiB and more: that many are far beyond what a member can hold."""

HEADER_MAX_BYTES: Final = 1024 * KIB
SIZE_MAX_BYTES: Final = 1 << 50

FINAL: Final = frozenset((Code.FAILED_PRECONDITION, Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED, Code.RESOURCE_EXHAUSTED))

HEADER_KIND: Final = 1
CHUNK_KIND: Final = 2
PLACE_KIND: Final = 3

_HEADER: Final = struct.Struct("<B3xII4x")
_FILE: Final = struct.Struct("<QIB")
_CHUNK: Final = struct.Struct("<B3xIQI4x")
_PLACE: Final = struct.Struct("<B3xIQ")

CHUNK_HEAD_BYTES: Final = _CHUNK.size

_NAME: Final = re.compile(
    r"CURRENT|IDENTITY|(MANIFEST|OPTIONS)-[0-9]{1,20}|[0-9]{1,20}\.(sst|log)|rocksdict-config\.json"
)


class Malformed(Exception):
    """The other member sent what is no message of this stream."""


class File(NamedTuple):
    """One file of a checkpoint: its plain name, its size in bytes, its CRC-32C."""

    name: str
    size_bytes: int
    checksum: int


class Place(NamedTuple):
    """Where in the snapshot: the number of a file, and an offset in it. Behind the last file: (their number, 0)."""

    file: int
    offset: int


class Chunk(NamedTuple):
    """Data of one file, its checksum verified."""

    place: Place
    data: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """What a stream brings. `message` is a SNAP, `files` are not empty and have different names."""

    message: Message
    files: tuple[File, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def skip_empty(self, place: Place) -> Place:
        """The place at or behind this one where the next byte belongs."""
        number, offset = place
        while number < len(self.files) and offset == self.files[number].size_bytes:
            number, offset = number + 1, 0
        return Place(number, offset)

    @property
    def end(self) -> Place:
        """Behind everything."""
        return Place(len(self.files), 0)


def is_name(name: str) -> bool:
    """Whether a file of a database is called so. What a checkpoint's directory holds beside them is not sent."""
    return _NAME.fullmatch(name) is not None


def checksum(data: bytes, before: int = 0) -> int:
    """CRC-32C of what had the checksum `before`, and then `data`."""
    crc: int = extend(before, data)
    return crc


def encode_header(message: bytes, files: tuple[File, ...]) -> bytes:
    """`message`: the bytes of a batch that is one SNAP."""
    parts = [_HEADER.pack(HEADER_KIND, len(files), len(message)), message]
    for name, size_bytes, crc in files:
        parts += (_FILE.pack(size_bytes, crc, len(name)), name.encode())
    return b"".join(parts)


def decode_header(data: bytes) -> Header:
    """Raises Malformed for what `encode_header` does not make of a checkpoint."""
    if not _HEADER.size <= len(data) <= HEADER_MAX_BYTES or data[0] != HEADER_KIND:
        raise Malformed("a snapshot that does not begin with a header")
    _, count, message_bytes = _HEADER.unpack_from(data)
    at = _HEADER.size + message_bytes
    try:
        messages = decode(data[_HEADER.size : at])
    except ValueError as error:
        raise Malformed(str(error)) from None
    if len(messages) != 1 or messages[0].type is not MessageType.SNAP or messages[0].snapshot is None:
        raise Malformed("a snapshot that comes with another message")
    if not 1 <= count <= FILES_MAX:
        raise Malformed(f"a snapshot of {count} files")
    files: list[File] = []
    for _ in range(count):
        if at + _FILE.size > len(data):
            raise Malformed("a header that is cut off")
        size_bytes, crc, name_bytes = _FILE.unpack_from(data, at)
        at += _FILE.size
        name = data[at : at + name_bytes].decode("ascii", "replace")
        at += name_bytes
        if not is_name(name):
            raise Malformed(f"a snapshot with a file called {ascii(name)[:60]}")
        files.append(File(name, size_bytes, crc))
    if at != len(data):
        raise Malformed("a header that is not as long as it should be")
    if len({file.name for file in files}) != count:
        raise Malformed("a snapshot with two files of one name")
    if sum(file.size_bytes for file in files) > SIZE_MAX_BYTES:
        raise Malformed("a snapshot of an impossible size")
    return Header(messages[0], tuple(files))


def encode_chunk(place: Place, data: bytes) -> bytes:
    return _CHUNK.pack(CHUNK_KIND, place.file, place.offset, checksum(data)) + data


def decode_chunk(message: bytes, expected: Place, header: Header) -> Chunk | None:
    """The chunk that belongs at `expected`; None when its data is not what was sent. Raises Malformed for any other."""
    if len(message) <= _CHUNK.size or message[0] != CHUNK_KIND or len(message) > _CHUNK.size + CHUNK_MAX_BYTES:
        raise Malformed("a message that is no chunk of a snapshot")
    _, number, offset, crc = _CHUNK.unpack_from(message)
    place = Place(number, offset)
    if place != expected or number == len(header.files):
        raise Malformed(f"a chunk of file {number} from {offset} on, where that of {tuple(expected)} should come")
    data = message[_CHUNK.size :]
    if offset + len(data) > header.files[number].size_bytes:
        raise Malformed(f"a chunk beyond the end of file {number}")
    return Chunk(place, data) if checksum(data) == crc else None


def encode_place(place: Place) -> bytes:
    return _PLACE.pack(PLACE_KIND, place.file, place.offset)


def decode_place(message: bytes, files: tuple[File, ...]) -> Place:
    """Where to begin. Raises Malformed for a place that is not in the snapshot."""
    if len(message) != _PLACE.size or message[0] != PLACE_KIND:
        raise Malformed("a message that is no place in a snapshot")
    _, number, offset = _PLACE.unpack(message)
    if number > len(files) or offset > (files[number].size_bytes if number < len(files) else 0):
        raise Malformed(f"a place that is not in the snapshot: file {number}, offset {offset}")
    return Place(number, offset)
