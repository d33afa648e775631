"""From random weights to a finished model: stages 0, 1, 2 and 3.

    python -m agents.train_stages

0 trains glancer and focuser on whole frames, 1 focuser and head on random patches, 2 the policy by PPO, 3 the head on the
patches that the policy picks. A stage that is finished is not run again.
"""

from __future__ import annotations

import time

from agents.command import run_command
from agents.config import TrainStages


def main(config: TrainStages) -> None:
    """Runs the stages that are not finished, and reports what the model is worth on the test clips."""
    import torch

    from agents.make_classifier import make_classifier, show_epochs
    from agents.session import Session
    from agents.stages.finetune import finetune
    from classifiers import checkpoint
    from classifiers.classifier import Architecture, Classifier
    from classifiers.errors import InputError

    with Session.open(config.run or f"runs/train_stages-{config.data.name}-{config.seed}", config) as session:
        if session.show_if_finished():
            return
        run, clips, start = session.run, session.clips(), time.perf_counter()
        if not isinstance(session.wanted, Architecture):
            raise InputError(f"classifier={config.classifier} is trained already; train_stages starts from an architecture: small or paper")
        first = run.checkpoints / "stage1"
        if not (first / checkpoint.CARD).exists():
            run.truncate(0)
            torch.manual_seed(config.seed)
            classifier = Classifier(session.wanted, clips.data.classes).to(session.device)
            make_classifier(
                classifier, clips.train, clips.val, config.stages, seed=config.seed, display=session.display, log=run.log
            )
            checkpoint.save(classifier, first, data=clips.data.name, command="python -m agents.train_stages")
        classifier = checkpoint.load(first, session.device)
        policy = session.train_policy(classifier, clips)
        parent = classifier.fingerprint()
        torch.manual_seed(config.seed)
        epochs = finetune(classifier, policy, clips.train, config.finetune, seed=config.seed)
        show_epochs(epochs, 3, "head", config.finetune.epochs, session.display, run.log)
        session.finish(classifier, policy, clips, start, parent=parent, command="python -m agents.train_stages")


if __name__ == "__main__":
    run_command(main, TrainStages, "train_stages")
