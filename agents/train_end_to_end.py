"""Train glancer, policy, focuser and head together without reinforcement learning (AdaFocusV2).

    python -m agents.train_end_to_end                                        demo videos, starting from the bundled classifier
    python -m agents.train_end_to_end freeze=true                            train only the policy, on a frozen classifier
    python -m agents.train_end_to_end classifier=small                       from random weights
    python -m agents.train_end_to_end classifier=DIR                         from the classifier of another run
    python -m agents.train_end_to_end data=folder data.root=DIR              your videos: one subfolder per class

Patches are interpolated, so that the loss has a gradient with respect to their locations. After Ctrl-C, a kill or a crash, the same
command resumes.

    torchrun --nproc_per_node=8 -m agents.train_end_to_end …                 on eight GPUs, which share the clips of each step
"""

from agents.config.command import run_command
from agents.config.settings import TrainEndToEnd


def main(config: TrainEndToEnd) -> None:
    """Train classifier and policy, and evaluate them on the test clips."""
    from agents.pipeline.end_to_end import train_and_report  # imported here, so that --help does not import PyTorch

    train_and_report(config.run or f"runs/train_end_to_end-{config.data.label}-{config.seed}", config)


if __name__ == "__main__":
    run_command(main, TrainEndToEnd, "train_end_to_end")
