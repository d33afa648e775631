import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adafocus_env.sampling import segment_indices
from classifiers.errors import InputError

lengths = st.integers(1, 5000)
segments = st.integers(1, 64)


@given(lengths, segments)
def test_middle_frames_are_the_published_ones(n, t):
    expected = [int(n / t / 2 + n / t * x) for x in range(t)] if n > t else [min(x, n - 1) for x in range(t)]
    assert segment_indices(n, t).tolist() == expected


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
