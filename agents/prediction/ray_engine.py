"""Predict videos on a Ray cluster: Ray Data decodes on all CPUs, and actors run the networks.

A row of the data set is a video until it is decoded, and then a window of it. This process receives the results of the windows and combines
them to predictions, as the local engine does. If a node dies, Ray repeats the tasks whose results were lost.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from adafocus_env.videos.decoding import Failure, WorkerProcess
from adafocus_env.videos.windows import WindowRequest
from agents.config.allocator import keep_freed_memory
from agents.config.plugin import import_plugin
from agents.config.settings import Predict
from agents.evaluation.conditional_exit import ExitThresholds
from agents.prediction import ray_cluster
from agents.prediction.clips import Clip, ClipOrigin, read_windows
from agents.prediction.predictor import ClassifiedWindow, Predictions, Predictor, Unreadable
from agents.runs.progress import Display
from classifiers.classifier import hash_of
from classifiers.errors import InputError, count_of, refuse_if
from classifiers.model_zoo import BUNDLED

TASK = 32  # videos that a task decodes, which is so many that the overhead of a task is small compared with their decoding
BATCH_BYTES = 8 << 20  # of frames that a task yields together; every batch has an overhead of milliseconds
MAX_TASKS, TASKS_PER_CPU = 2000, 4  # more videos make larger tasks, and fewer videos make smaller tasks, so that every CPU has some

Batch = dict[str, NDArray[Any]]
PackedClip = tuple[NDArray[np.uint8], NDArray[np.uint8] | None, ClipOrigin]
"""The focuser's frames, the glancer's frames if they are sampled separately, and their origin."""
Item = tuple[int, int, Any]
"""Index of a video, number of its windows, and what a stage of the pipeline has computed for one window."""


def predict_on_ray(config: Predict, predictor: Predictor, videos: Sequence[str], display: Display) -> Predictions:
    """Yield the predictions for the videos, in the order of completion.

    Args:
        config: The settings of the command.
        predictor: The predictor, whose copies the actors load from the same folders.
        videos: Files or folders of frames, which all nodes can read.
        display: Shows a description of the cluster.

    Raises:
        InputError: If the cluster cannot be reached, if the device is unavailable, or if an actor cannot load the networks.
    """
    base = predictor.request(window=config.window, stride=config.stride, fps=config.fps)
    with ray_cluster.connected() as about:
        actors, device = _actors(config)
        display.say(f"{about}; the networks run in {count_of(actors, 'process', 'processes')}")
        recipe = Recipe.of(config, predictor, device)
        items = _stream(config, recipe, actors, videos, base, predictor.classifier.architecture.size)
        left = {*videos}
        for found in predictor.collect(videos, items):
            left.discard(found.file)
            yield found
        yield from (Unreadable(file, "Ray has returned no result for it; start the same command again") for file in left)


def _actors(config: Predict) -> tuple[int, str]:
    """Return the number of actors, and the device of each actor: "cpu" or "cuda".

    Raises:
        InputError: If the cluster does not have the device.
    """
    import ray

    refuse_if(
        config.device not in ("auto", "cpu", "cuda"),
        f"device must be auto, cpu or cuda with engine=ray, got {config.device!r}; Ray gives every process one of the GPUs",
    )
    total = ray.cluster_resources()
    gpus = 0 if config.device == "cpu" else int(total.get("GPU", 0))
    refuse_if(config.device == "cuda" and not gpus, "device=cuda: the Ray cluster has no GPU; use device=auto")
    actors = config.actors or gpus or max(1, int(total.get("CPU", 1)) // 2)
    refuse_if(gpus and actors > gpus, f"actors must be at most the {count_of(gpus, 'GPU')} of the Ray cluster, got {actors}; leave it out")
    return actors, "cuda" if gpus else "cpu"


def _stream(
    config: Predict, recipe: Recipe, actors: int, videos: Sequence[str], base: WindowRequest, size: int
) -> Iterator[Item]:
    """Yield the results for all windows, as `Predictor.collect` expects them."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    paths = [os.fsencode(Path(video).absolute()) for video in videos]  # bytes, because a name may be invalid UTF-8
    rows = [{"number": number, "path": path} for number, path in enumerate(paths)]
    windows = ray.data.from_items(rows, override_num_blocks=_num_tasks(len(rows), int(ray.cluster_resources().get("CPU", 1)))).map_batches(
        cast(Any, decode_block), batch_size=None, fn_args=(base, size, config.time_limit), num_cpus=1
    )
    # Networks reserve no CPU: otherwise, if a node dies, the decoding tasks and the networks might wait for each other's CPUs.
    results = windows.map_batches(
        Networks, fn_constructor_args=(recipe,), batch_size=config.batch_size, num_cpus=0, num_gpus=int(recipe.device == "cuda"),
        compute=ray.data.ActorPoolStrategy(size=actors),
    )  # fmt: skip
    try:
        for batch in results.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
            for number, total, found in batch["item"]:
                yield number, total, _with_path(found, os.fsdecode(paths[number]), videos[number])
    except ray.exceptions.RayError as problem:
        raise _mistake(problem) from problem


def _num_tasks(videos: int, cpus: int) -> int:
    """Return the number of tasks that decode the videos."""
    return min(videos, MAX_TASKS, max(-(-videos // TASK), TASKS_PER_CPU * cpus))


def _with_path(found: Any, absolute: str, given: str) -> Any:
    """Return a result. If it is a `Failure`, its reason names the path that the user gave, as it does with the local engine."""
    return Failure(found.reason.replace(absolute, given)) if isinstance(found, Failure) else found


def _mistake(problem: Exception) -> Exception:
    """Return the `InputError` that an actor has raised, or the problem itself if there is none."""
    cause: BaseException | None = problem
    while cause is not None:
        if isinstance(cause, InputError):
            return InputError(str(cause.args[0]))
        cause = getattr(cause, "cause", None) or cause.__cause__
    return problem


def decode_block(rows: Batch, base: WindowRequest, size: int, time_limit: float) -> Iterator[Batch]:
    """Decode some videos in a task, and yield their windows in batches of at least `BATCH_BYTES`."""
    requests = [replace(base, path=Path(os.fsdecode(path))) for path in rows["path"]]
    items: list[Item] = []
    size_of_items = 0
    for position, total, found in read_windows(requests, size, num_workers=1, time_limit=time_limit, run=_in_lasting_worker):
        items.append((int(rows["number"][position]), total, found if isinstance(found, Failure) else _pack(found)))
        size_of_items += 0 if isinstance(found, Failure) else found.frames.nbytes
        if size_of_items >= BATCH_BYTES:
            yield _column(items)
            items, size_of_items = [], 0
    if items:
        yield _column(items)


@dataclass(frozen=True)
class Recipe:
    """How an actor loads the predictor of the main process: the networks from the same folders, and the computed thresholds.

    Attributes:
        folder: See `Predictor.load`.
        policy: See `Predictor.load`.
        plugin: The plugin to import first, if any.
        device: The device of the actor.
        classes: See `Predictor`.
        keep_threshold: See `Predictor`.
        exit: See `Predictor`.
        weights: Fingerprints of the classifier and of the policy.
    """

    folder: str
    policy: str | None
    plugin: str
    device: str
    classes: tuple[str, ...]
    keep_threshold: float | None
    exit: ExitThresholds | None
    weights: tuple[str, str]

    @classmethod
    def of(cls, config: Predict, predictor: Predictor, device: str) -> Recipe:
        """Return the recipe of a predictor that was loaded with the settings of a command."""
        keep_threshold = predictor.policy.keep_threshold if predictor.policy.skips else None
        return cls(
            _absolute(config.run or config.classifier), _absolute(config.policy) or None, config.plugin, device, predictor.classes,
            keep_threshold, predictor.exit, _fingerprints(predictor),
        )  # fmt: skip

    def load(self) -> Predictor:
        """Load the predictor.

        Raises:
            InputError: If the files cannot be read in this process, or if their content differs.
        """
        keep_freed_memory()
        import_plugin(self.plugin)
        predictor = Predictor.load(self.folder, self.policy, self.device, self.classes, self.exit)
        predictor.keep_threshold = self.keep_threshold
        refuse_if(
            _fingerprints(predictor) != self.weights,
            f"engine=ray: the weights in {self.policy or self.folder} must be the same on all nodes, got others on one node; "
            "use a folder that all nodes share",
        )
        return predictor


class Networks:
    """An actor that runs the networks. The networks are loaded by the first call, because only errors of calls reach the main process."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._predictor: Predictor | None = None

    def __call__(self, batch: Batch) -> Batch:
        """Return the `ClassifiedWindow` of every window of a batch. Failures are passed on."""
        self._predictor = self._predictor or self._recipe.load()
        decoded = [(number, total, _unpack(found)) for number, total, found in batch["item"] if not isinstance(found, Failure)]
        results: list[ClassifiedWindow] = self._predictor.classify([clip for _, _, clip in decoded]) if decoded else []
        classified = [(number, total, result) for (number, total, _), result in zip(decoded, results, strict=True)]
        return _column([*classified, *(item for item in batch["item"] if isinstance(item[2], Failure))])


def _absolute(folder: str) -> str:
    """Return the absolute path of a folder. Bundled names and empty strings stay as they are."""
    return folder if not folder or folder in BUNDLED else str(Path(folder).absolute())


def _fingerprints(predictor: Predictor) -> tuple[str, str]:
    return predictor.classifier.fingerprint(), hash_of(predictor.policy.state_dict())


def _in_lasting_worker(
    function: str, tasks: Sequence[object], *, num_workers: int, time_limit: float, result: type
) -> Generator[tuple[int, Any], None, None]:
    """Do what `run_in_workers` does, in one process that serves all tasks of this process."""
    worker = _lasting_worker(function, result)
    for number, task in enumerate(tasks):
        yield number, worker.call(task, time_limit)


_lasting_worker = functools.cache(WorkerProcess)


def _pack(clip: Clip) -> PackedClip:
    separate = clip.glance_frames is not clip.frames
    return clip.frames.numpy(), clip.glance_frames.numpy() if separate else None, clip.origin


def _unpack(packed: PackedClip) -> Clip:
    frames, glance_frames, origin = packed
    stacked = torch.from_numpy(frames)
    return Clip(stacked, stacked if glance_frames is None else torch.from_numpy(glance_frames), origin)


def _column(items: Iterable[Item]) -> Batch:
    """Return a batch whose only column has one object per row."""
    return {"item": np.fromiter(items, object)}
