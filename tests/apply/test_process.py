"""The shell of apply, turn by turn: order of effects, failing writes, alarms, its own proposals, compaction's pace."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from kvorum.lifeline import Lifeline
from kvorum.pb.internal_pb2 import MembershipState
from kvorum.pb.rpc_pb2 import (
    AlarmRequest,
    AlarmType,
    CompactionRequest,
    CompactionResponse,
    LeaseGrantRequest,
    LeaseRevokeRequest,
    PutRequest,
)
from loadtest.launcher import wait_until
from node.apply import host, process, space
from node.apply.compactor import MOST_ROWS, RETRY_S, Compactor
from node.apply.figures import ApplyFigures
from node.apply.flusher import FLUSH_REQUESTS, Flusher
from node.apply.host import Job
from node.apply.mvcc.database import Cursor, Database
from node.apply.outbox import Outbox
from node.apply.own_requests import split_replies
from node.apply.progress import Progress
from node.frames import (
    APPLIED,
    CHECKPOINT,
    CHECKPOINT_ASK,
    FLUSHED,
    HEADER_BYTES,
    LEADERSHIP,
    Frame,
    Kind,
    Process,
    pack,
    unpack,
)
from node.requests import MORE, REPLY, Op
from tests.apply.entries import MEMBER, batch, founding, normal
from tests.apply.mvcc_store import StoreUnderTest
from tests.apply.shell import FRONT, Clock, FakeLinks, Lines, answers, get, reads
from tests.apply.turns import ApplyUnderTest

FULL = "IO error: No space left on device: While appending to file: 000009.sst"


@pytest.fixture
def apply(tmp_path: Path) -> Iterator[ApplyUnderTest]:
    opened = ApplyUnderTest(tmp_path)
    yield opened
    opened.close()


class FailingWrites:
    """Makes the database's writes raise while `error` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: Exception | None = None
        write: Callable[[Database, Any], None] = Database._write

        def fail_or_write(database: Database, rows: Any) -> None:
            if self.error is not None:
                raise self.error
            write(database, rows)

        monkeypatch.setattr(Database, "_write", fail_or_write)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> FailingWrites:
    return FailingWrites(monkeypatch)


def test_raft_gets_the_checkpoint_it_asks_for(apply: ApplyUnderTest) -> None:
    apply.lead()
    Path(apply.child.config.snap_path).mkdir()
    ask = unpack(pack(Process.RAFT, Kind.CHECKPOINT_ASK, 0, CHECKPOINT_ASK.pack(3)))
    apply.turn(control=(ask,))
    assert apply.apply.patience_s() <= 2 * process.TASK_PATIENCE_S

    def answered() -> bool:
        apply.turn()
        return (Process.RAFT, Kind.CHECKPOINT) in apply.links.sent

    wait_until(answered, "the checkpoint", 20.0)
    (data,) = apply.links.take(Process.RAFT, Kind.CHECKPOINT)
    number, index, term, length = CHECKPOINT.unpack_from(data, HEADER_BYTES)
    assert (number, index, term) == (3, 2, 2)
    at = HEADER_BYTES + CHECKPOINT.size
    assert data[at : at + length].decode() == f"{apply.child.config.snap_path}/outgoing-3"
    assert [member.ID for member in MembershipState.FromString(data[at + length :]).members] == [MEMBER]


def test_nothing_is_served_before_the_first_entry_of_the_term_is_applied(apply: ApplyUnderTest) -> None:
    apply.turn(apply.entries(founding(), normal(batch(PutRequest(key=b"a")), term=1)))
    assert not apply.links.take(FRONT, Kind.SERVING)
    control = (unpack(pack(Process.RAFT, Kind.LEADERSHIP, 0, LEADERSHIP.pack(2, MEMBER, 2, True))),)
    apply.turn(control=control)
    assert not apply.links.take(FRONT, Kind.SERVING)
    apply.turn(apply.entries(normal(term=2)))
    assert apply.links.take(FRONT, Kind.SERVING)


def test_a_reply_leaves_after_its_write_and_credit_is_returned(apply: ApplyUnderTest) -> None:
    apply.lead()
    apply.links.consumed.clear()
    entry = apply.entries(normal(batch(PutRequest(key=b"a", value=b"1"))))
    apply.turn(entry, reads(get(b"a")))
    assert [(number, code) for number, code, _ in apply.answered()] == [(1, 0), (0, 0)]
    assert apply.apply._store.database.position.cursor.index == apply.sent_entries
    assert apply.links.consumed == {(Process.RAFT, Kind.ENTRIES): entry.end - entry.start}


def test_invariant_11_a_full_disk_holds_writes_back_and_reads_go_on(
    apply: ApplyUnderTest, writes: FailingWrites, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply.lead()
    monkeypatch.setattr(process, "RETRY_S", 0.0)
    writes.error = Exception(FULL)
    apply.links.consumed.clear()
    apply.turn(apply.entries(normal(batch(PutRequest(key=b"a")))))
    apply.turn(apply.entries(normal(batch(PutRequest(key=b"b"), first=2))), reads(get(b"z")))
    assert [number for number, _, _ in apply.answered()] == [0], "only the read"
    assert not apply.links.consumed, "without credit raft keeps what follows in its log"
    assert apply.proposals() == [(Op.ALARM, alarm_of_this_member())], "once"
    assert apply.log.has("cannot write to the database, trying again")
    writes.error = None
    apply.turn()
    apply.turn()
    assert [(number, code) for number, code, _ in apply.answered()] == [(1, 0), (2, 0)]
    assert apply.apply._store.revision == 3


def alarm_of_this_member() -> bytes:
    request = AlarmRequest(action=AlarmRequest.ACTIVATE, memberID=MEMBER, alarm=AlarmType.NOSPACE)
    return request.SerializeToString()


def test_a_failed_write_is_repeated_after_a_while_only(apply: ApplyUnderTest, writes: FailingWrites) -> None:
    apply.lead()
    writes.error = Exception(FULL)
    apply.turn(apply.entries(normal(batch(PutRequest(key=b"a")))))
    writes.error = None
    apply.turn()
    assert apply.answered() == []
    assert 0 < apply.apply.patience_s() <= process.TICK_S


@pytest.mark.parametrize("error", [Exception("Corruption: block checksum mismatch"), OSError("other")])
def test_another_failure_of_the_database_ends_the_process(
    apply: ApplyUnderTest, writes: FailingWrites, error: Exception
) -> None:
    apply.lead()
    writes.error = error
    with pytest.raises(type(error), match=str(error)):
        apply.turn(apply.entries(normal(batch(PutRequest(key=b"a")))))
    writes.error = None


def refusal(sequence: int) -> Frame:
    text = b"etcdserver: mvcc: database space exceeded"
    return unpack(pack(Process.RAFT, Kind.REPLIES, 0, REPLY.pack(sequence, len(text), 8) + text))


def test_an_alarm_that_the_log_had_no_room_for_is_proposed_again(
    apply: ApplyUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "TICK_S", 0.0)
    apply.lead()
    assert apply.proposals() == []
    monkeypatch.setattr(space, "RESERVE_BYTES", 1 << 62)
    apply.turn()
    apply.turn()
    assert apply.proposals() == [(Op.ALARM, alarm_of_this_member())]
    apply.turn(refusal(1))
    assert apply.links.consumed[Process.RAFT, Kind.REPLIES] > 0
    assert apply.proposals() == [(Op.ALARM, alarm_of_this_member())]
    request = AlarmRequest(action=AlarmRequest.ACTIVATE, memberID=MEMBER, alarm=AlarmType.NOSPACE)
    apply.turn(apply.entries(normal(batch(request, origin=Process.APPLY, first=2))))
    apply.turn()
    assert apply.proposals() == [], "it is on"


def test_MA15_the_quota_is_looked_at_after_each_mebibyte(tmp_path: Path) -> None:
    apply = ApplyUnderTest(tmp_path, "--quota-backend-bytes=1000000")
    apply.lead()
    apply.apply._next_tick_at += 1000
    for number in range(5):
        puts = [PutRequest(key=b"%d" % key, value=bytes(60_000)) for key in range(5)]
        apply.turn(apply.entries(normal(batch(*puts, first=1 + 5 * number))))
        while apply.apply._machine.busy:
            apply.turn()
    assert apply.proposals() == [(Op.ALARM, alarm_of_this_member())]
    apply.close()


def test_a_lease_expires_only_after_the_keep_alives_that_came(
    apply: ApplyUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply.lead()
    apply.turn(apply.entries(normal(batch(LeaseGrantRequest(ID=5, TTL=2)))))
    monkeypatch.setattr(apply.apply._lessor, "expired", lambda _now: [5])
    monkeypatch.setattr(apply.apply._reads, "answer", lambda: True)
    apply.turn()
    assert apply.proposals() == []
    monkeypatch.setattr(apply.apply._reads, "answer", lambda: False)
    apply.turn()
    assert apply.proposals() == [(Op.LEASE_REVOKE, LeaseRevokeRequest(ID=5).SerializeToString())]


def test_a_long_backlog_is_worked_off_turn_by_turn(apply: ApplyUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 9: reads are answered between two turns, and the process says that it lives."""
    apply.lead()
    monkeypatch.setattr(process, "TURN_S", 0.0005)
    puts = [PutRequest(key=b"%d" % number) for number in range(5000)]
    apply.turn(apply.entries(normal(batch(*puts))), reads(get(b"0")))
    assert apply.apply._machine.busy
    assert apply.apply.patience_s() == 0
    first = apply.answered()
    assert first[-1][:2] == (0, 0)
    assert 0 < len(first) < 5000
    answered = len(first) - 1
    while apply.apply._machine.busy:
        apply.turn()
    apply.turn()
    assert answered + len(apply.answered()) == 5000


def test_P20_a_slow_execution_is_told(tmp_path: Path) -> None:
    apply = ApplyUnderTest(tmp_path, "--warning-apply-duration=1us")
    apply.lead()
    apply.turn(apply.entries(normal(batch(PutRequest(key=b"a")))))
    assert apply.log.has('"apply request took too long"')
    assert apply.log.has('"expected-duration":"0.001ms"')
    assert apply.apply._figures.slow_applies > 0
    apply.close()


def test_the_database_waits_for_room_when_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "RETRY_S", 0.0)
    failures = [Exception(FULL), Exception(FULL)]
    load = Database._load_position

    def fail_or_load(database: Database) -> Any:
        if failures:
            database._db.close()
            raise failures.pop()
        return load(database)

    monkeypatch.setattr(Database, "_load_position", fail_or_load)
    apply = ApplyUnderTest(tmp_path)
    assert apply.log.has("cannot open the database, trying again")
    apply.close()
    failures.append(Exception("Corruption: no such file"))
    with pytest.raises(host.CannotOpen, match="member/db: Corruption: no such file"):
        ApplyUnderTest(tmp_path)


def test_where_it_stands_is_the_first_word_to_raft(apply: ApplyUnderTest) -> None:
    apply.lead()
    apply.apply.start()
    (data,) = apply.links.take(Process.RAFT, Kind.APPLIED)
    assert APPLIED.unpack_from(data, HEADER_BYTES) == (2, 2)
    assert apply.links.opened == {(Process.RAFT, Kind.ENTRIES), (Process.RAFT, Kind.REPLIES)}


def test_packed_replies_are_split() -> None:
    packed = [REPLY.pack(1, 2, 0) + b"ab", REPLY.pack(2, 0, 5), REPLY.pack(3, 1, 0) + b"c"]
    assert list(split_replies(pack(1, Kind.REPLIES, 0, b"".join(packed)))) == packed


# flushing


class FakeDatabase:
    def __init__(self) -> None:
        self.index = 0
        self.error: Exception | None = None

    def flush(self) -> Cursor:
        if self.error is not None:
            raise self.error
        return Cursor(self.index)


class Ended:
    """A job that was done when it was begun."""

    def is_alive(self) -> bool:
        return False

    def join(self) -> None:
        pass


def run_at_once(_name: str, work: Callable[[], None]) -> Job:
    work()
    return Ended()


def flushed(flusher: Flusher, now: float, *, has_room: bool = True) -> int | None:
    """What a tick says; a flush that it begins is over when it returns."""
    return flusher.tick(now, has_room=has_room)


def test_a_flush_begins_after_enough_requests_and_its_index_is_told_when_it_is_over() -> None:
    database = FakeDatabase()
    flusher = Flusher(database, Lines().logger, run_at_once)
    database.index = 7
    flusher.wrote(FLUSH_REQUESTS - 1, 0)
    assert [flushed(flusher, 0), flushed(flusher, 0)] == [None, None]
    flusher.wrote(1, 0)
    assert [flushed(flusher, 0), flushed(flusher, 0), flushed(flusher, 0)] == [None, 7, None]


def test_no_flush_begins_without_room_and_a_failed_one_is_tried_again() -> None:
    database, log = FakeDatabase(), Lines()
    flusher = Flusher(database, log.logger, run_at_once)
    database.index = 7
    flusher.wrote(FLUSH_REQUESTS, 0)
    assert [flushed(flusher, 0, has_room=False), flushed(flusher, 0, has_room=False)] == [None, None]
    database.error = Exception(FULL)
    assert [flushed(flusher, 0), flushed(flusher, 1)] == [None, None]
    assert log.has("cannot flush the database")
    database.error = None
    assert [flushed(flusher, 2), flushed(flusher, 3)] == [None, None], "not before its time"
    assert [flushed(flusher, 7), flushed(flusher, 7)] == [None, 7]


def test_another_failure_of_a_flush_ends_the_process() -> None:
    database = FakeDatabase()
    flusher = Flusher(database, Lines().logger, run_at_once)
    database.error = Exception("IO error: Input/output error")
    flusher.wrote(FLUSH_REQUESTS, 0)
    assert flushed(flusher, 0) is None
    with pytest.raises(Exception, match="Input/output error"):
        flushed(flusher, 0)


def test_MA15_shortage() -> None:
    gib = 1 << 30
    assert space.shortage(99, 100, gib, 0) is None
    assert space.shortage(100, 100, gib, 0) == "the database has 100 bytes, and its quota is 100"
    assert space.shortage(100, None, gib, 0) is None
    assert space.shortage(0, None, space.RESERVE_BYTES + 5, 5) is None
    assert space.shortage(0, None, space.RESERVE_BYTES + 4, 5) == f"the disk has {space.RESERVE_BYTES + 4} bytes left"


# compaction's pace


class CompactorUnderTest:
    def __init__(self, path: Path, keys: int, batch_limit: int = 1000, sleep_interval_s: float = 0.01) -> None:
        self.store = StoreUnderTest(path)
        for number in range(2 * keys):
            self.store.put(b"%d" % (number % keys))
        self.store.commit()
        self.links = FakeLinks(Process.APPLY)
        self.outbox = Outbox(self.links.outlet, self.links.send)
        self.clock = Clock()
        self.log = Lines()
        self.compactor = Compactor(
            self.store.store.compaction,
            self.outbox,
            ApplyFigures(),
            self.clock,
            self.log.logger,
            batch_limit=batch_limit,
            sleep_interval_s=sleep_interval_s,
        )

    def run_to_end(self) -> tuple[int, float]:
        """(slices, seconds waited) until nothing is due."""
        slices = 0
        began = self.clock.now_s
        while (due_at := self.compactor.due_at) is not None:
            self.clock.now_s = max(self.clock.now_s, due_at)
            self.compactor.run()
            slices += 1
        self.outbox.flush()
        return slices, self.clock.now_s - began

    def close(self) -> None:
        self.store.store.close()


@pytest.mark.parametrize("batch_limit", [1000, 50, 1])
def test_C6_so_many_rows_are_followed_by_a_pause_in_all(tmp_path: Path, batch_limit: int) -> None:
    under_test = CompactorUnderTest(tmp_path / "db", 300, batch_limit=batch_limit)
    under_test.store.compact(601)
    under_test.store.commit()
    slices, waited_s = under_test.run_to_end()
    rows = min(batch_limit, MOST_ROWS)
    assert slices >= 2 * 600 // rows, "the store is hashed first, then compacted"
    assert waited_s == pytest.approx(slices * 0.01 * rows / batch_limit, rel=0.2)
    assert under_test.store.store.compaction.finished_revision == 601
    under_test.close()


def test_slices_get_smaller_where_rows_take_long(tmp_path: Path) -> None:
    under_test = CompactorUnderTest(tmp_path / "db", 300)
    under_test.store.compact(601)
    under_test.store.commit()
    under_test.clock.step_s = 0.005
    for _ in range(5):
        under_test.compactor.run()
        due_at = under_test.compactor.due_at
        assert due_at is not None
        under_test.clock.now_s = due_at
    assert under_test.compactor._rows == MOST_ROWS // 32
    under_test.clock.step_s = 0.0
    under_test.run_to_end()
    assert under_test.compactor._rows == MOST_ROWS
    under_test.close()


def test_C7_a_physical_compaction_is_answered_when_its_rows_are_gone(tmp_path: Path) -> None:
    under_test = CompactorUnderTest(tmp_path / "db", 100)
    compactor, store = under_test.compactor, under_test.store
    store.compact(50)
    compactor.wait(FRONT, 1, b"first")
    store.compact(60)
    compactor.wait(FRONT, 2, b"second")
    compactor.run()
    assert store.store.compaction.finished_revision == -1, "not before it is committed"
    store.commit()
    under_test.outbox.flush()
    executed = answers(under_test.links.take(FRONT, Kind.REPLIES))
    assert executed == [(1, MORE, b""), (2, MORE, b"")], "the front knows that they are not lost"
    answered: list[tuple[int, int]] = []
    while (due_at := compactor.due_at) is not None:
        under_test.clock.now_s = max(under_test.clock.now_s, due_at)
        compactor.run()
        under_test.outbox.flush()
        for sequence, code, _ in answers(under_test.links.take(FRONT, Kind.REPLIES)):
            assert code == 0
            answered.append((sequence, store.store.compaction.finished_revision))
    assert answered == [(1, 50), (2, 60)]
    under_test.close()


def test_a_slice_that_finds_the_disk_full_is_repeated(tmp_path: Path, writes: FailingWrites) -> None:
    under_test = CompactorUnderTest(tmp_path / "db", 100)
    under_test.store.compact(150)
    under_test.store.commit()
    compactor = under_test.compactor
    writes.error = Exception(FULL)
    while not under_test.log.has("cannot compact the database"):
        under_test.clock.now_s = compactor.due_at or 0.0
        compactor.run()
    assert compactor.due_at == under_test.clock.now_s + RETRY_S
    writes.error = None
    under_test.run_to_end()
    assert under_test.store.store.compaction.finished_revision == 150
    under_test.store.compact(160)
    under_test.store.commit()
    writes.error = Exception("Corruption")
    with pytest.raises(Exception, match="Corruption"):
        under_test.run_to_end()
    writes.error = None
    under_test.close()


def test_C8_a_compaction_goes_on_after_a_start(apply: ApplyUnderTest, tmp_path: Path) -> None:
    apply.lead()
    puts = [PutRequest(key=b"%d" % (number % 10)) for number in range(300)]
    apply.turn(apply.entries(normal(batch(*puts))))
    apply.turn(apply.entries(normal(batch(CompactionRequest(revision=301, physical=True), first=301))))
    while apply.apply._machine.busy or apply.apply._entries:  # on a slow machine the puts take more than a turn
        apply.turn()
    assert apply.apply._compactor.due_at is not None
    apply.answered()
    apply.close()
    again = ApplyUnderTest(tmp_path)
    assert again.apply._compactor.due_at is not None
    while again.apply._compactor.due_at is not None:
        again.turn()
    assert again.log.has("finished scheduled compaction")
    assert again.apply._store.compaction.finished_revision == 301
    again.close()
    apply.apply = ApplyUnderTest(tmp_path).apply  # for the fixture to close


def test_C7_over_the_shell(apply: ApplyUnderTest) -> None:
    apply.lead()
    apply.turn(apply.entries(normal(batch(PutRequest(key=b"a"), CompactionRequest(revision=2, physical=True)))))
    found = apply.answered()
    while not any(number == 2 and code == 0 for number, code, _ in found):
        apply.turn()
        found += apply.answered()
    assert CompactionResponse.FromString(found[-1][2]).header.revision == 2


def test_the_index_that_is_durable_is_told_to_raft(apply: ApplyUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "TICK_S", 0.0)
    monkeypatch.setattr("node.apply.flusher.FLUSH_REQUESTS", 2)
    apply.lead()
    apply.turn(apply.entries(normal(batch(PutRequest(key=b"a"), PutRequest(key=b"b")))))
    frames: list[bytes] = []
    while not frames:
        apply.turn()
        frames = apply.links.take(Process.RAFT, Kind.FLUSHED)
    assert FLUSHED.unpack_from(frames[0], HEADER_BYTES) == (3,)


# one long request


class FakeLifeline:
    def __init__(self) -> None:
        self.beats = 0

    def beat(self, _now_s: float) -> None:
        self.beats += 1


def test_work_that_takes_long_is_no_silence_and_idleness_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.apply.progress.INTERVAL_S", 0.001)
    lifeline = FakeLifeline()
    progress = Progress(cast(Lifeline, lifeline))
    with progress:
        wait_until(lambda: lifeline.beats > 2, "beats")
    before = lifeline.beats
    progress.close()
    assert lifeline.beats == before, "the loop beats for itself between two works"
