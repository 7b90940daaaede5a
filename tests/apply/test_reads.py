"""Requests that need no log: their checks, their slices, their bounds, and answers that wait."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvorum import errors
from kvorum.errors import Code, Status
from kvorum.pb.rpc_pb2 import (
    HashKVRequest,
    HashKVResponse,
    LeaseGrantRequest,
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
    LeaseRevokeRequest,
    LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
    MemberListResponse,
    PutRequest,
    RangeRequest,
    RangeResponse,
    RangeStreamResponse,
    TxnRequest,
    TxnResponse,
)
from node.apply.figures import ApplyFigures
from node.apply.host import Job
from node.apply.leadership import Leadership
from node.apply.outbox import Outbox
from node.apply.reads import MAX_TASKS, Reads
from node.frames import Kind
from node.requests import MORE, Op
from tests.apply.entries import MEMBER, MachineUnderTest, founding, normal
from tests.apply.mvcc_store import put_op, range_op
from tests.apply.shell import FRONT, Clock, FakeLinks, answers, get, reads

TIMEOUT_S = 7.0


def run_aside(name: str, work: Callable[[], None]) -> Job:
    thread = threading.Thread(target=work, name=name)
    thread.start()
    return thread


class ReadsUnderTest:
    """Reads on a machine, with links and a clock in the test's hands."""

    def __init__(self, path: Path) -> None:
        self.machine = MachineUnderTest(path)
        self.links = FakeLinks(2)
        self.clock = Clock()
        self.figures = ApplyFigures()
        self.outbox = Outbox(self.links.outlet, self.links.send)
        self.slow: list[tuple[int, float]] = []
        self.leadership = Leadership(MEMBER, self.machine.lessor, 1.0)
        self.leadership.on_leadership(1, MEMBER, 0, True, self.clock.now_s)
        self.leadership.on_applied(0, 1, self.clock.now_s)
        self.reads = Reads(
            self.machine.machine,
            self.outbox,
            self.figures,
            self.leadership,
            self.clock,
            run_aside,
            max_request_bytes=1 << 20,
            request_timeout_s=TIMEOUT_S,
            slow=lambda op, took_s, _size: self.slow.append((op, took_s)),
        )

    def turn(self, slices_s: float = 1.0) -> bool:
        """One turn of the shell; whether there is more to do at once."""
        more_reads = self.reads.answer()
        more_tasks = self.reads.run(self.clock.now_s + slices_s)
        self.outbox.flush()
        return more_reads or more_tasks

    def ask(self, *requests: tuple[int, bytes]) -> list[tuple[int, int, bytes]]:
        """All answers to these reads."""
        self.reads.on_frame(reads(*requests))
        while self.turn():
            pass
        return self.taken()

    def taken(self, front: int = FRONT) -> list[tuple[int, int, bytes]]:
        return answers(self.links.take(front, Kind.REPLIES))

    def fill(self, count: int, size: int = 10) -> None:
        put = self.machine.store.put
        for number in range(count):
            put(PutRequest(key=b"k%06d" % number, value=bytes(size)).SerializeToString())
        self.machine.commit()


@pytest.fixture
def under_test(tmp_path: Path) -> Iterator[ReadsUnderTest]:
    opened = ReadsUnderTest(tmp_path / "db")
    yield opened
    opened.reads.close()
    opened.machine.close()


def refused(status: Status) -> tuple[int, bytes]:
    return status.code, status.message.encode()


EMPTY = refused(errors.EMPTY_KEY)
UNSORTED = refused(errors.INVALID_SORT_OPTION)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", EMPTY),
        (b"\n\0", EMPTY),
        (b"\n\x008\x01", EMPTY),
        (b"8\x01", EMPTY),
        (b"8\x01\n\0", EMPTY),
        (b"\n\x01a\n\0", EMPTY),
        (b"\x12\x01b", EMPTY),
        (b"\n\x01a(\x03", UNSORTED),
        (b"\n\x01a0\x05", UNSORTED),
        (b"\n\x00(\x03", EMPTY),
        (b"\n\x01a(\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", UNSORTED),
        (b"\n\x01a\x20\x09", refused(errors.FUTURE_REV)),
    ],
)
def test_P7_R1_R2_a_range_is_checked_here(under_test: ReadsUnderTest, body: bytes, expected: tuple[int, bytes]) -> None:
    ((_, code, text),) = under_test.ask((Op.RANGE, body))
    assert (code, text) == expected


@pytest.mark.parametrize("body", [b"\xff", b"\n\x05a", b"\n\x7f", b"\n"])
def test_G8_what_is_no_protobuf_is_refused_alone(under_test: ReadsUnderTest, body: bytes) -> None:
    found = under_test.ask((Op.RANGE, body), get(b"a"))
    assert [code for _, code, _ in found] == [Code.INTERNAL, 0]
    assert found[0][2].startswith(b"grpc: error unmarshalling request: ")


@pytest.mark.parametrize("options", [{}, {"serializable": True}, {"limit": 1}, {"keys_only": True}])
@pytest.mark.parametrize("key", [b"a", b"8\x01", b"a8\x01", b"\0", b"k" * 127, b"k" * 128, b"k" * 300])
def test_the_short_way_for_a_lone_key_answers_as_the_long_one(
    under_test: ReadsUnderTest, key: bytes, options: dict[str, Any]
) -> None:
    under_test.machine.request(PutRequest(key=key, value=b"8\x01"))
    ((_, code, body),) = under_test.ask(get(key, **options))
    response = RangeResponse.FromString(body)
    assert (code, response.count, [kv.key for kv in response.kvs]) == (0, 1, [key])


def test_answers_name_their_requests_and_count(under_test: ReadsUnderTest) -> None:
    under_test.machine.request(PutRequest(key=b"a", value=b"1"))
    found = under_test.ask(get(b"a"), get(b""), get(b"b"), (Op.MEMBER_LIST, b""))
    assert [(number, code) for number, code, _ in found] == [(0, 0), (1, Code.INVALID_ARGUMENT), (2, 0), (3, 0)]
    assert under_test.figures.ranges == 3


# slices and bounds


def test_a_long_range_runs_in_slices_with_short_ones_between(under_test: ReadsUnderTest) -> None:
    """Invariant 9."""
    under_test.fill(5000)
    under_test.clock.step_s = 0.001
    under_test.reads.on_frame(reads(get(b"k", b"l")))
    under_test.turn(0.002)
    assert under_test.taken() == []
    under_test.reads.on_frame(reads(get(b"k000001"), first=1))
    assert under_test.turn(0.002)
    assert [number for number, _, _ in under_test.taken()] == [1]
    while under_test.turn(0.002):
        pass
    ((_, _, body),) = under_test.taken()
    assert RangeResponse.FromString(body).count == 5000
    ((op, took_s),) = under_test.slow
    assert op == Op.RANGE
    assert took_s > 0.003


def test_a_long_range_shows_one_moment(under_test: ReadsUnderTest) -> None:
    under_test.fill(3000)
    under_test.clock.step_s = 0.001
    under_test.reads.on_frame(reads(get(b"k", b"l")))
    under_test.turn(0.002)
    before = under_test.machine.store.revision
    under_test.machine.request(PutRequest(key=b"k", value=b"late"))
    while under_test.turn(0.002):
        pass
    response = RangeResponse.FromString(under_test.taken()[0][2])
    assert (response.count, len(response.kvs), response.header.revision) == (3000, 3000, before)


def test_long_reads_beyond_the_bound_begin_later_and_hold_up_no_short_one(under_test: ReadsUnderTest) -> None:
    under_test.fill(1500)
    count = 3 * MAX_TASKS
    under_test.clock.step_s = 1e-6
    under_test.reads.on_frame(reads(*[get(b"k", b"l")] * count, get(b"k000001")))
    under_test.turn(1e-9)
    assert [number for number, _, _ in under_test.taken()] == [count]
    most = 0
    found: list[int] = []
    while under_test.turn(0.0002):
        most = max(most, len(under_test.reads._tasks))
        found += [number for number, _, _ in under_test.taken()]
    found += [number for number, _, _ in under_test.taken()]
    assert sorted(found) == list(range(count))
    assert most <= MAX_TASKS
    assert under_test.reads.long_reads == 0


def test_without_credit_no_long_read_begins(under_test: ReadsUnderTest) -> None:
    under_test.fill(1500)
    under_test.links = FakeLinks(2, credit_bytes=1)
    under_test.outbox = under_test.reads._outbox = Outbox(under_test.links.outlet, under_test.links.send)
    under_test.reads.on_frame(reads(*[get(b"k", b"l")] * 2000))
    under_test.reads.answer()
    under_test.outbox.reply(FRONT, 1, b"takes the credit")
    under_test.outbox.flush()
    for _ in range(3):
        assert not under_test.turn()
    assert under_test.outbox._waiting[FRONT] == []
    assert under_test.reads.long_reads == 2000
    under_test.links.grant(FRONT, Kind.REPLIES, 1 << 40)
    while under_test.turn():
        pass
    assert len(under_test.taken()) == 2001


def test_the_reads_of_a_turn_have_their_time_and_the_rest_goes_on_in_the_next(under_test: ReadsUnderTest) -> None:
    under_test.clock.step_s = 0.001  # for each look at the clock, so 16 ranges seem to take a millisecond
    under_test.reads.on_frame(reads(*[get(b"a")] * 200))
    turns = 1
    found: list[int] = []
    while under_test.turn():
        batch = [number for number, _, _ in under_test.taken()]
        assert 16 <= len(batch) <= 100
        found += batch
        turns += 1
    found += [number for number, _, _ in under_test.taken()]
    assert found == list(range(200))
    assert turns > 2


def test_without_credit_reads_wait_and_are_answered_in_order(under_test: ReadsUnderTest) -> None:
    under_test.links = FakeLinks(2, credit_bytes=1)
    under_test.outbox = under_test.reads._outbox = Outbox(under_test.links.outlet, under_test.links.send)
    for number in range(4):
        under_test.reads.on_frame(reads(get(b"a"), first=number))
    other = reads(get(b"a"), first=9, front=FRONT + 1)
    under_test.turn()
    assert [number for number, _, _ in under_test.taken()] == [0, 1, 2, 3], "one frame passes with any credit"
    for number in range(4, 6):
        under_test.reads.on_frame(reads(get(b"a"), first=number))
    under_test.reads.on_frame(other)
    assert not under_test.turn(), "a front without credit is no reason to turn at once"
    assert under_test.taken() == []
    assert [number for number, _, _ in under_test.taken(FRONT + 1)] == [9]
    under_test.links.grant(FRONT, Kind.REPLIES, 1000)
    under_test.turn()
    assert [number for number, _, _ in under_test.taken()] == [4, 5]


# the other kinds


@pytest.mark.parametrize("count", [3, 2500])
def test_a_transaction_of_ranges_is_worked_off_in_slices_and_equals_the_store_s(
    under_test: ReadsUnderTest, count: int
) -> None:
    under_test.fill(count)
    past = count // 2 + 1
    ranges = [
        range_op(b"k", b"l"),
        range_op(b"k", b"l", limit=5, sort_order=RangeRequest.DESCEND),
        range_op(b"k", b"\0", keys_only=True),
        range_op(b"k", b"l", revision=past),
        range_op(b"k", b"l", count_only=True),
        range_op(b"nothing"),
    ]
    for body in (TxnRequest(success=ranges), TxnRequest(failure=ranges), TxnRequest()):
        request = body.SerializeToString()
        expected = TxnResponse.FromString(under_test.machine.store.txn(request))
        under_test.clock.step_s = 0.0005
        ((_, code, found),) = under_test.ask((Op.TXN_READ, request))
        assert code == 0
        assert TxnResponse.FromString(found) == expected


def test_T19_a_transaction_of_ranges_fails_as_a_whole(under_test: ReadsUnderTest) -> None:
    under_test.fill(3)
    request = TxnRequest(success=[range_op(b"k"), range_op(b"k", revision=99)])
    ((_, code, text),) = under_test.ask((Op.TXN_READ, request.SerializeToString()))
    assert (code, text) == refused(errors.FUTURE_REV)


def test_a_range_stream_goes_on_as_its_front_takes_it(under_test: ReadsUnderTest) -> None:
    under_test.fill(200, size=1000)
    under_test.links = FakeLinks(2, credit_bytes=1)
    under_test.outbox = under_test.reads._outbox = Outbox(under_test.links.outlet, under_test.links.send)
    request = RangeRequest(key=b"k", range_end=b"l").SerializeToString()
    under_test.reads.on_frame(reads((Op.RANGE_STREAM, request)))
    keys: list[bytes] = []
    codes: list[int] = []
    for _ in range(100):
        assert not under_test.turn(), "it waits for credit"
        found = under_test.taken()
        codes += [code for _, code, _ in found]
        for _, _, body in found:
            keys += [kv.key for kv in RangeStreamResponse.FromString(body).range_response.kvs]
        if not codes[-1]:
            break
        under_test.machine.request(PutRequest(key=b"k%06d" % len(keys), value=b"changed meanwhile"))
        under_test.links.grant(FRONT, Kind.REPLIES, 1 << 14)
    assert len(codes) > 4
    assert codes == [MORE] * (len(codes) - 1) + [0]
    assert keys == [b"k%06d" % number for number in range(200)]


def test_hashes_and_their_errors(under_test: ReadsUnderTest) -> None:
    under_test.fill(1200)
    now, at_10, future = under_test.ask(
        *[(Op.HASH_KV, HashKVRequest(revision=revision).SerializeToString()) for revision in (0, 10, 99999)]
    )
    assert HashKVResponse.FromString(now[2]).hash != HashKVResponse.FromString(at_10[2]).hash
    assert future[1:] == refused(errors.FUTURE_REV)
    assert under_test.ask((Op.HASH, b""))[0][1] == 0


def test_a_defragmentation_serves_all_who_asked_before_it_began(
    under_test: ReadsUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile everything else goes on (MA18). The one that fails is told why."""
    runs: list[threading.Event] = []
    failing = [False]

    def defragment() -> None:
        runs.append(threading.Event())
        assert runs[-1].wait(10)
        if failing[0]:
            raise Exception("IO error: No space left on device")

    monkeypatch.setattr(under_test.machine.store.database, "defragment", defragment)

    def run_until(runs_begun: int) -> None:
        while len(runs) < runs_begun:
            under_test.turn(0.0)
            under_test.reads.run(under_test.clock.now_s + 1)

    under_test.reads.on_frame(reads((Op.DEFRAGMENT, b"")))
    run_until(1)
    under_test.reads.on_frame(reads((Op.DEFRAGMENT, b""), (Op.DEFRAGMENT, b""), get(b"a"), first=1))
    under_test.turn()
    assert [number for number, _, _ in under_test.taken()] == [3]
    assert under_test.figures.defrag_inflight == 1
    runs[0].set()
    run_until(2)
    under_test.turn()
    assert under_test.taken() == [(0, 0, b"")]
    failing[0] = True
    runs[1].set()
    while under_test.reads.long_reads:
        under_test.turn()
    assert under_test.taken() == [(n, Code.UNKNOWN, b"IO error: No space left on device") for n in (1, 2)]
    assert (len(runs), under_test.figures.defrag_inflight) == (2, 0)


def keep_alive(lease_id: int) -> tuple[int, bytes]:
    return Op.LEASE_KEEP_ALIVE, LeaseKeepAliveRequest(ID=lease_id).SerializeToString()


@pytest.fixture
def expired(under_test: ReadsUnderTest) -> ReadsUnderTest:
    """Lease 5, of 2 s, is over, and its revoke is proposed."""
    machine, clock = under_test.machine, under_test.clock
    machine.lessor.promote(clock.now_s, extend_s=1.0)
    machine.request(LeaseGrantRequest(ID=5, TTL=2))
    for _ in range(8):
        machine.lessor.turn(clock.now_s)
        clock.now_s += 0.5
    assert machine.lessor.expired(clock.now_s) == [5]
    return under_test


def test_L7_L8_L14_leases_are_renewed_and_told(under_test: ReadsUnderTest) -> None:
    under_test.machine.lessor.promote(under_test.clock.now_s, extend_s=1.0)
    under_test.machine.request(LeaseGrantRequest(ID=5, TTL=60))
    asked = LeaseTimeToLiveRequest(ID=5).SerializeToString()
    known, unknown, left = under_test.ask(keep_alive(5), keep_alive(6), (Op.LEASE_TIME_TO_LIVE, asked))
    response = LeaseKeepAliveResponse.FromString(known[2])
    assert (response.ID, response.TTL, response.header.revision) == (5, 60, 1)
    assert LeaseKeepAliveResponse.FromString(unknown[2]).TTL == 0
    assert LeaseTimeToLiveResponse.FromString(left[2]).TTL == 59


def test_L9_a_keep_alive_waits_for_the_revoke_that_is_under_way(expired: ReadsUnderTest) -> None:
    assert expired.ask(keep_alive(5)) == []
    expired.reads.leases.retry()
    assert expired.ask() == []
    expired.machine.request(LeaseRevokeRequest(ID=5))
    expired.reads.leases.retry()
    ((_, code, body),) = expired.ask()
    response = LeaseKeepAliveResponse.FromString(body)
    assert (code, response.ID, response.TTL) == (0, 5, 0)


def test_keep_alives_of_a_revoke_that_is_never_decided_do_not_pile_up(expired: ReadsUnderTest) -> None:
    """As when the log is full: the front gives up after the request timeout, and its client asks again."""
    assert expired.ask(keep_alive(5)) == []
    expired.clock.now_s += TIMEOUT_S / 2
    expired.reads.leases.retry()
    assert expired.ask() == []
    expired.clock.now_s += TIMEOUT_S
    expired.reads.leases.retry()
    assert [(code, text) for _, code, text in expired.ask()] == [refused(errors.TIMEOUT)]
    expired.reads.leases.retry()
    assert expired.ask() == []


def test_M6_members(under_test: ReadsUnderTest) -> None:
    under_test.machine.execute(founding(), normal())
    ((_, code, body),) = under_test.ask((Op.MEMBER_LIST, b""))
    assert code == 0
    assert [member.name for member in MemberListResponse.FromString(body).members] == ["m1"]


def test_a_read_of_an_unknown_kind_stops_the_process(under_test: ReadsUnderTest) -> None:
    under_test.reads.on_frame(reads((99, b"")))
    with pytest.raises(AssertionError, match="kind 99"):
        under_test.turn()


def test_a_transaction_that_writes_cannot_come_past_the_log(under_test: ReadsUnderTest) -> None:
    under_test.reads.on_frame(reads((Op.TXN_READ, TxnRequest(success=[put_op(b"a")]).SerializeToString())))
    with pytest.raises(AssertionError, match="was not logged"):
        under_test.turn()
