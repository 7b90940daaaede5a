"""Many seeds, on all cores. Each class of seeds runs in a process with a hash seed of its own, so that an order of sets
that decided anything would show, and yet every seed replays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tests.sim.run import Outcome, run

REPOSITORY = Path(__file__).parents[2]
CLASSES = 4
TRACE_LINES = 150


def hash_seed(seed: int) -> int:
    """PYTHONHASHSEED of the process that runs a seed."""
    return 1 + seed % CLASSES


@dataclass(slots=True)
class Report:
    """What many runs were, all together."""

    seeds: int = 0
    took_s: float = 0.0
    simulated_s: float = 0.0
    operations: int = 0
    crashes: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, line: dict[str, Any]) -> None:
        """One run, as its process told of it."""
        self.seeds += 1
        self.simulated_s += line["simulated_s"]
        self.operations += line["operations"]
        self.crashes += line["crashes"]
        if line["failure"]:
            self.failures.append(line["failure"])

    def text(self) -> str:
        """For people."""
        took_s = max(self.took_s, 1e-9)
        return (
            f"{self.seeds} seeds in {took_s:.1f} s ({self.seeds / took_s:.2f} per second): "
            f"{self.simulated_s:.0f} simulated seconds ({self.simulated_s / took_s:.1f} per second), "
            f"{self.operations} operations ({self.operations / took_s:.0f} per second), {self.crashes} crashes, "
            f"{len(self.failures)} failed"
        )


def run_seeds(seeds: Iterable[int], on_failure: Callable[[str], object] = lambda text: None) -> Report:
    """Runs them all; `failures` has a text for each that failed, and `on_failure` is told of each at once."""
    by_class: dict[int, list[int]] = {}
    for seed in seeds:
        by_class.setdefault(hash_seed(seed), []).append(seed)
    began = time.perf_counter()
    lines: SimpleQueue[str | None] = SimpleQueue()
    processes = [_start_class(number, of_class) for number, of_class in by_class.items()]
    readers = [threading.Thread(target=_read, args=(process, lines)) for process in processes]
    for reader in readers:
        reader.start()
    report = Report()
    try:
        open_ = len(processes)
        while open_:
            line = lines.get()
            if line is None:
                open_ -= 1
                continue
            run_ = json.loads(line)
            report.add(run_)
            if run_["failure"]:
                on_failure(run_["failure"])
        for process in processes:
            if process.wait():
                report.failures.append(f"a process of the simulator ended with {process.returncode}")
                on_failure(report.failures[-1])
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for reader in readers:
            reader.join()
        for process in processes:
            assert process.stdout is not None
            process.stdout.close()
    report.took_s = time.perf_counter() - began
    return report


def digest_under(number: int, seed: int) -> int:
    """Of what clients were told in the run of a seed, in a process with this hash seed."""
    with _start_class(number, [seed]) as process:
        output, _ = process.communicate()
    digest: int = json.loads(output)["digest"]
    return digest


def _start_class(number: int, seeds: Sequence[int]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONHASHSEED": str(number), "PYTHONPATH": str(REPOSITORY)}
    arguments = [sys.executable, "-m", "tests.sim.seeds", json.dumps(seeds)]
    return subprocess.Popen(arguments, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True)


def _read(process: subprocess.Popen[str], lines: SimpleQueue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def replay(seed: int, lines: int = TRACE_LINES) -> Outcome:
    """Runs a seed again, and prints the end of its trace and what is wrong."""
    outcome = run(seed, traced=True)
    print(describe(outcome, lines))
    return outcome


def describe(outcome: Outcome, lines: int = TRACE_LINES) -> str:
    """A run for people: the end of its trace, and what is wrong with it."""
    problems = [f"PROBLEM: {problem}" for problem in outcome.problems] or ["no problem"]
    return "\n".join(
        [
            f"seed {outcome.seed}: the last of what happened",
            *outcome.trace[-lines:],
            *problems,
            f"seed {outcome.seed}: {outcome.simulated_s:.1f} simulated seconds, {outcome.operations} operations, "
            f"{outcome.revisions} revisions, {outcome.crashes} crashes; to see it again: make sim SEED={outcome.seed}",
        ]
    )


def _run_class(seeds: Sequence[int]) -> None:
    """In a process of its own: a line of JSON per seed."""
    for seed in seeds:
        outcome = run(seed)
        failure = describe(run(seed, traced=True)) if outcome.problems else ""
        if outcome.problems and failure.endswith("no problem"):
            failure += f"\nseed {seed} does not replay: {outcome.problems}"
        line = {
            "simulated_s": outcome.simulated_s,
            "operations": outcome.operations,
            "crashes": outcome.crashes,
            "digest": outcome.digest,
            "failure": failure,
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    _run_class(json.loads(sys.argv[1]))
