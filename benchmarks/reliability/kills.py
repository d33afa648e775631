"""Kill commands by SIGKILL at moments from a seed, start them again, and compare the results with those of uninterrupted runs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.reliability.children import MARK, Trap, finished, started
from benchmarks.reliability.commands import KINDS, Kind, difference, make_videos
from benchmarks.results import Aim, Section

CHECKPOINT = r"/checkpoints/"
"""Pattern of the files that count as checkpoints."""

KILLED = -9  # exit status
ATTEMPTS = 4  # of a kill; a run that ends before the kill is started again, and killed earlier


@dataclass(frozen=True)
class Moment:
    """When a command is killed.

    Attributes:
        kind: A name in `KINDS`.
        fraction: Share of the seconds, or of the writes of checkpoints, of an uninterrupted run.
        share: The share of the checkpoint's temporary file that is written at the time of the kill; None: a kill at any time.
        cold: Whether the killed run starts with an empty cache, and therefore also decodes the videos and trains a classifier.
    """

    kind: str
    fraction: float
    share: float | None
    cold: bool


@dataclass
class Whole:
    """An uninterrupted run: its outcome, its seconds and the number of checkpoints that it wrote."""

    outcome: tuple[object, object]
    seconds: float
    writes: int


def moments(count: int, seed: int) -> list[Moment]:
    """Return the moments for a seed. The commands take turns. The first moments do not depend on ``count``."""
    rng, found = np.random.default_rng(seed), []
    for number in range(count):
        name = list(KINDS)[number % len(KINDS)]
        fraction, share = rng.uniform(0.02, 0.98, size=2).tolist()
        inside = number % 3 == 1 and not KINDS[name].predicts
        found.append(Moment(name, fraction, share if inside else None, cold=number % 5 == 0 and not inside))
    return found


def measure(count: int, seed: int, folder: Path, console: Console) -> Section:
    """Each command is killed at a moment that the seed determines, started again, and compared with an uninterrupted run.

    ``metrics.jsonl`` must be the same byte for byte, and ``result.json`` except for seconds; of `agents.predict`, all predictions.
    """
    videos, cache = make_videos(folder / "videos"), folder / "cache"
    plan = moments(count, seed)
    status, printed = finished(KINDS["train_ppo"].on(videos, folder / "warm", cache))  # fills the cache
    assert status == 0, printed
    wholes = {name: _whole(KINDS[name], videos, folder / f"whole-{number}", cache) for number, name in enumerate(_names(plan))}
    faults = []
    for number, moment in enumerate(plan):
        problem = _killed(moment, wholes[moment.kind], videos, folder / f"killed-{number}", cache)
        where = "in a checkpoint write" if moment.share is not None else f"at {moment.fraction:.0%} of its time"
        console.print(f"kill {number + 1}: {moment.kind} {where}{', empty cache' * moment.cold}: {problem or 'identical'}", highlight=False)
        faults.append(problem)
    return _section(plan, faults, seed)


def _names(plan: list[Moment]) -> list[str]:
    return list(dict.fromkeys(moment.kind for moment in plan))


def _section(plan: list[Moment], faults: list[str], seed: int) -> Section:
    section = Section(f"{len(plan)} kills", f"{' '.join((measure.__doc__ or '').split())} Seed {seed}.")
    inside = sum(moment.share is not None for moment in plan)
    section.figure("kills with an identical result", faults.count(""), f"of {len(plan)}", aim=Aim("≥", len(plan)))
    section.figure("kills inside the write of a checkpoint", inside, f"of {len(plan)}", aim=Aim("≥", min(10, len(plan) // 5)))
    for name in _names(plan):
        found = [fault for moment, fault in zip(plan, faults, strict=True) if moment.kind == name]
        section.figure(f"{name}: identical", found.count(""), f"of {len(found)}", aim=Aim("≥", len(found)))
    section.failure = "\n".join(f"{moment}: {fault}" for moment, fault in zip(plan, faults, strict=True) if fault)
    return section


def _whole(kind: Kind, videos: Path, folder: Path, cache: Path) -> Whole:
    began = time.monotonic()
    status, printed = finished(kind.on(videos, folder, cache), Trap(CHECKPOINT, event="os.rename", act="mark"))
    assert status == 0, printed
    return Whole(kind.outcome(folder), time.monotonic() - began, printed.count(MARK))


def _killed(moment: Moment, whole: Whole, videos: Path, folder: Path, shared: Path) -> str:
    """Kill a command and start it again. Return what differs from the uninterrupted run, or an empty string."""
    kind = KINDS[moment.kind]
    cache = folder.with_name(f"{folder.name}-cache") if moment.cold else shared
    for fraction in _earlier(moment.fraction):
        shutil.rmtree(folder, ignore_errors=True)
        command = kind.on(videos, folder, cache)
        if moment.share is not None:
            number = 1 + int(fraction * whole.writes)
            status, printed = finished(command, Trap(CHECKPOINT, number, "os.rename", "kill", moment.share))
        else:
            with started(command) as child:
                child.process.join(fraction * whole.seconds)
                status = child.kill()
            printed = child.output
        if status == KILLED:
            break
    else:
        return f"it could not be killed: it ended with status {status} before: {printed[-1000:]}"
    status, printed = finished(command)
    if status != 0:
        return f"the second start ended with status {status}: {printed[-2000:]}"
    left = [str(path.relative_to(folder)) for path in folder.rglob("*.part")]
    differing = difference(whole.outcome, kind.outcome(folder))
    return f"not equal: {differing}" if differing else f"temporary files stay: {left}" if left else ""


def _earlier(fraction: float) -> Iterator[float]:
    return (fraction / 2**attempt for attempt in range(ATTEMPTS))
