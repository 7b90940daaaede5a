"""kvorum against etcd 3.5.1, side by side: python -m loadtest.bench (see --help).

Both servers are started in one run and loaded in turn, A B A B; each figure is the median of the rounds. On a machine
that others share only the ratio within one run means something. Every reply and every event is checked: an error is
never counted as an answer. Figures, targets and goals are those of loadtest/targets.py.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from loadtest import processes, report
from loadtest.h2_client import grpc_message
from loadtest.launcher import Kind, Server, running
from loadtest.messages import put_request, range_request
from loadtest.targets import CASES, judge

KEY, VALUE = b"/bench/key0001", b"v" * 256
LIST_KEY, LIST_END, LIST_KEYS = b"/fill/", b"/fill0", 10_000
PUT, RANGE = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range"
MIB = 1 << 20
Measured = dict[str, float]


class Load(NamedTuple):
    """Requests as the generator makes them."""

    path: str
    message: bytes
    requests: int
    connections: int
    streams: int


class Sizes(NamedTuple):
    """How much is done in one round."""

    share: float  # of the requests of a full round
    puts_fan_out: int
    connections_fan_out: int
    idle_s: float
    fill_keys: int


FULL = Sizes(share=1.0, puts_fan_out=50, connections_fan_out=1000, idle_s=5.0, fill_keys=1_000_000)
QUICK = Sizes(share=0.05, puts_fan_out=5, connections_fan_out=100, idle_s=1.0, fill_keys=20_000)

LOADS = {
    "put": Load(PUT, put_request(KEY, VALUE), 20_000, 8, 32),
    "get": Load(RANGE, range_request(KEY), 30_000, 8, 32),
    "serializable-get": Load(RANGE, range_request(KEY, serializable=True), 30_000, 8, 32),
    "put-serial": Load(PUT, put_request(KEY, VALUE), 2_000, 1, 1),
    "get-serial": Load(RANGE, range_request(KEY), 4_000, 1, 1),
    "list-10k": Load(RANGE, range_request(LIST_KEY, LIST_END), 100, 1, 1),
}


def run_client(server: Server, module: str, *arguments: str) -> tuple[dict[str, float], float]:
    """Runs a load process; returns what it measured and the server's CPU seconds meanwhile."""
    command = [sys.executable, "-m", module, server.address, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdin is not None and client.stdout is not None
        if client.stdout.readline() != "ready\n":
            raise SystemExit(f"{module} failed against {server.kind.value}")
        before, members = processes.cpu_s(server.pid), set(processes.tree(server.pid))
        client.stdin.write("\n")
        client.stdin.flush()
        answer = client.stdout.readline()
        cpu = processes.cpu_s(server.pid) - before
    if client.returncode or not answer:
        raise SystemExit(f"{module} failed against {server.kind.value}:\n{server.log_tail(5)}")
    if set(processes.tree(server.pid)) != members:
        raise SystemExit(f"{server.kind.value} changed its processes under load:\n{server.log_tail(5)}")
    return json.loads(answer), cpu


def own_load(server: Server, load: Load) -> Measured:
    arguments = [load.path, "--message", load.message.hex(), "--requests", str(load.requests)]
    arguments += ["--connections", str(load.connections), "--streams", str(load.streams)]
    arguments += ["--warm-up", str(max(10, load.requests // 20))]
    measured, cpu = run_client(server, "loadtest.generator", *arguments)
    return figures(measured["requests"], measured["seconds"], cpu)


def figures(requests: float, seconds: float, cpu_s: float) -> Measured:
    return {
        "throughput": requests / seconds,
        "server CPU": cpu_s / requests * 1e6,
        "mean latency": seconds / requests * 1e6,  # meant for one request at a time
    }


def h2load(server: Server, load: Load) -> Measured:
    """The same by h2load: its replies are checked by their number and by the size of what they carry."""
    with tempfile.NamedTemporaryFile() as body:
        body.write(grpc_message(load.message))
        body.flush()
        before = processes.cpu_s(server.pid)
        out = subprocess.run(
            [
                *("h2load", "-n", str(load.requests), "-c", str(load.connections), "-m", str(load.streams)),
                *("-w", "24", "-W", "24", "-d", body.name),
                *("-H", "content-type: application/grpc", "-H", "te: trailers"),
                f"http://{server.address}{load.path}",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        cpu = processes.cpu_s(server.pid) - before
    succeeded, data = re.search(r"(\d+) succeeded", out), re.search(r"\((\d+)\) data", out)
    elapsed = re.search(r"finished in ([\d.]+)(us|ms|s)", out)
    if not (succeeded and data and elapsed) or int(succeeded[1]) != load.requests or int(data[1]) < 10 * load.requests:
        raise SystemExit(f"h2load against {server.kind.value}: not every request was answered\n{out}")
    seconds = float(elapsed[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[elapsed[2]]
    return figures(load.requests, seconds, cpu)


def fill(server: Server, keys: int) -> None:
    """Puts that many keys of 256 bytes each."""
    arguments = [PUT, "--fresh-puts", "256", "--requests", str(keys), "--connections", "1", "--streams", "250"]
    run_client(server, "loadtest.generator", *arguments)


def fan_out(server: Server, connections: int, watchers: int, puts: int) -> Measured:
    arguments = ["--connections", str(connections), "--watchers", str(watchers), "--puts", str(puts)]
    measured, cpu = run_client(server, "loadtest.fan_out", *arguments)
    return {"server CPU": cpu / measured["deliveries"] * 1e6}


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


class Bench:
    """The cases over one pair of servers that serves all of them but the starts."""

    def __init__(self, sizes: Sizes, load_with: Callable[[Server, Load], Measured], pair: dict[Kind, Server]) -> None:
        self._sizes = sizes
        self._load = load_with
        self._pair = pair

    def prepare(self, cases: list[str]) -> None:
        """What the cases read."""
        for server in self._pair.values():
            own_load(server, LOADS["put"]._replace(requests=200))
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
                return self._load(server, load._replace(requests=max(20, int(load.requests * sizes.share))))


@contextlib.contextmanager
def both() -> Iterator[dict[Kind, Server]]:
    with running(Kind.KVORUM) as kvorum, running(Kind.REFERENCE) as reference:
        yield {Kind.KVORUM: kvorum, Kind.REFERENCE: reference}


def ordered(cases: list[str]) -> list[str]:
    """Idle first, while the servers are new and quiet; the case that takes longest last."""
    return sorted(cases, key=lambda case: (case == "million-keys", case != "idle", CASES.index(case)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=CASES, help="only this case (may be given again)")
    parser.add_argument("--rounds", type=int, help="rounds of each case (default 5, of million-keys 1; quick: 1)")
    parser.add_argument("--quick", action="store_true", help="small rounds: shows that everything works, not how fast")
    parser.add_argument(
        "--generator", choices=("own", "h2load"), default="own", help="what loads the request cases (default own)"
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
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a thousand connections, at both ends
    cases = ordered(args.case or list(CASES))
    rounds: dict[Kind, dict[tuple[str, str], list[float]]] = {kind: {} for kind in Kind}
    began = datetime.now(UTC)
    with both() as pair:
        bench = Bench(sizes, h2load if args.generator == "h2load" else own_load, pair)
        prepared = False
        for case in cases:
            if case != "idle" and not prepared:
                bench.prepare(cases)
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
    print(f"\nwritten to {args.output / name}.*", file=sys.stderr)


if __name__ == "__main__":
    main()
