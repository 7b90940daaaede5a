"""Clients that hold leases."""

from __future__ import annotations

from kvorum.errors import Code, Status
from kvorum.pb.rpc_pb2 import (
    LeaseGrantRequest,
    LeaseGrantResponse,
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
    LeaseRevokeRequest,
    PutRequest,
)
from tests.linearizability.history import Operation, Session
from tests.sim.clients import Client, Outcome, Servers, delay_s, some_front
from tests.sim.front import SimulatedFront, Stream
from tests.sim.member import Generation


class LeaseClient(Client):
    """Holds one lease after another: puts keys under it, keeps it alive for a while, then revokes or forgets it."""

    def __init__(self, servers: Servers, number: int) -> None:
        super().__init__(servers, number)
        self.lease = 0
        self.ttl_s = 0
        self.turns_left = 0
        self._keeper: KeepAlives | None = None

    def think(self) -> None:
        random = self.random
        if not self.lease:
            self.ask(LeaseGrantRequest(TTL=random.randint(1, 4)), self._granted)
        elif self.turns_left > 0:
            self.turns_left -= 1
            key = b"k-%d-%d" % (self.number, random.randint(0, 3))
            self.ask(PutRequest(key=key, value=self.value(), lease=self.lease), self._done)
        else:
            lease, self.lease = self.lease, 0
            self._forget()
            if random.random() < 0.3:
                self.ask(LeaseRevokeRequest(ID=lease), self._done)
            else:
                self.begin()

    def _granted(self, outcome: Outcome) -> None:
        if isinstance(outcome, LeaseGrantResponse):
            self.lease = outcome.ID
            self.ttl_s = outcome.TTL
            self.turns_left = self.random.randint(0, 8)
            if self.random.random() < 0.7:
                self._keeper = KeepAlives(self, outcome.ID, outcome.TTL)
        self.begin()

    def _done(self, outcome: Outcome) -> None:
        if isinstance(outcome, Status) and outcome.code == Code.NOT_FOUND:
            self.lease = 0
            self._forget()
        self.scheduler.after(self.random.uniform(0.1, 1.0), self.begin)

    def _forget(self) -> None:
        if self._keeper is not None:
            self._keeper.stop()
            self._keeper = None


class KeepAlives:
    """Keeps one lease alive: asks three times per TTL, at whatever member is there."""

    def __init__(self, client: LeaseClient, lease: int, ttl_s: int) -> None:
        self.client = client
        self.request = LeaseKeepAliveRequest(ID=lease)
        self._interval_s = ttl_s / 3
        self._stream: _KeepAliveStream | None = None
        self._stopped = False
        self._tick()

    def stop(self) -> None:
        """No more."""
        self._stopped = True
        self._leave()

    def _leave(self) -> None:
        if self._stream is not None:
            self._stream.leave()
            self._stream = None

    def _tick(self) -> None:
        client = self.client
        if self._stopped or not client.servers.busy:
            self._leave()
            return
        client.scheduler.after(self._interval_s, self._tick)
        if self._stream is None or self._stream.is_useless:
            self._leave()
            client.member = None
            generation = client.generation()
            front = some_front(client.scheduler, generation)
            if generation is None or front is None:
                return
            self._stream = _KeepAliveStream(self, generation, front)
        self._stream.ask()

    def on_gone(self) -> None:
        """The lease is no more."""
        self._stopped = True


class _KeepAliveStream:
    """One stream of them. Answers come in the order of the questions."""

    def __init__(self, keeper: KeepAlives, generation: Generation, front: SimulatedFront) -> None:
        self._keeper = keeper
        self._generation = generation
        self._front = front
        self._stream: Stream | None = None
        self._asked_s: list[float] = []
        self._left = False
        front.worker.post(self._open)

    @property
    def is_useless(self) -> bool:
        return self._left or not self._generation.alive or len(self._asked_s) > 3

    def _open(self) -> None:
        if not self._left:
            self._stream = self._front.open_stream("LeaseKeepAlive", self)

    def ask(self) -> None:
        """Once more."""
        self._asked_s.append(self._keeper.client.scheduler.now_s)
        self._front.worker.post(self._send)

    def _send(self) -> None:
        if self._stream is not None and not self._left:
            self._stream.arrive(self._keeper.request.SerializeToString())

    def leave(self) -> None:
        """Whatever comes now is not heard."""
        self._left = True
        if self._stream is not None:
            self._front.worker.post(self._stream.cancel)

    def delay_s(self) -> float:
        """See StreamEnd."""
        return delay_s(self._keeper.client.scheduler)

    def on_answer(self, message: bytes) -> None:
        """See StreamEnd."""
        if self._left:
            return
        keeper, generation = self._keeper, self._generation
        servers = keeper.client.servers
        reply = LeaseKeepAliveResponse.FromString(message)
        session = Session(generation.member.id, generation.number)
        servers.history.operations.append(
            Operation(self._asked_s.pop(0), servers.scheduler.now_s, session, keeper.request, reply)
        )
        if reply.TTL <= 0:
            keeper.on_gone()

    def on_end(self, _code: int, _text: str) -> None:
        """See StreamEnd."""
        self._left = True
