"""The published policy network (paper, section 3.4), which flattens the glance map; see `agents.policies.networks` for all kinds."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from agents.config.policy import NetworkConfig
from agents.policies.spatial import skip_output
from classifiers.heads import in_order_of_steps


@dataclass(frozen=True)
class PolicyArchitecture:
    """Sizes of the published network, which flattens the glance map; the defaults are the paper's.

    Attributes:
        map_shape: (C, h, w) of a glance map.
        channels: output channels of the 1×1 convolution.
        features: length of a frame's encoding.
        hidden: length of the GRU's state.
        batch_norm: normalise after the convolution and after the linear layer, as the paper does on Something-Something.
        memory: False: reset the GRU after every decision, so that the policy sees only the current glance; for ablations.
    """

    kind: ClassVar[str] = "published"

    map_shape: tuple[int, int, int]
    channels: int = 32
    features: int = 1024
    hidden: int = 1024
    batch_norm: bool = False
    memory: bool = True

    @classmethod
    def from_config(cls, map_shape: tuple[int, int, int], patch_share: float, config: NetworkConfig) -> "PolicyArchitecture":
        """Return the architecture that the keys ``network.*`` describe."""
        return cls(map_shape, config.channels, config.features, config.hidden, config.batch_norm, config.memory)

    def encoder(self) -> "RecurrentEncoder":
        """Return a new encoder, which maps glance maps to the GRU's output."""
        return RecurrentEncoder(self)

    def actor(self, grid: int | None, skips: bool) -> nn.Linear:
        """Return a new actor, a linear layer."""
        outputs = 2 if grid is None else grid * grid
        return SkippingActor(self.hidden, outputs + 1) if skips else nn.Linear(self.hidden, outputs)

    def critic(self, skips: bool) -> nn.Linear:
        """Return a new critic, a linear layer."""
        return nn.Linear(self.hidden + skips, 1)


class RecurrentEncoder(nn.Module):
    """Encode glance maps: 1×1 convolution, ReLU, flatten, linear, ReLU, GRU over the decisions of a clip (paper, section 3.4).

    With ``batch_norm``, a batch norm precedes each of the two ReLUs, as in the released policy for Something-Something.

    Args:
        architecture: the sizes.
    """

    def __init__(self, architecture: PolicyArchitecture) -> None:
        super().__init__()
        self.memory, self.features_dim = architecture.memory, architecture.hidden
        channels, height, width = architecture.map_shape
        self.frame = nn.Sequential(
            nn.Conv2d(channels, architecture.channels, 1, bias=False),
            *([nn.BatchNorm2d(architecture.channels)] if architecture.batch_norm else []),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(architecture.channels * height * width, architecture.features),
            *([nn.BatchNorm1d(architecture.features)] if architecture.batch_norm else []),
            nn.ReLU(),
        )
        self.gru = nn.GRU(architecture.features, architecture.hidden, batch_first=True)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the GRU's output (N, D, hidden) after every decision for glance maps (N, D, C, h, w)."""
        frames = self.frame(maps.flatten(0, 1))
        if not self.memory:  # treat the decisions as N · D sequences of length 1
            return self.gru(frames.unsqueeze(1))[0].squeeze(1).unflatten(0, maps.shape[:2])
        return self.gru(in_order_of_steps(frames.unflatten(0, maps.shape[:2])))[0]

    def step(self, maps: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the GRU's next output (N, hidden) as features and as state, given glance maps (N, C, h, w) and the last state or None."""
        before = None if state is None or not self.memory else state[None].contiguous()
        hidden = self.gru(self.frame(maps)[:, None], before)[0][:, 0]
        return hidden, hidden


class SkippingActor(nn.Linear):
    """A linear layer for the cells or the location; the last output is for skipping the frame.

    The value of another patch depends on the number n of patches so far. The output for skipping is therefore
    a + b · [n > 0] + c · ln(1 + n), where the layer computes a, b and c. The location does not depend on n.

    Args:
        hidden: length of the GRU's output.
        outputs: G² + 1 on a grid, 3 for continuous locations.
    """

    def __init__(self, hidden: int, outputs: int) -> None:
        super().__init__(hidden, outputs + 2)

    def forward(self, states: Tensor) -> Tensor:
        """Return the outputs (…, G² + 1) or (…, 3) for the GRU's output followed by n (…, hidden + 1)."""
        return self._with_skip(states[..., -1], super().forward(states[..., :-1]))

    def for_all_counts(self, states: Tensor) -> Tensor:
        """Return the outputs (N, D, D, …) after 0, 1, … D − 1 patches for the GRU's output (N, D, hidden)."""
        return self._with_skip(torch.arange(states.shape[1]).to(states), super().forward(states)[:, :, None])

    def _with_skip(self, num_patches: Tensor, outputs: Tensor) -> Tensor:
        locations, (b, c, a) = outputs[..., :-3], outputs[..., -3:].unbind(-1)
        skip = skip_output(a, b, c, num_patches)
        return torch.cat([locations.expand(*skip.shape[:-1], -1), skip], dim=-1)
