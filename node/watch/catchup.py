"""Watchers that are behind, and one scan that serves them all.

A *lane* holds the watchers that take past events from one source: the ring, or the store's history. Watchers at the
same position share a bucket, so the scan moves them all at the price of one. The scan goes upwards through the
positions and begins again at the lowest, as an elevator does: whoever comes in below it waits for the next round, so
that nobody can hold it down.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from operator import itemgetter
from typing import Final

from sortedcontainers import SortedDict

from node.events import Change, RevisionChanges
from node.watch.ranges import Range, RangeIndex
from node.watch.watcher import Front, Place, Watcher, event_field
from node.watches import NODELETE, NOPUT, PREV, encode_caught_up

MAX_REVISIONS: Final = 1000
"""Of one reply (WE3)."""

SLICE_BYTES: Final = 1 << 20

MAX_HITS: Final = 8192
"""(event, range) pairs in one slice, after which it is cut short: some 5 ms between two looks at live events."""

_FILTERS: Final = NOPUT | NODELETE | PREV


class _Bucket:
    """Watchers at one position."""

    __slots__ = ("members", "position")

    def __init__(self, position: int) -> None:
        self.position = position
        self.members: dict[Watcher, None] = {}


class Lane:
    """Watchers that are behind and take events from one source, by position and by range."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._buckets: SortedDict = SortedDict()  # position -> _Bucket
        self._index: RangeIndex[dict[Watcher, None]] = RangeIndex()
        self._cursor = 0
        self.wanting_prev = 0
        self.size = 0

    def __len__(self) -> int:
        return self.size

    def add(self, watcher: Watcher) -> None:
        """Takes in a watcher at its position."""
        watcher.place = self._place
        self._put(watcher, watcher.position)
        of_range = self._index.get(watcher.key_range)
        if of_range is None:
            self._index.add(watcher.key_range, {watcher: None})
        else:
            of_range[watcher] = None
        self.size += 1
        self.wanting_prev += watcher.wants_prev

    def remove(self, watcher: Watcher) -> None:
        """Lets a watcher go; its position stays."""
        bucket: _Bucket = watcher.home
        watcher.home = None
        watcher.position = bucket.position
        del bucket.members[watcher]
        if not bucket.members:
            del self._buckets[bucket.position]
        of_range = self._index.get(watcher.key_range)
        assert of_range is not None
        del of_range[watcher]
        if not of_range:
            self._index.remove(watcher.key_range)
        self.size -= 1
        self.wanting_prev -= watcher.wants_prev

    def _put(self, watcher: Watcher, position: int) -> None:
        bucket = self._buckets.get(position)
        if bucket is None:
            bucket = self._buckets[position] = _Bucket(position)
        bucket.members[watcher] = None
        watcher.home = bucket

    def ranges(self, most: int) -> tuple[Range, ...] | None:
        """The ranges wanted, or None when there are more than `most`."""
        return self._index.ranges() if len(self._index) <= most else None

    def next_position(self) -> int:
        """Where the scan goes on; the lane is not empty."""
        buckets = self._buckets
        at = buckets.bisect_left(self._cursor)
        position: int = buckets.keys()[at if at < len(buckets) else 0]
        return position

    def lowest_position(self) -> int:
        """Of the watcher farthest behind; the lane is not empty."""
        position: int = self._buckets.keys()[0]
        return position

    def take_below(self, position: int) -> list[Watcher]:
        """Removes and returns every watcher that stands below a position."""
        taken: list[Watcher] = []
        buckets = self._buckets
        while buckets and buckets.keys()[0] < position:
            members = list(buckets.values()[0].members)
            for watcher in members:
                self.remove(watcher)
            taken += members
        return taken

    def deliver(
        self, start: int, end: int, revisions: list[RevisionChanges], current: int, compacted: int
    ) -> tuple[int, list[Watcher]]:
        """Serves whoever stands in [start, end] with what the source has for these revisions.

        `revisions` are complete for [start, end] and every range in the lane. A previous value that is compacted is
        left out, though the ring may still hold it (WE10). Returns the last revision served, which
        is before `end` when the slice was cut short, and the watchers whose fronts gave no credit: these are removed
        and stay where they stood, the others now stand at the revision after.
        """
        hits: dict[int, tuple[dict[Watcher, None], list[tuple[int, Change]]]] = {}
        count = matched_revisions = 0
        match = self._index.match
        for revision, changes in revisions:
            before = count
            for change in changes:
                for members in match(change[1]):
                    count += 1
                    hit = hits.get(id(members))
                    if hit is None:
                        hits[id(members)] = (members, [(revision, change)])
                    else:
                        hit[1].append((revision, change))
            matched_revisions += count > before
            if count >= MAX_HITS or matched_revisions >= MAX_REVISIONS:
                if revision < end:
                    end = revision
                break
        refused: list[Watcher] = []
        for members, matched in hits.values():
            for front, watchers, number, events in _replies(members, matched, start, end, compacted):
                if front.outbox.has_room():
                    handles = [watcher.handle for watcher in watchers]
                    front.outbox.push(encode_caught_up(end, current, handles, number, events))
                else:
                    refused += watchers
        for watcher in refused:
            self.remove(watcher)
        self._advance(start, end)
        self._cursor = end + 1
        return end, refused

    def _advance(self, start: int, end: int) -> None:
        """Moves every bucket in [start, end] to end + 1; the smaller ones are poured into the largest."""
        buckets = self._buckets
        moving: list[_Bucket] = [buckets.pop(position) for position in list(buckets.irange(start, end))]
        if end + 1 in buckets:
            moving.append(buckets.pop(end + 1))
        if not moving:
            return
        largest = max(moving, key=lambda bucket: len(bucket.members))
        for bucket in moving:
            if bucket is not largest:
                for watcher in bucket.members:
                    watcher.home = largest
                largest.members.update(bucket.members)
        largest.position = end + 1
        buckets[end + 1] = largest

    def take_at(self, position: int) -> list[Watcher]:
        """Removes and returns the watchers at a position."""
        bucket = self._buckets.get(position)
        if bucket is None:
            return []
        members = list(bucket.members)
        for watcher in members:
            self.remove(watcher)
        return members


def _replies(
    members: dict[Watcher, None], matched: list[tuple[int, Change]], start: int, end: int, compacted: int
) -> Iterator[tuple[Front, list[Watcher], int, bytes]]:
    """The replies for one range's watchers: (front, watchers of it, events, field `events`); those alike share one."""
    alike: dict[tuple[int, int, int], tuple[Front, list[Watcher]]] = {}
    positions: dict[int, int] = {}  # position -> index of the first event at or after it
    for watcher in members:
        position = watcher.home.position
        if not start <= position <= end:
            continue
        first = positions.get(position)
        if first is None:
            first = positions[position] = bisect_left(matched, position, key=itemgetter(0))
        key = (watcher.front.number, watcher.flags & _FILTERS, first)
        same = alike.get(key)
        if same is None:
            alike[key] = (watcher.front, [watcher])
        else:
            same[1].append(watcher)
    encoded: dict[tuple[int, int], tuple[int, bytes]] = {}
    for (_, filters, first), (front, watchers) in alike.items():
        reply = encoded.get((filters, first))
        if reply is None:
            fields = [
                event_field(change, filters & PREV != 0 and revision > compacted)
                for revision, change in matched[first:]
                if not filters & (NODELETE if change[0] else NOPUT)
            ]
            reply = encoded[filters, first] = (len(fields), b"".join(fields))
        if reply[0]:
            yield front, watchers, *reply
