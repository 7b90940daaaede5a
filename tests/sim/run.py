"""One run: a cluster, its clients, trouble, and what must be true afterwards; all of it from a seed."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from math import inf
from random import Random

from kvorum.pb.rpc_pb2 import CompactionRequest
from tests.linearizability.check import check
from tests.linearizability.history import Operation, Session
from tests.sim.administrator import Administrator, Caretaker
from tests.sim.clients import Client, KvClient, Probe
from tests.sim.cluster import Broken, Cluster
from tests.sim.lease_clients import LeaseClient
from tests.sim.limits import small_limits
from tests.sim.member import CLOCK_ERROR, Settings, SimulatedMember, base_config
from tests.sim.trouble import Theme, Trouble
from tests.sim.watchers import WatchClient

PROBE_S = 20.0
"""Then a put is done within this."""

SETTLE_S = 60.0
"""So long after all trouble has ended everything must work again."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run was."""

    seed: int
    simulated_s: float
    events: int
    operations: int
    answered: int
    revisions: int
    watched: int
    crashes: int
    terms: int
    digest: int
    """Of all that clients were told: equal for equal runs."""
    problems: tuple[str, ...]
    trace: tuple[str, ...]


def settings_of(random: Random) -> Settings:
    """The settings of a run."""
    return Settings(
        election_timeout_s=1.0,
        heartbeat_interval_s=0.1,
        snapshot_count=random.choice((20, 100, 10_000)),
        snapshot_catchup_entries=random.choice((5, 50)),
        max_wals=random.choice((1, 2, 5)),
        segment_bytes=random.choice((8 << 10, 64 << 10)),
        pre_vote=random.random() < 0.7,
        strict_reconfig_check=random.random() < 0.5,
        auto_compaction_revisions=random.choice((0, 0, 0, 10, 100)),
        quota_bytes=random.choice((None,) * 9 + (20_000,)),
        window_bytes=random.choice((1_000, 20_000, 32 << 20)),
    )


def run(seed: int, *, traced: bool = False, theme: Theme | None = None) -> Outcome:
    """Runs a seed to its end, or to the first fault. The seed decides the theme, too, unless it is given."""
    shape = Random(f"shape of {seed}")
    if theme is None:
        draw = shape.random()
        theme = Theme.ELECTIONS if draw < 0.1 else Theme.MEMBERS if draw < 0.2 else Theme.ANYTHING
    settings = settings_of(shape)
    size = shape.choice((1, 2, 3, 3, 3, 3, 5))
    if theme is Theme.ELECTIONS:
        settings = replace(settings, pre_vote=False)
        size = 3
    elif theme is Theme.MEMBERS:
        settings = replace(settings, strict_reconfig_check=False)
        size = 2
    cluster = Cluster(seed, settings, base_config(), size, traced=traced)
    clients, watchers = _people(cluster, shape, theme)
    problems: list[str] = []
    try:
        with small_limits(shape):
            _play(cluster, shape, theme, clients, watchers)
    except Broken as error:
        problems.append(str(error))
    cluster.history.operations += cluster.pending.values()
    if settings.auto_compaction_revisions:
        # whatever was compacted may have been so by the cluster itself
        anything = CompactionRequest(revision=1 << 62)
        cluster.history.operations.append(Operation(0.0, inf, Session(0, 0), anything, None))
    problems += check(cluster.history, clock_error=2 * CLOCK_ERROR)
    history = cluster.history
    return Outcome(
        seed,
        cluster.scheduler.now_s,
        cluster.scheduler.events,
        len(history.operations),
        sum(operation.outcome is not None for operation in history.operations),
        len(history.revisions),
        sum(len(watch.received) for watch in history.watches),
        cluster.crashes,
        len(cluster.terms),
        zlib.crc32("".join(map(str, history.operations)).encode()),
        tuple(problems),
        tuple(cluster.trace),
    )


def _people(cluster: Cluster, shape: Random, theme: Theme) -> tuple[list[Client], list[WatchClient]]:
    """Who uses the cluster."""
    few = theme is Theme.ELECTIONS
    clients: list[Client] = [KvClient(cluster, number) for number in range(1 if few else shape.choice((2, 4, 6)))]
    clients += [LeaseClient(cluster, 100 + number) for number in range(0 if few else shape.choice((0, 1, 2)))]
    if theme is Theme.MEMBERS:
        administrator = Administrator(cluster, 300, most_members=shape.choice((2, 3)))
        administrator.think_s = 0.2
        clients.append(administrator)
    elif not few and shape.random() < 0.4:
        clients.append(Administrator(cluster, 300))
    clients.append(Caretaker(cluster, 400))
    return clients, [WatchClient(cluster, 200 + number) for number in range(shape.choice((1, 3)))]


def _play(cluster: Cluster, shape: Random, theme: Theme, clients: list[Client], watchers: list[WatchClient]) -> None:
    scheduler = cluster.scheduler
    cluster.start_all()
    for watcher in watchers:
        watcher.begin()
    for _ in range(shape.choice((1, 2, 3))):
        cluster.note(0, "clients begin")
        cluster.busy = True
        for client in clients:
            if not isinstance(client, Administrator | Caretaker):
                client.think_s = 0.2 if theme is Theme.ELECTIONS else shape.choice((0.01, 0.05, 0.2))
            client.begin()
        trouble = Trouble(cluster, shape, theme)
        trouble.begin()
        scheduler.run_until(scheduler.now_s + shape.uniform(3.0, 9.0))
        trouble.end()
        cluster.note(0, "trouble ends")
        scheduler.run_until(scheduler.now_s + shape.uniform(0.5, 3.0))
        cluster.busy = False
        _settle(cluster, watchers)


def _settle(cluster: Cluster, watchers: list[WatchClient]) -> None:
    """Nothing bad happens any more, and nobody asks for anything: all must come to the same, and soon."""
    scheduler = cluster.scheduler
    until_s = scheduler.now_s + SETTLE_S
    cluster.note(0, "all is to settle")
    quiet = Quiet(cluster)
    if not scheduler.run_until(until_s, quiet):
        raise Broken(f"the cluster did not settle: {quiet.why()}")
    while cluster.leases():
        if scheduler.now_s > until_s:
            raise Broken(f"{cluster.leases()} leases that nobody keeps alive do not end")
        cluster.meet_all()
        scheduler.run_until(scheduler.now_s + 1.0, lambda: cluster.leases() == 0)
    _probe(cluster)
    if not scheduler.run_until(until_s, Quiet(cluster)):
        raise Broken("the cluster did not settle after a put")
    cluster.compare()
    last = cluster.history.revisions[-1].number if cluster.history.revisions else 1

    def seen() -> bool:
        return all(watcher.has_seen(last) for watcher in watchers)

    while not seen():
        if scheduler.now_s > until_s:
            raise Broken(f"a watcher did not come to revision {last}")
        for watcher in watchers:
            if not watcher.has_seen(last):
                watcher.ask_progress()
        scheduler.run_until(scheduler.now_s + 1.0, seen)
    for watcher in watchers:
        watcher.must_have_seen(last)


def _probe(cluster: Cluster) -> None:
    """A put is done soon; it brings the store to where every watch has begun.

    Where there is no space left, what an operator does about it (a compaction, then the end of the alarms) must help.
    """
    cluster.probes += 1
    probe = Probe(cluster, 1000 + cluster.probes)
    caretaker = Caretaker(cluster, 0)
    caretaker.think_s = 0.1
    cluster.busy = True
    caretaker.begin()
    probe.begin()
    done = cluster.scheduler.run_until(cluster.scheduler.now_s + PROBE_S, lambda: probe.done)
    cluster.busy = False
    if not done:
        raise Broken("a put is not done though nothing is in its way")


class Quiet:
    """Whether the cluster has been settled for a second, so that what was under way has come to its end."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._next_look_s = 0.0
        self._since: tuple[float, int] | None = None

    def __call__(self) -> bool:
        cluster = self._cluster
        now_s = cluster.scheduler.now_s
        if now_s < self._next_look_s:
            return False
        self._next_look_s = now_s + 0.05
        cluster.meet_all()
        if not cluster.settled():
            self._since = None
            return False
        if self._since is None or self._since[1] != cluster.most_entries:
            self._since = (now_s, cluster.most_entries)
        return now_s - self._since[0] > 1.0

    def why(self) -> str:
        """What is missing."""
        return "; ".join(_where(member, self._cluster) for member in self._cluster.members.values())


def _where(member: SimulatedMember, cluster: Cluster) -> str:
    generation = member.generation
    if generation is None:
        return f"{member.id:x} is down ({member.finished})"
    state = generation.driver.state()
    return (
        f"{member.id:x} term {state['term']} leader {state['leader']:x} committed {state['committed']} "
        f"applied {generation.store.cursor.index} of {cluster.most_entries} serving {generation.serving}"
    )
