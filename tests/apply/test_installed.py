"""Which database apply opens: its own, or the snapshot that raft decided on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from node.apply.host import CannotOpen, ProcessHost
from node.apply.lease import Lessor
from node.child import Role
from node.raft.snapshots.places import DECIDED, OUTGOING, RECEIVED, Files, place
from tests.apply.entries import MachineUnderTest, batch, founding, normal
from tests.apply.mvcc_store import IDENTITY
from tests.apply.shell import Lines, child_context


class HostUnderTest:
    """The surroundings of an apply process whose data lies in a directory."""

    def __init__(self, directory: Path) -> None:
        self.child = child_context(directory, Role.APPLY)
        self.log = Lines()
        self.db = Path(self.child.config.db_path)
        self.snap = Path(self.child.config.snap_path)
        self.snap.mkdir()
        self.host = ProcessHost(str(self.db), str(self.snap), self.child.lifeline, self.log.logger)

    def make(self, path: Path, entries: int) -> None:
        """A database as `entries` entries leave it."""
        machine = MachineUnderTest(path)
        machine.execute(founding(), *[normal(batch()) for _ in range(entries - 1)])
        machine.close()

    def opened(self) -> int:
        store = self.host.open_store(Lessor(), IDENTITY)
        index = store.cursor.index
        store.close()
        return index

    def close(self) -> None:
        self.host.close()
        self.child.lifeline.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[HostUnderTest]:
    opened = HostUnderTest(tmp_path)
    yield opened
    opened.close()


def test_its_own_when_nothing_else_was_decided(host: HostUnderTest) -> None:
    host.make(host.db, 3)
    host.make(Path(place(str(host.snap), 9, RECEIVED)), 9)
    (host.snap / f"{OUTGOING}1").mkdir()
    assert host.opened() == 3
    assert [path.name for path in host.snap.iterdir()] == ["0000000000000009.received"]


def test_the_snapshot_that_was_decided(host: HostUnderTest) -> None:
    host.make(host.db, 3)
    host.make(Path(place(str(host.snap), 9, DECIDED)), 9)
    assert host.opened() == 9
    assert host.log.has("installed a snapshot from the leader")
    assert list(host.snap.iterdir()) == []
    assert host.opened() == 9


def test_a_member_that_joins_has_no_database(host: HostUnderTest) -> None:
    host.make(Path(place(str(host.snap), 9, DECIDED)), 9)
    assert host.opened() == 9


def test_a_snapshot_that_holds_something_else_does_not_start(host: HostUnderTest) -> None:
    host.make(Path(place(str(host.snap), 9, DECIDED)), 8)
    with pytest.raises(CannotOpen, match="the snapshot of entry 9 holds entry 8 instead"):
        host.opened()


def test_a_disk_that_refuses_is_named(host: HostUnderTest, monkeypatch: pytest.MonkeyPatch) -> None:
    host.make(Path(place(str(host.snap), 9, DECIDED)), 9)

    def refuse(_files: Files, old: str, new: str) -> None:
        raise PermissionError(f"rename {old} {new}")

    monkeypatch.setattr(Files, "rename", refuse)
    with pytest.raises(CannotOpen, match="cannot install a snapshot: rename"):
        host.opened()
