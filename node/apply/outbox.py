"""Replies on their way to those who asked: one frame per reader and turn, as far as it has granted credit.

What a front has not asked for cannot come here, and it bounds what it asks for; so without credit replies wait, and
new reads of that front wait unexecuted (`open`), since a read's reply may be large.
"""

from __future__ import annotations

from collections.abc import Callable

from node.frames import Kind, Process
from node.link import Outlet
from node.requests import MORE, REPLY

Reader = int | bytes
"""Who asked: a front of this member, or by its FORWARD header one of another member, which is reached through raft."""


class Outbox:
    """Packed replies by reader. `outlet(process, kind)` and `send(process, kind, payload)` are the links'."""

    def __init__(self, outlet: Callable[[int, int], Outlet], send: Callable[[int, int, bytes], None]) -> None:
        self._outlet = outlet
        self._send = send
        self._waiting: dict[int, list[bytes]] = {}
        self._forwarded: dict[bytes, list[bytes]] = {}

    def open(self, reader: Reader) -> bool:
        """Whether what is read for this reader now can be sent: with any credit left, all that waits is one frame.

        Other members' fronts have as much credit as raft takes from them.
        """
        return isinstance(reader, bytes) or self._outlet(reader, Kind.REPLIES).open()

    def add(self, reader: Reader, replies: list[bytes]) -> None:
        """Packed replies (`REPLY`) to requests of this reader, in order."""
        if not replies:
            return
        if isinstance(reader, bytes):
            self._forwarded.setdefault(reader, []).extend(replies)
        else:
            self._waiting.setdefault(reader, []).extend(replies)

    def reply(self, reader: Reader, sequence: int, body: bytes) -> None:
        """The last answer to a request that succeeded."""
        self.add(reader, [REPLY.pack(sequence, len(body), 0) + body])

    def part(self, reader: Reader, sequence: int, body: bytes) -> None:
        """One message of several; others follow."""
        self.add(reader, [REPLY.pack(sequence, len(body), MORE) + body])

    def fail(self, reader: Reader, sequence: int, code: int, text: str) -> None:
        """A request failed with a gRPC status, or ELSEWHERE."""
        body = text.encode()
        self.add(reader, [REPLY.pack(sequence, len(body), code) + body])

    def flush(self) -> None:
        """Sends what has credit."""
        for front, replies in self._waiting.items():
            if replies and self._outlet(front, Kind.REPLIES).open():
                self._send(front, Kind.REPLIES, b"".join(replies))
                replies.clear()
        if self._forwarded:
            for header, replies in self._forwarded.items():
                self._send(Process.RAFT, Kind.FORWARD_REPLIES, header + b"".join(replies))
            self._forwarded.clear()
