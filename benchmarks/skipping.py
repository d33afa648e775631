"""Skipped frames: what a video takes when a share of its frames is kept, against looking at every frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from agents.evaluation.budgets import solve_threshold
from agents.evaluation.inference import Inference, glance_at, infer
from agents.policies.networks import PolicyNetwork
from benchmarks import workload
from benchmarks.clock import Act, interleaved
from benchmarks.command import Settings, main
from benchmarks.sections import Section, at_most
from classifiers.classifier import Classifier
from classifiers.optimize import choose_execution, with_execution

KEPT = (0.25, 0.47, 0.67)
PATCHES = {"patch_size": 128}  # the paper's largest: the focuser bounds the time


def measure(settings: Settings) -> Iterator[Section]:
    """Inference with a policy that skips, at thresholds that keep these shares of the frames; by time and by multiply-adds."""
    network, policy = workload.classifier(settings, **({} if settings.quick else PATCHES)), workload.policy(settings, skips=True)
    count, length = (2, 8) if settings.quick else (4, 16)
    frames = workload.frames(settings, count, length, network)
    for compile in (False, True) if settings.compile else (False,):
        how = "compiled" if compile else "eager"
        section = Section(f"Skipped frames, {count} clips of {length} frames, float32, {how}")
        look = partial(infer, with_execution(network, choose_execution(network, compile=compile)), policy, frames)
        yield _measured(section, look, _thresholds(network, policy, frames), 1 if settings.quick else settings.rounds)


def _thresholds(network: Classifier, policy: PolicyNetwork, frames: Tensor) -> dict[float, float]:
    """P(skip) from which on a frame is skipped, by the share of the frames that is to be kept."""
    with torch.inference_mode():
        _, skip = policy.choose(glance_at(network, frames, frames.shape[1])[0])
    return {share: solve_threshold(skip.numpy(force=True), share) for share in KEPT}


def _measured(section: Section, look: Callable[..., Inference], thresholds: dict[float, float], rounds: int) -> Section:
    whole = partial(look, keep_threshold=2.0)
    acts: dict[str, Act] = {f"{share:.0%} kept": partial(look, keep_threshold=each) for share, each in thresholds.items()}
    section.times = interleaved({"every frame": whole, **acts}, rounds)
    for share, threshold in thresholds.items():
        section.ratio(f"{share:.0%} kept", "every frame", aim=at_most(0.65) if share == 0.47 else None)
        found = look(keep_threshold=threshold)
        section.figure(f"{share:.0%} kept: the share that is", 100 * found.patch_mask.float().mean().item(), "%")
        section.figure(f"{share:.0%} kept: multiply-adds", float(found.macs.sum() / whole().macs.sum()), "×", over="every frame")
    return section


if __name__ == "__main__":
    main(["skipping"])
