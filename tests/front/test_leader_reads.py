"""Questions to the leader: which way they go, how often, and how they end."""

import pytest

from kvorum import errors
from kvorum.errors import Code
from node.frames import FORWARD, HEADER_BYTES, Kind, Process, pack
from node.front import leader_reads as module
from node.front.calls import Calls
from node.front.leader_reads import REPEAT_S
from node.requests import ELSEWHERE, FIRST_FORWARD_SEQUENCE, LINEARIZABLE, READ, REPLY, Op

ME, OTHER, THIRD = 7, 8, 9
FRONT = Process.FRONT + 1
HEADER = FORWARD.pack(ME, 77, FRONT)
TIMEOUT_S = 7.0


class Sink:
    def __init__(self) -> None:
        self.said: list[tuple[object, ...]] = []

    def reply(self, token: int, message: bytes) -> None:
        self.said.append((token, message))

    def fail(self, token: int, code: int, text: str) -> None:
        self.said.append((token, code, text))


class Harness:
    def __init__(self) -> None:
        self.now = 100.0
        self.sent: list[tuple[int, int, bytes]] = []
        self.sink = Sink()
        self.calls = Calls(
            origin=FRONT,
            member=ME,
            incarnation=77,
            send=lambda process, kind, payload: self.sent.append((process, kind, payload)),
            call_soon=lambda callback: self.soon.append(callback),
            now=lambda: self.now,
            timeout_s=TIMEOUT_S,
        )
        self.soon: list[object] = []
        self.reads = self.calls.leader_reads

    def ask(self, token: int, *, flags: int = 0) -> None:
        self.reads.ask(self.sink, token, Op.LEASE_KEEP_ALIVE, b"body%d" % token, flags)

    def turn(self) -> None:
        soon, self.soon = self.soon, []
        for callback in soon:
            assert callable(callback)
            callback()

    def asked(self) -> list[tuple[int, int, bytes]]:
        """(process, sequence, body) of what was sent since the last call."""
        self.turn()
        found = []
        for process, kind, payload in self.sent:
            at = 0
            if process == Process.RAFT:
                assert kind == Kind.FORWARDS and payload.startswith(HEADER)
                at = len(HEADER)
            else:
                assert (process, kind) == (Process.APPLY, Kind.READS)
            while at < len(payload):
                length, op, _, _, sequence = READ.unpack_from(payload, at)
                assert op == Op.LEASE_KEEP_ALIVE
                at += READ.size
                found.append((process, sequence, payload[at : at + length]))
                at += length
        self.sent.clear()
        return found

    def answer(self, sequence: int, code: int = 0, body: bytes = b"") -> None:
        self.calls.on_replies(pack(1, Kind.REPLIES, 0, REPLY.pack(sequence, len(body), code) + body))

    def pass_s(self, seconds: float) -> None:
        self.now += seconds
        self.calls.expire()

    def said(self) -> list[tuple[object, ...]]:
        said, self.sink.said = self.sink.said, []
        return said


@pytest.fixture
def h() -> Harness:
    return Harness()


def test_a_leader_s_front_asks_its_own_apply(h: Harness) -> None:
    h.reads.on_leader(ME)
    h.ask(1, flags=LINEARIZABLE)
    assert READ.unpack_from(h.sent[0][2])[2] == LINEARIZABLE
    ((process, sequence, body),) = h.asked()
    assert (process, body) == (Process.APPLY, b"body1")
    h.answer(sequence, body=b"reply")
    assert h.said() == [(1, b"reply")]
    assert len(h.reads) == h.calls.waiting == 0


def test_L12_another_member_s_front_asks_through_raft_once_a_turn(h: Harness) -> None:
    h.reads.on_leader(OTHER)
    h.ask(1)
    h.ask(2)
    assert h.sent == []
    h.turn()
    assert len(h.sent) == 1
    first, second = h.asked()
    assert first == (Process.RAFT, FIRST_FORWARD_SEQUENCE, b"body1")
    assert second == (Process.RAFT, FIRST_FORWARD_SEQUENCE + 1, b"body2")
    h.answer(second[1], body=b"reply")
    h.answer(first[1], Code.UNKNOWN, b"no")
    assert h.said() == [(2, b"reply"), (1, Code.UNKNOWN, "no")]
    h.answer(first[1], body=b"twice")
    assert h.said() == []
    assert len(h.reads) == h.calls.waiting == 0


def test_without_a_leader_a_question_waits_for_one(h: Harness) -> None:
    h.ask(1)
    assert h.asked() == []
    h.reads.on_leader(OTHER)
    assert [process for process, _, _ in h.asked()] == [Process.RAFT]


def test_another_leader_is_asked_at_once_and_either_s_answer_counts(h: Harness) -> None:
    h.reads.on_leader(OTHER)
    h.ask(1)
    h.ask(2)
    (first, second) = h.asked()
    h.reads.on_leader(0)
    assert h.asked() == []
    h.answer(first[1], body=b"late")
    h.reads.on_leader(THIRD)
    assert h.asked() == [second]
    h.reads.on_leader(ME)
    ((process, sequence, body),) = h.asked()
    assert (process, body) == (Process.APPLY, b"body2")
    h.answer(sequence, body=b"own")
    assert h.said() == [(1, b"late"), (2, b"own")]
    assert h.calls.waiting == 0


def test_what_is_not_answered_is_asked_again(h: Harness) -> None:
    h.reads.on_leader(OTHER)
    h.ask(1)
    first = h.asked()
    h.pass_s(REPEAT_S / 2)
    assert h.asked() == []
    h.pass_s(REPEAT_S / 2)
    assert h.asked() == first


def test_the_own_apply_answers_whatever_it_is_asked(h: Harness) -> None:
    h.reads.on_leader(ME)
    h.ask(1)
    h.asked()
    h.pass_s(3 * REPEAT_S)
    assert h.asked() == []


@pytest.mark.parametrize("leader", [ME, OTHER])
def test_what_was_asked_where_nobody_leads_any_more_waits_a_little(h: Harness, leader: int) -> None:
    h.reads.on_leader(leader)
    h.ask(1)
    ((process, sequence, _),) = h.asked()
    h.answer(sequence, ELSEWHERE)
    assert h.said() == [] and h.asked() == []
    h.pass_s(0.1)
    assert [process for process, _, _ in h.asked()] == [process]
    h.answer(sequence, ELSEWHERE)
    h.reads.on_leader(THIRD)
    assert [process for process, _, _ in h.asked()] == [Process.RAFT]


@pytest.mark.parametrize(("leader", "status"), [(0, errors.NO_LEADER), (OTHER, errors.TIMEOUT)])
def test_L12_the_end_of_the_request_timeout(h: Harness, leader: int, status: errors.Status) -> None:
    h.reads.on_leader(OTHER)
    h.ask(1)
    h.reads.on_leader(leader)
    h.pass_s(1)
    h.ask(2)
    h.pass_s(TIMEOUT_S - 1.1)
    assert h.said() == []
    h.pass_s(0.1)
    assert h.said() == [(1, *status)]
    h.pass_s(1)
    assert h.said() == [(2, *status)]
    assert len(h.reads) == h.calls.waiting == 0


def test_the_questions_of_a_front_are_bounded(h: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ASKS", 1)
    h.ask(1)
    h.ask(2)
    assert h.said() == [(2, *errors.REQUEST_TOO_MANY_REQUESTS)]


def test_P16_a_stopping_member_ends_them(h: Harness) -> None:
    h.ask(1)
    h.reads.on_leader(OTHER)
    h.ask(2)
    h.calls.fail_all()
    assert h.said() == [(1, *errors.STOPPED), (2, *errors.STOPPED)]
    assert h.calls.waiting == 0


def test_the_header_names_the_front_that_asks(h: Harness) -> None:
    h.reads.on_leader(OTHER)
    h.ask(1)
    h.turn()
    frame = pack(FRONT, Kind.FORWARDS, 0, h.sent[0][2])
    assert FORWARD.unpack_from(frame, HEADER_BYTES) == (ME, 77, FRONT)
