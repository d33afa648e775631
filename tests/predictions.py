"""A classifier with a policy that selects the brightest patch, and runs with them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from conftest import random_classifier
from torch import Tensor, nn
from torch.nn import functional as F

from agents.policies.networks import PolicyArchitecture, PolicyNetwork, save_policy
from classifiers import checkpoint
from classifiers.backbones.backbone import BACKBONES, Backbone
from classifiers.classifier import Architecture, Classifier, ClipFormat

SIZE, PATCH, GRID = 96, 24, 7
SHORT_SIDE = round(SIZE * ClipFormat.margin)
CLASSES = ("cat", "dog", "Straßenbahn")


def bright_glancer(num_classes: int) -> Backbone:
    """Return a glancer that maps frames of 24 pixels to maps (3, 6, 6) of mean colours."""
    return Backbone(nn.Sequential(nn.AvgPool2d(4)), 3, num_classes, map_bounds=(-3.0, 3.0))


BACKBONES.update(bright_glancer=bright_glancer)
BRIGHT = Architecture("bright_glancer", "tiny_focuser", "gru", hidden_size=8, dropout=0.0, size=SIZE, glance_size=24, patch_size=PATCH)


class CellBrightness(nn.Module):
    """An actor that maps glance maps (N, D, 3, 6, 6) to the brightness of every cell (N, D, 49)."""

    features_dim = GRID * GRID

    def forward(self, maps: Tensor) -> Tensor:
        grey = maps.mean(2, keepdim=False).flatten(0, 1)[:, None]
        return F.avg_pool2d(F.interpolate(grey, (SIZE, SIZE)), PATCH, stride=12).flatten(1).unflatten(0, maps.shape[:2])


@dataclass(frozen=True)
class Brightest:
    """The architecture of a policy without weights."""

    kind: ClassVar[str] = "brightest"
    map_shape: tuple[int, int, int] = (3, 6, 6)
    batch_norm: bool = False

    def encoder(self) -> nn.Module:
        return CellBrightness()

    def actor(self, grid: int | None, skips: bool) -> nn.Module:
        return nn.Identity()

    def critic(self, skips: bool) -> nn.Module:
        return nn.Linear(GRID * GRID, 1)


def brightest() -> PolicyNetwork:
    return PolicyNetwork(Brightest(), GRID).eval().requires_grad_(False)


def bright_classifier(num_frames: int = 4) -> Classifier:
    """Return a classifier with random weights and the glancer, which has no weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = Classifier(BRIGHT, CLASSES).freeze()
    classifier.clip_format = ClipFormat(num_frames)
    return classifier


def one_cell(cell: int, *, skips: bool = False) -> PolicyNetwork:
    """Return a policy for the tiny glancer that always selects one cell; with ``skips``, only in the first frame."""
    policy = PolicyNetwork(PolicyArchitecture((16, 6, 6), channels=1, features=1, hidden=1), GRID, skips=skips)
    for parameter in policy.requires_grad_(False).parameters():
        parameter.zero_()
    policy.actor.bias[cell] = 1
    if skips:  # P(skip) is low before the first patch, and high after it
        policy.actor.bias[-1], policy.actor.bias[-3] = -9, 20
    return policy.eval()


def cell_in_video(cell: int, size: tuple[int, int]) -> list[float]:
    """Return the box (top, left, bottom, right) of a cell in a video of (height, width)."""
    scale = SHORT_SIDE / min(size)
    decoded = [round(side * scale) for side in size]
    corner = [(side - SIZE) // 2 + 12 * step for side, step in zip(decoded, divmod(cell, GRID), strict=True)]
    return [(at + extra) * side / small for extra in (0, PATCH) for at, side, small in zip(corner, size, decoded, strict=True)]


def with_targets(cells: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Return displayed frames (n, H, W, 3), each with a white square that fills one cell."""
    frames = np.full((len(cells), *size, 3), 30, np.uint8)
    for frame, cell in zip(frames, cells, strict=True):
        top, left, bottom, right = (round(side) for side in cell_in_video(cell, size))
        frame[top:bottom, left:right] = 255
    return frames


def make_run(folder: Path, *, finished: bool = True, policy: PolicyNetwork | None = None, config: str = "") -> Path:
    """Make a run folder with the tiny classifier, whose classes are those of the demo videos."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"data:\n  name: demo\n  val: 0.5\n  num_frames: 4\n  glance_frames: 0\nclassifier: auto\n{config}")
    classifier = random_classifier()
    if finished:
        (folder / "result.json").write_text("{}")
    checkpoint.save(classifier, folder / "checkpoints" / "classifier", clip_format=ClipFormat(4))
    save_policy(policy or one_cell(24), folder / "checkpoints" / "best", {"classifier": classifier.fingerprint()})
    return folder


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
