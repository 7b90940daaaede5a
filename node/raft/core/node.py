"""A member of a raft group as its shell sees it: calls in, one `Ready` after another out.

The shell's loop, storage writes in order (`async_storage_writes` off):

    while node.has_ready():
        ready = node.ready()
        storage: ready.hard_state, ready.entries, ready.snapshot   (synced if ready.must_sync)
        send ready.messages; apply ready.committed; answer ready.read_states
        node.advance()

With asynchronous writes there is no `advance`: the messages of a Ready may be sent at once, and those to APPEND_THREAD
and APPLY_THREAD are work orders, to be done in the order they came. When the first kind's entries, hard state and
snapshot are on disk (synced if there is anything but a new commit index), its `responses` are delivered: to other
members by the network, to this one by `step`. The second kind's when its entries are applied. A leader's disk then
works beside its followers', and entries are handed out to be applied only once they are on this member's own disk.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from node.raft.core import election, leader, membership
from node.raft.core.change import ConfChange, encode_change
from node.raft.core.confchange import Configuration
from node.raft.core.config import Config, ReadOnly
from node.raft.core.errors import NotFromStorage, PeerNotFound
from node.raft.core.messages import (
    APPEND_THREAD,
    APPLY_THREAD,
    MESSAGE_NAMES,
    NOBODY,
    ConfState,
    Entry,
    EntryType,
    HardState,
    Message,
    MessageType,
    ReadState,
    Role,
    Snapshot,
    SoftState,
)
from node.raft.core.progress import Progress
from node.raft.core.raft import Raft
from node.raft.core.storage import Storage
from node.raft.core.unstable import Log

_THREADS: Final = (APPEND_THREAD, APPLY_THREAD)
_ANSWERS: Final = frozenset(
    {
        MessageType.APP_RESP,
        MessageType.VOTE_RESP,
        MessageType.HEARTBEAT_RESP,
        MessageType.READ_INDEX_RESP,
        MessageType.PRE_VOTE_RESP,
    }
)
_WITHOUT_TERM: Final = frozenset({MessageType.PROP, MessageType.READ_INDEX})


@dataclass(slots=True)
class Ready:
    """What is to be done now. None and empty: nothing of this kind.

    `soft_state`, `hard_state`: changed since the last Ready. `entries`: for the log, replacing what follows the first
    one's index. `snapshot`: to be installed, instead of the whole log. `committed`: to be applied, after `entries` are
    on disk. `must_sync`: term, vote or entries must survive a loss of power before `messages` are sent.
    """

    soft_state: SoftState | None
    hard_state: HardState | None
    read_states: list[ReadState]
    entries: list[Entry]
    snapshot: Snapshot | None
    committed: list[Entry]
    messages: list[Message]
    must_sync: bool


@dataclass(frozen=True, slots=True)
class Status:
    """Where a member stands. `progress` is empty unless it leads."""

    id: int
    term: int
    vote: int
    commit: int
    applied: int
    lead: int
    role: Role
    lead_transferee: int
    configuration: Configuration
    progress: dict[int, Progress]


class RawNode:
    """One member. Not thread-safe: one caller, one call at a time."""

    __slots__ = ("_allow_unstable", "_async", "_hard_state", "_on_advance", "_raft", "_soft_state")

    def __init__(
        self,
        config: Config,
        storage: Storage,
        hard_state: HardState,
        conf_state: ConfState,
        random: Random,
        log: Log = lambda level, text: None,
    ) -> None:
        """`hard_state` and `conf_state` as they were kept; the latter as of `config.applied`.

        `random` draws election timeouts; `log` gets a level and a line of text.
        """
        self._raft = Raft(config, storage, hard_state, conf_state, random, log)
        self._async = config.async_storage_writes
        self._allow_unstable = not self._async
        self._soft_state = self._raft.soft_state()
        self._hard_state = self._raft.hard_state()
        self._on_advance: list[Message] = []

    def tick(self) -> None:
        """A tick of the clock has passed."""
        self._raft.tick()

    def campaign(self) -> None:
        """Start an election now."""
        election.start(self._raft)

    def propose(self, *data: bytes) -> None:
        """Propose entries, all or none, here or by way of the leader: silence promises nothing.

        Raises ProposalDropped.
        """
        entries: list[Entry] = [(0, 0, EntryType.NORMAL, each) for each in data]
        self._raft.step(Message(MessageType.PROP, sender=self._raft.id, entries=entries))

    def stamp_alone(self, data: Sequence[bytes]) -> list[Entry] | None:
        """The entries in which a leader that is the group's only member proposes `data`; None: propose it instead.

        Nothing changes here. Once the caller has them on its disk, and before any other call, it says so by
        `kept_alone`. Both together take a tenth of what the same takes by way of `propose` and two Readys, 45 us.
        """
        raft = self._raft
        log = raft.raft_log
        last = log.last_index()
        if raft.role is not Role.LEADER or not self.is_alone() or log.applied != last or self.has_ready():
            return None
        return [(raft.term, last + 1 + place, EntryType.NORMAL, each) for place, each in enumerate(data)]

    def kept_alone(self, entries: Sequence[Entry]) -> None:
        """What `stamp_alone` gave is on disk: it is committed, and counts as applied."""
        raft = self._raft
        index = entries[-1][1]
        raft.raft_log.kept(index)
        progress = raft.tracker.progress[raft.id]
        progress.match = index
        progress.next = index + 1
        self._hard_state = raft.hard_state()

    def propose_conf_change(self, change: ConfChange, *, single: bool = False) -> None:
        """Propose a membership change. `single`: as an entry that can hold only one change. Raises ProposalDropped.

        One that does not fit what is in the log already becomes an empty entry.
        """
        assert not single or (len(change.changes) == 1 and not change.enters_joint)
        type_ = EntryType.CONF_CHANGE if single else EntryType.CONF_CHANGE_V2
        self._raft.step(Message(MessageType.PROP, entries=[(0, 0, type_, encode_change(change))]))

    def apply_conf_change(self, change: ConfChange) -> ConfState:
        """A committed change was handed out (all of them, in order): returns the configuration from now on.

        With asynchronous writes this must not come after a later snapshot was taken in by `step`: do it with the Ready
        that hands the entry out. Raises ChangeRefused, with nothing changed; every member refuses the same.
        """
        return membership.apply_change(self._raft, change)

    def step(self, message: Message) -> None:
        """Take in a message. Raises ProposalDropped, PeerNotFound, NotFromStorage.

        The sender's id is believed: that it is really theirs is for the transport to check.
        """
        type_ = message.type
        if type_ >= MessageType.STORAGE_APPEND:
            if message.sender not in _THREADS:
                raise NotFromStorage
        elif type_ in _ANSWERS and message.sender not in self._raft.tracker.progress:
            raise PeerNotFound
        elif not message.term and type_ not in _WITHOUT_TERM:
            self._raft.error(f"{self._raft.id:x} invalid format of {MESSAGE_NAMES[type_]}, no term")
            return
        self._raft.step(message)

    def transfer_leader(self, to: int) -> None:
        """Ask for `to` to lead; it has an election timeout for it."""
        self._raft.step(Message(MessageType.TRANSFER_LEADER, sender=to))

    def forget_leader(self) -> None:
        """A follower that knows its leader to be gone votes at once, also within the lease."""
        raft = self._raft
        if raft.role is not Role.FOLLOWER:
            return
        if raft.config.read_only is ReadOnly.LEASE_BASED:
            raft.error("ignoring MsgForgetLeader due to ReadOnlyLeaseBased")
        elif raft.lead != NOBODY:
            raft.info(f"{raft.id:x} forgetting leader {raft.lead:x} at term {raft.term}")
            raft.lead = NOBODY

    def read_index(self, context: bytes) -> None:
        """Ask at which index a read is linearizable; a ReadState with this context answers, or nothing does.

        A context is not used twice.
        """
        request: list[Entry] = [(0, 0, EntryType.NORMAL, context)]
        self._raft.step(Message(MessageType.READ_INDEX, entries=request))

    def report_unreachable(self, member: int) -> None:
        """The last message to `member` was not delivered."""
        if self._raft.role is Role.LEADER:
            leader.report_unreachable(self._raft, member)

    def report_snapshot(self, member: int, *, failed: bool) -> None:
        """Whether a snapshot reached `member`. It must be called for every MsgSnap: until then nothing else is sent."""
        if self._raft.role is Role.LEADER:
            leader.report_snapshot(self._raft, member, failed=failed)

    def status(self) -> Status:
        """Where this member stands."""
        raft = self._raft
        leads = raft.role is Role.LEADER
        return Status(
            raft.id,
            raft.term,
            raft.vote,
            raft.raft_log.committed,
            raft.raft_log.applied,
            raft.lead,
            raft.role,
            raft.lead_transferee,
            raft.tracker.configuration.copy(),
            {member: progress.copy() for member, progress in raft.tracker.progress.items()} if leads else {},
        )

    @property
    def id(self) -> int:
        """This member."""
        return self._raft.id

    @property
    def term(self) -> int:
        """The present term."""
        return self._raft.term

    @property
    def lead(self) -> int:
        """Who leads, as far as this member knows; NOBODY."""
        return self._raft.lead

    @property
    def leads(self) -> bool:
        """Whether this member leads."""
        return self._raft.role is Role.LEADER

    @property
    def commit(self) -> int:
        """The commit index."""
        return self._raft.raft_log.committed

    @property
    def last_index(self) -> int:
        """The log's last entry, on disk or not."""
        return self._raft.raft_log.last_index()

    @property
    def lead_transferee(self) -> int:
        """To whom leadership is being handed on; NOBODY."""
        return self._raft.lead_transferee

    @property
    def may_change(self) -> bool:
        """Whether a leader would take a membership change into its log now, and not as an empty entry."""
        raft = self._raft
        log = raft.raft_log
        return log.applied >= raft.pending_conf_index and not raft.tracker.configuration.joint

    @property
    def committed_in_term(self) -> bool:
        """Whether an entry of the present term is committed."""
        return self._raft.committed_in_term()

    def is_singleton(self) -> bool:
        """Whether this member is the only voter."""
        return self._raft.tracker.is_singleton(self._raft.id)

    def is_alone(self) -> bool:
        """Whether it is the only voter, and nobody learns from it."""
        return len(self._raft.tracker.progress) == 1 and self.is_singleton()

    @property
    def progress(self) -> Mapping[int, Progress]:
        """What the leader knows of each member; not to be changed, and of no meaning elsewhere."""
        return self._raft.tracker.progress

    def set_randomized_election_timeout(self, ticks: int) -> None:
        """Until the next change of role: campaign after so many ticks without a leader."""
        self._raft.randomized_election_ticks = ticks

    def has_ready(self) -> bool:
        """Whether anything is to be done."""
        raft = self._raft
        log = raft.raft_log
        return bool(
            raft.messages
            or raft.messages_after_append
            or log.unstable.has_next_entries()
            or log.has_next_committed(allow_unstable=self._allow_unstable)
            or raft.read_states
            or raft.hard_state() != self._hard_state
            or log.unstable.next_snapshot() is not None
            or raft.soft_state() != self._soft_state
        )

    def ready(self) -> Ready:
        """What is to be done now. What it hands out it does not hand out again."""
        assert not self._on_advance, "two Readys without an advance between them"
        raft = self._raft
        log = raft.raft_log
        entries = log.unstable.next_entries()
        committed = log.next_committed(allow_unstable=self._allow_unstable)
        snapshot = log.unstable.next_snapshot()
        messages, raft.messages = raft.messages, []
        responses, raft.messages_after_append = raft.messages_after_append, []
        read_states, raft.read_states = raft.read_states, []

        soft_state: SoftState | None = raft.soft_state()
        if soft_state == self._soft_state:
            soft_state = None
        else:
            self._soft_state = raft.soft_state()
        before, now = self._hard_state, raft.hard_state()
        self._hard_state = now
        must_sync = bool(entries) or before.term != now.term or before.vote != now.vote
        hard_state = None if before == now else now

        stable = self._stable(snapshot)
        if self._async:
            if entries or hard_state is not None or snapshot is not None or responses:
                term, vote, commit = hard_state or (0, 0, 0)
                if stable is not None:
                    # Last: the acknowledgements before it are handled faster while the entries are in memory.
                    responses.append(stable)
                messages.append(
                    Message(
                        MessageType.STORAGE_APPEND,
                        APPEND_THREAD,
                        raft.id,
                        term,
                        commit=commit,
                        vote=vote,
                        entries=entries,
                        snapshot=snapshot,
                        responses=responses,
                    )
                )
            if committed:
                messages.append(
                    Message(
                        MessageType.STORAGE_APPLY,
                        APPLY_THREAD,
                        raft.id,
                        entries=committed,
                        responses=[self._applied(committed)],
                    )
                )
        else:
            for response in responses:
                (self._on_advance if response.to == raft.id else messages).append(response)
            if stable is not None:
                self._on_advance.append(stable)
            if committed:
                self._on_advance.append(self._applied(committed))
        log.unstable.accept()
        if committed:
            size = log.applying_size(committed)
            log.accept_applying(committed[-1][1], size, allow_unstable=self._allow_unstable)
        return Ready(soft_state, hard_state, read_states, entries, snapshot, committed, messages, must_sync)

    def advance(self) -> None:
        """The last Ready is done: everything in it is on disk, applied and sent. Not with asynchronous writes."""
        assert not self._async
        steps, self._on_advance = self._on_advance, []
        for message in steps:
            self._raft.step(message)

    def _stable(self, snapshot: Snapshot | None) -> Message | None:
        """What storage answers when everything up to this Ready is on disk; None if that is no news.

        It names the end of the log and the present term, not the last entry written: when the term changes while a
        write is under way, that write's answer no longer counts, since what it wrote may have been replaced; then the
        answer of a later write (there is one, of the new term) must tell that the old entries are stable.
        """
        raft = self._raft
        log_term = index = 0
        if raft.raft_log.unstable.entries:
            log_term, index = raft.raft_log.last()
        elif snapshot is None:
            return None
        return Message(
            MessageType.STORAGE_APPEND_RESP,
            raft.id,
            APPEND_THREAD,
            raft.term,
            log_term,
            index,
            snapshot=snapshot,
        )

    def _applied(self, entries: Sequence[Entry]) -> Message:
        return Message(MessageType.STORAGE_APPLY_RESP, self._raft.id, APPLY_THREAD, entries=entries)
