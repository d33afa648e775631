"""How time and memory grow with the number of clips, frames, environments and pixels, and with the size of the bank."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from adafocus_env.features.live import Indices
from adafocus_env.features.memory_bank import MemoryBank
from agents.evaluation.inference import infer
from benchmarks import workload
from benchmarks.clock import Spread, interleaved
from benchmarks.command import Settings, main
from benchmarks.env_steps import bank_of, repeated, stepping
from benchmarks.memory import added_by_inference
from benchmarks.sections import Section, at_most
from classifiers.classifier import Classifier

Acts = dict[int, Callable[[], object]]
LINEAR = 1.1  # an exponent: what is measured over one decade only is not exact
AXES = {
    "environments (N), live": "step", "frames (T)": "inference", "pixels of a patch (P²)": "focuser", "clips": "inference",
    "clips in the bank": "reading 64 steps",
}  # fmt: skip


def measure(settings: Settings) -> Iterator[Section]:
    """The exponent x of a power law, size^x, between the smallest and the largest size: 1 is linear, 0 does not grow."""
    network, few = workload.classifier(settings), settings.quick
    acts: dict[str, Acts] = {
        "environments (N), live": _by_environments(settings, network, (1, 2) if few else (1, 3, 10, 32)),
        "frames (T)": _by_frames(settings, network, (1, 2) if few else (4, 12, 40)),
        "clips": _by_clips(settings, network, (1, 2) if few else (1, 3, 10)),
        "pixels of a patch (P²)": _by_pixels(network, (8, 16) if few else (64, 96, 128, 224)),
        "clips in the bank": _by_bank(settings, (8, 16) if few else (8, 24, 80)),
    }
    times = interleaved(
        {f"{axis}: {size}": act for axis, sizes in acts.items() for size, act in sizes.items()}, 1 if few else min(3, settings.rounds)
    )
    section = Section("How time grows", measure.__doc__ or "", times)
    for axis, sizes in acts.items():
        points = [(float(size), Spread.of([time.wall for time in times[f"{axis}: {size}"]]).median) for size in sizes]
        _add(section, f"{AXES[axis]}, by {axis}", points)
    yield section
    yield _memory(settings)


def draw(sections: Sequence[Section], path: Path) -> None:
    """Draws all series, each in units of its smallest size, beside a line of linear growth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    for axes, section in zip(figure.subplots(1, len(sections)), sections, strict=True):
        largest = 1.0
        for name, points in section.points.items():
            sizes, values = np.array(points).T
            axes.plot(sizes / sizes[0], values / values[0], marker="o", label=name)
            largest = max(largest, *(sizes / sizes[0]))
        axes.plot([1, largest], [1, largest], color="grey", linestyle="--", label="linear")
        axes.set(title=section.title, xscale="log", yscale="log", xlabel="size over the smallest", ylabel="cost over that of the smallest")
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _by_environments(settings: Settings, network: Classifier, sizes: tuple[int, ...]) -> Acts:
    clips = workload.clips(settings, sizes[-1], 1)
    return {size: stepping(size, network, clips, bank=False) for size in sizes}


def _by_frames(settings: Settings, network: Classifier, sizes: tuple[int, ...]) -> Acts:
    policy = workload.policy(settings)
    return {size: partial(infer, network, policy, workload.frames(settings, 1, size, network)) for size in sizes}


def _by_clips(settings: Settings, network: Classifier, sizes: tuple[int, ...]) -> Acts:
    policy = workload.policy(settings)
    return {size: partial(infer, network, policy, workload.frames(settings, size, 4, network)) for size in sizes}


def _by_pixels(network: Classifier, sides: tuple[int, ...]) -> Acts:
    def look(patches: torch.Tensor) -> None:
        with torch.inference_mode():
            network.focus(patches)

    return {side * side: partial(look, torch.randn(4, 3, side, side, device=network.device)) for side in sides}


def _by_bank(settings: Settings, sizes: tuple[int, ...]) -> Acts:
    """Vectors and focus vectors of as many steps out of ever larger banks."""
    network, rng = workload.flat_classifier(settings), np.random.default_rng(0)
    acts: Acts = {}
    for size in sizes:
        bank, asked = bank_of(network, workload.clips(settings, size, 2)), rng.integers(size, size=64)
        acts[size] = repeated(100, partial(_read, bank, asked, rng.integers(2, size=64), rng.integers(workload.GRID**2, size=64)))
    return acts


def _read(bank: MemoryBank, clips: Indices, steps: Indices, actions: Indices) -> None:
    bank.glance_vectors(clips, steps)
    bank.focus_vectors(clips, steps, actions)


def _memory(settings: Settings) -> Section:
    """Peak memory of inference, on top of the process that holds networks and frames."""
    section = Section("How memory grows", _memory.__doc__ or "")
    pairs = [(1, 2), (2, 2)] if settings.quick else [(1, 16), (3, 16), (10, 16)]
    _add(section, "inference, by clips", [(float(clips), added_by_inference(settings, clips, length)) for clips, length in pairs])
    pairs = [(1, 2), (1, 4)] if settings.quick else [(4, 4), (4, 12), (4, 40)]
    _add(section, "inference, by frames (T)", [(float(length), added_by_inference(settings, clips, length)) for clips, length in pairs])
    return section


def _add(section: Section, name: str, points: list[tuple[float, float]]) -> None:
    """Adds a series, and the exponent between its ends."""
    section.points[name] = points
    (first, lowest), (last, highest) = points[0], points[-1]
    exponent = math.log(max(highest, 1e-9) / max(lowest, 1e-9)) / math.log(last / first)
    section.figure(f"{name}, {first:g} to {last:g}: exponent", exponent, "", aim=at_most(LINEAR))


if __name__ == "__main__":
    main(["growth"])
