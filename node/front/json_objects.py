"""Takes the JSON objects out of a stream of bytes: a streaming call's body holds any number, split anywhere."""

from __future__ import annotations

import re
from typing import Final

from node.front.json_messages import JsonError

_BLANKS: Final = re.compile(rb"[ \t\r\n]*")
_STRUCTURE: Final = re.compile(rb'["{}\[\]]')
_IN_STRING: Final = re.compile(rb'["\\]')


class JsonObjects:
    """`feed` bytes, take `next` objects. Holds at most one unfinished object of `limit_bytes` beside the last chunk.

    It finds where an object ends; whether it is valid JSON is for the parser to say.
    """

    __slots__ = ("_at", "_buffer", "_depth", "_in_string", "limit_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._buffer = bytearray()
        self._at = 0  # what lies before is scanned
        self._depth = 0
        self._in_string = False

    def feed(self, chunk: bytes) -> None:
        """More of the body."""
        self._buffer += chunk

    @property
    def buffered_bytes(self) -> int:
        """What is fed and not taken."""
        return len(self._buffer)

    @property
    def pending(self) -> bool:
        """Whether anything but blanks is left, such as an object that never ended."""
        return self._blanks() < len(self._buffer)

    def next(self) -> bytes | None:
        """The text of the next object, or None until more is fed.

        Raises JsonError when something other than an object begins, OverflowError at the limit.
        """
        buffer = self._buffer
        if not self._depth:
            del buffer[: self._blanks()]
            self._at = 0
            if not buffer:
                return None
            if buffer[0] != 0x7B:
                raise JsonError("expected a JSON object")
        at = self._at
        depth = self._depth
        in_string = self._in_string
        while True:
            found = (_IN_STRING if in_string else _STRUCTURE).search(buffer, at)
            if found is None:
                at = len(buffer)
                break
            octet = buffer[found.start()]
            at = found.end()
            if octet == 0x22:
                in_string = not in_string
            elif octet == 0x5C:
                if at == len(buffer):  # the escaped octet is yet to come
                    at -= 1
                    break
                at += 1
            elif octet in b"{[":
                depth += 1
            else:
                depth -= 1
                if not depth:
                    return self._take(at)
        self._at = at
        self._depth = depth
        self._in_string = in_string
        if len(buffer) > self.limit_bytes:
            raise OverflowError(len(buffer))
        return None

    def _blanks(self) -> int:
        blanks = _BLANKS.match(self._buffer)
        assert blanks is not None, "no blanks match as well"
        return blanks.end()

    def _take(self, end: int) -> bytes:
        text = bytes(self._buffer[:end])
        del self._buffer[:end]
        self._at = self._depth = 0
        self._in_string = False
        if len(text) > self.limit_bytes:
            raise OverflowError(len(text))
        return text
