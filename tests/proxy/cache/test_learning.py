"""What calls teach the cache, and Range calls through it."""

from __future__ import annotations

from typing import Any, cast

import pytest

from kvorum import errors
from kvorum.errors import ApiError, Code
from kvorum.pb.election_pb2 import CampaignResponse, LeaderKey, ProclaimRequest, ProclaimResponse, ResignRequest
from kvorum.pb.lock_pb2 import LockResponse, UnlockRequest, UnlockResponse
from kvorum.pb.mvcc_pb2 import KeyValue
from kvorum.pb.rpc_pb2 import (
    AuthRoleAddResponse,
    DeleteRangeRequest,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    RangeStreamResponse,
    ResponseHeader,
)
from kvorum.wire.calls import CallHandler
from kvorum.wire.head import Head
from kvorum.wire.server_connection import ServerConnection
from proxy.cache.learning import Learner, header_revision, is_serializable, linearizable, lone_key, serializable
from proxy.cache.range_cache import RangeCache
from proxy.cache.reads import CachedReads, LearningUpstream
from proxy.callers import Caller, Callers
from proxy.namespaces.namespace import Namespace
from proxy.paths import (
    CAMPAIGN,
    DELETE_RANGE,
    LEASE_REVOKE,
    LOCK,
    PROCLAIM,
    PUT,
    RANGE,
    RANGE_STREAM,
    RESIGN,
    ROLE_REVOKE_PERMISSION,
    TXN,
    UNLOCK,
)
from proxy.upstream.way import Way


def header(revision: int) -> ResponseHeader:
    return ResponseHeader(cluster_id=(1 << 64) - 1, member_id=(1 << 64) - 1, revision=revision, raft_term=1 << 40)


def found(revision: int, *keys: bytes, lease: int = 0, mod_revision: int = 3) -> bytes:
    kvs = [KeyValue(key=key, value=b"v", mod_revision=mod_revision, lease=lease) for key in keys]
    return RangeResponse(header=header(revision), kvs=kvs, count=len(kvs)).SerializeToString()


def get(key: bytes, **fields: Any) -> bytes:
    return RangeRequest(key=key, **fields).SerializeToString()


@pytest.mark.parametrize("revision", [0, 1, 127, 128, 1 << 40, (1 << 63) - 1])
def test_the_revision_in_the_header(revision: int) -> None:
    assert header_revision(PutResponse(header=header(revision)).SerializeToString()) == revision


@pytest.mark.parametrize("reply", [b"", b"\n", PutResponse(prev_kv=KeyValue(key=b"k")).SerializeToString()])
def test_a_reply_without_a_header(reply: bytes) -> None:
    assert header_revision(reply) == 0


def test_requests_are_told_apart_by_their_bytes() -> None:
    assert lone_key(get(b"k")) == b"k"
    for other in (get(b"k", limit=1), get(b"k" * 128), get(b"k") + get(b"l"), b"\n\x00", b"", b"\n"):
        assert lone_key(other) is None
    assert is_serializable(get(b"k", serializable=True))
    assert not is_serializable(get(b"8\x01"))
    assert not is_serializable(b"8\x01\xff")
    for asked in (get(b"k"), get(b"k", range_end=b"l", limit=5, keys_only=True), get(b"8\x01")):
        assert is_serializable(serializable(asked))
        assert linearizable(serializable(asked)) == asked


class Upstream:
    """Keeps calls until the test answers them."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bytes, Any]] = []

    def call(self, path: str, message: bytes, done: Any, metadata: Any, timeout_s: float | None) -> None:
        self.calls.append((path, message, done))

    def answer(self, reply: bytes, code: int = 0, text: str = "") -> bytes:
        """Answers the oldest call; its request."""
        _, message, done = self.calls.pop(0)
        done(code, text, reply)
        return message

    def open(self, path: str, handler: Any, metadata: Any, timeout_s: float | None) -> Any:
        return handler


class Connection:
    def __init__(self) -> None:
        self.now = 0.0
        self.said: list[tuple[object, ...]] = []

    def reply(self, stream_id: int, message: bytes) -> None:
        self.said.append((stream_id, message))

    def fail(self, stream_id: int, code: int, text: str) -> None:
        self.said.append((stream_id, code, text))


class Proxy:
    def __init__(self, *, ordered: bool = False) -> None:
        self.cache = RangeCache()
        self.learner = Learner(self.cache)
        self.upstream = Upstream()
        self.way = LearningUpstream(cast(Way, self.upstream), self.learner)
        self.caller = Caller("", False, (), None, None)
        self.refuse: errors.Status | None = None
        reads = CachedReads(self.way, cast(Callers, self), self.learner, ordered=ordered)
        self.handler = reads.unary()[RANGE]
        self.connection = Connection()
        self.head = Head.__new__(Head)
        self.head.timeout_s = None

    def resolve_or_wait(self, _connection: Any, _head: Any) -> Caller:
        if self.refuse is not None:
            raise ApiError(self.refuse)
        return self.caller

    def ask(self, message: bytes, reply: bytes | None = None) -> bytes | None:
        """The reply to a read; upstream answers with `reply`, unless it is not asked."""
        self.handler(cast(ServerConnection, self.connection), 1, self.head, message)
        if self.upstream.calls and reply is not None:
            self.upstream.answer(reply)
        if not self.connection.said:
            return None
        ((_, shown),) = self.connection.said
        self.connection.said.clear()
        assert isinstance(shown, bytes)
        return shown

    def keep(self, key: bytes, revision: int = 5, **fields: Any) -> bytes:
        message = get(key, serializable=True, **fields)
        self.ask(message, found(revision, key))
        assert self.kept(message)
        return message

    def kept(self, message: bytes) -> bool:
        return self.cache.get(self.caller.token, self.caller.prefix, message, self.connection.now) is not None


@pytest.fixture
def proxy() -> Proxy:
    return Proxy()


def test_a_serializable_read_is_answered_from_the_cache(proxy: Proxy) -> None:
    reply = found(5, b"k")
    assert proxy.ask(get(b"k", serializable=True), reply) == reply
    assert proxy.ask(get(b"k", serializable=True)) == reply
    assert (proxy.cache.hits, proxy.cache.misses, len(proxy.cache)) == (1, 1, 1)


def test_a_linearizable_read_goes_upstream_and_refreshes(proxy: Proxy) -> None:
    proxy.keep(b"other")
    reply = found(6, b"k")
    assert proxy.ask(get(b"k"), reply) == reply
    assert proxy.ask(get(b"k")) is None and len(proxy.upstream.calls) == 1
    assert proxy.upstream.answer(reply) == get(b"k")
    proxy.connection.said.clear()
    assert proxy.ask(get(b"k", serializable=True)) == reply
    assert proxy.cache.misses == 1


def test_before_anybody_reads_serializably_nothing_is_kept(proxy: Proxy) -> None:
    proxy.ask(get(b"k"), found(6, b"k"))
    assert len(proxy.cache) == 0 and proxy.cache.newest == 6


def test_a_namespace_has_replies_of_its_own(proxy: Proxy) -> None:
    proxy.caller = Caller("", False, (), Namespace(b"ns/"), None)
    message = get(b"k", serializable=True)
    shown = proxy.ask(message, found(5, b"ns/k"))
    assert shown is not None and RangeResponse.FromString(shown).kvs[0].key == b"k"
    assert proxy.ask(message) == shown
    proxy.learner.on_reply(PUT, PutRequest(key=b"k").SerializeToString(), found(6))
    assert proxy.kept(message)
    proxy.learner.on_reply(PUT, PutRequest(key=b"ns/k").SerializeToString(), found(6))
    assert not proxy.kept(message)


def test_who_wants_a_leader_asks_a_member(proxy: Proxy) -> None:
    message = proxy.keep(b"k")
    proxy.caller = Caller("", True, ((b"hasleader", b"true"),), None, None)
    assert proxy.ask(message) is None and len(proxy.upstream.calls) == 1


def test_errors_of_the_caller_and_of_the_member(proxy: Proxy) -> None:
    proxy.handler(cast(ServerConnection, proxy.connection), 3, proxy.head, get(b"k"))
    proxy.upstream.answer(b"", *errors.NO_LEADER)
    proxy.refuse = errors.PERMISSION_DENIED
    proxy.handler(cast(ServerConnection, proxy.connection), 5, proxy.head, get(b"k"))
    assert proxy.connection.said == [(3, *errors.NO_LEADER), (5, *errors.PERMISSION_DENIED)]


def test_a_read_refused_as_compacted_tells_of_the_compaction(proxy: Proxy) -> None:
    old = proxy.keep(b"k", revision=3)
    past = get(b"k", serializable=True, revision=2)
    proxy.ask(past, found(5, b"k"))
    assert proxy.kept(past)
    proxy.handler(cast(ServerConnection, proxy.connection), 1, proxy.head, get(b"x", revision=2))
    proxy.upstream.answer(b"", *errors.COMPACTED)
    assert not proxy.kept(past) and proxy.kept(old)


@pytest.mark.parametrize(("code", "stays"), [(Code.UNAVAILABLE, False), (Code.PERMISSION_DENIED, True)])
def test_a_write_that_may_have_been_done_drops_its_key(proxy: Proxy, code: Code, stays: bool) -> None:
    one, other = proxy.keep(b"k"), proxy.keep(b"l")
    told: list[tuple[int, str, bytes]] = []
    request = PutRequest(key=b"k").SerializeToString()
    proxy.way.call(PUT, request, lambda *outcome: told.append(outcome), None, None)
    proxy.upstream.answer(b"", code, "text")
    assert told == [(code, "text", b"")]
    assert proxy.kept(one) is stays and proxy.kept(other)


def test_a_failed_write_that_cannot_be_read_changes_nothing(proxy: Proxy) -> None:
    message = proxy.keep(b"k")
    proxy.learner.on_failure(PUT, b"\xff", Code.INTERNAL, "grpc: error unmarshalling request: …")
    assert proxy.kept(message)


def test_a_write_whose_reply_nobody_can_read_drops_everything(proxy: Proxy) -> None:
    message = proxy.keep(b"k")
    proxy.learner.on_reply(TXN, b"", b"\x0a\x02\x18\x06\xff")
    assert not proxy.kept(message)


@pytest.mark.parametrize("reply", [b"\xff", b"\x0a\x01\xff", b"\x0a\x02\x18\x06\xff"])
def test_a_read_whose_reply_nobody_can_read_is_passed_on_and_not_kept(proxy: Proxy, reply: bytes) -> None:
    proxy.keep(b"other")
    message = get(b"k", serializable=True)
    assert proxy.ask(message, reply) == reply
    assert not proxy.kept(message)


def test_a_range_delete_or_transaction_with_an_unknown_end(proxy: Proxy) -> None:
    one, other = proxy.keep(b"a"), proxy.keep(b"z")
    request = DeleteRangeRequest(key=b"a", range_end=b"b").SerializeToString()
    proxy.learner.on_failure(DELETE_RANGE, request, Code.UNAVAILABLE, "")
    assert not proxy.kept(one) and proxy.kept(other)
    proxy.learner.on_failure(TXN, b"", Code.UNAVAILABLE, "")
    assert not proxy.kept(other)


LEADER = LeaderKey(key=b"k")


@pytest.mark.parametrize(
    ("path", "request_", "reply"),
    [
        (UNLOCK, UnlockRequest(key=b"k"), UnlockResponse(header=header(9))),
        (LOCK, UnlockRequest(), LockResponse(header=header(9), key=b"k")),
        (CAMPAIGN, UnlockRequest(), CampaignResponse(header=header(9), leader=LEADER)),
        (PROCLAIM, ProclaimRequest(leader=LEADER), ProclaimResponse(header=header(9))),
        (RESIGN, ResignRequest(leader=LEADER), ProclaimResponse(header=header(9))),
    ],
)
def test_locks_and_elections_write_keys_too(proxy: Proxy, path: str, request_: Any, reply: Any) -> None:
    one, other = proxy.keep(b"k"), proxy.keep(b"l")
    proxy.learner.on_reply(path, request_.SerializeToString(), reply.SerializeToString())
    assert not proxy.kept(one) and proxy.kept(other)


def test_a_change_of_permissions_drops_everything(proxy: Proxy) -> None:
    message = proxy.keep(b"k")
    reply = AuthRoleAddResponse(header=header(5)).SerializeToString()
    proxy.way.call(ROLE_REVOKE_PERMISSION, b"", lambda *_: None, None, None)
    proxy.upstream.answer(reply)
    assert not proxy.kept(message)


def test_a_revoke_drops_what_is_older_since_any_key_may_have_got_the_lease_meanwhile(proxy: Proxy) -> None:
    missing, present = get(b"a", serializable=True), get(b"b", serializable=True)
    proxy.ask(missing, found(5))
    proxy.ask(present, found(6, b"b"))
    proxy.learner.on_reply(LEASE_REVOKE, b"", found(5))  # of a lease without keys: no new revision
    assert proxy.kept(missing) and proxy.kept(present)
    proxy.learner.on_reply(LEASE_REVOKE, b"", found(7))
    assert not proxy.kept(missing) and not proxy.kept(present)


def test_a_read_that_shows_a_key_unchanged_leaves_older_replies_that_hold_it(proxy: Proxy) -> None:
    prefix = get(b"k", range_end=b"l", serializable=True)
    proxy.ask(prefix, found(5, b"k"))
    proxy.ask(get(b"k"), found(9, b"k", mod_revision=5))
    assert proxy.kept(prefix)
    proxy.ask(get(b"k"), found(9, b"k", mod_revision=6))
    assert not proxy.kept(prefix)


def test_a_stream_of_parts_shows_its_revision_at_its_first(proxy: Proxy) -> None:
    message = proxy.keep(b"k")
    parts: list[bytes] = []

    class Handler:
        def on_message(self, message: bytes) -> None:
            parts.append(message)

        def on_end(self, *_: Any) -> None:
            parts.append(b"end")

        def on_writable(self) -> None: ...

    handler = cast(Any, proxy.way.open(RANGE_STREAM, cast(CallHandler, Handler()), None, None))
    first = RangeStreamResponse(range_response=RangeResponse(header=header(6))).SerializeToString()
    second = RangeStreamResponse().SerializeToString()
    handler.on_message(first)
    handler.on_message(second)
    handler.on_end(0, "", {})
    assert parts == [first, second, b"end"]
    assert not proxy.kept(message) and proxy.cache.newest == 6


def test_ordered_an_older_answer_is_asked_for_again_as_a_linearizable_read() -> None:
    proxy = Proxy(ordered=True)
    proxy.ask(get(b"other"), found(9, b"other"))
    message = get(b"k", range_end=b"l", serializable=True)
    proxy.handler(cast(ServerConnection, proxy.connection), 1, proxy.head, message)
    proxy.upstream.answer(found(8, b"k"))
    assert proxy.connection.said == []
    assert proxy.upstream.answer(found(9, b"k")) == get(b"k", range_end=b"l")
    assert proxy.connection.said == [(1, found(9, b"k"))]


def test_without_ordering_an_older_answer_is_passed_on_and_not_kept(proxy: Proxy) -> None:
    proxy.ask(get(b"other", serializable=True), found(9, b"other"))
    message = get(b"k", serializable=True)
    assert proxy.ask(message, found(8, b"k")) == found(8, b"k")
    assert not proxy.kept(message)
