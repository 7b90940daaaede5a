"""Automatic compaction: behaviour rows C12-C15."""

import itertools

from node.apply.auto_compaction import HOUR_S, REVISION_INTERVAL_S, AutoCompaction, Periodic, Revision


def run(
    mode: AutoCompaction, until_s: float, step_s: float, fail: frozenset[int] = frozenset()
) -> list[tuple[float, int]]:
    """One revision a second, from time 0; returns when what was asked for. Asks numbered in `fail` fail."""
    asked: list[tuple[float, int]] = []
    for i in range(1, int(until_s / step_s) + 1):
        now = i * step_s
        target = mode.tick(now, int(now))
        if target is not None:
            asked.append((now, target))
            if len(asked) - 1 not in fail:
                mode.done(now, target)
    return asked


def test_c12_a_short_period_compacts_each_period_to_the_revision_of_one_period_ago() -> None:
    asked = run(Periodic(100.0, 0.0), 500, 1)
    assert [at for at, _ in asked] == [101, 201, 301, 401]
    assert all(99 <= at - target <= 101 for at, target in asked)


def test_c12_a_long_period_waits_it_out_and_then_compacts_each_hour() -> None:
    asked = run(Periodic(3 * HOUR_S, 0.0), 6 * HOUR_S, 60)
    assert len(asked) == 3
    assert asked[0][0] - 3 * HOUR_S < HOUR_S / 10
    assert [later[0] - earlier[0] for earlier, later in itertools.pairwise(asked)] == [HOUR_S, HOUR_S]
    assert all(abs((at - target) - 3 * HOUR_S) <= 60 for at, target in asked)


def test_c15_a_failed_compaction_is_tried_again_after_a_tenth_of_the_interval() -> None:
    asked = run(Periodic(100.0, 0.0), 250, 1, fail=frozenset({0, 1}))
    assert [at for at, _ in asked] == [101, 111, 121, 221]


def test_c12_nothing_is_asked_for_while_nothing_was_written() -> None:
    mode = Periodic(10.0, 0.0)
    mode.done(0.0, 7)
    assert [mode.tick(float(now), 7) for now in range(100)] == [None] * 100


def test_c13_by_revision_every_five_minutes_and_never_twice_to_the_same() -> None:
    asked = run(Revision(100, 0.0), 3 * REVISION_INTERVAL_S, 1)
    assert asked == [(300, 200), (600, 500), (900, 800)]
    idle = Revision(100, 0.0)
    assert idle.tick(300.0, 500) == 400
    idle.done(300.0, 400)
    assert idle.tick(600.0, 500) is None


def test_c13_fewer_revisions_than_are_kept_ask_for_nothing() -> None:
    assert Revision(1000, 0.0).tick(300.0, 1000) is None
