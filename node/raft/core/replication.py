"""What a leader sends: entries, heartbeats, snapshots; and how it learns that entries are committed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from node.raft.core.messages import Entry, Message, MessageType, payload_bytes
from node.raft.core.progress import Progress, ProgressState

if TYPE_CHECKING:
    from node.raft.core.raft import Raft


def send_append(raft: Raft, to: int, *, if_empty: bool) -> bool:
    """Send `to` the next entries, or a snapshot; without entries only `if_empty`. Returns whether anything was sent."""
    progress = raft.tracker.progress[to]
    if progress.is_paused():
        return False
    log = raft.raft_log
    previous = progress.next - 1
    previous_term = log.term_of(previous)
    if previous_term is None:
        return _send_snapshot(raft, to, progress)
    entries: list[Entry] = []
    # With the window full an empty append still goes out, after each heartbeat's answer: were all that fill the
    # window lost, nothing else would bring the answer that frees it.
    if progress.state is not ProgressState.REPLICATE or not progress.inflights.full():
        entries = log.read_from(progress.next, raft.config.max_message_bytes)
    if not entries and not if_empty:
        return False
    committed = log.committed
    raft.messages.append(
        Message(MessageType.APP, to, raft.id, raft.term, previous_term, previous, committed, entries=entries)
    )
    progress.sent_entries(len(entries), payload_bytes(entries))
    progress.sent_commit = committed
    return True


def _send_snapshot(raft: Raft, to: int, progress: Progress) -> bool:
    if not progress.recent_active:
        raft.debug(f"ignore sending snapshot to {to:x} since it is not recently active")
        return False
    snapshot = raft.raft_log.snapshot()
    if snapshot is None:
        raft.debug(f"{raft.id:x} failed to send snapshot to {to:x} because snapshot is temporarily unavailable")
        return False
    assert snapshot.index, "an empty snapshot"
    raft.debug(
        f"{raft.id:x} [firstindex: {raft.raft_log.first_index()}, commit: {raft.raft_log.committed}] sent "
        f"snapshot[index: {snapshot.index}, term: {snapshot.term}] to {to:x} [{progress}]"
    )
    progress.become_snapshot(snapshot.index)
    raft.debug(f"{raft.id:x} paused sending replication messages to {to:x} [{progress}]")
    raft.messages.append(Message(MessageType.SNAP, to, raft.id, raft.term, snapshot=snapshot))
    return True


def broadcast_append(raft: Raft) -> None:
    """Send everyone what is next, at least the commit index."""
    for member in raft.tracker.progress:
        if member != raft.id:
            send_append(raft, member, if_empty=True)


def broadcast_heartbeat(raft: Raft, context: bytes) -> None:
    """Ask everyone whether they still follow. The commit index goes only as far as the logs are known to match."""
    for member, progress in raft.tracker.progress.items():
        if member != raft.id:
            commit = min(progress.match, raft.raft_log.committed)
            raft.messages.append(
                Message(MessageType.HEARTBEAT, member, raft.id, raft.term, commit=commit, context=context)
            )
            progress.sent_commit = commit


def maybe_commit(raft: Raft) -> bool:
    """Commit what a quorum holds; returns whether that is news."""
    return raft.raft_log.maybe_commit(raft.term, raft.tracker.committed())
