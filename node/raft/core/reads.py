"""Linearizable reads: at which index, and may this leader still say so (Raft thesis, section 6.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from node.raft.core import replication
from node.raft.core.config import ReadOnly
from node.raft.core.messages import NOBODY, Message, MessageType, ReadState
from node.raft.core.quorum import VoteResult

if TYPE_CHECKING:
    from node.raft.core.raft import Raft


def step_read(raft: Raft, message: Message) -> None:
    """A leader is asked for a read index. It has none before an entry of its term is committed, not even alone."""
    if len(message.entries) != 1:
        raft.error(f"{raft.id:x} invalid format of MsgReadIndex, entries count: {len(message.entries)}")
    elif raft.committed_in_term():
        _confirm(raft, message)
    elif len(raft.pending_reads) < raft.config.max_pending_reads:
        raft.pending_reads.append(message)
    else:
        raft.debug(f"{raft.id:x} has {len(raft.pending_reads)} reads pending; dropping index reading msg")


def release_pending(raft: Raft) -> None:
    """An entry was committed: if it is of this term, the reads that waited for it may go on."""
    if raft.pending_reads and raft.committed_in_term():
        pending, raft.pending_reads = raft.pending_reads, []
        for message in pending:
            _confirm(raft, message)


def acknowledged(raft: Raft, message: Message) -> None:
    """A member answered a heartbeat that carried a read's context."""
    context = message.context
    acks = raft.read_only.acknowledge(message.sender, context)
    if raft.tracker.vote_result(acks) is VoteResult.WON:
        for read in raft.read_only.advance(context):
            _answer(raft, read.request, read.index)


def _confirm(raft: Raft, message: Message) -> None:
    # While leadership is handed on, another member may be elected within this one's lease.
    leased = raft.config.read_only is ReadOnly.LEASE_BASED and raft.lead_transferee == NOBODY
    if leased or raft.tracker.is_singleton(raft.id):
        _answer(raft, message, raft.raft_log.committed)
        return
    reads = raft.read_only
    if len(reads) >= raft.config.max_pending_reads:
        raft.debug(f"{raft.id:x} has {len(reads)} reads pending; dropping index reading msg")
        return
    context = reads.add(raft.raft_log.committed, message)
    reads.acknowledge(raft.id, context)
    replication.broadcast_heartbeat(raft, context)


def _answer(raft: Raft, request: Message, index: int) -> None:
    if request.sender == NOBODY or request.sender == raft.id:
        raft.read_states.append(ReadState(index, request.entries[0][3]))
    else:
        raft.messages.append(
            Message(
                MessageType.READ_INDEX_RESP,
                request.sender,
                raft.id,
                raft.term,
                index=index,
                entries=request.entries,
            )
        )
