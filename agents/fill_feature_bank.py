"""Fills a feature bank on disk ahead, so that training and evaluation with ``bank=DIR`` run no network but the head.

    python -m agents.fill_feature_bank classifier=demo out=DIR [data=demo] [data.root=DIR] [split=all] [shard=0/4]

classifier          a bundled name or the folder of a checkpoint
out                 the folder: give it to the other commands as env.bank=DIR (agents.evaluate: bank=DIR)
data                actnet, fcvid, minik, sthv1, sthv2, folder or demo
data.root           the folder of videos, or of the lists of a published set
data.source         of a published set: frames (extracted), videos (raw), or auto: frames where they are there
data.val            share of the training videos that choices are made on
data.test           share that is the test part, where data=folder has no train and test parts of its own
data.num_frames     T, frames of a clip; by default the published number, elsewhere 8
data.glance_frames  the glancer's frames, where they are sampled separately; by default the published number, elsewhere none
data.views          clips drawn from each training video
data.sampling       how the frames of training clips are drawn: segments or released
split               train, val, test or all
action              grid or continuous (then only glances are kept)
grid                G, places for a patch in each axis of the grid
video_div           decisions a video (1, 2 or 4), where the classifier averages the scores of frames
bank_dtype          how numbers are stored: float32, float16 or bfloat16
shard               I/N: the share of the work that is done now, the I-th of N, from 0
device              auto, cpu, cuda or cuda:N
workers             processes that render and decode
plugin              a module of yours that is imported first (docs/extend.md)

All that tells clips and features apart must be what the training command uses, and is by default. A start that was stopped goes on
where it was; several may run at once. The size is told before anything is computed. On a machine with eight GPUs

    torchrun --nproc_per_node=8 -m agents.fill_feature_bank …

shares the work among them; the bar is that of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from adafocus_env.videos.published import PUBLISHED
from agents.config.arguments import key, run_command
from agents.config.data_keys import data_rules
from agents.config.unread import Unread
from classifiers.errors import InputError, lookup

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from adafocus_env.build import Split
    from adafocus_env.features.disk_bank import DiskBank
    from adafocus_env.videos.dataset import DataSet
    from adafocus_env.videos.unreadable import Unreadable
    from classifiers.classifier import Classifier

GLANCE_FRAMES = {"sthv1": 8, "sthv2": 8}  # as published, where the glancer has frames of its own
SPLITS: dict[str, tuple[Split, ...]] = {"train": ("train",), "val": ("val",), "test": ("test",), "all": ("train", "val", "test")}


@dataclass(frozen=True)
class Arguments:
    """The keys of the command, as the module's docstring explains them."""

    classifier: str
    out: str
    data: str = "demo"
    root: str = key("data.root", "")
    source: str = key("data.source", "auto")
    val: str = key("data.val", "0.1")
    test: str = key("data.test", "0.2")
    num_frames: int = key("data.num_frames", 0, of="frames")
    glance_frames: int = key("data.glance_frames", -1, of="frames")
    views: int = key("data.views", 1, of="clips")
    sampling: str = key("data.sampling", "segments")
    split: str = "all"
    action: str = "grid"
    grid: int = key("grid", 7, of="cells")
    video_div: int = key("video_div", 0, of="decisions")
    bank_dtype: str = "float32"
    shard: str = "0/1"
    device: str = "auto"
    workers: int = key("workers", 2, of="processes")
    plugin: str = ""


UNREAD = (
    *data_rules(lambda c: c.data, lambda c: c.root),
    Unread("data.val", lambda c: c.split == "test", "split=test has none of the training videos; leave it out"),
    Unread(
        "data.views data.sampling",
        lambda c: c.split in ("val", "test"),
        "it is about training clips, and split={c.split} has none; leave it out",
    ),
    Unread("grid", lambda c: c.action in ("continuous", "continuous_skip"), "action={c.action} has no cells; leave it out"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; see the module's docstring."""
    run_command(_command, Arguments, __doc__, arguments, unread=UNREAD)


def _command(given: Arguments) -> int:
    from rich.console import Console  # here, so that --help and mistyped keys are answered at once

    from adafocus_env import distributed
    from adafocus_env.build import choose_device
    from adafocus_env.videos.dataset import with_classes
    from adafocus_env.videos.unreadable import Unreadable
    from classifiers import checkpoint

    part, parts = _of_process(*_share(given.shard))
    splits = lookup("split", given.split, SPLITS)
    data = lookup("data", given.data, DATA_SETS)(given)
    classifier = checkpoint.load(given.classifier, choose_device(given.device))
    data = with_classes(data, classifier.classes)
    if classifier.classes != data.classes:
        raise InputError(f"classifier={given.classifier} was trained on other classes than those of data={given.data}")
    console = Console(highlight=False, quiet=not distributed.is_main())
    console.print(data.summary, markup=False, soft_wrap=True)
    there = [split for split in splits if getattr(data, split) or split == given.split]
    with Unreadable() as unreadable:
        banks = {split: _bank(given, classifier, data, split, unreadable) for split in there}
    fill(banks, console, part, parts)
    return 0


def fill(banks: Mapping[Split, DiskBank], console: Console, part: int = 0, parts: int = 1) -> None:
    """Fills banks one after the other under a progress bar.

    Args:
        banks: by the name of their clips.
        console: where the bar is shown.
        part: see `DiskBank.fill`, as for ``parts``.
        parts: the same.

    Raises:
        InputError: there is no room for all of them (told before anything is computed), or a video cannot be read.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from adafocus_env.features.disk_bank import check_room

    for split, bank in banks.items():
        console.print(f"{split}: {bank.about}", soft_wrap=True)
    folders = {bank.folder.parent for bank in banks.values()}
    check_room(folders.pop(), sum(bank.missing_bytes(part, parts) for bank in banks.values()), "bank")
    columns = (TextColumn("fill {task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
    with Progress(*columns, TimeRemainingColumn(compact=True), console=console, expand=True) as progress:
        for split, bank in banks.items():
            task = progress.add_task(split, total=bank.num_clips(part, parts), speed="")
            bank.fill(part, parts, partial(_show, progress, task))


def _show(progress: Progress, task: TaskID, done: int) -> None:
    speed = progress.tasks[task].speed
    progress.update(task, completed=done, speed="" if speed is None else f"{speed:.1f} clips/s")


def _bank(given: Arguments, classifier: Classifier, data: DataSet, split: Split, unreadable: Unreadable) -> DiskBank:
    from adafocus_env.action import ACTIONS
    from adafocus_env.build import check_fit, open_clips
    from adafocus_env.features.disk_bank import DiskBank, check_folder
    from adafocus_env.features.memory_bank import DTYPES

    expected = classifier.architecture
    lookup("bank_dtype", given.bank_dtype, DTYPES)  # what can be checked without the clips, which may take long
    action = lookup("action", given.action, ACTIONS)(given.grid, expected.size, expected.patch_size)
    check_folder(Path(given.out).expanduser())
    clips = open_clips(
        data, split, num_frames=_num_frames(given), size=expected.size, views=given.views, glance_frames=_glance_frames(given),
        sampling=given.sampling, num_workers=given.workers, unreadable=unreadable,
    )  # fmt: skip
    check_fit(classifier, clips)
    return DiskBank(classifier, clips, action, given.out, video_div=given.video_div or None, dtype=given.bank_dtype)


def _published(given: Arguments) -> DataSet:
    from adafocus_env.videos.published import published

    return published(given.data, _root(given), source=given.source, val=_number("data.val", given.val))


def _folder(given: Arguments) -> DataSet:
    from adafocus_env.videos.class_folders import folder

    return folder(_root(given), val=_number("data.val", given.val), test=_number("data.test", given.test))


def _demo(given: Arguments) -> DataSet:
    from adafocus_env.demo.videos import demo

    return demo(val=_number("data.val", given.val), num_workers=given.workers)


DATA_SETS: dict[str, Callable[[Arguments], DataSet]] = {**dict.fromkeys(PUBLISHED, _published), "folder": _folder, "demo": _demo}


def _share(shard: str) -> tuple[int, int]:
    """The text I/N as numbers."""
    part, slash, parts = shard.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise InputError(f"shard={shard} is no share of the work; give I/N, the I-th of N from 0: shard=0/4, …, shard=3/4")
    return int(part), int(parts)


def _of_process(part: int, parts: int) -> tuple[int, int]:
    """What is this process's of that share of the work."""
    from adafocus_env import distributed

    return part + parts * distributed.rank(), parts * distributed.world_size()


def _root(given: Arguments) -> str:
    if not given.root:
        raise InputError(f"data.root is missing: add data.root=DIR, the folder of data={given.data}")
    return given.root


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as problem:
        raise InputError(f"{name}={text}: {name} must be a number") from problem


def _num_frames(given: Arguments) -> int:
    if given.num_frames < 0:
        raise InputError(f"data.num_frames={given.num_frames}: a clip needs at least 1 frame")
    return given.num_frames or (PUBLISHED[given.data].num_frames if given.data in PUBLISHED else 8)


def _glance_frames(given: Arguments) -> int:
    return GLANCE_FRAMES.get(given.data, 0) if given.glance_frames < 0 else given.glance_frames


if __name__ == "__main__":
    main()
