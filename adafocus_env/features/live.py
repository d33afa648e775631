"""What the frozen networks see in the clips of a store: glances of whole frames, focus vectors of patches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.action import Action, crop_patches
from adafocus_env.clips.store import ClipSource
from adafocus_env.features.parallel import idle_workers, map_parallel
from adafocus_env.transfers import Values, to_array, to_device
from classifiers.classifier import Classifier
from classifiers.errors import InputError
from classifiers.optimize import optimized
from classifiers.weight_monitor import WeightMonitor, check_frozen

Indices = NDArray[np.int64]
VIDEO_DIVS = (1, 2, 4)
# Pixels in a call that fills a bank, at most: so many patches of the paper's size. On CPUs larger calls are slower again.
CALL_PIXELS = {"cpu": 64 * 96**2, "cuda": 1024 * 96**2}
FRAME_BYTES = 2**29  # of the clips last used, whose frames are kept


class Features(Protocol):
    """Glances and focus vectors of clips, computed anew (`LiveFeatures`) or once (`MemoryBank`).

    ``clips`` and ``steps`` are index arrays that broadcast against each other, and against ``actions`` (…, *action space), to one
    shape (…). Cells of a grid may also be a tensor on the networks' device. A step is a decision: usually one frame, or several where one
    decision stands for all of them.

    Attributes:
        classifier: frozen.
        clips: the clips, by number.
        action: what can be looked at.
        num_steps: D, decisions in a clip.
        map_shape: (C, h, w) of a step's glance map; the maps of several frames are stacked, frame after frame.
    """

    classifier: Classifier
    clips: ClipSource
    action: Action
    num_steps: int
    map_shape: tuple[int, int, int]

    @property
    def about(self) -> str:
        """Where they come from and what they take, for people."""
        ...

    def glance_maps(self, clips: Indices, steps: Indices) -> Tensor:
        """Glance maps (…, C, h, w) of those steps, on the networks' device."""
        ...

    def glance_vectors(self, clips: Indices, steps: Indices) -> Tensor:
        """Glance vectors (…, C) of those steps, the mean over their frames."""
        ...

    def focus_vectors(self, clips: Indices, steps: Indices, actions: Values) -> Tensor:
        """Focus vectors (…, F) of the patches that ``actions`` pick in those steps, the mean over their frames."""
        ...


class LiveFeatures:
    """Runs the networks whenever it is asked; keeps the frames and glances of the clips last used.

    Args:
        classifier: Frozen; its device is where everything lives. Without an execution of its own it runs as
            `classifiers.optimize.optimized` says.
        clips: the clips, by number.
        action: what can be looked at.
        video_div: see `count_steps`.
        capacity: clips whose glances are kept. Frames are kept of as many as `FRAME_BYTES` have room for.

    Raises:
        InputError: the classifier is in training mode, or classifier, clips and ``video_div`` do not fit together.
    """

    def __init__(
        self, classifier: Classifier, clips: ClipSource, action: Action, *, video_div: int | None = None, capacity: int = 256
    ) -> None:
        check_frozen(classifier)
        classifier = optimized(classifier)
        self._watch = WeightMonitor(classifier)
        self.classifier, self.clips, self.action = classifier, clips, action
        self.num_steps = count_steps(classifier, clips, video_div)
        self._frames: LRUCache[int, Tensor] = LRUCache(max(1, FRAME_BYTES // (3 * clips.num_frames * clips.size**2)))
        self._calls: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._glances: LRUCache[int, tuple[Tensor, Tensor]] = LRUCache(capacity)
        size = classifier.architecture.size
        with torch.inference_mode():
            maps, _ = classifier.glance(torch.zeros(1, 3, size, size, device=classifier.device))
        glances = clips.settings.num_glance_frames // self.num_steps
        self.map_shape: tuple[int, int, int] = (glances * maps.shape[1], maps.shape[2], maps.shape[3])

    @property
    def about(self) -> str:
        """Where they come from and what they take, for people."""
        return "bank: none, features are computed live"

    def glance_maps(self, clips: Indices, steps: Indices) -> Tensor:
        """Glance maps (…, C, h, w) of those steps."""
        clips, steps = np.broadcast_arrays(clips, steps)
        self._notice_changed_weights()
        maps = [self._glance(clip)[0][step] for clip, step in zip(clips.ravel().tolist(), steps.ravel().tolist(), strict=True)]
        return torch.stack(maps).unflatten(0, clips.shape)

    def glance_vectors(self, clips: Indices, steps: Indices) -> Tensor:
        """Glance vectors (…, C) of those steps."""
        clips, steps = np.broadcast_arrays(clips, steps)
        self._notice_changed_weights()
        vectors = [self._glance(clip)[1][step] for clip, step in zip(clips.ravel().tolist(), steps.ravel().tolist(), strict=True)]
        return torch.stack(vectors).unflatten(0, clips.shape)

    @torch.no_grad()
    def focus_vectors(self, clips: Indices, steps: Indices, actions: Values) -> Tensor:
        """Focus vectors (…, F) of patches, in one call of the focuser."""
        corners = self.action.corners_of(to_array(actions))
        clips, steps, _ = np.broadcast_arrays(clips, steps, corners[..., 0])
        wanted, inverse = np.unique(np.stack([clips.ravel(), steps.ravel()]), axis=1, return_inverse=True)
        frames = torch.cat([self._step_frames(int(clip), int(step)) for clip, step in wanted.T])
        length = len(frames) // wanted.shape[1]
        source = inverse.ravel()[:, None] * length + np.arange(length)
        places = np.broadcast_to(corners, (*clips.shape, 2)).reshape(-1, 1, 2).repeat(length, axis=1)
        patches = crop_patches(frames, self._on_device(source.ravel()), self._on_device(places.reshape(-1, 2)), self.action.patch_size)
        focus_vectors = self.classifier.focus(self.classifier.normalise(patches), num_frames=length)
        return focus_vectors.unflatten(0, (-1, length)).mean(1).unflatten(0, clips.shape)

    def frames(self, clip: int) -> Tensor:
        """The clip's frames (T, 3, H, W), uint8, on the networks' device, (height, width, channels) in memory."""
        return self._frames.get(
            clip, lambda: self.clips.frames(clip).to(self.classifier.device, non_blocking=True, memory_format=torch.channels_last)
        )

    def glance(self, clip: int) -> tuple[Tensor, Tensor]:
        """Maps (D, C, h, w) and vectors (D, C) of all steps of one clip, from one call of the glancer."""
        self._notice_changed_weights()
        return self._glance(clip)

    def cell_focus_vectors_of(self, groups: Iterable[tuple[int, range]]) -> Iterator[Tensor]:
        """Yield `cell_focus_vectors` of each (clip, steps), several at the same time where cores are idle: the values are the same."""
        frames = (by_step(self.frames(clip), self.num_steps)[steps.start : steps.stop] for clip, steps in groups)
        return map_parallel(self.cell_focus_vectors, frames, idle_workers(self.classifier.device))

    @torch.no_grad()
    def cell_focus_vectors(self, frames: Tensor) -> Tensor:
        """Focus vectors (steps, cells, F) of all cells of one of the `groups` of steps, in calls that are always the same.

        Args:
            frames: of these steps, (steps, T/D, 3, H, W) uint8.
        """
        frames = self.classifier.normalise(frames)  # once: cells overlap
        length = frames.shape[1]
        patches = (crop_patches(frames.flatten(0, 1), *call, self.action.patch_size) for call in self._cell_calls(len(frames), length))
        focus_vectors = torch.cat([self.classifier.focus(each, num_frames=length) for each in patches])
        return focus_vectors.unflatten(0, (len(frames), -1, length)).mean(2)

    @cached_property
    def groups(self) -> list[range]:
        """Steps whose focus vectors are computed together: as many as one call of the focuser has room for, at least one."""
        patches = max(1, self.action.num_cells or 0) * (self.clips.num_frames // self.num_steps)
        count = max(1, self._call_size // patches)
        return [range(start, min(start + count, self.num_steps)) for start in range(0, self.num_steps, count)]

    def _cell_calls(self, steps: int, length: int) -> list[tuple[Tensor, Tensor]]:
        """Frame and corner of every patch of so many steps of ``length`` frames, cell after cell, in parts as large as a call may be."""
        if steps not in self._calls:
            cells = self.action.corners_of(self.action.candidates)
            source = np.arange(steps * length).reshape(steps, 1, length).repeat(len(cells), axis=1).ravel()
            corners = np.tile(cells.repeat(length, axis=0), (steps, 1))
            size = max(1, self._call_size // length) * length
            parts = [slice(start, start + size) for start in range(0, len(source), size)]
            self._calls[steps] = [(self._on_device(source[part]), self._on_device(corners[part])) for part in parts]
        return self._calls[steps]

    @property
    def _call_size(self) -> int:
        return max(1, CALL_PIXELS.get(self.classifier.device.type, CALL_PIXELS["cpu"]) // self.action.patch_size**2)

    def _glance(self, clip: int) -> tuple[Tensor, Tensor]:
        return self._glances.get(clip, lambda: self._run_glancer(clip))

    @torch.no_grad()
    def _run_glancer(self, clip: int) -> tuple[Tensor, Tensor]:
        separate = self.clips.settings.glance_frames > 0
        frames = self.clips.glancer_frames(clip).to(self.classifier.device) if separate else self.frames(clip)
        maps, vectors = self.classifier.glance(self.classifier.normalise(frames), num_frames=len(frames))
        return by_step(maps, self.num_steps).flatten(1, 2), by_step(vectors, self.num_steps).mean(1)

    def _notice_changed_weights(self) -> None:
        if self._watch.changed():
            self._glances.clear()

    def _step_frames(self, clip: int, step: int) -> Tensor:
        return by_step(self.frames(clip), self.num_steps)[step]

    def _on_device(self, numbers: Indices) -> Tensor:
        return to_device(numbers, self.classifier.device)


def by_step(frames: Tensor, num_steps: int) -> Tensor:
    """What belongs to the frames of a clip (T, …) → to the frames of its steps (D, T/D, …)."""
    return frames.unflatten(0, (num_steps, -1))


def count_steps(classifier: Classifier, clips: ClipSource, video_div: int | None) -> int:
    """D, the decisions that a policy takes in a clip.

    A head that is recurrent takes one decision a frame. One that averages the scores of frames (the Something-Something family)
    takes ``video_div`` decisions, each for an equal share of the frames; with 1, all frames of a video get the same place.

    Args:
        classifier: its head decides between the two.
        clips: with as many frames as can be shared out.
        video_div: 1 (the default), 2 or 4 where the head averages, and None elsewhere.

    Raises:
        InputError: they do not fit together (says why).
    """
    head, glances = classifier.architecture.head, clips.settings.num_glance_frames
    if head != "mean":
        if video_div is not None:
            raise InputError(f"video_div={video_div} needs a classifier with the head 'mean', this one has {head!r}; leave video_div out")
        if glances != clips.num_frames:
            raise InputError(
                f"the clips have {glances} frames for the glancer and {clips.num_frames} for the focuser; a classifier with the head "
                f"{head!r} looks at the same frames with both: set glance_frames=0"
            )
        return clips.num_frames
    steps = 1 if video_div is None else video_div
    if steps not in VIDEO_DIVS:
        raise InputError(f"video_div={video_div} is not possible; choose 1, 2 or 4 decisions a video")
    for frames, name in ((clips.num_frames, "num_frames"), (glances, "glance_frames")):
        if frames % steps:
            raise InputError(f"video_div={steps} does not divide {name}={frames}; choose a number of frames that it divides")
    return steps


Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LRUCache(Generic[Key, Value]):
    """The values of the keys last asked for, at most ``capacity`` of them."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The kept value of ``key``, or a new one; the one not asked for the longest goes if there are too many."""
        if key not in self._kept:
            self._kept[key] = make()
            if len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def clear(self) -> None:
        """Keeps nothing any more."""
        self._kept.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict()}  # copies and pickles make their own
