"""What an agent does: the cell of a grid → the corner of a patch."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import InvalidAction
from numpy.typing import NDArray
from torch import Tensor

from classifiers.errors import InputError


class ActionError(InputError, InvalidAction):
    """An action that lies outside the action space."""


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
        if not 0 < patch_size <= size:
            raise InputError(f"patch_size={patch_size} does not fit frames of {size} pixels; choose a patch_size from 1 to {size}")
        self.grid, self.size, self.patch_size = grid, size, patch_size
        self.num_cells = grid * grid
        self.space = spaces.Discrete(self.num_cells)
        offsets = np.arange(grid) * (size - patch_size) // (grid - 1)  # whole numbers: exact for every size
        self.corners: NDArray[np.int64] = np.stack(np.meshgrid(offsets, offsets, indexing="ij"), axis=-1).reshape(-1, 2)

    def check(self, actions: object, count: int) -> NDArray[np.int64]:
        """The actions as an int64 array (count,).

        Raises:
            ActionError: not one whole number in 0 … G²−1 for each clip (names the first bad one).
        """
        try:
            array = np.asarray(actions)
        except ValueError as problem:
            raise ActionError(f"actions are no array ({problem}); give one cell for each of the {count} clips") from problem
        if array.shape != (count,):
            raise ActionError(f"actions have shape {array.shape}; give one cell for each of the {count} clips: shape ({count},)")
        if not np.issubdtype(array.dtype, np.integer):
            raise ActionError(f"actions have dtype {array.dtype}; cells are whole numbers from 0 to {self.num_cells - 1}")
        if (bad := np.flatnonzero((array < 0) | (array >= self.num_cells))).size:
            raise ActionError(
                f"action {array[bad[0]]} (clip {bad[0]}) is outside the space; choose a cell from 0 to {self.num_cells - 1}, "
                f"row-major on a {self.grid}×{self.grid} grid"
            )
        return array.astype(np.int64)

    def boxes(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Cells (…) → boxes (…, 4) as (top, left, bottom, right) in pixels of the frame."""
        corners = self.corners[actions]
        return np.concatenate([corners, corners + self.patch_size], axis=-1)

    def nearest(self, points: NDArray[np.floating]) -> NDArray[np.int64]:
        """Points (…, 2) as (y, x), (0, 0) being the middle of a pixel → the cell whose patch has its centre nearest (…)."""
        axis = self.corners[: self.grid, 1] + (self.patch_size - 1) / 2
        row, column = np.moveaxis(np.abs(points[..., None] - axis).argmin(-1), -1, 0)
        return row * self.grid + column


def crop_patches(frames: Tensor, source: Tensor, corners: Tensor, patch_size: int) -> Tensor:
    """Cuts patches out of frames in one gather, without a loop or a device synchronisation.

    Args:
        frames: (M, 3, H, W), any dtype.
        source: (N,) int64, the frame that each patch is cut from.
        corners: (N, 2) int64, (top, left) of each patch in pixels.
        patch_size: P in pixels.

    Returns:
        (N, 3, P, P) of the same dtype.
    """
    span = torch.arange(patch_size, device=frames.device)
    rows = corners[:, 0, None, None, None] + span[:, None]
    columns = corners[:, 1, None, None, None] + span
    channels = torch.arange(frames.shape[1], device=frames.device)[:, None, None]
    return frames[source[:, None, None, None], channels, rows, columns]
