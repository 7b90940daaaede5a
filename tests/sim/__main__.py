"""Runs seeds: `python -m tests.sim --seeds 1000`, or one seed again, with a trace: `--seed 17`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tests.sim.seeds import REPOSITORY, Report, hash_seed, replay, run_seeds

TRACE_LINES = 400


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds")
    parser.add_argument("--first", type=int, default=1, help="the first of them")
    parser.add_argument("--seed", type=int, help="one seed, with its trace")
    parser.add_argument("--lines", type=int, default=TRACE_LINES, help="how many lines of the trace, from its end")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        wanted = str(hash_seed(arguments.seed))
        if os.environ.get("PYTHONHASHSEED") != wanted:  # it replays exactly only with the same order of sets
            environment = {**os.environ, "PYTHONHASHSEED": wanted}
            os.chdir(REPOSITORY)
            os.execve(sys.executable, [sys.executable, "-m", "tests.sim", *sys.argv[1:]], environment)
        outcome = replay(arguments.seed, arguments.lines)
        return 1 if outcome.problems else 0
    report: Report = run_seeds(range(arguments.first, arguments.first + arguments.seeds), print)
    print(report.text())
    return 1 if report.failures else 0


if __name__ == "__main__":
    assert Path(REPOSITORY, "tests").is_dir()
    sys.exit(main())
