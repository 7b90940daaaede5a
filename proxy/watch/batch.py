"""What comes on an upstream Watch stream, and the events in it as they are given to clients."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from kvorum.pb.rpc_pb2 import ResponseHeader, WatchResponse
from kvorum.watch_replies import Reply, split_events, varint
from proxy.namespaces.namespace import Namespace
from proxy.namespaces.watch import strip_watch

FRAGMENT_BYTES: Final = 1_572_864 + (512 << 10)
"""A reply of so many bytes is cut for those who ask for fragments: the default request limit, and what the reference
adds for gRPC (WE14). A member's own limit is not known here."""

MAX_ID_FIELD_BYTES: Final = 11
_BATCH_BYTES: Final = 400  # of a batch's objects, without its events


class ReplyKind(Enum):
    """What a reply from upstream is."""

    CREATED = auto()
    REFUSED = auto()
    """Created and canceled in one: never a watch."""
    CANCELED = auto()
    PROGRESS = auto()
    """Nothing but a revision, of one watch or (id -1) of all."""
    EVENTS = auto()


def kind_of(reply: WatchResponse) -> ReplyKind:
    if reply.created:
        return ReplyKind.REFUSED if reply.canceled else ReplyKind.CREATED
    if reply.canceled:
        return ReplyKind.CANCELED
    return ReplyKind.EVENTS if reply.events else ReplyKind.PROGRESS


def header_field(header: ResponseHeader) -> bytes:
    """Field 1 of a reply."""
    encoded = header.SerializeToString()
    return b"\x0a" + varint(len(encoded)) + encoded


class Batch:
    """Events of whole revisions, from `first` to `last`, framed once for everybody."""

    __slots__ = ("first", "last", "reply")

    def __init__(self, first: int, last: int, reply: Reply) -> None:
        self.first = first
        self.last = last
        self.reply = reply

    @property
    def size_bytes(self) -> int:
        """What keeping it takes."""
        return self.reply.size_bytes + _BATCH_BYTES

    def since(self, revision: int) -> Batch | None:
        """Without what is older than `revision`; None when nothing is left. Only for a batch that is not in fragments
        or joins them again."""
        if self.first >= revision:
            return self
        if self.last < revision:
            return None
        events = WatchResponse.FromString(b"".join(self.reply.tails)).events
        left = [event for event in events if event.kv.mod_revision >= revision]
        tail = WatchResponse(events=left).SerializeToString()
        fragment = self.reply.pieces > 1
        return Batch(left[0].kv.mod_revision, self.last, _reply(self.reply.header, tail, len(left), fragment))


def batch_of(reply: WatchResponse, namespace: Namespace | None, *, fragment: bool) -> Batch:
    """The events of a reply from upstream, which is used up."""
    events = reply.events
    first, last, count = events[0].kv.mod_revision, events[-1].kv.mod_revision, len(events)
    header = header_field(reply.header)
    if namespace is not None:
        strip_watch(namespace, reply)
    # what is left when all else is cleared is the field `events`: 1.5 us, once for everybody
    reply.ClearField("header")
    reply.watch_id = 0
    reply.fragment = False
    return Batch(first, last, _reply(header, reply.SerializeToString(), count, fragment))


def _reply(header: bytes, tail: bytes, events: int, fragment: bool) -> Reply:
    overhead_bytes = len(header) + MAX_ID_FIELD_BYTES
    if fragment and events > 1 and overhead_bytes + len(tail) >= FRAGMENT_BYTES:
        return Reply(header, split_events(tail, overhead_bytes, FRAGMENT_BYTES), events)
    return Reply(header, (tail,), events)
