"""Train a patch policy with PPO on frozen classifier networks; this is the main job.

    python -m agents.train_ppo                              the demo videos, rendered once
    python -m agents.train_ppo data=folder data.root=DIR    your videos: one subfolder per class
    torchrun --nproc_per_node=8 -m agents.train_ppo …       on eight GPUs, which share the clips
"""

from agents.config.command import run_command
from agents.config.settings import TrainPPO


def main(config: TrainPPO) -> None:
    """Train a policy and evaluate it on the test clips."""
    from agents.pipeline.policy_training import train_and_report  # imported here, so that --help does not import PyTorch

    train_and_report(config.run or f"runs/train_ppo-{config.data.name}-{config.seed}", config)


if __name__ == "__main__":
    run_command(main, TrainPPO, "train_ppo")
