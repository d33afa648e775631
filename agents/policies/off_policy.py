"""Policies for off-policy algorithms with the spatial network.

The policies are Stable-Baselines3's policies with layers that read the network's hidden map.

`ClipReferenceExtractor` returns the hidden map, flattened. DQN and QR-DQN compute a value for every cell from this map (`CellValues`).
The actors of SAC, TD3, DDPG, TQC and CrossQ compute a spatial soft-argmax of the map (`LocationActor`). The critics of these algorithms
first read the map at the location of the action (`ReadAtAction`), and then apply ordinary layers.
"""

import math
from typing import Any

import torch
from gymnasium import spaces
from sb3_contrib.crossq.policies import CrossQPolicy
from sb3_contrib.qrdqn.policies import QRDQNPolicy, QuantileNetwork
from sb3_contrib.tqc.policies import TQCPolicy
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, get_actor_critic_arch
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from agents.policies.sb3 import observes_patch_count, parse_action_space
from agents.policies.spatial import Pool, ScoreMap, SpatialActor, SpatialArchitecture, cell_weights
from classifiers.errors import refuse_if

CRITIC_LAYERS = [64]  # sizes of the layers after `ReadAtAction`, unless policy_kwargs.net_arch is given


class CellValues(nn.Module):
    """Compute the value of every action, or several quantiles of the value, from flattened hidden maps.

    The value of a cell is the score map's value at the cell's centre, plus an offset that all cells share. The offset and the value of
    skipping are computed from pooled features, and from the number of patches so far if the observation contains this number.

    Args:
        architecture: the sizes.
        observation_space: space of the observation `reference` or `reference_looks`.
        action_space: action space of the environment, which must contain cells.
        quantiles: Q, number of values per action.
    """

    sampling: Tensor

    def __init__(
        self, architecture: SpatialArchitecture, observation_space: spaces.Space, action_space: spaces.Space, quantiles: int = 1
    ) -> None:
        super().__init__()
        grid, skips = parse_action_space(action_space)
        assert grid is not None
        self.counts, self.quantiles = observes_patch_count(observation_space), quantiles
        self.scores = ScoreMap(architecture, quantiles)
        self.pool = Pool(self.scores.shape)
        self.rest = nn.Linear(2 * architecture.width + self.counts, quantiles * (1 + skips))
        sampling = cell_weights(architecture.map_shape[1:], grid, architecture.patch_share)
        self.register_buffer("sampling", sampling, persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        """Return the values (B, Q · A), flattened from (B, Q, A), for features (B, F).

        If the number of patches is observed, the features have the shape (B, F + 1).
        """
        maps, counts = states.split([self.scores.inputs, int(self.counts)], dim=-1)
        rest = self.rest(torch.cat([self.pool(maps), counts], dim=-1)).unflatten(-1, (self.quantiles, -1))
        cells = self.scores(maps) @ self.sampling + rest[..., :1]
        return torch.cat([cells, rest[..., 1:]], dim=-1).flatten(1)


class LocationActor(SpatialActor):
    """A `SpatialActor` for Stable-Baselines3's off-policy algorithms, which apply tanh to its output to get locations in [−1, 1].

    The output of `SpatialActor`, which is meant for a sigmoid, is halved for tanh, because tanh(x / 2) = 2 · sigmoid(x) − 1.
    """

    def forward(self, states: Tensor) -> Tensor:
        """For features (…, F), return the actions before the tanh, (…, 2). If frames may be skipped, the actions have the shape (…, 3)."""
        return super().forward(states) / 2


class ReadAtAction(nn.Module):
    """Read a hidden map at the location of an action.

    The output contains the value of the convolved map at the centre of the patch, pooled features, and the action. The map is interpolated
    bilinearly, so the output has a gradient with respect to the action.

    Args:
        architecture: the sizes.
        observation_space: space of the observation `reference` or `reference_looks`. With `reference_looks`, the output also contains the
            number of patches so far.
    """

    def __init__(self, architecture: SpatialArchitecture, observation_space: spaces.Space) -> None:
        super().__init__()
        width, kernel = architecture.width, architecture.kernel
        self.shape, self.patch_share = (width, *architecture.map_shape[1:]), architecture.patch_share
        self.counts = int(observes_patch_count(observation_space))
        self.layers = nn.Sequential(nn.Unflatten(-1, self.shape), nn.Conv2d(width, width, kernel, padding=kernel // 2), nn.ReLU())
        self.pool = Pool(self.shape)

    @staticmethod
    def features(architecture: SpatialArchitecture, observation_space: spaces.Space) -> int:
        """Return the length of the output of `ReadAtAction`, without the action."""
        return 3 * architecture.width + observes_patch_count(observation_space)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the output (B, features + action).

        The input (B, F + …) consists of the features, the number of patches so far (if observed) and the action in [−1, 1].
        """
        size = math.prod(self.shape)
        states, others = inputs[:, :size], inputs[:, size:]
        rows, columns = (
            bilinear_weights((others[:, self.counts + axis] + 1) / 2, self.shape[1 + axis], self.patch_share) for axis in (0, 1)
        )
        here = torch.einsum("bkhw,bh,bw->bk", self.layers(states), rows, columns)
        return torch.cat([here, self.pool(states), others], dim=1)


def bilinear_weights(locations: Tensor, length: int, patch_share: float) -> Tensor:
    """Return the weights (B, length) with which a map is interpolated along one axis, for patches at ``locations`` (B,) in [0, 1].

    The product of the map and these weights is the value of the map at the centres of the patches. The interpolation is a matrix product
    because matrix products are deterministic on every device.
    """
    centres = locations * (1 - patch_share) + patch_share / 2
    pixels = (centres * length - 0.5).clamp(0, length - 1)
    return (1 - (pixels[:, None] - torch.arange(length, device=pixels.device)).abs()).clamp(min=0)


class CellScoringPolicy(BasePolicy):
    """Base class of the value-based policies.

    ``net_arch`` must be empty, because the score map replaces the layers that ``net_arch`` would add.
    """

    def __init__(self, *args: Any, net_arch: list[int] | None = None, **kwargs: Any) -> None:
        refuse_layers("net_arch", net_arch)
        super().__init__(*args, net_arch=[], **kwargs)

    def cell_values(self, quantiles: int = 1) -> CellValues:
        """Return a new `CellValues` for the observation space and the action space of this policy."""
        return CellValues(spatial_architecture(self), self.observation_space, self.action_space, quantiles).to(self.device)


class SpatialDQNPolicy(CellScoringPolicy, DQNPolicy):
    """DQN's policy with `CellValues`."""

    def make_q_net(self) -> QNetwork:
        """Return a new Q network."""
        network = super().make_q_net()
        network.q_net = self.cell_values()  # type: ignore[assignment]
        return network


class SpatialQRDQNPolicy(CellScoringPolicy, QRDQNPolicy):
    """QR-DQN's policy with `CellValues`."""

    def make_quantile_net(self) -> QuantileNetwork:
        """Return a new network of quantiles."""
        network = super().make_quantile_net()
        network.quantile_net = self.cell_values(self.n_quantiles)  # type: ignore[assignment]
        return network


class SoftArgmaxPolicy(BasePolicy):
    """Base class of the policies for continuous locations, with a `LocationActor` and with `ReadAtAction` in the critics.

    If the standard deviation depends on the state, it is computed from pooled features.

    Args:
        args: positional arguments of the policy in Stable-Baselines3.
        net_arch: sizes of layers. The entry ``qf`` has the sizes of a critic's layers after `ReadAtAction`. ``pi`` must be empty.
        kwargs: keyword arguments of the policy in Stable-Baselines3.

    Raises:
        InputError: if ``pi`` has layers.
    """

    def __init__(self, *args: Any, net_arch: list[int] | dict[str, list[int]] | None = None, **kwargs: Any) -> None:
        arch = {"pi": [], "qf": CRITIC_LAYERS} if net_arch is None else net_arch
        refuse_layers("net_arch.pi", get_actor_critic_arch(arch)[0])
        super().__init__(*args, net_arch=arch, **kwargs)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """Return a new actor."""
        actor = super().make_actor(features_extractor)  # type: ignore[misc]
        architecture = spatial_architecture(self)
        location = LocationActor(architecture, *parse_action_space(self.action_space))
        if not hasattr(actor, "log_std"):  # the actor of TD3
            actor.mu = nn.Sequential(location, nn.Tanh())
        elif actor.use_sde and isinstance(actor.mu, nn.Sequential):
            actor.mu[0] = location  # a clipping layer follows
        else:
            actor.mu = location
        if isinstance(getattr(actor, "log_std", None), nn.Linear):
            actor.log_std = PooledLinear(architecture, self.observation_space, actor.log_std.out_features)
        return actor.to(self.device)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """Return a new critic."""
        critic = super().make_critic(features_extractor)  # type: ignore[misc]
        readers = (ReadAtAction(spatial_architecture(self), self.observation_space) for _ in critic.q_networks)
        critic.q_networks = [nn.Sequential(*pair) for pair in zip(readers, critic.q_networks, strict=True)]
        for index, network in enumerate(critic.q_networks):
            setattr(critic, f"qf{index}", network)
        return critic.to(self.device)

    def _update_features_extractor(self, net_kwargs: Any, features_extractor: BaseFeaturesExtractor | None = None) -> dict[str, Any]:
        """Return the arguments of an actor or a critic. The first layer of a critic reads the output of `ReadAtAction`."""
        arguments = super()._update_features_extractor(net_kwargs, features_extractor)
        if "n_critics" in arguments:
            arguments["features_dim"] = ReadAtAction.features(spatial_architecture(self), self.observation_space)
        return arguments


class PooledLinear(nn.Linear):
    """A linear layer that reads pooled features, and the number of patches so far if the observation contains this number."""

    def __init__(self, architecture: SpatialArchitecture, observation_space: spaces.Space, outputs: int) -> None:
        super().__init__(2 * architecture.width + observes_patch_count(observation_space), outputs)
        self.pool = Pool((architecture.width, *architecture.map_shape[1:]))

    def forward(self, states: Tensor) -> Tensor:
        """Return the outputs (B, outputs) for features (B, F).

        If the number of patches is observed, the features have the shape (B, F + 1).
        """
        size = math.prod(self.pool.shape)
        return super().forward(torch.cat([self.pool(states[:, :size]), states[:, size:]], dim=1))


class SpatialSACPolicy(SoftArgmaxPolicy, SACPolicy):
    """SAC's policy on the spatial network."""


class SpatialTD3Policy(SoftArgmaxPolicy, TD3Policy):
    """The policy of TD3 and DDPG on the spatial network."""


class SpatialTQCPolicy(SoftArgmaxPolicy, TQCPolicy):
    """TQC's policy on the spatial network."""


class SpatialCrossQPolicy(SoftArgmaxPolicy, CrossQPolicy):
    """CrossQ's policy on the spatial network."""


def spatial_architecture(policy: BasePolicy) -> SpatialArchitecture:
    """Return the architecture of a policy whose extractor is `ClipReferenceExtractor`."""
    return policy.features_extractor_kwargs["architecture"]


def refuse_layers(name: str, layers: object) -> None:
    """Check that no layers are requested between the hidden map and the score map.

    Raises:
        InputError: if ``layers`` is neither None nor empty.
    """
    refuse_if(
        bool(layers),
        f"policy_kwargs.{name} must be [] with network=spatial, got {layers}: cells and locations are scored on the map itself; "
        "leave it out, or set network=published",
    )
