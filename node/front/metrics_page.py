"""The page /metrics: the figures of all processes of a member as families of the Prometheus client library.

Imported at the first scrape, in the side thread: the library takes 3.5 MiB and 20 ms that a member nobody scrapes need
not pay, and writing the page (700 samples, 6 ms on an idle core) would hold the loop up.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any, Final

from prometheus_client import CollectorRegistry, PlatformCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from node.front.metrics import process_name
from node.stats import SERIES, Figures, Series, SeriesType, add

BARE_COUNTERS: Final = tuple(
    [name for name, series in SERIES.items() if series.type is SeriesType.COUNTER and not name.endswith("_total")]
)
"""Counters whose names lack `_total`, as dashboards know them. The library puts it to the head of every counter's
family: `_family` names their samples, and `render` mends their HELP and TYPE lines."""

_BARE_HEAD: Final = re.compile(f"^(# (?:HELP|TYPE) (?:{'|'.join(BARE_COUNTERS)}))_total ".encode(), re.MULTILINE)


class MemberCollector(Collector):
    """One family per series that has a figure; a series without one is left out: a zero would look like a reset."""

    def __init__(self, figures: Figures) -> None:
        assert figures.keys() <= SERIES.keys(), f"figures without a series: {figures.keys() - SERIES.keys()}"
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """The families, in the order of their names."""
        for name, series in SERIES.items():
            if name in self._figures:
                yield _family(series, self._figures[name])


def render(by_process: Mapping[int, Figures], asked: Iterable[int], member: Figures) -> bytes:
    """The page in the text format 0.0.4.

    `by_process` has what was gathered; of `asked` those that are missing did not answer in time.
    """
    figures: Figures = {
        **member,
        "kvorum_process_up": [[[process_name(process)], int(process in by_process)] for process in asked],
    }
    for given in by_process.values():
        for name, figure in given.items():
            figures[name] = add(figures[name], figure) if name in figures else figure
    registry = CollectorRegistry()
    registry.register(MemberCollector(figures))
    PlatformCollector(registry)
    return _BARE_HEAD.sub(rb"\1 ", generate_latest(registry))


def _family(series: Series, figure: Any) -> Metric:
    numbers = figure if series.labels else [((), figure)]
    if series.type is SeriesType.HISTOGRAM:
        bounds = [_bound(bound) for bound in (*series.bounds, math.inf)]
        histogram = HistogramMetricFamily(series.name, series.help, labels=series.labels)
        for values, counted in numbers:
            assert len(counted["buckets"]) == len(bounds), f"{series.name} was counted in other buckets"
            buckets = list(zip(bounds, accumulate(counted["buckets"]), strict=True))
            histogram.add_metric(values, buckets=buckets, sum_value=counted["sum"])
        return histogram
    if series.name in BARE_COUNTERS:
        bare = Metric(series.name, series.help, "counter")
        bare.samples = [Sample(series.name, dict(zip(series.labels, values, strict=True)), n) for values, n in numbers]
        return bare
    kind = CounterMetricFamily if series.type is SeriesType.COUNTER else GaugeMetricFamily
    family = kind(series.name, series.help, labels=series.labels)
    for values, number in numbers:
        family.add_metric(values, number)
    return family


def _bound(bound: float) -> str:
    """The label `le` as Go writes it: `1`, `0.5`, `1.048576e+06`."""
    text: str = floatToGoString(bound)  # type: ignore[no-untyped-call]  # the one function that the library left bare
    return text.removesuffix(".0")
