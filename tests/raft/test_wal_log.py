"""The open log: what was appended is there again after it is closed, in segments that come and go."""

import errno
import gc
import os
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.raft.wal.disk import DiskDirectory
from node.raft.wal.errors import Compacted, LogDamaged, LogError, LogFull, LogLocked
from node.raft.wal.log import TornTail, WriteAheadLog, holds_log
from node.raft.wal.record import Entry, HardState, Snapshot, record_size
from node.raft.wal.replay import NO_HARD_STATE, NO_SNAPSHOT
from tests.raft.simulated_disk import SimulatedDirectory, SimulatedDisk
from tests.raft.wal_logs import METADATA, SMALL, content, create, entry, everything, reopen


class TestOnTheRealDisk:
    def test_room_that_is_not_enough_is_not_taken_for_a_moment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def nearly_full(fd: int) -> os.statvfs_result:
            return os.statvfs_result((4096, 4096, 1000, 10, 9, 0, 0, 0, 0, 255))

        monkeypatch.setattr(os, "fstatvfs", nearly_full)
        WriteAheadLog.create(DiskDirectory(tmp_path / "fits"), METADATA, segment_bytes=9 * 4096).close()
        with closing(DiskDirectory(tmp_path / "large")) as directory, pytest.raises(LogFull):
            monkeypatch.setattr(os, "posix_fallocate", lambda *_: pytest.fail("took what there was"))
            WriteAheadLog.create(directory, METADATA, segment_bytes=9 * 4096 + 1)
        assert list((tmp_path / "large").iterdir()) == []

    def test_files_are_named_sized_and_private(self, tmp_path: Path) -> None:
        """SL11, SL12."""
        path = tmp_path / "member" / "wal"
        with WriteAheadLog.create(DiskDirectory(path), METADATA) as log:
            log.prepare_segment()
            assert sorted(path.iterdir()) == [path / "0.tmp", path / "0000000000000000-0000000000000001.wal"]
            for file in path.iterdir():
                assert file.stat().st_size == 64_000_000
                assert file.stat().st_blocks * 512 >= 64_000_000  # preallocated, not only long
                assert file.stat().st_mode & 0o777 == 0o600
        assert path.stat().st_mode & 0o777 == 0o700

    def test_what_was_appended_is_there_again(self, tmp_path: Path) -> None:
        entries = [entry(index, size=5000) for index in range(1, 101)]
        with WriteAheadLog.create(DiskDirectory(tmp_path), METADATA, segment_bytes=110_000) as log:
            for begin in range(0, 100, 10):
                log.append(entries[begin : begin + 10], HardState(1, 7, begin))
                log.sync()
                log.prepare_segment()
            assert log.segment_count == 5
        directory = DiskDirectory(tmp_path)
        assert holds_log(directory)
        with WriteAheadLog.open(directory, segment_bytes=110_000, cache_bytes=0) as log:
            assert (log.metadata, log.hard_state, log.snapshot) == (METADATA, HardState(1, 7, 90), NO_SNAPSHOT)
            assert (log.first_index, log.last_index, log.torn, log.ignored) == (1, 100, None, ())
            assert everything(log) == entries

    def test_more_parts_than_one_system_call_takes(self, tmp_path: Path) -> None:
        entries = [entry(index, size=9) for index in range(1, 1001)]
        with WriteAheadLog.create(DiskDirectory(tmp_path), METADATA, segment_bytes=1 << 20) as log:
            written = log.append(entries)
            assert written == 1000 * record_size(24 + 9)
        with WriteAheadLog.open(DiskDirectory(tmp_path), segment_bytes=1 << 20, cache_bytes=0) as log:
            assert everything(log) == entries

    def test_a_write_that_the_kernel_cuts_short_goes_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = os.pwritev

        def half(fd: int, parts: list[bytes], offset: int) -> int:
            data = b"".join(parts)
            return whole(fd, [data[: len(data) // 2]], offset)

        with WriteAheadLog.create(DiskDirectory(tmp_path), METADATA, segment_bytes=SMALL) as log:
            monkeypatch.setattr(os, "pwritev", half)
            log.append([entry(1), entry(2)])
        with WriteAheadLog.open(DiskDirectory(tmp_path), segment_bytes=SMALL) as log:
            assert everything(log) == [entry(1), entry(2)]

    def test_the_directory_is_locked(self, tmp_path: Path) -> None:
        """SL15: whoever opens it again is told, and may try until it is free."""
        log = WriteAheadLog.create(DiskDirectory(tmp_path), METADATA, segment_bytes=SMALL)
        with log, pytest.raises(LogLocked, match="is locked by another process"):
            DiskDirectory(tmp_path)
        DiskDirectory(tmp_path).close()

    def test_a_torn_file_is_cut_on_disk(self, tmp_path: Path) -> None:
        with WriteAheadLog.create(DiskDirectory(tmp_path), METADATA, segment_bytes=SMALL) as log:
            log.append([entry(1)])
            end = log.append([entry(2)])
        file = tmp_path / "0000000000000000-0000000000000001.wal"
        used = len(file.read_bytes().rstrip(b"\0"))
        with file.open("r+b") as handle:
            handle.truncate(used - 5)
        with WriteAheadLog.open(DiskDirectory(tmp_path), segment_bytes=SMALL) as log:
            assert log.torn == TornTail(file.name, used - end)
            assert log.last_index == 1
            log.append([entry(2, term=2)])
        assert file.stat().st_size == SMALL
        with WriteAheadLog.open(DiskDirectory(tmp_path), segment_bytes=SMALL) as log:
            assert log.torn is None
            assert everything(log) == [entry(1), entry(2, term=2)]

    def test_names_that_are_no_segments_are_reported_and_left(self, tmp_path: Path) -> None:
        WriteAheadLog.create(DiskDirectory(tmp_path), METADATA, segment_bytes=SMALL).close()
        (tmp_path / "notes.wal").write_text("mine")
        with WriteAheadLog.open(DiskDirectory(tmp_path), segment_bytes=SMALL) as log:
            assert log.ignored == ("notes.wal",)
        assert (tmp_path / "notes.wal").exists()


class TestCreate:
    def test_a_new_log_is_empty(self, disk: SimulatedDisk) -> None:
        assert not holds_log(SimulatedDirectory(disk))
        with create(disk) as log:
            assert (log.first_index, log.last_index, log.last_term) == (1, 0, 0)
            assert (log.hard_state, log.snapshot) == (NO_HARD_STATE, NO_SNAPSHOT)
            assert log.term_of(0) == 0
            assert log.term_of(1) is None

    def test_it_may_begin_at_a_snapshot(self, disk: SimulatedDisk) -> None:
        snapshot = Snapshot(100, 3, b"voters")
        WriteAheadLog.create(SimulatedDirectory(disk), METADATA, snapshot=snapshot, segment_bytes=SMALL).close()
        assert "0000000000000000-0000000000000065.wal" in disk.entries
        with reopen(disk) as log:
            assert (log.first_index, log.last_index, log.last_term) == (101, 100, 3)
            assert log.snapshot == snapshot

    def test_not_over_a_log(self, disk: SimulatedDisk) -> None:
        create(disk).close()
        with pytest.raises(LogError, match="holds a log already"):
            create(disk)

    def test_not_from_nothing(self, disk: SimulatedDisk) -> None:
        with pytest.raises(LogError, match="holds no log"):
            reopen(disk)


class TestEntries:
    def test_a_later_entry_replaces_all_from_its_index_on(self, disk: SimulatedDisk) -> None:
        with create(disk) as log:
            log.append([entry(index) for index in range(1, 6)])
            log.append([entry(3, term=2)])
            assert (log.last_index, log.last_term) == (3, 2)
            assert everything(log) == [entry(1), entry(2), entry(3, term=2)]
        with reopen(disk) as log:
            assert everything(log) == [entry(1), entry(2), entry(3, term=2)]
            assert [log.term_of(index) for index in range(5)] == [0, 1, 1, 2, None]

    def test_also_across_segments(self, disk: SimulatedDisk) -> None:
        with create(disk, cache_bytes=0) as log:
            for index in range(1, 101):
                log.append([entry(index)])
            assert log.segment_count == 4
            log.append([entry(10, term=2), entry(11, term=2)])
            for index in range(12, 60):
                log.append([entry(index, term=2)])
            expected = [entry(index) for index in range(1, 10)] + [entry(index, term=2) for index in range(10, 60)]
            assert everything(log) == expected
        with reopen(disk, cache_bytes=0) as log:
            assert everything(log) == expected

    def test_a_gap_is_a_broken_invariant(self, disk: SimulatedDisk) -> None:
        with create(disk) as log, pytest.raises(AssertionError):
            log.append([entry(2)])

    def test_the_size_of_a_read_is_bounded_but_for_its_first_entry(self, disk: SimulatedDisk) -> None:
        one = record_size(24 + 100)
        for cache_bytes in (0, 1000, 1 << 20):
            with create(disk, cache_bytes=cache_bytes) as log:
                for index in range(1, 11):
                    log.append([entry(index)])
                for low in (1, 6, 9):
                    assert log.read(low, 11, 0) == [entry(low)]
                    assert log.read(low, 11, 2 * one - 1) == [entry(low)]
                    assert log.read(low, 11, 2 * one) == [entry(low), entry(low + 1)]
                    assert log.read(low, low + 1, 100 * one) == [entry(low)]
            disk.entries.clear()

    def test_a_read_of_old_entries_skips_replaced_ones(self, disk: SimulatedDisk) -> None:
        with create(disk, cache_bytes=0) as log:
            log.append([entry(1), entry(2), entry(3, size=1500)])
            log.append([entry(2, term=2), entry(3, term=2)])
            expected = [entry(1), entry(2, term=2), entry(3, term=2)]
            assert everything(log) == expected
            assert log.read(1, 4, 3 * record_size(24 + 100))[:1] == expected[:1]

    def test_the_cache_keeps_to_its_bound(self, disk: SimulatedDisk) -> None:
        with create(disk, cache_bytes=2000, segment_bytes=1 << 20) as log:
            for index in range(1, 1001):
                log.append([entry(index)])
                assert log._cache.size_bytes <= 2000
            assert log._cache.next_index == 1001
            assert log._cache.first_index == 996
            assert everything(log) == [entry(index) for index in range(1, 1001)]
            log.append([entry(1001, size=3000)])
            assert log._cache.size_bytes == 0
            log.append([entry(1002)])
            assert log.read(1001, 1003, 1 << 20) == [entry(1001, size=3000), entry(1002)]

    def test_a_batch_larger_than_a_segment_has_one_of_its_own(self, disk: SimulatedDisk) -> None:
        with create(disk) as log:
            log.append([entry(1)])
            log.append([entry(2, size=3 * SMALL), entry(3)])
            log.append([entry(4)])
            assert log.segment_count == 3
        with reopen(disk, cache_bytes=0) as log:
            assert everything(log) == [entry(1), entry(2, size=3 * SMALL), entry(3), entry(4)]

    def test_a_read_from_a_disk_that_changed_its_mind_is_damage(self, disk: SimulatedDisk) -> None:
        with create(disk, cache_bytes=0) as log:
            log.append([entry(1), entry(2)])
            place = bytes(content(disk)).index(entry(2)[3])
            content(disk)[place] ^= 1
            assert log.read(1, 2, 0) == [entry(1)]
            with pytest.raises(LogDamaged, match=r"0000-0000000000000001\.wal, offset \d+: a record with a wrong"):
                log.read(1, 3, 1 << 20)


class TestSegments:
    def test_each_begins_with_all_that_is_not_an_entry(self, disk: SimulatedDisk) -> None:
        with create(disk) as log:
            log.append([entry(index) for index in range(1, 11)], HardState(1, 9, 10))
            log.append_snapshot(Snapshot(10, 1, b"voters"))
            for index in range(11, 101):
                log.append([entry(index)])
            log.sync()
            assert log.release(10, 1) == []
            assert log.release(10, 0) == []
            log.append_snapshot(Snapshot(80, 1, b"voters"))
            log.sync()
            names = log.release(80, 1)
            assert len(names) == 3
            log.remove_released()
            assert not disk.entries.keys() & set(names)
            first = log.first_index
            assert 1 < first <= 81
            assert log.term_of(first - 1) == 1
            assert log.term_of(first - 2) is None
            with pytest.raises(Compacted):
                log.read(first - 1, 101, 1)
            assert everything(log) == [entry(index) for index in range(first, 101)]
        with reopen(disk) as log:
            assert (log.metadata, log.hard_state) == (METADATA, HardState(1, 9, 10))
            assert log.snapshot == Snapshot(80, 1, b"voters")
            assert log.first_index == first
            assert log.term_of(first - 1) == 1
            assert everything(log) == [entry(index) for index in range(first, 101)]

    def test_release_keeps_max_wals(self, disk: SimulatedDisk) -> None:
        """SL16."""
        with create(disk) as log:
            for index in range(1, 201):
                log.append([entry(index)])
            log.append_snapshot(Snapshot(200, 1, b""))
            log.sync()
            count = log.segment_count
            assert log.release(200, 0) == []
            assert len(log.release(200, 5)) == count - 5
            assert log.segment_count == 5
            operations: list[str] = []
            disk.before = lambda operation, name: operations.append(operation)
            log.remove_released()
            # Each for good before the next: else power loss could bring back one and not the one behind it.
            assert operations == ["remove", "sync"] * (count - 5)
            assert len(disk.entries) == 5

    def test_release_waits_until_its_snapshot_is_synced(self, disk: SimulatedDisk) -> None:
        with create(disk) as log:
            for index in range(1, 101):
                log.append([entry(index)])
            log.append_snapshot(Snapshot(100, 1, b""))
            assert log.release(100, 1) == []
            log.sync()
            assert log.release(100, 1) != []

    def test_released_files_go_when_they_can(self, disk: SimulatedDisk) -> None:
        with create(disk) as log:
            for index in range(1, 101):
                log.append([entry(index)])
            log.append_snapshot(Snapshot(100, 1, b""))
            log.sync()
            names = log.release(100, 1)

            def refuse(operation: str, name: str) -> None:
                if operation == "remove":
                    raise OSError(errno.EIO, "Input/output error")

            disk.before = refuse
            with pytest.raises(OSError, match="Input/output"):
                log.remove_released()
            assert disk.entries.keys() >= set(names)
            disk.before = lambda operation, name: None
            log.remove_released()
            assert not disk.entries.keys() & set(names)

    def test_entries_that_go_back_behind_a_released_segment(self, disk: SimulatedDisk) -> None:
        """The first segment left may begin with entries below its name: what they replaced is gone with the others."""
        with create(disk) as log:
            for index in range(1, 101):
                log.append([entry(index)])
                if index == 60:
                    log.append_snapshot(Snapshot(20, 1, b""))
            # The last segment holds 77 on; the leader of term 2 goes back to 70, and its log is compacted up to 90.
            for index in range(70, 100):
                log.append([entry(index, term=2)])
            log.append_snapshot(Snapshot(90, 2, b""))
            log.sync()
            log.release(90, 1)
            log.remove_released()
            assert everything(log) == [entry(index, term=2) for index in range(70, 100)]
        with reopen(disk) as log:
            assert everything(log) == [entry(index, term=2) for index in range(71, 100)]
            assert [log.term_of(index) for index in (69, 70, 90)] == [None, 2, 2]

    def test_the_next_segment_is_made_ahead(self, disk: SimulatedDisk) -> None:
        with create(disk) as log:
            log.prepare_segment()
            log.prepare_segment()
            operations: list[tuple[str, str]] = []
            disk.before = lambda operation, name: operations.append((operation, name))
            while log.segment_count == 1:
                operations.clear()
                log.append([entry(log.last_index + 1)])
            assert ("create", "0.tmp") not in operations
            assert "0.tmp" not in disk.entries
            first, second = sorted(disk.entries)
            # In this order: else power loss could leave a segment whose one before, or whose own head, is not whole.
            assert [call for call in operations if call[0] in ("sync", "rename")] == [
                ("sync", first),
                ("sync", "0.tmp"),
                ("rename", "0.tmp"),
                ("sync", "."),
            ]
            assert operations[-1] == ("write", second)

    def test_a_file_left_for_the_next_segment_is_made_anew(self, disk: SimulatedDisk) -> None:
        with create(disk) as log:
            log.prepare_segment()
        disk.entries["0.tmp"].content[:] = b"\xff" * SMALL
        with reopen(disk) as log:
            for index in range(1, 101):
                log.append([entry(index)])
        with reopen(disk) as log:
            assert log.last_index == 100


class TestSnapshots:
    def test_one_within_the_log_keeps_the_entries(self, disk: SimulatedDisk) -> None:
        with create(disk) as log:
            log.append([entry(index) for index in range(1, 11)])
            log.append_snapshot(Snapshot(5, 1, b"voters"))
            assert everything(log) == [entry(index) for index in range(1, 11)]
        with reopen(disk) as log:
            assert log.snapshot == Snapshot(5, 1, b"voters")
            assert everything(log) == [entry(index) for index in range(1, 11)]

    @pytest.mark.parametrize("snapshot", [Snapshot(50, 2, b"v"), Snapshot(5, 2, b"v")], ids=["newer", "other way"])
    def test_one_that_the_log_does_not_lead_to_begins_it_anew(self, disk: SimulatedDisk, snapshot: Snapshot) -> None:
        for cache_bytes in (0, 1 << 20):
            with create(disk, cache_bytes=cache_bytes) as log:
                log.append([entry(index) for index in range(1, 11)])
                log.append_snapshot(snapshot)
                assert (log.first_index, log.last_index) == (snapshot.index + 1, snapshot.index)
                assert log.term_of(snapshot.index) == 2
                assert log.term_of(snapshot.index - 1) is None
                log.append([entry(snapshot.index + 1, term=2)])
                assert everything(log) == [entry(snapshot.index + 1, term=2)]
            with reopen(disk, cache_bytes=cache_bytes) as log:
                assert log.snapshot == snapshot
                assert everything(log) == [entry(snapshot.index + 1, term=2)]
            disk.entries.clear()

    def test_one_that_does_not_fit_begins_a_segment(self, disk: SimulatedDisk) -> None:
        with create(disk) as log:
            log.append([entry(1)])
            log.append_snapshot(Snapshot(1, 1, b"v" * SMALL))
            assert log.segment_count == 2
        with reopen(disk) as log:
            assert log.snapshot == Snapshot(1, 1, b"v" * SMALL)

    def test_no_entry_at_or_below_it_can_be_replaced(self, disk: SimulatedDisk) -> None:
        with create(disk) as log:
            log.append([entry(1), entry(2)])
            log.append_snapshot(Snapshot(2, 1, b""))
            with pytest.raises(AssertionError):
                log.append([entry(2, term=2)])


Step = tuple[str, int, int]
steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 5), st.integers(0, 900)),
        st.tuples(st.just("go back"), st.integers(1, 12), st.integers(0, 300)),
        st.tuples(st.just("snapshot"), st.integers(0, 10), st.just(0)),
        st.tuples(st.just("install"), st.integers(1, 10), st.just(0)),
        st.tuples(st.just("release"), st.integers(0, 10), st.integers(0, 3)),
        st.tuples(st.just("reopen"), st.just(0), st.just(0)),
        st.tuples(st.just("prepare"), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(steps, st.sampled_from([0, 1500, 1 << 20]))
def test_against_a_list_of_entries(script: list[Step], cache_bytes: int) -> None:
    disk = SimulatedDisk()
    log = create(disk, cache_bytes=cache_bytes)
    term = 1
    model: dict[int, Entry] = {}
    last, snapshot, state = 0, NO_SNAPSHOT, NO_HARD_STATE
    for step, count, size in script:
        if step in ("append", "go back"):
            first = last + 1
            if step == "go back":
                first = max(snapshot.index, last - count) + 1
                term, count = term + 1, 2
            entries = [entry(index, term, size) for index in range(first, first + count)]
            state = HardState(term, 1, snapshot.index)
            log.append(entries, state)
            last = first + count - 1
            model = {index: kept for index, kept in model.items() if index < first} | {e[1]: e for e in entries}
        elif step == "snapshot":
            index = max(snapshot.index, last - count)
            snapshot = Snapshot(index, log.term_of(index) or 0, b"conf %d" % index)
            log.append_snapshot(snapshot)
            log.sync()
        elif step == "install":
            term += 1
            last += count
            snapshot = Snapshot(last, term, b"conf")
            log.append_snapshot(snapshot)
            model = {}
        elif step == "release":
            log.release(max(0, snapshot.index - count), size)
            log.remove_released()
        elif step == "reopen":
            log.close()
            log = reopen(disk, cache_bytes=cache_bytes)
            assert log.torn is None
        else:
            log.prepare_segment()
        assert log.last_index == last
        assert log.first_index <= snapshot.index + 1
        assert (log.snapshot, log.hard_state) == (snapshot, state)
        assert everything(log) == [model[index] for index in range(log.first_index, last + 1)]
        for index in range(log.first_index, last + 1):
            assert log.term_of(index) == model[index][0]
        assert log.term_of(snapshot.index) == snapshot.term
    log.close()
    assert not disk.open_files


def test_appending_leaves_no_cyclic_garbage(disk: SimulatedDisk) -> None:
    with create(disk, cache_bytes=2000, segment_bytes=1 << 20) as log:
        gc.collect()
        gc.disable()
        try:
            for index in range(1, 101):
                log.append([entry(index)], HardState(1, 1, index))
                log.sync()
                log.read(max(1, index - 50), index + 1, 1 << 20)
            assert gc.collect() == 0
        finally:
            gc.enable()
