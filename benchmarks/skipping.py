"""Skipped frames: what a video takes when a share of its frames is kept, against looking at every frame."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from agents.inference import glance_at, infer
from benchmarks import workload
from benchmarks.clock import Act, interleaved
from benchmarks.command import Settings, main
from benchmarks.sections import Section, at_most

KEPT = (0.25, 0.47, 0.67)
PATCHES = {"patch_size": 128}  # the paper's largest: the focuser bounds the time


def measure(settings: Settings) -> Iterator[Section]:
    """Inference with a policy that skips, at thresholds that keep these shares of the frames; by time and by multiply-adds."""
    network, policy = workload.classifier(settings, **({} if settings.quick else PATCHES)), workload.policy(settings, skips=True)
    count, length = (2, 8) if settings.quick else (4, 16)
    frames = workload.frames(settings, count, length, network)
    with torch.inference_mode():
        _, skip = policy.choose(glance_at(network, frames, length)[0])
    rising = skip.flatten().sort().values
    thresholds = {share: rising[round(share * len(rising))].item() for share in KEPT}
    look = partial(infer, network, policy, frames)
    whole = partial(look, keep_threshold=2.0)
    acts: dict[str, Act] = {f"{share:.0%} kept": partial(look, keep_threshold=thresholds[share]) for share in KEPT}
    section = Section(f"Skipped frames, {count} clips of {length} frames, float32")
    section.times = interleaved({"every frame": whole, **acts}, 1 if settings.quick else settings.rounds)
    for share, threshold in thresholds.items():
        section.ratio(f"{share:.0%} kept", "every frame", aim=at_most(0.65) if share == 0.47 else None)
        found = look(keep_threshold=threshold)
        section.figure(f"{share:.0%} kept: the share that is", 100 * found.kept.float().mean().item(), "%")
        section.figure(f"{share:.0%} kept: multiply-adds", float(found.macs.sum() / whole().macs.sum()), "×", over="every frame")
    yield section


if __name__ == "__main__":
    main(["skipping"])
