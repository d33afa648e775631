"""The paper's policy: recurrent over glances. By reference inside Stable-Baselines3, on glance maps everywhere else."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from adafocus_env.features import Features
from classifiers.policy_network import GlanceActorCritic, GlanceEncoder, PolicyNetwork

__all__ = ["GlanceEncoder", "GlancePolicy", "GlancesByReference", "PolicyNetwork"]


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


class GlancePolicy(GlanceActorCritic):
    """The same network on glance maps, without Stable-Baselines3: what `load_policy` gives.

    Args:
        network: the sizes.
        grid: G, cells in each axis.
    """

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
