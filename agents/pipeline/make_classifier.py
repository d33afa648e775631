"""Stages 0 and 1: from random weights to a classifier that a policy can be trained on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import numpy as np

from adafocus_env.build import build_features
from adafocus_env.clips.store import ClipSource
from agents.config.settings import ClassifierConfig
from agents.evaluation.evaluate import evaluate_policy
from agents.policies.baselines import RandomPatch
from agents.runs.progress import Display, figures
from agents.supervised.random_patches import train_on_random_patches
from agents.supervised.warm_up import warm_up
from classifiers.classifier import Classifier

Log = Callable[[dict[str, object]], None]


def make_classifier(
    classifier: Classifier,
    train: ClipSource,
    val: ClipSource | None,
    config: ClassifierConfig,
    *,
    seed: int,
    display: Display,
    log: Log = lambda line: None,
    video_div: int | None = None,
    stages: Collection[int] = (0, 1),
) -> float | None:
    """Trains glancer and focuser on whole frames, then focuser and head on random patches; freezes the result.

    Args:
        classifier: trained in place.
        train: what it learns from.
        val: what the result is measured on (random patches), if anything.
        config: of the stages.
        seed: of all draws.
        display: where progress is shown.
        log: called with one line an epoch.
        video_div: decisions a video, where the head averages; see `adafocus_env.features.live.count_steps`.
        stages: which of the two to run.

    Returns:
        Top-1 of the result on ``val`` with random patches, None without ``val``.
    """
    classifier.freeze()
    plan: list[tuple[int, str, int, Callable[[], Iterator[dict[str, float]]]]] = [
        (0, "glancer", config.glancer.epochs, lambda: warm_up(classifier, "glancer", train, config.glancer, seed=seed)),
        (0, "focuser", config.focuser.epochs, lambda: warm_up(classifier, "focuser", train, config.focuser, seed=seed)),
        (1, "random patches", config.random_patches.epochs,
         lambda: train_on_random_patches(classifier, train, config.random_patches, seed=seed, video_div=video_div)),
    ]  # fmt: skip
    for stage, name, epochs, run in plan:
        if stage in stages:
            bar = display.bar(f"stage {stage}: {name}", epochs, unit="epoch", clips=train.epoch_size)
            for number, measured in enumerate(run(), 1):
                log({"stage": stage, "part": name, "epoch": number, **measured})
                bar.at(number, figures(measured))
    if val is None:
        return None
    right = random_accuracy(classifier, val, seed, video_div)
    display.say(f"stage {max(stages)} ended: {right:.1%} of the validation clips right with random patches")
    return right


def random_accuracy(classifier: Classifier, clips: ClipSource, seed: int, video_div: int | None = None) -> float:
    """Share of the clips that are right after the last step with random patches."""
    features = build_features(classifier, clips, video_div=video_div, bank=False)
    return float(np.mean(evaluate_policy(features, RandomPatch(features.action, seed)).correct))
