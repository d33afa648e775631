"""The all-action policy gradient: the estimator compared with its definition, learning, and refused settings."""

import copy
import signal

import numpy as np
import pytest
import torch
from conftest import FINE_GRID, random_classifier
from gymnasium import spaces
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv
from tiny_algorithms import NETWORK, SPATIAL, after_line, learn, metrics, stored
from tiny_training import SETTINGS, Crash, crash, make_folder, tiny_networks

from adafocus_env.action import ContinuousAction
from adafocus_env.env import AdaFocusEnv
from adafocus_env.features.memory_bank import MemoryBank
from adafocus_env.reward import REWARDS, Reward
from adafocus_env.vector_env import AdaFocusVectorEnv
from agents import train
from agents.config.command import compose_config
from agents.config.settings import AlgoConfig, EnvConfig, PPOConfig, Train
from agents.policies.networks import PolicyNetwork, load_policy
from agents.policies.sb3 import bind
from agents.rl.environment import make_environment
from agents.rl.expected_pg import ExpectedPG, clipped
from agents.rl.settings import algorithm_settings
from agents.runs.interrupts import Stopped
from agents.runs.run_dir import RunDir
from classifiers.errors import InputError

pytestmark = [pytest.mark.usefixtures("in_process"), FINE_GRID]
EXPECTED_PG = AlgoConfig("expected_pg")
QUICK = {"n_steps": 4, "batch_size": None, "n_epochs": 2, "gamma": 0.0, "validate_every": 2, "save_every": 2, "total_steps": 96}
PLAIN = {"n_epochs": 1, "ent_coef": 0.0, "vf_coef": 0.0, "normalize_advantage": False, "max_grad_norm": None, "learning_rate": 1e-30}


def model_on(features, action="grid", **ppo):
    """Return a model whose update changes neither weights nor gradients after the backward pass."""
    env = EnvConfig(num_envs=4, action=action, baseline="all", full_information=True, cost_weight=0.2)
    settings = algorithm_settings(features, env, NETWORK, PPOConfig(**{**QUICK, **PLAIN, **ppo}), EXPECTED_PG)
    model = settings.make_model(make_environment(features, env), 0)
    bind(model.policy, features, cache=False)
    model.set_logger(configure(None, []))
    return model


def all_of(model):
    """Return the whole rollout as one minibatch."""
    return next(model.rollout_buffer.in_order(None))


def log_probs_of(model, batch):
    return model.policy.get_distribution(batch.observations).distribution.logits


def gradient_of(objective, model):
    parameters = list(model.policy.parameters())
    found = torch.autograd.grad(objective, parameters, allow_unused=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters, found, strict=True)])


def gradient_left_by(model):
    """Return the gradient of the last update's loss."""
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in model.policy.parameters()])


@pytest.mark.parametrize("action", ["grid", "skip"])
def test_an_update_follows_the_gradient_of_the_expected_reward(bank, action):
    model = model_on(bank, action)
    model.learn(16)
    batch = all_of(model)
    rewards = batch.action_rewards
    assert rewards.shape == (16, 49 + (action == "skip"))
    assert torch.allclose(rewards.gather(1, batch.actions.long())[:, 0], batch.rewards, atol=1e-6), "the table is that of these states"
    exact = gradient_of((log_probs_of(model, batch).exp() * rewards).sum(1).mean(), model)
    assert exact.norm() > 1e-3
    assert torch.allclose(gradient_left_by(model), -exact, atol=1e-6)

    generator, log_probs = torch.Generator().manual_seed(0), log_probs_of(model, batch)
    sampled = torch.multinomial(log_probs.exp().detach(), 20_000, replacement=True, generator=generator)
    score_function = (log_probs.gather(1, sampled) * rewards.gather(1, sampled)).mean()
    assert (gradient_of(score_function, model) - exact).norm() < 0.15 * exact.norm(), "sampled actions agree on average"


def test_with_a_discount_factor_the_action_taken_counts_for_what_comes_after_it(bank):
    """λ-returns and their baseline for artificial numbers are computed step by step from the definition."""
    gamma, lam = 0.7, 0.9
    model = model_on(bank, gamma=gamma, gae_lambda=lam)
    train_later = model.train
    rng = np.random.default_rng(0)
    table, values = rng.normal(size=(4, 4, 49)).astype(np.float32), rng.normal(size=(4, 4)).astype(np.float32)

    def replace_and_train():
        buffer = model.rollout_buffer
        buffer.action_rewards, buffer.values = table.copy(), values.copy()
        buffer.rewards = np.take_along_axis(table, buffer.actions.astype(np.int64), 2)[:, :, 0]
        buffer.compute_returns_and_advantage(torch.zeros(4), np.ones(4, bool))
        train_later()

    model.train = replace_and_train
    model.learn(16)
    batch = all_of(model)
    log_probs = log_probs_of(model, batch)
    actions = batch.actions.long().reshape(4, 4).T.numpy()  # (n_steps, n_envs)
    rewards = np.take_along_axis(table, actions[..., None], 2)[..., 0]
    after, now = np.zeros((5, 4)), np.zeros((5, 4))  # the λ-return from the next state on, and from this one on
    following = np.concatenate([values, np.zeros((1, 4))])
    for t in reversed(range(4)):
        after[t] = (1 - lam) * following[t + 1] + lam * now[t + 1]
        now[t] = rewards[t] + gamma * after[t]
    expected_reward = (log_probs.exp() * batch.action_rewards).sum(1).detach()
    later = gamma * torch.tensor(after[:4].T.ravel()) - (torch.tensor(values.T.ravel()) - expected_reward)
    of_taken = log_probs.gather(1, batch.actions.long())[:, 0] * later.float()
    objective = ((log_probs.exp() * batch.action_rewards).sum(1) + of_taken).mean()
    assert torch.allclose(gradient_left_by(model), -gradient_of(objective, model), atol=1e-5)


def test_the_critic_learns_only_with_a_discount_factor(bank):
    for gamma, learns in ((0.0, False), (0.5, True)):
        model = model_on(bank, gamma=gamma, vf_coef=0.5)
        model.learn(16)
        gradient = model.policy.value_net.weight.grad
        assert (gradient is not None and bool(gradient.any())) is learns
        assert ("train/value_loss" in model.logger.name_to_value) is learns


def test_normalisation_divides_by_the_standard_deviation_of_all_advantages(bank):
    plain, normalised = (model_on(bank, normalize_advantage=divides).learn(16) for divides in (False, True))
    rewards = all_of(plain).action_rewards
    deviation = (rewards - rewards.mean(1, keepdim=True)).std()
    assert torch.allclose(gradient_left_by(normalised) * deviation, gradient_left_by(plain), atol=1e-6)


def test_each_term_is_clipped_by_its_own_ratio(bank):
    ratio = torch.tensor([0.5, 0.5, 1.0, 1.5, 1.5], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 2.0, 1.0, -1.0])
    objective = clipped(ratio, advantages, 0.2)
    assert objective.tolist() == pytest.approx([0.5, -0.8, 2.0, 1.2, -1.5])
    (gradient,) = torch.autograd.grad(objective.sum(), ratio)
    assert gradient.tolist() == [1.0, 0.0, 2.0, 0.0, -1.0]

    model = model_on(bank)
    model.learn(16)
    batch = all_of(model)
    moved = batch._replace(action_log_probs=batch.action_log_probs - 1)  # all have become e times as likely
    loss, measured = model.loss(moved, 0.2)
    assert measured["clip_fraction"] == 1.0
    advantages = batch.action_rewards - batch.action_rewards.mean(1, keepdim=True)
    left = (log_probs_of(model, batch).exp() * advantages.clamp(max=0)).sum(1).mean()  # the clipped terms have no gradient
    assert torch.allclose(gradient_of(loss, model), -gradient_of(left, model), atol=1e-6)


def test_a_policy_that_changes_too_much_ends_the_epochs(bank):
    model = model_on(bank, learning_rate=0.1, n_epochs=10)
    model.target_kl = 1e-4
    model.learn(16)
    assert model._n_updates < 10 and model.logger.name_to_value["train/approx_kl"] > 0


def return_of_the_best_cells(bank):
    """Return the mean return over the clips if the best cell is chosen from all rewards."""
    env = AdaFocusVectorEnv(
        12, bank.classifier, bank.clips, bank=bank, baseline="all", full_information=True, autoreset_mode="DISABLED", clip_order="epoch"
    )
    env.reset(seed=0)
    total = 0.0
    for _ in range(4):
        seen = copy.deepcopy(env)
        seen.step(np.zeros(12, np.int64))
        total += env.step(seen.action_rewards.argmax(1))[1].mean()
    return total


@pytest.mark.slow
def test_the_best_cells_are_found(tmp_path, bank):
    """Twelve clips are memorised quickly. Random patches have a mean reward of zero."""
    ppo = PPOConfig(**{**QUICK, "learning_rate": 1e-2, "total_steps": 1600, "validate_every": 100})
    policy = learn(tmp_path, bank, EXPECTED_PG, network=SPATIAL, reward="random", ppo=ppo, full_information=True)
    lines = RunDir(tmp_path).metrics()
    assert isinstance(policy, PolicyNetwork)
    assert lines[-1]["return"] > 0.1 * return_of_the_best_cells(bank), "of the sampled actions; random ones gain 0"
    assert {"entropy", "policy_gradient_loss", "approx_kl", "clip_fraction"} <= set(lines[0]) and "value_loss" not in lines[0]


@pytest.mark.parametrize("env", [{}, {"action": "skip", "target_keep": 0.5}], ids=str)
def test_a_run_that_is_stopped_and_killed_ends_as_one_that_is_not(tmp_path, bank, env):
    arguments = {"ppo": PPOConfig(**{**QUICK, "gamma": 0.5 if env else 0.0}), "full_information": True, **env}
    learn(tmp_path / "whole", bank, EXPECTED_PG, **arguments)
    with after_line(1, lambda: signal.raise_signal(signal.SIGINT)), pytest.raises(Stopped):
        learn(tmp_path / "stopped", bank, EXPECTED_PG, **arguments)
    with after_line(2, crash), pytest.raises(Crash):
        learn(tmp_path / "stopped", bank, EXPECTED_PG, **arguments)
    policy = learn(tmp_path / "stopped", bank, EXPECTED_PG, **arguments)
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")
    stopped, whole = tmp_path / "stopped" / "checkpoints", tmp_path / "whole" / "checkpoints"
    for name in ("policy.json", "policy.safetensors"):
        assert (stopped / "best" / name).read_bytes() == (whole / "best" / name).read_bytes()
    (file,) = stopped.glob("*.safetensors")
    assert stored(file) == stored(whole / file.name)
    assert isinstance(policy, PolicyNetwork) and policy.skips == bool(env)


def test_the_class_learns_from_other_vector_environments_and_observations(classifier, clips, bank):
    make = lambda: AdaFocusEnv(classifier, clips, bank=bank, full_information=True)  # noqa: E731
    model = ExpectedPG("MlpPolicy", DummyVecEnv([make, make]), gamma=0.0, n_steps=8, batch_size=8, n_epochs=1, seed=0, device="cpu")
    before = torch.cat([parameter.flatten().clone() for parameter in model.policy.action_net.parameters()])
    model.learn(16)
    after = torch.cat([parameter.flatten() for parameter in model.policy.action_net.parameters()])
    assert not torch.equal(before, after) and np.ptp(model.rollout_buffer.action_rewards, axis=-1).all()


# What is refused


def test_an_environment_that_does_not_report_all_rewards(classifier, clips, bank):
    env = DummyVecEnv([lambda: AdaFocusEnv(classifier, clips, bank=bank)])
    model = ExpectedPG("MlpPolicy", env, gamma=0.0, n_steps=4, batch_size=4, device="cpu")
    with pytest.raises(InputError, match=r"action_rewards are reported after a step of an environment with full_information=True"):
        model.learn(4)


def test_continuous_actions(clips):
    locations = MemoryBank(random_classifier(), clips, ContinuousAction(96, 24))
    env = DummyVecEnv([lambda: AdaFocusEnv(locations.classifier, clips, bank=locations, action="continuous", full_information=4)])
    assert isinstance(env.action_space, spaces.Box)
    with pytest.raises(InputError, match=r"ExpectedPG sums over all actions and needs a finite set of them, got Box.*; set action='grid'"):
        ExpectedPG("MlpPolicy", env, n_steps=4, batch_size=4, device="cpu")


def test_observations_of_several_arrays_are_refused(bank):
    env = DummyVecEnv([lambda: AdaFocusEnv(bank.classifier, bank.clips, bank=bank, observation="dict", full_information=True)])
    with pytest.raises(InputError, match=r"ExpectedPG stores observations that are one array each, got Dict.*; choose another one"):
        ExpectedPG("MultiInputPolicy", env, n_steps=4, batch_size=4, device="cpu")


def mixed(now, previous, baseline):
    return now - now.mean()


@pytest.fixture(scope="module")
def root(tmp_path_factory, clips):
    return make_folder(tmp_path_factory.mktemp("videos"))


def run(*overrides):
    with tiny_networks():
        train.main(compose_config(Train, "train", [*SETTINGS, "algo=expected_pg", *overrides]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["env.full_information=false"], r"algo=expected_pg learns from the reward of every action; set env\.full_information=true"),
        (["env.bank=false"], r"env\.full_information needs a bank on a grid: .* takes 9 passes .*; set env\.bank=true, or leave env"),
        (["env.action=continuous", "env.baseline=1"], r"algo=expected_pg learns discrete actions only, .* sums over all actions and needs"),
        (["data.views=resample"], r"env\.full_information needs a bank on a grid, .* fixed clips: set data\.views to a number"),
        (["env.reward=mixed"], r"the reward mixed must be elementwise for env\.full_information, .* or leave env\.full_information out"),
        (["algo.observation=dict"], r"algo\.observation must be one array with algo=expected_pg, such as reference or map, got dict;"),
        (["env.reward=randm"], r"env\.reward='randm' is not known; did you mean 'random'"),
        (["algo.settings.gamma=0.5"], r"algo\.settings\.gamma: with PPO, set ppo\.gamma"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, root, monkeypatch, overrides, message):
    monkeypatch.setitem(REWARDS, "mixed", Reward(mixed))
    with pytest.raises(InputError, match=message):
        run(f"data.root={root}", f"run={tmp_path}", *overrides)


def test_a_run_of_the_command_leaves_a_policy(tmp_path, root):
    run(f"data.root={root}", f"run={tmp_path}", "env.reward=log_confidence", "env.action=skip", "env.cost_weight=0.05")
    policy = load_policy(tmp_path / "checkpoints" / "best")
    assert policy.skips and policy.grid == 3 and (tmp_path / "result.json").exists()
