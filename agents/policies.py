"""The paper's policy: recurrent over glances. By reference inside Stable-Baselines3, on glance maps everywhere else."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from adafocus_env.features import Features


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


class GlancesByReference(BaseFeaturesExtractor):
    """Reads glances in place: observations (clip, step) → the hidden state of a GRU over the glances up to that step.

    Observations do not depend on earlier actions, so the GRU may run over a whole clip at once: no recurrent state is kept
    between steps, and a rollout holds references of a few bytes. While weights and clips stay the same, as in the steps of
    a rollout, the GRU's output is computed once a clip.

    Args:
        observation_space: that of the observation `reference`.
        network: the sizes.
    """

    def __init__(self, observation_space: spaces.Box, network: PolicyNetwork) -> None:
        super().__init__(observation_space, network.hidden)
        self.network = network
        self.encoder = GlanceEncoder(network)
        self._source: Features | None = None
        self._kept: tuple[tuple[int, bytes], Tensor] | None = None

    def bind(self, source: Features) -> None:
        """Says where the glances are. Not an argument of the constructor: Stable-Baselines3 would save it with the policy."""
        self._source, self._kept = source, None

    def forward(self, references: Tensor) -> Tensor:
        """References (B, 2) as (clip, step) → hidden states (B, hidden)."""
        clip, step = references.long().cpu().numpy().T
        clips, inverse = np.unique(clip, return_inverse=True)
        return self._encoded(clips)[torch.from_numpy(inverse.ravel()), torch.from_numpy(step)]

    def _encoded(self, clips: np.ndarray) -> Tensor:
        if self._source is None:
            raise RuntimeError("the extractor does not know where the glances are: call bind(features) first")
        if torch.is_grad_enabled():
            self._kept = None  # an update follows, and fused optimisers change weights without a new version
            return self.encoder(self._maps(self._source, clips))
        key = (sum(parameter._version for parameter in self.parameters()), clips.tobytes())
        if self._kept is None or self._kept[0] != key:
            self._kept = key, self.encoder(self._maps(self._source, clips))
        return self._kept[1]

    @staticmethod
    def _maps(source: Features, clips: np.ndarray) -> Tensor:
        return source.maps(clips[:, None], np.arange(source.clips.num_frames)[None])


class GlancePolicy(nn.Module):
    """The same network on glance maps, without Stable-Baselines3: what `load_policy` gives.

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

    @classmethod
    def of(cls, policy: ActorCriticPolicy, grid: int, network: PolicyNetwork) -> GlancePolicy:
        """Copies the weights of a Stable-Baselines3 policy with `GlancesByReference`; frozen, in eval mode."""
        copied = cls(network, grid)
        for ours, theirs in copied.parts(policy):
            ours.load_state_dict(theirs.state_dict())
        return copied.to(policy.device).eval().requires_grad_(False)

    def write_to(self, policy: ActorCriticPolicy) -> None:
        """Copies the weights into a Stable-Baselines3 policy of the same sizes."""
        for ours, theirs in self.parts(policy):
            theirs.load_state_dict(ours.state_dict())

    def parts(self, policy: ActorCriticPolicy) -> list[tuple[nn.Module, nn.Module]]:
        """Our parts beside those of a Stable-Baselines3 policy that hold the same weights."""
        extractor = policy.features_extractor
        assert isinstance(extractor, GlancesByReference)
        return [(self.encoder, extractor.encoder), (self.actor, policy.action_net), (self.critic, policy.value_net)]

    def card(self) -> dict[str, object]:
        """What must be known to build it again."""
        return {**asdict(self.network), "grid": self.grid}
