"""The charts of the page, as SVG with the colours and fonts of the page's style sheet."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator
from numpy.typing import NDArray
from sklearn.isotonic import isotonic_regression

from agents.evaluation.metrics import ACCURACIES
from agents.page.finished import FinishedRun
from agents.page.verdict import mean_of
from agents.policies.baselines import RULES
from agents.runs.confidence import half_width
from agents.runs.predictions import LEARNED

COLOURS = {"learned": "#010001", "random": "#010002", "oracle": "#010003", "other": "#010004", "ink": "#010005", "line": "#010006"}
"""Placeholder colours. `to_svg` replaces them with style sheet variables of the same name, because light and dark pages differ."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "report", "font.size": 11, "axes.labelcolor": COLOURS["ink"], "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["ink"], "ytick.color": COLOURS["ink"], "axes.edgecolor": COLOURS["line"], "axes.facecolor": "none",
    "grid.color": COLOURS["line"], "axes.grid": True, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "legend.labelcolor": COLOURS["ink"],
}  # fmt: skip
SIZE = (5.4, 3.6)  # inches; the width equals 390 CSS pixels, so that text is not scaled down on a phone
CURVES = (LEARNED, "oracle", "random")
MEASURED = {
    "val_confidence_anytime": ("confidence, selects", "random", "--"), "val_top1_anytime": ("top-1", "learned", "-"),
    "val_hit_rate": ("hits", "oracle", "-"),
}  # fmt: skip
"""Maps keys in ``metrics.jsonl`` to the name, colour and line style of the learning curve."""


def cost_chart(runs: Sequence[FinishedRun]) -> Markup:
    """Draw the accuracy of every policy against its multiply-adds."""
    metric = runs[0].result["metric"]
    points = {name: (mean_of(runs, name, "gflops"), 100 * mean_of(runs, name, metric)) for name in runs[0].result["policies"]}
    rule = max((name for name in RULES if name in points), key=lambda name: points[name][1])
    named = [name for name in points if name == rule or name not in (*RULES, "centre", "gaussian", "full_frame")]
    heights = dict(zip(named, _spread([points[name][1] for name in named], least=7), strict=True))
    with mpl.rc_context(STYLE):
        figure, axes = _axes("GFLOPs per video", f"{ACCURACIES[metric]}, %")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        for name, (cost, accuracy) in points.items():
            axes.plot(cost, accuracy, "o", color=_colour(name), markersize=9 if name == LEARNED else 6)
        for name, height in heights.items():
            axes.text(1.2 * points[name][0], height, name.replace("_", " "), va="center", weight="bold" if name == LEARNED else "normal")
        axes.text(points["full_frame"][0] / 1.2, points["full_frame"][1], "full frame", va="center", ha="right")
        costs = [cost for cost, _ in points.values()]
        axes.set(xlim=(0.5 * min(costs), 2 * max(costs)), ylim=(0, max(104, *(height + 4 for height in heights.values()))))
        axes.yaxis.set_major_locator(FixedLocator(range(0, 101, 20)))
        return to_svg(figure, "cost", "Accuracy against GFLOPs per video of all policies")


def step_chart(runs: Sequence[FinishedRun], key: str, label: str) -> Markup | None:
    """Draw a metric after every step, for the learned policy, the oracle and random patches. Return None if the metric is not known.

    For several runs, the chart shows the mean and the interval over seeds.
    """
    curves = {name: [run.result["policies"].get(name, {}).get("steps", {}).get(key) for run in runs] for name in CURVES}
    known = {name: 100 * np.array(values, np.float64) for name, values in curves.items() if None not in values}
    if not known:
        return None
    num_frames = runs[0].data.num_frames
    with mpl.rc_context(STYLE):
        figure, axes = _axes("frames so far", f"{label}, %")
        for name, values in known.items():
            frames = np.arange(1, values.shape[1] + 1) * num_frames / values.shape[1]
            mean, half = values.mean(0), half_width(values)
            axes.plot(frames, mean, marker="o", markersize=5, color=COLOURS[name], label=name, zorder=3 if name == LEARNED else 2)
            axes.fill_between(frames, mean - half, mean + half, color=COLOURS[name], alpha=0.2, linewidth=0)
        axes.set(ylim=(0, 104), xlim=(0, num_frames * 1.03))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside upper center", ncols=len(known))
        last = ", ".join(f"{name} {values.mean(0)[-1]:.1f} %" for name, values in known.items())
        return to_svg(figure, f"steps-{key}", f"{label} after every frame; after the last: {last}")


def learning_chart(runs: Sequence[FinishedRun]) -> Markup | None:
    """Draw the validation metrics of every run against steps or epochs, and mark the step or epoch of the selected policy.

    Return None if there is no validation split.
    """
    unit, plural = ("steps", "environment steps") if any("steps" in line for line in runs[0].metrics) else ("epoch", "epochs")
    curves = [(run, key, *_curve(run.metrics, key, unit)) for run in runs for key in MEASURED]
    if not any(len(steps) for _, _, steps, _ in curves):
        return None
    with mpl.rc_context(STYLE):
        figure, axes = _axes(plural, "validation clips, %")
        for run, key, steps, values in curves:
            name, colour, style = MEASURED[key]
            label = name if run is runs[0] and len(steps) else None
            axes.plot(steps, values, style, color=COLOURS[colour], label=label, linewidth=1.6 if len(runs) == 1 else 1)
        for number, run in enumerate(runs):
            if (best := run.result.get("best")) is not None:
                axes.axvline(best[unit], color=COLOURS["ink"], linestyle=":", linewidth=1.5, label=None if number else "chosen")
        axes.set_ylim(0, 104)
        if unit == "steps":
            axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
        figure.legend(loc="outside upper center", ncols=2, columnspacing=1.2, handlelength=1.6)
        chosen = ", ".join(f"{run.result['best'][unit]:,}" for run in runs if run.result.get("best"))
        return to_svg(figure, "learning", f"Validation metrics against {plural}; chosen: {chosen or 'the last'}")


def to_svg(figure: Figure, name: str, text: str) -> Markup:
    """Return a figure as an SVG element with the colours of the page.

    Args:
        figure: A figure drawn with `STYLE` and `COLOURS`.
        name: Prefix of the element's ids, which must be unique on the page.
        text: Description for screen readers.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = re.sub(r"<metadata>.*?</metadata>", "", file.getvalue()[file.getvalue().index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{Markup.escape(text)}">', svg)
    svg = svg.replace("xlink:href", "href")
    for variable, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return Markup(svg)  # noqa: S704  # Matplotlib escapes the texts of a figure, and ``text`` is escaped above


def _axes(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
    axes.set_axisbelow(True)
    return figure, axes


def _curve(metrics: Sequence[Mapping[str, Any]], key: str, unit: str = "steps") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the steps at which a validation metric was measured, and the values of the metric in per cent.

    Each line of metrics has its number of steps under the key ``unit``.

    If the steps start again from zero in a later round of joint training, the steps of the earlier rounds are added.
    """
    lines = np.array([(line[unit], line[key]) for line in metrics if unit in line and key in line], np.float64).reshape(-1, 2)
    before = np.concatenate([[0], np.where(np.diff(lines[:, 0]) < 0, lines[:-1, 0], 0).cumsum()])[: len(lines)]
    return lines[:, 0] + before, 100 * lines[:, 1]


def _colour(name: str) -> str:
    return COLOURS.get(name.removeprefix("greedy_"), COLOURS["other"])


def _spread(values: Sequence[float], least: float) -> NDArray[np.float64]:
    """Move heights apart so that labels do not overlap. Return the heights that are nearest to ``values`` and at least ``least`` apart."""
    order, gaps = np.argsort(values, kind="stable"), least * np.arange(len(values))
    heights = np.empty(len(values))
    heights[order] = isotonic_regression(np.array(values)[order] - gaps) + gaps
    return heights
