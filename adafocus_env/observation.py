"""Observations of the environments, and their spaces.

| name | shape, dtype | content |
|---|---|---|
| `map` | (C, h, w) float32 | the glance map of the step's frame, or the stacked maps of its frames |
| `vector` | (C,) float32 | the pooled glance map |
| `dict` | see `DictObservation` | the glance map, and the effect of the agent's last patch |
| `reference` | (2,) int64 | indices of clip and step, for features extractors that read glances in place |
| `reference_looks` | (3,) int64 | clip, step, and the number of steps with a patch so far, for policies that skip frames |
| `pixels` | (3·g, h, w) uint8 | the step's g frames at the glancer's size, for agents that train a separate glancer |

A custom observation is a class with the members `space` and `observe`. The constructor of the class takes the features of the clips. Add
the class to `OBSERVATIONS`, or pass it to an environment as ``observation``.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from adafocus_env.dynamics import Dynamics
from adafocus_env.features.live import Features, LRUCache, by_step
from adafocus_env.transfers import Values, to_array, to_device
from classifiers.errors import refuse_if

MAX_CLIPS = 2**24  # Stable-Baselines3 casts references to float32, which represents integers exactly up to this value
PIXEL_BYTES = 2**28  # memory for cached glance frames

Observed = Tensor | dict[str, Tensor]


class Observation(Protocol):
    """A kind of observation. An observation is created with the features of the clips.

    Attributes:
        space: Space of one observation, a `Box` or a `Dict` of `Box` spaces.
    """

    space: spaces.Space[Any]

    def observe(self, dynamics: Dynamics) -> Observed:
        """Return the current observations (N, …) of all rows, on the networks' device.

        The environment must not modify the returned tensors later.

        Args:
            dynamics: Dynamics of N clips. This method must neither change the dynamics nor read the labels.
        """


class MapSpace(spaces.Box):
    """A `Box` of glance maps.

    Stable-Baselines3's `CnnPolicy` rejects this space because it is not an image. The error message of `CnnPolicy` contains this space's
    text, which tells the user what to do.
    """

    def __str__(self) -> str:
        return f"{self!r}, which holds glance maps: use MlpPolicy or MlpLstmPolicy, or a features extractor for maps of this size"


class MapObservation:
    """The observation `map`: glance maps."""

    def __init__(self, features: Features) -> None:
        self.space: spaces.Space[Any] = MapSpace(*features.classifier.glancer.map_bounds, features.map_shape, np.float32)

    def observe(self, dynamics: Dynamics) -> Tensor:
        """Return glance maps (N, C, h, w)."""
        return dynamics.features.glance_maps(dynamics.clip, dynamics.step_number)


class VectorObservation:
    """The observation `vector`: pooled glance maps."""

    def __init__(self, features: Features) -> None:
        glancer = features.classifier.glancer
        self.space: spaces.Space[Any] = spaces.Box(*glancer.map_bounds, (glancer.vector_size,), np.float32)

    def observe(self, dynamics: Dynamics) -> Tensor:
        """Return glance vectors (N, C)."""
        return dynamics.features.glance_vectors(dynamics.clip, dynamics.step_number)


class ReferenceObservation:
    """The observation `reference`: indices of clip and step.

    Raises:
        InputError: If there are more than `MAX_CLIPS` clips.
    """

    def __init__(self, features: Features) -> None:
        refuse_if(
            len(features.clips) > MAX_CLIPS,
            f"observation='reference' needs at most {MAX_CLIPS} clips, got {len(features.clips)}; use 'map' or 'vector'",
        )
        highest = np.array([len(features.clips) - 1, features.num_steps - 1])
        self.space: spaces.Space[Any] = spaces.Box(np.zeros(2, np.int64), highest, dtype=np.int64)

    def observe(self, dynamics: Dynamics) -> Tensor:
        """Return references (N, 2)."""
        return to_device(np.array([dynamics.clip, dynamics.step_number]).T, dynamics.state.device)


class ReferenceCountObservation(ReferenceObservation):
    """The observation `reference_looks`: indices of clip and step, and the number of steps with a patch so far."""

    def __init__(self, features: Features) -> None:
        super().__init__(features)
        assert isinstance(self.space, spaces.Box)
        self.space = spaces.Box(np.zeros(3, np.int64), np.append(self.space.high, features.num_steps), dtype=np.int64)

    def observe(self, dynamics: Dynamics) -> Tensor:
        """Return references (N, 3)."""
        num_patches = to_device(dynamics.num_patches[:, None], dynamics.state.device)
        return torch.cat([super().observe(dynamics), num_patches], dim=-1)


class DictObservation:
    """The observation `dict`: the glance map and the effects of earlier actions, all float32.

    | key | shape | content |
    |---|---|---|
    | `map` | (C, h, w) | as the observation `map` |
    | `step` | (1,) | the finished share of the episode's steps |
    | `patch` | (2,) | corner of the last step's patch as (row, column) in fractions of H − P |
    | `head` | (2,) | highest softmax score after the last step, and the entropy of the scores in fractions of ln K |
    | `state` | (S,) | the head's state |

    `patch` and `head` are zeros before the first step. `patch` is also zeros after a skipped step.
    """

    def __init__(self, features: Features) -> None:
        self._map = MapObservation(features)
        head = features.classifier.head
        low, high = head.state_bounds(features.num_steps) if hasattr(head, "state_bounds") else (-math.inf, math.inf)
        self.space: spaces.Space[Any] = spaces.Dict({
            "map": self._map.space,
            "step": spaces.Box(0, 1, (1,), np.float32),
            "patch": spaces.Box(0, 1, (2,), np.float32),
            "head": spaces.Box(0, 1, (2,), np.float32),
            "state": spaces.Box(low, high, (head.state_size,), np.float32),
        })  # fmt: skip

    def observe(self, dynamics: Dynamics) -> dict[str, Tensor]:
        """Return a dictionary with the keys of the table above. The values have shapes (N, …)."""
        started = _on(dynamics, ~(dynamics.running & (dynamics.step_number == 0))[:, None])
        corners = dynamics.boxes[:, :2] / max(1, dynamics.action.size - dynamics.action.patch_size)
        return {
            "map": self._map.observe(dynamics),
            "step": _on(dynamics, (dynamics.step_number + ~dynamics.running)[:, None] / dynamics.num_steps),
            "patch": _on(dynamics, corners) * started,
            "head": _certainty(dynamics.scores) * started,
            "state": dynamics.state.clone(),
        }


class PixelObservation:
    """The observation `pixels`: frames at the glancer's size, not normalised. The frames of the most recently used clips are cached."""

    def __init__(self, features: Features) -> None:
        side, settings = features.classifier.architecture.glance_size, features.clips.settings
        shape = (3 * settings.num_glance_frames // features.num_steps, side, side)
        self.space: spaces.Space[Any] = spaces.Box(0, 255, shape, np.uint8)
        self._cache: LRUCache[int, Tensor] = LRUCache(max(1, PIXEL_BYTES // (features.num_steps * math.prod(shape))))

    def observe(self, dynamics: Dynamics) -> Tensor:
        """Return frames (N, 3·g, h, w)."""
        features, rows = dynamics.features, zip(dynamics.clip.tolist(), dynamics.step_number.tolist(), strict=True)
        return torch.stack([self._cache.get(clip, partial(glance_frames, features, clip))[step] for clip, step in rows])


def glance_frames(features: Features, clip: int) -> Tensor:
    """Return the glancer's frames of all steps of a clip, resized to the glancer's input size, as (D, 3·g, h, w) uint8 on the networks'
    device."""
    frames = features.clips.glancer_frames(clip).to(features.classifier.device)
    small = features.classifier.to_glance_size(frames.float()).round().clamp(0, 255).to(torch.uint8)
    return by_step(small, features.num_steps).flatten(1, 2)


OBSERVATIONS: dict[str, Callable[[Features], Observation]] = {
    "map": MapObservation,
    "vector": VectorObservation,
    "dict": DictObservation,
    "reference": ReferenceObservation,
    "reference_looks": ReferenceCountObservation,
    "pixels": PixelObservation,
}
"""Kinds of observation by name. Each kind is called with the features of the clips."""


def to_numpy(observed: Observed) -> Any:
    """Convert a tensor, or a dictionary of tensors, to arrays."""
    return {key: to_array(values) for key, values in observed.items()} if isinstance(observed, dict) else to_array(observed)


def row_of(observed: Any, row: int) -> Any:
    """Return one row of ``observed``, which is an array, a tensor, or a dictionary of arrays or tensors."""
    return {key: values[row] for key, values in observed.items()} if isinstance(observed, dict) else observed[row]


def _on(dynamics: Dynamics, numbers: Values) -> Tensor:
    return numbers.float() if isinstance(numbers, Tensor) else to_device(numbers.astype(np.float32), dynamics.state.device)


def _certainty(scores: Tensor) -> Tensor:
    """Return two numbers for each row of softmax scores (N, K): the highest score, and the entropy in fractions of ln K.

    The result has the shape (N, 2).
    """
    entropy = torch.special.entr(scores).sum(-1) / math.log(scores.shape[-1])
    return torch.stack([scores.amax(-1), entropy.clamp(0, 1)], -1)
