"""The live registrations, and which of them each event is for."""

from __future__ import annotations

from typing import Final

from node.events import Change
from node.watch.ranges import RangeIndex
from node.watch.watcher import Front, Group, Place, Watcher, event_field
from node.watches import encode_events

PREV_BIT: Final = 1 << 16  # above any front's number


class Groups:
    """All groups of all fronts, by range."""

    def __init__(self) -> None:
        self._index: RangeIndex[dict[int, Group]] = RangeIndex()
        self._next = 1
        self.watchers = 0

    def join(self, watcher: Watcher) -> Group:
        """Makes a watcher live; returns its group, which may be new."""
        front = watcher.front
        key = (watcher.key_range, watcher.flags)
        group = front.groups.get(key)
        if group is None:
            group = front.groups[key] = Group(self._next, front, *key)
            self._next += 1
            of_range = self._index.get(group.key_range)
            if of_range is None:
                self._index.add(group.key_range, {group.number: group})
            else:
                of_range[group.number] = group
        group.members[watcher] = None
        watcher.home = group
        watcher.place = Place.LIVE
        self.watchers += 1
        return group

    def leave(self, watcher: Watcher) -> None:
        """A live watcher is canceled."""
        group: Group = watcher.home
        watcher.home = None
        del group.members[watcher]
        self.watchers -= 1
        if not group.members:
            self._drop(group)

    def dissolve(self, front: Front, complete_to: int) -> list[Watcher]:
        """Ends every group of a front. Returns its watchers, each at the revision after what it was given.

        `complete_to` is the last revision that was delivered to all; the one after may have been to some.
        """
        watchers: list[Watcher] = []
        for group in list(front.groups.values()):
            position = max(group.served, complete_to) + 1
            for watcher in group.members:
                watcher.position = position
                watcher.home = None
            watchers += group.members
            self._drop(group)
        self.watchers -= len(watchers)
        return watchers

    def _drop(self, group: Group) -> None:
        del group.front.groups[group.key_range, group.flags]
        of_range = self._index.get(group.key_range)
        assert of_range is not None
        del of_range[group.number]
        if not of_range:
            self._index.remove(group.key_range)

    def deliver(self, revision: int, changes: list[Change]) -> list[Front]:
        """Gives the events of a revision to every group that wants them.

        Returns the fronts that had no room: some of their groups were not served. The caller dissolves these.
        """
        if len(changes) == 1:
            return self._deliver_one(revision, changes[0])
        return self._deliver_many(revision, changes)

    def _deliver_one(self, revision: int, change: Change) -> list[Front]:
        matched = self._index.match(change[1])
        if not matched:
            return []
        is_delete = change[0]
        has_prev = change[3] is not None
        # by (front, with previous value): the numbers of the groups that get the same bytes
        alike: dict[int, tuple[Front, list[Group]]] = {}
        for of_range in matched:
            for group in of_range.values():
                if group.skips[is_delete]:
                    continue
                key = group.front.number | PREV_BIT if has_prev and group.wants_prev else group.front.number
                same = alike.get(key)
                if same is None:
                    alike[key] = (group.front, [group])
                else:
                    same[1].append(group)
        without = with_prev = b""
        full: list[Front] = []
        for key, (front, groups) in alike.items():
            if not front.outbox.has_room():
                full.append(front)
                continue
            if key & PREV_BIT:
                events = with_prev = with_prev or event_field(change, True)
            else:
                events = without = without or event_field(change, False)
            front.outbox.push(encode_events(revision, [group.number for group in groups], 1, events))
            for group in groups:
                group.served = revision
        return full

    def _deliver_many(self, revision: int, changes: list[Change]) -> list[Front]:
        match = self._index.match
        wanted: dict[int, tuple[Group, list[int]]] = {}
        for place, change in enumerate(changes):
            is_delete = change[0]
            for of_range in match(change[1]):
                for number, group in of_range.items():
                    if group.skips[is_delete]:
                        continue
                    places = wanted.get(number)
                    if places is None:
                        wanted[number] = (group, [place])
                    else:
                        places[1].append(place)
        # groups of one front that want the same events share the bytes; most want all of them, or one
        alike: dict[tuple[int, bool, tuple[int, ...]], tuple[Front, list[Group]]] = {}
        for group, chosen_places in wanted.values():
            shared = (group.front.number, group.wants_prev, tuple(chosen_places))
            same = alike.get(shared)
            if same is None:
                alike[shared] = (group.front, [group])
            else:
                same[1].append(group)
        full: list[Front] = []
        fields: dict[tuple[int, bool], bytes] = {}
        for (_, prev, chosen), (front, groups) in alike.items():
            if not front.outbox.has_room():
                full.append(front)
                continue
            parts: list[bytes] = []
            for place in chosen:
                field = fields.get((place, prev))
                if field is None:
                    field = fields[place, prev] = event_field(changes[place], prev)
                parts.append(field)
            numbers = [group.number for group in groups]
            front.outbox.push(encode_events(revision, numbers, len(parts), b"".join(parts)))
            for group in groups:
                group.served = revision
        return full
