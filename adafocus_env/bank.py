"""The feature bank: frozen means computed once."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor

from adafocus_env.action import GridAction
from adafocus_env.clips import ClipStore
from adafocus_env.features import Features, Indices, LiveFeatures
from classifiers.classifier import Classifier
from classifiers.errors import InputError


class FeatureBank:
    """Keeps every glance and focus vector of a clip store in memory, each computed when first asked for.

    A value never depends on who asked for it: glances are computed for all frames of a clip together, foci for all cells
    of a frame together, so membership and size of every network call are fixed. A changed weight empties the bank.

    Args:
        classifier: frozen; its device is where the bank lives.
        clips: the clips, by number.
        grid: where patches can be.

    Raises:
        InputError: the bank would take more than half of the machine's memory (says the size and what to do).
    """

    def __init__(self, classifier: Classifier, clips: ClipStore, grid: GridAction) -> None:
        self.classifier, self.clips, self.grid = classifier, clips, grid
        self._live = LiveFeatures(classifier, clips, grid, capacity=1)
        self.map_shape = self._live.map_shape
        maps = (len(clips), clips.num_frames, *self.map_shape)
        vectors = (*maps[:2], classifier.glancer.vector_size)
        foci = (*maps[:2], grid.num_cells, classifier.focuser.vector_size)
        _check_room(sum(4 * int(np.prod(shape)) for shape in (maps, vectors, foci)))
        self._maps, self._vectors, self._foci = (torch.empty(shape, device=classifier.device) for shape in (maps, vectors, foci))
        self._glanced = np.zeros(len(clips), dtype=bool)
        self._focused = np.zeros(maps[:2], dtype=bool)
        self._version = classifier.version
        self.fingerprint = classifier.fingerprint()

    def maps(self, clips: Indices, steps: Indices) -> Tensor:
        """Glance maps (…, C, h, w) of those frames."""
        self._fill_glances(clips)
        return self._maps[self._on_device(clips), self._on_device(steps)]

    def vectors(self, clips: Indices, steps: Indices) -> Tensor:
        """Glance vectors (…, C) of those frames."""
        self._fill_glances(clips)
        return self._vectors[self._on_device(clips), self._on_device(steps)]

    def foci(self, clips: Indices, steps: Indices, cells: Indices) -> Tensor:
        """Focus vectors (…, F) of the patches at ``cells`` of those frames."""
        self._fill_foci(clips, steps)
        return self._foci[self._on_device(clips), self._on_device(steps), self._on_device(cells)]

    def _fill_glances(self, clips: Indices) -> None:
        self._notice_changed_weights()
        for clip in np.unique(clips[~self._glanced[clips]]):
            self._maps[clip], self._vectors[clip] = self._live.glance(int(clip))
            self._glanced[clip] = True

    def _fill_foci(self, clips: Indices, steps: Indices) -> None:
        self._notice_changed_weights()
        missing = ~self._focused[clips, steps]
        if not missing.any():
            return
        every = np.arange(self.grid.num_cells)
        clips, steps = np.broadcast_arrays(clips, steps)
        for clip, step in np.unique(np.stack([clips[missing], steps[missing]], axis=1), axis=0):
            self._foci[clip, step] = self._live.foci(clip[None], step[None], every)
            self._focused[clip, step] = True

    def _on_device(self, indices: Indices) -> Tensor:
        return torch.from_numpy(indices).to(self._maps.device, non_blocking=True)

    def _notice_changed_weights(self) -> None:
        """Empties the bank if a weight has changed since it was filled; two integers are compared where none was touched."""
        if self.classifier.version == self._version:
            return
        self._version = self.classifier.version
        if (fingerprint := self.classifier.fingerprint()) != self.fingerprint:
            self.fingerprint = fingerprint
            self._glanced[:] = False
            self._focused[:] = False


def check_bank(bank: Features, classifier: Classifier, clips: ClipStore, grid: GridAction) -> Features:
    """Returns ``bank`` if it was made for this classifier, these clips and this patch geometry.

    Raises:
        InputError: it belongs to something else (says what differs).
    """
    differing = [
        name
        for name, ours, theirs in (
            ("classifier", _identity(classifier), _identity(bank.classifier)),
            ("clips", clips.fingerprint, bank.clips.fingerprint),
            ("patch geometry", (grid.grid, grid.size, grid.patch_size), (bank.grid.grid, bank.grid.size, bank.grid.patch_size)),
        )
        if ours != theirs
    ]
    if differing:
        others = " and another ".join(differing)
        raise InputError(f"the bank belongs to another {others}; make a FeatureBank for this one, or pass bank=True")
    return bank


def _identity(classifier: Classifier) -> tuple[str, object]:
    """Weights and what else the features depend on: the same weights see something else with another mean or glance size."""
    return classifier.fingerprint(), classifier.architecture


def _check_room(size: int) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory / 2:
        raise InputError(
            f"bank: the features of all clips take {size / 2**30:.1f} GiB, more than half of this machine's {memory / 2**30:.1f} GiB; "
            "use bank=false (env.bank=false on the command line) to compute them live"
        )
