"""What a member's raft process does, without its sockets, its clock and its disk's thread: the simulator runs this too.

Inputs are the frames of the member's other processes, the messages of the other members, the ticks of the clock and
the ends of disk writes. Each input ends in `_work`, which does what the consensus core wants done.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, Final

from kvorum import errors
from kvorum.errors import Status
from kvorum.pb.internal_pb2 import MemberChange, MembershipState
from kvorum.pb.rpc_pb2 import MoveLeaderRequest
from node.config import Config
from node.frames import (
    APPLIED,
    ENTRY_HEADER,
    FLUSHED,
    FORWARD,
    HEADER_BYTES,
    LEADERSHIP,
    LEADING,
    PROGRESS,
    READ_ASK,
    READ_INDEX,
    Frame,
    Kind,
    Process,
)
from node.front.state import answer
from node.link_zmq import Links
from node.log import Level, Logger
from node.membership import Membership
from node.raft import changes
from node.raft.changes import Asked, Surroundings, Transfers
from node.raft.core import (
    APPEND_THREAD,
    APPLY_THREAD,
    NOBODY,
    ChangeType,
    ConfChange,
    ConfState,
    Entry,
    EntryType,
    LogLevel,
    Message,
    MessageType,
    PeerNotFound,
    ProposalDropped,
    RawNode,
    Snapshot,
    decode_change,
    encode_conf_state,
)
from node.raft.core import Config as CoreConfig
from node.raft.proposals import Held, Proposals, entries_of
from node.raft.start import check_applied, starting_state
from node.raft.storage import LogStorage
from node.raft.transport import Transport
from node.raft.wal.errors import LogFull
from node.raft.wal.log import WriteAheadLog
from node.raft.wal.record import Entry as LogEntry
from node.raft.wal.record import Snapshot as SnapshotRecord
from node.raft.writer import Disk, LogWriter
from node.requests import REPLY, Op, batches

SEND_BYTES: Final = 1 << 20
"""A frame of entries read back for apply (after a start, or when it had no credit) holds about this much."""

MAX_BACKLOG_BYTES: Final = 64 << 20
"""Committed entries that apply has no credit for; beyond it, what is proposed is refused. They wait in the log's files,
but their clients have long given up, and a member that comes back must work them all off."""

MAX_MESSAGE_BYTES: Final = 1 << 20
MAX_INFLIGHT_MESSAGES: Final = 256
MAX_INFLIGHT_BYTES: Final = 64 << 20
MAX_UNCOMMITTED_BYTES: Final = 64 << 20

REMOVED_STAYS_S: Final = 1.0
"""A removed member goes on so long, so that the others learn of its removal (M18)."""

CONTEXT: Final = struct.Struct("<QQQ")
"""Of a read index: member, incarnation, number; the number's highest bit marks raft's own (leadership)."""

OWN: Final = 1 << 63

NEVER: Final = (1 << 64) - 1
NEVER_S: Final = float("inf")
MAX_OWN_READS: Final = 64
APPLY_PATIENCE_S: Final = 1.0
ENTRY_ROOM_BYTES: Final = 128

LEVELS: Final = {
    LogLevel.DEBUG: Level.DEBUG,
    LogLevel.INFO: Level.INFO,
    LogLevel.WARN: Level.WARN,
    LogLevel.ERROR: Level.ERROR,
    LogLevel.FATAL: Level.FATAL,
}

FORWARDED_READS: Final = b"r"
FORWARDED_REPLIES: Final = b"a"
FORWARDED_CHANGE: Final = b"c"
"""First byte of what members send each other beside the core's messages."""


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
        links: Links,
        log: WriteAheadLog,
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
        self._remotes = remotes
        self._links = links
        self._log = log
        self._disk = disk
        self._transport = transport
        self._now = now
        self._random = random
        self._logger = logger
        self._finish = finish
        self._restart = restart
        self._fronts = [Process.FRONT + i for i in range(config.front_workers)]
        self._request_timeout_s = 5 + 2 * config.election_timeout_s
        self._storage = LogStorage(log)
        self._writer = LogWriter(log, disk, self._deliver, self._snapshot_recorded, logger)
        self._proposals = Proposals()
        self.membership = Membership()
        self._node: RawNode | None = None  # until apply said where it stands
        self._working = False
        # what apply gets
        self._handed = 0  # the last entry that the core gave out to be applied
        self._sent = 0  # the last one that apply was sent
        self._backlog_bytes = 0  # of those given out and not sent
        self._progress = 0  # the last one that apply executed
        self._progress_at = 0.0
        self._states: deque[tuple[int, ConfState]] = deque()  # configurations, and from which entry on they hold
        # leadership, as it was announced
        self._announced: tuple[int, int, int, bool] | None = None  # term, leader, catch_up_to, solo
        self._leaders_seen = 0
        self._catch_up_to: int | None = None
        self._own_reads: dict[int, tuple[float, int]] = {}  # number -> when it was asked, and the term led then
        self._own_number = 0
        self._grant_from = 0  # no solo grant before this entry was given out
        self._granted = False  # apply may still answer reads on a grant
        self._changes: deque[Asked] = deque()  # wait for apply to return it
        self._transfers = Transfers()
        self._removed_at: float | None = None
        self._idle_ticks = 0
        self._advance_ticks = config.initial_election_tick_advance
        self.heartbeat_failures = 0

    # what arrives

    def on_control(self, frames: Sequence[Frame]) -> None:
        """What the member's other processes say apart from the streams; also call it when they granted credit."""
        for frame in frames:
            kind = frame.kind
            if kind == Kind.READ_ASK:
                if self._node is not None:
                    (number,) = READ_ASK.unpack_from(frame.data, HEADER_BYTES)
                    self._node.read_index(CONTEXT.pack(self._id, self._incarnation, number))
            elif kind == Kind.PROGRESS:
                (self._progress,) = PROGRESS.unpack_from(frame.data, HEADER_BYTES)
                self._progress_at = self._now()
            elif kind == Kind.FLUSHED:
                self._release(*FLUSHED.unpack_from(frame.data, HEADER_BYTES))
            elif kind == Kind.MEMBERS:
                self.membership.learn(MembershipState.FromString(frame.data[HEADER_BYTES:]))
            elif kind == Kind.GRANT_RETURNED:
                self._on_grant_returned()
            elif kind == Kind.APPLIED:
                state = MembershipState.FromString(frame.data[HEADER_BYTES + APPLIED.size :])
                index, term = APPLIED.unpack_from(frame.data, HEADER_BYTES)
                self._start(index, term, state)
            else:
                assert kind == Kind.STATE_ASK, f"raft got a control frame of kind {kind}"
                self._links.send_control(frame.sender, Kind.STATE, answer(frame, self.state()))
        if self._node is not None:
            self._send_entries(None)  # there may be credit again
            self._work()

    def on_data(self, frames: Sequence[Frame]) -> None:
        """What the fronts and apply want proposed, or carried to the leader."""
        fresh: list[Held] = []
        now = self._now()
        for frame in frames:
            kind = frame.kind
            if kind == Kind.PROPOSALS:
                fresh.append(Held(now + self._request_timeout_s, frame.sender, frame.data[HEADER_BYTES:]))
            elif kind == Kind.CHANGES:
                for ask in changes.asked(frame.data, HEADER_BYTES):
                    self._change(ask)
            elif kind == Kind.FORWARDS:
                self._forward_reads(frame.data[HEADER_BYTES:])
            else:
                assert kind == Kind.FORWARD_REPLIES, f"raft got a frame of kind {kind}"
                self._forward_replies(frame.data[HEADER_BYTES:])
        if fresh:
            self._propose(fresh)
        self._work()

    def on_messages(self, sender: int, messages: Sequence[Message]) -> None:
        """Messages of another member, which the transport has made sure of."""
        node = self._node
        if node is None:
            return
        proposed: list[Held] = []
        for message in messages:
            assert message.sender == sender or message.type in (MessageType.PROP, MessageType.READ_INDEX)
            if message.type is MessageType.PROP and all(entry[2] == EntryType.NORMAL for entry in message.entries):
                until = self._now() + self._request_timeout_s
                proposed += [Held(until, 0, entry[3]) for entry in message.entries]
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
        if node is None:
            return
        kind, body = payload[:1], payload[1:]
        if kind == FORWARDED_READS:
            if node.leads:
                self._links.send(Process.APPLY, Kind.FORWARDS, body)
        elif kind == FORWARDED_REPLIES:
            self._deliver_replies(body)
        elif kind == FORWARDED_CHANGE:
            if node.leads:
                for ask in changes.asked(body):
                    self._change(ask)
                self._work()
        else:
            self._logger.warn("dropped what a member sent", sender=f"{sender:x}", kind=kind.hex())

    def on_unreachable(self, member: int) -> None:
        """What was sent last to `member` may be lost."""
        if self._node is not None:
            self._node.report_unreachable(member)

    def on_snapshot_sent(self, member: int, ok: bool) -> None:
        """What became of a snapshot for `member`."""
        if self._node is not None:
            self._node.report_snapshot(member, failed=not ok)
            self._work()

    def on_snapshot_received(self, message: Message) -> None:
        """A snapshot is here, whole and on disk."""
        if self._node is not None:
            self._node.step(message)
            self._work()

    def on_removed(self) -> None:
        """Another member says that this one was removed; it may never see the entry that says so."""
        self._finish("the member has been permanently removed from the cluster")

    def tick(self) -> None:
        """A heartbeat interval has passed."""
        node = self._node
        if node is None:
            return
        now = self._now()
        self._writer.tick()
        if node.lead != NOBODY and (self._catch_up_to is None or (node.leads and not node.is_singleton())):
            self._ask_own_read(now)
        if self._advance_ticks and node.lead == NOBODY:
            self._advance(node)
        node.tick()
        if self._proposals:
            self._propose([])
        if node.leads:
            self._watch_apply(now, node)
            if self._transfers and node.lead_transferee == NOBODY:
                now = NEVER_S  # the core gives a transfer up after an election timeout
        for front, reply in self._transfers.expire(now) if self._transfers else ():
            self._links.send(front, Kind.REPLIES, reply)
        if self._removed_at is not None and self._now() >= self._removed_at:
            self._finish("the member has been permanently removed from the cluster")
            return
        self._work()

    # the core

    def _start(self, index: int, term: int, state: MembershipState) -> None:
        """Apply stands at `index`: the log must know that entry and all after it."""
        assert self._node is None, "apply said twice where it stands"
        config = self._config
        check_applied(self._log, config, index, term)
        self.membership = Membership.restore(state)
        conf_state = self.membership.conf_state()
        self._states.append((index, conf_state))
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
        node = RawNode(core, self._storage, hard_state, conf_state, self._random, self._say)
        self._node = node
        self._handed = self._sent = self._progress = index
        self._progress_at = self._now()
        self._members_changed(node)
        self._work()
        if node.is_singleton():
            node.campaign()
            self._work()

    def _work(self) -> None:
        """Does what the core wants done, until it wants nothing."""
        node = self._node
        if node is None or self._working:
            return
        self._working = True
        try:
            while node.has_ready():
                self._do_ready(node)
                if self._catch_up_to is None and node.lead != NOBODY and not self._own_reads:
                    self._ask_own_read(self._now())
            self._announce(node)
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
                self._send_snapshot(message)
            else:
                outgoing.append(message)
        if outgoing:  # first: the followers' disks work beside this one's
            self._transport.send(outgoing)
        if ready.read_states:
            for read in ready.read_states:
                self._on_read_index(node, read.index, read.context)
        if ready.committed:
            self._hand_out(node, ready.committed)
        if append is not None:
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

        While the leader's disk is busy proposals wait for it: one larger entry costs every member less than two.
        """
        node = self._node
        held = self._proposals
        if (
            node is None
            or node.lead == NOBODY
            or node.lead_transferee != NOBODY
            or (node.leads and self._writer.syncing)
        ):
            self._hold(fresh)
            return
        if node.leads and self._backlog_bytes > MAX_BACKLOG_BYTES:
            self._refuse(fresh, errors.REQUEST_TOO_MANY_REQUESTS)
            return
        if held:
            fresh = held.take(self._now()) + fresh
            if not fresh:
                return
        data = [batch.data for batch in fresh]
        if self._writer.waits_inline and not self._writer.stalled:
            entries = node.stamp_alone(entries_of(data))
            if entries is not None:
                self._commit_alone(node, entries, fresh)
                return
        if node.leads and not self._writer.room_for(sum(map(len, data)) + ENTRY_ROOM_BYTES * len(data)):
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
        self._handed = entries[-1][1]
        self._send_entries(entries)

    def _hold(self, batches_: Sequence[Held]) -> None:
        for batch in batches_:
            if not self._proposals.hold(batch):
                self._refuse([batch], errors.REQUEST_TOO_MANY_REQUESTS)

    def _refuse(self, refused: Sequence[Held], status: Status) -> None:
        """Answers proposals that were not logged. Every sender bounds what it proposes, so its credit suffices.

        Those of other members are dropped: their fronts end them by the request timeout.
        """
        for held in refused:
            if held.sender:
                for batch in batches(held.data):
                    self._reply(held.sender, batch.first_sequence, batch.size, status)

    def _reply(self, front: int, first_sequence: int, count: int, status: Status) -> None:
        code, text = status
        body = text.encode()
        replies = [REPLY.pack(first_sequence + i, len(body), code) + body for i in range(count)]
        self._links.send(front, Kind.REPLIES, b"".join(replies))

    # what is committed

    def _hand_out(self, node: RawNode, entries: list[Entry]) -> None:
        for entry in entries:
            if entry[2] != EntryType.NORMAL:
                self._execute_change(node, entry)
        self._handed = entries[-1][1]
        self._send_entries(entries)

    def _send_entries(self, fresh: list[LogEntry] | None) -> None:
        """Sends apply what is committed, as far as it has credit; the rest stays in the log until it has."""
        links = self._links
        outlet = links.outlet(Process.APPLY, Kind.ENTRIES)
        pack = ENTRY_HEADER.pack
        while self._sent < self._handed and outlet.open():
            if fresh and fresh[0][1] == self._sent + 1:
                entries, fresh = fresh, None
            else:
                entries = self._log.read(self._sent + 1, self._handed + 1, SEND_BYTES)
            parts: list[bytes] = []
            for term, index, type_, data in entries:
                parts.append(pack(index, term, type_, len(data)))
                parts.append(data)
            self._sent = entries[-1][1]
            links.send(Process.APPLY, Kind.ENTRIES, b"".join(parts))
        if fresh and self._sent < self._handed:
            self._backlog_bytes += sum([len(entry[3]) for entry in fresh])
        elif self._sent == self._handed:
            self._backlog_bytes = 0

    def _watch_apply(self, now: float, node: RawNode) -> None:
        """A leader whose apply stands still is of no use to anybody (a full disk, say): another may do better."""
        timeout_s = self._config.election_timeout_s
        if self._progress >= self._handed or now - self._progress_at < max(timeout_s, APPLY_PATIENCE_S):
            return
        to = self._successor(node)
        if to is not None and node.lead_transferee == NOBODY:
            self._progress_at = now
            self._logger.warn("apply makes no progress; handing leadership on", to=f"{to:x}", applied=self._progress)
            node.transfer_leader(to)

    def _successor(self, node: RawNode) -> int | None:
        """The voter that has most of the log, of those that can be reached; of equals the one connected longest."""
        best: tuple[int, float] | None = None
        successor = None
        for member, progress in node.progress.items():
            since = self._transport.connected_since(member) if member != self._id else None
            if since is None or progress.is_learner:
                continue
            rank = (progress.match, -since)
            if best is None or rank > best:
                best, successor = rank, member
        return successor

    # leadership

    def _announce(self, node: RawNode) -> None:
        """Tells apply and the fronts who leads, when that changed."""
        solo = node.leads and node.committed_in_term and self._handed >= self._grant_from and node.is_singleton()
        catch_up_to = NEVER if self._catch_up_to is None else self._catch_up_to
        now = (node.term if node.lead != NOBODY else 0, node.lead, catch_up_to, solo)
        before = self._announced
        if now == before:
            return
        if before is None and node.lead == NOBODY:
            return
        self._announced = now
        payload = LEADERSHIP.pack(node.term, node.lead, catch_up_to, solo)
        for process in (Process.APPLY, *self._fronts):
            self._links.send_control(process, Kind.LEADERSHIP, payload)
        if solo:
            self._granted = True
            self._links.send_control(Process.APPLY, Kind.LEADING, LEADING.pack(node.term, float("inf")))
        if before is None or before[:2] != now[:2]:
            self._leader_changed(node)

    def _leader_changed(self, node: RawNode) -> None:
        if node.lead == NOBODY:
            self._logger.info(f"raft.node: {self._id:x} lost its leader at term {node.term}")
            return
        self._leaders_seen += 1
        self._progress_at = self._now()
        self._logger.info(f"raft.node: {self._id:x} elected leader {node.lead:x} at term {node.term}")
        for front, reply in self._transfers.on_leader(node.lead):
            self._links.send(front, Kind.REPLIES, reply)

    def _ask_own_read(self, now: float) -> None:
        """Asks a quorum whether this member, or its leader, leads, and up to where it should have caught up."""
        node = self._node
        assert node is not None
        self._own_number += 1
        if len(self._own_reads) >= MAX_OWN_READS:
            del self._own_reads[next(iter(self._own_reads))]
        self._own_reads[self._own_number] = (now, node.term if node.leads else 0)
        node.read_index(CONTEXT.pack(self._id, self._incarnation, self._own_number | OWN))

    def _on_read_index(self, node: RawNode, index: int, context: bytes) -> None:
        member, incarnation, number = CONTEXT.unpack(context)
        if member != self._id or incarnation != self._incarnation:
            return  # asked before this generation
        if not number & OWN:
            self._links.send_control(Process.APPLY, Kind.READ_INDEX, READ_INDEX.pack(number, index))
            return
        asked = self._own_reads.pop(number & ~OWN, None)
        if asked is None:
            return
        asked_at, term = asked
        if self._catch_up_to is None:
            self._catch_up_to = index
        if node.leads and term == node.term and node.lead_transferee == NOBODY and not node.is_singleton():
            config = self._config
            # The others' lease begins when they hear of the leader; their clocks count whole ticks, and may be fast.
            until = asked_at + config.election_timeout_s - 2 * config.heartbeat_interval_s
            self._links.send_control(Process.APPLY, Kind.LEADING, LEADING.pack(node.term, until))

    def _advance(self, node: RawNode) -> None:
        """With others there, none of whom leads, a member just started need not wait a whole election timeout."""
        others = [member.ID for member in self.membership.voters() if member.ID != self._id]
        if any(self._transport.connected_since(member) is not None for member in others):
            self._advance_ticks = False
            ticks = max(2, round(self._config.election_timeout_s / self._config.heartbeat_interval_s))
            for _ in range(ticks - 2):
                node.tick()

    # members

    def _execute_change(self, node: RawNode, entry: Entry) -> None:
        """A membership entry is committed: the core, the transport and the own list of members follow it."""
        _, index, type_, data = entry
        membership = self.membership
        if type_ == EntryType.FOUNDING:
            membership.found(data)
            state = ConfState()
            for voter in membership.conf_state().voters:
                state = node.apply_conf_change(ConfChange(((ChangeType.ADD_VOTER, voter),)))
        else:
            conf_change = decode_change(data)
            for ask in changes.asked(conf_change.context):
                change = MemberChange.FromString(ask.body)
                if membership.check(ask.op, change) is not None:
                    return  # every member refuses it; apply answers why
                membership.execute(ask.op, change)
            state = node.apply_conf_change(conf_change)
        self._states.append((index, state))
        self._members_changed(node)

    def _members_changed(self, node: RawNode) -> None:
        membership = self.membership
        others: Mapping[int, Sequence[str]] = self._remotes
        if members := membership.members():
            others = {member.ID: tuple(member.peerURLs) for member in members if member.ID != self._id}
        self._transport.set_members(others, membership.state().removed)
        self._writer.waits_inline = node.is_singleton()
        if membership.is_removed(self._id) and self._removed_at is None:
            self._removed_at = self._now() + REMOVED_STAYS_S
            to = self._successor(node) if node.leads else None
            if to is not None:
                node.transfer_leader(to)

    def _change(self, ask: Asked) -> None:
        """A front of this member, or of another one that forwards it, wants the members or the leader changed."""
        node = self._node
        if node is None or node.lead == NOBODY:
            self._answer_change(ask, errors.NO_LEADER)
            return
        if ask.op == Op.MOVE_LEADER:
            self._move_leader(node, ask)
            return
        if ask.op == Op.MEMBER_PROMOTE and not node.leads:
            self._transport.forward(node.lead, FORWARDED_CHANGE + ask.batch)
            return
        refusal = changes.refusal(ask.op, MemberChange.FromString(ask.body), self._surroundings(node))
        if refusal is not None:
            self._answer_change(ask, refusal)
        elif self._granted:
            self._grant_from = NEVER  # which takes the grant back, and the change waits until apply knows
            self._changes.append(ask)
        else:
            self._propose_change(node, ask)

    def _surroundings(self, node: RawNode) -> Surroundings:
        members = [member.ID for member in self.membership.members()]
        since = {member: self._transport.connected_since(member) for member in members if member != self._id}
        return Surroundings(
            member_id=self._id,
            membership=self.membership,
            connected_since={member: at for member, at in since.items() if at is not None},
            matches={member: progress.match for member, progress in node.progress.items()} if node.leads else {},
            now=self._now(),
            strict=self._config.strict_reconfig_check,
        )

    def _propose_change(self, node: RawNode, ask: Asked) -> None:
        change = changes.conf_change(ask.op, MemberChange.FromString(ask.body), ask.batch)
        try:
            node.propose_conf_change(change, single=True)
        except ProposalDropped:
            self._answer_change(ask, errors.LEADER_CHANGED)

    def _on_grant_returned(self) -> None:
        node = self._node
        assert node is not None
        self._granted = False
        waiting, self._changes = self._changes, deque()
        for ask in waiting:
            self._propose_change(node, ask)
        self._grant_from = node.last_index

    def _move_leader(self, node: RawNode, ask: Asked) -> None:
        target = MoveLeaderRequest.FromString(ask.body).targetID
        refusal = changes.transfer_refusal(target, self._id, node.lead, self.membership)
        if refusal is not None:
            self._answer_change(ask, refusal)
        elif target == self._id:
            self._links.send(ask.origin, Kind.REPLIES, changes.moved(ask))
        else:
            self._logger.info("leadership transfer starting", current_leader=f"{self._id:x}", transferee=f"{target:x}")
            node.transfer_leader(target)
            self._transfers.wait(target, ask, self._now() + self._request_timeout_s)

    def _answer_change(self, ask: Asked, status: Status) -> None:
        """Refuses a change where it was asked for."""
        member, incarnation = next(iter(batches(ask.batch)))[2:4]
        reply = changes.refused(ask, status)
        self._forward_replies(FORWARD.pack(member, incarnation, ask.origin) + reply)

    # reads that only the leader's apply can answer

    def _forward_reads(self, payload: bytes) -> None:
        """Of this member's fronts. Without a leader they are dropped: a front repeats them when it hears of one."""
        node = self._node
        if node is None or node.lead == NOBODY:
            return
        if node.leads:
            self._links.send(Process.APPLY, Kind.FORWARDS, payload)
        else:
            self._transport.forward(node.lead, FORWARDED_READS + payload)

    def _forward_replies(self, payload: bytes) -> None:
        member, _, _ = FORWARD.unpack_from(payload)
        if member == self._id:
            self._deliver_replies(payload)
        else:
            self._transport.forward(member, FORWARDED_REPLIES + payload)

    def _deliver_replies(self, payload: bytes) -> None:
        member, incarnation, front = FORWARD.unpack_from(payload)
        if (member, incarnation) == (self._id, self._incarnation) and front in self._fronts:
            self._links.send(front, Kind.REPLIES, payload[FORWARD.size :])

    # the end

    def heartbeat_late(self, late_s: float) -> None:
        """The clock ticked late, so the others may have thought that this leader is gone."""
        if self._node is not None and self._node.leads and not self._node.is_singleton():
            self.heartbeat_failures += 1
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
        to = self._successor(node)
        if to is None:
            self._logger.info("skipped leadership transfer for single voting member cluster")
            return
        self._logger.info("leadership transfer starting", current_leader=f"{self._id:x}", transferee=f"{to:x}")
        node.transfer_leader(to)
        self._work()

    @property
    def handing_over(self) -> bool:
        """Whether this member still leads, and another one is about to."""
        node = self._node
        return node is not None and node.leads and node.lead_transferee != NOBODY

    # snapshots and the log's end

    def _release(self, flushed: int) -> None:
        """The store is on disk up to `flushed`: what the log needs no more may go."""
        log = self._log
        states = self._states
        while len(states) > 1 and states[1][0] <= flushed:
            states.popleft()
        if flushed - log.snapshot.index < self._config.snapshot_count:
            return
        term = log.term_of(flushed)
        assert term is not None, "the store flushed an index that the log does not know"
        self._logger.info("triggering snapshot", local_member_snapshot_index=log.snapshot.index, applied_index=flushed)
        try:
            log.append_snapshot(SnapshotRecord(flushed, term, encode_conf_state(states[0][1])))
        except LogFull as error:
            self._logger.warn("cannot compact Raft logs: there is no room for the log", error=str(error))
            return
        log.sync()
        self._logger.info("saved snapshot to disk", snapshot_index=flushed)
        compact = flushed - self._config.snapshot_catchup_entries
        if compact > 0:
            self._storage.compact(compact)
            released = log.release(compact, self._config.max_wals)
            self._logger.info("compacted Raft logs", compact_index=compact, files=released)
            if released:
                self._disk.run(log.remove_released)

    def _send_snapshot(self, message: Message) -> None:
        raise NotImplementedError

    def _snapshot_recorded(self, snapshot: Snapshot) -> None:
        raise NotImplementedError

    # for the others

    def state(self) -> dict[str, Any]:
        """What Status, the health pages and the metrics show of raft."""
        node = self._node
        term = node.term if node is not None else self._log.hard_state.term
        commit = node.commit if node is not None else self._log.hard_state.commit
        leader = node.lead if node is not None else NOBODY
        learner = self._id in self.membership.conf_state().learners
        return {
            "term": term,
            "leader": leader,
            "committed": commit,
            "is_learner": learner,
            "metrics": {
                "etcd_disk_wal_fsync_duration_seconds": self._writer.fsync_s.snapshot(),
                "etcd_disk_wal_write_duration_seconds": self._writer.write_s.snapshot(),
                "etcd_disk_wal_write_bytes_total": self._writer.written_bytes,
                "etcd_server_proposals_committed_total": commit,
                "etcd_server_has_leader": int(leader != NOBODY),
                "etcd_server_is_leader": int(leader == self._id),
                "etcd_server_is_learner": int(learner),
                "etcd_server_leader_changes_seen_total": self._leaders_seen,
                "etcd_server_heartbeat_send_failures_total": self.heartbeat_failures,
            },
        }
