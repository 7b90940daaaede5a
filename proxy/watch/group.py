"""Client watches that ask for the same, and the one upstream watch they share.

A group stands at a *position*: its live watches have been given everything up to it. Whoever comes with another
revision joins by it: the next one is live at once, a later one waits until the group is there, an older one is served
from what the group has kept, or catches up by an upstream watch of its own and then joins.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Final, Protocol

from kvorum.pb.rpc_pb2 import WatchResponse
from proxy.watch.batch import Batch, batch_of
from proxy.watch.cohort import Cohort, Ids, Place, Watcher, count_of, give, without
from proxy.watch.line import UpstreamWatch
from proxy.watch.spec import FRAGMENT, Spec

KEPT_BYTES: Final = 4 << 20
"""Batches that one group keeps for streams that take nothing now, and for creates that are not answered yet."""

ALL_KEPT_BYTES: Final = 64 << 20
"""The same of all groups. At either the oldest go; those who need them catch up from upstream."""

_STALE_STARTS: Final = 64


class Home(Protocol):
    """What groups have around them."""

    def open_live(self, group: Group, *, exact: bool) -> UpstreamWatch:
        """Creates the group's upstream watch, from its position on."""
        ...

    def open_behind(self, cohort: Cohort) -> UpstreamWatch:
        """Creates an upstream watch for one cohort."""
        ...

    def close_upstream(self, upstream: UpstreamWatch) -> None:
        """Cancels an upstream watch."""

    def drop(self, group: Group) -> None:
        """Nobody needs the group any more."""

    def count_events(self, events: int, watches: int) -> None:
        """That many events went to that many watches."""

    def keep(self, size_bytes: int) -> bool:
        """Whether batches of that size may be kept; a negative size gives room back."""
        ...


class Group:
    """The watches of one spec under one upstream stream."""

    __slots__ = (
        "__weakref__",
        "_kept_bytes",
        "_starts",
        "behind",
        "floor",
        "holds",
        "home",
        "kept",
        "later",
        "live",
        "notified",
        "position",
        "spec",
        "upstream",
        "users",
    )

    def __init__(self, home: Home, spec: Spec) -> None:
        self.home = home
        self.spec = spec
        self.upstream: UpstreamWatch | None = None
        self.position = 0
        """Everything up to this revision has been given to the live watches; 0: nobody has joined yet."""
        self.live = Cohort(self, Place.LIVE, 0)
        self.later: dict[int, Cohort] = {}
        self._starts: list[int] = []
        """A heap of what `later` has, and of what it had."""
        self.behind: dict[int, Cohort] = {}
        """By the revision each needs next."""
        self.kept: deque[Batch] = deque()
        self.floor = 0
        """What is kept is all there was after this revision."""
        self.holds = 0
        """Who may need what comes now: creates under way and parked cohorts."""
        self.users = 0
        """Watches and creates under way."""
        self.notified: dict[Watcher, dict[bytes, int]] = {}
        """Watches that asked for progress, and the revisions they began with."""
        self._kept_bytes = 0

    # who joins and leaves

    def begin(self, revision: int) -> None:
        """The first watch is about to join, at a revision of the store that was read just now."""
        self.position = self.floor = revision

    def join(self, stream: Watcher, ids: Ids, next_revision: int) -> None:
        """Takes in watches that have been given everything before `next_revision`."""
        if self.upstream is None:
            self.upstream = self.home.open_live(self, exact=False)
        if next_revision > self.position:
            self._place(stream, ids, next_revision)
        elif next_revision > self.floor:
            self._replay(stream, ids, next_revision)
        else:
            cohort = self.behind.get(next_revision)
            if cohort is None:
                cohort = self.behind[next_revision] = Cohort(self, Place.BEHIND, next_revision)
                cohort.upstream = self.home.open_behind(cohort)
            cohort.add(stream, ids)

    def _place(self, stream: Watcher, ids: Ids, next_revision: int) -> None:
        if next_revision <= self.position + 1:
            self.live.add(stream, ids)
            return
        self._later_cohort(next_revision).add(stream, ids)

    def _later_cohort(self, start: int) -> Cohort:
        cohort = self.later.get(start)
        if cohort is None:
            cohort = self.later[start] = Cohort(self, Place.LATER, start)
            heappush(self._starts, start)
            if len(self._starts) > 2 * len(self.later) + _STALE_STARTS:
                self._starts = sorted(self.later)
        return cohort

    def _take_later(self, last: int) -> Iterator[tuple[int, Cohort]]:
        """Takes out the cohorts that begin with a revision up to `last`, in order."""
        starts = self._starts
        while starts and starts[0] <= last:
            start = heappop(starts)
            cohort = self.later.pop(start, None)
            if cohort is not None:
                yield start, cohort

    def _replay(self, stream: Watcher, ids: Ids, next_revision: int) -> None:
        """Gives what is kept from a revision on; then the watches are live."""
        for batch in self.kept:
            wanted = batch.since(next_revision)
            if wanted is None:
                continue
            self.home.count_events(batch.reply.events, count_of(ids))
            rest = give(stream.wire, ids, wanted.reply)
            if rest is not None:
                stream.park(self, rest, max(next_revision, batch.first))
                given = without(ids, rest)
                if given is not None:
                    stream.park(self, given, batch.last + 1)
                return
            next_revision = batch.last + 1
        self._place(stream, ids, self.position + 1)

    def discard(self, cohort: Cohort, stream: Watcher, id_field: bytes) -> None:
        """A watch is canceled."""
        cohort.discard(stream, id_field)
        self.forget_notified(stream, id_field)
        self.tidy(cohort)
        self.release_users(1)

    def leave(self, cohort: Cohort, stream: Watcher) -> None:
        """A stream has ended that has watches in this cohort."""
        count = cohort.leave(stream)
        self.notified.pop(stream, None)
        self.tidy(cohort)
        self.release_users(count)

    def tidy(self, cohort: Cohort) -> None:
        """Gives up a cohort that has no watches left."""
        if cohort.size:
            return
        if cohort.place is Place.LATER:
            if self.later.get(cohort.next) is cohort:
                del self.later[cohort.next]
        elif cohort.place is Place.BEHIND:
            if self.behind.get(cohort.next) is cohort:
                del self.behind[cohort.next]
            self._close(cohort)

    def release_users(self, count: int) -> None:
        self.users -= count
        if not self.users:
            self.home.drop(self)

    def dispose(self) -> None:
        """The group is not needed any more: gives back what it keeps, and what would keep it from being freed."""
        self.forget_kept()
        del self.live.group

    def _close(self, cohort: Cohort) -> None:
        upstream, cohort.upstream = cohort.upstream, None
        if upstream is not None:
            self.home.close_upstream(upstream)

    def forget_notified(self, stream: Watcher, id_field: bytes) -> None:
        fields = self.notified.get(stream)
        if fields is not None:
            fields.pop(id_field, None)
            if not fields:
                del self.notified[stream]

    # what is kept for those who are late

    def hold(self) -> None:
        """Somebody may need what comes from now on."""
        self.holds += 1

    def release(self) -> None:
        self.holds -= 1
        if not self.holds and self.kept:
            self.forget_kept()

    def forget_kept(self) -> None:
        """Who needs what was kept catches up from upstream."""
        if self.kept:
            self.floor = self.kept[-1].last
            self.home.keep(-self._kept_bytes)
            self._kept_bytes = 0
            self.kept.clear()

    def _keep(self, batch: Batch) -> None:
        size_bytes = batch.size_bytes
        while self.kept and self._kept_bytes + size_bytes > KEPT_BYTES:
            oldest = self.kept.popleft()
            self.floor = oldest.last
            self._kept_bytes -= oldest.size_bytes
            self.home.keep(-oldest.size_bytes)
        if size_bytes > KEPT_BYTES or not self.home.keep(size_bytes):
            self.forget_kept()
            self.floor = batch.last
            return
        self.kept.append(batch)
        self._kept_bytes += size_bytes

    # what comes from upstream

    def on_events(self, message: WatchResponse) -> None:
        """Events of the group's own upstream watch."""
        spec = self.spec
        whole = batch_of(message, spec.namespace, fragment=spec.flags & FRAGMENT != 0)
        before = self.position
        batch = whole.since(before + 1)
        if batch is None:
            return  # nothing new: some versions repeat events after a slow stream (X16)
        self.position = batch.last
        kept = self.holds > 0
        if kept:
            self._keep(batch)
        if self.later:
            self._give_later(batch)
        live = self.live
        self.home.count_events(batch.reply.events, live.size)
        missed = live.deliver(batch)
        if missed and not kept:
            self._keep(batch)
        elif not kept:
            self.floor = batch.last
        for stream, rest in missed:
            live.take(stream, rest)
            stream.park(self, rest, batch.first)
        self._promote()

    def _give_later(self, batch: Batch) -> None:
        """Those whose first revision has come, or lies within the batch."""
        within: list[Cohort] = []
        for start, cohort in self._take_later(batch.last):
            if start <= batch.first:
                self.live.absorb(cohort)
                continue
            part = batch.since(start)
            assert part is not None
            self._serve(cohort, part)
            within.append(cohort)
        for cohort in within:  # the live ones are given the batch next, which these have had
            self._later_cohort(batch.last + 1).absorb(cohort)

    def _serve(self, cohort: Cohort, batch: Batch) -> None:
        """Gives a batch to a cohort other than the live one; what its streams do not take is parked."""
        self.home.count_events(batch.reply.events, cohort.size)
        for stream, rest in cohort.deliver(batch):
            cohort.take(stream, rest)
            stream.park(self, rest, max(cohort.next, batch.first))

    def _promote(self) -> None:
        """Those whose first revision is the next one are live."""
        if self.later:
            for _, cohort in self._take_later(self.position + 1):
                self.live.absorb(cohort)

    def on_progress(self, revision: int) -> None:
        """The group's upstream watch has given everything up to a revision."""
        if revision > self.position:
            self.position = revision
            self._promote()

    def notify(self, revision: int, header: bytes) -> None:
        """Tells the live watches that asked for it of the progress that was just made (WP2, WP4)."""
        live = self.live
        for stream, fields in list(self.notified.items()):
            for field, start in list(fields.items()):
                if stream.watches.get(field) is live and revision >= start:
                    if not stream.wire.writable:
                        break  # WP9
                    stream.wire.send(header + field)

    # cohorts that catch up

    def on_behind_events(self, cohort: Cohort, message: WatchResponse) -> None:
        """Events of a cohort's own upstream watch."""
        spec = self.spec
        batch = batch_of(message, spec.namespace, fragment=spec.flags & FRAGMENT != 0).since(cohort.next)
        if batch is not None:
            self._serve(cohort, batch)
            self.advance(cohort, batch.last + 1)

    def advance(self, cohort: Cohort, next_revision: int) -> None:
        """A cohort that catches up has been given everything before `next_revision`."""
        if next_revision <= cohort.next:
            return
        if self.behind.get(cohort.next) is cohort:
            del self.behind[cohort.next]
        cohort.next = next_revision
        if not cohort.size:
            self._close(cohort)
            return
        if next_revision > self.floor:
            self._close(cohort)
            members, cohort.members = cohort.members, {}
            cohort.size = 0
            for stream, ids in members.items():
                self.join(stream, ids, next_revision)
            return
        same = self.behind.get(next_revision)
        if same is None:
            self.behind[next_revision] = cohort
            return
        same.absorb(cohort)
        self._close(cohort)

    # ends

    def on_ended(self, reply: WatchResponse) -> None:
        """A member has ended the group's upstream watch: its clients' watches end in the same way."""
        self.upstream = None
        compacted = reply.compact_revision
        ended: list[Cohort] = []
        if not compacted or compacted > self.position + 1:
            ended.append(self.live)
            self.live = Cohort(self, Place.LIVE, 0)
        ended += [cohort for _, cohort in self._take_later(compacted - 1 if compacted else sys.maxsize)]
        if compacted > self.position + 1:
            self.forget_kept()
            self.position = self.floor = compacted - 1
        for cohort in ended:
            self._end(cohort, reply)
        # after a refusal whoever joins next tries again; it would be refused as often as it is repeated
        if compacted and self.users and self.upstream is None:
            self._promote()
            self.upstream = self.home.open_live(self, exact=True)

    def on_behind_ended(self, cohort: Cohort, reply: WatchResponse) -> None:
        """The same of a cohort that catches up."""
        cohort.upstream = None
        if 0 < reply.compact_revision <= cohort.next:
            cohort.upstream = self.home.open_behind(cohort)
            return
        if self.behind.get(cohort.next) is cohort:
            del self.behind[cohort.next]
        self._end(cohort, reply)

    def _end(self, cohort: Cohort, reply: WatchResponse) -> None:
        members, cohort.members = cohort.members, {}
        cohort.size = 0
        for stream, ids in members.items():
            fields = [ids] if isinstance(ids, bytes) else list(ids.fields)
            for field in fields:
                self.forget_notified(stream, field)
                stream.end_watch(field, reply)
            self.release_users(len(fields))
