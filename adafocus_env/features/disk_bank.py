"""The feature bank on disk. The bank has memory-mapped files of a few clips each, which are filled in advance or on the first request.

Every bank has a separate subfolder in the folder that the user has selected. The name of the subfolder is a hash of everything that the
features depend on. Therefore, features of changed weights are never read, and several banks can share a folder.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.action import Action
from adafocus_env.cache_dir import exclusive, make_writable
from adafocus_env.clips.store import ClipSource
from adafocus_env.features.live import Indices
from adafocus_env.features.memory_bank import Bank, Layout, check_size, geometry, size_text
from adafocus_env.transfers import Values, to_array
from classifiers.atomic_files import removed, replacing, write_text
from classifiers.classifier import Classifier
from classifiers.errors import InputError, count_of
from classifiers.optimize import execution_of

SHARD_SIZE = 8  # clips per file; a killed process loses at most one file
CARD = "card.json"  # describes from what the features were computed
FORMAT = 3  # part of the key, so that files of other formats are ignored
_DIGEST = hashlib.sha256().digest_size
_LATER = {"head_steps": 0, "resize": "antialias"}  # part of the key only if they are used, so that earlier banks stay valid
_BITS = {2: np.int16, 4: np.int32}  # NumPy has no bfloat16, so it only copies the bits
_log = logging.getLogger("adafocus_env")

Shard = tuple[NDArray[Any], ...]
"""The bits of a shard's glance maps, glance vectors and focus vectors. Each array has the shape (clips, *shape in the layout)."""


class DiskBank(Bank):
    """A bank that stores glances and focus vectors in files. The first request of a clip computes the features of the 8 clips in its file.

    A file (a shard) is either complete or missing, even if a process is killed. When a file is opened, its checksum is verified; a damaged
    file is computed again, with a warning. Any number of processes may read and fill the same bank. As in
    `adafocus_env.features.memory_bank.MemoryBank`, values do not depend on the order of requests.

    Args:
        classifier: the frozen classifier. Features are returned on the classifier's device.
        clips: the clips.
        action: the kind of action, which defines the patches.
        folder: folder that contains all banks. It is created if missing. Nothing in it is ever removed.
        video_div: see `adafocus_env.features.live.count_steps`.
        dtype: the stored number format, a name in `adafocus_env.features.memory_bank.DTYPES`. Values are computed and returned as float32.

    Attributes:
        num_bytes: size of the whole bank.
        num_shards: number of files.
        folder: location of this bank.

    Raises:
        InputError: if the folder cannot be used, if the dtype is unknown, if the classifier is in training mode, or if classifier, clips
            and ``video_div`` do not match.
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
        super().__init__(classifier, clips, action, video_div, dtype)
        self.num_shards = -(-len(clips) // SHARD_SIZE)
        self.num_bytes = len(clips) * self.layout.clip_bytes + self.num_shards * _DIGEST
        self._root = Path(folder).expanduser()
        self._open()

    @property
    def about(self) -> str:
        """Description of where the features are stored, and of their size."""
        missing = self.missing_bytes()
        state = f", {size_text(missing)} of them still to be computed" if missing else ", all computed"
        return f"bank: {count_of(len(self.clips), 'clip')} in {self.folder}, {size_text(self.num_bytes)}{state}"

    def num_clips(self, part: int = 0, parts: int = 1) -> int:
        """Return the number of clips in every ``parts``-th shard, starting with shard ``part``."""
        return sum(len(self._clips_of(number)) for number in range(part, self.num_shards, parts))

    def missing_bytes(self, part: int = 0, parts: int = 1) -> int:
        """Return the size in bytes of the missing shards among every ``parts``-th shard, starting with shard ``part``."""
        stored = set(self.folder.glob("*.bin"))
        missing = [number for number in range(part, self.num_shards, parts) if self._path(number) not in stored]
        return sum(len(self._clips_of(number)) * self.layout.clip_bytes + _DIGEST for number in missing)

    def fill(self, part: int = 0, parts: int = 1, progress: Callable[[int], None] | None = None) -> None:
        """Verify the existing shards and compute the missing shards.

        Args:
            part: index of the first shard to process.
            parts: distance between the indices of the processed shards. To share the work among several machines, set ``parts`` to the
                number of machines, and give every machine another ``part``, from 0 to ``parts`` − 1.
            progress: called with the number of finished clips.

        Raises:
            InputError: if the disk is full, or a video cannot be read.
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
        architecture = asdict(self.classifier.architecture)
        for field, unused in _LATER.items():
            if architecture[field] == unused:
                del architecture[field]
        content = {
            "format": [FORMAT, SHARD_SIZE], "dtype": str(self.layout.dtype), "steps": self.num_steps, "action": geometry(self.action),
            "clips": self.clips.fingerprint, "networks": self.fingerprint, "architecture": architecture,
            "precision": execution_of(self.classifier).precision,  # no other settings, so that a bank can be used on other machines
        }  # fmt: skip
        self._card = json.dumps(content, indent=2) + "\n"
        self.folder = self._root / hashlib.sha256(self._card.encode()).hexdigest()[:32]
        self._shards: dict[int, Shard] = {}

    def _read(self, which: int, clips: Indices, steps: Indices, *actions: Values) -> Tensor:
        """Return the glance maps if ``which`` is 0, glance vectors if 1, or focus vectors if 2, at the indices (clips, steps, *actions)."""
        if self._outdated():
            self._open()
        index = np.broadcast_arrays(clips, steps, *map(to_array, actions))
        shape = self.layout.shapes[which][1 + len(actions) :]
        rows = np.empty((index[0].size, *shape), _BITS[self.layout.dtype.itemsize])
        for row, (clip, *position) in enumerate(zip(*(numbers.ravel().tolist() for numbers in index), strict=True)):
            index_in_shard = (clip % SHARD_SIZE, *position)
            rows[row] = self._shard(clip // SHARD_SIZE)[which][index_in_shard]
        values = torch.from_numpy(rows).view(self.layout.dtype).to(self.classifier.device).float()
        return values.view(*index[0].shape, *shape)

    def _shard(self, number: int) -> Shard:
        if number not in self._shards:
            shard = read_shard(self._path(number), self.layout, len(self._clips_of(number)))
            self._shards[number] = self._make(number) if shard is None else shard
        return self._shards[number]

    def _make(self, number: int) -> Shard:
        """Compute and return a shard. If another process has just computed the shard, only read it."""
        path, count = self._path(number), len(self._clips_of(number))
        check_folder(self.folder)
        if not (self.folder / CARD).exists():
            write_text(self.folder / CARD, self._card)
        with exclusive(path.with_suffix(".lock"), f"{path}"):
            if (shard := read_shard(path, self.layout, count)) is not None:
                return shard
            if path.exists():
                _log.warning("bank: %s is damaged (its checksum is wrong) and is computed again", path)
            for leftover in self.folder.glob(f".{path.name}.*"):  # left by a killed process; the lock excludes other writing processes
                leftover.unlink()
            write_shard(path, [self.layout.rounded(values).cpu() for values in self._computed(self._clips_of(number))])
        if (shard := read_shard(path, self.layout, count)) is None:  # the file was just written
            raise removed(path)
        return shard

    def _computed(self, clips: range) -> tuple[Tensor, Tensor, Tensor]:
        maps, vectors = (torch.stack(values) for values in zip(*map(self._live.glance, clips), strict=True))
        if self.action.num_cells is None:
            return maps, vectors, torch.empty(0)
        groups = [(clip, steps) for clip in clips for steps in self._live.groups]
        return maps, vectors, torch.cat(list(self._live.cell_focus_vectors_of(groups))).unflatten(0, (len(clips), -1))

    def _clips_of(self, number: int) -> range:
        return range(number * SHARD_SIZE, min((number + 1) * SHARD_SIZE, len(self.clips)))

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.bin"


def write_shard(path: Path, arrays: Sequence[Tensor]) -> None:
    """Write ``arrays`` one after the other, followed by a checksum. The file is either complete or missing.

    Raises:
        InputError: if the disk is full.
    """
    digest = hashlib.sha256()
    with replacing(path) as temporary, temporary.open("wb") as file:
        for array in arrays:
            data = array.contiguous().flatten().view(torch.uint8).numpy().data
            digest.update(data)
            file.write(data)
        file.write(digest.digest())


def read_shard(path: Path, layout: Layout, count: int) -> Shard | None:
    """Return the shard of ``count`` clips at ``path``, mapped into memory; None if it is missing or damaged."""
    size = count * layout.clip_bytes
    try:
        if path.stat().st_size != size + _DIGEST:
            return None
        # The memory mapping is private: changes of the tensor are not written to the file.
        # Unlike NumPy's memmap, torch.from_file leaves no file open.
        data = torch.from_file(str(path), shared=False, size=size + _DIGEST, dtype=torch.uint8).numpy()
    except (OSError, RuntimeError):  # RuntimeError: the file was removed at this moment
        return None
    if hashlib.sha256(data[:size].data).digest() != data[size:].tobytes():
        return None
    bits = data[:size].view(_BITS[layout.dtype.itemsize])
    ends = np.cumsum([count * int(np.prod(shape)) for shape in layout.shapes])
    return tuple(part.reshape(count, *shape) for part, shape in zip(np.split(bits, ends[:-1]), layout.shapes, strict=True))


def check_folder(folder: Path) -> None:
    """Create ``folder`` if it is missing, and check that it can be written.

    Raises:
        InputError: if it cannot be created or written.
    """
    try:
        make_writable(folder)
    except OSError as problem:
        raise InputError(f"bank: cannot write to the folder {folder}: {problem.strerror or problem}; choose another one") from problem


def check_room(folder: Path, needed: int, about: str) -> None:
    """Check that ``needed`` more bytes fit on the disk of ``folder``; see `check_size`. The folder does not have to exist yet."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    check_size(
        about, needed, shutil.disk_usage(existing).free, "free on the disk",
        "free some space, choose another folder, store less (bank_dtype=float16 or bfloat16), or compute the features live (bank=false)",
    )  # fmt: skip
