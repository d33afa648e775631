"""Build data sets, clips, classifiers and their features from settings."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from adafocus_env.build import Split, build_features, open_clips
from adafocus_env.clips.clip_spec import ClipSpec
from adafocus_env.clips.store import ClipSource, Unreadable
from adafocus_env.features.live import Features
from adafocus_env.videos.dataset import DataSet, Video
from agents.config.settings import ArchitectureConfig, DataConfig, EnvConfig
from agents.runs.progress import Display
from classifiers import checkpoint
from classifiers.backbones.imagenet import prepared
from classifiers.classifier import Architecture, Classifier, ClipFormat
from classifiers.errors import InputError, refuse_if, suggestion
from classifiers.model_zoo import ARCHITECTURES, BUNDLED
from classifiers.optimize import choose_execution, with_execution


@dataclass(frozen=True)
class Clips:
    """The clips of a data set by split; ``val`` is None if there is no validation split."""

    data: DataSet
    train: ClipSource
    val: ClipSource | None
    test: ClipSource

    @property
    def format(self) -> ClipFormat:
        """The format of the clips."""
        spec = self.test.settings
        return ClipFormat(spec.num_frames, spec.glance_frames, self.data.margin, spec.order)  # type: ignore[arg-type]


def build_clips(data: DataSet, config: DataConfig, size: int, display: Display, *, seed: int) -> Clips:
    """Return the clips of all splits. Clips that are not stored yet are rendered and decoded, with a progress bar.

    One warning names all unreadable videos.

    Args:
        data: The videos.
        config: How clips are sampled from the videos.
        size: Height and width of the frames in pixels.
        display: Shows progress.
        seed: Seed of the sampling, if training clips are resampled every epoch.

    Raises:
        InputError: If a split has no readable video.
    """
    with Unreadable() as unreadable:
        return Clips(
            data,
            build_split(data, "train", config, size, display, unreadable, seed=seed),
            build_split(data, "val", config, size, display, unreadable) if data.val else None,
            build_split(data, "test", config, size, display, unreadable),
        )


def in_order_of(config: DataConfig, trained: ClipFormat) -> DataConfig:
    """Return the settings with the frame order set.

    If the settings do not state an order, use the frame order of the trained classifier.
    """
    return replace(config, order=config.order or trained.order)


def build_split(
    data: DataSet,
    split: Split,
    config: DataConfig,
    size: int,
    display: Display,
    unreadable: Unreadable | None = None,
    *,
    seed: int = ClipSpec.seed,
) -> ClipSource:
    """Return the clips of one split; see `build_clips` and `open_clips`."""
    count = len(getattr(data, split)) * (config.views if split == "train" and isinstance(config.views, int) else 1)
    bar = display.bar(f"decode {split}", count)
    data = _shows_rendering(data, split, display)
    clips = open_clips(
        data, split, num_frames=config.num_frames, size=size, views=config.views, glance_frames=config.glance_frames,
        sampling=config.sampling, order=config.order or "time", seed=seed, num_workers=config.workers, progress=bar.at,
        unreadable=unreadable,
    )  # fmt: skip
    bar.at(count)
    return clips


def _shows_rendering(data: DataSet, split: Split, display: Display) -> DataSet:
    """Return the data set with a progress bar for the videos that it renders, if it renders any."""
    if (prepare := data.prepare) is None:
        return data

    def shown(videos: Sequence[Video]) -> None:
        bar = display.bar(f"render {split}", len(videos))
        prepare(videos, progress=bar.advance)
        bar.at(len(videos))

    return replace(data, prepare=shown)


def choose_classifier(
    name: str, data: DataSet, device: torch.device, patch_size: int = 0, changes: ArchitectureConfig | None = None
) -> Classifier | Architecture:
    """Return the classifier that ``name`` refers to, or only its architecture if the classifier is not trained yet.

    Args:
        name: "auto", a bundled name, an architecture, or the folder of a checkpoint. "auto" means the bundled classifier for demo videos,
            and the architecture `small` for other videos.
        data: The data set to classify.
        device: Device of the classifier.
        patch_size: P in pixels. 0 means the patch size of the checkpoint or the architecture. For the architecture `small` on demo videos,
            0 means the patch size of the task.
        changes: Overrides of a named architecture.

    Raises:
        InputError: If the classifier is unknown, if its classes differ from those of the data set, if it was trained with another
            architecture, or if an architecture cannot be built (see `classifiers.backbones.imagenet.prepared`).
    """
    if name == "auto":
        name = data.name if data.name in BUNDLED else "small"
    overrides = {field: value for field, value in asdict(changes or ArchitectureConfig()).items() if value is not None}
    if name in ARCHITECTURES:
        of_task = data.patch_size if name == "small" else None
        overrides["patch_size"] = patch_size or of_task or ARCHITECTURES[name].patch_size
        return prepared(replace(ARCHITECTURES[name], **overrides))
    classifier = _load_trained(name, device, patch_size, overrides)
    check_classes(classifier, data, name)
    return classifier


def _load_trained(name: str, device: torch.device, patch_size: int, overrides: Mapping[str, object]) -> Classifier:
    """Load a checkpoint, and check that it was trained with this patch size and these overrides; see `choose_classifier`."""
    if name not in BUNDLED and not Path(name).exists():
        known = ["auto", *sorted({*ARCHITECTURES, *BUNDLED})]
        raise InputError(
            f"classifier={name!r} is not known and no such folder exists; {suggestion(name, known)}choose one of {known} or the folder of "
            "a checkpoint"
        )
    classifier = checkpoint.load(name, device)
    refuse_if(
        patch_size not in (0, classifier.architecture.patch_size),
        f"patch_size={patch_size} differs from that of classifier={name}, which was trained with patches of "
        f"{classifier.architecture.patch_size} pixels; leave patch_size out, or take the checkpoint for {patch_size}",
    )
    for field, value in overrides.items():
        refuse_if(
            value != (trained := getattr(classifier.architecture, field)),
            f"architecture.{field}={value} does not fit classifier={name}, which was trained with {trained}; leave it out, or start "
            f"from an architecture ({', '.join(sorted(ARCHITECTURES))})",
        )
    return classifier


def check_classes(classifier: Classifier, data: DataSet, name: str) -> None:
    """Check that the classifier called ``name`` has the classes of a data set, in the same order.

    Raises:
        InputError: If the classes differ. The message shows the difference, and advises what to do.
    """
    if classifier.classes != data.classes:
        raise InputError(
            f"classifier={name} was trained on {_summary(classifier.classes)}; the data set {data.name} has {_summary(data.classes)}. "
            + _difference(classifier.classes, data.classes)
        )


def inference_classifier(classifier: Classifier, env: EnvConfig) -> Classifier:
    """Return the frozen classifier in the precision of ``env``, and compiled if ``env`` requests it.

    Raises:
        InputError: If the device does not support the precision, or if compilation is requested and no compiler is installed.
    """
    return with_execution(classifier, choose_execution(classifier, env.precision, env.compile))


def features_of(classifier: Classifier, clips: ClipSource, env: EnvConfig) -> Features:
    """Return the features of the clips from the frozen classifier, stored in a bank or computed live."""
    return build_features(
        classifier, clips, action=env.action, grid=env.grid, video_div=env.video_div,
        bank=env.bank, bank_dtype=env.bank_dtype, bank_gib=env.bank_gib,
    )  # fmt: skip


def _difference(trained: tuple[str, ...], classes: tuple[str, ...]) -> str:
    """Describe how two lists of classes differ, and advise what to do. (Toolkits do not number the classes of a data set alike.)"""
    unknown = [name for name in classes if name not in trained]
    lead = f"It does not know {', '.join(map(repr, unknown[:10]))}{', …' if len(unknown) > 10 else ''}. " if unknown else ""
    if len(trained) != len(classes):
        return f"{lead}Use classifier=auto to train one for this data set"
    if trained == tuple(map(str, range(len(trained)))):
        return (
            "Its classes have no names; if it was imported, import it again with classes=FILE, the names in the order that it was trained "
            "with. Or use classifier=auto to train one for this data set"
        )
    index = next(index for index, (ours, theirs) in enumerate(zip(trained, classes, strict=True)) if ours != theirs)
    order = "the same names in another order" if set(trained) == set(classes) else "not the same names"
    return (
        f"{lead}They are {order}: the first that differs is class {index}, {trained[index]!r} for the classifier and {classes[index]!r} in "
        "the data set. Give the data set the class list and labels that it was trained with, or use classifier=auto to train one"
    )


def _summary(classes: tuple[str, ...]) -> str:
    return f"{len(classes)} classes ({', '.join(classes[:5])}{', …' if len(classes) > 5 else ''})"
