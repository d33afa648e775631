"""Train tiny policies, alone or as one of two processes, and record what the processes must agree on."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import TASK, random_classifier
from rich.console import Console
from safetensors.torch import save_file
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from tiny_algorithms import NETWORK, SPATIAL
from torch import Tensor

from adafocus_env import distributed
from adafocus_env.action import ACTIONS
from adafocus_env.build import open_clips
from adafocus_env.demo.videos import demo
from adafocus_env.features.live import LiveFeatures
from adafocus_env.features.memory_bank import MemoryBank
from agents.config.settings import AlgoConfig, EnvConfig, NetworkConfig, PPOConfig
from agents.policies.sb3 import bind, extractor_of
from agents.rl.distributed import share_policy
from agents.rl.environment import make_environment
from agents.rl.settings import algorithm_settings
from agents.rl.trainer import train_policy
from agents.runs.progress import Display
from agents.runs.run_dir import RunDir
from classifiers.errors import InputError

QUICK = {"n_steps": 4, "batch_size": 8, "n_epochs": 2, "total_steps": 96, "validate_every": 2, "save_every": 2, "learning_rate": 1e-2}
WITH_NORM = NetworkConfig("published", channels=4, features=8, hidden=8, batch_norm=True)
FULL = {"full_information": True, "baseline": "all"}


def case(
    name: str, network: NetworkConfig = SPATIAL, ppo: dict[str, Any] | None = None, settings: dict[str, Any] | None = None, **env: Any
):
    """Return a training: the algorithm, the network and the settings of PPO and the environment that differ from `QUICK`."""
    return {"algo": AlgoConfig(name, settings=settings or {}), "network": network, "ppo": {**QUICK, **(ppo or {})}, "env": env}


CASES: dict[str, dict[str, Any]] = {
    "ppo": case("ppo", settings={"target_kl": 1e9}),
    "ppo, continuous": case("ppo", NetworkConfig("spatial", width=4, learn_std=True), action="continuous", baseline=1),
    "ppo, skipping": case("ppo", NETWORK, {"normalize_returns": True, "gae_lambda": 1}, action="skip", cost_weight=0.2),
    "ppo, batch norm": case("ppo", WITH_NORM),
    "ppo, batch statistics": case("ppo", WITH_NORM, {"batch_size": None, "batch_statistics": True}),
    "ppo, small minibatches": case("ppo", ppo={"batch_size": 4}),
    "ppo, stopped by its KL divergence": case("ppo", ppo={"learning_rate": 0.1}, settings={"target_kl": 1e-4}),
    "expected_pg": case("expected_pg", ppo={"gamma": 0.9}, **FULL),
    "imitation": case("imitation"),
    "imitation of rewards": case("imitation", **FULL),
}


def features_of(action: str = "grid", *, tracks: bool = True):
    """Return the features of twelve clips; those of continuous locations are computed live."""
    clips = open_clips(demo(TASK, val=0.0), "train", num_frames=4, size=96)
    clips.has_truth = tracks
    kind = ACTIONS[action](7, 96, 24).patch_action
    return LiveFeatures(random_classifier(), clips, kind) if kind.num_cells is None else MemoryBank(random_classifier(), clips, kind)


def first_update(training: dict[str, Any]) -> dict[str, Tensor]:
    """Return the rollout of a new policy in double precision, and the gradients of all steps of its first update."""
    env = EnvConfig(num_envs=4, **training["env"])
    features = features_of(env.action, tracks=training["env"].get("baseline") != "all")
    settings = algorithm_settings(features, env, training["network"], PPOConfig(**training["ppo"]), training["algo"])
    model: Any = settings.make_model(make_environment(features, env), 7)
    bind(model.policy, features, cache=False)
    model.policy.double()
    extractor_of(model.policy).encoder.frame.register_forward_pre_hook(lambda module, maps: (maps[0].double(),))
    if distributed.world_size() > 1:
        share_policy(model.policy)
    found: dict[str, Tensor] = {}
    steps: list[int] = []

    def record(*step: object) -> None:
        for name, parameter in model.policy.named_parameters():
            if parameter.grad is not None:
                found[f"{len(steps)} {name}"] = parameter.grad.clone()
        steps.append(1)

    model.policy.optimizer.register_step_pre_hook(record)
    model.set_logger(configure(None, []))
    model.learn(16)
    logged = {key: value for key, value in model.logger.name_to_value.items() if key.startswith("train/")}
    found |= {key: torch.tensor(float(value)) for key, value in logged.items()}
    for name in ("observations", "actions", "rewards", "values", "log_probs", "returns"):
        found[name] = torch.from_numpy(np.ascontiguousarray(getattr(model.rollout_buffer, name)))
    return found | {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}


def first_updates(folder: Path) -> None:
    """Write the first update of each of `CASES` to ``folder``."""
    for number, training in enumerate(CASES.values()):
        found = first_update(training)
        if distributed.is_main():
            save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / f"{number}.safetensors")


def train(folder: Path, dies_in: int | None = None) -> None:
    """Train a policy in the run directory ``folder``. The last process dies at the beginning of update ``dies_in``, numbered from 1."""
    if dies_in is not None and distributed.rank() == 1:
        _die_in(dies_in)
    training, env, features = CASES["ppo"], EnvConfig(num_envs=4), features_of()
    settings = algorithm_settings(features, env, training["network"], PPOConfig(**training["ppo"]), training["algo"])
    run = RunDir.open(folder, {}, force=False) if distributed.is_main() else RunDir(folder)
    try:
        with run, Display(Console(quiet=True)) as display:
            train_policy(features, features if distributed.is_main() else None, run, display, settings, env=env, seed=0)
    except InputError as problem:
        (folder / f"error-{distributed.rank()}.txt").write_text(str(problem))
        sys.exit(2)


def _die_in(update: int) -> None:
    update_once, begun = PPO.train, []

    def dying(self: PPO) -> None:
        begun.append(self)
        if len(begun) == update:
            os._exit(9)
        update_once(self)

    PPO.train = dying  # type: ignore[method-assign]
