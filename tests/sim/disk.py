"""A member's disk: the log's files, the database's, and how slow it is."""

from __future__ import annotations

import errno
from collections.abc import Callable
from types import TracebackType

from node.raft.wal.errors import LogError
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
        self.fails_sync = False
        """The next sync fails."""
        self._hidden_bytes: int | None = None  # of the room for the log, while the disk is full
        self.sync: Sync | None = None
        """The one that is under way in a thread."""
        self._watch()

    def _watch(self) -> None:
        self.log.before = self._before

    @property
    def is_full(self) -> bool:
        """Nothing more can be written."""
        return self._hidden_bytes is not None

    def fill(self) -> None:
        """Others have taken all its room."""
        if self._hidden_bytes is None:
            self._hidden_bytes = self.log.free_bytes
            self.log.free_bytes = 0

    def make_room(self) -> None:
        """There is room again."""
        if self._hidden_bytes is not None:
            self.log.free_bytes += self._hidden_bytes
            self._hidden_bytes = None

    def before_write(self) -> None:
        """A database is to be written. Raises what RocksDB raises, by way of rocksdict, on a full disk; and Crash."""
        self._may_crash()
        if self.is_full:
            raise Exception("IO error: No space left on device: While appending to file")

    def after_write(self) -> None:
        """It is written. Raises Crash."""
        self._may_crash()

    def _before(self, operation: str, name: str) -> None:
        if operation == "sync" and self.fails_sync and name != ".":
            self.fails_sync = False
            raise OSError(errno.EIO, "Input/output error")
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

    def __init__(
        self,
        log: WriteAheadLog,
        disk: MemberDisk,
        worker: Worker,
        scheduler: Scheduler,
        say: Callable[[str], None],
    ) -> None:
        self._say = say
        self._log = log
        self._disk = disk
        self._worker = worker
        self._scheduler = scheduler
        log._sync_lock = _SyncLock(disk)  # type: ignore[assignment]  # a real one would wait for ever

    def sync(self, done: Callable[[BaseException | None], None]) -> None:
        """See `Disk`."""
        disk = self._disk
        assert disk.sync is None, "two syncs at the same time"
        try:
            sync = disk.sync = Sync(self._log, disk)
        except LogError as error:
            failure = error
            self._scheduler.after(disk.sync_takes_s(), lambda: self._worker.post(lambda: done(failure)))
            return

        def end() -> None:
            if disk.sync is sync:
                sync.end()
            if sync.ended:  # else the member died meanwhile
                self._worker.post(lambda: done(None))

        self._scheduler.after(disk.sync_takes_s(), end)

    def run(self, work: Callable[[], None]) -> None:
        """See `Disk`."""

        def guarded() -> None:
            try:
                work()
            except (OSError, LogError) as error:  # the next append meets it again
                self._say(f"housekeeping of the log failed: {error}")

        self._scheduler.after(self._disk.sync_takes_s(), lambda: self._worker.post(guarded))
