"""Kinds of action: a cell of a grid, or a location in [0, 1]²; each also in a form that can skip the patch.

A location selects a patch at whole pixels, or one that is interpolated at the exact location.
"""

from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.action_checks import ActionError as ActionError  # public here
from adafocus_env.action_checks import check_cells, check_coordinates, check_form
from classifiers.crop import crop_at_corners
from classifiers.errors import lookup, refuse_if


class Action(Protocol):
    """A kind of action: its space, and the patches that actions select. Arrays of actions are (…, *space.shape).

    A custom kind is a class made from (grid, size, patch_size): an entry of `ACTIONS`, or the argument ``action`` of an environment.

    Attributes:
        patch_action: The kind of action without skipping; itself where every action has a patch. Features are computed for it.
        size: Height and width of the frame in pixels.
        patch_size: P, height and width of a patch in pixels.
        candidates: Actions that a search for the best one tries: all of them, or some that cover the frame.
    """

    size: int
    patch_size: int
    candidates: NDArray[Any]

    @property
    def patch_action(self) -> "Action":
        """See the attribute of this name."""

    @property
    def space(self) -> spaces.Discrete | spaces.Box:
        """Space of one action."""

    @property
    def num_cells(self) -> int | None:
        """Number of different actions; None where they are continuous."""

    def check(self, actions: object, count: int) -> NDArray[Any]:
        """Return the actions of ``count`` clips as an array.

        Raises:
            ActionError: One lies outside the space (names the first).
        """

    def patch_mask(self, actions: NDArray[Any]) -> NDArray[np.bool_]:
        """Return whether actions have a patch (…)."""

    def to_patch_action(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Convert actions to those of ``patch_action`` with the same patches, any where they skip. Called only where the two differ."""

    def corners_of(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Return the corners (…, 2) of the patches as (top, left) in pixels; undefined for actions that skip.

        They are integers, or floating point where patches are interpolated at real-valued corners.
        """

    def nearest(self, points: NDArray[np.floating]) -> NDArray[Any]:
        """Points (…, 2) as (y, x), with (0, 0) the centre of a pixel → the actions with the nearest patch centres."""

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
        """Sample uniformly random patches, as actions (*shape, *space.shape)."""


def boxes_of(action: Action, actions: NDArray[Any]) -> NDArray[np.int64]:
    """Return the boxes (…, 4) of the patches as (top, left, bottom, right) in pixels of the frame; zeros for actions that skip."""
    corners = np.rint(action.corners_of(actions)).astype(np.int64)
    boxes = np.concatenate([corners, corners + action.patch_size], axis=-1)
    return boxes if action.patch_action is action else boxes * action.patch_mask(actions)[..., None]


class _PatchAction:
    """What the kinds without skipping share: every action has a patch.

    Args:
        size: Height and width of the frame in pixels.
        patch_size: P, height and width of a patch in pixels.

    Raises:
        InputError: The patch does not fit the frame.
    """

    num_cells: int | None = None

    def __init__(self, size: int, patch_size: int) -> None:
        refuse_if(
            not 0 < patch_size <= size,
            f"patch_size={patch_size} does not fit frames of {size} pixels; choose a patch_size from 1 to {size}",
        )
        self.size, self.patch_size = size, patch_size

    @property
    def patch_action(self) -> Any:
        """Itself."""
        return self

    def patch_mask(self, actions: NDArray[Any]) -> NDArray[np.bool_]:
        """Return True for every action."""
        return np.ones(actions.shape if self.num_cells else actions.shape[:-1], bool)

    def to_patch_action(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Return the actions."""
        return actions


class GridAction(_PatchAction):
    """One of G × G patches, row by row, with corners evenly spaced from one border of the frame to the other.

    The corner of a cell at a in [0,1]² is floor(a · (size − patch_size)), first coordinate = row (paper, section 3.2).

    Args:
        grid: G, cells in each axis.
        size: Height and width of the frame in pixels.
        patch_size: P, height and width of a patch in pixels.

    Raises:
        InputError: The grid has fewer than two cells per axis, or the patch does not fit the frame.
    """

    def __init__(self, grid: int, size: int, patch_size: int) -> None:
        refuse_if(grid < 2, f"grid={grid} is too small; choose 2 or more cells per axis (the paper uses 7)")
        super().__init__(size, patch_size)
        self.grid = grid
        self.num_cells: int = grid * grid
        self.space = spaces.Discrete(self.num_cells)
        self.candidates: NDArray[np.int64] = np.arange(self.num_cells)
        offsets = np.arange(grid) * (size - patch_size) // (grid - 1)  # integers: exact for every size
        self.corners: NDArray[np.int64] = np.stack(np.meshgrid(offsets, offsets, indexing="ij"), axis=-1).reshape(-1, 2)

    def check(self, actions: object, count: int) -> NDArray[np.int64]:
        """Return the actions as an int64 array (count,).

        Raises:
            ActionError: They are not one integer from 0 to G² − 1 per clip (names the first bad one).
        """
        return check_cells(
            actions, count, self.num_cells, f"a cell from 0 to {self.num_cells - 1}, row-major on a {self.grid}×{self.grid} grid"
        )

    def check_tensor(self, cells: Tensor, count: int) -> Tensor:
        """Return the checked cells (count,) as an int64 tensor on their device; the host does not wait for a GPU.

        Raises:
            ActionError: As `check`. A GPU finds a cell outside the grid later, with a device-side assertion, which ends the process.
        """
        check_form(cells, count, self.num_cells, whole=not (cells.is_floating_point() or cells.is_complex() or cells.dtype == torch.bool))
        inside = ((cells >= 0) & (cells < self.num_cells)).all()
        with suppress(RuntimeError) if cells.device.type == "cpu" else nullcontext():
            torch._assert_async(inside, f"an action is outside the space; choose a cell from 0 to {self.num_cells - 1}")
            return cells.to(torch.int64)
        return torch.from_numpy(self.check(cells.numpy(), count))  # raises: a CPU finds it at once, and can name the clip

    def corners_of(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Cells (…) → corners (…, 2) as (top, left) in pixels."""
        return self.corners[actions]

    def nearest(self, points: NDArray[np.floating]) -> NDArray[np.int64]:
        """Points (…, 2) as (y, x) → the cells (…) with the nearest patch centres."""
        axis = self.corners[: self.grid, 1] + (self.patch_size - 1) / 2
        row, column = np.moveaxis(np.abs(points[..., None] - axis).argmin(-1), -1, 0)
        return row * self.grid + column

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Sample uniformly random cells (*shape)."""
        return rng.integers(self.num_cells, size=shape)


class ContinuousAction(_PatchAction):
    """A location a in [0,1]² → the patch with the corner floor(a · (size − patch_size)), first coordinate = row (paper, section 3.2).

    Args:
        size: Height and width of the frame in pixels.
        patch_size: P, height and width of a patch in pixels.

    Raises:
        InputError: The patch does not fit the frame.
    """

    def __init__(self, size: int, patch_size: int) -> None:
        super().__init__(size, patch_size)
        self.space = spaces.Box(0.0, 1.0, (2,), np.float32)
        self.candidates = self._at(GridAction(7, size, patch_size).corners)

    def check(self, actions: object, count: int) -> NDArray[np.float32]:
        """Return the actions as a float32 array (count, 2).

        Raises:
            ActionError: They are not one location (row, column) in [0,1]² per clip (names the first bad one).
        """
        return check_coordinates(actions, count, 2, "location (row, column)")

    def corners_of(self, actions: NDArray[np.float32]) -> NDArray[np.int64]:
        """Locations (…, 2) → corners (…, 2) as (top, left) in pixels."""
        return np.floor(actions.astype(np.float32) * np.float32(self.size - self.patch_size)).astype(np.int64)

    def nearest(self, points: NDArray[np.floating]) -> NDArray[np.float32]:
        """Points (…, 2) as (y, x) → the locations (…, 2) with the nearest patch centres."""
        return self._at(np.clip(np.rint(points - (self.patch_size - 1) / 2), 0, self.size - self.patch_size))

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Sample locations (*shape, 2) of uniformly random patches: every corner has the same probability, also the last."""
        return self._at(rng.integers(self.size - self.patch_size + 1, size=(*shape, 2)))

    def _at(self, corners: NDArray[Any]) -> NDArray[np.float32]:
        """Return the locations of corners, half a pixel above the lower bound, so that rounding cannot fall below it."""
        return np.minimum((corners + 0.5) / max(1, self.size - self.patch_size), 1).astype(np.float32)


class InterpolatedAction(ContinuousAction):
    """A location a in [0,1]² → the patch with the corner a · (size − patch_size), interpolated there without rounding (AdaFocusV2).

    See `classifiers.crop`. Boxes of such patches are those of the nearest whole pixels.

    Args:
        size: Height and width of the frame in pixels.
        patch_size: P, height and width of a patch in pixels.

    Raises:
        InputError: The patch does not fit the frame.
    """

    def corners_of(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Locations (…, 2) → corners (…, 2) as (top, left) in pixels, real numbers of the same precision."""
        return actions * actions.dtype.type(self.size - self.patch_size)

    def nearest(self, points: NDArray[np.floating]) -> NDArray[np.float32]:
        """Points (…, 2) as (y, x) → the locations (…, 2) of the patches with these centres, moved into the frame."""
        return (np.clip((points - (self.patch_size - 1) / 2) / max(1, self.size - self.patch_size), 0, 1)).astype(np.float32)

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Sample locations (*shape, 2) uniformly from [0, 1)²."""
        return rng.random((*shape, 2), np.float32)


class SkipAction:
    """The cells of a grid and one more action, the last: no patch of this frame. The glancer sees the frame in any case.

    Args:
        patch_action: The grid.
    """

    def __init__(self, patch_action: GridAction) -> None:
        self.patch_action = patch_action
        self.size, self.patch_size = patch_action.size, patch_action.patch_size
        self.skip, self.num_cells = patch_action.num_cells, patch_action.num_cells + 1
        self.space = spaces.Discrete(self.num_cells)
        self.candidates: NDArray[np.int64] = np.arange(self.num_cells)
        self.nearest, self.sample = patch_action.nearest, patch_action.sample  # always a patch: random skips are worth no comparison

    def check(self, actions: object, count: int) -> NDArray[np.int64]:
        """Return the actions as an int64 array (count,).

        Raises:
            ActionError: They are not one integer from 0 to G² per clip (names the first bad one).
        """
        return check_cells(actions, count, self.num_cells, f"a cell from 0 to {self.skip - 1}, or {self.skip} to skip")

    def patch_mask(self, actions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether actions are cells (…)."""
        return actions != self.skip

    def to_patch_action(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Actions (…) → their cells (…); cell 0 where they skip."""
        return np.where(self.patch_mask(actions), actions, 0)

    def corners_of(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Actions (…) → corners (…, 2) as (top, left) in pixels; those of cell 0 where they skip."""
        return self.patch_action.corners_of(self.to_patch_action(actions))


class ContinuousSkipAction:
    """A location and a third coordinate: from 0.5 on the step has no patch.

    Args:
        patch_action: The locations.
    """

    num_cells = None

    def __init__(self, patch_action: ContinuousAction) -> None:
        self.patch_action = patch_action
        self.size, self.patch_size = patch_action.size, patch_action.patch_size
        self.space = spaces.Box(0.0, 1.0, (3,), np.float32)
        self.candidates: NDArray[np.float32] = np.concatenate([_append(patch_action.candidates, 0), np.array([[0.5, 0.5, 1]], np.float32)])

    def check(self, actions: object, count: int) -> NDArray[np.float32]:
        """Return the actions as a float32 array (count, 3).

        Raises:
            ActionError: They are not (row, column, skip) in [0,1]³ per clip (names the first bad one).
        """
        return check_coordinates(actions, count, 3, "location and whether to skip it (row, column, skip)")

    def patch_mask(self, actions: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return whether the third coordinate is below 0.5 (…)."""
        return actions[..., 2] < 0.5

    def to_patch_action(self, actions: NDArray[np.float32]) -> NDArray[np.float32]:
        """Actions (…, 3) → their locations (…, 2), which those that skip have, too."""
        return actions[..., :2]

    def corners_of(self, actions: NDArray[np.float32]) -> NDArray[np.int64]:
        """Actions (…, 3) → corners (…, 2) as (top, left) in pixels."""
        return self.patch_action.corners_of(self.to_patch_action(actions))

    def nearest(self, points: NDArray[np.floating]) -> NDArray[np.float32]:
        """Points (…, 2) as (y, x) → the actions (…, 3) with the nearest patch centres."""
        return _append(self.patch_action.nearest(points), 0)

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Sample actions (*shape, 3) with uniformly random patches."""
        return _append(self.patch_action.sample(rng, shape), 0)


ACTIONS: dict[str, Callable[[int, int, int], Action]] = {
    "grid": GridAction,
    "continuous": lambda grid, size, patch_size: ContinuousAction(size, patch_size),
    "interpolated": lambda grid, size, patch_size: InterpolatedAction(size, patch_size),
    "skip": lambda grid, size, patch_size: SkipAction(GridAction(grid, size, patch_size)),
    "continuous_skip": lambda grid, size, patch_size: ContinuousSkipAction(ContinuousAction(size, patch_size)),
}
"""Kinds of action by name, made from (grid, size, patch_size)."""


def with_skipping(patch_action: Action) -> Action:
    """Return the same kind of action with skipping; a custom kind itself."""
    if isinstance(patch_action, GridAction):
        return SkipAction(patch_action)
    return ContinuousSkipAction(patch_action) if isinstance(patch_action, ContinuousAction) else patch_action


def find_action(action: str | Callable[[int, int, int], Action]) -> Callable[[int, int, int], Action]:
    """Return the kind of action of that name; a class is returned unchanged.

    Raises:
        InputError: The name is unknown (suggests the nearest).
    """
    return action if callable(action) else lookup("action", action, ACTIONS)


def crop_patches(frames: Tensor, source: Tensor, corners: Tensor, patch_size: int) -> Tensor:
    """Crop patches out of frames in one gather, without a loop or a device synchronisation; at real-valued corners they are interpolated.

    The memory layout of the result is ``torch.channels_last``, with which convolutions on a CPU are faster.

    Args:
        frames: (M, 3, H, W), any dtype.
        source: (N,) int64, the frame of each patch.
        corners: (N, 2) int64, (top, left) of each patch in pixels; or floating point, see `classifiers.crop.crop_at_corners`.
        patch_size: P in pixels.

    Returns:
        (N, 3, P, P) of the same dtype; of the higher precision where they are interpolated.
    """
    if corners.is_floating_point():
        return crop_at_corners(frames, source, corners, patch_size)
    windows = frames.permute(0, 2, 3, 1).unfold(1, patch_size, 1).unfold(2, patch_size, 1).permute(0, 1, 2, 4, 5, 3)
    return windows[source, corners[:, 0], corners[:, 1]].permute(0, 3, 1, 2)  # of a view (M, rows, columns, P, P, 3)


def masks_of(action: Action, last_chance: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the action masks (N, actions). For clips where ``last_chance`` (N,) bool is true, the masks exclude skipping.

    Raises:
        InputError: If actions are continuous.
    """
    refuse_if(action.num_cells is None, "action_masks: continuous actions have no masks; use action='grid' or action='skip'")
    assert action.num_cells is not None
    masks = np.ones((len(last_chance), action.num_cells), bool)
    masks[last_chance] = action.patch_mask(action.candidates)
    return masks


def _append(locations: NDArray[np.float32], third: float) -> NDArray[np.float32]:
    """Locations (…, 2) → actions (…, 3) with that third coordinate."""
    return np.concatenate([locations, np.full_like(locations[..., :1], third)], axis=-1)
