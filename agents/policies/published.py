"""The published policy network (paper, section 3.4), which flattens the glance map. `agents.policies.networks` lists all kinds."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from agents.config.policy import NetworkConfig
from agents.policies.spatial import skip_output
from classifiers.heads import in_order_of_steps


@dataclass(frozen=True)
class PolicyArchitecture:
    """Sizes of the published network, which flattens the glance map. The defaults are those of the paper.

    Attributes:
        map_shape: (C, h, w) of a glance map.
        channels: output channels of the 1×1 convolution.
        features: length of a frame's encoding.
        hidden: length of the GRU's state.
        batch_norm: whether batch norm follows the convolution and the linear layer, as in the paper for Something-Something.
        memory: False resets the GRU after every decision, so that the policy sees only the current glance. This is meant for ablations.
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
    """Encode glance maps (paper, section 3.4).

    The layers are a 1×1 convolution, a ReLU, a linear layer on the flattened map, a ReLU, and a GRU over the decisions of a clip. With
    ``batch_norm``, a batch norm precedes each of the two ReLUs, as in the released policy for Something-Something.

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
        """Return the GRU's next output (N, hidden) twice: as the features, and as the state.

        The arguments are the glance maps (N, C, h, w) and the last state, which is None before the first decision.
        """
        before = None if state is None or not self.memory else state[None].contiguous()
        hidden = self.gru(self.frame(maps)[:, None], before)[0][:, 0]
        return hidden, hidden


class SkippingActor(nn.Linear):
    """A linear layer that computes the outputs for the cells or the location and, as the last output, the output for skipping the frame.

    The value of an additional patch depends on the number n of patches so far. The output for skipping is therefore
    a + b · [n > 0] + c · ln(1 + n), and a linear layer computes a, b and c. The outputs for the cells or the location do not depend on n.

    Args:
        hidden: length of the GRU's output.
        outputs: G² + 1 on a grid, 3 for continuous locations.
    """

    def __init__(self, hidden: int, outputs: int) -> None:
        super().__init__(hidden, outputs + 2)

    def forward(self, states: Tensor) -> Tensor:
        """Return the outputs (…, G² + 1) or (…, 3). The input (…, hidden + 1) is the GRU's output, followed by n."""
        return self._with_skip(states[..., -1], super().forward(states[..., :-1]))

    def for_all_counts(self, states: Tensor) -> Tensor:
        """For the GRU's output (N, D, hidden), return the outputs (N, D, D, …).

        The third axis is the number of patches so far, from 0 to D − 1.
        """
        return self._with_skip(torch.arange(states.shape[1]).to(states), super().forward(states)[:, :, None])

    def _with_skip(self, num_patches: Tensor, outputs: Tensor) -> Tensor:
        locations, (b, c, a) = outputs[..., :-3], outputs[..., -3:].unbind(-1)
        skip = skip_output(a, b, c, num_patches)
        return torch.cat([locations.expand(*skip.shape[:-1], -1), skip], dim=-1)
