"""Each locust scenario runs for a moment, in processes of its own: gevent must not patch the tests' process."""

import contextlib
import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest

from loadtest import run_scenario
from loadtest.launcher import Port, wait_until
from proxy.tenants.namespaces_file import parse_namespaces_file
from tests.servers import start_kvorum

TIMEOUT_S = 120.0
USERS = ("--headless", "--only-summary", "--users", "6", "--spawn-rate", "100", "--run-time", "3s")
LOSSY = Path(__file__).with_name("lossy_fan_out.py")


class Expected(NamedTuple):
    """A scenario's options for a short run, and the names under which it must report."""

    options: tuple[str, ...]
    names: set[str]


EXPECTED = {
    "kubernetes_mix": Expected(
        ("--informers", "2", "--user-rate", "20"),
        {
            *("Range (get)", "Range (list)", "Txn (create)", "Txn (update)", "Txn (renew lease)", "Txn (contended)"),
            *("Watch create", "Watch progress", "Watch event (pods)", "Watch event (leases)"),
        },
    ),
    "lease_keep_alive": Expected(
        ("--interval", "0.2"),
        {"LeaseGrant", "LeaseKeepAlive", "LeaseRevoke", "Put", "Watch event", "Watch event (revoked)"},
    ),
    "lock_contention": Expected(
        (),
        {
            *("Lock acquire", "Lock release", "Txn (create)", "Txn (guarded write)", "Range (who is before)"),
            *("DeleteRange", "LeaseGrant", "Watch create", "Watch event (unlock)"),
        },
    ),
    "mixed_kv": Expected(
        ("--serializable-ratio", "0.5", "--user-rate", "50"), {"Put", "Range", "Range (serializable)"}
    ),
    "noisy_neighbour": Expected(
        ("--noisy-users", "2"),
        {f"{what} ({when})" for what in ("Put", "Range", "Watch event") for when in ("alone", "beside noise")}
        | {"Put (noisy)", "Range (noisy list)"},
    ),
    "watch_fan_out": Expected(("--watches", "3"), {"Put", "Range (list)", "Watch create", "Watch event"}),
}


class Ended(NamedTuple):
    """What a run of locust has left."""

    status: int
    output: str
    operations: dict[str, dict[str, Any]]
    errors: list[str]


def start(scenario: Path, host: str, figures: Path, options: Sequence[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "locust", "-f", str(scenario), "--host", host, "--figures", str(figures)]
    return subprocess.Popen(
        [*command, *USERS, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=run_scenario.ROOT,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """All that it says until it ends."""
    with process:
        try:
            return process.communicate(timeout=TIMEOUT_S)[0]
        except BaseException:
            process.kill()
            raise


def ended(process: subprocess.Popen[str], path: Path) -> Ended:
    output = finish(process)
    assert path.exists(), output
    figures = json.loads(path.read_text())
    operations = {one["name"]: one for one in figures["operations"]}
    return Ended(process.returncode, output, operations, [one["error"] for one in figures["errors"]])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """All scenarios, and the one with a fault, at one time against one member."""
    folder = tmp_path_factory.mktemp("locust")
    scenarios = {name: run_scenario.SCENARIOS / f"{name}.py" for name in EXPECTED} | {LOSSY.stem: LOSSY}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(start_kvorum())
        started = {}
        for name, path in scenarios.items():
            options = EXPECTED[name].options if name in EXPECTED else ()
            started[name] = start(path, server.address, folder / name, options)
            stack.callback(started[name].kill)  # when another one has failed; else it has ended
        return {name: ended(process, folder / name) for name, process in started.items()}


def test_all_scenarios_are_tried() -> None:
    assert run_scenario.names() == sorted(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_scenario_reports_each_operation_and_finds_no_fault(name: str, runs: dict[str, Ended]) -> None:
    run = runs[name]
    assert run.errors == [], run.output
    assert run.status == 0, run.output
    missing = EXPECTED[name].names - run.operations.keys()
    assert not missing, run.output
    for operation in run.operations.values():
        assert operation["count"] > operation["failures"] == 0
        assert 0 <= operation["min"] <= operation["mean"] <= operation["max"]
        assert operation["p50"] <= operation["p90"] <= operation["p99"] <= operation["p99.9"]


def test_a_lost_event_is_a_failure_and_ends_locust_with_1(runs: dict[str, Ended]) -> None:
    run = runs[LOSSY.stem]
    assert run.status == 1, run.output
    assert run.errors == ["check Watch event: FaultError('an event was lost')"], run.output


def test_a_cluster_that_does_not_answer_ends_the_run(tmp_path: Path) -> None:
    process = start(run_scenario.SCENARIOS / "watch_fan_out.py", "127.0.0.1:1", tmp_path / "figures", ())
    output = finish(process)
    assert process.returncode == 1, output
    assert "the scenario cannot be prepared: UNAVAILABLE" in output


def test_a_run_from_the_web_page() -> None:
    """The page's form starts it, with options of its own, and the page's button ends it."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(start_kvorum())
        port = Port()
        stack.callback(port.release)
        command = [sys.executable, "-m", "locust", "-f", str(run_scenario.SCENARIOS / "watch_fan_out.py")]
        command += ["--host", server.address, "--web-host", "127.0.0.1", "--web-port", str(port.number)]
        locust = stack.enter_context(subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=run_scenario.ROOT))
        stack.callback(locust.kill)

        def page(method: str, path: str, form: Mapping[str, object] | None = None) -> dict[str, Any]:
            connection = http.client.HTTPConnection("127.0.0.1", port.number, timeout=TIMEOUT_S)
            with contextlib.closing(connection):
                body = urlencode(form) if form else None
                connection.request(method, path, body, {"Content-Type": "application/x-www-form-urlencoded"})
                reply: dict[str, Any] = json.loads(connection.getresponse().read())
                return reply

        def is_up() -> bool:
            assert locust.poll() is None
            try:
                return bool(page("GET", "/stats/requests"))
            except ConnectionRefusedError:
                return False

        def count(name: str) -> int:
            stats = page("GET", "/stats/requests")["stats"]
            return sum(int(one["num_requests"]) for one in stats if one["name"] == name)

        wait_until(is_up, "locust's page", TIMEOUT_S)
        form = {"user_count": 4, "spawn_rate": 10, "host": server.address, "writers": 2, "user_rate": 50}
        assert page("POST", "/swarm", form)["success"]
        wait_until(lambda: count("Watch event") > 100, "events", TIMEOUT_S)
        assert page("POST", "/stop")["success"]
        ended = page("GET", "/stats/requests")
        assert ended["errors"] == []
        puts, events = count("Put"), count("Watch event")
        assert puts < events <= 2 * puts  # two users watch, and two write
        locust.send_signal(signal.SIGINT)
        assert locust.wait(TIMEOUT_S) == 0


class Made(NamedTuple):
    """A run as `make loadtest` does it, and the names under which it must report."""

    scenario: str
    target: str
    options: tuple[str, ...]
    names: set[str]


@pytest.mark.parametrize(
    "made",
    [
        Made("watch_fan_out", "gateway+proxy", ("--watches", "2"), {"Put", "Watch create", "Watch event"}),
        Made(
            "noisy_neighbour",
            "proxy",
            ("--tenants", "2", "--noisy-limit", "10"),
            {"Put (alone)", "Put (beside noise)", "Watch event (beside noise)", "Put (noisy) (refused)"},
        ),
    ],
    ids=lambda made: f"{made.scenario}-{made.target}",
)
def test_a_run_as_make_does_it(made: Made, tmp_path: Path) -> None:
    """It starts its servers and stops them, and locust's report is there."""
    command = [sys.executable, "-m", "loadtest.run_scenario", made.scenario, "--target", made.target]
    run = subprocess.run(
        [*command, "--users", "6", "--duration", "3s", "--results", str(tmp_path), *made.options],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=run_scenario.ROOT,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{made.scenario} through {made.target}: passed" in run.stdout
    [path] = tmp_path.glob(f"{made.scenario}-{made.target}-*.json")
    figures = json.loads(path.read_text())
    assert figures["errors"] == []
    assert made.names <= {one["name"] for one in figures["operations"]}, run.stdout
    assert "Put" in path.with_suffix(".html").read_text()


def test_the_tenants_of_a_run_are_as_the_proxy_reads_them() -> None:
    tenants = parse_namespaces_file(run_scenario.namespaces_file(2, 50.0), "file").tenants
    assert [(one.name, one.authorities, one.limits.requests_per_second) for one in tenants] == [
        ("tenant-0", ("tenant-0.loadtest",), None),
        ("tenant-1", ("tenant-1.loadtest",), None),
        ("noisy", ("noisy.loadtest",), 50.0),
    ]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (("--users", "0"), "0 is less than 1"),
        (("--members", "-1"), "-1 is less than 1"),
        (("--duration", "abc"), "'abc' is no time of a second or more"),
        (("--duration", "10ms"), "'10ms' is no time of a second or more"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_anything_starts(
    wrong: tuple[str, str], says: str, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "loadtest.run_scenario",
        "mixed_kv",
        "--results",
        str(tmp_path / "results"),
        *wrong,
    ]
    ended = subprocess.run(command, cwd=run_scenario.ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert ended.returncode == 2
    assert says in ended.stderr
    assert not (tmp_path / "results").exists()
