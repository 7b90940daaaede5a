"""The log when its disk fails it: no room, writes and syncs that fail, and a log that is not synced at all."""

import errno

import pytest

from node.raft.wal.errors import LogFailed, LogFull
from node.raft.wal.log import WriteAheadLog
from node.raft.wal.record import HardState, Snapshot
from node.raft.wal.replay import NO_SNAPSHOT
from tests.raft.simulated_disk import SimulatedDirectory, SimulatedDisk
from tests.raft.wal_logs import METADATA, SMALL, content, create, entry, everything, reopen


def test_no_room_for_a_segment_refuses_and_goes_on(disk: SimulatedDisk) -> None:
    disk.free_bytes = SMALL + 100
    with create(disk) as log:
        with pytest.raises(LogFull, match="No space left"):
            log.prepare_segment()
        assert "0.tmp" not in disk.entries
        while log.segment_count == 1:
            try:
                log.append([entry(log.last_index + 1)], HardState(1, 1, log.last_index))
            except LogFull:
                break
        last, state = log.last_index, log.hard_state
        assert last > 10
        with pytest.raises(LogFull):
            log.append([entry(last + 1)], HardState(5, 5, 5))
        with pytest.raises(LogFull):
            log.append_snapshot(Snapshot(last, 1, bytes(SMALL)))
        assert (log.last_index, log.hard_state, log.snapshot) == (last, state, NO_SNAPSHOT)
        assert "0.tmp" not in disk.entries
        log.sync()
        assert everything(log) == [entry(index) for index in range(1, last + 1)]
        disk.free_bytes = 10 * SMALL
        log.append([entry(last + 1)])
    with reopen(disk) as log:
        assert everything(log) == [entry(index) for index in range(1, last + 2)]


def test_a_prepared_segment_too_small_for_the_batch(disk: SimulatedDisk) -> None:
    disk.free_bytes = 2 * SMALL + 100
    with create(disk) as log:
        log.prepare_segment()
        with pytest.raises(LogFull):
            log.append([entry(1, size=SMALL)])
        log.append([entry(1)])
    with reopen(disk) as log:
        assert everything(log) == [entry(1)]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_no_room_in_a_write_leaves_no_trace(disk: SimulatedDisk, code: int) -> None:
    """A file system that copies on write may have no room in spite of fallocate."""
    with create(disk) as log:
        log.append([entry(1)])
        used = bytes(content(disk))

        def refuse(operation: str, name: str) -> None:
            if operation == "write":
                raise OSError(code, "No space left on device")

        disk.before = refuse
        with pytest.raises(LogFull):
            log.append([entry(2, size=1000)], HardState(1, 1, 1))
        assert content(disk) == used
        disk.before = lambda operation, name: None
        log.append([entry(2)])
    with reopen(disk) as log:
        assert everything(log) == [entry(1), entry(2)]


@pytest.mark.parametrize("failing", ["sync", "write", "truncate"])
def test_a_failed_sync_or_write_is_final(disk: SimulatedDisk, failing: str) -> None:
    with create(disk) as log:
        log.append([entry(1)])

        def refuse(operation: str, name: str) -> None:
            if operation == failing:
                raise OSError(errno.EIO, "Input/output error")
            if failing == "truncate" and operation == "write":
                raise OSError(errno.ENOSPC, "No space left on device")

        disk.before = refuse
        with pytest.raises(LogFailed, match=r"-0000000000000001\.wal: .*Input/output error"):
            if failing == "sync":
                log.sync()
            else:
                log.append([entry(2)])
        calls: list[str] = []
        disk.before = lambda operation, name: calls.append(operation)
        for call in (log.sync, lambda: log.append([entry(2)]), lambda: log.append_snapshot(NO_SNAPSHOT)):
            with pytest.raises(LogFailed):
                call()
        assert calls == []


def test_a_failed_write_leaves_no_half_record(disk: SimulatedDisk) -> None:
    """The member may start again when the disk works again."""
    with create(disk) as log:
        log.append([entry(1)])

        def refuse(operation: str, name: str) -> None:
            if operation == "write":
                raise OSError(errno.EIO, "Input/output error")

        disk.before = refuse
        with pytest.raises(LogFailed):
            log.append([entry(2)])
    disk.before = lambda operation, name: None
    with reopen(disk) as log:
        assert log.torn is None
        assert everything(log) == [entry(1)]


@pytest.mark.parametrize("failing", ["create", "allocate", "sync", "write", "rename"])
def test_a_failed_cut_is_final_but_for_room(disk: SimulatedDisk, failing: str) -> None:
    with create(disk) as log:

        def refuse(operation: str, name: str) -> None:
            if operation == failing and name == "0.tmp":
                raise OSError(errno.EIO, "Input/output error")

        disk.before = refuse
        with pytest.raises(LogFailed):
            for index in range(1, 101):
                log.append([entry(index)])
        last = log.last_index
    disk.before = lambda operation, name: None
    with reopen(disk) as log:
        assert everything(log) == [entry(index) for index in range(1, last + 1)]


def test_without_fsync_nothing_is_synced(disk: SimulatedDisk) -> None:
    """`--unsafe-no-fsync`."""
    operations: list[str] = []
    disk.before = lambda operation, name: operations.append(operation)
    directory = SimulatedDirectory(disk)
    with WriteAheadLog.create(directory, METADATA, segment_bytes=SMALL, fsync=False) as log:
        log.prepare_segment()
        for index in range(1, 101):
            log.append([entry(index)])
            log.sync()
        log.append_snapshot(Snapshot(100, 1, b""))
        log.sync()
        assert log.release(100, 2)
        log.remove_released()
    WriteAheadLog.open(directory, segment_bytes=SMALL, fsync=False).close()
    assert "sync" not in operations
    assert "write" in operations
