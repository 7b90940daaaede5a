"""The receiving side and its disk: what fails there, what waits for it, and what is counted."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from kvorum.errors import Code
from node.raft.snapshots import places
from node.raft.snapshots.counts import SENDERS_MAX
from node.raft.snapshots.places import FIGURES, RECEIVED, place
from node.raft.snapshots.receiver import QUEUE_BYTES
from node.raft.snapshots.sender import describe
from node.raft.snapshots.spool import RESERVE_BYTES
from node.raft.snapshots.transfer import (
    CHUNK_BYTES,
    Place,
    encode_chunk,
    encode_header,
)
from tests.raft.snapshots.snapshots import (
    INDEX,
    ReceiverUnderTest,
    contents,
    encoded,
    header_of,
    make_checkpoint,
    snap,
)
from tests.raft.snapshots.streams import SenderUnderTest, whole


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def receiver(tmp_path: Path) -> ReceiverUnderTest:
    return ReceiverUnderTest(tmp_path / "follower")


class TestDisk:
    def test_without_room_for_it_nothing_is_begun(
        self, receiver: ReceiverUnderTest, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        size_bytes = sum(len(data) for data in contents(checkpoint).values())
        usage = shutil.disk_usage("/")._replace(free=size_bytes + RESERVE_BYTES - 1)
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
        sender = SenderUnderTest(receiver)
        sender.say(header_of(snap(), checkpoint))
        free = size_bytes + RESERVE_BYTES - 1
        text = f"the snapshot has {size_bytes} bytes, and the disk {free} bytes left"
        assert sender.ended == (Code.RESOURCE_EXHAUSTED, text)
        assert receiver.names() == []

    @pytest.mark.parametrize(
        ("number", "code"), [(errno.ENOSPC, Code.RESOURCE_EXHAUSTED), (errno.EDQUOT, 8), (errno.EIO, Code.INTERNAL)]
    )
    def test_a_write_that_fails(
        self,
        receiver: ReceiverUnderTest,
        checkpoint: Path,
        monkeypatch: pytest.MonkeyPatch,
        number: int,
        code: int,
    ) -> None:
        sender = SenderUnderTest(receiver)
        sender.say(header_of(snap(), checkpoint))
        sender.stream_files(checkpoint, until=1)

        def fail(*_: object) -> int:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "pwrite", fail)
        sender.stream_files(checkpoint, until=0)
        sender.say(encode_chunk(Place(1, CHUNK_BYTES), bytes(10)))
        assert sender.code == code
        assert receiver.names() == []
        assert receiver.received == []
        monkeypatch.undo()
        whole(receiver, checkpoint)
        assert receiver.received == [snap()]

    def test_a_write_that_fails_among_others(
        self, receiver: ReceiverUnderTest, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Those behind it in the queue mean nothing, also when there is room again."""
        write = os.pwrite
        writes = []

        def fail(fd: int, data: memoryview, offset: int) -> int:
            writes.append(offset)
            if len(writes) == 1:
                raise OSError(errno.ENOSPC, "full")
            return write(fd, data, offset)

        sender = SenderUnderTest(receiver)
        sender.say(header_of(snap(), checkpoint))
        receiver.aside.at_once = False
        sender.stream_files(checkpoint)
        monkeypatch.setattr(os, "pwrite", fail)
        receiver.aside.run()
        assert sender.code == Code.RESOURCE_EXHAUSTED
        assert receiver.names() == []
        assert receiver.received == []

    def test_a_file_that_is_not_what_it_should_be(self, receiver: ReceiverUnderTest, checkpoint: Path) -> None:
        files = tuple(
            file._replace(checksum=file.checksum ^ 1) if file.name == "CURRENT" else file
            for file in describe(str(checkpoint))
        )
        sender = SenderUnderTest(receiver)
        sender.say(encode_header(encoded(snap()), files))
        sender.stream_files(checkpoint)
        assert sender.ended is not None
        assert sender.ended[0] == Code.DATA_LOSS
        assert sender.ended[1].startswith("CURRENT has the checksum")
        assert receiver.names() == []
        assert receiver.received == []

    @pytest.mark.parametrize("step", ["sync", "rename"])
    def test_an_end_that_fails_leaves_nothing_that_looks_whole(
        self, receiver: ReceiverUnderTest, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        real = getattr(places.Files, step)

        def fail(files: places.Files, *arguments: str) -> None:
            if step == "rename":
                monkeypatch.undo()
                raise OSError(errno.EIO, "broken")
            if arguments[0] == str(receiver.snap):  # the second sync: the name is there already
                monkeypatch.undo()
                raise OSError(errno.EIO, "broken")
            real(files, *arguments)

        monkeypatch.setattr(places.Files, step, fail)
        sender = whole(receiver, checkpoint)
        assert sender.code == Code.INTERNAL
        assert receiver.received == []
        assert receiver.names() == []
        assert whole(receiver, checkpoint).code == Code.OK

    def test_what_cannot_be_removed_is_told(
        self, receiver: ReceiverUnderTest, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sender = SenderUnderTest(receiver)
        sender.say(header_of(snap(), checkpoint))
        sender.stream_files(checkpoint, until=1)

        def fail(_files: places.Files, _path: str) -> None:
            raise OSError(errno.EIO, "broken")

        monkeypatch.setattr(places.Files, "remove", fail)
        sender.half_close()
        assert receiver.log.has("cannot remove a snapshot; the next start will")
        monkeypatch.undo()
        assert whole(receiver, checkpoint).code == Code.OK

    def test_a_bug_is_not_taken_for_a_full_disk(self, receiver: ReceiverUnderTest, checkpoint: Path) -> None:
        sender = SenderUnderTest(receiver)
        receiver.aside.at_once = False
        sender.say(header_of(snap(), checkpoint))
        _, done = receiver.aside.jobs.popleft()
        with pytest.raises(ZeroDivisionError):
            done(ZeroDivisionError())


def test_what_waits_for_the_disk_is_bounded(receiver: ReceiverUnderTest, tmp_path: Path) -> None:
    big = make_checkpoint(tmp_path / "big", {"000001.sst": 6 * QUEUE_BYTES})
    sender = SenderUnderTest(receiver)
    sender.say(header_of(snap(), big))
    receiver.aside.at_once = False
    sender.stream_files(big)
    assert not sender.stream.reading
    assert len(receiver.aside.jobs) == QUEUE_BYTES // CHUNK_BYTES
    receiver.aside.run(1)
    assert not sender.stream.reading, "it is read again when half is written"
    most = 0
    while receiver.aside.jobs:
        most = max(most, len(receiver.aside.jobs))
        receiver.aside.run(1)
    assert most <= QUEUE_BYTES // CHUNK_BYTES + 1
    assert sender.code == Code.OK
    assert contents(Path(place(str(receiver.snap), INDEX, RECEIVED))) == contents(big)


def test_figures(receiver: ReceiverUnderTest, checkpoint: Path) -> None:
    figures = receiver.receiver.figures
    assert figures()["etcd_network_snapshot_receive_inflights_total"] == []
    sender = SenderUnderTest(receiver)
    sender.say(header_of(snap(), checkpoint))
    assert figures()["etcd_network_snapshot_receive_inflights_total"] == [[["1"], 1]]
    assert figures()["etcd_server_snapshot_apply_in_progress_total"] == 0
    sender.half_close()
    assert figures()["etcd_network_snapshot_receive_failures"] == [[["1"], 1]]
    whole(receiver, checkpoint)
    assert figures()["etcd_network_snapshot_receive_inflights_total"] == [[["1"], 0]]
    assert figures()["etcd_network_snapshot_receive_success"] == [[["1"], 1]]
    ((_, duration),) = figures()["etcd_network_snapshot_receive_total_duration_seconds"]
    assert duration["count"] == 1
    assert figures()["etcd_snap_db_save_total_duration_seconds"]["count"] == 1
    # Three empty files for the one that was given up, five and all of it for the other.
    assert figures()["etcd_snap_db_fsync_duration_seconds"]["count"] >= 5
    assert figures()["etcd_server_snapshot_apply_in_progress_total"] == 1


def test_counts_are_kept_of_so_many_members(receiver: ReceiverUnderTest, checkpoint: Path) -> None:
    for member in range(100, 100 + SENDERS_MAX + 5):
        sender = SenderUnderTest(receiver, sender=member)
        sender.say(header_of(snap(sender=member), checkpoint))
        sender.half_close()
    assert len(receiver.receiver.figures()["etcd_network_snapshot_receive_failures"]) == SENDERS_MAX


def test_what_was_counted_is_given_on_to_the_generation_that_begins_with_the_snapshot(
    receiver: ReceiverUnderTest, checkpoint: Path, tmp_path: Path
) -> None:
    sender = SenderUnderTest(receiver)
    sender.say(header_of(snap(), checkpoint))
    sender.half_close()
    whole(receiver, checkpoint)
    receiver.receiver.decide(INDEX)
    counted = receiver.receiver.figures()
    following = ReceiverUnderTest(tmp_path / "follower")
    assert following.receiver.figures() == counted | {"etcd_server_snapshot_apply_in_progress_total": 0}
    assert FIGURES not in following.names()
    whole(following, checkpoint, snap(INDEX + 1))
    figures = following.receiver.figures()
    assert figures["etcd_network_snapshot_receive_success"] == [[["1"], 2]]
    assert figures["etcd_network_snapshot_receive_failures"] == [[["1"], 1]]
    assert figures["etcd_snap_db_save_total_duration_seconds"]["count"] == 2
    assert ReceiverUnderTest(tmp_path / "follower").receiver.figures()["etcd_network_snapshot_receive_success"] == []


@pytest.mark.parametrize("given", [b"", b"\0" * 100, b"[]", b"{}", b'{"etcd_snap_db_fsync_duration_seconds": 1}'])
def test_counts_that_cannot_be_read_are_lost(tmp_path: Path, given: bytes) -> None:
    (tmp_path / "snap").mkdir()
    (tmp_path / "snap" / FIGURES).write_bytes(given)
    receiver = ReceiverUnderTest(tmp_path)
    assert receiver.receiver.figures()["etcd_network_snapshot_receive_success"] == []
    assert receiver.names() == []


def test_a_decision_does_not_hang_on_its_counts(receiver: ReceiverUnderTest, checkpoint: Path) -> None:
    (receiver.snap / FIGURES).mkdir()
    whole(receiver, checkpoint)
    receiver.receiver.decide(INDEX)
    assert places.decided(str(receiver.snap), places.Files()) == INDEX
    assert receiver.log.has("cannot give on what was counted of snapshots")
