"""Rebuilds a classifier that comes with the package, from nothing: ``python -m benchmarks.rebuild_bundled task=hard out=DIR``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from adafocus_env.build import Split, build_features, choose_device
from adafocus_env.clips.store import ClipSource
from adafocus_env.demo.videos import TASKS, data_name, demo
from agents.config.command import run_command
from agents.config.settings import DataConfig, RebuildBundled
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

PARTS: tuple[Split, Split] = ("train", "val")


def main(config: RebuildBundled) -> None:
    """Trains the classifier of a task in stages 0 and 1, measures it on the validation part and saves it."""
    task, name = lookup("task", config.task, TASKS), data_name(config.task)
    out = Path(config.out) if config.out else BUNDLED[name]
    with Display() as display:
        network = replace(ARCHITECTURES["small"], patch_size=task.patch_size)
        data = DataConfig(workers=config.workers)
        classifier_training_task = demo(task.classifier_training_task, num_workers=config.workers)
        train, held_out = (part(classifier_training_task, split, data, network.size, display) for split in PARTS)
        torch.manual_seed(config.seed)
        classifier = Classifier(network, classifier_training_task.classes).to(choose_device(config.device))
        make_classifier(classifier, train, held_out, config.stages, seed=config.seed, display=display)
        metrics = measured(classifier, part(demo(task, num_workers=config.workers), "val", data, network.size, display), config.seed)
        checkpoint.save(classifier, out, data=name, metrics=metrics, command=f"python -m benchmarks.rebuild_bundled task={config.task}")
        display.say(f"saved to {out}: {', '.join(f'{key} {value:.1%}' for key, value in metrics.items())}")


def measured(classifier: Classifier, clips: ClipSource, seed: int) -> dict[str, float]:
    """Top-1 on validation clips with random patches, and with those that the ground truth chooses."""
    features = build_features(classifier, clips, bank=False)
    policies: dict[str, Predictor] = {"random": RandomPatch(features.action, seed), "oracle": Oracle(features)}
    return {f"val_top1_{name}": float(evaluate_policy(features, policy).correct.mean()) for name, policy in policies.items()}


if __name__ == "__main__":
    run_command(main, RebuildBundled, "shipped")
