"""A member's disk: the log's files, the database's, and how slow it is."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from node.raft.wal.log import WriteAheadLog
from tests.raft.simulated_disk import SimulatedDirectory, SimulatedDisk
from tests.sim.clock import Scheduler
from tests.sim.directories import Directories
from tests.sim.worker import Crash, Worker


class MemberDisk:
    """What outlives a member's generations: the files of its log, and its databases."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.log = SimulatedDisk()
        self.databases = Directories(self._may_crash)
        self.sync_s = 0.002
        """A sync takes about so long."""
        self.crash_after: int | None = None
        """The member dies at the so-manyth operation on its disk from now on."""
        self.sync: Sync | None = None
        """The one that is under way in a thread."""
        self._watch()

    def _watch(self) -> None:
        self.log.before = self._before

    def _before(self, operation: str, _name: str) -> None:
        if operation != "read":
            self._may_crash()

    def _may_crash(self) -> None:
        if self.crash_after is not None:
            self.crash_after -= 1
            if self.crash_after < 0:
                self.crash_after = None
                raise Crash

    def directory(self) -> SimulatedDirectory:
        """That of the log."""
        return SimulatedDirectory(self.log)

    def sync_takes_s(self) -> float:
        """Drawn anew for each."""
        random = self._scheduler.random
        return self.sync_s * (random.uniform(0.3, 2.0) if random.random() < 0.97 else random.uniform(2.0, 30.0))

    def die(self, power_lost: bool) -> None:
        """The member's processes end: what they had not made sure of may be lost."""
        random = self._scheduler.random
        self.sync = None
        self.crash_after = None
        self.log = self.log.crash(random) if power_lost else self.log.killed()
        self.log.open_files = 0
        self.databases.crash(random, power_lost=power_lost)
        self._watch()


class Sync:
    """A sync of the log in a thread: what it covers was written before it began, and is safe when it has ended.

    Everything is done by the real `WriteAheadLog.sync`, when it begins; its effects are held back until it ends.
    """

    def __init__(self, log: WriteAheadLog, disk: MemberDisk) -> None:
        self._log = log
        self._disk = disk
        self.ended = False
        before = log._synced
        effects: list[Callable[[], None]] = []
        disk.log.deferred = effects
        try:
            log.sync()
        finally:
            disk.log.deferred = None
        self._synced = log._synced
        log._synced = before
        self._effects = effects

    def end(self) -> None:
        """It is done."""
        self.ended = True
        self._disk.sync = None
        for effect in self._effects:
            effect()
        self._log._synced = self._synced


class _SyncLock:
    """The log's lock around a sync: who wants it while another sync is under way has to wait for its end."""

    def __init__(self, disk: MemberDisk) -> None:
        self._disk = disk

    def __enter__(self) -> None:
        if self._disk.sync is not None:
            self._disk.sync.end()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class LogThreads:
    """`Disk` of the driver: what the real one does in threads, in its own time."""

    def __init__(self, log: WriteAheadLog, disk: MemberDisk, worker: Worker, scheduler: Scheduler) -> None:
        self._log = log
        self._disk = disk
        self._worker = worker
        self._scheduler = scheduler
        log._sync_lock = _SyncLock(disk)  # type: ignore[assignment]  # a real one would wait for ever

    def sync(self, done: Callable[[BaseException | None], None]) -> None:
        """See `Disk`."""
        disk = self._disk
        assert disk.sync is None, "two syncs at the same time"
        sync = disk.sync = Sync(self._log, disk)

        def end() -> None:
            if disk.sync is sync:
                sync.end()
            if sync.ended:  # else the member died meanwhile
                self._worker.post(lambda: done(None))

        self._scheduler.after(disk.sync_takes_s(), end)

    def run(self, work: Callable[[], None]) -> None:
        """See `Disk`."""
        self._scheduler.after(self._disk.sync_takes_s(), lambda: self._worker.post(work))
