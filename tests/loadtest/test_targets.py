"""Figures are judged as the table of targets says."""

import json
import math
from pathlib import Path

import pytest

from loadtest.report import plot, table, write_json
from loadtest.targets import FIGURES, Against, Figure, Result, judge

FASTER = Figure("put", "throughput", "req/s", True, Against.RATIO, 1.3, 2.0)
CHEAPER = Figure("put", "server CPU", "us/req", False, Against.RATIO, 0.8, 0.4)
SMALL = Figure("idle", "memory (PSS)", "MiB", False, Against.OURS, 180, 130)


@pytest.mark.parametrize(
    ("figure", "ours", "reference", "verdict"),
    [
        (FASTER, 200.0, 100.0, "goal"),
        (FASTER, 130.0, 100.0, "target"),
        (FASTER, 129.0, 100.0, "MISSED"),
        (CHEAPER, 40.0, 100.0, "goal"),
        (CHEAPER, 80.0, 100.0, "target"),
        (CHEAPER, 81.0, 100.0, "MISSED"),
        (CHEAPER, 1.0, 0.0, "MISSED"),
        (SMALL, 130.0, 1.0, "goal"),
        (SMALL, 180.0, 1e9, "target"),
        (SMALL, 181.0, 1e9, "MISSED"),
        (SMALL._replace(target=None, goal=None), 1.0, 1.0, "-"),
    ],
)
def test_verdicts(figure: Figure, ours: float, reference: float, verdict: str) -> None:
    assert Result(figure, ours, reference).verdict == verdict


def test_a_ratio_without_reference_is_none() -> None:
    assert math.isnan(Result(FASTER, 1.0, 0.0).ratio)


def test_medians_of_what_was_measured_at_both() -> None:
    ours = {("put", "throughput"): [10.0, 30.0, 1000.0], ("get", "throughput"): [1.0]}
    (result,) = judge(ours, {("put", "throughput"): [10.0, 20.0, 30.0]})
    assert (result.ours, result.reference, result.verdict) == (30.0, 20.0, "target")


def test_goals_ask_for_more_than_targets() -> None:
    for figure in FIGURES:
        if figure.target is not None and figure.goal is not None:
            assert figure.goal > figure.target if figure.higher else figure.goal < figure.target


def test_the_report_has_every_result(tmp_path: Path) -> None:
    results = [Result(FASTER, 200.0, 100.0), Result(SMALL, 181.5, 20.0), Result(CHEAPER, 1.0, 0.0)]
    lines = table(results).splitlines()
    assert [line.split()[-1] for line in lines[2:]] == ["goal", "MISSED", "MISSED"]
    write_json(results, {"quick": True}, tmp_path / "r.json")
    written = json.loads((tmp_path / "r.json").read_text())
    assert [figure["ratio"] for figure in written["figures"]] == [2.0, 9.075, None]
    plot(results, tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
