"""The services in front of raft and apply: what they refuse, what they choose, and the order of keep-alives."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from kvorum import errors
from kvorum.errors import Code
from kvorum.pb.rpc_pb2 import (
    CompactionRequest,
    LeaseGrantRequest,
    LeaseKeepAliveRequest,
    LeaseTimeToLiveRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)
from kvorum.wire.routes import CancelReason
from node.front import health, kv, lease, maintenance
from node.front.calls import Calls
from node.front.lease import MAX_PENDING_KEEP_ALIVES, KeepAliveStream
from node.front.member import KEEP_ALIVE, MAX_CLIENT_VERSIONS, RECEIVE, SEND, WATCH, Limits, Member, UnaryHandler
from node.front.state import StateAsks
from node.requests import LINEARIZABLE, READ, RECORD, Op, batches

MEMBER, CLUSTER = 0x8E9E05C52164694D, 0xCDF818194E3A8C32


class Head:
    def __init__(self, metadata: Mapping[str, tuple[str | bytes, ...]] | None = None) -> None:
        self.metadata = metadata or {}


class Sink:
    def __init__(self) -> None:
        self.said: list[tuple[object, ...]] = []

    def reply(self, token: int, message: bytes) -> None:
        self.said.append(("reply", token, message))

    def fail(self, token: int, code: int, text: str) -> None:
        self.said.append((code, text))


class Stream:
    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.ended: tuple[int, str] | None = None
        self.writable = True
        self.reading = True

    def send(self, message: bytes) -> None:
        self.sent.append(message)

    def end(self, code: int, text: str) -> None:
        assert self.ended is None
        self.ended = (code, text)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Front:
    def __init__(self) -> None:
        self.sent: list[bytes] = []
        calls = Calls(
            origin=16,
            member=MEMBER,
            incarnation=1,
            send=lambda _process, _kind, payload: self.sent.append(payload),
            call_soon=lambda callback: callback(),
            now=lambda: 0.0,
            timeout_s=7.0,
        )
        self.member = Member(MEMBER, CLUSTER, Limits(1_572_864, 128, 2, 7.0), calls, term=2, leader=MEMBER)
        self.sink = Sink()
        states = StateAsks(lambda *_: None, lambda *_: None)
        self.unary: dict[str, UnaryHandler] = {
            **kv.unary(self.member),
            **lease.unary(self.member, iter((0, 0, 77)).__next__),
            **maintenance.unary(self.member, states),
            **health.unary(),
        }

    def call(self, path: str, message: bytes, head: Head | None = None) -> list[tuple[object, ...]]:
        self.unary[path](self.sink, 5, head or Head(), message)
        said, self.sink.said = self.sink.said, []
        return said

    def last(self) -> tuple[int, bytes]:
        """Op and body of the one request that was sent last."""
        payload = self.sent[-1]
        (batch,) = batches(payload)
        length, op, _, _ = RECORD.unpack_from(payload, batch.records_at)
        body_at = batch.records_at + RECORD.size
        return op, payload[body_at : body_at + length]


def test_g8_what_is_no_protobuf_is_refused_and_nothing_is_sent() -> None:
    front = Front()
    for name in ("KV/Put", "KV/DeleteRange", "KV/Txn", "KV/Compact", "Lease/LeaseGrant", "Maintenance/Alarm"):
        ((code, text),) = front.call(f"/etcdserverpb.{name}", b"\xff\xff")
        assert code == Code.INTERNAL and str(text).startswith("grpc: error unmarshalling request: ")
    assert front.sent == []


@pytest.mark.parametrize(("size", "passes"), [(1_572_834, True), (1_572_837, True), (1_572_838, False)])
def test_p3_the_limit_holds_for_the_logged_request(size: int, passes: bool) -> None:
    front = Front()
    body = PutRequest(key=b"key", value=bytes(size)).SerializeToString()
    said = front.call("/etcdserverpb.KV/Put", body)
    assert said == ([] if passes else [tuple(errors.REQUEST_TOO_LARGE)])
    assert len(front.sent) == passes


def test_a_request_is_logged_as_the_bytes_that_came() -> None:
    front = Front()
    body = CompactionRequest(revision=7).SerializeToString() + b"\xf8\x07\x01"  # with a field of a later version
    assert front.call("/etcdserverpb.KV/Compact", body) == []
    assert front.last() == (Op.COMPACT, body)


def test_g5_a_client_version_that_is_no_utf_8_is_refused() -> None:
    front = Front()
    body = PutRequest(key=b"k").SerializeToString()
    refused = front.call("/etcdserverpb.KV/Put", body, Head({"client-api-version": ("\udcff",)}))
    assert refused == [tuple(errors.INVALID_CLIENT_API_VERSION)]
    front.call("/etcdserverpb.KV/Put", body, Head({"client-api-version": ("3.5.1",)}))
    front.call("/etcdserverpb.KV/Put", body)
    assert front.member.requests_by_version == {("3.5.1", "unary"): 1, ("unknown", "unary"): 1}


def test_clients_cannot_make_labels_without_end() -> None:
    front = Front()
    body = PutRequest(key=b"k").SerializeToString()
    for number in range(MAX_CLIENT_VERSIONS + 50):
        front.call("/etcdserverpb.KV/Put", body, Head({"client-api-version": (str(number),)}))
    counts = front.member.requests_by_version
    assert len(counts) == MAX_CLIENT_VERSIONS + 1
    assert counts["other", "unary"] == 50


@pytest.mark.parametrize(("value", "refused"), [("true", True), ("True", False), ("1", False)])
def test_wp10_wp13_hasleader_without_a_leader(value: str, refused: bool) -> None:
    front = Front()
    front.member.leader = 0
    said = front.call("/etcdserverpb.KV/Put", PutRequest(key=b"k").SerializeToString(), Head({"hasleader": (value,)}))
    assert said == ([tuple(errors.NO_LEADER)] if refused else [])


@pytest.mark.parametrize(
    ("asked", "granted"), [(0, 2), (-5, 2), (1, 2), (2, 2), (60, 60), (9_000_000_000, 9_000_000_000)]
)
def test_l1_l3_the_front_chooses_the_id_and_raises_the_ttl(asked: int, granted: int) -> None:
    front = Front()
    front.call("/etcdserverpb.Lease/LeaseGrant", LeaseGrantRequest(TTL=asked).SerializeToString())
    op, body = front.last()
    assert op == Op.LEASE_GRANT
    assert LeaseGrantRequest.FromString(body) == LeaseGrantRequest(ID=77, TTL=granted)


def test_l2_a_ttl_beyond_the_largest_is_refused() -> None:
    front = Front()
    said = front.call("/etcdserverpb.Lease/LeaseGrant", LeaseGrantRequest(TTL=9_000_000_001).SerializeToString())
    assert said == [tuple(errors.LEASE_TTL_TOO_LARGE)]


def keep_alive(front: Front) -> tuple[KeepAliveStream, Stream]:
    stream = Stream()
    return KeepAliveStream(front.member, stream), stream


PING = LeaseKeepAliveRequest(ID=7).SerializeToString()


def test_l7_l9_answers_keep_the_order_of_the_requests() -> None:
    handler, stream = keep_alive(Front())
    for _ in range(3):
        handler.on_message(PING)
    handler.reply(2, b"third")
    handler.reply(1, b"second")
    assert stream.sent == []
    handler.reply(0, b"first")
    assert stream.sent == [b"first", b"second", b"third"]


@pytest.mark.parametrize(
    ("reason", "way"),
    [
        (CancelReason.FAULT, RECEIVE),
        (CancelReason.OVERFLOW, SEND),
        (CancelReason.RESET, None),
        (CancelReason.LOST, None),
        (CancelReason.DEADLINE, None),
    ],
)
def test_streams_that_break_are_counted_and_those_that_clients_leave_are_not(
    reason: CancelReason, way: str | None
) -> None:
    front = Front()
    handler, _ = keep_alive(front)
    handler.on_cancel(reason)
    front.member.count_stream_end(WATCH, reason)
    assert {labels for labels, count in front.member.stream_failures.items() if count} == (
        {(KEEP_ALIVE, way), (WATCH, way)} if way else set()
    )


def test_g8_a_keep_alive_that_is_no_protobuf_ends_its_stream() -> None:
    front = Front()
    handler, stream = keep_alive(front)
    handler.on_message(b"\xff\xff")
    assert stream.ended is not None and stream.ended[0] == Code.INTERNAL
    assert front.member.stream_failures[KEEP_ALIVE, RECEIVE] == 1


def test_l10_a_half_closed_stream_ends_ok_after_its_last_answer() -> None:
    handler, stream = keep_alive(Front())
    handler.on_message(PING)
    handler.on_half_close()
    assert not stream.ended
    handler.reply(0, b"answer")
    assert stream.sent == [b"answer"]
    assert stream.ended == (0, "")


def test_a_stream_with_many_unanswered_keep_alives_is_not_read() -> None:
    handler, stream = keep_alive(Front())
    for _ in range(MAX_PENDING_KEEP_ALIVES):
        handler.on_message(PING)
    assert not stream.reading
    handler.reply(0, b"answer")
    assert stream.reading


def test_a_slow_client_gets_its_answers_when_it_reads() -> None:
    handler, stream = keep_alive(Front())
    stream.writable = False
    handler.on_message(PING)
    handler.reply(0, b"answer")
    assert stream.sent == []
    stream.writable = True
    handler.on_writable()
    assert stream.sent == [b"answer"]


class LeaderLost:
    """A front, and its streams that want a leader, as their client said with `hasleader`."""

    def __init__(self, wanted: str = "true") -> None:
        self.front = Front()
        self.head = Head({"hasleader": (wanted,)})

    def end_leaderless(self) -> None:
        for open_stream in list(self.front.member.leader_streams):
            open_stream.stop(errors.NO_LEADER)


def test_wp11_streams_that_want_a_leader_end_without_one() -> None:
    world = LeaderLost()
    alive, ranged, health_watch = Stream(), Stream(), Stream()
    handler = lease.keep_alive(world.front.member)(alive, world.head)
    kv.range_stream(world.front.member)(ranged, world.head)
    health.watch(world.front.member)(health_watch, world.head)
    world.end_leaderless()
    assert alive.ended == ranged.ended == health_watch.ended == tuple(errors.NO_LEADER)
    assert world.front.member.leader_streams == world.front.member.streams == {}
    handler.on_message(PING)
    handler.reply(0, b"late")
    assert alive.sent == []


@pytest.mark.parametrize("wanted", ["false", "True", ""])
def test_wp12_wp13_other_streams_do_not(wanted: str) -> None:
    world = LeaderLost(wanted)
    stream = Stream()
    lease.keep_alive(world.front.member)(stream, world.head)
    world.end_leaderless()
    assert stream.ended is None


def test_streams_that_have_ended_are_forgotten() -> None:
    world = LeaderLost()
    member = world.front.member
    half_closed, cut, ranged, ranged_cut = Stream(), Stream(), Stream(), Stream()
    lease.keep_alive(member)(half_closed, world.head).on_half_close()
    lease.keep_alive(member)(cut, world.head).on_cancel(None)
    kv.range_stream(member)(ranged, world.head).on_half_close()
    kv.range_stream(member)(ranged_cut, world.head).on_cancel(None)
    assert member.leader_streams == member.streams == {}


def test_wp10_a_stream_that_wants_a_leader_is_refused_without_one() -> None:
    world = LeaderLost()
    world.front.member.leader = 0
    streams = [Stream(), Stream()]
    lease.keep_alive(world.front.member)(streams[0], world.head)
    ranged = kv.range_stream(world.front.member)(streams[1], world.head)
    assert [stream.ended for stream in streams] == [tuple(errors.NO_LEADER)] * 2
    ranged.on_message(RangeRequest(key=b"k").SerializeToString())
    ranged.on_half_close()
    assert world.front.sent == [] and world.front.member.leader_streams == {}


# learners

SERIALIZABLE = RangeRequest(key=b"k", serializable=True).SerializeToString()
READ_ONLY = TxnRequest(success=[RequestOp(request_range=RangeRequest(key=b"k", serializable=True))]).SerializeToString()


def test_m25_m26_what_a_learner_serves() -> None:
    front = Front()
    front.member.is_learner = True
    front.member.leader = 0
    refused = [tuple(errors.NOT_SUPPORTED_FOR_LEARNER)]
    for path in front.unary:
        if path in ("/etcdserverpb.Maintenance/Status", health.CHECK):
            continue
        assert front.call(path, b"", Head({"hasleader": ("true",)})) == refused, f"P1: {path}"
    assert front.call("/etcdserverpb.KV/Txn", READ_ONLY) == refused
    assert front.sent == []
    assert front.call("/etcdserverpb.KV/Range", SERIALIZABLE) == []
    assert len(front.sent) == 1
    assert front.call("/etcdserverpb.KV/Range", b"\xff") == [], "apply says what is wrong with it"
    assert front.call("/etcdserverpb.Maintenance/Status", b"") == []
    ((_, _, body),) = front.call(health.CHECK, b"")
    assert body == health.SERVING


def test_m26_a_learner_refuses_streams() -> None:
    front = Front()
    front.member.is_learner = True
    streams = [Stream(), Stream(), Stream()]
    lease.keep_alive(front.member)(streams[0], Head())
    kv.range_stream(front.member)(streams[1], Head())
    handler = health.watch(front.member)(streams[2], Head())
    handler.on_message(b"")
    handler.on_half_close()
    assert [stream.ended for stream in streams] == [tuple(errors.NOT_SUPPORTED_FOR_LEARNER)] * 3
    assert front.member.streams == {} and streams[2].sent == []


# which reads are linearizable


def range_op(*, serializable: bool) -> RequestOp:
    return RequestOp(request_range=RangeRequest(key=b"k", serializable=serializable))


@pytest.mark.parametrize(
    ("serializable", "flags"), [((True, True), 0), ((True, False), LINEARIZABLE), ((False,), LINEARIZABLE), ((), 0)]
)
def test_t29_a_transaction_of_ranges_needs_a_read_index_unless_all_are_serializable(
    serializable: tuple[bool, ...], flags: int
) -> None:
    front = Front()
    request = TxnRequest(failure=[range_op(serializable=one) for one in serializable])
    assert front.call("/etcdserverpb.KV/Txn", request.SerializeToString()) == []
    assert READ.unpack_from(front.sent[-1])[1:3] == (Op.TXN_READ, flags)


@pytest.mark.parametrize("serializable", [True, False])
def test_a_range_stream_says_whether_it_is_serializable(serializable: bool) -> None:
    front = Front()
    call = kv.range_stream(front.member)(Stream(), Head())
    call.on_message(RangeRequest(key=b"k", serializable=serializable).SerializeToString())
    assert READ.unpack_from(front.sent[-1])[1:3] == (Op.RANGE_STREAM, 0 if serializable else LINEARIZABLE)


def test_what_a_client_hides_in_a_question_does_not_travel() -> None:
    front = Front()
    front.member.calls.leader_reads.on_leader(MEMBER)
    question = LeaseTimeToLiveRequest(ID=-1, keys=True).SerializeToString()
    assert front.call("/etcdserverpb.Lease/LeaseTimeToLive", question + b"\xfa\x0a\x7f" + bytes(127)) == []
    assert front.sent[-1][READ.size :] == question
    assert READ.unpack_from(front.sent[-1])[1:3] == (Op.LEASE_TIME_TO_LIVE, LINEARIZABLE)


def test_p16_a_stopping_member_ends_its_streams_once() -> None:
    front = Front()
    handler, stream = keep_alive(front)
    watching = Stream()
    health.HealthWatch(front.member, watching)
    for open_stream in list(front.member.streams):
        open_stream.stop(errors.STOPPED)
    assert stream.ended == watching.ended == tuple(errors.STOPPED)
    handler.on_message(PING)
    handler.reply(0, b"late")
    assert stream.sent == []
    assert front.member.streams == {}
