"""The commands that are killed and disturbed: tiny trainings and a prediction, each of which takes seconds."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adafocus_env.demo.videos import DemoTask, demo
from agents.prediction.output import PREDICTIONS
from agents.runs.run_dir import METRICS, RunDir
from benchmarks.reliability.children import Command

CLASSES = ("even", "odd")
TRAIN, TEST = 8, 4  # videos
DATA = ("plugin=benchmarks.reliability.tiny", "data=folder", "data.num_frames=4", "data.val=0.25", "data.workers=1", "device=cpu")
STAGES = tuple(f"stages.{stage}.epochs={epochs}" for stage, epochs in {"glancer": 1, "focuser": 1, "random_patches": 2}.items())
PPO = ("ppo.total_steps=128", "ppo.n_steps=8", "ppo.batch_size=16", "ppo.n_epochs=1", "ppo.validate_every=1", "ppo.save_every=1")
POLICY = (*DATA, *STAGES, "network.width=4", "env.num_envs=4", "env.grid=3")
ALGORITHM = ("algo.total_steps=128", "algo.validate_every=32", "algo.save_every=32")
OFF_POLICY = (
    *ALGORITHM, "algo.settings.learning_starts=16", "algo.settings.buffer_size=64", "algo.settings.batch_size=8",
    "algo.settings.gradient_steps=2",
)  # fmt: skip
CONTINUOUS = tuple(each for each in POLICY if not each.startswith("env.grid"))


@dataclass(frozen=True)
class Kind:
    """A command with its arguments. Folders of videos and of results are added to the arguments."""

    command: str
    arguments: tuple[str, ...]

    @property
    def predicts(self) -> bool:
        """Whether the command predicts videos."""
        return self.command == "predict"

    @property
    def writes_out(self) -> bool:
        """Whether the command has the setting ``out`` in place of ``run``."""
        return self.predicts or self.command == "fill_feature_bank"

    def on(self, videos: Path, folder: Path, cache: Path, *further: str) -> Command:
        """Return the command on a folder of videos, with its results in ``folder``."""
        paths = (f"{'source' if self.predicts else 'data.root'}={videos}", f"{'out' if self.writes_out else 'run'}={folder}")
        return Command(self.command, (*self.arguments, *paths, *further), cache)

    def outcome(self, folder: Path) -> tuple[object, object]:
        """Return everything that must be equal after a kill: metrics and the result without times, or the predictions or files by name."""
        if self.predicts:
            lines = [json.loads(line) for line in (folder / PREDICTIONS).read_text(encoding="utf-8").splitlines()]
            return len(lines), {line["file"]: line for line in lines}
        if self.writes_out:
            return 0, {path.name: path.read_bytes() for path in folder.rglob("*.bin")}
        return (folder / METRICS).read_bytes(), {**RunDir(folder).result(), "seconds": None}

    def progress(self, folder: Path) -> int:
        """Return the number of lines of metrics or predictions so far."""
        path = folder / (PREDICTIONS if self.predicts else METRICS)
        return path.read_bytes().count(b"\n") if path.exists() else 0


KINDS: dict[str, Kind] = {
    "train_ppo": Kind("train_ppo", (*POLICY, *PPO)),
    "train algo=a2c": Kind("train", ("algo=a2c", *POLICY, *ALGORITHM)),
    "train algo=dqn": Kind("train", ("algo=dqn", *POLICY, *OFF_POLICY)),
    "train algo=sac": Kind("train", ("algo=sac", *CONTINUOUS, "env.action=continuous", "env.baseline=1", *OFF_POLICY)),
    "train_stages": Kind("train_stages", (*POLICY, *PPO, "stages.finetune.epochs=2")),
    "train_end_to_end": Kind("train_end_to_end", (*DATA, "network.width=4", "learning.epochs=3", "learning.batch_size=3")),
    "predict": Kind("predict", ("classifier=demo", "device=cpu", "workers=1", "batch_size=2")),
}
"""The commands that are killed, by name. DQN selects cells, SAC selects locations."""

BANK = Kind("fill_feature_bank", (*DATA, "grid=3"))


def make_videos(folder: Path) -> Path:
    """Write demo videos of 8 frames to ``folder``, as `TRAIN` training and `TEST` test videos of two classes, and return the folder."""
    data = demo(DemoTask(train_videos=TRAIN + TEST, test_videos=1, length=8), val=0.0)
    assert data.prepare is not None
    data.prepare(data.train)
    for number, video in enumerate(data.train):
        copy = folder / ("train" if number < TRAIN else "test") / CLASSES[number % 2] / f"{number:03d}{video.path.suffix}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(video.path, copy)
    return folder


def difference(one: Any, other: Any) -> str:
    """Return what differs between two outcomes, or an empty string."""
    names = ("metrics or number of predictions", "result or predictions")
    return ", ".join(name for name, before, after in zip(names, one, other, strict=True) if before != after)
