"""Flip single bits in checkpoints, and check that loading names the file or returns the same values."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from agents.policies.networks import load_policy
from agents.rl.model_state import State
from agents.rl.saved_model import read_pointer
from agents.supervised.checkpoint import EpochCheckpoint
from classifiers import checkpoint
from classifiers.classifier import hash_of
from classifiers.errors import InputError

FLIPS = 40  # per kind of file

Load = Callable[[Path], object]
"""A function that reads the checkpoint in a folder and returns a value that is equal for equal checkpoints."""


def _classifier(folder: Path) -> object:
    return checkpoint.load(folder).fingerprint()


def _policy(folder: Path) -> object:
    return hash_of(load_policy(folder).state_dict())


def _model(folder: Path) -> object:
    return _state_in(folder / "model.safetensors")


def _ppo(folder: Path) -> object:
    [file] = folder.glob("ppo-*.safetensors")
    return _state_in(file)


def _state_in(file: Path) -> object:
    state = State.read(file)
    return json.dumps(state.values, sort_keys=True), hash_of(state.tensors)


def _pointer(folder: Path) -> object:
    return read_pointer(folder)


def _stage(folder: Path) -> object:
    return repr(EpochCheckpoint(folder, lambda: 0)._loaded)


FILES: Mapping[str, tuple[str, str, str, Load]] = {
    "classifier.safetensors": ("train_stages", "classifier", "classifier.safetensors", _classifier),
    "policy.safetensors": ("train_ppo", "best", "policy.safetensors", _policy),
    "model.safetensors": ("train algo=dqn", "best", "model.safetensors", _model),
    "the state of PPO": ("train_ppo", ".", "ppo-*.safetensors", _ppo),
    "last.json": ("train_ppo", ".", "last.json", _pointer),
    "the state of a stage": ("train_stages", "stage1/last", "*.pt", _stage),
}
"""The files by name: the command that writes them, their folder below `checkpoints`, their pattern, and how they are read."""


def flip_bits(run: Path, what: str) -> str:
    """Flip `FLIPS` random bits of a file, one at a time.

    Args:
        run: The folder of a finished run of the command that writes the file.
        what: A name in `FILES`.

    Returns:
        A description of the flips that went unnoticed, or an empty string.
    """
    _, name, pattern, load = FILES[what]
    faults = []
    with TemporaryDirectory() as temporary:
        copy = Path(shutil.copytree(run / "checkpoints" / name, Path(temporary, "copy")))
        file, expected = sorted(copy.glob(pattern))[-1], load(copy)
        content = file.read_bytes()
        for position in np.random.default_rng(0).integers(len(content) * 8, size=FLIPS).tolist():
            file.write_bytes(_flipped(content, position))
            fault = _noticed(load, copy, file, expected)
            faults += [f"bit {position}: {fault}"] if fault else []
    return "; ".join(faults)


def _flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _noticed(load: Load, folder: Path, file: Path, expected: Any) -> str:
    """Return what is wrong with loading a damaged checkpoint, or an empty string."""
    try:
        return "" if load(folder) == expected else "other values without an error"
    except InputError as problem:
        return "" if file.name in str(problem) else f"the message does not name {file.name}: {problem}"
    except BaseException as problem:  # pyo3 raises a subclass of it
        return f"{problem!r} in place of a named error"
