"""The raft process of a member: the event loop, the sockets, the clock and the disk's threads around `Driver`."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from kvorum import malloc
from kvorum.log import Logger
from node import event_loop
from node.child import ChildContext
from node.frames import Process
from node.link_zmq import Links
from node.raft.driver import Driver
from node.raft.peers.identity import Identity
from node.raft.peers.transport import PeerTransport
from node.raft.snapshots import places
from node.raft.snapshots.receiver import Receiver, Standing
from node.raft.snapshots.sending import SnapshotSending
from node.raft.snapshots.thread import OneThread
from node.raft.start import open_log
from node.raft.wal.log import WriteAheadLog

THREAD_SWITCH_S: Final = 0.0002
"""A helper thread that wants the interpreter gets it after this, not after 5 ms; and so does the loop."""

LATE_TICKS: Final = 2
"""A heartbeat so many intervals late is told to the operator: the machine is too busy, or the timeouts too short."""


class LogThreads:
    """`Disk` of the driver: one thread waits for the log's disk, another one makes and removes its files."""

    def __init__(self, log: WriteAheadLog, loop: asyncio.AbstractEventLoop, logger: Logger) -> None:
        self._log = log
        self._loop = loop
        self._logger = logger
        self._syncs = ThreadPoolExecutor(1, "wal-sync")
        self._housekeeping = ThreadPoolExecutor(1, "wal")

    def sync(self, done: Callable[[BaseException | None], None]) -> None:
        """See `Disk`. What `done` raises ends the process, as does a disk that cannot say that it keeps the log."""

        def hand_back(future: Future[None]) -> None:
            self._loop.call_soon_threadsafe(done, future.exception())

        self._syncs.submit(self._log.sync).add_done_callback(hand_back)

    def run(self, work: Callable[[], None]) -> None:
        """See `Disk`. A full disk is met again, and answered, by the next append."""

        def done(future: Future[None]) -> None:
            error = future.exception()
            if error is not None:
                self._logger.warn("housekeeping of the log failed", error=str(error))

        self._housekeeping.submit(work).add_done_callback(done)

    def close(self) -> None:
        """Waits for what is under way."""
        self._syncs.shutdown()
        self._housekeeping.shutdown()


class SnapshotPlaces:
    """`ReceivedSnapshots` of the driver."""

    def __init__(self, receiver: Receiver, snap_path: str) -> None:
        self._receiver = receiver
        self._snap_path = snap_path
        self._files = places.Files()

    def decide(self, index: int) -> None:
        """See `ReceivedSnapshots`."""
        self._receiver.decide(index)

    def refuse(self, index: int) -> None:
        """See `ReceivedSnapshots`."""
        self._receiver.refuse(index)

    def is_decided(self) -> bool:
        """See `ReceivedSnapshots`."""
        return places.decided(self._snap_path, self._files) is not None

    def remove(self, path: str) -> None:
        """See `ReceivedSnapshots`."""
        self._files.remove(path)


class Raft:
    """The shell: what arrives goes to the driver, and the clock ticks."""

    def __init__(
        self, child: ChildContext, links: Links, log: WriteAheadLog, logger: Logger, fail: event_loop.Fail
    ) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self.links = links
        self._child = child
        self._log = log
        self._logger = logger
        self._fail = fail
        self._threads = LogThreads(log, loop, logger)
        self._interval_s = child.config.heartbeat_interval_s
        identity = Identity(child.cluster_id, child.member_id)
        tls = child.config.peer_tls
        self._snapshot_thread = OneThread(loop, "snapshot")
        self._receiver = Receiver(
            identity=identity,
            snap_path=child.config.snap_path,
            removed=lambda: self._transport.removed,
            standing=lambda: Standing(*self.driver.standing),
            on_received=lambda message: self.driver.on_snapshot_received(message),
            run_aside=self._snapshot_thread,
            now=time.monotonic,
            logger=logger,
        )
        self._sending = SnapshotSending(
            identity=identity,
            tls=tls,
            urls=lambda member: self._transport.urls_of(member),
            on_sent=lambda member, ok: self.driver.on_snapshot_sent(member, ok),
            log=child.config.log,
            logger=logger,
        )
        self._transport = PeerTransport(
            identity=identity,
            listeners=child.listeners,
            tls=tls,
            members=lambda: self.driver.membership.members(),
            cluster_version=lambda: self.driver.membership.cluster_version,
            logger=logger,
            routes=self._receiver.routes,
            send_snapshot=self._sending.send,
            figures=(self._receiver.figures, self._sending.figures),
        )
        self.driver = Driver(
            member_id=child.member_id,
            incarnation=child.incarnation,
            config=child.config,
            remotes=dict(child.remotes),
            links=links,
            log=log,
            received=SnapshotPlaces(self._receiver, child.config.snap_path),
            disk=self._threads,
            transport=self._transport,
            now=time.monotonic,
            random=random.Random(),
            logger=logger,
            finish=child.lifeline.finished,
            restart=child.lifeline.restart,
        )
        loop.create_task(self._transport.start(self.driver)).add_done_callback(self._on_started)
        self._next_tick_at = loop.time() + self._interval_s
        self._timer = loop.call_at(self._next_tick_at, self._on_tick)
        self._stopping = False

    def _on_started(self, task: asyncio.Task[None]) -> None:
        error = task.exception()
        if error is not None:
            self._fail(error)

    def on_control(self) -> bool:
        """See Shell."""
        self.driver.on_control(self.links.receive_control())
        return False

    def on_data(self) -> bool:
        """See Shell."""
        frames = self.links.receive()
        if frames:
            self.driver.on_data(frames)
        return self.links.data_left

    def tick(self) -> None:
        """See Shell; the driver has a clock of its own."""
        self._receiver.tick()

    def _on_tick(self) -> None:
        now = self._loop.time()
        late_s = now - self._next_tick_at
        if late_s > LATE_TICKS * self._interval_s:
            self.driver.heartbeat_late(late_s)
            self._next_tick_at = now  # ticks that were missed are not made up for: nothing was heard meanwhile
        self._next_tick_at += self._interval_s
        self._timer = self._loop.call_at(self._next_tick_at, self._on_tick)
        try:
            self.driver.tick()
        except BaseException as error:
            self._fail(error)

    async def stop(self) -> None:
        """Hands leadership on, then lets go of everything; what was appended and promised is on disk already."""
        self.driver.hand_over()
        give_up_at = self._loop.time() + self._child.config.election_timeout_s
        while self.driver.handing_over and self._loop.time() < give_up_at:
            await asyncio.sleep(HAND_OVER_LOOK_S)
        self._timer.cancel()
        self._sending.close()
        await self._transport.close()
        self._snapshot_thread.close()
        self._threads.close()
        self._log.close()


HAND_OVER_LOOK_S: Final = 0.005


def main(child: ChildContext) -> None:
    """Runs the raft process until the supervisor says stop."""
    sys.setswitchinterval(THREAD_SWITCH_S)
    malloc.keep_large_buffers()  # a batch of 1 MiB to a member costs 0.4 ms instead of 1.8
    logger = Logger.open(child.config.log)
    log = open_log(child, logger)
    places.settle(child.config.snap_path, log.snapshot.index, places.Files())

    def build(fail: event_loop.Fail) -> Raft:
        fronts = [Process.FRONT + i for i in range(child.config.front_workers)]
        raft = Raft(child, Links(child.run_dir, Process.RAFT, [Process.APPLY, *fronts]), log, logger, fail)
        child.lifeline.ready()
        return raft

    event_loop.run(child, build)
