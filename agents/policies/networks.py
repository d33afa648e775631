"""The policy network, which selects patches from glance maps, in plain PyTorch. The network is trained with `agents.policies.sb3`.

`NETWORKS` lists the kinds of network. `spatial` scores each location from the features around it. `published`, which flattens the map,
and `published_v2` are the networks of the papers. To add a kind, a plugin adds a class with the members of `NetworkArchitecture`.

A saved policy is a folder with `policy.safetensors` and the JSON card `policy.json`. No pickle is written or read.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from agents.config.policy import NetworkConfig
from agents.policies.published import PolicyArchitecture
from agents.policies.published_v2 import PublishedV2Architecture
from agents.policies.spatial import SpatialArchitecture
from classifiers.atomic_files import write_text
from classifiers.checkpoint import load_tensors, read_json, save_tensors
from classifiers.errors import InputError, lookup, refuse_if, suggestion
from classifiers.flops import network_flops
from classifiers.model_zoo import BUNDLED


class NetworkArchitecture(Protocol):
    """A frozen dataclass with the sizes of a policy network. The methods of the dataclass create the modules of the network.

    Attributes:
        kind: name in `NETWORKS`.
        map_shape: (C, h, w) of a glance map.
        batch_norm: whether the encoder's module ``frame`` contains batch norm.
    """

    kind: ClassVar[str]

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """See above."""

    @property
    def batch_norm(self) -> bool:
        """See above."""

    @classmethod
    def from_config(cls, map_shape: tuple[int, int, int], patch_share: float, config: NetworkConfig) -> "NetworkArchitecture":
        """Return the architecture that the keys ``network.*`` describe.

        Args:
            map_shape: (C, h, w) of a glance map.
            patch_share: P / H, the side of a patch as a fraction of the side of the frame.
            config: the values of the keys.
        """

    def encoder(self) -> nn.Module:
        """Return a new encoder, which maps glance maps (N, D, C, h, w) to features (N, D, F). Its attribute ``features_dim`` is F."""

    def actor(self, grid: int | None, skips: bool) -> nn.Module:
        """Return a new actor, which maps features (…, F) to logits of cells (…, G²), or to locations before the sigmoid (…, 2).

        If frames may be skipped, the actor has one more output, and its input has shape (…, F + 1). The last entry of the input is the
        number of patches so far. The actor's method ``for_all_counts`` maps features (N, D, F) to outputs (N, D, D, …). The third axis is
        the number of patches so far, from 0 to D − 1.
        """

    def critic(self, skips: bool) -> nn.Module:
        """Return a new critic, which maps features (…, F) to values (…, 1). With skipping, the features have shape (…, F + 1)."""


class PolicyNetwork(nn.Module):
    """The policy on glance maps, which consists of the encoder, actor and critic of an architecture. `agents.load_policy` returns it.

    `agents.policies.sb3` has the same modules inside Stable-Baselines3; its `to_network` and `load_network` copy the weights.

    A policy that skips has an additional output: a logit on a grid, and otherwise a third coordinate, which skips if it is at least 0.5.
    The output for skipping and the value depend on the number of patches so far; see `SkippingActor` and `SpatialActor`.

    Args:
        architecture: the sizes.
        grid: G, cells per axis; None: the policy is continuous. Its distribution is a Gaussian around the location that the actor computes.
        std: standard deviation of the Gaussian per axis, in units of the range of locations. It is fixed, not learned.
        skips: whether the policy may skip frames.
        keep_threshold: a decision is skipped if its P(skip), the probability of skipping, is at least this threshold.
        interpolated: whether patches are interpolated at the exact location (`classifiers.crop`), as in AdaFocusV2, or cut at whole pixels.
            Inference, evaluation and environments crop patches in the same way as in training.

    Raises:
        InputError: if ``grid``, ``std``, ``skips`` or ``keep_threshold`` is out of range, or if the architecture does not support skipping.
            The error is also raised if ``interpolated`` is set for a policy that selects cells or can skip.
    """

    encoder: Any  # modules of the architecture
    actor: Any
    critic: Any

    def __init__(
        self, architecture: NetworkArchitecture, grid: int | None, std: float = 0.25, *,
        skips: bool = False, keep_threshold: float = 0.5, interpolated: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        refuse_if(
            grid is not None and (isinstance(grid, bool) or not isinstance(grid, int) or grid < 1),
            f"grid must be a positive whole number of cells, or None for a continuous policy, got {grid!r}",
        )
        refuse_if(not isinstance(skips, bool), f"skips must be True or False, got {skips!r}; set it to whether the policy may skip frames")
        refuse_if(
            not isinstance(interpolated, bool) or (interpolated and (grid is not None or skips)),
            f"interpolated must be True only for a continuous policy that does not skip, got {interpolated!r} with grid={grid} and "
            f"skips={skips}; set grid=None, or leave it out",
        )
        self.architecture, self.grid, self.std, self.skips = architecture, grid, check_std(std), skips
        self.interpolated = interpolated
        self.keep_threshold = check_threshold(keep_threshold)
        self.encoder, self.actor, self.critic = architecture.encoder(), make_actor(architecture, grid, skips), architecture.critic(skips)

    def forward(self, maps: Tensor) -> Tensor:
        """For glance maps (N, D, C, h, w), return cell logits (N, D, G²), or locations (N, D, 2) as (row, column) in [0, 1].

        For a policy that skips, the shape is (N, D, D, …). The third axis is the number of patches so far, and the last output is skipping.
        """
        states = self.encoder(maps)
        output = self.actor.for_all_counts(states) if self.skips else self.actor(states)
        return output.sigmoid() if self.grid is None else output

    @torch.no_grad()
    def act(self, maps: Tensor, keep_threshold: float | None = None) -> Tensor:
        """Return the most likely actions. In each step, first decide whether to skip the frame, and then select the most likely location.

        Args:
            maps: glance maps (N, D, C, h, w).
            keep_threshold: skip the frames whose P(skip) is at least this threshold; None: use the policy's threshold.

        Returns:
            On a grid, cells (N, D) int64; for a skipped frame, the number is G². Otherwise, locations (N, D, 2) float32. Locations of a
            policy that skips have a third coordinate, which is 1 for skipped frames and 0 for the others.

        Raises:
            InputError: if a threshold is given and the policy cannot skip, or if the threshold is NaN.
        """
        self._check_skips(keep_threshold)
        locations, skip = self.choose(maps)
        if not self.skips:
            return locations
        return self._actions(locations, ~patch_mask_below(skip, self._threshold(keep_threshold)))

    def _check_skips(self, keep_threshold: float | None) -> None:
        """Check that a threshold on P(skip) is given only to a policy that skips.

        Raises:
            InputError: if a threshold is given and the policy cannot skip.
        """
        refuse_if(
            keep_threshold is not None and not self.skips,
            f"keep_threshold={keep_threshold} is for policies that skip; train one with env.action=skip",
        )

    @torch.no_grad()
    def act_next(
        self, maps: Tensor, state: Tensor | None, num_patches: Tensor, keep_threshold: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the most likely actions of the next decision only. The actions are the same as those that `act` returns for this decision.

        Args:
            maps: glance maps of the decision (N, C, h, w).
            state: the state that this method returned for the previous decision, one row per clip; None before the first decision.
            num_patches: (N,), number of patches in earlier decisions.
            keep_threshold: see `act`.

        Returns:
            Actions (N, …) and the next state.

        Raises:
            InputError: see `act`.
        """
        self._check_skips(keep_threshold)
        features, state = encode_next(self.encoder, maps, state)
        if not self.skips:
            return self._locations(self._output(features)), state
        output = self._output(torch.cat([features, num_patches[:, None].to(features)], dim=-1))
        return self._actions(self._locations(output), self._skip(output) >= self._threshold(keep_threshold)), state

    @torch.no_grad()
    def choose(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the most likely locations for glance maps (N, D, C, h, w) and, separately, P(skip), the probability of skipping.

        On a grid, P(skip) compares skipping with the most likely cell only. Therefore, skipping is the most likely action if P(skip) ≥ ½. A
        policy that is uncertain about the location therefore skips more often. For a continuous policy, P(skip) is the Gaussian probability
        that the third coordinate is at least 0.5.

        Returns:
            Cells (N, D) int64 or locations (N, D, 2) float32, and P(skip) (N, D, D). The last axis of P(skip) is the number of patches so
            far, from 0 to D − 1; see `patch_mask_below`. If the policy cannot skip, P(skip) is zero and has shape (N, D).
        """
        output = self(maps)
        locations = self._locations(output[:, :, 0] if self.skips else output)
        return locations, self._skip(output) if self.skips else output.new_zeros(output.shape[:2])

    def _output(self, features: Tensor) -> Tensor:
        output = self.actor(features)
        return output.sigmoid() if self.grid is None else output

    def _locations(self, output: Tensor) -> Tensor:
        return output[..., :2] if self.grid is None else output[..., : self.grid * self.grid].argmax(-1)

    def _skip(self, output: Tensor) -> Tensor:
        if self.grid is None:
            return torch.special.ndtr((output[..., 2] - 0.5) / self.std)
        return (output[..., -1] - output[..., :-1].amax(-1)).sigmoid()

    def _actions(self, locations: Tensor, skipped: Tensor) -> Tensor:
        if self.grid is None:
            return torch.cat([locations, skipped[..., None].to(locations)], dim=-1)
        return torch.where(skipped, self.grid * self.grid, locations)

    def _threshold(self, keep_threshold: float | None) -> float:
        return self.keep_threshold if keep_threshold is None else check_threshold(keep_threshold)

    @property
    def step_macs(self) -> int:
        """Multiply-adds of one decision."""
        return network_flops(self, 1, 1, *self.architecture.map_shape)

    def card(self) -> dict[str, object]:
        """Return the arguments of the constructor as plain values."""
        skipping = {"skips": True, "keep_threshold": self.keep_threshold} if self.skips else {}
        interpolated = {"interpolated": True} if self.interpolated else {}
        sizes = asdict(self.architecture)  # type: ignore[call-overload]
        return {"kind": self.architecture.kind, **sizes, "grid": self.grid, "std": self.std, **skipping, **interpolated}


def encode_next(encoder: nn.Module, maps: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Encode the glance maps of the next decision only.

    Args:
        encoder: encoder of a policy network. If the encoder has a method ``step``, this function returns ``encoder.step(maps, state)``. If
            the encoder has no method ``step``, the state consists of the glance maps so far, and all of these maps are encoded again.
        maps: glance maps of the decision (N, C, h, w).
        state: state after the previous decision, one row per clip; None before the first decision.

    Returns:
        Features (N, F) of the decision, and the next state.
    """
    if (step := getattr(encoder, "step", None)) is not None:
        return step(maps, state)
    glances = maps[:, None] if state is None else torch.cat([state, maps[:, None]], dim=1)
    return encoder(glances)[:, -1], glances


def make_actor(architecture: NetworkArchitecture, grid: int | None, skips: bool) -> nn.Module:
    """Return a new actor of an architecture; see `NetworkArchitecture.actor`.

    Raises:
        InputError: if frames may be skipped and the actor does not support skipping.
    """
    actor = architecture.actor(grid, skips)
    refuse_if(
        skips and not hasattr(actor, "for_all_counts"),
        f"network={architecture.kind} must support skipping with env.action=skip or continuous_skip, but {type(actor).__name__}, its "
        "actor, has no method for_all_counts (see agents.policies.networks.NetworkArchitecture); add it, or set env.action=grid",
    )
    return actor


def patch_mask_below(skip: Tensor, threshold: float) -> Tensor:
    """Return the patch mask (N, D). A decision has a patch if its P(skip), the probability of skipping, is below the threshold.

    A higher threshold never reduces the number of patches in a clip. As long as a clip has had the same number of patches with both
    thresholds, every decision that has a patch with the lower threshold also has a patch with the higher threshold.

    Args:
        skip: P(skip) with shape (N, D), or (N, D, D) if P(skip) depends on the number of patches so far, which is then the last axis.
        threshold: threshold on P(skip).
    """
    if skip.ndim == 2:
        return skip < threshold
    num_patches, patch_mask = torch.zeros(skip.shape[0], 1, dtype=torch.int64, device=skip.device), []
    for step in range(skip.shape[1]):
        patch_mask.append(skip[:, step].gather(1, num_patches) < threshold)
        num_patches = num_patches + patch_mask[-1]
    return torch.cat(patch_mask, dim=1) if patch_mask else skip.new_zeros(len(skip), 0, dtype=torch.bool)


def check_maps(policy: PolicyNetwork, map_shape: tuple[int, ...]) -> None:
    """Check that the policy reads glance maps of this shape.

    Raises:
        InputError: if the policy reads maps of another shape.
    """
    refuse_if(
        policy.architecture.map_shape != map_shape,
        f"the policy reads glance maps of shape {policy.architecture.map_shape}, the classifier's glancer makes {map_shape}; "
        "use the policy that was trained with this classifier",
    )


def check_patch_share(policy: PolicyNetwork, patch_size: int, size: int) -> None:
    """Check that the policy was trained with patches of this size, if its architecture depends on the patch size.

    Raises:
        InputError: if the policy was trained with patches of another size.
    """
    share = getattr(policy.architecture, "patch_share", None)
    refuse_if(
        share is not None and not math.isclose(share, patch_size / size),
        f"the policy was trained with patches of {share} of the frame's side, the classifier's are {patch_size} of {size} pixels; use the "
        "policy that was trained with this classifier",
    )


def check_std(std: float) -> float:
    """Check the standard deviation of a continuous policy and return it.

    Raises:
        InputError: if the standard deviation is not positive and finite.
    """
    refuse_if(
        isinstance(std, bool) or not isinstance(std, int | float) or not 0 < std < math.inf,
        f"std must be a positive number, such as the paper's 0.25, got {std!r}",
    )
    return std


def check_threshold(threshold: float) -> float:
    """Check a threshold on P(skip) and return it. A threshold of at most 0 skips all frames, and a threshold above 1 skips no frame.

    Raises:
        InputError: if the threshold is not a number.
    """
    refuse_if(
        isinstance(threshold, bool) or not isinstance(threshold, int | float) or math.isnan(threshold),
        f"keep_threshold must be a probability to skip, such as 0.5, got {threshold!r}",
    )
    return threshold


NETWORKS: dict[str, type[NetworkArchitecture]] = {
    "spatial": SpatialArchitecture, "published": PolicyArchitecture, "published_v2": PublishedV2Architecture
}  # fmt: skip
"""Maps the values of ``network=`` to the architectures of the policy networks."""


def architecture_of(map_shape: tuple[int, int, int], patch_share: float, config: NetworkConfig) -> NetworkArchitecture:
    """Return the architecture of a new policy. The arguments are those of `NetworkArchitecture.from_config`.

    Raises:
        InputError: if the kind is unknown.
    """
    return lookup("network.name", config.name, NETWORKS).from_config(map_shape, patch_share, config)


OPTIONS = ("std", "skips", "keep_threshold", "interpolated")
"""Arguments of `PolicyNetwork` that a card may omit."""
WEIGHTS = "policy.safetensors"
CARD = "policy.json"


def save_policy(policy: PolicyNetwork, folder: Path | str, about: Mapping[str, Any]) -> None:
    """Write the weights and the card of a policy, both atomically.

    Args:
        policy: the policy to save.
        folder: the destination; created if missing.
        about: further entries of the card, such as the fingerprint of the classifier with which the policy was trained.

    Raises:
        InputError: if the folder cannot be written.
    """
    folder = Path(folder)
    save_tensors(policy, folder / WEIGHTS)
    write_text(folder / CARD, json.dumps({"network": policy.card(), **about}, indent=2) + "\n")


def load_policy(folder: Path | str, device: torch.device | str = "cpu") -> PolicyNetwork:
    """Load a policy from a folder. The policy is frozen and in eval mode.

    ``folder`` can also be `demo`, `demo-mover` or `demo-sparse`, which are the names of the bundled policies of demo tasks.

    Raises:
        InputError: if the folder does not contain a policy, or if its card and weights do not match.
    """
    folder = BUNDLED.get(str(folder), Path(folder))
    card: Any = read_json(folder, CARD, f"policy={folder}").get("network")
    try:
        sizes = {**card, "map_shape": tuple(card["map_shape"])}
        kind = sizes.pop("kind", PolicyArchitecture.kind)  # earlier versions had only this kind
        refuse_if(
            kind not in NETWORKS,
            f"network.kind={kind!r} is not known; {suggestion(kind, NETWORKS)}choose one of {sorted(NETWORKS)}, or set plugin=MODULE, the "
            "module that adds it",
        )
        arguments = {"grid": sizes.pop("grid"), **{key: sizes.pop(key) for key in OPTIONS if key in sizes}}
        policy = PolicyNetwork(NETWORKS[kind](**sizes), **arguments)
    except (TypeError, KeyError, ValueError, RuntimeError) as problem:
        raise InputError(f"{folder / CARD}: network={card!r} does not describe a policy ({problem})") from problem
    load_tensors(policy, folder / WEIGHTS)
    return policy.to(device).eval().requires_grad_(False)
