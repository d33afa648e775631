"""The policy networks of AdaFocusV2 (arXiv 2112.14238): the glance map is flattened, and tanh follows every batch norm."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from agents.config.policy import NetworkConfig
from agents.policies.published import SkippingActor
from classifiers.heads import in_order_of_steps


@dataclass(frozen=True)
class PublishedV2Architecture:
    """Sizes of the policy network of AdaFocusV2; the defaults are those on ActivityNet, FCVID and Mini-Kinetics.

    On Something-Something and Jester it has no memory: ``features=1024, hidden=512, memory=False``, on 8 glance maps, stacked, for the one
    location of a video.

    Attributes:
        map_shape: (C, h, w) of a glance map.
        channels: output channels of the 1×1 convolution.
        features: length of a frame's encoding.
        hidden: length of the GRU's state; without memory, of a second encoding.
        memory: False: a linear layer, batch norm and tanh in place of the GRU, so that every decision sees its glances alone.
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
        """Return a new encoder: glance maps → the GRU's output, or the second encoding."""
        return TanhEncoder(self)

    def actor(self, grid: int | None, skips: bool) -> nn.Linear:
        """Return a new actor, a linear layer."""
        outputs = 2 if grid is None else grid * grid
        return SkippingActor(self.hidden, outputs + 1) if skips else nn.Linear(self.hidden, outputs)

    def critic(self, skips: bool) -> nn.Linear:
        """Return a new critic, a linear layer, which the published method does not have: reinforcement learning needs one."""
        return nn.Linear(self.hidden + skips, 1)


class TanhEncoder(nn.Module):
    """Glance maps → hidden states: 1×1 convolution, batch norm, tanh, flatten, linear, batch norm, tanh, GRU over the decisions of a clip.

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
        """Glance maps (N, D, C, h, w) → hidden states after every decision (N, D, hidden)."""
        frames = self.frame(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])
        return frames if self.gru is None else self.gru(in_order_of_steps(frames))[0]

    def step(self, maps: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Glance maps of the next decision (N, C, h, w), the hidden state before it (N, hidden) or None → the one after it, twice."""
        hidden = self.frame(maps)
        if self.gru is not None:
            hidden = self.gru(hidden[:, None], None if state is None else state[None].contiguous())[0][:, 0]
        return hidden, hidden
