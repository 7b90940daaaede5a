"""What watch has for one front: gathered into frames, sent while the front gives credit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

FRAME_BYTES: Final = 1 << 20
"""A frame is sent when it has this size, so that the front can begin."""


class Outbox:
    """Items for a front in order. `is_open()` and `send(payload)` are the link's.

    Answers are queued without credit too, since a front bounds what it asks; events only while `has_room`.
    """

    __slots__ = ("_is_open", "_items", "_send", "size_bytes")

    def __init__(self, is_open: Callable[[], bool], send: Callable[[bytes], None]) -> None:
        self._is_open = is_open
        self._send = send
        self._items: list[bytes] = []
        self.size_bytes = 0

    def push(self, item: bytes) -> None:
        """Adds an item."""
        self._items.append(item)
        self.size_bytes += len(item)

    def has_room(self) -> bool:
        """Whether more events may be pushed; sends what is there when it is a frame's worth."""
        if not self._is_open():
            return False
        if self.size_bytes >= FRAME_BYTES:
            self.flush()
            return self._is_open()
        return True

    def flush(self) -> None:
        """Sends what is there, as far as there is credit."""
        if self._items and self._is_open():
            payload = b"".join(self._items)
            self._items.clear()
            self.size_bytes = 0
            self._send(payload)
