"""Pictures of a result: accuracy against cost, and what a policy looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from adafocus_env.action import boxes_of
from adafocus_env.features.live import Features
from adafocus_env.render import draw_patch
from agents.evaluation.metrics import ACCURACIES, PolicyEvaluation
from classifiers.atomic_files import replacing

COLOURS = {"learned": "#c0392b", "oracle": "#2c3e50", "greedy_oracle": "#2c3e50"}
CURVES = ("learned", "random", "oracle")
ROW_LABEL = 150  # pixels left of the frames of a clip
GAP = 4


@dataclass(frozen=True)
class Curve:
    """An accuracy that grows, over the runs of one algorithm, and a confidence interval of its mean. Arrays of one length.

    Attributes:
        steps: environment steps.
        minutes: CPU minutes, the mean over the runs.
        mean: shares in 0-1.
        low: lower end of the interval; the mean, where there is one run.
        high: upper end.
    """

    steps: NDArray[np.float64]
    minutes: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def save_comparison(measures: Mapping[str, Mapping[str, Any]], title: str, path: Path, *, metric: str, num_frames: int) -> None:
    """Draws accuracy and GFLOPs a video of every policy, best on top, and beside them how the accuracy grows with the frames.

    Args:
        measures: of each policy, as `agents.evaluation.evaluate.evaluate` returns them.
        title: stands above.
        path: of the PNG file.
        metric: the accuracy that is drawn, a name in `agents.evaluation.metrics.ACCURACIES`.
        num_frames: T, frames that have been looked at after the last step.
    """
    figure = Figure(figsize=(14, 0.5 * len(measures) + 1.4), layout="constrained")
    bars, curves = figure.subfigures(1, 2, width_ratios=(9, 5), squeeze=False)[0]
    _draw_bars(bars, measures, metric)
    _draw_curves(curves, measures, metric, num_frames)
    figure.suptitle(title)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw_bars(figure: SubFigure, measures: Mapping[str, Mapping[str, Any]], metric: str) -> None:
    """Two bar charts that share their rows."""
    names = sorted(measures, key=lambda name: measures[name][metric])
    colours = [COLOURS.get(name, "#95a5a6") for name in names]
    accuracy, cost = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for axes, values, form, label in (
        (accuracy, [100 * measures[name][metric] for name in names], "{:.1f}", f"{ACCURACIES[metric]} after the last frame, %"),
        (cost, [measures[name]["gflops"] for name in names], "{:.3g}", "GFLOPs a video (a multiply-add as one)"),
    ):
        bars = axes.barh([name.replace("_", " ") for name in names], values, color=colours)
        axes.bar_label(bars, [form.format(value) for value in values], padding=3)
        axes.set_xlabel(label)
        axes.margins(x=0.18)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.spines[["top", "right"]].set_visible(False)


def _draw_curves(figure: SubFigure, measures: Mapping[str, Mapping[str, Any]], metric: str, num_frames: int) -> None:
    """Accuracy against the number of frames looked at, for what is learned and what it stands between."""
    axes = figure.subplots()
    for name in [name for name in CURVES if name in measures]:
        shares = np.array(measures[name]["steps"][metric])
        frames = np.arange(1, len(shares) + 1) * num_frames / len(shares)
        axes.plot(frames, 100 * shares, marker="o", markersize=4, label=name, color=COLOURS.get(name, "#95a5a6"))
    axes.set_xlabel("frames looked at")
    axes.set_ylabel(f"{ACCURACIES[metric]}, %")
    axes.set_ylim(0, 102)  # whole markers at 100 %
    axes.set_xlim(0, num_frames * 1.03)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(CURVES), frameon=False)  # above: it never hides a curve


def save_learning_curves(curves: Mapping[str, Curve], title: str, path: Path, levels: Mapping[str, float]) -> None:
    """Draws how the accuracy on the validation part grows, against environment steps and against CPU minutes.

    Args:
        curves: of each algorithm, by name.
        title: stands above.
        path: of the PNG file.
        levels: accuracies (shares in 0-1) that are drawn as horizontal lines, by name.
    """
    figure = Figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for number, (name, curve) in enumerate(sorted(curves.items())):
        style = {"color": f"C{number % 10}", "linestyle": ("-", "--")[number // 10 % 2]}
        for axes, along in ((left, curve.steps), (right, curve.minutes)):
            axes.plot(along, 100 * curve.mean, label=name, **style)
            axes.fill_between(along, 100 * curve.low, 100 * curve.high, color=style["color"], alpha=0.15, linewidth=0)
    for axes, label in ((left, "environment steps"), (right, "CPU minutes")):
        for name, level in levels.items():
            axes.axhline(100 * level, color="#7f8c8d", linestyle=":", linewidth=1)
            axes.annotate(name, (0.995, 100 * level), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="#7f8c8d")
        axes.set_xlabel(label)
        axes.set_xlim(left=0)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("top-1 on the validation part, %")
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(title)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


@dataclass(frozen=True)
class Tradeoff:
    """Accuracy against cost at some budgets, over runs, and a confidence interval of its mean. Arrays of one length.

    Attributes:
        gflops: of a video, the mean over the runs.
        mean: shares in 0-1.
        low: lower end of the interval; the mean, where there is one run.
        high: upper end.
    """

    gflops: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def save_tradeoffs(tasks: Mapping[str, Mapping[str, Tradeoff]], title: str, path: Path) -> None:
    """Draws accuracy against GFLOPs a video, one chart for each task.

    Args:
        tasks: by name, every way to save work by name; one of a single budget is drawn as a line across.
        title: stands above.
        path: of the PNG file.
    """
    figure = Figure(figsize=(5 * len(tasks) + 2, 5), layout="constrained")
    charts = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axes, (task, ways) in zip(charts, tasks.items(), strict=True):
        for number, (name, each) in enumerate(ways.items()):
            _draw_tradeoff(axes, name, each, number)
        axes.set_title(task)
        axes.set_xlabel("GFLOPs a video (a multiply-add as one)")
        axes.spines[["top", "right"]].set_visible(False)
    charts[0].set_ylabel("top-1 on the test clips, %")
    figure.legend(*charts[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(title)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _draw_tradeoff(axes: Axes, name: str, each: Tradeoff, number: int) -> None:
    if len(each.mean) == 1:
        axes.axhline(100 * each.mean[0], color="#7f8c8d", linestyle=":", linewidth=1, label=name)
        return
    colour = COLOURS.get(name, f"C{number + (number >= 3)}")  # C3 is red, as "learned" is
    axes.plot(each.gflops, 100 * each.mean, marker="o", markersize=4, color=colour, label=name, linewidth=2 if name == "learned" else 1.2)
    axes.fill_between(each.gflops, 100 * each.low, 100 * each.high, color=colour, alpha=0.12, linewidth=0)


def save_contact_sheet(features: Features, played: PolicyEvaluation, path: Path, *, rows: int = 8) -> None:
    """Draws one row of frames a clip with the patch that was looked at in each, evenly picked from all clips."""
    clips = np.unique(np.linspace(0, len(features.clips) - 1, rows).astype(int))
    scale = max(1, -(-120 // features.clips.size))
    pictures = [_clip_row(features, played, int(clip), scale) for clip in clips]
    sheet = Image.new("RGB", (pictures[0].width, sum(picture.height + GAP for picture in pictures)), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (0, number * (picture.height + GAP)))
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


def _clip_row(features: Features, played: PolicyEvaluation, clip: int, scale: int) -> Image.Image:
    frames = features.clips.frames(clip).permute(0, 2, 3, 1).numpy()
    each, actions = len(frames) // features.num_steps, played.actions
    assert actions is not None
    boxes, kept = (every.repeat(each, axis=0) for every in (boxes_of(features.action, actions[clip]), played.patch_mask[clip]))
    side = frames.shape[1] * scale
    row = Image.new("RGB", (ROW_LABEL + len(frames) * (side + GAP), side), "white")
    name = features.classifier.classes[features.clips.labels[clip]]
    answer = "right" if played.correct[clip] else "wrong"
    lines = [f"clip {clip}", f"class {name[:18]}", answer, f"confidence {played.confidence[clip]:.0%}"]
    ImageDraw.Draw(row).text((6, 6), "\n".join(lines), fill="black", font=ImageFont.load_default(13))
    for number, (frame, box) in enumerate(zip(frames, boxes, strict=True)):
        row.paste(draw_patch(frame, box.tolist() if kept[number] else None, scale=scale), (ROW_LABEL + number * (side + GAP), 0))
    return row
