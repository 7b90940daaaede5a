"""What a member's raft process does, without its sockets, its clock and its disk's thread: the simulator runs this too.

Inputs are the frames of the member's other processes, the messages of the other members, the ticks of the clock and
the ends of disk writes. Each input ends in `_work`, which does what the consensus core wants done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, Final, Protocol

from kvorum import errors
from kvorum.errors import Status
from kvorum.log import Level, Logger
from kvorum.pb.internal_pb2 import MembershipState
from node.config import Config
from node.frames import (
    APPLIED,
    FLUSHED,
    HEADER_BYTES,
    PROGRESS,
    READ_ASK,
    Frame,
    Kind,
    Process,
)
from node.front.state import answer
from node.link import Streams
from node.membership import Membership
from node.raft import changes
from node.raft.core import (
    APPEND_THREAD,
    APPLY_THREAD,
    NOBODY,
    Entry,
    EntryType,
    LogLevel,
    Message,
    MessageType,
    PeerNotFound,
    ProposalDropped,
    RawNode,
    Snapshot,
)
from node.raft.core import Config as CoreConfig
from node.raft.delivery import Delivery
from node.raft.forwards import Forwards
from node.raft.leadership import Leadership
from node.raft.proposals import Held, Proposals, entries_of
from node.raft.read_context import ReadContext
from node.raft.reconfiguration import Reconfiguration
from node.raft.retention import Retention
from node.raft.start import check_applied, force_new_cluster, starting_state
from node.raft.transport import Transport
from node.raft.wal.errors import LogFull
from node.raft.wal.log import WriteAheadLog
from node.raft.writer import Disk, LogWriter
from node.requests import batches

MAX_BACKLOG_BYTES: Final = 64 << 20
"""Committed entries that apply has no credit for; beyond it, what is proposed is refused. They wait in the log's files,
but their clients have long given up, and a member that comes back must work them all off."""

MAX_MESSAGE_BYTES: Final = 1 << 20
MAX_INFLIGHT_MESSAGES: Final = 256
MAX_INFLIGHT_BYTES: Final = 16 << 20
"""To one member: half of what the transport queues for it before it drops, so that in order it drops nothing. It fills
a gigabit network with a round trip of 100 ms."""

MAX_UNCOMMITTED_BYTES: Final = 64 << 20

ENTRY_ROOM_BYTES: Final = 128
"""What an entry takes in the log beside its data, and the hard state that may come with it."""

REMOVED: Final = "the member has been permanently removed from the cluster"

LEVELS: Final = {
    LogLevel.DEBUG: Level.DEBUG,
    LogLevel.INFO: Level.INFO,
    LogLevel.WARN: Level.WARN,
    LogLevel.ERROR: Level.ERROR,
    LogLevel.FATAL: Level.FATAL,
}


class ReceivedSnapshots(Protocol):
    """The snapshots that came from other members, by index, and what becomes of them."""

    def decide(self, index: int) -> None:
        """The log has the record of this one on disk: the next generation begins with it."""

    def refuse(self, index: int) -> None:
        """The core does not want this one."""

    def is_decided(self) -> bool:
        """Whether one waits for apply to begin with it."""

    def remove(self, path: str) -> None:
        """A checkpoint of this member's own has served its followers."""


class Driver:
    """One member's consensus core with its log, its links to the member's other processes and to the other members.

    `remotes` are the other members as far as they are known before the log tells who they are: a member that joins
    answers the leader there. `finish(why)` ends the member for good, `restart(why)` begins a new generation; nothing is
    to be called after them.
    """

    def __init__(
        self,
        *,
        member_id: int,
        incarnation: int,
        config: Config,
        remotes: Mapping[int, Sequence[str]],
        links: Streams,
        log: WriteAheadLog,
        received: ReceivedSnapshots,
        disk: Disk,
        transport: Transport,
        now: Callable[[], float],
        random: Random,
        logger: Logger,
        finish: Callable[[str], None],
        restart: Callable[[str], None],
    ) -> None:
        self._id = member_id
        self._incarnation = incarnation
        self._config = config
        self._links = links
        self._log = log
        self._received = received
        self._disk = disk
        self._transport = transport
        self._now = now
        self._random = random
        self._logger = logger
        self._finish = finish
        self._restart = restart
        self._fronts = [Process.FRONT + i for i in range(config.front_workers)]
        self._request_timeout_s = 5 + 2 * config.election_timeout_s
        self._writer = LogWriter(log, disk, self._deliver, self._snapshot_recorded, logger)
        self._proposals = Proposals()
        self._context = ReadContext(member_id, incarnation)
        self._leadership = Leadership(self._context, config, links, self._fronts, now, logger)
        self._members = Reconfiguration(
            member_id,
            config,
            remotes,
            transport,
            self._leadership,
            now,
            logger,
            answer=lambda ask, reply: self._forwards.answer(ask, reply),
            pass_on=lambda leader, ask: self._forwards.pass_on(leader, ask),
        )
        self._forwards = Forwards(member_id, incarnation, self._fronts, links, transport, logger, ask=self._members.ask)
        self._delivery = Delivery(links, log, now)
        self._retention = Retention(
            config=config,
            links=links,
            log=log,
            writer=self._writer,
            disk=disk,
            transport=transport,
            members=self._members,
            now=now,
            logger=logger,
            remove=received.remove,
        )
        self._node: RawNode | None = None  # until apply said where it stands
        self._working = False
        self._over = False  # `finish` or `restart` was called
        self._installing = 0  # the index of the snapshot that the core wants in place of everything
        self._advances = config.initial_election_tick_advance
        self._late_heartbeats = 0

    @property
    def membership(self) -> Membership:
        """The members as far as the log was given out."""
        return self._members.membership

    @property
    def standing(self) -> tuple[int, int]:
        """(term, commit index) as this member knows them."""
        if self._node is None:
            return self._log.hard_state.term, self._log.hard_state.commit
        return self._node.term, self._node.commit

    # what arrives

    def on_control(self, frames: Sequence[Frame]) -> None:
        """What the member's other processes say apart from the streams; also call it when they granted credit."""
        if self._over:
            return
        for frame in frames:
            kind = frame.kind
            if kind == Kind.READ_ASK:
                if self._node is not None:
                    (number,) = READ_ASK.unpack_from(frame.data, HEADER_BYTES)
                    self._node.read_index(self._context.pack(number))
            elif kind == Kind.PROGRESS:
                self._delivery.on_progress(*PROGRESS.unpack_from(frame.data, HEADER_BYTES))
            elif kind == Kind.FLUSHED:
                self._retention.on_flushed(*FLUSHED.unpack_from(frame.data, HEADER_BYTES))
            elif kind == Kind.MEMBERS:
                self.membership.learn(MembershipState.FromString(frame.data[HEADER_BYTES:]))
            elif kind == Kind.GRANT_RETURNED:
                self._leadership.grant_returned()
            elif kind == Kind.CHECKPOINT:
                self._retention.on_checkpoint(frame.data[HEADER_BYTES:])
            elif kind == Kind.APPLIED:
                state = MembershipState.FromString(frame.data[HEADER_BYTES + APPLIED.size :])
                index, term = APPLIED.unpack_from(frame.data, HEADER_BYTES)
                self._start(index, term, state)
            else:
                assert kind == Kind.STATE_ASK, f"raft got a control frame of kind {kind}"
                self._links.send_control(frame.sender, Kind.STATE, answer(frame, self.state()))
        if self._node is not None:
            self._delivery.send()  # there may be credit again
            self._work()

    def on_data(self, frames: Sequence[Frame]) -> None:
        """What the fronts and apply want proposed, or carried to the leader."""
        if self._over:
            return
        fresh: list[Held] = []
        now = self._now()
        for frame in frames:
            kind = frame.kind
            if kind == Kind.PROPOSALS:
                fresh.append(Held(now + self._request_timeout_s, frame.sender, frame.data[HEADER_BYTES:]))
            elif kind == Kind.CHANGES:
                if self._node is not None:  # else nobody can have asked
                    for ask in changes.asked(frame.data, HEADER_BYTES):
                        self._members.ask(self._node, ask)
            elif kind == Kind.FORWARDS:
                self._forwards.reads(self._node, frame.data[HEADER_BYTES:])
            else:
                assert kind == Kind.FORWARD_REPLIES, f"raft got a frame of kind {kind}"
                self._forwards.replies(frame.data[HEADER_BYTES:])
        if fresh:
            self._propose(fresh)
        self._work()

    def on_messages(self, sender: int, messages: Sequence[Message]) -> None:
        """Messages of another member, which the transport has made sure of."""
        node = self._node
        if node is None or self._over:
            return
        proposed: list[Held] = []
        for message in messages:
            assert message.sender == sender or message.type in (MessageType.PROP, MessageType.READ_INDEX)
            if message.type is MessageType.PROP:
                if not changes.is_proposal(message.entries):  # in the log it would end every member, again and again
                    self._logger.warn("dropped a proposal that is none", sender=f"{sender:x}")
                elif message.entries[0][2] == EntryType.NORMAL:
                    until = self._now() + self._request_timeout_s
                    proposed += [Held(until, 0, entry[3]) for entry in message.entries]
                else:
                    self._members.propose(node, message)
                continue
            if message.type is MessageType.SNAP:
                continue  # these come only with their checkpoint (`on_snapshot_received`)
            try:
                node.step(message)
            except (PeerNotFound, ProposalDropped) as error:
                self._logger.debug("dropped a message", sender=f"{sender:x}", type=message.type.name, error=repr(error))
        if proposed:
            self._propose(proposed)
        self._work()

    def on_forward(self, sender: int, payload: bytes) -> None:
        """What another member's raft process sent beside the core's messages."""
        node = self._node
        if node is None or self._over:
            return
        self._forwards.on_forward(node, sender, payload)
        self._work()

    def on_unreachable(self, member: int) -> None:
        """What was sent last to `member` may be lost."""
        if self._node is not None:
            self._node.report_unreachable(member)

    def on_snapshot_sent(self, member: int, ok: bool) -> None:
        """What became of a snapshot for `member`."""
        self._retention.on_sent(member)
        if self._node is not None and not self._over:
            self._node.report_snapshot(member, failed=not ok)
            self._work()

    def on_snapshot_received(self, message: Message) -> None:
        """A snapshot is here, whole and on disk: the core says whether it is wanted."""
        assert message.snapshot is not None
        if self._node is not None and not self._over:
            self._node.step(message)
            self._work()
        if self._installing != message.snapshot.index:
            self._received.refuse(message.snapshot.index)

    def on_removed(self) -> None:
        """Another member says that this one was removed; it may never see the entry that says so."""
        if not self._over:
            self._over = True
            self._finish(REMOVED)

    def tick(self) -> None:
        """A heartbeat interval has passed."""
        node = self._node
        if node is None or self._over:
            return
        self._writer.tick(self._now())
        self._leadership.tick(node)
        if self._advances and node.lead == NOBODY:
            self._advance(node)
        node.tick()
        if self._proposals:
            self._propose([])
        if node.leads:
            self._watch_disks(node)
        self._send_replies(self._members.late_transfers(node))
        self._retention.tick()
        self._keep_changes()
        if self._members.is_over:
            self.on_removed()
        self._work()

    # the core

    def _start(self, index: int, term: int, state: MembershipState) -> None:
        """Apply stands at `index`: the log must know that entry and all after it."""
        assert self._node is None, "apply said twice where it stands"
        config = self._config
        if index < self._log.snapshot.index and self._received.is_decided():
            self._over = True
            self._restart(f"apply began before the snapshot of entry {self._log.snapshot.index} was in its place")
            return
        check_applied(self._log, config, index, term)
        if config.force_new_cluster:
            dropped = force_new_cluster(self._log, self._id, state, index)
            self._logger.warn(
                "forced a new cluster of this member alone", dropped=[f"{member:x}" for member in dropped]
            )
        conf_state = self._members.start(index, state)
        ticks = max(2, round(config.election_timeout_s / config.heartbeat_interval_s))
        core = CoreConfig(
            id=self._id,
            election_ticks=ticks,
            heartbeat_ticks=1,
            async_storage_writes=True,
            applied=index,
            max_message_bytes=MAX_MESSAGE_BYTES,
            max_uncommitted_bytes=MAX_UNCOMMITTED_BYTES,
            max_inflight_messages=MAX_INFLIGHT_MESSAGES,
            max_inflight_bytes=MAX_INFLIGHT_BYTES,
            check_quorum=True,
            pre_vote=config.pre_vote,
        )
        hard_state = starting_state(self._log, index)
        node = RawNode(core, self._retention.storage, hard_state, conf_state, self._random, self._say)
        self._node = node
        self._delivery.start(index)
        self._writer.waits_inline = node.is_singleton()
        self._work()
        if node.is_singleton():
            node.campaign()
            self._work()

    def _work(self) -> None:
        """Does what the core wants done, until it wants nothing."""
        node = self._node
        if node is None or self._working or self._over:
            return
        self._working = True
        try:
            self._members.propose_next(node)
            while node.has_ready() and not self._over:
                self._do_ready(node)
                if self._leadership.must_ask(node):
                    self._leadership.ask(node)
                self._members.propose_next(node)
            if self._leadership.announce(node, self._delivery.handed):
                self._delivery.be_patient()
                self._proposals.forget(Process.APPLY)
                self._send_replies(self._members.on_leader(node))
            self._retention.ask_apply()
        finally:
            self._working = False
        if self._proposals and not self._writer.syncing and node.lead != NOBODY and node.lead_transferee == NOBODY:
            self._propose([])
            if node.has_ready():
                self._work()

    def _do_ready(self, node: RawNode) -> None:
        ready = node.ready()
        outgoing: list[Message] = []
        append = applied = None
        for message in ready.messages:
            to = message.to
            if to == APPEND_THREAD:
                append = message
            elif to == APPLY_THREAD:
                applied = message
            elif message.type is MessageType.SNAP:
                self._retention.send(message)
            else:
                outgoing.append(message)
        if outgoing:  # first: the followers' disks work beside this one's
            self._transport.send(outgoing)
        if ready.read_states:
            for read in ready.read_states:
                self._leadership.on_read_index(node, read.index, read.context)
        if ready.committed:
            self._hand_out(node, ready.committed)
        if append is not None:
            if append.snapshot is not None:
                self._installing = append.snapshot.index
                self._delivery.stop()
            self._writer.write(append)
        if applied is not None:
            for response in applied.responses:
                node.step(response)

    def _deliver(self, responses: Sequence[Message]) -> None:
        """What the core wanted on disk is there, and this may be said now."""
        node = self._node
        assert node is not None
        outgoing: list[Message] = []
        for response in responses:
            if response.to == self._id:
                try:
                    node.step(response)
                except PeerNotFound:  # its own acknowledgement, after it was removed
                    continue
            else:
                outgoing.append(response)
        if outgoing:
            self._transport.send(outgoing)
        self._work()

    def _say(self, level: LogLevel, text: str) -> None:
        if not text.endswith("missing from unstable log; ignoring"):  # part of every write that overlaps another
            self._logger.log(LEVELS[level], text)

    # proposals

    def _propose(self, fresh: list[Held]) -> None:
        """Proposes what waited and `fresh`, in this order, or lets it wait.

        While the leader's disk is busy proposals wait for it: one larger entry costs every member less than two. What
        cannot be sent to the leader now would be lost.
        """
        node = self._node
        held = self._proposals
        if node is None or node.lead == NOBODY or node.lead_transferee != NOBODY:
            # What apply asks for of its own is right under this leader only: the next may have renewed the lease.
            self._hold([batch for batch in fresh if batch.sender != Process.APPLY])
            return
        if self._writer.syncing if node.leads else self._transport.connected_since(node.lead) is None:
            self._hold(fresh)
            return
        if node.leads and self._delivery.backlog_bytes > MAX_BACKLOG_BYTES:
            self._refuse(fresh, errors.REQUEST_TOO_MANY_REQUESTS)
            return
        if held:
            fresh = [batch for batch in held.take(self._now()) if node.leads or batch.sender != Process.APPLY] + fresh
            if not fresh:
                return
        data = [batch.data for batch in fresh]
        if self._writer.waits_inline and not self._writer.stalled:
            entries = node.stamp_alone(entries_of(data))
            if entries is not None:
                self._commit_alone(node, entries, fresh)
                return
        if (
            node.leads
            # With others there what finds no room is proposed once: if they take it, one of them should lead.
            and (self._writer.stalled or node.is_singleton())
            and not self._writer.room_for(sum(map(len, data)) + ENTRY_ROOM_BYTES * len(data))
        ):
            self._refuse(fresh, errors.NO_SPACE)
            return
        try:
            node.propose(*entries_of(data))
        except ProposalDropped:
            self._hold(fresh)

    def _commit_alone(self, node: RawNode, entries: list[Entry], proposed: Sequence[Held]) -> None:
        try:
            self._writer.write_alone(entries)
        except LogFull as error:
            self._logger.error("refused proposals: there is no room for the log", error=str(error))
            self._refuse(proposed, errors.NO_SPACE)
            return
        node.kept_alone(entries)
        self._delivery.hand_out(entries)

    def _hold(self, batches_: Sequence[Held]) -> None:
        for batch in batches_:
            if not self._proposals.hold(batch):
                self._refuse([batch], errors.REQUEST_TOO_MANY_REQUESTS)

    def _refuse(self, refused: Sequence[Held], status: Status) -> None:
        """Answers proposals that were not logged.

        Those of other members are dropped: their fronts end them by the request timeout.
        """
        for held in refused:
            if held.sender:
                for batch in batches(held.data):
                    self._forwards.refuse(held.sender, batch.first_sequence, batch.size, status)

    def _send_replies(self, replies: Sequence[tuple[int, bytes]]) -> None:
        for process, reply in replies:
            self._forwards.send(process, reply)

    # what is committed

    def _hand_out(self, node: RawNode, entries: list[Entry]) -> None:
        for entry in entries:
            if entry[2] != EntryType.NORMAL:
                self._members.execute(node, entry)
                self._writer.waits_inline = node.is_singleton()
        if self._members.unkept:
            self._keep_changes()
        self._delivery.hand_out(entries)

    def _keep_changes(self) -> None:
        """Makes sure that changes of members which were executed are known to be committed after a crash, too."""
        index = self._members.unkept
        if index and self._writer.keep_commit(index):
            self._members.on_kept()

    def _watch_disks(self, node: RawNode) -> None:
        """A leader whose apply stands still, or whose log takes nothing more (a full disk, say), is of no use to
        anybody: another may do better. For the log that is sure: a quorum has what this member could not write."""
        delivery = self._delivery
        if self._writer.stalled and node.commit > self._log.last_index:
            why = "there is no room for the log"
        elif delivery.stands_still(self._config.election_timeout_s):
            why = "apply makes no progress"
        else:
            return
        to = self._members.successor(node)
        if to is not None and node.lead_transferee == NOBODY:
            delivery.be_patient()
            self._logger.warn(f"{why}; handing leadership on", to=f"{to:x}", applied=delivery.executed)
            node.transfer_leader(to)

    def _advance(self, node: RawNode) -> None:
        """With others there, none of whom leads, a member just started need not wait a whole election timeout."""
        others = [member.ID for member in self.membership.voters() if member.ID != self._id]
        if any(self._transport.connected_since(member) is not None for member in others):
            self._advances = False
            ticks = max(2, round(self._config.election_timeout_s / self._config.heartbeat_interval_s))
            for _ in range(ticks - 2):
                node.tick()

    # the end

    def heartbeat_late(self, late_s: float) -> None:
        """The clock ticked late, so the others may have thought that this leader is gone."""
        if self._node is not None and self._node.leads and not self._node.is_singleton():
            self._late_heartbeats += 1
            self._logger.warn(
                "leader failed to send out heartbeat on time; took too long, leader is overloaded",
                heartbeat_interval=f"{self._config.heartbeat_interval_s:g}s",
                exceeded_duration=f"{late_s:.3f}s",
            )

    def hand_over(self) -> None:
        """The member stops: another one should lead before it is gone (S50, S52)."""
        node = self._node
        if node is None or not node.leads:
            self._logger.info("skipped leadership transfer; local server is not leader")
            return
        to = self._members.successor(node)
        if to is None:
            alone = "for single voting member cluster" if node.is_singleton() else "since no other voter is connected"
            self._logger.info(f"skipped leadership transfer {alone}")
            return
        self._logger.info("leadership transfer starting", current_leader=f"{self._id:x}", transferee=f"{to:x}")
        node.transfer_leader(to)
        self._work()

    @property
    def leads(self) -> bool:
        """Whether this member leads."""
        return self._node is not None and self._node.leads

    @property
    def handing_over(self) -> bool:
        """Whether this member still leads, and another one is about to."""
        node = self._node
        return node is not None and node.leads and node.lead_transferee != NOBODY

    def _snapshot_recorded(self, snapshot: Snapshot) -> None:
        """The log begins behind the snapshot from now on, and so must everything else."""
        self._received.decide(snapshot.index)
        self._over = True
        self._restart(f"installs the snapshot of entry {snapshot.index}")

    # for the others

    def state(self) -> dict[str, Any]:
        """What Status, the health pages and the metrics show of raft."""
        node = self._node
        term, commit = self.standing
        leader = node.lead if node is not None else NOBODY
        return {
            "term": term,
            "leader": leader,
            "committed": commit,
            "is_learner": self._members.is_learner,
            "connected_since": list(self._members.connected_since().items()),
            "metrics": {
                **self._transport.figures(),
                **self._writer.figures(),
                **self._members.figures(),
                "etcd_server_proposals_committed_total": commit,
                "etcd_server_has_leader": int(leader != NOBODY),
                "etcd_server_is_leader": int(leader == self._id),
                "etcd_server_leader_changes_seen_total": self._leadership.leaders_seen,
                "etcd_server_heartbeat_send_failures_total": self._late_heartbeats,
            },
        }
