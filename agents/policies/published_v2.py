"""The policy networks of AdaFocusV2 (arXiv:2112.14238), which flatten the glance map and apply tanh after every batch norm."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from agents.config.policy import NetworkConfig
from agents.policies.published import SkippingActor
from classifiers.heads import in_order_of_steps


@dataclass(frozen=True)
class PublishedV2Architecture:
    """Sizes of the policy network of AdaFocusV2. The defaults are those for ActivityNet, FCVID and Mini-Kinetics.

    The network for Something-Something and Jester has no memory and selects one location per video from 8 stacked glance maps. Its sizes
    are ``features=1024, hidden=512, memory=False``.

    Attributes:
        map_shape: (C, h, w) of a glance map.
        channels: output channels of the 1×1 convolution.
        features: length of a frame's encoding.
        hidden: length of the GRU's state. If ``memory`` is False, length of the second encoding, which replaces this state.
        memory: if False, a linear layer, batch norm and tanh replace the GRU, so that every decision sees only its own glances.
    """

    kind: ClassVar[str] = "published_v2"
    batch_norm: ClassVar[bool] = True

    map_shape: tuple[int, int, int]
    channels: int = 64
    features: int = 2048
    hidden: int = 2048
    memory: bool = True

    @classmethod
    def from_config(cls, map_shape: tuple[int, int, int], patch_share: float, config: NetworkConfig) -> "PublishedV2Architecture":
        """Return the architecture that the keys ``network.*`` describe."""
        return cls(map_shape, config.channels, config.features, config.hidden, config.memory)

    def encoder(self) -> "TanhEncoder":
        """Return a new encoder, which maps glance maps to the GRU's output or, if ``memory`` is False, to the second encoding."""
        return TanhEncoder(self)

    def actor(self, grid: int | None, skips: bool) -> nn.Linear:
        """Return a new actor, a linear layer."""
        outputs = 2 if grid is None else grid * grid
        return SkippingActor(self.hidden, outputs + 1) if skips else nn.Linear(self.hidden, outputs)

    def critic(self, skips: bool) -> nn.Linear:
        """Return a new critic, a linear layer. The published method has no critic, but reinforcement learning needs one."""
        return nn.Linear(self.hidden + skips, 1)


class TanhEncoder(nn.Module):
    """Encode glance maps.

    The layers are a 1×1 convolution, batch norm, tanh, a linear layer on the flattened map, batch norm, tanh, and a GRU over the decisions
    of a clip.

    Args:
        architecture: the sizes.
    """

    def __init__(self, architecture: PublishedV2Architecture) -> None:
        super().__init__()
        self.features_dim = architecture.hidden
        channels, height, width = architecture.map_shape
        sizes = [architecture.channels * height * width, architecture.features, *([] if architecture.memory else [architecture.hidden])]
        layers = [nn.Conv2d(channels, architecture.channels, 1, bias=False), nn.BatchNorm2d(architecture.channels), nn.Tanh(), nn.Flatten()]
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.Tanh()]
        self.frame = nn.Sequential(*layers)
        self.gru = nn.GRU(architecture.features, architecture.hidden, batch_first=True) if architecture.memory else None

    def forward(self, maps: Tensor) -> Tensor:
        """Return the hidden states (N, D, hidden) after every decision for glance maps (N, D, C, h, w)."""
        frames = self.frame(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])
        return frames if self.gru is None else self.gru(in_order_of_steps(frames))[0]

    def step(self, maps: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the next hidden state (N, hidden) twice: as the features and as the state.

        The arguments are the glance maps (N, C, h, w) and the last state, which is None before the first decision.
        """
        hidden = self.frame(maps)
        if self.gru is not None:
            hidden = self.gru(hidden[:, None], None if state is None else state[None].contiguous())[0][:, 0]
        return hidden, hidden
