"""The appearance of demo videos as plain values: `DemoTask` describes a task, and `Scene` one video."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from classifiers.errors import InputError, refuse_if

TaskName = Literal["track", "mover", "sparse", "easy@v0", "normal@v0", "hard@v0", "sparse@v0", "memory@v0"]
DEFAULT_TASK: TaskName = "track"
Mark = Literal["red", "cue_colour", "cue_motion", "halo"]
"""The mark that distinguishes the target from other digits: its red colour (version 0), the colour of its disc in the cue (the first
frames), the motion of its disc in the cue, in which no other disc moves, or the colour of the disc behind it."""
RENDERER_VERSION = 1
PLACES = 3  # digits of version 0 that stand still are in different squares of a PLACES×PLACES board, so that patches do not overlap others
MOST_LOOKALIKES = 4  # in version 1, limited by the number of hues of halos


@dataclass(frozen=True)
class DemoTask:
    """The appearance of the demo videos. Lengths are in pixels, speeds in pixels per frame.

    Attributes:
        train_videos: number of training videos, including those held out for validation.
        val_videos: minimum number of validation videos. If fewer are held out, more are rendered, unless no share is held out.
        test_videos: number of test videos, and also of further videos (see `adafocus_env.demo.videos.demo`).
        size: height and width of the frames.
        length: frames in a video.
        target: side of the target digit.
        distractor: side of a distractor digit.
        clutter: number of distractors.
        speed: mean speed of the target.
        noise: standard deviation of the pixel noise, of 255.
        visible: share of the frames that show the target; these are consecutive and begin at a random frame.
        cue: number of first frames with discs in place of digits. In version 0, there is one disc, at the target; afterwards, the scene
            changes, and the target stands still. 0: no cue, and the target moves.
        lookalikes: number of digits of other classes, all different, that are drawn like the target.
        mark: what distinguishes the target from other digits; ``red`` is version 0.
        patch_size: side of the patches of the task's classifier. The videos do not depend on it.

    Raises:
        InputError: if a value is out of range. The message names it.
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
        """Hash of everything that the pixels of the videos depend on."""
        hidden = {"train_videos", "val_videos", "test_videos", "patch_size"}
        later = {"visible": 1.0, "cue": 0, "lookalikes": 0, "mark": "red"}  # omitted if unused, so that older videos have the same names
        appearance = {k: v for k, v in asdict(self).items() if k not in hidden and v != later.get(k)}
        return hashlib.sha256(json.dumps([RENDERER_VERSION, appearance], sort_keys=True).encode()).hexdigest()[:12]

    @property
    def classifier_training_task(self) -> DemoTask:
        """The task whose videos train the classifier: the target is always visible, and there are no look-alikes."""
        return replace(self, visible=1.0, lookalikes=0)


@dataclass(frozen=True)
class Scene:
    """Everything that `render_video` needs to draw one video in any process."""

    path: Path
    track: Path
    task: DemoTask
    digits: npt.NDArray[np.uint8]  # (1 + lookalikes + clutter, 8, 8): the target, its look-alikes, and clutter
    label: int
    seed: int
