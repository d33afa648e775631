"""The spatial policy network: it scores each location from the features around it, with weights shared over locations.

The network is a 1×1 convolution, a convolutional GRU over the glances of a clip (Ballas et al., arXiv:1511.06432) and a score map. The
score of a cell is the score map's value at the cell's centre. A continuous location is the map's spatial soft-argmax (arXiv:1504.00702,
section 4.1). The same network therefore works for every grid and every size of the glance map.
"""

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from agents.config.policy import NetworkConfig

OUTPUT_GAIN = 0.01  # gain of the last layers of an actor, so that a new policy is nearly uniform; see `SpatialActor.use_unit_gain`
LARGE_MAP = 2**14  # for glance maps of at least this size, CPUs are faster if they process clips one by one, without copying them


@dataclass(frozen=True)
class SpatialArchitecture:
    """Sizes of a spatial policy network.

    Attributes:
        map_shape: (C, h, w) of a glance map.
        patch_share: P / H, the side of a patch as a fraction of the side of the frame; it determines the centres of the cells.
        width: channels of the 1×1 convolution, of every convolutional GRU, and of the score map's hidden layer.
        kernel: side of the kernels of the GRUs and of the score map; odd.
        depth: number of stacked convolutional GRUs.
        memory: False resets the GRUs after every decision, so that the policy sees only the current glance. This is meant for ablations.
    """

    kind: ClassVar[str] = "spatial"
    batch_norm: ClassVar[bool] = False

    map_shape: tuple[int, int, int]
    patch_share: float
    width: int = 8
    kernel: int = 3
    depth: int = 1
    memory: bool = True

    @classmethod
    def from_config(cls, map_shape: tuple[int, int, int], patch_share: float, config: NetworkConfig) -> "SpatialArchitecture":
        """Return the architecture that the keys ``network.*`` describe."""
        return cls(map_shape, patch_share, config.width, config.kernel, config.depth, config.memory)

    def encoder(self) -> "SpatialEncoder":
        """Return a new encoder, which maps glance maps to features."""
        return SpatialEncoder(self)

    def actor(self, grid: int | None, skips: bool) -> "SpatialActor":
        """Return a new actor, which maps features to the logits of the cells or to the location."""
        return SpatialActor(self, grid, skips)

    def critic(self, skips: bool) -> "PooledCritic":
        """Return a new critic, which maps features to the value."""
        return PooledCritic(self, skips)


class ConvGRU(nn.Module):
    """A convolutional GRU is a GRU at every location of a map, whose gates also read the surrounding locations.

    Args:
        inputs: channels of the input.
        width: channels of the hidden state.
        kernel: side of the kernels; odd.
        memory: False resets the hidden state to zero before every step.
    """

    def __init__(self, inputs: int, width: int, kernel: int, memory: bool = True) -> None:
        super().__init__()
        self.memory = memory
        self.from_input = nn.Conv2d(inputs, 3 * width, kernel, padding=kernel // 2)
        self.from_state = nn.Conv2d(width, 3 * width, kernel, padding=kernel // 2)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the hidden states (N, D, width, h, w) for maps (N, D, inputs, h, w)."""
        inputs = self.from_input(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])
        start = inputs.new_zeros(inputs.shape[0], self.from_state.in_channels, *inputs.shape[-2:])
        if not self.memory:  # every decision is the first of a sequence
            zeros = start[:, None].expand(-1, inputs.shape[1], -1, -1, -1).flatten(0, 1)
            return self._step(inputs.flatten(0, 1), zeros).unflatten(0, maps.shape[:2])
        states = [start]
        for step in inputs.unbind(1):
            states.append(self._step(step, states[-1]))
        return torch.stack(states[1:], dim=1)

    def step(self, maps: Tensor, state: Tensor | None) -> Tensor:
        """Return the next state (N, width, h, w).

        The arguments are the maps of the next decision (N, inputs, h, w) and the last state, which is None before the first decision.
        """
        inputs = self.from_input(maps)
        if state is None or not self.memory:
            state = inputs.new_zeros(len(inputs), self.from_state.in_channels, *inputs.shape[-2:])
        return self._step(inputs, state)

    def _step(self, inputs: Tensor, state: Tensor) -> Tensor:
        reset_i, update_i, new_i = inputs.chunk(3, dim=1)
        reset_s, update_s, new_s = self.from_state(state).chunk(3, dim=1)
        update = (update_i + update_s).sigmoid()
        new = (new_i + (reset_i + reset_s).sigmoid() * new_s).tanh()
        return torch.lerp(new, state, update)


class SpatialEncoder(nn.Module):
    """Encode glance maps as flattened hidden maps.

    The layers are a 1×1 convolution, a ReLU, and convolutional GRUs over the decisions of a clip.

    Args:
        architecture: the sizes.
    """

    def __init__(self, architecture: SpatialArchitecture) -> None:
        super().__init__()
        channels, height, width = architecture.map_shape
        self.features_dim, self._large = architecture.width * height * width, channels * height * width >= LARGE_MAP
        self.frame = nn.Sequential(nn.Conv2d(channels, architecture.width, 1), nn.ReLU())
        sizes = architecture.width, architecture.width, architecture.kernel, architecture.memory
        self.recurrent = nn.Sequential(*(ConvGRU(*sizes) for _ in range(architecture.depth)))

    @property
    def clip_by_clip(self) -> bool:
        """Whether the first layer processes one clip at a time, in which case `forward` also accepts a list of clips."""
        return self._large and next(self.parameters()).device.type == "cpu" and not torch.compiler.is_exporting()

    def forward(self, maps: Tensor | list[Tensor]) -> Tensor:
        """Return the flattened hidden maps (N, D, width·h·w) after every decision for glance maps (N, D, C, h, w)."""
        if self.clip_by_clip:
            frames = torch.stack([self._frames(clip) for clip in maps])
        else:
            assert isinstance(maps, Tensor)
            frames = self.frame(maps.flatten(0, 1)).unflatten(0, maps.shape[:2])
        return self.recurrent(frames).flatten(2)

    def step(self, maps: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the features (N, F) and the next state (N, depth, width, h, w).

        The arguments are the glance maps (N, C, h, w) and the last state, which is None before the first decision.
        """
        hidden = self.frame(maps)
        states: list[Tensor] = []
        for number, layer in enumerate(self.recurrent):
            hidden = cast(ConvGRU, layer).step(hidden, None if state is None else state[:, number])
            states.append(hidden)
        return hidden.flatten(1), torch.stack(states, dim=1)

    def _frames(self, clip: Tensor) -> Tensor:
        """Apply ``frame`` to the glance maps of a clip (D, C, h, w) as a matrix product, which takes half the time of the convolution."""
        layer, activation = self.frame
        weight = cast(Tensor, layer.weight).flatten(1).expand(len(clip), -1, -1)
        return activation(torch.baddbmm(cast(Tensor, layer.bias)[:, None], weight, clip.flatten(2)).unflatten(2, clip.shape[2:]))


class ScoreMap(nn.Module):
    """Compute a map of scores from flattened hidden maps.

    Args:
        architecture: the sizes.
        scores: number of scores per pixel.
    """

    def __init__(self, architecture: SpatialArchitecture, scores: int = 1) -> None:
        super().__init__()
        width, kernel = architecture.width, architecture.kernel
        self.shape = (width, *architecture.map_shape[1:])
        self.inputs = math.prod(self.shape)
        self.layers = nn.Sequential(nn.Conv2d(width, width, kernel, padding=kernel // 2), nn.ReLU(), nn.Conv2d(width, scores, 1))
        nn.init.orthogonal_(cast(Tensor, self.layers[-1].weight), OUTPUT_GAIN)

    def forward(self, states: Tensor) -> Tensor:
        """Return the scores (…, scores, h·w) for flattened hidden maps (…, width·h·w)."""
        return self.layers(states.reshape(-1, *self.shape)).flatten(2).unflatten(0, states.shape[:-1])


class SpatialActor(nn.Module):
    """Compute logits of the cells, or a location, from a score map.

    If frames may be skipped, compute the output for skipping from pooled features.

    The value of an additional patch depends on the number n of patches so far. The output for skipping is therefore
    a + b · [n > 0] + c · ln(1 + n), and a linear layer computes a, b and c. The outputs for the cells or the location do not depend on n.

    Args:
        architecture: the sizes.
        grid: G, cells per axis; None: continuous locations.
        skips: whether frames may be skipped.
    """

    sampling: Tensor

    def __init__(self, architecture: SpatialArchitecture, grid: int | None, skips: bool) -> None:
        super().__init__()
        self.scores, self.grid = ScoreMap(architecture), grid
        size, share = architecture.map_shape[1:], architecture.patch_share
        sampling = pixel_locations(size, share) if grid is None else cell_weights(size, grid, share)
        self.register_buffer("sampling", sampling, persistent=False)
        self.pool, self.skip = Pool(self.scores.shape), SkipHead(2 * architecture.width, grid or 1) if skips else None

    def forward(self, states: Tensor) -> Tensor:
        """Return logits (…, G²) or locations before the sigmoid (…, 2) for features (…, F).

        If frames may be skipped, there is one additional output. With skipping, the input has the shape (…, F + 1), and its last entry is
        the number of patches so far.
        """
        features, num_patches = states[..., : self.scores.inputs], states[..., self.scores.inputs :].sum(-1)  # 0 if not observed
        locations = self._locations(features)
        return locations if self.skip is None else torch.cat([locations, self.skip(self.pool(features), num_patches)], dim=-1)

    def use_unit_gain(self) -> None:
        """Initialise the last layer of a new score map with gain 1 instead of `OUTPUT_GAIN`.

        End-to-end training needs this. There, all gradients come through the location, which is a mean over the whole map. With the small
        gain, hardly any gradient would reach the layers before the last one.
        """
        nn.init.orthogonal_(cast(Tensor, self.scores.layers[-1].weight))

    def for_all_counts(self, states: Tensor) -> Tensor:
        """For features (N, D, F), return the outputs (N, D, D, …). The third axis is the number of patches so far, from 0 to D − 1."""
        assert self.skip is not None
        locations = self._locations(states)[:, :, None].expand(-1, -1, states.shape[1], -1)
        counts = torch.arange(states.shape[1]).to(states)
        return torch.cat([locations, self.skip(self.pool(states)[:, :, None], counts)], dim=-1)

    def _locations(self, states: Tensor) -> Tensor:
        scores = self.scores(states)[..., 0, :]
        if self.grid is not None:
            return scores @ self.sampling
        return torch.logit(0.5 + 0.99 * (scores.softmax(-1) @ self.sampling - 0.5))  # finite and differentiable even at the borders


class SkipHead(nn.Linear):
    """Compute the output for skipping, a + b · [n > 0] + c · ln(1 + n), from pooled features and the number n of patches so far.

    With the initial weights, half of the steps are skipped.

    Args:
        inputs: number of pooled features.
        grid: G, cells per axis; 1 for continuous locations.
    """

    def __init__(self, inputs: int, grid: int) -> None:
        super().__init__(inputs, 3)
        nn.init.orthogonal_(self.weight, OUTPUT_GAIN)
        self.bias.data = torch.tensor([2 * math.log(grid), 0.0, 0.0])

    def forward(self, features: Tensor, num_patches: Tensor) -> Tensor:  # type: ignore[override]
        """Return the output for skipping (…, 1) for features (…, inputs) and numbers of patches (…)."""
        a, b, c = super().forward(features).unbind(-1)
        return skip_output(a, b, c, num_patches)


def skip_output(a: Tensor, b: Tensor, c: Tensor, num_patches: Tensor) -> Tensor:
    """Return the output for skipping after n patches, a + b · [n > 0] + c · ln(1 + n), with shape (…, 1)."""
    return (a + b * (num_patches > 0) + c * num_patches.log1p())[..., None]


class Pool(nn.Module):
    """For flattened maps (…, K·h·w) of the shape (K, h, w), compute the mean and the maximum of every channel, (…, 2K)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, states: Tensor) -> Tensor:
        """Return the pooled features (…, 2K)."""
        maps = states.unflatten(-1, (self.shape[0], -1))
        return torch.cat([maps.mean(-1), maps.amax(-1)], dim=-1)


class PooledCritic(nn.Module):
    """Compute the value of a state from pooled hidden maps and, if frames may be skipped, from the number of patches so far.

    Args:
        architecture: the sizes.
        skips: whether the number of patches is the last entry of the input.
    """

    def __init__(self, architecture: SpatialArchitecture, skips: bool) -> None:
        super().__init__()
        self.skips = skips
        self.pool = Pool((architecture.width, *architecture.map_shape[1:]))
        self.value = nn.Linear(2 * architecture.width + skips, 1)

    def forward(self, states: Tensor) -> Tensor:
        """Return the values (…, 1) for features (…, F). If the number of patches is observed, the features have the shape (…, F + 1)."""
        features, num_patches = states.split([math.prod(self.pool.shape), int(self.skips)], dim=-1)
        return self.value(torch.cat([self.pool(features), num_patches], dim=-1))


def cell_weights(size: tuple[int, ...], grid: int, patch_share: float) -> Tensor:
    """Return the weights (h·w, G²) with which a map of size (h, w) is interpolated bilinearly at the centres of the cells.

    The interpolation is a matrix product with these weights for two reasons: a matrix product is deterministic on every device, and its
    multiply-adds are counted. The function warns if the grid is finer than the map.
    """
    if grid > min(size):
        warnings.warn(
            f"a {grid}×{grid} grid is finer than the {size[0]}×{size[1]} score map, which cannot distinguish neighbouring cells; set "
            f"env.grid={min(size)} or less",
            stacklevel=2,
        )
    axis = (torch.linspace(0, 1, grid) * (1 - patch_share) + patch_share / 2) * 2 - 1 if grid > 1 else torch.zeros(1)
    row, column = torch.meshgrid(axis, axis, indexing="ij")
    centres = torch.stack([column, row], dim=-1).expand(math.prod(size), -1, -1, -1)  # (x, y) in [−1, 1]
    pixels = torch.eye(math.prod(size)).unflatten(1, (1, *size))
    return grid_sample(pixels, centres, padding_mode="border", align_corners=False).flatten(1)


def pixel_locations(size: tuple[int, ...], patch_share: float) -> Tensor:
    """Return the locations (h·w, 2), as (row, column) in [0, 1], of patches whose centres are the pixels of a map (h, w)."""
    return location_of(pixel_centres(size), patch_share)


def pixel_centres(size: tuple[int, ...]) -> Tensor:
    """Return the centres (h·w, 2) of the pixels of a map (h, w) as (row, column), in fractions of the side of the frame."""
    axes = [(torch.arange(length) + 0.5) / length for length in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)


def location_of(centre: Tensor, patch_share: float) -> Tensor:
    """Return the locations (…, 2) in [0, 1] of patches with these centres (…, 2). Patches are moved into the frame where necessary."""
    return ((centre - patch_share / 2) / max(1 - patch_share, 1e-6)).clamp(0, 1)
