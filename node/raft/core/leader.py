"""What a leader does with proposals, acknowledgements and the clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from node.raft.core import membership, reads, replication
from node.raft.core.errors import ProposalDropped
from node.raft.core.messages import NOBODY, Entry, Message, MessageType, payload_bytes
from node.raft.core.progress import Progress, ProgressState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from node.raft.core.raft import Raft


def tick(raft: Raft) -> None:
    """A tick of the clock has passed: check the quorum each election timeout, send heartbeats."""
    raft.heartbeat_elapsed += 1
    raft.election_elapsed += 1
    if raft.election_elapsed >= raft.config.election_ticks:
        raft.election_elapsed = 0
        if raft.config.check_quorum and not _check_quorum(raft):
            return
        raft.lead_transferee = NOBODY  # it did not take over in time
    if raft.heartbeat_elapsed >= raft.config.heartbeat_ticks:
        raft.heartbeat_elapsed = 0
        replication.broadcast_heartbeat(raft, raft.read_only.last_context())


def _check_quorum(raft: Raft) -> bool:
    active = raft.tracker.quorum_active()
    if not active:
        raft.warn(f"{raft.id:x} stepped down to follower since quorum is not active")
        raft.become_follower(raft.term, NOBODY)
    for member, progress in raft.tracker.progress.items():
        if member != raft.id:
            progress.recent_active = False
    return active


def step(raft: Raft, message: Message) -> None:
    """A leader takes in a message. Raises ProposalDropped."""
    type_ = message.type
    if type_ is MessageType.PROP:
        _propose(raft, message)
        return
    if type_ is MessageType.READ_INDEX:
        reads.step_read(raft, message)
        return
    progress = raft.tracker.progress.get(message.sender)
    if progress is None:
        raft.debug(f"{raft.id:x} no progress available for {message.sender:x}")
    elif type_ is MessageType.APP_RESP:
        progress.recent_active = True
        if message.reject:
            _refused(raft, message, progress)
        else:
            _acknowledged(raft, message, progress)
    elif type_ is MessageType.HEARTBEAT_RESP:
        _heartbeat_answered(raft, message, progress)
    elif type_ is MessageType.TRANSFER_LEADER:
        _transfer(raft, message.sender, progress)


def _propose(raft: Raft, message: Message) -> None:
    if not message.entries or raft.id not in raft.tracker.progress:  # the latter: removed while it led
        raise ProposalDropped
    if raft.lead_transferee != NOBODY:
        raft.debug(
            f"{raft.id:x} [term {raft.term}] transfer leadership to {raft.lead_transferee:x} is in progress; "
            "dropping proposal"
        )
        raise ProposalDropped
    pending = raft.pending_conf_index
    if not append(raft, membership.admit(raft, list(message.entries))):
        raft.pending_conf_index = pending
        raise ProposalDropped
    replication.broadcast_append(raft)


def append(raft: Raft, entries: list[Entry]) -> bool:
    """Entries for the log, their term and index still to be set. Returns False if too much is uncommitted.

    Whatever the limit, one proposal is taken in when nothing is uncommitted, and an empty entry always.
    """
    size = payload_bytes(entries)
    uncommitted = raft.uncommitted_bytes
    if uncommitted and size and uncommitted + size > raft.config.max_uncommitted_bytes:
        raft.warn(
            f"{raft.id:x} appending new entries to log would exceed uncommitted entry size limit; dropping proposal"
        )
        return False
    raft.uncommitted_bytes = uncommitted + size
    term = raft.term
    index = raft.raft_log.last_index()
    stamped: list[Entry] = []
    for _, _, type_, data in entries:
        index += 1
        stamped.append((term, index, type_, data))
    raft.raft_log.append(stamped)
    # The leader's own acknowledgement, which it gets when the entries are on its disk.
    raft.respond(MessageType.APP_RESP, raft.id, term, index=index)
    return True


def reduce_uncommitted(raft: Raft, entries: Sequence[Entry]) -> None:
    """Entries are applied. The count is a lower bound: a leader does not count what it found in its log."""
    if raft.uncommitted_bytes:
        raft.uncommitted_bytes = max(0, raft.uncommitted_bytes - payload_bytes(entries))


def _refused(raft: Raft, message: Message, progress: Progress) -> None:
    raft.debug(
        f"{raft.id:x} received MsgAppResp(rejected, hint: (index {message.reject_hint}, term {message.log_term})) "
        f"from {message.sender:x} for index {message.index}"
    )
    hint = message.reject_hint
    if message.log_term:
        # The member has this term at the hint; where our log has a higher one behind it, they cannot match.
        hint, _ = raft.raft_log.find_conflict(hint, message.log_term)
    if progress.maybe_decrease(message.index, hint):
        raft.debug(f"{raft.id:x} decreased progress of {message.sender:x} to [{progress}]")
        if progress.state is ProgressState.REPLICATE:
            progress.become_probe()
        replication.send_append(raft, message.sender, if_empty=True)


def _acknowledged(raft: Raft, message: Message, progress: Progress) -> None:
    index = message.index
    # The second: a probe that found nothing new still shows where the logs match.
    if not progress.maybe_update(index) and not (progress.match == index and progress.state is ProgressState.PROBE):
        return
    member = message.sender
    state = progress.state
    if state is ProgressState.REPLICATE:
        progress.inflights.free_through(index)
    elif state is ProgressState.PROBE:
        progress.become_replicate()
    elif progress.match + 1 >= raft.raft_log.first_index():
        # Whatever it installed, from here on the log has what it needs; the snapshot on its way is not awaited.
        raft.debug(
            f"{raft.id:x} recovered from needing snapshot, resumed sending replication messages to {member:x} "
            f"[{progress}]"
        )
        progress.become_probe()
        progress.become_replicate()
    if replication.maybe_commit(raft):
        reads.release_pending(raft)
        replication.broadcast_append(raft)
    elif member != raft.id and progress.can_bump_commit(raft.raft_log.committed):
        replication.send_append(raft, member, if_empty=True)
    if member == raft.id:
        return
    while replication.send_append(raft, member, if_empty=False):
        pass
    if member == raft.lead_transferee and progress.match == raft.raft_log.last_index():
        raft.info(f"{raft.id:x} sent MsgTimeoutNow to {member:x} after received MsgAppResp")
        _send_timeout_now(raft, member)


def _heartbeat_answered(raft: Raft, message: Message, progress: Progress) -> None:
    progress.recent_active = True
    progress.paused = False
    if progress.match < raft.raft_log.last_index() or progress.state is ProgressState.PROBE:
        replication.send_append(raft, message.sender, if_empty=True)
    if message.context:
        reads.acknowledged(raft, message)


def _transfer(raft: Raft, to: int, progress: Progress) -> None:
    if progress.is_learner:
        raft.debug(f"{raft.id:x} is learner. Ignored transferring leadership")
        return
    before = raft.lead_transferee
    if before != NOBODY:
        if before == to:
            raft.info(
                f"{raft.id:x} [term {raft.term}] transfer leadership to {to:x} is in progress, ignores request to "
                f"same node {to:x}"
            )
            return
        raft.lead_transferee = NOBODY
        raft.info(f"{raft.id:x} [term {raft.term}] abort previous transferring leadership to {before:x}")
    if to == raft.id:
        raft.debug(f"{raft.id:x} is already leader. Ignored transferring leadership to self")
        return
    raft.info(f"{raft.id:x} [term {raft.term}] starts to transfer leadership to {to:x}")
    raft.election_elapsed = 0  # it has one election timeout
    raft.lead_transferee = to
    if progress.match == raft.raft_log.last_index():
        _send_timeout_now(raft, to)
        raft.info(f"{raft.id:x} sends MsgTimeoutNow to {to:x} immediately as {to:x} already has up-to-date log")
    else:
        replication.send_append(raft, to, if_empty=True)


def _send_timeout_now(raft: Raft, to: int) -> None:
    raft.messages.append(Message(MessageType.TIMEOUT_NOW, to, raft.id, raft.term))


def report_unreachable(raft: Raft, member: int) -> None:
    """A message to `member` could not be sent: appends on their way are probably lost as well."""
    progress = raft.tracker.progress.get(member)
    if progress is None:
        raft.debug(f"{raft.id:x} no progress available for {member:x}")
        return
    if progress.state is ProgressState.REPLICATE:
        progress.become_probe()
    raft.debug(f"{raft.id:x} failed to send message to {member:x} because it is unreachable [{progress}]")


def report_snapshot(raft: Raft, member: int, *, failed: bool) -> None:
    """The snapshot to `member` arrived, or did not. Then wait: for its acknowledgement, or for a heartbeat's."""
    progress = raft.tracker.progress.get(member)
    if progress is None:
        raft.debug(f"{raft.id:x} no progress available for {member:x}")
        return
    if progress.state is not ProgressState.SNAPSHOT:
        return
    if failed:
        progress.pending_snapshot = 0  # probe from where it was before
    progress.become_probe()
    outcome = "failed" if failed else "succeeded"
    raft.debug(f"{raft.id:x} snapshot {outcome}, resumed sending replication messages to {member:x} [{progress}]")
    progress.paused = True
