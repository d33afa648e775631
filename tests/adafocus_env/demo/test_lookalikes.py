"""Version 1 of the tasks: only the mark distinguishes the target."""

import dataclasses

import numpy as np
import pytest

from adafocus_env.demo.lookalikes import HALO, SPACING, draw_lookalikes
from adafocus_env.demo.lookalikes import _paths as drawn_paths
from adafocus_env.demo.renderer import draw
from adafocus_env.demo.videos import TASKS, DemoTask, demo
from adafocus_env.demo.videos import _digits as digits_of
from adafocus_env.demo.videos import _scene as scene_of
from classifiers.errors import InputError

VERSION_1 = ("track", "mover", "sparse")
VIDEOS = 40
BESIDE = np.array([10, 0])  # from the centre of a digit to its halo


def scenes(name, **appearance):
    task = dataclasses.replace(TASKS[name], train_videos=VIDEOS, clutter=0, noise=0.0, **appearance)
    return [scene_of(video, task) for video in demo(task, val=0.0).train]


def paths_of(scene):
    """The centres (5, length, 2) of target and look-alikes."""
    return drawn_paths(scene.task, 5, HALO if scene.task.mark == "halo" else scene.task.target, np.random.default_rng(scene.seed))


def colours_at(frames, centres, reach=3):
    """The mean colour (length, 3) of a square around the centres."""
    corners = np.round(centres).astype(int) - reach
    return np.stack([
        frame[y : y + 2 * reach + 1, x : x + 2 * reach + 1].mean((0, 1)) for frame, (y, x) in zip(frames, corners, strict=True)
    ])  # fmt: skip


@pytest.mark.parametrize("name", VERSION_1)
def test_digits_stay_apart_and_inside_and_move_alike(name):
    paths = np.stack([paths_of(scene) for scene in scenes(name)])
    margin = (24 if name == "sparse" else 16) / 2 - 0.5
    assert paths.min() >= margin and paths.max() <= 95 - margin
    distances = np.linalg.norm(paths[:, :, None] - paths[:, None], axis=-1) + 1e9 * np.eye(5)[None, :, :, None]
    assert distances.min() > SPACING - 0.5
    speeds = np.linalg.norm(np.diff(paths[:, :, TASKS[name].cue :], axis=2), axis=-1)
    target, others = speeds[:, 0].mean(), speeds[:, 1:].mean()
    assert 2.2 < target < 3.2 and target == pytest.approx(others, rel=0.12)


@pytest.mark.parametrize("name", VERSION_1)
def test_the_middle_of_the_frame_is_not_preferred(name):
    paths = np.concatenate([paths_of(scene)[0] for scene in scenes(name)])
    assert (np.abs(paths - 47.5).max(-1) < 12).mean() < 2 * (24 / 72) ** 2


def test_track_marks_the_target_by_the_red_disc_of_the_cue_alone():
    for scene in scenes("track"):
        frames, centres, visible = draw(scene)
        assert visible.tolist() == [False] * 4 + [True] * 12
        paths = paths_of(scene)
        assert np.array_equal(paths[0], centres)
        hue = np.stack([colours_at(frames, path) for path in paths])  # (5, length, 3)
        redness = hue[..., 0] - hue[..., 2]
        assert (redness[0, :4] > 60).all() and (redness[1:, :4] < 0).all(), "only the target's disc is red"
        assert (redness[:, 4:].mean(1) > 10).all(), "later all digits are red"


def test_mover_marks_the_target_by_its_motion_in_the_cue_alone():
    moved = []
    for scene in scenes("mover"):
        _, centres, visible = draw(scene)
        assert visible.tolist() == [False] * 6 + [True] * 10
        paths = paths_of(scene)
        assert np.array_equal(paths[0], centres) and (np.diff(paths[1:, :6], axis=1) == 0).all(), "the others stand"
        moved.append(np.abs(np.diff(paths[0, :6], axis=0)).sum())
    assert min(moved) > 3 and np.mean(moved) > 10


def test_sparse_shows_every_digit_in_a_third_of_the_frames_and_marks_the_target_by_the_hue_of_its_halo():
    firsts, sums = [], []
    for scene in scenes("sparse"):
        frames, centres, visible = draw(scene)
        shown = np.flatnonzero(visible)
        assert len(shown) == 8 and np.ptp(shown) == 7
        firsts.append(shown[0])
        corner = colours_at(frames, centres + BESIDE, reach=1)[visible]  # of the halo, beside the digit
        assert (corner[:, 2] > corner[:, 0] + 40).all() and (corner[:, 2] > corner[:, 1] + 40).all(), "the target's halo is blue"
        sums.append(corner.sum(1).mean())
    assert min(firsts) < 4 and max(firsts) > 12
    assert np.mean(sums) == pytest.approx(210, abs=10)


def test_a_classifier_learns_from_halos_of_every_hue():
    """The glances of the classifier must not distinguish hues."""
    alone = dataclasses.replace(TASKS["sparse"].classifier_training_task, train_videos=VIDEOS, clutter=0, noise=0.0)
    assert (alone.visible, alone.lookalikes) == (1.0, 0)
    seen = set()
    for video in demo(alone, val=0.0).train:
        frames, centres, _ = draw(scene_of(video, alone))
        seen.add(tuple((colours_at(frames, centres + BESIDE, reach=1).mean(0) > 75).tolist()))
    assert len(seen) >= 4


@pytest.mark.parametrize("name", VERSION_1)
def test_look_alikes_are_digits_of_other_classes_all_different(name):
    images, labels, _ = digits_of("train")
    known = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    for scene in scenes(name):
        classes = [known[digit.tobytes()] for digit in scene.digits]
        assert classes[0] == scene.label and len(set(classes)) == 5


def test_the_same_scene_is_drawn_again():
    scene = scenes("track")[0]
    first, again = (draw_lookalikes(scene, np.random.default_rng(scene.seed))[0] for _ in range(2))
    assert np.array_equal(first, again)


@pytest.mark.parametrize(
    ("appearance", "message"),
    [
        ({"mark": "cue_colour", "lookalikes": 4}, r"cue must be at least 1 with mark='cue_colour', whose mark is in the cue, got 0"),
        ({"mark": "halo", "lookalikes": 5}, r"lookalikes must be from 0 to 4 with mark='halo', got 5"),
    ],
)
def test_settings_that_cannot_be_drawn(appearance, message):
    with pytest.raises(InputError, match=message):
        DemoTask(**appearance)
