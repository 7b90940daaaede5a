"""Clients that go on through crashes and partitions, and record what they asked and were told.

Each has connections of its own and changes the member when a call fails, and now and then without need.
"""

import contextlib
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
from google.protobuf.message import Message

from kvorum import errors
from kvorum.errors import Code, Status
from kvorum.pb.rpc_pb2 import (
    CompactionRequest,
    Compare,
    DeleteRangeRequest,
    LeaseGrantRequest,
    LeaseKeepAliveRequest,
    LeaseLeasesRequest,
    LeaseRevokeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
    WatchCreateRequest,
    WatchRequest,
)
from tests.calls import Api
from tests.linearizability.history import History, Operation, Received, Session, Watch, is_refusal

PREFIX, END = b"crash/", b"crash0"
MARK = PREFIX + b"mark"  # the last write, by which watchers know that they are done
KEYS = [PREFIX + b"%d" % number for number in range(5)]
CALL_TIMEOUT_S = 2.0
PROBE_TIMEOUT_S = 0.3
PROBE_PACE_S = 0.05
STREAM_S = 3.0  # after about so long a watcher resumes at another member
LEASE_TTL_S = 3
LARGE_BYTES, LARGE_SHARE = 200_000, 0.01  # some values that a message between members does not take beside others
MARK_DEADLINE_S = 60.0
NO_ANSWER = Status(Code.DEADLINE_EXCEEDED, "no answer in time")


class Lives:
    """From which life of a member an answer came.

    A life ends when the member is killed; which one answered cannot be told while one ends and the next begins. With
    `lasting`, all lives of a member count as one: so much is promised by a member that answers nothing before it has
    caught up with what it had answered before.
    """

    def __init__(self, size: int, *, lasting: bool) -> None:
        self._lasting = lasting
        self._current = [0] * size
        self._changing = [0] * size
        self._nameless = itertools.count(1)

    @contextlib.contextmanager
    def change(self, member: int) -> Iterator[None]:
        """Around everything from before the end of one life until the next one serves."""
        self._changing[member] += 1
        self._current[member] += 1
        try:
            yield
        finally:
            self._changing[member] -= 1
            self._current[member] += 1

    def now(self, member: int) -> int:
        return self._current[member]

    def session(self, member: int, began_in: int) -> Session:
        """Of a call to that member that began when `now` was `began_in` and has just been answered."""
        if self._lasting:
            return Session(member, 0)
        if self._changing[member] or self._current[member] != began_in:
            return Session(member, -next(self._nameless))  # shared with no other call
        return Session(member, began_in)


class Clients:
    """Starts its threads when made; `finish` ends them and returns what they saw.

    `pace_s` is the mean pause of a worker between two calls. With `probes` there is one more client per member that
    writes there all the time and gives up early, so that the moment at which service is back is seen.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        seed: int,
        lives: Lives,
        *,
        workers: int = 5,
        watchers: int = 3,
        pace_s: float = 0.0,
        probes: bool = False,
    ) -> None:
        self._addresses = list(addresses)
        self._seed = seed
        self._lives = lives
        self._pace_s = pace_s
        self._stop = threading.Event()
        self._failures: list[BaseException] = []
        self.failed = threading.Event()
        self.operations: list[Operation] = []
        self.watches: list[Watch] = []
        self._acknowledged: list[tuple[float, float]] = []  # writes: (began, ended), in order of their ends
        self._mark = 0
        self._callers = [self._thread(self._work, number) for number in range(workers)]
        if probes:
            self._callers += [self._thread(self._probe, number) for number in range(len(self._addresses))]
        self._watchers = [self._thread(self._watch, number) for number in range(watchers)]

    def _thread(self, body: Callable[[int], None], number: int) -> threading.Thread:
        def run() -> None:
            try:
                body(number)
            except BaseException as failure:  # handed to the test's thread by `finish`
                self._failures.append(failure)
                self.failed.set()

        thread = threading.Thread(target=run, name=f"{body.__name__}-{number}", daemon=True)
        thread.start()
        return thread

    @property
    def acknowledged(self) -> int:
        """How many writes have been acknowledged so far."""
        return len(self._acknowledged)

    def served_after(self, moment_s: float) -> float | None:
        """When the first write that began at or after that moment was acknowledged; None: not yet."""
        first = None
        for began_s, ended_s in reversed(self._acknowledged):
            if ended_s < moment_s:
                break
            if began_s >= moment_s:
                first = ended_s
        return first

    def finish(self, timeout_s: float = MARK_DEADLINE_S) -> int:
        """Ends all callers, makes the last write, lets watchers come to it, and raises what any client raised.

        Returns the revision of the last write.
        """
        self._stop.set()
        for thread in self._callers:
            thread.join(timeout_s)
            assert not thread.is_alive(), f"{thread.name} hangs"
        deadline = time.monotonic() + timeout_s
        with contextlib.ExitStack() as stack:
            apis = [stack.enter_context(Api(address)) for address in self._addresses]
            for member, api in itertools.cycle(enumerate(apis)):
                outcome = self._last_calls(api, member)
                if not isinstance(outcome, Status):
                    break
                assert time.monotonic() < deadline, f"no write is answered any more: {outcome}"
        self._mark = outcome.header.revision
        for thread in self._watchers:
            thread.join(max(0.0, deadline - time.monotonic()))
        hanging = [thread.name for thread in self._watchers if thread.is_alive()]
        assert not hanging, f"{hanging} did not see revision {self._mark}"
        if self._failures:
            raise self._failures[0]
        for watch in self.watches:
            watch.seen_to = self._mark
        return self._mark

    def _last_calls(self, api: Api, member: int) -> Any:
        """Ends all leases, whose expiry would write later, and puts the mark; the first failure or the last reply."""
        leases = api.outcome(LeaseLeasesRequest(), timeout_s=CALL_TIMEOUT_S)
        if isinstance(leases, Status):
            return leases
        for lease in leases.leases:
            revoked = self._call(api, member, LeaseRevokeRequest(ID=lease.ID))
            if isinstance(revoked, Status) and revoked != errors.LEASE_NOT_FOUND:
                return revoked
        return self._call(api, member, PutRequest(key=MARK))

    def history(self) -> History:
        """What was seen, the store's own log left out."""
        return History(operations=self.operations, watches=self.watches)

    def _seen_by_all(self) -> int:
        """The last revision that every watcher has had: up to there nobody misses what is compacted."""
        return min((watch.resume_revision() - 1 for watch in self.watches), default=0)

    def _call(self, api: Api, member: int, request: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """The outcome of a unary call, recorded."""
        return self._record(member, request, lambda: api.outcome(request, timeout_s=timeout_s))

    def _record(self, member: int, request: Any, make: Callable[[], Any]) -> Any:
        life = self._lives.now(member)
        began_s = time.monotonic()
        outcome = make()
        ended_s = time.monotonic()
        refused = isinstance(outcome, Status)
        if refused and isinstance(request, RangeRequest | LeaseKeepAliveRequest) and outcome != errors.COMPACTED:
            return outcome  # says nothing
        told = None if refused and not is_refusal(outcome) else outcome
        self.operations.append(Operation(began_s, ended_s, self._lives.session(member, life), request, told))
        if not refused and isinstance(request, PutRequest):
            self._acknowledged.append((began_s, ended_s))
        return outcome

    def _work(self, number: int) -> None:
        worker = _Worker(number, random.Random(self._seed * 1000 + number), self._seen_by_all)
        with contextlib.ExitStack() as stack:
            apis = [stack.enter_context(Api(address)) for address in self._addresses]
            member = number % len(apis)
            while not self._stop.wait(worker.choose.expovariate(1 / self._pace_s) if self._pace_s else 0):
                api = apis[member]
                request = worker.request()
                if isinstance(request, LeaseKeepAliveRequest):
                    outcome = self._record(member, request, lambda api=api, request=request: _renew(api, request))  # type: ignore[misc]
                else:
                    outcome = self._call(api, member, request)
                worker.told(request, outcome)
                if isinstance(outcome, Status) or worker.choose.random() < 0.01:
                    member = worker.choose.randrange(len(apis))
                    self._stop.wait(0.01 if isinstance(outcome, Status) else 0)  # a lost connection fails at once

    def _probe(self, member: int) -> None:
        key = PREFIX + b"probe%d" % member
        with Api(self._addresses[member]) as api:
            for sequence in itertools.count():
                if self._stop.wait(PROBE_PACE_S):
                    return
                self._call(api, member, PutRequest(key=key, value=b"%d" % sequence), PROBE_TIMEOUT_S)

    def _watch(self, number: int) -> None:
        """From the first revision on; on every new stream after the last one seen; up to the mark."""
        choose = random.Random(self._seed * 1000 + 500 + number)
        watch = Watch(PREFIX, END, 1, prev_kv=number % 3 == 1, no_deletes=number % 3 == 2)
        self.watches.append(watch)
        member = number
        with contextlib.ExitStack() as stack:
            apis = [stack.enter_context(Api(address)) for address in self._addresses]
            while not self._mark or watch.resume_revision() <= self._mark:
                member = choose.randrange(len(apis)) if watch.received else member % len(apis)
                create = WatchCreateRequest(
                    key=watch.key,
                    range_end=watch.range_end,
                    start_revision=watch.resume_revision(),
                    prev_kv=watch.prev_kv,
                    filters=[WatchCreateRequest.NODELETE] if watch.no_deletes else [],
                    progress_notify=True,
                )
                timeout_s = STREAM_S * choose.uniform(0.5, 1.5)
                with (
                    apis[member].watch_unread([WatchRequest(create_request=create)], timeout_s=timeout_s) as replies,
                    contextlib.suppress(grpc.RpcError),  # the time is over, or the member's: resume
                ):
                    for reply in replies:
                        assert not reply.canceled, reply
                        if not reply.created:
                            received = Received(time.monotonic(), reply.header.revision, tuple(reply.events))
                            watch.received.append(received)
                        if self._mark and watch.resume_revision() > self._mark:
                            break
                self._stop.wait(0.02)


class _Worker:
    """What one client asks next, as far as it knows the store."""

    def __init__(self, number: int, choose: random.Random, seen_by_all: Callable[[], int]) -> None:
        self.choose = choose
        self._seen_by_all = seen_by_all
        self._newest = 0
        self._number = number
        self._sequence = 0
        self._revision_of: dict[bytes, int] = {}  # the last known mod_revision of each key, 0: absent
        self._lease = 0

    def request(self) -> Any:
        key = self.choose.choice(KEYS)
        what = self.choose.random()
        if what < 0.30:
            return self._put(key)
        if what < 0.50:
            return self._compare_and_swap(key)
        if what < 0.55:
            return DeleteRangeRequest(key=key, prev_kv=True)
        if what < 0.70:
            return RangeRequest(key=key)
        if what < 0.745:
            return RangeRequest(key=key, revision=max(1, self._newest - self.choose.randrange(200)))
        if what < 0.75:
            return CompactionRequest(revision=max(1, self._seen_by_all() - self.choose.randrange(100)))
        if what < 0.80:
            return RangeRequest(key=PREFIX, range_end=END, limit=3)
        if what < 0.95:
            return RangeRequest(key=key, serializable=True)
        if self._lease and what < 0.98:
            return LeaseKeepAliveRequest(ID=self._lease)
        if self._lease:
            self._sequence += 1
            return PutRequest(key=PREFIX + b"leased%d" % self._number, value=self._value(), lease=self._lease)
        return LeaseGrantRequest(TTL=LEASE_TTL_S)

    def told(self, request: Any, outcome: Any) -> None:
        """Learns from an answer."""
        if isinstance(outcome, Status):
            if isinstance(request, PutRequest) and request.lease:
                self._lease = 0
            return
        self._newest = max(self._newest, outcome.header.revision)
        match request:
            case RangeRequest() if not request.range_end and not request.revision:
                self._revision_of[request.key] = outcome.kvs[0].mod_revision if outcome.kvs else 0
            case TxnRequest() if not outcome.succeeded:
                kvs = outcome.responses[0].response_range.kvs
                self._revision_of[request.compare[0].key] = kvs[0].mod_revision if kvs else 0
            case TxnRequest() | PutRequest():
                key = request.compare[0].key if isinstance(request, TxnRequest) else request.key
                self._revision_of[key] = outcome.header.revision
            case LeaseGrantRequest():
                self._lease = outcome.ID
            case LeaseKeepAliveRequest() if outcome.TTL <= 0:
                self._lease = 0

    def _value(self) -> bytes:
        self._sequence += 1
        value = b"%d-%d" % (self._number, self._sequence)
        return value + bytes(LARGE_BYTES) if self.choose.random() < LARGE_SHARE else value

    def _put(self, key: bytes) -> Message:
        if self.choose.random() < 0.2:  # two keys at once
            value = self._value()
            return TxnRequest(
                compare=[Compare(key=key, target="VERSION", result="GREATER", version=-1)],
                success=[RequestOp(request_put=PutRequest(key=k, value=value)) for k in (key, PREFIX + b"shared")],
            )
        return PutRequest(key=key, value=self._value(), prev_kv=self.choose.random() < 0.3)

    def _compare_and_swap(self, key: bytes) -> Message:
        known = self._revision_of.get(key, 0)
        return TxnRequest(
            compare=[Compare(key=key, target="MOD", mod_revision=known)],
            success=[RequestOp(request_put=PutRequest(key=key, value=self._value()))],
            failure=[RequestOp(request_range=RangeRequest(key=key))],
        )


def _renew(api: Api, request: LeaseKeepAliveRequest) -> Any:
    """One keep-alive on a stream of its own: the reply, or the Status of the stream."""
    with api.keep_alive() as stream:
        stream.send(request)
        deadline = time.monotonic() + CALL_TIMEOUT_S
        with contextlib.suppress(AssertionError):  # no answer: the same as a stream that ended
            return stream.wait(lambda replies: replies, max(0.0, deadline - time.monotonic()))[0]
        return stream.status or NO_ANSWER
