"""Compute the features of frozen networks live: the glances of whole frames, and the focus vectors of patches."""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.action import Action
from adafocus_env.clips.store import ClipSource
from adafocus_env.transfers import Values, to_array, to_device
from classifiers.classifier import Classifier, WeightMonitor, check_frozen
from classifiers.crop import crop_patches
from classifiers.errors import refuse_if
from classifiers.heads import check_steps
from classifiers.optimize import optimized

Indices = NDArray[np.int64]
VIDEO_DIVS = (1, 2, 4)
# Maximum number of pixels in one call of the focuser when a bank is filled, as a number of patches of the paper's size (96²).
# On CPUs, larger calls are slower.
CALL_PIXELS = {"cpu": 64 * 96**2, "cuda": 1024 * 96**2}
FRAME_BYTES = 2**29  # size of the cache of frames


class Features:
    """Glances and focus vectors of clips.

    `LiveFeatures` computes features on every request; `MemoryBank` and `DiskBank` compute features only once.

    In all methods, ``clips`` and ``steps`` are index arrays. ``clips``, ``steps`` and ``actions`` (…, *action space) are broadcast to one
    shape (…). Actions that are cells of a grid may also be a tensor on the networks' device. A step is one decision of the policy. A step
    covers one frame, or several frames that share the decision.

    Attributes:
        classifier: the frozen classifier.
        clips: the clips.
        action: the kind of action, which defines the patches.
        num_steps: D, decisions per clip.
        map_shape: shape (C, h, w) of a step's glance map. If a step has several frames, their maps are stacked along C.
    """

    classifier: Classifier
    clips: ClipSource
    action: Action
    num_steps: int
    map_shape: tuple[int, int, int]

    @property
    def about(self) -> str:
        """Description of where the features are stored, and of their size."""
        raise NotImplementedError

    def glance_maps(self, clips: Indices, steps: Indices) -> Tensor:
        """Return the glance maps (…, C, h, w) of the given steps, on the networks' device."""
        return self._read(0, clips, steps)

    def clip_maps(self, clips: Indices) -> list[Tensor]:
        """Return the glance maps (D, C, h, w) of all steps of each of the clips (n,).

        The maps may be views of stored maps and must not be modified.
        """
        return list(self.glance_maps(clips[:, None], np.arange(self.num_steps)[None]))

    def glance_vectors(self, clips: Indices, steps: Indices) -> Tensor:
        """Return the glance vectors (…, C) of the given steps, averaged over their frames."""
        return self._read(1, clips, steps)

    def focus_vectors(self, clips: Indices, steps: Indices, actions: Values) -> Tensor:
        """Return the focus vectors (…, F) of the patches that ``actions`` select in the given steps, averaged over their frames."""
        return self._read(2, clips, steps, actions)

    def vectors(self, clips: Indices, steps: Indices, actions: Values) -> tuple[Tensor, Tensor]:
        """Return `glance_vectors` and `focus_vectors` of the same steps."""
        focus_vectors = self.focus_vectors(clips, steps, actions)
        return self.glance_vectors(clips, steps), focus_vectors

    def _read(self, which: int, clips: Indices, steps: Indices, *actions: Values) -> Tensor:
        """Return the glance maps if ``which`` is 0, the glance vectors if 1, or the focus vectors of ``actions`` if 2."""
        raise NotImplementedError


class LiveFeatures(Features):
    """Features that the networks compute on every request. Only the frames and glances of the most recently used clips are cached.

    Args:
        classifier: the frozen classifier. Features are on the classifier's device. If the classifier has no execution settings yet,
            `classifiers.optimize.optimized` chooses the fastest settings.
        clips: the clips.
        action: the kind of action, which defines the patches.
        video_div: see `count_steps`.
        capacity: number of clips whose glances are cached.
        frames: maximum number of clips whose frames are cached; None: as many as fit in `FRAME_BYTES`.

    Raises:
        InputError: if the classifier is in training mode, or if classifier, clips and ``video_div`` do not match.
    """

    about = "bank: none, features are computed live"

    def __init__(
        self, classifier: Classifier, clips: ClipSource, action: Action, *,
        video_div: int | None = None, capacity: int = 256, frames: int | None = None,
    ) -> None:  # fmt: skip
        check_frozen(classifier)
        self.classifier = classifier = optimized(classifier)
        self.clips, self.action = clips, action
        self._watch = WeightMonitor(classifier)
        self.num_steps = count_steps(classifier, clips, video_div)
        fitting = max(1, FRAME_BYTES // (3 * clips.num_frames * clips.size**2))
        self._frames: LRUCache[int, Tensor] = LRUCache(min(fitting, frames or fitting))
        self._calls: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._glances: LRUCache[int, tuple[Tensor, Tensor]] = LRUCache(capacity)
        size = classifier.architecture.size
        with torch.inference_mode():
            maps, _ = classifier.glance(torch.zeros(1, 3, size, size, device=classifier.device))
        _, channels, height, width = maps.shape
        self.map_shape = channels * clips.settings.num_glance_frames // self.num_steps, height, width

    @torch.no_grad()
    def focus_vectors(self, clips: Indices, steps: Indices, actions: Values) -> Tensor:
        """See `Features.focus_vectors`. All patches are processed in one call of the focuser."""
        device = self.classifier.device
        corners = self.action.corners_of(to_array(actions))
        clips, steps, _ = np.broadcast_arrays(clips, steps, corners[..., 0])
        requested, inverse = np.unique(np.stack([clips.ravel(), steps.ravel()]), axis=1, return_inverse=True)
        frames = torch.cat([by_step(self.frames(clip), self.num_steps)[step] for clip, step in requested.T.tolist()])
        length = len(frames) // requested.shape[1]
        source = inverse.ravel()[:, None] * length + np.arange(length)
        corners = np.broadcast_to(corners, (*clips.shape, 2)).reshape(-1, 1, 2).repeat(length, axis=1).reshape(-1, 2)
        interpolated = corners.dtype.kind == "f"  # needs normalised frames; otherwise only patches are normalised
        frames = self.classifier.normalise(frames) if interpolated else frames
        patches = crop_patches(frames, to_device(source.ravel(), device), to_device(corners, device), self.action.patch_size)
        focus_vectors = self.classifier.focus(patches if interpolated else self.classifier.normalise(patches), num_frames=length)
        return focus_vectors.unflatten(0, (-1, length)).mean(1).unflatten(0, clips.shape)

    def frames(self, clip: int) -> Tensor:
        """Return the clip's frames (T, 3, H, W) uint8 on the networks' device, in the memory format channels_last."""
        return self._frames.get(
            clip, lambda: self.clips.frames(clip).to(self.classifier.device, non_blocking=True, memory_format=torch.channels_last)
        )

    def glance(self, clip: int) -> tuple[Tensor, Tensor]:
        """Return the glance maps (D, C, h, w) and vectors (D, C) of all steps of one clip, in one call of the glancer."""
        if self._watch.changed():
            self._glances.clear()
        return self._glances.get(clip, lambda: self._run_glancer(clip))

    def cell_focus_vectors_of(self, groups: Iterable[tuple[int, range]]) -> Iterator[Tensor]:
        """Yield `cell_focus_vectors` for each (clip, steps).

        If CPU cores are idle, several groups are computed in parallel. The values are the same as without parallel computation.
        """
        frames = (by_step(self.frames(clip), self.num_steps)[steps.start : steps.stop] for clip, steps in groups)
        return map_parallel(self.cell_focus_vectors, frames, idle_workers(self.classifier.device))

    @torch.no_grad()
    def cell_focus_vectors(self, frames: Tensor) -> Tensor:
        """Return the focus vectors (steps, cells, F) of all cells in one group of steps; see `groups`.

        Calls of the focuser have a fixed size.

        Args:
            frames: frames of these steps, (steps, T/D, 3, H, W) uint8.
        """
        frames = self.classifier.normalise(frames)  # normalise only once, because cells overlap
        length = frames.shape[1]
        calls = (crop_patches(frames.flatten(0, 1), *call, self.action.patch_size) for call in self._cell_calls(len(frames), length))
        focus_vectors = torch.cat([self.classifier.focus(patches, num_frames=length) for patches in calls])
        return focus_vectors.unflatten(0, (len(frames), -1, length)).mean(2)

    @cached_property
    def groups(self) -> list[range]:
        """Divide the steps into groups whose focus vectors are computed together.

        A group has as many steps as fit in one call of the focuser, at least one.
        """
        patches = max(1, self.action.num_cells or 0) * (self.clips.num_frames // self.num_steps)
        count = max(1, self._call_size // patches)
        return [range(start, min(start + count, self.num_steps)) for start in range(0, self.num_steps, count)]

    def _cell_calls(self, steps: int, length: int) -> list[tuple[Tensor, Tensor]]:
        """Return one pair (frame indices, corners) per call of the focuser, for the patches of all cells in ``steps`` steps of ``length``
        frames."""
        if steps not in self._calls:
            cells = self.action.corners_of(self.action.candidates)
            source = np.arange(steps * length).reshape(steps, 1, length).repeat(len(cells), axis=1).ravel()
            corners = np.tile(cells.repeat(length, axis=0), (steps, 1))
            size = max(1, self._call_size // length) * length
            frames, tops_lefts = (to_device(numbers, self.classifier.device).split(size) for numbers in (source, corners))
            self._calls[steps] = list(zip(frames, tops_lefts, strict=True))
        return self._calls[steps]

    @property
    def _call_size(self) -> int:
        return max(1, CALL_PIXELS.get(self.classifier.device.type, CALL_PIXELS["cpu"]) // self.action.patch_size**2)

    def _read(self, which: int, clips: Indices, steps: Indices, *actions: Values) -> Tensor:
        """Stack the glance maps (if ``which`` is 0) or the glance vectors (if ``which`` is 1) of the given steps."""
        clips, steps = np.broadcast_arrays(clips, steps)
        glances = [self.glance(clip)[which][step] for clip, step in zip(clips.ravel().tolist(), steps.ravel().tolist(), strict=True)]
        return torch.stack(glances).unflatten(0, clips.shape)

    @torch.no_grad()
    def _run_glancer(self, clip: int) -> tuple[Tensor, Tensor]:
        separate = self.clips.settings.glance_frames > 0
        frames = self.clips.glancer_frames(clip).to(self.classifier.device) if separate else self.frames(clip)
        maps, vectors = self.classifier.glance(self.classifier.normalise(frames), num_frames=len(frames))
        return by_step(maps, self.num_steps).flatten(1, 2), by_step(vectors, self.num_steps).mean(1)


def by_step(frames: Tensor, num_steps: int) -> Tensor:
    """Group the values (T, …) of the frames of a clip by step, and return them as (D, T/D, …)."""
    return frames.unflatten(0, (num_steps, -1))


def count_steps(classifier: Classifier, clips: ClipSource, video_div: int | None) -> int:
    """Return D, the number of decisions that a policy makes in a clip.

    With a recurrent head, there is one decision per frame. With a head that averages the scores of frames (the Something-Something family),
    there are ``video_div`` decisions. Each decision selects one location for an equal share of the frames.

    Args:
        classifier: the classifier with the head.
        clips: the clips. The number of frames per clip must be divisible by D.
        video_div: 1 (the default), 2 or 4 if the head averages the scores of frames, otherwise None.

    Raises:
        InputError: if head, frames and ``video_div`` do not match. The message says why.
    """
    head, glances = classifier.architecture.head, clips.settings.num_glance_frames
    if not classifier.architecture.averages_frames:
        refuse_if(
            video_div is not None,
            f"video_div={video_div} needs a classifier with the head 'mean' or 'separate_mean', got {head!r}; leave video_div out",
        )
        refuse_if(
            glances != clips.num_frames,
            f"the clips have {glances} frames for the glancer and {clips.num_frames} for the focuser; a classifier with the head "
            f"{head!r} looks at the same frames with both: set glance_frames=0",
        )
        check_steps(classifier.architecture.head_steps, clips.num_frames)
        return clips.num_frames
    steps = 1 if video_div is None else video_div
    refuse_if(steps not in VIDEO_DIVS, f"video_div must be 1, 2 or 4 decisions per video, got {video_div}")
    for frames, name in ((clips.num_frames, "num_frames"), (glances, "glance_frames")):
        refuse_if(frames % steps, f"video_div={steps} does not divide {name}={frames}; choose a number of frames that it divides")
    return steps


Item = TypeVar("Item")
Value = TypeVar("Value")


class LRUCache(Generic[Item, Value]):
    """A cache that holds the ``capacity`` most recently requested values."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._cached: OrderedDict[Item, Value] = OrderedDict()

    def get(self, key: Item, make: Callable[[], Value]) -> Value:
        """Return the cached value of ``key``.

        If no value is cached for ``key``, call ``make`` and cache the result. A full cache drops the least recently used value.
        """
        if key not in self._cached:
            self._cached[key] = make()
            if len(self._cached) > self._capacity:
                self._cached.popitem(last=False)
        self._cached.move_to_end(key)
        return self._cached[key]

    def clear(self) -> None:
        """Drop all values."""
        self._cached.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": OrderedDict()}  # copies and pickles start empty


def idle_workers(device: torch.device) -> int:
    """Return the number of calls to run in parallel.

    On a CPU, the result is the number of cores (or OMP_NUM_THREADS), divided by the number of threads that PyTorch uses per call. On a GPU,
    the result is 1.
    """
    if device.type != "cpu":
        return 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    cores = int(asked) if asked.isdecimal() else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // torch.get_num_threads())


def map_parallel(call: Callable[[Item], Value], items: Iterable[Item], workers: int) -> Iterator[Value]:
    """Yield ``call(item)`` for every item in order, computed by ``workers`` threads.

    The first call runs alone, so that it fills the network's caches for the other calls.
    """
    remaining = iter(items)
    yield from map(call, islice(remaining, 1))
    if workers == 1:
        yield from map(call, remaining)
        return
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)) as pool:
        yield from pool.map(call, remaining)
