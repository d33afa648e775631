"""What the trainer needs to know of an algorithm, made from the keys ``ppo.*`` or ``algo.*``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from adafocus_env.dynamics import Dynamics
from adafocus_env.features.live import Features
from agents.config.settings import AlgoConfig, EnvConfig, NetworkConfig, PPOConfig
from agents.policies.checkpoint import save_policy
from agents.policies.networks import PolicyArchitecture, PolicyNetwork
from agents.policies.sb3 import to_network
from agents.rl.algorithms import ALGORITHMS, Algorithm, Interface, algorithm_of, class_of, learns_as_ppo, new_model
from agents.rl.lagrangian import PIDLagrangian, check_targets, pid_lagrangian
from agents.rl.ppo import check_ppo, new_ppo, ppo_metrics, skip_metrics, total_steps
from agents.rl.saved_model import ModelCard, TrainedModel, save_model
from classifiers.errors import InputError


def logged_metrics(logged: Mapping[str, Any]) -> dict[str, float]:
    """Return all finite numbers that an algorithm logged of its last update, by name."""
    values = {key.removeprefix("train/"): value for key, value in sorted(logged.items()) if key.startswith("train/")}
    return {key: float(value) for key, value in values.items() if isinstance(value, int | float | np.number) and np.isfinite(value)}


@dataclass(frozen=True)
class AlgorithmSettings:
    """One algorithm, ready for `agents.rl.trainer.train_policy`. All periods are in environment steps.

    Attributes:
        name: a name in the table, or a dotted path.
        algorithm: its row in the table, or the nearest.
        make_model: (environment, seed) → the model, ready to learn.
        to_policy: the model → the policy that is evaluated and saved.
        save: (policy, training environment, folder, entries of its card) → None.
        total_steps: length of training.
        log_every: between two lines of metrics.
        validate_every: between two validations, each in a line of metrics.
        save_every: between two checkpoints.
        observation: of the environment; None: its default.
        start: the policy to start from; None: a new one.
        lagrangian: controls the cost weight; None: it is constant.
        update_metrics: what Stable-Baselines3 logged of an update → metrics.
        rollout_metrics: (model, dynamics) → metrics of the last rollout.
        counts_updates: whether a line of metrics has the number of the update.
        return_dtype: in which returns are averaged.
    """

    name: str
    algorithm: Algorithm
    make_model: Callable[[VecEnv, int], BaseAlgorithm]
    to_policy: Callable[[BaseAlgorithm], PolicyNetwork | TrainedModel]
    save: Callable[[Any, VecEnv, Path, dict[str, Any]], None]
    total_steps: int
    log_every: int
    validate_every: int
    save_every: int
    observation: str | None = None
    start: PolicyNetwork | None = None
    lagrangian: PIDLagrangian | None = None
    update_metrics: Callable[[Mapping[str, Any]], dict[str, float]] = logged_metrics
    rollout_metrics: Callable[[BaseAlgorithm, Dynamics], dict[str, float]] = lambda model, dynamics: {}
    counts_updates: bool = False
    return_dtype: DTypeLike = np.float64


def algorithm_settings(
    features: Features,
    env: EnvConfig,
    network: NetworkConfig,
    ppo: PPOConfig,
    algo: AlgoConfig | None = None,
    start: PolicyNetwork | None = None,
) -> AlgorithmSettings:
    """Return the settings of the algorithm that the keys describe.

    Args:
        features: of the training clips.
        env: the environment.
        network: of a new policy.
        ppo: read for PPO and its subclasses.
        algo: the algorithm, and the settings of all others; None: PPO.
        start: a policy to start from (PPO only); its network replaces ``network``.

    Raises:
        InputError: if settings exclude each other.
    """
    if algo is not None and not learns_as_ppo(algo):
        return _from_algo(features, env, network, algo)
    return _from_ppo(features, env, network, ppo, algo, start)


def _from_ppo(
    features: Features, env: EnvConfig, network: NetworkConfig, ppo: PPOConfig, algo: AlgoConfig | None, start: PolicyNetwork | None
) -> AlgorithmSettings:
    architecture, std = PolicyArchitecture.from_config(features.map_shape, network), network.std
    if start is not None:
        architecture, std = start.architecture, start.std
    check_ppo(ppo, env, features.num_steps, architecture)
    update = (ppo.n_steps or features.num_steps) * env.num_envs
    model_class = cast("type[PPO]", class_of(algo.name)) if algo else PPO
    extra = algo.settings if algo else {}
    return AlgorithmSettings(
        name="ppo",
        algorithm=ALGORITHMS["ppo"],
        make_model=lambda venv, seed: new_ppo(venv, features, ppo, architecture, seed, std, model_class=model_class, extra=extra),
        to_policy=lambda model: to_network(model.policy),  # type: ignore[arg-type]
        save=lambda policy, venv, folder, about: save_policy(policy, folder, about),
        total_steps=total_steps(ppo, features),
        log_every=update,
        validate_every=update * ppo.validate_every,
        save_every=update * ppo.save_every,
        start=start,
        lagrangian=pid_lagrangian(env, features, architecture),
        update_metrics=ppo_metrics,
        rollout_metrics=skip_metrics,
        counts_updates=True,
        return_dtype=np.float32,
    )


def _from_algo(features: Features, env: EnvConfig, network: NetworkConfig, algo: AlgoConfig) -> AlgorithmSettings:
    check_targets(env)
    for key in ("target_keep", "target_gflops"):
        if (target := getattr(env, key)) is not None:
            raise InputError(f"env.{key}={target} is for PPO only; set env.cost_weight with algo={algo.name}")

    def save(policy: TrainedModel, venv: VecEnv, folder: Path, about: dict[str, Any]) -> None:
        interface = Interface.of(venv, features)
        card = ModelCard(algo.name, algo.observation, interface=interface, settings=algo.settings, network=network, **about)
        save_model(policy.model, folder, card)

    return AlgorithmSettings(
        name=algo.name,
        algorithm=algorithm_of(class_of(algo.name), algo.name),
        make_model=lambda venv, seed: new_model(venv, features, algo, network, seed),
        to_policy=partial(TrainedModel, observation=algo.observation),
        save=save,
        total_steps=algo.total_steps,
        log_every=algo.validate_every,
        validate_every=algo.validate_every,
        save_every=algo.save_every,
        observation=algo.observation,
    )
