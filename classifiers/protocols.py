"""The three networks of AdaFocus as protocols: any class with these methods can be used."""

from typing import Literal, Protocol

from torch import Tensor


class FrameNetwork(Protocol):
    """A backbone with a frame classifier, which stage 0 trains.

    Attributes:
        map_channels: C, channels of the feature map.
        vector_size: Length of the pooled vector.
    """

    map_channels: int
    vector_size: int

    def __call__(self, images: Tensor, num_frames: int = 1) -> tuple[Tensor, Tensor]:
        """Normalised images (N, 3, H, W) → feature maps (N, C, h, w) and pooled vectors (N, vector_size).

        With a temporal shift, ``num_frames`` consecutive images form a clip.
        """

    def scores(self, vectors: Tensor) -> Tensor:
        """Pooled vectors (N, vector_size) → class scores (N, K)."""


class Glancer(FrameNetwork, Protocol):
    """f_G: a cheap network for every frame. The policy reads its maps, the head its vectors.

    Attributes:
        map_bounds: Lowest and highest value of a map, infinite where the network sets no bound.
    """

    map_bounds: tuple[float, float]


class Focuser(FrameNetwork, Protocol):
    """f_L: a larger network for one patch per frame; only its vectors are used."""


class Head(Protocol):
    """f_C: classifies after every step. The state is explicit: one tensor in, one tensor out.

    Optional methods: ``compare``, like `classifiers.classifier.Classifier.compare`, takes one step with each of several focus vectors
    faster than one by one; ``state_bounds(num_steps)`` returns the lowest and the highest value of a state up to that step.

    Attributes:
        glance_part: Its input from a glance: the vector (length C), or the glancer's scores (K).
        state_size: S, length of the state of one clip.
    """

    glance_part: Literal["vector", "scores"]
    state_size: int

    def __call__(self, features: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features (N, T, C + F or K + F) and the previous state (N, S) (None: the initial one) → scores (N, T, K), state (N, S)."""
