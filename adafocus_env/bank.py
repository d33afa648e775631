"""The feature bank: frozen means computed once."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.action import Action, GridAction
from adafocus_env.clips import ClipSource
from adafocus_env.features import Features, Indices, LiveFeatures, count_steps
from classifiers.classifier import Classifier
from classifiers.errors import InputError

LIVE_CLIPS = 256  # whose frames are kept for foci that are computed live


class FeatureBank:
    """Keeps every glance and focus vector of a clip store in memory, each computed when first asked for.

    A value never depends on who asked for it: glances are computed for all frames of a clip together, foci for all cells
    of a step together, so membership and size of every network call are fixed. A changed weight empties the bank. Where actions
    are continuous there is no end of places: their foci are computed live, and only glances are kept.

    Args:
        classifier: frozen; its device is where the bank lives.
        clips: the clips, by number.
        action: what can be looked at.
        video_div: see `adafocus_env.features.count_steps`.

    Raises:
        InputError: the bank would take more than half of the machine's memory (says the size and what to do), or
            classifier, clips and ``video_div`` do not fit together.
    """

    def __init__(self, classifier: Classifier, clips: ClipSource, action: Action, *, video_div: int | None = None) -> None:
        self.classifier, self.clips, self.action = classifier, clips, action
        self._live = LiveFeatures(classifier, clips, action, video_div=video_div, capacity=LIVE_CLIPS if action.num_cells is None else 1)
        self.map_shape, self.num_steps = self._live.map_shape, self._live.num_steps
        maps = (len(clips), self.num_steps, *self.map_shape)
        vectors = (*maps[:2], classifier.glancer.vector_size)
        foci = (*maps[:2], action.num_cells or 0, classifier.focuser.vector_size)
        _check_room(sum(4 * int(np.prod(shape)) for shape in (maps, vectors, foci)))
        self._maps, self._vectors, self._foci = (torch.empty(shape, device=classifier.device) for shape in (maps, vectors, foci))
        self._glanced = np.zeros(len(clips), dtype=bool)
        self._focused = np.zeros(maps[:2], dtype=bool)
        self._version = classifier.version
        self.fingerprint = classifier.fingerprint()

    def maps(self, clips: Indices, steps: Indices) -> Tensor:
        """Glance maps (…, C, h, w) of those steps."""
        self._fill_glances(clips)
        return self._maps[self._on_device(clips), self._on_device(steps)]

    def vectors(self, clips: Indices, steps: Indices) -> Tensor:
        """Glance vectors (…, C) of those steps."""
        self._fill_glances(clips)
        return self._vectors[self._on_device(clips), self._on_device(steps)]

    def foci(self, clips: Indices, steps: Indices, actions: NDArray[Any]) -> Tensor:
        """Focus vectors (…, F) of the patches that ``actions`` pick in those steps."""
        if self.action.num_cells is None:
            return self._live.foci(clips, steps, actions)
        self._fill_foci(clips, steps, np.arange(self.action.num_cells))
        return self._foci[self._on_device(clips), self._on_device(steps), self._on_device(actions)]

    def _fill_glances(self, clips: Indices) -> None:
        self._notice_changed_weights()
        for clip in np.unique(clips[~self._glanced[clips]]):
            self._maps[clip], self._vectors[clip] = self._live.glance(int(clip))
            self._glanced[clip] = True

    def _fill_foci(self, clips: Indices, steps: Indices, every: Indices) -> None:
        self._notice_changed_weights()
        missing = ~self._focused[clips, steps]
        if not missing.any():
            return
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


def check_bank(bank: Features, classifier: Classifier, clips: ClipSource, action: Action, video_div: int | None = None) -> Features:
    """Returns ``bank`` if it was made for this classifier, these clips, this patch geometry and these decisions.

    Raises:
        InputError: it belongs to something else (says what differs).
    """
    differing = [
        name
        for name, ours, theirs in (
            ("classifier", _identity(classifier), _identity(bank.classifier)),
            ("clips", clips.fingerprint, bank.clips.fingerprint),
            ("patch geometry", _geometry(action), _geometry(bank.action)),
            ("video_div", count_steps(classifier, clips, video_div), bank.num_steps),
        )
        if ours != theirs
    ]
    if differing:
        others = " and another ".join(differing)
        raise InputError(f"the bank belongs to another {others}; make a FeatureBank for this one, or pass bank=True")
    return bank


def _geometry(action: Action) -> tuple[object, ...]:
    return type(action), action.size, action.patch_size, action.grid if isinstance(action, GridAction) else None


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
