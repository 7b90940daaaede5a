"""Streaming calls over JSON (behaviour J23-J26, MA23)."""

from __future__ import annotations

from typing import Any

import pytest

from kvorum import errors
from kvorum.errors import Code
from kvorum.pb.election_pb2 import LeaderRequest
from kvorum.pb.rpc_pb2 import (
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
    SnapshotRequest,
    SnapshotResponse,
    WatchCancelRequest,
    WatchCreateRequest,
    WatchRequest,
    WatchResponse,
)
from kvorum.wire import grpc
from kvorum.wire.server_connection import CancelReason
from node.front.exchange import Request
from node.front.json_call import ASIDE_BYTES
from node.front.json_gateway import Gateway
from node.front.json_stream import QUEUE_BYTES
from node.front.side_thread import RunAside
from tests.front.http_fake import FakeClock, FakeExchange, FakeStreams, HeldThread, run_inline

MESSAGE_BYTES = 1000
REQUESTS = {
    "/etcdserverpb.Watch/Watch": ("/v3/watch", WatchRequest),
    "/etcdserverpb.Lease/LeaseKeepAlive": ("/v3/lease/keepalive", LeaseKeepAliveRequest),
    "/etcdserverpb.Maintenance/Snapshot": ("/v3/maintenance/snapshot", SnapshotRequest),
    "/v3electionpb.Election/Observe": ("/v3/election/observe", LeaderRequest),
}
JSON_REPLY = {"content-type": "application/json", "grpc-metadata-content-type": "application/grpc"}
CREATE_FOO = WatchRequest(create_request=WatchCreateRequest(key=b"foo"))


class World:
    """One stream of a gateway, opened at a recording service."""

    def __init__(self, path: str, headers: dict[str, str] | None = None, run_aside: RunAside = run_inline) -> None:
        http_path, request = REQUESTS[path]
        self.clock = FakeClock()
        self.service = FakeStreams(request)
        gateway = Gateway(
            unary={},
            streams={path: self.service},
            call_later=self.clock.call_later,
            run_aside=run_aside,
            message_bytes=MESSAGE_BYTES,
        )
        self.counts = gateway.routes[path]
        self.exchange = FakeExchange("POST", http_path, headers)
        gateway.handle(Request(self.exchange))

    @property
    def stream(self) -> Any:
        return self.service.stream

    @property
    def told(self) -> list[str]:
        return [told[0] for told in self.service.told]


@pytest.fixture
def watch() -> World:
    return World("/etcdserverpb.Watch/Watch")


@pytest.fixture
def keep_alive() -> World:
    return World("/etcdserverpb.Lease/LeaseKeepAlive")


@pytest.fixture
def snapshot() -> World:
    return World("/etcdserverpb.Maintenance/Snapshot")


def test_j23_one_result_per_line_sent_at_once(watch: World) -> None:
    watch.exchange.body(b'{"create_request":{"key":"Zm9v"}}', end=False)
    assert not watch.exchange.chunks
    watch.stream.send(WatchResponse(created=True).SerializeToString())
    assert watch.exchange.chunks == [b'{"result":{"created":true}}\n']
    assert (watch.exchange.status, watch.exchange.reply_headers) == (200, JSON_REPLY)
    watch.stream.send(WatchResponse(watch_id=1).SerializeToString())
    assert watch.exchange.chunks[1:] == [b'{"result":{"watch_id":"1"}}\n']
    assert watch.exchange.chunked and not watch.exchange.finished


def test_j23_framed_messages_leave_as_one_chunk(watch: World) -> None:
    replies = [WatchResponse(created=True), WatchResponse(), WatchResponse(watch_id=1)]
    watch.stream.send_framed(b"".join(grpc.frame(reply.SerializeToString()) for reply in replies))
    assert watch.exchange.chunks == [b'{"result":{"created":true}}\n{"result":{}}\n{"result":{"watch_id":"1"}}\n']


def test_j24_an_error_after_a_reply_is_a_line(watch: World) -> None:
    watch.exchange.body(b'{"create_request":{}}', end=False)
    watch.stream.send(WatchResponse(created=True).SerializeToString())
    watch.stream.end(*errors.NO_LEADER)
    assert watch.exchange.status == 200
    assert watch.exchange.lines[1] == {"error": {"code": 14, "message": "etcdserver: no leader"}}
    assert watch.exchange.finished


def test_j24_an_error_before_any_reply_has_its_http_status(watch: World) -> None:
    watch.stream.end(*errors.NO_LEADER)
    assert (watch.exchange.status, watch.exchange.reply_headers) == (503, {"content-type": "application/json"})
    assert watch.exchange.lines == [{"error": {"code": 14, "message": "etcdserver: no leader"}}]
    watch.exchange.body(b'{"create_request":{}}')
    assert watch.told == []


def test_j25_a_watch_with_several_objects(watch: World) -> None:
    watch.exchange.body(
        b'{"create_request":{"key":"Zm9v"}} {"create_re',
        b'quest":{"key":"Zm9v","watch_id":"5"}}\n{"cancelRequest":{"watch_id":5}}',
        b'{"progress_request":{}}',
        end=False,
    )
    assert watch.service.requests == [
        CREATE_FOO,
        WatchRequest(create_request=WatchCreateRequest(key=b"foo", watch_id=5)),
        WatchRequest(cancel_request=WatchCancelRequest(watch_id=5)),
        WatchRequest(progress_request={}),
    ]


def test_j25_the_reply_stays_open_after_the_body(watch: World) -> None:
    watch.exchange.body(b'{"create_request":{"key":"Zm9v"}}')
    assert watch.told == ["message", "half_close"]
    watch.stream.send(WatchResponse(created=True).SerializeToString())
    watch.stream.send(WatchResponse(events=[{"type": "DELETE", "kv": {"key": b"foo"}}]).SerializeToString())
    watch.stream.send(WatchResponse(events=[{"kv": {"key": b"foo"}}]).SerializeToString())
    assert not watch.exchange.finished
    assert watch.exchange.lines[1:] == [
        {"result": {"events": [{"type": "DELETE", "kv": {"key": "Zm9v"}}]}},
        {"result": {"events": [{"kv": {"key": "Zm9v"}}]}},
    ]


def test_j25_a_disconnect_cancels(watch: World) -> None:
    watch.exchange.body(b'{"create_request":{"key":"Zm9v"}}')
    watch.exchange.disconnect()
    assert watch.service.told[2] == ("cancel", CancelReason.LOST)
    watch.stream.send(WatchResponse(created=True).SerializeToString())
    watch.stream.end(0, "")
    assert watch.exchange.status is None


def test_j26_keep_alives_answer_and_end(keep_alive: World) -> None:
    keep_alive.service.on_message_do = lambda request: keep_alive.stream.send(
        LeaseKeepAliveResponse(ID=request.ID, TTL=100 if request.ID == 5 else 0).SerializeToString()
    )
    keep_alive.exchange.body(b'{"ID":"5"}{"ID":6}')
    assert keep_alive.exchange.lines == [{"result": {"ID": "5", "TTL": "100"}}, {"result": {"ID": "6"}}]
    assert keep_alive.told == ["message", "message", "half_close"]
    keep_alive.stream.end(0, "")
    assert keep_alive.exchange.finished


def test_j26_an_empty_body_has_an_empty_reply(keep_alive: World) -> None:
    keep_alive.exchange.body(b"")
    assert keep_alive.told == ["half_close"]
    keep_alive.stream.end(0, "")
    assert (keep_alive.exchange.status, keep_alive.exchange.reply) == (200, b"")
    assert keep_alive.exchange.reply_headers == {"content-type": "application/json"}


@pytest.mark.parametrize("body", [b"x", b"null", b'{"ID":', b'{"ID":"x"}', b"{,}"])
def test_a_bad_first_object_is_an_invalid_argument(keep_alive: World, body: bytes) -> None:
    keep_alive.exchange.body(body)
    assert (keep_alive.exchange.status, keep_alive.exchange.json["code"]) == (400, 3)
    assert keep_alive.told == ["cancel"]


@pytest.mark.parametrize("rest", [b"x", b"null", b'{"ID":', b'{"ID":"x"}', b"{,}{}"])
def test_a_bad_later_object_is_where_the_body_ends(keep_alive: World, rest: bytes) -> None:
    keep_alive.exchange.body(b'{"ID":"5"}' + rest)
    assert keep_alive.told == ["message", "half_close"]
    keep_alive.stream.end(0, "")
    assert keep_alive.exchange.status == 200


@pytest.mark.parametrize("body", [b"", b"{}", b"{} trailing"])
def test_ma23_a_snapshot(snapshot: World, body: bytes) -> None:
    snapshot.exchange.body(body)
    assert snapshot.told == ["message", "half_close"]
    snapshot.stream.send(SnapshotResponse(remaining_bytes=7, blob=b"abc", version="3.7.0").SerializeToString())
    snapshot.stream.end(0, "")
    assert snapshot.exchange.reply == b'{"result":{"remaining_bytes":"7","blob":"YWJj","version":"3.7.0"}}\n'
    assert snapshot.exchange.finished


def test_a_server_stream_takes_one_request_whose_size_is_bounded(snapshot: World) -> None:
    snapshot.exchange.body(b'{"x":"' + b"x" * 100_000, end=False)
    assert (snapshot.exchange.status, snapshot.exchange.json["code"]) == (429, 8)
    assert snapshot.told == ["cancel"]
    snapshot.exchange.body(b"x")
    assert snapshot.told == ["cancel"]


def test_a_bad_request_of_a_server_stream(snapshot: World) -> None:
    snapshot.exchange.body(b"[]")
    assert (snapshot.exchange.status, snapshot.exchange.json["code"]) == (400, 3)


def test_observe() -> None:
    observe = World("/v3electionpb.Election/Observe")
    observe.exchange.body(b'{"name":"Zm9v"}')
    assert observe.service.requests == [LeaderRequest(name=b"foo")]


def test_a_pause_keeps_messages_back_until_resumed(watch: World) -> None:
    watch.service.on_message_do = lambda _request: watch.stream.pause_reading()
    watch.exchange.body(b'{"create_request":{}}' * 3)
    assert watch.exchange.paused
    assert watch.told == ["message"]
    watch.stream.resume_reading()
    assert watch.told == ["message", "message"]
    watch.stream.resume_reading()
    watch.stream.resume_reading()
    assert watch.told == ["message", "message", "message", "half_close"]
    assert not watch.exchange.paused


def test_a_service_may_pause_and_resume_within_one_message(watch: World) -> None:
    def both(_request: object) -> None:
        watch.stream.pause_reading()
        watch.stream.resume_reading()

    watch.service.on_message_do = both
    watch.exchange.body(b'{"create_request":{}}' * 3)
    assert watch.told == ["message", "message", "message", "half_close"]


def test_a_service_may_end_the_call_within_a_message(watch: World) -> None:
    watch.service.on_message_do = lambda _request: watch.stream.end(Code.INVALID_ARGUMENT, "no")
    watch.exchange.body(b'{"create_request":{}}' * 3)
    assert watch.told == ["message"]
    assert watch.exchange.lines == [{"error": {"code": 3, "message": "no"}}]


def test_writable_is_that_of_the_connection(watch: World) -> None:
    assert watch.stream.writable
    watch.exchange.writable = False
    assert not watch.stream.writable
    assert watch.stream.buffered_bytes == 0
    watch.exchange.writable = True
    assert watch.exchange.on_writable is not None
    watch.exchange.on_writable()
    assert watch.told == ["writable"]


def test_p4_an_object_over_the_limit_ends_the_call(watch: World) -> None:
    key = "Zm9v" * (MESSAGE_BYTES // 2)
    watch.exchange.body(b'{"create_request":{}}', f'{{"create_request":{{"key":"{key}"}}}}'.encode())
    assert watch.told == ["message", "cancel"]
    (line,) = watch.exchange.lines
    assert line["error"]["code"] == 8
    assert f"vs. {MESSAGE_BYTES}" in line["error"]["message"]


def test_an_object_that_does_not_end_is_bounded(watch: World) -> None:
    watch.exchange.body(b'{"create_request":{"key":"' + b"x" * 100_000, end=False)
    assert (watch.exchange.status, watch.exchange.json["code"]) == (429, 8)
    assert watch.told == ["cancel"]


def test_j22_a_deadline_ends_a_stream() -> None:
    watch = World("/etcdserverpb.Watch/Watch", {"Grpc-Timeout": "1S", "Grpc-Metadata-hasleader": "true"})
    assert watch.stream.head.metadata == {"hasleader": ("true",)}
    assert watch.service.head is watch.stream.head
    watch.exchange.body(b'{"create_request":{}}')
    watch.stream.send(WatchResponse(created=True).SerializeToString())
    (timer,) = watch.clock.running
    assert timer.delay_s == 1.0
    timer.fire()
    assert watch.exchange.lines[1] == {"error": {"code": 4, "message": "context deadline exceeded"}}
    assert watch.service.told[2] == ("cancel", CancelReason.DEADLINE)


def test_j22_the_end_of_a_stream_ends_its_timer() -> None:
    watch = World("/etcdserverpb.Watch/Watch", {"Grpc-Timeout": "1S"})
    watch.stream.end(0, "")
    assert watch.clock.timers and not watch.clock.running


def test_a_service_may_refuse_at_its_opening() -> None:
    clock = FakeClock()
    exchange = FakeExchange("POST", "/v3/watch")
    service = FakeStreams(WatchRequest)

    def stream_open(stream: Any, head: Any) -> FakeStreams:
        stream.end(*errors.NO_LEADER)
        return service(stream, head)

    gateway = Gateway(
        unary={},
        streams={"/etcdserverpb.Watch/Watch": stream_open},
        call_later=clock.call_later,
        run_aside=run_inline,
        message_bytes=MESSAGE_BYTES,
    )
    gateway.handle(Request(exchange))
    assert (exchange.status, exchange.finished, service.told) == (503, True, [])


def test_an_ended_stream_leaves_no_cycle_with_its_service(watch: World) -> None:
    def holds_its_service() -> bool:
        return vars(watch.stream)["_handler"] is watch.service

    assert holds_its_service()
    watch.stream.end(0, "")
    assert not holds_its_service()


def event(number: int, size: int = 1) -> bytes:
    return WatchResponse(watch_id=number, events=[{"kv": {"value": b"v" * size}}]).SerializeToString()


class LargeWatch(World):
    """A watch whose large messages wait for the test."""

    def __init__(self) -> None:
        self.thread = HeldThread()
        super().__init__("/etcdserverpb.Watch/Watch", run_aside=self.thread.run)
        self.exchange.body(b'{"create_request":{}}', end=False)

    @property
    def received(self) -> list[int]:
        return [int(line["result"]["watch_id"]) for line in self.exchange.lines if "result" in line]


def test_what_is_sent_after_a_large_message_waits_for_it() -> None:
    watch = LargeWatch()
    watch.stream.send(event(1))
    watch.stream.send(event(2, ASIDE_BYTES))
    watch.stream.send(event(3))
    watch.stream.send(event(4, ASIDE_BYTES))
    assert watch.received == [1]
    assert not watch.stream.writable
    assert watch.stream.buffered_bytes == sum(map(len, (event(2, ASIDE_BYTES), event(3), event(4, ASIDE_BYTES))))
    for expected in ([1, 2], [1, 2, 3], [1, 2, 3, 4]):
        assert (watch.stream.writable, "writable" in watch.told) == (False, False)
        watch.thread.release()
        assert watch.received == expected
    assert (watch.stream.writable, watch.stream.buffered_bytes, watch.told[-1]) == (True, 0, "writable")
    watch.stream.send(event(5))
    assert watch.received == [1, 2, 3, 4, 5]


def test_the_end_of_a_stream_waits_for_its_large_message() -> None:
    watch = LargeWatch()
    watch.stream.send(event(1, ASIDE_BYTES))
    watch.stream.end(*errors.NO_LEADER)
    watch.stream.send(event(2))
    assert not watch.exchange.finished
    watch.thread.release()
    assert (watch.received, watch.exchange.finished) == ([1], True)
    assert watch.exchange.lines[-1]["error"]["code"] == Code.UNAVAILABLE
    assert not watch.thread.held


def test_a_client_that_leaves_while_a_large_message_is_made() -> None:
    watch = LargeWatch()
    watch.stream.send(event(1, ASIDE_BYTES))
    watch.stream.send(event(2))
    watch.exchange.disconnect()
    assert watch.service.told[-1] == ("cancel", CancelReason.LOST)
    watch.thread.release()
    assert (watch.exchange.reply, watch.thread.held) == (b"", [])


def test_a_service_that_does_not_heed_writable_is_ended() -> None:
    watch = LargeWatch()
    size = QUEUE_BYTES // 8
    sent = 0
    while watch.service.told[-1] != ("cancel", CancelReason.OVERFLOW):
        sent += 1
        watch.stream.send(event(sent, size))
        assert sent < 20
    assert watch.counts.failed == {Code.RESOURCE_EXHAUSTED: 1}
    while watch.thread.held:
        watch.thread.release()
    assert watch.received == list(range(1, sent))
    assert watch.exchange.lines[-1]["error"]["message"] == "grpc: stream queue is full"


def test_streams_count_as_grpc_calls() -> None:
    watch = World("/etcdserverpb.Watch/Watch")
    watch.exchange.body(b'{"create_request":{}}{"progress_request":{}}', end=False)
    watch.stream.send(event(1))
    counts = watch.counts
    assert (counts.started, counts.received, counts.sent_messages, counts.ok, counts.failed) == (1, 2, 1, 0, {})
    watch.exchange.disconnect()
    assert counts.failed == {Code.CANCELLED: 1}


def test_a_stream_that_ends_well_or_never_began_counts_so() -> None:
    keep_alive = World("/etcdserverpb.Lease/LeaseKeepAlive")
    keep_alive.exchange.body(b'{"ID":"5"}')
    keep_alive.stream.end(0, "")
    assert (keep_alive.counts.started, keep_alive.counts.ok, keep_alive.counts.failed) == (1, 1, {})
    snapshot = World("/etcdserverpb.Maintenance/Snapshot")
    snapshot.exchange.body(b"nope")
    assert (snapshot.counts.started, snapshot.counts.failed) == (0, {})
    watch = World("/etcdserverpb.Watch/Watch")
    watch.exchange.body(b"nope")
    assert (watch.counts.started, watch.counts.failed) == (1, {Code.CANCELLED: 1})
