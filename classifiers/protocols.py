"""The three networks of AdaFocus as protocols. Any class with the methods of a protocol can be used as the network."""

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

        With a temporal shift, every group of ``num_frames`` consecutive images is a clip.
        """

    def scores(self, vectors: Tensor) -> Tensor:
        """Return class scores (N, K) for pooled vectors (N, vector_size)."""


class Glancer(FrameNetwork, Protocol):
    """f_G, a cheap network that processes every frame. The policy reads the maps of this network, and the head reads its vectors.

    Attributes:
        map_bounds: Lowest and highest possible value of a map. A bound is infinite if the values are not limited.
    """

    map_bounds: tuple[float, float]


class Focuser(FrameNetwork, Protocol):
    """f_L, a larger network that processes one patch per frame. Only its vectors are used."""


class Head(Protocol):
    """f_C, which classifies after every step. The head does not store its state: the old state is an input, and the new state is an output.

    Two methods are optional. The method ``compare`` has the arguments and results of `classifiers.classifier.Classifier.compare`: it takes
    one step with each of several focus vectors. One call of ``compare`` is faster than one call for each focus vector. The method
    ``state_bounds(num_steps)`` returns the lowest and the highest value that a state can have in the first ``num_steps`` steps.

    Attributes:
        glance_part: Which part of a glance is an input of the head: the glance vector (length C), or the glancer's scores (length K).
        state_size: S, length of the state of one clip.
    """

    glance_part: Literal["vector", "scores"]
    state_size: int

    def __call__(self, features: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return scores (N, T, K) and the next state (N, S), given features and a state (N, S).

        The features have the shape (N, T, C + F) or (N, T, K + F); see ``glance_part``. If the state is None, the initial state is used.
        """
