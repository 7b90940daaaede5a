"""The benchmark's results as a table, as JSON and as a plot."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtest.targets import Against, Result


def number(value: float) -> str:
    """Three significant digits or whole."""
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def bound(result: Result, value: float | None) -> str:
    """A target or goal as text, such as `>= 1.3x`."""
    if value is None:
        return "-"
    sign = ">=" if result.figure.higher else "<="
    return f"{sign} {number(value)}{'x' if result.figure.against is Against.RATIO else ''}"


def table(results: Sequence[Result]) -> str:
    """One line per figure."""
    rows = [("case", "figure", "unit", "kvorum", "reference", "ratio", "target", "goal", "met")]
    for result in results:
        figure = result.figure
        rows.append(
            (
                figure.case,
                figure.name,
                figure.unit,
                number(result.ours),
                number(result.reference),
                "-" if math.isnan(result.ratio) else f"{result.ratio:.2f}x",
                bound(result, figure.target),
                bound(result, figure.goal),
                result.verdict,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = {3, 4, 5}
    lines = [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def write_json(results: Sequence[Result], facts: dict[str, object], path: Path) -> None:
    """All figures, and `facts` about the run."""
    figures = [
        {
            **result.figure._asdict(),
            "against": result.figure.against.value,
            "kvorum": result.ours,
            "reference": None if math.isnan(result.reference) else result.reference,
            "ratio": None if math.isnan(result.ratio) else result.ratio,
            "verdict": result.verdict,
        }
        for result in results
    ]
    path.write_text(json.dumps({"run": facts, "figures": figures}, indent=2) + "\n")


def _pyplot() -> Any:
    import matplotlib as mpl  # only here: a run without a plot needs no matplotlib

    mpl.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plot(results: Sequence[Result], path: Path) -> None:
    """A bar per figure: kvorum / reference on a logarithmic axis, coloured by the verdict, with target and goal."""
    pyplot = _pyplot()
    shown = [result for result in results if not math.isnan(result.ratio) and result.ratio > 0]
    colours = {"goal": "#2a9d4a", "target": "#8bc34a", "MISSED": "#d1495b", "-": "#9e9e9e"}
    figure, axes = pyplot.subplots(figsize=(11, 1.2 + 0.42 * max(1, len(shown))))
    for line, result in enumerate(shown):
        axes.barh(line, result.ratio - 1, left=1, color=colours[result.verdict], height=0.62)
        if result.figure.against is Against.RATIO:
            for value, mark in ((result.figure.target, "|"), (result.figure.goal, "D")):
                if value is not None:
                    axes.plot(value, line, mark, color="black", markersize=5)
        text = f"{number(result.ours)} / {number(result.reference)} {result.figure.unit}"
        axes.annotate(text, (1.01, line), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    axes.set_yticks(range(len(shown)), [f"{result.figure.case}: {result.figure.name}" for result in shown], fontsize=9)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.05, y=0.02)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("kvorum / reference, same machine, one run (| target, ◆ goal; green: goal met, red: target missed)")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def plot_watchers(results: Sequence[Result], path: Path) -> None:
    """CPU per delivery against the number of watchers, at member and proxy, ours and the reference's, in one picture.

    Nothing is written when fewer than two numbers of watchers were measured.
    """
    lines: dict[str, list[tuple[int, float]]] = {}
    for result in results:
        group, _, number = result.figure.case.partition("-")
        if group == "watchers":
            place = result.figure.name.removesuffix(" CPU")
            lines.setdefault(f"kvorum {place}", []).append((int(number), result.ours))
            lines.setdefault(f"reference {place}", []).append((int(number), result.reference))
    if max(map(len, lines.values()), default=0) < 2:
        return
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(8, 5))
    for label, points in lines.items():
        colour = "#2a9d4a" if label.startswith("kvorum") else "#d1495b"
        style = "-o" if label.endswith("member") else "--s"
        axes.plot([x for x, _ in points], [y for _, y in points], style, color=colour, label=label)  # NaN: a gap
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("watchers of one key")
    axes.set_ylabel("CPU of the server alone, us per event delivered")
    axes.set_title("The cost of an event by the number of those who watch (up to 100 streams)")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
