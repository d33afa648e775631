"""The growth of time and memory with clips, frames, environments, pixels and the size of the bank, and the peak memory of inference."""

import math
import multiprocessing
import re
import resource
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch

from adafocus_env.features.memory_bank import MemoryBank
from agents.evaluation.inference import infer
from benchmarks import workload
from benchmarks.command import Settings, main
from benchmarks.results import Act, Aim, Section, Spread, interleaved, repeated
from classifiers.optimize import with_execution

LINEAR = 1.1  # limit of an exponent, with a tolerance for measurements over one decade only
STATUS = Path("/proc/self/status")


def measure(settings: Settings) -> Iterator[Section]:
    """Yield all sections."""
    yield _memory(settings)
    yield _time_growth(settings)
    yield _memory_growth(settings)


def _time_growth(settings: Settings) -> Section:
    """The exponents are those of a power law through the smallest and the largest size. 1 means linear growth, 0 means no growth."""
    network, policy, few = workload.classifier(settings), workload.policy(settings), settings.quick
    banks = (8, 16) if few else (8, 24, 80)

    def inference(clips: int, length: int) -> Act:
        return partial(infer, network, policy, workload.frames(settings, clips, length, network))

    axes: dict[str, dict[int, Act]] = {
        "inference, by frames (T)": {size: inference(1, size) for size in ((1, 2) if few else (4, 12, 40))},
        "inference, by clips": {size: inference(size, 4) for size in ((1, 2) if few else (1, 3, 10))},
        "reading 64 steps, by clips in the bank": {
            size: repeated(100, partial(_read, workload.warm_bank(settings, size, 2), size)) for size in banks
        },
    }
    acts = {f"{axis}: {size}": act for axis, sizes in axes.items() for size, act in sizes.items()}
    section = Section("How time grows", _time_growth.__doc__ or "", interleaved(acts, min(3, settings.rounds)))
    for axis, sizes in axes.items():
        _exponent(section, axis, {size: Spread.of([time.wall for time in section.times[f"{axis}: {size}"]]).median for size in sizes})
    return section


def _read(bank: MemoryBank, size: int) -> None:
    """Read the glance and focus vectors of 64 steps from a bank of ``size`` clips."""
    clips = np.arange(64) * 7 % size
    bank.glance_vectors(clips, clips % 2)
    bank.focus_vectors(clips, clips % 2, np.arange(64) % workload.GRID**2)


def _memory_growth(settings: Settings) -> Section:
    """The figures are the memory that inference needs at its peak, in addition to the memory of a process with networks and frames."""
    section, few = Section("How memory grows", _memory_growth.__doc__ or ""), settings.quick
    added = partial(in_new_process, settings, "parallel, float32")
    by_clips = {clips: added(clips, 2 if few else 16)[1] for clips in ((1, 2) if few else (1, 3, 10))}
    _exponent(section, "inference, by clips", by_clips)
    by_frames = {length: added(1 if few else 4, length)[1] for length in ((2, 4) if few else (4, 12, 40))}
    _exponent(section, "inference, by frames (T)", by_frames)
    return section


def _exponent(section: Section, name: str, costs: dict[int, float]) -> None:
    """Add the exponent of the growth between the smallest and the largest size."""
    first, last = min(costs), max(costs)
    exponent = math.log(max(costs[last], 1e-9) / max(costs[first], 1e-9)) / math.log(last / first)
    section.figure(f"{name}, {first:g} to {last:g}: exponent", exponent, "", aim=Aim("≤", LINEAR))


def _memory(settings: Settings) -> Section:
    """The figures are the memory that a call adds to a process that already has networks and frames in memory."""
    count, length = (2, 4) if settings.quick else (8, 16)
    section = Section(f"Peak memory of inference, {count} clips of {length} frames", _memory.__doc__ or "")
    executions = workload.executions(settings, workload.classifier(settings))
    for name in ("step by step, float32", *(f"parallel, {name}" for name in executions)):
        before, added, device = in_new_process(settings, name, count, length)
        section.figure(f"{name}: host", added, "MB", over=f"{before:.0f} MB before it")
        if device:
            section.figure(f"{name}: device", device, "MB")
    return section


def in_new_process(settings: Settings, name: str, count: int, length: int) -> tuple[float, float, float]:
    """Return three numbers in MB: the memory of a process before inference, the additional memory at the peak, and the peak on the GPU."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_run, settings, name, count, length).result()


def _run(settings: Settings, name: str, count: int, length: int) -> tuple[float, float, float]:
    workload.prepare(settings)
    classifier, policy = workload.classifier(settings), workload.policy(settings)
    frames = workload.frames(settings, count, length, classifier)
    act: Callable[..., object] = workload.step_by_step
    if name.startswith("parallel, "):
        how = workload.executions(settings, classifier)[name.removeprefix("parallel, ")]
        act, classifier = infer, with_execution(classifier, how)
    if STATUS.exists():  # on Linux, a process inherits the peak of the process that it was forked from
        Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    act(classifier, policy, frames)
    return before, _peak() - before, torch.cuda.max_memory_allocated() / 1e6 if classifier.device.type == "cuda" else 0.0


def _peak() -> float:
    """Return the peak memory of this process in MB."""
    if STATUS.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())[1]) / 1e3  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


if __name__ == "__main__":
    main("growth")
