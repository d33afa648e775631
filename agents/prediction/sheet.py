"""The contact sheet of a prediction: its sampled frames with their patches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from adafocus_env.drawing import BACKGROUND, CONFIDENCE, MUTED, PATCH, PLOT, TEXT, Picture, focused, font, outline, shorten
from agents.prediction.drawing import dim_outside, shown_frames
from agents.prediction.result import TOP, FramePrediction, Prediction
from classifiers.atomic_files import replacing
from classifiers.errors import count_of

TILES, COLUMNS = 24, 4  # maximum number of frames on a sheet, and number per row
TILE_WIDTH, CAPTION, GAP = 300, 44, 12  # pixels
LINE = 20  # height of a class in the heading, in pixels


def write_sheet(task: tuple[Prediction, Path]) -> None:
    """Write the PNG picture of a prediction; called in a worker process.

    Raises:
        InputError: If the video cannot be read, or the file cannot be written.
    """
    prediction, path = task
    chosen = np.unique(np.linspace(0, len(prediction.frames) - 1, TILES).astype(int)) if len(prediction.frames) > TILES else None
    steps = prediction.frames if chosen is None else [prediction.frames[number] for number in chosen]
    tiles = _tiles(prediction, sorted(steps, key=lambda step: step.time))
    columns = min(COLUMNS, len(tiles))
    width = GAP + columns * (TILE_WIDTH + GAP)
    heading = _heading(prediction, width, len(steps))
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (width, heading.height + rows * (tiles[0].height + GAP)), BACKGROUND)
    sheet.paste(heading)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        sheet.paste(tile, (GAP + column * (TILE_WIDTH + GAP), heading.height + row * (tile.height + GAP)))
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


def _tiles(prediction: Prediction, steps: list[FramePrediction]) -> list[Image.Image]:
    tiles: list[Image.Image] = []
    last: tuple[Picture, float] | None = None
    for time, pixels, aspect in shown_frames(prediction):
        while len(tiles) < len(steps) and steps[len(tiles)].time <= time + 1e-3:
            tiles.append(_tile(prediction, steps[len(tiles)], pixels, aspect))
        last = pixels, aspect
        if len(tiles) == len(steps):
            break
    while last is not None and len(tiles) < len(steps):
        tiles.append(_tile(prediction, steps[len(tiles)], *last))
    return tiles


def _tile(prediction: Prediction, step: FramePrediction, pixels: Picture, aspect: float) -> Image.Image:
    height, width = pixels.shape[:2]
    shown = round(TILE_WIDTH * height / (width * aspect))
    enlarged = 3 * width <= TILE_WIDTH
    picture = Image.fromarray(dim_outside(pixels, prediction.view)).resize(
        (TILE_WIDTH, shown), Image.Resampling.NEAREST if enlarged else Image.Resampling.BILINEAR
    )
    if step.box is not None:
        outline(ImageDraw.Draw(picture), step.box, (shown / height, TILE_WIDTH / width), PATCH, 2)
    tile = Image.new("RGB", (TILE_WIDTH, shown + CAPTION), PLOT)
    tile.paste(picture)
    draw, inset, room = ImageDraw.Draw(tile), CAPTION + 24, TILE_WIDTH - 12
    if step.box is not None:
        corner = TILE_WIDTH - inset - 4, shown + CAPTION - inset - 4
        tile.paste(focused(pixels, step.box, prediction.patch_size, inset), corner)
        draw.rectangle((corner[0] - 1, corner[1] - 1, corner[0] + inset, corner[1] + inset), outline=PATCH)
        room -= inset + 8
    text = f"{step.confidence:.0%} {step.prediction}"
    draw.text((8, shown + 5), shorten(text, room, 15, bold=True), fill=TEXT, font=font(15, bold=True))
    where = f"{step.time:.2f} s" + (", skipped" if step.skipped else "" if step.processed else ", after the exit")
    draw.text((8, shown + 25), where, fill=MUTED, font=font(12))
    return tile


def _heading(prediction: Prediction, width: int, shown: int) -> Image.Image:
    """Return the heading: the file's name and the most probable classes."""
    classes = list(zip(prediction.classes, prediction.probabilities, strict=True))[:TOP]
    heading = Image.new("RGB", (width, GAP + 50 + LINE * len(classes) + GAP), BACKGROUND)
    draw = ImageDraw.Draw(heading)
    draw.text((GAP, GAP - 2), shorten(Path(prediction.file).name, width - 2 * GAP, 18, bold=True), fill=TEXT, font=font(18, bold=True))
    frames, count = len(prediction.frames), len(prediction.windows)
    sampled = count_of(frames, "sampled frame")
    seen = f"{shown} of {sampled}" if shown < frames else sampled
    windows = f" in {count} windows" if count > 1 else ""
    skipped = sum(frame.skipped for frame in prediction.frames)
    after = sum(not frame.processed for frame in prediction.frames)
    unseen = f"{skipped} skipped" + (f", {after} after the exit" if after else "")
    about = f"{prediction.duration:.1f} s, {seen}{windows}, {unseen}, {prediction.macs / 1e9:.3g} GFLOPs"
    draw.text((GAP, GAP + 24), about, fill=MUTED, font=font(13))
    bar = (width - 2 * GAP) // 3
    for number, (name, probability) in enumerate(classes):
        top = GAP + 48 + LINE * number
        draw.rectangle((GAP, top + 3, GAP + bar, top + LINE - 5), fill=PLOT)
        draw.rectangle((GAP, top + 3, GAP + max(1, bar * probability), top + LINE - 5), fill=CONFIDENCE if number == 0 else MUTED)
        text = shorten(f"{probability:.1%}  {name}", width - bar - 4 * GAP, 14)
        draw.text((2 * GAP + bar, top), text, fill=TEXT, font=font(14))
    return heading
