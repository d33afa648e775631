"""PPO in a single file, with a policy that is recurrent over glances. All tensors stay on the networks' device.

    python examples/ppo_single_file.py                  # 100,000 steps on the demo videos
    python examples/ppo_single_file.py --steps 20000 --envs 32

Two properties of the environment make the code short and fast: all episodes have the same length and begin together, and observations do
not depend on earlier actions. The environment therefore returns only the numbers of clip and step, and the glances of whole clips are read
where they are stored. The GRU runs once over each clip and gives the actions of all its steps. Minibatches consist of whole clips. With
``output="torch"``, rewards and flags are tensors on the device of the networks, and nothing is copied to NumPy and back.
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
    """The settings. Each setting can be changed on the command line, as ``--name value``."""

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
    """A recurrent network that computes the logits of the cells and a value for every step, from the glance maps up to this step."""

    def __init__(self, map_shape: tuple[int, int, int], cells: int, hidden: int = 128) -> None:
        super().__init__()
        channels, height, width = map_shape
        self.frame = nn.Sequential(
            nn.Conv2d(channels, 16, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * height * width, hidden), nn.ReLU()
        )
        self.gru = nn.GRU(hidden, hidden)
        self.actor, self.critic = nn.Linear(hidden, cells), nn.Linear(hidden, 1)
        nn.init.orthogonal_(self.actor.weight, 0.01)  # nearly uniform at first

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (D, N, cells) and values (D, N) for maps (D, N, C, h, w)."""
        hidden, _ = self.gru(self.frame(maps.flatten(0, 1)).unflatten(0, maps.shape[:2]))
        return self.actor(hidden), self.critic(hidden).squeeze(-1)


@dataclass
class Rollout:
    """The rollout of one clip in each environment, from the first step to the last. All tensors have shape (D, N, …)."""

    maps: Tensor
    actions: Tensor
    log_probabilities: Tensor
    values: Tensor
    rewards: Tensor


def glances(envs: gym.vector.VectorEnv, clips: Tensor) -> Tensor:
    """Return the glance maps (D, N, C, h, w) of clips (N,), read from the environment's features."""
    features = envs.unwrapped.dynamics.features
    return features.glance_maps(clips.cpu().numpy()[None], np.arange(features.num_steps)[:, None])


@torch.no_grad()
def collect(envs: gym.vector.VectorEnv, policy: Policy, references: Tensor) -> tuple[Rollout, Tensor]:
    """Play the clips that have just begun. Return the rollout, and the numbers of the clips and steps with which the next rollout
    begins."""
    maps = glances(envs, references[:, 0])
    logits, values = policy(maps)
    chosen = Categorical(logits=logits)
    actions, rewards = chosen.sample(), torch.empty_like(values)
    for step, action in enumerate(actions):
        references, rewards[step], terminated, _, _ = envs.step(action)
    assert terminated.all()
    return Rollout(maps, actions, chosen.log_prob(actions), values, rewards), references


def advantages(rollout: Rollout, settings: Settings) -> Tensor:
    """Return generalised advantage estimates (D, N). The last step ends the episode, so the value after this step is zero."""
    result, after, following = torch.empty_like(rollout.values), torch.zeros_like(rollout.values[0]), torch.zeros_like(rollout.values[0])
    for step in reversed(range(len(result))):
        error = rollout.rewards[step] + settings.gamma * following - rollout.values[step]
        result[step] = after = error + settings.gamma * settings.gae_lambda * after
        following = rollout.values[step]
    return result


def loss(policy: Policy, rollout: Rollout, advantage: Tensor, clips: Tensor, settings: Settings) -> Tensor:
    """Return PPO's loss on whole clips: the clipped surrogate objective, the squared error of the values, and the entropy."""
    logits, values = policy(rollout.maps[:, clips])
    now, gain = Categorical(logits=logits), advantage[:, clips]
    returns = gain + rollout.values[:, clips]
    normalised = (gain - gain.mean()) / (gain.std() + 1e-8)
    ratio = (now.log_prob(rollout.actions[:, clips]) - rollout.log_probabilities[:, clips]).exp()
    bounded = ratio.clamp(1 - settings.clip_range, 1 + settings.clip_range)
    surrogate = torch.min(ratio * normalised, bounded * normalised).mean()
    return settings.value * (values - returns).square().mean() - surrogate - settings.entropy * now.entropy().mean()


def train(settings: Settings) -> Policy:
    """Train a policy, and print the progress."""
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
    """Train a policy and evaluate it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in vars(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    settings = Settings(**vars(parser.parse_args(arguments)))
    policy, seen = train(settings).cpu(), list[Tensor]()

    @torch.no_grad()
    def choose(maps: np.ndarray) -> np.ndarray:
        """Return the most likely cells, given the glances so far."""
        seen.append(torch.from_numpy(maps))
        logits, _ = policy(torch.stack(seen))
        return logits[-1].argmax(-1).numpy()

    compare(settings.id, "map", choose, settings.test_clips)


if __name__ == "__main__":
    main()
