"""Build clips, classifier and features from the arguments of an environment. All APIs use this module."""

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from adafocus_env import distributed
from adafocus_env.action import Action, GridAction, InterpolatedAction, find_action
from adafocus_env.cache_dir import cache_folder
from adafocus_env.clips.clip_spec import ClipSpec
from adafocus_env.clips.store import ClipSource, ClipStore, Unreadable
from adafocus_env.clips.stream import StreamingClips
from adafocus_env.demo.videos import DEFAULT_TASK, TASKS, data_name, demo
from adafocus_env.features.disk_bank import DiskBank, check_room
from adafocus_env.features.live import Features, LiveFeatures
from adafocus_env.features.memory_bank import MemoryBank, RoomError, check_bank
from adafocus_env.settings import EnvSettings, validate
from adafocus_env.videos.dataset import DataSet, Video
from adafocus_env.waiting import Waiting
from classifiers import checkpoint
from classifiers.classifier import Classifier, check_frozen
from classifiers.errors import InputError, lookup, refuse_if
from classifiers.model_zoo import BUNDLED

Split = Literal["train", "val", "test", "further"]
DEMO_FRAMES = 8
_log = logging.getLogger("adafocus_env")


def open_clips(
    data: DataSet,
    split: Split,
    *,
    num_frames: int,
    size: int,
    views: int | str = 1,
    glance_frames: int = 0,
    sampling: str = "segments",
    order: str = "time",
    seed: int = ClipSpec.seed,
    lazy: bool = False,
    num_workers: int = 2,
    progress: Callable[[int], None] | None = None,
    unreadable: Unreadable | None = None,
    waiting: Waiting | None = None,
) -> ClipSource:
    """Open the clips of one split of a data set.

    The videos are decoded once and stored in the cache folder (`ClipStore`), or decoded again in every epoch (`StreamingClips`).

    Args:
        data: the data set.
        split: the split. Training clips have random frames and crops; clips of other splits have middle frames and centre crops.
        num_frames: T, frames per clip.
        size: side of the frames in pixels.
        views: number of clips sampled from every training video, or "resample" to sample new clips in every epoch without storing them.
        glance_frames: number of separate frames for the glancer; if 0, the glancer sees the focuser's frames.
        sampling: how the frames of training clips are sampled.
        order: the order in which the networks see the frames, a name in `adafocus_env.videos.frame_sampling.ORDERS`.
        seed: seed of resampled clips. Stored clips do not depend on the seed, so that runs with different seeds share them.
        lazy: whether to decode clips only when they are needed. The first request of a clip then decodes the 64 clips that are stored
            together with it.
        num_workers: number of decoding processes.
        progress: function that is called with the number of clips that are ready.
        unreadable: collects the videos that cannot be read, so that the caller can give one warning for several splits.
        waiting: progress display for the clips that are decoded later because of ``lazy``.

    Raises:
        InputError: if the split or ``views`` is unknown, if the split has no videos, or if no video can be read.
    """
    refuse_if(split not in get_args(Split), f"clips must be {', '.join(map(repr, get_args(Split)))} or a ClipStore, got {split!r}")
    refuse_if(
        split == "further" and not data.further,
        f"clips='further': there are no further videos in data={data.name}; choose 'test', or the demo videos",
    )
    refuse_if(
        views != "resample" and (isinstance(views, str) or views < 1),
        f"views must be an integer of at least 1 or resample, got {views}; give the number of clips sampled from each training video",
    )
    training, resampled = split == "train", split == "train" and views == "resample"
    settings = ClipSpec(
        num_frames, size, round(size * data.margin), training, int(views) if training and not resampled else 1, flip=data.flip,
        scales=data.scales, seed=seed if resampled else ClipSpec.seed, glance_frames=glance_frames, sampling=sampling, order=order,
    )  # fmt: skip
    if resampled:
        return StreamingClips(data.train, settings, prepare=data.prepare, num_workers=num_workers, unreadable=unreadable)
    return ClipStore(
        getattr(data, split),
        settings,
        folder=cache_folder("clips"),
        prepare=data.prepare,
        lazy=lazy,
        num_workers=num_workers,
        progress=progress,
        unreadable=unreadable,
        waiting=waiting,
    )


def choose_device(name: str) -> torch.device:
    """Return the device called ``name``. "auto" selects a GPU if there is one, otherwise the CPU. Several processes use separate GPUs.

    Raises:
        InputError: if PyTorch does not know the device or cannot use it on this machine, or if there are fewer GPUs than processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and distributed.world_size() > 1:
        refuse_if(
            (number := distributed.local_rank()) >= (gpus := torch.cuda.device_count()),
            f"process {number} of this machine has no GPU, there are {gpus}: start torchrun with --nproc_per_node={gpus}",
        )
        name = f"cuda:{number}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as problem:
        reason = str(problem).splitlines()[0]
        raise InputError(f"device={name!r} cannot be used here ({reason}); choose auto, cpu, cuda or cuda:N") from problem
    return device


def build_features(
    classifier: Classifier | str, clips: ClipSource | Split, *, task: str = DEFAULT_TASK, device: str = "auto", **settings: Any
) -> Features:
    """Combine classifier, clips and patch geometry.

    Args:
        classifier: a frozen classifier, a name or folder for `classifiers.load`, or "auto" for the bundled classifier of the task. A
            classifier that is passed as an object stays on its device.
        clips: a clip store, or a split of the demo videos.
        task: the task of the demo videos, a name in `adafocus_env.demo.videos.TASKS`.
        device: device of a classifier that this function loads.
        settings: settings of `adafocus_env.settings.EnvSettings` by name. ``bank`` may also be an existing bank, which must have been made
            for the same classifier, clips and action. The function then returns this bank.

    Raises:
        InputError: if a setting is unknown or out of range, or if the arguments do not match each other. If arguments do not match, the
            message names these arguments and the reason.
    """
    chosen = validate(EnvSettings, settings)
    lookup("task", task, TASKS)
    if isinstance(classifier, str):
        refuse_if(
            classifier == "auto" and data_name(task) not in BUNDLED,
            f"classifier='auto': none is bundled for task={task!r}; train one with python -m benchmarks.rebuild_bundled task={task} "
            "out=DIR, and give classifier=DIR",
        )
        classifier = checkpoint.load(data_name(task) if classifier == "auto" else classifier, choose_device(device))
    check_frozen(classifier)
    announce = isinstance(clips, str)  # in this case, no caller shows the progress of rendering, decoding and storing
    if isinstance(clips, str):
        clips = _open_lazily(demo(task), clips, classifier.architecture.size)
    check_fit(classifier, clips)
    patches = make_action(chosen.action, chosen.grid, classifier).patch_action
    if isinstance(chosen.bank, bool | str | Path):
        return _make_bank(chosen, classifier, clips, patches, announce)
    return check_bank(chosen.bank, classifier, clips, patches, chosen.video_div)


def make_action(action: str | Callable[[int, int, int], Action], grid: int, classifier: Classifier) -> Action:
    """Create the kind of action called ``action`` for the frame size and the patch size of a classifier.

    Raises:
        InputError: if the name is unknown, or the grid is too small.
    """
    return find_action(action)(grid, classifier.architecture.size, classifier.architecture.patch_size)


def _open_lazily(data: DataSet, split: Split, size: int) -> ClipSource:
    """Return clips that are rendered and decoded when they are first requested. A progress display shows this work."""
    assert data.prepare is not None
    data, waiting = replace(data, prepare=partial(_prepare_shown, data.prepare)), Waiting("decode videos", len(getattr(data, split, ())))
    return open_clips(data, split, num_frames=DEMO_FRAMES, size=size, lazy=True, waiting=waiting)


def _prepare_shown(prepare: Callable[..., None], videos: Sequence[Video]) -> None:
    done = itertools.count(1)
    with Waiting("render videos", len(videos)).shown() as at:
        prepare(videos, progress=lambda _: at(next(done)))


def _make_bank(settings: EnvSettings, classifier: Classifier, clips: ClipSource, action: Action, announce: bool) -> Features:
    """Return the features, stored in the way that ``settings.bank`` selects; see `build_features`."""
    bank, video_div, dtype, gib = settings.bank, settings.video_div, settings.bank_dtype, settings.bank_gib
    if bank is False or (bank == "auto" and isinstance(clips, StreamingClips)):
        return LiveFeatures(classifier, clips, action, video_div=video_div)
    refuse_if(
        isinstance(clips, StreamingClips),
        f"bank={'true' if bank is True else bank} stores the features of fixed clips, but these are resampled in every epoch "
        "(views=resample); set bank=false",
    )
    if bank is not True and bank != "auto":
        return _disk_bank(DiskBank(classifier, clips, action, bank, video_div=video_div, dtype=dtype), gib)
    try:
        return MemoryBank(
            classifier, clips, action, video_div=video_div, dtype=dtype, max_bytes=None if gib is None else int(gib * 2**30),
            announce=announce,
        )  # fmt: skip
    except RoomError as problem:
        if bank is True:
            raise
        _log.warning("%s. Features are computed live instead: slower, with the same results", problem)
        return LiveFeatures(classifier, clips, action, video_div=video_div)


def _disk_bank(bank: DiskBank, gib: float | None) -> DiskBank:
    refuse_if(
        gib is not None,
        f"bank_gib={gib} limits a bank in memory, but this bank is stored in {bank.folder.parent}; leave bank_gib out",
    )
    check_room(bank.folder, bank.missing_bytes(), bank.about)
    _log.info("%s", bank.about)
    return bank


def arguments_of(features: Features, *, skips: bool = False) -> dict[str, Any]:
    """Return constructor arguments for an environment with these features.

    With these arguments, the environment has the kind of action and the number of decisions for which the features were built.

    Args:
        features: features of the environment.
        skips: whether actions may skip the patch of a step.
    """
    video_div = features.num_steps if features.classifier.architecture.averages_frames else None
    if isinstance(features.action, GridAction):
        return {"action": "skip" if skips else "grid", "grid": features.action.grid, "video_div": video_div}
    if isinstance(features.action, InterpolatedAction):
        return {"action": "interpolated", "video_div": video_div}
    return {"action": "continuous_skip" if skips else "continuous", "video_div": video_div}


def check_fit(classifier: Classifier, clips: ClipSource) -> None:
    """Check that the classifier can classify the clips.

    Raises:
        InputError: if the clips have a frame size or an order of frames that the classifier does not expect, or labels that the classifier
            does not have.
    """
    refuse_if(
        clips.size != classifier.architecture.size,
        f"the clips have size={clips.size}, the classifier expects size={classifier.architecture.size}; pack them at that size",
    )
    refuse_if(
        clips.settings.order != classifier.clip_format.order,
        f"the clips have their frames in the order {clips.settings.order}, the classifier was trained with {classifier.clip_format.order}; "
        f"set data.order={classifier.clip_format.order}",
    )
    refuse_if(
        (highest := clips.labels.max(initial=-1)) >= len(classifier.classes),
        f"the clips have labels up to {highest}, the classifier knows {len(classifier.classes)} classes (from 0); "
        "use a classifier that was trained on this data set",
    )
