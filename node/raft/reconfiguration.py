"""How a member's raft process changes who belongs to the cluster, and follows what was agreed.

`changes.py` has the rules, `node/membership.py` the members; here is their order in time: a change is asked for,
examined, proposed as an entry of its own, and executed where the log has it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from kvorum import errors
from kvorum.errors import Status
from kvorum.log import Logger
from kvorum.pb.internal_pb2 import MemberChange, MembershipState
from kvorum.pb.rpc_pb2 import MoveLeaderRequest
from node.config import Config
from node.membership import Membership
from node.raft import changes
from node.raft.changes import Asked, Surroundings, Transfers
from node.raft.core import (
    NOBODY,
    ChangeType,
    ConfChange,
    ConfState,
    Entry,
    EntryType,
    Message,
    MessageType,
    ProposalDropped,
    RawNode,
    decode_change,
    encode_change,
)
from node.raft.leadership import Leadership
from node.raft.transport import Transport
from node.requests import Op
from node.stats import Figures

REMOVED_STAYS_S: Final = 1.0
"""A removed member goes on so long, so that the others learn of its removal (M18)."""

MAX_QUEUE: Final = 100
"""Changes that wait at a leader; beyond it they are dropped."""

Reply = Callable[[Asked, bytes], None]
"""Takes a packed reply to where the change was asked for."""

Refuse = Callable[[Asked, Status], None]


class Reconfiguration:
    """The members as far as entries were given out, and the changes under way.

    `remotes` are the other members as far as they are known before the log tells who they are. `answer` takes packed
    replies to where a change was asked for, `pass_on` a change to the leader.
    """

    def __init__(
        self,
        member_id: int,
        config: Config,
        remotes: Mapping[int, Sequence[str]],
        transport: Transport,
        leadership: Leadership,
        now: Callable[[], float],
        logger: Logger,
        answer: Reply,
        pass_on: Callable[[int, Asked], None],
    ) -> None:
        self._id = member_id
        self._strict = config.strict_reconfig_check
        self._request_timeout_s = 5 + 2 * config.election_timeout_s
        self._remotes = remotes
        self._transport = transport
        self._leadership = leadership
        self._now = now
        self._logger = logger
        self._answer = answer
        self._pass_on = pass_on
        self.membership = Membership()
        self._states: deque[tuple[int, ConfState]] = deque()  # configurations, and from which entry on they hold
        self._queue: deque[tuple[float, Message]] = deque()  # of a leader: changes that wait for their turn
        self._transfers = Transfers()
        self._removed_at: float | None = None
        self.unkept = 0
        """The last change executed, if it is not known to be on disk that it is committed; else 0."""
        self._told_removed: Collection[int] = ()  # what the transport was told
        self._promoted = 0
        self._not_promoted: dict[str, int] = {}  # by the API's message

    def start(self, index: int, state: MembershipState) -> ConfState:
        """Apply executed everything up to `index`, and has these members."""
        self.membership = Membership.restore(state)
        conf_state = self.membership.conf_state()
        self._states.append((index, conf_state))
        self.on_kept()
        return conf_state

    def state_at(self, index: int) -> ConfState:
        """The configuration as of an entry that was given out; nobody will ask for an earlier one."""
        states = self._states
        while len(states) > 1 and states[1][0] <= index:
            states.popleft()
        return states[0][1]

    @property
    def last_change(self) -> int:
        """The entry that made the configuration what it is."""
        return self._states[-1][0]

    @property
    def is_learner(self) -> bool:
        """Whether this member does not vote."""
        member = self.membership.get(self._id)
        return member is not None and member.isLearner

    def execute(self, node: RawNode, entry: Entry) -> None:
        """A membership entry is committed: the core, the transport and the list of members follow it.

        Members that it removed are told so when `on_kept` is called.
        """
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
                refusal = membership.check(ask.op, change)
                if ask.op == Op.MEMBER_PROMOTE and node.leads:
                    self._count_promotion(refusal)
                if refusal is not None:
                    return  # every member refuses it; apply answers why
                membership.execute(ask.op, change)
            state = node.apply_conf_change(conf_change)
        self._states.append((index, state))
        self.unkept = index
        self._tell_transport()
        if membership.is_removed(self._id) and self._removed_at is None:
            self._removed_at = self._now() + REMOVED_STAYS_S
            to = self.successor(node) if node.leads else None
            if to is not None:
                node.transfer_leader(to)

    def on_kept(self) -> None:
        """What was executed so far stays so whatever happens to this member: whoever was removed may hear of it.

        Hearing it they end, and their votes are lost. Where two members voted, and one of them is removed, the other
        one needs that vote until it knows of the removal; so only that one tells, and nobody who learns from it.
        """
        self.unkept = 0
        if not (self._sole_voter_left and self.is_learner):
            self._told_removed = self.membership.state().removed
        self._tell_transport()

    @property
    def _sole_voter_left(self) -> bool:
        return len(list(self.membership.voters())) == 1

    def _tell_transport(self) -> None:
        # One that joins is given the log from its beginning, by members that its first entries do not know yet.
        membership = self.membership
        others = {member: urls for member, urls in self._remotes.items() if not membership.is_removed(member)}
        others |= {member.ID: tuple(member.peerURLs) for member in membership.members() if member.ID != self._id}
        self._transport.set_members(others, self._told_removed)

    @property
    def is_over(self) -> bool:
        """This member was removed, and the others had their time to learn of it.

        Of several voters that are left, a quorum of those before can elect without this one. A sole one may need its
        vote, so this one goes on until that one says that it was removed.
        """
        return self._removed_at is not None and self._now() >= self._removed_at and not self._sole_voter_left

    def successor(self, node: RawNode) -> int | None:
        """To whom a leader hands its leadership: the voter that has most of the log, of those it is connected with.

        Of equals the one connected longest.
        """
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

    # what is asked for

    def ask(self, node: RawNode, ask: Asked) -> None:
        """A front of this member, or of another one that passes it on, wants the members or the leader changed."""
        if ask.op == Op.MOVE_LEADER:
            self._move_leader(node, ask)
        elif ask.op == Op.MEMBER_PROMOTE and not node.leads and node.lead != NOBODY:
            self._pass_on(node.lead, ask)
        else:
            refusal = changes.refusal(ask.op, MemberChange.FromString(ask.body), self._surroundings(node))
            if node.lead == NOBODY and refusal in (None, errors.NOT_LEADER):
                refusal = errors.NO_LEADER
            if refusal is not None:
                if ask.op == Op.MEMBER_PROMOTE and node.leads:
                    self._count_promotion(refusal)
                self._refuse(ask, refusal)
            else:
                self._propose(node, ask)

    def _refuse(self, ask: Asked, status: Status) -> None:
        self._answer(ask, changes.refused(ask, status))

    def _count_promotion(self, refusal: Status | None) -> None:
        if refusal is None:
            self._promoted += 1
        else:
            self._not_promoted[refusal.message] = self._not_promoted.get(refusal.message, 0) + 1

    def figures(self) -> Figures:
        """What is published of members and of changes of them."""
        return {
            "etcd_server_is_learner": int(self.is_learner),
            "etcd_server_learner_promote_successes": self._promoted,
            "etcd_server_learner_promote_failures": [[[reason], n] for reason, n in self._not_promoted.items()],
        }

    def connected_since(self) -> dict[int, float]:
        """The members that this one is connected with now, and since when."""
        members = [member.ID for member in self.membership.members()]
        since = {member: self._transport.connected_since(member) for member in members if member != self._id}
        return {member: at for member, at in since.items() if at is not None}

    def _surroundings(self, node: RawNode) -> Surroundings:
        return Surroundings(
            member_id=self._id,
            membership=self.membership,
            connected_since=self.connected_since(),
            matches={member: progress.match for member, progress in node.progress.items()} if node.leads else {},
            now=self._now(),
            strict=self._strict,
        )

    def _propose(self, node: RawNode, ask: Asked) -> None:
        change = changes.conf_change(ask.op, MemberChange.FromString(ask.body), ask.batch)
        message = Message(
            MessageType.PROP, sender=self._id, entries=[(0, 0, EntryType.CONF_CHANGE, encode_change(change))]
        )
        if not self.propose(node, message):
            self._refuse(ask, errors.LEADER_CHANGED)

    def propose(self, node: RawNode, message: Message) -> bool:
        """Proposes a change, of this member or of another: a leader lets it wait while another one is under way (the
        core would put an empty entry in its place), and until apply has returned its grant.

        Returns False if nobody takes it.
        """
        if node.leads:
            self._leadership.take_grant_back()
        if node.leads and (self._queue or not self._may_change(node)):
            if len(self._queue) < MAX_QUEUE:
                self._queue.append((self._now() + self._request_timeout_s, message))
            return True
        try:
            node.step(message)
        except ProposalDropped:
            return False
        return True

    def propose_next(self, node: RawNode) -> None:
        """The change that waited longest, if it may go now. What waited at a leader that was deposed is dropped: who
        asked is told by the request timeout that the outcome is unknown."""
        queue = self._queue
        if queue and not node.leads:
            queue.clear()
        while queue and self._may_change(node):
            until, message = queue.popleft()
            if until > self._now():
                try:
                    node.step(message)
                except ProposalDropped as error:
                    self._logger.debug("dropped a change of members", error=repr(error))
        if not queue:
            self._leadership.allow_grant(node.last_index)

    def _may_change(self, node: RawNode) -> bool:
        return not self._leadership.granted and node.may_change and node.lead_transferee == NOBODY

    def _move_leader(self, node: RawNode, ask: Asked) -> None:
        target = MoveLeaderRequest.FromString(ask.body).targetID
        refusal = changes.transfer_refusal(target, self._id, node.lead, self.membership)
        if refusal is not None:
            self._refuse(ask, refusal)
        elif target == self._id:
            self._answer(ask, changes.moved(ask))
        else:
            self._logger.info("leadership transfer starting", current_leader=f"{self._id:x}", transferee=f"{target:x}")
            node.transfer_leader(target)
            self._transfers.wait(target, ask, self._now() + self._request_timeout_s)

    def on_leader(self, node: RawNode) -> list[tuple[int, bytes]]:
        """Another member leads: replies to the fronts that wanted that."""
        return self._transfers.on_leader(node.lead) if self._transfers else []

    def late_transfers(self, node: RawNode) -> list[tuple[int, bytes]]:
        """Replies to the fronts whose wish did not come true; the core gives up after an election timeout."""
        if not self._transfers:
            return []
        given_up = node.leads and node.lead_transferee == NOBODY
        return self._transfers.expire(float("inf") if given_up else self._now())
