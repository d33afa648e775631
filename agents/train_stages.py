"""From random weights to a finished model: stages 0, 1, 2 and 3.

    python -m agents.train_stages
    python -m agents.train_stages first=3 classifier=DIR policy=DIR     goes on with what is trained already

0 trains glancer and focuser on whole frames, 1 focuser and head on random patches, 2 the policy by PPO, 3 the head on the
patches that the policy picks. A stage that is finished is not run again.
"""

from __future__ import annotations

import time

from agents.command import run_command
from agents.config import TrainStages


def main(config: TrainStages) -> None:
    """Runs the stages that are not finished, and reports what the model is worth on the test clips."""
    from agents.session import Session
    from agents.stages.driver import check_stages, run_stages

    check_stages(config)
    with Session.open(config.run or f"runs/train_stages-{config.data.name}-{config.seed}", config) as session:
        if session.show_if_finished():
            return
        clips, start = session.clips(for_policy=config.first <= 2 <= config.last), time.perf_counter()
        classifier, policy, parent = run_stages(session, clips, config)
        session.finish(classifier, policy, clips, start, parent=parent, command="python -m agents.train_stages")


if __name__ == "__main__":
    run_command(main, TrainStages, "train_stages")
