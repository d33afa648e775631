"""Train a patch policy with any algorithm of Stable-Baselines3, sb3-contrib or a plugin, on frozen classifier networks.

    python -m agents.train algo=dqn                                              actions are the cells of a grid
    python -m agents.train algo=sac env.action=continuous env.baseline=1         actions are locations
    python -m agents.train algo=mypackage.MyDQN algo.settings.learning_rate=3e-4  a user-defined class
    python -m agents.train                                                       PPO, as python -m agents.train_ppo
    torchrun --nproc_per_node=8 -m agents.train algo=expected_pg …               on eight GPUs; also ppo and imitation
"""

from collections.abc import Iterator

from agents.config.command import run_command
from agents.config.settings import Train


def main(config: Train) -> None:
    """Train a policy and evaluate it on the test clips."""
    from agents.pipeline.policy_training import train_and_report  # imported here, so that --help does not import PyTorch

    train_and_report(config.run or f"runs/train-{config.algo.name}-{config.data.name}-{config.seed}", config)


def without_effect(config: Train) -> Iterator[tuple[str, str]]:
    """Yield the settings that the algorithm does not read; see `agents.config.effect`."""
    from agents.rl import algorithms

    yield from algorithms.without_effect(config)


if __name__ == "__main__":
    run_command(main, Train, "train", without_effect=without_effect)
