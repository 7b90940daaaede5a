"""The page /proxy/metrics: figures as families of the Prometheus client library.

Imported at the first scrape, in a side thread: the library takes 3.5 MiB and 20 ms that a proxy nobody scrapes need not
pay. The registry and its collectors are made once, since each would be a cycle that nobody collects.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from proxy.metrics import SERIES, Figures


class FiguresCollector(Collector):
    """One family per series that has a figure."""

    def __init__(self) -> None:
        self.figures: Figures = {}

    def collect(self) -> Iterator[Metric]:
        """The families."""
        for name, series in SERIES.items():
            if name not in self.figures:
                continue
            numbers = self.figures[name] if series.labels else [[(), self.figures[name]]]
            # Not the library's own families: they would give each counter another name, and no gauge one in `_total`.
            metric = Metric(name, series.help, "counter" if series.is_counter else "gauge")
            metric.samples = [
                Sample(name, dict(zip(series.labels, values, strict=True)), number) for values, number in numbers
            ]
            yield metric


_COLLECTOR: Final = FiguresCollector()
_REGISTRY: Final = CollectorRegistry()
_REGISTRY.register(_COLLECTOR)
PlatformCollector(_REGISTRY)
ProcessCollector(registry=_REGISTRY)


def render(figures: Figures) -> bytes:
    """The page in the text format 0.0.4, with what the platform says of this process. One call at a time."""
    unknown = figures.keys() - SERIES.keys()
    assert not unknown, f"figures without a series: {unknown}"
    _COLLECTOR.figures = figures
    # The library puts `_total` to the head of every counter's family, also to one that has it.
    return generate_latest(_REGISTRY).replace(b"_total_total ", b"_total ")
