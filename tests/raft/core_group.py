"""A group of cores under a network, disks and clocks that misbehave as a seed decides; what must hold is asserted.

`core_trouble.py` decides what happens to it. Everything random comes from the seed, so a failing one replays.

What is asserted, all the time:

- election safety: a term has one leader;
- log matching: entries of one index and term are the same, and so are those before them;
- leader completeness: a leader's log holds all that was committed in earlier terms;
- state-machine safety: what is committed or applied at an index is the same everywhere, configurations included;
- durability: no vote or acknowledgement leaves a member before its disk holds what it promises; an entry is committed
  only when the disks of a quorum hold it, and applied only when the member's own does;
- reads: a read index is at least all that was committed anywhere when the read was asked.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from random import Random

from node.raft.core import (
    APPEND_THREAD,
    APPLY_THREAD,
    NO_LIMIT,
    NOBODY,
    ChangeRefused,
    Config,
    ConfState,
    Entry,
    EntryType,
    HardState,
    Message,
    MessageType,
    PeerNotFound,
    ProposalDropped,
    RawNode,
    Role,
    Snapshot,
    decode_change,
)
from tests.raft.core_member import Chaos, Disk, Member
from tests.raft.traces.describe import describe_message

POOL = (1, 2, 3, 4, 5)
ELECTION_TICKS = 5


class Group:
    """Five members at most, some of them in the group from the beginning."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        self.history: list[str] = []
        self.chaos = Chaos(
            drop=random.choice((0.0, 0.02, 0.2)),
            duplicate=random.choice((0.0, 0.1)),
            reorder=random.choice((0.0, 0.1, 0.5)),
            crash=random.choice((0.0, 0.001, 0.006)),
            partition=random.choice((0.0, 0.004)),
            change=random.choice((0.0, 0.01, 0.03)),
        )
        self.changes = self.chaos.change > 0
        self.network: list[Message] = []
        self.blocked: set[tuple[int, int]] = set()  # (from, to)
        self.reports: list[tuple[int, int, bool]] = []  # (by, member, failed): of snapshots sent
        self.leaders: dict[int, int] = {}  # by term
        self.entries: dict[tuple[int, int], tuple[int, bytes, int]] = {}  # by index, term: type, data, term before
        self.committed: dict[int, tuple[int, int]] = {0: (0, 0)}  # by index: its term, and when
        self.contents: dict[int, Entry] = {}  # applied, by index
        self.states: dict[int, ConfState] = {0: ConfState()}  # the configuration after each index
        self.reads: dict[bytes, int] = {}  # by context: what was committed when it was asked
        self.reads_answered = 0
        self.proposed = 0

        base = Config(
            id=1,
            election_ticks=ELECTION_TICKS,
            heartbeat_ticks=1,
            max_message_bytes=random.choice((NO_LIMIT, 64)),
            max_applying_bytes=random.choice((0, 1, 100)),
            max_uncommitted_bytes=random.choice((NO_LIMIT, 40)),
            max_inflight_messages=random.choice((1, 3, 256)),
            max_inflight_bytes=random.choice((NO_LIMIT, 64)),
            check_quorum=random.random() < 0.5,
            pre_vote=random.random() < 0.5,
            max_pending_reads=random.choice((2, 4096)),
            disable_proposal_forwarding=random.random() < 0.2,
            step_down_on_removal=random.random() < 0.7,
        )
        voters = random.sample(POOL, random.choice((1, 2, 3, 3, 3, 4, 5)))
        first = Snapshot(1, 1, ConfState(tuple(sorted(voters))))
        self.states[1] = first.conf_state
        self.committed[1] = (1, 0)
        asynchronous = random.choice((0.0, 0.5, 1.0))
        self.members: dict[int, Member] = {}
        for id_ in POOL:
            member = Member(replace(base, id=id_, async_storage_writes=random.random() < asynchronous), Disk())
            self.members[id_] = member
            member.disk.flush = partial(self.flush, member)
            if id_ in voters:
                member.disk.install(first)
                member.applied = member.flushed = 1
            self.start(member)

    def say(self, text: str) -> None:
        """Keep what happened, for whoever studies a failure."""
        self.history.append(text)

    def running(self) -> list[Member]:
        """The members that are up."""
        return [member for member in self.members.values() if member.node is not None]

    # A member's life.

    def start(self, member: Member) -> None:
        """Start with what is on disk."""
        self.say(f"start {member.id}")
        disk = member.disk
        member.applied = member.flushed
        term, vote, commit = disk.hard_state
        state = HardState(term, vote, max(commit, member.applied))
        member.node = RawNode(
            replace(member.config, applied=member.applied),
            disk,
            state,
            self.states[member.applied],
            Random(self.random.randrange(1 << 32)),
        )
        member.seen_commit, member.seen_term = state.commit, term
        self.observe(member)

    def crash(self, member: Member) -> None:
        """Lose what is not on disk: all writes under way but, perhaps, some entries of the first."""
        self.say(f"crash {member.id}")
        disk = member.disk
        if member.append_work and self.random.random() < 0.5:
            entries = member.append_work[0].entries
            self.put(member, entries[: self.random.randint(0, len(entries))])
        if self.random.random() < 0.5:
            disk.hard_state = disk.synced_hard_state
        member.node = None
        member.append_work.clear()
        member.apply_work.clear()
        member.local.clear()

    def act(self, member: Member, call: Callable[[RawNode], None]) -> None:
        """Let a member do something, and see what came of it."""
        assert member.node is not None
        try:
            call(member.node)
        except (ProposalDropped, PeerNotFound) as error:
            self.say(f"  {error}")
        self.observe(member)

    def observe(self, member: Member) -> None:
        """Assert what must hold of a member after each call."""
        raft = member.raft
        log = raft.raft_log
        assert raft.term >= member.seen_term
        member.seen_term = raft.term
        assert log.applied <= log.applying <= log.committed <= log.last_index()
        if raft.role is Role.LEADER and raft.term not in self.leaders:
            self.leaders[raft.term] = member.id
            first = log.first_index()
            for index, (term, committed_in) in self.committed.items():
                if committed_in < raft.term:
                    assert index < first or log.term_of(index) == term, f"leader {member.id} lacks entry {index}"
        assert raft.role is not Role.LEADER or self.leaders[raft.term] == member.id, f"two leaders in {raft.term}"
        for index in range(member.seen_commit + 1, log.committed + 1):
            seen = log.term_of(index)
            if index in self.committed:
                assert seen in (None, self.committed[index][0]), f"member {member.id} commits another {index}"
            else:
                assert seen is not None
                assert raft.role is Role.LEADER, f"member {member.id} commits {index} before any leader"
                self.committed[index] = (seen, raft.term)
                conf = raft.tracker.configuration
                for voters in filter(None, (conf.incoming, conf.outgoing)):
                    holding = sum(self.members[voter].disk.holds(index, seen) for voter in voters)
                    assert holding > len(voters) // 2, f"entry {index} is committed, but not on a quorum's disks"
        member.seen_commit = log.committed

    # Disk, state machine and network.

    def flush(self, member: Member) -> Snapshot:
        """The state machine gets on disk; returns the snapshot that it then is."""
        index = member.flushed = member.applied
        return Snapshot(index, self.committed[index][0], self.states[index])

    def put(self, member: Member, entries: Sequence[Entry]) -> None:
        """Entries reach the disk."""
        disk = member.disk
        disk.append(entries)
        for term, index, type_, data in entries:
            before = disk.term_of(index - 1)
            if before is not None:
                known = self.entries.setdefault((index, term), (type_, data, before))
                assert known == (type_, data, before), f"two logs differ at {index} in term {term}"

    def write(
        self, member: Member, state: HardState | None, entries: Sequence[Entry], snapshot: Snapshot | None
    ) -> None:
        """What a Ready wants on disk gets there."""
        disk = member.disk
        sync = bool(entries) or snapshot is not None
        if snapshot is not None:
            assert self.states[snapshot.index] == snapshot.conf_state
            disk.install(snapshot)
            member.applied = member.flushed = snapshot.index
        self.put(member, entries)
        if state is not None:
            sync = sync or state[:2] != disk.synced_hard_state[:2]
            disk.hard_state = state
        if sync:
            disk.synced_hard_state = disk.hard_state

    def change(self, member: Member, entries: Sequence[Entry]) -> None:
        """Membership changes take effect when they are handed out."""
        assert member.node is not None
        for _, index, type_, data in entries:
            state = self.states[index - 1]
            if type_ != EntryType.NORMAL:
                try:
                    state = member.node.apply_conf_change(decode_change(data))
                except ChangeRefused as error:
                    self.say(f"  {error}")
                self.observe(member)
            assert self.states.setdefault(index, state) == state, f"two configurations at {index}"

    def apply(self, member: Member, entries: Sequence[Entry]) -> None:
        """Committed entries reach the state machine."""
        for entry in entries:
            term, index, _, _ = entry
            if index <= member.applied:
                assert member.disk.installed.index >= index  # handed out before a snapshot that comprises it
                continue
            assert index == member.applied + 1
            assert self.committed[index][0] == term
            assert member.disk.holds(index, term), f"entry {index} is applied before it is on disk"
            assert self.contents.setdefault(index, entry) == entry, f"two entries at {index}"
            member.applied = index

    def handle_ready(self, member: Member) -> None:
        """Do what a member wants done, or hand it to its threads."""
        node = member.node
        assert node is not None
        ready = node.ready()
        for read in ready.read_states:
            asked = self.reads.pop(read.context, None)
            if asked is not None:
                self.reads_answered += 1
                assert read.index >= asked, f"a read at {read.index} misses what was committed, {asked}"
        if member.config.async_storage_writes:
            self.change(member, ready.committed)
            for message in ready.messages:
                if message.to == APPEND_THREAD:
                    member.append_work.append(message)
                elif message.to == APPLY_THREAD:
                    member.apply_work.append(message)
                else:
                    self.send(member, message)
            return
        self.write(member, ready.hard_state, ready.entries, ready.snapshot)
        if self.random.random() < self.chaos.crash:
            self.crash(member)
            return
        for message in ready.messages:
            self.send(member, message)
        self.change(member, ready.committed)
        self.apply(member, ready.committed)
        self.act(member, RawNode.advance)

    def append_thread(self, member: Member) -> None:
        """The next write gets on disk."""
        work = member.append_work.popleft()
        state = HardState(work.term, work.vote, work.commit)
        self.write(member, state if any(state) else None, work.entries, work.snapshot)
        for response in work.responses:
            self.send(member, response)

    def apply_thread(self, member: Member) -> None:
        """The next committed entries are applied."""
        work = member.apply_work.popleft()
        self.apply(member, work.entries)
        member.local.extend(work.responses)

    def send(self, member: Member, message: Message) -> None:
        """A message leaves: what it promises is on disk."""
        disk = member.disk
        if message.type is MessageType.APP_RESP and not message.reject:
            # In a later term the log may be shorter again: then the answer is as one that was long on its way.
            kept = message.index <= disk.last_index or disk.hard_state.term > message.term
            assert kept, f"{message} promises what is not on disk"
        elif message.type is MessageType.VOTE_RESP and not message.reject:
            state = disk.hard_state
            assert state.term > message.term or state[:2] == (message.term, message.to), f"{message}, but {state}"
        if message.to == member.id:
            member.local.append(message)
        else:
            assert message.to != NOBODY
            self.network.append(message)

    def deliver(self) -> None:
        """A message arrives, or does not."""
        random, chaos = self.random, self.chaos
        place = random.randrange(len(self.network)) if random.random() < chaos.reorder else 0
        message = self.network.pop(place)
        to = self.members[message.to]
        lost = random.random() < chaos.drop or (message.sender, message.to) in self.blocked or to.node is None
        if message.type is MessageType.SNAP:
            self.reports.append((message.sender, message.to, lost))
        if lost:
            sender = self.members[message.sender]
            if sender.node is not None and random.random() < 0.3:
                self.act(sender, lambda node: node.report_unreachable(message.to))
            return
        if random.random() < chaos.duplicate:
            self.network.append(message)
        self.say(f"deliver {describe_message(message)}")
        self.act(to, lambda node: node.step(message))

    def deliver_local(self, member: Member) -> None:
        """A member hears from its own threads: in order, and without fail."""
        message = member.local.popleft()
        self.say(f"deliver {describe_message(message)}")
        self.act(member, lambda node: node.step(message))
