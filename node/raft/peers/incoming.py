"""The receiving side: the calls that other members make here."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Final, Protocol

from kvorum.errors import Code
from kvorum.log import Level
from kvorum.wire.connection import ConnectionFault
from kvorum.wire.frames import ErrorCode
from kvorum.wire.head import Head
from kvorum.wire.limits import MIB, ServerLimits
from kvorum.wire.routes import CancelReason, StreamHandler, StreamOpen, UnaryHandler
from kvorum.wire.server_calls import ServerStream
from kvorum.wire.server_connection import ServerConnection
from node.raft.core import Message, MessageType
from node.raft.peers.channel import MESSAGE_BYTES
from node.raft.peers.codec import decode
from node.raft.peers.identity import REMOVED, Identity, StreamRefused, urls_of
from node.raft.peers.peer import CLOCK, ENTRIES, FORWARD, MESSAGES, PROBE

STRANGERS: Final = 16
"""Members that this one does not know (yet) and that may have streams: those that were added while it was away. One of
them may lead by now, and tells this one of itself only if it is answered. At it: RESOURCE_EXHAUSTED."""

_PASSED_ON: Final = frozenset((MessageType.PROP, MessageType.READ_INDEX))
"""Messages that a follower passes on to the leader as they came: the sender is whoever asked first."""

COUNTS_MAX: Final = 64
"""Members whose bytes are counted apart. At it: those that this one does not know are forgotten."""

PEER_SERVER_LIMITS: Final = ServerLimits(
    message_bytes=MESSAGE_BYTES,
    unfinished_bytes=MESSAGE_BYTES + 16 * MIB,
    stream_window_bytes=4 * MIB,  # 40 MiB/s at a round trip of 100 ms
    max_concurrent_streams=64,
    streams_hard_limit=64,
    first_request_timeout_s=10.0,  # members connect in order to call
    idle_timeout_s=60.0,
    keepalive_interval_s=10.0,  # members probe each second
    keepalive_timeout_s=5.0,
    resets_burst=200,
    resets_per_s=20,
    connections=1024,
)
"""The wire's limits on the peer listeners."""


class Receivers(Protocol):
    """What the receiving side needs of the transport."""

    identity: Identity
    removed: Collection[int]

    def knows(self, member: int) -> bool:
        """Whether it is a member of the cluster, as far as is known here."""

    def on_stream(self, member: int) -> None:
        """A member has opened a stream."""

    def on_stranger(self, member: int, urls: tuple[str, ...]) -> None:
        """So has one that is not known, and that listens there."""

    def on_gone(self, member: int) -> None:
        """A member has no stream any more."""

    def on_messages(self, sender: int, messages: list[Message]) -> None:
        """See TransportHandlers."""

    def on_forward(self, sender: int, payload: bytes) -> None:
        """See TransportHandlers."""

    def say(self, level: Level, member: int, text: str, **fields: object) -> None:
        """See Surroundings."""


class Counts:
    """What was received from one member."""

    __slots__ = ("bytes", "failures")

    def __init__(self) -> None:
        self.bytes = 0
        self.failures = 0


class Incoming:
    """The streams that other members have open here; a new one takes the place of the one before."""

    def __init__(self, receivers: Receivers) -> None:
        self.receivers = receivers
        self.counts: dict[int, Counts] = {}
        self._streams: dict[tuple[int, str], Receiver] = {}

    @property
    def unary(self) -> dict[str, UnaryHandler]:
        """The unary methods served."""
        return {PROBE: _probed}

    @property
    def streams(self) -> dict[str, StreamOpen]:
        """The streaming methods served."""
        return {
            MESSAGES: lambda stream, head: self._open(stream, head, MessagesReceiver),
            ENTRIES: lambda stream, head: self._open(stream, head, MessagesReceiver),
            FORWARD: lambda stream, head: self._open(stream, head, ForwardReceiver),
        }

    def end_all(self) -> None:
        """This member stops."""
        for receiver in list(self._streams.values()):
            receiver.end(Code.UNAVAILABLE, "the member stops")

    def expel(self, removed: Collection[int]) -> None:
        """End the streams of members that were removed, and tell them."""
        for sender, path in list(self._streams):
            if sender in removed:
                self._streams[sender, path].end(Code.FAILED_PRECONDITION, REMOVED)

    def forget(self, receiver: Receiver) -> None:
        key = (receiver.sender, receiver.stream.head.path)
        if self._streams.get(key) is receiver:
            del self._streams[key]
            if not any(sender == receiver.sender for sender, _ in self._streams):
                self.receivers.on_gone(receiver.sender)

    def _open(self, stream: ServerStream, head: Head, kind: type[Receiver]) -> StreamHandler | None:
        receivers = self.receivers
        try:
            sender = receivers.identity.sender(head.metadata, receivers.removed)
            known = receivers.knows(sender)
            urls = urls_of(head.metadata)
            if not known:
                strangers = {member for member, _ in self._streams if not receivers.knows(member)}
                if sender not in strangers and len(strangers) >= STRANGERS:
                    raise StreamRefused(Code.RESOURCE_EXHAUSTED, "too many unknown members")
        except StreamRefused as refused:
            peer = stream.connection.peer
            receivers.say(Level.WARN, 0, "refused a stream of another member", address=peer, error=refused.text)
            stream.end(refused.code, refused.text)
            return None
        before = self._streams.get((sender, head.path))
        if before is not None:
            before.end(Code.ABORTED, "the member has opened another stream")
        counts = self.counts.get(sender)
        if counts is None:
            if len(self.counts) >= COUNTS_MAX:
                self.counts = {member: counts for member, counts in self.counts.items() if receivers.knows(member)}
            counts = self.counts[sender] = Counts()
        receiver = self._streams[sender, head.path] = kind(self, stream, sender, counts)
        stream.send(b"")
        if known:
            receivers.on_stream(sender)
        else:
            receivers.on_stranger(sender, urls)
        return receiver


class Receiver:
    """One stream of another member's."""

    __slots__ = ("_counts", "_incoming", "sender", "stream")

    def __init__(self, incoming: Incoming, stream: ServerStream, sender: int, counts: Counts) -> None:
        self._incoming = incoming
        self._counts = counts
        self.stream = stream
        self.sender = sender

    def on_message(self, message: bytes) -> None:
        raise NotImplementedError

    def on_half_close(self) -> None:
        self.end(Code.OK, "")

    def on_cancel(self, reason: CancelReason) -> None:
        self._incoming.forget(self)

    def on_writable(self) -> None:
        """Nothing waits for this."""

    def end(self, code: int, text: str) -> None:
        """End the stream from here."""
        self._incoming.forget(self)
        self.stream.end(code, text)

    def _garbage(self, text: str) -> ConnectionFault:
        """The connection's end: whoever sends this is no member that this one understands."""
        self._counts.failures += 1
        receivers = self._incoming.receivers
        peer = self.stream.connection.peer
        receivers.say(Level.WARN, self.sender, "a member sent what is no message", address=peer, error=text)
        return ConnectionFault(ErrorCode.PROTOCOL_ERROR, text)


class MessagesReceiver(Receiver):
    """Batches of the core's messages."""

    __slots__ = ()

    def on_message(self, message: bytes) -> None:
        sender = self.sender
        receivers = self._incoming.receivers
        me = receivers.identity.member_id
        try:
            messages = decode(message)
            for one in messages:
                if (one.sender != sender and one.type not in _PASSED_ON) or one.to != me:
                    raise ValueError(f"a message from {one.sender:x} to {one.to:x} on a stream from {sender:x}")
                if one.type is MessageType.SNAP:
                    raise ValueError("a snapshot among messages")
        except ValueError as error:
            raise self._garbage(str(error)) from None
        self._counts.bytes += len(message)
        receivers.on_messages(sender, messages)


class ForwardReceiver(Receiver):
    """Opaque payloads."""

    __slots__ = ()

    def on_message(self, message: bytes) -> None:
        self._counts.bytes += len(message)
        self._incoming.receivers.on_forward(self.sender, message)


def _probed(connection: ServerConnection, stream_id: int, head: Head, message: bytes) -> None:
    connection.reply(stream_id, CLOCK.pack(time.time_ns()))
