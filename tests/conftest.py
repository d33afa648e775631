"""Shared fixtures: an empty cache folder, a dozen clips of demo videos, and a tiny classifier with random weights."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch is loaded, for the processes that tests start, too

import pytest
import torch
from filelock import FileLock
from in_process import call_in_this_process, decode_by
from torch import nn

from adafocus_env.action import GridAction
from adafocus_env.build import open_clips
from adafocus_env.clips.store import ClipStore
from adafocus_env.demo.videos import CLASSES, DemoTask, demo
from adafocus_env.features.memory_bank import MemoryBank
from adafocus_env.videos.decoding import run_in_workers
from classifiers.backbones.backbone import BACKBONES, Backbone
from classifiers.classifier import Architecture, Classifier
from classifiers.optimize import supported_precisions

TASK = DemoTask(train_videos=12, val_videos=0, test_videos=4, length=8)


def layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU6())


def tiny_glancer(num_classes: int) -> Backbone:
    """Return a glancer that maps frames of 24 pixels to maps (16, 6, 6), pooled by their mean."""
    return Backbone(nn.Sequential(layer(3, 8, 2), layer(8, 16, 2)), 16, num_classes, map_bounds=(0.0, 6.0))


def tiny_focuser(num_classes: int) -> Backbone:
    """Return a focuser that maps patches of 24 pixels to vectors of length 32, pooled by the maximum."""
    return Backbone(nn.Sequential(layer(3, 8, 2), layer(8, 32, 2)), 32, num_classes, pool="max", map_bounds=(0.0, 6.0))


torch.set_num_threads(1)  # the networks here are tiny: more threads only wait for one another
BACKBONES.update(tiny_glancer=tiny_glancer, tiny_focuser=tiny_focuser)
TINY = Architecture("tiny_glancer", "tiny_focuser", "gru", hidden_size=20, dropout=0.5, size=96, glance_size=24, patch_size=24)
TINY_COST = (
    (12**2 * 3 * 9 * 8 + 6**2 * 8 * 9 * 16)  # glance
    + (12**2 * 3 * 9 * 8 + 6**2 * 8 * 9 * 32)  # focus
    + (3 * 20 * ((16 + 32) + 20) + 20 * 10)  # head
)

FINE_GRID = pytest.mark.filterwarnings("ignore:a 7×7 grid is finer than the 6×6 score map:UserWarning")
"""For tests of a spatial policy with 7×7 cells on the maps of `tiny_glancer`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes longest comes first: at the end the other processes of pytest-xdist would have nothing left to do."""
    items.sort(key=lambda item: item.path.name != "test_pages.py")


def slow_except(quick: Iterable[object], cases: Iterable[object]) -> list[object]:
    """Mark all parameters of a test except for the quick ones as slow, so that only CI runs all of them."""
    quick, cases = list(quick), list(cases)
    assert all(case in cases for case in quick), f"quick={quick} must be among {cases}"
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*each, marks=() if case in quick else pytest.mark.slow) for case, each in zip(cases, values, strict=True)]


def needs(precision: str) -> pytest.MarkDecorator:
    """Skip a test if the processor has no instructions for a precision."""
    return pytest.mark.skipif(precision not in supported_precisions(torch.device("cpu")), reason=f"this processor has no {precision}")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Return the cache folder of all tests, which is never the user's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("ADAFOCUS_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def in_process():
    """Decode and draw videos in this process in all tests of a module, except in those that ask for `worker_processes`."""
    with pytest.MonkeyPatch.context() as patch:
        decode_by(call_in_this_process, patch)
        yield


@pytest.fixture
def worker_processes(monkeypatch):
    """Decode and draw videos in worker processes, as the program does."""
    decode_by(run_in_workers, monkeypatch)


@pytest.fixture(scope="session")
def clips() -> ClipStore:
    """Return twelve training clips of four frames of 96×96 pixels, with the labels 0 … 9, 0, 1."""
    return open_clips(demo(TASK, val=0.0), "train", num_frames=4, size=96)


def random_classifier(seed: int = 0) -> Classifier:
    """Return a frozen classifier with random weights, which are large enough in the head for patches to matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier = Classifier(TINY, CLASSES)
        with torch.no_grad():
            classifier.head.gru.weight_ih_l0.mul_(3)
            classifier.head.fc.weight.mul_(10)
    return classifier.freeze()


@pytest.fixture(scope="session")
def classifier() -> Classifier:
    """Return the classifier that all tests share. Tests must not change its weights."""
    return random_classifier()


@pytest.fixture(scope="session")
def bank(classifier, clips) -> MemoryBank:
    """Return the bank on a 7×7 grid that all tests share."""
    return MemoryBank(classifier, clips, GridAction(7, 96, 24))


@pytest.fixture(scope="session")
def demo_as_onnx(tmp_path_factory) -> Path:
    """The demo classifier and its policy as ONNX files, exported once for all processes of pytest-xdist; do not change them."""
    from agents.config.settings import Export
    from agents.exporting.export import export

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "demo_as_onnx"
    with FileLock(f"{folder}.lock"):
        return folder if folder.exists() else export(Export(classifier="demo", format="onnx", out=str(folder)))
