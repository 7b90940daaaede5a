"""Following what the cluster holds of tenants, among fakes: reading, watching, losing, looking."""

from typing import Any

import pytest

from kvorum import errors
from kvorum.errors import ApiError, Code, Status
from kvorum.log import Level, LogFormat, Logger
from kvorum.pb.mvcc_pb2 import Event, KeyValue
from kvorum.pb.rpc_pb2 import (
    AuthenticateRequest,
    AuthenticateResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    WatchRequest,
    WatchResponse,
)
from proxy.namespaces.passage import Later, Passage
from proxy.paths import AUTHENTICATE, PUT, RANGE
from proxy.tenants import tenant as tenant_module
from proxy.tenants.namespaces_file import Limits, NamespacesFile, Reader, TenantEntry
from proxy.tenants.tenants import Tenants
from proxy.tenants.tracking import FIRST_PAGE_KEYS, LOOK_PAUSE_S, LOOK_S, PROGRESS_S, RETRY_S, TICK_S, Tracking
from tests.proxy.fakes import FakeStream, FakeUpstream, Timers

LOGGER = Logger((lambda _level, _line: None,), Level.INFO, LogFormat.JSON)
READER = Reader("counter", "secret")


class Followed:
    """One limited tenant, followed, among fakes."""

    def __init__(self, *, keys: int | None = 2, size: int | None = None, reader: Reader | None = None) -> None:
        self.upstream = FakeUpstream()
        self.timers = Timers()
        self.tracking = Tracking(self.upstream, call_later=self.timers.call_later, now=self.timers.time, logger=LOGGER)
        self.tenants = Tenants(self.timers.time)
        self.file = NamespacesFile(
            (TenantEntry(name="a", namespace=b"a/", default=True, limits=Limits(keys=keys, bytes=size)),), reader
        )
        self.tenants.apply(self.file)
        self.tracking.follow(self.tenants.all, reader)
        (self.tenant,) = self.tenants.all

    @property
    def stream(self) -> FakeStream:
        return self.upstream.streams[-1]

    def read(self, keys: list[bytes], revision: int, *, more: bool = False) -> RangeRequest:
        kvs = [KeyValue(key=b"a/" + key) for key in keys]
        reply = RangeResponse(header={"revision": revision}, kvs=kvs, more=more)
        return RangeRequest.FromString(self.upstream.answer(RANGE, reply))

    def create(self) -> int:
        """Answers the create that was sent; the id of the watch."""
        (message,) = self.stream.take()
        request = WatchRequest.FromString(message).create_request
        self.tell(WatchResponse(watch_id=request.watch_id, created=True))
        return request.watch_id

    def reopen(self, revision: int = 10) -> None:
        """A lost stream is opened again, once the cluster has said which revision it has."""
        self.timers.advance(RETRY_S)
        self.upstream.answer_last(RANGE, RangeResponse(header={"revision": revision}))

    def tell(self, response: WatchResponse) -> None:
        self.stream.handler.on_message(response.SerializeToString())

    def events(self, watch_id: int, *events: tuple[bytes, bytes | None], revision: int, **fields: Any) -> None:
        told = [
            Event(
                type=Event.DELETE if value is None else Event.PUT,
                kv=KeyValue(key=b"a/" + key, value=value or b"", mod_revision=revision),
            )
            for key, value in events
        ]
        self.tell(WatchResponse(watch_id=watch_id, events=told, **fields))

    def started(self, keys: list[bytes], revision: int = 10) -> int:
        self.read(keys, revision)
        return self.create()

    def put(self, key: bytes) -> Passage | None:
        _, passage = self.tenant.enter(PUT, PutRequest(key=key).SerializeToString())
        return passage

    def put_later(self, key: bytes) -> list[Status | None]:
        """A put that must wait; what becomes of it: None when it went through."""
        outcome: list[Status | None] = []

        def retry(status: Status | None) -> None:
            if status is None:
                try:
                    self.put(key)
                except ApiError as error:
                    status = error.status
            outcome.append(status)

        with pytest.raises(Later) as raised:
            self.put(key)
        raised.value.join(retry, 0)
        return outcome


def test_the_namespace_is_read_in_pages_at_one_revision_and_then_watched() -> None:
    followed = Followed()
    first = followed.read([b"k", b"l"], 10, more=True)
    assert first == RangeRequest(key=b"a/\0", range_end=b"a0", limit=FIRST_PAGE_KEYS)
    second = followed.read([b"m"], 12)
    assert second == RangeRequest(key=b"a/l\0", range_end=b"a0", limit=2 * FIRST_PAGE_KEYS, revision=10)
    (message,) = followed.stream.take()
    create = WatchRequest.FromString(message).create_request
    assert (create.key, create.range_end, create.start_revision) == (b"a/\0", b"a0", 11)
    assert followed.tracking.ready
    usage = followed.tenant.usage
    assert usage is not None
    assert (usage.keys, usage.bytes, usage.revision) == (3, 3, 10)


def test_a_read_that_fails_begins_again() -> None:
    followed = Followed()
    followed.read([b"k"], 10, more=True)
    followed.upstream.refuse(RANGE, *errors.COMPACTED)
    followed.timers.advance(RETRY_S)
    assert followed.read([b"k"], 20).revision == 0
    assert followed.tracking.ready


def test_a_lost_stream_goes_on_where_it_stopped() -> None:
    followed = Followed()
    watch_id = followed.started([])
    followed.events(watch_id, (b"k", b""), revision=11)
    followed.stream.end(14, "lost")
    followed.reopen(11)
    (message,) = followed.stream.take()
    assert WatchRequest.FromString(message).create_request.start_revision == 12
    assert len(followed.upstream.streams) == 2


def test_while_the_revision_of_the_cluster_cannot_be_had_it_is_asked_for_again() -> None:
    followed = Followed()
    followed.started([])
    followed.stream.end(14, "lost")
    followed.timers.advance(RETRY_S)
    followed.upstream.refuse(RANGE, 14, "away")
    followed.reopen()
    followed.create()
    assert len(followed.upstream.streams) == 2


def test_a_cluster_that_was_restored_to_an_earlier_state_is_read_anew() -> None:
    followed = Followed()
    followed.started([b"k", b"l"])
    passage = followed.put(b"k")
    assert passage is not None
    passage.settle(0, "", PutResponse(header={"revision": 12}).SerializeToString())
    followed.stream.end(14, "lost")
    followed.reopen(3)
    assert not followed.tracking.ready
    outcome = followed.put_later(b"m")
    followed.read([b"k"], 3)
    followed.create()
    followed.upstream.answer(RANGE, RangeResponse(header={"revision": 3}))
    assert outcome == [None]
    usage = followed.tenant.usage
    assert usage is not None
    assert (usage.keys, usage.revision, usage.waits_for) == (1, 3, None)


def test_another_endpoint_gets_the_watches() -> None:
    followed = Followed()
    followed.started([])
    followed.tracking.move()
    assert followed.stream.ended
    followed.reopen()
    followed.create()
    assert len(followed.upstream.streams) == 2


def test_while_the_stream_is_lost_figures_are_too_old_to_admit_by() -> None:
    followed = Followed()
    followed.started([])
    followed.stream.end(14, "lost")
    outcome = followed.put_later(b"k")
    followed.reopen()
    watch_id = followed.create()
    followed.upstream.answer(RANGE, RangeResponse(header={"revision": 12}))
    assert outcome == []
    followed.events(watch_id, (b"a", b""), (b"b", b""), revision=12)
    assert outcome == [Status(Code.RESOURCE_EXHAUSTED, 'tenant "a" is over its limit: keys is 2')]


def test_while_the_stream_is_lost_a_look_that_fails_admits_nothing() -> None:
    followed = Followed()
    followed.started([])
    followed.stream.end(14, "lost")
    outcome = followed.put_later(b"k")
    followed.upstream.refuse(RANGE, 14, "away")
    assert outcome == [Status(Code.UNAVAILABLE, 'what tenant "a" stores is not known at the moment')]


def test_of_fragments_the_last_moves_the_revision() -> None:
    followed = Followed()
    watch_id = followed.started([])
    usage = followed.tenant.usage
    assert usage is not None
    followed.events(watch_id, (b"k", b""), revision=11, fragment=True)
    assert (usage.keys, usage.revision) == (1, 10)
    followed.events(watch_id, (b"l", b""), revision=11)
    assert (usage.keys, usage.revision) == (2, 11)


def test_what_was_compacted_is_read_again() -> None:
    followed = Followed()
    watch_id = followed.started([b"k"])
    followed.tell(WatchResponse(watch_id=watch_id, canceled=True, compact_revision=30))
    assert not followed.tracking.ready
    followed.read([], 40)
    (message,) = followed.stream.take()
    assert WatchRequest.FromString(message).create_request.start_revision == 41


def test_no_call_is_refused_before_a_look_that_began_after_it() -> None:
    followed = Followed(keys=1)
    watch_id = followed.started([b"k"])
    outcome = followed.put_later(b"l")
    look = RangeRequest.FromString(followed.upstream.answer(RANGE, RangeResponse(header={"revision": 12})))
    assert look == RangeRequest(key=b"a/\0", range_end=b"a0", count_only=True, limit=1)  # linearizable
    (progress,) = followed.stream.take()
    assert WatchRequest.FromString(progress).HasField("progress_request")
    followed.events(watch_id, (b"m", b""), revision=11)
    assert outcome == []
    followed.timers.advance(PROGRESS_S)
    assert len(followed.stream.take()) == 1  # a member that is behind says nothing: asked again
    followed.tell(WatchResponse(watch_id=-1, header={"revision": 12}))
    assert outcome == [Status(Code.RESOURCE_EXHAUSTED, 'tenant "a" is over its limit: keys is 1')]
    assert followed.tenant.refused["keys"] == 1


def test_a_look_finds_what_was_deleted() -> None:
    followed = Followed(keys=1)
    watch_id = followed.started([b"k"])
    outcomes = [followed.put_later(b"l"), followed.put_later(b"l"), followed.put_later(b"m")]
    assert followed.upstream.waits(RANGE) == 1
    followed.upstream.answer(RANGE, RangeResponse(header={"revision": 11}))
    followed.events(watch_id, (b"k", None), revision=11)
    assert outcomes[0] == [None]
    # The first call made the look begin; the others came later, and are in the next.
    followed.timers.advance(LOOK_PAUSE_S)
    followed.upstream.answer(RANGE, RangeResponse(header={"revision": 11}))
    assert outcomes[1] == [None]  # the same key
    assert outcomes[2][0] is not None
    assert followed.tenant.requests == 3


def test_a_look_that_takes_too_long_ends_with_what_is_known() -> None:
    followed = Followed(keys=1)
    followed.started([b"k"])
    outcome = followed.put_later(b"l")
    followed.timers.advance(LOOK_S)
    assert outcome[0] is not None
    assert outcome[0].code == Code.RESOURCE_EXHAUSTED


def test_calls_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenant_module, "MOST_WAITING_BYTES", 2 * tenant_module.WAITING_OVERHEAD_BYTES)
    followed = Followed(keys=1)
    followed.started([b"k"])
    followed.put_later(b"l")  # looked at already
    waiting = [followed.put_later(b"l"), followed.put_later(b"l")]
    with pytest.raises(ApiError) as raised:
        followed.put(b"l")
    assert raised.value.status.message == 'tenant "a" is over its limit: keys is 1'
    followed.upstream.answer(RANGE, RangeResponse(header={"revision": 10}))
    followed.timers.advance(LOOK_PAUSE_S)
    followed.upstream.answer(RANGE, RangeResponse(header={"revision": 10}))
    assert [len(outcome) for outcome in waiting] == [1, 1]


def test_a_look_that_fails_ends_with_what_is_known() -> None:
    followed = Followed(keys=1)
    followed.started([b"k"])
    outcome = followed.put_later(b"l")
    followed.upstream.refuse(RANGE, 14, "away")
    assert outcome[0] is not None
    assert outcome[0].code == Code.RESOURCE_EXHAUSTED


def test_before_the_namespace_was_read_writes_wait_and_end_as_unavailable() -> None:
    followed = Followed()
    outcome = followed.put_later(b"k")
    followed.timers.advance(LOOK_S)
    assert outcome == [Status(Code.UNAVAILABLE, 'what tenant "a" stores is not known at the moment')]
    with pytest.raises(ApiError):  # what needs no figure does not wait
        followed.tenant.enter("/etcdserverpb.KV/Compact", b"")
    followed.tenant.enter("/etcdserverpb.KV/DeleteRange", b"")


def test_before_the_namespace_was_read_writes_wait_and_go_on() -> None:
    followed = Followed()
    outcome = followed.put_later(b"k")
    followed.read([], 10)
    followed.create()
    followed.upstream.answer(RANGE, RangeResponse(header={"revision": 10}))
    assert outcome == [None]


def test_acknowledged_writes_that_changed_nothing_are_let_go_by_a_progress_request() -> None:
    followed = Followed(keys=1)
    followed.started([])
    passage = followed.put(b"k")
    assert passage is not None
    reply = PutResponse(header={"revision": 15}).SerializeToString()
    assert passage.settle(0, "", reply) == (0, "", reply)
    usage = followed.tenant.usage
    assert usage is not None
    assert usage.held_keys == 1
    followed.timers.advance(TICK_S)
    assert len(followed.stream.take()) == 1
    followed.tell(WatchResponse(watch_id=-1, header={"revision": 15}))
    assert usage.held_keys == 0
    followed.timers.advance(TICK_S)
    assert followed.stream.take() == []


@pytest.mark.parametrize(
    ("code", "held"), [(Code.INVALID_ARGUMENT, 0), (Code.UNAVAILABLE, 1), (Code.CANCELLED, 1), (Code.OK, 1)]
)
def test_what_an_answer_says_of_a_write(code: Code, held: int) -> None:
    followed = Followed()
    followed.started([])
    passage = followed.put(b"k")
    assert passage is not None
    passage.settle(code, "", PutResponse(header={"revision": 15}).SerializeToString())
    assert followed.tenant.usage is not None
    assert followed.tenant.usage.held_keys == held


def test_a_changed_limit_is_followed_on_and_none_is_followed_no_more() -> None:
    followed = Followed(keys=1)
    watch_id = followed.started([b"k"])

    def apply(limits: Limits) -> None:
        entry = TenantEntry(name="a", namespace=b"a/", default=True, limits=limits)
        followed.tenants.apply(NamespacesFile((entry,)))
        followed.tracking.follow(followed.tenants.all, None)

    apply(Limits(keys=2))
    assert followed.put(b"l") is not None
    assert followed.stream.take() == []
    outcome = followed.put_later(b"m")
    apply(Limits())
    assert outcome == [None]
    (message,) = followed.stream.take()
    assert WatchRequest.FromString(message).cancel_request.watch_id == watch_id
    assert followed.put(b"m") is None
    apply(Limits(keys=1))
    assert followed.upstream.waits(RANGE) == 2  # the reading's, and that of the look for which nobody waits any more


def test_the_reader_logs_in_and_again_when_its_token_is_refused() -> None:
    followed = Followed(reader=READER)
    asked = AuthenticateRequest.FromString(followed.upstream.answer(AUTHENTICATE, AuthenticateResponse(token="one")))
    assert asked == AuthenticateRequest(name="counter", password="secret")
    assert followed.upstream.calls[-1][3] == ((b"token", b"one"),)
    followed.upstream.refuse(RANGE, *errors.INVALID_AUTH_TOKEN)
    followed.upstream.answer(AUTHENTICATE, AuthenticateResponse(token="two"))
    assert followed.upstream.calls[-1][3] == ((b"token", b"two"),)
    followed.read([], 10)
    assert followed.stream.metadata == ((b"token", b"two"),)


def test_without_authentication_the_reader_needs_no_token() -> None:
    followed = Followed(reader=READER)
    followed.upstream.refuse(AUTHENTICATE, *errors.AUTH_NOT_ENABLED)
    assert followed.upstream.calls[-1][3] == ()
    followed.read([], 10)
    assert followed.tracking.ready


def test_a_watch_that_is_refused_is_tried_again_with_another_token() -> None:
    followed = Followed(reader=READER)
    followed.upstream.answer(AUTHENTICATE, AuthenticateResponse(token="one"))
    followed.read([], 10)
    refused = WatchResponse(watch_id=-1, created=True, canceled=True, cancel_reason="no")
    followed.tell(refused)
    followed.timers.advance(RETRY_S)
    followed.upstream.answer(AUTHENTICATE, AuthenticateResponse(token="two"))
    followed.reopen()
    assert len(followed.upstream.streams) == 2


def test_nothing_goes_on_after_the_end() -> None:
    followed = Followed(keys=1)
    followed.started([b"k"])
    outcome = followed.put_later(b"l")
    followed.tracking.close()
    assert outcome == [errors.STOPPED]
    assert followed.stream.ended
    followed.upstream.answer(RANGE, RangeResponse(header={"revision": 10}))
    followed.timers.advance(60.0)
    assert len(followed.upstream.streams) == 1
