"""What a Watch stream must have said, told from the requests of its client and from everything the store ever did."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from kvorum.pb.mvcc_pb2 import Event, KeyValue
from kvorum.pb.rpc_pb2 import WatchResponse
from kvorum.ranges import covers
from tests.watch.assembly import CLUSTER_ID, MEMBER_ID, TERM, Client, World


@dataclass
class Watch:
    """One create and what came of it."""

    key_range: tuple[bytes, bytes]
    start: int
    prev_kv: bool
    noput: bool
    nodelete: bool
    fragment: bool
    asked_at: int
    watch_id: int = 0
    revisions: list[tuple[int, list[Event]]] = field(default_factory=list)
    canceled: bool = False
    compacted: int = 0
    progress: int = 0
    start_asked: int = 0

    def expected(self, world: World) -> list[tuple[int, list[Event]]]:
        """Every event it should get, from its start to the store's revision."""
        revisions = []
        for revision, changes in world.store.revisions:
            if revision < self.start:
                continue
            events = []
            for is_delete, key, kv, prev in changes:
                if covers(*self.key_range, key) and not (self.nodelete if is_delete else self.noput):
                    event = Event(type=Event.DELETE if is_delete else Event.PUT, kv=KeyValue.FromString(kv))
                    if self.prev_kv and prev is not None:
                        event.prev_kv.CopyFrom(KeyValue.FromString(prev))
                    events.append(event)
            if events:
                revisions.append((revision, events))
        return revisions

    def check(self, world: World, up_to: int = 0) -> None:
        """What came is a beginning of what should; all of it up to a revision."""
        expected = self.expected(world)
        assert len(self.revisions) <= len(expected), "events that never were"
        for (revision, came), (wanted_revision, wanted) in zip(self.revisions, expected, strict=False):
            assert revision == wanted_revision, f"revision {wanted_revision} did not come, {revision} did"
            assert len(came) == len(wanted)
            for event, model in zip(came, wanted, strict=True):
                if not event.HasField("prev_kv") and revision - 1 < world.store.compacted:
                    model.ClearField("prev_kv")  # what is compacted may be missing (WE10)
                assert event == model
        if len(self.revisions) < len(expected):
            assert expected[len(self.revisions)][0] > up_to, f"nothing after {self.revisions[-1:]}"


class StreamOracle:
    """Follows one client's stream."""

    def __init__(self, world: World, client: Client) -> None:
        self.world = world
        self.client = client
        self.in_use: dict[int, Watch] = {}
        self.next_id = 0
        self.controls: deque[tuple[str, int, Watch | None]] = deque()
        self.open: dict[int, Watch] = {}
        self.all: list[Watch] = []
        self.fragments: list[WatchResponse] = []
        self.last_progress = 0

    # requests

    def create(
        self,
        key: bytes,
        range_end: bytes,
        start: int,
        *,
        watch_id: int,
        prev_kv: bool,
        noput: bool,
        nodelete: bool,
        fragment: bool,
    ) -> None:
        filters = [value for value, wanted in ((0, noput), (1, nodelete)) if wanted]
        self.client.create(
            key,
            range_end,
            start_revision=start,
            watch_id=watch_id,
            prev_kv=prev_kv,
            filters=filters,
            fragment=fragment,
        )
        if range_end and range_end != b"\0" and range_end <= key:
            self.controls.append(("refused", -1, None))
            return
        if watch_id and watch_id in self.in_use:
            self.controls.append(("refused", -1, None))
            return
        if not watch_id:
            while self.next_id in self.in_use:
                self.next_id += 1
            watch_id = self.next_id
            self.next_id += 1
        asked_at = self.world.store.revision
        watch = Watch((key, range_end), start, prev_kv, noput, nodelete, fragment, asked_at, watch_id)
        self.in_use[watch_id] = watch
        self.controls.append(("created", watch_id, watch))

    def cancel(self, watch_id: int) -> None:
        self.client.cancel(watch_id)
        watch = self.in_use.pop(watch_id, None)
        if watch is not None:
            self.controls.append(("canceled", watch_id, watch))

    # replies

    def check(self) -> None:
        """Takes what has been read and compares."""
        replies, self.client.replies = self.client.replies, []
        for reply in replies:
            self._on_reply(reply)

    def _on_reply(self, reply: WatchResponse) -> None:
        header = reply.header
        assert (header.cluster_id, header.member_id, header.raft_term) == (CLUSTER_ID, MEMBER_ID, TERM)
        if self.fragments:
            assert reply.watch_id == self.fragments[0].watch_id and reply.header == self.fragments[0].header
            assert reply.events
        if reply.created:
            kind, watch_id, watch = self.controls.popleft()
            assert not reply.events
            if kind == "refused":
                assert reply.canceled and reply.watch_id == -1 and reply.cancel_reason
                return
            assert kind == "created" and watch is not None and reply.watch_id == watch_id and not reply.canceled
            assert header.revision >= watch.asked_at
            watch.start_asked = watch.start
            watch.start = watch.start or header.revision + 1
            self.open[watch_id] = watch
            self.all.append(watch)
        elif reply.canceled:
            self._on_canceled(reply)
        elif reply.events:
            self._on_events(reply)
        else:
            assert reply.watch_id == -1
            assert header.revision >= self.last_progress
            self.last_progress = header.revision
            assert self.open
            for watch in self.open.values():
                if watch is not self.in_use.get(watch.watch_id):
                    continue  # its cancel is under way
                assert not watch.compacted
                assert watch.start_asked <= header.revision
                watch.check(self.world, header.revision)
                watch.progress = header.revision

    def _on_canceled(self, reply: WatchResponse) -> None:
        if reply.compact_revision:
            watch = self.open[reply.watch_id]
            assert reply.header.revision == 0 and not reply.cancel_reason and not watch.compacted
            watch.compacted = reply.compact_revision
            assert max([watch.start, *(revision + 1 for revision, _ in watch.revisions)]) <= watch.compacted
            watch.check(self.world)
            return
        kind, watch_id, canceled = self.controls.popleft()
        assert (kind, watch_id) == ("canceled", reply.watch_id) and canceled is not None
        assert self.open.pop(watch_id) is canceled
        canceled.canceled = True
        canceled.check(self.world)

    def _on_events(self, reply: WatchResponse) -> None:
        watch = self.open[reply.watch_id]
        assert not watch.compacted and not watch.canceled
        self.fragments.append(reply)
        if reply.fragment:
            assert watch.fragment
            return
        events = [event for piece in self.fragments for event in piece.events]
        self.fragments = []
        assert len({event.kv.mod_revision for event in events}) <= 1000
        for event in events:
            revision = event.kv.mod_revision
            assert watch.progress < revision <= reply.header.revision
            if watch.revisions and watch.revisions[-1][0] == revision and watch.revisions[-1][1][0] in events:
                watch.revisions[-1][1].append(event)
            else:
                assert not watch.revisions or watch.revisions[-1][0] < revision, "a revision came twice, or in parts"
                watch.revisions.append((revision, [event]))

    def finish(self) -> None:
        """Everything has come to rest, and was read."""
        self.check()
        assert not self.controls and not self.fragments
        for watch in self.open.values():
            watch.check(self.world, 0 if watch.compacted else self.world.store.revision)
