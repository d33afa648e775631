"""Plots of a result: accuracies, hit rates and costs of all policies, and accuracy and hit rate against the number of frames."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from agents.evaluation.metrics import ACCURACIES
from classifiers.atomic_files import replacing

COLOURS = {"learned": "#c0392b", "oracle": "#2c3e50", "greedy_oracle": "#2c3e50"}
OTHER_COLOUR = "#95a5a6"  # colour of all other policies
CURVES = ("learned", "random", "oracle")


def save_comparison(measures: Mapping[str, Mapping[str, Any]], title: str, path: Path, *, metric: str, num_frames: int) -> None:
    """Draw bars of the accuracies, the hit rate and the GFLOPs per video of every policy, and curves against the number of frames.

    Policies are sorted by anytime accuracy, with the best on top. The lines on the bars are 95 % confidence intervals. The hit rate is left
    out if targets are unknown.

    Args:
        measures: Measures of every policy, as `agents.evaluation.evaluate.evaluate` returns them.
        title: Title of the charts.
        path: The PNG file.
        metric: The accuracy to draw, a name in `agents.evaluation.metrics.ACCURACIES`.
        num_frames: T, number of frames that have been seen after the last step.
    """
    labels = {
        "top1_first": "top-1 after the first patch, %",
        "top1_anytime": "anytime top-1, %",
        metric: f"{ACCURACIES[metric]} after the last frame, %",
        "hit_rate": "hits, %",
    }
    shown = {key: label for key, label in labels.items() if any(key in values for values in measures.values())}
    curves = {metric: f"{ACCURACIES[metric]}, %", "hit_rate": "hits, %"}
    figure = Figure(figsize=(2.8 * len(shown) + 8, 0.4 * len(measures) + 1.8), layout="constrained")
    bars, beside = figure.subfigures(1, 2, width_ratios=(2.8 * len(shown) + 3, 5), squeeze=False)[0]
    names = sorted(measures, key=lambda name: measures[name]["top1_anytime"])
    *accuracies, cost = bars.subplots(1, len(shown) + 1, sharey=True)
    for axes, (key, label) in zip(accuracies, shown.items(), strict=True):
        _draw_bars(axes, measures, names, key, label)
    _draw_bars(cost, measures, names, "gflops", "GFLOPs per video\n(a multiply-add as one)", scale=1, form="{:.3g}")
    drawn = [key for key in curves if key in shown]
    for axes, key in zip(beside.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0], drawn, strict=True):
        _draw_curves(axes, measures, key, curves[key], num_frames)
    handles, names = beside.axes[0].get_legend_handles_labels()
    beside.legend(handles, names, loc="outside upper center", ncols=len(CURVES), frameon=False)
    beside.axes[-1].set_xlabel("frames so far")
    figure.suptitle(title)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw_bars(
    axes: Axes,
    measures: Mapping[str, Mapping[str, Any]],
    names: list[str],
    key: str,
    label: str,
    *,
    scale: float = 100,
    form: str = "{:.1f}",
) -> None:
    """Draw bars of a metric, with intervals if there are any. Policies without a value have no bar."""
    values = [scale * measures[name].get(key, np.nan) for name in names]
    ends = [scale * np.array(measures[name].get(f"{key}_interval", [np.nan, np.nan])) for name in names]
    errors = np.abs(np.array(ends) - np.array(values)[:, None]).T
    colours = [COLOURS.get(name, OTHER_COLOUR) for name in names]
    bars = axes.barh([name.replace("_", " ") for name in names], values, color=colours, xerr=errors, error_kw={"lw": 1, "alpha": 0.6})
    axes.bar_label(bars, ["" if np.isnan(value) else form.format(value) for value in values], padding=3)
    axes.set_xlabel(label)
    axes.margins(x=0.25)
    axes.xaxis.set_major_locator(MaxNLocator(4) if scale == 1 else FixedLocator([0, 50, 100]))
    axes.spines[["top", "right"]].set_visible(False)


def _draw_curves(axes: Axes, measures: Mapping[str, Mapping[str, Any]], key: str, label: str, num_frames: int) -> None:
    """Draw a metric of the learned policy, random patches and the oracle against the number of frames. Undefined values leave gaps."""
    for name in [name for name in CURVES if name in measures]:
        shares = np.array(measures[name]["steps"][key], np.float64)
        frames = np.arange(1, len(shares) + 1) * num_frames / len(shares)
        axes.plot(frames, 100 * shares, marker="o", markersize=4, label=name, color=COLOURS.get(name, OTHER_COLOUR))
    axes.set(ylabel=label, xlim=(0, num_frames * 1.03), ylim=(-2, 102))  # markers at 0 and 100 % are not cut
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
