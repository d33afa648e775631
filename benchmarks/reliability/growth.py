"""Long runs: whether memory, open files and processes grow with environment steps and predicted videos."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import workload
from benchmarks.command import Settings
from benchmarks.prediction import command_on, copied_videos, watch
from benchmarks.results import Aim, Section
from benchmarks.steps import environment
from benchmarks.usage import Usage, children_of, handle_growth, memory_growth, still_running, usage_of

ENVS, CLIPS, LENGTH = 64, 64, 4
START = 0.1  # share of the work after which nothing should grow
TINY = Settings(quick=True, rounds=1, threads=0, device="cpu", precision="float32", compile=False, allocator="default")


def of_steps(count: int) -> Section:
    """A vector environment with 64 environments takes random actions on 64 clips, whose features are in the bank."""
    others = children_of(os.getpid())  # of other sections
    bank = workload.warm_bank(TINY, CLIPS, LENGTH)
    env = environment(ENVS, bank.classifier, bank.clips, bank)
    env.reset(seed=0)
    env.action_space.seed(0)
    every = max(1, count // ENVS // 200)
    used: list[Usage] = []
    for number in range(-(-count // ENVS)):
        env.step(env.action_space.sample())
        if number % every == 0 or (number + 1) * ENVS >= count:
            used += filter(None, [usage_of(os.getpid(), (number + 1) * ENVS)])
    env.close()
    return _section(f"{count:,} environment steps", of_steps, used, others)


def of_predictions(count: int, folder: Path) -> Section:
    """`python -m agents.predict` on copies of 20 demo videos, with the demo classifier and its policy."""
    used = watch([*command_on(copied_videos(folder / "videos", count)), "device=cpu", f"out={folder / 'out'}"], folder / "out")
    return _section(f"{count:,} predicted videos", of_predictions, used)


def _section(title: str, measured: Callable[..., Section], used: Sequence[Usage], others: Sequence[int] = ()) -> Section:
    section = Section(title, measured.__doc__ or "")
    processes = sorted({child for usage in used for child in usage.children} - {*others})
    section.figure(f"memory growth after the first {START:.0%}", memory_growth(used, START), "MB", aim=Aim("≤", 50))
    section.figure("memory at its peak", max(usage.memory for usage in used), "MB")
    section.figure("open files: lowest number in the last tenth over that in the second tenth", handle_growth(used), "", aim=Aim("≤", 0))
    section.figure("processes at the same time, at most", max(len(usage.children) for usage in used), "")
    return section.figure("processes that are left", len(still_running(processes)), "", aim=Aim("≤", 0))
