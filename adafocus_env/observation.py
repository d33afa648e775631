"""What an agent sees, and the space of it.

| name | shape, dtype | content |
|---|---|---|
| `map` | (C, h, w) float32 | the glance map of the frame, or those of the decision's frames, stacked |
| `vector` | (C,) float32 | the pooled glance map |
| `dict` | see `DictObservation` | the glance map, and what the agent's last patch did |
| `reference` | (2,) int64 | which clip, which step: for features extractors that read the glances in place |
| `reference_looks` | (3,) int64 | the same, and how many steps of the episode have looked: for policies that skip frames |
| `pixels` | (3·g, h, w) uint8 | the decision's g frames as the glancer gets them: for agents that learn a glancer of their own |

A further one is a class with `space` and `observe`, made from the features of the clips: an entry of `OBSERVATIONS`, or the argument
``observation`` of an environment.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from adafocus_env.dynamics import Dynamics
from adafocus_env.features.live import Features, LRUCache, by_step
from adafocus_env.transfers import Values, to_array, to_device
from classifiers.errors import InputError, lookup

MAX_CLIPS = 2**24  # Stable-Baselines3 casts references to float32, which holds whole numbers exactly up to here
PIXEL_BYTES = 2**28  # of the glance frames that are kept

Observed = Tensor | dict[str, Tensor]


class Observation(Protocol):
    """One kind of observation, made for the clips of some features.

    Attributes:
        space: of one observation, a `Box` or a `Dict` of them.
    """

    space: spaces.Space[Any]

    def observe(self, dynamics: Dynamics) -> Observed:
        """The observations (N, …) of all rows now, on the networks' device; nothing in them is written to afterwards.

        Args:
            dynamics: of N clips, each at a step of its own. It must not be changed, and labels are not to be read.
        """
        ...


class MapObservation:
    """Glance maps; see the top of this file."""

    def __init__(self, features: Features) -> None:
        low, high = features.classifier.glancer.map_bounds
        self.space: spaces.Space[Any] = spaces.Box(low, high, features.map_shape, np.float32)

    def observe(self, dynamics: Dynamics) -> Tensor:
        """Maps (N, C, h, w)."""
        return dynamics.features.glance_maps(dynamics.clip, dynamics.step_number)


class VectorObservation:
    """Pooled glance maps; see the top of this file."""

    def __init__(self, features: Features) -> None:
        low, high = features.classifier.glancer.map_bounds
        self.space: spaces.Space[Any] = spaces.Box(low, high, (features.classifier.glancer.vector_size,), np.float32)

    def observe(self, dynamics: Dynamics) -> Tensor:
        """Vectors (N, C)."""
        return dynamics.features.glance_vectors(dynamics.clip, dynamics.step_number)


class ReferenceObservation:
    """Clip and step.

    Raises:
        InputError: there are more clips than references can tell apart.
    """

    def __init__(self, features: Features) -> None:
        if len(features.clips) > MAX_CLIPS:
            raise InputError(f"observation='reference' can tell {MAX_CLIPS} clips apart, not {len(features.clips)}; use 'map' or 'vector'")
        highest = np.array([len(features.clips) - 1, features.num_steps - 1])
        self.space: spaces.Space[Any] = spaces.Box(np.zeros(2, np.int64), highest, dtype=np.int64)

    def observe(self, dynamics: Dynamics) -> Tensor:
        """References (N, 2)."""
        return to_device(np.stack([dynamics.clip, dynamics.step_number], axis=-1), dynamics.state.device)


class ReferenceLooksObservation(ReferenceObservation):
    """Clip, step, and the number of steps that have looked at a patch."""

    def __init__(self, features: Features) -> None:
        super().__init__(features)
        assert isinstance(self.space, spaces.Box)
        self.space = spaces.Box(np.zeros(3, np.int64), np.append(self.space.high, features.num_steps), dtype=np.int64)

    def observe(self, dynamics: Dynamics) -> Tensor:
        """References (N, 3)."""
        num_patches = to_device(dynamics.num_patches, dynamics.state.device)
        return torch.cat([super().observe(dynamics), num_patches[:, None]], dim=-1)


class DictObservation:
    """The glance map and the agent's own traces, all float32.

    | key | shape | content |
    |---|---|---|
    | `map` | (C, h, w) | as the observation `map` |
    | `step` | (1,) | the share of the episode that is done |
    | `patch` | (2,) | the last step's patch: (row, column) of its corner in shares of H − P |
    | `head` | (2,) | of the scores after the last step: the highest probability, and their entropy in shares of ln K |
    | `state` | (S,) | the head's state |

    `patch` and `head` are zeros before the first step, `patch` also where the last step looked at none.
    """

    def __init__(self, features: Features) -> None:
        self._map = MapObservation(features)
        head = features.classifier.head
        bounds = getattr(head, "state_bounds", None)
        low, high = bounds(features.num_steps) if bounds else (-math.inf, math.inf)
        self.space: spaces.Space[Any] = spaces.Dict({
            "map": self._map.space,
            "step": spaces.Box(0, 1, (1,), np.float32),
            "patch": spaces.Box(0, 1, (2,), np.float32),
            "head": spaces.Box(0, 1, (2,), np.float32),
            "state": spaces.Box(low, high, (head.state_size,), np.float32),
        })  # fmt: skip

    def observe(self, dynamics: Dynamics) -> dict[str, Tensor]:
        """The same keys, of (N, …)."""
        going_on = _on(dynamics, ~(dynamics.running & (dynamics.step_number == 0))[:, None])
        done = (dynamics.step_number + ~dynamics.running)[:, None] / dynamics.num_steps
        places = dynamics.boxes[:, :2] / max(1, dynamics.action.size - dynamics.action.patch_size)
        return {
            "map": self._map.observe(dynamics),
            "step": _on(dynamics, done),
            "patch": _on(dynamics, places) * going_on,
            "head": _certainty(dynamics.scores) * going_on,
            "state": dynamics.state.clone(),
        }


class PixelObservation:
    """Glance frames as the glancer gets them, before they are normalised; those of the clips last used are kept."""

    def __init__(self, features: Features) -> None:
        side, settings = features.classifier.architecture.glance_size, features.clips.settings
        shape = (3 * settings.num_glance_frames // features.num_steps, side, side)
        self.space: spaces.Space[Any] = spaces.Box(0, 255, shape, np.uint8)
        self._kept: LRUCache[int, Tensor] = LRUCache(max(1, PIXEL_BYTES // (features.num_steps * math.prod(shape))))

    def observe(self, dynamics: Dynamics) -> Tensor:
        """Frames (N, 3·g, h, w)."""
        rows = zip(dynamics.clip.tolist(), dynamics.step_number.tolist(), strict=True)
        return torch.stack([self._of(dynamics.features, clip)[step] for clip, step in rows])

    def _of(self, features: Features, clip: int) -> Tensor:
        return self._kept.get(clip, lambda: glance_frames(features, clip))


def glance_frames(features: Features, clip: int) -> Tensor:
    """The glancer's frames of all steps of a clip, at its size: (D, 3·g, h, w) uint8 on the networks' device."""
    frames = features.clips.glancer_frames(clip).to(features.classifier.device)
    small = features.classifier.to_glance_size(frames.float()).round().clamp(0, 255).to(torch.uint8)
    return by_step(small, features.num_steps).flatten(1, 2)


OBSERVATIONS: dict[str, Callable[[Features], Observation]] = {
    "map": MapObservation,
    "vector": VectorObservation,
    "dict": DictObservation,
    "reference": ReferenceObservation,
    "reference_looks": ReferenceLooksObservation,
    "pixels": PixelObservation,
}
"""Features of the clips → the kind of observation of that name."""


def find_observation(observation: str | Callable[[Features], Observation]) -> Callable[[Features], Observation]:
    """The kind of observation of that name; one that is given as a class is returned.

    Raises:
        InputError: no such name (suggests the nearest).
    """
    return observation if callable(observation) else lookup("observation", observation, OBSERVATIONS)


def to_numpy(observed: Observed) -> Any:
    """Tensors → arrays, in dictionaries too."""
    return {key: to_array(each) for key, each in observed.items()} if isinstance(observed, dict) else to_array(observed)


def row_of(observed: Any, row: int) -> Any:
    """One row of observations, whether arrays or tensors, in dictionaries too."""
    return {key: each[row] for key, each in observed.items()} if isinstance(observed, dict) else observed[row]


def _on(dynamics: Dynamics, numbers: Values) -> Tensor:
    return numbers.float() if isinstance(numbers, Tensor) else to_device(numbers.astype(np.float32), dynamics.state.device)


def _certainty(scores: Tensor) -> Tensor:
    """Softmax scores (N, K) → highest score, and entropy in shares of the largest there is, (N, 2)."""
    entropy = torch.special.entr(scores).sum(-1) / math.log(scores.shape[-1])
    return torch.stack([scores.amax(-1), entropy.clamp(0, 1)], -1)
