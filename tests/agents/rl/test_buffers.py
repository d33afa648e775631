import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from agents.rl.buffers import ClipReplayBuffer, ClipRolloutBuffer, NormalizedReturnsBuffer
from classifiers.errors import InputError

pytestmark = pytest.mark.numerical

STEPS, ENVS, LENGTH = 12, 5, 4  # three episodes in each of five environments
ROWS = 3  # of the replay buffer
SPACES = spaces.Box(0, 100, (2,), np.int64), spaces.Discrete(9)


def filled(buffer):
    """Return a filled buffer. The observation of a step is (environment, step); other values are random but the same in every buffer."""
    rng = np.random.default_rng(0)
    for step in range(STEPS):
        observations = np.stack([np.arange(ENVS), np.full(ENVS, step)], 1)
        starts = np.full(ENVS, step % LENGTH == 0)
        value, log_prob = torch.from_numpy(rng.standard_normal((2, ENVS)).astype(np.float32))
        buffer.add(observations, rng.integers(9, size=(ENVS, 1)), rng.standard_normal(ENVS), starts, value, log_prob)
    buffer.compute_returns_and_advantage(torch.from_numpy(rng.standard_normal(ENVS).astype(np.float32)), np.ones(ENVS))
    return buffer


def clip_buffer(length=LENGTH, steps=STEPS):
    return ClipRolloutBuffer(steps, *SPACES, "cpu", n_envs=ENVS, gae_lambda=0.95, gamma=0.7, clip_length=length)


def test_minibatches_are_whole_episodes_and_every_step_comes_once():
    seen = []
    for batch in filled(clip_buffer()).get(8):
        assert len(batch.observations) in (8, 4)  # 60 steps: the last has one episode
        for episode in batch.observations.long().unflatten(0, (-1, LENGTH)):
            assert len(episode[:, 0].unique()) == 1
            first = int(episode[0, 1])
            assert first % LENGTH == 0 and episode[:, 1].tolist() == list(range(first, first + LENGTH))
        seen += [tuple(reference) for reference in batch.observations.long().tolist()]
    assert sorted(seen) == [(env, step) for env in range(ENVS) for step in range(STEPS)]


def test_the_order_of_the_episodes_is_sampled_again_every_time():
    buffer = filled(clip_buffer())
    np.random.seed(0)  # noqa: NPY002 (the random source of Stable-Baselines3)
    orders = [[tuple(o) for batch in buffer.get(8) for o in batch.observations.long().tolist()] for _ in range(2)]
    np.random.seed(0)  # noqa: NPY002
    again = [tuple(o) for batch in buffer.get(8) for o in batch.observations.long().tolist()]
    assert orders[0] != orders[1] and orders[0] == again


@pytest.mark.parametrize("batch_size", [8, None])
def test_the_order_touches_nothing_that_belongs_to_a_step(batch_size):
    kinds = ("actions", "old_values", "old_log_prob", "advantages", "returns")

    def table(batches):
        return {
            tuple(reference): [float(getattr(batch, kind).ravel()[row]) for kind in kinds]
            for batch in batches
            for row, reference in enumerate(batch.observations.long().tolist())
        }

    plain = filled(RolloutBuffer(STEPS, *SPACES, "cpu", n_envs=ENVS, gae_lambda=0.95, gamma=0.7))
    assert table(filled(clip_buffer()).get(batch_size)) == table(plain.get(7))


def test_rollouts_and_minibatches_must_hold_whole_episodes():
    with pytest.raises(InputError, match="n_steps must be a multiple of the 5 steps of an episode, got 12"):
        clip_buffer(length=5)
    with pytest.raises(InputError, match="batch_size must be a multiple of the 4 steps of an episode, got 6"):
        next(filled(clip_buffer()).get(6))


def normalised_buffer(steps, envs, length):
    return NormalizedReturnsBuffer(steps, *SPACES, "cpu", n_envs=envs, gae_lambda=1.0, gamma=0.7, clip_length=length)


def test_returns_are_sums_of_discounted_rewards_of_an_episode_normalised_over_the_rollout():
    buffer = filled(normalised_buffer(STEPS, ENVS, LENGTH))
    by_hand = [
        sum(0.7**later * buffer.rewards[step + later] for later in range(LENGTH - step % LENGTH)) for step in range(STEPS)
    ]
    assert np.allclose(buffer.monte_carlo_returns(), by_hand, atol=1e-6)
    expected = (np.stack(by_hand) - np.mean(by_hand)) / (np.std(by_hand, ddof=1) + 1e-5)
    assert np.allclose(buffer.returns, expected, atol=1e-5) and buffer.returns.dtype == np.float32
    assert np.array_equal(buffer.advantages, buffer.returns - buffer.values)


def test_returns_far_smaller_than_values_keep_their_digits():
    buffer = normalised_buffer(2, 1, 2)
    for start, reward in ((True, 3e-6), (False, 1e-6)):
        buffer.add(np.zeros((1, 2)), np.zeros((1, 1)), np.array([reward]), np.array([start]), torch.tensor([100.0]), torch.zeros(1))
    assert buffer.monte_carlo_returns().ravel().tolist() == pytest.approx([3.7e-6, 1e-6], rel=1e-6)


def test_a_single_return_is_normalised_to_nought():
    buffer = normalised_buffer(1, 1, 1)
    buffer.add(np.zeros((1, 2)), np.zeros((1, 1)), np.array([0.3]), np.array([True]), torch.tensor([0.5]), torch.zeros(1))
    buffer.compute_returns_and_advantage(torch.zeros(1), np.ones(1))
    assert buffer.returns.tolist() == [[0.0]] and buffer.advantages.tolist() == [[-0.5]]


# Replay


def replay_buffer(size=2 * ROWS * LENGTH):
    return ClipReplayBuffer(size, *SPACES, device="cpu", n_envs=ROWS, clip_length=LENGTH)


def fill(buffer, steps):
    """Fill a buffer. The observation of step t is (10 · episode + environment, step of the episode); its reward is t."""
    for step in range(steps):
        episode, number = divmod(step, LENGTH)
        now = np.stack([10 * episode + np.arange(ROWS), np.full(ROWS, number)], 1)
        after = np.stack([now[:, 0], np.full(ROWS, min(number + 1, LENGTH - 1))], 1)
        buffer.add(now, after, np.full(ROWS, number), np.full(ROWS, step), np.full(ROWS, number == LENGTH - 1), [{}] * ROWS)
    return buffer


def episodes_of(buffer, batches=20):
    """Return the sampled clips after a check that every minibatch consists of complete episodes."""
    seen = set()
    for _ in range(batches):
        batch = buffer.sample(2 * LENGTH)
        for rows in np.arange(2 * LENGTH).reshape(2, LENGTH):
            clip, numbers = batch.observations[rows, 0].long(), batch.observations[rows, 1].long().tolist()
            assert len(clip.unique()) == 1 and numbers == list(range(LENGTH))
            assert batch.next_observations[rows].long().tolist() == [[int(clip[0]), number] for number in (1, 2, 3, 3)]
            assert batch.actions[rows, 0].tolist() == numbers and batch.dones[rows, 0].tolist() == [0, 0, 0, 1]
            assert batch.rewards[rows, 0].tolist() == [LENGTH * (int(clip[0]) // 10) + number for number in numbers]
            seen.add(int(clip[0]))
    return seen


def test_minibatches_are_whole_episodes_of_all_environments():
    assert episodes_of(fill(replay_buffer(), 2 * LENGTH)) == {0, 1, 2, 10, 11, 12}


def test_an_unfinished_episode_is_not_sampled():
    assert episodes_of(fill(replay_buffer(), LENGTH + 2)) == {0, 1, 2}
    assert episodes_of(fill(replay_buffer(), 2 * LENGTH + 1)) == {10, 11, 12}, "the first one is being written over"


def test_the_size_is_rounded_down_to_whole_episodes():
    assert replay_buffer(2 * ROWS * LENGTH + 11).buffer_size == 2 * LENGTH
    with pytest.raises(InputError, match="buffer_size must be 12 or more, an episode of 4 steps in 3 environments, got 11"):
        replay_buffer(11)


def test_batches_that_are_not_whole_episodes_are_refused():
    with pytest.raises(InputError, match="batch_size must be a multiple of the 4 steps of an episode, got 6"):
        fill(replay_buffer(), LENGTH).sample(6)
    with pytest.raises(InputError, match="learning_starts must be 12 or more, an episode of every environment: there is no whole episode"):
        fill(replay_buffer(), LENGTH - 1).sample(4)
