"""The rules of the streams between a member's processes, without their sockets.

Every stream (one sender, one receiver, one kind) has two ends. The `Outlet` numbers what it sends and may send only
while it has credit; the `Inlet` asserts that nothing was lost, repeated or reordered, and grants credit as it consumes.
So no process ever blocks in a send, and what lies between two processes is bounded by the window plus one frame: an
outlet with any credit left may send one frame of any size, otherwise a frame larger than the window could never pass.

Streams of requests need no credit of their own: their sender counts its unanswered requests (`UNBOUNDED`).
"""

from typing import Final, Protocol

UNBOUNDED: Final = 1 << 62

MIB: Final = 1 << 20

WINDOW_BYTES: Final = 32 * MIB
"""The credit of a bulk stream: a good second of full load, and small beside a member's memory budget."""


class Outlet:
    """The sending end: `position` is what was sent, `granted` up to where the receiver allows it, in bytes."""

    __slots__ = ("granted", "position")

    def __init__(self, granted: int = 0) -> None:
        self.position = 0
        self.granted = granted

    def open(self) -> bool:
        """Whether a frame may be sent now."""
        return self.position < self.granted

    def advance(self, size_bytes: int) -> int:
        """Takes note of a frame that is sent; returns the position at which it starts."""
        start = self.position
        assert start < self.granted, "a frame was sent without credit"
        self.position = start + size_bytes
        return start

    def grant(self, total_bytes: int) -> None:
        """The receiver allows everything before position `total_bytes`. Credit is never taken back."""
        assert total_bytes >= self.granted, "credit was taken back"
        self.granted = total_bytes


class Inlet:
    """The receiving end: asserts continuity, and says when to grant the sender more."""

    __slots__ = ("consumed", "granted", "position", "window_bytes")

    def __init__(self, window_bytes: int = WINDOW_BYTES) -> None:
        self.window_bytes = window_bytes
        self.position = 0
        self.consumed = 0
        self.granted = 0

    def accept(self, start: int, end: int) -> None:
        """A frame arrived that spans (start, end]."""
        assert start == self.position, f"a stream between processes jumped from {self.position} to {start}"
        assert end >= start
        self.position = end

    def consume(self, size_bytes: int) -> None:
        """So many of the accepted bytes no longer take memory here."""
        self.consumed += size_bytes
        assert self.consumed <= self.position, "more was consumed than arrived"

    def grant(self) -> int | None:
        """The total to grant now, or None while at least half a window is still open (so grants stay few)."""
        total = self.consumed + self.window_bytes
        if total - self.granted < self.window_bytes // 2 + 1:
            return None
        self.granted = total
        return total


class Streams(Protocol):
    """All links of one process, as what works on top of them sees them (`link_zmq.Links`)."""

    def outlet(self, to: int, kind: int) -> Outlet:
        """The sending end of the stream of `kind` to `to`."""

    def send(self, to: int, kind: int, payload: bytes) -> None:
        """Sends one frame on a data stream; the caller has seen that its outlet is open."""

    def send_control(self, to: int, kind: int, payload: bytes) -> None:
        """Sends one control frame."""

    def open(self, sender: int, kind: int) -> None:
        """Grants the first window of a stream that this process receives."""

    def consume(self, sender: int, kind: int, size_bytes: int) -> None:
        """So many payload bytes of that stream are done with."""
