"""One member: what outlives its generations, and a generation, which lives and dies as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn, Protocol, cast

from kvorum.log import Level, LogFormat, Logger
from kvorum.pb.rpc_pb2 import Member
from node.apply.contents import Contents
from node.apply.host import Job
from node.apply.installed import install, remove_outgoing
from node.apply.lease import Lessor
from node.apply.mvcc.database import Cursor
from node.apply.mvcc.keyspace import Event as StoreEvent
from node.apply.mvcc.message import Identity
from node.apply.mvcc.store import Store
from node.apply.process import Apply
from node.child import ChildContext, HeldFile, Role
from node.config import AutoCompaction, CompactionMode, Config
from node.flags import Start, parse
from node.frames import Kind, Process
from node.link_zmq import Arrivals
from node.membership import TABLE, Membership
from node.raft.driver import Driver
from node.raft.snapshots import places
from node.raft.start import METADATA, found
from node.raft.wal.log import WriteAheadLog, holds_log
from node.watch.process import Watch
from tests.sim.clock import MemberClock, Scheduler
from tests.sim.database import SimulatedDatabase
from tests.sim.disk import LogThreads, MemberDisk
from tests.sim.front import SimulatedFront
from tests.sim.links import GenerationLinks, SimulatedLinks
from tests.sim.network import Endpoint, Network
from tests.sim.snapshots import MemberSnapshots
from tests.sim.worker import Crash, Worker

FRONTS = (Process.FRONT, Process.FRONT + 1)
CLOCK_ERROR = 0.03
"""Members' clocks run so much fast or slow at most, as a fraction."""
CACHE_BYTES = 4 << 10
LATE_TICKS = 2


class Call(Protocol):
    """A client's call."""

    def lost(self) -> None:
        """The member has died before it answered."""


class World(Protocol):
    """What a member belongs to."""

    scheduler: Scheduler
    network: Network
    cluster_id: int
    settings: Settings

    def note(self, member: int, text: str) -> None:
        """A line for the trace."""

    def log_sink(self, member: int) -> Callable[[Level, bytes], None]:
        """Where the member's log goes."""

    def on_revisions(self, member: int, revisions: list[StoreEvent]) -> None:
        """A member's store has committed these."""

    def on_entries(self, member: int, frame: bytes) -> None:
        """A member's apply was given these."""

    def on_leader(self, term: int, leader: int) -> None:
        """A member knows who leads; 0: nobody."""

    def on_ended(self, member: SimulatedMember, why: str) -> None:
        """A generation has ended by itself: it crashed, finished or wants a new one."""

    def on_failure(self, member: int, process: str, error: BaseException) -> None:
        """A process has raised what no process may raise."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run varies, the same for all its members."""

    election_timeout_s: float
    heartbeat_interval_s: float
    snapshot_count: int
    snapshot_catchup_entries: int
    max_wals: int
    segment_bytes: int
    pre_vote: bool
    strict_reconfig_check: bool
    auto_compaction_revisions: int
    """So many revisions are kept; 0: no automatic compaction."""
    quota_bytes: int | None
    window_bytes: int
    """The credit of a stream between two processes of a member."""
    fsync: bool = True


def base_config() -> Config:
    """The defaults of all flags."""

    def no_file(path: str) -> NoReturn:
        raise FileNotFoundError(path)

    parsed = parse(["kvorum", "--data-dir=/sim", f"--front-workers={len(FRONTS)}"], {}, no_file)
    assert isinstance(parsed, Start), parsed
    return parsed.config


class SimulatedMember:
    """A member of the cluster, over its whole life."""

    def __init__(
        self,
        world: World,
        config: Config,
        member_id: int,
        founding: bytes,
        remotes: Mapping[int, Sequence[str]],
        peer_urls: Sequence[str],
    ) -> None:
        self.world = world
        self.id = member_id
        self.name = config.name
        self.config = config
        self.founding = founding
        self.remotes = remotes
        self.peer_urls = peer_urls
        self.disk = MemberDisk(world.scheduler)
        random = world.scheduler.random
        self.clock = MemberClock(
            world.scheduler, random.uniform(0, 1e6), random.uniform(1 - CLOCK_ERROR, 1 + CLOCK_ERROR)
        )
        self.generations = 0
        self.generation: Generation | None = None
        self.finished: str | None = None

    @property
    def alive(self) -> bool:
        """Whether a generation of it runs."""
        return self.generation is not None

    def start(self) -> None:
        """The next generation begins."""
        assert self.generation is None
        self.generations += 1
        self.world.note(self.id, f"starts generation {self.generations}")
        generation = Generation(self, self.generations)
        self.generation = generation
        try:
            generation.begin()
        except Crash:
            generation.on_crash()
        except BaseException as error:
            generation.on_failure("start", error)

    def stop(self, why: str, *, power_lost: bool) -> None:
        """It dies now, all processes at once."""
        generation = self.generation
        assert generation is not None
        self.generation = None
        generation.end()
        self.disk.die(power_lost)
        self.world.note(self.id, f"dies: {why}{', and with it the machine' if power_lost else ''}")


class _ObservedStore(Store):
    """A store whose commits are told, also one in which the member dies: it may be on the disk."""

    report: Callable[[list[StoreEvent]], None]

    def commit(self, cursor: Cursor) -> None:
        try:
            super().commit(cursor)
        finally:
            self.report(self._events)


class _Job:
    """Work aside that has its own time."""

    def __init__(self, generation: Generation, scheduler: Scheduler, work: Callable[[], None], takes_s: float) -> None:
        self._work: Callable[[], None] | None = work
        self._generation = generation
        scheduler.after(takes_s, self._run)

    def _run(self) -> None:
        if self._generation.alive:
            try:
                self.join()
            except Crash:
                self._generation.on_crash()

    def is_alive(self) -> bool:
        return self._work is not None

    def join(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            work()


class _Host:
    """`Host` of apply."""

    def __init__(self, generation: Generation, worker: Worker) -> None:
        self._generation = generation
        self._worker = worker
        self.now: Callable[[], float] = worker.now
        self.working: AbstractContextManager[None] = nullcontext()

    def beat(self, now: float) -> None:
        pass

    def long_operation(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def open_store(self, lessor: Lessor, identity: Identity) -> Store:
        member = self._generation.member
        config, databases = member.config, member.disk.databases
        remove_outgoing(config.snap_path, databases)
        installed = install(config.db_path, config.snap_path, databases)
        database = SimulatedDatabase(databases.open(config.db_path), databases.put, member.disk)
        store = _ObservedStore(database, lessor, identity, cache_bytes=1 << 14)
        assert installed is None or store.cursor.index == installed
        store.report = lambda revisions: member.world.on_revisions(member.id, revisions)
        return store

    def free_bytes(self) -> int:
        return 0 if self._generation.member.disk.is_full else 1 << 40

    def run_aside(self, name: str, work: Callable[[], None]) -> Job:
        scheduler = self._generation.scheduler
        return _Job(self._generation, scheduler, work, scheduler.random.uniform(0.001, 0.3))

    def read_checkpoint(self, path: str) -> Contents:
        database = SimulatedDatabase(self._generation.member.disk.databases.open(path))
        cursor = database.position.cursor
        state = Membership(database.scan(TABLE, bytes((TABLE[0] + 1,)))).state()
        return Contents(cursor.index, cursor.term, state.SerializeToString(deterministic=True))

    def close(self) -> None:
        pass


class Generation:
    """All processes of a member between a start and an end."""

    def __init__(self, member: SimulatedMember, number: int) -> None:
        self.member = member
        self.number = number
        self.alive = True
        self.world = member.world
        self.scheduler = member.world.scheduler
        self.incarnation = self.scheduler.random.getrandbits(48)
        sink = self.world.log_sink(member.id)
        self.logger = Logger((sink,), Level.INFO, LogFormat.CONSOLE, lambda: round(self.scheduler.now_s * 1e9))
        self._links = GenerationLinks(self.scheduler, self.world.settings.window_bytes)
        self.raft = self._worker("raft")
        self.apply = self._worker("apply")
        self.watch = self._worker("watch")
        self.workers: dict[int, Worker] = {
            Process.RAFT: self.raft,
            Process.APPLY: self.apply,
            Process.WATCH: self.watch,
            **{front: self._worker(f"front {front - Process.FRONT}") for front in FRONTS},
        }
        for process, worker in self.workers.items():
            self._links.add(process, worker.wake)
        self.fronts: list[SimulatedFront] = []
        self.driver: Driver
        self.calls: dict[Call, None] = {}
        """Clients' calls that have reached this generation and have no answer yet."""
        self.store: Store
        self.endpoint: Endpoint
        self._log: WriteAheadLog | None = None

    def _worker(self, name: str) -> Worker:
        return Worker(name, self, self.scheduler, self.member.clock)

    # life

    def begin(self) -> None:
        """Starts all processes."""
        member = self.member
        child = ChildContext(
            role=Role.APPLY,
            index=0,
            config=member.config,
            run_dir="",
            incarnation=self.incarnation,
            parent_pid=0,
            member_id=member.id,
            cluster_id=self.world.cluster_id,
            listeners=(),
            lifeline=cast(Any, None),
            lock=HeldFile(-1),
        )
        processes = [lambda: self._begin_apply(child), self._begin_watch, self._begin_raft]
        processes += [partial(self._begin_front, front) for front in FRONTS]
        self.scheduler.random.shuffle(processes)  # what each does at its start may come in any order
        for begin in processes:
            begin()

    def end(self) -> None:
        """No process does anything any more."""
        self.alive = False
        self._links.alive = False
        if hasattr(self, "endpoint"):
            self.world.network.leave(self.endpoint)
        for call in self.calls:
            call.lost()

    def on_crash(self) -> None:
        """See Owner."""
        self.world.on_ended(self.member, "crash")

    def on_failure(self, process: str, error: BaseException) -> None:
        """See Owner."""
        self.world.on_failure(self.member.id, process, error)

    @property
    def has_leader(self) -> bool:
        """Whether it knows one."""
        return any(front.has_leader for front in self.fronts)

    @property
    def serving(self) -> bool:
        """Whether clients are taken, at every front."""
        return len(self.fronts) == len(FRONTS) and all(front.serving for front in self.fronts)

    def members(self) -> list[Member]:
        """The cluster's, as its store has them."""
        return Membership(self.store.database.scan(TABLE, bytes((TABLE[0] + 1,)))).members()

    def pause(self, seconds: float) -> None:
        """The machine stands still."""
        for worker in self.workers.values():
            worker.pause(seconds)

    def stop(self) -> None:
        """The supervisor says stop: leadership is handed on, then apply flushes, then all is over."""
        self.raft.post(self.driver.hand_over)
        give_up_at = self.scheduler.now_s + self.member.config.election_timeout_s

        def look() -> None:
            if not self.alive:
                return
            if self.driver.handing_over and self.scheduler.now_s < give_up_at:
                self.scheduler.after(0.02, look)
                return
            try:
                self._close_apply()
            except Crash:
                self.on_crash()
            else:
                self.world.on_ended(self.member, "stopped")

        self.scheduler.after(0.02, look)

    # processes

    def _begin_apply(self, child: ChildContext) -> None:
        worker = self.apply
        links = self._links.links_of(Process.APPLY, [Process.RAFT, Process.WATCH, *FRONTS])
        process = Apply(child, links, self.logger, _Host(self, worker))
        self.store = process._store
        self._close_apply = process.close
        process.start()
        member = self.member

        def turn() -> float:
            control = links.receive_control()
            data = links.receive()
            for frame in data:
                if frame.kind == Kind.ENTRIES:
                    member.world.on_entries(member.id, frame.data)
            process.turn(Arrivals(control, data))
            return 0.0 if links.data_left or links.waiting else process.patience_s()

        worker.turn = turn
        worker.wake()

    def _begin_watch(self) -> None:
        worker = self.watch
        links = self._links.links_of(Process.WATCH, [Process.APPLY, *FRONTS])
        process = Watch(FRONTS, links, worker.now)
        process.start()

        def turn() -> float:
            process.turn(Arrivals(links.receive_control(), links.receive()))
            return 0.0 if links.data_left or links.waiting else process.patience_s()

        worker.turn = turn
        worker.wake()

    def _begin_front(self, process: int) -> None:
        member = self.member
        links = self._links.links_of(process, [Process.RAFT, Process.APPLY, Process.WATCH, *FRONTS])
        front = SimulatedFront(
            number=process - Process.FRONT,
            config=member.config,
            member_id=member.id,
            cluster_id=self.world.cluster_id,
            incarnation=self.incarnation,
            links=links,
            worker=self.workers[process],
            scheduler=self.scheduler,
            random=self.scheduler.random,
            senders=(
                (Process.RAFT, Kind.REPLIES),
                (Process.APPLY, Kind.REPLIES),
                (Process.WATCH, Kind.DELIVERIES),
            ),
            on_leader=member.world.on_leader,
        )
        self.fronts.append(front)

    def _begin_raft(self) -> None:
        member = self.member
        worker = self.raft
        log = self._log = self._open_log()
        snap_path, databases = member.config.snap_path, member.disk.databases
        places.settle(snap_path, log.snapshot.index, databases)
        snapshots = MemberSnapshots(snap_path, databases, worker, self.scheduler)
        links = self._links.links_of(Process.RAFT, [Process.APPLY, *FRONTS])
        clock = member.clock
        began = clock()
        now_s = self.scheduler.now_s

        def to_clock(time_s: float) -> float:
            return began + (time_s - now_s) * clock.rate

        endpoint = self.endpoint = Endpoint(self.world.network, member.id, worker, to_clock, member.remotes, snapshots)
        driver = self.driver = Driver(
            member_id=member.id,
            incarnation=self.incarnation,
            config=member.config,
            remotes=member.remotes,
            links=links,
            log=log,
            received=snapshots,
            disk=LogThreads(log, member.disk, worker, self.scheduler, partial(self.world.note, member.id)),
            transport=endpoint,
            now=worker.now,
            random=self.scheduler.random,
            logger=self.logger,
            finish=self._finish,
            restart=self._restart,
        )
        endpoint.handlers = driver
        snapshots.driver = driver
        self.world.network.join(endpoint)
        worker.turn = lambda: self._raft_turn(links, driver)
        interval_s = member.config.heartbeat_interval_s
        next_tick_at = clock() + interval_s

        def tick() -> None:
            nonlocal next_tick_at
            now = clock()
            if now - next_tick_at > LATE_TICKS * interval_s:
                next_tick_at = now
            next_tick_at += interval_s
            worker.later(max(0.0, next_tick_at - now), tick)
            driver.tick()

        worker.later(interval_s, tick)
        worker.wake()

    @staticmethod
    def _raft_turn(links: SimulatedLinks, driver: Driver) -> float:
        if links.control_waiting:
            driver.on_control(links.receive_control())
        frames = links.receive()
        if frames:
            driver.on_data(frames)
        return 0.0 if links.data_left or links.waiting else float("inf")

    def _open_log(self) -> WriteAheadLog:
        member = self.member
        settings = self.world.settings
        directory = member.disk.directory()
        if holds_log(directory):
            log = WriteAheadLog.open(
                directory, segment_bytes=settings.segment_bytes, cache_bytes=CACHE_BYTES, fsync=settings.fsync
            )
        else:
            metadata = METADATA.pack(member.id, self.world.cluster_id)
            log = WriteAheadLog.create(
                directory, metadata, segment_bytes=settings.segment_bytes, cache_bytes=CACHE_BYTES, fsync=settings.fsync
            )
        found(log, member.founding)
        return log

    def _finish(self, why: str) -> None:
        self.member.finished = why
        self.world.on_ended(self.member, f"finished: {why}")

    def _restart(self, why: str) -> None:
        self.world.on_ended(self.member, f"restarts: {why}")


def member_config(base: Config, settings: Settings, name: str) -> Config:
    """One member's settings."""
    return replace(
        base,
        name=name,
        election_timeout_s=settings.election_timeout_s,
        heartbeat_interval_s=settings.heartbeat_interval_s,
        snapshot_count=settings.snapshot_count,
        snapshot_catchup_entries=settings.snapshot_catchup_entries,
        max_wals=settings.max_wals,
        pre_vote=settings.pre_vote,
        strict_reconfig_check=settings.strict_reconfig_check,
        auto_compaction=AutoCompaction(CompactionMode.REVISION, 0.0, settings.auto_compaction_revisions),
        quota_backend_bytes=settings.quota_bytes,
        watch_progress_notify_interval_s=2.0,
    )
