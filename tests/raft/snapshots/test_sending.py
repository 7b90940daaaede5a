"""Snapshots over real connections: cut, falsified, slow, and sent by processes of their own."""

import asyncio
import functools
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kvorum.log import LogSettings
from kvorum.self_signed import write_certificate
from kvorum.wire.client import Channel
from node.config import PeerTls
from node.raft.core import Message
from node.raft.peers.channel import peer_channel
from node.raft.peers.identity import Identity
from node.raft.peers.incoming import PEER_SERVER_LIMITS
from node.raft.snapshots import sender as sender_module
from node.raft.snapshots import sending as sending_module
from node.raft.snapshots.places import RECEIVED, RECEIVING, place
from node.raft.snapshots.receiver import QUEUE_BYTES, Done
from node.raft.snapshots.sender import SNAPSHOT_CLIENT_LIMITS, SendFailed, Sending
from node.raft.snapshots.sending import PROCESSES_MAX, SnapshotSending, pause_after
from node.raft.snapshots.thread import OneThread
from node.raft.snapshots.transfer import CHUNK_BYTES
from tests.apply.shell import Lines
from tests.raft.peers.certificates import NO_TLS
from tests.raft.peers.members import Place, TestMember, close, run, until
from tests.raft.snapshots.cuts import Way
from tests.raft.snapshots.snapshots import (
    CLUSTER,
    FOLLOWER,
    INDEX,
    LEADER,
    TERM,
    ReceiverUnderTest,
    contents,
    encoded,
    make_checkpoint,
    snap,
)

MIB = 1 << 20
MARK = b"this mark is somewhere in the middle of the largest of the files"


class Slow:
    """A thread that can be made to wait."""

    def __init__(self, thread: OneThread) -> None:
        self.thread = thread
        self.waiting: list[tuple[Callable[[], None], Done]] | None = None

    def __call__(self, work: Callable[[], None], done: Done) -> None:
        if self.waiting is None:
            self.thread(work, done)
        else:
            self.waiting.append((work, done))

    def stop(self) -> None:
        self.waiting = []

    def go_on(self) -> None:
        waiting, self.waiting = self.waiting or [], None
        for work, done in waiting:
            self.thread(work, done)


class Follower:
    """A member that can be sent snapshots, and the way to it."""

    def __init__(self, directory: Path, tls: PeerTls | None = None) -> None:
        self.thread = OneThread(asyncio.get_running_loop(), "snapshots")
        self.disk = Slow(self.thread)
        self.under_test = ReceiverUnderTest(directory, self.disk)
        where = Place.tcp("http" if tls is None else "https")
        self.way = Way(where.port)
        routes = self.under_test.receiver.routes
        self.member = TestMember(FOLLOWER, [where], cluster_id=CLUSTER, routes=routes, tls=tls)

    async def __aenter__(self) -> "Follower":
        await self.member.start()
        await self.way.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.disk.go_on()
        await self.way.close()
        await close(self.member)
        self.thread.close()

    @property
    def received(self) -> Path:
        return Path(place(str(self.under_test.snap), INDEX, RECEIVED))

    @property
    def receiving(self) -> Path:
        return Path(place(str(self.under_test.snap), INDEX, RECEIVING))


class Leader:
    """Sends one snapshot from this process."""

    def __init__(self, follower: Follower, checkpoint: Path, message: Message | None = None) -> None:
        self.log = Lines()

        def dial() -> Channel:
            return peer_channel(follower.way.url, None, SNAPSHOT_CLIENT_LIMITS)

        metadata = Identity(CLUSTER, LEADER).metadata(FOLLOWER)
        self.sending = Sending(str(checkpoint), encoded(message or snap()), [dial], metadata, self.log.logger)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    made = make_checkpoint(tmp_path / "checkpoint", {"CURRENT": 16, "000001.sst": 9 * MIB, "000002.sst": 3 * MIB})
    with (made / "000001.sst").open("r+b") as file:
        file.seek(5 * MIB + 1)
        file.write(MARK)
    return made


def test_all_arrives_once(tmp_path: Path, checkpoint: Path) -> None:
    async def test() -> None:
        async with Follower(tmp_path / "follower") as follower:
            leader = Leader(follower, checkpoint)
            await leader.sending.run()
            assert contents(follower.received) == contents(checkpoint)
            assert follower.under_test.received == [snap()]
            assert leader.sending.sent_bytes == leader.sending.size_bytes == 12 * MIB + 16
            assert follower.way.connections == 1

    run(test)


def test_a_stream_that_is_cut_is_gone_on_with(tmp_path: Path, checkpoint: Path) -> None:
    """Again comes only what was under way: what the stream's window holds, and the chunk it belongs to."""

    async def test() -> None:
        async with Follower(tmp_path / "follower") as follower:
            leader = Leader(follower, checkpoint)
            follower.way.cut_at = [100_000, 6 * MIB, 6 * MIB + 10_000, 9 * MIB]
            await leader.sending.run()
            assert follower.way.cut_at == []
            assert follower.way.connections == 5
            assert contents(follower.received) == contents(checkpoint)
            assert follower.under_test.received == [snap()]
            again = PEER_SERVER_LIMITS.stream_window_bytes + CHUNK_BYTES
            assert follower.way.passed_bytes < 1.01 * leader.sending.size_bytes + 4 * again
            assert leader.log.has("the stream of a snapshot broke, trying again")

    run(test)


def test_a_part_that_was_falsified_on_the_way_is_sent_again(tmp_path: Path, checkpoint: Path) -> None:
    async def test() -> None:
        async with Follower(tmp_path / "follower") as follower:
            leader = Leader(follower, checkpoint)

            def alter(data: bytes) -> bytes:
                if MARK[:16] in data:
                    follower.way.alter = lambda data: data
                return data.replace(MARK[:16], b"0123456789abcdef")

            follower.way.alter = alter
            await leader.sending.run()
            assert follower.way.connections == 2
            assert contents(follower.received) == contents(checkpoint)
            assert follower.under_test.log.has("a part of a snapshot is damaged")

    run(test)


def test_a_way_that_always_falsifies_is_given_up(tmp_path: Path, checkpoint: Path) -> None:
    async def test() -> None:
        async with Follower(tmp_path / "follower") as follower:
            leader = Leader(follower, checkpoint)
            follower.way.alter = lambda data: data.replace(MARK[:16], b"0123456789abcdef")
            with pytest.raises(SendFailed, match="is damaged"):
                await leader.sending.run()
            assert follower.way.connections == sender_module.DAMAGES_MAX
            assert follower.under_test.received == []

    run(test)


def test_a_slow_disk_holds_the_sender_back(tmp_path: Path, checkpoint: Path) -> None:
    """In the follower's memory is what its queue and the stream's window hold, however much is to come."""

    async def test() -> None:
        big = make_checkpoint(tmp_path / "big", {"000001.sst": 40 * MIB})
        async with Follower(tmp_path / "follower") as follower:
            leader = Leader(follower, big)
            task = asyncio.create_task(leader.sending.run())
            await until(lambda: follower.under_test.names() != [] and follower.receiving.exists())
            follower.disk.stop()
            limit = QUEUE_BYTES + CHUNK_BYTES + PEER_SERVER_LIMITS.stream_window_bytes
            settled = 0
            while settled < 20:  # until nothing more comes
                before = follower.way.passed_bytes
                await asyncio.sleep(0.01)
                settled = settled + 1 if follower.way.passed_bytes == before else 0
            assert follower.disk.waiting is not None
            assert len(follower.disk.waiting) <= QUEUE_BYTES // CHUNK_BYTES
            written = sum(path.stat().st_size for path in follower.receiving.iterdir())
            assert follower.way.passed_bytes - written < limit + 2 * MIB  # what the kernel's buffers hold
            assert not task.done()
            follower.disk.go_on()
            await task
            assert contents(follower.received) == contents(big)

    run(test)


def test_a_refusal_is_the_last_word(tmp_path: Path, checkpoint: Path) -> None:
    async def test() -> None:
        async with Follower(tmp_path / "follower") as follower:
            leader = Leader(follower, checkpoint, snap(term=1))
            with pytest.raises(SendFailed, match="of term 1, here is term 5"):
                await leader.sending.run()
            assert follower.way.connections == 1

    run(test)


def test_one_that_is_not_needed_is_sent_at_once(tmp_path: Path, checkpoint: Path) -> None:
    async def test() -> None:
        async with Follower(tmp_path / "follower") as follower:
            leader = Leader(follower, checkpoint, snap(index=10))
            await leader.sending.run()
            assert leader.sending.sent_bytes == 0
            assert follower.under_test.received == []

    run(test)


def test_nobody_there_is_given_up_after_a_while(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "GIVE_UP_S", 0.3)

    async def test() -> None:
        async with Follower(tmp_path / "follower") as follower:
            leader = Leader(follower, checkpoint)
            follower.way._to = 1
            with pytest.raises(SendFailed, match=r"nothing more has arrived for 0\.3 s"):
                await leader.sending.run()
            assert follower.way.connections > 1

    run(test)


def test_a_member_without_a_url(checkpoint: Path) -> None:
    async def test() -> None:
        sending = Sending(str(checkpoint), encoded(snap()), [], {}, Lines().logger)
        with pytest.raises(SendFailed, match="no URL"):
            await sending.run()

    run(test)


def test_a_receiver_that_says_nothing_is_not_awaited_for_ever(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender_module, "STALL_S", 0.2)
    monkeypatch.setattr(sender_module, "GIVE_UP_S", 0.1)

    async def test() -> None:
        async with Follower(tmp_path / "follower") as follower:
            leader = Leader(follower, checkpoint)
            follower.disk.stop()
            with pytest.raises(SendFailed, match="the other member takes nothing"):
                await leader.sending.run()

    run(test)


def test_a_checkpoint_that_shrinks_is_an_error(tmp_path: Path, checkpoint: Path) -> None:
    async def test() -> None:
        async with Follower(tmp_path / "follower") as follower:
            leader = Leader(follower, checkpoint)
            os.truncate(checkpoint / "000002.sst", 1000)
            with pytest.raises(SendFailed, match="has become shorter"):
                await leader.sending.run()

    run(test)


class Processes:
    """What raft's loop starts, and what it was told."""

    def __init__(self, follower: Follower, tls: PeerTls | None = None) -> None:
        self.told: list[tuple[int, bool]] = []
        self.log = Lines()
        self.urls = {FOLLOWER: [follower.way.url]}
        self.sending = SnapshotSending(
            identity=Identity(CLUSTER, LEADER),
            tls=tls,
            urls=lambda member: self.urls.get(member, [follower.way.url]),
            on_sent=lambda member, ok: self.told.append((member, ok)),
            log=LogSettings(outputs=("/dev/null",)),
            logger=self.log.logger,
        )

    def told_times(self, times: int) -> bool:
        return len(self.told) == times

    def pids(self) -> list[int]:
        return [process.pid for process in self.sending._watched if process.pid is not None]


def test_a_process_of_its_own_sends(tmp_path: Path, checkpoint: Path) -> None:
    async def test() -> None:
        async with Follower(tmp_path / "follower") as follower:
            processes = Processes(follower)
            processes.sending.send(snap(), str(checkpoint))
            (pid,) = processes.pids()
            assert processes.sending.figures()["etcd_network_snapshot_send_inflights_total"] == [[["2"], 1]]
            await until(lambda: follower.receiving.exists() or bool(processes.told))
            assert os.getpriority(os.PRIO_PROCESS, pid) == sender_module.NICENESS or processes.told
            await until(lambda: bool(processes.told))
            assert processes.told == [(FOLLOWER, True)]
            assert contents(follower.received) == contents(checkpoint)
            assert processes.pids() == []
            figures = processes.sending.figures()
            assert figures["etcd_network_snapshot_send_inflights_total"] == [[["2"], 0]]
            assert figures["etcd_network_snapshot_send_success"] == [[["2"], 1]]
            assert figures["etcd_network_snapshot_send_failures"] == [[["2"], 0]]
            ((_, duration),) = figures["etcd_network_snapshot_send_total_duration_seconds"]
            assert duration["count"] == 1
            processes.sending.close()

    run(test)


def test_with_tls_both_show_certificates(tmp_path: Path, checkpoint: Path) -> None:
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    write_certificate(cert, key, ["127.0.0.1"], 1)
    tls = replace(
        NO_TLS,
        cert_file=cert,
        key_file=key,
        client_cert_file=cert,
        client_key_file=key,
        trusted_ca_file=cert,
        client_cert_auth=True,
    )

    async def test() -> None:
        async with Follower(tmp_path / "follower", tls) as follower:
            processes = Processes(follower, tls)
            processes.urls[FOLLOWER] = [follower.way.url.replace("http:", "https:")]
            processes.sending.send(snap(), str(checkpoint))
            await until(lambda: bool(processes.told))
            assert processes.told == [(FOLLOWER, True)]
            assert contents(follower.received) == contents(checkpoint)
            processes.sending.close()

    run(test)


def test_a_process_that_is_killed_counts_as_failed_and_the_next_goes_on(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending_module, "FIRST_PAUSE_S", 0.05)

    async def test() -> None:
        async with Follower(tmp_path / "follower") as follower:
            processes = Processes(follower)
            processes.sending.send(snap(), str(checkpoint))
            await until(lambda: follower.receiving.exists() and follower.way.passed_bytes > MIB)
            follower.disk.stop()
            (pid,) = processes.pids()
            os.kill(pid, signal.SIGKILL)
            await until(lambda: bool(processes.told))
            assert processes.told == [(FOLLOWER, False)]
            assert processes.log.has("a process that sent a snapshot was killed")
            await until(lambda: follower.under_test.log.has("the stream of a snapshot broke"))
            follower.disk.go_on()
            before = follower.way.passed_bytes
            processes.sending.send(snap(), str(checkpoint))
            await until(lambda: len(processes.told) == 2)
            assert processes.told[1] == (FOLLOWER, True)
            assert contents(follower.received) == contents(checkpoint)
            assert follower.way.passed_bytes - before < 12 * MIB
            processes.sending.close()

    run(test)


def test_the_pause_after_a_failure_grows_with_each_in_a_row() -> None:
    assert [pause_after(failures) for failures in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]
    assert pause_after(1000) == 30


def test_failures_are_told_one_by_one_and_a_success_ends_the_row(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending_module, "FIRST_PAUSE_S", 0.01)

    async def test() -> None:
        async with Follower(tmp_path / "follower") as follower:
            processes = Processes(follower)
            for times, term in enumerate((1, 1, TERM, 1), 1):
                processes.sending.send(snap(INDEX + times, term=term), str(checkpoint))
                await until(functools.partial(processes.told_times, times))
                if term == TERM:
                    follower.under_test.receiver.refuse(INDEX + times)
            assert [ok for _, ok in processes.told] == [False, False, True, False]
            assert processes.sending._members[FOLLOWER].failures_in_a_row == 1
            processes.sending.close()

    run(test)


def test_one_that_is_stopped_is_not_told_of(tmp_path: Path, checkpoint: Path) -> None:
    async def test() -> None:
        async with Follower(tmp_path / "follower") as follower:
            processes = Processes(follower)
            processes.sending.send(snap(), str(checkpoint))
            processes.sending.stop_all()
            await until(lambda: not processes.pids())
            assert processes.told == []
            processes.sending.stop(99)
            processes.sending.close()

    run(test)


def test_the_newer_of_two_for_one_member_counts(tmp_path: Path, checkpoint: Path) -> None:
    async def test() -> None:
        async with Follower(tmp_path / "follower") as follower:
            processes = Processes(follower)
            processes.sending.send(snap(), str(checkpoint))
            processes.sending.send(snap(INDEX + 1), str(checkpoint))
            await until(lambda: bool(processes.told))
            assert processes.told == [(FOLLOWER, True)]
            assert follower.under_test.received[-1] == snap(INDEX + 1)
            await until(lambda: not processes.pids())
            assert processes.told == [(FOLLOWER, True)]
            processes.sending.close()

    run(test)


def test_more_than_so_many_have_to_wait(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending_module, "FIRST_PAUSE_S", 0.01)

    async def test() -> None:
        async with Follower(tmp_path / "follower") as follower:
            processes = Processes(follower)
            follower.disk.stop()
            for member in range(10, 10 + PROCESSES_MAX + 1):
                processes.sending.send(snap(to=member), str(checkpoint))
            assert len(processes.pids()) == PROCESSES_MAX
            await until(lambda: (10 + PROCESSES_MAX, False) in processes.told)
            assert processes.log.has("a snapshot has to wait for others")
            processes.sending.close()
            assert processes.pids() == []

    run(test)
