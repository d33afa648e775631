"""The three networks of AdaFocus, as shapes. Anything that has these methods will do; no base class is needed."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor


class FrameNetwork(Protocol):
    """A backbone that is also a classifier of single frames (stage 0 trains it as one).

    Attributes:
        map_channels: C, channels of the feature map.
        vector_size: length of the pooled vector.
    """

    map_channels: int
    vector_size: int

    def __call__(self, images: Tensor, num_frames: int = 1) -> tuple[Tensor, Tensor]:
        """Normalised images (N, 3, H, W) → feature maps (N, C, h, w) and pooled vectors (N, vector_size).

        Where images are mixed in time, ``num_frames`` consecutive ones belong together.
        """
        ...

    def scores(self, vectors: Tensor) -> Tensor:
        """Pooled vectors (N, vector_size) → class scores (N, K)."""
        ...


class Glancer(FrameNetwork, Protocol):
    """f_G: looks at every frame cheaply. Its maps are what the policy sees, its vectors what the head sees.

    Attributes:
        map_bounds: lowest and highest value that a map can hold, infinite where the network sets no bound.
    """

    map_bounds: tuple[float, float]


class Focuser(FrameNetwork, Protocol):
    """f_L: looks closely at one patch a frame; only its vectors are used."""


class Head(Protocol):
    """f_C: classifies after every step. The state is explicit: one tensor in, one tensor out.

    It may have a method ``compare``, like `classifiers.classifier.Classifier.compare`, that takes one step with each of several focus
    vectors faster than one by one, and a method ``state_bounds(num_steps)``: the lowest and the highest number that a state can hold
    after so many steps, or before.

    Attributes:
        glance_part: what it gets of a glance: its vector (length C), or the scores (K) that the glancer gives it.
        state_size: S, length of the state of one clip.
    """

    glance_part: Literal["vector", "scores"]
    state_size: int

    def __call__(self, features: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features (N, T, C + F or K + F) and the state (N, S) before them (None: the start) → scores (N, T, K), state (N, S)."""
        ...
