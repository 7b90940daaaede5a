"""The benchmark's cases of proxies: what they measure, and the picture of what watchers cost."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest import report
from loadtest.bench import group_of
from loadtest.launcher import Kind
from loadtest.loads import Sizes
from loadtest.proxies import running_proxy
from loadtest.proxy_bench import FAN_OUTS, LOADS_THROUGH, WATCHERS, ProxyBench, shape
from loadtest.targets import CASES, FIGURES, Result, judge
from tests.servers import start_kvorum

SIZES = Sizes(share=0.001, puts_fan_out=2, connections_fan_out=3, idle_s=0.1, fill_keys=100)


@pytest.fixture(scope="module")
def bench() -> Iterator[ProxyBench]:
    with start_kvorum() as member, running_proxy(Kind.KVORUM, [member.address]) as proxy:
        bench = ProxyBench(SIZES, {Kind.KVORUM: member}, {Kind.KVORUM: proxy})
        bench.prepare([])
        yield bench


@pytest.mark.parametrize("case", ["proxy-idle", "proxy-put", "proxy-fan-out-connections", "watchers-10"])
def test_a_case_measures_its_figures(bench: ProxyBench, case: str) -> None:
    measured = bench.measure(case, Kind.KVORUM)
    for figure in FIGURES:
        if figure.case == case:
            assert measured[figure.name] >= 0


def test_every_case_is_known() -> None:
    of_proxies = {case for case in CASES if group_of(case) == "proxy"}
    assert of_proxies == {*LOADS_THROUGH, *FAN_OUTS, *WATCHERS, "proxy-idle"}


@pytest.mark.parametrize("watchers", WATCHERS.values())
def test_watchers_are_spread_without_a_rest(watchers: int) -> None:
    connections, on_each, puts = shape(watchers, 1.0)
    assert connections * on_each == watchers
    assert 2 <= puts <= 200


def test_rounds_without_a_figure_do_not_count() -> None:
    case = ("watchers-10", "proxy CPU")
    (result,) = judge({case: [1.0, 3.0, 2.0]}, {case: [math.nan, 4.0, math.nan]})
    assert (result.ours, result.reference) == (2.0, 4.0)
    (result,) = judge({case: [1.0]}, {case: [math.nan]})
    assert math.isnan(result.reference)


def test_the_picture_has_gaps_where_nothing_was_measured(tmp_path: Path) -> None:
    figures = [figure for figure in FIGURES if figure.case in WATCHERS]
    results = [Result(figure, 1.0, math.nan if "proxy" in figure.name else 2.0) for figure in figures]
    report.plot_watchers(results[:2], tmp_path / "one.png")
    assert not (tmp_path / "one.png").exists()
    report.plot_watchers(results, tmp_path / "all.png")
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
