"""Elections: to ask for votes, to give them, and to count them (Raft paper, 5.2; PreVote and leases: thesis, 9.6)."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

from node.raft.core import follower, replication
from node.raft.core.errors import ProposalDropped
from node.raft.core.messages import MESSAGE_NAMES, NOBODY, ROLE_NAMES, EntryType, Message, MessageType, Role
from node.raft.core.quorum import VoteResult

if TYPE_CHECKING:
    from node.raft.core.raft import Raft

TRANSFER: Final = b"transfer"
"""The context of a request for votes that the leader itself asked for: its lease does not stand in the way."""

_SCAN_BYTES: Final = 1 << 20


class Campaign(IntEnum):
    """Why, and so how, a member campaigns."""

    PRE_ELECTION = 0
    ELECTION = 1
    TRANSFER = 2


def start(raft: Raft) -> None:
    """No leader was heard of for too long, or the application wants this member to lead."""
    _start(raft, Campaign.PRE_ELECTION if raft.config.pre_vote else Campaign.ELECTION)


def start_transfer(raft: Raft) -> None:
    """The leader wants this member to lead: it is known to live, so nobody needs to be asked beforehand."""
    _start(raft, Campaign.TRANSFER)


def _start(raft: Raft, campaign: Campaign) -> None:
    if raft.role is Role.LEADER:
        raft.debug(f"{raft.id:x} ignoring MsgHup because already leader")
    elif not raft.promotable():
        raft.warn(f"{raft.id:x} is unpromotable and can not campaign")
    elif _has_unapplied_change(raft):
        raft.warn(
            f"{raft.id:x} cannot campaign at term {raft.term} since there are still pending configuration changes "
            "to apply"
        )
    else:
        raft.info(f"{raft.id:x} is starting a new election at term {raft.term}")
        _campaign(raft, campaign)


def _has_unapplied_change(raft: Raft) -> bool:
    log = raft.raft_log
    index = max(log.applied, log.first_index() - 1) + 1  # what is compacted is applied, told or not
    while index <= log.committed:
        entries = log.read(index, log.committed + 1, _SCAN_BYTES)
        if any(entry[2] != EntryType.NORMAL for entry in entries):
            return True
        index += len(entries)
    return False


def _campaign(raft: Raft, campaign: Campaign) -> None:
    if campaign is Campaign.PRE_ELECTION:
        raft.become_pre_candidate()
        type_, response, term = MessageType.PRE_VOTE, MessageType.PRE_VOTE_RESP, raft.term + 1
    else:
        raft.become_candidate()
        type_, response, term = MessageType.VOTE, MessageType.VOTE_RESP, raft.term
    context = TRANSFER if campaign is Campaign.TRANSFER else b""
    last_term, last_index = raft.raft_log.last()
    configuration = raft.tracker.configuration
    for voter in sorted(configuration.incoming | configuration.outgoing):
        if voter == raft.id:
            raft.respond(response, voter, term)
            continue
        raft.info(
            f"{raft.id:x} [logterm: {last_term}, index: {last_index}] sent {MESSAGE_NAMES[type_]} request to "
            f"{voter:x} at term {raft.term}"
        )
        raft.messages.append(
            Message(type_, voter, raft.id, term, log_term=last_term, index=last_index, context=context)
        )


def in_lease(raft: Raft, message: Message) -> bool:
    """Whether a request for votes is ignored: the leader was heard of within an election timeout."""
    if (
        not raft.config.check_quorum
        or raft.lead == NOBODY
        or raft.election_elapsed >= raft.config.election_ticks
        or message.context == TRANSFER
    ):
        return False
    raft.info(
        f"{_judging(raft)} ignored {_request(message, 'from')} at term {raft.term}: lease is not expired "
        f"(remaining ticks: {raft.config.election_ticks - raft.election_elapsed})"
    )
    return True


def step_vote(raft: Raft, message: Message) -> None:
    """Give a vote or refuse it. Learners vote too: they may have become voters and not know it yet."""
    type_ = message.type
    pre_vote = type_ is MessageType.PRE_VOTE
    response = MessageType.PRE_VOTE_RESP if pre_vote else MessageType.VOTE_RESP
    can_vote = (
        raft.vote == message.sender
        or (raft.vote == NOBODY and raft.lead == NOBODY)
        or (pre_vote and message.term > raft.term)
    )
    if not can_vote or not raft.raft_log.is_up_to_date(message.log_term, message.index):
        refuse(raft, message, response)
        return
    raft.info(f"{_judging(raft)} cast {_request(message, 'for')} at term {raft.term}")
    # The term asked about: of a pre-vote it is one ahead of ours, and the asker drops answers of lower terms.
    raft.respond(response, message.sender, message.term)
    if not pre_vote:
        raft.election_elapsed = 0
        raft.vote = message.sender


def refuse(raft: Raft, message: Message, response: MessageType) -> None:
    """Refuse a vote, in our own term: if it is higher, the asker learns of it."""
    raft.info(f"{_judging(raft)} rejected {_request(message, 'from')} at term {raft.term}")
    raft.respond(response, message.sender, raft.term, reject=True)


def _judging(raft: Raft) -> str:
    last_term, last_index = raft.raft_log.last()
    return f"{raft.id:x} [logterm: {last_term}, index: {last_index}, vote: {raft.vote:x}]"


def _request(message: Message, preposition: str) -> str:
    return (
        f"{MESSAGE_NAMES[message.type]} {preposition} {message.sender:x} "
        f"[logterm: {message.log_term}, index: {message.index}]"
    )


def step(raft: Raft, message: Message) -> None:
    """A candidate or pre-candidate takes in a message. Raises ProposalDropped."""
    type_ = message.type
    match type_:
        case MessageType.VOTE_RESP | MessageType.PRE_VOTE_RESP:
            # In the same term there may still be answers to the pre-vote before this campaign.
            if (type_ is MessageType.PRE_VOTE_RESP) == (raft.role is Role.PRE_CANDIDATE):
                _count(raft, message)
        case MessageType.APP | MessageType.HEARTBEAT | MessageType.SNAP:
            raft.become_follower(message.term, message.sender)
            follower.step(raft, message)
        case MessageType.PROP:
            raft.info(f"{raft.id:x} no leader at term {raft.term}; dropping proposal")
            raise ProposalDropped
        case MessageType.TIMEOUT_NOW:
            raft.debug(
                f"{raft.id:x} [term {raft.term} state {ROLE_NAMES[raft.role]}] ignored MsgTimeoutNow from "
                f"{message.sender:x}"
            )
        case _:
            pass


def _count(raft: Raft, message: Message) -> None:
    name = MESSAGE_NAMES[message.type]
    what = f"{name} rejection" if message.reject else name
    raft.info(f"{raft.id:x} received {what} from {message.sender:x} at term {raft.term}")
    raft.tracker.votes.setdefault(message.sender, not message.reject)
    granted, rejected, result = raft.tracker.tally()
    raft.info(f"{raft.id:x} has received {granted} {name} votes and {rejected} vote rejections")
    if result is VoteResult.LOST:
        raft.become_follower(raft.term, NOBODY)
    elif result is VoteResult.WON:
        if raft.role is Role.PRE_CANDIDATE:
            _campaign(raft, Campaign.ELECTION)
        else:
            raft.become_leader()
            replication.broadcast_append(raft)
