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
        """Return feature maps (N, C, h, w) and pooled vectors (N, vector_size) for normalised images (N, 3, H, W).

        With a temporal shift, each ``num_frames`` consecutive images form a clip.
        """

    def scores(self, vectors: Tensor) -> Tensor:
        """Return class scores (N, K) for pooled vectors (N, vector_size)."""


class Glancer(FrameNetwork, Protocol):
    """f_G, a cheap network for every frame. The policy reads its maps, and the head reads its vectors.

    Attributes:
        map_bounds: Lowest and highest possible value of a map; infinite if the network has no bound.
    """

    map_bounds: tuple[float, float]


class Focuser(FrameNetwork, Protocol):
    """f_L, a larger network for one patch per frame. Only its vectors are used."""


class Head(Protocol):
    """f_C, which classifies after every step. The state is explicit: one tensor is an input, one tensor an output.

    Two methods are optional. ``compare``, like `classifiers.classifier.Classifier.compare`, takes one step with each of several focus
    vectors, which is faster than one by one. ``state_bounds(num_steps)`` returns the lowest and the highest value of a state up to that
    step.

    Attributes:
        glance_part: The input from a glance: its vector (length C), or the glancer's scores (K).
        state_size: S, length of the state of one clip.
    """

    glance_part: Literal["vector", "scores"]
    state_size: int

    def __call__(self, features: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return scores (N, T, K) and the next state (N, S), given features (N, T, C + F or K + F) and a state (N, S) (None: initial)."""
