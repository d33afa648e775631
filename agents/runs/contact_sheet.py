"""The contact sheet: frames of some clips with the patches of a policy, outlined in `adafocus_env.render.PATCH_COLOUR`."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from adafocus_env.action import boxes_of
from adafocus_env.drawing import font, shorten
from adafocus_env.features.live import Features
from adafocus_env.render import draw_patch
from agents.evaluation.metrics import PolicyEvaluation, count_hits, ratios
from classifiers.atomic_files import replacing
from classifiers.errors import count_of

ROWS = 8
MIN_SIDE = 120  # pixels; smaller frames are enlarged by an integer factor
LABEL_WIDTH = 150  # width in pixels of the text left of the frames
HEADING = 24  # height in pixels of the line above the rows
TEXT_SIZE = 12  # pixels
GAP = 4  # pixels between frames and between rows


def save_contact_sheet(features: Features, played: PolicyEvaluation, path: Path, *, rows: int = ROWS) -> None:
    """Draw one row per clip, with its frames and their patches. The clips are evenly spaced in the list of all clips.

    The suffix of ``path`` determines the format. If targets are known, the hit rate over all clips is shown above the rows, and the number
    of hits in each clip is shown next to its row.
    """
    clips = np.unique(np.linspace(0, len(features.clips) - 1, rows).astype(int))
    counts = count_hits(played)
    hits = [] if counts is None else [f"hits {hit} of {seen}" for hit, seen in zip(*(each.sum(1) for each in counts), strict=True)]
    pictures = [_clip_row(features, played, int(clip), hits[clip : clip + 1]) for clip in clips]
    hit_rate = ratios(played).get("hit_rate")
    top = 0 if hit_rate is None else HEADING
    sheet = Image.new("RGB", (pictures[0].width, top + sum(picture.height + GAP for picture in pictures)), "white")
    if hit_rate is not None:
        text = f"hit rate in all {count_of(len(features.clips), 'clip')}: {hit_rate:.1%}"
        ImageDraw.Draw(sheet).text((6, 4), text, fill="black", font=font(TEXT_SIZE))
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (0, top + number * (picture.height + GAP)))
    with replacing(path) as temporary:
        sheet.save(temporary, format=Image.registered_extensions()[path.suffix])


def _clip_row(features: Features, played: PolicyEvaluation, clip: int, hits: list[str]) -> Image.Image:
    frames = features.clips.frames(clip).permute(0, 2, 3, 1).numpy()
    decision = np.arange(len(frames)) // (len(frames) // features.num_steps)
    assert played.actions is not None
    boxes, patch_mask = boxes_of(features.action, played.actions[clip])[decision], played.patch_mask[clip][decision]
    pictures = [
        draw_patch(frame, box.tolist() if focused else None, MIN_SIDE)
        for frame, box, focused in zip(frames, boxes, patch_mask, strict=True)
    ]
    side = pictures[0].width
    row = Image.new("RGB", (LABEL_WIDTH + len(frames) * (side + GAP), side), "white")
    name, answer = features.classifier.classes[features.clips.labels[clip]], "right" if played.correct[clip] else "wrong"
    lines = [Path(features.clips.names[clip]).name, f"class {name}", answer, f"confidence {played.confidence[clip]:.0%}", *hits]
    shown = "\n".join(shorten(line, LABEL_WIDTH - 12, TEXT_SIZE) for line in lines)
    ImageDraw.Draw(row).text((6, 6), shown, fill="black", font=font(TEXT_SIZE))
    for number, picture in enumerate(pictures):
        row.paste(picture, (LABEL_WIDTH + number * (side + GAP), 0))
    return row
