"""What a key and a range are on either side of a namespace."""

from typing import Final

from kvorum.ranges import FROM_KEY, end_of_prefix


class ForeignKeyError(AssertionError):
    """A reply holds a key that the request cannot have asked for. It is never passed on."""


class Namespace:
    """The keys that begin with `prefix`, which must not be empty; outside they have their whole names, inside what
    follows the prefix.

    A name inside is never empty, as no key is: the key that equals the prefix itself is out of the namespace's sight.
    """

    __slots__ = ("_size", "end", "prefix")

    def __init__(self, prefix: bytes) -> None:
        assert prefix
        self.prefix: Final = prefix
        self.end: Final = end_of_prefix(prefix)
        """Range end of the whole namespace: FROM_KEY when nothing sorts behind it."""
        self._size: Final = len(prefix)

    def __repr__(self) -> str:
        return f"Namespace({self.prefix!r})"

    # Inwards to outwards.

    def key(self, key: bytes) -> bytes:
        """A key under its whole name. An empty one stays empty, so that the server refuses it as it always does."""
        return self.prefix + key if key else key

    def interval(self, key: bytes, range_end: bytes) -> tuple[bytes, bytes]:
        """A range under its whole name: open-ended ones end with the namespace, inverted ones stay inverted.

        With an empty key nothing is left of the range: the server refuses it for the key, and should one not, it would
        still find nothing.
        """
        if not key:
            return b"", b""
        if not range_end:
            return self.prefix + key, b""
        return self.prefix + key, self.end if range_end == FROM_KEY else self.prefix + range_end

    def watch_interval(self, key: bytes, range_end: bytes) -> tuple[bytes, bytes]:
        """As `interval`, by the rule of Watch that an empty key is one zero byte (W8)."""
        return self.interval(key or b"\0", range_end)

    # Outwards to inwards.

    def strip(self, key: bytes) -> bytes:
        """The name inside of a key in a reply; raises ForeignKeyError."""
        if not key.startswith(self.prefix):
            raise ForeignKeyError(f"a reply within the namespace {self.prefix!r} has the key {key!r}")
        return key[self._size :]

    def strip_interval(self, key: bytes, range_end: bytes) -> tuple[bytes, bytes] | None:
        """What a range over whole names covers of the namespace, in names inside; None for nothing.

        For the ranges of role permissions, which may reach beyond the namespace on either side.
        """
        prefix, end, size = self.prefix, self.end, self._size
        if not range_end:
            return (key[size:], b"") if key.startswith(prefix) and len(key) > size else None
        open_ended = range_end == FROM_KEY
        if not open_ended and range_end <= key:
            return None
        if end != FROM_KEY and key >= end:
            return None
        start_inside = key[size:] if key > prefix else b""
        if open_ended or (end != FROM_KEY and range_end >= end):
            # Everything there is, as the API writes it: of role root without a first key, else from one zero byte on.
            return (start_inside if start_inside else key and FROM_KEY), FROM_KEY
        if range_end <= prefix or range_end == prefix + b"\0":  # at most the key that no name inside can be
            return None
        return start_inside or b"\0", range_end[size:]
