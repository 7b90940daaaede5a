"""Installing a snapshot, ended at every place: what was decided is there after the next starts, and nothing else is.

A member is two databases that hold a number (their index), a log that holds the index of its snapshot record, and the
real steps on real directories. `Faults` ends it before any step on the file system.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from node.apply.installed import install, remove_outgoing
from node.raft.snapshots import places
from node.raft.snapshots.places import DECIDED, RECEIVED, RECEIVING, Files, accept, decide, decided, place, settle

OLD, NEW, NEWER = 5, 100, 200


class Ended(Exception):
    """The member ended here."""


class Faults(Files):
    """The file system, until `left` steps are done. Syncs count, but are not waited for."""

    def __init__(self, left: int = 1 << 30) -> None:
        self.left = left

    def _step(self) -> None:
        if not self.left:
            raise Ended
        self.left -= 1

    def rename(self, old: str, new: str) -> None:
        self._step()
        super().rename(old, new)

    def sync(self, directory: str) -> None:
        self._step()
        assert Path(directory).is_dir()

    def remove(self, path: str) -> None:
        """File by file, so that it can be left half done."""
        directory = Path(path)
        if directory.exists():
            for file in sorted(directory.iterdir()):
                self._step()
                file.unlink()
            self._step()
            directory.rmdir()


class Member:
    """`member/db`, `member/snap`, and the log's newest snapshot record."""

    def __init__(self, directory: Path) -> None:
        self.db = directory / "member" / "db"
        self.snap = directory / "member" / "snap"
        self.snap.mkdir(parents=True)
        self.recorded = 0
        self.write(self.db, OLD)

    @staticmethod
    def write(directory: Path, index: int) -> None:
        """A database is whole when both of its files are there, and say the same."""
        directory.mkdir()
        for name in ("CURRENT", "000001.sst"):
            (directory / name).write_text(str(index))

    @staticmethod
    def read(directory: Path) -> int:
        return int({(directory / name).read_text() for name in ("CURRENT", "000001.sst")}.pop())

    def receive(self, index: int, files: Files) -> None:
        self.write(Path(place(str(self.snap), index, RECEIVING)), index)
        accept(str(self.snap), index, files)

    def commit(self, index: int, files: Faults) -> None:
        files._step()
        self.recorded = index
        decide(str(self.snap), index, files)

    def raft(self, files: Files) -> None:
        settle(str(self.snap), self.recorded, files)

    def apply(self, files: Files) -> int:
        """Returns the index of the database that was opened."""
        install(str(self.db), str(self.snap), files)
        assert self.db.exists(), "a start without a database"
        return self.read(self.db)

    def generation(self, files: Files, *, apply_first: bool) -> int | None:
        """One start: the index that is served, None when raft asks for another generation."""
        if apply_first:
            opened = self.apply(files)
            self.raft(files)
        else:
            self.raft(files)
            opened = self.apply(files)
        if opened >= self.recorded:
            return opened
        assert decided(str(self.snap), files) is not None, "the log begins behind a store that nothing replaces"
        return None

    def start(self, *, apply_first: bool) -> int:
        for _ in range(2):
            opened = self.generation(Faults(), apply_first=apply_first)
            if opened is not None:
                return opened
        raise AssertionError("two generations, and the snapshot is not installed")


def take_over(member: Member, files: Faults, *, apply_first: bool) -> None:
    member.receive(NEW, files)
    member.commit(NEW, files)
    while member.generation(files, apply_first=apply_first) is None:
        pass


ORDERS: Final = pytest.mark.parametrize("apply_first", [False, True])


@ORDERS
def test_a_snapshot_takes_the_place_of_the_database(tmp_path: Path, apply_first: bool) -> None:
    member = Member(tmp_path)
    take_over(member, Faults(), apply_first=apply_first)
    assert member.read(member.db) == NEW
    assert list(member.snap.iterdir()) == []


@ORDERS
def test_an_end_before_any_step_and_again_before_any_step_of_the_next_start(tmp_path: Path, apply_first: bool) -> None:
    pairs = 0
    decided_in = {False: 0, True: 0}
    first = 0
    while True:
        second = 0
        while True:
            member = Member(tmp_path / f"{first}-{second}")
            with pytest.raises(Ended):
                take_over(member, Faults(first), apply_first=apply_first)
            try:
                member.generation(Faults(second), apply_first=apply_first)
                finished = True
            except Ended:
                finished = False
            expected = NEW if member.recorded else OLD
            decided_in[bool(member.recorded)] += 1
            assert member.start(apply_first=apply_first) == expected
            assert list(member.snap.iterdir()) == []
            pairs += 1
            if finished:
                break
            second += 1
        first += 1
        try:
            take_over(Member(tmp_path / f"whole-{first}"), Faults(first), apply_first=apply_first)
        except Ended:
            continue
        break
    assert first > 10
    assert pairs > 50
    assert all(decided_in.values())


def test_the_old_database_serves_until_the_new_one_is_decided(tmp_path: Path) -> None:
    member = Member(tmp_path)
    files = Faults()
    member.receive(NEW, files)
    assert member.apply(files) == OLD
    member.commit(NEW, files)
    assert member.read(member.db) == OLD


def test_an_old_generation_that_lives_on_does_not_meet_the_new_database(tmp_path: Path) -> None:
    """Apply may open the old database just before raft completes what it had decided: the next generation has it."""
    member = Member(tmp_path)
    files = Faults()
    member.receive(NEW, files)
    member.recorded = NEW
    assert member.generation(files, apply_first=True) is None
    assert decided(str(member.snap), files) == NEW
    assert member.generation(files, apply_first=True) == NEW


def test_a_snapshot_without_a_record_is_removed_at_the_start(tmp_path: Path) -> None:
    member = Member(tmp_path)
    member.receive(NEW, Faults())
    member.write(Path(place(str(member.snap), NEWER, RECEIVING)), NEWER)
    member.recorded = 3  # of a compaction long ago
    assert member.start(apply_first=False) == OLD
    assert list(member.snap.iterdir()) == []


def test_a_refused_snapshot_half_removed_is_never_whole(tmp_path: Path) -> None:
    """The log may later have a record of the same index: that of a compaction."""
    steps = 0
    while True:
        member = Member(tmp_path / str(steps))
        member.receive(NEW, Faults())
        try:
            places.refuse(str(member.snap), NEW, Faults(steps))
            break
        except Ended:
            steps += 1
        catch_up(member.db, NEW)
        member.recorded = NEW
        assert member.start(apply_first=True) == NEW
        assert member.start(apply_first=False) == NEW
    assert steps == 5
    assert list(member.snap.iterdir()) == []


def catch_up(db: Path, index: int) -> None:
    """The member's own database has got as far."""
    for file in db.iterdir():
        file.write_text(str(index))


def test_only_the_newest_of_several_is_installed(tmp_path: Path) -> None:
    steps = 0
    while True:
        member = Member(tmp_path / str(steps))
        for index in (NEW, NEWER):
            member.write(Path(place(str(member.snap), index, DECIDED)), index)
        member.recorded = NEWER
        try:
            install(str(member.db), str(member.snap), Faults(steps))
            break
        except Ended:
            steps += 1
        assert member.start(apply_first=True) == NEWER
        assert list(member.snap.iterdir()) == []
    assert member.read(member.db) == NEWER


def test_a_decided_snapshot_that_comes_twice_is_not_renamed_onto_itself(tmp_path: Path) -> None:
    member = Member(tmp_path)
    for suffix in (RECEIVED, DECIDED):
        member.write(Path(place(str(member.snap), NEW, suffix)), NEW)
    member.recorded = NEW
    assert member.start(apply_first=False) == NEW
    assert list(member.snap.iterdir()) == []


def test_names_of_others_are_left_alone(tmp_path: Path) -> None:
    member = Member(tmp_path)
    kept = ["0000000000000064.DB", "64.db", "0000000000000064.db.bak", "x0000000000000064.receiving", "README"]
    for name in kept:
        (member.snap / name).mkdir()
    assert member.start(apply_first=False) == OLD
    assert sorted(path.name for path in member.snap.iterdir()) == sorted(kept)


def test_checkpoints_of_the_last_generation_are_removed(tmp_path: Path) -> None:
    member = Member(tmp_path)
    for name in ("outgoing-1", "outgoing-2.tmp"):
        member.write(member.snap / name, OLD)
    (member.snap / "other").mkdir()
    remove_outgoing(str(member.snap), Files())
    assert [path.name for path in member.snap.iterdir()] == ["other"]


def test_a_member_that_has_never_snapped_has_no_directory(tmp_path: Path) -> None:
    files = Files()
    nowhere = str(tmp_path / "snap")
    settle(nowhere, 0, files)
    remove_outgoing(nowhere, files)
    assert decided(nowhere, files) is None
    assert install(str(tmp_path / "db"), nowhere, files) is None


@pytest.mark.parametrize("step", [accept, decide, places.refuse])
def test_the_disk_s_refusal_is_raised(tmp_path: Path, step: Callable[[str, int, Files], None]) -> None:
    with pytest.raises(FileNotFoundError):
        step(str(tmp_path), NEW, Files())
