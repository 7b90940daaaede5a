"""A cluster and proxies with leasing in one process, on one clock: what happens when is drawn from a seed."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from kvorum import errors
from kvorum.errors import ApiError, Code
from kvorum.log import Level, LogFormat, Logger
from kvorum.pb.mvcc_pb2 import Event
from kvorum.pb.rpc_pb2 import (
    DeleteRangeRequest,
    LeaseGrantRequest,
    LeaseGrantResponse,
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
    LeaseRevokeRequest,
    LeaseRevokeResponse,
    PutRequest,
    RangeRequest,
    TxnRequest,
    WatchRequest,
    WatchResponse,
)
from kvorum.wire import grpc
from proxy.leasing.guards import LeasingKeys
from proxy.leasing.session import Upstream as LeasingUpstream
from proxy.leasing.way import LeasingWay
from proxy.paths import DELETE_RANGE, KEEP_ALIVE, LEASE_GRANT, LEASE_REVOKE, PUT, RANGE, TXN
from tests.apply.mvcc_model import Model

METHODS: dict[str, Any] = {
    PUT: (PutRequest, Model.put),
    DELETE_RANGE: (DeleteRangeRequest, Model.delete_range),
    TXN: (TxnRequest, Model.txn),
    RANGE: (RangeRequest, Model.range),
}


class Timer:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """Callbacks in the order of their times."""

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, Timer, Callable[[], None]]] = []
        self._number = 0
        self.after_each: Callable[[], None] = lambda: None

    def later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        timer = Timer()
        self._number += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._number, timer, callback))
        return timer

    def run(self, until: Callable[[], bool], limit_s: float) -> None:
        """Until it is so, which must be within the limit."""
        end = self.now + limit_s
        while not until():
            assert self._queue, "nothing happens any more"
            at, _, timer, callback = heapq.heappop(self._queue)
            assert at <= end, "too late"
            self.now = max(self.now, at)
            if not timer.cancelled:
                callback()
                self.after_each()

    def run_for(self, seconds: float) -> None:
        done: list[bool] = []
        self.later(seconds, lambda: done.append(True))
        self.run(lambda: bool(done), seconds + 1)


@dataclass
class Lease:
    ttl_s: int
    ends_at: float


class Store(Model):
    """The model of the store, with leases that come and go."""

    granted: dict[int, Lease]

    def check(self, path: list[object], *, puts: bool) -> None:
        for step in path[1:]:
            if isinstance(step, list):
                self.check(step, puts=puts)
            elif isinstance(step, PutRequest) and puts:
                if step.lease and step.lease not in self.granted:
                    raise ApiError(errors.LEASE_NOT_FOUND)
                if (step.ignore_value or step.ignore_lease) and step.key not in self.live():
                    raise ApiError(errors.KEY_NOT_FOUND)


class Cluster:
    """A store behind a network; time only passes on its clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.leases: dict[int, Lease] = {}
        self.model = Store()
        self.model.granted = self.leases
        self.watches: list[Stream] = []
        self._last_lease = 1000

    def execute(self, path: str, message: bytes) -> bytes:
        """A unary call, now. Raises ApiError."""
        before = len(self.model.versions)
        if path == LEASE_GRANT:
            ttl_s = LeaseGrantRequest.FromString(message).TTL
            self._last_lease += 1
            lease = self._last_lease
            self.leases[lease] = Lease(ttl_s, self.clock.now + ttl_s)
            self.clock.later(ttl_s, lambda: self._expire(lease))
            return LeaseGrantResponse(header=self.model.header(), ID=lease, TTL=ttl_s).SerializeToString()
        if path == LEASE_REVOKE:
            self._revoke(LeaseRevokeRequest.FromString(message).ID)
            return LeaseRevokeResponse(header=self.model.header()).SerializeToString()
        request_type, method = METHODS[path]
        request = request_type.FromString(message)
        if isinstance(request, TxnRequest):
            assert max(len(request.compare), len(request.success), len(request.failure)) <= 128
        reply: bytes = method(self.model, request).SerializeToString()
        self._tell(before)
        return reply

    def renew(self, lease_id: int) -> int:
        lease = self.leases.get(lease_id)
        if lease is None:
            return 0
        lease.ends_at = self.clock.now + lease.ttl_s
        self.clock.later(lease.ttl_s, lambda: self._expire(lease_id))
        return lease.ttl_s

    def _expire(self, lease_id: int) -> None:
        lease = self.leases.get(lease_id)
        if lease is not None and self.clock.now >= lease.ends_at:
            self._revoke(lease_id)

    def _revoke(self, lease_id: int) -> None:
        before = len(self.model.versions)
        if self.leases.pop(lease_id, None) is not None:
            keys = [key for key, kv in self.model.live().items() if kv.lease == lease_id]
            if keys:
                self.model.txn(TxnRequest(success=[{"request_delete_range": {"key": key}} for key in keys]))
        self._tell(before)

    def events(self, start: bytes, end: bytes, first: int) -> list[Event]:
        found = []
        for version in self.model.versions:
            if version.main >= first and start <= version.key < end:
                if version.kv is None:
                    event = Event(type=Event.DELETE)
                    event.kv.key, event.kv.mod_revision = version.key, version.main
                else:
                    event = Event(kv=version.kv)
                found.append(event)
        return found

    def _tell(self, before: int) -> None:
        if len(self.model.versions) > before:
            for watch in list(self.watches):
                watch.catch_up()


class Stream:
    """A stream of a proxy: its messages keep their order on the way."""

    def __init__(self, upstream: Upstream, path: str, handler: Any) -> None:
        self._upstream = upstream
        self._path = path
        self._handler = handler
        self._arrives_at = 0.0
        self._range = (b"", b"")
        self._next = 0

    def send(self, message: bytes) -> None:
        self._upstream.later(lambda: self._arrived(message))

    def cancel(self) -> None:
        self.end(Code.CANCELLED, "cancelled")

    def end(self, code: int, text: str) -> None:
        handler, self._handler = self._handler, None
        if self in self._upstream.cluster.watches:
            self._upstream.cluster.watches.remove(self)
        if self in self._upstream.streams:
            self._upstream.streams.remove(self)
        if handler is not None:
            handler.on_end(code, text, grpc.NO_METADATA)

    def _arrived(self, message: bytes) -> None:
        cluster = self._upstream.cluster
        if self._handler is None:
            return
        if self._path == KEEP_ALIVE:
            lease_id = LeaseKeepAliveRequest.FromString(message).ID
            self._say(LeaseKeepAliveResponse(ID=lease_id, TTL=cluster.renew(lease_id)).SerializeToString())
            return
        create = WatchRequest.FromString(message).create_request
        self._range = create.key, create.range_end
        self._next = create.start_revision
        self._say(WatchResponse(created=True, header=cluster.model.header()).SerializeToString())
        cluster.watches.append(self)
        self.catch_up()

    def catch_up(self) -> None:
        cluster = self._upstream.cluster
        events = cluster.events(*self._range, self._next)
        self._next = cluster.model.revision + 1
        if events:
            self._say(WatchResponse(header=cluster.model.header(), events=events).SerializeToString())

    def _say(self, message: bytes) -> None:
        upstream = self._upstream
        now = upstream.cluster.clock.now
        self._arrives_at = max(self._arrives_at, now + upstream.delay_s())

        def arrive() -> None:
            if self._handler is not None:
                self._handler.on_message(message)

        upstream.cluster.clock.later(self._arrives_at - now, arrive)


class Upstream:
    """A proxy's way to the cluster: slow, and at times faulty."""

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        self.cluster = cluster
        self._rng = rng
        self.streams: list[Stream] = []
        self.faults = 0.0
        self.slow = 0.0
        self.calls = 0

    def delay_s(self) -> float:
        if self._rng.random() < self.slow:
            return self._rng.uniform(0.0, 20.0)
        return self._rng.uniform(0.001, 0.05)

    def later(self, callback: Callable[[], None]) -> None:
        self.cluster.clock.later(self.delay_s(), callback)

    def call(self, path: str, message: bytes, done: Any, metadata: Any = None, timeout_s: float | None = None) -> Any:
        self.calls += 1
        finished = False

        def finish(code: int, text: str, reply: bytes) -> None:
            nonlocal finished
            if not finished:
                finished = True
                done(code, text, reply)

        def arrive() -> None:
            if self._rng.random() < self.faults:
                self.later(lambda: finish(Code.UNAVAILABLE, "lost on the way", b""))
                return
            try:
                reply = self.cluster.execute(path, message)
            except ApiError as error:
                status = error.status
                self.later(lambda: finish(*status, b""))
                return
            if self._rng.random() < self.faults:
                self.later(lambda: finish(Code.UNAVAILABLE, "lost on the way back", b""))
            else:
                self.later(lambda: finish(0, "", reply))

        self.later(arrive)
        if timeout_s is not None:
            self.cluster.clock.later(timeout_s, lambda: finish(*errors.DEADLINE_EXCEEDED, b""))
        return None

    def open(self, path: str, handler: Any, metadata: Any = None, timeout_s: float | None = None) -> Stream:
        stream = Stream(self, path, handler)
        self.streams.append(stream)
        return stream

    def cut(self) -> None:
        """All streams end."""
        for stream in list(self.streams):
            stream.end(Code.UNAVAILABLE, "connection lost")

    def flush(self) -> None: ...


@dataclass
class Proxy:
    """A proxy with leasing."""

    cluster: Cluster
    upstream: Upstream
    way: LeasingWay = field(init=False)
    namespace: bytes = b""

    def __post_init__(self) -> None:
        clock = self.cluster.clock
        self.way = LeasingWay(
            cast(LeasingUpstream, self.upstream),
            LeasingKeys(self.namespace, b"leasing/"),
            now=lambda: clock.now,
            call_later=clock.later,
            logger=Logger((), Level.ERROR, LogFormat.JSON),
        )

    def owns(self, key: bytes) -> bytes | None:
        """The reply that it would give of itself."""
        return self.way.read(RangeRequest(key=key).SerializeToString())

    def ask(self, path: str, request: Any, then: Callable[[int, bytes], None], metadata: Any = ()) -> None:
        """A call through the proxy, as its services make it."""
        message = request.SerializeToString()
        if path == RANGE and not metadata:
            kept = self.way.read(message)
            if kept is not None:
                then(0, kept)
                return
        self.way.call(path, message, lambda code, _text, reply: then(code, reply), metadata, None)

    def now(self, path: str, request: Any, *, metadata: Any = (), limit_s: float = 30.0) -> tuple[int, bytes]:
        """The same, awaited."""
        answers: list[tuple[int, bytes]] = []
        self.ask(path, request, lambda code, reply: answers.append((code, reply)), metadata)
        self.cluster.clock.run(lambda: bool(answers), limit_s)
        return answers[0]
