"""What a follower does: take in what the leader sends, and pass on what only the leader can do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from node.raft.core import election, membership
from node.raft.core.errors import ProposalDropped
from node.raft.core.messages import NOBODY, Message, MessageType, ReadState, Role, Snapshot

if TYPE_CHECKING:
    from node.raft.core.raft import Raft


def step(raft: Raft, message: Message) -> None:
    """A follower takes in a message. Raises ProposalDropped."""
    type_ = message.type
    if type_ is MessageType.APP or type_ is MessageType.HEARTBEAT or type_ is MessageType.SNAP:
        raft.election_elapsed = 0
        raft.lead = message.sender
        if type_ is MessageType.APP:
            _append(raft, message)
        elif type_ is MessageType.HEARTBEAT:
            _heartbeat(raft, message)
        else:
            _snapshot(raft, message)
        return
    match type_:
        case MessageType.PROP:
            if raft.lead == NOBODY:
                raft.info(f"{raft.id:x} no leader at term {raft.term}; dropping proposal")
                raise ProposalDropped
            if raft.config.disable_proposal_forwarding:
                raft.info(f"{raft.id:x} not forwarding to leader {raft.lead:x} at term {raft.term}; dropping proposal")
                raise ProposalDropped
            _pass_on(raft, message, 0)
        case MessageType.TRANSFER_LEADER:
            if raft.lead == NOBODY:
                raft.info(f"{raft.id:x} no leader at term {raft.term}; dropping leader transfer msg")
                return
            _pass_on(raft, message, raft.term)
        case MessageType.READ_INDEX:
            if raft.lead == NOBODY:
                raft.info(f"{raft.id:x} no leader at term {raft.term}; dropping index reading msg")
                return
            _pass_on(raft, message, 0)
        case MessageType.READ_INDEX_RESP:
            if len(message.entries) != 1:
                raft.error(f"{raft.id:x} invalid format of MsgReadIndexResp, entries count: {len(message.entries)}")
                return
            raft.read_states.append(ReadState(message.index, message.entries[0][3]))
        case MessageType.TIMEOUT_NOW:
            raft.info(
                f"{raft.id:x} [term {raft.term}] received MsgTimeoutNow from {message.sender:x} and starts an "
                "election to get leadership."
            )
            election.start_transfer(raft)
        case _:
            pass


def _pass_on(raft: Raft, message: Message, term: int) -> None:
    raft.messages.append(Message(message.type, raft.lead, message.sender or raft.id, term, entries=message.entries))


def _append(raft: Raft, message: Message) -> None:
    log = raft.raft_log
    if message.index < log.committed:
        raft.respond(MessageType.APP_RESP, message.sender, raft.term, index=log.committed)
        return
    entries = list(message.entries)
    if entries and (entries[0][1] != message.index + 1 or entries[-1][1] != message.index + len(entries)):
        raft.error(f"{raft.id:x} invalid format of MsgApp from {message.sender:x}, a gap behind index {message.index}")
        return
    last = log.maybe_append(message.log_term, message.index, entries, message.commit)
    if last is not None:
        raft.respond(MessageType.APP_RESP, message.sender, raft.term, index=last)
        return
    raft.debug(
        f"{raft.id:x} [logterm: {log.term_of(message.index) or 0}, index: {message.index}] rejected MsgApp "
        f"[logterm: {message.log_term}, index: {message.index}] from {message.sender:x}"
    )
    # A guess where the logs may match lets the leader skip all entries of terms that it does not have.
    hint, hint_term = log.find_conflict(min(message.index, log.last_index()), message.log_term)
    raft.messages_after_append.append(
        Message(
            MessageType.APP_RESP,
            message.sender,
            raft.id,
            raft.term,
            log_term=hint_term,
            index=message.index,
            reject=True,
            reject_hint=hint,
        )
    )


def _heartbeat(raft: Raft, message: Message) -> None:
    raft.raft_log.commit_to(message.commit)
    raft.messages.append(
        Message(MessageType.HEARTBEAT_RESP, message.sender, raft.id, raft.term, context=message.context)
    )


def _snapshot(raft: Raft, message: Message) -> None:
    snapshot = message.snapshot
    if snapshot is None:
        raft.error(f"{raft.id:x} invalid format of MsgSnap from {message.sender:x}, no snapshot")
        return
    log = raft.raft_log
    place = f"snapshot [index: {snapshot.index}, term: {snapshot.term}]"
    if _restore(raft, snapshot):
        raft.info(f"{raft.id:x} [commit: {log.committed}] restored {place}")
        raft.respond(MessageType.APP_RESP, message.sender, raft.term, index=log.last_index())
    else:
        raft.info(f"{raft.id:x} [commit: {log.committed}] ignored {place}")
        raft.respond(MessageType.APP_RESP, message.sender, raft.term, index=log.committed)


def _restore(raft: Raft, snapshot: Snapshot) -> bool:
    """Begin again from a snapshot; False when it is not needed or not meant for this member."""
    log = raft.raft_log
    if snapshot.index <= log.committed:
        return False
    assert raft.role is Role.FOLLOWER
    state = snapshot.conf_state
    if raft.id not in state.voters + state.learners + state.voters_outgoing:
        raft.warn(
            f"{raft.id:x} attempted to restore snapshot but it is not in the ConfState {state}; should never happen"
        )
        return False
    place = f"snapshot [index: {snapshot.index}, term: {snapshot.term}]"
    if log.term_of(snapshot.index) == snapshot.term:
        last_term, last_index = log.last()
        raft.info(
            f"{raft.id:x} [commit: {log.committed}, lastindex: {last_index}, lastterm: {last_term}] fast-forwarded "
            f"commit to {place}"
        )
        log.commit_to(snapshot.index)
        return False
    log.restore(snapshot)
    membership.switch_to(raft, raft.tracker.restored(state, log.last_index()))
    last_term, last_index = log.last()
    raft.info(f"{raft.id:x} [commit: {log.committed}, lastindex: {last_index}, lastterm: {last_term}] restored {place}")
    return True
