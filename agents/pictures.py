"""Pictures of a result: accuracy against cost, and what a policy looked at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from adafocus_env.features import Features
from adafocus_env.render import draw_patch
from agents.evaluation import Played
from classifiers.files import replacing

COLOURS = {"learned": "#c0392b", "oracle": "#2c3e50", "greedy_oracle": "#2c3e50"}
ROW_LABEL = 150  # pixels left of the frames of a clip
GAP = 4


def save_comparison(measures: Mapping[str, Mapping[str, float]], title: str, path: Path) -> None:
    """Draws top-1 and GFLOPs a video of every policy as two bar charts that share their rows, best on top."""
    names = sorted(measures, key=lambda name: measures[name]["top1"])
    colours = [COLOURS.get(name, "#95a5a6") for name in names]
    figure = Figure(figsize=(9, 0.5 * len(names) + 1.4), layout="constrained")
    accuracy, cost = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for axes, values, form, label in (
        (accuracy, [100 * measures[name]["top1"] for name in names], "{:.1f}", "top-1 after the last frame, %"),
        (cost, [measures[name]["gflops"] for name in names], "{:.3g}", "GFLOPs a video (a multiply-add counts as one)"),
    ):
        bars = axes.barh([name.replace("_", " ") for name in names], values, color=colours)
        axes.bar_label(bars, [form.format(value) for value in values], padding=3)
        axes.set_xlabel(label)
        axes.margins(x=0.18)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def save_contact_sheet(features: Features, played: Played, path: Path, *, rows: int = 8) -> None:
    """Draws one row of frames a clip with the patch that was looked at in each, evenly picked from all clips."""
    clips = np.unique(np.linspace(0, len(features.clips) - 1, rows).astype(int))
    scale = max(1, -(-120 // features.clips.size))
    pictures = [_clip_row(features, played, int(clip), scale) for clip in clips]
    sheet = Image.new("RGB", (pictures[0].width, sum(picture.height + GAP for picture in pictures)), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (0, number * (picture.height + GAP)))
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


def _clip_row(features: Features, played: Played, clip: int, scale: int) -> Image.Image:
    frames = features.clips.frames(clip).permute(0, 2, 3, 1).numpy()
    boxes = features.grid.boxes(played.cells[clip])
    side = frames.shape[1] * scale
    row = Image.new("RGB", (ROW_LABEL + len(frames) * (side + GAP), side), "white")
    name = features.classifier.classes[features.clips.labels[clip]]
    answer = "right" if played.correct[clip] else "wrong"
    lines = [f"clip {clip}", f"class {name[:18]}", answer, f"confidence {played.confidence[clip]:.0%}"]
    ImageDraw.Draw(row).text((6, 6), "\n".join(lines), fill="black", font=ImageFont.load_default(13))
    for number, (frame, box) in enumerate(zip(frames, boxes, strict=True)):
        row.paste(draw_patch(frame, box.tolist(), scale=scale), (ROW_LABEL + number * (side + GAP), 0))
    return row
