"""Runs a locust scenario against servers of its own: python -m loadtest.run_scenario (see --help), or `make loadtest`.

Starts a cluster and, as --target asks, a proxy or a gateway in front of it, runs locust, and stops everything. Options
that are not its own go to locust, which has the scenario's. The exit status is locust's: 1 when a call failed, or when
an event was lost or came out of order.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from loadtest.cluster import running_cluster
from loadtest.launcher import Kind
from loadtest.tiers import Tier, running_tier

ROOT = Path(__file__).resolve().parent.parent
SCENARIOS = Path(__file__).with_name("scenarios")
TARGETS: dict[str, tuple[Tier, ...]] = {
    "member": (),
    "proxy": (Tier.PROXY,),
    "gateway": (Tier.GATEWAY,),
    "gateway+proxy": (Tier.PROXY, Tier.GATEWAY),
}
"""What stands in front of the members; the last one is what clients speak to."""
INTERRUPTED_S = 30.0
"""In which locust must have ended after a Ctrl-C."""
NOISY_NEIGHBOUR = "noisy_neighbour"


def names() -> list[str]:
    """The scenarios there are."""
    return sorted(path.stem for path in SCENARIOS.glob("*.py") if path.stem != "__init__")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m loadtest.run_scenario", description=__doc__.split("\n\n")[1])
    parser.add_argument("scenario", choices=names())
    parser.add_argument("--users", type=int, default=20, help="how many at once (default 20)")
    parser.add_argument("--duration", default="10s", help="such as 30s or 5m (default 10s)")
    parser.add_argument("--target", choices=TARGETS, default="member", help="what the users speak to")
    parser.add_argument("--members", type=int, default=1, help="of the cluster (default 1)")
    parser.add_argument("--kind", type=Kind, choices=list(Kind), default=Kind.KVORUM, help="whose servers")
    parser.add_argument("--tenants", type=int, default=4, help=f"of {NOISY_NEIGHBOUR}, without the noisy one")
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


def locust_command(scenario: str, host: str, options: argparse.Namespace, stem: Path) -> list[str]:
    """What runs the scenario against these addresses; it writes files whose names begin with `stem`."""
    command = [sys.executable, "-m", "locust", "-f", str(SCENARIOS / f"{scenario}.py"), "--host", host]
    command += ["--users", str(options.users), "--spawn-rate", str(min(options.users, 100))]
    if not options.web:
        command += ["--headless", "--only-summary", "--run-time", options.duration]
        command += ["--html", f"{stem}.html", "--figures", f"{stem}.json"]
    if scenario == NOISY_NEIGHBOUR:
        by_name = Tier.PROXY in TARGETS[options.target] and options.kind is Kind.KVORUM
        command += ["--tenants", str(options.tenants), "--tenancy", "authority" if by_name else "prefix"]
    return command


def run(options: argparse.Namespace, others: Sequence[str]) -> int:
    """Starts everything, runs locust with these further options, stops everything; locust's exit status."""
    stem = options.results / f"{options.scenario}-{options.target}-{datetime.now():%Y%m%d-%H%M%S}"
    options.results.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(running_cluster(options.kind, options.members))
        addresses = cluster.addresses
        for tier in TARGETS[options.target]:
            flags = {}
            if tier is Tier.PROXY and options.kind is Kind.KVORUM and options.scenario == NOISY_NEIGHBOUR:
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                flags["namespaces-file"] = str(directory / "namespaces.yaml")
                Path(flags["namespaces-file"]).write_text(namespaces_file(options.tenants, options.noisy_limit))
            addresses = [stack.enter_context(running_tier(options.kind, tier, addresses, flags)).address]
        command = locust_command(options.scenario, ",".join(addresses), options, stem)
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with subprocess.Popen([*command, *others], env=os.environ | {"PYTHONPATH": path}) as locust:
            try:
                status = locust.wait()
            except KeyboardInterrupt:  # so was locust
                status = locust.wait(INTERRUPTED_S)
    if not options.web:
        print(f"\n{options.scenario} through {options.target}: {'passed' if status == 0 else 'FAILED'}")
        print(f"report: {stem}.html, figures: {stem}.json")
    return status


if __name__ == "__main__":
    sys.exit(run(*_parser().parse_known_args()))
