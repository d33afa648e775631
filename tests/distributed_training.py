"""Trains the tiny networks of the tests, alone or as one of the processes of torchrun; the main one prints what came out.

    torchrun --nproc_per_node=2 distributed_training.py FOLDER '[[STAGE, VIDEOS, {SETTING: VALUE, …}], …]'
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from conftest import TASK, random_classifier
from test_supervised import STAGES

from adafocus_env.build import open_clips
from adafocus_env.demo import demo
from agents.config import SupervisedConfig
from classifiers import distributed
from classifiers.checkpoint import save_tensors

SETTINGS: dict[str, Any] = {"epochs": 3, "batch_size": 6, "learning_rate": 0.01, "head_learning_rate": 0.01, "frames": 3, "dropout": 0.0}


def train(folder: Path, runs: list[tuple[str, int, dict[str, Any]]]) -> list[list[dict[str, float]]]:
    """The measures of each stage from the same beginning; the weights go to ``folder``."""
    measured = []
    for number, (stage, videos, settings) in enumerate(runs):
        clips = open_clips(demo(replace(TASK, train_videos=videos), val=0.0), "train", num_frames=4, size=96)
        classifier = random_classifier()
        measured.append(list(STAGES[stage](classifier, clips, SupervisedConfig(**{**SETTINGS, **settings}), 0)))
        if distributed.is_main():
            save_tensors(classifier, folder / f"{number}.safetensors")
    return measured


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True, warn_only=True)
    found = train(Path(sys.argv[1]), json.loads(sys.argv[2]))
    if distributed.is_main():
        sys.stdout.write(json.dumps(found) + "\n")
