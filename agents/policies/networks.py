"""The policy's network as plain PyTorch, and its files. How it learns, and what it is to an RL library, is `agents`' business."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from classifiers.atomic_files import write_text
from classifiers.checkpoint import save_tensors
from classifiers.errors import InputError
from classifiers.heads import in_order_of_steps

WEIGHTS = "policy.safetensors"
CARD = "policy.json"


@dataclass(frozen=True)
class PolicyArchitecture:
    """Sizes of the policy network; the defaults are the paper's.

    Attributes:
        map_shape: (C, h, w) of a glance map.
        channels: of the 1×1 convolution.
        features: length of a frame's encoding.
        hidden: length of the GRU's state.
        batch_norm: normalise after the convolution and after the linear layer (the paper's on Something-Something).
        memory: False: the GRU forgets after every decision, and the policy knows the current glance alone; to compare with.

    Raises:
        InputError: a size is less than 1.
    """

    map_shape: tuple[int, int, int]
    channels: int = 32
    features: int = 1024
    hidden: int = 1024
    batch_norm: bool = False
    memory: bool = True

    def __post_init__(self) -> None:
        for name in ("channels", "features", "hidden"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} of the policy network is too small; choose 1 or more")


class GlanceEncoder(nn.Module):
    """conv 1×1, ReLU, flatten, linear, ReLU, GRU over the decisions in a clip (paper, section 3.4).

    With batch norm there is one before either ReLU, as in the released policy for Something-Something.

    Args:
        network: the sizes.
    """

    def __init__(self, network: PolicyArchitecture) -> None:
        super().__init__()
        self.memory = network.memory
        channels, height, width = network.map_shape
        self.frame = nn.Sequential(
            nn.Conv2d(channels, network.channels, 1, bias=False),
            *([nn.BatchNorm2d(network.channels)] if network.batch_norm else []),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(network.channels * height * width, network.features),
            *([nn.BatchNorm1d(network.features)] if network.batch_norm else []),
            nn.ReLU(),
        )
        self.gru = nn.GRU(network.features, network.hidden, batch_first=True)

    def forward(self, maps: Tensor) -> Tensor:
        """Glance maps (N, D, C, h, w) → the GRU's output after every decision (N, D, hidden)."""
        frames = self.frame(maps.flatten(0, 1))
        if not self.memory:  # sequences of one decision each
            return self.gru(frames.unsqueeze(1))[0].squeeze(1).unflatten(0, maps.shape[:2])
        return self.gru(in_order_of_steps(frames.unflatten(0, maps.shape[:2])))[0]


class SkippingActor(nn.Linear):
    """A linear layer for the cells or the place, and one output more, the last, for skipping the frame.

    What another look is worth depends on how many there were, so that output is a + b · [n > 0] + c · ln(1 + n) after n looks, and a,
    b and c come from the layer. Where to look does not depend on n.

    Args:
        hidden: length of the GRU's output.
        outputs: G² + 1, or 3.
    """

    def __init__(self, hidden: int, outputs: int) -> None:
        super().__init__(hidden, outputs + 2)

    def forward(self, states: Tensor) -> Tensor:
        """The GRU's output and n behind it (…, hidden + 1) → outputs (…, G² + 1) or (…, 3)."""
        return self._after(states[..., -1], super().forward(states[..., :-1]))

    def after_any(self, states: Tensor) -> Tensor:
        """The GRU's output (N, D, hidden) → outputs (N, D, D, …) after 0, 1, … D − 1 looks."""
        return self._after(torch.arange(states.shape[1]).to(states), super().forward(states)[:, :, None])

    def _after(self, num_patches: Tensor, numbers: Tensor) -> Tensor:
        places, (b, c, a) = numbers[..., :-3], numbers[..., -3:].unbind(-1)
        skip = (a + b * (num_patches > 0) + c * num_patches.log1p())[..., None]
        return torch.cat([places.expand(*skip.shape[:-1], -1), skip], dim=-1)


class GlanceActorCritic(nn.Module):
    """Encoder, actor and critic: glance maps → logits of the cells or the place, and the value.

    One that skips has a logit more, or a third coordinate: from 0.5 on the frame is skipped. Both it and the value depend on the
    number of looks before; see `SkippingActor`.

    Args:
        network: the sizes.
        grid: G, cells in each axis; None: the policy is continuous, a Gaussian around the place that the actor tells.
        std: standard deviation of that Gaussian in each axis, in units of the range of places; fixed, not learned.
        skips: whether it may look at no patch of a frame.
        keep_threshold: P(skip) from which on it skips when it does what is most likely.

    Raises:
        InputError: ``grid``, ``std``, ``skips`` or ``keep_threshold`` cannot be.
    """

    def __init__(
        self, network: PolicyArchitecture, grid: int | None, std: float = 0.25, *, skips: bool = False, keep_threshold: float = 0.5
    ) -> None:
        super().__init__()
        if grid is not None and (isinstance(grid, bool) or not isinstance(grid, int) or grid < 1):
            raise InputError(f"grid={grid!r} is no number of cells; choose a whole number from 1 on, or None for a continuous policy")
        if not isinstance(skips, bool):
            raise InputError(f"skips={skips!r} is neither True nor False; say whether the policy may skip frames")
        self.network, self.grid, self.std, self.skips = network, grid, check_std(std), skips
        self.keep_threshold = check_threshold(keep_threshold)
        self.encoder = GlanceEncoder(network)
        outputs = 2 if grid is None else grid * grid
        self.actor = SkippingActor(network.hidden, outputs + 1) if skips else nn.Linear(network.hidden, outputs)
        self.critic = nn.Linear(network.hidden + skips, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Glance maps (N, D, C, h, w) → logits (N, D, G²) of the cells, or places (N, D, 2) in [0, 1] as (row, column).

        Where the policy skips, one more each, the last, for every number of looks that a clip may have had: (N, D, D, …).
        """
        states = self.encoder(maps)
        output = self.actor.after_any(states) if isinstance(self.actor, SkippingActor) else self.actor(states)
        return output.sigmoid() if self.grid is None else output

    @torch.no_grad()
    def act(self, maps: Tensor, keep_threshold: float | None = None) -> Tensor:
        """What is most likely: first whether to skip, then the place.

        Args:
            maps: glance maps (N, D, C, h, w).
            keep_threshold: skip where P(skip) is so much or more; None: the policy's own.

        Returns:
            Cells (N, D) int64, G² where the frame is skipped; or places (N, D, 2) float32, with a third coordinate (1 where it is skipped,
            otherwise 0) where the policy can.

        Raises:
            InputError: a threshold, and the policy cannot skip, or it is no number.
        """
        if keep_threshold is not None and not self.skips:
            raise InputError(f"keep_threshold={keep_threshold} is for policies that skip; train one with env.action=skip")
        places, skip = self.choose(maps)
        if not self.skips:
            return places
        skips = ~patch_mask_below(skip, self.keep_threshold if keep_threshold is None else check_threshold(keep_threshold))
        if self.grid is None:
            return torch.cat([places, skips[..., None].to(places)], dim=-1)
        return torch.where(skips, self.grid * self.grid, places)

    @torch.no_grad()
    def choose(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Glance maps (N, D, C, h, w) → the most likely places and P(skip), each by itself.

        On a grid P(skip) is the probability of skipping where the choice is between that and the most likely cell: from ½ on, skipping is
        the most likely action. So a frame is skipped rather where the policy does not know where to look.

        Returns:
            Cells (N, D) int64 or locations (N, D, 2) float32; P(skip) (N, D, D) after 0, 1, … D − 1 patches, see `patch_mask_below`.
            Where the policy cannot skip they are zeros (N, D). That of a continuous policy is the Gaussian's that its third coordinate is
            0.5 or more.
        """
        output = self(maps)
        first = output[:, :, 0] if self.skips else output
        places = first[..., :2] if self.grid is None else first[..., : self.grid * self.grid].argmax(-1)
        if not self.skips:
            return places, output.new_zeros(output.shape[:2])
        if self.grid is None:
            return places, torch.special.ndtr((output[..., 2] - 0.5) / self.std)
        return places, (output[..., -1] - output[..., :-1].amax(-1)).sigmoid()

    def card(self) -> dict[str, object]:
        """What must be known to build it again."""
        skipping = {"skips": True, "keep_threshold": self.keep_threshold} if self.skips else {}
        return {**asdict(self.network), "grid": self.grid, "std": self.std, **skipping}


def patch_mask_below(skip: Tensor, threshold: float) -> Tensor:
    """Which decisions (N, D) of clips are kept at a threshold: those whose P(skip) is below it.

    A higher threshold keeps as many decisions of a clip or more. (Of two clips with the same glances, the one with fewer looks so far may
    catch up with the other, and never overtakes it: with as many looks, the one with the higher threshold keeps what the other keeps.)

    Args:
        skip: P(skip) (N, D), or (N, D, D) where it depends on the number of looks before: the last axis.
        threshold: see above.
    """
    if skip.ndim == 2:
        return skip < threshold
    num_patches, patch_mask = torch.zeros(len(skip), 1, dtype=torch.int64, device=skip.device), []
    for step in range(skip.shape[1]):
        patch_mask.append(skip[:, step].gather(1, num_patches) < threshold)
        num_patches = num_patches + patch_mask[-1]
    return torch.cat(patch_mask, dim=1) if patch_mask else skip.new_zeros(len(skip), 0, dtype=torch.bool)


def check_std(std: float) -> float:
    """Returns a standard deviation that is one.

    Raises:
        InputError: it is not positive and finite.
    """
    if isinstance(std, bool) or not isinstance(std, int | float) or not 0 < std < math.inf:
        raise InputError(f"std={std!r} is no standard deviation; choose a positive number, such as the paper's 0.25")
    return std


def check_threshold(threshold: float) -> float:
    """Returns a threshold on a probability; one beyond 0-1 skips all frames, or none.

    Raises:
        InputError: it is no number.
    """
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or math.isnan(threshold):
        raise InputError(f"keep_threshold={threshold!r} is no number; choose a probability to skip, such as 0.5")
    return threshold


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
