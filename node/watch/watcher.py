"""A registration at the watch process, the front it belongs to, and the group it shares once it is live."""

from __future__ import annotations

from enum import Enum, auto
from typing import Any, Final

from kvorum.watch_replies import varint
from node.events import Change
from node.watch.outbox import Outbox
from node.watch.ranges import Range
from node.watches import NODELETE, NOPUT, PREV

EVENTS_TAG: Final = b"\x5a"  # WatchResponse.events
DELETE_TYPE: Final = b"\x08\x01"  # Event.type
KV_TAG: Final = b"\x12"  # Event.kv
PREV_TAG: Final = b"\x1a"  # Event.prev_kv


class Place(Enum):
    """Where a registration stands."""

    ASKED = auto()
    """Waits for the marker that answers it."""
    FUTURE = auto()
    """What it wants first is after the next revision."""
    LIVE = auto()
    """Has been given everything; a member of its group."""
    RING = auto()
    """Behind, its next revision lies in the ring."""
    HISTORY = auto()
    """Behind, its next revision lies in the store alone."""
    QUEUED = auto()
    """Behind, and came after the slice of history that is under way was asked for."""
    STALLED = auto()
    """Behind, and its front gives no credit."""
    GONE = auto()


class Front:
    """One front: its registrations by handle, its groups, and what it is to be sent."""

    __slots__ = ("groups", "number", "outbox", "stalled", "watchers")

    def __init__(self, number: int, outbox: Outbox) -> None:
        self.number = number
        self.outbox = outbox
        self.watchers: dict[int, Watcher] = {}
        self.groups: dict[tuple[Range, int], Group] = {}
        self.stalled: dict[Watcher, None] = {}


class Watcher:
    """One registration. `position` is the next revision it has not been given; 0 until its answer, when it has none."""

    __slots__ = ("flags", "front", "handle", "home", "key_range", "place", "position")

    def __init__(self, front: Front, handle: int, key_range: Range, position: int, flags: int) -> None:
        self.front = front
        self.handle = handle
        self.key_range = key_range
        self.position = position
        self.flags = flags
        self.place = Place.ASKED
        self.home: Any = None
        """What holds it in its place: a group, or a bucket of a lane."""

    @property
    def wants_prev(self) -> bool:
        return self.flags & PREV != 0


class Group:
    """The live registrations of one front for one range and the same flags. `served` is its last event's revision."""

    __slots__ = ("flags", "front", "key_range", "members", "number", "served", "skips", "wants_prev")

    def __init__(self, number: int, front: Front, key_range: Range, flags: int) -> None:
        self.number = number
        self.front = front
        self.key_range = key_range
        self.flags = flags
        self.skips = (flags & NOPUT != 0, flags & NODELETE != 0)
        """Whether it skips an event, by its `is_delete`."""
        self.wants_prev = flags & PREV != 0
        self.served = 0
        self.members: dict[Watcher, None] = {}


def event_field(change: Change, with_prev: bool) -> bytes:
    """One element of the field `events` of a WatchResponse, with its tag and length."""
    is_delete, _, kv, prev = change
    kv_size = varint(len(kv))
    size = 1 + len(kv_size) + len(kv) + (2 if is_delete else 0)
    if prev is None or not with_prev:
        if is_delete:
            return b"".join((EVENTS_TAG, varint(size), DELETE_TYPE, KV_TAG, kv_size, kv))
        return b"".join((EVENTS_TAG, varint(size), KV_TAG, kv_size, kv))
    prev_size = varint(len(prev))
    size += 1 + len(prev_size) + len(prev)
    kind = DELETE_TYPE if is_delete else b""
    return b"".join((EVENTS_TAG, varint(size), kind, KV_TAG, kv_size, kv, PREV_TAG, prev_size, prev))
