"""Clients of the simulated cluster. Each talks to one member at a time, writes down what it was told, and goes on."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, Final, Protocol

from google.protobuf.message import Message

from kvorum import errors
from kvorum.errors import Code, Status
from kvorum.pb.mvcc_pb2 import KeyValue
from kvorum.pb.rpc_pb2 import (
    CompactionRequest,
    CompactionResponse,
    Compare,
    DeleteRangeRequest,
    DeleteRangeResponse,
    LeaseGrantRequest,
    LeaseGrantResponse,
    LeaseRevokeRequest,
    LeaseRevokeResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    RangeStreamResponse,
    RequestOp,
    TxnRequest,
    TxnResponse,
)
from tests.linearizability.history import History, Operation, Request, Session, is_refusal
from tests.sim.clock import Scheduler
from tests.sim.front import SimulatedFront
from tests.sim.member import Generation, SimulatedMember

PREFIX: Final = b"k"
END: Final = b"l"
KEYS: Final = [b"k%d" % number for number in range(8)]

_KV: Final = "/etcdserverpb.KV/"
_LEASE: Final = "/etcdserverpb.Lease/"
METHODS: Final[dict[type[Message], tuple[str, type[Message]]]] = {
    PutRequest: (_KV + "Put", PutResponse),
    RangeRequest: (_KV + "Range", RangeResponse),
    DeleteRangeRequest: (_KV + "DeleteRange", DeleteRangeResponse),
    TxnRequest: (_KV + "Txn", TxnResponse),
    CompactionRequest: (_KV + "Compact", CompactionResponse),
    LeaseGrantRequest: (_LEASE + "LeaseGrant", LeaseGrantResponse),
    LeaseRevokeRequest: (_LEASE + "LeaseRevoke", LeaseRevokeResponse),
}

Outcome = Any
"""The reply, or a Status, or None where nobody knows."""


class Servers(Protocol):
    """The cluster as its clients see it."""

    scheduler: Scheduler
    history: History
    busy: bool
    pending: dict[int, Operation]
    """Operations under way, by the identity of their call."""

    def servers(self) -> list[SimulatedMember]:
        """Members that a client may know of."""


class Call:
    """One unary call on its way; ends exactly once."""

    def __init__(self, scheduler: Scheduler, generation: Generation, path: str, body: bytes, timeout_s: float) -> None:
        self.ended: Callable[[bytes | Status | None], None]
        self._scheduler = scheduler
        self._generation = generation
        self._over = False
        scheduler.after(delay_s(scheduler), lambda: self._arrive(path, body))
        self._timer = scheduler.after(timeout_s, lambda: self._end(None))

    def _arrive(self, path: str, body: bytes) -> None:
        generation = self._generation
        front = some_front(self._scheduler, generation)
        if front is not None:
            generation.calls[self] = None
            front.worker.post(lambda: front.call(path, body, self))
        else:
            self._scheduler.after(delay_s(self._scheduler), lambda: self._end(REFUSED))

    def reply(self, _token: int, message: bytes) -> None:
        """See Sink."""
        self._scheduler.after(delay_s(self._scheduler), lambda: self._end(message))

    def fail(self, _token: int, code: int, text: str) -> None:
        """See Sink."""
        self._scheduler.after(delay_s(self._scheduler), lambda: self._end(Status(code, text)))

    def lost(self) -> None:
        """The member has died."""
        self._scheduler.after(self._scheduler.random.uniform(0.0, 0.3), lambda: self._end(None))

    def _end(self, outcome: bytes | Status | None) -> None:
        if not self._over:
            self._over = True
            self._timer.cancel()
            self._generation.calls.pop(self, None)
            self.ended(outcome)


REFUSED: Final = Status(Code.RESOURCE_EXHAUSTED, "connection refused")
"""Nothing listens there: the one failure to reach a member that is sure to have had no effect."""


def some_front(scheduler: Scheduler, generation: Generation | None) -> SimulatedFront | None:
    """One of a member that takes clients."""
    if generation is None or not generation.alive:
        return None
    serving = [front for front in generation.fronts if front.serving]
    return scheduler.random.choice(serving) if serving else None


def delay_s(scheduler: Scheduler) -> float:
    """Between a client and its member."""
    return scheduler.random.uniform(0.0001, 0.002)


class Client:
    """Someone who asks; `think` is called when the last call has ended."""

    def __init__(self, servers: Servers, number: int) -> None:
        self.servers = servers
        self.scheduler = servers.scheduler
        self.random = servers.scheduler.random
        self.number = number
        self.member: SimulatedMember | None = None
        self.next_value = 0
        self.think_s = 0.02

    def begin(self) -> None:
        """Goes to work."""
        self.scheduler.after(self.random.expovariate(1 / self.think_s), self._work)

    def _work(self) -> None:
        if self.servers.busy:
            self.think()

    def think(self) -> None:
        """The next request."""
        raise NotImplementedError

    def value(self) -> bytes:
        """One that nobody else ever writes."""
        self.next_value += 1
        return b"%d-%d" % (self.number, self.next_value)

    def generation(self) -> Generation | None:
        """The member's at hand, else another one's."""
        member = self.member
        if member is None or member.generation is None or self.random.random() < 0.05:
            members = self.servers.servers()
            member = self.member = self.random.choice(members) if members else None
        return member.generation if member is not None else None

    def ask(self, request: Any, done: Callable[[Outcome], None], *, recorded: bool = True) -> None:
        """Asks, and writes down if it is `recorded`; then `done(outcome)`."""
        generation = self.generation()
        if generation is None:
            self.scheduler.after(0.1, lambda: done(REFUSED))
            return
        path, reply_type = METHODS[type(request)]
        began_s = self.scheduler.now_s
        session = Session(generation.member.id, generation.number)
        call = Call(self.scheduler, generation, path, request.SerializeToString(), self.random.choice((1.0, 3.0, 10.0)))

        pending = self.servers.pending
        if recorded:
            pending[id(call)] = Operation(began_s, inf, session, request, None)

        def ended(answer: bytes | Status | None) -> None:
            pending.pop(id(call), None)
            outcome: Outcome = answer
            if isinstance(answer, bytes):
                outcome = reply_type.FromString(answer)
            elif answer is not None and not is_refusal(answer):
                outcome = None
            if recorded and outcome != REFUSED:
                operation = Operation(began_s, self.scheduler.now_s, session, request, outcome)
                self.servers.history.operations.append(operation)
            if outcome is None or isinstance(outcome, Status):
                self.member = None  # try another one next time
            done(outcome)

        call.ended = ended


class KvClient(Client):
    """Puts, gets, deletes, transactions and now and then a compaction."""

    def __init__(self, servers: Servers, number: int) -> None:
        super().__init__(servers, number)
        self.seen: KeyValue | None = None
        self.revision = 1

    def think(self) -> None:
        request = self._choose()
        if isinstance(request, RangeRequest) and request.sort_order == RangeRequest.NONE and self.random.random() < 0.2:
            request.sort_target = RangeRequest.KEY
            self._stream(request)
        else:
            self.ask(request, self._done)

    def _stream(self, request: RangeRequest) -> None:
        """A range in several messages."""
        generation = self.generation()
        front = some_front(self.scheduler, generation)
        if generation is None or front is None:
            self.begin()
        else:
            _RangeStream(self, generation, front, request, self._done)

    def _done(self, outcome: Outcome) -> None:
        if outcome is not None and not isinstance(outcome, Status):
            self.revision = outcome.header.revision
            if isinstance(outcome, RangeResponse) and outcome.kvs:
                self.seen = outcome.kvs[0]
        self.begin()

    def _choose(self) -> Request:
        random = self.random
        draw = random.random()
        key = random.choice(KEYS)
        if draw < 0.4:
            return PutRequest(key=key, value=self.value(), prev_kv=random.random() < 0.3)
        if draw < 0.65:
            return self._range(key, random.random() < 0.4)
        if draw < 0.72:
            range_end = random.choice((b"", b"", b"", END))
            return DeleteRangeRequest(key=key, range_end=range_end, prev_kv=random.random() < 0.5)
        if draw < 0.95:
            return self._txn(key)
        if draw < 0.97:
            return PutRequest(key=key, ignore_lease=True, value=self.value())
        return CompactionRequest(
            revision=max(1, self.revision - random.choice((0, 3, 20))), physical=random.random() < 0.3
        )

    def _range(self, key: bytes, serializable: bool) -> RangeRequest:
        random = self.random
        shape = random.random()
        if shape < 0.6:
            return RangeRequest(key=key, serializable=serializable)
        if shape < 0.7:
            at = max(1, self.revision - random.randint(0, 10))
            return RangeRequest(key=PREFIX, range_end=END, serializable=serializable, revision=at)
        return RangeRequest(
            key=random.choice((PREFIX, key)),
            range_end=END,
            serializable=serializable,
            limit=random.choice((0, 0, 2)),
            sort_order=random.choice(("NONE", "NONE", "ASCEND", "DESCEND")),
            sort_target=random.choice(("KEY", "KEY", "MOD")),
            keys_only=random.random() < 0.1,
            count_only=random.random() < 0.1,
        )

    def _txn(self, key: bytes) -> TxnRequest:
        random = self.random
        seen = self.seen
        if random.random() < 0.2:
            serializable = random.random() < 0.5
            gets = [RequestOp(request_range=RangeRequest(key=one, serializable=serializable)) for one in KEYS[:3]]
            return TxnRequest(success=gets)
        if seen is not None:
            key = seen.key
            compare = Compare(key=key, target="MOD", result="EQUAL", mod_revision=seen.mod_revision)
        else:
            compare = Compare(key=key, target="VERSION", result="EQUAL", version=0)
        value = self.value()
        others = [one for one in random.sample(KEYS, 2) if one != key]
        success = [RequestOp(request_put=PutRequest(key=one, value=value)) for one in (key, *others[:1])]
        if len(others) > 1:
            success.append(RequestOp(request_delete_range=DeleteRangeRequest(key=others[1], prev_kv=True)))
        failure = [RequestOp(request_range=RangeRequest(key=key))]
        if random.random() < 0.3:
            failure.append(RequestOp(request_put=PutRequest(key=key, value=value, prev_kv=True)))
        return TxnRequest(compare=[compare], success=success, failure=failure)


class _RangeStream:
    """A RangeStream call: what its messages say together is what a Range would have said."""

    def __init__(
        self,
        client: KvClient,
        generation: Generation,
        front: SimulatedFront,
        request: RangeRequest,
        done: Callable[[Outcome], None],
    ) -> None:
        self._client = client
        self._request = request
        self._done = done
        self._began_s = client.scheduler.now_s
        self._session = Session(generation.member.id, generation.number)
        self._whole = RangeResponse()
        self._ended = False
        self._timer = client.scheduler.after(client.random.choice((1.0, 10.0)), lambda: self.on_end(4, "timeout"))
        front.worker.post(lambda: front.open_stream("RangeStream", self).arrive(request.SerializeToString()))

    def delay_s(self) -> float:
        """See StreamEnd."""
        return delay_s(self._client.scheduler)

    def on_answer(self, message: bytes) -> None:
        """See StreamEnd."""
        self._whole.MergeFrom(RangeStreamResponse.FromString(message).range_response)

    def on_end(self, code: int, text: str) -> None:
        """See StreamEnd."""
        if self._ended:
            return
        self._ended = True
        self._timer.cancel()
        client = self._client
        outcome: Outcome = self._whole if code == 0 else Status(code, text)
        if isinstance(outcome, Status) and not is_refusal(outcome):
            outcome = None
        client.servers.history.operations.append(
            Operation(self._began_s, client.scheduler.now_s, self._session, self._request, outcome)
        )
        self._done(outcome)


class Probe(Client):
    """Puts once, as soon as somebody takes it; compacts everything when there is no space for it."""

    def __init__(self, servers: Servers, number: int) -> None:
        super().__init__(servers, number)
        self.done = False

    def begin(self) -> None:
        """Tries, and tries again."""
        self.ask(PutRequest(key=KEYS[0], value=self.value()), self._on_put)

    def _on_put(self, outcome: Outcome) -> None:
        self.done = isinstance(outcome, PutResponse)
        if outcome == errors.NO_SPACE:
            self.ask(RangeRequest(key=KEYS[0]), self._on_range)
        elif not self.done:
            self._try_again()

    def _on_range(self, outcome: Outcome) -> None:
        if isinstance(outcome, RangeResponse):
            request = CompactionRequest(revision=outcome.header.revision, physical=True)
            self.ask(request, lambda _: self._try_again())
        else:
            self._try_again()

    def _try_again(self) -> None:
        self.scheduler.after(0.1, self.begin)
