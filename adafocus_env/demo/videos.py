"""The demo videos, which are H.264 files. In each video, one handwritten digit, the target, determines the class.

The digit images are from scikit-learn (UCI, 8×8 pixels). No digit image occurs in both training and test videos. A file next to each video
has the true track of the target: its centres, the side of its box, and the frames that show it.

`TASKS` lists the benchmark tasks; see docs/tasks.md. A `DemoTask` describes a task, and a `Scene` describes one video.
`adafocus_env.demo.renderer` draws the videos.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from adafocus_env.cache_dir import cache_folder
from adafocus_env.videos.dataset import DataSet, Video
from adafocus_env.videos.decoding import Failure, run_in_workers
from adafocus_env.videos.splits import hold_out
from classifiers.errors import InputError, lookup, refuse_if

CLASSES = tuple("0123456789")
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
        test_videos: number of test videos. The split `further`, for final results, has the same number of videos (see `demo`).
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
    """All values that `adafocus_env.demo.renderer.render_video` needs to draw one video, in any process."""

    path: Path
    track: Path
    task: DemoTask
    digits: npt.NDArray[np.uint8]  # (1 + lookalikes + clutter, 8, 8): the target, its look-alikes, and clutter
    label: int
    seed: int


TASKS: dict[str, DemoTask] = {
    "track": DemoTask(target=16, clutter=4, speed=3.0, cue=4, lookalikes=4, mark="cue_colour"),
    "mover": DemoTask(target=16, clutter=4, speed=3.0, cue=6, lookalikes=4, mark="cue_motion"),
    "sparse": DemoTask(target=16, clutter=4, speed=3.0, length=24, visible=1 / 3, lookalikes=4, mark="halo"),
    "easy@v0": DemoTask(clutter=4, speed=2.0, patch_size=28),
    "normal@v0": DemoTask(),
    "hard@v0": DemoTask(clutter=20, speed=7.0, patch_size=20),
    "sparse@v0": DemoTask(length=24, visible=1 / 3),
    "memory@v0": DemoTask(target=16, clutter=4, cue=4, lookalikes=4),
}


def demo(task: DemoTask | str = DEFAULT_TASK, *, val: float = 0.1, num_workers: int = 2) -> DataSet:
    """Return the demo data set. `DataSet.prepare` renders its videos.

    The split `further` is meant for final results, and has as many videos as the test split. No digit image that is a target in training or
    test videos is a target in the split `further`.

    Args:
        task: a name in `TASKS`, or a `DemoTask`, which describes the appearance of the videos.
        val: share of the training videos that is held out for validation. If this share has fewer videos than the task's ``val_videos``,
            additional videos with training digits are rendered for validation. The training videos stay the same. If ``val`` is 0, the
            data set has no validation videos.
        num_workers: number of rendering processes.

    Raises:
        InputError: if the task is unknown.
    """
    name = data_name(task) if isinstance(task, str) else "demo"
    task = lookup("task", task, TASKS) if isinstance(task, str) else task
    root = _root(task)
    train, held_out = hold_out(_videos(root, "train", range(task.train_videos)), val)
    more = range(task.train_videos, task.train_videos + max(0, task.val_videos - len(held_out))) if held_out else range(0)
    return DataSet(
        name=name,
        classes=CLASSES,
        train=train,
        val=held_out + _videos(root, "train", more),
        test=_videos(root, "test", range(task.test_videos)),
        further=_videos(root, "further", range(task.test_videos)),
        flip=False,  # mirrored digits are not digits
        scales=(1.0,),
        margin=1.0,
        prepare=partial(render, task=task, num_workers=num_workers),
        patch_size=task.patch_size,
    )


def _root(task: DemoTask) -> Path:
    return cache_folder("videos") / f"demo-{task.key}"


def data_name(task: str) -> str:
    """Return the name of a task's data set. The bundled classifier of the task has the same name."""
    return "demo" if task == DEFAULT_TASK else f"demo-{task}"


def render(
    videos: Sequence[Video], task: DemoTask, *, num_workers: int = 2, progress: Callable[[int], None] | None = None
) -> None:
    """Render the videos whose file or track is missing.

    Raises:
        InputError: if a video cannot be written. The message names the video and the reason.
    """
    missing = [video for video in videos if not (video.path.exists() and video.track and video.track.exists())]
    for index, outcome in run_in_workers(
        "adafocus_env.demo.renderer:render_video", [_scene(video, task) for video in missing], num_workers=num_workers, time_limit=60.0
    ):
        if isinstance(outcome, Failure):
            raise InputError(f"demo video {missing[index].path} could not be rendered: {outcome.reason}")
        if progress is not None:
            progress(1)


def _videos(root: Path, split: str, numbers: range) -> tuple[Video, ...]:
    """Return the videos. The names of videos start with the task's key, so that clips of different tasks are never confused."""
    stems = [(i % len(CLASSES), f"{split}/{CLASSES[i % len(CLASSES)]}/{i:05d}") for i in numbers]
    return tuple(Video(f"{root.name}/{stem}.mp4", root / f"{stem}.mp4", label, root / f"{stem}.track.json") for label, stem in stems)


def _scene(video: Video, task: DemoTask) -> Scene:
    seed = int.from_bytes(hashlib.sha256(video.name.encode()).digest()[:8], "big")
    rng = np.random.default_rng(seed)
    split = video.name.split("/")[1]
    images, labels, _ = _digits(split)
    taken = _test_targets(task) if split == "further" else frozenset()
    free = [image for image in np.flatnonzero(labels == video.label) if image not in taken]
    refuse_if(
        not free,
        f"test_videos={task.test_videos} is too many for further videos: every test digit {video.label} is the target of a test video; "
        "set fewer test_videos",
    )
    target = rng.choice(free)
    others = rng.integers(len(images), size=task.clutter)
    other_classes = rng.permutation(np.delete(np.arange(len(CLASSES)), video.label))
    alike = [rng.choice(np.flatnonzero(labels == label)) for label in other_classes[: task.lookalikes]]
    assert video.track is not None
    return Scene(video.path, video.track, task, images[[target, *alike, *others]], video.label, seed)


def target_digit(video: Video, task: DemoTask) -> int:
    """Return the index, in scikit-learn's data set, of the digit image that is the target of a video."""
    images, _, numbers = _digits(video.name.split("/")[1])
    return int(numbers[(images == _scene(video, task).digits[0]).all((1, 2))][0])


@lru_cache
def _test_targets(task: DemoTask) -> frozenset[int]:
    """Return the indices of all digit images that are targets of test videos. The indices refer to the images of the test split."""
    numbers = _digits("test")[2]
    videos = _videos(_root(task), "test", range(task.test_videos))
    return frozenset(np.flatnonzero(np.isin(numbers, [target_digit(video, task) for video in videos])).tolist())


@lru_cache(maxsize=3)
def _digits(split: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the digit images (n, 8, 8) of one split, with values 0-16, their labels (n,) and their indices (n,).

    Three quarters of all images are for training.
    """
    from sklearn.datasets import load_digits  # imported here, since the rendering processes do not need it

    data = load_digits()
    training = np.random.default_rng(0).permutation(len(data.images)) % 4 != 0
    chosen = training if split == "train" else ~training
    return data.images[chosen].astype(np.uint8), data.target[chosen], np.flatnonzero(chosen)
