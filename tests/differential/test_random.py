"""Random sequences of calls at kvorum and the reference, side by side: one member each, also behind a gateway and a
proxy, and clusters of three.

`KVORUM_DIFFERENTIAL_EXAMPLES=N` sets how many sequences are run (each of some 30 steps), through a proxy
`KVORUM_DIFFERENTIAL_PROXY_EXAMPLES=N`, at clusters `KVORUM_DIFFERENTIAL_CLUSTER_EXAMPLES=N`. A failing one is printed,
shrunk, with the line that replays it; it is also kept in .hypothesis and tried first in the next run.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings

from tests.differential.pair import Pairs
from tests.differential.steps import Step, at_clusters, sequences
from tests.servers import start_behind, start_kvorum, start_kvorum_cluster, start_reference, start_reference_cluster

EXAMPLES = int(os.environ.get("KVORUM_DIFFERENTIAL_EXAMPLES", "300"))
PROXY_EXAMPLES = int(os.environ.get("KVORUM_DIFFERENTIAL_PROXY_EXAMPLES", "60"))
CLUSTER_EXAMPLES = int(os.environ.get("KVORUM_DIFFERENTIAL_CLUSTER_EXAMPLES", "60"))


@contextlib.contextmanager
def one_kvorum() -> Iterator[Sequence[str]]:
    with start_kvorum() as server:
        yield [server.address]


@contextlib.contextmanager
def one_kvorum_behind_a_gateway_and_a_proxy() -> Iterator[Sequence[str]]:
    with start_kvorum() as server, start_behind(server) as proxy:
        yield [proxy.address]


@contextlib.contextmanager
def one_reference() -> Iterator[Sequence[str]]:
    with start_reference() as server:
        yield [server.address]


@contextlib.contextmanager
def three_of_kvorum() -> Iterator[Sequence[str]]:
    with start_kvorum_cluster() as cluster:
        yield cluster.addresses


@contextlib.contextmanager
def three_of_reference() -> Iterator[Sequence[str]]:
    with start_reference_cluster() as cluster:
        yield cluster.addresses


@pytest.fixture(scope="module")
def pairs() -> Iterator[Pairs]:
    pairs = Pairs(one_kvorum, one_reference)
    yield pairs
    pairs.close()


@pytest.fixture(scope="module")
def pairs_behind_a_proxy() -> Iterator[Pairs]:
    pairs = Pairs(one_kvorum_behind_a_gateway_and_a_proxy, one_reference)
    yield pairs
    pairs.close()


@pytest.fixture(scope="module")
def pairs_of_clusters() -> Iterator[Pairs]:
    pairs = Pairs(three_of_kvorum, three_of_reference)
    yield pairs
    pairs.close()


def many(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    )


@many(EXAMPLES)
@given(sequence=sequences())
def test_every_answer_and_event_is_the_reference_s(pairs: Pairs, sequence: list[Step]) -> None:
    with pairs.example() as pair:
        pair.run(sequence)
        note(f"subject at revision {pair.now}")


@many(PROXY_EXAMPLES)
@given(sequence=sequences())
def test_a_gateway_and_a_proxy_change_no_answer(pairs_behind_a_proxy: Pairs, sequence: list[Step]) -> None:
    with pairs_behind_a_proxy.example() as pair:
        pair.run(sequence)
        note(f"subject at revision {pair.now}")


@many(CLUSTER_EXAMPLES)
@given(sequence=at_clusters())
def test_every_member_of_a_cluster_answers_as_the_reference_s(pairs_of_clusters: Pairs, sequence: list[Step]) -> None:
    with pairs_of_clusters.example() as pair:
        pair.run(sequence)
        note(f"subject at revision {pair.now}")
