"""Replies on their way to the fronts: one frame per front and turn, as far as the front has granted credit.

What a front has not asked for cannot come here, and it bounds what it asks for; so without credit replies wait, and
new reads of that front wait unexecuted (`open`), since a read's reply may be large.
"""

from __future__ import annotations

from collections.abc import Callable

from node.frames import Kind
from node.link import Outlet
from node.requests import MORE, REPLY


class Outbox:
    """Packed replies by front. `outlet(process, kind)` and `send(process, kind, payload)` are the links'."""

    def __init__(self, outlet: Callable[[int, int], Outlet], send: Callable[[int, int, bytes], None]) -> None:
        self._outlet = outlet
        self._send = send
        self._waiting: dict[int, list[bytes]] = {}

    def open(self, front: int) -> bool:
        """Whether what is read for this front now can be sent: with any credit left, all that waits is one frame."""
        return self._outlet(front, Kind.REPLIES).open()

    def add(self, front: int, replies: list[bytes]) -> None:
        """Packed replies (`REPLY`) to requests of this front, in order."""
        if replies:
            self._waiting.setdefault(front, []).extend(replies)

    def reply(self, front: int, sequence: int, body: bytes) -> None:
        """The last answer to a request that succeeded."""
        self.add(front, [REPLY.pack(sequence, len(body), 0) + body])

    def part(self, front: int, sequence: int, body: bytes) -> None:
        """One message of several; others follow."""
        self.add(front, [REPLY.pack(sequence, len(body), MORE) + body])

    def fail(self, front: int, sequence: int, code: int, text: str) -> None:
        """A request failed with a gRPC status."""
        body = text.encode()
        self.add(front, [REPLY.pack(sequence, len(body), code) + body])

    def flush(self) -> None:
        """Sends what has credit."""
        for front, replies in self._waiting.items():
            if replies and self._outlet(front, Kind.REPLIES).open():
                self._send(front, Kind.REPLIES, b"".join(replies))
                replies.clear()
