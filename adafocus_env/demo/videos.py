"""The demo videos, which are H.264 files. In each video, one handwritten digit, the target, determines the class.

`adafocus_env.demo.renderer` draws the videos. The digit images are from scikit-learn (UCI, 8×8 pixels). No digit image occurs in both
training and test videos. A file next to each video has the true track of the target: its centres, the side of its box, and the frames that
show it.

`TASKS` lists the benchmark tasks; see docs/tasks.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adafocus_env.cache_dir import cache_folder
from adafocus_env.demo.renderer import draw
from adafocus_env.demo.task import DEFAULT_TASK, DemoTask, Scene
from adafocus_env.videos.dataset import DataSet, Video, hold_out
from adafocus_env.videos.decoding import Failure, run_in_workers
from classifiers.atomic_files import replacing, write_text
from classifiers.errors import InputError, lookup, refuse_if

CLASSES = tuple("0123456789")

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
        "adafocus_env.demo.videos:render_video", [_scene(video, task) for video in missing], num_workers=num_workers, time_limit=60.0
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


def render_video(scene: Scene) -> None:
    """Draw one video, and write its MP4 file and its track. Each file is written atomically."""
    import av

    frames, centres, visible = draw(scene)
    track = {"centre": np.round(centres, 2).tolist(), "side": scene.task.target, "visible": visible.tolist(), "label": scene.label}
    write_text(scene.track, json.dumps(track))
    # x264 is deterministic only with mbtree=0, because its rate control by macroblock trees is not deterministic.
    options = {"crf": "18", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
    with replacing(scene.path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
