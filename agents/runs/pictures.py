"""Pictures of a result: charts of accuracy against cost and frames, and a contact sheet: frames of some clips with a policy's patches.

The outline of a patch is `adafocus_env.render.PATCH_COLOUR`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from adafocus_env.action import boxes_of
from adafocus_env.features.live import Features
from adafocus_env.render import draw_patch
from agents.evaluation.metrics import ACCURACIES, PolicyEvaluation
from classifiers.atomic_files import replacing

COLOURS = {"learned": "#c0392b", "oracle": "#2c3e50", "greedy_oracle": "#2c3e50"}
OTHER_COLOUR = "#95a5a6"  # of all other policies
CURVES = ("learned", "random", "oracle")

ROWS = 8
MIN_SIDE = 120  # pixels; smaller frames are enlarged by a whole number
LABEL_WIDTH = 150  # pixels left of the frames of a clip
GAP = 4  # pixels between frames and between rows


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


def save_contact_sheet(features: Features, played: PolicyEvaluation, path: Path, *, rows: int = ROWS) -> None:
    """Draw one row per clip: its frames with their patches. The clips are at equal distances in the list of all clips."""
    clips = np.unique(np.linspace(0, len(features.clips) - 1, rows).astype(int))
    pictures = [_clip_row(features, played, int(clip)) for clip in clips]
    sheet = Image.new("RGB", (pictures[0].width, sum(picture.height + GAP for picture in pictures)), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (0, number * (picture.height + GAP)))
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


def _clip_row(features: Features, played: PolicyEvaluation, clip: int) -> Image.Image:
    frames = features.clips.frames(clip).permute(0, 2, 3, 1).numpy()
    decision = np.arange(len(frames)) // (len(frames) // features.num_steps)
    assert played.actions is not None
    boxes, patch_mask = boxes_of(features.action, played.actions[clip])[decision], played.patch_mask[clip][decision]
    scale = max(1, -(-MIN_SIDE // features.clips.size))
    side = frames.shape[1] * scale
    row = Image.new("RGB", (LABEL_WIDTH + len(frames) * (side + GAP), side), "white")
    name = features.classifier.classes[features.clips.labels[clip]]
    answer = "right" if played.correct[clip] else "wrong"
    lines = [f"clip {clip}", f"class {name[:18]}", answer, f"confidence {played.confidence[clip]:.0%}"]
    ImageDraw.Draw(row).text((6, 6), "\n".join(lines), fill="black", font=ImageFont.load_default(13))
    for number, (frame, box) in enumerate(zip(frames, boxes, strict=True)):
        picture = draw_patch(frame, box.tolist() if patch_mask[number] else None, scale=scale)
        row.paste(picture, (LABEL_WIDTH + number * (side + GAP), 0))
    return row
