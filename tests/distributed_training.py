"""Train the tiny networks of the tests, alone or as one of the processes of torchrun; the main process prints the results.

    torchrun --nproc_per_node=2 distributed_training.py FOLDER VIDEOS '[{"stage": STAGE, "videos": 12, "stops": false, "settings": {…}}, …]'

The script first runs single stages, then everything that `python -m agents.train_ppo` and `python -m agents.train_stages` do with a folder
of videos.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from conftest import TASK, random_classifier
from supervised_stages import STAGES, end_to_end
from tiny_training import tiny_networks
from tiny_training import train as run_command

from adafocus_env import distributed
from adafocus_env.build import open_clips
from adafocus_env.demo.videos import demo
from agents import train_stages
from agents.config.settings import SupervisedConfig, TrainStages
from agents.runs.interrupts import Stopped, StopRequest
from agents.supervised.checkpoint import EpochCheckpoint
from agents.supervised.stages import train_on_random_patches
from classifiers.checkpoint import save_tensors

SETTINGS: dict[str, Any] = {"epochs": 3, "batch_size": 6, "learning_rate": 0.01, "head_learning_rate": 0.01, "frames": 3, "dropout": 0.0}


def train(folder: Path, runs: list[dict[str, Any]]) -> list[list[dict[str, float]]]:
    """Return the metrics of each run from the same initial weights, and write the final weights to ``folder``."""
    measured = []
    for number, run in enumerate(runs):
        torch.manual_seed(3)
        clips = open_clips(demo(replace(TASK, train_videos=run["videos"]), val=0.0), "train", num_frames=4, size=96)
        config = SupervisedConfig(**{**SETTINGS, **run["settings"]})
        classifier = random_classifier()
        if run["stops"]:
            classifier, lines = stopped_after_every_batch(clips, config, folder / f"{number}")
        else:
            lines = list({**STAGES, "end to end": end_to_end}[run["stage"]](classifier, clips, config, 0))
        measured.append(lines)
        if distributed.is_main():
            save_tensors(classifier, folder / f"{number}.safetensors")
    return measured


def as_process(folder: Path, run: dict[str, Any]) -> None:
    """Train in the process of a distributed run; the first process writes the metrics."""
    measured = train(folder, [run])
    if distributed.is_main():
        (folder / "measured.json").write_text(json.dumps(measured))


def stopped_after_every_batch(clips, config, folder):
    """Train stage 1, with a request to stop in the last process."""
    lines = []
    while True:
        classifier, stop = random_classifier(), StopRequest()
        stop.requested = distributed.rank() == distributed.world_size() - 1
        checkpoints = EpochCheckpoint(folder, lambda: len(lines), stop)
        try:
            for epoch in train_on_random_patches(classifier, clips, config, seed=0, checkpoints=checkpoints):
                lines.append(epoch)
        except Stopped:
            torch.manual_seed(99)
        else:
            return classifier, lines


def train_all(folder: Path, root: str | Path) -> None:
    """Train a policy in the run folder ``folder / "policy"``, and run all stages and a joint round in ``folder / "run"``."""
    stages = ("glancer", "focuser", "random_patches", "finetune")
    few = [f"stages.{stage}.{value}" for stage in stages for value in ("batch_size=4", "dropout=0", "learning_rate=0.01")]
    few += ["ppo.total_steps=64", "stages.finetune.epochs=2", "rounds=1", "joint.total_steps=32", "joint.epochs=1"]
    with tiny_networks():
        run_command(f"run={folder / 'policy'}", f"data.root={root}")
        run_command(f"run={folder / 'run'}", f"data.root={root}", *few, command=train_stages, schema=TrainStages, name="train_stages")


if __name__ == "__main__":
    found = train(Path(sys.argv[1]), json.loads(sys.argv[3]))
    train_all(Path(sys.argv[1]), sys.argv[2])
    if distributed.is_main():
        sys.stdout.write(json.dumps(found) + "\n")
