"""`PolicyNetwork` inside Stable-Baselines3: features extractors for observations by reference, and the actor-critic policy.

The observation `reference` is a pair (clip, step). `ReferenceExtractor` and its subclasses read the glance maps of the observed step in
place. `PatchActorCriticPolicy` wraps the network as an `ActorCriticPolicy`. `to_network` and `load_network` copy weights between this
policy and a `PolicyNetwork`.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from adafocus_env.features.live import Features
from adafocus_env.transfers import to_device
from agents.policies.networks import NetworkArchitecture, PolicyArchitecture, PolicyNetwork, check_std, make_actor
from agents.policies.published import RecurrentEncoder
from classifiers.errors import InputError, refuse_if


class ReferenceExtractor(BaseFeaturesExtractor):
    """Base class of the extractors that read glance maps in place, so that buffers store only a few bytes per step.

    Args:
        observation_space: space of the observation `reference` or `reference_looks`.
        features_dim: length of the features.
        encoder: module that maps glance maps (B, C, h, w) to features (B, features_dim).
    """

    def __init__(self, observation_space: spaces.Space, features_dim: int, encoder: nn.Module) -> None:
        super().__init__(observation_space, features_dim)
        self.encoder = encoder
        self.bind(None)

    @property
    def source(self) -> Features | None:
        """The features of the clips; None before `bind` is called."""
        return self._source()

    def bind(self, source: Features | None) -> None:
        """Set the features of the clips. Features are not an argument of the constructor, because Stable-Baselines3 would save them."""
        self._source: Callable[[], Features | None] = lambda: source  # deepcopy does not copy functions; features may be gigabytes

    def maps(self, clips: np.ndarray, steps: np.ndarray) -> Tensor:
        """Return the glance maps (…, C, h, w) of the given steps.

        Raises:
            RuntimeError: if no features are bound.
        """
        if self.source is None:
            raise RuntimeError("the extractor has no glances to read: call bind(features) first")
        return self.source.glance_maps(clips, steps)

    def forward(self, references: Tensor) -> Tensor:
        """Return the features (B, features_dim) for references (B, 2), which are pairs (clip, step)."""
        return self.encoder(self.maps(*references[:, :2].long().cpu().numpy().T))


def bind(policy: nn.Module, source: Features, *, cache: bool) -> None:
    """Bind all extractors in ``policy`` to features of clips, and set whether the extractors cache outputs; see `cache_outputs`."""
    for module in policy.modules():
        if isinstance(module, ReferenceExtractor):
            module.bind(source)
    cache_outputs(policy, cache)


class MapReferenceExtractor(ReferenceExtractor):
    """Return the flattened glance map (C, h, w) of the step, for policies that define their own network.

    Args:
        observation_space: space of the observation `reference`.
        map_shape: (C, h, w) of a glance map.
    """

    def __init__(self, observation_space: spaces.Space, map_shape: tuple[int, int, int]) -> None:
        super().__init__(observation_space, math.prod(map_shape), nn.Flatten())


class FrameReferenceExtractor(ReferenceExtractor):
    """Encode the current glance map with the layers of `RecurrentEncoder` before its GRU.

    This extractor is meant for policies that have another memory or no memory.

    Args:
        observation_space: space of the observation `reference`.
        architecture: the sizes.
    """

    def __init__(self, observation_space: spaces.Space, architecture: PolicyArchitecture) -> None:
        super().__init__(observation_space, architecture.features, RecurrentEncoder(architecture).frame)


class ClipReferenceExtractor(ReferenceExtractor):
    """Encode the glance maps up to the current step with the encoder of a policy network.

    Glances do not depend on earlier actions. The GRU therefore runs over a whole clip at once, and no recurrent state is passed from step
    to step. The number of patches so far, however, depends on earlier actions. With the observation `reference_looks`, this number is
    appended to the features. While weights and clips stay the same, as in a rollout, the output is computed once per clip.

    Batch norm uses the same statistics in a rollout and in the update that follows. Therefore, the ratio of new to old probabilities is 1
    at the start of the update. By default, batch norm uses the running statistics, which are updated once after every PPO update, with the
    glances of the next rollout. If ``batch_statistics`` is True, batch norm uses the statistics of the batch, as the released code does,
    and every batch of a PPO update changes the running statistics. Evaluation always uses the running statistics.

    Args:
        observation_space: space of the observation `reference` or `reference_looks`.
        architecture: the sizes.
        batch_statistics: whether batch norm normalises with the statistics of the batch in rollouts and updates.
    """

    def __init__(self, observation_space: spaces.Box, architecture: NetworkArchitecture, batch_statistics: bool = False) -> None:
        encoder = architecture.encoder()
        features_dim = cast(int, encoder.features_dim) + observes_patch_count(observation_space)
        super().__init__(observation_space, features_dim, encoder)
        self.architecture, self.batch_statistics, self.caches = architecture, batch_statistics, True
        self._in_rollout = False
        self._stale_statistics = architecture.batch_norm and not batch_statistics  # weights changed after the last update of the statistics

    def bind(self, source: Features | None) -> None:
        """Set the features of the clips."""
        super().bind(source)
        self._cached: tuple[tuple[int, bytes, bool], Tensor] | None = None

    def train(self, mode: bool = True) -> "ClipReferenceExtractor":
        """Set training or eval mode. Batch norm is in training mode only if it uses the statistics of the batch."""
        super().train(mode)
        for norm in batch_norms(self):
            norm.train(mode and self.batch_statistics)
        return self

    @contextmanager
    def rollout_mode(self) -> Iterator[None]:
        """Return a context manager that makes the outputs equal those that the next update will compute."""
        self._in_rollout = True
        try:
            yield
        finally:
            self._in_rollout = False

    def forward(self, references: Tensor) -> Tensor:
        """Return features (B, F) for references (B, 2). References (B, 3) include the patch count, and give features (B, F + 1)."""
        clip, step = references[:, :2].long().cpu().numpy().T
        clips, inverse = np.unique(clip, return_inverse=True)
        states = self._encoded(clips)
        states = states[to_device(inverse.ravel(), states.device), to_device(step, states.device)]
        counts = observes_patch_count(self._observation_space)
        return torch.cat([states, references[:, 2:].to(states)], dim=1) if counts else states

    def _encoded(self, clips: np.ndarray) -> Tensor:
        if torch.is_grad_enabled() or not self.caches:
            self._cached = None  # fused optimisers change weights without increasing `_version`
            self._stale_statistics = self.architecture.batch_norm and not self.batch_statistics
            return self.encoder(self._clip_maps(clips))
        key = (sum(parameter._version for parameter in self.parameters()), clips.tobytes(), self._in_rollout)
        if self._cached is None or self._cached[0] != key:
            maps = self._clip_maps(clips)
            self._cached = key, self._encoded_in_rollout(maps) if self._in_rollout else self.encoder(maps)
        return self._cached[1]

    def _encoded_in_rollout(self, maps: Any) -> Tensor:
        if self.batch_statistics:
            with batch_statistics(self.encoder):
                return self.encoder(maps)
        if self._stale_statistics:
            update_running_stats(cast(nn.Module, self.encoder.frame), maps.flatten(0, 1))
            self._stale_statistics = False
        return self.encoder(maps)

    def _clip_maps(self, clips: np.ndarray) -> Tensor | list[Tensor]:
        if self.source is not None and getattr(self.encoder, "clip_by_clip", False):
            return self.source.clip_maps(clips)
        return self.maps(clips[:, None], np.arange(0 if self.source is None else self.source.num_steps)[None])


def cache_outputs(policy: nn.Module, enabled: bool) -> None:
    """Set whether the recurrent extractors in ``policy`` cache outputs that need no gradient.

    Caching is safe while the weights stay the same, as in a rollout. With PPO, it is always safe. Target networks must not cache outputs.
    Stable-Baselines3 updates target networks through ``data``, which does not increase the version counter of their weights.
    """
    for module in policy.modules():
        if isinstance(module, ClipReferenceExtractor):
            module.caches = enabled


class SigmoidMeanPolicy(ActorCriticPolicy):
    """An `ActorCriticPolicy` for continuous locations. The mean of the policy's Gaussian is the sigmoid of the actor's output."""

    def _get_action_dist_from_latent(self, latent_pi: Tensor, *args: Any) -> Distribution:
        if not isinstance(self.action_dist, DiagGaussianDistribution):
            return super()._get_action_dist_from_latent(latent_pi, *args)
        return self.action_dist.proba_distribution(self.action_net(latent_pi).sigmoid(), self.log_std)


class PatchActorCriticPolicy(SigmoidMeanPolicy):
    """`PolicyNetwork` as an `ActorCriticPolicy`. The actor and the critic of the network follow a `ClipReferenceExtractor`.

    On a grid, the policy samples a cell from the softmax of the actor's output. With continuous locations, the policy samples from a
    Gaussian around the sigmoid of the actor's output. The output for skipping is an additional logit, which starts at ln G², or a third
    coordinate, which starts at 0.5. A new policy therefore skips half of the steps. With the observation `reference_looks`, the output for
    skipping depends on the number of patches so far.

    Log-probabilities are those of the sampled location before clipping, because Stable-Baselines3 clips only the actions that it sends to
    the environment. (The released code uses the log-probability of the clipped location.)

    Args:
        observation_space: space of the observation `reference`, or `reference_looks` if actions can skip.
        action_space: action space of the environment, which contains cells or locations.
        lr_schedule: learning rate schedule of Stable-Baselines3.
        std: standard deviation of the Gaussian per axis, in units of the range of locations.
        learn_std: whether the standard deviation is learned, starting at ``std``. In the paper, the standard deviation is not learned.
        kwargs: further arguments of `ActorCriticPolicy`, without ``net_arch``.

    Raises:
        InputError: if the action space is not one of `AdaFocusEnv`, or if ``std`` is not positive.
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
        grid, skips = parse_action_space(action_space)
        super().__init__(observation_space, action_space, lr_schedule, net_arch=[], log_std_init=math.log(check_std(std)), **kwargs)
        self.grid, self.skips, self.std, self.learn_std = grid, skips, std, learn_std
        if grid is not None and skips and isinstance(self.action_net, nn.Linear):
            nn.init.constant_(self.action_net.bias[-1:], math.log(grid * grid))  # type: ignore[index, arg-type]
        if grid is None and not learn_std:
            self.log_std.requires_grad_(False)

    def _build(self, lr_schedule: Schedule) -> None:
        """Create the networks and the optimiser."""
        super()._build(lr_schedule)
        architecture, (grid, skips) = extractor_of(self).architecture, parse_action_space(self.action_space)
        if not has_linear_layers(architecture):
            use_actor_and_critic(self, architecture, lr_schedule)
        elif skips and observes_patch_count(self.observation_space):  # otherwise, use the linear layers of Stable-Baselines3
            self.action_net = architecture.actor(grid, skips).to(self.device)
            if self.ortho_init:
                self.init_weights(self.action_net, gain=0.01)
            self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def forward(self, obs: Tensor, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return actions, values and log-probabilities. Stable-Baselines3 calls this method in rollouts only."""
        extractor = self.features_extractor
        with extractor.rollout_mode() if isinstance(extractor, ClipReferenceExtractor) else nullcontext():
            return super().forward(obs, deterministic)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        inherited = super()._get_constructor_parameters().items()
        fixed = ("net_arch", "log_std_init")
        return {"std": self.std, "learn_std": self.learn_std, **{key: value for key, value in inherited if key not in fixed}}


def has_linear_layers(architecture: NetworkArchitecture) -> bool:
    """Return whether the actor and the critic of a policy are linear layers. Stable-Baselines3's policies create such layers themselves."""
    return isinstance(architecture, PolicyArchitecture)


def use_actor_and_critic(policy: Any, architecture: NetworkArchitecture, lr_schedule: Schedule) -> None:
    """Replace the linear layers of an actor-critic policy with the actor and critic of an architecture. Recreate the policy's optimizer."""
    policy.action_net = make_actor(architecture, *parse_action_space(policy.action_space)).to(policy.device)
    policy.value_net = architecture.critic(observes_patch_count(policy.observation_space)).to(policy.device)
    policy.optimizer = policy.optimizer_class(policy.parameters(), lr=lr_schedule(1), **policy.optimizer_kwargs)


def extractor_of(policy: ActorCriticPolicy) -> ClipReferenceExtractor:
    """Return the features extractor of a `PatchActorCriticPolicy`, typed as `ClipReferenceExtractor`."""
    return cast(ClipReferenceExtractor, policy.features_extractor)


def observes_patch_count(space: spaces.Space) -> bool:
    """Return True if the space is that of the observation `reference_looks`, and False if it is that of `reference`."""
    return space.shape == (3,)


def parse_action_space(space: spaces.Space) -> tuple[int | None, bool]:
    """For an entry of `ACTIONS`, return the grid size G of its action space, and whether its actions can skip a frame.

    G is None if locations are continuous. The result is unambiguous, because G² + 1 is never a square number.

    Raises:
        InputError: if the space belongs to no entry of `adafocus_env.action.ACTIONS`.
    """
    if isinstance(space, spaces.Discrete) and space.start == 0:
        for skips in (False, True):
            if space.n > 1 and math.isqrt(cells := int(space.n) - skips) ** 2 == cells:
                return math.isqrt(cells), skips
    if isinstance(space, spaces.Box) and space.shape in ((2,), (3,)) and (space.low == 0).all() and (space.high == 1).all():
        return None, space.shape == (3,)
    raise InputError(
        f"the action space must be Discrete(G²), the cells of a grid, or Box(0, 1, (2,)), locations; with skipping Discrete(G² + 1) or "
        f"Box(0, 1, (3,)); got {space}"
    )


def to_network(policy: ActorCriticPolicy, *, interpolated: bool = False) -> PolicyNetwork:
    """Return a frozen copy of a `PatchActorCriticPolicy` as a `PolicyNetwork`, in eval mode.

    If the standard deviation was learned, the copy uses its mean over the axes.

    Args:
        policy: the policy to copy.
        interpolated: whether the policy was trained with interpolated patches. The action space does not show whether patches are
            interpolated.

    Raises:
        InputError: if the policy skips and does not observe the number of patches so far.
    """
    assert isinstance(policy, PatchActorCriticPolicy)
    refuse_if(
        policy.skips and not observes_patch_count(policy.observation_space),
        "observation must be 'reference_looks' for a policy that skips, got 'reference'; train it with observation='reference_looks'",
    )
    std = policy.log_std.exp().mean().item() if policy.grid is None and policy.learn_std else policy.std
    network = PolicyNetwork(extractor_of(policy).architecture, policy.grid, std, skips=policy.skips, interpolated=interpolated)
    for target, source in same_modules(network, policy):
        target.load_state_dict(source.state_dict())
    return network.to(policy.device).eval().requires_grad_(False)


def load_network(policy: ActorCriticPolicy, network: PolicyNetwork) -> None:
    """Copy the weights of ``network`` into a `PatchActorCriticPolicy` of the same sizes.

    Raises:
        InputError: if ``policy`` and ``network`` have different action spaces.
    """
    grid, skips = parse_action_space(policy.action_space)
    refuse_if(
        grid != network.grid, f"the policy to start from has grid={network.grid}, the environment grid={grid} (None: continuous locations)"
    )
    can = {True: "skips frames", False: "cannot skip"}
    refuse_if(
        skips != network.skips,
        f"the policy to start from {can[network.skips]}, the environment's {can[skips]}; set env.action accordingly",
    )
    for source, target in same_modules(network, policy):
        target.load_state_dict(source.state_dict())


def same_modules(network: PolicyNetwork, policy: ActorCriticPolicy) -> list[tuple[nn.Module, nn.Module]]:
    """Return pairs of modules that have the same weights: a module of ``network`` and the corresponding module of ``policy``."""
    return [(network.encoder, extractor_of(policy).encoder), (network.actor, policy.action_net), (network.critic, policy.value_net)]


MOMENTUM = 0.1
"""Weight of a new batch in the running statistics. It is the default of PyTorch and of the released code."""


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """Return the batch norm layers of a module."""
    return [child for child in module.modules() if isinstance(child, _BatchNorm)]


@contextmanager
def batch_statistics(module: nn.Module, *, track: bool = False) -> Iterator[None]:
    """Return a context manager that makes batch norms use the statistics of the batch.

    If ``track`` is True, batch norms also update the running statistics.
    """
    before = [(norm, norm.training) for norm in batch_norms(module)]
    for norm, _ in before:
        norm.training, norm.track_running_stats = True, track
    try:
        yield
    finally:
        for norm, training in before:
            norm.training, norm.track_running_stats = training, True


@torch.no_grad()
def update_running_stats(module: nn.Module, inputs: Tensor) -> None:
    """Update the running statistics of a module's batch norms with a batch. The weights and the training mode stay the same.

    For the first `1 / MOMENTUM` batches, the running statistics are the mean over all batches so far. Therefore, their arbitrary initial
    values have no effect.

    Args:
        module: the module with batch norms.
        inputs: a batch of inputs, at least two samples.
    """
    for norm in batch_norms(module):
        norm.momentum = max(MOMENTUM, 1 / (int(norm.num_batches_tracked or 0) + 1))
    with batch_statistics(module, track=True):
        module(inputs)
    for norm in batch_norms(module):
        norm.momentum = MOMENTUM
