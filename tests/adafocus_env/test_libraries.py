"""Every registered id passes the checkers of other libraries, and episodes in their APIs equal those of the single environment."""

import gymnasium as gym
import numpy as np
import pytest

from adafocus_env import ARGUMENTS
from adafocus_env.observation import OBSERVATIONS

IDS = [name for name in ARGUMENTS if name.endswith("-v1")]
N, T, SEED, EPISODES = 3, 4, 5, 2


@pytest.fixture
def arguments(classifier, clips, bank):
    """Return the shared classifier and clips, with the bank of their features."""
    return {"classifier": classifier, "clips": clips, "bank": bank}


@pytest.fixture
def live(arguments):
    return {**arguments, "bank": False}


def actions_of(space, episode):
    """Return actions (T, N, …) that are the same in every API."""
    space.seed(episode)
    return np.array([[space.sample() for _ in range(N)] for _ in range(T)])


def played_singly(name, arguments):
    """Return observations (E, T + 1, …), rewards and terminated (E, T) for each of N environments with separate seeds."""
    record = []
    for row in range(N):
        env = gym.make(name, observation="vector", **arguments)
        env.reset(seed=SEED + row)  # what TorchRL's set_seed does; the episodes below are those after it
        seen, rewards, ended = [], [], []
        for episode in range(EPISODES):
            begun = [env.reset()[0]]
            steps = [env.step(action[row]) for action in actions_of(env.action_space, episode)]
            seen.append(begun + [step[0] for step in steps])
            rewards.append([step[1] for step in steps])
            ended.append([step[2] for step in steps])
        record.append((np.array(seen), np.array(rewards), np.array(ended)))
    return record


# TorchRL


@pytest.fixture
def torchrl():
    return pytest.importorskip("torchrl.envs", reason="TorchRL is not installed (pip install 'adafocus-env[torchrl]')")


@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("name", IDS)
def test_torchrls_checker_finds_nothing(torchrl, live, name, observation):
    torchrl.check_env_specs(torchrl.GymWrapper(gym.make(name, observation=observation, **live)), seed=0)
    envs = gym.make_vec(name, N, "vector_entry_point", observation=observation, autoreset_mode="Disabled", **live)
    torchrl.check_env_specs(torchrl.GymWrapper(envs), seed=0)


@pytest.mark.parametrize("name", ["AdaFocus-v1", "AdaFocusContinuous-v1"])
def test_torchrl_plays_the_same(torchrl, live, name):
    import torch

    envs = gym.make_vec(name, N, "vector_entry_point", observation="vector", autoreset_mode="Disabled", **live)
    wrapped = torchrl.GymWrapper(envs, categorical_action_encoding=True)
    wrapped.set_seed(SEED)
    expected = played_singly(name, live)
    for episode in range(EPISODES):
        step = wrapped.reset()
        for number, actions in enumerate(actions_of(envs.single_action_space, episode)):
            for row in range(N):
                assert np.array_equal(step["observation"][row].numpy(), expected[row][0][episode, number])
            step = wrapped.step(step.set("action", torch.from_numpy(actions)))["next"]
            for row in range(N):
                assert step["reward"][row].item() == pytest.approx(expected[row][1][episode, number], abs=1e-6)
                assert step["terminated"][row].item() == expected[row][2][episode, number]
        assert step["done"].all()


# RLlib


@pytest.fixture
def rllib():
    pytest.importorskip("ray.rllib", reason="RLlib is not installed (pip install 'adafocus-env[rllib]')")
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

    return AlgorithmConfig


@pytest.mark.parametrize("name", IDS)
def test_rllibs_checker_finds_nothing(rllib, live, name):
    """RLlib only has a checker for multi-agent environments, so RLlib first converts the environment to one."""
    from ray.rllib.env.multi_agent_env import make_multi_agent
    from ray.rllib.utils.pre_checks.env import check_multiagent_environments

    kind = make_multi_agent(lambda config: gym.make(name, observation="vector", **live))
    check_multiagent_environments(kind({"num_agents": 2}))


@pytest.mark.parametrize("mode", ["sync", "vector_entry_point"])
@pytest.mark.parametrize("name", ["AdaFocus-v1", "AdaFocusContinuous-v1"])
def test_an_env_runner_of_rllib_plays_whole_episodes(rllib, live, name, mode):
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

    config = (
        rllib()
        .environment(f"adafocus_env:{name}", env_config={"observation": "vector", **live})
        .env_runners(num_envs_per_env_runner=N, gym_env_vectorize_mode=mode)
    )
    runner = SingleAgentEnvRunner(config=config, worker_index=0)
    episodes = runner.sample(num_episodes=EPISODES * N, random_actions=True)
    runner.stop()
    assert len(episodes) >= EPISODES * N
    for episode in episodes:
        assert len(episode) == T and episode.is_terminated and not episode.is_truncated
        _assert_replayed(name, live, episode)


def _assert_replayed(name, arguments, episode):
    """Check that the single environment replays the episode, except for rewards, which depend on random patches."""
    env = gym.make(name, observation="vector", **arguments)
    infos = episode.get_infos()
    env.reset(options={"clip": int(infos[0]["clip"])})
    for step, action in enumerate(episode.get_actions()):
        observation, _, terminated, _, info = env.step(action)
        assert np.allclose(observation, episode.get_observations(step + 1), atol=1e-6)
        assert info["confidence"] == pytest.approx(infos[step + 1]["confidence"], abs=1e-6)
        assert terminated == (step == T - 1)
