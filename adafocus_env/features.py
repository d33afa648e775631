"""What the frozen networks see in the clips of a store: glances of whole frames, foci of patches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.action import GridAction, crop_patches
from adafocus_env.clips import ClipStore
from classifiers.classifier import Classifier

Indices = NDArray[np.int64]


class Features(Protocol):
    """Glances and foci of clips, computed anew (`LiveFeatures`) or once (`FeatureBank`).

    ``clips``, ``steps`` and ``cells`` are index arrays that broadcast against each other to one shape (…).
    """

    classifier: Classifier
    clips: ClipStore
    grid: GridAction
    map_shape: tuple[int, int, int]

    def maps(self, clips: Indices, steps: Indices) -> Tensor:
        """Glance maps (…, C, h, w) of those frames, on the networks' device."""
        ...

    def vectors(self, clips: Indices, steps: Indices) -> Tensor:
        """Glance vectors (…, C) of those frames."""
        ...

    def foci(self, clips: Indices, steps: Indices, cells: Indices) -> Tensor:
        """Focus vectors (…, F) of the patches at ``cells`` of those frames."""
        ...


class LiveFeatures:
    """Runs the networks whenever it is asked; keeps the frames and glances of the clips last used.

    Args:
        classifier: frozen; its device is where everything lives.
        clips: the clips, by number.
        grid: where patches can be.
        capacity: clips whose frames and glances are kept.
    """

    def __init__(self, classifier: Classifier, clips: ClipStore, grid: GridAction, *, capacity: int = 256) -> None:
        self.classifier, self.clips, self.grid = classifier, clips, grid
        self._corners = torch.from_numpy(grid.corners).to(classifier.device)
        self._frames: Recent[int, Tensor] = Recent(capacity)
        self._glances: Recent[tuple[int, int], tuple[Tensor, Tensor]] = Recent(capacity)
        size = classifier.architecture.size
        with torch.inference_mode():
            maps, _ = classifier.glance(torch.zeros(1, 3, size, size, device=classifier.device))
        self.map_shape: tuple[int, int, int] = (maps.shape[1], maps.shape[2], maps.shape[3])

    def maps(self, clips: Indices, steps: Indices) -> Tensor:
        """Glance maps (…, C, h, w) of those frames."""
        clips, steps = np.broadcast_arrays(clips, steps)
        maps = [self.glance(int(clip))[0][step] for clip, step in zip(clips.flat, steps.flat, strict=True)]
        return torch.stack(maps).unflatten(0, clips.shape)

    def vectors(self, clips: Indices, steps: Indices) -> Tensor:
        """Glance vectors (…, C) of those frames."""
        clips, steps = np.broadcast_arrays(clips, steps)
        vectors = [self.glance(int(clip))[1][step] for clip, step in zip(clips.flat, steps.flat, strict=True)]
        return torch.stack(vectors).unflatten(0, clips.shape)

    @torch.no_grad()
    def foci(self, clips: Indices, steps: Indices, cells: Indices) -> Tensor:
        """Focus vectors (…, F) of patches, in one call of the focuser."""
        clips, steps, cells = np.broadcast_arrays(clips, steps, cells)
        wanted, source = np.unique(np.stack([clips.ravel(), steps.ravel()]), axis=1, return_inverse=True)
        frames = torch.stack([self.frames(int(clip))[step] for clip, step in wanted.T])
        corners = self._corners[torch.from_numpy(cells.ravel()).to(frames.device)]
        patches = crop_patches(frames, torch.from_numpy(source.ravel()).to(frames.device), corners, self.grid.patch_size)
        return self.classifier.focus(self.classifier.normalise(patches)).unflatten(0, cells.shape)

    def frames(self, clip: int) -> Tensor:
        """The clip's frames (T, 3, H, W), uint8, on the networks' device."""
        return self._frames.get(clip, lambda: self.clips.frames(clip).to(self.classifier.device, non_blocking=True))

    @torch.no_grad()
    def glance(self, clip: int) -> tuple[Tensor, Tensor]:
        """Maps (T, C, h, w) and vectors (T, C) of all frames of one clip, from one call of the glancer."""
        key = (clip, self.classifier.version)
        return self._glances.get(key, lambda: self.classifier.glance(self.classifier.normalise(self.frames(clip))))


Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(Generic[Key, Value]):
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
