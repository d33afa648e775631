"""Filling a feature bank against the bare networks on contiguous batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from adafocus_env.features.live import Indices
from adafocus_env.features.memory_bank import MemoryBank
from benchmarks import workload
from benchmarks.bare import bare_focus, bare_glance
from benchmarks.clock import interleaved
from benchmarks.command import Settings, main
from benchmarks.sections import Section, at_least

STEPS, FRAMES = 2, 16  # of the clips whose focus vectors are filled, and of those whose glances are: a bank glances at a whole clip at once


def measure(settings: Settings) -> Iterator[Section]:
    """Glances of some clips, and all cells of the steps of one."""
    note = f"All {workload.GRID**2} cells of {STEPS} frames, and the glances of 8 clips of {FRAMES}; every bank is new."
    section = Section("Bank filling", note)
    rounds = 1 if settings.quick else settings.rounds
    plain = workload.classifier(settings)
    clips, long = workload.clips(settings, 8, STEPS), workload.clips(settings, 8, FRAMES)
    networks = dict([("float32", plain), workload.fastest_of(settings, plain)])
    every, steps, action = np.arange(8)[:, None], np.arange(STEPS)[None], workload.grid_action(plain)
    acts: dict[str, Callable[[], object]] = {}
    for name, network in networks.items():
        focusing, glancing = (iter([MemoryBank(network, some, action) for _ in range(rounds + 1)]) for some in (clips, long))
        acts[f"focus vectors, {name}"] = partial(_focus_vectors, focusing, every[:1], steps)
        acts[f"focuser, {name}"] = bare_focus(network, STEPS * workload.GRID**2)
        acts[f"glances, {name}"] = partial(_glances, glancing, every, steps[:, :1])
        acts[f"glancer, {name}"] = bare_glance(network, FRAMES * len(every))
    section.times = interleaved(acts, rounds)
    for name in networks:
        section.ratio(
            f"focuser, {name}", f"focus vectors, {name}", name=f"focus vectors, {name}: frames/s over the bare focuser's", aim=at_least(0.9)
        )
        section.ratio(f"glancer, {name}", f"glances, {name}", name=f"glances, {name}: frames/s over the bare glancer's")
    yield section


def _focus_vectors(banks: Iterator[MemoryBank], clips: Indices, steps: Indices) -> None:
    """All cells of these steps, since a bank fills those of a step together."""
    next(banks).focus_vectors(clips, steps, np.zeros(steps.shape, np.int64))


def _glances(banks: Iterator[MemoryBank], clips: Indices, steps: Indices) -> None:
    next(banks).glance_vectors(clips, steps)


if __name__ == "__main__":
    main(["bank_filling"])
