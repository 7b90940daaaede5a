"""What raft needs of whatever carries its messages between members: sockets (`peers`), or a simulated network."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from node.raft.core import Message
from node.stats import Figures


class TransportHandlers(Protocol):
    """Whom a transport tells of what came, and of what did not leave. Never called inside one of its own methods."""

    def on_messages(self, sender: int, messages: Sequence[Message]) -> None:
        """Messages of one member, in the order in which it sent them; all are from `sender` and to this member, but
        for PROP and READ_INDEX, which a follower passes on in the name of whoever asked first."""

    def on_forward(self, sender: int, payload: bytes) -> None:
        """What another member gave to `forward`."""

    def on_unreachable(self, member: int) -> None:
        """Messages to `member` were dropped or may be lost: there is no connection, or it does not take what comes."""

    def on_snapshot_sent(self, member: int, ok: bool) -> None:
        """What became of a `send_snapshot`."""

    def on_snapshot_received(self, message: Message) -> None:
        """A snapshot is here, whole and on disk; `message` is the SNAP that came with it."""

    def on_removed(self) -> None:
        """Another member says that this one was removed from the cluster, for good."""


class Transport(Protocol):
    """Carries messages to the other members: in order per member and kind, without repeats, and not for sure."""

    def set_members(self, urls: Mapping[int, Sequence[str]], removed: Collection[int]) -> None:
        """All other members, by id, with their peer URLs; and the ids that were removed and may not come back."""

    def send(self, messages: Sequence[Message]) -> None:
        """Messages to any members, in order, in the transport's own time; never SNAP. Once per turn of the loop."""

    def forward(self, member: int, payload: bytes) -> None:
        """Opaque bytes for the raft process of `member`; dropped when it cannot be reached or takes nothing."""

    def send_snapshot(self, message: Message, path: str) -> None:
        """A SNAP message and the checkpoint it speaks of, which lies at `path`. Ends in `on_snapshot_sent`."""

    def connected_since(self, member: int) -> float | None:
        """The time (monotonic seconds) since when messages to `member` have left without a break; None: they do not."""

    def figures(self) -> Figures:
        """What is published of the connections to the other members; see `node.stats`."""
