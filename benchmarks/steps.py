"""Steps a second of the vector environment with random actions on the demo, beside its head's bare steps and beside ap_gym."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import numpy as np

from adafocus_env.build import DEMO_FRAMES, choose_device
from adafocus_env.vector_env import AdaFocusVectorEnv
from benchmarks import workload
from benchmarks.clock import interleaved
from benchmarks.command import Settings, main
from benchmarks.env_steps import PATCHES, bank_of, bare_head, repeated
from benchmarks.sections import Section, at_least
from classifiers import checkpoint

EPISODES = 5  # of every row in an act
AIMS = {1: 2_000, 16: 12_000, 64: 25_000, 256: 30_000}  # steps a second
SHARE = 0.6  # of the head's rate, from 64 rows on
OTHER = "CircleSquare-v0"  # ap_gym's only kind of images that it draws itself: the others are downloaded
OTHER_STEPS = 16  # of its episodes

Variants = dict[str, dict[str, Any]]


def measure(settings: Settings) -> Iterator[Section]:
    """The figures that are aimed at, other observations, tensors, the exact baseline, and ap_gym."""
    demo = Demo(settings)
    yield _section(settings, demo, "k = 1", {"reference": {}}, aims=True)
    others: Variants = {name: {"observation": name} for name in ("map", "vector", "dict")}
    yield _section(settings, demo, "k = 1, other observations", others)
    tensors: Variants = {f"{name}, torch": {"observation": name, "output": "torch"} for name in ("reference", "map", "vector", "dict")}
    yield _section(settings, demo, "k = 1, tensors out", tensors)
    exact: Variants = {name: {"observation": name, "baseline": "all"} for name in ("reference", "map")}
    yield _section(settings, demo, "all cells", exact, rows=1 + workload.GRID**2)
    yield of_ap_gym(settings)


class Demo:
    """Vector environments and bare heads on the demo's clips, all features in one bank."""

    def __init__(self, settings: Settings) -> None:
        self.network = checkpoint.load("demo", choose_device(settings.device))
        self.clips = workload.demo_clips(settings, "val", DEMO_FRAMES)
        self.bank = bank_of(self.network, self.clips)

    def stepping(self, number: int, **changes: Any) -> Callable[[], None]:
        """An act: `EPISODES` of N environments with random actions, which were drawn before."""
        arguments = {"observation": "reference", "autoreset_mode": "SAME_STEP", "grid": workload.GRID, **changes}
        env = AdaFocusVectorEnv(number, self.network, self.clips, bank=self.bank, **arguments)
        env.reset(seed=0)
        actions = cycle(np.random.default_rng(0).integers(workload.GRID**2, size=(DEMO_FRAMES, number)))
        return repeated(EPISODES * DEMO_FRAMES, lambda: env.step(next(actions)))

    def head(self, rows: int) -> Callable[[], None]:
        """An act: as many bare steps of the head."""
        return repeated(EPISODES * DEMO_FRAMES, bare_head(self.network, rows))


def _section(settings: Settings, demo: Demo, what: str, variants: Variants, *, rows: int = PATCHES, aims: bool = False) -> Section:
    """Rates of all ``variants``, and those in shares of the bare head's, which takes ``rows`` rows a clip."""
    numbers = (1, 4) if settings.quick else tuple(AIMS)
    acts: dict[str, Callable[[], object]] = {}
    for number in numbers:
        acts |= {f"{name}, N = {number}": demo.stepping(number, **changes) for name, changes in variants.items()}
        acts[f"head, {rows * number} rows"] = demo.head(rows * number)
    note = f"Reward `random`; mode SAME_STEP, {EPISODES} episodes of {DEMO_FRAMES} steps an act; a share is that of the bare head's rate."
    section = Section(f"Steps a second, demo, bank warm, {what}", note)
    section.times = interleaved(acts, 1 if settings.quick else settings.rounds)
    for number in numbers:
        for name in variants:
            aimed = aims and not settings.quick
            step, head, count = f"{name}, N = {number}", f"head, {rows * number} rows", EPISODES * DEMO_FRAMES * number
            section.rate(step, count, "steps/s", aim=at_least(AIMS[number]) if aimed else None)
            section.ratio(head, step, name=f"{step}: share", over=head, aim=at_least(SHARE) if aimed and number >= 64 else None)
    return section


def of_ap_gym(settings: Settings) -> Section:
    """The same numbers of environments of ap_gym; no figures where it cannot be imported."""
    section = Section(f"Steps a second, ap_gym's {OTHER}")
    try:
        ap_gym: Any = importlib.import_module("ap_gym")
    except ImportError as problem:
        section.note = f"Left out: {problem}; pip install ap_gym aiohttp."
        return section
    section.note = f"Version {ap_gym.__version__}, images of 28×28 pixels, its own vector environment; calls that only reset do not count."
    numbers = (1, 4) if settings.quick else tuple(AIMS)
    acts = {f"ap_gym, N = {number}": _ap_gym_episode(ap_gym, number) for number in numbers}
    section.times = interleaved(acts, 1 if settings.quick else settings.rounds)
    for number in numbers:
        section.rate(f"ap_gym, N = {number}", OTHER_STEPS * number, "steps/s")
    return section


def _ap_gym_episode(ap_gym: Any, number: int) -> Callable[[], None]:
    """An act: an episode of N environments with random actions, which were drawn before, and the step that begins the next one."""
    env = ap_gym.make_vec(OTHER, number)
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = cycle([env.action_space.sample() for _ in range(OTHER_STEPS)])
    return repeated(OTHER_STEPS + 1, lambda: env.step(next(actions)))


if __name__ == "__main__":
    main(["steps"])
