"""Trains a bundled classifier again, from random weights: ``python -m benchmarks.rebuild_bundled task=hard out=DIR``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from adafocus_env.build import build_features, choose_device
from adafocus_env.clips.store import ClipSource
from adafocus_env.demo.videos import TASKS, data_name, demo
from agents.config.command import run_command
from agents.config.settings import ClassifierConfig, DataConfig
from agents.config.unread import Unread
from agents.config.unread_keys import RULES, SUPERVISED
from agents.evaluation.evaluate import evaluate_policy
from agents.pipeline.builders import part
from agents.pipeline.make_classifier import make_classifier
from agents.policies.baselines import Oracle, RandomPatch
from agents.policies.predictor import Predictor
from agents.runs.progress import Display
from classifiers import checkpoint
from classifiers.classifier import Classifier
from classifiers.errors import lookup
from classifiers.model_zoo import ARCHITECTURES, BUNDLED


@dataclass
class RebuildBundled:
    """`python -m benchmarks.rebuild_bundled`.

    Attributes:
        task: Task of the classifier, a name in `adafocus_env.demo.videos.TASKS`.
        out: Directory of the checkpoint; empty: into the package.
        seed: Seed of everything random.
        device: auto, cpu, cuda or cuda:N.
        workers: Processes that render and decode.
        stages: Settings of the stages 0 and 1.
    """

    task: str = "normal"
    out: str = ""
    seed: int = 0
    device: str = "auto"
    workers: int = 2
    stages: ClassifierConfig = field(default_factory=ClassifierConfig)


RULES[RebuildBundled] = (
    Unread("stages.finetune", lambda config: True, "a bundled classifier is made by stages 0 and 1; leave it out"),
    *SUPERVISED,
)


def main(config: RebuildBundled) -> None:
    """Train the classifier of a task in stages 0 and 1, measure it on the validation split and save it."""
    task, name = lookup("task", config.task, TASKS), data_name(config.task)
    out = Path(config.out) if config.out else BUNDLED[name]
    with Display() as display:
        network = replace(ARCHITECTURES["small"], patch_size=task.patch_size)
        data = DataConfig(workers=config.workers)
        training_task = demo(task.classifier_training_task, num_workers=config.workers)
        train, val = (part(training_task, split, data, network.size, display) for split in ("train", "val"))
        torch.manual_seed(config.seed)
        classifier = Classifier(network, training_task.classes).to(choose_device(config.device))
        make_classifier(classifier, train, val, config.stages, seed=config.seed, display=display)
        metrics = measure(classifier, part(demo(task, num_workers=config.workers), "val", data, network.size, display), config.seed)
        checkpoint.save(classifier, out, data=name, metrics=metrics, command=f"python -m benchmarks.rebuild_bundled task={config.task}")
        display.say(f"saved to {out}: {', '.join(f'{key} {value:.1%}' for key, value in metrics.items())}")


def measure(classifier: Classifier, clips: ClipSource, seed: int) -> dict[str, float]:
    """Return top-1 on validation clips with random patches and with the oracle's."""
    features = build_features(classifier, clips, bank=False)
    policies: dict[str, Predictor] = {"random": RandomPatch(features.action, seed), "oracle": Oracle(features)}
    return {f"val_top1_{name}": float(evaluate_policy(features, policy).correct.mean()) for name, policy in policies.items()}


if __name__ == "__main__":
    run_command(main, RebuildBundled, "rebuild_bundled", config_package="benchmarks.configs")
