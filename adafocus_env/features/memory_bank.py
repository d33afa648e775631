"""The feature bank in memory: features of frozen networks are computed only once. `adafocus_env.features.disk_bank` stores them on disk."""

import logging
import math
import os
from contextlib import nullcontext
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
from adafocus_env.waiting import Waiting
from classifiers.classifier import Classifier, WeightMonitor
from classifiers.errors import InputError, count_of, lookup, refuse_if
from classifiers.optimize import execution_of, optimized

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
NETWORKS = ("glancer", "focuser")  # the features depend on these; the head may be trained
CACHED_FRAMES = 256  # number of clips whose frames a bank caches: as many as are evaluated at the same time; later requests are rare
MANY = 16  # a bank with ``announce`` shows its progress if a step needs at least this many calls of the focuser
_STORED = ("_stored", "_glanced", "_focused", "_slots")
_log = logging.getLogger("adafocus_env")


class RoomError(InputError):
    """Raised if a bank does not fit in memory or on disk."""


@dataclass(frozen=True)
class Layout:
    """The shapes and the number format of the stored features of one clip.

    Attributes:
        maps: shape of the glance maps, (D, C, h, w).
        vectors: shape of the glance vectors, (D, C).
        focus_vectors: shape of the focus vectors, (D, cells, F). With continuous actions, the number of cells is 0.
        dtype: dtype of the stored numbers.
    """

    maps: tuple[int, ...]
    vectors: tuple[int, ...]
    focus_vectors: tuple[int, ...]
    dtype: torch.dtype

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of maps, vectors and focus vectors."""
        return self.maps, self.vectors, self.focus_vectors

    @property
    def clip_bytes(self) -> int:
        """Size of one clip in bytes."""
        return sum(int(np.prod(shape)) for shape in self.shapes) * self.dtype.itemsize

    def rounded(self, values: Tensor) -> Tensor:
        """Convert ``values`` to the stored number format.

        Raises:
            InputError: if a value is too large for the dtype.
        """
        stored = values.to(self.dtype)
        refuse_if(
            self.dtype == torch.float16 and not stored.isfinite().all() and values.isfinite().all(),
            "bank_dtype=float16 cannot store features above 65504; choose bfloat16 or float32",
        )
        return stored


class Bank(Features):
    """Base class of features that are computed only once. Subclasses store them.

    Attributes:
        layout: layout of a clip's features.
        fingerprint: fingerprint of the weights that the features depend on.
    """

    def __init__(self, classifier: Classifier, clips: ClipSource, action: Action, video_div: int | None, dtype: str) -> None:
        self._live = LiveFeatures(classifier, clips, action, video_div=video_div, capacity=1, frames=CACHED_FRAMES)
        self.classifier, self.clips, self.action = self._live.classifier, clips, action
        self.map_shape, self.num_steps = self._live.map_shape, self._live.num_steps
        self.layout = Layout(
            (self.num_steps, *self.map_shape),
            (self.num_steps, self.classifier.glancer.vector_size),
            (self.num_steps, action.num_cells or 0, self.classifier.focuser.vector_size),
            lookup("bank_dtype", dtype, DTYPES),
        )
        self._watch = WeightMonitor(classifier)
        self.fingerprint = self.classifier.fingerprint(NETWORKS)

    def focus_vectors(self, clips: Indices, steps: Indices, actions: Values) -> Tensor:
        """See `Features.focus_vectors`. Focus vectors of continuous actions are not stored."""
        if self.action.num_cells is None:
            return self._live.focus_vectors(clips, steps, actions)
        return super().focus_vectors(clips, steps, actions)

    def _outdated(self) -> bool:
        """Return whether the glancer or the focuser has changed since the last call."""
        before = self.fingerprint
        if self._watch.changed():
            self.fingerprint = self.classifier.fingerprint(NETWORKS)
        return self.fingerprint != before


class MemoryBank(Bank):
    """A bank that stores glances and focus vectors in memory. Features are computed when they are first requested.

    Values do not depend on the order of requests, because the content and the size of every network call are fixed. The glances of all
    frames of a clip are computed in one call, and the focus vectors of all cells of a step are computed together. If a weight of the
    glancer or the focuser changes, the bank is emptied. The weights of the head do not matter. With continuous actions, focus vectors are
    computed live and only glances are stored.

    Args:
        classifier: the frozen classifier. The bank is on the classifier's device.
        clips: the clips.
        action: the kind of action, which defines the patches.
        video_div: see `adafocus_env.features.live.count_steps`.
        dtype: the stored number format, a name in `DTYPES`. Values are computed and returned as float32.
        max_bytes: maximum size of the bank; if not all clips fit, the least recently used clips are dropped.
        announce: whether to show progress on stderr when the features of many steps have to be computed at once.

    Attributes:
        num_bytes: size of the bank in bytes.

    Raises:
        RoomError: if the bank would take more than half of the memory. The message states the size and says what to do.
        InputError: if the dtype is unknown, if one clip needs more than ``max_bytes``, if the classifier is in training mode, or if
            classifier, clips and ``video_div`` do not match.
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
        announce: bool = False,
    ) -> None:
        super().__init__(classifier, clips, action, video_div, dtype)
        self._capacity = _clips_in(max_bytes, self.layout, len(clips))
        self.num_bytes = self._capacity * self.layout.clip_bytes
        check_size(
            f"bank: the features of {count_of(len(clips), 'clip')}", self.num_bytes, memory_of(classifier.device) // 2,
            "half of the memory",
            "store them on disk (bank=FOLDER), store only the last used clips (bank_gib=N), or compute them live (bank=false)",
        )  # fmt: skip
        _log.info("%s", self.about)
        self._waiting = Waiting("fill the feature bank", self._capacity * self.num_steps) if announce else None
        self._store_nothing()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _STORED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled or copied bank without its features, which are large and can be computed again."""
        self.__dict__.update(state)
        self._store_nothing()

    def _store_nothing(self) -> None:
        """Allocate the features of all steps."""
        steps = self._capacity * self.num_steps
        self._stored = [
            torch.empty((steps, *shape[1:]), dtype=self.layout.dtype, device=self.classifier.device) for shape in self.layout.shapes
        ]
        self._glanced, self._focused = np.zeros(self._capacity, dtype=bool), np.zeros(steps, dtype=bool)
        self._slots = Slots(len(self.clips), self._capacity)

    @property
    def about(self) -> str:
        """Description of where the features are stored, and of their size."""
        return f"bank: {self._capacity:,} of {count_of(len(self.clips), 'clip')} in memory, {size_text(self.num_bytes)}"

    def clip_maps(self, clips: Indices) -> list[Tensor]:
        """See `Features.clip_maps`. A float32 bank that holds all clips returns views of its memory."""
        if self._capacity < len(self.clips):  # another clip may replace a stored clip while its maps are in use
            return super().clip_maps(clips)
        self.glance_vectors(clips, np.zeros(1, np.int64))  # computes missing glances
        stored = self._stored[0].unflatten(0, (-1, self.num_steps))
        return [stored[clip].float() for clip in clips.tolist()]

    def vectors(self, clips: Indices, steps: Indices, actions: Values) -> tuple[Tensor, Tensor]:
        """See `Features.vectors`. The weights are checked only once."""
        focus_vectors = self.focus_vectors(clips, steps, actions)  # checks the weights if actions are cells
        read = self._read if self.action.num_cells is None else self._read_unchecked
        return read(1, clips, steps), focus_vectors

    def _read(self, which: int, clips: Indices, steps: Indices, *actions: Values) -> Tensor:
        """Return the requested features. If the glancer or the focuser has changed, the bank is emptied first."""
        if self._outdated():
            self._glanced[:] = self._focused[:] = False
        return self._read_unchecked(which, clips, steps, *actions)

    def _read_unchecked(self, which: int, clips: Indices, steps: Indices, *actions: Values) -> Tensor:
        """Return the requested features of the same weights, reading as many clips at a time as fit in the bank."""
        if self._slots.enough(clips):  # then, a tensor of cells is not copied to the host
            return self._pick(which, clips, steps, *actions)
        clips, *rest = np.broadcast_arrays(clips, steps, *map(to_array, actions))
        batch = np.unique(clips, return_inverse=True)[1].reshape(clips.shape) // self._capacity
        masks = [batch == number for number in range(batch.max() + 1)]
        values = [self._pick(which, clips[mask], *(other[mask] for other in rest)) for mask in masks]
        whole = values[0].new_empty((*clips.shape, *values[0].shape[1:]))
        for mask, read_values in zip(masks, values, strict=True):
            whole[torch.from_numpy(mask)] = read_values
        return whole

    def _glance_rows(self, clips: Indices, steps: Indices) -> Indices:
        """Compute the missing glances of the given steps. Return the indices of the rows in which the glances of these steps are stored."""
        slots = self._slots_of(clips)
        missing = ~self._glanced[slots]
        if missing.any():
            self.clips.prefetch(np.unique(np.broadcast_to(clips, missing.shape)[missing]))
            for clip, slot in _distinct(missing, clips, slots):
                for stored, values in zip(self._stored, self._live.glance(clip), strict=False):  # glances only
                    stored[slot * self.num_steps : (slot + 1) * self.num_steps] = self.layout.rounded(values)
                self._glanced[slot] = True
        return slots * self.num_steps + steps

    def _focus_rows(self, clips: Indices, steps: Indices, cells: Values) -> Values:
        """Compute missing focus vectors, always of all cells in a group of steps.

        Return the indices of the rows in which the focus vectors of the given cells are stored.
        """
        every = self.layout.focus_vectors[1]
        rows = self._slots_of(clips) * self.num_steps + steps
        missing = ~self._focused[rows]
        if missing.any():
            groups = self._live.groups
            requested = _distinct(missing, clips, rows - steps, steps // len(groups[0]))
            computed = self._live.cell_focus_vectors_of((clip, groups[number]) for clip, _, number in requested)
            announced = self._waiting if len(requested) >= MANY else None
            with announced.shown() if announced else nullcontext() as progress:
                for (_, first, number), focus_vectors in zip(requested, computed, strict=True):
                    stored = slice(first + groups[number].start, first + groups[number].stop)
                    self._stored[2][stored] = self.layout.rounded(focus_vectors)
                    self._focused[stored] = True
                    if progress is not None:
                        progress(int(np.count_nonzero(self._focused)))
        return rows * every + cells if isinstance(cells, np.ndarray) else to_device(rows * every, cells.device) + cells

    def _slots_of(self, clips: Indices) -> Indices:
        slots, renewed = self._slots.of(clips)
        if len(renewed):
            self._glanced[renewed] = False
            self._focused.reshape(self._capacity, -1)[renewed] = False
        return slots

    def _pick(self, which: int, clips: Indices, steps: Indices, *cells: Values) -> Tensor:
        rows = self._focus_rows(clips, steps, *cells) if cells else self._glance_rows(clips, steps)
        stored = self._stored[which].flatten(0, len(cells))
        index = to_device(rows.reshape(-1), stored.device) if isinstance(rows, np.ndarray) else rows.flatten()
        return stored.index_select(0, index).view(*rows.shape, *stored.shape[1:]).float()


class Slots:
    """This object assigns clips to the slots of a bank that has room for ``capacity`` clips.

    The most recently requested clips have slots.
    """

    def __init__(self, num_clips: int, capacity: int) -> None:
        self._all = capacity >= num_clips
        self._capacity, self._clock = capacity, 0
        self._slot: Indices = np.full(num_clips, -1)
        self._clip: Indices = np.full(capacity, -1)
        self._used: Indices = np.zeros(capacity, np.int64)

    def enough(self, clips: Indices) -> bool:
        """Return whether all ``clips`` fit in the bank at the same time."""
        return self._all or clips.size <= self._capacity or len(np.unique(clips)) <= self._capacity

    def of(self, clips: Indices) -> tuple[Indices, Indices]:
        """Return the slots of ``clips``, and those slots that were newly assigned and do not hold the features of their clip yet."""
        if self._all:
            return clips, np.zeros(0, np.int64)
        requested = np.unique(clips)
        cached = self._slot[requested] >= 0
        self._clock += 1
        self._used[self._slot[requested[cached]]] = self._clock
        taken, new = np.argsort(self._used, kind="stable")[: np.count_nonzero(~cached)], requested[~cached]
        evicted = self._clip[taken]
        self._slot[evicted[evicted >= 0]] = -1
        self._slot[new], self._clip[taken], self._used[taken] = taken, new, self._clock
        return self._slot[clips], taken


def _distinct(mask: NDArray[np.bool_], *numbers: Indices) -> list[list[int]]:
    """Return the distinct tuples of ``numbers`` at the positions where ``mask`` is true.

    All ``numbers`` are broadcast to the shape of the mask.
    """
    return np.unique([np.broadcast_to(array, mask.shape)[mask] for array in numbers], axis=1).T.tolist()


def check_bank(bank: Features, classifier: Classifier, clips: ClipSource, action: Action, video_div: int | None = None) -> Features:
    """Check that ``bank`` was made for this classifier, these clips, this patch geometry and this number of decisions, and return it.

    Raises:
        InputError: if the bank was made for another classifier, other clips, another patch geometry or another number of decisions. The
            message names the differences.
    """
    if differing := [
        name
        for name, ours, theirs in (
            ("classifier", _identity(classifier), _identity(bank.classifier)),
            ("clips", clips.fingerprint, bank.clips.fingerprint),
            ("patch geometry", geometry(action), geometry(bank.action)),
            ("video_div", count_steps(classifier, clips, video_div), bank.num_steps),
        )
        if ours != theirs
    ]:
        others = " and another ".join(differing)
        raise InputError(f"the bank belongs to another {others}; make a MemoryBank for this one, or pass bank=True")
    return bank


def geometry(action: Action) -> tuple[object, ...]:
    """Return all properties of a kind of action that determine its patches."""
    cells: object = None if action.num_cells is None else action.corners_of(action.candidates).tolist()
    return type(action).__name__, action.size, action.patch_size, action.grid if isinstance(action, GridAction) else cells


def size_text(num_bytes: float) -> str:
    """Format a size in a suitable unit."""
    power = min(3, max(0, int(math.log2(max(1, num_bytes)) // 10)))
    return f"{num_bytes / 2 ** (10 * power):.1f} {('bytes', 'KiB', 'MiB', 'GiB')[power]}"


def _identity(classifier: Classifier) -> tuple[object, ...]:
    """Return all properties of a classifier that determine its features: weights, normalisation, glance size, precision, and so on."""
    return classifier.fingerprint(), classifier.architecture, execution_of(optimized(classifier))


def _clips_in(max_bytes: int | None, layout: Layout, count: int) -> int:
    if max_bytes is None:
        return count
    refuse_if(
        max_bytes < layout.clip_bytes,
        f"bank_gib must be at least the size of one clip, {size_text(layout.clip_bytes)}, got {size_text(max_bytes)}; "
        "choose a larger bank_gib, or bank=false to compute them live",
    )
    return min(count, max_bytes // layout.clip_bytes)


def memory_of(device: torch.device) -> int:
    """Return the size in bytes of a device's memory. For a CPU, this is the memory of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_size(what: str, needed: int, available: int, where: str, advice: str) -> None:
    """Check that a bank fits into the available space. Called before anything is computed.

    Args:
        what: description of the bank for the error message.
        needed: size of the bank in bytes.
        available: available bytes.
        where: description of the available space for the error message.
        advice: advice for the message.

    Raises:
        RoomError: if the bank does not fit. The message states both sizes.
    """
    refuse_if(needed > available, RoomError(f"{what} must fit in {size_text(available)} ({where}), got {size_text(needed)}; {advice}"))
