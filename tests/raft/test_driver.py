"""Raft's driver for a sole voter, turn by turn, on a simulated disk and links in the test's hands."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvorum import errors
from kvorum.errors import Status
from kvorum.pb.rpc_pb2 import PutRequest
from node.child import ChildContext, Role
from node.frames import FLUSHED, HEADER_BYTES, LEADERSHIP, Kind, Process
from node.raft import driver
from node.raft.core.messages import EntryType
from node.raft.start import LogMismatch, open_log
from node.raft.wal.errors import LogDamaged, LogFailed, LogFull
from tests.apply.entries import MEMBER, batch
from tests.apply.shell import FRONT, Lines, child_context
from tests.raft.driver_group import KIB, SEGMENT_BYTES, RaftUnderTest, founded, proposal
from tests.raft.simulated_disk import SimulatedDisk


def refused(status: Status, *sequences: int) -> list[tuple[int, int, bytes]]:
    return [(sequence, status.code, status.message.encode()) for sequence in sequences]


@pytest.fixture
def child(tmp_path: Path) -> Iterator[ChildContext]:
    made = child_context(tmp_path, Role.RAFT, "--snapshot-count=10", "--snapshot-catchup-entries=2", "--max-wals=1")
    yield made
    made.lifeline.close()


@pytest.fixture
def disk() -> SimulatedDisk:
    return SimulatedDisk()


@pytest.fixture
def raft(child: ChildContext, disk: SimulatedDisk) -> Iterator[RaftUnderTest]:
    opened = RaftUnderTest(child, disk)
    yield opened
    opened.stop()


def test_it_leads_as_soon_as_apply_says_where_it_stands(raft: RaftUnderTest) -> None:
    raft.start()
    (membership, empty) = raft.entries()
    assert membership[:3] == (1, 1, EntryType.FOUNDING)
    assert empty == (2, 2, EntryType.NORMAL, b"")
    for receiver in (Process.APPLY, FRONT):
        told = [LEADERSHIP.unpack_from(data, HEADER_BYTES) for data in raft.links.take(receiver, Kind.LEADERSHIP)]
        assert told == [(2, MEMBER, 2, True)]


def test_invariant_1_entries_go_to_apply_once_they_are_on_disk(raft: RaftUnderTest, disk: SimulatedDisk) -> None:
    raft.start()
    raft.entries()
    operations: list[str] = []
    disk.before = lambda operation, _name: operations.append(f"{operation} {len(raft.links.sent)}")
    raft.propose(proposal(), proposal(first=2, sender=FRONT + 1))
    assert operations == [f"write {operations[0][-1]}", f"sync {operations[0][-1]}"], "one write, one sync, then sent"
    (entry,) = raft.entries()
    assert entry[0] == 3
    assert entry[3] == batch(PutRequest(key=b"k", value=b"\0")) + batch(
        PutRequest(key=b"k", value=b"\0"), origin=FRONT + 1, first=2
    )


def test_a_failed_fdatasync_ends_the_process(raft: RaftUnderTest, disk: SimulatedDisk) -> None:
    """Invariant 11: it is never retried, and nothing is sent that may not be on disk."""
    raft.start()
    raft.entries()

    def fail(operation: str, _name: str) -> None:
        if operation == "sync":
            raise OSError(errno.EIO, "Input/output error")

    disk.before = fail
    with pytest.raises(LogFailed, match="Input/output error"):
        raft.propose(proposal())
    assert raft.entries() == []
    disk.before = lambda _operation, _name: None


def test_without_credit_entries_stay_in_the_log_and_are_read_back(
    child: ChildContext, disk: SimulatedDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the segments' files too: far more than the cache holds, over several segments. In order, each once."""
    monkeypatch.setattr("node.raft.delivery.SEND_BYTES", 8 * KIB)
    raft = RaftUnderTest(child, disk, credit_bytes=1).start()
    assert len(raft.entries()) == 1, "one frame passes with any credit"
    for number in range(40):
        raft.propose(proposal(5 * KIB, first=1 + number))
    assert raft.entries() == []
    assert raft.wal.segment_count > 2
    indices: list[int] = []
    while not indices or indices[-1] < 42:
        raft.grant(10 * KIB)
        indices += [index for index, _, _, _ in raft.entries()]
    assert indices == list(range(2, 43))
    raft.grant(1 << 20)
    raft.propose(proposal())
    assert [index for index, _, _, _ in raft.entries()] == [43]
    raft.stop()


def test_a_frame_of_entries_read_back_is_bounded(
    child: ChildContext, disk: SimulatedDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.raft.delivery.SEND_BYTES", 8 * KIB)
    raft = RaftUnderTest(child, disk, credit_bytes=1).start()
    raft.entries()
    for number in range(20):
        raft.propose(proposal(3 * KIB, first=1 + number))
    raft.grant(1 << 20)
    frames = raft.links.sent[Process.APPLY, Kind.ENTRIES]
    assert len(frames) >= 10
    assert max(map(len, frames)) <= 9 * KIB
    raft.stop()


def test_beyond_its_backlog_it_refuses_and_recovers(
    child: ChildContext, disk: SimulatedDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 8: apply may stand still for hours (a full disk), and clients go on asking."""
    monkeypatch.setattr(driver, "MAX_BACKLOG_BYTES", 100 * KIB)
    raft = RaftUnderTest(child, disk, credit_bytes=1).start()
    raft.entries()
    logged = 0
    while not (answered := raft.refusals()):
        raft.propose(proposal(5 * KIB, first=1 + 3 * logged, count=3))
        logged += 1
    assert answered == refused(errors.REQUEST_TOO_MANY_REQUESTS, *range(3 * logged - 2, 3 * logged + 1))
    assert 6 <= logged <= 8
    assert raft.wal.last_index == 2 + logged - 1
    raft.grant(1 << 20)
    assert len(raft.entries()) == logged
    raft.propose(proposal(5 * KIB, first=99))
    assert [index for index, _, _, _ in raft.entries()] == [2 + logged]
    assert raft.refusals() == []
    raft.stop()


def test_a_backlog_that_is_worked_off_does_not_grow(
    child: ChildContext, disk: SimulatedDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while apply never quite catches up: what counts is what waits now."""
    monkeypatch.setattr(driver, "MAX_BACKLOG_BYTES", 100 * KIB)
    monkeypatch.setattr("node.raft.delivery.SEND_BYTES", 20 * KIB)
    raft = RaftUnderTest(child, disk, credit_bytes=1).start()
    executed = 1 + len(raft.entries())
    for number in range(110):
        raft.propose(proposal(5 * KIB, first=1 + number))
        if number >= 10:
            raft.grant(5 * KIB)
            executed += len(raft.entries())
            assert executed < raft.wal.last_index, "apply caught up"
    assert raft.refusals() == []
    assert executed > 80
    while executed < raft.wal.last_index:
        raft.grant(20 * KIB)
        executed += len(raft.entries())
    assert raft.driver._delivery.backlog_bytes == 0
    raft.stop()


def test_without_room_for_a_segment_proposals_are_refused_and_nothing_else_changes(
    child: ChildContext,
) -> None:
    disk = SimulatedDisk(free_bytes=SEGMENT_BYTES + KIB)
    raft = RaftUnderTest(child, disk).start()
    raft.entries()
    sequence = 1
    while not (answered := raft.refusals()):
        raft.propose(proposal(5 * KIB, first=sequence, count=2))
        sequence += 2
    assert answered == refused(errors.NO_SPACE, sequence - 2, sequence - 1)
    assert raft.wal.last_index
    assert raft.log.has("there is no room for the log")
    raft.propose(proposal(5 * KIB, first=7, sender=Process.APPLY), proposal(5 * KIB, first=9, sender=FRONT + 1))
    assert raft.refusals(Process.APPLY) == refused(errors.NO_SPACE, 7), "also what apply proposes itself"
    assert raft.refusals(FRONT + 1) == refused(errors.NO_SPACE, 9)
    indices = [index for index, _, _, _ in raft.entries()]
    disk.free_bytes = 1 << 20
    raft.propose(proposal(5 * KIB))
    indices += [index for index, _, _, _ in raft.entries()]
    assert indices == list(range(3, raft.wal.last_index + 1)), "no index was lost or used twice"
    raft.stop()


def test_without_room_at_the_start_it_leads_as_soon_as_there_is_some(child: ChildContext) -> None:
    disk = SimulatedDisk(free_bytes=SEGMENT_BYTES + KIB)
    before = RaftUnderTest(child, disk).start()
    with pytest.raises(LogFull):
        while True:
            before.wal.append([(2, before.wal.last_index + 1, EntryType.NORMAL, b"")])
    before.stop()
    last = before.wal.last_index
    raft = RaftUnderTest(child, disk.killed())
    raft.disk.free_bytes = KIB
    raft.start(index=2, term=2, membership=founded())
    raft.driver.tick()
    assert not any(solo for _, _, _, solo in raft.leadership())
    assert raft.log.has("there is no room for the log")
    assert raft.wal.last_index == last
    raft.disk.free_bytes = 1 << 20
    raft.clock.now_s += 1
    raft.driver.tick()
    assert raft.leadership()[-1] == (3, MEMBER, last + 1, True)
    assert [index for index, _, _, _ in raft.entries()] == list(range(3, last + 2))
    raft.driver.tick()
    assert not raft.links.take(Process.APPLY, Kind.LEADERSHIP), "once"
    raft.stop()


@pytest.fixture
def left(child: ChildContext, disk: SimulatedDisk) -> SimulatedDisk:
    """The log of a member that stopped: 30 entries of term 2."""
    raft = RaftUnderTest(child, disk).start()
    for number in range(28):
        raft.propose(proposal(4 * KIB, first=1 + number))
    raft.stop()
    return disk.killed()


def test_after_a_start_apply_gets_all_that_it_lacks(child: ChildContext, left: SimulatedDisk) -> None:
    raft = RaftUnderTest(child, left).start(index=17, term=2, membership=founded())
    assert [(index, term) for index, term, _, _ in raft.entries()] == [(n, 2) for n in range(18, 31)] + [(31, 3)]
    assert raft.leadership()[-1] == (3, MEMBER, 31, True)
    raft.stop()


@pytest.mark.parametrize(
    ("index", "term", "fault"),
    [
        (31, 2, "ends at entry 30"),
        (20, 3, "has that entry with term 2"),
        (1, 2, "has that entry with term 1"),
    ],
)
def test_a_store_that_does_not_belong_to_the_log_is_refused(
    child: ChildContext, left: SimulatedDisk, index: int, term: int, fault: str
) -> None:
    """The message names both files."""
    raft = RaftUnderTest(child, left)
    with pytest.raises(LogMismatch) as refusal:
        raft.start(index, term)
    message = str(refusal.value)
    assert f"/member/db stands at entry {index} of term {term}, but the log " in message
    assert f"/member/wal {fault}: " in message
    raft.stop()


def test_segments_are_released_up_to_what_the_store_has_on_disk(child: ChildContext, left: SimulatedDisk) -> None:
    """Invariant 2: never past the flushed index; and some entries are kept for members that follow."""
    raft = RaftUnderTest(child, left).start(index=0)
    raft.entries()
    segments = raft.wal.segment_count
    raft.tell(Kind.FLUSHED, FLUSHED.pack(9))
    assert raft.wal.snapshot.index == 0, "--snapshot-count"
    raft.tell(Kind.FLUSHED, FLUSHED.pack(29))
    assert (raft.wal.snapshot.index, raft.wal.snapshot.term) == (29, 2)
    assert raft.wal.segment_count < segments
    assert raft.wal.first_index <= 28
    figures = raft.driver.state()["metrics"]
    for series in ("etcd_snap_fsync", "etcd_debugging_snap_save_total", "etcd_debugging_snap_save_marshalling"):
        assert figures[f"{series}_duration_seconds"]["count"] == 1
    raft.stop()
    again = RaftUnderTest(child, left.killed())
    with pytest.raises(LogMismatch, match=r"stands at entry 0 of term 0, but the log .* begins with entry"):
        again.start(index=0)
    again.stop()
    once_more = RaftUnderTest(child, left.killed()).start(index=29, term=2, membership=founded())
    assert [index for index, _, _, _ in once_more.entries()] == [30, 31, 32]
    once_more.stop()


def test_a_snapshot_that_finds_no_room_is_taken_later(child: ChildContext, left: SimulatedDisk) -> None:
    raft = RaftUnderTest(child, left).start(index=0)
    raft.disk.free_bytes = 0
    with pytest.raises(LogFull):
        while True:
            raft.wal.append((), raft.wal.hard_state)
    raft.tell(Kind.FLUSHED, FLUSHED.pack(29))
    assert raft.wal.snapshot.index == 0
    assert raft.log.has("cannot compact Raft logs")
    raft.disk.free_bytes = 1 << 20
    raft.tell(Kind.FLUSHED, FLUSHED.pack(30))
    assert raft.wal.snapshot.index == 30
    raft.stop()


def test_the_log_of_another_member_is_refused_and_both_are_named(tmp_path: Path, child: ChildContext) -> None:
    log = open_log(child, Lines().logger)
    log.close()
    path = Path(child.config.wal_path)
    other = child_context(tmp_path / "other", Role.RAFT, f"--wal-dir={path}")
    object.__setattr__(other, "member_id", 0xABC)
    with pytest.raises(LogMismatch) as refusal:
        open_log(other, Lines().logger)
    assert f"the log {path} is that of member {MEMBER:x} of cluster 7" in str(refusal.value)
    assert f"{tmp_path / 'other'} is that of member abc of cluster 7" in str(refusal.value)
    open_log(child, Lines().logger).close()
    other.lifeline.close()


def test_damage_in_the_log_is_told_with_its_place(child: ChildContext, left: SimulatedDisk) -> None:
    name = min(name for name in left.entries if name.endswith(".wal"))
    left.entries[name].content[3000] ^= 1
    with pytest.raises(LogDamaged, match=f"{name}, offset "):
        RaftUnderTest(child, left)


def test_proposals_that_come_before_the_start_wait_for_it(raft: RaftUnderTest) -> None:
    raft.propose(proposal())
    assert raft.entries() == []
    raft.start()
    assert [index for index, _, _, _ in raft.entries()] == [1, 2, 3]
