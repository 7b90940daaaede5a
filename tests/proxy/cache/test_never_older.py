"""Random calls through the cache beside a store that knows all of history: nothing is older than what was shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvorum import errors
from kvorum.errors import Code
from kvorum.pb.mvcc_pb2 import Event, KeyValue
from kvorum.pb.rpc_pb2 import (
    CompactionRequest,
    CompactionResponse,
    DeleteRangeRequest,
    DeleteRangeResponse,
    LeaseRevokeResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    ResponseHeader,
    ResponseOp,
    TxnRequest,
    TxnResponse,
    WatchResponse,
)
from kvorum.ranges import covers
from proxy.cache.learning import Learner
from proxy.cache.range_cache import MAX_AGE_S, RangeCache
from proxy.cache.shared import REGION_BYTES, Shared

KEYS = (b"a", b"a/1", b"a/2", b"a/2/x", b"b", b"b/1", b"c")
RANGES = ((b"a", b"b"), (b"a/", b"a0"), (b"b", b"c"), (b"\0", b"\0"), (b"a/2", b"c"), (b"b", b"\0"))
KV = "/etcdserverpb.KV/"
LEASE = 7
BOUND_BYTES = 12_000

keys = st.sampled_from(KEYS)
wheres = st.one_of(st.tuples(keys, st.just(b"")), st.sampled_from(RANGES))
tokens = st.sampled_from(("", "t"))


@dataclass
class Answer:
    """A read's reply on its way to the proxy."""

    token: str
    message: bytes
    reply: bytes
    learner: Learner


class Cached(RuleBasedStateMachine):
    WORKERS = 1

    def __init__(self) -> None:
        super().__init__()
        regions = [memoryview(bytearray(REGION_BYTES)).cast("Q") for _ in range(self.WORKERS)]
        shares = [Shared(regions, index) if self.WORKERS > 1 else None for index in range(self.WORKERS)]
        self.learners = [Learner(RangeCache(BOUND_BYTES, shared)) for shared in shares]
        self.learner = self.learners[0]
        self.now = 0.0
        self.revision = 1
        self.compacted = 0
        self.history: dict[bytes, list[tuple[int, KeyValue | None]]] = {key: [] for key in KEYS}
        self.shown = dict.fromkeys(KEYS, 0)
        """The state of which revision has been shown of each key."""
        self.under_way: list[Answer] = []

    @property
    def cache(self) -> RangeCache:
        return self.learner.cache

    @property
    def teacher(self) -> Learner:
        """The worker that writes, watches and most other reads go through: the other one, if there is one."""
        return self.learners[-1]

    @rule()
    def turn(self) -> None:
        """The workers change places."""
        self.learners.reverse()
        self.learner = self.learners[0]

    # The store.

    def state(self, key: bytes, revision: int) -> KeyValue | None:
        return next((kv for at, kv in reversed(self.history[key]) if at <= revision), None)

    def changed_at(self, key: bytes, revision: int) -> int:
        """When the key last changed, as of that revision."""
        return next((at for at, _ in reversed(self.history[key]) if at <= revision), 0)

    def write(self, changes: dict[bytes, KeyValue | None]) -> ResponseHeader:
        changes = {key: kv for key, kv in changes.items() if kv is not None or self.state(key, self.revision)}
        if changes:
            self.revision += 1
        for key, kv in changes.items():
            if kv is not None:
                kv.mod_revision = self.revision
            self.history[key].append((self.revision, kv))
        return ResponseHeader(revision=self.revision)

    def read(self, asked: RangeRequest, revision: int) -> RangeResponse:
        """As a member at that revision answers."""
        at = asked.revision or revision
        found = [self.state(key, at) for key in KEYS if covers(asked.key, asked.range_end, key)]
        return RangeResponse(header=ResponseHeader(revision=revision), kvs=[kv for kv in found if kv is not None])

    def covered(self, start: bytes, end: bytes) -> list[bytes]:
        return [key for key in KEYS if covers(start, end, key)]

    # What clients see.

    def show(self, reply: RangeResponse, start: bytes, end: bytes) -> None:
        for key in self.covered(start, end):
            self.shown[key] = max(self.shown[key], reply.header.revision)

    def check(self, kept: RangeResponse, asked: RangeRequest) -> None:
        assert kept == self.read(asked, kept.header.revision)
        if asked.revision:
            assert asked.revision >= self.compacted
            return
        for key in self.covered(asked.key, asked.range_end):
            assert self.changed_at(key, self.shown[key]) <= kept.header.revision, (key, self.shown[key])

    # Calls.

    @rule(
        where=wheres,
        token=tokens,
        serializable=st.booleans(),
        lag=st.sampled_from((0, 0, 0, 1, 3)),
        past=st.sampled_from((0, 0, 0, 0, 1, 3)),
        at_once=st.booleans(),
    )
    def ask(
        self, where: tuple[bytes, bytes], token: str, serializable: bool, lag: int, past: int, at_once: bool
    ) -> None:
        at = max(self.revision - past, self.compacted, 0) if past else 0
        asked = RangeRequest(key=where[0], range_end=where[1], revision=at, serializable=serializable)
        self._ask(asked, token, lag, at_once)

    @rule(pick=st.integers(0, 100), lag=st.integers(0, 1), at_once=st.booleans())
    def ask_again(self, pick: int, lag: int, at_once: bool) -> None:
        """What is kept is asked for again, also just after something has changed."""
        kept = list(self.cache._entries)
        if kept:
            token, _, message = kept[pick % len(kept)]
            asked = RangeRequest.FromString(message)
            self._ask(asked, token, lag, at_once)

    @rule()
    def read_all(self) -> None:
        """Fills the cache with the keys as they are now."""
        for key in KEYS:
            self._ask(RangeRequest(key=key, serializable=True), "", 0, True)

    def _ask(self, asked: RangeRequest, token: str, lag: int, at_once: bool) -> None:
        message = asked.SerializeToString()
        serializable = asked.serializable
        where = asked.key, asked.range_end
        learner = self.learner if serializable or lag else self.teacher
        kept, known = learner.ask(token, b"", message, self.now)
        assert known is serializable
        if kept is not None:
            event("hit")
            reply = RangeResponse.FromString(kept)
            self.check(reply, asked)
            if not asked.revision:
                self.show(reply, *where)
            return
        if 0 < asked.revision < self.compacted:
            self.learner.on_failure(KV + "Range", message, *errors.COMPACTED)
            return
        revision = max(self.revision - lag, 1, asked.revision) if serializable else self.revision
        self.under_way.append(Answer(token, message, self.read(asked, revision).SerializeToString(), learner))
        if at_once:
            self.answer(len(self.under_way) - 1)

    @rule(first=st.integers(0, 20))
    def answer_late(self, first: int) -> None:
        self.answer(first)

    def answer(self, first: int) -> None:
        """One of the replies under way arrives: also not in order."""
        if self.under_way:
            arrived = self.under_way.pop(first % len(self.under_way))
            asked = RangeRequest.FromString(arrived.message)
            if not asked.revision:
                self.show(RangeResponse.FromString(arrived.reply), asked.key, asked.range_end)
            arrived.learner.on_range(
                arrived.token, b"", arrived.message, arrived.message, arrived.reply, arrived.reply, self.now
            )

    def done(self, path: str, request: bytes, reply: bytes, told: bool, touched: Callable[[], list[bytes]]) -> None:
        """A write through the proxy has been done; it may be that its answer is lost."""
        if told:
            self.teacher.on_reply(path, request, reply)
            for key in touched():
                self.shown[key] = self.revision
        else:
            self.teacher.on_failure(path, request, Code.UNAVAILABLE, "connection lost")

    @rule(key=keys, leased=st.booleans(), told=st.booleans())
    def put(self, key: bytes, leased: bool, told: bool) -> None:
        header = self.write({key: KeyValue(key=key, value=b"%d" % self.revision, lease=LEASE * leased)})
        reply = PutResponse(header=header).SerializeToString()
        self.done(KV + "Put", PutRequest(key=key).SerializeToString(), reply, told, lambda: [key])

    @rule(where=wheres, told=st.booleans())
    def delete(self, where: tuple[bytes, bytes], told: bool) -> None:
        header = self.write(dict.fromkeys(self.covered(*where)))
        request = DeleteRangeRequest(key=where[0], range_end=where[1]).SerializeToString()
        reply = DeleteRangeResponse(header=header).SerializeToString()
        self.done(KV + "DeleteRange", request, reply, told, lambda: self.covered(*where))

    @rule(key=keys, where=wheres, wiped=wheres, nested=st.booleans(), succeeded=st.booleans(), told=st.booleans())
    def txn(
        self,
        key: bytes,
        where: tuple[bytes, bytes],
        wiped: tuple[bytes, bytes],
        nested: bool,
        succeeded: bool,
        told: bool,
    ) -> None:
        asked = RangeRequest(key=where[0], range_end=where[1])
        found = self.read(asked, self.revision)
        changes: dict[bytes, KeyValue | None] = dict.fromkeys(self.covered(*wiped))
        changes[key] = KeyValue(key=key, value=b"txn%d" % self.revision)
        found.header.revision = 0
        header = self.write(changes)
        request, reply = TxnRequest(), TxnResponse(header=header, succeeded=succeeded)
        branch, responses = request.success if succeeded else request.failure, reply.responses
        branch.add().request_range.CopyFrom(asked)
        responses.append(ResponseOp(response_range=found))
        if nested:
            inner = branch.add().request_txn
            answered = responses.add().response_txn
            answered.succeeded = True
            branch, responses = inner.success, answered.responses
        branch.add().request_put.key = key
        responses.add().response_put.SetInParent()
        wipe = branch.add().request_delete_range
        wipe.key, wipe.range_end = wiped
        responses.add().response_delete_range.SetInParent()

        def touched() -> list[bytes]:
            before = self.revision - 1
            for seen in self.covered(*where):
                self.shown[seen] = max(self.shown[seen], before)
            return [key, *self.covered(*wiped)]

        self.done(KV + "Txn", request.SerializeToString(), reply.SerializeToString(), told, touched)

    @rule()
    def revoke(self) -> None:
        gone: list[bytes] = []
        for key in KEYS:
            kv = self.state(key, self.revision)
            if kv is not None and kv.lease == LEASE:
                gone.append(key)
        reply = LeaseRevokeResponse(header=self.write(dict.fromkeys(gone)))
        self.done("/etcdserverpb.Lease/LeaseRevoke", b"", reply.SerializeToString(), True, lambda: gone)

    @rule(key=keys)
    def write_elsewhere(self, key: bytes) -> None:
        self.write({key: KeyValue(key=key, value=b"other%d" % self.revision)})

    @rule(where=wheres)
    def delete_elsewhere(self, where: tuple[bytes, bytes]) -> None:
        self.write(dict.fromkeys(self.covered(*where)))

    @rule(key=keys, value=st.booleans())
    def watched_write(self, key: bytes, value: bool) -> None:
        """A write elsewhere whose event is delivered through the proxy."""
        header = self.write({key: KeyValue(key=key, value=b"watched") if value else None})
        if self.changed_at(key, self.revision) != self.revision:
            return
        kv = self.state(key, self.revision)
        events = [Event(type=Event.PUT if kv else Event.DELETE, kv=kv or KeyValue(key=key, mod_revision=self.revision))]
        self.teacher.on_events(WatchResponse(header=header, events=events).SerializeToString())
        self.shown[key] = self.revision

    @rule(back=st.integers(0, 4))
    def compact(self, back: int) -> None:
        at = max(self.revision - back, self.compacted + 1)
        if at <= self.revision:
            self.compacted = at
            reply = CompactionResponse(header=ResponseHeader(revision=self.revision)).SerializeToString()
            self.teacher.on_reply(KV + "Compact", CompactionRequest(revision=at).SerializeToString(), reply)

    @rule(back=st.integers(0, 4))
    def compact_elsewhere(self, back: int) -> None:
        """A read that the member refuses tells of it."""
        at = max(self.revision - back, self.compacted + 1)
        if 1 < at <= self.revision:
            self.compacted = at
            asked = RangeRequest(key=b"a", revision=at - 1).SerializeToString()
            self.teacher.on_failure(KV + "Range", asked, *errors.COMPACTED)

    @rule(seconds=st.sampled_from((0.5, MAX_AGE_S)))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def bounded_and_counted(self) -> None:
        assert self.cache.size_bytes <= BOUND_BYTES
        entries = list(self.cache._entries.values())
        assert self.cache.size_bytes == sum(entry.size for entry in entries)
        latest = {entry.key for entry in entries if not entry.at_revision}
        indexed = [entry.key for held in self.cache._keys.values() for entry in held]
        indexed += [entry.key for held in self.cache._prefixes.values() for entry in held]
        indexed += self.cache._odd
        assert len(indexed) == len(latest) and set(indexed) == latest
        lengths = {len(start) for start in self.cache._prefixes}
        assert lengths == set(self.cache._prefix_lengths)


class CachedByTwo(Cached):
    """Two workers of one proxy."""

    WORKERS = 2


TestTwoWorkers = CachedByTwo.TestCase
TestTwoWorkers.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestNeverOlder = Cached.TestCase
TestNeverOlder.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
