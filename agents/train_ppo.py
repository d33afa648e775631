"""The main job: PPO learns where to look in videos, over frozen classifier networks.

    python -m agents.train_ppo                              the demo videos, rendered once
    python -m agents.train_ppo data=folder data.root=DIR    your own: one subfolder of videos for each class
"""

from __future__ import annotations

import time

from agents.command import run_command
from agents.config import TrainPPO


def main(config: TrainPPO) -> None:
    """Trains a policy and reports what it is worth on the test clips."""
    from agents.session import Session  # here, so that --help answers without PyTorch

    with Session.open(config.run or f"runs/train_ppo-{config.data.label}-{config.seed}", config) as session:
        if session.show_if_finished():
            return
        clips = session.clips()
        classifier = session.classifier(clips)
        prepared = time.perf_counter()
        policy = session.train_policy(classifier, clips)
        session.finish(classifier, policy, clips, prepared)


if __name__ == "__main__":
    run_command(main, TrainPPO, "train_ppo")
