"""What one watch stream said, sorted by watcher, with the rules that hold on every server checked on the way."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from kvorum.pb.mvcc_pb2 import Event
from kvorum.pb.rpc_pb2 import WatchResponse


@dataclass
class Watcher:
    """One create request's answers. A watch id that is used again is a new Watcher."""

    created: WatchResponse
    events: list[Event] = field(default_factory=list)
    canceled: WatchResponse | None = None

    @property
    def refused(self) -> bool:
        return self.created.canceled

    @property
    def revision(self) -> int:
        """The revision of the last event, 0 before the first."""
        return self.events[-1].kv.mod_revision if self.events else 0


def watchers(replies: Sequence[WatchResponse], *, progress_is_a_promise: bool = True) -> list[Watcher]:
    """The watchers of one stream in the order of their creates.

    Asserts what every stream keeps to: no event before `created` or after the cancel, revisions rise and are never
    split over replies, no empty reply, and no event at or below the revision of an earlier progress reply.
    """
    found: list[Watcher] = []
    by_id: dict[int, Watcher] = {}
    promised_to: dict[int, int] = {}
    for reply in replies:
        header = reply.header
        if reply.created:
            watcher = Watcher(_without_ids(reply))
            found.append(watcher)
            assert not reply.events, reply
            if not reply.canceled:
                assert reply.watch_id not in by_id or by_id[reply.watch_id].canceled is not None, reply
                by_id[reply.watch_id] = watcher
                promised_to[reply.watch_id] = 0
            continue
        if reply.watch_id == -1 and not reply.canceled and not reply.events:
            # for the watchers there are: one created later may start anywhere
            promised_to = {watch_id: max(known, header.revision) for watch_id, known in promised_to.items()}
            continue
        assert reply.watch_id in by_id, f"a reply for a watcher never created: {reply}"
        watcher = by_id[reply.watch_id]
        if reply.canceled:
            assert not reply.events, reply
            if watcher.canceled is None:  # Q4: a second one answers the cancel of a compacted watcher
                watcher.canceled = _without_ids(reply)
            continue
        if not reply.events:
            promised_to[reply.watch_id] = header.revision
            continue
        assert watcher.canceled is None, f"events after the cancel: {reply}"
        revisions = [event.kv.mod_revision for event in reply.events]
        assert revisions == sorted(revisions) and revisions[0] > watcher.revision, f"out of order: {reply}"
        assert header.revision >= revisions[-1], f"an event above its header: {reply}"
        if progress_is_a_promise:
            assert revisions[0] > promised_to[reply.watch_id], f"an event after its progress: {reply}"
        watcher.events.extend(reply.events)
    return found


def _without_ids(reply: WatchResponse) -> WatchResponse:
    """The reply as both servers send it: the header's ids and term are a server's own."""
    copy = WatchResponse()
    copy.CopyFrom(reply)
    for name in ("cluster_id", "member_id", "raft_term"):
        copy.header.ClearField(name)
    return copy
