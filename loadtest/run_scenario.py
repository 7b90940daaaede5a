"""Runs a locust scenario against servers of its own: python -m loadtest.run_scenario (see --help), or `make loadtest`.

Starts a cluster and, as --target asks, a proxy or a gateway in front of it, runs locust, and stops everything. Options
that are not its own go to locust, which has the scenario's. The exit status is locust's: 1 when a call failed, or when
an event was lost or came out of order.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from kvorum.durations import parse_duration_ns
from loadtest.cluster import running_cluster
from loadtest.launcher import Kind
from loadtest.proxies import running_gateway, running_proxy

ROOT = Path(__file__).resolve().parent.parent
SCENARIOS = Path(__file__).with_name("scenarios")
TARGETS = ("member", "proxy", "gateway", "gateway+proxy")
"""What clients speak to; the last one is a gateway in front of a proxy."""
INTERRUPTED_S = 30.0
"""In which locust must have ended after a Ctrl-C."""
NOISY_NEIGHBOUR = "noisy_neighbour"


def names() -> list[str]:
    """The scenarios there are."""
    return sorted(path.stem for path in SCENARIOS.glob("*.py") if path.stem != "__init__")


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _seconds(text: str) -> int:
    try:
        seconds = parse_duration_ns(text) // 1_000_000_000
    except ValueError:
        seconds = 0
    if seconds < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no time of a second or more, such as 30s or 1h30m")
    return seconds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m loadtest.run_scenario", description=__doc__.split("\n\n")[1])
    parser.add_argument("scenario", choices=names())
    parser.add_argument("--users", type=_count, default=20, help="how many at once (default 20)")
    parser.add_argument("--duration", type=_seconds, default="10s", help="such as 30s or 5m (default 10s)")
    parser.add_argument("--target", choices=TARGETS, default="member", help="what the users speak to")
    parser.add_argument("--members", type=_count, default=1, help="of the cluster (default 1)")
    parser.add_argument("--kind", type=Kind, choices=list(Kind), default=Kind.KVORUM, help="whose servers")
    parser.add_argument("--tenants", type=_count, default=4, help=f"of {NOISY_NEIGHBOUR}, without the noisy one")
    parser.add_argument("--noisy-limit", type=float, default=100.0, help="calls a second that the noisy one may make")
    parser.add_argument("--web", action="store_true", help="locust's web page instead of a run, until Ctrl-C")
    parser.add_argument("--results", type=Path, default=Path("loadtest-results"), help="folder for what locust writes")
    return parser


def namespaces_file(tenants: int, noisy_limit: float) -> str:
    """The tenants of `noisy_neighbour`, known by the server name that they ask for; one of them has a limit."""
    lines = ["tenants:"]
    for name in [*(f"tenant-{number}" for number in range(tenants)), "noisy"]:
        lines += [f"  - name: {name}", f"    namespace: {name}/", f"    authorities: [{name}.loadtest]"]
    lines.append(f"    limits: {{requests_per_second: {noisy_limit:g}}}")
    return "\n".join(lines) + "\n"


def tenants_by_name(options: argparse.Namespace) -> bool:
    """A proxy of ours tells the tenants apart; without one they have keys that begin differently."""
    return bool(options.scenario == NOISY_NEIGHBOUR and "proxy" in options.target and options.kind is Kind.KVORUM)


def locust_command(host: str, options: argparse.Namespace, stem: Path) -> list[str]:
    """What runs the scenario against these addresses; it writes files whose names begin with `stem`."""
    command = [sys.executable, "-m", "locust", "-f", str(SCENARIOS / f"{options.scenario}.py"), "--host", host]
    command += ["--users", str(options.users), "--spawn-rate", str(min(options.users, 100))]
    if not options.web:
        command += ["--headless", "--only-summary", "--run-time", f"{options.duration}s"]
        command += ["--html", f"{stem}.html", "--figures", f"{stem}.json"]
    if options.scenario == NOISY_NEIGHBOUR:
        command += ["--tenants", str(options.tenants)]
        command += ["--tenancy", "authority" if tenants_by_name(options) else "prefix"]
    return command


def run(options: argparse.Namespace, others: Sequence[str]) -> int:
    """Starts everything, runs locust with these further options, stops everything; locust's exit status."""
    stem = options.results.resolve() / f"{options.scenario}-{options.target}-{datetime.now():%Y%m%d-%H%M%S}"
    stem.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(running_cluster(options.kind, options.members))
        addresses = cluster.addresses
        if "proxy" in options.target:
            flags = {}
            if tenants_by_name(options):
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                path = directory / "namespaces.yaml"
                path.write_text(namespaces_file(options.tenants, options.noisy_limit))
                flags["namespaces-file"] = str(path)
            addresses = [stack.enter_context(running_proxy(options.kind, addresses, flags)).address]
        if "gateway" in options.target:
            addresses = [stack.enter_context(running_gateway(options.kind, addresses)).address]
        command = locust_command(",".join(addresses), options, stem)
        with subprocess.Popen([*command, *others], cwd=ROOT) as locust:
            try:
                status = locust.wait()
            except KeyboardInterrupt:  # so was locust
                status = locust.wait(INTERRUPTED_S)
    if not options.web:
        print(f"\n{options.scenario} through {options.target}: {'passed' if status == 0 else 'FAILED'}")
        files = {"report": stem.with_name(f"{stem.name}.html"), "figures": stem.with_name(f"{stem.name}.json")}
        written = [f"{what}: {path}" for what, path in files.items() if path.exists()]
        print(", ".join(written) or "locust wrote no report")
    return status


if __name__ == "__main__":
    sys.exit(run(*_parser().parse_known_args()))
