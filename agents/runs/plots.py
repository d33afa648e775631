"""Plots of a result: accuracy against cost, and against the number of frames."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from agents.evaluation.metrics import ACCURACIES
from classifiers.atomic_files import replacing

COLOURS = {"learned": "#c0392b", "oracle": "#2c3e50", "greedy_oracle": "#2c3e50"}
OTHER_COLOUR = "#95a5a6"  # of all other policies
CURVES = ("learned", "random", "oracle")



def save_comparison(measures: Mapping[str, Mapping[str, Any]], title: str, path: Path, *, metric: str, num_frames: int) -> None:
    """Draw accuracy and GFLOPs per video of every policy, best on top, and beside them accuracy against the number of frames.

    Args:
        measures: Measures of every policy, as `agents.evaluation.evaluate.evaluate` returns them.
        title: Stands above the charts.
        path: The PNG file.
        metric: The accuracy to draw, a name in `agents.evaluation.metrics.ACCURACIES`.
        num_frames: T, number of frames after the last step.
    """
    figure = Figure(figsize=(14, 0.5 * len(measures) + 1.4), layout="constrained")
    bars, curves = figure.subfigures(1, 2, width_ratios=(9, 5), squeeze=False)[0]
    names = sorted(measures, key=lambda name: measures[name][metric])
    accuracy, cost = bars.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    _draw_bars(accuracy, {name: 100 * measures[name][metric] for name in names}, "{:.1f}", f"{ACCURACIES[metric]} after the last frame, %")
    _draw_bars(cost, {name: measures[name]["gflops"] for name in names}, "{:.3g}", "GFLOPs per video (a multiply-add as one)")
    _draw_curves(curves.subplots(), measures, metric, num_frames)
    figure.suptitle(title)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw_bars(axes: Axes, values: Mapping[str, float], form: str, label: str) -> None:
    colours = [COLOURS.get(name, OTHER_COLOUR) for name in values]
    bars = axes.barh([name.replace("_", " ") for name in values], list(values.values()), color=colours)
    axes.bar_label(bars, [form.format(value) for value in values.values()], padding=3)
    axes.set_xlabel(label)
    axes.margins(x=0.18)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.spines[["top", "right"]].set_visible(False)


def _draw_curves(axes: Axes, measures: Mapping[str, Mapping[str, Any]], metric: str, num_frames: int) -> None:
    """Draw accuracy against the number of frames for the learned policy, random patches and the oracle."""
    for name in [name for name in CURVES if name in measures]:
        shares = np.array(measures[name]["steps"][metric])
        frames = np.arange(1, len(shares) + 1) * num_frames / len(shares)
        axes.plot(frames, 100 * shares, marker="o", markersize=4, label=name, color=COLOURS.get(name, OTHER_COLOUR))
    axes.set(xlabel="frames so far", ylabel=f"{ACCURACIES[metric]}, %")
    axes.set(xlim=(0, num_frames * 1.03), ylim=(0, 102))  # whole markers at 100 %
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(CURVES), frameon=False)  # above, where it hides no curve
