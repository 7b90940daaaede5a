"""LeaseKeepAlive through the proxy: what clients see, and what goes upstream."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kvorum import errors
from kvorum.errors import ApiError, Code
from kvorum.pb.rpc_pb2 import LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseRevokeRequest
from kvorum.wire import grpc
from kvorum.wire.calls import Fields
from kvorum.wire.head import Head
from kvorum.wire.routes import CancelReason
from kvorum.wire.server_calls import ServerStream
from kvorum.wire.server_connection import ServerConnection
from proxy.callers import Caller, Callers
from proxy.lease import keep_alive
from proxy.lease.keep_alive import FIRST_PAUSE_S, LAST_PAUSE_S, MAX_PENDING, STALLED_S, KeepAliveService
from proxy.paths import KEEP_ALIVE as PATH
from proxy.paths import LEASE_REVOKE
from proxy.upstream.upstream import Upstream, encode


class Stream:
    """A client's stream, as a handler sees it."""

    def __init__(self) -> None:
        self.connection = SimpleNamespace()
        self.sent: list[bytes] = []
        self.ended: tuple[int, str] | None = None
        self.writable = True
        self.reading = True

    def send(self, message: bytes) -> None:
        assert self.ended is None
        self.sent.append(message)

    def end(self, code: int, text: str) -> None:
        assert self.ended is None
        self.ended = (code, text)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    @property
    def answers(self) -> list[tuple[int, int]]:
        """(ID, TTL) of each reply."""
        replies = [LeaseKeepAliveResponse.FromString(message) for message in self.sent]
        return [(reply.ID, reply.TTL) for reply in replies]


class UpstreamStream:
    """The proxy's stream to a member."""

    def __init__(self, handler: Any, metadata: Fields) -> None:
        self.handler = handler
        self.metadata = metadata
        self.writable = True
        self.asked: list[int] = []
        self.writes = 0
        self.cancelled = False

    def send_framed(self, framed: bytes) -> None:
        self.writes += 1
        reader = grpc.MessageReader(1 << 20, gzip=False)
        reader.feed(framed)
        while (message := reader.next()) is not None:
            self.asked.append(LeaseKeepAliveRequest.FromString(message).ID)

    def cancel(self) -> None:
        self.cancelled = True
        self.end(Code.CANCELLED, "context canceled")

    def answer(self, *answers: tuple[int, int]) -> None:
        for lease, ttl_s in answers:
            self.handler.on_message(LeaseKeepAliveResponse(ID=lease, TTL=ttl_s).SerializeToString())

    def end(self, code: int, text: str) -> None:
        handler, self.handler = self.handler, None
        if handler is not None:
            handler.on_end(code, text, grpc.NO_METADATA)


class Timer:
    def __init__(self, at: float, callback: Callable[[], None]) -> None:
        self.at = at
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Proxy:
    """The service between fakes, with a clock that tests move."""

    def __init__(self) -> None:
        self.now = 100.0
        self.upstreams: list[UpstreamStream] = []
        self.soon: list[Callable[[], None]] = []
        self.timers: list[Timer] = []
        self.refuse: errors.Status | None = None
        self.called: list[tuple[str, bytes, Any]] = []
        self.service = KeepAliveService(
            cast(Upstream, self),
            cast(Callers, self),
            now=lambda: self.now,
            call_soon=self.soon.append,
            call_later=self.call_later,
        )

    def open(self, path: str, handler: Any, metadata: Fields = ()) -> UpstreamStream:
        assert path == PATH
        self.upstreams.append(UpstreamStream(handler, metadata))
        return self.upstreams[-1]

    def call(self, path: str, message: bytes, done: Any, metadata: Fields, timeout_s: float | None) -> None:
        self.called.append((path, message, done))

    def resolve_or_wait(self, connection: Any, head: Head) -> Caller:
        return self.resolve(connection, head)

    def resolve(self, _connection: Any, head: Head) -> Caller:
        if self.refuse is not None:
            raise ApiError(self.refuse)
        return Caller("", "hasleader" in head.metadata, encode(head.metadata), None, None)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + delay_s, callback))
        return self.timers[-1]

    def turn(self) -> None:
        """One turn of the loop."""
        soon = self.soon[:]
        self.soon.clear()
        for callback in soon:
            callback()

    def wait(self, seconds: float) -> None:
        """Turns until that much later, with the timers that fall due."""
        until = self.now + seconds
        self.turn()
        while True:
            due = sorted([t for t in self.timers if t.callback is not None and t.at <= until], key=lambda t: t.at)
            if not due:
                break
            self.timers.remove(due[0])
            self.now = max(self.now, due[0].at)
            assert due[0].callback is not None
            due[0].callback()
            self.turn()
        self.now = until
        self.timers = [timer for timer in self.timers if timer.callback is not None]

    def client(self, **metadata: str) -> tuple[Any, Stream]:
        head = head_of(**metadata)
        stream = Stream()
        return self.service.streams()[PATH](cast(ServerStream, stream), head), stream

    @property
    def upstream(self) -> UpstreamStream:
        return self.upstreams[-1]


def head_of(**metadata: str) -> Head:
    head = Head.__new__(Head)
    head.metadata = {name: (value,) for name, value in metadata.items()}
    head.timeout_s = None
    return head


def ask(handler: Any, *leases: int) -> None:
    for lease in leases:
        handler.on_message(LeaseKeepAliveRequest(ID=lease).SerializeToString())


@pytest.fixture
def proxy() -> Proxy:
    return Proxy()


def test_one_upstream_stream_and_one_write_for_many_clients(proxy: Proxy) -> None:
    clients = [proxy.client() for _ in range(50)]
    for number, (handler, _) in enumerate(clients):
        ask(handler, 7, 100 + number)
    proxy.turn()
    assert len(proxy.upstreams) == 1 and proxy.upstream.writes == 1
    assert sorted(proxy.upstream.asked) == [7, *range(100, 150)]
    proxy.upstream.answer(*[(lease, 9) for lease in proxy.upstream.asked])
    for number, (_, stream) in enumerate(clients):
        assert stream.answers == [(7, 9), (100 + number, 9)]


def test_L7_L8_answers_come_in_the_order_of_the_requests(proxy: Proxy) -> None:
    handler, stream = proxy.client()
    other, other_stream = proxy.client()
    ask(other, 3)
    ask(handler, 1, 4711, 2, 0, 1, 3)
    proxy.turn()
    assert proxy.upstream.asked == [3, 1, 4711, 2, 0]
    proxy.upstream.answer((3, 9), (1, 600))
    assert stream.answers == [(1, 600)]
    proxy.upstream.answer((4711, 0), (2, 700), (0, 0))
    assert stream.answers == [(1, 600), (4711, 0), (2, 700), (0, 0), (1, 600), (3, 9)]
    assert other_stream.answers == [(3, 9)]


def test_each_token_has_its_own_stream(proxy: Proxy) -> None:
    for metadata in ({"token": "a"}, {"token": "b"}, {"token": "a"}, {}):
        ask(proxy.client(**metadata)[0], 1)
    proxy.turn()
    assert [(upstream.metadata, upstream.asked) for upstream in proxy.upstreams] == [
        (((b"token", b"a"),), [1]),
        (((b"token", b"b"),), [1]),
        ((), [1]),
    ]


def test_a_caller_without_a_tenant_is_refused(proxy: Proxy) -> None:
    proxy.refuse = errors.PERMISSION_DENIED
    _, stream = proxy.client()
    assert stream.ended == errors.PERMISSION_DENIED


def test_g8_a_request_that_is_no_protobuf_ends_its_stream(proxy: Proxy) -> None:
    handler, stream = proxy.client()
    handler.on_message(b"\xff\xff")
    assert stream.ended is not None and stream.ended[0] == Code.INTERNAL
    assert stream.ended[1].startswith("grpc: error unmarshalling request: ")
    ask(handler, 1)  # what was on its way
    proxy.turn()
    assert proxy.upstreams == []


def test_L10_a_half_closed_stream_ends_ok_after_its_last_answer(proxy: Proxy) -> None:
    handler, stream = proxy.client()
    ask(handler, 1)
    handler.on_half_close()
    assert stream.ended is None
    proxy.turn()
    proxy.upstream.answer((1, 5))
    assert stream.answers == [(1, 5)] and stream.ended == (0, "")
    handler, stream = proxy.client()
    handler.on_half_close()
    assert stream.ended == (0, "")


def test_a_lease_is_renewed_at_the_end_of_the_interval_for_who_was_answered_without(proxy: Proxy) -> None:
    first, _ = proxy.client()
    ask(first, 1)
    proxy.turn()
    proxy.upstream.answer((1, 9))
    proxy.wait(1.0)
    second, stream = proxy.client()
    ask(second, 1)
    assert stream.answers == [(1, 8)]
    second.on_cancel(CancelReason.LOST)
    proxy.wait(1.9)
    assert proxy.upstream.asked == [1]
    proxy.wait(0.2)
    assert proxy.upstream.asked == [1, 1]


class Connection:
    def __init__(self) -> None:
        self.said: list[tuple[object, ...]] = []

    def reply(self, stream_id: int, message: bytes) -> None:
        self.said.append((stream_id, message))

    def fail(self, stream_id: int, code: int, text: str) -> None:
        self.said.append((stream_id, code, text))


@pytest.mark.parametrize("outcome", [(0, "", b"reply"), (*errors.LEASE_NOT_FOUND, b"")])
def test_after_a_revoke_nothing_is_remembered(proxy: Proxy, outcome: tuple[int, str, bytes]) -> None:
    first, _ = proxy.client()
    ask(first, 1)
    proxy.turn()
    proxy.upstream.answer((1, 9))
    connection = Connection()
    revoke = proxy.service.unary()[LEASE_REVOKE]
    message = LeaseRevokeRequest(ID=1).SerializeToString()
    revoke(cast(ServerConnection, connection), 5, head_of(), message)
    ((path, sent, done),) = proxy.called
    assert (path, sent) == (LEASE_REVOKE, message)
    done(*outcome)
    assert connection.said == [(5, *outcome[:2]) if outcome[0] else (5, b"reply")]
    second, stream = proxy.client()
    ask(second, 1)
    proxy.turn()
    proxy.upstream.answer((1, 0))
    assert stream.answers == [(1, 0)]


def test_asks_wait_for_upstream_and_are_repeated(proxy: Proxy) -> None:
    handler, stream = proxy.client()
    ask(handler, 1, 2)
    proxy.turn()
    proxy.upstream.answer((1, 5))
    proxy.upstream.end(Code.UNAVAILABLE, "connection closed by the server")
    proxy.wait(0.0)
    assert len(proxy.upstreams) == 2 and proxy.upstream.asked == [2]
    for _ in range(8):
        proxy.upstream.end(Code.UNAVAILABLE, "connection error: refused")
        proxy.wait(LAST_PAUSE_S)
    assert len(proxy.upstreams) == 10
    proxy.upstream.answer((2, 6))
    assert stream.answers == [(1, 5), (2, 6)] and stream.ended is None
    assert proxy.service.waiting == 0


def test_pauses_between_attempts_grow(proxy: Proxy) -> None:
    handler, _ = proxy.client()
    ask(handler, 1)
    proxy.turn()
    pauses: list[float] = []
    for _ in range(8):
        opened = len(proxy.upstreams)
        proxy.upstream.end(Code.UNAVAILABLE, "connection error: refused")
        began = proxy.now
        while len(proxy.upstreams) == opened:
            proxy.wait(0.01)
        pauses.append(round(proxy.now - began, 2))
    assert pauses[0] == 0.01 and pauses[-1] == LAST_PAUSE_S and pauses == sorted(pauses)
    assert pauses[1] == pytest.approx(FIRST_PAUSE_S)


def test_an_upstream_that_does_not_answer_is_given_up(proxy: Proxy) -> None:
    handler, stream = proxy.client()
    ask(handler, 1)
    proxy.turn()
    proxy.wait(STALLED_S - 0.1)
    assert not proxy.upstream.cancelled
    proxy.wait(0.2)
    assert proxy.upstreams[0].cancelled and proxy.upstreams[1].asked == [1]
    proxy.upstreams[1].answer((1, 5))
    assert stream.answers == [(1, 5)]


def test_an_answer_to_nothing_gives_the_upstream_up(proxy: Proxy) -> None:
    handler, stream = proxy.client()
    ask(handler, 1)
    proxy.turn()
    proxy.upstream.answer((2, 5))
    assert proxy.upstream.cancelled
    proxy.wait(0.0)
    proxy.upstream.answer((1, 5))
    assert stream.answers == [(1, 5)]


@pytest.mark.parametrize("status", [errors.LEADER_CHANGED, errors.TIMEOUT, errors.NO_LEADER, errors.INVALID_AUTH_TOKEN])
def test_an_error_of_the_member_goes_to_all_who_wait(proxy: Proxy, status: errors.Status) -> None:
    asking = [proxy.client() for _ in range(3)]
    quiet, quiet_stream = proxy.client()
    for number, (handler, _) in enumerate(asking):
        ask(handler, number, 7)
    proxy.turn()
    proxy.upstream.end(*status)
    assert [stream.ended for _, stream in asking] == [status] * 3
    assert quiet_stream.ended is None
    assert proxy.service.waiting == 0
    proxy.wait(1.0)
    assert len(proxy.upstreams) == 1
    ask(quiet, 7)
    proxy.turn()
    assert proxy.upstream.asked == [7]


def test_a_member_that_stops_is_not_heard_of(proxy: Proxy) -> None:
    handler, stream = proxy.client()
    ask(handler, 1)
    proxy.turn()
    proxy.upstream.end(*errors.STOPPED)
    proxy.wait(0.0)
    proxy.upstream.answer((1, 5))
    assert stream.answers == [(1, 5)]


def test_a_refusal_ends_the_stream_that_asked_for_it_alone(proxy: Proxy) -> None:
    good, good_stream = proxy.client()
    bad, bad_stream = proxy.client()
    ask(good, 1)
    ask(bad, 2)
    ask(good, 3)
    proxy.turn()
    proxy.upstream.end(*errors.PERMISSION_DENIED)
    proxy.wait(0.0)
    proxy.upstream.answer((1, 5))
    proxy.turn()
    assert proxy.upstream.asked == [1, 2]
    proxy.upstream.end(*errors.PERMISSION_DENIED)
    assert bad_stream.ended == errors.PERMISSION_DENIED
    proxy.wait(0.0)
    proxy.upstream.answer((3, 6))
    assert good_stream.answers == [(1, 5), (3, 6)] and good_stream.ended is None


def test_WP11_streams_that_want_a_leader_end_without_one_also_when_they_ask_nothing(proxy: Proxy) -> None:
    _, wanting = proxy.client(hasleader="true")
    _, other = proxy.client()
    proxy.turn()
    assert len(proxy.upstreams) == 1
    proxy.upstream.end(*errors.NO_LEADER)
    assert wanting.ended == errors.NO_LEADER and other.ended is None


def test_streams_that_want_a_leader_do_not_end_when_a_member_is_lost(proxy: Proxy) -> None:
    _, stream = proxy.client(hasleader="true")
    proxy.turn()
    proxy.upstream.end(Code.UNAVAILABLE, "connection closed by the server")
    proxy.wait(1.0)
    assert len(proxy.upstreams) == 2 and stream.ended is None


def test_a_stream_with_many_unanswered_keep_alives_is_not_read(proxy: Proxy) -> None:
    handler, stream = proxy.client()
    ask(handler, *range(1, MAX_PENDING))
    assert stream.reading
    ask(handler, MAX_PENDING)
    assert not stream.reading
    proxy.turn()
    proxy.upstream.answer((1, 5))
    assert stream.reading


def test_too_many_waiting_keep_alives_end_the_stream_that_asks(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep_alive, "MAX_WAITING", 3)
    first, first_stream = proxy.client()
    ask(first, 1, 2, 3)
    second, second_stream = proxy.client()
    ask(second, 4)
    assert second_stream.ended == errors.REQUEST_TOO_MANY_REQUESTS
    proxy.turn()
    assert proxy.upstream.asked == [1, 2, 3]
    assert first_stream.ended is None


def test_a_slow_client_gets_its_answers_when_it_reads(proxy: Proxy) -> None:
    slow, stream = proxy.client()
    other, other_stream = proxy.client()
    stream.writable = False
    ask(slow, 1, 2)
    ask(other, 1)
    proxy.turn()
    proxy.upstream.answer((1, 5), (2, 6))
    assert stream.sent == [] and other_stream.answers == [(1, 5)]
    stream.writable = True
    slow.on_writable()
    assert stream.answers == [(1, 5), (2, 6)]


def test_a_slow_upstream_gets_renewals_when_it_reads(proxy: Proxy) -> None:
    _, stream = proxy.client(hasleader="true")
    proxy.turn()
    handler, stream = proxy.client(hasleader="true")
    proxy.upstream.writable = False
    ask(handler, 1)
    proxy.turn()
    assert proxy.upstream.asked == []
    proxy.upstream.writable = True
    proxy.upstream.handler.on_writable()
    proxy.turn()
    assert proxy.upstream.asked == [1]
    proxy.upstream.answer((1, 5))
    assert stream.answers == [(1, 5)]


def test_the_upstream_stream_ends_when_nobody_needs_it(proxy: Proxy) -> None:
    handler, _ = proxy.client()
    ask(handler, 1)
    proxy.turn()
    proxy.upstream.answer((1, 6))
    handler.on_cancel(CancelReason.RESET)
    assert not proxy.upstream.cancelled  # the renewal is remembered
    proxy.wait(2.0)
    assert proxy.upstream.cancelled
    assert [timer for timer in proxy.timers if timer.callback is not None] == []


def test_a_client_that_leaves_before_its_answer(proxy: Proxy) -> None:
    handler, _ = proxy.client()
    ask(handler, 1, 2)
    proxy.turn()
    handler.on_cancel(CancelReason.LOST)
    assert proxy.service.waiting == 0
    proxy.upstream.answer((1, 6), (2, 0))
    proxy.wait(2.0)
    assert proxy.upstream.cancelled


def test_a_revoke_that_cannot_be_made_is_refused(proxy: Proxy) -> None:
    connection = Connection()
    revoke = proxy.service.unary()[LEASE_REVOKE]
    revoke(cast(ServerConnection, connection), 5, head_of(), b"\xff\xff")
    ((_, _, done),) = proxy.called
    done(Code.INTERNAL, "as the member says", b"")
    proxy.refuse = errors.PERMISSION_DENIED
    revoke(cast(ServerConnection, connection), 7, head_of(), b"")
    assert connection.said == [(5, Code.INTERNAL, "as the member says"), (7, *errors.PERMISSION_DENIED)]


def test_stopping_ends_all_streams(proxy: Proxy) -> None:
    handler, stream = proxy.client()
    _, other = proxy.client(token="t")
    ask(handler, 1)
    proxy.turn()
    proxy.service.stop(errors.STOPPED)
    assert stream.ended == other.ended == errors.STOPPED
    assert proxy.upstream.cancelled
