"""The released PPO: with equal weights, glances and rewards, one update equals an update of the authors' code.

This project's update is computed in float64. On every CPU, the updates therefore differ only by the rounding of the authors' float32.
"""

from dataclasses import asdict, replace
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import released_weights
import torch
from conftest import TINY, slow_except
from gymnasium import spaces
from released_weights import NEAR, assert_near
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv

from adafocus_env.action import ContinuousAction, GridAction
from adafocus_env.build import build_features
from adafocus_env.demo.videos import CLASSES
from agents.config.command import compose_config
from agents.config.settings import EnvConfig, NetworkConfig, PPOConfig, TrainPPO
from agents.policies.networks import PolicyArchitecture, PolicyNetwork, architecture_of
from agents.policies.sb3 import extractor_of, load_network, same_modules, to_network
from agents.rl.buffers import NormalizedReturnsBuffer
from agents.rl.environment import make_environment
from agents.rl.settings import new_ppo
from classifiers.backbones.backbone import BACKBONES
from classifiers.classifier import Classifier
from classifiers.errors import InputError

pytestmark = [pytest.mark.numerical, pytest.mark.slow]

SMALL = PolicyArchitecture((16, 6, 6), channels=4, features=10, hidden=8)


def recipe(*overrides):
    return compose_config(TrainPPO, "train_ppo", overrides)


@pytest.fixture(scope="module")
def stored():
    return released_weights.results("ppo")


def glance_maps(family, clips, num_frames, seed, first, shift):
    """Return maps (clips, frames, 1280, 7, 7) of the authors' glancer in float64, from reproduced weights and frames."""
    frames = released_weights.same_draws(released_weights.frames(clips, num_frames, 224, seed), first)
    glancer = BACKBONES["mobilenet_v2"](len(released_weights.weight("glancer.net.classifier.bias", (2,)))).eval()
    names = [(name, shape) for name, (shape, _) in released_weights.names(family).items() if name.startswith("glancer.net.features.")]
    trunk = glancer.features
    trunk.load_state_dict({ours: released_weights.weight(*theirs) for ours, theirs in zip(trunk.state_dict(), names, strict=True)})
    if shift:
        glancer.insert_shift(1 / 8, "blockres")
    with torch.no_grad():
        return glancer.double()(frames.flatten(0, 1).double(), num_frames)[0].unflatten(0, (clips, num_frames))


def authors_policy(family, network, grid):
    """Return a policy of this project with the authors' weights."""
    policy = PolicyNetwork(network, grid)
    names = [(name, shape) for name, (shape, _) in released_weights.names(family).items() if name.startswith("focuser.policy.policy.")]
    weights = {ours: released_weights.weight(*theirs) for ours, theirs in zip(policy.state_dict(), names, strict=True)}
    policy.load_state_dict(weights)
    return policy


class Spaces(gym.Env):
    """An environment that only has spaces, since the rollout is filled by hand."""

    observation_space = spaces.Box(0, 99, (2,), np.int64)

    def __init__(self, action):
        self.action_space = action.space


def authors_ppo(maps, action, policy, config):
    """Return Stable-Baselines3's PPO with the released settings and weights, one environment per clip of ``maps`` (B, D, C, h, w)."""
    clips, steps = maps.shape[:2]
    features = SimpleNamespace(
        num_steps=steps, clips=SimpleNamespace(epoch_size=clips), classifier=SimpleNamespace(device="cpu"),
        glance_maps=lambda clip, step: maps[clip, step],
    )  # fmt: skip
    model = new_ppo(DummyVecEnv([lambda: Spaces(action)] * clips), features, config.ppo, policy.architecture, seed=0)
    extractor_of(model.policy).bind(features)
    load_network(model.policy, policy)
    model.policy.double()
    model.set_logger(configure(None, []))
    return model


def references(step, clips):
    return np.stack([np.arange(clips), np.full(clips, step)], 1)


@torch.no_grad()
def fill(model, buffer, actions, rewards):
    """Add the authors' actions (D, B, …) and rewards (D, B) to the buffer, as a rollout of the model does."""
    model.policy.set_training_mode(False)
    for step, (action, reward) in enumerate(zip(actions, rewards, strict=True)):
        observations = references(step, len(reward))
        with extractor_of(model.policy).rollout_mode():
            values, log_probs, _ = model.policy.evaluate_actions(torch.from_numpy(observations), torch.from_numpy(action))
        buffer.add(observations, action.reshape(len(reward), -1), reward, np.full(len(reward), step == 0), values, log_probs)
    buffer.compute_returns_and_advantage(torch.zeros(len(reward)), np.ones(len(reward)))
    return buffer


@torch.no_grad()
def judged(model, actions):
    """Return log-probabilities, values and entropies (D, B) of the actions (D, B, …), in eval mode."""
    model.policy.set_training_mode(False)
    steps = [
        model.policy.evaluate_actions(torch.from_numpy(references(step, len(action))), torch.from_numpy(action))
        for step, action in enumerate(actions)
    ]
    values, log_probs, entropies = (torch.stack(kind) for kind in zip(*steps, strict=True))
    return log_probs, values.squeeze(-1), entropies


def learned(model):
    """Return the parameters in the order of the authors' names."""
    return [parameter for _, module in same_modules(to_network(model.policy), model.policy) for parameter in module.parameters()]


# One update, number for number


@pytest.fixture(scope="module")
def frame_maps(stored):
    return glance_maps("activitynet", 2, 16, 20210503, stored["activitynet.input.first64"], shift=False)


@pytest.mark.parametrize("patch_size", slow_except([96], [96, 128]))
def test_one_update_of_the_discrete_policy(frame_maps, stored, patch_size):
    start = f"activitynet.p{patch_size}.ppo."
    theirs = {name.removeprefix(start): value for name, value in stored.items() if name.startswith(start)}
    config = recipe("ppo=released")
    network = architecture_of((1280, 7, 7), patch_size / 224, config.network)
    assert network == PolicyArchitecture((1280, 7, 7))  # the paper's
    model = authors_ppo(frame_maps, GridAction(7, 224, patch_size), authors_policy("activitynet", network, 7), config)

    buffer = fill(model, model.rollout_buffer, theirs["actions"], theirs["rewards"])
    assert_near(buffer.monte_carlo_returns(), theirs["returns"], "returns")
    for ours, name in ((buffer.returns, "returns_normalised"), (buffer.log_probs, "logprob_before")):
        assert_near(ours, theirs[name], name)
    assert_near(buffer.values[None], theirs["value_before"][None], "value before")  # those of a step can all be near zero
    assert_near(judged(model, theirs["actions"])[2], theirs["entropy_before"], "entropy before")

    before = [parameter.detach().clone() for parameter in learned(model)]
    model.train()
    assert_one_update(model, theirs)
    changes = [(after.detach() - old).norm() for after, old in zip(learned(model), before, strict=True)]
    assert_near(changes, theirs["param_delta_norms"], "change of the weights")
    log_probs, values, entropies = judged(model, theirs["actions"])
    possible = np.log(np.finfo(np.float32).eps)  # PyTorch clamps probabilities to it, which is what the authors use
    assert theirs["logprob_after"].min() == pytest.approx(possible) and log_probs.min() < possible
    assert_near_after(log_probs.clamp_min(possible), theirs["logprob_after"])
    assert_near_after(values, theirs["value_after"])
    assert_near_after(entropies, theirs["entropy_after"])
    assert model.logger.name_to_value["train/loss"] == pytest.approx(float(theirs["loss"]), rel=NEAR)


def assert_one_update(model, theirs):
    """Check the gradients, and that the rollout was evaluated by the policy that collected it."""
    logged = model.logger.name_to_value
    assert logged["train/approx_kl"] == pytest.approx(0, abs=1e-9) and logged["train/clip_fraction"] == 0
    gradients = [parameter.grad.numpy() for parameter in learned(model)]
    norms, first = theirs["grad_norms"], theirs["grad_first8"]
    real = norms > 1e-5 * norms.max()  # others are zero but for rounding: before a batch norm, and after an empty state
    ours = np.array([np.linalg.norm(gradient) for gradient in gradients])
    assert_near(ours[real], norms[real], "norms of the gradients")
    assert (ours[~real] <= 1e-5 * norms.max()).all()
    for gradient, norm, wanted, nonzero in zip(gradients, norms, first, real, strict=True):
        if nonzero:
            assert np.abs(gradient.ravel()[:8] - wanted[: gradient.size]).max() <= NEAR * norm


def assert_near_after(ours, theirs):
    """Compare values after an update, with a larger tolerance: Adam's first step has the same length even for gradients from rounding.

    The authors' values differ by up to 4e-4 from the same update in float64.
    """
    assert np.abs(ours.numpy() - theirs).max() <= 3 * NEAR * np.abs(theirs).max()


@pytest.fixture(scope="module")
def stacked_maps(stored):
    """Return maps for one decision per clip, with all eight frames of the glancer."""
    maps = glance_maps("something", 4, 8, 20210504, stored["something.input.first64"], shift=True)
    return maps.flatten(1, 2)[:, None]


@pytest.fixture
def continuous(stacked_maps):
    config = recipe("ppo=released_continuous")
    network = architecture_of((10240, 7, 7), 144 / 224, config.network)
    assert network == PolicyArchitecture((10240, 7, 7), channels=64, batch_norm=True)
    model = authors_ppo(stacked_maps, ContinuousAction(224, 144), authors_policy("something", network, None), config)
    extractor_of(model.policy).encoder.frame[2].register_forward_pre_hook(let_pass)
    return model


def let_pass(relu, inputs):
    """Let values that are zero up to rounding pass the first ReLU of the update, as in the computation of the authors' results.

    Two of 12,544 inputs are this close to zero, at 1e-5 and 3e-5, where float32 rounds by 2e-5. If the first has the other sign, the
    gradient of a bias changes by 1.6e-2, and values after the update change by 1.1e-2.
    """
    if not torch.is_grad_enabled():
        return inputs
    near = inputs[0].abs() < 5e-5
    assert near.sum() == 2
    return (inputs[0] + 1e-4 * near,)


def test_the_continuous_policy_as_it_is_evaluated(continuous, stored):
    theirs = {name: stored[f"something.evaluate.{name}"] for name in ("logprob", "value", "entropy")}
    for ours, (name, values) in zip(judged(continuous, stored["something.evaluate.actions"]), theirs.items(), strict=True):
        assert_near(ours, values, name)


def test_one_update_of_the_continuous_policy(continuous, stored):
    theirs = {name.removeprefix("something.ppo."): value for name, value in stored.items() if name.startswith("something.ppo.")}
    actions = stored["something.evaluate.actions"]
    buffer = fill(continuous, continuous.rollout_buffer, actions, theirs["rewards"])
    assert_near(buffer.log_probs, theirs["logprob_before_trainbn"], "log-probability")
    assert_near(buffer.values, theirs["value_before_trainbn"], "value")
    continuous.train()
    assert_one_update(continuous, theirs)
    log_probs, values, _ = judged(continuous, actions)
    assert_near_after(log_probs, theirs["logprob_after_evalbn"])
    assert_near_after(values, theirs["value_after_evalbn"])
    norm = to_network(continuous.policy).encoder.frame[5]
    assert_near(norm.running_mean[None, :8], theirs["policy_bn1d_running_mean_first8"][None], "running mean after one pass in training")
    assert norm.num_batches_tracked == 1


# The settings


def test_the_recipe_says_all_that_the_released_code_does():
    config = recipe("ppo=released")
    assert (config.env.num_envs, config.env.action) == (64, "grid")
    assert config.network == NetworkConfig("published", channels=32, features=1024, hidden=1024)
    shown = {key: value for key, value in asdict(config.ppo).items() if value != getattr(PPOConfig(), key)}
    assert shown == {
        "n_steps": None, "batch_size": None, "n_epochs": 1, "learning_rate": 3e-4, "gamma": 0.7, "gae_lambda": 1.0, "max_grad_norm": None,
        "adam_eps": 1e-8, "ortho_init": False, "normalize_advantage": False, "normalize_returns": True,
    }  # fmt: skip


def test_what_the_recipe_says_is_what_stable_baselines3_does(bank):
    model = new_ppo(make_environment(bank, EnvConfig(num_envs=8)), bank, recipe("ppo=released").ppo, SMALL, seed=0)
    assert (model.n_steps, model.batch_size, model.n_epochs, model.gamma, model.normalize_advantage) == (4, 32, 1, 0.7, False)
    assert (model.ent_coef, model.vf_coef, model.clip_range(1.0), model.max_grad_norm) == (0.01, 0.5, 0.2, float("inf"))
    assert isinstance(model.rollout_buffer, NormalizedReturnsBuffer)
    (group,) = model.policy.optimizer.param_groups
    assert isinstance(model.policy.optimizer, torch.optim.Adam) and (group["lr"], group["eps"]) == (3e-4, 1e-8)
    assert not list(model.policy.mlp_extractor.parameters())
    bound = 1 / np.sqrt(SMALL.hidden)  # PyTorch's own beginning
    assert bound / 2 < model.policy.action_net.weight.abs().max() <= bound and model.policy.action_net.bias.abs().max() > 0


def test_the_recipe_of_the_continuous_policy():
    config, discrete = recipe("ppo=released_continuous"), recipe("ppo=released")
    assert config.env.action == "continuous"
    assert config.network == NetworkConfig("published", channels=64, features=1024, hidden=1024, batch_norm=True, std=0.25)
    assert config.ppo == replace(discrete.ppo, batch_statistics=True)


def test_what_is_typed_counts_more_than_the_recipe():
    config = recipe("ppo=released", "ppo.learning_rate=1e-3", "env.num_envs=16", "network.hidden=64", "ppo.max_grad_norm=1")
    assert (config.ppo.learning_rate, config.env.num_envs, config.network.hidden, config.ppo.max_grad_norm) == (1e-3, 16, 64, 1.0)


def test_a_recipe_that_there_is_none():
    with pytest.raises(InputError, match=r"ppo='relaesed' is not known; did you mean 'released'\? choose one of \['released', "):
        recipe("ppo=relaesed")


def test_the_recipe_learns_the_action_that_is_paid(bank):
    config = replace(recipe("ppo=released").ppo, learning_rate=1e-2)
    model = new_ppo(make_environment(bank, EnvConfig(num_envs=12)), bank, config, SMALL, 0)
    extractor_of(model.policy).bind(bank)
    pay(model.env, lambda actions: actions == 17)
    model.learn(30 * 48)
    with torch.no_grad():
        chances = model.policy.get_distribution(torch.tensor([[3, 0], [7, 2]])).distribution.probs
    assert (chances[:, 17] > 0.5).all()


@pytest.fixture(scope="module")
def averaging():
    """Return a classifier whose head averages the scores of frames."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Classifier(replace(TINY, head="mean"), CLASSES).freeze()


@pytest.mark.parametrize(("video_div", "batch"), slow_except([(1, False)], [(1, True), (2, True), (4, True), (1, False)]))
def test_the_recipe_learns_the_place_that_is_paid_in_every_decision(averaging, clips, video_div, batch):
    """This also holds with running statistics, the default; the first ratio of new to old probability is 1 in every update."""
    config = recipe("ppo=released_continuous", "ppo.learning_rate=1e-2", f"ppo.batch_statistics={batch}", "env.num_envs=12")
    config.env.video_div = video_div
    features = build_features(averaging, clips, action="continuous", video_div=video_div, bank=True)
    network = replace(SMALL, map_shape=features.map_shape, batch_norm=True)
    model = new_ppo(make_environment(features, config.env), features, config.ppo, network, 0)
    extractor_of(model.policy).bind(features)
    pay(model.env, lambda locations: -np.abs(locations - [0.8, 0.3]).sum(1))
    ratios, train = [], model.train
    model.train = lambda: (train(), ratios.append(model.logger.name_to_value["train/approx_kl"]))
    model.learn(80 * 12 * video_div)
    locations = to_network(model.policy).act(features.glance_maps(np.arange(12)[:, None], np.arange(video_div)[None]))
    assert locations.shape == (12, video_div, 2)
    assert (locations - torch.tensor([0.8, 0.3])).abs().mean() < 0.15  # 0.25 before it learns
    assert len(ratios) == 80 and np.allclose(ratios, 0, atol=1e-6)


def pay(env, reward):
    """Replace the rewards of steps by ``reward`` of the actions."""
    step = env.step_wait

    def paid():
        observations, _, dones, infos = step()
        return observations, reward(env.unwrapped._actions).astype(np.float32), dones, infos

    env.step_wait = paid
