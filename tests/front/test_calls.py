"""The calls a front has under way."""

from __future__ import annotations

from collections.abc import Callable

from kvorum import errors
from kvorum.errors import Code, Status
from node.frames import HEADER_BYTES, Kind, Process, pack
from node.front import calls as module
from node.front.calls import BATCH_BYTES, MAX_CHANGES, Calls
from node.requests import (
    FIRST_CHANGE_SEQUENCE,
    FIRST_READ_SEQUENCE,
    MORE,
    READ,
    RECORD,
    REPLY,
    Op,
    batches,
    pack_batch,
    pack_record,
)

ORIGIN = Process.FRONT + 3
MEMBER, INCARNATION = 0x8E9E05C52164694D, 77


class Sink:
    def __init__(self) -> None:
        self.said: list[tuple[object, ...]] = []

    def reply(self, token: int, message: bytes) -> None:
        self.said.append(("reply", token, message))

    def part(self, token: int, message: bytes) -> None:
        self.said.append(("part", token, message))

    def fail(self, token: int, code: int, text: str) -> None:
        self.said.append(("fail", token, code, text))


class Harness:
    def __init__(
        self, timeout_s: float = 7.0, late: Callable[[float], Status] = lambda _sent_at: errors.TIMEOUT
    ) -> None:
        self.sent: list[tuple[int, int, bytes]] = []
        self.soon: list[Callable[[], None]] = []
        self.time = 0.0
        self.sink = Sink()
        self.calls = Calls(
            origin=ORIGIN,
            member=MEMBER,
            incarnation=INCARNATION,
            send=lambda process, kind, payload: self.sent.append((process, kind, payload)),
            call_soon=lambda callback: self.soon.append(callback),
            now=lambda: self.time,
            timeout_s=timeout_s,
            late=late,
        )

    def busy(self) -> None:
        """Something else is under way for ever, so that calls gather until the turn's end."""
        self.calls.read(Sink(), 0, Op.RANGE, b"")
        self.sent.clear()

    def turn(self) -> None:
        soon, self.soon = self.soon, []
        for callback in soon:
            callback()

    def answer(self, *replies: tuple[int, int, bytes]) -> None:
        body = b"".join(REPLY.pack(sequence, len(text), code) + text for sequence, code, text in replies)
        self.calls.on_replies(pack(Process.APPLY, Kind.REPLIES, 0, body))


def test_the_requests_of_one_turn_travel_as_one_batch_that_names_the_first() -> None:
    h = Harness()
    h.busy()
    for turn, bodies in enumerate([[b"a", b"bb"], [b"ccc"]]):
        for body in bodies:
            h.calls.propose(h.sink, turn, Op.PUT, body)
        assert len(h.soon) == 1
        h.turn()
    assert [(process, kind) for process, kind, _ in h.sent] == [(Process.RAFT, Kind.PROPOSALS)] * 2
    (first,), (second,) = [list(batches(payload)) for _, _, payload in h.sent]
    assert first[:5] == (ORIGIN, 2, MEMBER, INCARNATION, 1)
    assert second[:5] == (ORIGIN, 1, MEMBER, INCARNATION, 3)
    payload = h.sent[0][2]
    assert payload[first.records_at : first.end] == (
        RECORD.pack(1, Op.PUT, 0, 0) + b"a" + RECORD.pack(2, Op.PUT, 0, 0) + b"bb"
    )


def test_a_lone_call_leaves_at_once() -> None:
    h = Harness()
    h.calls.propose(h.sink, 1, Op.PUT, b"alone")
    assert len(h.sent) == 1
    h.calls.propose(h.sink, 2, Op.PUT, b"one of two")
    assert len(h.sent) == 1
    h.turn()
    assert len(h.sent) == 2


def test_reads_are_numbered_apart() -> None:
    h = Harness()
    h.calls.read(h.sink, 1, Op.RANGE, b"r")
    h.calls.propose(h.sink, 2, Op.PUT, b"p")
    h.turn()
    assert h.sent[0] == (
        Process.APPLY,
        Kind.READS,
        READ.pack(1, Op.RANGE, 0, 0, FIRST_READ_SEQUENCE) + b"r",
    )
    h.answer((FIRST_READ_SEQUENCE, 0, b"read"), (1, 0, b"written"))
    assert h.sink.said == [("reply", 1, b"read"), ("reply", 2, b"written")]
    assert h.calls.waiting == 0


def test_errors_and_parts_reach_the_sink_and_an_unknown_answer_does_not() -> None:
    h = Harness()
    h.calls.read(h.sink, 5, Op.RANGE_STREAM, b"")
    h.calls.read(h.sink, 6, Op.RANGE, b"")
    h.turn()
    stream, failing = FIRST_READ_SEQUENCE, FIRST_READ_SEQUENCE + 1
    h.answer((stream, MORE, b"1"), (failing, 11, b"no"), (stream, 0, b"2"), (stream, 0, b"late"), (999, 0, b"?"))
    assert h.sink.said == [("part", 5, b"1"), ("fail", 6, 11, "no"), ("reply", 5, b"2")]


def test_a_large_turn_is_cut_into_batches_below_the_size_of_an_entry() -> None:
    h = Harness()
    h.busy()
    body = b"x" * (BATCH_BYTES // 3)
    for _ in range(7):
        h.calls.propose(h.sink, 0, Op.PUT, body)
    h.turn()
    sizes = [batch.size for _, _, payload in h.sent for batch in batches(payload)]
    assert sizes == [3, 3, 1] or sizes == [2, 2, 2, 1]
    assert next(b.first_sequence for _, _, p in h.sent for b in batches(p)) == 1
    h.answer(*[(n, 0, b"") for n in range(1, 8)])
    assert len(h.sink.said) == 7
    assert h.calls.proposal_bytes == 0


def test_a_request_larger_than_a_batch_travels_alone() -> None:
    h = Harness()
    for body in (b"a", b"x" * (BATCH_BYTES + 1), b"b"):
        h.calls.propose(h.sink, 0, Op.PUT, body)
    h.turn()
    assert [batch.size for _, _, payload in h.sent for batch in batches(payload)] == [1, 1, 1]


def test_more_than_the_bound_is_refused_and_lets_the_others_be() -> None:
    h = Harness()
    for n in range(module.MAX_PROPOSALS + 1):
        h.calls.propose(h.sink, n, Op.PUT, b"")
    h.turn()
    assert h.sink.said == [("fail", module.MAX_PROPOSALS, *errors.REQUEST_TOO_MANY_REQUESTS)]
    h.answer((1, 0, b"ok"))
    h.calls.propose(h.sink, 7, Op.PUT, b"")
    h.turn()
    h.answer((module.MAX_PROPOSALS + 1, 0, b"ok"))
    assert h.sink.said[1:] == [("reply", 0, b"ok"), ("reply", 7, b"ok")]


def test_bytes_under_way_are_bounded_too() -> None:
    h = Harness()
    body = b"x" * (1 << 20)
    for n in range(65):
        h.calls.propose(h.sink, n, Op.PUT, body)
    assert h.sink.said == [("fail", 64, *errors.REQUEST_TOO_MANY_REQUESTS)]


def test_p12_an_unanswered_call_times_out_and_its_late_answer_is_dropped() -> None:
    h = Harness(timeout_s=7.0)
    h.calls.propose(h.sink, 1, Op.PUT, b"old")
    h.turn()
    h.time = 5.0
    h.calls.propose(h.sink, 2, Op.PUT, b"young")
    h.calls.read(h.sink, 3, Op.RANGE, b"reads of any size may take their time")
    h.turn()
    h.time = 7.5
    h.calls.expire()
    assert h.sink.said == [("fail", 1, *errors.TIMEOUT)]
    h.answer((1, 0, b"late"), (2, 0, b"in time"))
    assert h.sink.said[1:] == [("reply", 2, b"in time")]
    h.time = 100.0
    h.calls.expire()
    assert h.sink.said[2:] == []
    assert h.calls.proposal_bytes == 0


def test_p12_a_batch_that_raft_lost_times_out_though_later_ones_were_answered() -> None:
    h = Harness(timeout_s=7.0)
    for turn, bodies in enumerate(([b"lost", b"lost too"], [b"answered"], [b"overtaken"], [b"answered"])):
        h.time = float(turn)
        for body in bodies:
            h.calls.propose(h.sink, turn, Op.PUT, body)
        h.calls.flush()
    h.answer((3, 0, b""), (5, 0, b""))
    assert (h.calls.proposal_bytes, h.calls.oldest_proposal_s) == (0, 0.0)
    h.answer((4, 0, b"in the end"))
    h.sink.said.clear()
    h.time = 7.0
    h.calls.expire()
    assert h.sink.said == []
    h.time = 7.1
    h.calls.expire()
    assert h.sink.said == [("fail", 0, *errors.TIMEOUT)] * 2
    h.time = 20.0
    h.calls.expire()
    assert (h.sink.said[2:], h.calls.waiting, h.calls.oldest_proposal_s) == ([], 0, None)


def test_p12_why_a_request_is_late_depends_on_when_it_was_sent() -> None:
    h = Harness(timeout_s=7.0, late=lambda sent_at: Status(Code.UNAVAILABLE, f"sent at {sent_at:g}"))
    h.calls.propose(h.sink, 1, Op.PUT, b"")
    h.turn()
    h.time = 1.0
    h.calls.propose(h.sink, 2, Op.COMPACT, b"")
    h.calls.change(h.sink, 3, Op.MEMBER_ADD, b"")
    h.calls.read(h.sink, 4, Op.TXN_READ, b"")
    h.turn()
    h.time = 20.0
    h.calls.expire()
    assert sorted(h.sink.said, key=str) == [
        ("fail", 1, Code.UNAVAILABLE, "sent at 0"),
        ("fail", 2, Code.UNAVAILABLE, "sent at 1"),
        ("fail", 3, Code.UNAVAILABLE, "sent at 1"),
        ("fail", 4, *errors.TIMEOUT),
    ]


def test_c7_an_executed_compaction_may_take_its_time() -> None:
    h = Harness(timeout_s=7.0)
    for token in (1, 2):
        h.calls.propose(h.sink, token, Op.COMPACT, b"physical")
        h.calls.flush()
    h.answer((2, MORE, b""))
    h.time = 20.0
    h.calls.expire()
    assert h.sink.said == [("fail", 1, *errors.TIMEOUT)]
    h.answer((2, 0, b"gone"))
    assert h.sink.said[1:] == [("reply", 2, b"gone")]


def test_p16_a_stop_ends_what_waits() -> None:
    h = Harness()
    h.calls.propose(h.sink, 1, Op.PUT, b"")
    h.calls.read(h.sink, 2, Op.RANGE, b"")
    h.turn()
    h.calls.fail_all()
    assert h.sink.said == [("fail", 1, *errors.STOPPED), ("fail", 2, *errors.STOPPED)]


def test_answers_take_their_share_of_a_frame_exactly() -> None:
    h = Harness()
    h.calls.propose(h.sink, 1, Op.PUT, b"")
    h.turn()
    frame = pack(Process.APPLY, Kind.REPLIES, 0, REPLY.pack(1, 0, 0))
    assert len(frame) == HEADER_BYTES + REPLY.size
    h.calls.on_replies(frame)
    assert h.sink.said == [("reply", 1, b"")]


def test_a_change_is_sent_at_once_in_a_batch_of_its_own() -> None:
    h = Harness()
    h.busy()
    h.calls.propose(h.sink, 1, Op.PUT, b"a")
    h.calls.change(h.sink, 2, Op.MEMBER_ADD, b"m")
    h.calls.change(h.sink, 3, Op.MOVE_LEADER, b"l")
    assert h.sent == [
        (
            Process.RAFT,
            Kind.CHANGES,
            pack_batch(ORIGIN, MEMBER, INCARNATION, FIRST_CHANGE_SEQUENCE + i, [pack_record(op, body)]),
        )
        for i, (op, body) in enumerate([(Op.MEMBER_ADD, b"m"), (Op.MOVE_LEADER, b"l")])
    ]
    h.turn()
    (batch,) = batches(h.sent[2][2])
    assert (batch.first_sequence, batch.size) == (1, 1)  # proposals leave no number out
    h.answer((FIRST_CHANGE_SEQUENCE + 1, 9, b"no"), (FIRST_CHANGE_SEQUENCE, 0, b"yes"))
    assert h.sink.said == [("fail", 3, 9, "no"), ("reply", 2, b"yes")]


def test_an_answered_change_ends_no_older_request_s_wait() -> None:
    """It may be refused long before a request that was sent first is executed; that one still has its time-out."""
    h = Harness(timeout_s=7)
    h.calls.propose(h.sink, 1, Op.PUT, b"a")
    h.calls.read(h.sink, 2, Op.MEMBER_LIST, b"")
    h.turn()
    h.calls.change(h.sink, 3, Op.MEMBER_ADD, b"m")
    h.answer((FIRST_CHANGE_SEQUENCE, 0, b"yes"))
    assert h.calls.proposal_bytes == 1
    h.time = 7.1
    h.calls.expire()
    assert h.sink.said == [("reply", 3, b"yes"), ("fail", 1, *errors.TIMEOUT), ("fail", 2, *errors.TIMEOUT)]


def test_a_change_times_out_but_for_a_transfer_which_raft_ends() -> None:
    h = Harness(timeout_s=7)
    h.calls.change(h.sink, 1, Op.MEMBER_ADD, b"m")
    h.calls.change(h.sink, 2, Op.MOVE_LEADER, b"l")
    h.time = 7.1
    h.calls.expire()
    assert h.sink.said == [("fail", 1, *errors.TIMEOUT)]
    h.answer((FIRST_CHANGE_SEQUENCE, 0, b"late"), (FIRST_CHANGE_SEQUENCE + 1, 0, b"moved"))
    assert h.sink.said[1:] == [("reply", 2, b"moved")]
    h.calls.change(h.sink, 3, Op.MEMBER_ADD, b"m")
    h.calls.fail_all()
    h.time = 20.0
    h.calls.expire()
    assert h.sink.said[2:] == [("fail", 3, *errors.STOPPED)]


def test_changes_under_way_are_bounded() -> None:
    h = Harness()
    for token in range(MAX_CHANGES + 1):
        h.calls.change(h.sink, token, Op.MEMBER_ADD, b"m")
    assert h.sink.said == [("fail", MAX_CHANGES, *errors.REQUEST_TOO_MANY_REQUESTS)]
    assert len(h.sent) == MAX_CHANGES
    h.answer((FIRST_CHANGE_SEQUENCE, 0, b""))
    h.calls.change(h.sink, 0, Op.MEMBER_ADD, b"m")
    assert len(h.sent) == MAX_CHANGES + 1
