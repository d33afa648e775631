"""Runs the stages of a training in order, each from the best checkpoint of the stage before, and each only once.

A finished stage has a `DONE` file in its folder, written last, with the fingerprint of the classifier that it started from, so that a
checkpoint of another classifier is noticed. An interrupted stage resumes from its last checkpoint. An interrupted and an uninterrupted
run end with the same metrics.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from stable_baselines3.common.utils import set_random_seed

from adafocus_env import distributed
from agents.config.settings import PPOConfig, SupervisedConfig, TrainStages
from agents.pipeline.builders import Clips
from agents.pipeline.stage_dir import StageDir
from agents.pipeline.stages import StageSpec, stages_of_round
from agents.pipeline.training_run import TrainingRun
from agents.pipeline.validation import Score, frame_score, is_at_least, patch_score, score_metrics
from agents.policies.checkpoint import load_policy, save_policy
from agents.policies.networks import PolicyNetwork
from agents.runs.interrupts import Stopped, StopRequest
from agents.runs.progress import figures
from agents.supervised.checkpoint import EpochCheckpoint
from agents.supervised.finetune import finetune
from agents.supervised.random_patches import train_on_random_patches
from agents.supervised.warm_up import BackboneName, warm_up
from classifiers import checkpoint
from classifiers.atomic_files import write_text
from classifiers.backbones.imagenet import new_classifier
from classifiers.classifier import Architecture, Classifier
from classifiers.errors import InputError

BEST, LAST, DONE, GIVEN = "best", "last", "done.json", "given"
COMMAND = "python -m agents.train_stages"


@dataclass(frozen=True)
class Milestone:
    """The model after a stage.

    Attributes:
        spec: That stage.
        classifier: Folder of its checkpoint.
        policy: Folder of its checkpoint; None before stage 2.
        score: On the validation split, if there is one.
    """

    spec: StageSpec
    classifier: Path
    policy: Path | None
    score: Score | None


class StageDriver:
    """Runs all unfinished stages of a training.

    Args:
        run: Its run directory, display and classifier or architecture.
        clips: The clips of all splits. Without a validation split each stage ends with its last epoch.
        config: The stages and their settings.
        reseed: Seed the global random states (of dropout) before every stage; False: they carry over from the stage before.

    Attributes:
        classifier: As the last stage left it; always the same object, so that banks notice by themselves what has changed.
        policy: As the last stage left it, or the given one; None before stage 2.
        milestones: The model after each stage.

    Raises:
        InputError: The first stage lacks what it starts from.
    """

    def __init__(self, run: TrainingRun, clips: Clips, config: TrainStages, *, reseed: bool = True) -> None:
        self._run, self._clips, self._config, self._reseed = run, clips, config, reseed
        self._stages = [stages_of_round(config, number) for number in range(config.rounds + 1)]
        self.milestones: list[Milestone] = []
        self._lines = 0
        self.classifier = self._first_classifier()
        if distributed.is_main() and any(spec.stage == 2 for spec in self._stages[0]):
            run.features(self.classifier, clips.train)  # fails now, not hours later, if anything does not fit
        self.policy: PolicyNetwork | None = None
        if config.policy and config.last >= 2:
            self.policy = run.given_policy(run.features(self.classifier, clips.train))
        self._classifier_dir, self._policy_dir = self._save_given()
        self._fingerprint = None if self._classifier_dir is None else self.classifier.fingerprint()

    def run(self) -> Milestone | None:
        """Run the single pass and the joint rounds; return and load the end of a round with the best validation score.

        Without any stage, return None.
        """
        best, rounds_without_gain = None, 0
        for number, stages in enumerate(self._stages):
            for spec in stages:
                self._run_stage(spec)
            if not self.milestones:
                continue
            reached = self.milestones[-1]
            gain = best is None or reached.score is None or not is_at_least(best.score, reached.score)
            rounds_without_gain = 0 if gain else rounds_without_gain + 1
            if best is None or is_at_least(reached.score, best.score):
                best = reached
            if rounds_without_gain == self._config.joint.patience:
                self._run.display.say(f"round {number} did not improve on {best.spec.title} on the validation split: no more rounds")
                break
        if best is not None:
            self._load(best.classifier, best.policy)
        return best

    def _first_classifier(self) -> Classifier:
        """Return the given classifier, or a new one."""
        given, config = self._run.classifier_or_architecture, self._config
        if isinstance(given, Architecture):
            if config.first > 0:
                raise InputError(
                    f"first={config.first} needs a trained classifier: classifier=DIR, for example RUN/checkpoints/classifier of {COMMAND} "
                    f"last={config.first - 1}, or first=0 to train one"
                )
            set_random_seed(config.seed)
            return new_classifier(given, self._clips.data.classes).to(self._run.device).freeze()
        if config.first == 0:
            raise InputError(
                f"classifier={config.classifier} is trained already: add first=1, 2 or 3 to continue with it, or start from an "
                "architecture (small, efficientnet_lite, paper or paper_tsm)"
            )
        return given

    def _save_given(self) -> tuple[Path | None, Path | None]:
        """Save copies of the given classifier and policy: a run directory holds all that its result comes from."""
        if isinstance(self._run.classifier_or_architecture, Architecture):
            return None, None
        folder = self._run.directory.checkpoints / GIVEN
        if distributed.is_main():
            checkpoint.save(self.classifier, folder / "classifier", data=self._clips.data.name)
            if self.policy is not None:
                save_policy(self.policy, folder / "policy", {"classifier": self.classifier.fingerprint()})
        return folder / "classifier", None if self.policy is None else folder / "policy"

    def _run_stage(self, spec: StageSpec) -> None:
        """Run a stage, unless it is finished, and load its best checkpoint."""
        directory = StageDir(self._run.directory, spec.folder, self._lines, spec.fields)
        done, best = directory.checkpoints / DONE, directory.checkpoints / BEST
        if not distributed.broadcast_object(done.is_file()):
            self._train(spec, directory)
        elif not self._reseed:  # restores the random states at the end of the stage
            deque(self._epochs(spec, EpochCheckpoint(directory.checkpoints / LAST, lambda: 0)), maxlen=0)
        fingerprint, score, self._lines = _read_done(done)
        if fingerprint != self._fingerprint:
            raise InputError(f"{directory.checkpoints} started from another classifier than the stage before left; force=true starts over")
        self._load(*((self._classifier_dir, best) if spec.stage == 2 else (best, self._policy_dir)))
        assert self._classifier_dir is not None
        self.milestones.append(Milestone(spec, self._classifier_dir, self._policy_dir, score))

    def _load(self, classifier: Path | None, policy: Path | None) -> None:
        """Load checkpoints into `classifier` and `policy`."""
        device = self._run.device
        with torch.random.fork_rng(devices=[]):  # new networks are initialised at random before their weights are loaded
            if classifier is not None:
                self.classifier.load_state_dict(checkpoint.load(classifier, device).state_dict())
                self._fingerprint = self.classifier.fingerprint()
            if policy != self._policy_dir:
                self.policy = None if policy is None else load_policy(policy, device)
        self._classifier_dir, self._policy_dir = classifier, policy

    def _train(self, spec: StageSpec, directory: StageDir) -> None:
        """Train to the end of a stage and mark it as done."""
        main = distributed.is_main()
        if self._reseed:
            set_random_seed(self._seed(spec))
        if spec.stage != 2:
            score = self._train_supervised(spec, directory)
        elif main:
            score = self._train_policy(spec, directory)
        if main:
            done = {"began": self._fingerprint, "score": score, "lines": self._lines + len(directory.metrics())}
            write_text(directory.checkpoints / DONE, json.dumps(done) + "\n")
        distributed.barrier()  # the other processes load what the main one has saved

    def _train_policy(self, spec: StageSpec, directory: StageDir) -> Score | None:
        """Run stage 2, in the main process."""
        ppo, seed = cast(PPOConfig, spec.settings), self._seed(spec)
        policy = self._run.train_policy(self.classifier, self._clips, directory=directory, ppo=ppo, seed=seed, start=self.policy)
        assert isinstance(policy, PolicyNetwork), "stages learn by PPO"
        return self._patch_score(policy)

    def _train_supervised(self, spec: StageSpec, directory: StageDir) -> Score | None:
        """Run the remaining epochs of stage 0, 1 or 3; the main process saves the best classifier and returns its score."""
        with StopRequest(self._run.display.console) as stop:
            checkpoints = EpochCheckpoint(directory.checkpoints / LAST, lambda: len(directory.metrics()), stop)
            if not distributed.is_main():
                deque(self._epochs(spec, checkpoints), maxlen=0)
                return None
            directory.truncate(checkpoints.resumed_lines or 0)
            if spec.stage == 3 and "best" not in checkpoints.extra:
                self._save_best(self._patch_score(self.policy), checkpoints, directory)  # finetuning may not help
            done, clips = len(directory.metrics()), self._clips.train.epoch_size
            bar = self._run.display.bar(spec.title, spec.settings.epochs or 0, done, unit="epoch", clips=clips)
            checkpoints.progress = bar.at
            for epoch, metrics in enumerate(self._epochs(spec, checkpoints), done + 1):
                score = self._score(spec)
                metrics |= score_metrics(score)
                directory.log({"stage": spec.stage, "part": spec.trains, "epoch": epoch, **metrics})
                if is_at_least(score, checkpoints.extra.get("best")):
                    self._save_best(score, checkpoints, directory)
                bar.at(epoch, figures(metrics))
            if stop.requested:  # after the last batch
                raise Stopped
        return checkpoints.extra["best"]

    def _epochs(self, spec: StageSpec, checkpoints: EpochCheckpoint) -> Iterator[dict[str, float]]:
        settings, env, clips, seed = cast(SupervisedConfig, spec.settings), self._config.env, self._clips.train, self._seed(spec)
        if spec.stage == 0:
            return warm_up(self.classifier, cast(BackboneName, spec.trains), clips, settings, seed=seed, checkpoints=checkpoints)
        if spec.stage == 1:
            return train_on_random_patches(self.classifier, clips, settings, seed=seed, video_div=env.video_div, checkpoints=checkpoints)
        assert self.policy is not None
        return finetune(self.classifier, self.policy, clips, settings, seed=seed, skipped=env.skipped, checkpoints=checkpoints)

    def _seed(self, spec: StageSpec) -> int:
        """Return a seed for each round."""
        seed = self._config.seed
        return int(np.random.SeedSequence((seed, spec.round)).generate_state(1)[0]) if spec.round else seed

    def _score(self, spec: StageSpec) -> Score | None:
        """Score the classifier by the purpose of the stage."""
        if spec.stage == 0 and self._clips.val is not None:
            return frame_score(self.classifier, cast(BackboneName, spec.trains), self._clips.val)
        return self._patch_score(self.policy if spec.stage == 3 else None)

    def _patch_score(self, policy: PolicyNetwork | None) -> Score | None:
        if self._clips.val is None:
            return None
        return patch_score(self.classifier, policy, self._clips.val, self._config.env, self._config.seed)

    def _save_best(self, score: Score | None, checkpoints: EpochCheckpoint, directory: StageDir) -> None:
        checkpoint.save(
            self.classifier, directory.checkpoints / BEST, data=self._clips.data.name, metrics=score_metrics(score),
            parent=self._fingerprint, command=COMMAND,
        )  # fmt: skip
        checkpoints.extra["best"] = score


def _read_done(file: Path) -> tuple[str | None, Score | None, int]:
    """Return the fingerprint of the classifier that a stage started from, its score, and the lines of metrics at its end."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return values["began"], values["score"] and (values["score"][0], values["score"][1]), int(values["lines"])
    except (ValueError, KeyError, TypeError, IndexError) as problem:
        raise InputError(f"{file} cannot be read ({problem!r}); force=true starts the run over") from problem
