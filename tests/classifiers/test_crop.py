"""The interpolated crop: the formula, its gradient, and the results of the authors' code."""

import numpy as np
import pytest
import released_weights
import torch
from torch.nn import functional as F

from classifiers.crop import crop_at_corners, crop_at_locations, crop_patches


def textured(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bilinear(frame: torch.Tensor, top: float, left: float, patch_size: int) -> torch.Tensor:
    """Compute the formula pixel by pixel, with zeros outside of the frame (3, H, W)."""
    padded = F.pad(frame, (patch_size + 1,) * 4)
    patch = torch.empty(3, patch_size, patch_size, dtype=frame.dtype)
    for i in range(patch_size):
        for j in range(patch_size):
            y, x = top + i + patch_size + 1, left + j + patch_size + 1
            row, column = int(y), int(x)
            down, right = y - row, x - column
            upper = (1 - right) * padded[:, row, column] + right * padded[:, row, column + 1]
            lower = (1 - right) * padded[:, row + 1, column] + right * padded[:, row + 1, column + 1]
            patch[:, i, j] = (1 - down) * upper + down * lower
    return patch


@pytest.mark.parametrize("shape", [(11, 11), (9, 13)])
def test_the_formula(shape):
    """The corner is a · (H − P, W − P), as (row, column) and without rounding, also in frames that are not square."""
    frames, patch_size = textured(2, 2, 3, *shape), 4
    locations = torch.tensor([[[0.0, 0.0], [0.31, 0.77]], [[0.98, 0.05], [1.0, 1.0]]], dtype=torch.float64)
    patches = crop_at_locations(frames, locations, patch_size)
    for clip, frame in np.ndindex(2, 2):
        top, left = (locations[clip, frame] * (torch.tensor(shape) - patch_size)).tolist()
        assert torch.allclose(patches[clip, frame], bilinear(frames[clip, frame], top, left, patch_size), rtol=0, atol=1e-12)


def test_corners_on_whole_pixels_give_a_plain_crop():
    frames, corners = textured(2, 3, 12, 12).float(), torch.tensor([[0, 0], [3, 5], [7, 7], [0, 7]])
    source = torch.tensor([0, 1, 1, 0])
    assert torch.equal(crop_at_corners(frames, source, corners.float(), 5), crop_patches(frames, source, corners, 5))


def test_outside_of_the_frame_is_zero():
    frames = textured(1, 3, 8, 8)
    corners = torch.tensor([[-0.25, 2.5], [5.5, -1.75], [-9, 20.5]], dtype=torch.float64)
    patches = crop_at_corners(frames, torch.zeros(3, dtype=torch.int64), corners, 4)
    for patch, corner in zip(patches[:2], corners[:2].tolist(), strict=True):
        assert torch.allclose(patch, bilinear(frames[0], *corner, 4), rtol=0, atol=1e-12)
    assert not patches[2].any()


def test_a_patch_of_the_size_of_the_frame_is_the_frame():
    frames = textured(2, 3, 6, 6)
    assert torch.equal(crop_at_locations(frames, torch.tensor([[0.3, 0.9], [1, 0]]).double(), 6), frames)


def test_one_location_for_all_frames_of_a_clip():
    frames, locations = textured(2, 3, 3, 10, 10), textured(2, 1, 2).sigmoid()
    assert torch.equal(crop_at_locations(frames, locations, 4), crop_at_locations(frames, locations.expand(2, 3, 2), 4))


def test_gradients():
    """Gradients are tested with respect to the frames and to locations, whose corners lie between whole pixels here."""
    frames = textured(2, 1, 3, 7, 9).requires_grad_()
    locations = torch.tensor([[[0.31, 0.77]], [[0.9, 0.12]]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda frames, locations: crop_at_locations(frames, locations, 3), (frames, locations))


def test_frames_of_half_precision_leave_the_location_exact():
    """Frames in bfloat16 do not round the interpolation weights."""
    frames, locations = textured(1, 3, 12, 12).bfloat16(), torch.tensor([[0.123, 0.456]])
    patches = crop_at_locations(frames, locations, 5)
    assert patches.dtype == torch.float32
    assert torch.allclose(patches.double(), crop_at_locations(frames.double(), locations.double(), 5), rtol=0, atol=1e-5)


@pytest.mark.numerical
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("patch_size", [96, 128, 160])
def test_the_authors_results(patch_size, dtype):
    """Their sampling grid is rounded to float32, which moves pixels by up to 1.3e-4."""
    theirs = released_weights.results("crops_v2")
    stored = {name.removeprefix(f"p{patch_size}."): value for name, value in theirs.items()}
    frame = released_weights.frames(2, 16, 224, seed=20220614)[0, :1].to(dtype)
    locations = torch.from_numpy(theirs["actions"]).to(dtype).requires_grad_()
    patches = crop_at_locations(frame.expand(7, -1, -1, -1), locations, patch_size)
    factors = torch.rand((7, 3, patch_size, patch_size), generator=torch.Generator().manual_seed(11)) - 0.5
    (patches * factors).sum().backward()
    patches, gradient = patches.detach(), locations.grad
    assert np.allclose(patches[:, 0, 0, :64], stored["first64"], rtol=0, atol=3e-4)
    assert np.allclose(patches[:, 2, -1, -16:], stored["last16"], rtol=0, atol=3e-4)
    assert np.allclose(patches.flatten(1).mean(1), stored["mean_norm"][:, 0], rtol=0, atol=3e-4)
    assert np.allclose(patches.flatten(1).norm(dim=1), stored["mean_norm"][:, 1], rtol=1e-4)
    assert np.allclose(gradient[3:], stored["grad"][3:], rtol=3e-3)  # of the others, on whole pixels, rounding decides the side
