"""Fit a conditional exit on training clips. The confidences are stored with the policy, so that later calls read them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from adafocus_env.videos.dataset import DataSet
from agents.config.settings import DataConfig, EnvConfig
from agents.evaluation.conditional_exit import ExitFit, ExitModel, exit_file
from agents.evaluation.evaluate import evaluate_policy
from agents.pipeline.builders import build_split, features_of
from agents.policies.networks import PolicyNetwork
from agents.rl.saved_model import TrainedModel
from agents.runs.progress import Display
from classifiers.classifier import Classifier
from classifiers.errors import InputError, refuse_if

MAX_CLIPS = 20_000  # maximum number of training videos, one clip each; larger sets: a random subset with a fixed seed, as published


def fit_exit(
    classifier: Classifier,
    policy: PolicyNetwork | TrainedModel,
    folder: str,
    model: ExitModel,
    data: DataSet,
    config: DataConfig,
    env: EnvConfig,
    display: Display,
) -> ExitFit:
    """Return the confidences of one clip of every training video.

    Stored confidences are reused if they were computed by the same model on the same clips.

    Args:
        classifier: The frozen classifier.
        policy: The policy.
        folder: Folder or bundled name of the policy; see `agents.evaluation.conditional_exit.exit_file`.
        model: The model that the thresholds belong to.
        data: The videos.
        config: How clips are sampled from the videos. Training clips are augmented as in training.
        env: Settings of the environment. This function reads only the kind of action and the head's input for skipped frames.
        display: Shows progress.

    Raises:
        InputError: If the data set has no training videos, or the file cannot be written.
    """
    refuse_if(not data.train, f"exit is fitted on training videos, and data={data.name} has none; add some, or leave exit out")
    data, path = _sample(data), exit_file(folder)
    found = _stored(path)
    if found is not None and (found.model, found.data) == (model, _key(data, config)):
        display.say(f"exit: thresholds from {path}")
        return found
    clips = build_split(data, "train", replace(config, views=1), classifier.architecture.size, display)
    train = features_of(classifier, clips, replace(env, bank=False))
    display.say(f"exit: fitting thresholds on {len(train.clips)} training clips")
    player = policy.on(train) if isinstance(policy, TrainedModel) else policy
    fit = ExitFit.of(model, _key(data, config), evaluate_policy(train, player, skipped=env.skipped).scores)
    fit.save(path)
    return fit


def _sample(data: DataSet) -> DataSet:
    if len(data.train) <= MAX_CLIPS:
        return data
    chosen = np.random.default_rng(0).choice(len(data.train), MAX_CLIPS, replace=False)
    return replace(data, train=tuple(data.train[number] for number in sorted(chosen)))


def _key(data: DataSet, config: DataConfig) -> str:
    """Return a short text that identifies the training clips."""
    videos = "\n".join(f"{video.name} {video.label}" for video in data.train)
    return f"{data.name}, {len(data.train)} videos, {config.sampling}, {hashlib.sha256(videos.encode()).hexdigest()[:16]}"


def _stored(path: Path) -> ExitFit | None:
    """Return the stored confidences. Return None if no confidences are stored, or if the file cannot be read and must be replaced."""
    try:
        return ExitFit.load(path) if path.is_file() else None
    except InputError:
        return None
