import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.error import InvalidAction

from adafocus_env.action import ActionError, GridAction, boxes_of
from classifiers.crop import crop_patches
from classifiers.errors import InputError

RELEASED = json.loads((Path(__file__).parents[1] / "data" / "patch_offsets.json").read_text())["column_offsets_by_actiondim_patch"]


@pytest.mark.parametrize("name", RELEASED)
def test_corners_are_those_of_the_released_code(name):
    num_cells, patch_size = map(int, name.split("_"))
    grid = GridAction(round(num_cells**0.5), 224, patch_size)
    rows_and_columns = [(row, column) for row in RELEASED[name] for column in RELEASED[name]]
    assert grid.num_cells == grid.space.n == num_cells
    assert grid.corners.tolist() == [list(corner) for corner in rows_and_columns]


@pytest.mark.parametrize(("size", "patch_size"), [(96, 24), (224, 144), (225, 96), (97, 97), (50, 1)])
@pytest.mark.parametrize("grid", [2, 3, 6, 7, 11])
def test_corners_are_the_floor_of_a_times_the_free_span(grid, size, patch_size):
    corners = GridAction(grid, size, patch_size).corners
    for cell, (top, left) in enumerate(corners.tolist()):
        row, column = divmod(cell, grid)
        # floor(a · (size − P)) with a = i / (G − 1), in integers
        assert (top, left) == (row * (size - patch_size) // (grid - 1), column * (size - patch_size) // (grid - 1))
    assert corners[0].tolist() == [0, 0] and corners[-1].tolist() == [size - patch_size] * 2


def test_boxes_are_top_left_bottom_right():
    grid = GridAction(7, 96, 24)
    assert boxes_of(grid, np.array([0, 6, 48])).tolist() == [[0, 0, 24, 24], [0, 72, 24, 96], [72, 72, 96, 96]]
    assert boxes_of(grid, np.zeros((2, 3), np.int64)).shape == (2, 3, 4)


def test_nearest_is_the_cell_with_the_nearest_centre():
    grid = GridAction(5, 60, 17)
    points = np.random.default_rng(0).uniform(-5, 65, (3, 40, 2))
    centres = grid.corners + (17 - 1) / 2
    distances = np.linalg.norm(points[..., None, :] - centres, axis=-1)
    assert grid.nearest(points).shape == (3, 40)
    assert np.array_equal(grid.nearest(points), distances.argmin(-1))
    assert np.array_equal(grid.nearest(centres), np.arange(25))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_patches_cuts_what_slicing_cuts(dtype):
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(rng.integers(0, 256, (4, 3, 20, 30))).to(dtype)
    source = torch.from_numpy(rng.integers(0, 4, 50))
    corners = torch.from_numpy(np.stack([rng.integers(0, 20 - 7 + 1, 50), rng.integers(0, 30 - 7 + 1, 50)], axis=1))
    patches = crop_patches(frames, source, corners, 7)
    assert patches.shape == (50, 3, 7, 7) and patches.dtype == dtype
    for patch, frame, (top, left) in zip(patches, source, corners.tolist(), strict=True):
        assert torch.equal(patch, frames[frame, :, top : top + 7, left : left + 7])


@pytest.mark.parametrize("actions", [[0, 48], np.array([0, 48], np.int32), np.array([0, 48], np.uint8), (np.int64(0), 48)])
def test_integers_of_any_kind_are_actions(actions):
    checked = GridAction(7, 96, 24).check(actions, 2)
    assert checked.dtype == np.int64 and checked.tolist() == [0, 48]


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ([3, 49], r"action 49 \(clip 1\) is outside the space; choose a cell from 0 to 48, row-major on a 7×7 grid"),
        ([-1, 49], r"action -1 \(clip 0\) is outside the space"),
        (np.array([0, 2**63], np.uint64), r"action 9223372036854775808 \(clip 1\) is outside the space"),
        ([3.0, 4.0], "actions have dtype float64; cells must be integers from 0 to 48"),
        ([np.nan, 4], "actions have dtype float64; cells must be integers"),
        ([True, False], "actions have dtype bool; cells must be integers"),
        (["3", "4"], "actions have dtype <U1; cells must be integers"),
        ([None, 4], "actions have dtype object; cells must be integers"),
        ([3], r"actions have shape \(1,\); give one cell for each of the 2 clips: shape \(2,\)"),
        ([[3, 4]], r"actions have shape \(1, 2\)"),
        (3, r"actions have shape \(\)"),
        ([[3], [4, 5]], "actions must be an array .*give one cell for each of the 2 clips"),
    ],
)
def test_actions_outside_the_space(actions, message):
    with pytest.raises(ActionError, match=message) as caught:
        GridAction(7, 96, 24).check(actions, 2)
    assert isinstance(caught.value, InputError) and isinstance(caught.value, InvalidAction)


@pytest.mark.parametrize("grid", [1, 0, -3])
def test_a_grid_has_two_cells_or_more(grid):
    with pytest.raises(InputError, match=rf"grid={grid} is too small; choose 2 or more cells per axis \(the paper uses 7\)"):
        GridAction(grid, 96, 24)


@pytest.mark.parametrize("patch_size", [97, 0])
def test_a_patch_must_fit_the_frame(patch_size):
    with pytest.raises(InputError, match=f"patch_size={patch_size} does not fit frames of 96 pixels; choose a patch_size from 1 to 96"):
        GridAction(7, 96, patch_size)
