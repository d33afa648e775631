"""Count the multiply-adds of a finished training, with the counter of `classifiers.flops`.

For every kind of training step, one step runs under the counter, on random clips and with the trained networks. The multiply-adds of this
step are multiplied by the number of such steps, which the metrics of the run state. For a backward pass, the counter counts the matrix
products and convolutions that PyTorch executes to compute the gradients of inputs and weights. If a network is trained, its backward pass
costs about twice as much as its forward pass. If a network is frozen but a gradient passes through it, its backward pass costs about as
much as its forward pass. All other networks have no backward pass.

The count includes training, the features that a bank stores, and the measurements on the validation clips. The count does not include the
final evaluation on the test clips. The bilinear crop has no matrix product, so its cost is 0.
"""

import tempfile
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from itertools import groupby
from typing import Any, cast

import numpy as np
import torch
from rich.console import Console

from adafocus_env.features.live import Features
from agents.config.settings import SupervisedConfig, Train, TrainEndToEnd, Training, TrainPPO, TrainStages
from agents.evaluation.evaluate import flops_of
from agents.evaluation.inference import policy_flops
from agents.pipeline.builders import Clips, features_of
from agents.policies.networks import load_policy
from agents.rl.settings import algorithm_settings
from agents.rl.trainer import STAGE, train_policy
from agents.runs.progress import Display
from agents.runs.run_dir import RunDir
from agents.supervised.end_to_end import train_end_to_end
from agents.supervised.stages import finetune
from benchmarks.workload import RandomClips
from classifiers import checkpoint
from classifiers.flops import VideoFlops, classifier_flops, multiply_adds

COUNTED_CLIPS = 8
"""Number of clips of a counted step. The cost of the step is proportional to this number."""


def training_multiply_adds(config: Training, clips: Clips) -> int:
    """Return the multiply-adds of a finished run of `agents.train`, `agents.train_stages` or `agents.train_end_to_end`.

    Args:
        config: The config of a run that started from a trained classifier and whose policy selects the patches.
        clips: The clips of the run's data set.
    """
    return round(TrainingCost(config, clips).total())


class TrainingCost:
    """The number of steps of a finished run, and the multiply-adds of each kind of step; see `training_multiply_adds`."""

    def __init__(self, config: Training, clips: Clips) -> None:
        self.config, self.run = config, RunDir(config.run)
        self.num_train, self.num_val = clips.train.epoch_size, len(clips.val or ())
        device = torch.device("cpu")
        self.classifier = checkpoint.load(self.run.checkpoints / "classifier", device)
        self.policy = load_policy(self.run.checkpoints / "best", device)
        self.clips = RandomClips(COUNTED_CLIPS, clips.train.num_frames, self.classifier.architecture.size)
        self.features = features_of(self.classifier, self.clips, replace(config.env, bank=True))

    @property
    def video(self) -> VideoFlops:
        """The cost of evaluating a clip with the policy, if no features are stored in a bank."""
        return flops_of(self.features, self.config.env.skipped, policy_flops(self.policy))

    def total(self) -> float:
        """Return the multiply-adds of the whole run."""
        lines = self.run.metrics()
        if isinstance(self.config, TrainEndToEnd):
            return self._end_to_end(len(lines), self.config)
        config = cast(TrainPPO, self.config)
        groups = [list(group) for _, group in groupby(lines, lambda line: (line.get("round", 0), line["stage"]))]
        policies = [group for group in groups if group[0]["stage"] == STAGE]
        fills = len(policies) if isinstance(config, TrainStages) and config.stages.finetune.learning_rate > 0 else 1
        total = fills * (self.num_train + self.num_val) * self._bank()
        for group in policies:
            validations = sum("val_top1" in line for line in group) + ("round" in group[0])  # a round also validates its initial model
            total += group[-1]["steps"] * self._policy_step(config) + validations * self.num_val * self._validation_from_bank()
        if isinstance(config, TrainStages):
            total += sum(self._finetuning(len(group), config.stages.finetune) for group in groups if group not in policies)
            total += len(policies) * self.num_val * self.video.total()  # the score at the end of stage 2, without a bank
        return total

    def _end_to_end(self, epochs: int, config: TrainEndToEnd) -> float:
        learning = replace(config.learning, epochs=1, batch_size=COUNTED_CLIPS)
        step = self._counted(
            train_end_to_end(
                deepcopy(self.classifier), deepcopy(self.policy), self.clips, learning, seed=0, freeze=config.freeze,
                video_div=config.env.video_div,
            )
        )  # fmt: skip
        if config.freeze:  # the glances of the validation clips are computed once
            return epochs * (self.num_train * step + self.num_val * self._validation_from_bank()) + self.num_val * self._bank()
        return epochs * (self.num_train * step + self.num_val * self.video.total())

    def _finetuning(self, epochs: int, settings: SupervisedConfig) -> float:
        """Return the cost of stage 3. The cost includes the validation of the model with which stage 3 begins."""
        learning = replace(settings, epochs=1, batch_size=COUNTED_CLIPS)
        skipped = self.config.env.skipped
        step = self._counted(finetune(deepcopy(self.classifier), self.policy, self.clips, learning, seed=0, skipped=skipped))
        return epochs * self.num_train * step + (epochs + 1) * self.num_val * self.video.total()

    def _counted(self, epochs: Iterator[Any]) -> float:
        """Return the cost per clip of one forward and one backward pass, counted in the first epoch of a supervised training."""
        return multiply_adds(lambda: next(epochs), gradient=True) / COUNTED_CLIPS

    def _bank(self) -> float:
        """Return the cost of a clip's features: its glances and, if actions are cells, the focus vectors of all cells."""
        cells = self.features.action.num_cells or 0
        return self.video.glancer + self.clips.num_frames * cells * classifier_flops(self.classifier).focus

    def _validation_from_bank(self) -> float:
        """Return the cost of evaluating a policy on a clip whose features are all in the bank."""
        return self.video.policy + self.video.head + (0 if self.features.action.num_cells else self.video.focuser)

    def _policy_step(self, config: TrainPPO) -> float:
        """Return the cost of one environment step if all features are in the bank.

        The cost of a step is the cost of a rollout and of the update after it, divided by the number of steps of the rollout.
        """
        fill(self.features)
        n_steps = config.ppo.n_steps or self.features.num_steps
        rows = max(1, COUNTED_CLIPS * self.features.num_steps // n_steps)  # no clip is played twice, which would cost less
        env = replace(config.env, num_envs=rows)
        update = n_steps * rows
        ppo = replace(config.ppo, total_steps=update, epochs=None, batch_size=None)
        settings = algorithm_settings(self.features, env, config.network, ppo, config.algo if isinstance(config, Train) else None)
        with tempfile.TemporaryDirectory() as folder, Display(Console(quiet=True)) as display, RunDir.open(folder, {}, force=False) as run:
            count = multiply_adds(
                lambda: train_policy(self.features, None, run, display, settings, env=env, seed=0), gradient=True
            )
        return count / update


def fill(features: Features) -> None:
    """Compute all features that the bank stores."""
    every, steps = np.arange(len(features.clips))[:, None], np.arange(features.num_steps)[None]
    features.glance_vectors(every, steps)
    if features.action.num_cells:
        features.focus_vectors(every, steps, np.zeros((len(features.clips), features.num_steps), np.int64))
