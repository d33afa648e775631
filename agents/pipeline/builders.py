"""From values to objects: the one place where a config becomes data sets, clips and classifiers."""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from adafocus_env.build import Split, build_features, open_clips
from adafocus_env.cache_dir import cache_folder, exclusive
from adafocus_env.clips.clip_spec import ClipSpec
from adafocus_env.clips.store import ClipSource
from adafocus_env.clips.stream import StreamingClips
from adafocus_env.features.live import Features
from adafocus_env.videos.dataset import DataSet
from adafocus_env.videos.unreadable import Unreadable
from agents.config.settings import ArchitectureConfig, ClassifierConfig, DataConfig, EnvConfig
from agents.pipeline.make_classifier import make_classifier
from agents.runs.progress import Display
from classifiers import checkpoint
from classifiers.backbones.imagenet import new_classifier, prepared
from classifiers.classifier import Architecture, Classifier
from classifiers.errors import InputError
from classifiers.model_zoo import ARCHITECTURES, BUNDLED
from classifiers.optimize import choose_execution, with_execution


@dataclass(frozen=True)
class Clips:
    """The clips of a data set; ``val`` is None where nothing is held out."""

    data: DataSet
    train: ClipSource
    val: ClipSource | None
    test: ClipSource


def build_clips(data: DataSet, config: DataConfig, size: int, display: Display, *, seed: int) -> Clips:
    """Renders and decodes what is missing, under a progress bar; one warning names the videos of all parts that cannot be read.

    Args:
        data: the videos.
        config: how clips are drawn from them.
        size: side of the frames in pixels.
        display: where progress is shown.
        seed: of the draws of training clips that are fresh in every epoch.

    Raises:
        InputError: a part has no video that can be read.
    """
    with Unreadable() as unreadable:
        return Clips(
            data,
            part(data, "train", config, size, display, unreadable, seed=seed),
            part(data, "val", config, size, display, unreadable) if data.val else None,
            part(data, "test", config, size, display, unreadable),
        )


def part(
    data: DataSet,
    split: Split,
    config: DataConfig,
    size: int,
    display: Display,
    unreadable: Unreadable | None = None,
    *,
    seed: int = ClipSpec.seed,
) -> ClipSource:
    """The clips of one part of a data set; see `build_clips` and `open_clips`."""
    count = len(getattr(data, split)) * (config.views if split == "train" and isinstance(config.views, int) else 1)
    bar = display.bar(f"decode {split}", count)
    clips = open_clips(
        data, split, num_frames=config.num_frames, size=size, views=config.views, glance_frames=config.glance_frames,
        sampling=config.sampling, seed=seed, num_workers=config.workers, progress=bar.at, unreadable=unreadable,
    )  # fmt: skip
    bar.at(count)
    return clips


def choose_classifier(
    name: str, data: DataSet, device: torch.device, patch_size: int = 0, changes: ArchitectureConfig | None = None
) -> Classifier | Architecture:
    """The classifier that ``name`` means for a data set, or the architecture of one that is still to be trained.

    Args:
        name: "auto" (the bundled classifier for the demo videos, the small architecture elsewhere), a bundled name, an
            architecture, or the folder of a checkpoint.
        data: what it shall classify.
        device: where to put it.
        patch_size: P in pixels; 0: the checkpoint's, or that of the architecture (of `small` with demo videos: of their task).
        changes: what an architecture shall have instead of its own.

    Raises:
        InputError: there is no such classifier, its classes are not those of the data set, it has other parts than is asked for, or an
            architecture cannot be built (see `classifiers.backbones.imagenet.prepared`).
    """
    if name == "auto":
        name = data.name if data.name in BUNDLED else "small"
    wanted: dict[str, Any] = {field: value for field, value in asdict(changes or ArchitectureConfig()).items() if value is not None}
    if name in ARCHITECTURES:
        suiting = data.patch_size if name == "small" else None
        patches = patch_size or suiting or ARCHITECTURES[name].patch_size
        return prepared(replace(ARCHITECTURES[name], **wanted | {"patch_size": patches}))
    if name not in BUNDLED and not Path(name).exists():
        known = ["auto", *sorted({*ARCHITECTURES, *BUNDLED})]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(
            f"classifier={name!r} is not known and no such folder exists; {hint}choose one of {known} or the folder of a checkpoint"
        )
    classifier = checkpoint.load(name, device)
    if patch_size not in (0, classifier.architecture.patch_size):
        raise InputError(
            f"patch_size={patch_size} is not that of classifier={name}, which was trained with patches of "
            f"{classifier.architecture.patch_size} pixels; leave patch_size out, or take the checkpoint for {patch_size}"
        )
    for field, value in wanted.items():
        if value != getattr(classifier.architecture, field):
            raise InputError(
                f"architecture.{field}={value} is not what classifier={name} has ({getattr(classifier.architecture, field)}), and it is "
                f"trained already; leave it out, or start from an architecture ({', '.join(sorted(ARCHITECTURES))})"
            )
    check_classes(classifier, data, name)
    return classifier


def check_classes(classifier: Classifier, data: DataSet, name: str) -> None:
    """Checks that the classifier of that name knows the classes of a data set, in their order.

    Raises:
        InputError: it knows others (says where they differ and what to do).
    """
    if classifier.classes != data.classes:
        raise InputError(
            f"classifier={name} was trained on {_listed(classifier.classes)}; the data set {data.name} has {_listed(data.classes)}. "
            + _difference(classifier.classes, data.classes)
        )


def trained_classifier(
    wanted: Classifier | Architecture,
    clips: Clips,
    stages: ClassifierConfig,
    device: torch.device,
    display: Display,
    video_div: int | None = None,
) -> Classifier:
    """``wanted``, or a classifier of that architecture for these clips: the kept one, or one that stages 0 and 1 make now."""
    if isinstance(wanted, Classifier):
        return wanted
    if isinstance(clips.train, StreamingClips):
        raise InputError(
            "data.views=resample needs a trained classifier: train one with python -m agents.train_stages, and give it as classifier=DIR"
        )
    settings = {stage: how for stage, how in asdict(stages).items() if stage != "finetune"}
    made_from = [asdict(wanted), clips.data.classes, clips.train.fingerprint, settings, video_div]
    place = cache_folder() / "classifiers" / hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]
    with exclusive(place.with_suffix(".lock"), f"the classifier in {place}"):
        if (place / checkpoint.CARD).exists():
            display.say(f"classifier: the one trained before on this data set ({place})")
        else:
            display.say("classifier: none fits this data set; stages 0 and 1 train one now, and it is kept for the next run")
            torch.manual_seed(0)  # whatever the run's seed: the next run finds the same classifier
            classifier = new_classifier(wanted, clips.data.classes).to(device)
            make_classifier(classifier, clips.train, clips.val, stages, seed=0, display=display, video_div=video_div)
            checkpoint.save(classifier, place, data=clips.data.name)
    return checkpoint.load(place, device)


def run_as(classifier: Classifier, env: EnvConfig) -> Classifier:
    """The frozen classifier, its networks run in the precision that is asked for, compiled or not.

    Raises:
        InputError: the device lacks that precision, or there is nothing to compile with.
    """
    return with_execution(classifier, choose_execution(classifier, env.precision, env.compile))


def features_of(classifier: Classifier, clips: ClipSource, env: EnvConfig) -> Features:
    """What the frozen classifier sees in the clips, kept in a bank or live."""
    return build_features(
        classifier, clips, action=env.action, grid=env.grid, video_div=env.video_div,
        bank=env.bank, bank_dtype=env.bank_dtype, bank_gib=env.bank_gib,
    )  # fmt: skip


def _difference(trained: tuple[str, ...], wanted: tuple[str, ...]) -> str:
    """Where two lists of classes differ, and what to do about it. Tool kits number the classes of one data set differently."""
    unknown = [name for name in wanted if name not in trained]
    lead = f"It does not know {', '.join(map(repr, unknown[:10]))}{', …' if len(unknown) > 10 else ''}. " if unknown else ""
    if len(trained) != len(wanted):
        return f"{lead}Use classifier=auto to train one for this data set"
    if trained == tuple(map(str, range(len(trained)))):
        return (
            "Its classes have no names; if it was imported, import it again with classes=FILE, the names in the order that it was trained "
            "with. Or use classifier=auto to train one for this data set"
        )
    place = next(place for place, (ours, theirs) in enumerate(zip(trained, wanted, strict=True)) if ours != theirs)
    order = "the same names in another order" if set(trained) == set(wanted) else "not the same names"
    return (
        f"{lead}They are {order}: the first that differs is class {place}, {trained[place]!r} for the classifier and {wanted[place]!r} in "
        "the data set. Give the data set the class list and labels that it was trained with, or use classifier=auto to train one"
    )


def _listed(classes: tuple[str, ...]) -> str:
    return f"{len(classes)} classes ({', '.join(classes[:5])}{', …' if len(classes) > 5 else ''})"


