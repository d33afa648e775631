import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adafocus_env.clips.transforms import Crop, apply_crop, centre_crop, map_points, rescale_points, sample_crop
from classifiers.errors import InputError

pytestmark = pytest.mark.numerical


def random_frames(t=2, height=20, width=30):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (t, 3, height, width), np.uint8))


def test_centre_crop_is_in_the_middle():
    assert centre_crop(256, 340, 224) == Crop(16, 58, 224, 224)
    assert centre_crop(96, 96, 96) == Crop(0, 0, 96, 96)


def test_a_crop_larger_than_the_frame_is_an_error():
    with pytest.raises(InputError, match="a crop of 64 pixels does not fit in frames of 48×80"):
        centre_crop(48, 80, 64)


@given(st.integers(16, 300), st.integers(16, 300), st.integers(8, 224), st.booleans(), st.integers(0, 1000))
def test_drawn_crops_fit_in_the_frame_and_their_sides_are_a_step_apart(height, width, size, flip, seed):
    crop = sample_crop(height, width, size, np.random.default_rng(seed), flip=flip)
    assert 0 <= crop.top <= height - crop.height and 0 <= crop.left <= width - crop.width
    sides = [min(height, width) * scale for scale in (1, 0.875, 0.75, 0.66)]
    steps = [{i for i, wanted in enumerate(sides) if abs(side - wanted) <= 4} for side in (crop.height, crop.width)]
    assert any(abs(i - j) <= 1 for i in steps[0] for j in steps[1])
    assert flip or not crop.flip


def test_every_position_is_drawn_the_last_one_included():
    rng = np.random.default_rng(0)
    crops = [sample_crop(12, 14, 10, rng, scales=(10 / 12,)) for _ in range(500)]
    assert {crop.top for crop in crops} == {0, 1, 2}
    assert {crop.left for crop in crops} == {0, 1, 2, 3, 4}
    assert {crop.flip for crop in crops} == {False, True}


def test_all_scales_are_drawn_at_most_one_step_apart():
    rng = np.random.default_rng(0)
    drawn = {(crop.height, crop.width) for crop in (sample_crop(100, 100, 50, rng) for _ in range(400))}
    sides = [100, 87, 75, 66]
    assert drawn == {(a, b) for i, a in enumerate(sides) for j, b in enumerate(sides) if abs(i - j) <= 1}


def test_a_crop_nearly_of_the_size_is_taken_at_the_size():
    assert sample_crop(256, 256, 223, np.random.default_rng(0), scales=(0.875,)).height == 223


def test_drawing_depends_on_the_generator_alone():
    assert sample_crop(99, 120, 64, np.random.default_rng(5)) == sample_crop(99, 120, 64, np.random.default_rng(5))


def test_a_crop_of_the_size_is_an_exact_copy():
    frames = random_frames()
    cropped = apply_crop(frames, Crop(3, 5, 12, 12), 12)
    assert torch.equal(cropped, frames[:, :, 3:15, 5:17])
    assert cropped.is_contiguous()
    cropped.zero_()
    assert frames.any(), "the stored frames must not change with the crop"
    mirrored = apply_crop(frames, Crop(3, 5, 12, 12, flip=True), 12)
    assert torch.equal(mirrored, frames[:, :, 3:15, 5:17].flip(-1)) and mirrored.is_contiguous()


def test_other_crops_are_resized_alike_for_all_frames():
    frames = random_frames(1).expand(4, -1, -1, -1)
    cropped = apply_crop(frames, Crop(0, 0, 20, 18, flip=True), 12)
    assert cropped.shape == (4, 3, 12, 12) and cropped.dtype == torch.uint8
    assert (cropped == cropped[:1]).all()
    plain = apply_crop(frames, Crop(0, 0, 20, 18), 12)
    assert torch.equal(cropped, plain.flip(-1))
    smooth = torch.arange(20, dtype=torch.uint8).mul(10).view(1, 1, 20, 1).expand(1, 3, 20, 20)
    assert torch.allclose(apply_crop(smooth, Crop(0, 0, 20, 20), 10)[0, 0, 1:-1, 0].float(), torch.arange(25.0, 175, 20), atol=1)


@given(st.integers(0, 4), st.integers(0, 6), st.sampled_from([12, 24]), st.booleans())
def test_points_move_with_the_pixels(top, left, side, flip):
    frames = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    point = np.array([[top + 5, left + 3]])
    frames[0, :, point[0, 0], point[0, 1]] = 255
    crop = Crop(top, left, side, side, flip)
    cropped = apply_crop(frames, crop, 24)[0, 0].double()
    y, x = map_points(point, crop, 24)[0]
    weights = cropped / cropped.sum()
    assert abs((weights.sum(1) * torch.arange(24)).sum() - y) < 0.1
    assert abs((weights.sum(0) * torch.arange(24)).sum() - x) < 0.1


def test_points_keep_their_shape_and_scale():
    points = np.zeros((2, 5, 2))
    assert map_points(points, Crop(1, 2, 8, 8), 8).shape == (2, 5, 2)
    assert map_points(points, Crop(1, 2, 8, 8), 8)[0, 0].tolist() == [-1.0, -2.0]
    assert map_points(points, Crop(0, 0, 8, 8, flip=True), 8)[0, 0].tolist() == [0.0, 7.0]
    assert rescale_points(np.array([[0.5, 0.5]]), (4, 4), (2, 2)).tolist() == [[0.0, 0.0]]
