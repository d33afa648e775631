"""Short runs of any algorithm with the tiny networks, and their files."""

import contextlib
import functools
from dataclasses import replace

import pytest
from rich.console import Console

from agents.config.command import compose_config
from agents.config.settings import EnvConfig, NetworkConfig, PPOConfig, Train
from agents.rl.algorithms import DISCRETE
from agents.rl.model_state import State
from agents.rl.settings import algorithm_settings
from agents.rl.trainer import train_policy
from agents.runs.progress import Display
from agents.runs.run_dir import RunDir

NETWORK = NetworkConfig("published", channels=4, features=8, hidden=8)
SPATIAL = NetworkConfig("spatial", width=4)
QUICK = {
    "learning_starts": 16, "gradient_steps": 2, "batch_size": 8, "buffer_size": 64, "n_steps": 4, "n_epochs": 1, "n_delta": 2,
    "n_top": 1, "n_eval_episodes": 4,
}  # fmt: skip


@functools.cache
def _in_its_file(name):
    return compose_config(Train, "train", [f"algo={name}"]).algo


def settings(name, **more):
    """Return the settings of an algorithm from its YAML file, with a few steps."""
    algo = _in_its_file(name)
    quick = {key: value for key, value in QUICK.items() if key in algo.settings}
    return replace(algo, total_steps=96, validate_every=32, save_every=32, settings={**algo.settings, **quick, **more})


def learn(folder, features, algo, kind=DISCRETE, *, force=False, seed=0, console=None, network=NETWORK, ppo=None, **env_settings):
    kind_of_action = {"action": "grid", "baseline": "all"} if kind == DISCRETE else {"action": "continuous", "baseline": 1}
    env = EnvConfig(num_envs=4, **{**kind_of_action, **env_settings})
    with RunDir.open(folder, {}, force=force) as run, Display(console or Console(quiet=True)) as display:
        algorithm = algorithm_settings(features, env, network, ppo or PPOConfig(), algo)
        return train_policy(features, features, run, display, algorithm, env=env, seed=seed)


@contextlib.contextmanager
def after_line(number, act):
    """Return a context in which ``act`` is called after the given number of further lines of metrics."""
    log, lines = RunDir.log, []

    def logged(self, line):
        log(self, line)
        lines.append(line)
        if len(lines) == number:
            act()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDir, "log", logged)
        yield


def stored(path):
    """Return the values and the bytes of all tensors in a file, without times of episodes and attributes that `learn` sets."""
    state = State.read(path)
    model = {key: value for key, value in state.values.pop("model").items() if key not in ("ep_info_buffer", "_current_progress_remaining")}
    return {**model, **state.values, **{name: tensor.numpy().tobytes() for name, tensor in state.tensors.items()}}


def metrics(folder):
    return (folder / "metrics.jsonl").read_bytes()
