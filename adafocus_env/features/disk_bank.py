"""The feature bank on disk: files of a few clips each, mapped into memory, filled ahead or when first asked for.

Below the folder that a user names, each bank has a folder of its own. Its name is made of everything that the features depend on, so
that a changed weight can never read a stale one, and several banks can share a place.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.action import Action
from adafocus_env.cache_dir import exclusive
from adafocus_env.clips.store import ClipSource
from adafocus_env.features.live import Indices, LiveFeatures
from adafocus_env.features.memory_bank import NETWORKS, Layout, RoomError, geometry, size_text
from adafocus_env.transfers import Values, to_array
from classifiers.atomic_files import removed, replacing, write_text
from classifiers.classifier import Classifier
from classifiers.errors import InputError
from classifiers.optimize import execution_of
from classifiers.weight_monitor import WeightMonitor

SHARD_SIZE = 8  # clips in a file; what is lost when a process that fills is killed
CARD = "card.json"  # says what the features were computed from
FORMAT = 3  # of the files; another number is another key, so that old files are left alone
_DIGEST = hashlib.sha256().digest_size
_BITS = {2: np.int16, 4: np.int32}  # NumPy knows no bfloat16: it only moves the bits
_log = logging.getLogger("adafocus_env")

Shard = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
"""Bits of the maps, vectors and focus vectors of a shard's clips, each (clips, *shape in the layout)."""


class DiskBank:
    """Keeps the glance and focus vectors of a clip store in files, those of 8 clips computed together when one is first asked for.

    A file (a shard) is there whole or not at all, whenever a process is killed; its checksum is verified when it is opened, and one
    that fails is computed anew, with a warning. Any number of processes may read and fill the same bank. Values depend on nobody who
    asks, as in `adafocus_env.features.memory_bank.MemoryBank`.

    Args:
        classifier: frozen; answers are on its device.
        clips: the clips, by number.
        action: what can be looked at.
        folder: where banks are kept; made if missing. Nothing in it is ever removed.
        video_div: see `adafocus_env.features.live.count_steps`.
        dtype: a name in `adafocus_env.features.memory_bank.DTYPES`, how numbers are stored. They are computed and answered as float32.

    Attributes:
        num_bytes: size of the whole bank.
        num_shards: files that it is made of.
        folder: that of this bank.

    Raises:
        InputError: the folder cannot be used, no such dtype, the classifier is in training mode, or classifier, clips and
            ``video_div`` do not fit together.
    """

    def __init__(
        self,
        classifier: Classifier,
        clips: ClipSource,
        action: Action,
        folder: Path | str,
        *,
        video_div: int | None = None,
        dtype: str = "float32",
    ) -> None:
        self._live = LiveFeatures(classifier, clips, action, video_div=video_div, capacity=1)
        self.classifier, self.clips, self.action = self._live.classifier, clips, action
        self.map_shape, self.num_steps = self._live.map_shape, self._live.num_steps
        self.layout = Layout.of(self._live, dtype)
        self.num_shards = -(-len(clips) // SHARD_SIZE)
        self.num_bytes = len(clips) * self.layout.clip_bytes + self.num_shards * _DIGEST
        self._root = Path(folder).expanduser()
        self._watch = WeightMonitor(classifier)
        self._open()

    @property
    def about(self) -> str:
        """Where features come from and what they take, for people."""
        missing = self.missing_bytes()
        there = f", {size_text(missing)} of them still to be computed" if missing else ", all computed"
        return f"bank: {len(self.clips)} clips in {self.folder}, {size_text(self.num_bytes)}{there}"

    def glance_maps(self, clips: Indices, steps: Indices) -> Tensor:
        """Glance maps (…, C, h, w) of those steps."""
        return self._read(0, clips, steps)

    def glance_vectors(self, clips: Indices, steps: Indices) -> Tensor:
        """Glance vectors (…, C) of those steps."""
        return self._read(1, clips, steps)

    def focus_vectors(self, clips: Indices, steps: Indices, actions: Values) -> Tensor:
        """Focus vectors (…, F) of the patches that ``actions`` pick in those steps."""
        if self.action.num_cells is None:
            return self._live.focus_vectors(clips, steps, actions)
        return self._read(2, clips, steps, to_array(actions))

    def num_clips(self, part: int = 0, parts: int = 1) -> int:
        """How many clips each ``parts``-th shard from number ``part`` on hold together."""
        return sum(len(self._clips_of(number)) for number in range(part, self.num_shards, parts))

    def missing_bytes(self, part: int = 0, parts: int = 1) -> int:
        """Size of the shards that are not there yet, among each ``parts``-th from number ``part`` on."""
        there = {path.name for path in self.folder.glob("*.bin")}
        missing = [number for number in range(part, self.num_shards, parts) if self._path(number).name not in there]
        return sum(len(self._clips_of(number)) * self.layout.clip_bytes + _DIGEST for number in missing)

    def fill(self, part: int = 0, parts: int = 1, progress: Callable[[int], None] | None = None) -> None:
        """Verifies the shards that are there and computes the others.

        Args:
            part: number of the first shard.
            parts: of so many shards, each ``parts``-th is this process's work: several machines may share it.
            progress: called with the number of clips that are done.

        Raises:
            InputError: the disk is full, or a video cannot be read.
        """
        done = 0
        for number in range(part, self.num_shards, parts):
            self._shard(number)
            done += len(self._clips_of(number))
            if progress is not None:
                progress(done)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_shards": {}}

    def _open(self) -> None:
        self.fingerprint = self.classifier.fingerprint(NETWORKS)
        content = {
            "format": [FORMAT, SHARD_SIZE], "dtype": str(self.layout.dtype), "steps": self.num_steps, "action": geometry(self.action),
            "clips": self.clips.fingerprint, "networks": self.fingerprint, "architecture": asdict(self.classifier.architecture),
            "precision": execution_of(self.classifier).precision,  # not the rest: a bank that one machine filled serves another
        }  # fmt: skip
        self._card = json.dumps(content, indent=2) + "\n"
        self.folder = self._root / hashlib.sha256(self._card.encode()).hexdigest()[:32]
        self._shards: dict[int, Shard] = {}

    def _read(self, which: int, clips: Indices, *others: Indices) -> Tensor:
        """Gathers rows of the maps, vectors or focus vectors, numbered by (clips, *others)."""
        if self._watch.changed() and self.classifier.fingerprint(NETWORKS) != self.fingerprint:
            self._open()
        index = np.broadcast_arrays(clips, *others)
        shape = self.layout.shapes[which][len(others) :]
        rows = np.empty((index[0].size, *shape), _BITS[self.layout.dtype.itemsize])
        for row, (clip, *place) in enumerate(zip(*(each.ravel().tolist() for each in index), strict=True)):
            at = (clip % SHARD_SIZE, *place)
            rows[row] = self._shard(clip // SHARD_SIZE)[which][at]
        values = torch.from_numpy(rows).view(self.layout.dtype).to(self.classifier.device).float()
        return values.view(*index[0].shape, *shape)

    def _shard(self, number: int) -> Shard:
        if number not in self._shards:
            shard = read_shard(self._path(number), self.layout, len(self._clips_of(number)))
            self._shards[number] = self._make(number) if shard is None else shard
        return self._shards[number]

    def _make(self, number: int) -> Shard:
        """Computes a shard, unless another process has just done so."""
        path, count = self._path(number), len(self._clips_of(number))
        check_folder(self.folder)
        if not (self.folder / CARD).exists():
            write_text(self.folder / CARD, self._card)
        with exclusive(path.with_suffix(".lock"), f"{path}"):
            shard = read_shard(path, self.layout, count)
            if shard is not None:
                return shard
            if path.exists():
                _log.warning("bank: %s is damaged (its checksum is wrong) and is computed anew", path)
            for leftover in self.folder.glob(f".{path.name}.*"):  # of a process that was killed; nobody else writes here now
                leftover.unlink()
            write_shard(path, [self.layout.rounded(values).cpu() for values in self._computed(self._clips_of(number))])
        if (shard := read_shard(path, self.layout, count)) is None:  # and it was written whole
            raise removed(path)
        return shard

    def _computed(self, clips: range) -> tuple[Tensor, Tensor, Tensor]:
        maps, vectors, focus_vectors = [], [], []
        for clip in clips:
            seen = self._live.glance(clip)
            maps.append(seen[0])
            vectors.append(seen[1])
            if self.action.num_cells is not None:
                focus_vectors.append(torch.cat(list(self._live.cell_focus_vectors_of((clip, steps) for steps in self._live.groups))))
        return torch.stack(maps), torch.stack(vectors), torch.stack(focus_vectors) if focus_vectors else torch.empty(0)

    def _clips_of(self, number: int) -> range:
        return range(number * SHARD_SIZE, min((number + 1) * SHARD_SIZE, len(self.clips)))

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.bin"


def write_shard(path: Path, arrays: Sequence[Tensor]) -> None:
    """Writes the numbers of ``arrays`` one after the other, and a checksum behind them; the file is there whole or not at all.

    Raises:
        InputError: the disk is full.
    """
    digest = hashlib.sha256()
    with replacing(path) as temporary, temporary.open("wb") as file:
        for array in arrays:
            data = array.contiguous().flatten().view(torch.uint8).numpy().data
            digest.update(data)
            file.write(data)
        file.write(digest.digest())


def read_shard(path: Path, layout: Layout, count: int) -> Shard | None:
    """The shard of ``count`` clips at ``path``, mapped into memory; None where it is missing or damaged."""
    size = count * layout.clip_bytes
    try:
        if path.stat().st_size != size + _DIGEST:
            return None
        # A private mapping: nothing that is done to it reaches the file. torch's mapping keeps no file open, numpy's does.
        data = torch.from_file(str(path), shared=False, size=size + _DIGEST, dtype=torch.uint8).numpy()
    except (OSError, RuntimeError):  # torch's, where the file was removed at this moment
        return None
    if hashlib.sha256(data[:size].data).digest() != data[size:].tobytes():
        return None
    bits = data[:size].view(_BITS[layout.dtype.itemsize])
    ends = np.cumsum([count * int(np.prod(shape)) for shape in layout.shapes])
    maps, vectors, focus_vectors = (
        part.reshape(count, *shape) for part, shape in zip(np.split(bits, ends[:-1]), layout.shapes, strict=True)
    )
    return maps, vectors, focus_vectors


def check_folder(folder: Path) -> None:
    """Makes ``folder`` if it is missing, and tries to write there.

    Raises:
        InputError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as problem:
        raise InputError(f"bank: cannot write to the folder {folder}: {problem.strerror or problem}; choose another one") from problem


def check_room(folder: Path, need: int, about: str) -> None:
    """Checks, before anything is computed, that there is room for ``need`` more bytes in ``folder``.

    Args:
        folder: where they shall be; it and those above it may be missing yet.
        need: bytes.
        about: what the bank is, for the message.

    Raises:
        RoomError: there is not (says the size needed and the size free).
    """
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if need > (free := shutil.disk_usage(there).free):
        raise RoomError(
            f"{about}: {size_text(need)} are needed and {size_text(free)} are free; free some space, choose another folder, store less "
            "(bank_dtype=float16 or bfloat16), or compute the features live (bank=false)"
        )
