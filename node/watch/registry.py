"""The registrations of all fronts, and how each comes to everything it wants, once and in order.

A registration is answered at a *marker*, where this process stands exactly at the store's revision. Then it is live, or
behind (served from the ring, or from slices of the store's history), or it waits for a later revision. Whatever
happens afterwards, it has a position, the next revision it has not been given, and `_place` puts it where that belongs:

    position > revision + 1    future
    position = revision + 1    live, in a group
    position in the ring       the ring's lane
    else                       the history's lane

No credit from a front and a gap in the stream of events are handled alike: live registrations fall behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from sortedcontainers import SortedDict

from node.events import Gap, History, HistoryAsk, Marker, MarkerAsk, Revision, decode, encode_ask
from node.watch.catchup import MAX_REVISIONS, SLICE_BYTES, Lane
from node.watch.groups import Groups
from node.watch.outbox import Outbox
from node.watch.ring import RING_BYTES, Ring
from node.watch.watcher import Front, Place, Watcher
from node.watches import (
    Create,
    decode_watches,
    encode_answered,
    encode_behind,
    encode_compacted,
    encode_live,
)

MAX_RANGES: Final = 16
"""With more ranges behind than this a slice of history is asked for all keys."""

LINGER_S: Final = 10.0
"""Events (and previous values) are still taken so long after the last watcher that wanted them has gone."""


class Registry:
    """State and rules of the watch process. `ask(payload)` sends a WATCH_ASK to apply."""

    def __init__(self, ask: Callable[[bytes], None], ring_bytes: int = RING_BYTES) -> None:
        self._ask = ask
        self._fronts: dict[int, Front] = {}
        self._groups = Groups()
        self._ring = Ring(ring_bytes)
        self._ring_lane = Lane(Place.RING)
        self._history_lane = Lane(Place.HISTORY)
        self._future: SortedDict = SortedDict()  # start -> dict[Watcher, None]
        self._queued: dict[Watcher, None] = {}
        self.revision = 0
        self.compacted = -1
        self._wants_events = False
        self._wants_prev = False
        self._wanting_prev = 0
        self._last_wanted_events_s = self._last_wanted_prev_s = 0.0
        self._next_ask = 1
        self._marker_ask = 0
        """The marker under way, or 0."""
        self._history_ask = 0
        self._unasked: list[tuple[Front, Watcher | None]] = []
        self._asked: list[tuple[Front, Watcher | None]] = []
        self.watchers = 0
        self.events = 0
        """Events taken in from apply."""

    def add_front(self, number: int, is_open: Callable[[], bool], send: Callable[[bytes], None]) -> None:
        """A front, by its process number; `is_open` and `send` are those of DELIVERIES to it."""
        self._fronts[number] = Front(number, Outbox(is_open, send))

    @property
    def behind(self) -> int:
        """How many registrations have not been given all there is."""
        stalled = sum(len(front.stalled) for front in self._fronts.values())
        return len(self._ring_lane) + len(self._history_lane) + len(self._queued) + stalled

    @property
    def pending_bytes(self) -> int:
        """What waits for credit from the fronts."""
        return sum(front.outbox.size_bytes for front in self._fronts.values())

    # what the fronts ask

    def on_watches(self, number: int, data: bytes, at: int) -> None:
        """A WATCHES frame of a front; its payload begins at offset `at`."""
        front = self._fronts[number]
        for item in decode_watches(data, at):
            if item is None:
                self._unasked.append((front, None))
            elif isinstance(item, Create):
                self._create(front, item)
            else:
                watcher = front.watchers.get(item)
                if watcher is not None:  # else it ended here as compacted, and the two messages crossed
                    self._forget(watcher)

    def _create(self, front: Front, create: Create) -> None:
        handle, key, range_end, start, flags = create
        assert handle not in front.watchers, "a front used a handle twice"
        watcher = Watcher(front, handle, (key, range_end), start, flags)
        front.watchers[handle] = watcher
        self.watchers += 1
        self._wanting_prev += watcher.wants_prev
        self._unasked.append((front, watcher))

    def _forget(self, watcher: Watcher) -> None:
        """Ends a registration, wherever it stands."""
        match watcher.place:
            case Place.LIVE:
                self._groups.leave(watcher)
            case Place.RING:
                self._ring_lane.remove(watcher)
            case Place.HISTORY:
                self._history_lane.remove(watcher)
            case Place.FUTURE:
                waiting = self._future[watcher.position]
                del waiting[watcher]
                if not waiting:
                    del self._future[watcher.position]
            case Place.QUEUED:
                del self._queued[watcher]
            case Place.STALLED:
                del watcher.front.stalled[watcher]
            case Place.ASKED:
                pass  # its answer is due all the same
            case Place.GONE:
                raise AssertionError("a registration ended twice")
        watcher.place = Place.GONE
        del watcher.front.watchers[watcher.handle]
        self.watchers -= 1
        self._wanting_prev -= watcher.wants_prev

    # what apply sends

    def on_events(self, data: bytes, at: int) -> None:
        """An EVENTS frame; its payload begins at offset `at`."""
        for item in decode(data, at):
            if type(item) is Revision:
                self._on_revision(item)
            elif type(item) is Marker:
                self._on_marker(item)
            elif type(item) is History:
                self._on_history(item)
            else:
                assert type(item) is Gap
                self._on_gap(item)

    def _on_revision(self, item: Revision) -> None:
        revision, has_prev, changes, size_bytes = item
        assert revision == self.revision + 1, f"the events of revision {self.revision + 1} did not come"
        if self._future and self._future.keys()[0] <= revision:
            self._wake(revision)
        self._ring.append((revision, changes), size_bytes, has_prev)
        full = self._groups.deliver(revision, changes)
        for front in full:
            if front.groups:
                self._stall(front)
        self.revision = revision
        self.events += len(changes)

    def _wake(self, revision: int) -> None:
        """Places whoever waits for a revision up to this one, before it is delivered."""
        future = self._future
        while future and future.keys()[0] <= revision:
            for watcher in future.popitem(0)[1]:
                self._place(watcher)

    def _stall(self, front: Front) -> None:
        """A front gives no credit: its live registrations fall behind, and wait until it does."""
        front.outbox.push(encode_behind())
        for watcher in self._groups.dissolve(front, self.revision):
            watcher.place = Place.STALLED
            front.stalled[watcher] = None

    def _on_gap(self, gap: Gap) -> None:
        assert gap.start == self.revision, f"a gap begins at {gap.start}, this is {self.revision}"
        fallen: list[Watcher] = []
        for front in self._fronts.values():
            if front.groups:
                front.outbox.push(encode_behind())
                fallen += self._groups.dissolve(front, self.revision)
        self._skip_to(gap.end)
        for watcher in fallen:
            self._place(watcher)

    def _skip_to(self, revision: int) -> None:
        """The stream goes on after `revision`; nobody is live."""
        self._ring.reset(revision)
        self.revision = revision
        for watcher in self._ring_lane.take_below(revision + 1):
            self._place(watcher)
        self._wake(revision)

    def _on_marker(self, marker: Marker) -> None:
        assert marker.ask == self._marker_ask
        self._marker_ask = 0
        self.compacted = marker.compacted
        if marker.revision != self.revision:
            assert marker.revision > self.revision and not self._groups.watchers, "events were lost before a marker"
            self._skip_to(marker.revision)
        asked, self._asked = self._asked, []
        for front, watcher in asked:
            front.outbox.push(encode_answered(1, self.revision))
            if watcher is None or watcher.place is Place.GONE:
                continue
            if watcher.position == 0:
                watcher.position = self.revision + 1
            elif watcher.position < self.compacted:
                self._end_compacted(watcher)
                continue
            self._place(watcher)

    def _end_compacted(self, watcher: Watcher) -> None:
        watcher.front.outbox.push(encode_compacted(watcher.handle, self.compacted))
        watcher.place = Place.ASKED  # it is in no structure any more
        self._forget(watcher)

    def _on_history(self, history: History) -> None:
        assert history.ask == self._history_ask
        self._history_ask = 0
        self.compacted = max(self.compacted, history.compacted)
        lane = self._history_lane
        if history.refused:
            for watcher in lane.take_below(self.compacted):
                self._end_compacted(watcher)
        elif lane:
            assert history.end <= self.revision, "history is ahead of the events"
            end, refused = lane.deliver(history.start, history.end, history.revisions, self.revision, self.compacted)
            self._hold(refused)
            if end + 1 >= self._ring.first:
                for watcher in lane.take_at(end + 1):
                    self._place(watcher)
        queued, self._queued = self._queued, {}
        for watcher in queued:
            self._place(watcher)

    def _hold(self, refused: Iterable[Watcher]) -> None:
        for watcher in refused:
            watcher.place = Place.STALLED
            watcher.front.stalled[watcher] = None

    def _place(self, watcher: Watcher) -> None:
        """Puts a registration that is in no structure where its position belongs."""
        position = watcher.position
        ahead = position - self.revision
        if ahead > 1:
            watcher.place = Place.FUTURE
            self._future.setdefault(position, {})[watcher] = None
        elif ahead == 1:
            group = self._groups.join(watcher)
            watcher.front.outbox.push(encode_live(watcher.handle, group.number, position))
        elif position >= self._ring.first_for(watcher.wants_prev):
            self._ring_lane.add(watcher)
        elif self._history_ask:
            watcher.place = Place.QUEUED
            self._queued[watcher] = None
        else:
            self._history_lane.add(watcher)

    # once per turn

    def turn(self, now_s: float) -> bool:
        """Does what this turn's frames left to do, and sends. Returns whether the next turn has work already."""
        for front in self._fronts.values():
            if front.stalled and front.outbox.has_room():
                stalled, front.stalled = front.stalled, {}
                for watcher in stalled:
                    self._place(watcher)
        if self._ring_lane:
            self._ring_step()
        if self._history_lane and not self._history_ask:
            self._ask_history()
        self._ask_marker(now_s)
        for front in self._fronts.values():
            front.outbox.flush()
        return bool(self._ring_lane)

    def _ring_step(self) -> None:
        """Serves one slice of the ring, and makes live whoever has come to its end."""
        lane = self._ring_lane
        ring = self._ring
        if lane.lowest_position() < ring.first:
            for watcher in lane.take_below(ring.first):
                self._place(watcher)
            if not lane:
                return
        start = lane.next_position()
        revisions = ring.slice(start, MAX_REVISIONS, SLICE_BYTES)
        end, refused = lane.deliver(start, revisions[-1][0], revisions, self.revision, self.compacted)
        self._hold(refused)
        if end == self.revision:
            for watcher in lane.take_at(end + 1):
                self._place(watcher)

    def _ask_history(self) -> None:
        lane = self._history_lane
        self._history_ask = self._next_ask
        self._next_ask += 1
        self._ask(
            encode_ask(
                HistoryAsk(
                    ask=self._history_ask,
                    start=lane.next_position(),
                    max_bytes=SLICE_BYTES,
                    max_rows=MAX_REVISIONS,
                    want_prev=lane.wanting_prev > 0,
                    ranges=lane.ranges(MAX_RANGES),
                )
            )
        )

    def _ask_marker(self, now_s: float) -> None:
        """Asks for the marker that answers what the fronts asked, or that ends what nobody wants any more."""
        if self.watchers:
            self._last_wanted_events_s = now_s
        if self._wanting_prev:
            self._last_wanted_prev_s = now_s
        if self._marker_ask:
            return
        want_events = self.watchers > 0 or (self._wants_events and now_s < self._last_wanted_events_s + LINGER_S)
        want_prev = self._wanting_prev > 0 or (self._wants_prev and now_s < self._last_wanted_prev_s + LINGER_S)
        want_prev = want_prev and want_events
        if not self._unasked and (want_events, want_prev) == (self._wants_events, self._wants_prev):
            return
        self._wants_events, self._wants_prev = want_events, want_prev
        self._asked, self._unasked = self._unasked, []
        self._marker_ask = self._next_ask
        self._next_ask += 1
        self._ask(encode_ask(MarkerAsk(self._marker_ask, want_events, want_prev)))
