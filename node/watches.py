"""What fronts and watch tell each other: the streams WATCHES (front to watch) and DELIVERIES (watch to front).

A front registers under a *handle*, a number that it draws once and never again; whatever still comes for a handle that
it has canceled is dropped. Registrations of one front that are live and want the same events form a *group*, so that an
event names one group, however many there are.

Creates and asks of one front are answered in their order (`ANSWERED`), each with the store's revision at a moment after
it was made. The items of DELIVERIES are in the order of the revisions they speak of:

    ANSWERED   the next so many creates and asks of this front are answered, at a revision
    LIVE       a registration has joined a group, and has been given all it wants below a revision
    EVENTS     events of one revision, for live groups
    CAUGHT_UP  past events for registrations that are behind, and the revision up to which they are now served
    BEHIND     no registration is live any more; the groups are void, and all go on from where they stand
    COMPACTED  a registration has ended: what it wanted next is compacted

ANSWERED, LIVE and CAUGHT_UP name the revision up to which every live group has been given all it wants; at EVENTS that
is the one before.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

NOPUT: Final = 1
NODELETE: Final = 2
PREV: Final = 4
FRAGMENT: Final = 8
"""Flags of a registration. `FRAGMENT` matters to the front alone, and keeps groups apart."""


class Ask(IntEnum):
    """Items of WATCHES."""

    CREATE = 1
    CANCEL = 2
    ASK = 3


class Delivery(IntEnum):
    """Items of DELIVERIES."""

    ANSWERED = 1
    LIVE = 2
    EVENTS = 3
    CAUGHT_UP = 4
    BEHIND = 5
    COMPACTED = 6


class Create(NamedTuple):
    """A registration; `start` 0 means: what comes after the answer. (key, range_end) as in requests."""

    handle: int
    key: bytes
    range_end: bytes
    start: int
    flags: int


_CREATE: Final = struct.Struct("<BBxxQqII")  # item, flags, handle, start, lengths of key and range_end
_CANCEL: Final = struct.Struct("<BxxxQ")
ASK: Final = struct.pack("<Bxxx", Ask.ASK)


def encode_create(create: Create) -> bytes:
    """A CREATE item."""
    handle, key, range_end, start, flags = create
    return _CREATE.pack(Ask.CREATE, flags, handle, start, len(key), len(range_end)) + key + range_end


def encode_cancel(handle: int) -> bytes:
    """A CANCEL item: nothing more is wanted under this handle. It is not answered."""
    return _CANCEL.pack(Ask.CANCEL, handle)


def decode_watches(data: bytes, at: int = 0) -> Iterator[Create | int | None]:
    """The items of a frame, from offset `at` on: a create, the handle of a cancel, or None for an ask."""
    total = len(data)
    while at < total:
        item = data[at]
        if item == Ask.CREATE:
            _, flags, handle, start, key_bytes, end_bytes = _CREATE.unpack_from(data, at)
            at += _CREATE.size
            end = at + key_bytes
            yield Create(handle, data[at:end], data[end : end + end_bytes], start, flags)
            at = end + end_bytes
        elif item == Ask.CANCEL:
            yield _CANCEL.unpack_from(data, at)[1]
            at += _CANCEL.size
        else:
            assert item == Ask.ASK, f"a front sent an item {item}"
            yield None
            at += len(ASK)


# Each item of DELIVERIES begins with: item, count, number of events, length of what follows the header, revision.
ITEM: Final = struct.Struct("<BxxxIIIQ")
ITEM_BYTES: Final = ITEM.size
PAIR: Final = struct.Struct("<QQ")
LONE_EVENTS: Final = struct.Struct("<BxxxIIIQQ")


def encode_answered(count: int, revision: int) -> bytes:
    """An ANSWERED item."""
    return ITEM.pack(Delivery.ANSWERED, count, 0, 0, revision)


def encode_live(handle: int, group: int, next_revision: int) -> bytes:
    """A LIVE item: everything below `next_revision` was given."""
    return ITEM.pack(Delivery.LIVE, 0, 0, PAIR.size, next_revision) + PAIR.pack(handle, group)


def encode_events(revision: int, groups: list[int], number: int, events: bytes) -> bytes:
    """An EVENTS item; `events` is field `events` of a WatchResponse as it goes to clients, `number` how many."""
    if len(groups) == 1:
        return LONE_EVENTS.pack(Delivery.EVENTS, 1, number, 8 + len(events), revision, groups[0]) + events
    count = len(groups)
    return b"".join(
        (
            ITEM.pack(Delivery.EVENTS, count, number, 8 * count + len(events), revision),
            struct.pack(f"<{count}Q", *groups),
            events,
        )
    )


def encode_caught_up(served: int, current: int, handles: list[int], number: int, events: bytes) -> bytes:
    """A CAUGHT_UP item: `events` are of revisions up to `served`, `current` is the store's revision."""
    count = len(handles)
    return b"".join(
        (
            ITEM.pack(Delivery.CAUGHT_UP, count, number, 8 + 8 * count + len(events), served),
            struct.pack(f"<{count + 1}Q", current, *handles),
            events,
        )
    )


def encode_behind() -> bytes:
    """A BEHIND item."""
    return ITEM.pack(Delivery.BEHIND, 0, 0, 0, 0)


def encode_compacted(handle: int, compacted: int) -> bytes:
    """A COMPACTED item; `compacted` is the store's compacted revision."""
    return ITEM.pack(Delivery.COMPACTED, 0, 0, 8, compacted) + handle.to_bytes(8, "little")
