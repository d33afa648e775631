"""The main job: PPO learns where to look in videos, over frozen classifier networks.

    python -m agents.train_ppo                              the demo videos, rendered once
    python -m agents.train_ppo data=folder data.root=DIR    your own: one subfolder of videos for each class
"""

from agents.config.command import run_command
from agents.config.settings import TrainPPO


def main(config: TrainPPO) -> None:
    """Trains a policy and reports what it is worth on the test clips."""
    from agents.pipeline.policy_training import train_and_report  # here, so that --help answers without PyTorch

    train_and_report(config.run or f"runs/train_ppo-{config.data.name}-{config.seed}", config)


if __name__ == "__main__":
    run_command(main, TrainPPO, "train_ppo")
