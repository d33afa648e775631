"""The random states that belong to a process: PyTorch's, Python's and NumPy's, as plain values that need no unpickling."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """What PyTorch (all devices), Python and NumPy will draw next: dictionaries, lists, numbers and tensors."""
    version, numbers, gauss = random.getstate()
    numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002 (the source that Stable-Baselines3 draws from)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": {**numpy, "state": {**numpy["state"], "key": numpy["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Puts back what `random_states` told; states of GPUs that are not there are left out."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    for device, state in list(enumerate(states["cuda"]))[: torch.cuda.device_count()]:
        torch.cuda.set_rng_state(state, device)
