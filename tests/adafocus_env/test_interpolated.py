"""Interpolated patches: the kind of action, live features, and the environment."""

import numpy as np
import pytest
import torch

from adafocus_env.action import ContinuousAction, GridAction, InterpolatedAction, boxes_of, find_action
from adafocus_env.build import arguments_of, build_features
from adafocus_env.features.live import LiveFeatures
from adafocus_env.vector_env import AdaFocusVectorEnv
from classifiers.crop import crop_at_locations, crop_patches
from classifiers.errors import InputError

ACTION = InterpolatedAction(96, 24)
LOCATIONS = np.array([[0, 0], [0.31, 0.774], [1, 1], [0.5, 0.25]], np.float32)


def test_corners_are_not_rounded_and_boxes_are():
    assert find_action("interpolated")(7, 96, 24).corners_of(LOCATIONS) == pytest.approx(LOCATIONS * 72)
    assert boxes_of(ACTION, LOCATIONS).tolist() == [[0, 0, 24, 24], [22, 56, 46, 80], [72, 72, 96, 96], [36, 18, 60, 42]]
    assert boxes_of(ACTION, LOCATIONS).dtype == np.int64


def test_random_locations_are_uniform():
    sampled = ACTION.sample(np.random.default_rng(0), (4000, 3))
    assert sampled.shape == (4000, 3, 2) and sampled.dtype == np.float32
    assert sampled.min() >= 0 and sampled.max() < 1
    assert np.abs(np.histogram(sampled, bins=10, range=(0, 1))[0] / sampled.size - 0.1).max() < 0.01


def test_the_nearest_location_has_its_patch_at_the_point():
    points = np.array([[40.3, 50.0], [0.0, 95.0]])
    assert ACTION.corners_of(ACTION.nearest(points)) + 11.5 == pytest.approx(np.array([[40.3, 50.0], [11.5, 83.5]]), abs=1e-4)


def test_a_patch_of_the_size_of_the_frame_is_the_frame():
    action = InterpolatedAction(96, 96)
    assert not action.corners_of(LOCATIONS).any() and not action.nearest(np.array([[3.0, 4.0]])).any()


def test_patches_are_cropped_as_corners_say():
    frames = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    source, corners = torch.tensor([1, 0]), torch.tensor([[1.25, 3.0], [0.0, 7.5]])
    expected = crop_at_locations(frames[source], corners / 7, 5)
    assert torch.allclose(crop_patches(frames, source, corners, 5), expected, atol=1e-5)


@pytest.mark.numerical
def test_live_focus_vectors_are_those_of_interpolated_patches(classifier, clips):
    features, numbers = LiveFeatures(classifier, clips, ACTION), np.array([3, 7, 3, 0])
    steps = np.array([0, 1, 2, 3])
    found = features.focus_vectors(numbers, steps, LOCATIONS)
    frames = torch.stack([classifier.normalise(clips.frames(clip))[step] for clip, step in zip(numbers, steps, strict=True)])
    expected = classifier.focus(crop_at_locations(frames, torch.from_numpy(LOCATIONS), 24))
    assert torch.allclose(found, expected, atol=1e-4)
    whole = LiveFeatures(classifier, clips, ContinuousAction(96, 24)).focus_vectors(numbers, steps, LOCATIONS)
    assert torch.allclose(found[[0, 2]], whole[[0, 2]], atol=1e-4) and not torch.allclose(found[1], whole[1], atol=1e-2)


@pytest.mark.numerical
def test_corners_of_a_grid_give_the_features_of_the_grid(classifier, clips, bank):
    cells = np.array([0, 24, 48])
    grid = GridAction(7, 96, 24)
    clip, step = np.array([1, 2, 3]), np.array([0, 1, 2])
    ours = LiveFeatures(classifier, clips, ACTION).focus_vectors(clip, step, (grid.corners[cells] / 72).astype(np.float32))
    assert torch.allclose(ours, bank.focus_vectors(clip, step, cells), atol=1e-4)


@pytest.mark.numerical
def test_the_environment_plays_it(classifier, clips):
    features = build_features(classifier, clips, action="interpolated", bank=False)
    assert arguments_of(features) == {"action": "interpolated", "video_div": None}
    env = AdaFocusVectorEnv(2, classifier, clips, action="interpolated", bank=False, reward="random")
    assert env.single_action_space.shape == (2,)
    env.reset(seed=0)
    actions = np.array([[0.31, 0.774], [0.9, 0.1]], np.float32)
    _, reward, _, _, info = env.step(actions)
    assert np.array_equal(info["box"], boxes_of(ACTION, actions)) and np.isfinite(reward).all()


def test_a_skipping_form_does_not_exist():
    with pytest.raises(InputError, match="action='interpolated_skip' is not known"):
        find_action("interpolated_skip")
