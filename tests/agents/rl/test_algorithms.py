"""The table of algorithms: every row learns on the tiny networks, stops and goes on, and says what does not fit."""

import json
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import torch
from conftest import random_classifier, slow_except
from gymnasium import spaces
from rich.console import Console
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnvWrapper
from tiny_training import NEW, SETTINGS, left_by_force, make_folder, tiny_networks

from adafocus_env.action import ContinuousAction
from adafocus_env.features.memory_bank import MemoryBank
from adafocus_env.observation import OBSERVATIONS
from agents import evaluate, train, train_ppo
from agents.config.command import compose_config
from agents.config.settings import EnvConfig, Evaluate, NetworkConfig, PPOConfig, Train, TrainPPO
from agents.evaluation.evaluate import play
from agents.policies.networks import PolicyArchitecture
from agents.policies.sb3 import ClipReferenceExtractor, cache_outputs
from agents.rl import trainer as algorithm
from agents.rl import trust
from agents.rl.algorithms import ALGORITHMS, CONTINUOUS, DISCRETE, check_fits, class_of, fitting, nearest_name
from agents.rl.saved_model import load_model
from agents.rl.settings import algorithm_settings
from agents.rl.trainer import train_policy
from agents.runs.interrupts import Stopped
from agents.runs.progress import Display
from agents.runs.run_dir import RunDir
from classifiers.errors import InputError

NETWORK = NetworkConfig(channels=4, features=8, hidden=8)
QUICK = {
    "learning_starts": 16, "gradient_steps": 2, "batch_size": 8, "buffer_size": 64, "n_steps": 4, "n_epochs": 1, "n_delta": 2,
    "n_top": 1, "n_eval_episodes": 4,
}  # fmt: skip
PAIRS = [(name, kind) for name, algorithm in ALGORITHMS.items() for kind in algorithm.actions if name != "ppo"]


class MyDQN(DQN):
    """A user's own."""


class MyPPO(PPO):
    """A user's own."""


@pytest.fixture(scope="module")
def locations(clips):
    """A bank for continuous locations."""
    return MemoryBank(random_classifier(), clips, ContinuousAction(96, 24))


def settings(name, **more):
    """The algorithm as its YAML file has it, but for a few steps."""
    algo = compose_config(Train, "train", [f"algo={name}"]).algo
    quick = {key: value for key, value in QUICK.items() if key in algo.settings}
    return replace(algo, total_steps=96, validate_every=32, save_every=32, settings={**algo.settings, **quick, **more})


def learn(folder, features, algo, kind=DISCRETE, *, force=False, seed=0):
    env = EnvConfig(num_envs=4, action="grid" if kind == DISCRETE else "continuous", baseline="all" if kind == DISCRETE else 1)
    with RunDir.open(folder, {}, force=force) as run, Display(Console(quiet=True)) as display:
        settings = algorithm_settings(features, env, NETWORK, PPOConfig(), algo)
        return train_policy(features, features, run, display, settings, env=env, seed=seed)


def metrics(folder):
    return (folder / "metrics.jsonl").read_bytes()


# The table


def test_the_table_has_all_algorithms_of_both_libraries():
    there = {
        value for library in (stable_baselines3, sb3_contrib) for value in vars(library).values()
        if isinstance(value, type) and issubclass(value, BaseAlgorithm)
    }  # fmt: skip
    assert {class_of(name) for name in ALGORITHMS} == there
    assert all(algorithm.why for algorithm in ALGORITHMS.values() if len(algorithm.actions) == 1)


@pytest.mark.parametrize(("name", "kind"), slow_except([("dqn", DISCRETE), ("sac", CONTINUOUS)], PAIRS))
def test_every_algorithm_learns_stops_and_goes_on(tmp_path, bank, locations, name, kind):
    """Stopped after its first line, it ends as if it had not been; what cannot go on says so."""
    features, algo, signalled = (bank if kind == DISCRETE else locations), settings(name), []
    trained = learn(tmp_path / "whole", features, algo, kind)
    lines = RunDir(tmp_path / "whole").metrics()
    assert [line["steps"] for line in lines][-1] >= 96 and len(lines) >= 2
    assert all({"return", "accuracy", "val_top1", "val_confidence"} <= set(line) for line in lines)
    played = play(features, trained.on(features))
    best = max(lines, key=lambda line: (line["val_top1"], line["val_confidence"], line["steps"]))
    assert played.confidence.mean() == pytest.approx(best["val_confidence"], abs=1e-6), "what comes back is the best model"

    log = RunDir.log

    def stop(self, line):
        log(self, line)
        if not signalled:
            signalled.append(signal.raise_signal(signal.SIGINT))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(RunDir, "log", stop)
        learn(tmp_path / "stopped", features, algo, kind)
    assert len(RunDir(tmp_path / "stopped").metrics()) == 1
    if ALGORITHMS[name].resumes:
        learn(tmp_path / "stopped", features, algo, kind)
        assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")
    else:
        with pytest.raises(InputError, match=f"algo={name} cannot resume a stopped run: .*; force=true starts over"):
            learn(tmp_path / "stopped", features, algo, kind)


def test_another_seed_learns_otherwise(tmp_path, bank):
    learn(tmp_path / "0", bank, settings("dqn"))
    learn(tmp_path / "1", bank, settings("dqn"), seed=1)
    assert metrics(tmp_path / "0") != metrics(tmp_path / "1")


class Wanted(VecEnvWrapper):
    """One patch is worth 1, all others less: the reward has a known optimum."""

    def __init__(self, venv, worth):
        super().__init__(venv)
        self.worth = worth

    def reset(self):
        return self.venv.reset()

    def step_async(self, actions):
        self.rewards = np.array([self.worth(action) for action in actions], np.float32)
        super().step_async(actions)

    def step_wait(self):
        observations, _, dones, infos = self.venv.step_wait()
        return observations, self.rewards, dones, infos


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "worth", "steps"),
    [
        ("dqn", DISCRETE, lambda action: float(action == 5), 1200),
        ("sac", CONTINUOUS, lambda action: 1 - np.abs(action - (0.2, 0.8)).sum(), 800),
    ],
)
def test_the_best_patch_of_a_tiny_task_is_found(tmp_path, bank, locations, monkeypatch, name, kind, worth, steps):
    make = algorithm.make_environment
    monkeypatch.setattr(algorithm, "make_environment", lambda *args, **how: Wanted(make(*args, **how), worth))
    features = bank if kind == DISCRETE else locations
    algo = replace(settings(name, gradient_steps=4, buffer_size=2000, batch_size=32, learning_rate=1e-2), total_steps=steps)
    learn(tmp_path, features, replace(algo, settings={**algo.settings, "learning_starts": 400}, validate_every=steps), kind)
    trained = load_model(tmp_path / "checkpoints" / "best", "cpu")
    chosen = play(features, trained.on(features)).actions
    assert np.mean([worth(action) for action in chosen.reshape(48, -1).squeeze()]) > 0.8


def test_outputs_of_a_target_network_that_moved_are_not_cached(bank):
    """Stable-Baselines3 moves target networks through ``data``, which PyTorch's version counters do not see."""

    space = OBSERVATIONS["reference"](bank).space
    extractor = ClipReferenceExtractor(space, PolicyArchitecture.from_config(bank.map_shape, NETWORK))
    extractor.bind(bank)
    cache_outputs(extractor, False)
    references = torch.tensor([[0, 1], [3, 2]])
    with torch.no_grad():
        before = extractor(references)
        for parameter in extractor.parameters():
            parameter.data.mul_(0.5)
        assert not torch.allclose(before, extractor(references))


@pytest.mark.parametrize("observation", ["map", "vector"])
def test_plain_observations_need_no_extractor(tmp_path, bank, observation):
    algo = replace(settings("dqn"), observation=observation)
    trained = learn(tmp_path, bank, algo)
    assert trained.observation == observation
    assert trained.model.observation_space.shape == OBSERVATIONS[observation](bank).space.shape
    played = play(bank, trained.on(bank), observation)
    assert played.actions.shape == (12, 4)


# What does not fit


@pytest.mark.parametrize("name", ["sac", "td3", "ddpg", "tqc", "crossq"])
def test_a_continuous_algorithm_on_cells_is_refused(name):
    message = (
        rf"algo={name} learns continuous actions only, and env\.action=grid has discrete ones: its actor .*\. "
        r"Set env\.action=continuous env\.baseline=1 \(ids: .*AdaFocusEasyContinuous-v0\), or choose one of a2c, ars, dqn, maskable_ppo,"
    )
    with pytest.raises(InputError, match=message):
        check_fits(name, "env.action=grid", spaces.Discrete(49))
    check_fits(name, "env.action=continuous", spaces.Box(0, 1, (2,)))


@pytest.mark.parametrize("name", ["dqn", "qrdqn", "maskable_ppo"])
def test_a_discrete_algorithm_on_locations_is_refused(name):
    message = rf"algo={name} learns discrete actions only, and env\.action=continuous has continuous ones: .* Set env\.action=grid .*, sac"
    with pytest.raises(InputError, match=message):
        check_fits(name, "env.action=continuous", spaces.Box(0, 1, (2,)))


def test_what_fits_is_listed():
    assert set(fitting(DISCRETE)) | set(fitting(CONTINUOUS)) == set(ALGORITHMS)
    assert set(fitting(DISCRETE)) & set(fitting(CONTINUOUS)) == {"ppo", "a2c", "recurrent_ppo", "trpo", "ars"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dqm", r"algo\.name='dqm' is not known; did you mean 'dqn'\?"),
        ("nowhere.Mine", r"algo\.name=nowhere\.Mine: there is no module 'nowhere'; install it, or start the command where Python finds it"),
        ("stable_baselines3.DQM", r"algo\.name=stable_baselines3\.DQM: module 'stable_baselines3' has no 'DQM'; did you mean 'DQN'\?"),
        ("collections.OrderedDict", r"algo\.name must be a subclass of .*BaseAlgorithm, got collections\.OrderedDict"),
    ],
)
def test_a_class_that_is_none_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        class_of(name)


def test_sb3_contrib_that_is_missing_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(InputError, match=r"algo\.name=tqc: there is no module 'sb3_contrib'; pip install sb3-contrib"):
        class_of("tqc")


def test_a_users_class_starts_from_the_settings_of_what_it_is_made_from(tmp_path, bank):
    assert nearest_name(MyDQN) == "dqn" and nearest_name(MyPPO) == "ppo" and nearest_name(BaseAlgorithm) is None
    own = replace(settings("dqn"), name=f"{__name__}.MyDQN")
    learn(tmp_path / "own", bank, own)
    learn(tmp_path / "dqn", bank, settings("dqn"))
    assert metrics(tmp_path / "own") == metrics(tmp_path / "dqn")
    quick = {key: value for key, value in own.settings.items() if key in QUICK}
    trained = learn(tmp_path / "default", bank, replace(own, settings=quick))
    assert isinstance(trained.model, MyDQN) and trained.model.gamma == settings("dqn").settings["gamma"]


# The command


@pytest.fixture(scope="module")
def root(tmp_path_factory, clips):
    return make_folder(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module", autouse=True)
def networks():
    with tiny_networks():
        yield


PLAIN = [setting for setting in SETTINGS if not setting.startswith("ppo.")]
TINY_DQN = ["algo=dqn", "algo.total_steps=64", "algo.validate_every=32", "algo.settings.learning_starts=16", "algo.settings.batch_size=8"]


def run(*overrides, command=train, schema=Train, name="train"):
    command.main(compose_config(schema, name, list(overrides)))


@pytest.fixture(scope="module")
def dqn(tmp_path_factory, root):
    """A finished run of the command."""
    folder = tmp_path_factory.mktemp("runs") / "dqn"
    run(*PLAIN, *TINY_DQN, f"data.root={root}", f"run={folder}")
    return folder


def policies(folder):
    return json.loads((folder / "result.json").read_text())["policies"]


def test_a_run_has_the_same_files_and_table_as_ppos(dqn):
    names = {"config.yaml", "system.json", "metrics.jsonl", "timing.jsonl", "result.json", "result.png", "contact_sheet.png"}
    assert names | {"checkpoints", "tensorboard"} == {entry.name for entry in dqn.iterdir() if not entry.name.startswith(".")}
    found = policies(dqn)
    assert set(found) == {"learned", "random", "centre", "gaussian", "saliency", "glance_only", "full_frame", "greedy_oracle"}
    assert found["learned"]["gflops"] > found["random"]["gflops"], "the policy's own work is counted"


def test_the_cost_of_a_policy_is_counted_once_for_each_glance(dqn, bank):
    """Encoder and one linear layer, as PPO's policy without its critic."""
    found = policies(dqn)
    frame = 16 * 36 * 4 + 4 * 36 * 8 + 3 * 8 * (8 + 8)  # convolution, linear layer, GRU
    assert 1e9 * (found["learned"]["gflops"] - found["random"]["gflops"]) == pytest.approx(4 * (frame + 8 * 9), abs=0.5)


def test_evaluate_repeats_the_table_of_a_run(dqn, tmp_path):
    run(f"run={dqn}", f"out={tmp_path}", "device=cpu", command=evaluate, schema=Evaluate, name="evaluate")
    assert policies(tmp_path) == policies(dqn)


def test_force_leaves_nothing_of_a_run_with_a_replay_buffer(dqn, tmp_path):
    assert list((dqn / "checkpoints").glob("dqn-*.replay")) and left_by_force(dqn, tmp_path / "copy") == NEW


def test_a_model_from_elsewhere_is_read_only_if_it_is_trusted(dqn, tmp_path, monkeypatch):
    copied = shutil.copytree(dqn / "checkpoints" / "best", tmp_path / "best")
    monkeypatch.setattr(trust, "_key", lambda: b"another machine's")
    with pytest.raises(InputError, match=r"model\.zip was not written by you on this machine, or was changed since"):
        load_model(copied, "cpu")
    assert isinstance(load_model(copied, "cpu", trust=True).model, DQN)
    (copied / "model.json").write_text("{}")
    with pytest.raises(InputError, match=r"model\.json does not describe a model \(KeyError"):
        load_model(copied, "cpu")


@pytest.mark.slow
def test_ppo_is_the_case_that_train_ppo_is(tmp_path, root):
    run(*SETTINGS, f"data.root={root}", f"run={tmp_path / 'ppo'}", command=train_ppo, schema=TrainPPO, name="train_ppo")
    run(*SETTINGS, f"data.root={root}", f"run={tmp_path / 'general'}")
    run(*SETTINGS, f"data.root={root}", f"run={tmp_path / 'own'}", f"algo={__name__}.MyPPO", "algo.settings.target_kl=1e9")
    for name in ("general", "own"):
        assert metrics(tmp_path / name) == metrics(tmp_path / "ppo")
        assert policies(tmp_path / name) == policies(tmp_path / "ppo")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algo=sac"], r"algo=sac learns continuous actions only, and env\.action=grid has discrete ones"),
        (["algo=dqm"], "algo=dqm: did you mean 'dqn'"),
        (["algo=custom"], r"algo\.name is empty: algo=custom needs algo\.name=PACKAGE\.CLASS"),
        (["algo=dqn", "algo.settings.gama=0.5"], r"algo\.settings\.gama: dqn has no such argument; did you mean 'gamma'\?"),
        (["algo=dqn", "algo.settings.seed=3"], r"algo\.settings\.seed is reserved: set seed"),
        (["algo=dqn", "algo.settings.learning_rate=fast"], r"algo=dqn does not accept its settings .*fast"),
        (["algo=dqn", "algo.observation=glance"], r"algo\.observation='glance' is not known"),
        (["algo=ppo", "algo.settings.gamma=0.5"], r"algo\.settings\.gamma: with PPO, set ppo\.gamma"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, root, overrides, message):
    with pytest.raises(InputError, match=message):
        run(*PLAIN, f"data.root={root}", f"run={tmp_path}", *overrides)
