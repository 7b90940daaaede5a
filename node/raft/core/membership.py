"""Who belongs to the group: changes proposed, changes applied, and what follows from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from node.raft.core import confchange, replication
from node.raft.core.change import ConfChange, decode_change
from node.raft.core.confchange import Membership
from node.raft.core.errors import ProposalDropped
from node.raft.core.messages import NOBODY, ConfState, Entry, EntryType, Role

if TYPE_CHECKING:
    from node.raft.core.raft import Raft


def admit(raft: Raft, entries: list[Entry]) -> list[Entry]:
    """Of proposed entries: a change that must not enter the log now becomes an empty entry. Raises ProposalDropped."""
    result = entries
    for place, entry in enumerate(entries):
        if entry[2] == EntryType.NORMAL:
            continue
        try:
            change = decode_change(entry[3])
        except ValueError as error:
            raft.warn(f"{raft.id:x} cannot read a proposed conf change; dropping proposal: {error}")
            raise ProposalDropped from error
        refusal = None if raft.config.disable_conf_change_validation else _refusal(raft, change)
        if refusal is None:
            raft.pending_conf_index = raft.raft_log.last_index() + place + 1
            continue
        text = change.describe(single=entry[2] == EntryType.CONF_CHANGE)
        raft.info(f"{raft.id:x} ignoring conf change {text} at config {raft.tracker.configuration}: {refusal}")
        if result is entries:
            result = list(entries)
        result[place] = (0, 0, EntryType.NORMAL, b"")
    return result


def _refusal(raft: Raft, change: ConfChange) -> str | None:
    applied = raft.raft_log.applied
    if raft.pending_conf_index > applied:
        return f"possible unapplied conf change at index {raft.pending_conf_index} (applied to {applied})"
    joint = raft.tracker.configuration.joint
    if joint and change.changes:
        return "must transition out of joint config first"
    if not joint and not change.changes:
        return "not in joint state; refusing empty conf change"
    return None


def apply_change(raft: Raft, change: ConfChange) -> ConfState:
    """The change is committed and applied: the configuration from now on. Raises ChangeRefused, changing nothing."""
    tracker = raft.tracker
    last_index = raft.raft_log.last_index()
    after = confchange.change(
        tracker.membership(), change, lambda is_learner: tracker.new_progress(last_index, is_learner=is_learner)
    )
    return switch_to(raft, after)


def switch_to(raft: Raft, membership: Membership) -> ConfState:
    """The configuration is another from now on; a leader acts upon it."""
    tracker = raft.tracker
    tracker.switch_to(membership)
    configuration = tracker.configuration
    raft.info(f"{raft.id:x} switched to configuration {configuration}")
    state = configuration.conf_state()
    if raft.role is not Role.LEADER:
        return state
    progress = tracker.progress.get(raft.id)
    if progress is None or progress.is_learner:
        if raft.config.step_down_on_removal:
            raft.become_follower(raft.term, NOBODY)
        return state
    if replication.maybe_commit(raft):
        replication.broadcast_append(raft)
    else:
        for member in tracker.progress:
            if member != raft.id:
                replication.send_append(raft, member, if_empty=False)
    if raft.lead_transferee != NOBODY and not tracker.is_voter(raft.lead_transferee):
        raft.lead_transferee = NOBODY
    return state
