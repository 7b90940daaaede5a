"""The shell of apply in a cluster, turn by turn: what it says to raft, and what waits for what raft says."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvorum import errors
from kvorum.errors import Code, Status
from kvorum.pb.internal_pb2 import Founding, MembershipState, Publish
from kvorum.pb.rpc_pb2 import (
    LeaseGrantRequest,
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
    LeaseRevokeRequest,
    LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
    Member,
    PutRequest,
    RangeRequest,
    RangeResponse,
)
from node.apply import reads as reads_module
from node.apply.auto_compaction import REVISION_INTERVAL_S
from node.apply.process import PROGRESS_S, TICK_S
from node.apply.read_index import RETRY_S
from node.frames import (
    APPLIED,
    FORWARD,
    GRANT_RETURNED,
    HEADER_BYTES,
    LEADERSHIP,
    LEADING,
    PROGRESS,
    READ_ASK,
    READ_INDEX,
    Frame,
    Kind,
    Process,
    pack,
    unpack,
)
from node.raft.core.messages import EntryType
from node.requests import ELSEWHERE, FIRST_READ_SEQUENCE, LINEARIZABLE, REPLY, Op, pack_read
from tests.apply.entries import MEMBER, batch, founding, normal
from tests.apply.shell import FRONT, Clock, get, reads
from tests.apply.turns import ApplyUnderTest

OTHER = 0xB0B
TIMEOUT_S = 7.0
READER = FORWARD.pack(OTHER, 99, FRONT)


class MemberUnderTest(ApplyUnderTest):
    """One of several voters; nobody leads yet."""

    def __init__(self, directory: Path, *flags: str) -> None:
        self.clock = Clock()
        super().__init__(directory, *flags, now=self.clock)

    def lead_by(self, leader: int, term: int = 2, *, solo: bool = False) -> None:
        """Somebody leads in `term`; the founding and the first entry of the term are applied."""
        self.leadership(leader, term, self.entries(founding(), normal(term=term)), solo=solo)
        self.forget()

    def leadership(self, leader: int, term: int, *data: Frame, solo: bool = False) -> None:
        self.tell(Kind.LEADERSHIP, LEADERSHIP.pack(term, leader, 0, solo), *data)

    def confirm(self, for_s: float = 1.0, term: int = 2) -> None:
        self.tell(Kind.LEADING, LEADING.pack(term, self.clock.now_s + for_s))

    def forget(self) -> None:
        self.links.sent.clear()

    def asks(self) -> list[int]:
        """The numbers of the read-index asks since the last call."""
        frames = self.links.take(Process.RAFT, Kind.READ_ASK)
        return [READ_ASK.unpack_from(frame, HEADER_BYTES)[0] for frame in frames]

    def answer_ask(self, number: int, index: int) -> None:
        self.tell(Kind.READ_INDEX, READ_INDEX.pack(number, index))

    def forwarded(self) -> list[tuple[int, int, bytes]]:
        """(number, code, body) of what was answered to another member's front since the last call."""
        found = []
        for data in self.links.take(Process.RAFT, Kind.FORWARD_REPLIES):
            at = HEADER_BYTES + FORWARD.size
            assert data[HEADER_BYTES:at] == READER
            while at < len(data):
                sequence, length, code = REPLY.unpack_from(data, at)
                at += REPLY.size
                found.append((sequence - FIRST_READ_SEQUENCE, code, data[at : at + length]))
                at += length
        return found

    def put(self, key: bytes, first: int = 1) -> None:
        self.turn(self.entries(normal(batch(PutRequest(key=key, value=b"1"), first=first))))
        self.answered()


@pytest.fixture
def member(tmp_path: Path) -> Iterator[MemberUnderTest]:
    opened = MemberUnderTest(tmp_path)
    yield opened
    opened.close()


def forwards(*records: bytes, header: bytes = READER) -> Frame:
    return unpack(pack(Process.RAFT, Kind.FORWARDS, 0, header + b"".join(records)))


def keep_alive(number: int, lease_id: int) -> bytes:
    body = LeaseKeepAliveRequest(ID=lease_id).SerializeToString()
    return pack_read(Op.LEASE_KEEP_ALIVE, FIRST_READ_SEQUENCE + number, body)


def time_to_live(number: int, lease_id: int) -> bytes:
    body = LeaseTimeToLiveRequest(ID=lease_id).SerializeToString()
    return pack_read(Op.LEASE_TIME_TO_LIVE, FIRST_READ_SEQUENCE + number, body, LINEARIZABLE)


def own(*records: bytes) -> Frame:
    """A READS frame of a front of this member."""
    return unpack(pack(FRONT, Kind.READS, 0, b"".join(records)))


def failed(number: int, status: Status) -> tuple[int, int, bytes]:
    return number, status.code, status.message.encode()


# what it says by itself


def test_where_it_stands_and_who_belongs_to_the_cluster_are_its_first_words(member: MemberUnderTest) -> None:
    member.lead_by(OTHER)
    member.apply.start()
    (applied,) = member.links.take(Process.RAFT, Kind.APPLIED)
    assert APPLIED.unpack_from(applied, HEADER_BYTES) == (2, 2)
    state = MembershipState.FromString(applied[HEADER_BYTES + APPLIED.size :])
    assert [one.ID for one in state.members] == [MEMBER]
    for process in (Process.RAFT, FRONT):
        (told,) = member.links.take(process, Kind.MEMBERS)
        assert MembershipState.FromString(told[HEADER_BYTES:]) == state


def test_every_change_of_the_members_is_told_once(member: MemberUnderTest) -> None:
    founded = Founding(members=[Member(ID=MEMBER), Member(ID=OTHER)]).SerializeToString()
    member.turn(member.entries((1, EntryType.FOUNDING, founded)))
    publish = Publish(member_id=OTHER, name="m2", client_urls=["http://127.0.0.1:1"], version="3.7.0")
    member.turn(member.entries(normal(batch(publish, member=OTHER))))
    member.put(b"a", first=2)
    for process in (Process.RAFT, FRONT):
        first, second = (
            MembershipState.FromString(frame[HEADER_BYTES:]) for frame in member.links.take(process, Kind.MEMBERS)
        )
        assert ([one.name for one in first.members], first.cluster_version) == (["", ""], "")
        assert ("m2" in [one.name for one in second.members], second.cluster_version) == (True, "3.7.0")


def test_progress_is_told_when_there_is_some_and_not_too_often(member: MemberUnderTest) -> None:
    def told() -> list[int]:
        frames = member.links.take(Process.RAFT, Kind.PROGRESS)
        return [PROGRESS.unpack_from(frame, HEADER_BYTES)[0] for frame in frames]

    member.turn()
    assert told() == []
    member.turn(member.entries(founding()))
    assert told() == [1]
    member.put(b"a")
    member.put(b"b", first=2)
    assert told() == []
    assert member.apply.patience_s() == pytest.approx(PROGRESS_S)
    member.clock.now_s += PROGRESS_S
    member.turn()
    assert told() == [3]
    member.clock.now_s += PROGRESS_S
    member.turn()
    assert told() == []


# linearizable reads


def test_a_linearizable_read_waits_for_its_index_and_a_serializable_one_does_not(member: MemberUnderTest) -> None:
    member.lead_by(OTHER)
    member.turn(reads(get(b"a"), get(b"a", serializable=True)))
    assert [number for number, _, _ in member.answered()] == [1]
    (ask,) = member.asks()
    member.answer_ask(ask, 3)
    assert member.answered() == [], "entry 3 is not applied"
    member.turn(member.entries(normal(batch(PutRequest(key=b"a", value=b"new"), member=OTHER))))
    ((number, code, body),) = member.answered()
    assert (number, code) == (0, 0)
    assert RangeResponse.FromString(body).kvs[0].value == b"new"


def test_what_came_in_the_turn_joins_its_ask(member: MemberUnderTest) -> None:
    member.lead_by(OTHER)
    member.turn(reads(get(b"a")), reads(get(b"b"), first=1, front=FRONT + 1))
    (ask,) = member.asks()
    member.turn(reads(get(b"c"), first=2))
    assert member.asks() == []
    member.answer_ask(ask, 2)
    assert [number for number, _, _ in member.answered()] == [0]
    assert member.links.take(FRONT + 1, Kind.REPLIES)
    assert len(member.asks()) == 1, "for the third"


def test_P13_without_an_answer_it_asks_again_and_gives_up_in_the_end(member: MemberUnderTest) -> None:
    member.lead_by(OTHER)
    member.turn(reads(get(b"a"), get(b"", limit=1)))
    asked = member.asks()
    while not (found := member.answered()):
        assert 0 < member.apply.patience_s() <= RETRY_S
        member.clock.now_s += RETRY_S
        member.turn()
        asked += member.asks()
    assert sorted(found) == [failed(0, errors.TIMEOUT), failed(1, errors.EMPTY_KEY)], "P1: its own fault wins"
    assert asked == list(range(1, int(TIMEOUT_S / RETRY_S) + 1))
    figures = member.apply._state()["metrics"]
    assert figures["etcd_server_slow_read_indexes_total"] == 1, "once for an ask, however often it is repeated"
    assert figures["etcd_server_read_indexes_failed_total"] == 0, "no leader changed"


def test_P1_without_a_leader_a_read_with_a_fault_of_its_own_fails_at_once(member: MemberUnderTest) -> None:
    member.lead_by(OTHER)
    member.leadership(0, 2)
    unsorted = RangeRequest(key=b"a").SerializeToString() + b"\x30\x09"
    member.turn(reads(get(b""), get(b"a"), (Op.RANGE, unsorted)))
    assert member.answered() == [failed(0, errors.EMPTY_KEY), failed(2, errors.INVALID_SORT_OPTION)]
    assert member.asks() == [1]


def test_P14_the_leader_changes_while_a_read_waits(member: MemberUnderTest) -> None:
    member.lead_by(OTHER)
    member.turn(reads(get(b"a")))
    member.leadership(0, 3)
    assert member.answered() == []
    member.leadership(MEMBER, 3)
    assert member.answered() == [failed(0, errors.LEADER_CHANGED)]


def test_more_than_may_wait_is_refused(member: MemberUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.apply.read_index.MAX_WAITING", 1)
    member.lead_by(OTHER)
    member.turn(reads(get(b"a")), reads(get(b"b"), first=1))
    assert member.answered() == [failed(1, errors.REQUEST_TOO_MANY_REQUESTS)]


# the grant of a sole voter


def test_on_the_grant_reads_are_answered_at_once_and_without_it_no_more(member: MemberUnderTest) -> None:
    member.lead_by(MEMBER, solo=True)
    member.turn(reads(get(b"a")))
    assert [number for number, _, _ in member.answered()] == [0]
    assert member.asks() == []
    member.leadership(MEMBER, 2, reads(get(b"b"), first=1))
    (returned,) = member.links.take(Process.RAFT, Kind.GRANT_RETURNED)
    assert GRANT_RETURNED.unpack_from(returned, HEADER_BYTES) == (2,)
    assert member.answered() == []
    assert member.asks() == [1]
    member.leadership(MEMBER, 2, solo=True)
    assert [number for number, _, _ in member.answered()] == [1], "granted anew"
    assert member.links.take(Process.RAFT, Kind.GRANT_RETURNED) == []


# leases


def grant(member: MemberUnderTest, lease_id: int, ttl_s: int = 60) -> None:
    member.turn(member.entries(normal(batch(LeaseGrantRequest(ID=lease_id, TTL=ttl_s), member=OTHER))))


def test_L12_a_follower_sends_questions_about_leases_elsewhere(member: MemberUnderTest) -> None:
    member.lead_by(OTHER)
    grant(member, 5)
    member.turn(own(keep_alive(0, 5)), forwards(keep_alive(1, 5)))
    assert member.answered() == [(0, ELSEWHERE, b"")]
    assert member.forwarded() == [(1, ELSEWHERE, b"")]


def test_L12_the_leader_answers_for_all(member: MemberUnderTest) -> None:
    member.lead_by(MEMBER)
    member.confirm()
    grant(member, 5)
    member.turn(own(keep_alive(0, 5)), forwards(keep_alive(1, 5)))
    ((number, code, body),) = member.answered()
    assert (number, code, LeaseKeepAliveResponse.FromString(body).TTL) == (0, 0, 60)
    ((number, code, body),) = member.forwarded()
    assert (number, code, LeaseKeepAliveResponse.FromString(body).TTL) == (1, 0, 60)


def test_L13_L32_a_lease_just_granted_elsewhere_is_found(member: MemberUnderTest) -> None:
    member.lead_by(MEMBER)
    member.confirm()
    member.turn(forwards(keep_alive(0, 5), keep_alive(1, 6)))
    assert member.forwarded() == []
    member.turn()
    (ask,) = member.asks()
    member.answer_ask(ask, 3)
    assert member.forwarded() == []
    grant(member, 5)
    found = {number: LeaseKeepAliveResponse.FromString(body).TTL for number, _, body in member.forwarded()}
    assert found == {0: 60, 1: 0}


def test_L17_the_time_to_live_counts_what_was_written_anywhere_before(member: MemberUnderTest) -> None:
    member.lead_by(MEMBER)
    member.confirm()
    member.turn(forwards(time_to_live(0, 5)))
    (ask,) = member.asks()
    member.answer_ask(ask, 3)
    grant(member, 5)
    ((number, code, body),) = member.forwarded()
    assert (number, code, LeaseTimeToLiveResponse.FromString(body).grantedTTL) == (0, 0, 60)


def test_L33_a_leader_that_is_not_confirmed_renews_nothing(member: MemberUnderTest) -> None:
    member.lead_by(MEMBER)
    grant(member, 5)
    member.turn(own(keep_alive(0, 5)))
    assert member.answered() == []
    member.confirm()
    assert [code for _, code, _ in member.answered()] == [0]
    member.clock.now_s += 1.0
    member.turn(own(keep_alive(1, 5)), forwards(keep_alive(2, 5)))
    found: list[tuple[int, int, bytes]] = []
    for _ in range(int(TIMEOUT_S / TICK_S)):
        assert found == []
        member.clock.now_s += TICK_S
        member.turn()
        found += member.answered()
    assert found == [(1, Code.UNKNOWN, b"not a primary lessor")]
    assert member.forwarded() == [(2, ELSEWHERE, b"")], "the front that asks may find another leader"


def test_a_question_waits_for_the_first_entry_of_the_term_and_goes_elsewhere_with_the_leader(
    member: MemberUnderTest,
) -> None:
    member.lead_by(OTHER)
    grant(member, 5)
    member.leadership(MEMBER, 3)
    member.confirm(term=3)
    member.turn(own(keep_alive(0, 5)))
    assert member.answered() == []
    member.turn(member.entries(normal(term=3)))
    assert [code for _, code, _ in member.answered()] == [0]
    member.leadership(0, 4)
    member.leadership(MEMBER, 5)
    member.turn(own(keep_alive(1, 5)))
    assert member.answered() == []
    member.leadership(OTHER, 6)
    assert member.answered() == [(1, ELSEWHERE, b"")]


def test_L22_L23_only_a_confirmed_leader_revokes(member: MemberUnderTest) -> None:
    member.lead_by(MEMBER)
    member.confirm(for_s=1.0)
    grant(member, 5, ttl_s=2)

    def pass_s(seconds: float, *, confirmed: bool) -> None:
        for _ in range(int(seconds / 0.5)):
            member.clock.now_s += 0.5
            if confirmed:
                member.confirm()
            else:
                member.turn()

    pass_s(1.0, confirmed=True)
    pass_s(10.0, confirmed=False)
    assert member.proposals() == []
    pass_s(1.5, confirmed=True)
    revoke = (Op.LEASE_REVOKE, LeaseRevokeRequest(ID=5).SerializeToString())
    assert member.proposals() == [revoke]
    member.leadership(OTHER, 3)
    pass_s(10.0, confirmed=False)
    assert member.proposals() == []


@pytest.mark.parametrize(
    "frame",
    [
        forwards(pack_read(Op.RANGE, 1, RangeRequest(key=b"a").SerializeToString())),
        forwards(keep_alive(0, 5)[:-1]),
        forwards(keep_alive(0, 5) + b"\0"),
        forwards(b"\xff" * 16),
        forwards(b"", header=READER[:-1]),
    ],
)
def test_what_a_member_forwards_is_looked_at_first(member: MemberUnderTest, frame: Frame) -> None:
    member.lead_by(MEMBER, solo=True)
    member.turn(frame)
    assert member.forwarded() == []
    assert member.log.has("dropped what another member forwarded")


def test_forwards_beyond_the_bound_are_dropped(member: MemberUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads_module, "MAX_FORWARDS", 1)
    member.lead_by(MEMBER, solo=True)
    member.turn(forwards(keep_alive(0, 5)), forwards(keep_alive(1, 5)))
    assert [number for number, _, _ in member.forwarded()] == [0]


# what only the leader proposes


def test_C12_only_the_leader_compacts_and_all_keep_the_time(tmp_path: Path) -> None:
    member = MemberUnderTest(tmp_path, "--auto-compaction-mode=revision", "--auto-compaction-retention=1")
    member.lead_by(OTHER)
    for first in range(1, 6):
        member.put(b"a", first)
    member.clock.now_s += REVISION_INTERVAL_S
    member.turn()
    assert member.proposals() == []
    member.leadership(MEMBER, 3, member.entries(normal(term=3)))
    member.turn()
    assert member.proposals() == [], "it waits for the next time"
    member.clock.now_s += REVISION_INTERVAL_S
    member.turn()
    assert [op for op, _ in member.proposals()] == [Op.COMPACT]
    member.close()


def test_an_alarm_that_was_lost_with_a_leader_is_proposed_again(
    member: MemberUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    member.lead_by(OTHER)
    monkeypatch.setattr("node.apply.space.RESERVE_BYTES", 1 << 62)
    member.clock.now_s += TICK_S
    member.turn()
    assert [op for op, _ in member.proposals()] == [Op.ALARM], "any member, for itself"
    member.clock.now_s += TIMEOUT_S - TICK_S
    member.turn()
    assert member.proposals() == []
    member.clock.now_s += 2 * TICK_S
    member.turn()
    assert [op for op, _ in member.proposals()] == [Op.ALARM]
