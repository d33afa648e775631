"""Checks of what an agent does: whether actions lie in the space."""

from __future__ import annotations

import numpy as np
from gymnasium.error import InvalidAction
from numpy.typing import NDArray

from adafocus_env.transfers import Values
from classifiers.errors import InputError


class ActionError(InputError, InvalidAction):
    """An action that lies outside the action space."""


def check_numbers(actions: object, count: int, num_cells: int, choices: str) -> NDArray[np.int64]:
    """Whole numbers from 0 to ``num_cells`` − 1 as an int64 array (count,).

    Raises:
        ActionError: not one for each clip (names the first bad one).
    """
    try:
        array = np.asarray(actions)
    except ValueError as problem:
        raise ActionError(f"actions are no array ({problem}); give one cell for each of the {count} clips") from problem
    check_form(array, count, num_cells, whole=np.issubdtype(array.dtype, np.integer))
    if (bad := np.flatnonzero((array < 0) | (array >= num_cells))).size:
        raise ActionError(f"action {array[bad[0]]} (clip {bad[0]}) is outside the space; choose {choices}")
    return array.astype(np.int64)


def check_form(cells: Values, count: int, num_cells: int, *, whole: bool) -> None:
    """Checks shape and dtype of cells; ``whole`` says whether the dtype is one of whole numbers.

    Raises:
        ActionError: one is wrong.
    """
    if cells.shape != (count,):
        raise ActionError(f"actions have shape {tuple(cells.shape)}; give one cell for each of the {count} clips: shape ({count},)")
    if not whole:
        raise ActionError(f"actions have dtype {cells.dtype}; cells are whole numbers from 0 to {num_cells - 1}")


def check_places(actions: object, count: int, length: int, each: str) -> NDArray[np.float32]:
    """Numbers in [0, 1] as a float32 array (count, length).

    Raises:
        ActionError: not so many for each clip (names the first bad one).
    """
    try:
        array = np.asarray(actions, np.float32)
    except (ValueError, TypeError) as problem:
        raise ActionError(f"actions are no array of numbers ({problem}); give one place for each of the {count} clips") from problem
    if array.shape != (count, length):
        raise ActionError(
            f"actions have shape {array.shape}; give one {each} for each of the {count} clips: shape ({count}, {length})"
        )
    if (bad := np.flatnonzero(~((array >= 0) & (array <= 1)).all(1))).size:  # NaN is no number in it either
        raise ActionError(f"action {array[bad[0]]} (clip {bad[0]}) is outside the space; all coordinates lie in [0, 1]")
    return array


def check_patch(size: int, patch_size: int) -> None:
    """Checks that a patch fits the frame.

    Raises:
        InputError: it does not.
    """
    if not 0 < patch_size <= size:
        raise InputError(f"patch_size={patch_size} does not fit frames of {size} pixels; choose a patch_size from 1 to {size}")
