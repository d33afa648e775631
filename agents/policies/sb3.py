"""The paper's policy: recurrent over glances. By reference inside Stable-Baselines3, on glance maps everywhere else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from adafocus_env.features.live import Features
from adafocus_env.transfers import to_device
from agents.policies import batch_norm
from agents.policies.networks import GlanceActorCritic, GlanceEncoder, PolicyArchitecture, SkippingActor, check_std
from classifiers.errors import InputError

__all__ = ["ClipPolicy", "ClipReferenceExtractor", "GlanceEncoder", "GlancePolicy", "PolicyArchitecture", "extractor_of", "kind_of"]


class ByReference(BaseFeaturesExtractor):
    """Reads glances in place: of the observation `reference` comes what was seen there, and buffers hold a few bytes a step.

    Args:
        observation_space: that of the observation `reference`.
        features_dim: length of what comes out of the glances.
    """

    def __init__(self, observation_space: spaces.Space, features_dim: int) -> None:
        super().__init__(observation_space, features_dim)
        self._place = _Place()

    @property
    def source(self) -> Features | None:
        """Where the glances are; None: nobody has said it yet."""
        return self._place.source

    def bind(self, source: Features | None) -> None:
        """Says where the glances are. Not an argument of the constructor: Stable-Baselines3 would save it with the policy."""
        self._place = _Place(source)

    def maps(self, clips: np.ndarray, steps: np.ndarray) -> Tensor:
        """Glance maps (…, C, h, w) of those steps.

        Raises:
            RuntimeError: nobody has said where the glances are.
        """
        if self.source is None:
            raise RuntimeError("the extractor does not know where the glances are: call bind(features) first")
        return self.source.glance_maps(clips, steps)


class _Place:
    """Holds the source of the glances, such that copies of a policy share it: it may be gigabytes large."""

    def __init__(self, source: Features | None = None) -> None:
        self.source = source

    def __deepcopy__(self, memo: object) -> _Place:
        return self


def bind(policy: nn.Module, source: Features, *, remember: bool) -> None:
    """Says to everything in ``policy`` that reads glances where they are, and whether its weights stay as they are; see `cache_outputs`."""
    for module in policy.modules():
        if isinstance(module, ByReference):
            module.bind(source)
    cache_outputs(policy, remember)


class MapReferenceExtractor(ByReference):
    """The glance map of the step (C, h, w), flattened: for policies that bring their own network.

    Args:
        observation_space: that of the observation `reference`.
        map_shape: (C, h, w) of a glance map.
    """

    def __init__(self, observation_space: spaces.Space, map_shape: tuple[int, int, int]) -> None:
        super().__init__(observation_space, math.prod(map_shape))

    def forward(self, references: Tensor) -> Tensor:
        """References (B, 2) as (clip, step) → maps (B, C·h·w)."""
        return self.maps(*references[:, :2].long().cpu().numpy().T).flatten(1)


class GlanceReferenceExtractor(ByReference):
    """The glance of the step alone, encoded as `ClipReferenceExtractor` does before its GRU: for policies without memory or with their own.

    Args:
        observation_space: that of the observation `reference`.
        network: the sizes.
    """

    def __init__(self, observation_space: spaces.Space, network: PolicyArchitecture) -> None:
        super().__init__(observation_space, network.features)
        self.frame = GlanceEncoder(network).frame

    def forward(self, references: Tensor) -> Tensor:
        """References (B, 2) as (clip, step) → encodings (B, features)."""
        return self.frame(self.maps(*references[:, :2].long().cpu().numpy().T))


class ClipReferenceExtractor(ByReference):
    """Reads glances in place: observations (clip, step) → the hidden state of a GRU over the glances up to that step.

    Glances do not depend on earlier actions, so the GRU may run over a whole clip at once: no recurrent state is kept
    between steps, and a rollout holds references of a few bytes. Of the observation `reference_looks` the number of looks, which does,
    follows behind the hidden state. While weights and clips stay the same, as in the steps of
    a rollout, the GRU's output is computed once a clip.

    Batch norm, where the network has it, does the same in a rollout and in the update that learns from it, so that the first
    ratio of new to old probability is 1. It uses the running statistics, which take in the glances of the clips that are about to
    be played, once after every update. With ``batch_statistics`` it uses those of the batch instead, as the released code
    does, and the running ones take in every batch that is learned from. Evaluation always uses the running statistics.

    Args:
        observation_space: that of the observation `reference`, or of `reference_looks`.
        network: the sizes.
        batch_statistics: what batch norm normalises with while the policy collects and learns.
        remember: keep the output for the clips that were seen last, where no gradient is asked for. PPO may always do so. Where target
            networks are moved behind PyTorch's back, `cache_outputs` says when it is safe.
    """

    def __init__(
        self, observation_space: spaces.Box, network: PolicyArchitecture, batch_statistics: bool = False, remember: bool = True
    ) -> None:
        super().__init__(observation_space, network.hidden + tells_looks(observation_space))
        self.network, self.batch_statistics, self.remember = network, batch_statistics, remember
        self.encoder = GlanceEncoder(network)
        self._kept: tuple[tuple[int, bytes, bool], Tensor] | None = None
        self._collecting = False
        self._outdated = network.batch_norm and not batch_statistics  # the running statistics, since the weights last changed

    def bind(self, source: Features | None) -> None:
        """Says where the glances are."""
        super().bind(source)
        self._kept = None

    def train(self, mode: bool = True) -> ClipReferenceExtractor:
        """Sets the mode; batch norm is in training mode only if it is to use the statistics of the batch."""
        super().train(mode)
        for norm in batch_norm.norms(self):
            norm.train(mode and self.batch_statistics)
        return self

    @contextmanager
    def rollout_mode(self) -> Iterator[None]:
        """Within it, the policy plays to learn from it: hidden states are those that the next update will see."""
        self._collecting = True
        try:
            yield
        finally:
            self._collecting = False

    def forward(self, references: Tensor) -> Tensor:
        """References (B, 2) as (clip, step) → hidden states (B, hidden); or (B, 3), with looks → (B, hidden + 1)."""
        clip, step = references[:, :2].long().cpu().numpy().T
        clips, inverse = np.unique(clip, return_inverse=True)
        states = self._encoded(clips)
        states = states[to_device(inverse.ravel(), states.device), to_device(step, states.device)]
        return torch.cat([states, references[:, 2:].to(states)], dim=1) if tells_looks(self._observation_space) else states

    def _encoded(self, clips: np.ndarray) -> Tensor:
        if torch.is_grad_enabled() or not self.remember:
            self._kept = None  # an update follows, and fused optimisers change weights without a new version
            self._outdated = self.network.batch_norm and not self.batch_statistics
            return self.encoder(self._clip_maps(clips))
        key = (sum(parameter._version for parameter in self.parameters()), clips.tobytes(), self._collecting)
        if self._kept is None or self._kept[0] != key:
            maps = self._clip_maps(clips)
            self._kept = key, self._collected(maps) if self._collecting else self.encoder(maps)
        return self._kept[1]

    def _collected(self, maps: Tensor) -> Tensor:
        if self.batch_statistics:
            with batch_norm.batch_statistics(self.encoder):
                return self.encoder(maps)
        if self._outdated:
            batch_norm.update_running_stats(self.encoder.frame, maps.flatten(0, 1))
            self._outdated = False
        return self.encoder(maps)

    def _clip_maps(self, clips: np.ndarray) -> Tensor:
        steps = 0 if self.source is None else self.source.num_steps
        return self.maps(clips[:, None], np.arange(steps)[None])


def tells_looks(space: spaces.Space) -> bool:
    """Whether observations are those of `reference_looks`, not of `reference`."""
    return space.shape == (3,)


def cache_outputs(policy: nn.Module, remember: bool) -> None:
    """Lets the recurrent extractors in ``policy`` keep their output: while its weights stay as they are, as in a rollout."""
    for module in policy.modules():
        if isinstance(module, ClipReferenceExtractor):
            module.remember = remember


class PlacesFromSigmoid(ActorCriticPolicy):
    """Where places are continuous, the middle of the Gaussian is the sigmoid of the actor's output: it never leaves the range."""

    def _get_action_dist_from_latent(self, latent_pi: Tensor, *args: Any) -> Distribution:
        if not isinstance(self.action_dist, DiagGaussianDistribution):
            return super()._get_action_dist_from_latent(latent_pi, *args)
        return self.action_dist.proba_distribution(self.action_net(latent_pi).sigmoid(), self.log_std)


class ClipPolicy(PlacesFromSigmoid):
    """The paper's policy as Stable-Baselines3's actor and critic: `ClipReferenceExtractor`, and a linear layer for either.

    On a grid it draws a cell from the softmax. Where places are continuous it draws from a Gaussian around the sigmoid of the actor's
    output, whose standard deviation is fixed. To skip is one logit more, which begins at ln G², or a third coordinate, which begins in
    the middle: half of the steps skip at first. With the observation `reference_looks` that output is `SkippingActor`'s.
    Log-probabilities are those of the place drawn: Stable-Baselines3 moves to the edge of the range only what it sends to the
    environment. (The released code tells the log-probability of the moved place.)

    Args:
        observation_space: that of the observation `reference`, or of `reference_looks` where actions skip.
        action_space: of the environment, cells or places.
        lr_schedule: of Stable-Baselines3.
        std: standard deviation of the Gaussian in each axis, in units of the range of places.
        learn_std: begin with it and learn it, which the paper does not.
        kwargs: those of `ActorCriticPolicy`, without an architecture.

    Raises:
        InputError: the action space is no `AdaFocusEnv`'s, or ``std`` is not positive.
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        std: float = 0.25,
        learn_std: bool = False,
        **kwargs: Any,
    ) -> None:
        grid, skips = kind_of(action_space)
        super().__init__(observation_space, action_space, lr_schedule, net_arch=[], log_std_init=math.log(check_std(std)), **kwargs)
        self.grid, self.skips, self.std, self.learn_std = grid, skips, std, learn_std
        if grid is not None and skips:
            nn.init.constant_(self.action_net.bias[-1:], math.log(grid * grid))  # type: ignore[index, arg-type]
        if grid is None and not learn_std:
            self.log_std.requires_grad_(False)

    def _build(self, lr_schedule: Schedule) -> None:
        """Stable-Baselines3's way to make the networks and the optimiser."""
        super()._build(lr_schedule)
        if not tells_looks(self.observation_space) or not kind_of(self.action_space)[1]:
            return
        simple = self.action_net
        assert isinstance(simple, nn.Linear)
        self.action_net = SkippingActor(simple.in_features - 1, simple.out_features).to(simple.weight.device)
        if self.ortho_init:
            self.init_weights(self.action_net, gain=0.01)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """What Stable-Baselines3 calls in a rollout: actions, values and log-probabilities."""
        extractor = self.features_extractor
        with extractor.rollout_mode() if isinstance(extractor, ClipReferenceExtractor) else nullcontext():
            return super().forward(obs, deterministic)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        fixed = ("net_arch", "log_std_init")
        given = super()._get_constructor_parameters().items()
        return {"std": self.std, "learn_std": self.learn_std, **{key: value for key, value in given if key not in fixed}}


def extractor_of(policy: ActorCriticPolicy) -> ClipReferenceExtractor:
    """The features extractor of a `ClipPolicy`, by its type."""
    assert isinstance(policy.features_extractor, ClipReferenceExtractor)
    return policy.features_extractor


def kind_of(space: spaces.Space) -> tuple[int | None, bool]:
    """G of an action space (None: the places are continuous), and whether it has an action that skips.

    There is no doubt which it is: G² + 1 is no square. The spaces are those of `adafocus_env.action.ACTIONS`.

    Raises:
        InputError: it is none of them.
    """
    if isinstance(space, spaces.Discrete) and space.start == 0:
        for skips in (False, True):
            if space.n > 1 and math.isqrt(cells := int(space.n) - skips) ** 2 == cells:
                return math.isqrt(cells), skips
    if isinstance(space, spaces.Box) and space.shape in ((2,), (3,)) and (space.low == 0).all() and (space.high == 1).all():
        return None, space.shape == (3,)
    raise InputError(
        f"the action space is {space}; a policy needs Discrete(G²), the cells of a grid, or Box(0, 1, (2,)), places; "
        "with skipping, Discrete(G² + 1) or Box(0, 1, (3,))"
    )


class GlancePolicy(GlanceActorCritic):
    """The same network on glance maps, without Stable-Baselines3: what `load_policy` gives.

    Args:
        network: the sizes.
        grid: G, cells in each axis; None: a continuous policy.
        std: of a continuous policy.
        skips: whether it may look at no patch of a frame.
        keep_threshold: P(skip) from which on it skips.
    """

    @classmethod
    def of(cls, policy: ActorCriticPolicy) -> GlancePolicy:
        """Copies the weights of a `ClipPolicy`; frozen, in eval mode.

        Raises:
            InputError: it skips, and does not know how many looks there were.
        """
        assert isinstance(policy, ClipPolicy)
        if policy.skips and not tells_looks(policy.observation_space):
            raise InputError("a policy that skips was trained without the number of looks: make its environment with 'reference_looks'")
        copied = cls(extractor_of(policy).network, policy.grid, policy.std, skips=policy.skips)
        for ours, theirs in copied.parts(policy):
            ours.load_state_dict(theirs.state_dict())
        return copied.to(policy.device).eval().requires_grad_(False)

    def write_to(self, policy: ActorCriticPolicy) -> None:
        """Copies the weights into a `ClipPolicy` of the same sizes.

        Raises:
            InputError: it is for other actions.
        """
        grid, skips = kind_of(policy.action_space)
        if grid != self.grid:
            raise InputError(f"the policy to start from has grid={self.grid}, the environment grid={grid} (None: continuous places)")
        if skips != self.skips:
            told = {True: "skips frames", False: "cannot skip"}
            raise InputError(f"the policy to start from {told[self.skips]}, the environment's {told[skips]}; set env.action accordingly")
        for mine, other in self.parts(policy):
            other.load_state_dict(mine.state_dict())

    def parts(self, policy: ActorCriticPolicy) -> list[tuple[nn.Module, nn.Module]]:
        """Our parts beside those of a `ClipPolicy` that hold the same weights."""
        return [(self.encoder, extractor_of(policy).encoder), (self.actor, policy.action_net), (self.critic, policy.value_net)]

