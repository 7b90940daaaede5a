"""What the benchmark loads servers with, and what a round of it measures."""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

from loadtest import processes
from loadtest.h2_client import grpc_message
from loadtest.launcher import Server
from loadtest.messages import put_request, range_request

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


def cpu_s(members: Sequence[Server]) -> float:
    """What these members have used so far."""
    return sum(processes.cpu_s(member.pid) for member in members)


def pids(members: Sequence[Server]) -> set[int]:
    return {pid for member in members for pid in processes.tree(member.pid)}


def run_client(
    asked: Sequence[Server], module: str, *arguments: str, members: Sequence[Server] = ()
) -> tuple[dict[str, float], float]:
    """Runs a load process against the servers asked; returns what it measured, and the CPU seconds used meanwhile by
    the `members` of their cluster (default: those asked)."""
    members = members or asked
    server = asked[0]
    command = [sys.executable, "-m", module, ",".join(one.address for one in asked), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdin is not None and client.stdout is not None
        if client.stdout.readline() != "ready\n":
            raise SystemExit(f"{module} failed against {server.kind.value}")
        before, running = cpu_s(members), pids(members)
        client.stdin.write("\n")
        client.stdin.flush()
        answer = client.stdout.readline()
        cpu = cpu_s(members) - before
    if client.returncode or not answer:
        raise SystemExit(f"{module} failed against {server.kind.value}:\n{server.log_tail(5)}")
    if pids(members) != running:
        raise SystemExit(f"{server.kind.value} changed its processes under load:\n{server.log_tail(5)}")
    return json.loads(answer), cpu


def own_load(asked: Sequence[Server], load: Load, members: Sequence[Server] = ()) -> Measured:
    """A round of requests, by the project's own generator, spread evenly over the servers asked."""
    arguments = [load.path, "--message", load.message.hex(), "--requests", str(load.requests)]
    arguments += ["--connections", str(load.connections), "--streams", str(load.streams)]
    arguments += ["--warm-up", str(max(10, load.requests // 20))]
    measured, cpu = run_client(asked, "loadtest.generator", *arguments, members=members)
    return figures(measured["requests"], measured["seconds"], cpu)


def figures(requests: float, seconds: float, cpu_s: float) -> Measured:
    return {
        "throughput": requests / seconds,
        "server CPU": cpu_s / requests * 1e6,
        "mean latency": seconds / requests * 1e6,  # meant for one request at a time
    }


def h2load(asked: Sequence[Server], load: Load) -> Measured:
    """The same, at one server, by h2load: replies are checked by their number and by the size of what they carry."""
    (server,) = asked
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
    run_client([server], "loadtest.generator", *arguments)


def fan_out(server: Server, connections: int, watchers: int, puts: int) -> Measured:
    arguments = ["--connections", str(connections), "--watchers", str(watchers), "--puts", str(puts)]
    measured, cpu = run_client([server], "loadtest.fan_out", *arguments)
    return {"server CPU": cpu / measured["deliveries"] * 1e6}
