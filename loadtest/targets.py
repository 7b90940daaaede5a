"""What the benchmark wants: one row per figure, with the floor (target) and the wish (goal)."""

import math
import statistics
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Final, NamedTuple


class Against(Enum):
    """What a target is compared with."""

    RATIO = "ours / reference"
    OURS = "ours alone"


class Figure(NamedTuple):
    """One figure of one case. `higher` says which way is better; target and goal are inclusive, None where none is
    agreed."""

    case: str
    name: str
    unit: str
    higher: bool
    against: Against
    target: float | None
    goal: float | None


class Result(NamedTuple):
    """A figure's medians over the rounds, and how they stand."""

    figure: Figure
    ours: float
    reference: float

    @property
    def ratio(self) -> float:
        """Ours / reference; NaN when the reference has none."""
        return self.ours / self.reference if self.reference else math.nan

    def _meets(self, bound: float | None) -> bool:
        if bound is None:
            return False
        value = self.ratio if self.figure.against is Against.RATIO else self.ours
        return value >= bound if self.figure.higher else value <= bound  # false for NaN

    @property
    def verdict(self) -> str:
        if self.figure.target is None:
            return "-"
        return "goal" if self._meets(self.figure.goal) else "target" if self._meets(self.figure.target) else "MISSED"


Bounds = tuple[float | None, float | None]
"""Target and goal."""

NONE: Final[Bounds] = (None, None)
OF_REQUESTS: Final = ("req/s", "us/req")
OF_BYTES: Final = ("GB/s", "s/GB")


def _rates(case: str, throughput: Bounds, cpu: Bounds, units: tuple[str, str] = OF_REQUESTS) -> tuple[Figure, Figure]:
    """CPU is that of the server that is measured: of all members of a cluster together, of a proxy or gateway alone."""
    return (
        Figure(case, "throughput", units[0], True, Against.RATIO, *throughput),
        Figure(case, "server CPU", units[1], False, Against.RATIO, *cpu),
    )


FIGURES: Final = (
    *_rates("put", (1.3, 2.0), (0.8, 0.4)),
    *_rates("get", (1.3, 2.0), (0.8, 0.4)),
    *_rates("serializable-get", (1.3, 2.0), (0.8, 0.4)),
    Figure("put-serial", "mean latency", "us", False, Against.RATIO, 2.0, 1.6),
    Figure("get-serial", "mean latency", "us", False, Against.RATIO, 1.3, 1.0),
    Figure("list-10k", "throughput", "req/s", True, Against.RATIO, 1.0, 2.0),
    Figure("fan-out-one-stream", "server CPU", "us/delivery", False, Against.RATIO, 0.2, 0.1),
    Figure("fan-out-connections", "server CPU", "us/delivery", False, Against.RATIO, 0.5, 0.25),
    Figure("idle", "memory (PSS)", "MiB", False, Against.OURS, 180.0, 130.0),
    Figure("idle", "CPU", "% of a core", False, Against.OURS, None, None),
    Figure("start-empty", "start to ready", "s", False, Against.OURS, 1.5, 1.0),
    Figure("million-keys", "start to ready", "s", False, Against.OURS, 5.0, 2.0),
    Figure("million-keys", "memory (PSS) when filled", "MiB", False, Against.OURS, 600.0, 300.0),
    Figure("million-keys", "memory (PSS) after a restart", "MiB", False, Against.OURS, 600.0, 300.0),
    Figure("cluster-idle", "memory (PSS)", "MiB", False, Against.OURS, None, None),
    Figure("cluster-idle", "CPU", "% of a core", False, Against.OURS, None, None),
    *_rates("cluster-put-leader", (1.0, 1.5), NONE),
    *_rates("cluster-put-spread", (1.0, 1.5), NONE),
    *_rates("cluster-get-leader", NONE, NONE),
    *_rates("cluster-get-follower", NONE, NONE),
    # two election timeouts of 1 s each
    Figure("cluster-leader-killed", "pause of writes", "s", False, Against.OURS, 2.0, 1.5),
    Figure("cluster-leader-stopped", "pause of writes", "s", False, Against.OURS, 2.0, 0.5),
    Figure("cluster-leader-moved", "pause of writes", "s", False, Against.OURS, 1.0, 0.1),
    *_rates("gateway-bytes", (0.8, 1.0), (1.5, 1.0), OF_BYTES),
    *_rates("gateway-bytes-one", (0.8, 1.0), (1.5, 1.0), OF_BYTES),
    *_rates("gateway-get", (0.8, 1.0), (1.5, 1.0)),
    *_rates("gateway-get-connections", (0.8, 1.0), (1.5, 1.0)),
    Figure("gateway-get-serial", "mean latency", "us", False, Against.RATIO, 1.3, 1.0),
    Figure("gateway-idle", "memory (PSS)", "MiB", False, Against.OURS, 40.0, 20.0),
    *_rates("proxy-put", (2.0, 5.0), NONE),
    *_rates("proxy-get", (2.0, 5.0), NONE),
    *_rates("proxy-cached-get", (2.0, 4.0), NONE),
    Figure("proxy-put-serial", "mean latency", "us", False, Against.RATIO, None, None),
    Figure("proxy-get-serial", "mean latency", "us", False, Against.RATIO, None, None),
    Figure("proxy-fan-out-one-stream", "server CPU", "us/delivery", False, Against.RATIO, 0.5, 0.2),
    Figure("proxy-fan-out-streams", "server CPU", "us/delivery", False, Against.RATIO, 0.5, 0.2),
    Figure("proxy-fan-out-connections", "server CPU", "us/delivery", False, Against.RATIO, 0.5, 0.2),
    Figure("proxy-idle", "memory (PSS)", "MiB", False, Against.OURS, None, None),
    *(
        Figure(f"watchers-{number}", f"{place} CPU", "us/delivery", False, Against.RATIO, None, None)
        for number in (10, 100, 1_000, 10_000, 100_000)
        for place in ("member", "proxy")
    ),
)
CASES: Final = tuple(dict.fromkeys(figure.case for figure in FIGURES))

Rounds = Mapping[tuple[str, str], Sequence[float]]
"""(case, figure's name) to the values of the rounds."""


def _median(values: Sequence[float]) -> float:
    """Of the rounds that gave one; NaN when none did."""
    return statistics.median([value for value in values if not math.isnan(value)] or [math.nan])


def judge(ours: Rounds, reference: Rounds) -> list[Result]:
    """The medians of every figure that was measured at both servers, in the table's order."""
    return [
        Result(figure, _median(ours[at]), _median(reference[at]))
        for figure in FIGURES
        if (at := (figure.case, figure.name)) in ours and at in reference
    ]
