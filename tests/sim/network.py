"""The network between members. What a member sends another arrives later and in order, or not at all; links can be cut.

Messages travel as the bytes of the real codec. A connection lives as long as both ends: what the old one of a member
that died has sent may still arrive, and nothing of it comes to a later generation of the receiver.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Protocol

from node.raft.core import Message, MessageType
from node.raft.peers.codec import decode, encode
from node.raft.transport import TransportHandlers
from node.stats import Figures
from tests.sim.clock import Scheduler
from tests.sim.database import DatabaseFiles
from tests.sim.worker import Worker

NOTICED_S = 2.0
"""A cut link is noticed after so long at most."""


class Snapshots(Protocol):
    """A member's snapshots, own and received."""

    def checkpoint(self, path: str) -> DatabaseFiles:
        """A copy of one of its own."""

    def receive(self, message: Message, files: DatabaseFiles) -> bool:
        """One has come, whole. Returns whether it is taken, or at least not needed."""


class Network:
    """All endpoints, by member, and the state of each direction between two."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.endpoints: dict[int, Endpoint] = {}
        self.loss = 0.0
        """How likely a batch is lost, and with it the connection."""
        self.latency_s = 0.0005
        self.hostile = False
        """Whether raft's messages are also repeated and come out of order, which the core must bear."""
        self._cut: dict[tuple[int, int], float] = {}  # (from, to) -> since when

    def cut(self, from_: int, to: int) -> None:
        """Nothing gets through in this direction from now on."""
        self._cut.setdefault((from_, to), self.scheduler.now_s)

    def heal(self) -> None:
        """Every link works."""
        for one, other in list(self._cut):
            self._reconnect(one, other)
        self._cut.clear()
        self.expel()

    def is_cut(self, from_: int, to: int) -> bool:
        """Whether nothing gets through."""
        return (from_, to) in self._cut

    def join(self, endpoint: Endpoint) -> None:
        """A generation of a member begins: connections are made anew."""
        self.endpoints[endpoint.member] = endpoint
        for other in self.endpoints.values():
            if other is not endpoint:
                self._reconnect(endpoint.member, other.member)
        self.expel()

    def expel(self) -> None:
        """Members end their connections with those that were removed, and say why."""
        for endpoint in self.endpoints.values():
            for member in endpoint.removed:
                removed = self.endpoints.get(member)
                if removed not in (None, endpoint) and not self.is_cut(endpoint.member, member):
                    self.scheduler.after(self.delay_s(), removed.tell_removed)

    def leave(self, endpoint: Endpoint) -> None:
        """It ends."""
        if self.endpoints.get(endpoint.member) is endpoint:
            del self.endpoints[endpoint.member]

    def _reconnect(self, one: int, other: int) -> None:
        now_s = self.scheduler.now_s
        for from_, to in ((one, other), (other, one)):
            if from_ in self.endpoints:
                self.endpoints[from_].connected_at[to] = now_s + self.scheduler.random.uniform(0.0, 0.2)

    def connected_since(self, from_: int, to: int) -> float | None:
        """By the world's clock; a cut is noticed late."""
        endpoint = self.endpoints.get(from_)
        if endpoint is None or to not in self.endpoints:
            return None
        now_s = self.scheduler.now_s
        cut_at = min(self._cut.get((from_, to), now_s), self._cut.get((to, from_), now_s))
        since = endpoint.connected_at.get(to)
        if since is None or since > now_s or now_s - cut_at > NOTICED_S:
            return None
        return since

    def delay_s(self) -> float:
        """For one batch."""
        random = self.scheduler.random
        return self.latency_s * (random.uniform(0.2, 2.0) if random.random() < 0.98 else random.uniform(2.0, 40.0))


class Endpoint:
    """`Transport` of one generation of a member. `to_clock` makes the member's time of the world's."""

    def __init__(
        self,
        network: Network,
        member: int,
        worker: Worker,
        to_clock: Callable[[float], float],
        remotes: Collection[int],
        snapshots: Snapshots,
    ) -> None:
        self.member = member
        self.connected_at: dict[int, float] = {}
        self.handlers: TransportHandlers | None = None
        self._network = network
        self._scheduler = network.scheduler
        self._worker = worker
        self._to_clock = to_clock
        self._remotes = remotes
        self._snapshots = snapshots
        self._known: frozenset[int] = frozenset()
        self.removed: frozenset[int] = frozenset()
        self._guests: set[int] = set()  # they have connected, and said where they are
        self._last_s: dict[tuple[int, str], float] = {}

    # Transport

    def set_members(self, urls: Mapping[int, Sequence[str]], removed: Collection[int]) -> None:
        """See Transport."""
        self._known = frozenset(urls)
        self.removed = frozenset(removed)
        self._guests -= self._known | self.removed
        self._network.expel()

    def send(self, messages: Sequence[Message]) -> None:
        """See Transport."""
        batches: dict[int, list[Message]] = {}
        for message in messages:
            batches.setdefault(message.to, []).append(message)
        for to, batch in batches.items():
            data = b"".join(encode(batch))
            deliver = partial(_deliver, self.member, data)
            self._carry(to, "messages", len(data), deliver)
            # a proposal that came twice would be logged twice: that a transport must not do
            may_repeat = all(message.type is not MessageType.PROP for message in batch)
            if self._network.hostile and may_repeat and self._scheduler.random.random() < 0.05:
                self._carry(to, "repeat", len(data), deliver)

    def forward(self, member: int, payload: bytes) -> None:
        """See Transport."""
        self._carry(member, "forward", len(payload), lambda there: there.on_forward(self.member, payload))

    def send_snapshot(self, message: Message, path: str) -> None:
        """See Transport. It takes its time."""
        data = b"".join(encode([message]))
        to = message.to
        network = self._network
        there = network.endpoints.get(to)

        def end() -> None:
            if not self._worker.alive:
                return
            ok = False
            if there is not None and network.endpoints.get(to) is there and not network.is_cut(self.member, to):
                ok = there.on_snapshot(decode(data)[0], self._snapshots.checkpoint(path))
            self._tell(lambda handlers: handlers.on_snapshot_sent(to, ok))

        self._scheduler.after(self._scheduler.random.uniform(0.01, 1.0), end)

    def connected_since(self, member: int) -> float | None:
        """See Transport."""
        if not self._can_reach(member):
            return None
        since = self._network.connected_since(self.member, member)
        return None if since is None else self._to_clock(since)

    def figures(self) -> Figures:
        """See Transport."""
        return {}

    # within

    def _carry(self, to: int, kind: str, size_bytes: int, deliver: Callable[[Endpoint], None]) -> None:
        network = self._network
        there = network.endpoints.get(to)
        random = self._scheduler.random
        if not self._can_reach(to):
            there = None
        connected = there is not None and network.connected_since(self.member, to) is not None
        if there is None or not connected or network.is_cut(self.member, to) or random.random() < network.loss:
            if not connected or random.random() < 0.5:
                self._tell(lambda handlers: handlers.on_unreachable(to))
            return
        scheduler = self._scheduler
        at_s = scheduler.now_s + scheduler.elapsed_s + network.delay_s() + size_bytes * 1e-8
        if not (network.hostile and kind in ("messages", "repeat")):
            at_s = self._last_s[to, kind] = max(at_s, self._last_s.get((to, kind), 0.0))

        def arrive() -> None:
            if network.endpoints.get(to) is there and not network.is_cut(self.member, to):
                deliver(there)

        scheduler.at(at_s, arrive)

    def _can_reach(self, member: int) -> bool:
        """Whether its URLs are known here."""
        return member in self._known or member in self._remotes or member in self._guests

    def _tell(self, say: Callable[[TransportHandlers], None]) -> None:
        handlers = self.handlers
        assert handlers is not None
        self._worker.post(lambda: say(handlers))

    def _refuses(self, sender: int) -> bool:
        """A removed member is told so, and nothing of it is taken."""
        if sender not in self.removed:
            if sender not in self._known:
                self._guests.add(sender)
            return False
        self._network.expel()
        return True

    def tell_removed(self) -> None:
        """Another member has said that this one was removed."""
        self._tell(lambda handlers: handlers.on_removed())

    def on_batch(self, sender: int, data: bytes) -> None:
        """Messages have arrived."""
        if not self._refuses(sender):
            self._tell(lambda handlers: handlers.on_messages(sender, decode(data)))

    def on_forward(self, sender: int, payload: bytes) -> None:
        """So has this."""
        if not self._refuses(sender):
            self._tell(lambda handlers: handlers.on_forward(sender, payload))

    def on_snapshot(self, message: Message, files: DatabaseFiles) -> bool:
        """A snapshot has arrived, whole. Returns whether it was taken."""
        return not self._refuses(message.sender) and self._snapshots.receive(message, files)


def _deliver(sender: int, data: bytes, there: Endpoint) -> None:
    there.on_batch(sender, data)
