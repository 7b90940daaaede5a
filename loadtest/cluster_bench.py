"""The benchmark's cases over three members on this machine, of kvorum and of the reference."""

import contextlib
import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Self

from loadtest import processes
from loadtest.cluster import Cluster, RefusedError, ask, running_cluster
from loadtest.launcher import Kind, Server, wait_until
from loadtest.loads import LOADS, MIB, Load, Measured, Sizes, cpu_s, own_load

WRITERS = 2  # at each member that is asked
WRITE_TIMEOUT_S = 0.25
WRITES_AROUND = 20
PUT = {"key": "aw==", "value": "dg=="}


class Written(NamedTuple):
    """An acknowledged write."""

    began_s: float
    ended_s: float


class Writers:
    """Clients that write one after the other at each of some members: service is there while any gets an answer."""

    def __init__(self, members: Sequence[Server]) -> None:
        self._written: list[Written] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._write, args=(member.address,)) for member in members for _ in range(WRITERS)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _write(self, address: str) -> None:
        while not self._stop.is_set():
            began_s = time.perf_counter()
            try:
                ask(address, "/v3/kv/put", PUT, WRITE_TIMEOUT_S)
            except (OSError, RefusedError):  # no leader, or no answer in time
                self._stop.wait(0.002)
            else:
                self._written.append(Written(began_s, time.perf_counter()))

    def longest_pause(self, event: Callable[[], object]) -> float:
        """Makes something happen; the longest time in seconds without an acknowledged write from its beginning on,
        until writes that began after its end are acknowledged."""
        written = self._written
        wait_until(lambda: len(written) >= WRITES_AROUND, "writes before the event")
        began_s = time.perf_counter()
        event()
        over_s = time.perf_counter()
        wait_until(
            lambda: sum(one.began_s > over_s for one in written[-2 * WRITES_AROUND :]) >= WRITES_AROUND,
            "writes after the event",
        )
        ends_s = sorted(one.ended_s for one in list(written))
        return longest_gap(began_s, ends_s)


def longest_gap(began_s: float, ends_s: Sequence[float]) -> float:
    """The longest time between two neighbours of the moments after `began_s`, that moment included."""
    times_s = [began_s, *(moment for moment in ends_s if moment > began_s)]
    return max(later - earlier for earlier, later in itertools.pairwise(times_s))


def kill_at_once(member: Server) -> None:
    """SIGKILL to all processes of a member, without waiting for their end as `Server.kill` does."""
    for pid in processes.tree(member.pid):
        processes.send(pid, signal.SIGKILL)


class ClusterBench:
    """The cases over one pair of clusters that serves all of them."""

    def __init__(self, sizes: Sizes, pair: dict[Kind, Cluster]) -> None:
        self._sizes = sizes
        self._pair = pair

    def prepare(self, _: Sequence[str]) -> None:
        """What the cases read."""
        for cluster in self._pair.values():
            own_load([cluster.wait_for_leader()], LOADS["put"]._replace(requests=200))

    def measure(self, case: str, kind: Kind) -> Measured:
        """One round of one case at one cluster."""
        cluster = self._pair[kind]
        leader = cluster.wait_for_leader()
        followers = [member for member in cluster.members if member is not leader]
        match case:
            case "cluster-idle":
                return self._idle(cluster)
            case "cluster-put-leader":
                return self._load(cluster, "put", [leader])
            case "cluster-put-spread":
                return self._load(cluster, "put", cluster.members)
            case "cluster-get-leader":
                return self._load(cluster, "get", [leader])
            case "cluster-get-follower":
                return self._load(cluster, "get", followers[:1])
            case "cluster-leader-killed":
                return self._pause(cluster, followers, lambda: kill_at_once(leader))
            case "cluster-leader-stopped":
                return self._pause(cluster, followers, leader.stop)
            case "cluster-leader-moved":
                return self._pause(cluster, followers, lambda: cluster.move_leader(followers[0], timeout_s=10.0))
            case _:
                raise ValueError(case)

    def _load(self, cluster: Cluster, name: str, asked: Sequence[Server]) -> Measured:
        load: Load = LOADS[name]
        requests = max(20, int(load.requests * self._sizes.share))
        connections = load.connections + -load.connections % len(asked)
        return own_load(asked, load._replace(requests=requests, connections=connections), cluster.members)

    def _pause(self, cluster: Cluster, asked: Sequence[Server], event: Callable[[], object]) -> Measured:
        with Writers(asked) as writers:
            pause_s = writers.longest_pause(event)
        for member in cluster.running:
            if not processes.alive(member.pid):
                member.kill()  # waits for all of it, and forgets it
        cluster.start()
        return {"pause of writes": pause_s}

    def _idle(self, cluster: Cluster) -> Measured:
        before, began = cpu_s(cluster.members), time.perf_counter()
        time.sleep(self._sizes.idle_s)  # what is measured is the time in which nothing happens
        cpu = (cpu_s(cluster.members) - before) / (time.perf_counter() - began)
        memory = sum(processes.pss_bytes(member.pid) for member in cluster.members)
        return {"memory (PSS)": memory / MIB, "CPU": cpu * 100}


@contextlib.contextmanager
def both_clusters() -> Iterator[dict[Kind, Cluster]]:
    with running_cluster(Kind.KVORUM) as kvorum, running_cluster(Kind.REFERENCE) as reference:
        yield {Kind.KVORUM: kvorum, Kind.REFERENCE: reference}
