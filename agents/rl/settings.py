"""The settings of an algorithm for the trainer, which are made from the keys ``ppo.*`` or ``algo.*``."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from adafocus_env.action import InterpolatedAction
from adafocus_env.dynamics import Dynamics
from adafocus_env.features.live import Features
from agents.config.settings import AlgoConfig, EnvConfig, NetworkConfig, PPOConfig
from agents.policies.networks import NetworkArchitecture, PolicyNetwork, architecture_of, save_policy
from agents.policies.sb3 import ClipReferenceExtractor, PatchActorCriticPolicy, to_network
from agents.rl.algorithms import ALGORITHMS, Algorithm, Interface, algorithm_of, class_of, learns_as_ppo, new_model
from agents.rl.buffers import ClipRolloutBuffer, NormalizedReturnsBuffer, check_whole_clips
from agents.rl.environment import PIDLagrangian, check_targets, pid_lagrangian
from agents.rl.saved_model import ModelCard, TrainedModel, save_model
from classifiers.errors import refuse_if


def logged_metrics(logged: Mapping[str, Any]) -> dict[str, float]:
    """Return a dictionary from name to value of all finite numbers that an algorithm logged in its last update."""
    values = {key.removeprefix("train/"): value for key, value in sorted(logged.items()) if key.startswith("train/")}
    return {key: float(value) for key, value in values.items() if isinstance(value, int | float | np.number) and np.isfinite(value)}


@dataclass(frozen=True)
class AlgorithmSettings:
    """The settings of one algorithm for `agents.rl.trainer.train_policy`. All lengths and periods are in environment steps.

    Attributes:
        algorithm: row of the table that `agents.rl.algorithms.algorithm_of` returns for the algorithm.
        make_model: function that takes the environment and the seed, and returns a model that is ready to learn.
        to_policy: function that takes the model, and returns the policy to evaluate and save.
        save: function that takes the policy, the training environment, a folder and entries of the card, and saves the policy.
        total_steps: length of training.
        log_every: period of logging a line of metrics.
        validate_every: period of validation, after which a line of metrics also has the results on the validation clips.
        save_every: period of checkpoints.
        observation: name of the environment's observation; None: the default.
        start: the policy to start from; None: a new policy.
        lagrangian: controller of the cost weight; None: the cost weight is constant.
        update_metrics: function that takes the values that Stable-Baselines3 logged in an update, and returns metrics.
        rollout_metrics: function that takes the model and the dynamics, and returns metrics of the last rollout.
        counts_updates: whether lines of metrics have the number of the update.
        return_dtype: dtype in which returns are averaged.
    """

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
    """Return the trainer's settings for the algorithm that the user's settings describe.

    Args:
        features: features of the training clips.
        env: the environment's settings.
        network: network of a new policy.
        ppo: settings of PPO and its subclasses.
        algo: the algorithm, and its settings in addition to ``ppo``; None: PPO.
        start: a policy to start from (only for PPO); its network replaces ``network``.

    Raises:
        InputError: if settings exclude each other.
    """
    by_ppo = algo is None or learns_as_ppo(algo)
    return _from_ppo(features, env, network, ppo, algo, start) if by_ppo else _from_algo(features, env, network, cast(AlgoConfig, algo))


def _from_ppo(
    features: Features, env: EnvConfig, network: NetworkConfig, ppo: PPOConfig, algo: AlgoConfig | None, start: PolicyNetwork | None
) -> AlgorithmSettings:
    patch_share = features.action.patch_size / features.action.size
    architecture = start.architecture if start else architecture_of(features.map_shape, patch_share, network)
    std = start.std if start else network.std
    check_ppo(ppo, env, features.num_steps, architecture)
    update = (ppo.n_steps or features.num_steps) * env.num_envs
    model_class = cast("type[PPO]", class_of(algo.name)) if algo else PPO
    extra = algo.settings if algo else {}
    make = partial(new_ppo, model_class=model_class, extra=extra, learn_std=network.learn_std and start is None)
    return AlgorithmSettings(
        algorithm=ALGORITHMS["ppo"],
        make_model=lambda venv, seed: make(venv, features, ppo, architecture, seed, std),
        to_policy=lambda model: to_network(model.policy, interpolated=isinstance(features.action, InterpolatedAction)),  # type: ignore[arg-type]
        save=lambda policy, venv, folder, about: save_policy(policy, folder, about | ({"skipped": env.skipped} if policy.skips else {})),
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
        refuse_if(
            (target := getattr(env, key)) is not None, f"env.{key}={target} is for PPO only; set env.cost_weight with algo={algo.name}"
        )

    def save(policy: TrainedModel, venv: VecEnv, folder: Path, about: dict[str, Any]) -> None:
        interface = Interface.of(venv, features)
        card = ModelCard(algo.name, algo.observation, interface=interface, settings=algo.settings, network=network, **about)
        save_model(policy.model, folder, card)

    return AlgorithmSettings(
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


LOGGED = ("cross_entropy", "policy_gradient_loss", "value_loss", "approx_kl", "clip_fraction", "explained_variance", "learning_rate")


def new_ppo(
    env: VecEnv,
    features: Features,
    config: PPOConfig,
    architecture: NetworkArchitecture,
    seed: int,
    std: float = 0.25,
    *,
    learn_std: bool = False,
    model_class: type[PPO] = PPO,
    extra: Mapping[str, Any] = MappingProxyType({}),
) -> PPO:
    """Return Stable-Baselines3's PPO with minibatches of whole clips and a `PatchActorCriticPolicy`.

    The caller binds the policy to the features.

    Args:
        env: the training environment.
        features: features of the environment's clips.
        config: the algorithm's settings; see `check_ppo`.
        architecture: architecture of the policy.
        seed: seed of all random numbers.
        std: standard deviation of a continuous policy.
        learn_std: whether the standard deviation is learned, starting at ``std``.
        model_class: PPO or a subclass.
        extra: further arguments of ``model_class`` that the config does not have.

    Raises:
        InputError: if the policy does not support the action space, or if batch norm would get a batch with a single glance.
    """
    refuse_if(
        architecture.batch_norm and features.clips.epoch_size * features.num_steps < 2,
        "network.batch_norm=true needs more than a single glance to learn from; give more videos",
    )
    n_steps = config.n_steps or features.num_steps
    policy_kwargs: dict[str, Any] = {
        "features_extractor_class": ClipReferenceExtractor,
        "features_extractor_kwargs": {"architecture": architecture, "batch_statistics": config.batch_statistics},
        "std": std,
        "learn_std": learn_std,
        "ortho_init": config.ortho_init,
        "optimizer_kwargs": {"eps": config.adam_eps, "fused": True},  # unfused Adam takes 10 % of an iteration on a CPU
    }
    return model_class(
        PatchActorCriticPolicy, env,
        learning_rate=config.learning_rate, n_steps=n_steps, batch_size=config.batch_size or n_steps * env.num_envs,
        n_epochs=config.n_epochs, gamma=config.gamma, gae_lambda=config.gae_lambda, clip_range=config.clip_range,
        normalize_advantage=config.normalize_advantage, ent_coef=config.ent_coef, vf_coef=config.vf_coef,
        max_grad_norm=math.inf if config.max_grad_norm is None else config.max_grad_norm,
        rollout_buffer_class=NormalizedReturnsBuffer if config.normalize_returns else ClipRolloutBuffer,
        rollout_buffer_kwargs={"clip_length": features.num_steps},
        policy_kwargs=policy_kwargs, seed=seed, device=str(features.classifier.device), **extra,
    )  # fmt: skip


def total_steps(config: PPOConfig, features: Features) -> int:
    """Return the length of training in environment steps, converted from epochs if the length is set in epochs."""
    return config.total_steps if config.epochs is None else config.epochs * features.clips.epoch_size * features.num_steps


def check_ppo(config: PPOConfig, env: EnvConfig, steps: int, network: NetworkConfig | NetworkArchitecture) -> None:
    """Check the settings that depend on each other. The check needs neither clips nor networks.

    Args:
        config: the algorithm's settings.
        env: the environment's settings.
        steps: D, steps per episode.
        network: settings or architecture of the policy's network.

    Raises:
        InputError: if `n_steps` or `batch_size` is not a multiple of D, or two settings exclude each other.
    """
    check_targets(env)
    for key in ("n_steps", "batch_size"):
        if (value := getattr(config, key)) is not None:
            check_whole_clips(f"ppo.{key}", value, steps)
    refuse_if(
        (config.n_steps or steps) * env.num_envs < 2,
        "ppo.n_steps=1 with env.num_envs=1 is an update of a single step, which PPO cannot learn from; raise one of them",
    )
    refuse_if(
        config.normalize_returns and config.gae_lambda != 1,
        f"ppo.gae_lambda must be 1 with ppo.normalize_returns=true, got {config.gae_lambda}",
    )
    refuse_if(
        config.batch_statistics and not network.batch_norm,
        "ppo.batch_statistics=true is for policies with batch norm; set network.batch_norm=true, or leave it out",
    )
    refuse_if(
        config.batch_statistics and (config.n_steps not in (None, steps) or config.batch_size not in (None, steps * env.num_envs)),
        "ppo.batch_statistics=true needs minibatches of a whole rollout: set ppo.n_steps=null and ppo.batch_size=null",
    )
    refuse_if(  # two environments may have the same clip
        network.batch_norm and steps == 1 and env.num_envs < 3,
        f"env.num_envs must be 3 or more with network.batch_norm=true and one decision per clip, got {env.num_envs}",
    )


def ppo_metrics(logged: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of PPO's last update from the values that Stable-Baselines3 logged."""
    known = [name for name in LOGGED if f"train/{name}" in logged]  # algorithms without a critic log fewer values
    return {"entropy": -float(logged["train/entropy_loss"]), **{name: float(logged[f"train/{name}"]) for name in known}}


def skip_metrics(model: BaseAlgorithm, dynamics: Dynamics) -> dict[str, float]:
    """Return the share of focused steps in the last rollout and its cost weight; empty if actions cannot skip."""
    if dynamics.action.patch_action is dynamics.action:
        return {}
    buffer = cast(PPO, model).rollout_buffer
    actions = buffer.actions.reshape(*buffer.rewards.shape, *(dynamics.action.space.shape or ()))
    return {"kept": float(dynamics.action.patch_mask(actions).mean()), "cost_weight": dynamics.cost_weight}
