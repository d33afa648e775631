"""Draws the demo videos: one marked handwritten digit among moving clutter.

The class of a video is that of its one reddish digit. At glance size it can be located (by colour) but not classified; at patch size
it can.
"""

from __future__ import annotations

import colorsys
import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from classifiers.errors import InputError

RENDERER_VERSION = 1
TARGET_HUES = (-0.04, 0.04)  # reddish, in turns of the colour circle
DISTRACTOR_HUES = (0.14, 0.86)
PLACES = 3  # still digits stand in different squares of a PLACES×PLACES board: a patch on one shows nothing of the others
JITTER = 3.0  # pixels that they may stand off the middle of their square
OUTWARD = 0.25  # how much rarer positions in the middle are: a patch in the middle overlaps more targets


@dataclass(frozen=True)
class DemoTask:
    """The appearance of the demo videos. Lengths are in pixels, speeds in pixels per frame.

    Attributes:
        train_videos: training videos, including those that are held out for validation.
        val_videos: validation videos, at least: if fewer are held out, more are rendered. None without a held-out share.
        test_videos: test videos, and further ones (see `adafocus_env.demo.videos.demo`).
        size: height and width of the frames.
        length: frames in a video.
        target: side of the target digit.
        distractor: side of a distractor digit.
        clutter: number of distractors.
        speed: mean speed of the target.
        noise: standard deviation of the pixel noise, of 255.
        visible: share of the frames that show the target; they are consecutive and begin at a random frame.
        cue: first frames in which a disc marks the location of the target, without marked digits; after them the scene
            changes, and the target stands still. 0: no cue, and the target moves.
        lookalikes: digits of other classes, all different, that are drawn like the target and stand still. They need a cue.
        patch_size: side of the patches of the task's classifier. The videos do not depend on it.

    Raises:
        InputError: a value is out of its range (names it).
    """

    train_videos: int = 1500
    val_videos: int = 500
    test_videos: int = 500
    size: int = 96
    length: int = 16
    target: int = 14
    distractor: int = 9
    clutter: int = 10
    speed: float = 4.0
    noise: float = 10.0
    visible: float = 1.0
    cue: int = 0
    lookalikes: int = 0
    patch_size: int = 24

    def __post_init__(self) -> None:
        if not 0 < self.visible <= 1:
            raise InputError(f"visible must be above 0 and at most 1, got {self.visible}")
        if not 0 <= self.cue < self.length:
            raise InputError(f"cue must be from 0 to {self.length - 1}, fewer than length, got {self.cue}")
        if not 0 <= self.lookalikes < PLACES**2 or (self.lookalikes and not self.cue):
            raise InputError(
                f"lookalikes must be from 0 to {PLACES**2 - 1}, and 0 without a cue, got {self.lookalikes} with cue={self.cue}"
            )

    @property
    def key(self) -> str:
        """Hash of everything that the pixels of a video depend on."""
        hidden = {"train_videos", "val_videos", "test_videos", "patch_size"}
        later = {"visible": 1.0, "cue": 0, "lookalikes": 0}  # added later: only if used, so that older videos have the same names
        appearance = {k: v for k, v in asdict(self).items() if k not in hidden and v != later.get(k)}
        return hashlib.sha256(json.dumps([RENDERER_VERSION, appearance], sort_keys=True).encode()).hexdigest()[:12]

    @property
    def classifier_training_task(self) -> DemoTask:
        """The videos that the task's classifier is trained on: always with a target, without look-alikes."""
        return replace(self, visible=1.0, lookalikes=0)


@dataclass(frozen=True)
class Scene:
    """Everything that `render_video` needs to draw one video, in any process."""

    path: Path
    track: Path
    task: DemoTask
    digits: npt.NDArray[np.uint8]  # (1 + lookalikes + clutter, 8, 8): the target first, then its look-alikes
    label: int
    seed: int


def draw(scene: Scene) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Draw a video.

    Returns:
        The frames (length, size, size, 3), the target's centres (length, 2) as (y, x), where (0, 0) is a pixel's centre, and the frames
        in which its digit is drawn (length,): where a disc marks its location, it is not.
    """
    task, rng = scene.task, np.random.default_rng(scene.seed)
    marked = 1 + task.lookalikes
    looks = [(task.target, TARGET_HUES)] * marked + [(task.distractor, DISTRACTOR_HUES)] * task.clutter
    drawn = [(_sprite(digit, side, rng), _colour(hues, rng)) for digit, (side, hues) in zip(scene.digits, looks, strict=True)]
    sprites, colours = zip(*drawn, strict=True)
    paths = _stand(task, marked, rng) if task.cue else [_walk(task, len(sprites[0]), rng)]
    paths += [_walk(task, len(sprite), rng) for sprite in sprites[marked:]]
    frames = np.concatenate([_background(task.size, length, rng) for length in _scenes(task)])
    shown = _shown(task, rng)
    for number in reversed(range(len(sprites))):  # the target last: nothing covers it
        when = shown if number < marked else slice(None)
        _paste(frames[when], sprites[number], colours[number], paths[number][when])
    if task.cue:
        _paste(frames[: task.cue], _disc(task.target), _colour(TARGET_HUES, rng), paths[0][: task.cue])
    frames += task.noise * rng.standard_normal(frames.shape, dtype=np.float32)
    visible = np.zeros(task.length, bool)
    visible[shown] = True
    return frames.clip(0, 255).astype(np.uint8), paths[0] + (len(sprites[0]) - 1) / 2, visible


def _colour(hues: tuple[float, float], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    return 255 * np.array(colorsys.hsv_to_rgb(rng.uniform(*hues) % 1, rng.uniform(0.7, 0.9), rng.uniform(0.8, 1.0)))


def _shown(task: DemoTask, rng: np.random.Generator) -> slice:
    """The frames that show the marked digits."""
    if task.visible == 1:
        return slice(task.cue, task.length)
    count = max(1, round(task.visible * (task.length - task.cue)))
    first = int(rng.integers(task.cue, task.length - count + 1))
    return slice(first, first + count)


def _scenes(task: DemoTask) -> list[int]:
    """Return the numbers of frames of a video's scenes: everything but the location is sampled again after the cue."""
    return [task.cue, task.length - task.cue] if task.cue else [task.length]


def _walk(task: DemoTask, side: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """The path (length, 2) of the top-left corner of a digit that moves."""
    return np.concatenate([_drift(length, task.size - side, task.speed, rng) for length in _scenes(task)])


def _stand(task: DemoTask, count: int, rng: np.random.Generator) -> list[npt.NDArray[np.float64]]:
    """The paths (length, 2) of digits that stand still, each in a separate square, with a small offset in every scene."""
    side = task.size / PLACES
    squares = np.stack(np.divmod(rng.permutation(PLACES**2)[:count], PLACES), axis=1) * side + (side - task.target) / 2
    positions = squares + rng.uniform(-JITTER, JITTER, (len(_scenes(task)), count, 2))
    return list(np.repeat(positions, _scenes(task), axis=0).swapaxes(0, 1))


def _sprite(digit: npt.NDArray[np.uint8], side: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """The opacity (side, side), 0-1, of a digit that is turned by a few degrees."""
    image = Image.fromarray((digit.astype(np.float32) * (255 / 16)).astype(np.uint8))
    image = image.resize((side, side), Image.Resampling.BICUBIC).rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.float32) / np.float32(255)


def _disc(side: int) -> npt.NDArray[np.float32]:
    """The opacity (side, side) of a disc, which marks a location without a class."""
    axis = np.arange(side) - (side - 1) / 2
    return (np.hypot(*np.meshgrid(axis, axis)) <= side / 2).astype(np.float32)


def _drift(length: int, span: int, speed: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """A smooth path (length, 2) of top-left corners that turns slowly and bounces off the borders of [0, span]."""
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.12, length))
    steps = speed * rng.uniform(0.6, 1.4) * np.stack([np.sin(heading), np.cos(heading)], axis=1)
    free = rng.uniform(0, span, 2) + np.cumsum(steps, axis=0)
    even = 1 - np.abs(free / span % 2 - 1)
    return span * (even - OUTWARD * np.sin(2 * np.pi * even) / (2 * np.pi))


def _background(size: int, length: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Dim smooth texture (length, size, size, 3) that slides under the digits of one scene."""
    margin = 2 * length
    coarse = rng.integers(0, 90, (9, 9, 3), dtype=np.uint8)
    texture = np.asarray(Image.fromarray(coarse).resize((size + margin, size + margin), Image.Resampling.BICUBIC))
    corners = _drift(length, margin, 1.0, rng).astype(int)
    return np.stack([texture[y : y + size, x : x + size] for y, x in corners]).astype(np.float32)


def _paste(
    frames: npt.NDArray[np.float32], sprite: npt.NDArray[np.float32], colour: npt.NDArray[np.float64], path: npt.NDArray[np.float64]
) -> None:
    opacity = sprite[..., None]
    for frame, (top, left) in zip(frames, path.round().astype(int), strict=True):
        under = frame[top : top + len(sprite), left : left + len(sprite)]
        under += opacity * (colour.astype(np.float32) - under)
