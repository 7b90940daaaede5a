"""What goes wrong in a run: crashes, cut links, lost messages, slow disks, processes that stand still."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from random import Random

from tests.sim.cluster import Cluster
from tests.sim.member import SimulatedMember


class Theme(Enum):
    """What a run is mostly about."""

    ANYTHING = 0
    ELECTIONS = 1
    """Restarts while members vote, some of which do not hear each other; without the question before the vote."""
    MEMBERS = 2
    """Members come and go, all the time: often there is but one, or two, without the rules that protect the quorum."""


class Trouble:
    """Picks what goes wrong, and when; `shape` decides how bad this time is."""

    def __init__(self, cluster: Cluster, shape: Random, theme: Theme) -> None:
        self._cluster = cluster
        self._scheduler = cluster.scheduler
        self._random = cluster.scheduler.random
        self._every_s = shape.choice((0.3, 1.0, 3.0))
        self._on = False
        everything: list[Callable[[], None]] = [
            self._crash,
            self._crash,
            self._stop,
            self._crash_at_an_operation,
            self._crash_all,
            self._storm,
            self._cut_off,
            self._split,
            self._cut_one_way,
            self._cut_pair,
            self._heal,
            self._heal,
            self._lose,
            self._slow_disk,
            self._full_disk,
            self._failing_disk,
            self._stop_process,
            self._stop_machine,
            self._slow_network,
            self._hostile,
        ]
        self._kinds = shape.sample(everything, shape.randint(3, len(everything)))
        if theme is Theme.ELECTIONS:
            self._kinds = [self._storm]
            self._every_s = 4.0

    def begin(self) -> None:
        """From now on."""
        self._on = True
        self._cluster.troubled = True
        self._next()

    def end(self) -> None:
        """No more, and everything works again."""
        self._on = False
        cluster = self._cluster
        cluster.troubled = False
        self._heal()
        for member in cluster.members.values():
            member.disk.sync_s = 0.002
            member.disk.crash_after = None
            member.disk.fails_sync = False
            member.disk.make_room()
        cluster.start_all()

    def _next(self) -> None:
        if self._on:
            self._scheduler.after(self._random.expovariate(1 / self._every_s), self._happen)

    def _happen(self) -> None:
        if self._on:
            self._random.choice(self._kinds)()
            self._next()

    def _note(self, text: str) -> None:
        self._cluster.note(0, text)

    def _anybody(self) -> SimulatedMember | None:
        """One that runs; the leader more often than its turn."""
        leader = self._cluster.leader()
        if leader is not None and self._random.random() < 0.4:
            return leader
        running = self._cluster.servers()
        return self._random.choice(running) if running else None

    # members

    def _crash(self) -> None:
        member = self._anybody()
        if member is not None:
            self._cluster.crash(member, "killed")

    def _stop(self) -> None:
        """In order."""
        member = self._anybody()
        if member is not None and member.generation is not None:
            self._note(f"{member.id:x} is told to stop")
            member.generation.stop()

    def _crash_at_an_operation(self) -> None:
        """In the middle of what it writes."""
        member = self._anybody()
        if member is not None:
            member.disk.crash_after = self._random.randint(0, 30)

    def _crash_all(self) -> None:
        """A data centre without power."""
        power_lost = self._random.random() < 0.8
        for member in self._cluster.servers():
            away_s = self._random.uniform(0.0, 0.3)
            self._cluster.crash(member, "killed with all others", power_lost=power_lost, away_s=away_s)

    def _storm(self) -> None:
        """Elections among members that have just begun, and begin again between a vote and the next."""
        self._note("a storm of restarts")
        self._heal()
        self._cut_pair()
        self._cluster.network.latency_s = 0.05
        self._cluster.network.loss = self._random.choice((0.0, 0.4))
        self._crash_all()
        for _ in range(15):
            self._scheduler.after(self._random.uniform(0.0, 4.0), self._restart_somebody)

    def _restart_somebody(self) -> None:
        running = self._cluster.servers()
        if self._on and running:
            member = self._random.choice(running)
            self._cluster.crash(member, "restarts", away_s=self._random.uniform(0.002, 0.02))

    def _stop_process(self) -> None:
        member = self._anybody()
        if member is not None and member.generation is not None:
            worker = self._random.choice(list(member.generation.workers.values()))
            seconds = self._random.choice((0.02, 0.3, 2.0, 4.0))
            self._note(f"{worker.name} of {member.id:x} stands still for {seconds} s")
            worker.pause(seconds)

    def _stop_machine(self) -> None:
        member = self._anybody()
        if member is not None and member.generation is not None:
            seconds = self._random.choice((0.5, 2.0, 6.0))
            self._note(f"{member.id:x} stands still for {seconds} s")
            member.generation.pause(seconds)

    def _slow_disk(self) -> None:
        member = self._anybody()
        if member is not None:
            member.disk.sync_s = self._random.choice((0.001, 0.02, 0.3))
            self._note(f"syncs of {member.id:x} take {member.disk.sync_s} s")

    def _full_disk(self) -> None:
        member = self._anybody()
        if member is not None:
            self._note(f"the disk of {member.id:x} is full")
            member.disk.fill()
            self._scheduler.after(self._random.uniform(0.5, 5.0), member.disk.make_room)

    def _failing_disk(self) -> None:
        """A sync fails: what was written since the one before may be lost, or not."""
        member = self._anybody()
        if member is not None:
            member.disk.fails_sync = True

    # the network

    def _cut_off(self) -> None:
        """One member is alone."""
        member = self._anybody()
        if member is not None:
            self._note(f"{member.id:x} is cut off")
            for other in self._cluster.members:
                if other != member.id:
                    self._cluster.network.cut(member.id, other)
                    self._cluster.network.cut(other, member.id)

    def _split(self) -> None:
        members = list(self._cluster.members)
        self._random.shuffle(members)
        at = self._random.randint(0, len(members))
        self._note(f"cut apart: {[f'{one:x}' for one in members[:at]]} {[f'{one:x}' for one in members[at:]]}")
        for one in members[:at]:
            for other in members[at:]:
                self._cluster.network.cut(one, other)
                self._cluster.network.cut(other, one)

    def _cut_one_way(self) -> None:
        if len(self._cluster.members) > 1:
            one, other = self._random.sample(list(self._cluster.members), 2)
            self._note(f"cut: {one:x} to {other:x}")
            self._cluster.network.cut(one, other)

    def _cut_pair(self) -> None:
        """Two do not hear each other, and others hear both."""
        if len(self._cluster.members) > 1:
            one, other = self._random.sample(list(self._cluster.members), 2)
            self._note(f"cut: {one:x} and {other:x}")
            self._cluster.network.cut(one, other)
            self._cluster.network.cut(other, one)

    def _heal(self) -> None:
        network = self._cluster.network
        network.heal()
        network.loss = 0.0
        network.latency_s = 0.0005
        network.hostile = False
        self._note("the network is whole")

    def _lose(self) -> None:
        self._cluster.network.loss = self._random.choice((0.01, 0.1, 0.3))
        self._note(f"loss {self._cluster.network.loss}")

    def _slow_network(self) -> None:
        self._cluster.network.latency_s = self._random.choice((0.005, 0.05))
        self._note(f"latency {self._cluster.network.latency_s} s")

    def _hostile(self) -> None:
        self._cluster.network.hostile = True
        self._note("messages are repeated and overtake each other")
