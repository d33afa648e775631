"""What an agent does → the corner of a patch: a cell of a grid, or a place in [0,1]², or no patch at all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from adafocus_env.action_checks import ActionError as ActionError
from adafocus_env.action_checks import check_form, check_numbers, check_patch, check_places
from classifiers.errors import InputError, lookup


class Action(Protocol):
    """A kind of action: its space, and the patches that it stands for. Arrays of actions are (…, *space.shape).

    A further one is a class made from (grid, size, patch_size): an entry of `ACTIONS`, or the argument ``action`` of an environment.

    Attributes:
        patch_action: the kind of action that always looks at a patch: itself, or what it is without skipping. Features are made for it.
        size: height and width of the frame in pixels.
        patch_size: P, height and width of a patch in pixels.
        candidates: actions that a search for the best one tries: all of them, or some that cover the frame.
    """

    size: int
    patch_size: int
    candidates: NDArray[Any]

    @property
    def patch_action(self) -> Action:
        """See above."""
        ...

    @property
    def space(self) -> spaces.Discrete | spaces.Box:
        """Of one action."""
        ...

    @property
    def num_cells(self) -> int | None:
        """How many different actions there are; None where they are not counted."""
        ...

    def check(self, actions: object, count: int) -> NDArray[Any]:
        """The actions of ``count`` clips as an array.

        Raises:
            ActionError: one lies outside the space (names the first).
        """
        ...

    def patch_mask(self, actions: NDArray[Any]) -> NDArray[np.bool_]:
        """Actions → whether they look at a patch (…)."""
        ...

    def patches(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Convert actions to those of ``patch_action`` with the same patches; where they skip, any. Only called where the two differ."""
        ...

    def corners_of(self, actions: NDArray[Any]) -> NDArray[np.int64]:
        """Actions → corners (…, 2) of their patches as (top, left) in pixels; of those that look at one."""
        ...

    def nearest(self, points: NDArray[np.floating]) -> NDArray[Any]:
        """Points (…, 2) as (y, x), (0, 0) being the middle of a pixel → the actions whose patches have their centres nearest."""
        ...

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
        """Uniformly random patches, as actions (*shape, *space.shape)."""
        ...


def boxes_of(action: Action, actions: NDArray[Any]) -> NDArray[np.int64]:
    """Actions → boxes (…, 4) of their patches as (top, left, bottom, right) in pixels of the frame; zeros where there is none."""
    corners = action.corners_of(actions)
    boxes = np.concatenate([corners, corners + action.patch_size], axis=-1)
    return boxes if action.patch_action is action else boxes * action.patch_mask(actions)[..., None]


class GridAction:
    """G×G places for a patch, row-major, their corners evenly spaced from one border of the frame to the other.

    The corner of a cell at a in [0,1]² is floor(a · (size − patch_size)), first coordinate = row (paper, section 3.2).

    Args:
        grid: G, cells in each axis.
        size: height and width of the frame in pixels.
        patch_size: P, height and width of a patch in pixels.

    Raises:
        InputError: the grid has fewer than two cells an axis, or the patch does not fit the frame.
    """

    def __init__(self, grid: int, size: int, patch_size: int) -> None:
        if grid < 2:
            raise InputError(f"grid={grid} is too small; choose 2 or more cells an axis (the paper uses 7)")
        check_patch(size, patch_size)
        self.grid, self.size, self.patch_size = grid, size, patch_size
        self.num_cells = grid * grid
        self.space = spaces.Discrete(self.num_cells)
        self.candidates: NDArray[np.int64] = np.arange(self.num_cells)
        offsets = np.arange(grid) * (size - patch_size) // (grid - 1)  # whole numbers: exact for every size
        self.corners: NDArray[np.int64] = np.stack(np.meshgrid(offsets, offsets, indexing="ij"), axis=-1).reshape(-1, 2)

    @property
    def patch_action(self) -> GridAction:
        """Itself: every action looks at a patch."""
        return self

    def patch_mask(self, actions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """True for each action."""
        return np.ones(actions.shape, bool)

    def patches(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The actions themselves."""
        return actions

    def check(self, actions: object, count: int) -> NDArray[np.int64]:
        """The actions as an int64 array (count,).

        Raises:
            ActionError: not one whole number in 0 … G²−1 for each clip (names the first bad one).
        """
        choices = f"a cell from 0 to {self.num_cells - 1}, row-major on a {self.grid}×{self.grid} grid"
        return check_numbers(actions, count, self.num_cells, choices)

    def check_tensor(self, cells: Tensor, count: int) -> Tensor:
        """The same for a tensor, which stays on its device, without the host waiting for a GPU.

        Raises:
            ActionError: as `check`. A GPU finds a number outside the grid later, by a device-side assertion, which ends the process.
        """
        check_form(cells, count, self.num_cells, whole=not (cells.is_floating_point() or cells.is_complex() or cells.dtype == torch.bool))
        inside = ((cells >= 0) & (cells < self.num_cells)).all()
        with suppress(RuntimeError) if cells.device.type == "cpu" else nullcontext():
            torch._assert_async(inside, f"an action is outside the space; choose a cell from 0 to {self.num_cells - 1}")
            return cells.to(torch.int64)
        return torch.from_numpy(self.check(cells.numpy(), count))  # raises: a CPU finds it at once, and can say which one it is

    def corners_of(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Cells (…) → corners (…, 2) as (top, left) in pixels."""
        return self.corners[actions]

    def nearest(self, points: NDArray[np.floating]) -> NDArray[np.int64]:
        """Points (…, 2) as (y, x), (0, 0) being the middle of a pixel → the cell whose patch has its centre nearest (…)."""
        axis = self.corners[: self.grid, 1] + (self.patch_size - 1) / 2
        row, column = np.moveaxis(np.abs(points[..., None] - axis).argmin(-1), -1, 0)
        return row * self.grid + column

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Uniformly random cells (*shape)."""
        return rng.integers(self.num_cells, size=shape)


class ContinuousAction:
    """Any place for a patch: a in [0,1]² → the corner floor(a · (size − patch_size)), first coordinate = row (paper, section 3.2).

    Args:
        size: height and width of the frame in pixels.
        patch_size: P, height and width of a patch in pixels.

    Raises:
        InputError: the patch does not fit the frame.
    """

    num_cells = None

    def __init__(self, size: int, patch_size: int) -> None:
        check_patch(size, patch_size)
        self.size, self.patch_size = size, patch_size
        self.space = spaces.Box(0.0, 1.0, (2,), np.float32)
        self.candidates = self._at(GridAction(7, size, patch_size).corners)

    @property
    def patch_action(self) -> ContinuousAction:
        """Itself: every action looks at a patch."""
        return self

    def patch_mask(self, actions: NDArray[np.float32]) -> NDArray[np.bool_]:
        """True for each action."""
        return np.ones(actions.shape[:-1], bool)

    def patches(self, actions: NDArray[np.float32]) -> NDArray[np.float32]:
        """The actions themselves."""
        return actions

    def check(self, actions: object, count: int) -> NDArray[np.float32]:
        """The actions as a float32 array (count, 2).

        Raises:
            ActionError: not one place (row, column) in [0,1]² for each clip (names the first bad one).
        """
        return check_places(actions, count, 2, "place (row, column)")

    def corners_of(self, actions: NDArray[np.float32]) -> NDArray[np.int64]:
        """Places (…, 2) → corners (…, 2) as (top, left) in pixels."""
        return np.floor(actions.astype(np.float32) * np.float32(self.size - self.patch_size)).astype(np.int64)

    def nearest(self, points: NDArray[np.floating]) -> NDArray[np.float32]:
        """Points (…, 2) as (y, x), (0, 0) being the middle of a pixel → the place whose patch has its centre nearest (…, 2)."""
        return self._at(np.clip(np.rint(points - (self.patch_size - 1) / 2), 0, self.size - self.patch_size))

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Places (*shape, 2) of uniformly random patches. Every corner is as likely, the last one too."""
        return self._at(rng.integers(self.size - self.patch_size + 1, size=(*shape, 2)))

    def _at(self, corners: NDArray[Any]) -> NDArray[np.float32]:
        """Places of the corners: half a pixel off the lower bound, which rounding could fall short of."""
        return np.minimum((corners + 0.5) / max(1, self.size - self.patch_size), 1).astype(np.float32)


class SkipAction:
    """The cells of a grid, and one action more, the last: look at no patch of this frame. The glancer sees it all the same.

    Args:
        patch_action: the grid.
    """

    def __init__(self, patch_action: GridAction) -> None:
        self.patch_action = patch_action
        self.size, self.patch_size = patch_action.size, patch_action.patch_size
        self.skip = patch_action.num_cells
        self.num_cells = patch_action.num_cells + 1
        self.space = spaces.Discrete(self.num_cells)
        self.candidates: NDArray[np.int64] = np.arange(self.num_cells)

    def check(self, actions: object, count: int) -> NDArray[np.int64]:
        """The actions as an int64 array (count,).

        Raises:
            ActionError: not one whole number in 0 … G² for each clip (names the first bad one).
        """
        return check_numbers(actions, count, self.num_cells, f"a cell from 0 to {self.skip - 1}, or {self.skip} to skip")

    def patch_mask(self, actions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether they are cells (…)."""
        return actions != self.skip

    def patches(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Actions (…) → their cells (…); the first cell where they skip."""
        return np.where(self.patch_mask(actions), actions, 0)

    def skipping(self, places: NDArray[np.int64], patch_mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Cells (…) → the actions (…) that look there where ``patch_mask`` (…) says so, and skip elsewhere."""
        return np.where(patch_mask, places, self.skip)

    def corners_of(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Actions (…) → corners (…, 2) as (top, left) in pixels; those of the first cell where they skip."""
        return self.patch_action.corners_of(self.patches(actions))

    def nearest(self, points: NDArray[np.floating]) -> NDArray[np.int64]:
        """Points (…, 2) as (y, x), (0, 0) being the middle of a pixel → the cell whose patch has its centre nearest (…)."""
        return self.patch_action.nearest(points)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Uniformly random cells (*shape): what patches are worth is measured on patches."""
        return self.patch_action.draw(rng, shape)


class ContinuousSkipAction:
    """Any place for a patch, and a third coordinate: from 0.5 on the step skips, and looks at no patch of this frame.

    Args:
        patch_action: the places.
    """

    num_cells = None

    def __init__(self, patch_action: ContinuousAction) -> None:
        self.patch_action = patch_action
        self.size, self.patch_size = patch_action.size, patch_action.patch_size
        self.space = spaces.Box(0.0, 1.0, (3,), np.float32)
        self.candidates: NDArray[np.float32] = np.concatenate([_with(patch_action.candidates, 0), np.array([[0.5, 0.5, 1]], np.float32)])

    def check(self, actions: object, count: int) -> NDArray[np.float32]:
        """The actions as a float32 array (count, 3).

        Raises:
            ActionError: not (row, column, skip) in [0,1]³ for each clip (names the first bad one).
        """
        return check_places(actions, count, 3, "place and whether to skip it (row, column, skip)")

    def patch_mask(self, actions: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Whether the third coordinate is below 0.5 (…)."""
        return actions[..., 2] < 0.5

    def patches(self, actions: NDArray[np.float32]) -> NDArray[np.float32]:
        """Actions (…, 3) → their places (…, 2), which those that skip have, too."""
        return actions[..., :2]

    def skipping(self, places: NDArray[np.float32], patch_mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Places (…, 2) → the actions (…, 3) that look there where ``patch_mask`` (…) says so, and skip elsewhere."""
        return np.concatenate([places, ~patch_mask[..., None]], axis=-1).astype(np.float32)

    def corners_of(self, actions: NDArray[np.float32]) -> NDArray[np.int64]:
        """Actions (…, 3) → corners (…, 2) as (top, left) in pixels."""
        return self.patch_action.corners_of(self.patches(actions))

    def nearest(self, points: NDArray[np.floating]) -> NDArray[np.float32]:
        """Points (…, 2) as (y, x), (0, 0) being the middle of a pixel → the action that looks there (…, 3)."""
        return _with(self.patch_action.nearest(points), 0)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Actions (*shape, 3) that look at uniformly random patches: what patches are worth is measured on patches."""
        return _with(self.patch_action.draw(rng, shape), 0)


def continuous(grid: int, size: int, patch_size: int) -> ContinuousAction:
    """Any place; there is no grid."""
    return ContinuousAction(size, patch_size)


def skip(grid: int, size: int, patch_size: int) -> SkipAction:
    """The cells of a grid, or none."""
    return SkipAction(GridAction(grid, size, patch_size))


def continuous_skip(grid: int, size: int, patch_size: int) -> ContinuousSkipAction:
    """Any place, or none; there is no grid."""
    return ContinuousSkipAction(ContinuousAction(size, patch_size))


ACTIONS: dict[str, Callable[[int, int, int], Action]] = {
    "grid": GridAction, "continuous": continuous, "skip": skip, "continuous_skip": continuous_skip
}  # fmt: skip
"""(grid, size, patch_size) → the kind of action of that name."""


def skipping(patch_action: Action) -> Action:
    """The same kind of action with skipping; itself where there is none, as of a class of one's own."""
    if isinstance(patch_action, GridAction):
        return SkipAction(patch_action)
    return ContinuousSkipAction(patch_action) if isinstance(patch_action, ContinuousAction) else patch_action


def find_action(action: str | Callable[[int, int, int], Action]) -> Callable[[int, int, int], Action]:
    """The kind of action of that name; one that is given as a class is returned.

    Raises:
        InputError: no such name (suggests the nearest).
    """
    return action if callable(action) else lookup("action", action, ACTIONS)


def _with(places: NDArray[np.float32], third: float) -> NDArray[np.float32]:
    """Places (…, 2) → actions (…, 3) with that third coordinate."""
    return np.concatenate([places, np.full_like(places[..., :1], third)], axis=-1)


def crop_patches(frames: Tensor, source: Tensor, corners: Tensor, patch_size: int) -> Tensor:
    """Cuts patches out of frames in one gather, without a loop or a device synchronisation.

    They come as (height, width, channels) in memory, ``torch.channels_last``, in which convolutions on a CPU are faster.

    Args:
        frames: (M, 3, H, W), any dtype.
        source: (N,) int64, the frame that each patch is cut from.
        corners: (N, 2) int64, (top, left) of each patch in pixels.
        patch_size: P in pixels.

    Returns:
        (N, 3, P, P) of the same dtype.
    """
    windows = frames.permute(0, 2, 3, 1).unfold(1, patch_size, 1).unfold(2, patch_size, 1).permute(0, 1, 2, 4, 5, 3)
    return windows[source, corners[:, 0], corners[:, 1]].permute(0, 3, 1, 2)  # of a view (M, rows, columns, P, P, 3)
