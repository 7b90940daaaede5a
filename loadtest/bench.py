"""kvorum against etcd 3.5.1, side by side: python -m loadtest.bench (see --help).

Both servers are started in one run and loaded in turn, A B A B; each figure is the median of the rounds. On a machine
that others share only the ratio within one run means something. Every reply and every event is checked: an error is
never counted as an answer. Figures, targets and goals are those of loadtest/targets.py.
"""

import argparse
import contextlib
import itertools
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

from kvorum.descriptors import raise_fd_limit
from loadtest import processes, report
from loadtest.cluster_bench import ClusterBench, both_clusters
from loadtest.gateway_bench import GatewayBench, of_gateways
from loadtest.launcher import Kind, Server, running
from loadtest.loads import FULL, LIST_KEYS, LOADS, MIB, QUICK, Load, Measured, Sizes, fan_out, fill, h2load, own_load
from loadtest.proxy_bench import WATCHERS, ProxyBench, of_proxies
from loadtest.targets import CASES, judge


def idle(server: Server, seconds: float) -> Measured:
    """Memory and CPU of a member without clients."""
    before, began = processes.cpu_s(server.pid), time.perf_counter()
    time.sleep(seconds)  # what is measured is the time in which nothing happens
    cpu = (processes.cpu_s(server.pid) - before) / (time.perf_counter() - began)
    return {"memory (PSS)": processes.pss_bytes(server.pid) / MIB, "CPU": cpu * 100}


def timed_start(server: Server) -> float:
    """Seconds from the launch to the ready line."""
    began = time.perf_counter()
    server.start()
    return time.perf_counter() - began


def start_empty(kind: Kind) -> Measured:
    with tempfile.TemporaryDirectory() as directory, contextlib.closing(Server(kind, Path(directory))) as server:
        return {"start to ready": timed_start(server)}


def million_keys(kind: Kind, keys: int) -> Measured:
    with running(kind) as server:
        fill(server, keys)
        filled = processes.pss_bytes(server.pid) / MIB
        server.stop()
        seconds = timed_start(server)
        return {
            "start to ready": seconds,
            "memory (PSS) when filled": filled,
            "memory (PSS) after a restart": processes.pss_bytes(server.pid) / MIB,
        }


IDLE = ("idle", "cluster-idle", "gateway-idle", "proxy-idle")


class Bench:
    """The cases over one pair of servers that serves all of them but the starts."""

    def __init__(
        self, sizes: Sizes, load_with: Callable[[Sequence[Server], Load], Measured], pair: dict[Kind, Server]
    ) -> None:
        self._sizes = sizes
        self._load = load_with
        self._pair = pair

    def prepare(self, cases: list[str]) -> None:
        """What the cases read."""
        for server in self._pair.values():
            own_load([server], LOADS["put"]._replace(requests=200))
            if "list-10k" in cases:
                fill(server, LIST_KEYS)

    def measure(self, case: str, kind: Kind) -> Measured:
        """One round of one case at one server."""
        sizes, server = self._sizes, self._pair[kind]
        match case:
            case "fan-out-one-stream":
                return fan_out(server, 1, 1000, sizes.puts_fan_out)
            case "fan-out-connections":
                return fan_out(server, sizes.connections_fan_out, 1, sizes.puts_fan_out)
            case "idle":
                return idle(server, sizes.idle_s)
            case "start-empty":
                return start_empty(kind)
            case "million-keys":
                return million_keys(kind, sizes.fill_keys)
            case _:
                load = LOADS[case]
                return self._load([server], load._replace(requests=max(20, int(load.requests * sizes.share))))


@contextlib.contextmanager
def of_single_members(sizes: Sizes, load_with: Callable[[Sequence[Server], Load], Measured]) -> Iterator[Bench]:
    with running(Kind.KVORUM) as kvorum, running(Kind.REFERENCE) as reference:
        yield Bench(sizes, load_with, {Kind.KVORUM: kvorum, Kind.REFERENCE: reference})


@contextlib.contextmanager
def of_clusters(sizes: Sizes) -> Iterator[ClusterBench]:
    with both_clusters() as pair:
        yield ClusterBench(sizes, pair)


GROUPS = ("single", "cluster", "gateway", "proxy")
"""What serves a case: one member, three, a gateway or a proxy in front of one. In this order they are measured."""


def group_of(case: str) -> str:
    prefix = case.partition("-")[0]
    if case in WATCHERS:
        return "proxy"
    return prefix if prefix in GROUPS else "single"


def ordered(cases: list[str]) -> list[str]:
    """Idle first, while the servers are new and quiet; then the case that takes longest last; groups in order."""
    return sorted(
        cases,
        key=lambda case: (
            GROUPS.index(group_of(case)),
            case == "million-keys",
            case not in IDLE,
            CASES.index(case),
        ),
    )


def cases_named(text: str) -> list[str]:
    """The case of that name, or those whose names begin with it."""
    found = [text] if text in CASES else [case for case in CASES if case.startswith(text)]
    if not found:
        raise argparse.ArgumentTypeError(f"{text} is no case: {', '.join(CASES)}")
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--case",
        action="append",
        type=cases_named,
        metavar="CASE",
        help=f"only this case, or all that begin so (may be given again): {', '.join(CASES)}",
    )
    parser.add_argument("--rounds", type=int, help="rounds of each case (default 5, of million-keys 1; quick: 1)")
    parser.add_argument("--quick", action="store_true", help="small rounds: shows that everything works, not how fast")
    parser.add_argument(
        "--generator", choices=("own", "h2load"), default="own", help="what loads a single member (default own)"
    )
    parser.add_argument("--output", type=Path, default=Path("bench-results"), help="folder for the JSON and the plot")
    parser.add_argument("--no-plot", action="store_true", help="no PNG, and no need of matplotlib")
    args = parser.parse_args()
    if args.generator == "h2load" and shutil.which("h2load") is None:
        parser.error("h2load is not installed")
    if args.rounds is not None and args.rounds < 1:
        parser.error("--rounds must be at least 1")
    return args


def main() -> None:
    args = arguments()
    sizes = QUICK if args.quick else FULL
    raise_fd_limit()  # a thousand connections, at both ends
    cases = ordered(list(itertools.chain(*args.case)) if args.case else list(CASES))
    rounds: dict[Kind, dict[tuple[str, str], list[float]]] = {kind: {} for kind in Kind}
    began = datetime.now(UTC)
    load_with = h2load if args.generator == "h2load" else own_load
    benches: dict[str, Callable[[], AbstractContextManager[Bench | ClusterBench | GatewayBench | ProxyBench]]] = {
        "single": lambda: of_single_members(sizes, load_with),
        "cluster": lambda: of_clusters(sizes),
        "gateway": lambda: of_gateways(sizes),
        "proxy": lambda: of_proxies(sizes),
    }
    for group, found in itertools.groupby(cases, group_of):
        of_group = list(found)
        with benches[group]() as bench:
            prepared = False
            for case in of_group:
                if not prepared and case not in IDLE:
                    bench.prepare(of_group)
                    prepared = True
                count = args.rounds or (1 if args.quick or case == "million-keys" else 5)
                for number in range(count):
                    for kind in Kind:
                        print(f"{case}: round {number + 1} of {count}, {kind.value}", file=sys.stderr)
                        for name, value in bench.measure(case, kind).items():
                            rounds[kind].setdefault((case, name), []).append(value)
    results = judge(rounds[Kind.KVORUM], rounds[Kind.REFERENCE])
    print(report.table(results))
    args.output.mkdir(parents=True, exist_ok=True)
    name = f"bench-{began:%Y%m%d-%H%M%S}{'-quick' if args.quick else ''}"
    facts: dict[str, object] = {
        "began": began.isoformat(timespec="seconds"),
        "quick": args.quick,
        "sizes": sizes._asdict(),
        "generator": args.generator,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release()}",
        "python": platform.python_version(),
        "rounds": {
            f"{case}: {figure}": [rounds[kind][case, figure] for kind in Kind] for case, figure in rounds[Kind.KVORUM]
        },
    }
    report.write_json(results, facts, args.output / f"{name}.json")
    if not args.no_plot:
        report.plot(results, args.output / f"{name}.png")
        report.plot_watchers(results, args.output / f"{name}-watchers.png")
    print(f"\nwritten to {args.output / name}.*", file=sys.stderr)


if __name__ == "__main__":
    main()
