"""Describe the appearance of demo videos by plain values. A `DemoTask` describes a task, and a `Scene` describes one video."""

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
"""The mark that distinguishes the target from other digits. The cue is the start of the video, in which discs replace the digits. ``red``
(version 0): the target is red. ``cue_colour``: the target's disc in the cue has a special colour. ``cue_motion``: only the target's disc
moves in the cue. ``halo``: the disc behind the target has a special colour."""
RENDERER_VERSION = 1
PLACES = 3  # version 0: digits that stand still are in different squares of a PLACES×PLACES board, so that a patch does not overlap two
MOST_LOOKALIKES = 4  # maximum in version 1, which is limited by the number of hues of halos


@dataclass(frozen=True)
class DemoTask:
    """The appearance of the demo videos. Lengths are in pixels, speeds in pixels per frame.

    Attributes:
        train_videos: number of training videos, including the videos held out for validation.
        val_videos: minimum number of validation videos. If the share of held-out training videos has fewer videos, additional validation
            videos are rendered. If the held-out share is 0, there are no validation videos.
        test_videos: number of test videos. The split `further`, for final results, has the same number of videos (see
            `adafocus_env.demo.videos.demo`).
        size: height and width of the frames.
        length: frames in a video.
        target: side of the target digit.
        distractor: side of a distractor digit.
        clutter: number of distractors.
        speed: mean speed of the target.
        noise: standard deviation of the pixel noise, for pixel values up to 255.
        visible: share of the frames that show the target. The frames that show the target are consecutive and begin at a random frame.
        cue: length of the cue in frames. The cue is the start of the video; it has discs in place of digits. In version 0, the cue has a
            single disc, at the target's location. After the cue, the scene changes, and the target stands still. If ``cue`` is 0, there is
            no cue, and the target moves.
        lookalikes: number of digits that are drawn like the target. The classes of these look-alikes differ from each other and from the
            target's class.
        mark: what distinguishes the target from other digits. Version 0 has the mark ``red``.
        patch_size: side of the patches of the task's classifier. The videos do not depend on the patch size.

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
        later = {"visible": 1.0, "cue": 0, "lookalikes": 0, "mark": "red"}  # left out if not used, so that older videos have the same names
        appearance = {k: v for k, v in asdict(self).items() if k not in hidden and v != later.get(k)}
        return hashlib.sha256(json.dumps([RENDERER_VERSION, appearance], sort_keys=True).encode()).hexdigest()[:12]

    @property
    def classifier_training_task(self) -> DemoTask:
        """The task whose videos train the classifier.

        In the training videos of the classifier, the target is always visible, and there are no look-alikes.
        """
        return replace(self, visible=1.0, lookalikes=0)


@dataclass(frozen=True)
class Scene:
    """All values that `render_video` needs to draw one video, in any process."""

    path: Path
    track: Path
    task: DemoTask
    digits: npt.NDArray[np.uint8]  # (1 + lookalikes + clutter, 8, 8): the target, its look-alikes, and clutter
    label: int
    seed: int
