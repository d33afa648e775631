"""PPO in one file: a policy that is recurrent over glances learns where to look, without leaving the networks' device.

    python examples/ppo_single_file.py                  # 100,000 steps on the demo videos
    python examples/ppo_single_file.py --steps 20000 --envs 32

What makes it short, and fast, is the task itself. All episodes have the same length and begin together, and what the agent sees does
not depend on what it did before. So the environment is asked for references (clip, step) only, the glances of whole clips are read
in place, the GRU runs once over each clip and gives the actions of all its steps at once, and a minibatch is made of whole clips.
With ``output="torch"`` rewards and flags are tensors on the device of the networks; nothing is copied to NumPy and back.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from measure import TASK, compare
from torch import Tensor, nn
from torch.distributions import Categorical

import adafocus_env  # noqa: F401  (registers the ids)


@dataclass
class Settings:
    """Everything that can be set on the command line, as ``--name value``."""

    steps: int = 100_000
    envs: int = 128
    seed: int = 0
    id: str = "AdaFocus-v1"
    test_clips: int = 500
    learning_rate: float = 1e-3
    clips_per_batch: int = 32
    epochs: int = 4
    gamma: float = 0.7
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    entropy: float = 0.01
    value: float = 0.5
    max_grad_norm: float = 0.5


class Policy(nn.Module):
    """Glance maps of whole clips → logits of the cells and a value for every step, each from the glances so far."""

    def __init__(self, map_shape: tuple[int, int, int], cells: int, hidden: int = 128) -> None:
        super().__init__()
        channels, height, width = map_shape
        self.frame = nn.Sequential(
            nn.Conv2d(channels, 16, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * height * width, hidden), nn.ReLU()
        )
        self.gru = nn.GRU(hidden, hidden)
        self.actor, self.critic = nn.Linear(hidden, cells), nn.Linear(hidden, 1)
        nn.init.orthogonal_(self.actor.weight, 0.01)  # begins with patches that are nearly uniform

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (D, N, C, h, w) → logits (D, N, cells) and values (D, N)."""
        hidden, _ = self.gru(self.frame(maps.flatten(0, 1)).unflatten(0, maps.shape[:2]))
        return self.actor(hidden), self.critic(hidden).squeeze(-1)


@dataclass
class Rollout:
    """One clip in each environment, from its first step to its last. All are (D, N, …)."""

    maps: Tensor
    actions: Tensor
    log_probabilities: Tensor
    values: Tensor
    rewards: Tensor


def glances(envs: gym.vector.VectorEnv, clips: Tensor) -> Tensor:
    """The glance maps (D, N, C, h, w) of clips (N,), read where the environment keeps them."""
    features = envs.unwrapped.dynamics.features
    return features.glance_maps(clips.cpu().numpy()[None], np.arange(features.num_steps)[:, None])


@torch.no_grad()
def collect(envs: gym.vector.VectorEnv, policy: Policy, references: Tensor) -> tuple[Rollout, Tensor]:
    """Plays the clips that have just begun; returns what happened, and references to the clips that have begun now."""
    maps = glances(envs, references[:, 0])
    logits, values = policy(maps)
    chosen = Categorical(logits=logits)
    actions, rewards = chosen.sample(), torch.empty_like(values)
    for step, action in enumerate(actions):
        references, rewards[step], terminated, _, _ = envs.step(action)
    assert terminated.all()
    return Rollout(maps, actions, chosen.log_prob(actions), values, rewards), references


def advantages(rollout: Rollout, settings: Settings) -> Tensor:
    """Generalised advantage estimates (D, N); the last step ends the episode, so nothing is worth anything after it."""
    result, after, following = torch.empty_like(rollout.values), torch.zeros_like(rollout.values[0]), torch.zeros_like(rollout.values[0])
    for step in reversed(range(len(result))):
        error = rollout.rewards[step] + settings.gamma * following - rollout.values[step]
        result[step] = after = error + settings.gamma * settings.gae_lambda * after
        following = rollout.values[step]
    return result


def loss(policy: Policy, rollout: Rollout, advantage: Tensor, clips: Tensor, settings: Settings) -> Tensor:
    """PPO's loss on whole clips: clipped surrogate, squared error of the values, entropy."""
    logits, values = policy(rollout.maps[:, clips])
    now, gain = Categorical(logits=logits), advantage[:, clips]
    returns = gain + rollout.values[:, clips]
    normalised = (gain - gain.mean()) / (gain.std() + 1e-8)
    ratio = (now.log_prob(rollout.actions[:, clips]) - rollout.log_probabilities[:, clips]).exp()
    bounded = ratio.clamp(1 - settings.clip_range, 1 + settings.clip_range)
    surrogate = torch.min(ratio * normalised, bounded * normalised).mean()
    return settings.value * (values - returns).square().mean() - surrogate - settings.entropy * now.entropy().mean()


def train(settings: Settings) -> Policy:
    """Learns for so many steps of the environments; prints how it goes."""
    torch.manual_seed(settings.seed)
    envs = gym.make_vec(
        settings.id, num_envs=settings.envs, vectorization_mode="vector_entry_point", task=TASK, observation="reference", output="torch",
        baseline="all", autoreset_mode="SameStep", clip_order="epoch",
    )  # fmt: skip
    features = envs.unwrapped.dynamics.features
    policy = Policy(features.map_shape, int(envs.single_action_space.n)).to(features.classifier.device)
    optimizer = torch.optim.Adam(policy.parameters(), settings.learning_rate, eps=1e-5)
    references, _ = envs.reset(seed=settings.seed)
    updates, start = max(1, settings.steps // (settings.envs * features.num_steps)), time.perf_counter()
    for update in range(1, updates + 1):
        rollout, references = collect(envs, policy, references)
        advantage = advantages(rollout, settings)
        for _ in range(settings.epochs):
            for clips in torch.randperm(settings.envs, device=advantage.device).split(settings.clips_per_batch):
                optimizer.zero_grad()
                loss(policy, rollout, advantage, clips, settings).backward()
                nn.utils.clip_grad_norm_(policy.parameters(), settings.max_grad_norm)
                optimizer.step()
        if update == updates or update % 20 == 0:
            steps = update * rollout.rewards.numel()
            rate = steps / (time.perf_counter() - start)
            print(f"{steps:>7} steps  return {rollout.rewards.sum(0).mean():.2f}  {rate:.0f} steps/s", flush=True)  # noqa: T201
    envs.close()
    return policy


def main(arguments: list[str] | None = None) -> None:
    """Trains a policy and says what it is worth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in vars(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    settings = Settings(**vars(parser.parse_args(arguments)))
    policy, seen = train(settings).cpu(), list[Tensor]()

    @torch.no_grad()
    def choose(maps: np.ndarray) -> np.ndarray:
        """The most likely cells, from the glances up to now."""
        seen.append(torch.from_numpy(maps))
        logits, _ = policy(torch.stack(seen))
        return logits[-1].argmax(-1).numpy()

    compare(settings.id, "map", choose, settings.test_clips)


if __name__ == "__main__":
    main()
