import numpy as np
import pytest
from gymnasium import spaces

from agents.rl.replay_buffer import ClipReplayBuffer
from classifiers.errors import InputError

ENVS, LENGTH = 3, 4
SPACES = spaces.Box(0, 100, (2,), np.int64), spaces.Discrete(9)


def buffer(size=2 * ENVS * LENGTH):
    return ClipReplayBuffer(size, *SPACES, device="cpu", n_envs=ENVS, clip_length=LENGTH)


def fill(buffer, steps):
    """The observation of step t is (10 · episode + environment, step of the episode); its reward is t."""
    for step in range(steps):
        episode, place = divmod(step, LENGTH)
        now = np.stack([10 * episode + np.arange(ENVS), np.full(ENVS, place)], 1)
        after = np.stack([now[:, 0], np.full(ENVS, min(place + 1, LENGTH - 1))], 1)
        buffer.add(now, after, np.full(ENVS, place), np.full(ENVS, step), np.full(ENVS, place == LENGTH - 1), [{}] * ENVS)
    return buffer


def episodes_of(buffer, draws=20):
    """The clips that are drawn; every draw must be whole episodes with all that belongs to them."""
    seen = set()
    for _ in range(draws):
        batch = buffer.sample(2 * LENGTH)
        for rows in np.arange(2 * LENGTH).reshape(2, LENGTH):
            clip, places = batch.observations[rows, 0].long(), batch.observations[rows, 1].long().tolist()
            assert len(clip.unique()) == 1 and places == list(range(LENGTH))
            assert batch.next_observations[rows].long().tolist() == [[int(clip[0]), place] for place in (1, 2, 3, 3)]
            assert batch.actions[rows, 0].tolist() == places and batch.dones[rows, 0].tolist() == [0, 0, 0, 1]
            assert batch.rewards[rows, 0].tolist() == [LENGTH * (int(clip[0]) // 10) + place for place in places]
            seen.add(int(clip[0]))
    return seen


def test_minibatches_are_whole_episodes_of_all_environments():
    assert episodes_of(fill(buffer(), 2 * LENGTH)) == {0, 1, 2, 10, 11, 12}


def test_an_episode_that_goes_on_is_not_drawn():
    assert episodes_of(fill(buffer(), LENGTH + 2)) == {0, 1, 2}
    assert episodes_of(fill(buffer(), 2 * LENGTH + 1)) == {10, 11, 12}, "the first one is being written over"


def test_the_size_is_rounded_down_to_whole_episodes():
    assert buffer(2 * ENVS * LENGTH + 11).buffer_size == 2 * LENGTH
    with pytest.raises(InputError, match="buffer_size=11 has no room for an episode of 4 steps in each of 3 environments; choose 12"):
        buffer(11)


def test_batches_that_are_not_whole_episodes_are_refused():
    with pytest.raises(InputError, match="batch_size=6 is not a multiple of the 4 steps of an episode"):
        fill(buffer(), LENGTH).sample(6)
    with pytest.raises(InputError, match="there is no whole episode to learn from yet; choose learning_starts=12 or more"):
        fill(buffer(), LENGTH - 1).sample(4)
