"""The replicated state machine: its determinism, whom it answers, and what it does when it must not go on."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.message import Message

from kvorum import errors
from kvorum.pb.internal_pb2 import ClusterVersion, Publish
from kvorum.pb.rpc_pb2 import (
    AlarmRequest,
    AlarmType,
    CompactionRequest,
    Compare,
    DeleteRangeRequest,
    LeaseGrantRequest,
    LeaseGrantResponse,
    LeaseRevokeRequest,
    PutRequest,
    PutResponse,
    TxnRequest,
)
from node.apply.machine import SLICE_BYTES, BrokenInvariant
from node.frames import Process
from node.raft.core.messages import EntryType
from node.requests import RECORD, Op, pack_batch, pack_record
from tests.apply.entries import (
    FRONT,
    INCARNATION,
    MEMBER,
    Entry,
    MachineUnderTest,
    batch,
    founding,
    frame,
    normal,
    replies,
)
from tests.apply.mvcc_store import DiskFullError, delete_op, put_op, range_op, txn_op


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[MachineUnderTest]:
    opened = MachineUnderTest(tmp_path / "db")
    yield opened
    opened.close()


def random_requests(choose: random.Random, count: int) -> list[Message]:
    """Requests as a front lets them through; some fail by the API's errors."""
    made: list[Message] = []
    for number in range(count):
        key = b"k%d" % choose.randrange(12)
        lease_id = choose.randrange(1, 5)
        kind = choose.randrange(9)
        if kind < 3:
            made.append(PutRequest(key=key, value=b"v%d" % number, lease=choose.choice([0, 0, lease_id])))
        elif kind == 3:
            made.append(DeleteRangeRequest(key=key, range_end=choose.choice([b"", b"\0", b"k5"]), prev_kv=True))
        elif kind == 4:
            compare = Compare(key=key, target=Compare.VERSION, version=1, result=Compare.GREATER)
            nested = txn_op([put_op(b"n", b"1")], [delete_op(b"n")], [compare])
            made.append(TxnRequest(compare=[compare], success=[put_op(key, b"t"), nested], failure=[range_op(key)]))
        elif kind == 5:
            made.append(LeaseGrantRequest(ID=lease_id, TTL=60))
        elif kind == 6:
            made.append(LeaseRevokeRequest(ID=lease_id))
        elif kind == 7:
            made.append(CompactionRequest(revision=choose.randrange(number + 2)))
        else:
            action = choose.choice([AlarmRequest.ACTIVATE, AlarmRequest.DEACTIVATE])
            made.append(AlarmRequest(action=action, memberID=MEMBER, alarm=AlarmType.NOSPACE))
    return made


def random_log(seed: int) -> list[Entry]:
    choose = random.Random(seed)
    log: list[Entry] = [founding(), normal()]
    log.append(normal(batch(Publish(member_id=MEMBER, name="m1", client_urls=["http://c:1"]))))
    log.append(normal(batch(ClusterVersion(version="3.7.0"))))
    sizes = [(choose.randrange(1, 6), choose.randrange(1, 6)) for _ in range(30)]
    return log + [normal(*[batch(*random_requests(choose, size)) for size in pair]) for pair in sizes]


@pytest.mark.parametrize("seed", range(4))
def test_the_same_entries_give_the_same_bytes_whatever_the_frames_and_crashes(tmp_path: Path, seed: int) -> None:
    """Invariant 3: one at a time, all at once, or cut by commits and crashes at any request."""
    log = random_log(seed)
    choose = random.Random(seed)
    one, all_, cut = (MachineUnderTest(tmp_path / name) for name in ("one", "all", "cut"))
    for entry in log:
        one.execute(entry)
    all_.execute(*log)
    while cut.machine.applied_index < len(log):
        done = cut.machine.applied_index
        cut.machine.load(frame(done + 1, *log[done:]))
        for _ in range(choose.randrange(1, 9)):
            ended = cut.machine.step()
            if choose.random() < 0.5:
                cut.commit()
            if ended:
                break
        cut.reopen()
    assert one.rows() == all_.rows()
    assert cut.rows() == one.rows()
    assert one.store.revision == all_.store.revision == cut.store.revision
    for machine in (one, all_, cut):
        machine.close()


@pytest.fixture
def tiny_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.apply.machine.SLICE_BYTES", 0)


@pytest.mark.usefixtures("tiny_slices")
@pytest.mark.parametrize("seed", range(3))
def test_a_crash_between_any_two_requests_of_an_entry_repeats_and_skips_nothing(tmp_path: Path, seed: int) -> None:
    """Invariant 2: the cursor counts the requests done within an entry."""
    log = random_log(seed)[:14]
    whole, cut = MachineUnderTest(tmp_path / "whole"), MachineUnderTest(tmp_path / "cut")
    whole.execute(*log)
    committed_inside = 0
    while cut.machine.applied_index < len(log):
        done = cut.machine.applied_index
        cut.machine.load(frame(done + 1, *log[done:]))
        cut.machine.step()
        committed_inside += cut.machine.cursor.requests_done > 0
        cut.commit()
        cut.reopen()
    assert committed_inside > 10
    assert cut.rows() == whole.rows()
    whole.close()
    cut.close()


def test_only_this_generations_own_requests_are_answered(machine: MachineUnderTest) -> None:
    """Invariant 4: by front, in order, each by its sequence."""
    put = PutRequest(key=b"a", value=b"1")
    machine.machine.load(
        frame(
            1,
            founding(),
            normal(
                batch(put, put, first=5),
                batch(put, member=MEMBER + 1),
                batch(put, incarnation=INCARNATION - 1),
                batch(put, origin=FRONT + 1, first=9),
                batch(put, origin=Process.APPLY, first=3),
            ),
        )
    )
    while not machine.machine.step():
        pass
    machine.commit()
    assert machine.store.revision == 7
    answered = {
        origin: [sequence for sequence, _, _ in replies(packed)] for origin, packed in machine.machine.replies.items()
    }
    assert answered == {FRONT: [5, 6], FRONT + 1: [9], Process.APPLY: [3]}


def test_long_entries_are_executed_in_slices(machine: MachineUnderTest) -> None:
    """Invariant 9. What was answered in one slice may be sent before the next."""
    value = bytes(1000)
    count = 10 * SLICE_BYTES // len(value)
    machine.machine.load(frame(1, normal(batch(*[PutRequest(key=b"%d" % i, value=value) for i in range(count)]))))
    slices = 0
    answered: list[int] = []
    while machine.machine.busy:
        machine.machine.step()
        machine.commit()
        answered += [sequence for sequence, _, _ in machine.take_replies()]
        slices += 1
    assert 10 <= slices <= 13
    assert answered == list(range(1, count + 1))
    assert machine.store.revision == 1 + count


def test_entries_come_without_a_gap(machine: MachineUnderTest) -> None:
    machine.machine.load(frame(2, normal()))
    with pytest.raises(AssertionError, match="entry 2 came after 0"):
        machine.machine.step()


def malformed(op: int, body: bytes, flags: int = 0) -> Entry:
    good = pack_record(Op.PUT, PutRequest(key=b"a").SerializeToString())
    bad = RECORD.pack(len(body), op, flags, 0) + body
    return 2, EntryType.NORMAL, pack_batch(FRONT, MEMBER, INCARNATION, 1, [good, bad])


@pytest.mark.parametrize(
    ("entry", "cause"),
    [
        (malformed(99, b""), "KeyError"),
        (malformed(Op.PUT, b"\xff"), "DecodeError"),
        (malformed(Op.PUT, b"", flags=1), "names a user"),
        (malformed(Op.LEASE_GRANT, b""), "the front chooses the id"),
    ],
    ids=["unknown op", "no protobuf", "a user", "an unchecked request"],
)
def test_what_must_not_happen_stops_the_machine_and_says_where(
    machine: MachineUnderTest, entry: Entry, cause: str
) -> None:
    """Invariant 5: never skipped."""
    machine.machine.load(frame(1, founding(), entry))
    with pytest.raises(BrokenInvariant, match=rf"entry 2, request 1 \(op \d+, \d+ bytes\): .*{cause}"):
        machine.machine.step()


def test_an_unknown_format_stops_the_machine(machine: MachineUnderTest) -> None:
    data = bytearray(batch(PutRequest(key=b"a")))
    data[4] = 2
    machine.machine.load(frame(1, (2, EntryType.NORMAL, bytes(data))))
    with pytest.raises(AssertionError, match="format 2"):
        machine.machine.step()


def test_a_failed_write_is_repeated_without_executing_again(machine: MachineUnderTest) -> None:
    machine.machine.load(frame(1, normal(batch(LeaseGrantRequest(ID=7, TTL=9), PutRequest(key=b"a", lease=7)))))
    assert machine.machine.step()
    machine.database.failures = 2
    for _ in range(2):
        with pytest.raises(DiskFullError):
            machine.store.commit(machine.machine.cursor)
    machine.commit()
    assert [code for _, code, _ in machine.take_replies()] == [0, 0]
    machine.reopen()
    assert machine.store.revision == 2
    assert list(machine.lessor.keys_of(7)) == [b"a"]
    assert machine.machine.applied_index == 1


def test_leases(machine: MachineUnderTest) -> None:
    """L4, L20, L21: through the log, with their headers."""
    code, body = machine.request(LeaseGrantRequest(ID=-5, TTL=60))
    grant = LeaseGrantResponse.FromString(body)
    assert (code, grant.ID, grant.TTL, grant.header.revision) == (0, -5, 60, 1)
    assert machine.request(LeaseGrantRequest(ID=-5, TTL=60)) == _refused(errors.LEASE_EXIST)
    machine.request(PutRequest(key=b"b", lease=-5))
    machine.request(PutRequest(key=b"a", lease=-5))
    code, body = machine.request(LeaseRevokeRequest(ID=-5))
    assert (code, PutResponse.FromString(body).header.revision) == (0, 4)
    assert machine.request(LeaseRevokeRequest(ID=-5)) == _refused(errors.LEASE_NOT_FOUND)
    assert machine.request(PutRequest(key=b"b", lease=-5)) == _refused(errors.LEASE_NOT_FOUND)
    assert (machine.machine.granted, machine.machine.revoked) == (1, 1)


def test_C7_a_physical_compaction_is_answered_by_whoever_runs_it(machine: MachineUnderTest) -> None:
    machine.request(PutRequest(key=b"a"))
    assert machine.execute(normal(batch(CompactionRequest(revision=1, physical=True), first=8))) == []
    assert machine.physical.waiting == [(FRONT, 8)]
    assert machine.request(CompactionRequest(revision=1, physical=True)) == _refused(errors.COMPACTED)
    foreign = normal(batch(CompactionRequest(revision=2, physical=True), member=1))
    assert machine.execute(foreign) == []
    assert machine.physical.waiting == [(FRONT, 8)], "another member's client waits there"


def _refused(status: errors.Status) -> tuple[int, bytes]:
    return status.code, status.message.encode()
