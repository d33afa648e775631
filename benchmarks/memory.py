"""Peak memory of inference, each scheme in a process of its own; of the device too where it is a GPU."""

from __future__ import annotations

import multiprocessing
import re
import resource
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from agents.evaluation.inference import infer
from benchmarks import workload
from benchmarks.command import Settings, main
from benchmarks.released import step_by_step
from benchmarks.sections import Section
from classifiers.optimize import with_execution


def measure(settings: Settings) -> Iterator[Section]:
    """What a call adds to the process that holds networks and frames already."""
    count, length = (2, 4) if settings.quick else (8, 16)
    section = Section(f"Peak memory of inference, {count} clips of {length} frames", measure.__doc__ or "")
    ways = workload.executions(settings, workload.classifier(settings))
    for name in ("step by step, float32", *(f"parallel, {name}" for name in ways)):
        before, host, device = _in_process_of_its_own(settings, name, count, length)
        section.figure(f"{name}: host", host - before, "MB", over=f"{before:.0f} MB before it")
        if device:
            section.figure(f"{name}: device", device, "MB")
    yield section


def added_by_inference(settings: Settings, clips: int, length: int) -> float:
    """MB that inference adds, in float32, to a process that holds networks and frames."""
    before, host, _ = _in_process_of_its_own(settings, "parallel, float32", clips, length)
    return host - before


def _in_process_of_its_own(settings: Settings, name: str, count: int, length: int) -> tuple[float, float, float]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(theirs, settings, name, count, length))
    process.start()
    theirs.close()
    found = ours.recv()
    process.join()
    return found


def _run(pipe: Connection, settings: Settings, name: str, count: int, length: int) -> None:
    workload.prepare(settings)
    classifier, policy = workload.classifier(settings), workload.policy(settings)
    frames = workload.frames(settings, count, length, classifier)
    act: Callable[..., object] = step_by_step
    if name.startswith("parallel, "):
        how = workload.executions(settings, classifier)[name.removeprefix("parallel, ")]
        act, classifier = infer, with_execution(classifier, how)
    _forget_peak()
    before = _peak()
    act(classifier, policy, frames)
    device = torch.cuda.max_memory_allocated() / 1e6 if classifier.device.type == "cuda" else 0.0
    pipe.send((before, _peak(), device))


def _peak() -> float:
    """The most memory that this process has held since `_forget_peak`, in MB."""
    if _STATUS.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())[1]) / 1e3  # type: ignore[index]  # always there
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def _forget_peak() -> None:
    """Has Linux count anew: a process begins with the peak of the one that it was started from."""
    if _STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")


_STATUS = Path("/proc/self/status")


if __name__ == "__main__":
    main(["memory"])
