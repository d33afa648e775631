"""An iteration of PPO, bank warm, split by part, against the network calls that it cannot do without; and what its rollout takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure

from adafocus_env.features.memory_bank import MemoryBank
from agents.config.settings import EnvConfig, PPOConfig
from agents.policies.networks import PolicyArchitecture, PolicyNetwork
from agents.policies.sb3 import extractor_of
from agents.rl.environment import make_environment
from agents.rl.ppo import new_ppo
from benchmarks import workload
from benchmarks.clock import Time, interleaved, timed
from benchmarks.command import Settings, main
from benchmarks.env_steps import PATCHES, bank_of, bare_head, repeated
from benchmarks.sections import Section, at_most

MINIBATCHES = 4


def measure(settings: Settings) -> Iterator[Section]:
    """One iteration: every clip once, then `n_epochs` passes over them."""
    rows, length = (4, 4) if settings.quick else (64, 16)
    network, template = workload.flat_classifier(settings), workload.policy(settings)
    clips = workload.clips(settings, rows, length)
    config = PPOConfig(n_steps=length, batch_size=rows // MINIBATCHES * length)
    bank = bank_of(network, clips)
    model = learner(bank, config, rows, template.architecture)
    maps = bank.glance_maps(np.arange(rows)[:, None], np.arange(length)[None])
    rollout_mode, updating = _collect_bare(template, maps, bare_head(network, PATCHES * rows)), update_bare(template, maps, config.n_epochs)
    parts: dict[str, list[Time]] = {"collection": [], "update": []}
    acts: dict[str, Callable[[], object]] = {
        "iteration": iterations(model, parts),
        "bare: collection": rollout_mode,
        "bare: update": updating,
    }
    note = f"{config.n_epochs} epochs of {MINIBATCHES} minibatches; head steps of {PATCHES} rows a clip."
    section = Section(f"PPO iteration, bank warm, T·N = {rows * length}", note)
    times = interleaved(acts, 1 if settings.quick else settings.rounds)
    times |= {name: measured[1:] for name, measured in parts.items()}
    times["bare minimum"] = [_sum(*pair) for pair in zip(times["bare: collection"], times["bare: update"], strict=True)]
    section.times = times
    section.ratio("iteration", "bare minimum", aim=None if settings.quick else at_most(1.25))
    section.ratio("collection", "bare: collection").ratio("update", "bare: update")
    section.ratio("collection", "iteration", name="collection: share of the iteration")
    buffer = model.rollout_buffer
    held = sum(value.nbytes for value in vars(buffer).values() if isinstance(value, np.ndarray)) / 1e6
    yield section.figure("the rollout's memory", held, "MB", over="257 MB of copied maps at full size", aim=at_most(5))


def learner(bank: MemoryBank, config: PPOConfig, rows: int, network: PolicyArchitecture) -> PPO:
    """PPO on so many environments, whose features are in ``bank``."""
    environment = make_environment(bank, EnvConfig(num_envs=rows, grid=workload.GRID, reward="random", baseline=1))
    model = new_ppo(environment, bank, config, network, seed=0)
    model.set_logger(configure(None, []))
    extractor_of(model.policy).bind(bank)
    return model


def iterations(model: PPO, parts: dict[str, list[Time]]) -> Callable[[], object]:
    """An act: what `PPO.learn` does once, part by part."""
    _, callback = model._setup_learn(10**9, None, reset_num_timesteps=False)
    callback.on_training_start({}, {})
    assert model.env is not None
    collect = partial(model.collect_rollouts, model.env, callback, model.rollout_buffer, model.n_steps)

    def act() -> None:
        parts["collection"].append(timed(collect))
        parts["update"].append(timed(model.train))

    return act


def _collect_bare(policy: PolicyNetwork, maps: torch.Tensor, head_step: Callable[[], object]) -> Callable[[], object]:
    """An act: the policy once over each frame, and the head's step at each."""
    head_steps = repeated(maps.shape[1], head_step)

    @torch.no_grad()
    def act() -> None:
        hidden = policy.encoder(maps)
        policy.actor(hidden), policy.critic(hidden)
        head_steps()

    return act


def update_bare(policy: PolicyNetwork, maps: torch.Tensor, epochs: int, minibatches: int = MINIBATCHES) -> Callable[[], object]:
    """An act: forward and backward of every minibatch of every epoch, whole clips at a time."""
    policy.train().requires_grad_(True)

    def act() -> None:
        for _ in range(epochs):
            for part in maps.chunk(minibatches):
                policy.zero_grad()
                hidden = policy.encoder(part)
                (policy.actor(hidden).logsumexp(-1).mean() + policy.critic(hidden).mean()).backward()

    return act


def _sum(one: Time, other: Time) -> Time:
    return Time(one.wall + other.wall, one.cpu + other.cpu)


if __name__ == "__main__":
    main(["ppo"])
