"""A member in an interaction trace."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from node.raft.core import (
    Config,
    Entry,
    EntryType,
    HardState,
    MemoryStorage,
    Message,
    RawNode,
    ReadOnly,
    Snapshot,
    decode_change,
)
from node.raft.core.unstable import Log
from tests.raft.traces.output import CommandFailed


@dataclass(slots=True)
class Member:
    """A member, its stable log, and its state machine: one that appends what it applies."""

    node: RawNode
    storage: MemoryStorage
    config: Config
    append_work: list[Message] = field(default_factory=list)
    apply_work: list[Message] = field(default_factory=list)
    history: list[Snapshot] = field(default_factory=list)  # after each entry applied

    def write(self, hard_state: HardState | None, entries: Sequence[Entry], snapshot: Snapshot | None) -> None:
        """To the stable log."""
        if hard_state is not None:
            self.storage.hard_state = hard_state
        if snapshot is not None:
            if entries:
                raise CommandFailed("can't apply snapshot and entries at the same time")
            self.storage.install(snapshot)
        else:
            self.storage.append(entries)

    def apply(self, entries: Sequence[Entry]) -> None:
        """To the state machine; its newest state is what a snapshot holds."""
        for term, index, type_, data in entries:
            last = self.history[-1]
            state = last.conf_state
            if type_ == EntryType.NORMAL:
                update = data
            else:
                change = decode_change(data)
                update = change.context
                state = self.node.apply_conf_change(change)
            self.history.append(Snapshot(index, term, state, last.data + update))
        self.storage.offered = self.history[-1]

    def restart(self, log: Log) -> None:
        """Crash and start again: what is on disk or applied survives."""
        self.append_work = []
        self.apply_work = []
        applied = max(self.history[-1], self.storage.installed, key=lambda snapshot: snapshot.index)
        if applied is not self.history[-1]:
            self.history.append(applied)
        self.config = replace(self.config, applied=applied.index)
        term, vote, commit = self.storage.hard_state
        self.storage.hard_state = HardState(term, vote, max(commit, applied.index))
        self.node = RawNode(
            self.config, self.storage, self.storage.hard_state, applied.conf_state, Random(self.config.id), log
        )


def parse_bool(text: str) -> bool:
    """`true` or `false`."""
    if text.lower() not in ("true", "t", "1", "false", "f", "0"):
        raise CommandFailed(f"neither true nor false: {text}")
    return text.lower() in ("true", "t", "1")


CONFIG_OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "inflight": ("max_inflight_messages", int),
    "async-storage-writes": ("async_storage_writes", parse_bool),
    "prevote": ("pre_vote", parse_bool),
    "checkquorum": ("check_quorum", parse_bool),
    "max-committed-size-per-ready": ("max_applying_bytes", int),
    "disable-conf-change-validation": ("disable_conf_change_validation", parse_bool),
    "step-down-on-removal": ("step_down_on_removal", parse_bool),
    "read-only": ("read_only", lambda text: {"safe": ReadOnly.SAFE, "lease-based": ReadOnly.LEASE_BASED}[text]),
    "max-inflight-bytes": ("max_inflight_bytes", int),
    "max-size-per-msg": ("max_message_bytes", int),
    "max-uncommitted-size": ("max_uncommitted_bytes", int),
    "max-pending-reads": ("max_pending_reads", int),
    "disable-proposal-forwarding": ("disable_proposal_forwarding", parse_bool),
}
