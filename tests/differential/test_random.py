"""Random sequences of calls at kvorum and the reference, side by side.

`KVORUM_DIFFERENTIAL_EXAMPLES=N` sets how many sequences are run (each of some 30 steps). A failing one is printed,
shrunk, with the line that replays it; it is also kept in .hypothesis and tried first in the next run.
"""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings

from tests.differential.pair import Pairs
from tests.differential.steps import Step, sequences

EXAMPLES = int(os.environ.get("KVORUM_DIFFERENTIAL_EXAMPLES", "600"))


@pytest.fixture(scope="module")
def pairs() -> Iterator[Pairs]:
    pairs = Pairs()
    yield pairs
    pairs.close()


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
)
@given(sequence=sequences())
def test_every_answer_and_event_is_the_reference_s(pairs: Pairs, sequence: list[Step]) -> None:
    with pairs.example() as pair:
        pair.run(sequence)
        note(f"subject at revision {pair.now}")
