"""The feature bank: frozen means computed once. Here in memory; `adafocus_env.features.disk_bank` keeps it on disk."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.action import Action, GridAction
from adafocus_env.clips.store import ClipSource
from adafocus_env.features.live import Features, Indices, LiveFeatures, count_steps
from adafocus_env.transfers import Values, to_array, to_device
from classifiers.classifier import Classifier
from classifiers.errors import InputError, lookup
from classifiers.optimize import execution_of, optimized
from classifiers.weight_monitor import WeightMonitor

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
NETWORKS = ("glancer", "focuser")  # what the features depend on: a head may learn, and the bank is as good as before
_STORED = ("_maps", "_vectors", "_focus_vectors", "_glanced", "_focused", "_slots")
_log = logging.getLogger("adafocus_env")


class RoomError(InputError):
    """A bank does not fit where it shall be kept."""


@dataclass(frozen=True)
class Layout:
    """What a bank keeps of one clip: shapes of glance maps, glance vectors and focus vectors, and how numbers are stored.

    Attributes:
        maps: (D, C, h, w).
        vectors: (D, C).
        focus vectors: (D, cells, F); no cells where actions are continuous.
        dtype: of the stored numbers.
    """

    maps: tuple[int, ...]
    vectors: tuple[int, ...]
    focus_vectors: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, features: LiveFeatures, dtype: str) -> Layout:
        """The layout for these features, stored as ``dtype``.

        Raises:
            InputError: there is no such dtype.
        """
        steps, networks = features.num_steps, features.classifier
        focus_vectors = (steps, features.action.num_cells or 0, networks.focuser.vector_size)
        return cls((steps, *features.map_shape), (steps, networks.glancer.vector_size), focus_vectors, lookup("bank_dtype", dtype, DTYPES))

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of maps, vectors and focus vectors."""
        return self.maps, self.vectors, self.focus_vectors

    @property
    def clip_bytes(self) -> int:
        """Size of one clip in bytes."""
        return sum(int(np.prod(shape)) for shape in self.shapes) * self.dtype.itemsize

    def rounded(self, values: Tensor) -> Tensor:
        """``values`` as they are stored.

        Raises:
            InputError: one is too large for the dtype.
        """
        stored = values.to(self.dtype)
        if self.dtype == torch.float16 and not stored.isfinite().all() and values.isfinite().all():
            raise InputError("bank_dtype=float16 cannot hold what the networks say: numbers above 65504; choose bfloat16 or float32")
        return stored


class MemoryBank:
    """Keeps the glance and focus vectors of a clip store in memory, each computed when first asked for.

    A value never depends on who asked for it: glances are computed for all frames of a clip together, focus vectors for all cells
    of a step together, so membership and size of every network call are fixed, and what is answered is what was stored. A changed
    weight of glancer or focuser empties the bank; the head's make no difference. Where actions are continuous there is no end of
    places: their focus vectors are computed live, and only glances are kept.

    Args:
        classifier: frozen; its device is where the bank lives.
        clips: the clips, by number.
        action: what can be looked at.
        video_div: see `adafocus_env.features.live.count_steps`.
        dtype: a name in `DTYPES`, how numbers are stored. They are computed and answered as float32.
        max_bytes: size of the bank; where not all clips have room, those go that were not asked for the longest.

    Attributes:
        num_bytes: size of the bank.

    Raises:
        RoomError: the bank would take more than half of the memory (says the size and what to do).
        InputError: no such dtype, ``max_bytes`` holds no clip, the classifier is in training mode, or classifier, clips and
            ``video_div`` do not fit together.
    """

    def __init__(
        self,
        classifier: Classifier,
        clips: ClipSource,
        action: Action,
        *,
        video_div: int | None = None,
        dtype: str = "float32",
        max_bytes: int | None = None,
    ) -> None:
        self._live = LiveFeatures(classifier, clips, action, video_div=video_div, capacity=1)
        self.classifier, self.clips, self.action = self._live.classifier, clips, action
        self.map_shape, self.num_steps = self._live.map_shape, self._live.num_steps
        self.layout = Layout.of(self._live, dtype)
        self._capacity = _clips_in(max_bytes, self.layout, len(clips))
        self.num_bytes = self._capacity * self.layout.clip_bytes
        _check_memory(self.num_bytes, len(clips), classifier.device)
        _log.info("%s", self.about)
        self._watch = WeightMonitor(classifier)
        self.fingerprint = classifier.fingerprint(NETWORKS)
        self._store_nothing()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _STORED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A pickled or copied bank comes back empty, since what is stored is large and can be computed again."""
        self.__dict__.update(state)
        self._store_nothing()

    def _store_nothing(self) -> None:
        """Makes room for the features of all steps, none of them there yet."""
        cells, steps = self.layout.focus_vectors[1], self._capacity * self.num_steps
        self._maps, self._vectors, self._focus_vectors = (
            torch.empty(shape, dtype=self.layout.dtype, device=self.classifier.device)
            for shape in ((steps, *self.map_shape), (steps, *self.layout.vectors[1:]), (steps * cells, *self.layout.focus_vectors[2:]))
        )
        self._glanced, self._focused = np.zeros(self._capacity, dtype=bool), np.zeros(steps, dtype=bool)
        self._slots = Slots(len(self.clips), self._capacity)

    @property
    def about(self) -> str:
        """Where features come from and what they take, for people."""
        return f"bank: {self._capacity} of {len(self.clips)} clips in memory, {size_text(self.num_bytes)}"

    def glance_maps(self, clips: Indices, steps: Indices) -> Tensor:
        """Glance maps (…, C, h, w) of those steps."""
        return self._in_parts(lambda *index: self._pick(self._maps, self._glance_rows(*index)), clips, steps)

    def glance_vectors(self, clips: Indices, steps: Indices) -> Tensor:
        """Glance vectors (…, C) of those steps."""
        return self._in_parts(lambda *index: self._pick(self._vectors, self._glance_rows(*index)), clips, steps)

    def focus_vectors(self, clips: Indices, steps: Indices, actions: Values) -> Tensor:
        """Focus vectors (…, F) of the patches that ``actions`` pick in those steps; a tensor of cells is not copied to the host."""
        if self.action.num_cells is None:
            return self._live.focus_vectors(clips, steps, actions)
        if not self._slots.enough(clips):  # read in parts, which are picked on the host
            actions = to_array(actions)
        return self._in_parts(lambda *index: self._pick(self._focus_vectors, self._focus_rows(*index)), clips, steps, actions)

    def _in_parts(self, read: Callable[..., Tensor], clips: Indices, *others: Values) -> Tensor:
        """Reads what was asked for: for as many clips at a time as have room in the bank."""
        if self._watch.changed():
            self._notice_changed_weights()
        if self._slots.enough(clips):
            return read(clips, *others)
        clips, *rest = np.broadcast_arrays(clips, *others)
        parts = np.unique(clips, return_inverse=True)[1].reshape(clips.shape) // self._capacity
        places = [parts == number for number in range(parts.max() + 1)]
        values = [read(clips[place], *(other[place] for other in rest)) for place in places]
        whole = values[0].new_empty((*clips.shape, *values[0].shape[1:]))
        for place, part in zip(places, values, strict=True):
            whole[torch.from_numpy(place)] = part
        return whole

    def _glance_rows(self, clips: Indices, steps: Indices) -> Indices:
        """Rows of the stored glances of those steps, once they are stored."""
        slots = self._slots_of(clips)
        missing = ~self._glanced[slots]
        if missing.any():
            for clip, slot in _distinct(missing, clips, slots):
                for stored, values in zip((self._maps, self._vectors), self._live.glance(clip), strict=True):
                    stored[slot * self.num_steps : (slot + 1) * self.num_steps] = self.layout.rounded(values)
                self._glanced[slot] = True
        return slots * self.num_steps + steps

    def _focus_rows(self, clips: Indices, steps: Indices, cells: Values) -> Values:
        """Rows of the stored focus vectors of those cells, once all cells of their groups of steps are stored."""
        every = self.layout.focus_vectors[1]
        rows = self._slots_of(clips) * self.num_steps + steps
        missing = ~self._focused[rows]
        if missing.any():
            groups = self._live.groups
            wanted = _distinct(missing, clips, rows - steps, steps // len(groups[0]))
            computed = self._live.cell_focus_vectors_of((clip, groups[number]) for clip, _, number in wanted)
            for (_, first, number), focus_vectors in zip(wanted, computed, strict=True):
                stored = slice(first + groups[number].start, first + groups[number].stop)
                self._focus_vectors.unflatten(0, (-1, every))[stored] = self.layout.rounded(focus_vectors)
                self._focused[stored] = True
        return rows * every + cells if isinstance(cells, np.ndarray) else to_device(rows * every, cells.device) + cells

    def _slots_of(self, clips: Indices) -> Indices:
        slots, renewed = self._slots.of(clips)
        if len(renewed):
            self._glanced[renewed] = False
            self._focused.reshape(self._capacity, -1)[renewed] = False
        return slots

    def _pick(self, stored: Tensor, rows: Values) -> Tensor:
        index = to_device(rows.reshape(-1), stored.device) if isinstance(rows, np.ndarray) else rows.flatten()
        return stored.index_select(0, index).view(*rows.shape, *stored.shape[1:]).float()

    def _notice_changed_weights(self) -> None:
        """Empties the bank if weights are others than those it was filled with."""
        if (fingerprint := self.classifier.fingerprint(NETWORKS)) != self.fingerprint:
            self.fingerprint = fingerprint
            self._glanced[:] = False
            self._focused[:] = False


class Slots:
    """Which clips have a place in a bank of ``capacity`` clips: those asked for last."""

    def __init__(self, num_clips: int, capacity: int) -> None:
        self._all = capacity >= num_clips
        self._capacity, self._clock = capacity, 0
        self._slot: Indices = np.full(num_clips, -1)
        self._clip: Indices = np.full(capacity, -1)
        self._used: Indices = np.zeros(capacity, np.int64)

    def enough(self, clips: Indices) -> bool:
        """Whether all ``clips`` have room at the same time."""
        return self._all or clips.size <= self._capacity or len(np.unique(clips)) <= self._capacity

    def of(self, clips: Indices) -> tuple[Indices, Indices]:
        """The slots of ``clips``, and those among them that were given to another clip than before."""
        if self._all:
            return clips, _NONE
        wanted = np.unique(clips)
        here = self._slot[wanted] >= 0
        self._clock += 1
        self._used[self._slot[wanted[here]]] = self._clock
        taken, fresh = np.argsort(self._used, kind="stable")[: np.count_nonzero(~here)], wanted[~here]
        evicted = self._clip[taken]
        self._slot[evicted[evicted >= 0]] = -1
        self._slot[fresh], self._clip[taken], self._used[taken] = taken, fresh, self._clock
        return self._slot[clips], taken


_NONE: Indices = np.zeros(0, np.int64)


def _distinct(chosen: NDArray[np.bool_], *numbers: Indices) -> list[list[int]]:
    """The different tuples of ``numbers``, which broadcast to the shape of ``chosen``, where that is set."""
    return np.unique([np.broadcast_to(each, chosen.shape)[chosen] for each in numbers], axis=1).T.tolist()


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
            ("patch geometry", geometry(action), geometry(bank.action)),
            ("video_div", count_steps(classifier, clips, video_div), bank.num_steps),
        )
        if ours != theirs
    ]
    if differing:
        others = " and another ".join(differing)
        raise InputError(f"the bank belongs to another {others}; make a MemoryBank for this one, or pass bank=True")
    return bank


def geometry(action: Action) -> tuple[object, ...]:
    """Everything that the patches of an action depend on."""
    if isinstance(action, GridAction) or action.num_cells is None:
        return type(action).__name__, action.size, action.patch_size, action.grid if isinstance(action, GridAction) else None
    return type(action).__name__, action.size, action.patch_size, action.corners_of(action.candidates).tolist()


def size_text(num_bytes: float) -> str:
    """A size for people, in the unit that suits it."""
    power = min(3, max(0, int(math.log2(max(1, num_bytes)) // 10)))
    return f"{num_bytes / 2 ** (10 * power):.1f} {('bytes', 'KiB', 'MiB', 'GiB')[power]}"


def _identity(classifier: Classifier) -> tuple[object, ...]:
    """Weights and what else the features depend on: the same weights see something else with another mean, glance size or precision."""
    return classifier.fingerprint(), classifier.architecture, execution_of(optimized(classifier))


def _clips_in(max_bytes: int | None, layout: Layout, count: int) -> int:
    if max_bytes is None:
        return count
    if max_bytes < layout.clip_bytes:
        raise InputError(
            f"the bank may take {size_text(max_bytes)}, and the features of one clip take {size_text(layout.clip_bytes)}; "
            "choose a larger bank_gib, or bank=false to compute them live"
        )
    return min(count, max_bytes // layout.clip_bytes)


def _check_memory(size: int, count: int, device: torch.device) -> None:
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory / 2:
        raise RoomError(
            f"bank: the features of {count} clips take {size_text(size)}, more than half of the {size_text(memory)} of memory there is; "
            "keep them on disk (bank=FOLDER), keep those of the clips last used (bank_gib=N), or compute them live (bank=false)"
        )
