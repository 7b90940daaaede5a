"""The way to the cluster of a proxy with --experimental-leasing-prefix: reads make keys owned, writes ask for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from google.protobuf.message import DecodeError

from kvorum import errors
from kvorum.log import Logger
from kvorum.pb.mvcc_pb2 import Event, KeyValue
from kvorum.pb.rpc_pb2 import (
    DeleteRangeRequest,
    PutRequest,
    RequestOp,
    TxnRequest,
    TxnResponse,
)
from kvorum.wire.calls import CallHandler, ClientStream, Fields, UnaryDone
from proxy.cache.learning import NOT_DONE, lone_key
from proxy.leasing import guards
from proxy.leasing.guards import REVOKE, LeasingKeys, Range
from proxy.leasing.ownership import BLOCKED_S, Ownership, reply_of
from proxy.leasing.session import Session, Upstream
from proxy.paths import DELETE_RANGE, PUT, RANGE, TXN
from proxy.upstream.replies import read_as
from proxy.upstream.way import CallLater, Timer

ASK_AGAIN_S: Final = 1.0
"""A writer that waits for an owner asks again after this."""

PATIENCE_S: Final = 90.0
"""How long a writer without a deadline waits for an owner: longer than any session lives on after its proxy, which for
the reference's is a minute."""

MAX_WAITING: Final = 10_000
"""Writes that wait for owners; beyond it one fails at once."""

GIVE_UP_AGAIN_S: Final = 0.5
"""The deletion of a leasing key that failed is repeated after this."""

MAX_GIVEN_UP: Final = 100
"""Leasing keys deleted in one transaction, of which a member takes 128 operations."""

_WHO: Final = frozenset((b"token", b"authorization", b"hasleader"))
"""Callers that show one of these are answered by members: whether they may read, and whether there is a leader, is
known there."""


class LeasingWay:
    """An upstream through the leasing protocol. All writers of the keys must keep to it, with the same prefix."""

    def __init__(
        self,
        upstream: Upstream,
        leasing: LeasingKeys,
        *,
        now: Callable[[], float],
        call_later: CallLater,
        logger: Logger,
    ) -> None:
        self.upstream = upstream
        self.leasing = leasing
        self.ownership = Ownership()
        self.now = now
        self.call_later = call_later
        self.waiting: dict[bytes, set[_Write]] = {}
        """Writes by the keys whose owners they wait for."""
        self.waiting_writes = 0
        self._session = Session(
            upstream, leasing, self.ownership, self._on_event, now=now, call_later=call_later, logger=logger
        )

    def start(self) -> None:
        """Begins the session. Until then, and between sessions, nothing is owned, and all else goes on."""
        self._session.start()

    def stop(self) -> None:
        """Gives up what is owned."""
        self._session.stop()

    def read(self, request: bytes) -> bytes | None:
        """The reply to a RangeRequest from what is owned; None when a member must be asked."""
        key = lone_key(request)
        return None if key is None else self.ownership.read(key, self.now())

    def figures(self) -> dict[str, int]:
        """The figures of this service."""
        return {
            "kvorum_grpc_proxy_leasing_keys": len(self.ownership),
            "kvorum_grpc_proxy_leasing_hits_total": self.ownership.hits,
        }

    def call(
        self,
        path: str,
        message: bytes,
        done: UnaryDone,
        metadata: Fields | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """See Upstream."""
        fields = metadata or ()
        if path == RANGE:
            key = lone_key(message)
            if key is not None and self._may_own(key, fields) and self.ownership.begin_acquire(key, self.now()):
                self._acquire(key, message, done, fields, timeout_s)
                return
        elif path in (PUT, DELETE_RANGE, TXN):
            operation = _operation(path, message)
            if operation is not None:
                keys, ranges = guards.targets(operation, self.leasing)
                if keys or ranges:
                    _Write(self, operation, keys, ranges, done, fields, timeout_s).attempt()
                    return
        self.upstream.call(path, message, done, fields, timeout_s)

    def open(
        self,
        path: str,
        handler: CallHandler,
        metadata: Fields | None = None,
        timeout_s: float | None = None,
    ) -> ClientStream:
        """See Upstream."""
        return self.upstream.open(path, handler, metadata, timeout_s)

    # Reads.

    def _may_own(self, key: bytes, fields: Fields) -> bool:
        return not self.leasing.is_one(key) and not any(name in _WHO for name, _ in fields)

    def _acquire(self, key: bytes, message: bytes, done: UnaryDone, fields: Fields, timeout_s: float | None) -> None:
        lease = self.ownership.lease
        request = guards.acquire(key, self.leasing.of(key), lease).SerializeToString()
        acquired = partial(self._acquired, key, lease, message, done, fields, timeout_s)
        self.upstream.call(TXN, request, read_as(TxnResponse, acquired), fields, timeout_s)

    def _acquired(
        self,
        key: bytes,
        lease: int,
        message: bytes,
        done: UnaryDone,
        fields: Fields,
        timeout_s: float | None,
        code: int,
        _text: str,
        answer: TxnResponse,
    ) -> None:
        ownership = self.ownership
        if code:
            # The session may be over, or the leasing keys not be the caller's to write: the read is one all the same.
            ownership.not_acquired(key)
            self.upstream.call(RANGE, message, done, fields, timeout_s)
            return
        kv = guards.only(answer.responses[0])
        if answer.succeeded:
            other = ownership.acquired(key, lease, answer.header, kv)
            if other is not None:
                self.give_up([other])
        else:
            ownership.not_acquired(key)
        done(0, "", reply_of(answer.header, kv))

    # What is given up.

    def give_up(self, keys: Iterable[tuple[bytes, int]]) -> None:
        """Deletes the leasing keys of keys that are no longer owned, as long as this session lasts. Each is given with
        the revision of its leasing key's creation: the key may be owned again by the time that a repeated deletion
        arrives."""
        leasing_keys = [(self.leasing.of(key), revision) for key, revision in keys]
        for first in range(0, len(leasing_keys), MAX_GIVEN_UP):
            self._delete(self.ownership.lease, leasing_keys[first : first + MAX_GIVEN_UP])

    def _delete(self, lease: int, leasing_keys: list[tuple[bytes, int]]) -> None:
        if not lease or lease != self.ownership.lease:
            return  # they vanish with the lease

        def done(code: int, _text: str, answer: TxnResponse) -> None:
            if code:
                self.call_later(GIVE_UP_AGAIN_S, partial(self._delete, lease, leasing_keys))
            elif len(leasing_keys) > 1 and not answer.succeeded:
                for leasing_key in leasing_keys:  # one is gone, or another's, by now
                    self._delete(lease, [leasing_key])

        request = guards.give_up(leasing_keys).SerializeToString()
        self.upstream.call(TXN, request, read_as(TxnResponse, done), ())

    def _on_event(self, event: Event) -> None:
        """Something has happened to a leasing key."""
        kv = event.kv
        key = self.leasing.key(kv.key)
        ownership = self.ownership
        if event.type == Event.DELETE:
            ownership.end(key, kv.mod_revision)
            for write in self.waiting.pop(key, ()):
                write.gone(key)
        elif kv.lease != ownership.lease:
            ownership.end(key, kv.mod_revision)
        elif kv.value == REVOKE:
            # Also when it is not known here to be owned: the answer to the acquisition may be under way.
            ownership.end(key, kv.mod_revision, self.now() + BLOCKED_S)
            self.give_up([(key, kv.create_revision)])


class _Write:
    """A write that is tried until nobody else owns what it writes."""

    def __init__(
        self,
        way: LeasingWay,
        operation: RequestOp,
        keys: list[bytes],
        ranges: list[Range],
        done: UnaryDone,
        fields: Fields,
        timeout_s: float | None,
    ) -> None:
        self._way = way
        self._operation = operation
        self._keys = keys
        self._ranges = ranges
        self._done = done
        self._fields = fields
        self._until = way.now() + (PATIENCE_S if timeout_s is None else timeout_s)
        self._pending: set[bytes] = set()
        self._timer: Timer | None = None

    def attempt(self) -> None:
        """Sends the write."""
        way = self._way
        ownership = way.ownership
        for start, end in self._ranges:
            given_up = ownership.begin_range_write(start, end)
            if given_up:
                way.give_up(given_up)  # on the way before the write
        guarded = [(key, ownership.revision(key)) for key in self._keys]
        own = [(key, revision) for key, revision in guarded if revision]
        ownership.begin_write([key for key, _ in own])
        request = guards.guarded(self._operation, guarded, self._ranges, way.leasing, [key for key, _ in own])
        timeout_s = max(0.0, self._until - way.now())
        done = read_as(TxnResponse, partial(self._answered, own))
        way.upstream.call(TXN, request.SerializeToString(), done, self._fields, timeout_s)

    def _answered(self, own: list[tuple[bytes, int]], code: int, text: str, answer: TxnResponse) -> None:
        way = self._way
        ownership = way.ownership
        for _ in self._ranges:
            ownership.end_range_write()
        if code:
            ownership.end_write(own)
            if code not in NOT_DONE:
                self._lose(own)
            self._done(code, text, b"")
            return
        if not answer.succeeded:
            ownership.end_write(own)
            found = guards.found(answer.responses)
            still = {(way.leasing.key(kv.key), kv.create_revision) for kv in found if kv.lease == ownership.lease}
            self._lose([one for one in own if one not in still])
            kept = {one for one in own if one in still}
            in_the_way = [kv for kv in found if (way.leasing.key(kv.key), kv.create_revision) not in kept]
            self._ask_for(in_the_way, answer.header.revision)
            return
        for (key, revision), response in zip(own, answer.responses[1:], strict=True):
            kv = guards.only(response)
            if kv is not None and kv.lease:
                self._lose([(key, revision)])  # it may vanish by itself
            else:
                ownership.wrote(key, revision, answer.header, kv)
        ownership.end_write(own)
        self._done(0, "", guards.unwrap(answer).SerializeToString())

    def _lose(self, own: list[tuple[bytes, int]]) -> None:
        """Gives up keys whose state is not known, or cannot be kept."""
        way = self._way
        lost = [(key, revision) for key, revision in own if way.ownership.end(key, revision + 1)]
        if lost:
            way.give_up(lost)

    def _ask_for(self, kvs: list[KeyValue], revision: int) -> None:
        """Asks the owners of these leasing keys, read at that revision, and waits until all are gone."""
        way = self._way
        if way.waiting_writes >= MAX_WAITING:
            self._done(*errors.REQUEST_TOO_MANY_REQUESTS, b"")
            return
        way.waiting_writes += 1
        mine: list[tuple[bytes, int]] = []
        for kv in kvs:
            key = way.leasing.key(kv.key)
            if way.ownership.ended_after(key, revision):
                continue
            self._pending.add(key)
            way.waiting.setdefault(key, set()).add(self)
            if kv.lease and kv.lease == way.ownership.lease:
                way.ownership.end(key, revision + 1)
                mine.append((key, kv.create_revision))
            else:
                request = guards.ask_for(kv.key, kv.create_revision).SerializeToString()
                way.upstream.call(TXN, request, _ignored, self._fields)
        if mine:
            way.give_up(mine)
        pause_s = min(ASK_AGAIN_S, max(0.0, self._until - way.now())) if self._pending else 0.0
        self._timer = way.call_later(pause_s, self._again)

    def gone(self, key: bytes) -> None:
        """A leasing key that was waited for is gone."""
        self._pending.discard(key)
        if not self._pending:
            self._again()

    def _again(self) -> None:
        way = self._way
        assert self._timer is not None
        self._timer.cancel()
        self._timer = None
        way.waiting_writes -= 1
        for key in self._pending:
            writes = way.waiting.get(key)
            if writes is not None:
                writes.discard(self)
                if not writes:
                    del way.waiting[key]
        self._pending.clear()
        if way.now() >= self._until:
            self._done(*errors.TIMEOUT, b"")
        else:
            self.attempt()


def _ignored(_code: int, _text: str, _reply: bytes) -> None:
    """Whoever asked asks again."""


def _operation(path: str, message: bytes) -> RequestOp | None:
    """A write as an operation of a transaction; None for what cannot be read, which a member refuses."""
    try:
        if path == PUT:
            return RequestOp(request_put=PutRequest.FromString(message))
        if path == DELETE_RANGE:
            return RequestOp(request_delete_range=DeleteRangeRequest.FromString(message))
        return RequestOp(request_txn=TxnRequest.FromString(message))
    except DecodeError:
        return None
