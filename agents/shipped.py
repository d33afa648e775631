"""Rebuilds the classifier that comes with the package, from nothing: ``python -m agents.shipped out=DIR``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from adafocus_env.build import choose_device
from agents.builders import build_clips, build_data
from agents.command import run_command
from agents.config import ClassifierConfig, DataConfig
from agents.make_classifier import make_classifier
from agents.progress import Display
from classifiers import checkpoint
from classifiers.classifier import Classifier
from classifiers.registry import ARCHITECTURES


@dataclass
class Shipped:
    """`python -m agents.shipped`; the result goes to ``out``, by default into the package."""

    out: str = str(checkpoint.SHIPPED["demo"])
    seed: int = 0
    device: str = "auto"
    data: DataConfig = field(default_factory=DataConfig)
    stages: ClassifierConfig = field(default_factory=ClassifierConfig)


def main(config: Shipped) -> None:
    """Trains the demo classifier in stages 0 and 1 and saves it."""
    with Display() as display:
        network = ARCHITECTURES["small"]
        clips = build_clips(build_data(config.data), config.data, network.size, display)
        torch.manual_seed(config.seed)
        classifier = Classifier(network, clips.data.classes).to(choose_device(config.device))
        right = make_classifier(classifier, clips.train, clips.val, config.stages, seed=config.seed, display=display)
        metrics = {} if right is None else {"val_top1_random_patches": right}
        checkpoint.save(classifier, Path(config.out), data="demo", metrics=metrics, command="python -m agents.shipped")
        display.say(f"saved to {config.out}")


if __name__ == "__main__":
    run_command(main, Shipped, "shipped")
