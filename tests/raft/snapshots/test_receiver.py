"""The receiving side, message by message: what it takes, what it refuses, and what then lies on the disk."""

from pathlib import Path

import pytest

from kvorum.errors import Code
from node.raft.core import Message
from node.raft.peers.identity import REMOVED, Identity
from node.raft.snapshots.places import DECIDED, FIGURES, RECEIVED, RECEIVING, place
from node.raft.snapshots.receiver import ABSENCE_S, Standing
from node.raft.snapshots.transfer import (
    CHUNK_BYTES,
    CHUNK_HEAD_BYTES,
    File,
    Place,
    encode_chunk,
    encode_header,
)
from tests.raft.snapshots.snapshots import (
    CLUSTER,
    FOLLOWER,
    INDEX,
    LEADER,
    OTHER,
    TERM,
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


class TestWhole:
    def test_a_snapshot_is_received_and_the_core_told(self, receiver: ReceiverUnderTest, checkpoint: Path) -> None:
        sender = SenderUnderTest(receiver)
        sender.say(header_of(snap(), checkpoint))
        assert sender.place(checkpoint) == Place(1, 0), "the empty file before it has arrived"
        assert receiver.names() == [f"{INDEX:016x}{RECEIVING}"]
        sender.stream_files(checkpoint)
        sender.half_close()
        assert sender.ended == (Code.OK, "")
        assert receiver.received == [snap()]
        assert receiver.names() == [f"{INDEX:016x}{RECEIVED}"]
        received = Path(place(str(receiver.snap), INDEX, RECEIVED))
        assert contents(received) == contents(checkpoint)
        assert received.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in received.iterdir()} == {0o600}

    def test_the_sender_hears_of_the_end_when_it_is_on_disk(
        self, receiver: ReceiverUnderTest, checkpoint: Path
    ) -> None:
        sender = SenderUnderTest(receiver)
        sender.say(header_of(snap(), checkpoint))
        receiver.aside.at_once = False
        sender.stream_files(checkpoint)
        sender.half_close()
        receiver.aside.run(len(receiver.aside.jobs) - 1)
        assert sender.ended is None
        assert receiver.received == []
        receiver.aside.run()
        assert sender.code == Code.OK
        assert receiver.received == [snap()]

    def test_decided_it_is_the_next_generation_s(self, receiver: ReceiverUnderTest, checkpoint: Path) -> None:
        whole(receiver, checkpoint)
        receiver.receiver.decide(INDEX)
        assert receiver.names() == [f"{INDEX:016x}{DECIDED}", FIGURES]
        assert receiver.receiver.figures()["etcd_server_snapshot_apply_in_progress_total"] == 1

    def test_refused_it_is_removed_and_another_may_come(self, receiver: ReceiverUnderTest, checkpoint: Path) -> None:
        whole(receiver, checkpoint)
        receiver.receiver.refuse(INDEX)
        assert receiver.names() == []
        whole(receiver, checkpoint, snap(INDEX + 1))
        assert [message.snapshot.index for message in receiver.received if message.snapshot] == [INDEX, INDEX + 1]

    def test_files_that_are_all_empty_arrive_without_data(self, receiver: ReceiverUnderTest, tmp_path: Path) -> None:
        empty = make_checkpoint(tmp_path / "empty", {"CURRENT": 0, "000001.log": 0})
        sender = SenderUnderTest(receiver)
        sender.say(header_of(snap(), empty))
        assert sender.code == Code.OK
        assert contents(Path(place(str(receiver.snap), INDEX, RECEIVED))) == {"CURRENT": b"", "000001.log": b""}


class TestRefused:
    @pytest.mark.parametrize(
        ("message", "code", "text"),
        [
            (snap(term=TERM - 1), Code.FAILED_PRECONDITION, "of term 4, here is term 5"),
            (snap(sender=OTHER), Code.INVALID_ARGUMENT, "from 3 to 2 in a stream from 1"),
            (snap(to=OTHER), Code.INVALID_ARGUMENT, "from 1 to 3 in a stream from 1"),
        ],
    )
    def test_what_comes_from_the_wrong_place(
        self, receiver: ReceiverUnderTest, checkpoint: Path, message: Message, code: Code, text: str
    ) -> None:
        sender = SenderUnderTest(receiver)
        sender.say(header_of(message, checkpoint))
        assert sender.ended is not None
        assert sender.ended[0] == code
        assert text in sender.ended[1]
        assert receiver.names() == []
        assert receiver.log.has("refused a snapshot")

    @pytest.mark.parametrize(
        ("metadata", "text"),
        [
            (Identity(CLUSTER + 1, LEADER).metadata(FOLLOWER), "is of cluster c1, not of cluster c2"),
            (Identity(CLUSTER, LEADER).metadata(OTHER), "here is member 2, not member 3"),
            (Identity(CLUSTER, LEADER, "2.0.0").metadata(FOLLOWER), "speaks API version"),
            (Identity(CLUSTER, OTHER).metadata(FOLLOWER), REMOVED),
        ],
    )
    def test_strangers(self, receiver: ReceiverUnderTest, metadata: dict[str, str], text: str) -> None:
        receiver.removed = {OTHER}
        sender = SenderUnderTest(receiver, metadata=metadata)
        assert sender.ended is not None
        assert sender.ended[0] == Code.FAILED_PRECONDITION
        assert text in sender.ended[1]

    def test_what_is_not_needed_is_taken_as_done(self, receiver: ReceiverUnderTest, checkpoint: Path) -> None:
        receiver.standing = Standing(TERM, INDEX)
        sender = SenderUnderTest(receiver)
        sender.say(header_of(snap(), checkpoint))
        assert sender.ended == (Code.OK, "")
        assert receiver.received == []
        assert receiver.names() == []

    def test_garbage(self, receiver: ReceiverUnderTest) -> None:
        sender = SenderUnderTest(receiver)
        sender.say(b"garbage")
        assert sender.code == Code.INVALID_ARGUMENT

    def test_a_path_out_of_the_directory(self, receiver: ReceiverUnderTest) -> None:
        sender = SenderUnderTest(receiver)
        sender.say(encode_header(encoded(snap()), (File("../../db/CURRENT", 1, 1),)))
        assert sender.ended == (Code.INVALID_ARGUMENT, "a snapshot with a file called '../../db/CURRENT'")
        assert receiver.names() == []

    def test_a_stream_without_a_header(self, receiver: ReceiverUnderTest) -> None:
        sender = SenderUnderTest(receiver)
        sender.half_close()
        assert sender.code == Code.INVALID_ARGUMENT

    def test_data_before_it_was_asked_for(self, receiver: ReceiverUnderTest, checkpoint: Path) -> None:
        receiver.aside.at_once = False
        sender = SenderUnderTest(receiver)
        sender.say(header_of(snap(), checkpoint))
        sender.say(encode_chunk(Place(1, 0), b"x"))
        assert sender.ended == (Code.INVALID_ARGUMENT, "data where none was asked for")
        receiver.aside.run()
        assert receiver.names() == []

    def test_a_chunk_that_is_not_the_next(self, receiver: ReceiverUnderTest, checkpoint: Path) -> None:
        sender = SenderUnderTest(receiver)
        sender.say(header_of(snap(), checkpoint))
        sender.say(encode_chunk(Place(1, 1), b"x"))
        assert sender.code == Code.INVALID_ARGUMENT
        assert receiver.names() == []

    def test_a_chunk_behind_the_last_one(self, receiver: ReceiverUnderTest, checkpoint: Path) -> None:
        sender = SenderUnderTest(receiver)
        sender.say(header_of(snap(), checkpoint))
        receiver.aside.at_once = False
        sender.stream_files(checkpoint)
        sender.say(encode_chunk(Place(1, 0), b"more"))
        assert sender.code == Code.INVALID_ARGUMENT
        receiver.aside.run()
        assert receiver.received == [] and receiver.names() == []

    def test_an_early_end(self, receiver: ReceiverUnderTest, checkpoint: Path) -> None:
        sender = SenderUnderTest(receiver)
        sender.say(header_of(snap(), checkpoint))
        sender.stream_files(checkpoint, until=1)
        sender.half_close()
        assert sender.ended == (Code.INVALID_ARGUMENT, "the snapshot ended before its end")
        assert receiver.names() == []
        assert receiver.received == []


class TestResumed:
    def test_a_stream_that_breaks_is_gone_on_with(self, receiver: ReceiverUnderTest, checkpoint: Path) -> None:
        first = SenderUnderTest(receiver)
        first.say(header_of(snap(), checkpoint))
        first.stream_files(checkpoint, until=2)
        first.lose()
        second = SenderUnderTest(receiver)
        second.say(header_of(snap(), checkpoint))
        assert second.place(checkpoint) == Place(1, 2 * CHUNK_BYTES)
        second.stream_files(checkpoint)
        assert second.code == Code.OK
        assert contents(Path(place(str(receiver.snap), INDEX, RECEIVED))) == contents(checkpoint)
        assert receiver.received == [snap()]

    def test_what_still_waits_for_the_disk_has_arrived(self, receiver: ReceiverUnderTest, checkpoint: Path) -> None:
        first = SenderUnderTest(receiver)
        first.say(header_of(snap(), checkpoint))
        receiver.aside.at_once = False
        first.stream_files(checkpoint, until=2)
        first.lose()
        second = SenderUnderTest(receiver)
        second.say(header_of(snap(), checkpoint))
        assert second.place(checkpoint) == Place(1, 2 * CHUNK_BYTES)
        receiver.aside.at_once = True
        second.stream_files(checkpoint)
        assert contents(Path(place(str(receiver.snap), INDEX, RECEIVED))) == contents(checkpoint)

    def test_one_that_breaks_before_the_directory_is_there(self, receiver: ReceiverUnderTest, checkpoint: Path) -> None:
        receiver.aside.at_once = False
        first = SenderUnderTest(receiver)
        first.say(header_of(snap(), checkpoint))
        first.lose()
        second = SenderUnderTest(receiver)
        second.say(header_of(snap(), checkpoint))
        assert second.stream.sent == []
        receiver.aside.at_once = True
        receiver.aside.run()
        second.stream_files(checkpoint)
        assert second.code == Code.OK

    def test_the_newer_of_two_streams_counts(self, receiver: ReceiverUnderTest, checkpoint: Path) -> None:
        first = SenderUnderTest(receiver)
        first.say(header_of(snap(), checkpoint))
        first.stream_files(checkpoint, until=1)
        second = SenderUnderTest(receiver)
        second.say(header_of(snap(), checkpoint))
        assert first.code == Code.ABORTED
        second.stream_files(checkpoint)
        assert second.code == Code.OK

    @pytest.mark.parametrize("jobs_done", [0, 1, 2, 3])
    def test_one_that_breaks_while_the_end_is_written(
        self, receiver: ReceiverUnderTest, checkpoint: Path, jobs_done: int
    ) -> None:
        first = SenderUnderTest(receiver)
        first.say(header_of(snap(), checkpoint))
        receiver.aside.at_once = False
        first.stream_files(checkpoint)
        receiver.aside.run(jobs_done)
        first.lose()
        second = SenderUnderTest(receiver)
        second.say(header_of(snap(), checkpoint))
        assert second.stream.sent == []
        receiver.aside.run()
        assert second.code == Code.OK
        assert receiver.received == [snap()]

    @pytest.mark.parametrize("decided", [False, True])
    def test_one_that_breaks_before_the_sender_heard_of_the_end(
        self, receiver: ReceiverUnderTest, checkpoint: Path, decided: bool
    ) -> None:
        whole(receiver, checkpoint)
        if decided:
            receiver.receiver.decide(INDEX)
        again = SenderUnderTest(receiver)
        again.say(header_of(snap(), checkpoint))
        assert again.code == Code.OK
        assert receiver.received == [snap()]

    def test_after_a_damaged_chunk_it_goes_on_there(self, receiver: ReceiverUnderTest, checkpoint: Path) -> None:
        first = SenderUnderTest(receiver)
        first.say(header_of(snap(), checkpoint))
        first.stream_files(checkpoint, until=1)
        damaged = bytearray(encode_chunk(Place(1, CHUNK_BYTES), bytes(1000)))
        damaged[CHUNK_HEAD_BYTES] = 1
        first.say(bytes(damaged))
        assert first.code == Code.DATA_LOSS
        assert receiver.log.has("a part of a snapshot is damaged")
        second = SenderUnderTest(receiver)
        second.say(header_of(snap(), checkpoint))
        assert second.place(checkpoint) == Place(1, CHUNK_BYTES)
        second.stream_files(checkpoint)
        assert second.code == Code.OK

    def test_nobody_goes_on(self, receiver: ReceiverUnderTest, checkpoint: Path) -> None:
        sender = SenderUnderTest(receiver)
        sender.say(header_of(snap(), checkpoint))
        sender.stream_files(checkpoint, until=1)
        sender.lose()
        receiver.clock.now_s += ABSENCE_S
        receiver.receiver.tick()
        assert receiver.names() != []
        receiver.clock.now_s += 1
        receiver.receiver.tick()
        assert receiver.names() == []
        assert receiver.log.has("gave up receiving a snapshot")

    def test_a_sender_that_says_nothing_more(self, receiver: ReceiverUnderTest, checkpoint: Path) -> None:
        sender = SenderUnderTest(receiver)
        sender.say(header_of(snap(), checkpoint))
        receiver.clock.now_s += ABSENCE_S + 1
        receiver.receiver.tick()
        assert sender.code == Code.DEADLINE_EXCEEDED

    def test_a_slow_disk_is_not_the_sender_s_silence(self, receiver: ReceiverUnderTest, checkpoint: Path) -> None:
        sender = SenderUnderTest(receiver)
        sender.say(header_of(snap(), checkpoint))
        receiver.aside.at_once = False
        sender.stream_files(checkpoint, until=1)
        receiver.clock.now_s += 10 * ABSENCE_S
        receiver.receiver.tick()
        assert sender.ended is None
        receiver.aside.run()
        receiver.receiver.tick()
        assert sender.ended is None
        receiver.clock.now_s += ABSENCE_S + 1
        receiver.receiver.tick()
        assert sender.code == Code.DEADLINE_EXCEEDED

    @pytest.mark.parametrize(
        ("standing", "ended"),
        [
            (Standing(TERM, INDEX), (Code.OK, "it is not needed any more")),
            (Standing(TERM + 1, 10), (Code.FAILED_PRECONDITION, "the snapshot is of term 5, here is term 6")),
        ],
    )
    def test_what_the_core_would_refuse_is_not_waited_for(
        self, receiver: ReceiverUnderTest, checkpoint: Path, standing: Standing, ended: tuple[Code, str]
    ) -> None:
        """The entries came another way, or there is a new leader."""
        sender = SenderUnderTest(receiver)
        sender.say(header_of(snap(), checkpoint))
        sender.stream_files(checkpoint, until=1)
        receiver.receiver.tick()
        assert sender.ended is None
        receiver.standing = standing
        receiver.receiver.tick()
        assert sender.ended == ended
        assert receiver.names() == []

    def test_nor_what_nobody_sends_any_more(self, receiver: ReceiverUnderTest, checkpoint: Path) -> None:
        sender = SenderUnderTest(receiver)
        sender.say(header_of(snap(), checkpoint))
        sender.lose()
        receiver.standing = Standing(TERM, INDEX)
        receiver.receiver.tick()
        assert receiver.names() == []

    def test_one_that_waits_for_the_log_is_never_given_up(self, receiver: ReceiverUnderTest, checkpoint: Path) -> None:
        whole(receiver, checkpoint)
        receiver.clock.now_s += 10 * ABSENCE_S
        receiver.receiver.tick()
        assert receiver.names() == [f"{INDEX:016x}{RECEIVED}"]


class TestAnother:
    """A second snapshot comes while one is here."""

    @pytest.fixture
    def other(self, tmp_path: Path) -> Path:
        return make_checkpoint(tmp_path / "other", seed=2)

    @pytest.mark.parametrize("message", [snap(INDEX + 1), snap(term=TERM + 1), snap(INDEX - 1, term=TERM + 1)])
    def test_a_newer_one_takes_its_place(
        self, receiver: ReceiverUnderTest, checkpoint: Path, other: Path, message: Message
    ) -> None:
        first = SenderUnderTest(receiver)
        first.say(header_of(snap(), checkpoint))
        first.stream_files(checkpoint, until=1)
        second = SenderUnderTest(receiver, sender=OTHER)
        message = snap(message.snapshot.index if message.snapshot else 0, term=message.term, sender=OTHER)
        second.say(header_of(message, other))
        assert first.ended == (Code.ABORTED, "another snapshot has come")
        second.stream_files(other)
        assert receiver.received == [message]
        assert len(receiver.names()) == 1

    def test_an_older_one_is_refused(self, receiver: ReceiverUnderTest, checkpoint: Path, other: Path) -> None:
        first = SenderUnderTest(receiver)
        first.say(header_of(snap(), checkpoint))
        second = SenderUnderTest(receiver, sender=OTHER)
        second.say(header_of(snap(INDEX - 1, sender=OTHER), other))
        assert second.code == Code.RESOURCE_EXHAUSTED
        first.stream_files(checkpoint)
        assert first.code == Code.OK

    def test_a_leader_s_last_word_counts(self, receiver: ReceiverUnderTest, checkpoint: Path, other: Path) -> None:
        """Of the same index, but other files: a checkpoint that was made anew."""
        first = SenderUnderTest(receiver)
        first.say(header_of(snap(), checkpoint))
        first.stream_files(checkpoint, until=2)
        second = SenderUnderTest(receiver)
        second.say(header_of(snap(), other))
        second.stream_files(other)
        assert contents(Path(place(str(receiver.snap), INDEX, RECEIVED))) == contents(other)

    def test_the_old_one_s_writes_may_still_be_on_their_way(
        self, receiver: ReceiverUnderTest, checkpoint: Path, other: Path
    ) -> None:
        first = SenderUnderTest(receiver)
        first.say(header_of(snap(), checkpoint))
        receiver.aside.at_once = False
        first.stream_files(checkpoint, until=2)
        second = SenderUnderTest(receiver)
        second.say(header_of(snap(), other))
        receiver.aside.at_once = True
        receiver.aside.run()
        second.stream_files(other)
        assert contents(Path(place(str(receiver.snap), INDEX, RECEIVED))) == contents(other)

    def test_none_takes_the_place_of_one_that_is_whole(
        self, receiver: ReceiverUnderTest, checkpoint: Path, other: Path
    ) -> None:
        whole(receiver, checkpoint)
        second = SenderUnderTest(receiver)
        second.say(header_of(snap(INDEX + 1), other))
        assert second.code == Code.RESOURCE_EXHAUSTED
        receiver.receiver.decide(INDEX)
