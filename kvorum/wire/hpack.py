"""HPACK (RFC 7541): header blocks to fields and back.

The decoder works in two halves, so that a header block whose fields were seen before costs no strings. `decode` turns a
block into a key, a tuple with one item per field, equal for equal fields through the life of the connection, even while
each block shifts the table's indexes and entries leave it and come again. `fields` resolves a key.
"""

from collections.abc import Iterable
from typing import Final

from kvorum.wire import huffman
from kvorum.wire.hpack_tables import STATIC_TABLE

Field = tuple[bytes, bytes]
"""Name (lower case) and value."""


class Entry:
    """A field as the decoder keeps it: one object for all equal fields, so that keys compare by identity (a tuple of
    ten hashes in 0.15 us, as tuples of bytes in 0.6 us)."""

    __slots__ = ("name", "size", "value")

    def __init__(self, name: bytes, value: bytes) -> None:
        self.name = name
        self.value = value
        self.size = len(name) + len(value) + ENTRY_OVERHEAD
        """Octets it counts (section 4.1)."""


Key = tuple[Entry, ...]

DEFAULT_TABLE_SIZE: Final = 4096
"""SETTINGS_HEADER_TABLE_SIZE as it stands before any SETTINGS frame (RFC 9113, section 6.5.2)."""

ENTRY_OVERHEAD: Final = 32
"""Octets an entry counts beyond its strings (section 4.1)."""

_STATIC_COUNT: Final = len(STATIC_TABLE)
_STATIC_BY_FIELD: Final = {field: index for index, field in reversed(list(enumerate(STATIC_TABLE, 1)))}
_STATIC_BY_NAME: Final = {field[0]: index for index, field in reversed(list(enumerate(STATIC_TABLE, 1)))}
_MAX_INTEGER: Final = 2**31 - 1
_STATIC_ENTRIES: Final = {index: Entry(*field) for index, field in enumerate(STATIC_TABLE, 1)}
_INTERNED_ENTRIES: Final = 256
_INTERNED_BYTES: Final = 2048


class HpackError(ValueError):
    """The block is malformed: a connection error COMPRESSION_ERROR (section 2.4; RFC 9113, section 4.3)."""


class HeaderListTooLarge(Exception):
    """The fields take more than the limit; the decoder's state is intact, so only the stream is lost."""


def _integer(block: bytes, pos: int, value: int) -> tuple[int, int]:
    """The rest of an integer whose prefix was all ones (section 5.1): (value, position after it)."""
    shift = 0
    while True:
        octet = block[pos]
        pos += 1
        value += (octet & 0x7F) << shift
        if value > _MAX_INTEGER or shift > 28:
            raise HpackError("integer too large")
        if octet < 0x80:
            return value, pos
        shift += 7


def _string(block: bytes, pos: int) -> tuple[bytes, int]:
    """A string literal (section 5.2): (octets, position after it)."""
    octet = block[pos]
    pos += 1
    size = octet & 0x7F
    if size == 0x7F:
        size, pos = _integer(block, pos, size)
    end = pos + size
    if end > len(block):
        raise HpackError("string runs past the block")
    text = block[pos:end]
    if octet >= 0x80:
        try:
            text = huffman.decode(text)
        except huffman.HuffmanError as error:
            raise HpackError(str(error)) from error
    return text, end


class Decoder:
    """One direction's decoding state.

    `table_size_limit` is the SETTINGS_HEADER_TABLE_SIZE we told the peer; `list_size_limit` bounds the fields of one
    block, each counted with 32 octets of overhead as SETTINGS_MAX_HEADER_LIST_SIZE does; `varying` is the name of a
    field that differs in most requests: its literal value is given apart and is not part of the key.
    """

    __slots__ = (
        "_entries",
        "_interned",
        "_list_limit",
        "_newest",
        "_oldest",
        "_size",
        "_size_limit",
        "_table_limit",
        "_varying",
        "changed",
        "varying_value",
    )

    def __init__(
        self, list_size_limit: int, table_size_limit: int = DEFAULT_TABLE_SIZE, varying: bytes | None = None
    ) -> None:
        self._list_limit = list_size_limit
        self._table_limit = table_size_limit
        self._size_limit = table_size_limit
        self._varying = varying
        self._entries: dict[int, Entry] = dict(_STATIC_ENTRIES)
        """By number: the static table's indexes, then each entry that was ever added."""
        self._interned: dict[Field, Entry] = {}
        self._size = 0
        self._newest = _STATIC_COUNT
        self._oldest = _STATIC_COUNT + 1
        self.changed = False
        """Whether the last block changed the table, so that other blocks no longer mean what they meant."""
        self.varying_value: bytes | None = None
        """Value of the varying field, when the last block had it as a literal."""

    @property
    def table_size(self) -> int:
        """Octets the dynamic table counts now (section 4.1)."""
        return self._size

    def decode(self, block: bytes) -> Key:
        """Key of a whole header block; raises HpackError, after which the connection is lost."""
        self.changed = False
        self.varying_value = None
        entries = self._entries
        newest = self._newest
        oldest = self._oldest
        key: list[Entry] = []
        append = key.append
        pos = 0
        size = len(block)
        try:
            while pos < size:
                octet = block[pos]
                pos += 1
                if octet >= 0x80:
                    index = octet & 0x7F
                    if index > _STATIC_COUNT:
                        if index == 0x7F:
                            index, pos = _integer(block, pos, index)
                        index = newest + 62 - index
                        if index < oldest:
                            raise HpackError("index past the table")
                    elif not index:
                        raise HpackError("index 0")
                    append(entries[index])
                    continue
                if octet >= 0x40:
                    index = octet & 0x3F
                    if index == 0x3F:
                        index, pos = _integer(block, pos, index)
                elif octet >= 0x20:
                    if key or self.varying_value is not None:
                        raise HpackError("table size update inside a block")
                    pos = self._resize(block, pos, octet & 0x1F)
                    oldest = self._oldest
                    continue
                else:
                    index = octet & 0x0F
                    if index == 0x0F:
                        index, pos = _integer(block, pos, index)
                if index:
                    if index > _STATIC_COUNT:
                        index = newest + 62 - index
                        if index < oldest:
                            raise HpackError("index past the table")
                    name = entries[index].name
                else:
                    name, pos = _string(block, pos)
                value, pos = _string(block, pos)
                if name == self._varying and self.varying_value is None:
                    # It will not come again: not worth interning, and no part of the key.
                    self.varying_value = value
                    entry = Entry(name, value)
                else:
                    entry = self._intern(name, value)
                    append(entry)
                if octet >= 0x40:
                    self._insert(entry)
                    newest = self._newest
                    oldest = self._oldest
        except IndexError:
            raise HpackError("block ends inside a field") from None
        return tuple(key)

    def fields(self, key: Key) -> list[Field]:
        """The fields of a key; raises HeaderListTooLarge."""
        left = self._list_limit
        for entry in key:
            left -= entry.size
            if left < 0:
                raise HeaderListTooLarge
        return [(entry.name, entry.value) for entry in key]

    def _intern(self, name: bytes, value: bytes) -> Entry:
        """The one object of this field; long ones, and those of a peer that has too many, get a new one each time."""
        interned = self._interned
        entry = interned.get((name, value))
        if entry is None:
            entry = Entry(name, value)
            if entry.size <= _INTERNED_BYTES:
                if len(interned) >= _INTERNED_ENTRIES:
                    interned.clear()
                interned[(name, value)] = entry
        return entry

    def _resize(self, block: bytes, pos: int, size: int) -> int:
        """A dynamic table size update (section 6.3): the position after it."""
        if size == 0x1F:
            size, pos = _integer(block, pos, size)
        if size > self._table_limit:
            raise HpackError("table size update above the limit")
        self._size_limit = size
        self.changed = True
        self._evict(size)
        return pos

    def _insert(self, entry: Entry) -> None:
        """Add an entry; one that is larger than the table empties it and is not added (section 4.4)."""
        self.changed = True
        room = self._size_limit - entry.size
        if self._size > room:
            self._evict(room)
        if room >= 0:
            self._newest += 1
            self._entries[self._newest] = entry
            self._size += entry.size

    def _evict(self, size: int) -> None:
        """Drop the oldest entries until the table takes at most `size` octets."""
        while self._size > size and self._oldest <= self._newest:
            self._size -= self._entries.pop(self._oldest).size
            self._oldest += 1


def encode_integer(value: int, prefix_bits: int, flags: int) -> bytes:
    """An integer after the `flags` bits of its first octet (section 5.1)."""
    limit = (1 << prefix_bits) - 1
    if value < limit:
        return bytes((flags | value,))
    octets = bytearray((flags | limit,))
    value -= limit
    while value >= 0x80:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)


def encode_string(text: bytes) -> bytes:
    """A string literal, Huffman-coded when that is shorter."""
    coded_size = huffman.encoded_size(text)
    if coded_size < len(text):
        return encode_integer(coded_size, 7, 0x80) + huffman.encode(text)
    return encode_integer(len(text), 7, 0) + text


def encode_literal(name: bytes, value: bytes) -> bytes:
    """A field that touches no dynamic table: literal without indexing, the name from the static table if there."""
    index = _STATIC_BY_NAME.get(name)
    if index is not None:
        return encode_integer(index, 4, 0) + encode_string(value)
    return b"\x00" + encode_string(name) + encode_string(value)


def encode_stateless(fields: Iterable[Field]) -> bytes:
    """A block that neither reads nor changes the dynamic table: it may be encoded once and sent on any connection."""
    pieces = []
    for field in fields:
        index = _STATIC_BY_FIELD.get(field)
        pieces.append(encode_integer(index, 7, 0x80) if index is not None else encode_literal(*field))
    return b"".join(pieces)


class Encoder:
    """One direction's encoding state: fields are added to the dynamic table, so that a repeated one costs an octet."""

    __slots__ = ("_announce", "_entries", "_indexes", "_names", "_newest", "_oldest", "_size", "_size_limit", "version")

    def __init__(self) -> None:
        self._entries: dict[int, Field] = {}
        self._indexes: dict[Field, int] = {}
        self._names: dict[bytes, int] = {}
        self._size = 0
        self._size_limit = DEFAULT_TABLE_SIZE
        self._newest = _STATIC_COUNT
        self._oldest = _STATIC_COUNT + 1
        self._announce: list[int] = []
        self.version = 0
        """Changes whenever the table does: a block encoded under the same version may be sent again as it is."""

    def set_table_size(self, limit: int) -> None:
        """The peer's SETTINGS_HEADER_TABLE_SIZE; a larger table than the default is not used."""
        size = min(limit, DEFAULT_TABLE_SIZE)
        if size == self._size_limit:
            return
        # Section 4.2: the smallest size since the last block and then the final one are announced.
        self._announce = [min([*self._announce, size]), size] if self._announce else [size]
        self._size_limit = size
        self.version += 1
        self._evict(size)

    def encode(self, fields: Iterable[Field]) -> bytes:
        """One header block."""
        pieces = []
        if self._announce:
            pieces.extend([encode_integer(size, 5, 0x20) for size in self._announce])
            self._announce = []
            self.version += 1
        pieces.extend([self._field(field) for field in fields])
        return b"".join(pieces)

    def _field(self, field: Field) -> bytes:
        index = _STATIC_BY_FIELD.get(field)
        if index is not None:
            return encode_integer(index, 7, 0x80)
        number = self._indexes.get(field)
        if number is not None:
            return encode_integer(self._newest + 62 - number, 7, 0x80)
        name, value = field
        index = _STATIC_BY_NAME.get(name)
        if index is None:
            number = self._names.get(name)
            index = self._newest + 62 - number if number is not None else 0
        size = len(name) + len(value) + ENTRY_OVERHEAD
        if size > self._size_limit // 2:
            # One entry of more than half the table would push out what every block repeats.
            return encode_integer(index, 4, 0) + (b"" if index else encode_string(name)) + encode_string(value)
        literal = encode_integer(index, 6, 0x40) + (b"" if index else encode_string(name)) + encode_string(value)
        self._evict(self._size_limit - size)
        self._newest += 1
        self._entries[self._newest] = field
        self._indexes[field] = self._names[name] = self._newest
        self._size += size
        self.version += 1
        return literal

    def _evict(self, size: int) -> None:
        while self._size > size:
            number = self._oldest
            field = self._entries.pop(number)
            self._oldest += 1
            self._size -= len(field[0]) + len(field[1]) + ENTRY_OVERHEAD
            del self._indexes[field]
            if self._names[field[0]] == number:
                del self._names[field[0]]
