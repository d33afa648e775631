"""The implementation of `python -m agents.fill_feature_bank`, which fills the banks of a data set in advance."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from adafocus_env import distributed
from adafocus_env.build import Split, check_fit, choose_device, make_action, open_clips
from adafocus_env.clips.store import Unreadable
from adafocus_env.dataset_registry import DataSettings, build_data
from adafocus_env.features.disk_bank import DiskBank, check_folder, check_room
from adafocus_env.settings import EnvSettings
from adafocus_env.terminal import plain
from adafocus_env.videos.dataset import DataSet, with_classes
from classifiers import checkpoint
from classifiers.classifier import Classifier
from classifiers.errors import refuse_if

SPLITS: tuple[Split, ...] = ("train", "val", "test")


def fill_feature_bank(name: str, data: DataSettings, env: EnvSettings, *, split: str, shard: str, device: str) -> None:
    """Compute the features of a data set, store them in banks in a folder, and show a progress bar. Stored features are not computed again.

    Args:
        name: name of a bundled classifier, or the folder of a checkpoint.
        data: settings of videos and clips.
        env: settings of the environment. The settings ``env`` determine the features (actions, decisions and number format) and the folder
            of the banks (``bank``).
        split: train, val, test or all.
        shard: I/N: the work is divided into N shares, and this call does share number I, counted from 0. If torchrun starts several
            processes, they divide this share among themselves.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        InputError: if the classifier, the data set, the shard or the folder cannot be used, if classifier and data do not match, or if
            there is not enough space.
    """
    part, parts = _of_process(*_share(shard))
    refuse_if(
        data.views == "resample",
        "data.views must be a number of clips per video to store features, got resample, which stores no clips",
    )
    videos = build_data(data)
    classifier = checkpoint.load(name, choose_device(device))
    videos = with_classes(videos, classifier.classes)
    refuse_if(classifier.classes != videos.classes, f"classifier={name} was trained on other classes than those of data={data.name}")
    console = Console(highlight=False, quiet=not distributed.is_main())
    console.print(plain(videos.summary), soft_wrap=True, emoji=False)
    check_folder(Path(env.bank).expanduser())  # checked before clips are decoded, which may take long
    wanted = [each for each in SPLITS if split == each or (split == "all" and getattr(videos, each))]
    with Unreadable() as unreadable:
        banks = {each: _bank(classifier, videos, data, each, env, unreadable) for each in wanted}
    fill(banks, console, part, parts)


def fill(banks: Mapping[Split, DiskBank], console: Console, part: int = 0, parts: int = 1) -> None:
    """Fill banks one after the other, with a progress bar.

    Args:
        banks: dictionary from split to the bank with the clips of this split.
        console: shows the bar.
        part: see `DiskBank.fill`.
        parts: see `DiskBank.fill`.

    Raises:
        InputError: if there is not enough space for all banks, or if a video cannot be read. The space is checked before anything is
            computed.
    """
    for split, bank in banks.items():
        console.print(plain(f"{split}: {bank.about}"), soft_wrap=True, emoji=False)
    check_room(next(iter(banks.values())).folder.parent, sum(bank.missing_bytes(part, parts) for bank in banks.values()), "bank")
    columns = (TextColumn("fill {task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
    with Progress(*columns, TimeRemainingColumn(compact=True), console=console, expand=True) as progress:
        for split, bank in banks.items():
            task = progress.add_task(split, total=bank.num_clips(part, parts), speed="")
            bank.fill(part, parts, partial(_show, progress, task))


def _show(progress: Progress, task: TaskID, done: int) -> None:
    speed = progress.tasks[task].speed
    progress.update(task, completed=done, speed="" if speed is None else f"{speed:.1f} clips/s")


def _bank(classifier: Classifier, videos: DataSet, data: DataSettings, split: Split, env: EnvSettings, unreadable: Unreadable) -> DiskBank:
    clips = open_clips(
        videos, split, num_frames=data.num_frames, size=classifier.architecture.size, views=data.views, glance_frames=data.glance_frames,
        sampling=data.sampling, order=data.order or classifier.clip_format.order, num_workers=data.workers, unreadable=unreadable,
    )  # fmt: skip
    check_fit(classifier, clips)
    action = make_action(env.action, env.grid, classifier)
    return DiskBank(classifier, clips, action, env.bank, video_div=env.video_div, dtype=env.bank_dtype)


def _share(shard: str) -> tuple[int, int]:
    """Parse I/N as two numbers."""
    part, slash, parts = shard.partition("/")
    refuse_if(
        not (slash and part.isdecimal() and parts.isdecimal() and int(part) < int(parts)),
        f"shard must be I/N, the I-th of N shares from 0 (shard=0/4, …, shard=3/4), got {shard!r}",
    )
    return int(part), int(parts)


def _of_process(part: int, parts: int) -> tuple[int, int]:
    """Divide share number ``part`` of the ``parts`` shares of the work among all processes, and return the share of this process."""
    return part + parts * distributed.rank(), parts * distributed.world_size()
