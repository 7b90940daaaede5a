"""Whole clusters under trouble, from seeds: nothing that clients were told may be wrong, whatever happens."""

from __future__ import annotations

import os

import pytest

from tests.sim.run import run
from tests.sim.seeds import digest_under, run_seeds

SEEDS = int(os.environ.get("KVORUM_SIM_SEEDS", "200"))


def test_seeds() -> None:
    """`make sim SEEDS=…` runs more of them, `make sim SEED=…` one again, with its trace."""
    report = run_seeds(range(1, 1 + SEEDS))
    assert report.seeds == SEEDS, "a process of the simulator ended early"
    assert not report.failures, "\n".join([*report.failures, report.text()])
    print(report.text())


@pytest.mark.parametrize("seed", [3, 7])
def test_a_seed_replays_exactly(seed: int) -> None:
    """Also when it is traced."""
    one, other = run(seed), run(seed, traced=True)
    assert one.digest == other.digest
    assert one.events == other.events


@pytest.mark.parametrize("seed", [2, 5])
def test_no_order_of_sets_decides_anything(seed: int) -> None:
    assert digest_under(1, seed) == digest_under(2, seed)
