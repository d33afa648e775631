"""The legs of a training in their order, each from the best checkpoint of the one before, and each only once.

A leg that is finished has a `DONE` in its folder, written last. It tells what the leg began with, so that a checkpoint of something
else is noticed. A leg that was cut short goes on from its own last checkpoint. Random states are set anew when a leg begins: a run
that was stopped and one that was not end with the same metrics.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
from stable_baselines3.common.utils import set_random_seed

from adafocus_env import distributed
from agents.config.settings import PPOConfig, SupervisedConfig, TrainStages
from agents.pipeline.builders import Clips
from agents.pipeline.session import Session
from agents.pipeline.stage_dir import StageDir
from agents.pipeline.stages import Leg, joint_round, single_pass
from agents.pipeline.validation import Score, frame_score, patch_score
from agents.policies.checkpoint import load_policy, save_policy
from agents.policies.sb3 import GlancePolicy
from agents.runs.interrupts import Stopped, StopRequest
from agents.runs.progress import figures
from agents.supervised.checkpoint import EpochCheckpoint
from agents.supervised.finetune import finetune
from agents.supervised.random_patches import train_on_random_patches
from agents.supervised.warm_up import warm_up
from classifiers import checkpoint
from classifiers.atomic_files import write_text
from classifiers.backbones.imagenet import new_classifier
from classifiers.classifier import Architecture, Classifier
from classifiers.errors import InputError

BEST, LAST, DONE, GIVEN = "best", "last", "done.json", "given"
COMMAND = "python -m agents.train_stages"

Backbone = Literal["glancer", "focuser"]


@dataclass(frozen=True)
class Finished:
    """How a leg ended, as its `DONE` tells.

    Attributes:
        began: fingerprint of the classifier that it began with, or None if that was a new one.
        score: of what it made, on the validation part, if there is one.
        lines: lines of metrics when it had ended.
    """

    began: str | None
    score: Score | None
    lines: int


@dataclass(frozen=True)
class Milestone:
    """The model after a leg, as folders of checkpoints.

    Attributes:
        leg: that leg.
        classifier: its folder.
        policy: its folder; None before stage 2.
        score: on the validation part, if there is one.
    """

    leg: Leg
    classifier: Path
    policy: Path | None
    score: Score | None


class Driver:
    """Runs all legs that are not finished.

    Args:
        session: run folder, display and config.
        clips: of all parts.
        config: which legs, and how they learn.

    Attributes:
        classifier: as the last leg left it; the same object all the time, so that banks notice by themselves what has changed.
        policy: as the last leg left it, or the user's; None before stage 2.
        milestones: the model after each leg.

    Raises:
        InputError: the first leg lacks what it starts from.
    """

    def __init__(self, session: Session, clips: Clips, config: TrainStages) -> None:
        self._session, self._clips, self._config = session, clips, config
        self.milestones: list[Milestone] = []
        self._lines = 0
        self.classifier = self._first_classifier()
        if distributed.is_main() and any(leg.stage == 2 for leg in single_pass(config)):
            session.features(self.classifier, clips.train)  # what does not fit together is refused now, not hours later
        self.policy = self._first_policy()
        self._classifier_at, self._policy_at = self._given_at()
        self._began = None if self._classifier_at is None else self.classifier.fingerprint()

    def run(self) -> Milestone:
        """Runs the single pass and the joint rounds; returns the one among their ends that did best on the validation part."""
        for leg in single_pass(self._config):
            self._run(leg)
        best, waited = self.milestones[-1], 0
        for number in range(1, self._config.rounds + 1):
            for leg in joint_round(self._config, number):
                self._run(leg)
            reached = self.milestones[-1]
            waited = waited + 1 if _no_worse(best.score, reached.score) and reached.score is not None else 0
            best = reached if _no_worse(reached.score, best.score) else best
            if waited == self._config.joint.patience:
                self._session.display.say(f"round {number} was no better on the validation part than {best.leg.title}: no further round")
                break
        self._take(best.classifier, best.policy)
        return best

    def _first_classifier(self) -> Classifier:
        """The classifier that the first leg begins with: the user's, or a new one."""
        wanted, config = self._session.wanted, self._config
        if config.first == 0 and isinstance(wanted, Classifier):
            raise InputError(
                f"classifier={config.classifier} is trained already: add first=1, 2 or 3 to go on with it, or start from an architecture "
                "(small, efficientnet_lite, paper or paper_tsm)"
            )
        if isinstance(wanted, Classifier):
            return wanted
        if config.first > 0:
            raise InputError(
                f"first={config.first} needs a trained classifier: classifier=DIR, one that python -m agents.train_stages "
                f"last={config.first - 1} has made (RUN/checkpoints/classifier), or first=0 to train one"
            )
        assert isinstance(wanted, Architecture)
        set_random_seed(config.seed)
        return new_classifier(wanted, self._clips.data.classes).to(self._session.device).freeze()

    def _first_policy(self) -> GlancePolicy | None:
        """The user's policy, if there is one."""
        if not self._config.policy or self._config.last < 2:
            return None
        return self._session.given_policy(self._session.features(self.classifier, self._clips.train))

    def _given_at(self) -> tuple[Path | None, Path | None]:
        """Where copies of the user's classifier and policy are kept: a run folder has all that its result came from."""
        given = self._session.run.checkpoints / GIVEN
        if isinstance(self._session.wanted, Architecture):
            return None, None
        if distributed.is_main():
            checkpoint.save(self.classifier, given / "classifier", data=self._clips.data.name)
            if self.policy is not None:
                save_policy(self.policy, given / "policy", {"classifier": self.classifier.fingerprint()})
        return given / "classifier", None if self.policy is None else given / "policy"

    def _seed(self, leg: Leg) -> int:
        """Each round draws anew."""
        seed = self._config.seed
        return int(np.random.SeedSequence((seed, leg.round)).generate_state(1)[0]) if leg.round else seed

    def _run(self, leg: Leg) -> None:
        """Runs a leg, unless it is finished, and takes over what it made."""
        part = StageDir(self._session.run, leg.name, self._lines, leg.about)
        if not distributed.broadcast_object((part.checkpoints / DONE).is_file()):
            set_random_seed(self._seed(leg))
            learn = self._learn_policy if leg.stage == 2 else self._learn
            score = learn(leg, part)
            if distributed.is_main():
                done = Finished(self._began, score, self._lines + len(part.metrics()))
                write_text(part.checkpoints / DONE, json.dumps(asdict(done)) + "\n")
            distributed.barrier()  # the others take over what the main process has saved
        done = _read_done(part.checkpoints / DONE)
        if done.began != self._began:
            raise InputError(f"{part.checkpoints} began with another classifier than the one before it now; force=true starts the run over")
        best = part.checkpoints / BEST
        self._take(*((self._classifier_at, best) if leg.stage == 2 else (best, self._policy_at)))
        self._lines = done.lines
        assert self._classifier_at is not None
        self.milestones.append(Milestone(leg, self._classifier_at, self._policy_at, done.score))

    def _take(self, classifier: Path | None, policy: Path | None) -> None:
        """Goes on with what is in these folders; the classifier stays the same object, so that banks notice what has changed."""
        if classifier is not None:
            self.classifier.load_state_dict(checkpoint.load(classifier, self._session.device).state_dict())
            self._began = self.classifier.fingerprint()
        if policy != self._policy_at:
            self.policy = None if policy is None else load_policy(policy, self._session.device)
        self._classifier_at, self._policy_at = classifier, policy

    def _learn_policy(self, leg: Leg, part: StageDir) -> Score | None:
        """Stage 2, which is the main process's."""
        if not distributed.is_main():
            return None
        ppo, seed = cast(PPOConfig, leg.settings), self._seed(leg)
        policy = self._session.train_policy(self.classifier, self._clips, run=part, ppo=ppo, seed=seed, start=self.policy)
        assert isinstance(policy, GlancePolicy), "stages learn by PPO"
        return self._score(policy)

    def _learn(self, leg: Leg, part: StageDir) -> Score | None:
        """Stage 0, 1 or 3: the epochs that are missing. The main process keeps the best classifier in `BEST`, and returns its score."""
        settings = cast(SupervisedConfig, leg.settings)
        with StopRequest(self._session.display.console) as stop:
            saved = EpochCheckpoint(part.checkpoints / LAST, lambda: len(part.metrics()), stop)
            if not distributed.is_main():
                deque(self._epochs(leg, settings, saved), maxlen=0)
                return None
            part.truncate(saved.resumed_lines or 0)
            if leg.stage == 3 and "best" not in saved.extra:
                self._keep(self._score(self.policy), saved, part)  # finetuning may turn out not to help
            done, clips = len(part.metrics()), self._clips.train.epoch_size
            bar = self._session.display.bar(leg.title, settings.epochs, done, unit="epoch", clips=clips)
            saved.progress = bar.at
            for measured in self._epochs(leg, settings, saved):
                score, epoch = self._scored(leg), len(part.metrics()) + 1
                part.log({"stage": leg.stage, "part": leg.part, "epoch": epoch, **measured, **_told(score)})
                if _no_worse(score, saved.extra.get("best")):
                    self._keep(score, saved, part)
                bar.at(epoch, figures({**measured, **_told(score)}))
            if stop.requested:  # after the last batch
                raise Stopped
        return saved.extra["best"]

    def _epochs(self, leg: Leg, settings: SupervisedConfig, saved: EpochCheckpoint) -> Iterator[dict[str, float]]:
        clips, seed = self._clips.train, self._seed(leg)
        if leg.stage == 0:
            return warm_up(self.classifier, cast(Backbone, leg.part), clips, settings, seed=seed, saved=saved)
        if leg.stage == 1:
            video_div = self._config.env.video_div
            return train_on_random_patches(self.classifier, clips, settings, seed=seed, video_div=video_div, saved=saved)
        assert self.policy is not None
        return finetune(self.classifier, self.policy, clips, settings, seed=seed, skipped=self._config.env.skipped, saved=saved)

    def _scored(self, leg: Leg) -> Score | None:
        """The classifier as it is now, by what the leg is there for."""
        if leg.stage == 0 and self._clips.val is not None:
            return frame_score(self.classifier, cast(Backbone, leg.part), self._clips.val)
        return self._score(self.policy if leg.stage == 3 else None)

    def _score(self, policy: GlancePolicy | None) -> Score | None:
        if self._clips.val is None:
            return None
        return patch_score(self.classifier, policy, self._clips.val, self._config.env, self._config.seed)

    def _keep(self, score: Score | None, saved: EpochCheckpoint, part: StageDir) -> None:
        about = {"data": self._clips.data.name, "metrics": _told(score), "parent": self._began, "command": COMMAND}
        checkpoint.save(self.classifier, part.checkpoints / BEST, **about)
        saved.extra["best"] = score


def _told(score: Score | None) -> dict[str, float]:
    return {} if score is None else dict(zip(("val_top1", "val_confidence"), score, strict=True))


def _no_worse(score: Score | None, best: Score | None) -> bool:
    return score is None or best is None or list(score) >= list(best)


def _read_done(file: Path) -> Finished:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return Finished(values["began"], values["score"] and (values["score"][0], values["score"][1]), int(values["lines"]))
    except (ValueError, KeyError, TypeError, IndexError) as problem:
        raise InputError(f"{file} cannot be read ({problem!r}); force=true starts the run over") from problem
