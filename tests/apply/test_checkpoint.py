"""Checkpoints for followers: what they hold, while writes go on and inside an entry; and what raft is told."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvorum.pb.internal_pb2 import MembershipState
from kvorum.pb.rpc_pb2 import HashKVRequest, HashKVResponse, PutRequest
from loadtest.launcher import wait_until
from node.apply.checkpoint import Checkpoints
from node.apply.contents import CheckpointError, Contents, read_apart, read_contents
from node.apply.host import Job
from node.apply.mvcc.database import Cursor
from node.apply.space import RESERVE_BYTES
from node.frames import CHECKPOINT
from node.raft.snapshots.places import OUTGOING
from tests.apply.entries import MachineUnderTest, batch, founding, frame, normal
from tests.apply.mvcc_store import finish
from tests.apply.shell import Lines

TIMEOUT_S = 20.0


def aside(name: str, work: Callable[[], None]) -> Job:
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread


def hash_kv(machine: MachineUnderTest) -> tuple[int, int]:
    reading = machine.store.begin_hash_kv(HashKVRequest().SerializeToString())
    reply = HashKVResponse.FromString(finish(reading, 1000))
    return reply.hash, reply.hash_revision


def puts(entry: int, count: int = 3, size: int = 100) -> bytes:
    requests = [PutRequest(key=b"k%d" % (i % 7), value=b"%d-%d " % (entry, i) * (size // 8)) for i in range(count)]
    return batch(*requests, first=entry * 1000)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[MachineUnderTest]:
    opened = MachineUnderTest(tmp_path / "db")
    yield opened
    opened.close()


class Answer:
    """A CHECKPOINT frame's payload."""

    def __init__(self, payload: bytes) -> None:
        self.number, self.index, self.term, length = CHECKPOINT.unpack_from(payload)
        end = CHECKPOINT.size + length
        self.text = payload[CHECKPOINT.size : end].decode()
        self.state = MembershipState.FromString(payload[end:])


class CheckpointsUnderTest:
    """What makes checkpoints of a machine's database; fakes beside it are set by the test."""

    def __init__(self, machine: MachineUnderTest, snap: Path) -> None:
        snap.mkdir(exist_ok=True)
        self.log = Lines()
        self.free_bytes = 1 << 40
        self.took: list[float] = []
        self.read: Callable[[str], Contents] = read_contents
        self.checkpoints = Checkpoints(
            machine.database,
            str(snap),
            self.log.logger,
            run_aside=aside,
            read=lambda path: self.read(path),
            now=iter(range(1000)).__next__,
            free_bytes=lambda: self.free_bytes,
            took=self.took.append,
        )

    def answer(self) -> Answer:
        found: list[bytes] = []

        def polled() -> bool:
            payload = self.checkpoints.poll()
            if payload is not None:
                found.append(payload)
            return bool(found)

        wait_until(polled, "the checkpoint", TIMEOUT_S)
        return Answer(found[0])


def test_a_checkpoint_says_what_it_holds(machine: MachineUnderTest, tmp_path: Path) -> None:
    machine.execute(founding(), normal(puts(2)), normal(puts(3), term=7))
    under_test = CheckpointsUnderTest(machine, tmp_path / "snap")
    assert under_test.checkpoints.poll() is None
    under_test.checkpoints.ask(4)
    assert under_test.checkpoints.busy
    answer = under_test.answer()
    assert not under_test.checkpoints.busy
    assert (answer.number, answer.index, answer.term) == (4, 3, 7)
    assert answer.text == str(tmp_path / "snap" / f"{OUTGOING}4")
    assert [member.ID for member in answer.state.members] == [member.ID for member in machine.membership.members()]
    assert under_test.took == [1]
    copy = MachineUnderTest(Path(answer.text))
    assert hash_kv(copy) == hash_kv(machine)
    copy.close()


def test_reading_changes_no_file(machine: MachineUnderTest, tmp_path: Path) -> None:
    machine.execute(founding(), normal(puts(2)))
    path = tmp_path / "checkpoint"
    machine.database.flush()
    machine.database.checkpoint(str(path))
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    contents = read_apart(str(path))
    assert (contents.index, contents.term) == (2, 2)
    assert MembershipState.FromString(contents.membership).members
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_writes_go_on_meanwhile(machine: MachineUnderTest, tmp_path: Path) -> None:
    """Every checkpoint is the store at exactly its cursor, whatever is written while it is made."""
    machine.execute(founding())
    under_test = CheckpointsUnderTest(machine, tmp_path / "snap")
    hashes = {1: hash_kv(machine)}
    seen = []
    for number in range(1, 4):
        under_test.checkpoints.ask(number)
        payload = None
        while payload is None:
            index = machine.machine.applied_index + 1
            machine.execute(normal(puts(index, count=20, size=4000)))
            hashes[index] = hash_kv(machine)
            payload = under_test.checkpoints.poll()
        answer = Answer(payload)
        copy = MachineUnderTest(Path(answer.text))
        assert copy.machine.cursor == Cursor(answer.index, 0, 2 if answer.index > 1 else 1)
        assert hash_kv(copy) == hashes[answer.index]
        copy.close()
        seen.append(answer.index)
    assert seen == sorted(seen)
    assert len(hashes) > len(seen) + 1, "nothing was written meanwhile"


def test_inside_an_entry_it_is_one_of_the_entry_before(machine: MachineUnderTest, tmp_path: Path) -> None:
    """Whoever starts from it resumes inside the next entry, and ends up with the same store."""
    machine.execute(founding(), normal(puts(2)))
    big = normal(puts(3, count=200, size=1000))
    machine.machine.load(frame(3, big))
    assert not machine.machine.step()
    machine.commit()
    cursor = machine.machine.cursor
    assert 0 < cursor.requests_done < 200
    under_test = CheckpointsUnderTest(machine, tmp_path / "snap")
    under_test.checkpoints.ask(1)
    answer = under_test.answer()
    assert (answer.index, answer.term) == (2, 2)
    while not machine.machine.step():
        pass
    machine.commit()
    copy = MachineUnderTest(Path(answer.text))
    assert copy.store.cursor == cursor
    copy.execute(big, normal(puts(4)))
    machine.execute(normal(puts(4)))
    assert hash_kv(copy) == hash_kv(machine)
    copy.close()


def test_asks_that_come_meanwhile_are_answered_by_the_newest(machine: MachineUnderTest, tmp_path: Path) -> None:
    machine.execute(founding())
    under_test = CheckpointsUnderTest(machine, tmp_path / "snap")
    go_on = threading.Event()

    def read(path: str) -> Contents:
        assert go_on.wait(TIMEOUT_S)
        return read_contents(path)

    under_test.read = read
    for number in (1, 2, 3):
        under_test.checkpoints.ask(number)
        assert under_test.checkpoints.poll() is None
    go_on.set()
    assert [under_test.answer().number for _ in range(2)] == [1, 3]
    assert not under_test.checkpoints.busy


def test_without_room_nothing_is_flushed(
    machine: MachineUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.execute(founding(), normal(puts(2)))
    under_test = CheckpointsUnderTest(machine, tmp_path / "snap")
    under_test.free_bytes = RESERVE_BYTES
    monkeypatch.setattr(machine.database, "flush", lambda: pytest.fail("flushed"))
    under_test.checkpoints.ask(1)
    answer = under_test.answer()
    assert (answer.number, answer.index, answer.term) == (1, 0, 0)
    assert answer.text.startswith(f"the disk has {RESERVE_BYTES} bytes left")
    assert under_test.log.has("cannot make a snapshot for a follower")
    assert list((tmp_path / "snap").iterdir()) == []
    assert under_test.took == []


def test_what_cannot_be_read_is_removed(machine: MachineUnderTest, tmp_path: Path) -> None:
    machine.execute(founding())
    under_test = CheckpointsUnderTest(machine, tmp_path / "snap")

    def read(path: str) -> Contents:
        (Path(path) / "CURRENT").write_text("MANIFEST-999999\n")
        return read_apart(path)

    under_test.read = read
    under_test.checkpoints.ask(9)
    answer = under_test.answer()
    assert (answer.number, answer.index) == (9, 0)
    assert "MANIFEST-999999" in answer.text
    assert list((tmp_path / "snap").iterdir()) == []


def test_a_directory_that_is_no_database_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty"):
        read_apart(str(tmp_path / "empty"))


def test_descriptors_are_closed(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(2):
        with pytest.raises(CheckpointError):
            read_apart(str(tmp_path / "none"))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
