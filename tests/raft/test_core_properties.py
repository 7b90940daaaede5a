"""Groups of cores under random trouble keep raft's promises, and get on with their work when the trouble ends.

`KVORUM_RAFT_SEEDS`: how many seeds, from `KVORUM_RAFT_FIRST_SEED` on. A failing seed is in the test's name and
replays exactly.
"""

import os

import pytest

from tests.raft.core_trouble import TroubledGroup

FIRST = int(os.environ.get("KVORUM_RAFT_FIRST_SEED", "0"))
SEEDS = int(os.environ.get("KVORUM_RAFT_SEEDS", "200"))
STEPS = 8000


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_group(seed: int) -> None:
    group = TroubledGroup(seed)
    try:
        for _ in range(STEPS):
            group.step()
        assert group.settle() or group.changes, "stuck, though the group never changed"
    except AssertionError as error:
        error.add_note(f"seed {seed}; the last of what happened:\n" + "\n".join(group.history[-60:]))
        raise


def test_a_seed_replays_exactly() -> None:
    histories: list[list[str]] = []
    for _ in range(2):
        group = TroubledGroup(7)
        for _ in range(STEPS):
            group.step()
        group.settle()
        histories.append(group.history)
    assert histories[0] == histories[1]
