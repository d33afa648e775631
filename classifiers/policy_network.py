"""The policy's network as plain PyTorch, and its files. How it learns, and what it is to an RL library, is `agents`' business."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from classifiers.checkpoint import save_tensors
from classifiers.files import write_text

WEIGHTS = "policy.safetensors"
CARD = "policy.json"


@dataclass(frozen=True)
class PolicyNetwork:
    """Sizes of the policy network; the defaults are the paper's.

    Attributes:
        map_shape: (C, h, w) of a glance map.
        channels: of the 1×1 convolution.
        features: length of a frame's encoding.
        hidden: length of the GRU's state.
    """

    map_shape: tuple[int, int, int]
    channels: int = 32
    features: int = 1024
    hidden: int = 1024


class GlanceEncoder(nn.Module):
    """conv 1×1, ReLU, flatten, linear, ReLU, GRU over the frames of a clip (paper, section 3.4).

    Args:
        network: the sizes.
    """

    def __init__(self, network: PolicyNetwork) -> None:
        super().__init__()
        channels, height, width = network.map_shape
        self.frame = nn.Sequential(
            nn.Conv2d(channels, network.channels, 1, bias=False),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(network.channels * height * width, network.features),
            nn.ReLU(),
        )
        self.gru = nn.GRU(network.features, network.hidden, batch_first=True)

    def forward(self, maps: Tensor) -> Tensor:
        """Glance maps (N, T, C, h, w) → the GRU's output after every frame (N, T, hidden)."""
        return self.gru(self.frame(maps.flatten(0, 1)).unflatten(0, maps.shape[:2]))[0]


class GlanceActorCritic(nn.Module):
    """Encoder, actor and critic: glance maps → logits of the cells, and the value.

    Args:
        network: the sizes.
        grid: G, cells in each axis.
    """

    def __init__(self, network: PolicyNetwork, grid: int) -> None:
        super().__init__()
        self.network, self.grid = network, grid
        self.encoder = GlanceEncoder(network)
        self.actor = nn.Linear(network.hidden, grid * grid)
        self.critic = nn.Linear(network.hidden, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Glance maps (N, T, C, h, w) → logits (N, T, G²) of the cells."""
        return self.actor(self.encoder(maps))

    @torch.no_grad()
    def act(self, maps: Tensor) -> Tensor:
        """Glance maps (N, T, C, h, w) → the most likely cells (N, T) int64."""
        return self(maps).argmax(-1)

    def card(self) -> dict[str, object]:
        """What must be known to build it again."""
        return {**asdict(self.network), "grid": self.grid}


def save_policy(policy: GlanceActorCritic, folder: Path | str, about: Mapping[str, Any]) -> None:
    """Writes weights and card, each in one step.

    Args:
        policy: what to save.
        folder: where; made if missing.
        about: what else the card shall say, such as the fingerprint of the classifier that it was trained with.

    Raises:
        InputError: the folder cannot be written.
    """
    folder = Path(folder)
    save_tensors(policy, folder / WEIGHTS)
    write_text(folder / CARD, json.dumps({"network": policy.card(), **about}, indent=2) + "\n")
