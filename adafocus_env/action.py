"""The kinds of action.

An action selects a cell of a grid, or a location in [0, 1]². For actions on a grid and for actions at locations, there is also a variant
that can skip the patch.

A location selects a patch at whole pixels or, with `InterpolatedAction`, a patch that is interpolated at the exact location.
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
from classifiers.errors import InputError, lookup, refuse_if


class Action(Protocol):
    """A kind of action, which defines the action space and the patches that actions select.

    Arrays of actions have the shape (…, *space.shape).

    A custom kind is a class whose constructor takes (grid, size, patch_size). Add the class to `ACTIONS`, or pass it to an environment as
    ``action``.

    Attributes:
        patch_action: The same kind of action without skipping. If every action has a patch, ``patch_action`` is the kind of action itself.
            Features are computed for ``patch_action``.
        size: Height and width of the frame in pixels.
        patch_size: P, height and width of a patch in pixels.
        candidates: The actions that are tried in a search for the best action. The candidates are all actions, or some actions whose
            patches cover the frame.
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
        """Number of different actions; None if actions are continuous."""

    def check(self, actions: object, count: int) -> NDArray[Any]:
        """Return the actions of ``count`` clips as an array.

        Raises:
            ActionError: If an action lies outside the space. The message names the first action outside the space.
        """

    def patch_mask(self, actions: NDArray[Any]) -> NDArray[np.bool_]:
        """Return a mask (…) that is true for the actions that have a patch."""

    def to_patch_action(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Convert actions of this kind to actions of ``patch_action`` that select the same patches.

        An action that skips is converted to an arbitrary action. The method is called only if actions can skip.
        """

    def corners_of(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Return the corners (…, 2) of the patches as (top, left) in pixels. The corners of actions that skip are undefined.

        The corners are integers. If patches are interpolated at real-valued corners, the corners are floating-point numbers.
        """

    def nearest(self, points: NDArray[np.floating]) -> NDArray[Any]:
        """Return the actions whose patch centres are nearest to the points.

        The points (…, 2) are (y, x) in pixels; (0, 0) is the centre of the top left pixel.
        """

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
        """Sample actions (*shape, *space.shape) that select uniformly random patches."""


def boxes_of(action: Action, actions: NDArray[Any]) -> NDArray[np.int64]:
    """Return the boxes (…, 4) of the patches as (top, left, bottom, right) in pixels of the frame. Boxes of actions that skip are zeros."""
    corners = np.rint(action.corners_of(actions)).astype(np.int64)
    boxes = np.concatenate([corners, corners + action.patch_size], axis=-1)
    return boxes if action.patch_action is action else boxes * action.patch_mask(actions)[..., None]


class _PatchAction:
    """Base class of the kinds of action without skipping, in which every action has a patch.

    Args:
        size: Height and width of the frame in pixels.
        patch_size: P, height and width of a patch in pixels.

    Raises:
        InputError: If the patch does not fit the frame.
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
        """The object itself."""
        return self

    def patch_mask(self, actions: NDArray[Any]) -> NDArray[np.bool_]:
        """Return True for every action."""
        return np.ones(actions.shape if self.num_cells else actions.shape[:-1], bool)

    def to_patch_action(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Return the actions."""
        return actions


class GridAction(_PatchAction):
    """An action selects one of G × G patches, which are numbered row by row.

    The corners of the patches are evenly spaced from one border of the frame to the other. For the cell at location a in [0,1]², the corner
    is floor(a · (size − patch_size)). The first coordinate of a is the row (paper, section 3.2).

    Args:
        grid: G, number of cells per axis.
        size: Height and width of the frame in pixels.
        patch_size: P, height and width of a patch in pixels.

    Raises:
        InputError: If the grid has fewer than two cells per axis, or if the patch does not fit the frame.
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
            ActionError: If the actions are not one integer from 0 to G² − 1 per clip. The message names the first invalid action.
        """
        return check_cells(
            actions, count, self.num_cells, f"a cell from 0 to {self.num_cells - 1}, row-major on a {self.grid}×{self.grid} grid"
        )

    def check_tensor(self, cells: Tensor, count: int) -> Tensor:
        """Check the cells (count,), and return them as an int64 tensor on the same device.

        If the cells are on a GPU, the host does not wait for the result of the check.

        Raises:
            ActionError: In the same cases as `check`. For cells on a GPU, however, a cell outside the grid is detected later, by a
                device-side assertion that ends the process.
        """
        check_form(cells, count, self.num_cells, whole=not (cells.is_floating_point() or cells.is_complex() or cells.dtype == torch.bool))
        inside = ((cells >= 0) & (cells < self.num_cells)).all()
        with suppress(RuntimeError) if cells.device.type == "cpu" else nullcontext():
            torch._assert_async(inside, f"an action is outside the space; choose a cell from 0 to {self.num_cells - 1}")
            return cells.to(torch.int64)
        return torch.from_numpy(self.check(cells.numpy(), count))  # raises an error that names the clip

    def corners_of(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the corners (…, 2) of cells (…) as (top, left) in pixels."""
        return self.corners[actions]

    def nearest(self, points: NDArray[np.floating]) -> NDArray[np.int64]:
        """Return the cells (…) whose patch centres are nearest to points (…, 2) given as (y, x)."""
        axis = self.corners[: self.grid, 1] + (self.patch_size - 1) / 2
        row, column = np.moveaxis(np.abs(points[..., None] - axis).argmin(-1), -1, 0)
        return row * self.grid + column

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Sample uniformly random cells (*shape)."""
        return rng.integers(self.num_cells, size=shape)


class ContinuousAction(_PatchAction):
    """An action is a location a in [0,1]², given as (row, column).

    The corner of the patch is floor(a · (size − patch_size)) (paper, section 3.2).

    Args:
        size: Height and width of the frame in pixels.
        patch_size: P, height and width of a patch in pixels.

    Raises:
        InputError: If the patch does not fit the frame.
    """

    def __init__(self, size: int, patch_size: int) -> None:
        super().__init__(size, patch_size)
        self.space = spaces.Box(0.0, 1.0, (2,), np.float32)
        self.candidates = self._at(GridAction(7, size, patch_size).corners)

    def check(self, actions: object, count: int) -> NDArray[np.float32]:
        """Return the actions as a float32 array (count, 2).

        Raises:
            ActionError: If the actions are not one location (row, column) in [0,1]² per clip. The message names the first invalid action.
        """
        return check_coordinates(actions, count, 2, "location (row, column)")

    def corners_of(self, actions: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the corners (…, 2) for locations (…, 2), as (top, left) in pixels."""
        return np.floor(actions.astype(np.float32) * np.float32(self.size - self.patch_size)).astype(np.int64)

    def nearest(self, points: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the locations (…, 2) whose patch centres are nearest to points (…, 2) given as (y, x)."""
        return self._at(np.clip(np.rint(points - (self.patch_size - 1) / 2), 0, self.size - self.patch_size))

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Sample locations (*shape, 2) of uniformly random patches. Every corner, including the last, has the same probability."""
        return self._at(rng.integers(self.size - self.patch_size + 1, size=(*shape, 2)))

    def _at(self, corners: NDArray[Any]) -> NDArray[np.float32]:
        """Return locations that select the given corners.

        Half a pixel is added to every corner, so that a rounding error cannot shift a patch by one pixel.
        """
        return np.minimum((corners + 0.5) / max(1, self.size - self.patch_size), 1).astype(np.float32)


class InterpolatedAction(ContinuousAction):
    """An action is a location a in [0,1]², and the patch is interpolated at this exact location (AdaFocusV2).

    The patch has the corner a · (size − patch_size), which is not rounded; see `classifiers.crop`. Only the boxes of the patches are
    rounded to whole pixels.

    Args:
        size: Height and width of the frame in pixels.
        patch_size: P, height and width of a patch in pixels.

    Raises:
        InputError: If the patch does not fit the frame.
    """

    def corners_of(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Return the corners (…, 2) for locations (…, 2), as (top, left) in pixels. The corners have the dtype of the locations."""
        return actions * actions.dtype.type(self.size - self.patch_size)

    def nearest(self, points: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the locations (…, 2) of patches whose centres are points (…, 2) given as (y, x). Patches are moved into the frame."""
        return (np.clip((points - (self.patch_size - 1) / 2) / max(1, self.size - self.patch_size), 0, 1)).astype(np.float32)

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Sample locations (*shape, 2) uniformly from [0, 1)²."""
        return rng.random((*shape, 2), np.float32)


class SkipAction:
    """An action is a cell of a grid, or skips the frame. The last action is the one that skips: it selects no patch.

    The glancer sees every frame, including skipped frames.

    Args:
        patch_action: The grid of cells.
    """

    def __init__(self, patch_action: GridAction) -> None:
        self.patch_action = patch_action
        self.size, self.patch_size = patch_action.size, patch_action.patch_size
        self.skip, self.num_cells = patch_action.num_cells, patch_action.num_cells + 1
        self.space = spaces.Discrete(self.num_cells)
        self.candidates: NDArray[np.int64] = np.arange(self.num_cells)
        self.nearest, self.sample = patch_action.nearest, patch_action.sample  # always a patch, since random skips are a useless baseline

    def check(self, actions: object, count: int) -> NDArray[np.int64]:
        """Return the actions as an int64 array (count,).

        Raises:
            ActionError: If the actions are not one integer from 0 to G² per clip. The message names the first invalid action.
        """
        return check_cells(actions, count, self.num_cells, f"a cell from 0 to {self.skip - 1}, or {self.skip} to skip")

    def patch_mask(self, actions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return a mask (…) that is true for the actions that are cells."""
        return actions != self.skip

    def to_patch_action(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the cells (…) of actions (…). For an action that skips, return cell 0."""
        return np.where(self.patch_mask(actions), actions, 0)

    def corners_of(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the corners (…, 2) for actions (…), as (top, left) in pixels. For an action that skips, return the corner of cell 0."""
        return self.patch_action.corners_of(self.to_patch_action(actions))


class ContinuousSkipAction:
    """An action is a location and a third coordinate. If the third coordinate is at least 0.5, the step has no patch.

    Args:
        patch_action: The kind of action without the third coordinate.
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
            ActionError: If the actions are not one triple (row, column, skip) in [0,1]³ per clip. The message names the first invalid
                action.
        """
        return check_coordinates(actions, count, 3, "location and whether to skip it (row, column, skip)")

    def patch_mask(self, actions: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return a mask (…) that is true for the actions whose third coordinate is below 0.5."""
        return actions[..., 2] < 0.5

    def to_patch_action(self, actions: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the locations (…, 2) of actions (…, 3). The result contains a location even for an action that skips."""
        return actions[..., :2]

    def corners_of(self, actions: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the corners (…, 2) for actions (…, 3), as (top, left) in pixels."""
        return self.patch_action.corners_of(self.to_patch_action(actions))

    def nearest(self, points: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the actions (…, 3) whose patch centres are nearest to points (…, 2) given as (y, x)."""
        return _append(self.patch_action.nearest(points), 0)

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Sample actions (*shape, 3) that select uniformly random patches."""
        return _append(self.patch_action.sample(rng, shape), 0)


ACTIONS: dict[str, Callable[[int, int, int], Action]] = {
    "grid": GridAction,
    "continuous": lambda grid, size, patch_size: ContinuousAction(size, patch_size),
    "interpolated": lambda grid, size, patch_size: InterpolatedAction(size, patch_size),
    "skip": lambda grid, size, patch_size: SkipAction(GridAction(grid, size, patch_size)),
    "continuous_skip": lambda grid, size, patch_size: ContinuousSkipAction(ContinuousAction(size, patch_size)),
}
"""The kinds of action by name. Every value is a class or function that is called with (grid, size, patch_size)."""


def with_skipping(patch_action: Action) -> Action:
    """Return the variant of this kind of action that can skip the patch. A custom kind is returned unchanged."""
    if isinstance(patch_action, GridAction):
        return SkipAction(patch_action)
    return ContinuousSkipAction(patch_action) if isinstance(patch_action, ContinuousAction) else patch_action


def find_action(action: str | Callable[[int, int, int], Action]) -> Callable[[int, int, int], Action]:
    """Return the kind of action called ``action``. A class is returned unchanged.

    Raises:
        InputError: If the name is unknown. The message suggests the nearest name.
    """
    return action if callable(action) else lookup("action", action, ACTIONS)


def masks_of(action: Action, last_chance: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the action masks (N, actions).

    If ``last_chance`` (N,) is true for a clip, the action mask of this clip excludes the action that skips.

    Raises:
        InputError: If actions are continuous.
    """
    if action.num_cells is None:
        raise InputError("action_masks: continuous actions have no masks; use action='grid' or action='skip'")
    masks = np.ones((len(last_chance), action.num_cells), bool)
    masks[last_chance] = action.patch_mask(action.candidates)
    return masks


def _append(locations: NDArray[np.float32], third: float) -> NDArray[np.float32]:
    """Append the coordinate ``third`` to locations (…, 2), and return the actions (…, 3)."""
    return np.concatenate([locations, np.full_like(locations[..., :1], third)], axis=-1)
