"""The implementation of `python -m agents.train_end_to_end`."""

import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

from stable_baselines3.common.utils import set_random_seed

from adafocus_env import distributed
from adafocus_env.clips.store import ClipSource
from adafocus_env.features.live import Features
from agents.config.settings import TrainEndToEnd
from agents.evaluation.evaluate import evaluate_policy
from agents.evaluation.metrics import validation_metrics
from agents.pipeline.builders import Clips, features_of
from agents.pipeline.epochs import Metrics, resumable, with_progress
from agents.pipeline.training_run import SCORE, TrainingRun
from agents.policies.networks import PolicyNetwork, architecture_of, load_policy, save_policy
from agents.policies.spatial import SpatialActor
from agents.rl.saved_model import selection_of
from agents.supervised.checkpoint import EpochCheckpoint
from agents.supervised.end_to_end import train_end_to_end
from agents.supervised.epochs import check_settings
from classifiers import checkpoint
from classifiers.backbones.imagenet import new_classifier
from classifiers.classifier import Classifier
from classifiers.errors import count_of, refuse_if

COMMAND = "python -m agents.train_end_to_end"
STAGE = "end to end"
"""Name of the training on the display and in lines of metrics."""
FOLDER, BEST, LAST = "end_to_end", "best", "last"
WITH_GRADIENT = ("interpolated", "continuous")
"""Supported kinds of action. Training interpolates patches with both kinds. With `continuous`, inference cuts patches at whole pixels."""


def train_and_report(path: str | Path, config: TrainEndToEnd) -> None:
    """Train classifier and policy in the run directory ``path``, or resume their training; evaluate them on the test clips.

    Raises:
        InputError: If a setting, the data, the classifier, the policy or the directory cannot be used.
    """
    action = config.env.action
    refuse_if(
        action not in WITH_GRADIENT,
        f"env.action must be {' or '.join(WITH_GRADIENT)} with end-to-end training, got {action}: cells and skipping have no gradient; "
        "leave it out, or use python -m agents.train_ppo",
    )
    with TrainingRun.open(path, config) as run:
        if run.show_if_finished():
            return
        check_settings(config.learning, run.device)
        clips, start = run.clips(for_policy=False), time.perf_counter()
        set_random_seed(config.seed)
        training = EndToEndTraining(run, clips, config)
        training.run()
        if distributed.is_main():
            classifier, policy = training.load_best()
            about: dict[str, Any] = {} if config.freeze else {"parent": training.parent, "command": COMMAND}
            run.finish(classifier, policy, clips, start, **about)


class EndToEndTraining:
    """A training of classifier and policy in a run directory.

    Args:
        run: The training run, with its directory, display and classifier or architecture.
        clips: The clips of all splits. If there is no validation split, the last epoch counts as the best.
        config: The settings.

    Attributes:
        parent: Fingerprint of the classifier that training started from; None if it started from a new classifier.

    Raises:
        InputError: If classifier or policy cannot be trained.
    """

    def __init__(self, run: TrainingRun, clips: Clips, config: TrainEndToEnd) -> None:
        self._run, self._clips, self._config = run, clips, config
        self._classifier, self.parent = self._first_classifier()
        self._classifier.clip_format = clips.format
        self._policy = self._first_policy(self._live(clips.train))
        self._folder = run.directory.checkpoints / FOLDER

    def run(self) -> None:
        """Run the remaining epochs. If there are several processes, the main process saves the best classifier and policy."""
        run, config = self._run, self._config
        with resumable(run.directory, self._folder / LAST, run.display) as checkpoints:
            epochs = train_end_to_end(
                self._classifier, self._policy, self._clips.train, config.learning, seed=config.seed, freeze=config.freeze,
                video_div=config.env.video_div, checkpoints=checkpoints,
            )  # fmt: skip
            if not distributed.is_main():
                deque(epochs, maxlen=0)
                return
            total, done, clips = config.learning.epochs, len(run.directory.metrics()), self._clips.train.epoch_size
            for epoch, metrics in with_progress(epochs, checkpoints, run.display, STAGE, total=total, done=done, clips=clips):
                metrics |= (validated := self._validate())
                run.directory.log({"stage": STAGE, "epoch": epoch, **metrics})
                self._save_if_best(epoch, validated, checkpoints)

    def load_best(self) -> tuple[Classifier, PolicyNetwork]:
        """Return the classifier and the policy of the best epoch."""
        if not self._config.freeze:
            self._classifier.load_state_dict(checkpoint.load(self._folder / BEST, self._run.device).state_dict())
        elif self._classifier.fingerprint() != self.parent:
            raise RuntimeError("the classifier changed while the policy was trained on it: it is not frozen")
        folder, val = self._run.directory.checkpoints / BEST, self._clips.val
        if val is not None:
            best = selection_of(folder)
            which = f"epoch {best['epoch']} of {self._config.learning.epochs}, anytime confidence {best['metrics'][SCORE[0]]:.3f}"
            self._run.display.say(f"{STAGE}: the best is {which} on {count_of(len(val), 'validation clip')}")
        return self._classifier, load_policy(folder, self._run.device)

    def _first_classifier(self) -> tuple[Classifier, str | None]:
        """Return the given classifier and its fingerprint. If only an architecture is given, return a new classifier and None."""
        given, config = self._run.classifier_or_architecture, self._config
        if isinstance(given, Classifier):
            return given, given.fingerprint()
        refuse_if(
            config.freeze,
            f"freeze=true needs a trained classifier, but classifier={config.classifier} is a new one here: give classifier=DIR, for "
            "example RUN/checkpoints/classifier of python -m agents.train_stages last=1, or leave freeze out",
        )
        return new_classifier(given, self._clips.data.classes).to(self._run.device).freeze(), None

    def _first_policy(self, features: Features) -> PolicyNetwork:
        """Return the given policy. If no policy is given, return a new policy."""
        config, action = self._config, features.action
        policy = self._run.given_policy(features)
        refuse_if(
            policy is not None and policy.skips,
            f"policy={config.policy} skips frames, which has no gradient; train one with env.action={config.env.action}, or leave it out",
        )
        if policy is None:
            architecture = architecture_of(features.map_shape, action.patch_size / action.size, config.network)
            interpolated = config.env.action == "interpolated"
            policy = PolicyNetwork(architecture, None, config.network.std, interpolated=interpolated).to(self._run.device)
            if isinstance(policy.actor, SpatialActor):
                policy.actor.use_unit_gain()
        return policy.eval().requires_grad_(False)

    def _live(self, clips: ClipSource) -> Features:
        return features_of(self._classifier, clips, replace(self._config.env, bank=False))

    def _validate(self) -> Metrics:
        """Return the metrics on the validation clips; empty without a validation split."""
        if (val := self._clips.val) is None:
            return {}
        features = self._run.features(self._classifier, val) if self._config.freeze else self._live(val)
        return validation_metrics(evaluate_policy(features, self._policy))

    def _save_if_best(self, epoch: int, metrics: Metrics, checkpoints: EpochCheckpoint) -> None:
        """Save classifier and policy unless an earlier epoch was strictly better."""
        best, score = checkpoints.extra.get("best"), metrics.get(SCORE[0])
        if best is not None and score is not None and score < best:
            return
        run, data = self._run, self._clips.data.name
        if not self._config.freeze:
            checkpoint.save(self._classifier, self._folder / BEST, data=data, metrics=metrics, parent=self.parent, command=COMMAND)
        about = {"classifier": self._classifier.fingerprint(), "metrics": metrics, "epoch": epoch}
        save_policy(self._policy, run.directory.checkpoints / BEST, about)
        checkpoints.extra["best"] = score
