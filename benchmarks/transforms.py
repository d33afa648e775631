"""What happens to pixels between the store and the networks, against a copy of what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from adafocus_env.action import crop_patches
from adafocus_env.clips.transforms import Crop, apply_crop
from benchmarks import workload
from benchmarks.clock import interleaved
from benchmarks.command import Settings, main
from benchmarks.env_steps import repeated
from benchmarks.sections import Section


def measure(settings: Settings) -> Iterator[Section]:
    """One clip of 16 frames, or its patches."""
    network, length, repeats = workload.classifier(settings), 4 if settings.quick else 16, 1 if settings.quick else 10
    size, patch_size = network.architecture.size, network.architecture.patch_size
    stored = torch.randint(256, (length, 3, size + 32, size + 64), dtype=torch.uint8)
    frames = stored[..., :size, :size].contiguous()
    normalised, source = network.normalise(frames), torch.arange(length)
    corners = torch.from_numpy(np.random.default_rng(0).integers(size - patch_size + 1, size=(length, 2)))
    patches = crop_patches(frames, source, corners, patch_size)
    resized = Crop(3, 5, round(0.875 * size), size)
    pairs: dict[str, tuple[Callable[[], object], torch.Tensor]] = {
        "crop": (lambda: apply_crop(stored, Crop(7, 9, size, size), size), frames),
        "crop and flip": (lambda: apply_crop(stored, Crop(7, 9, size, size, flip=True), size), frames),
        "crop and resize": (lambda: apply_crop(stored, resized, size), frames),
        "normalise": (lambda: network.normalise(frames), normalised),
        "patches of bytes": (lambda: crop_patches(frames, source, corners, patch_size), patches),
        "patches of floats": (lambda: crop_patches(normalised, source, corners, patch_size), patches.float()),
    }
    acts: dict[str, Callable[[], object]] = {}
    for name, (act, result) in pairs.items():
        acts[name], acts[f"{name}: copy"] = repeated(repeats, act), repeated(repeats, result.clone)
    section = Section("Transforms", f"{length} frames; each time is that of {repeats}.")
    section.times = interleaved(acts, 1 if settings.quick else settings.rounds)
    for name in pairs:
        section.ratio(name, f"{name}: copy")
    yield section


if __name__ == "__main__":
    main(["transforms"])
