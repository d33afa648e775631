"""Training steps of the stages 0, 1 and 3 against a bare forward and backward pass of what they train."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn

from adafocus_env.clips.store import ClipSource
from agents.config.settings import SupervisedConfig
from agents.supervised.finetune import finetune
from agents.supervised.random_patches import train_on_random_patches
from agents.supervised.warm_up import warm_up
from benchmarks import workload
from benchmarks.clock import interleaved
from benchmarks.command import Settings, main
from benchmarks.sections import Section, at_most
from classifiers.classifier import Classifier

EPOCHS = 1000  # more than are asked for


def measure(settings: Settings) -> Iterator[Section]:
    """A step of each stage, on all clips of a small store."""
    frames = 4 if settings.quick else 8
    clips, first = workload.clips(settings, 2, frames, train=False), workload.classifier(settings)
    policy = workload.policy(settings)
    config = SupervisedConfig(EPOCHS, len(clips), "sgd", learning_rate=1e-4, head_learning_rate=1e-4, frames=frames)
    steps: dict[str, Callable[[Classifier], Iterator[object]]] = {
        "stage 0, glancer": lambda network: warm_up(network, "glancer", clips, config, seed=0),
        "stage 0, focuser": lambda network: warm_up(network, "focuser", clips, config, seed=0),
        "stage 1": lambda network: train_on_random_patches(network, clips, config, seed=0),
        "stage 3": lambda network: finetune(network, policy, clips, config, seed=0),
    }
    note = f"{len(clips)} clips of {frames} frames, SGD; the bare pass has no optimiser, no data and no crops."
    section = Section("Training steps", note)
    acts: dict[str, Callable[[], object]] = {}
    for name, make in steps.items():
        acts[name] = _stepping(make(copy.deepcopy(first)))
        acts[f"{name}: bare"] = _bare(copy.deepcopy(first), name, clips)
    section.times = interleaved(acts, 1 if settings.quick else settings.rounds)
    for name in steps:
        section.ratio(name, f"{name}: bare", aim=at_most(1.1) if name == "stage 1" else None)
    yield section


def _stepping(epochs: Iterator[object]) -> Callable[[], object]:
    return lambda: next(epochs)


def _bare(network: Classifier, stage: str, clips: ClipSource) -> Callable[[], object]:
    """An act: forward and backward of what the stage trains, and forward of what it does not, on tensors that are there."""
    size, count, device = network.architecture, len(clips) * clips.num_frames, network.device
    frames = torch.randn(count, 3, size.size, size.size, device=device)
    patches = torch.randn(count, 3, size.patch_size, size.patch_size, device=device)
    labels = torch.zeros(len(clips), dtype=torch.long, device=device)
    parts = [network.glancer] if stage == "stage 0, glancer" else [network.focuser]
    parts = [*parts, network.head] if not stage.startswith("stage 0") else parts
    modules = [cast(nn.Module, part).train().requires_grad_(True) for part in parts]

    def whole_frames(part: str) -> Tensor:
        vectors = network.glance(frames)[1] if part == "glancer" else network.focuser(frames)[1]
        return getattr(network, part).scores(vectors).unflatten(0, (len(clips), -1)).mean(1)

    def on_patches() -> Tensor:
        with torch.no_grad():
            glances = network.glance(frames)[1].unflatten(0, (len(clips), -1))
        return network.classify(glances, network.focus(patches).unflatten(0, (len(clips), -1)))[0].flatten(0, 1)

    def act() -> None:
        scores = whole_frames(stage.rpartition(" ")[2]) if stage.startswith("stage 0") else on_patches()
        for module in modules:
            module.zero_grad()
        nn.functional.cross_entropy(scores, labels.repeat_interleave(len(scores) // len(clips))).backward()

    return act


if __name__ == "__main__":
    main(["stages"])
