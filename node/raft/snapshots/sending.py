"""The processes that send snapshots, one for each member that needs one, as raft's loop starts and watches them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from typing import Final

from kvorum.log import Logger, LogSettings
from kvorum.spawn import ChildProcess
from node.config import PeerTls
from node.raft.core import Message
from node.raft.peers.codec import encode
from node.raft.peers.identity import Identity
from node.raft.snapshots.sender import Order, main
from node.stats import Figures, Histogram, histogram

PROCESSES_MAX: Final = 3
"""Snapshots on their way at the same time; a process takes 35 MiB of memory, 20 of its own. At it: a further one counts
as failed."""

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
"""A failure is told so much later, doubled each time in a row: the core begins the next one as soon as it hears."""


def pause_after(failures: int) -> float:
    """Seconds until the last of so many failures in a row is told."""
    return min(FIRST_PAUSE_S * 2.0 ** min(failures - 1, 10), LONGEST_PAUSE_S)


class _Member:
    """What was sent to one member."""

    __slots__ = ("began_at", "duration_s", "failures", "failures_in_a_row", "process", "successes", "timer")

    def __init__(self) -> None:
        self.process: ChildProcess | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.began_at = 0.0
        self.failures_in_a_row = 0
        self.successes = 0
        self.failures = 0
        self.duration_s: Histogram = histogram("etcd_network_snapshot_send_total_duration_seconds")


class SnapshotSending:
    """`send` is `Transport.send_snapshot`; inside the running loop."""

    def __init__(
        self,
        *,
        identity: Identity,
        tls: PeerTls | None,
        urls: Callable[[int], Sequence[str]],
        on_sent: Callable[[int, bool], None],
        log: LogSettings,
        logger: Logger,
    ) -> None:
        """`urls`: a member's peer URLs. `on_sent` is `TransportHandlers.on_snapshot_sent`."""
        self._loop = asyncio.get_running_loop()
        self._identity = identity
        self._tls = tls
        self._urls = urls
        self._on_sent = on_sent
        self._log = log
        self._logger = logger
        self._members: dict[int, _Member] = {}
        self._watched: set[ChildProcess] = set()  # also those that were killed, and are not gone yet

    def send(self, message: Message, path: str) -> None:
        """Starts a process, in 3 ms; the one that sends to the same member is ended, and nothing is told of it."""
        to = message.to
        self.stop(to)
        member = self._members.setdefault(to, _Member())
        member.began_at = time.monotonic()
        under_way = sum(other.process is not None for other in self._members.values())
        if under_way >= PROCESSES_MAX:
            self._logger.warn("a snapshot has to wait for others", remote_peer_id=f"{to:x}", under_way=under_way)
            self._ended(to, False)
            return
        order = Order(
            parent_pid=os.getpid(),
            member=to,
            urls=tuple(self._urls(to)),
            tls=self._tls,
            metadata=self._identity.metadata(to),
            path=path,
            message=b"".join(encode([message])),
            log=self._log,
        )
        process = ChildProcess(main, (order,), "kvorum-snapshot")
        try:
            process.start()
        except OSError as error:  # no process or memory to be had just now
            self._logger.warn("cannot send a snapshot", remote_peer_id=f"{to:x}", error=str(error))
            self._ended(to, False)
            return
        member.process = process
        self._watched.add(process)
        self._loop.add_reader(process.sentinel, self._on_exit, to, process)

    def stop(self, to: int) -> None:
        """Nothing more is sent to the member, nor told of what was: it is none any more, or this one leads no more."""
        member = self._members.get(to)
        if member is None:
            return
        if member.timer is not None:
            member.timer.cancel()
            member.timer = None
        if member.process is not None:
            member.process.kill()  # its end is not awaited here: it may be reading from a disk that hangs
            member.process = None

    def stop_all(self) -> None:
        """The same for all members."""
        for to in self._members:
            self.stop(to)

    def close(self) -> None:
        """Ends all, and waits for it."""
        self.stop_all()
        for process in list(self._watched):
            self._join(process)

    def figures(self) -> Figures:
        """What is published of snapshots sent."""
        members = [(f"{to:x}", member) for to, member in self._members.items()]
        return {
            "etcd_network_snapshot_send_inflights_total": [
                [[name], int(member.process is not None)] for name, member in members
            ],
            "etcd_network_snapshot_send_success": [[[name], member.successes] for name, member in members],
            "etcd_network_snapshot_send_failures": [[[name], member.failures] for name, member in members],
            "etcd_network_snapshot_send_total_duration_seconds": [
                [[name], member.duration_s.snapshot()] for name, member in members
            ],
        }

    def _on_exit(self, to: int, process: ChildProcess) -> None:
        status = self._join(process)
        member = self._members[to]
        if member.process is not process:
            return
        member.process = None
        if status is not None and status < 0:
            self._logger.warn("a process that sent a snapshot was killed", remote_peer_id=f"{to:x}", signal=-status)
        self._ended(to, status == 0)

    def _join(self, process: ChildProcess) -> int | None:
        """The end of a process that has ended, or was killed."""
        self._watched.discard(process)
        self._loop.remove_reader(process.sentinel)
        process.join()
        status: int | None = process.exitcode
        process.close()
        return status

    def _ended(self, to: int, ok: bool) -> None:
        member = self._members[to]
        pause_s = 0.0
        if ok:
            member.successes += 1
            member.failures_in_a_row = 0
            member.duration_s.observe(time.monotonic() - member.began_at)
        else:
            member.failures += 1
            member.failures_in_a_row += 1
            pause_s = pause_after(member.failures_in_a_row)
        member.timer = self._loop.call_later(pause_s, self._tell, to, ok)

    def _tell(self, to: int, ok: bool) -> None:
        self._members[to].timer = None
        self._on_sent(to, ok)
