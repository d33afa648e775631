"""What an agent sees of a glance, and the space of it.

| name | shape, dtype | content |
|---|---|---|
| `map` | (C, h, w) float32 | the glance map of the frame, or those of the decision's frames, stacked |
| `vector` | (C,) float32 | the pooled glance map |
| `reference` | (2,) int64 | which clip, which step: for features extractors that read the glances in place |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from adafocus_env.features import Features, Indices
from classifiers.errors import InputError

MAX_CLIPS = 2**24  # Stable-Baselines3 casts references to float32, which holds whole numbers exactly up to here


@dataclass(frozen=True)
class Observation:
    """One kind of observation.

    Attributes:
        space: features → the space of one observation.
        observe: (features, clips (N,), steps (N,)) → observations (N, …) as a tensor.
    """

    space: Callable[[Features], spaces.Box]
    observe: Callable[[Features, Indices, Indices], Tensor]


def _map_space(features: Features) -> spaces.Box:
    low, high = features.classifier.glancer.map_bounds
    return spaces.Box(low, high, features.map_shape, np.float32)


def _vector_space(features: Features) -> spaces.Box:
    low, high = features.classifier.glancer.map_bounds
    return spaces.Box(low, high, (features.classifier.glancer.vector_size,), np.float32)


def _reference_space(features: Features) -> spaces.Box:
    if len(features.clips) > MAX_CLIPS:
        raise InputError(f"observation='reference' can tell {MAX_CLIPS} clips apart, not {len(features.clips)}; use 'map' or 'vector'")
    return spaces.Box(np.zeros(2, np.int64), np.array([len(features.clips) - 1, features.num_steps - 1]), dtype=np.int64)


OBSERVATIONS: dict[str, Observation] = {
    "map": Observation(_map_space, lambda features, clips, steps: features.maps(clips, steps)),
    "vector": Observation(_vector_space, lambda features, clips, steps: features.vectors(clips, steps)),
    "reference": Observation(_reference_space, lambda features, clips, steps: torch.from_numpy(np.stack([clips, steps], axis=-1))),
}
