"""One member of a group: its state, the rules of terms, and the changes of role.

What a member does in each role lies in `follower.py`, `election.py` and `leader.py`; what a leader sends in
`replication.py`; who belongs to the group in `membership.py`; reads in `reads.py`. Those are functions of the state
here. Names and messages are those of the Raft paper and thesis; the traces under `tests/raft` show every one.

Whatever a function does not return it leaves in `messages` (to be sent at once), `messages_after_append` (to be sent
when everything in the log and the hard state as of now is on disk) and `read_states`; `node.py` hands them out.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Final

from node.raft.core import election, follower, leader, membership
from node.raft.core.config import Config
from node.raft.core.errors import ProposalDropped
from node.raft.core.log import RaftLog
from node.raft.core.messages import (
    MESSAGE_NAMES,
    NOBODY,
    ConfState,
    Entry,
    EntryType,
    HardState,
    LogLevel,
    Message,
    MessageType,
    ReadState,
    Role,
    Snapshot,
    SoftState,
)
from node.raft.core.read_only import ReadOnlyQueue
from node.raft.core.storage import Storage
from node.raft.core.tracker import Tracker
from node.raft.core.unstable import Log

_FROM_LEADER: Final = frozenset({MessageType.APP, MessageType.HEARTBEAT, MessageType.SNAP})


class Raft:
    """The state of one member. `term`, `vote` and the log must reach the disk before anyone hears of them."""

    __slots__ = (
        "config",
        "election_elapsed",
        "heartbeat_elapsed",
        "id",
        "lead",
        "lead_transferee",
        "log",
        "messages",
        "messages_after_append",
        "pending_conf_index",
        "pending_reads",
        "raft_log",
        "random",
        "randomized_election_ticks",
        "read_only",
        "read_states",
        "role",
        "term",
        "tracker",
        "uncommitted_bytes",
        "vote",
    )

    def __init__(
        self, config: Config, storage: Storage, hard_state: HardState, conf_state: ConfState, random: Random, log: Log
    ) -> None:
        self.config = config
        self.id = config.id
        self.random = random
        self.log = log
        self.raft_log = RaftLog(storage, config.max_applying_bytes or config.max_message_bytes, log)
        self.tracker = Tracker(config.max_inflight_messages, config.max_inflight_bytes)
        self.term = 0
        self.vote = NOBODY
        self.role = Role.FOLLOWER
        self.lead = NOBODY
        self.lead_transferee = NOBODY
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        self.randomized_election_ticks = 0
        self.pending_conf_index = 0  # no change may be proposed before this index is applied
        self.uncommitted_bytes = 0
        self.read_only = ReadOnlyQueue()
        self.pending_reads: list[Message] = []  # reads that came before the first commit of the term
        self.messages: list[Message] = []
        self.messages_after_append: list[Message] = []
        self.read_states: list[ReadState] = []

        last_term, last_index = self.raft_log.last()
        membership.switch_to(self, self.tracker.restored(conf_state, last_index))
        if hard_state != HardState(0, 0, 0):
            committed = self.raft_log.committed
            assert committed <= hard_state.commit <= last_index, (
                f"commit index {hard_state.commit} is not in the log, [{committed}, {last_index}]"
            )
            self.raft_log.committed = hard_state.commit
            self.term = hard_state.term
            self.vote = hard_state.vote
        if config.applied:
            self.raft_log.applied_to(config.applied, 0)
        self.become_follower(self.term, NOBODY)
        conf = self.tracker.configuration
        peers = ",".join([f"{voter:x}" for voter in sorted(conf.incoming | conf.outgoing)])
        self.info(
            f"newRaft {self.id:x} [peers: [{peers}], term: {self.term}, commit: {self.raft_log.committed}, "
            f"applied: {self.raft_log.applied}, lastindex: {last_index}, lastterm: {last_term}]"
        )

    def debug(self, text: str) -> None:
        """A log line for whoever studies the protocol."""
        self.log(LogLevel.DEBUG, text)

    def info(self, text: str) -> None:
        """A log line for the operator."""
        self.log(LogLevel.INFO, text)

    def warn(self, text: str) -> None:
        """A log line that asks for attention."""
        self.log(LogLevel.WARN, text)

    def error(self, text: str) -> None:
        """A log line about what must not be; the message that brought it is dropped."""
        self.log(LogLevel.ERROR, text)

    def soft_state(self) -> SoftState:
        """What need not be on disk."""
        return SoftState(self.lead, self.role)

    def hard_state(self) -> HardState:
        """What must be on disk."""
        return HardState(self.term, self.vote, self.raft_log.committed)

    def promotable(self) -> bool:
        """Whether this member may campaign: it votes, and no snapshot waits to be installed."""
        progress = self.tracker.progress.get(self.id)
        return progress is not None and not progress.is_learner and self.raft_log.unstable.snapshot is None

    def committed_in_term(self) -> bool:
        """Whether an entry of this term is committed: only then does a leader know what is (paper, section 8)."""
        return self.raft_log.term_of(self.raft_log.committed) == self.term

    def tick(self) -> None:
        """A tick of the clock has passed."""
        if self.role is Role.LEADER:
            leader.tick(self)
            return
        self.election_elapsed += 1
        if self.election_elapsed >= self.randomized_election_ticks and self.promotable():
            self.election_elapsed = 0
            election.start(self)

    def reset(self, term: int) -> None:
        """A term or a role begins: what belonged to the last one is forgotten."""
        if self.term != term:
            self.term = term
            self.vote = NOBODY
        self.lead = NOBODY
        self.lead_transferee = NOBODY
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        ticks = self.config.election_ticks
        self.randomized_election_ticks = ticks + self.random.randrange(ticks)
        self.tracker.reset(self.id, self.raft_log.last_index())
        self.pending_conf_index = 0
        self.uncommitted_bytes = 0
        self.read_only = ReadOnlyQueue()
        self.pending_reads = []

    def become_follower(self, term: int, lead: int) -> None:
        """Follow `lead`, if known, in `term`."""
        self.reset(term)
        self.lead = lead
        self.role = Role.FOLLOWER
        self.info(f"{self.id:x} became follower at term {self.term}")

    def become_candidate(self) -> None:
        """Ask for votes in the next term."""
        assert self.role is not Role.LEADER
        self.reset(self.term + 1)
        self.vote = self.id
        self.role = Role.CANDIDATE
        self.info(f"{self.id:x} became candidate at term {self.term}")

    def become_pre_candidate(self) -> None:
        """Ask whether votes would be given; neither the term nor the vote changes."""
        assert self.role is not Role.LEADER
        self.tracker.votes = {}
        self.lead = NOBODY
        self.role = Role.PRE_CANDIDATE
        self.info(f"{self.id:x} became pre-candidate at term {self.term}")

    def become_leader(self) -> None:
        """Lead this term: its first entry is an empty one."""
        assert self.role is not Role.FOLLOWER
        self.reset(self.term)
        self.lead = self.id
        self.role = Role.LEADER
        progress = self.tracker.progress[self.id]
        progress.become_replicate()
        progress.recent_active = True
        # There may be a change among the entries not yet applied; waiting for all of them is simpler than looking.
        self.pending_conf_index = self.raft_log.last_index()
        accepted = leader.append(self, [(0, 0, EntryType.NORMAL, b"")])
        assert accepted, "an empty entry weighs nothing"
        self.info(f"{self.id:x} became leader at term {self.term}")

    def respond(self, type_: MessageType, to: int, term: int, *, index: int = 0, reject: bool = False) -> None:
        """Send a vote or an acknowledgement: only when what it promises is on disk."""
        self.messages_after_append.append(Message(type_, to, self.id, term, index=index, reject=reject))

    def step(self, message: Message) -> None:
        """Take in a message, from another member or from this one's storage. Raises ProposalDropped."""
        term = message.term
        # 0: within the member, or a request that may have come a long way.
        if term and term != self.term and not self._step_term(message):
            return
        type_ = message.type
        if type_ is MessageType.STORAGE_APPEND_RESP:
            if message.index:
                self.raft_log.stable_to(message.index, message.log_term)
            if message.snapshot is not None:
                self.applied_snapshot(message.snapshot)
        elif type_ is MessageType.STORAGE_APPLY_RESP:
            self.applied_entries(message.entries)
        elif type_ is MessageType.VOTE or type_ is MessageType.PRE_VOTE:
            election.step_vote(self, message)
        else:
            _STEP[self.role](self, message)

    def _step_term(self, message: Message) -> bool:
        """A message of another term: what this one's term becomes; returns whether the message still counts."""
        type_ = message.type
        name = MESSAGE_NAMES[type_]
        if message.term > self.term:
            if type_ is MessageType.VOTE or type_ is MessageType.PRE_VOTE:
                if election.in_lease(self, message):
                    return False
                if type_ is MessageType.PRE_VOTE:
                    return True
            elif type_ is MessageType.PRE_VOTE_RESP and not message.reject:
                return True  # the term that was asked about, not one that anybody has
            self.info(
                f"{self.id:x} [term: {self.term}] received a {name} message with higher term from "
                f"{message.sender:x} [term: {message.term}]"
            )
            self.become_follower(message.term, message.sender if type_ in _FROM_LEADER else NOBODY)
            return True
        if type_ is MessageType.HEARTBEAT or type_ is MessageType.APP:
            if self.config.check_quorum or self.config.pre_vote:
                # With these options nobody's request for votes moves a leader of a lower term: this answer does.
                self.respond(MessageType.APP_RESP, message.sender, self.term)
                return False
        elif type_ is MessageType.PRE_VOTE:
            election.refuse(self, message, MessageType.PRE_VOTE_RESP)
            return False
        elif type_ is MessageType.STORAGE_APPEND_RESP:
            if message.index:
                # What was written may have been replaced since, and that write may be under way.
                self.info(
                    f"{self.id:x} [term: {self.term}] ignored entry appends from a {name} message with lower term "
                    f"[term: {message.term}]"
                )
            if message.snapshot is not None:
                self.applied_snapshot(message.snapshot)
            return False
        self.info(
            f"{self.id:x} [term: {self.term}] ignored a {name} message with lower term from {message.sender:x} "
            f"[term: {message.term}]"
        )
        return False

    def applied_entries(self, entries: Sequence[Entry]) -> None:
        """The entries of a STORAGE_APPLY_RESP are applied."""
        if entries:
            self._applied_to(entries[-1][1], self.raft_log.applying_size(entries))
            leader.reduce_uncommitted(self, entries)

    def applied_snapshot(self, snapshot: Snapshot) -> None:
        """The snapshot is installed."""
        self.raft_log.unstable.stable_snapshot_to(snapshot.index)
        self._applied_to(snapshot.index, 0)

    def _applied_to(self, index: int, size_bytes: int) -> None:
        log = self.raft_log
        log.applied_to(max(index, log.applied), size_bytes)
        configuration = self.tracker.configuration
        if configuration.auto_leave and log.applied >= self.pending_conf_index and self.role is Role.LEADER:
            # Refused while leadership is being transferred; tried again with the next entry applied.
            try:
                self.step(Message(MessageType.PROP, entries=[(0, 0, EntryType.CONF_CHANGE_V2, b"")]))
            except ProposalDropped as error:
                self.debug(f"not initiating automatic transition out of joint configuration {configuration}: {error}")
            else:
                self.info(f"initiating automatic transition out of joint configuration {configuration}")


_STEP: Final[tuple[Callable[[Raft, Message], None], ...]] = (
    follower.step,
    election.step,
    leader.step,
    election.step,
)
"""By role."""
