"""What a log holds after the power went, a file was cut or a bit flipped: all that was synced, or a refusal."""

import random
import threading
from collections.abc import Callable
from copy import deepcopy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.raft.wal.errors import LogDamaged
from node.raft.wal.log import WriteAheadLog
from node.raft.wal.record import Entry, HardState, Snapshot
from node.raft.wal.replay import NO_HARD_STATE, NO_SNAPSHOT
from tests.raft.simulated_disk import SimulatedDisk
from tests.raft.wal_logs import METADATA, content, create, entry, everything, reopen

State = tuple[int, tuple[Entry, ...], HardState, Snapshot]


def state_of(log: WriteAheadLog) -> State:
    """(last index, entries behind the snapshot, hard state, snapshot)."""
    entries = tuple(e for e in everything(log) if e[1] > log.snapshot.index)
    return log.last_index, entries, log.hard_state, log.snapshot


class History:
    """Every state that the log went through, record by record, from the last sync on."""

    def __init__(self) -> None:
        self.states: list[State] = [(0, (), NO_HARD_STATE, NO_SNAPSHOT)]

    def entry(self, new: Entry) -> None:
        _, entries, hard_state, snapshot = self.states[-1]
        entries = (*(e for e in entries if e[1] < new[1]), new)
        self.states.append((new[1], entries, hard_state, snapshot))

    def hard_state(self, new: HardState) -> None:
        last, entries, _, snapshot = self.states[-1]
        self.states.append((last, entries, new, snapshot))

    def snapshot(self, new: Snapshot) -> None:
        last, entries, hard_state, old = self.states[-1]
        leads_there = (new.term, new.index) in [(old.term, old.index), *(e[:2] for e in entries)]
        kept = tuple(e for e in entries if e[1] > new.index) if leads_there else ()
        self.states.append((last if leads_there else new.index, kept, hard_state, new))

    def synced(self) -> None:
        del self.states[:-1]

    def survived(self, state: State) -> None:
        assert state in self.states
        self.states = [state]


def written_log(sizes: list[int], *, segment_bytes: int = 1 << 16) -> tuple[SimulatedDisk, list[int]]:
    """A log of entries of these sizes, each synced before the next; (disk, where each record begins, then the end)."""
    disk = SimulatedDisk()
    with create(disk, segment_bytes=segment_bytes) as log:
        offsets = [len(content(disk).rstrip(b"\0"))]
        for index, size in enumerate(sizes, 1):
            offsets.append(offsets[-1] + log.append([entry(index, size=size)]))
            log.sync()
    return disk, offsets


def test_every_cut_of_the_file_opens_with_exactly_the_whole_records() -> None:
    sizes = [10, 700, 1300, 0, 33]
    disk, offsets = written_log(sizes)
    for cut in range(offsets[0], offsets[-1] + 1):
        after = deepcopy(disk)
        del content(after)[cut:]
        whole = sum(offset <= cut for offset in offsets[1:])
        with reopen(after) as log:
            assert everything(log) == [entry(index, size=sizes[index - 1]) for index in range(1, whole + 1)]
            if cut == offsets[whole]:
                assert log.torn is None
            else:
                assert log.torn == ("0000000000000000-0000000000000001.wal", offsets[whole])
            log.append([entry(whole + 1, term=2)])
        with reopen(after) as log:
            assert log.torn is None
            assert log.last_index == whole + 1


def test_every_sector_not_written_of_the_last_record_opens_without_it() -> None:
    sizes = [10, 700, 3000]
    disk, offsets = written_log(sizes)
    for begin in range(0, offsets[-1], 512):
        if begin + 512 <= offsets[-2]:
            continue
        after = deepcopy(disk)
        begin, end = max(begin, offsets[-2]), begin + 512
        content(after)[begin:end] = bytes(end - begin)
        with reopen(after) as log:
            assert log.torn == ("0000000000000000-0000000000000001.wal", offsets[-2])
            assert everything(log) == [entry(1, size=10), entry(2, size=700)]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_one_flipped_bit_before_the_last_record_is_refused_with_file_and_offset(data: st.DataObject) -> None:
    # Zeros in the data look like sectors that were not written; the records behind tell that they were.
    disk, offsets = SimulatedDisk(), []
    with create(disk, segment_bytes=8192) as log:
        for index in range(1, 21):
            kind = data.draw(st.sampled_from([b"\0", b"x"]))
            log.append([(1, index, 0, kind * data.draw(st.sampled_from([0, 40, 1500])))], HardState(1, 1, index))
            log.sync()
            offsets.append(len(content(disk).rstrip(b"\0")))
        count = log.segment_count
    place = data.draw(st.integers(0, count - 1))
    broken = content(disk, place)
    name = sorted(disk.entries)[place]
    end = len(broken.rstrip(b"\0")) if place < count - 1 else ([0, *offsets][-2] if offsets[-1] > offsets[-2] else 1)
    position = data.draw(st.integers(0, end * 8 - 1))
    broken[position // 8] ^= 1 << position % 8
    with pytest.raises(LogDamaged, match=f"{name}, offset ") as caught:
        reopen(disk)
    assert caught.value.file == name
    assert caught.value.offset <= position // 8
    assert not disk.open_files


class TestSegmentsThatDoNotFit:
    def setup_method(self) -> None:
        self.disk, _ = written_log([500] * 30, segment_bytes=4096)
        self.names = sorted(self.disk.entries)
        assert len(self.names) == 5

    def refused(self, name: str, reason: str) -> None:
        with pytest.raises(LogDamaged, match=reason) as caught:
            reopen(self.disk)
        assert caught.value.file == name
        assert not self.disk.open_files

    def test_one_missing_in_the_middle(self) -> None:
        del self.disk.entries[self.names[2]]
        self.refused(self.names[3], "sequence 2 is missing")

    def test_the_first_missing_though_no_snapshot_covers_it(self) -> None:
        del self.disk.entries[self.names[0]]
        self.refused(self.names[-1], r"entries 1 to \d+ are missing")

    def test_one_of_another_log_at_its_place(self) -> None:
        other, _ = written_log([501] * 30, segment_bytes=4096)
        assert sorted(other.entries) == self.names
        self.disk.entries[self.names[2]] = other.entries[self.names[2]]
        self.refused(self.names[2], "does not continue the segment before")

    def test_one_under_the_name_of_another(self) -> None:
        self.disk.entries[self.names[2]] = self.disk.entries[self.names[1]]
        self.refused(self.names[2], "the segment calls itself 1-")

    def test_one_that_is_empty_or_zero_or_whose_head_is_cut(self) -> None:
        whole = bytes(content(self.disk))
        for left in (b"", bytes(4096), whole[:100], whole[:100].ljust(4096, b"\0")):
            content(self.disk)[:] = left
            self.refused(self.names[-1], "head is not whole")

    def test_a_record_missing_at_the_end_of_one_that_is_not_the_last(self) -> None:
        used = content(self.disk, 1)
        last = len(used.rstrip(b"\0"))
        used[last - 560 :] = bytes(len(used) - last + 560)
        with pytest.raises(LogDamaged):
            reopen(self.disk)

    def test_a_torn_record_in_one_that_is_not_the_last(self) -> None:
        used = content(self.disk, 1)
        used[len(used.rstrip(b"\0")) - 5 :] = b""
        self.refused(self.names[1], "wrong checksum")


steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 4), st.sampled_from([0, 50, 300, 1100, 5000])),
        st.tuples(st.just("append"), st.integers(1, 4), st.sampled_from([0, 50, 300, 1100])),
        st.tuples(st.just("go back"), st.integers(1, 6), st.sampled_from([0, 400])),
        st.tuples(st.just("snapshot"), st.integers(0, 5), st.integers(0, 2)),
        st.tuples(st.just("install"), st.integers(1, 5), st.just(0)),
        st.tuples(st.just("sync"), st.just(0), st.just(0)),
        st.tuples(st.just("prepare"), st.just(0), st.just(0)),
        st.tuples(st.just("crash"), st.just(0), st.just(0)),
        st.tuples(st.just("kill"), st.just(0), st.just(0)),
    ),
    min_size=5,
    max_size=40,
)


@settings(max_examples=400, deadline=None)
@given(steps, st.integers(0, 2**32))
def test_power_loss_leaves_what_was_synced_and_whole_records_of_the_rest(
    script: list[tuple[str, int, int]], seed: int
) -> None:
    random_source = random.Random(seed)
    disk, history = SimulatedDisk(), History()
    log, term = create(disk), 1
    for step, count, size in [*script, ("crash", 0, 0)]:
        if step in ("append", "go back"):
            first = log.last_index + 1
            if step == "go back":
                first = max(log.snapshot.index, log.last_index - count) + 1
                term += 1
            # Random bytes and zeros, half and half: zeros look like what was never written.
            body = random_source.choice((bytes(size), random_source.randbytes(size)))
            entries = [(term, index, 0, body) for index in range(first, first + count)]
            state = HardState(term, random_source.randrange(3), log.snapshot.index)
            log.append(entries, state)
            for new in entries:
                history.entry(new)
            history.hard_state(state)
        elif step in ("snapshot", "install"):
            if step == "snapshot":
                index = max(log.snapshot.index, log.last_index - count)
                snapshot = Snapshot(index, log.term_of(index) or 0, b"conf")
            else:
                term += 1
                snapshot = Snapshot(log.last_index + count, term, b"conf")
            log.append_snapshot(snapshot)
            history.snapshot(snapshot)
            if size:
                log.release(snapshot.index, size)
                log.remove_released()
        elif step == "sync":
            log.sync()
            history.synced()
        elif step == "prepare":
            log.prepare_segment()
        else:
            log.close()
            disk = disk.crash(random_source) if step == "crash" else disk.killed()
            log = reopen(disk)
            survived = state_of(log)
            if step == "kill":
                assert survived == history.states[-1]
            history.survived(survived)
        assert state_of(log) == history.states[-1]
    log.close()


def test_a_crash_while_the_log_is_made_leaves_none_or_an_empty_one() -> None:
    class PowerLossError(Exception):
        pass

    operations = 0
    for stop_at in range(1, 100):
        disk, count = SimulatedDisk(), 0

        def lose(operation: str, name: str, stop_at: int = stop_at) -> None:
            nonlocal count
            count += 1
            if count == stop_at:
                raise PowerLossError

        disk.before = lose
        try:
            create(disk).close()
        except PowerLossError:
            for seed in range(20):
                after = disk.crash(random.Random(seed))
                if any(name.endswith(".wal") for name in after.entries):
                    with reopen(after) as log:
                        assert (log.last_index, log.metadata) == (0, METADATA)
                else:
                    create(after).close()
        else:
            operations = count
            break
    assert operations > 5


class TestSyncInAThread:
    """A sync under way in a helper thread, held until the test lets it go."""

    def setup_method(self) -> None:
        self.disk = SimulatedDisk()
        self.log = create(self.disk)
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.failed: list[BaseException] = []
        thread = threading.current_thread()

        def hold(operation: str, name: str) -> None:
            if operation == "sync" and name != "." and threading.current_thread() is not thread:
                self.reached.set()
                assert self.go_on.wait(30)

        self.disk.before = hold

    def run(self, call: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                call()
            except BaseException as error:
                self.failed.append(error)

        helper = threading.Thread(target=guarded)
        helper.start()
        return helper

    def start(self) -> threading.Thread:
        helper = self.run(self.log.sync)
        assert self.reached.wait(30)
        return helper

    def finish(self, *helpers: threading.Thread) -> None:
        self.go_on.set()
        for helper in helpers:
            helper.join(30)
            assert not helper.is_alive()
        assert self.failed == []

    def teardown_method(self) -> None:
        self.log.close()
        assert not self.disk.open_files

    def test_appends_and_reads_go_on(self) -> None:
        self.log.append([entry(1)])
        helper = self.start()
        self.log.append([entry(2)], HardState(1, 1, 1))
        assert everything(self.log) == [entry(1), entry(2)]
        self.finish(helper)

    def test_records_appended_meanwhile_are_not_taken_as_synced(self) -> None:
        """Entry 2 came while entry 1 was being synced; entry 3 was written after. Only entry 1 must be whole."""
        ends = []
        self.log.append([entry(1, size=1500)])
        ends.append(len(content(self.disk).rstrip(b"\0")))
        helper = self.start()
        self.log.append([entry(2, size=1500)])
        ends.append(len(content(self.disk).rstrip(b"\0")))
        self.finish(helper)
        self.log.append([entry(3)])
        for torn, end in enumerate(ends):
            after = deepcopy(self.disk.entries)
            disk = SimulatedDisk()
            disk.entries = after
            sector = end // 512 * 512 - 512
            content(disk)[sector : sector + 512] = bytes(512)
            if torn:
                with reopen(disk) as log:
                    assert log.torn == ("0000000000000000-0000000000000001.wal", ends[0])
                    assert everything(log) == [entry(1, size=1500)]
            else:
                with pytest.raises(LogDamaged):
                    reopen(disk)

    def test_the_log_may_go_on_in_a_new_segment(self) -> None:
        self.log.append([entry(1)])
        helper = self.start()
        while self.log.segment_count == 1:
            self.log.append([entry(self.log.last_index + 1)])
        self.finish(helper)
        last = self.log.last_index
        self.log.append([entry(last + 1)])
        self.log.sync()
        after = self.disk.crash(random.Random(1))
        with reopen(after) as log:
            assert log.last_index == last + 1

    def test_the_file_being_synced_may_be_released(self) -> None:
        self.log.append([entry(1)])
        helper = self.start()
        while self.log.segment_count == 1:
            self.log.append([entry(self.log.last_index + 1)])
        self.log.append_snapshot(Snapshot(self.log.last_index, 1, b""))
        while self.log.segment_count == 2:
            self.log.append([entry(self.log.last_index + 1)])
        assert len(self.log.release(self.log.snapshot.index, 1)) == 1
        remover = self.run(self.log.remove_released)
        remover.join(0.2)
        assert remover.is_alive()  # it waits for the sync to end before it closes the file
        self.finish(helper, remover)
        assert len(self.disk.entries) == self.disk.open_files == 2

    def test_a_cut_waits_for_the_segment_being_made(self) -> None:
        helper = self.run(self.log.prepare_segment)
        assert self.reached.wait(30)
        names: list[str] = []
        before = self.disk.before

        def watch(operation: str, name: str) -> None:
            names.append(operation)
            if operation == "sync":  # the first thing that a cut does
                self.go_on.set()
            before(operation, name)

        self.disk.before = watch
        while self.log.segment_count == 1:
            self.log.append([entry(self.log.last_index + 1)])
        self.finish(helper)
        assert "create" not in names
