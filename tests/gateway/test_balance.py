"""Which endpoint comes next (behaviour GW1; RFC 2782)."""

import random
from collections import Counter
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from gateway.balance import Balance, Endpoint


def never() -> float:
    raise AssertionError("nothing is to be drawn")


def seeded(seed: int) -> Callable[[], float]:
    return random.Random(seed).random


def endpoints(*kinds: tuple[int, int]) -> list[Endpoint]:
    """One for each (priority, weight)."""
    return [Endpoint(f"h{place}", 2379, priority, weight) for place, (priority, weight) in enumerate(kinds)]


def picks(balance: Balance, count: int) -> list[int | None]:
    return [balance.pick() for _ in range(count)]


def test_without_weights_the_choice_goes_round() -> None:
    assert picks(Balance(endpoints((0, 0), (0, 0), (0, 0)), never), 7) == [0, 1, 2, 0, 1, 2, 0]


def test_inactive_endpoints_are_left_out_until_they_are_activated() -> None:
    balance = Balance(endpoints((0, 0), (0, 0), (0, 0)), never)
    assert balance.deactivate(1)
    assert not balance.deactivate(1)
    assert Counter(picks(balance, 10)) == {0: 5, 2: 5}
    balance.activate(1)
    assert Counter(picks(balance, 9)) == {0: 3, 1: 3, 2: 3}


def test_when_none_is_active_there_is_no_choice() -> None:
    balance = Balance(endpoints((0, 5), (1, 0)), never)
    balance.deactivate(0)
    balance.deactivate(1)
    assert balance.pick() is None


def test_a_higher_priority_value_waits_until_all_lower_ones_are_inactive() -> None:
    balance = Balance(endpoints((2, 0), (1, 0), (1, 0)), never)
    assert set(picks(balance, 6)) == {1, 2}
    balance.deactivate(2)
    assert set(picks(balance, 6)) == {1}
    balance.deactivate(1)
    assert set(picks(balance, 6)) == {0}
    balance.activate(2)
    assert set(picks(balance, 6)) == {2}


def test_weights_are_shares() -> None:
    counts = Counter(picks(Balance(endpoints((0, 1), (0, 3), (0, 6)), seeded(1)), 20_000))
    for place, share in ((0, 0.1), (1, 0.3), (2, 0.6)):
        assert abs(counts[place] / 20_000 - share) < 0.02


def test_weight_zero_has_a_very_small_chance_beside_weights() -> None:
    """A hundredth, shared in turn among those of weight 0."""
    counts = Counter(picks(Balance(endpoints((0, 0), (0, 10), (0, 0)), seeded(2)), 50_000))
    assert abs((counts[0] + counts[2]) / 50_000 - 0.01) < 0.004
    assert abs(counts[0] - counts[2]) <= 1


def test_an_endpoint_is_shown_as_it_is_dialed() -> None:
    assert str(Endpoint("infra0.example.com.", 2379)) == "infra0.example.com.:2379"
    assert str(Endpoint("::1", 2379)) == "[::1]:2379"


@given(
    kinds=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=6),
    changes=st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=20),
    seed=st.integers(0, 1000),
)
def test_the_choice_is_always_an_active_endpoint_of_the_lowest_priority(
    kinds: list[tuple[int, int]], changes: list[tuple[bool, int]], seed: int
) -> None:
    balance = Balance(endpoints(*kinds), seeded(seed))
    active = set(range(len(kinds)))
    for activate, place in changes:
        place %= len(kinds)
        if activate:
            balance.activate(place)
            active.add(place)
        else:
            assert balance.deactivate(place) == (place in active)
            active.discard(place)
        picked = balance.pick()
        if not active:
            assert picked is None
        else:
            assert picked in active
            assert kinds[picked][0] == min(kinds[other][0] for other in active)


@given(draw=st.floats(0, 1, exclude_max=True), weights=st.lists(st.integers(1, 65535), min_size=1, max_size=5))
def test_a_draw_falls_to_the_endpoint_whose_running_sum_covers_it(draw: float, weights: list[int]) -> None:
    picked = Balance(endpoints(*((0, weight) for weight in weights)), lambda: draw).pick()
    assert picked is not None
    point = draw * sum(weights)
    assert sum(weights[:picked]) <= point
    assert point < sum(weights[: picked + 1]) or picked == len(weights) - 1
