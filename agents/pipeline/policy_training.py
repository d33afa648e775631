"""What `python -m agents.train_ppo` and `python -m agents.train` do, from settings to `result.json`."""

from __future__ import annotations

import time
from pathlib import Path

from agents.config.settings import TrainPPO
from agents.pipeline.auto_classifier import trained_classifier
from agents.pipeline.training_run import TrainingRun


def train_and_report(path: str | Path, config: TrainPPO) -> None:
    """Train a policy in the run directory ``path``, or resume, and evaluate it on the test clips.

    Raises:
        InputError: A setting, the data or the directory cannot be used.
    """
    with TrainingRun.open(path, config) as run:
        if run.show_if_finished():
            return
        clips = run.clips()
        classifier = trained_classifier(run, clips)
        start = time.perf_counter()
        policy = run.train_policy(classifier, clips)
        run.finish(classifier, policy, clips, start)
