"""What one member of a group is told once, at its start."""

from dataclasses import dataclass
from enum import IntEnum

from node.raft.core.messages import NO_LIMIT, NOBODY


class ReadOnly(IntEnum):
    """How a leader makes sure that it still leads before it answers a read."""

    SAFE = 0  # a quorum answers a heartbeat sent after the read came
    LEASE_BASED = 1  # it trusts its election timeout: clocks that run apart can make a read stale


@dataclass(frozen=True, slots=True)
class Config:
    """Times are in ticks; sizes are those of entries on the wire, except max_uncommitted_bytes: of their data.

    Raises ValueError when the values do not fit together.
    """

    id: int
    election_ticks: int  # a follower campaigns after one to two of these without a leader
    heartbeat_ticks: int
    async_storage_writes: bool = False
    applied: int = 0  # what the application has applied already; 0: what the snapshot covers
    max_message_bytes: int = NO_LIMIT  # of the entries in one append; a larger entry travels alone
    max_applying_bytes: int = 0  # of entries handed out and not yet applied; 0: as max_message_bytes
    max_uncommitted_bytes: int = NO_LIMIT  # what a leader takes in before it commits; one proposal may be larger
    max_inflight_messages: int = 256
    max_inflight_bytes: int = NO_LIMIT
    check_quorum: bool = False  # a leader without a quorum steps down; a member with a leader does not vote
    pre_vote: bool = False
    read_only: ReadOnly = ReadOnly.SAFE
    max_pending_reads: int = 4096  # further ones are dropped; who asked asks again
    disable_proposal_forwarding: bool = False
    disable_conf_change_validation: bool = False  # the application makes sure that one is applied before the next
    step_down_on_removal: bool = False

    def __post_init__(self) -> None:
        if not NOBODY < self.id < NO_LIMIT - 1:
            raise ValueError(f"a member cannot have id {self.id}")
        if self.heartbeat_ticks <= 0:
            raise ValueError("heartbeat tick must be greater than 0")
        if self.election_ticks <= self.heartbeat_ticks:
            raise ValueError("election tick must be greater than heartbeat tick")
        if self.max_inflight_messages <= 0:
            raise ValueError("max inflight messages must be greater than 0")
        if self.max_inflight_bytes < self.max_message_bytes != NO_LIMIT:
            raise ValueError("max inflight bytes must be >= max message size")
        if self.read_only is ReadOnly.LEASE_BASED and not self.check_quorum:
            raise ValueError("check quorum must be enabled when reads are lease-based")
