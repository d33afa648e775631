"""Make a run deterministic, and read and restore the random states of PyTorch, Python and NumPy."""

import os
import random
from typing import Any

import numpy as np
import torch


def make_deterministic() -> None:
    """Make PyTorch use a deterministic algorithm for every operation that has one."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first matrix product on a GPU
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a bank is large and filled anyway


def random_states() -> dict[str, Any]:
    """Return the random states of PyTorch (all devices), Python and NumPy as dictionaries, lists, numbers and tensors."""
    version, numbers, gauss = random.getstate()
    numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002 (the source that Stable-Baselines3 samples from)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": {**numpy, "state": {**numpy["state"], "key": numpy["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Restore the states that `random_states` returned. States of missing GPUs are ignored."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    for device, state in list(enumerate(states["cuda"]))[: torch.cuda.device_count()]:
        torch.cuda.set_rng_state(state, device)
