"""What happens to a simulated group, one step after another; and that it gets on with its work in the end."""

from node.raft.core import ChangeType, ConfChange, RawNode, Role, Transition
from tests.raft.core_group import POOL, Group
from tests.raft.core_member import CALM, Member


class TroubledGroup(Group):
    """A group to which anything may happen: `step`; and then nothing bad any more: `settle`."""

    def step(self) -> None:
        """One thing happens."""
        random, chaos = self.random, self.chaos
        chance = random.random
        for member in self.members.values():
            if member.node is None and chance() < 0.02:
                self.start(member)
                return
        running = self.running()
        if not running:
            return
        member = random.choice(running)
        if chance() < chaos.crash:
            self.crash(member)
            return
        if chance() < chaos.partition:
            self.partition()
        if chance() < chaos.change:
            self.propose_change(self.busiest(member))
        draw = chance()
        if draw < 0.45 and self.network:
            self.deliver()
        elif draw < 0.8:
            self.work(member)
        elif draw < 0.88:
            self.say(f"tick {member.id}")
            self.act(member, RawNode.tick)
        elif draw < 0.93:
            self.propose(self.busiest(member))
        elif draw < 0.97:
            self.read(self.busiest(member))
        else:
            self.rarely(member)
        if member.node is not None and member.node.has_ready() and chance() < 0.7:
            self.handle_ready(member)

    def busiest(self, member: Member) -> Member:
        """Whom a client or operator turns to: mostly the newest leader, else anybody."""
        leaders = [other for other in self.running() if other.raft.role is Role.LEADER]
        if not leaders or self.random.random() < 0.2:
            return member
        return max(leaders, key=lambda leader: leader.raft.term)

    def work(self, member: Member) -> None:
        """A member gets on with what it has to do itself."""
        assert member.node is not None
        if member.local:
            self.deliver_local(member)
        elif member.append_work and self.random.random() < 0.6:
            self.append_thread(member)
        elif member.apply_work:
            self.apply_thread(member)
        elif member.node.has_ready():
            self.handle_ready(member)

    def propose(self, member: Member) -> None:
        """A client writes."""
        self.proposed += 1
        data = b"%d" % self.proposed
        self.say(f"propose {member.id} {data!r}")
        self.act(member, lambda node: node.propose(data))

    def read(self, member: Member) -> None:
        """A client reads."""
        context = b"read %d" % len(self.history)
        self.reads[context] = max(self.committed)
        self.say(f"read {member.id}")
        self.act(member, lambda node: node.read_index(context))

    def propose_change(self, member: Member) -> None:
        """The operator changes the group."""
        random = self.random
        kinds = (ChangeType.ADD_VOTER, ChangeType.ADD_VOTER, ChangeType.ADD_LEARNER, ChangeType.REMOVE)
        count = random.choice((0, 1, 1, 1, 2, 3))
        changes = tuple((random.choice(kinds), random.choice(POOL)) for _ in range(count))
        transition = random.choice(tuple(Transition)) if changes else Transition.AUTO
        change = ConfChange(changes, transition)
        self.say(f"propose {member.id} {change}")
        single = count == 1 and transition is Transition.AUTO and random.random() < 0.5
        self.act(member, lambda node: node.propose_conf_change(change, single=single))

    def partition(self) -> None:
        """Some links, one-way, some halves of the group, or none are cut off from now on."""
        random = self.random
        kind = random.choice(("heal", "heal", "heal", "halves", "one-way", "links"))
        links = [(sender, to) for sender in POOL for to in POOL if sender != to]
        half = set(random.sample(POOL, 2))
        match kind:
            case "heal":
                self.blocked = set()
            case "halves":
                self.blocked = {link for link in links if (link[0] in half) != (link[1] in half)}
            case "one-way":
                self.blocked = {link for link in links if link[0] in half and link[1] not in half}
            case _:
                self.blocked = set(random.sample(links, 6))
        self.say(f"blocked {sorted(self.blocked)}")

    def rarely(self, member: Member) -> None:
        """What the shell does now and then."""
        random = self.random
        disk = member.disk
        match random.choice(("flush", "compact", "busy", "transfer", "campaign", "forget", "report")):
            case "flush":
                self.flush(member)
            case "compact":
                if disk.first_index <= member.flushed:
                    index = random.randint(disk.first_index, member.flushed)
                    disk.compact(index)
                    self.say(f"compact {member.id} {index}")
            case "busy":
                disk.busy = not disk.busy
            case "transfer":
                to = random.choice(POOL)
                self.say(f"transfer {member.id} {to}")
                self.act(member, lambda node: node.transfer_leader(to))
            case "campaign":
                self.say(f"campaign {member.id}")
                self.act(member, RawNode.campaign)
            case "forget":
                self.act(member, RawNode.forget_leader)
            case _:
                self.report()

    def report(self) -> None:
        """A leader hears what became of a snapshot."""
        if self.reports:
            by, to, failed = self.reports.pop(0)
            if self.members[by].node is not None:
                self.act(self.members[by], lambda node: node.report_snapshot(to, failed=failed))

    def settle(self, rounds: int = 300) -> bool:
        """Everything works again: a new write is applied by every member of the group. False if that cannot be.

        It cannot when nobody is able to win an election, see `electable`. And in a group that has changed it need not
        without both PreVote and quorum checks: a member that was removed and does not know it, or that was added with a
        higher term than its leader's, then disturbs the others for as long as it likes.
        """
        base = self.members[1].config
        if self.changes and not (base.check_quorum or base.pre_vote):
            return False
        self.chaos = CALM
        self.blocked = set()
        target: int | None = None
        for _ in range(rounds):
            self.run_who_belongs()
            for member in self.members.values():
                member.disk.busy = False
            while self.reports:
                self.report()
            for member in self.running():
                self.say(f"tick {member.id}")
                self.act(member, RawNode.tick)
            self.drain()
            leaders = [member for member in self.running() if member.raft.role is Role.LEADER]
            if target is None:
                leaders = [member for member in leaders if member.raft.committed_in_term()]
                if leaders and not any(member.raft.lead_transferee for member in leaders):
                    before = max(self.committed)
                    self.propose(max(leaders, key=lambda member: member.raft.term))
                    self.drain()
                    if max(self.committed) > before:
                        target = max(self.committed)
            elif all(member.applied >= target for member in self.awaited()):
                return True
        assert target is None and not leaders, f"no progress within {rounds} rounds: target {target}"
        assert not self.electable(), f"no leader within {rounds} rounds, but these could: {self.electable()}"
        return False

    def awaited(self) -> list[Member]:
        """Who must catch up."""
        newest = self.states[max(self.states)]
        return [self.members[id_] for id_ in sorted({*newest.voters, *newest.voters_outgoing, *newest.learners})]

    def electable(self) -> list[int]:
        """Who could win an election: a quorum, as they know it, has no better logs than they.

        There may be nobody. A member that was removed or made a learner, and knows it, does not campaign; if its log is
        the longest, and somebody who does not know yet needs its vote, neither gets on. So a leader should hand on
        leadership before its own removal, and whoever is removed should stay until the others know.
        """
        electable: list[int] = []
        for member in self.running():
            raft = member.raft
            conf = raft.tracker.configuration
            last = raft.raft_log.last()
            if raft.promotable() and all(
                sum(self.votes_for(voter, last) for voter in voters) > len(voters) // 2
                for voters in (conf.incoming, conf.outgoing)
                if voters
            ):
                electable.append(member.id)
        return electable

    def votes_for(self, voter: int, last: tuple[int, int]) -> bool:
        """Whether this member would vote for one whose log ends so."""
        member = self.members[voter]
        return member.node is not None and last >= member.raft.raft_log.last()

    def run_who_belongs(self) -> None:
        """Start who is in the group, or in what one of those takes for the group. Stop the others."""
        belongs: set[int] = set()
        state = self.states[max(self.states)]
        found = {*state.voters, *state.voters_outgoing, *state.learners}
        while found - belongs:
            belongs |= found
            for id_ in sorted(belongs):
                member = self.members[id_]
                if member.node is None:
                    self.start(member)
                found |= member.raft.tracker.progress.keys()
        for member in self.running():
            if member.id not in belongs:
                self.crash(member)

    def drain(self) -> None:
        """Until nobody has anything to do."""
        busy = True
        while busy:
            busy = False
            for member in self.running():
                assert member.node is not None
                while member.local or member.append_work or member.apply_work or member.node.has_ready():
                    busy = True
                    if member.node.has_ready():
                        self.handle_ready(member)
                    while member.append_work:
                        self.append_thread(member)
                    while member.apply_work:
                        self.apply_thread(member)
                    while member.local:
                        self.deliver_local(member)
            while self.network:
                busy = True
                self.deliver()
