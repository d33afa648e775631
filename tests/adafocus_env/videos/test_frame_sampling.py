import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adafocus_env.videos.frame_sampling import ORDERS, coarse_to_fine, segment_indices
from classifiers.errors import InputError

RELEASED = json.loads((Path(__file__).parents[2] / "data" / "sampled_frames.json").read_text())
lengths = st.integers(1, 5000)
segments = st.integers(1, 64)


@given(lengths, segments)
def test_middle_frames_are_the_published_ones(n, t):
    expected = [int(n / t / 2 + n / t * x) for x in range(t)] if n > t else [min(x, n - 1) for x in range(t)]
    assert segment_indices(n, t).tolist() == expected


@pytest.mark.parametrize("n", sorted(map(int, RELEASED["activitynet_16"])))
def test_middle_frames_are_those_of_the_released_activitynet_code(n):
    released = RELEASED["activitynet_16"][str(n)]
    assert (segment_indices(n, 16) + 1).tolist() == released["val"]
    assert (released["test"] == released["val"]) == (n >= 16), "its test mode spreads the frames of a short video"


@pytest.mark.parametrize("n", sorted(map(int, RELEASED["something_8_12"])))
@pytest.mark.parametrize(("network", "t"), [("glancer", 8), ("focuser", 12)])
def test_middle_frames_are_those_of_the_released_something_code_where_it_is_right(n, network, t):
    ours, released = (segment_indices(n, t) + 1).tolist(), RELEASED["something_8_12"][str(n)][f"val_{network}"]
    if n > t:
        assert ours == released
    else:
        assert released == [1] * t, "it repeats the first frame, and so never looks at the others"
        assert ours == [*range(1, n + 1), *[n] * (t - n)]


@pytest.mark.parametrize("n", sorted(map(int, RELEASED["activitynet_16"])))
def test_released_draws_can_be_made_number_for_number(n):
    generator = SimpleNamespace(integers=np.random.RandomState(11).randint)  # the generator of the released code
    drawn = segment_indices(n, 16, generator, "released")
    assert (drawn + 1).tolist() == RELEASED["activitynet_16"][str(n)]["train_npseed11"]


def test_released_draws_never_see_the_tail_of_a_video_and_ours_do():
    rng = np.random.default_rng(0)
    released = np.array([segment_indices(31, 16, rng, "released") for _ in range(200)])
    assert (released == np.arange(16)).all(), "nothing is random, and the second half is never seen"
    ours = np.array([segment_indices(31, 16, rng) for _ in range(200)])
    assert set(ours.ravel().tolist()) == set(range(31))


@given(lengths, segments, st.integers(0, 2**32))
def test_random_frames_lie_in_their_segments(n, t, seed):
    indices = segment_indices(n, t, np.random.default_rng(seed))
    assert indices.shape == (t,) and indices.dtype == np.int64
    if n <= t:
        assert indices.tolist() == segment_indices(n, t).tolist()
    else:
        assert all(n * x <= f * t < n * (x + 1) for x, f in enumerate(indices.tolist()))


def test_every_frame_of_a_segment_can_be_drawn():
    rng = np.random.default_rng(0)
    drawn = np.array([segment_indices(10, 4, rng) for _ in range(300)])
    assert [sorted(set(column)) for column in drawn.T.tolist()] == [[0, 1, 2], [3, 4], [5, 6, 7], [8, 9]]


def test_short_videos_repeat_the_last_frame():
    assert segment_indices(3, 6).tolist() == [0, 1, 2, 2, 2, 2]
    assert segment_indices(1, 3, np.random.default_rng(0)).tolist() == [0, 0, 0]


def test_global_random_state_is_left_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    segment_indices(100, 8, np.random.default_rng(0))
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_no_frames_is_an_error():
    with pytest.raises(InputError, match="at least 1 frame to sample from, this one has 0"):
        segment_indices(0, 8)
    with pytest.raises(InputError, match="num_frames: a clip needs at least 1 frame, got 0"):
        segment_indices(8, 0)
    with pytest.raises(InputError, match=r"sampling='random' is not known; choose one of \['released', 'segments'\]"):
        segment_indices(20, 8, np.random.default_rng(0), "random")


def test_the_released_order_of_sixteen_frames():
    assert coarse_to_fine(16).tolist() == [7, 0, 15, 3, 11, 1, 5, 9, 13, 2, 4, 6, 8, 10, 12, 14]


@pytest.mark.parametrize(("t", "order"), [(1, [0]), (2, [0, 1]), (3, [1, 0, 2]), (4, [1, 0, 3, 2]), (8, [3, 0, 7, 1, 5, 2, 4, 6])])
def test_coarse_to_fine_begins_in_the_middle_and_at_the_ends(t, order):
    assert coarse_to_fine(t).tolist() == order


@given(segments, st.sampled_from(sorted(ORDERS)))
def test_an_order_has_every_frame_once(t, name):
    assert sorted(ORDERS[name](t).tolist()) == list(range(t))
