"""Draws the demo videos: a handwritten digit that tells the class, among clutter and, in version 1 of the tasks, among look-alikes.

At glance size a digit can be located but not classified; at patch size it can. In version 0 the target is the one reddish digit.
`adafocus_env.demo.lookalikes` draws version 1.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adafocus_env.demo.lookalikes import MOST_LOOKALIKES, Mark, draw_lookalikes
from adafocus_env.demo.sprites import background, disc, drift, paste, random_colour, sprite
from classifiers.errors import InputError, refuse_if

RENDERER_VERSION = 1
TARGET_HUES = (-0.04, 0.04)  # reddish, in turns of the colour circle
DISTRACTOR_HUES = (0.14, 0.86)
PLACES = 3  # still digits stand in different squares of a PLACES×PLACES board: a patch on one shows nothing of the others
JITTER = 3.0  # pixels that they may stand off the middle of their square


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
        cue: first frames in which discs stand where digits will be. In version 0 there is one, at the target; after it the scene
            changes, and the target stands still. 0: no cue, and the target moves.
        lookalikes: digits of other classes, all different, that are drawn like the target.
        mark: what tells the target from other digits; ``red`` is version 0.
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
    mark: Mark = "red"
    patch_size: int = 24

    def __post_init__(self) -> None:
        if not 0 < self.visible <= 1:
            raise InputError(f"visible must be above 0 and at most 1, got {self.visible}")
        if not 0 <= self.cue < self.length:
            raise InputError(f"cue must be from 0 to {self.length - 1}, fewer than length, got {self.cue}")
        refuse_if(
            self.mark.startswith("cue") and not self.cue, f"cue must be at least 1 with mark={self.mark!r}, whose mark is in the cue, got 0"
        )
        refuse_if(
            self.mark != "red" and self.lookalikes > MOST_LOOKALIKES,
            f"lookalikes must be from 0 to {MOST_LOOKALIKES} with mark={self.mark!r}, got {self.lookalikes}",
        )
        if not 0 <= self.lookalikes < PLACES**2 or (self.mark == "red" and self.lookalikes and not self.cue):
            raise InputError(
                f"lookalikes must be from 0 to {PLACES**2 - 1}, and 0 without a cue, got {self.lookalikes} with cue={self.cue}"
            )

    @property
    def key(self) -> str:
        """Hash of everything that the pixels of a video depend on."""
        hidden = {"train_videos", "val_videos", "test_videos", "patch_size"}
        later = {"visible": 1.0, "cue": 0, "lookalikes": 0, "mark": "red"}  # only if used: older videos keep their names
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
    rng = np.random.default_rng(scene.seed)
    frames, centres, visible = (_draw_red if scene.task.mark == "red" else draw_lookalikes)(scene, rng)
    frames += scene.task.noise * rng.standard_normal(frames.shape, dtype=np.float32)
    return frames.clip(0, 255).astype(np.uint8), centres, visible


def _draw_red(scene: Scene, rng: np.random.Generator) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Draw a video of version 0, without noise."""
    task = scene.task
    marked = 1 + task.lookalikes
    looks = [(task.target, TARGET_HUES)] * marked + [(task.distractor, DISTRACTOR_HUES)] * task.clutter
    drawn = [(sprite(digit, side, rng), random_colour(hues, rng)) for digit, (side, hues) in zip(scene.digits, looks, strict=True)]
    sprites, colours = zip(*drawn, strict=True)
    paths = _stand(task, marked, rng) if task.cue else [_walk(task, len(sprites[0]), rng)]
    paths += [_walk(task, len(sprite), rng) for sprite in sprites[marked:]]
    frames = np.concatenate([background(task.size, length, rng) for length in _scenes(task)])
    shown = _shown(task, rng)
    for number in reversed(range(len(sprites))):  # the target last: nothing covers it
        when = shown if number < marked else slice(None)
        paste(frames[when], sprites[number], colours[number], paths[number][when])
    if task.cue:
        paste(frames[: task.cue], disc(task.target), random_colour(TARGET_HUES, rng), paths[0][: task.cue])
    visible = np.zeros(task.length, bool)
    visible[shown] = True
    return frames, paths[0] + (len(sprites[0]) - 1) / 2, visible


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
    return np.concatenate([drift(length, task.size - side, task.speed, rng) for length in _scenes(task)])


def _stand(task: DemoTask, count: int, rng: np.random.Generator) -> list[npt.NDArray[np.float64]]:
    """The paths (length, 2) of digits that stand still, each in a separate square, with a small offset in every scene."""
    side = task.size / PLACES
    squares = np.stack(np.divmod(rng.permutation(PLACES**2)[:count], PLACES), axis=1) * side + (side - task.target) / 2
    positions = squares + rng.uniform(-JITTER, JITTER, (len(_scenes(task)), count, 2))
    return list(np.repeat(positions, _scenes(task), axis=0).swapaxes(0, 1))
