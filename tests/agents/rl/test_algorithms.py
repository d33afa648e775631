"""The table of algorithms: every algorithm learns with the tiny networks, can be stopped and resumed, and refuses unsupported settings."""

import json
import shutil
import signal
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import torch
from conftest import FINE_GRID, random_classifier, slow_except
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnvWrapper
from tiny_algorithms import NETWORK, QUICK, SPATIAL, after_line, learn, metrics, settings, stored
from tiny_training import NEW, SETTINGS, Crash, crash, left_by_force, make_folder, tiny_networks

from adafocus_env.action import ContinuousAction
from adafocus_env.features.memory_bank import MemoryBank
from adafocus_env.observation import OBSERVATIONS
from agents import evaluate, train, train_ppo
from agents.config.command import compose_config
from agents.config.plugin import import_plugin
from agents.config.settings import Evaluate, Train, TrainPPO
from agents.evaluation.evaluate import evaluate_policy
from agents.policies.baselines import RULES
from agents.policies.networks import architecture_of
from agents.policies.sb3 import ClipReferenceExtractor, cache_outputs
from agents.rl import trainer as algorithm
from agents.rl.algorithms import ALGORITHMS, CONTINUOUS, DISCRETE, check_fits, class_of, fitting, nearest_name
from agents.rl.expected_pg import ExpectedPG
from agents.rl.imitation import Imitation
from agents.rl.saved_model import load_model, space_from_json, space_to_json
from agents.runs.interrupts import Stopped
from agents.runs.run_dir import RunDir
from classifiers.errors import InputError

pytestmark = [pytest.mark.usefixtures("in_process"), FINE_GRID]
BY_PPO = ("ppo", "expected_pg", "imitation")  # which are set by the keys of ppo, and save a policy network
PAIRS = [(name, kind) for name, algorithm in ALGORITHMS.items() for kind in algorithm.actions if name not in BY_PPO]
NETWORKS = [(*pair, NETWORK) for pair in PAIRS] + [(*pair, SPATIAL) for pair in PAIRS if pair[0] not in ("recurrent_ppo", "ars")]


def named(value):
    """Return a short name of a network for the name of a test."""
    return getattr(value, "name", None)


class MyDQN(DQN):
    """A user's own."""


class MyPPO(PPO):
    """A user's own."""


@pytest.fixture(scope="module")
def locations(clips):
    """Return a bank for continuous locations."""
    return MemoryBank(random_classifier(), clips, ContinuousAction(96, 24))


# The table


def test_the_table_has_all_algorithms_of_both_libraries():
    there = {
        value for library in (stable_baselines3, sb3_contrib) for value in vars(library).values()
        if isinstance(value, type) and issubclass(value, BaseAlgorithm)
    }  # fmt: skip
    assert {class_of(name) for name in ALGORITHMS} == there | {ExpectedPG, Imitation}
    assert all(algorithm.why for algorithm in ALGORITHMS.values() if len(algorithm.actions) == 1)


@pytest.mark.parametrize(
    ("name", "kind", "network"),
    slow_except([("dqn", DISCRETE, SPATIAL), ("sac", CONTINUOUS, SPATIAL), ("ars", DISCRETE, NETWORK)], NETWORKS), ids=named,
)  # fmt: skip
def test_every_algorithm_learns_and_is_resumed(tmp_path, bank, locations, name, kind, network):
    """A run that is stopped after its first line and killed after its second ends with the same metrics, state and best model."""
    features, algo = (bank if kind == DISCRETE else locations), settings(name)
    learn_in = partial(learn, features=features, algo=algo, kind=kind, network=network)
    trained = learn_in(tmp_path / "whole")
    lines = RunDir(tmp_path / "whole").metrics()
    assert [line["steps"] for line in lines][-1] >= 96 and len(lines) >= 2
    assert all({"return", "accuracy", "val_top1", "val_confidence"} <= set(line) for line in lines)
    played = evaluate_policy(features, trained.on(features))
    best = max(lines, key=lambda line: (line["val_confidence_anytime"], line["steps"]))
    assert played.confidence_anytime.mean() == pytest.approx(best["val_confidence_anytime"], abs=1e-6), "what comes back is the best model"

    with after_line(1, lambda: signal.raise_signal(signal.SIGINT)), pytest.raises(Stopped):
        learn_in(tmp_path / "stopped")
    assert len(RunDir(tmp_path / "stopped").metrics()) == 1
    with after_line(1, crash), pytest.raises(Crash):
        learn_in(tmp_path / "stopped")
    assert len(RunDir(tmp_path / "stopped").metrics()) == 2
    learn_in(tmp_path / "stopped")
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")
    stopped, whole = tmp_path / "stopped" / "checkpoints", tmp_path / "whole" / "checkpoints"
    assert (stopped / "best" / "model.json").read_bytes() == (whole / "best" / "model.json").read_bytes()
    assert (stopped / "last.json").read_bytes() == (whole / "last.json").read_bytes()
    assert stored(stopped / "best" / "model.safetensors") == stored(whole / "best" / "model.safetensors")
    (file,) = stopped.glob("*.safetensors")
    assert stored(file) == stored(whole / file.name)


@pytest.mark.slow
def test_another_seed_learns_otherwise(tmp_path, bank):
    learn(tmp_path / "0", bank, settings("dqn"))
    learn(tmp_path / "1", bank, settings("dqn"), seed=1)
    assert metrics(tmp_path / "0") != metrics(tmp_path / "1")


class Wanted(VecEnvWrapper):
    """A reward with a known optimum: one patch has the reward 1, all others less."""

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
    chosen = evaluate_policy(features, trained.on(features)).actions
    assert np.mean([worth(action) for action in chosen.reshape(48, -1).squeeze()]) > 0.8


def test_outputs_of_a_target_network_that_moved_are_not_cached(bank):
    """Stable-Baselines3 updates target networks through ``data``, which PyTorch's version counters do not count."""

    space = OBSERVATIONS["reference"](bank).space
    extractor = ClipReferenceExtractor(space, architecture_of(bank.map_shape, 0.25, NETWORK))
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
    played = evaluate_policy(bank, trained.on(bank), observation)
    assert played.actions.shape == (12, 4)


# What does not fit


@pytest.mark.parametrize("name", ["sac", "td3", "ddpg", "tqc", "crossq"])
def test_a_continuous_algorithm_on_cells_is_refused(name):
    message = (
        rf"algo={name} learns continuous actions only, and env\.action=grid has discrete ones: its actor .*\. "
        r"Set env\.action=continuous env\.baseline=1 \(ids: .*AdaFocusTrackContinuous-v1\), or choose one of a2c, ars, dqn, expected_pg,"
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
    """Return a finished run of the command."""
    folder = tmp_path_factory.mktemp("runs") / "dqn"
    run(*PLAIN, *TINY_DQN, f"data.root={root}", f"run={folder}")
    return folder


def policies(folder):
    return json.loads((folder / "result.json").read_text())["policies"]


def test_a_run_has_the_same_files_and_table_as_ppos(dqn):
    names = {"config.yaml", "system.json", "metrics.jsonl", "timing.jsonl", "result.json", "result.png", "contact_sheet.png"}
    names |= {"predictions.csv", "checkpoints", "tensorboard"}
    assert names == {entry.name for entry in dqn.iterdir() if not entry.name.startswith(".")}
    found = policies(dqn)
    assert set(found) == {"learned", "random", "centre", "gaussian", *RULES, "glance_only", "full_frame", "greedy_oracle"}
    assert found["learned"]["gflops"] > found["random"]["gflops"], "the policy's own work is counted"


def test_the_cost_of_a_policy_is_counted_once_for_each_glance(dqn, bank):
    """The cost consists of encoder, score map and offset."""
    found = policies(dqn)
    frame = 36 * (16 * 4 + 2 * 9 * 4 * 12)  # 1×1 convolution, both convolutions of the GRU
    values = 36 * (9 * 4 * 4 + 4 + 9) + 8  # score map and its weights in the cells, offset
    assert 1e9 * (found["learned"]["gflops"] - found["random"]["gflops"]) == pytest.approx(4 * (frame + values), abs=0.5)


@pytest.mark.slow
def test_evaluate_repeats_the_table_of_a_run(dqn, tmp_path):
    run(f"run={dqn}", f"out={tmp_path}", "device=cpu", command=evaluate, schema=Evaluate, name="evaluate")
    assert policies(tmp_path) == policies(dqn)


def test_force_leaves_nothing_of_a_run_with_a_replay_buffer(dqn, tmp_path):
    assert list((dqn / "checkpoints").glob("dqn-*.safetensors")) and left_by_force(dqn, tmp_path / "copy") == NEW


def test_a_model_with_another_card_or_other_weights_is_refused(dqn, tmp_path):
    copied = shutil.copytree(dqn / "checkpoints" / "best", tmp_path / "best")
    assert isinstance(load_model(copied, "cpu").model, DQN)
    card = json.loads((copied / "model.json").read_text())

    def refused(message, **change):
        (copied / "model.json").write_text(json.dumps({**card, **change}))
        with pytest.raises(InputError, match=message):
            load_model(copied, "cpu")

    refused(r"model\.json: unknown fields \['sizes'\]", network={"sizes": 3})
    refused(r"model\.json does not describe a model \(KeyError\('map_shape'\)\)", interface={})
    refused(r"model\.json was written by an earlier version, whose models are not read; train it again with force=true", signature="")
    wider = {"name": "spatial", "width": 5}
    refused(r"model\.safetensors does not fit model\.json: policy \(.*\) differs: .*; train or copy the model again", network=wider)
    refused(r"model\.safetensors does not fit model\.json: it is of a DQN, the model is a QRDQN; train or copy", algo="qrdqn")
    refused(r"algo\.name='dqm' is not known; did you mean 'dqn'", algo="dqm")
    refused(r"model\.json does not describe a model \(TypeError\('algo is a int, not a str'\)\)", algo=3)
    refused(r"model\.json does not describe a model \(TypeError\(.*no_such", settings={**card["settings"], "no_such": 1})
    (copied / "model.safetensors").unlink()
    refused(r"model\.safetensors is missing")


def test_a_card_imports_no_module_that_the_user_has_not_named(dqn, tmp_path, monkeypatch):
    copied = shutil.copytree(dqn / "checkpoints" / "best", tmp_path / "best")
    card = json.loads((copied / "model.json").read_text())
    (copied / "model.json").write_text(json.dumps({**card, "algo": "algorithm_of_a_stranger.DQN"}))
    (tmp_path / "algorithm_of_a_stranger.py").write_text("import stable_baselines3\n\nclass DQN(stable_baselines3.DQN):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    message = r"model\.json names the class algorithm_of_a_stranger\.DQN; its module is imported only if you say so: add plugin=algorithm"
    with pytest.raises(InputError, match=message):
        load_model(copied, "cpu")
    assert "algorithm_of_a_stranger" not in sys.modules
    import_plugin("algorithm_of_a_stranger")
    assert type(load_model(copied, "cpu").model).__module__ == "algorithm_of_a_stranger"
    del sys.modules["algorithm_of_a_stranger"]


@pytest.mark.parametrize("space", [
    spaces.Discrete(5, start=2), spaces.Box(-np.inf, 1.5, (2, 3), np.float32), spaces.Box(np.zeros(2, np.int64), np.array([5, 3])),
    spaces.Dict({"a": spaces.Box(0, 255, (3, 4, 4), np.uint8), "b": spaces.Discrete(2)}),
])  # fmt: skip
def test_spaces_travel_as_plain_values(space):
    assert space_from_json(json.loads(json.dumps(space_to_json(space)))) == space


def test_a_space_that_no_observation_has_is_refused():
    with pytest.raises(InputError, match=r"the space MultiBinary\(2\) cannot be saved; .* must be of Discrete, Box or Dict spaces"):
        space_to_json(spaces.MultiBinary(2))


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
        (["algo=dqm"], "algo='dqm' is not known; did you mean 'dqn'"),
        (["algo=custom"], r"algo\.name is empty: algo=custom needs algo\.name=PACKAGE\.CLASS"),
        (["algo=dqn", "algo.settings.gama=0.5"], r"algo\.settings\.gama: dqn has no such argument; did you mean 'gamma'\?"),
        (
            ["algo=imitation", "algo.settings.temprature=1"],
            r"algo\.settings\.temprature: imitation has no such argument; did you mean 'temperature'\?",
        ),
        (["algo=dqn", "algo.settings.seed=3"], r"algo\.settings\.seed is reserved: set seed"),
        (["algo=dqn", "algo.settings.learning_rate=fast"], r"algo=dqn does not accept its settings .*fast"),
        (["algo=dqn", "algo.settings.policy_kwargs.net_arch=[8]"], r"policy_kwargs\.net_arch must be \[\] with network=spatial, got \[8\]"),
        (["algo=dqn", "algo.total_steps=0"], r"algo\.total_steps must be an integer of at least 1, got 0"),
        (["algo=dqn", "algo.observation=glance"], r"algo\.observation='glance' is not known"),
        (["algo=ppo", "algo.settings.gamma=0.5"], r"algo\.settings\.gamma: with PPO, set ppo\.gamma"),
        (["algo=imitation", "algo.observation=map"], r"algo\.observation must be reference with algo=imitation, .* got map; leave it out"),
        (["algo=dqn", "env.reward=randm"], r"env\.reward='randm' is not known; did you mean 'random'"),
        (
            ["algo=dqn", "env.reward=standalone", "env.action=skip"],
            r"env\.reward='standalone' judges every patch on its own .* set env\.reward='random', or an action without skipping",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, root, overrides, message):
    with pytest.raises(InputError, match=message):
        run(*PLAIN, f"data.root={root}", f"run={tmp_path}", *overrides)
