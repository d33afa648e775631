"""The stages in their order, each from what the one before it made."""

from __future__ import annotations

import torch

from agents.builders import Clips
from agents.config import TrainStages
from agents.make_classifier import make_classifier, show_epochs
from agents.policies import GlancePolicy
from agents.policy_files import save_policy
from agents.session import Session
from agents.stages.finetune import finetune
from classifiers import checkpoint
from classifiers.classifier import Architecture, Classifier
from classifiers.errors import InputError

Model = tuple[Classifier, GlancePolicy | None, str | None]


def check_stages(config: TrainStages) -> None:
    """Checks that the stages asked for can be run one after the other.

    Raises:
        InputError: there are no such stages, or stage 3 has no policy to look with.
    """
    for key in ("first", "last"):
        if not 0 <= getattr(config, key) <= 3:
            raise InputError(f"{key}={getattr(config, key)} is no stage; choose 0, 1, 2 or 3")
    if config.first > config.last:
        raise InputError(f"first={config.first} comes after last={config.last}; choose stages in their order")
    if config.first == 3 and not config.policy:
        raise InputError("first=3 needs a trained policy: add policy=DIR, or first=2 to train one")


def run_stages(session: Session, clips: Clips, config: TrainStages) -> Model:
    """Runs stages ``config.first`` to ``config.last``; returns classifier, policy and the fingerprint of the classifier before the last.

    Raises:
        InputError: a stage lacks what it starts from.
    """
    classifier = _classifier(session, clips, config)
    if config.last < 2:
        return classifier, None, None
    policy = session.train_policy(classifier, clips) if config.first < 3 else _given_policy(session, classifier, clips)
    assert isinstance(policy, GlancePolicy), "stages learn by PPO"
    if config.last < 3:
        return classifier, policy, None
    parent = classifier.fingerprint()
    torch.manual_seed(config.seed)
    settings = config.stages.finetune
    learning = "focuser, head" if settings.learning_rate > 0 else "head"
    epochs = finetune(classifier, policy, clips.train, settings, seed=config.seed, skipped=config.env.skipped)
    show_epochs(epochs, 3, learning, settings.epochs, session.display, session.run.log)
    return classifier, policy, parent


def _given_policy(session: Session, classifier: Classifier, clips: Clips) -> GlancePolicy:
    policy = session.given_policy(session.features(classifier, clips.train))
    assert policy is not None, "check_stages asks for it"
    save_policy(policy, session.run.checkpoints / "best", {"classifier": classifier.fingerprint()})
    return policy


def _classifier(session: Session, clips: Clips, config: TrainStages) -> Classifier:
    """What the stages 0 and 1 make, or made before, or what the user gave to go on with."""
    wanted, kept = session.wanted, session.run.checkpoints / "stage1"
    if config.first == 0 and isinstance(wanted, Classifier):
        raise InputError(
            f"classifier={config.classifier} is trained already: add first=1, 2 or 3 to go on with it, or start from an architecture "
            "(small, paper or paper_tsm)"
        )
    if config.first > 0 and not isinstance(wanted, Classifier):
        raise InputError(f"first={config.first} needs a trained classifier: classifier=DIR, or first=0 to train one")
    if config.first > 1:
        assert isinstance(wanted, Classifier)
        return wanted
    if not (kept / checkpoint.CARD).exists():
        session.run.truncate(0)
        torch.manual_seed(config.seed)
        classifier = Classifier(wanted, clips.data.classes).to(session.device) if isinstance(wanted, Architecture) else wanted
        assert classifier is not None
        make_classifier(
            classifier, clips.train, clips.val, config.stages, seed=config.seed, display=session.display, log=session.run.log,
            video_div=config.env.video_div, stages=range(config.first, min(config.last, 1) + 1),
        )  # fmt: skip
        checkpoint.save(classifier, kept, data=clips.data.name, command="python -m agents.train_stages")
    return checkpoint.load(kept, session.device)
