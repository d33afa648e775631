"""Policies for three algorithms of sb3-contrib: a policy with action masks, a policy with an LSTM, and a policy with very few weights.

`LstmPolicy` and `SpatialSoftmaxPolicy` define their own networks and ignore ``network.name``.
"""

from typing import Any, cast

from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from agents.policies.off_policy import refuse_layers
from agents.policies.sb3 import (
    ClipReferenceExtractor,
    MapReferenceExtractor,
    SigmoidMeanPolicy,
    has_linear_layers,
    parse_action_space,
    use_actor_and_critic,
)
from agents.policies.spatial import cell_weights, location_of, pixel_centres
from classifiers.errors import refuse_if


class MaskablePatchPolicy(MaskableActorCriticPolicy):
    """A variant of sb3-contrib's policy with action masks that uses the actor and the critic of the network's architecture.

    With the published network, the actor and the critic are the linear layers that sb3-contrib creates.

    Args:
        args: positional arguments of sb3-contrib's policy.
        net_arch: layers between the features and the actor or critic. ``net_arch`` may have layers only with the published network.
        kwargs: keyword arguments of sb3-contrib's policy.

    Raises:
        InputError: if ``net_arch`` has layers and the network is not the published one.
    """

    def __init__(self, *args: Any, net_arch: list[int] | dict[str, list[int]] | None = None, **kwargs: Any) -> None:
        if not has_linear_layers(kwargs["features_extractor_kwargs"]["architecture"]):
            refuse_layers("net_arch", net_arch)
            net_arch = []
        super().__init__(*args, net_arch=net_arch, **kwargs)  # type: ignore[misc]  # three in args

    def _build(self, lr_schedule: Schedule) -> None:
        """Create the networks and the optimizer."""
        super()._build(lr_schedule)
        architecture = cast(ClipReferenceExtractor, self.features_extractor).architecture
        if not has_linear_layers(architecture):
            use_actor_and_critic(self, architecture, lr_schedule)


class LstmPolicy(SigmoidMeanPolicy, RecurrentActorCriticPolicy):
    """sb3-contrib's recurrent policy, with an LSTM. The policy samples locations in the same way as `PatchActorCriticPolicy`."""


class SpatialSoftmaxPolicy(BasePolicy):
    """Select the patch at which a weighted sum of the glance map's channels is highest. Only the weights, one per channel, are learned.

    This policy is meant for random search, which works best with few weights. On a grid, the policy chooses the cell at whose centre this
    sum is highest. With continuous locations, the policy computes a softmax of the sums over the map, and chooses the mean location under
    this softmax (the spatial softmax of arXiv:1504.00702, section 4.1).

    Args:
        observation_space: space of the observation `reference`.
        action_space: action space of the environment, which contains cells or locations.
        map_shape: (C, h, w) of a glance map.
        patch_share: P / H, the side of a patch as a fraction of the side of the frame.
        sharpness: factor by which the sum is multiplied before the softmax.

    Raises:
        InputError: if the action space contains neither the cells of a grid nor continuous locations, or if actions can skip.
    """

    sampling: Tensor | None
    pixels: Tensor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        map_shape: tuple[int, int, int],
        patch_share: float,
        sharpness: float = 10.0,
    ) -> None:
        super().__init__(
            observation_space, action_space,
            features_extractor_class=MapReferenceExtractor, features_extractor_kwargs={"map_shape": map_shape},
        )  # fmt: skip
        self.map_shape, self.patch_share, self.sharpness = map_shape, patch_share, sharpness
        self.features_extractor = self.make_features_extractor()
        self.weights = nn.Conv2d(map_shape[0], 1, 1, bias=False)
        grid, skips = parse_action_space(action_space)
        refuse_if(skips, "a SpatialSoftmaxPolicy chooses a patch in every frame and cannot skip; set env.action=grid or continuous")
        sampling = None if grid is None else cell_weights(map_shape[1:], grid, patch_share)
        self.register_buffer("sampling", sampling, persistent=False)
        self.register_buffer("pixels", pixel_centres(map_shape[1:]), persistent=False)

    def forward(self, obs: PyTorchObs) -> Tensor:
        """Return the cells (B,) or locations (B, 2) for references (B, 2)."""
        maps = self.extract_features(obs, self.features_extractor).unflatten(1, self.map_shape)
        sums = self.weights(maps).flatten(1)
        if self.sampling is not None:
            return (sums @ self.sampling).argmax(1)
        return location_of((self.sharpness * sums).softmax(1) @ self.pixels, self.patch_share)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        return self(observation)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space, "action_space": self.action_space,
            "map_shape": self.map_shape, "patch_share": self.patch_share, "sharpness": self.sharpness,
        }  # fmt: skip
