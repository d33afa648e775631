"""The registry of data sets for all commands, with their settings and builders."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adafocus_env.demo.videos import DEFAULT_TASK, TaskName, demo
from adafocus_env.settings import Count, setting, settings
from adafocus_env.videos.class_folders import folder
from adafocus_env.videos.dataset import DataSet
from adafocus_env.videos.published import Usable, published, what_is_usable
from classifiers.errors import lookup, refuse_if


@settings
class DataSettings:
    """Settings of the videos, and of the clips that are sampled from the videos."""

    name: str = setting("demo", "the data set, a name in `adafocus_env.dataset_registry.DATASETS`")
    task: TaskName = setting(DEFAULT_TASK, "the task of the demo videos; see docs/tasks.md")
    root: str = setting("", "the folder of videos, or of the lists of a published set", path=True)
    source: Literal["auto", "frames", "videos"] = setting("auto", "extracted frames or videos of a published set; auto: frames if any")
    val: float = setting(0.1, "share of the training videos in the validation split", ge=0, lt=1)
    test: float = setting(0.2, "share of the videos in the test split, if the folder has no test/ subfolder", gt=0, lt=1)
    num_frames: int = setting(8, "T, frames of a clip", ge=1)
    glance_frames: int = setting(0, "number of separately sampled frames for the glancer; 0: the focuser's frames", ge=0)
    views: Count | Literal["resample"] = setting(1, "clips per training video; resample: new clips in every epoch, which are not stored")
    flip: bool = setting(True, "mirror training clips at random; false if direction or handedness distinguishes classes")
    sampling: Literal["segments", "released"] = setting("segments", "how the frames of training clips are sampled")
    order: Literal["time", "coarse_to_fine"] | None = setting(
        None, "order in which the networks see the frames; null: the classifier's order, or chronological"
    )
    workers: int = setting(2, "processes that render and decode", ge=1)

    @property
    def label(self) -> str:
        """The name of the data set. If the videos are of a demo task other than the default, the name of the task follows.

        Names of runs contain this label.
        """
        return self.name if self.task == DEFAULT_TASK else f"{self.name}-{self.task}"

    @property
    def title(self) -> str:
        """The title of a table of results: the label and, if there is one, the folder of the videos."""
        return f"{self.label} ({self.root})" if self.root else self.label

    def without_effect(self, command: object, prefix: str) -> Iterator[tuple[str, str]]:
        """Yield every setting that this data set does not read, with the reason; see `agents.config.effect`."""
        row = DATASETS.get(self.name)
        for key in OF_ONE_SET if row else ():
            readers = [name for name, other in DATASETS.items() if key in other.reads]
            if self.name not in readers:
                yield key, f"data={self.name} does not read it; leave it out, or choose one of data={', '.join(readers)}"
        if self.name == "folder" and self.root and any((Path(self.root).expanduser() / split).is_dir() for split in ("train", "test")):
            yield "test", "a train/ or test/ subfolder defines the split; leave it out, or put the class folders into data.root"


OF_ONE_SET = ("task", "root", "source", "test", "flip")
"""Settings that select videos, and that are not read by every data set."""


@dataclass(frozen=True)
class DataSource:
    """The builder of a data set. Builders import slow modules only when they are called.

    Attributes:
        build: function that takes the settings and returns the data set.
        help: description in one line.
        reads: the settings among `OF_ONE_SET` that ``build`` reads.
        inspect: function that takes the settings and returns the usable videos and the faulty lines of the list files. If a data set has no
            list files, ``inspect`` is None and ``build`` is used.
    """

    build: Callable[[DataSettings], DataSet]
    help: str
    reads: tuple[str, ...] = OF_ONE_SET
    inspect: Callable[[DataSettings], Usable] | None = None


def build_data(data: DataSettings) -> DataSet:
    """Return the data set that ``data.name`` selects.

    Raises:
        InputError: if the name is unknown, or if the folder cannot be used.
    """
    return lookup("data.name", data.name, DATASETS).build(data)


def usable_data(data: DataSettings) -> Usable:
    """Return the usable videos of a data set and the faulty lines of its lists.

    Raises:
        InputError: if the name is unknown, or if the folder cannot be used.
    """
    row = lookup("data.name", data.name, DATASETS)
    return row.inspect(data) if row.inspect else Usable(row.build(data), place=None, faults=[], notes=[])


def _demo(data: DataSettings) -> DataSet:
    return demo(data.task, val=data.val, num_workers=data.workers)


def _folder(data: DataSettings) -> DataSet:
    return folder(_root(data, "one subfolder of videos for each class"), val=data.val, test=data.test, flip=data.flip)


def _published(data: DataSettings) -> DataSet:
    return published(data.name, _root(data, "the published lists"), source=data.source, val=data.val)


def _what_is_usable(data: DataSettings) -> Usable:
    return what_is_usable(data.name, _root(data, "the published lists"), source=data.source, val=data.val)


def _root(data: DataSettings, content: str) -> str:
    refuse_if(not data.root, f"data.root is missing: add data.root=DIR, the folder of data={data.name}, with {content}")
    return data.root


DATASETS: dict[str, DataSource] = {
    "demo": DataSource(_demo, "rendered demo videos of moving objects, one of which determines the class", ("task",)),
    "folder": DataSource(_folder, "your own videos: ROOT/CLASS/*, or ROOT/train/CLASS/* and ROOT/test/CLASS/*", ("root", "test", "flip")),
    **{
        name: DataSource(_published, f"{title}, from its published lists", ("root", "source"), _what_is_usable)
        for name, title in {
            "actnet": "ActivityNet", "fcvid": "FCVID", "minik": "Mini-Kinetics",
            "sthv1": "Something-Something V1", "sthv2": "Something-Something V2", "jester": "Jester",
        }.items()
    },
}  # fmt: skip
"""The data sets by name. A plugin adds entries; see docs/extend.md."""
