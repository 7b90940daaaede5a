"""The EVENTS stream from apply to watch, and WATCH_ASK, what watch asks of it.

A frame of EVENTS holds items, in the order of the store's revisions:

    REVISION   the events of one revision
    MARKER     the answer to a marker ask: here the receiver stands exactly at the store's revision
    HISTORY    the answer to a history ask: past events of whole revisions, complete for [from, to]
    GAP        (from, to] were withheld for want of credit, or nobody had asked for them

An item is a header (`_ITEM`) and a body. All numbers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

Change = tuple[bool, bytes, bytes, bytes | None]
"""One event: is it a DELETE, key, KeyValue bytes as the client gets them, KeyValue bytes before the revision."""

RevisionChanges = tuple[int, list[Change]]


class Item(IntEnum):
    """What an item of the stream is."""

    REVISION = 1
    MARKER = 2
    HISTORY = 3
    GAP = 4


class Revision(NamedTuple):
    """The events of one revision, in their order; `has_prev` says whether previous values were asked for."""

    revision: int
    has_prev: bool
    changes: list[Change]
    size_bytes: int


class Marker(NamedTuple):
    """Every event up to `revision` was sent before this, as far as events were wanted."""

    ask: int
    revision: int
    compacted: int


class History(NamedTuple):
    """Events of [start, end]; `refused` says that `start` is compacted, and then there are none."""

    ask: int
    start: int
    end: int
    compacted: int
    refused: bool
    revisions: list[RevisionChanges]


class Gap(NamedTuple):
    """The events of the revisions in (start, end] were not sent."""

    start: int
    end: int


NO_VALUE: Final = 0xFFFF_FFFF

_ITEM: Final = struct.Struct("<BBxxIQ")  # type, flags, length of the body, revision
_CHANGE: Final = struct.Struct("<BIII")  # is_delete, lengths of key, KeyValue, previous KeyValue (or NO_VALUE)
_LONE: Final = struct.Struct("<BBxxIQBIII")  # an item with one change
_MARKER: Final = struct.Struct("<Qq")  # ask, compacted revision
_HISTORY: Final = struct.Struct("<QQq")  # ask, start, compacted revision
_PAST: Final = struct.Struct("<QI")  # revision, length of its changes
_GAP: Final = struct.Struct("<Q")

_HAS_PREV: Final = 1
_REFUSED: Final = 2


def encode_revision(revision: int, changes: list[Change], with_prev: bool) -> bytes:
    """A REVISION item; without `with_prev` previous values are left out."""
    if len(changes) == 1:
        # nearly every revision is one put: one struct call and one join, 0.6 us
        is_delete, key, kv, prev = changes[0]
        size = 13 + len(key) + len(kv)
        if not with_prev:
            return _LONE.pack(1, 0, size, revision, is_delete, len(key), len(kv), NO_VALUE) + key + kv
        if prev is None:
            return _LONE.pack(1, 1, size, revision, is_delete, len(key), len(kv), NO_VALUE) + key + kv
        return b"".join(
            (_LONE.pack(1, 1, size + len(prev), revision, is_delete, len(key), len(kv), len(prev)), key, kv, prev)
        )
    body = _encode_changes(changes, with_prev)
    return _ITEM.pack(Item.REVISION, _HAS_PREV if with_prev else 0, len(body), revision) + body


def encode_marker(ask: int, revision: int, compacted: int) -> bytes:
    """A MARKER item."""
    return _ITEM.pack(Item.MARKER, 0, _MARKER.size, revision) + _MARKER.pack(ask, compacted)


def encode_gap(start: int, end: int) -> bytes:
    """A GAP item for (start, end]."""
    return _ITEM.pack(Item.GAP, 0, _GAP.size, end) + _GAP.pack(start)


def encode_history(
    ask: int, start: int, end: int, compacted: int, revisions: list[RevisionChanges] | None, with_prev: bool
) -> bytes:
    """A HISTORY item for [start, end]; `revisions` is None when `start` is compacted."""
    parts = [_HISTORY.pack(ask, start, compacted)]
    for revision, changes in revisions or ():
        body = _encode_changes(changes, with_prev)
        parts += (_PAST.pack(revision, len(body)), body)
    body = b"".join(parts)
    return _ITEM.pack(Item.HISTORY, _REFUSED if revisions is None else 0, len(body), end) + body


def _encode_changes(changes: list[Change], with_prev: bool) -> bytes:
    parts: list[bytes] = []
    for is_delete, key, kv, prev in changes:
        if prev is None or not with_prev:
            parts += (_CHANGE.pack(is_delete, len(key), len(kv), NO_VALUE), key, kv)
        else:
            parts += (_CHANGE.pack(is_delete, len(key), len(kv), len(prev)), key, kv, prev)
    return b"".join(parts)


def _decode_changes(data: bytes, at: int, end: int) -> list[Change]:
    changes: list[Change] = []
    unpack = _CHANGE.unpack_from
    while at < end:
        is_delete, key_bytes, kv_bytes, prev_bytes = unpack(data, at)
        kv_at = at + 13 + key_bytes
        prev_at = kv_at + kv_bytes
        prev = None
        after = prev_at
        if prev_bytes != NO_VALUE:
            after += prev_bytes
            prev = data[prev_at:after]
        changes.append((is_delete == 1, data[at + 13 : kv_at], data[kv_at:prev_at], prev))
        at = after
    assert at == end, "changes are not as long as they say"
    return changes


def decode(data: bytes, at: int = 0) -> Iterator[Revision | Marker | History | Gap]:
    """The items of a frame, from offset `at` to its end."""
    total = len(data)
    unpack = _ITEM.unpack_from
    while at < total:
        kind, flags, size, revision = unpack(data, at)
        at += 16
        end = at + size
        if kind == 1:
            yield Revision(revision, flags == 1, _decode_changes(data, at, end), size)
        elif kind == Item.MARKER:
            ask, compacted = _MARKER.unpack_from(data, at)
            yield Marker(ask, revision, compacted)
        elif kind == Item.HISTORY:
            ask, start, compacted = _HISTORY.unpack_from(data, at)
            at += _HISTORY.size
            revisions: list[RevisionChanges] = []
            while at < end:
                past, length = _PAST.unpack_from(data, at)
                at += _PAST.size
                revisions.append((past, _decode_changes(data, at, at + length)))
                at += length
            yield History(ask, start, revision, compacted, flags == _REFUSED, revisions)
        else:
            assert kind == Item.GAP, f"an item of the event stream has kind {kind}"
            (start,) = _GAP.unpack_from(data, at)
            yield Gap(start, revision)
        at = end


class MarkerAsk(NamedTuple):
    """Asks for a MARKER; from it on events are sent, with previous values, as wanted here."""

    ask: int
    want_events: bool
    want_prev: bool


class HistoryAsk(NamedTuple):
    """Asks for a HISTORY from revision `start`. `ranges` are (key, range_end) as in requests; None is every key."""

    ask: int
    start: int
    max_bytes: int
    max_rows: int
    want_prev: bool
    ranges: tuple[tuple[bytes, bytes], ...] | None


_MARKER_ASK: Final = struct.Struct("<BQ??")
_HISTORY_ASK: Final = struct.Struct("<BQQII?H")
_RANGE: Final = struct.Struct("<II")
_ALL_KEYS: Final = 0xFFFF


def encode_ask(ask: MarkerAsk | HistoryAsk) -> bytes:
    """The payload of a WATCH_ASK frame."""
    if isinstance(ask, MarkerAsk):
        return _MARKER_ASK.pack(Item.MARKER, *ask)
    *fields, ranges = ask
    parts = [_HISTORY_ASK.pack(Item.HISTORY, *fields, _ALL_KEYS if ranges is None else len(ranges))]
    for key, range_end in ranges or ():
        parts += (_RANGE.pack(len(key), len(range_end)), key, range_end)
    return b"".join(parts)


def decode_ask(data: bytes, at: int = 0) -> MarkerAsk | HistoryAsk:
    """Reads the payload of a WATCH_ASK frame, which begins at offset `at`."""
    if data[at] == Item.MARKER:
        _, ask, want_events, want_prev = _MARKER_ASK.unpack_from(data, at)
        return MarkerAsk(ask, want_events, want_prev)
    kind, ask, start, max_bytes, max_rows, want_prev, count = _HISTORY_ASK.unpack_from(data, at)
    assert kind == Item.HISTORY, f"watch asked for something of kind {kind}"
    if count == _ALL_KEYS:
        return HistoryAsk(ask, start, max_bytes, max_rows, want_prev, None)
    at += _HISTORY_ASK.size
    ranges: list[tuple[bytes, bytes]] = []
    for _ in range(count):
        key_bytes, end_bytes = _RANGE.unpack_from(data, at)
        at += _RANGE.size
        ranges.append((data[at : at + key_bytes], data[at + key_bytes : at + key_bytes + end_bytes]))
        at += key_bytes + end_bytes
    return HistoryAsk(ask, start, max_bytes, max_rows, want_prev, tuple(ranges))
