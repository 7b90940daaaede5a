"""Clients of the simulated cluster. Each talks to one member at a time, writes down what it was told, and goes on."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, Final, Protocol

from google.protobuf.message import Message

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
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
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
    WatchCreateRequest,
    WatchProgressRequest,
    WatchRequest,
    WatchResponse,
)
from tests.linearizability.history import History, Operation, Received, Request, Session, Watch, is_refusal
from tests.sim.clock import Scheduler
from tests.sim.front import SimulatedFront, Stream
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


class WatchClient(Client):
    """Watches a range from one revision on, whatever becomes of the members."""

    def __init__(self, servers: Servers, number: int) -> None:
        super().__init__(servers, number)
        random = self.random
        key, range_end = random.choice(((PREFIX, END), (PREFIX, b"\0"), (KEYS[0], b""), (KEYS[2], KEYS[5])))
        self.create = WatchCreateRequest(
            key=key,
            range_end=range_end,
            prev_kv=random.random() < 0.4,
            filters=random.choice(([], [], [], [WatchCreateRequest.NOPUT], [WatchCreateRequest.NODELETE])),
            progress_notify=random.random() < 0.5,
            start_revision=random.choice((0, 1, 1)),
        )
        self.watch: Watch | None = None
        self.stream: _WatchStream | None = None

    def begin(self) -> None:
        """Opens a stream, now or as soon as a member takes it."""
        generation = self.generation()
        front = some_front(self.scheduler, generation)
        if generation is None or front is None:
            self.member = None
            self.scheduler.after(self.random.uniform(0.05, 0.3), self.begin)
            return
        self.stream = _WatchStream(self, generation, front)

    def next_create(self) -> WatchCreateRequest:
        """What the next stream is asked: to go on after what was seen."""
        create = WatchCreateRequest()
        create.CopyFrom(self.create)
        if self.watch is not None:
            create.start_revision = self.watch.resume_revision()
        return create

    def lose(self) -> None:
        """The stream is of no use any more."""
        self.stream = None
        self.member = None
        self.scheduler.after(self.random.uniform(0.01, 0.3), self.begin)

    def begin_watch(self, start: int) -> None:
        """It is owed everything from there on."""
        create = self.create
        self.watch = Watch(
            create.key,
            create.range_end,
            start,
            prev_kv=create.prev_kv,
            no_puts=WatchCreateRequest.NOPUT in create.filters,
            no_deletes=WatchCreateRequest.NODELETE in create.filters,
        )
        self.servers.history.watches.append(self.watch)

    def ask_progress(self) -> None:
        """Asks how far everything was given."""
        if self.stream is not None:
            self.stream.ask_progress()

    def has_seen(self, revision: int) -> bool:
        """Whether it was given everything up to there."""
        return self.watch is not None and self.watch.resume_revision() > revision


class _WatchStream:
    """One stream of a watcher, who now and then leaves it for another one, or reads slowly for a while."""

    def __init__(self, client: WatchClient, generation: Generation, front: SimulatedFront) -> None:
        self._client = client
        self._generation = generation
        self._front = front
        self._stream: Stream | None = None
        self._slow_until_s = 0.0
        front.worker.post(self._open)
        client.scheduler.after(0.3, self._look)

    def _open(self) -> None:
        if self._client.stream is self:
            self._stream = self._front.open_stream("Watch", self)
            self._stream.arrive(WatchRequest(create_request=self._client.next_create()).SerializeToString())

    def _leave(self) -> None:
        if self._stream is not None:
            self._front.worker.post(self._stream.cancel)
        self._client.lose()

    def _look(self) -> None:
        client = self._client
        if client.stream is not self:
            return
        random = client.random
        if not self._generation.alive or (client.servers.busy and random.random() < 0.05):
            self._leave()
            return
        if client.servers.busy and random.random() < 0.05:
            self._slow_until_s = client.scheduler.now_s + random.uniform(0.2, 3.0)
        client.scheduler.after(0.3, self._look)

    def ask_progress(self) -> None:
        """See WatchClient."""
        stream = self._stream
        if stream is not None:
            request = WatchRequest(progress_request=WatchProgressRequest()).SerializeToString()
            self._front.worker.post(lambda: stream.arrive(request))

    def delay_s(self) -> float:
        """See StreamEnd."""
        scheduler = self._client.scheduler
        return max(delay_s(scheduler), self._slow_until_s - scheduler.now_s)

    def on_answer(self, message: bytes) -> None:
        """See StreamEnd."""
        client = self._client
        if client.stream is not self:
            return
        answer = WatchResponse.FromString(message)
        if answer.created:
            assert not answer.canceled, answer
            if client.watch is None:
                client.begin_watch(client.create.start_revision or answer.header.revision + 1)
        elif answer.canceled:
            assert answer.compact_revision, answer
            client.begin_watch(answer.compact_revision)
            self._leave()
        else:
            assert client.watch is not None
            received = Received(client.scheduler.now_s, answer.header.revision, tuple(answer.events))
            client.watch.received.append(received)

    def on_end(self, _code: int, _text: str) -> None:
        """See StreamEnd."""
        if self._client.stream is self:
            self._client.lose()
