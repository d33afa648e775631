"""PPO: the keys ``ppo.*`` → Stable-Baselines3's class, with minibatches of whole clips."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from adafocus_env.dynamics import Dynamics
from adafocus_env.features.live import Features
from agents.config.settings import EnvConfig, NetworkConfig, PPOConfig
from agents.policies.networks import PolicyArchitecture
from agents.policies.sb3 import ClipReferenceExtractor, PatchActorCriticPolicy
from agents.rl.buffers import ClipRolloutBuffer, NormalizedReturnsBuffer, check_whole_clips
from agents.rl.lagrangian import check_targets
from classifiers.errors import InputError

LOGGED = ("policy_gradient_loss", "value_loss", "approx_kl", "clip_fraction", "explained_variance", "learning_rate")


def new_ppo(
    env: VecEnv,
    features: Features,
    config: PPOConfig,
    architecture: PolicyArchitecture,
    seed: int,
    std: float = 0.25,
    *,
    model_class: type[PPO] = PPO,
    extra: Mapping[str, Any] = MappingProxyType({}),
) -> PPO:
    """Return Stable-Baselines3's PPO on whole clips with a `PatchActorCriticPolicy`; the caller binds the policy to the features.

    Args:
        env: the training environment.
        features: of its clips.
        config: the algorithm's settings; see `check_ppo`.
        architecture: of the policy.
        seed: of all random numbers.
        std: of a continuous policy.
        model_class: PPO or a subclass.
        extra: arguments of ``model_class`` that the config does not have.

    Raises:
        InputError: if the action space does not suit the policy, or batch norm would see a single glance.
    """
    if architecture.batch_norm and features.clips.epoch_size * features.num_steps < 2:
        raise InputError("network.batch_norm=true needs more than a single glance to learn from; give more videos")
    n_steps = config.n_steps or features.num_steps
    policy_kwargs: dict[str, Any] = {
        "features_extractor_class": ClipReferenceExtractor,
        "features_extractor_kwargs": {"architecture": architecture, "batch_statistics": config.batch_statistics},
        "std": std,
        "ortho_init": config.ortho_init,
        "optimizer_kwargs": {"eps": config.adam_eps, "fused": True},  # unfused, Adam is a tenth of an iteration on a CPU
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
    """Return the length of training in environment steps, also where it is set in epochs."""
    return config.total_steps if config.epochs is None else config.epochs * features.clips.epoch_size * features.num_steps


def check_ppo(config: PPOConfig, env: EnvConfig, steps: int, network: NetworkConfig | PolicyArchitecture) -> None:
    """Check the settings that depend on each other; neither clips nor networks are needed.

    Args:
        config: the algorithm's settings.
        env: the environment's.
        steps: D, steps of an episode.
        network: the policy's.

    Raises:
        InputError: if `n_steps` or `batch_size` is not a multiple of D, or two settings exclude each other.
    """
    check_targets(env)
    for key in ("n_steps", "batch_size"):
        if (value := getattr(config, key)) is not None:
            check_whole_clips(f"ppo.{key}", value, steps)
    if (config.n_steps or steps) * env.num_envs < 2:
        raise InputError("ppo.n_steps=1 with env.num_envs=1 is an update of a single step, which PPO cannot learn from; raise one of them")
    if config.normalize_returns and config.gae_lambda != 1:
        raise InputError(f"ppo.gae_lambda must be 1 with ppo.normalize_returns=true, got {config.gae_lambda}")
    if config.batch_statistics and not network.batch_norm:
        raise InputError("ppo.batch_statistics=true is for policies with batch norm; set network.batch_norm=true, or leave it out")
    if config.batch_statistics and (config.n_steps not in (None, steps) or config.batch_size not in (None, steps * env.num_envs)):
        raise InputError("ppo.batch_statistics=true needs minibatches of a whole rollout: set ppo.n_steps=null and ppo.batch_size=null")
    if network.batch_norm and steps == 1 and env.num_envs < 3:  # two environments may play the same clip
        raise InputError(f"env.num_envs must be 3 or more with network.batch_norm=true and one decision per clip, got {env.num_envs}")


def ppo_metrics(logged: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of PPO's last update, from what Stable-Baselines3 logged."""
    return {"entropy": -float(logged["train/entropy_loss"]), **{name: float(logged[f"train/{name}"]) for name in LOGGED}}


def skip_metrics(model: BaseAlgorithm, dynamics: Dynamics) -> dict[str, float]:
    """Return the share of focused steps in the last rollout and the cost weight that it had; empty if actions cannot skip."""
    if dynamics.action.patch_action is dynamics.action:
        return {}
    assert isinstance(model, PPO)
    buffer = model.rollout_buffer
    actions = buffer.actions.reshape(*buffer.rewards.shape, *(dynamics.action.space.shape or ()))
    return {"kept": float(dynamics.action.patch_mask(actions).mean()), "cost_weight": dynamics.cost_weight}
