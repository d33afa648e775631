"""Check the actions that a user passes to an environment, and define the error for actions outside the action space."""

import numpy as np
from gymnasium.error import InvalidAction
from numpy.typing import NDArray

from adafocus_env.transfers import Values
from classifiers.errors import InputError, refuse_if


class ActionError(InputError, InvalidAction):
    """Raised if an action lies outside the action space."""


def check_cells(actions: object, count: int, num_cells: int, choices: str) -> NDArray[np.int64]:
    """Check that the actions are integers from 0 to ``num_cells`` − 1, and return them as an int64 array (count,).

    Args:
        actions: The actions that the user passed.
        count: Number of clips.
        num_cells: Number of different actions.
        choices: Description of the allowed actions for the error message.

    Raises:
        ActionError: If the actions are not one integer from 0 to ``num_cells`` − 1 per clip. The message names the first invalid action.
    """
    try:
        array = np.asarray(actions)
    except ValueError as problem:
        raise ActionError(f"actions must be an array ({problem}); give one cell for each of the {count} clips") from problem
    check_form(array, count, num_cells, whole=array.dtype.kind in "iu")
    if (bad := np.flatnonzero((array < 0) | (array >= num_cells))).size:
        raise ActionError(f"action {array[bad[0]]} (clip {bad[0]}) is outside the space; choose {choices}")
    return array.astype(np.int64)


def check_form(cells: Values, count: int, num_cells: int, *, whole: bool) -> None:
    """Check the shape and the dtype of cells. The argument ``whole`` states whether the dtype is an integer type.

    Raises:
        ActionError: If the shape is not (count,), or if the dtype is not an integer type.
    """
    if cells.shape != (count,):
        raise ActionError(f"actions have shape {tuple(cells.shape)}; give one cell for each of the {count} clips: shape ({count},)")
    if not whole:
        raise ActionError(f"actions have dtype {cells.dtype}; cells must be integers from 0 to {num_cells - 1}")


def check_coordinates(actions: object, count: int, length: int, what: str) -> NDArray[np.float32]:
    """Check that the actions are numbers in [0, 1], and return them as a float32 array (count, length).

    Args:
        actions: The actions that the user passed.
        count: Number of clips.
        length: Number of coordinates of an action.
        what: Description of an action for the error message.

    Raises:
        ActionError: If the actions are not ``length`` numbers in [0, 1] per clip. The message names the first invalid action.
    """
    try:
        array = np.asarray(actions, np.float32)
    except (ValueError, TypeError) as problem:
        raise ActionError(f"actions must be an array of numbers ({problem}); give one {what} for each of the {count} clips") from problem
    refuse_if(
        array.shape != (count, length),
        ActionError(f"actions have shape {array.shape}; give one {what} for each of the {count} clips: shape ({count}, {length})"),
    )
    if (bad := np.flatnonzero(~((array >= 0) & (array <= 1)).all(1))).size:  # also NaN
        raise ActionError(f"action {array[bad[0]]} (clip {bad[0]}) is outside the space; all coordinates must lie in [0, 1]")
    return array
