"""A training command with the tiny networks, on a folder of a dozen real videos. It can also be run as a separate process.

    python tiny_training.py UPDATE key=value ...    dies by SIGKILL when the line of that update has been written
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TASK, TINY

from adafocus_env.dataset_registry import DATASETS
from adafocus_env.demo.videos import demo
from agents import train_ppo
from agents.config.command import compose_config
from agents.config.settings import TrainPPO
from agents.policies.baselines import RULES
from agents.runs.run_dir import RunDir
from classifiers.atomic_files import write_text
from classifiers.model_zoo import ARCHITECTURES

SETTINGS = [
    "data=folder", "data.num_frames=4", "data.val=0.25", "device=cpu", "env.num_envs=4", "env.grid=3",
    "ppo.total_steps=128", "ppo.n_steps=8", "ppo.batch_size=16", "ppo.n_epochs=1", "ppo.validate_every=1", "ppo.save_every=2",
    "network.width=4",
    "stages.glancer.epochs=1", "stages.focuser.epochs=1", "stages.random_patches.epochs=2",
]  # fmt: skip
CLASSES = ("even", "odd")
POLICIES = {"learned", "random", "centre", "gaussian", *RULES, "glance_only", "full_frame", "greedy_oracle"}


def patch_demo(patch: pytest.MonkeyPatch) -> None:
    """Replace the data set `demo` by the few videos of the tests."""
    patch.setitem(DATASETS, "demo", replace(DATASETS["demo"], build=lambda data: demo(TASK, val=data.val)))


def empty_plots(patch: pytest.MonkeyPatch) -> None:
    """`result.png` is then empty: to draw it takes longer than to train tiny networks."""
    patch.setattr("agents.runs.report.save_comparison", lambda measures, title, path, **_: write_text(path, ""))


@contextlib.contextmanager
def tiny_networks() -> Iterator[None]:
    """Return a context in which the architecture `small` is the tiny one and plots are empty. PyTorch's settings are restored."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "small", TINY)
        empty_plots(patch)
        yield
    torch.use_deterministic_algorithms(False)


def make_folder(root: Path, *, test_labels: int = 0) -> Path:
    """Make a folder of eight training and four test videos in two classes; ``test_labels`` is added to the labels of test videos."""
    for number, video in enumerate(demo(TASK, val=0.0).train):
        part, shift = ("train", 0) if number < 8 else ("test", test_labels)
        place = root / part / CLASSES[(video.label + shift) % 2] / video.path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(video.path, place)
    return root


def train(*overrides: str, command=train_ppo, schema: type = TrainPPO, name: str = "train_ppo") -> str:
    """Run the command in this process; return its output, on one line."""
    config = compose_config(schema, name, [*SETTINGS, *overrides])
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        command.main(config)
    return " ".join(printed.getvalue().split())


def result(folder):
    return {key: value for key, value in json.loads((folder / "result.json").read_text()).items() if key != "seconds"}


def assert_same(folder, first):
    """Check that both runs have the same metrics, selections and results."""
    assert (folder / "metrics.jsonl").read_bytes() == (first / "metrics.jsonl").read_bytes()
    assert result(folder) == result(first)
    chosen = Path("checkpoints", "best", "policy.safetensors")
    assert (folder / chosen).read_bytes() == (first / chosen).read_bytes()


def left_by_force(folder: Path, copy: Path) -> set[str]:
    """Return the files that ``force`` leaves in a copy of a run folder."""
    shutil.copytree(folder, copy)
    RunDir.open(copy, {}, force=True).close()
    return {entry.name for entry in copy.iterdir()}


NEW = {".lock", "config.yaml", "system.json"}  # what a run folder holds when it is new


class Crash(BaseException):
    pass


def crash(*args, **kwargs):
    raise Crash


def at_update(number: int, act) -> None:
    """Call ``act`` when the line of the given update of stage 2 has been written."""
    log = RunDir.log

    def logged(self, metrics):
        log(self, metrics)
        if metrics.get("update") == number:
            act()

    RunDir.log = logged


if __name__ == "__main__":
    at_update(int(sys.argv[1]), lambda: os.kill(os.getpid(), signal.SIGKILL))
    with tiny_networks():
        train(*sys.argv[2:])
