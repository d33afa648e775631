"""Speed of environment steps.

The time of a step is compared with the time of the network calls that the step needs. For the demo videos, the benchmark also measures
steps per second, and compares them with those of the library ap_gym.
"""

import importlib
from collections.abc import Iterator, Mapping
from itertools import cycle
from typing import Any

import numpy as np
import torch

from adafocus_env.build import DEMO_FRAMES, choose_device
from adafocus_env.clips.store import ClipSource
from adafocus_env.env import AdaFocusEnv
from adafocus_env.features.live import Features
from adafocus_env.features.memory_bank import MemoryBank
from adafocus_env.sb3_env import AdaFocusVecEnv
from adafocus_env.vector_env import AdaFocusVectorEnv
from benchmarks import workload
from benchmarks.command import Settings, main
from benchmarks.results import Act, Aim, Section, compare, interleaved, repeated
from classifiers import checkpoint
from classifiers.classifier import Classifier

STEPS = 4  # per episode at full size
PATCHES = 2  # per step: the chosen patch, and a random patch for the reward's baseline
EPISODES = 5  # per environment in a call of a timed function, on the demo
AIMS = {1: 2_000, 16: 12_000, 64: 25_000, 256: 30_000}  # steps per second on the demo, by the number of environments
LONGEST = 2.5  # aimed time of a step of 64 environments, in units of the time of the bare head
OTHER = "CircleSquare-v0"  # the only environment of ap_gym that renders its images; others download them
OTHER_STEPS = 16  # per episode


def measure(settings: Settings) -> Iterator[Section]:
    """Yield all sections."""
    yield _live(settings)
    yield _warm(settings)
    yield _apis(settings)
    network = checkpoint.load("demo", choose_device(settings.device))
    bank = workload.bank_of(network, workload.demo_clips(settings, "val", DEMO_FRAMES))
    yield _rates(settings, bank, "k = 1", {"reference": {}}, aims=not settings.quick)
    tensors = {f"{name}, torch": {"observation": name, "output": "torch"} for name in ("reference", "map", "vector", "dict")}
    yield _rates(settings, bank, "k = 1, tensors out", tensors)
    exact = {name: {"observation": name, "baseline": "all"} for name in ("reference", "map")}
    yield _rates(settings, bank, "all cells", exact, rows=1 + workload.GRID**2)
    yield of_ap_gym(settings)


def _live(settings: Settings) -> Section:
    numbers = (1, 4) if settings.quick else (1, 8, 64)
    clips = workload.clips(settings, numbers[-1], STEPS)
    pairs = {
        (f"step, {name}, N = {number}", f"focuser, {name}, {PATCHES * number} patches"): (
            stepping(number, network, clips, bank=False), workload.bare_backbone(network, "focuser", PATCHES * number),
            Aim("≤", 1.1) if number == 64 else None,
        )
        for name, network in workload.plain_and_fastest(settings).items()
        for number in numbers
    }  # fmt: skip
    note = "Glances are cached; the reward `random` needs two patches per clip."
    return compare("Environment step, live", note, pairs, settings.rounds)


def _warm(settings: Settings) -> Section:
    """Measure steps with all features in the bank, which run only the head."""
    numbers, repeats = ((1, 4), 1) if settings.quick else ((1, 8, 64), 20)
    bank = workload.warm_bank(settings, numbers[-1], STEPS)
    pairs = {
        (f"step, N = {number}", f"head, {PATCHES * number} rows"): (
            repeated(repeats, stepping(number, bank.classifier, bank.clips, bank=bank)),
            repeated(repeats, workload.bare_head(bank.classifier, PATCHES * number)),
            Aim("≤", 1.25) if number == 64 else None,
        )
        for number in numbers
    }
    return compare("Environment step, bank warm, at full size", f"Each time is that of {repeats} steps.", pairs, settings.rounds)


def _apis(settings: Settings) -> Section:
    """Measure the same step in every API of the environment, with a full bank, to show the overhead of each API."""
    number, repeats = (4, 1) if settings.quick else (64, 20)
    bank = workload.warm_bank(settings, number, STEPS)
    network, clips = bank.classifier, bank.clips
    vector, sb3 = environment(number, network, clips, bank), AdaFocusVecEnv(environment(number, network, clips, bank))
    single, actions = AdaFocusEnv(network, clips, observation="reference", bank=bank), np.zeros(number, np.int64)
    for env in (vector, sb3):
        env.reset()
    single.reset(seed=0)
    acts: dict[str, Act] = {
        "AdaFocusVectorEnv": lambda: vector.step(actions),
        "AdaFocusVecEnv": lambda: sb3.step(actions),
        "AdaFocusEnv, N = 1": lambda: single.step(0)[2] and single.reset(),
        "AdaFocusVectorEnv, N = 1": stepping(1, network, clips, bank=bank),
    }
    note = f"Each time is that of {repeats} steps; an episode has {STEPS} steps."
    times = interleaved({name: repeated(repeats, act) for name, act in acts.items()}, settings.rounds)
    section = Section(f"APIs, bank warm, N = {number}", note, times)
    return section.ratio("AdaFocusVecEnv", "AdaFocusVectorEnv").ratio("AdaFocusEnv, N = 1", "AdaFocusVectorEnv, N = 1")


def _rates(
    settings: Settings, bank: MemoryBank, what: str, variants: Mapping[str, Mapping[str, Any]], *, rows: int = PATCHES, aims: bool = False
) -> Section:
    """Measure the rates of all ``variants`` of environments. Divide each rate by the rate of the bare head, which processes ``rows`` rows
    per clip."""
    numbers, steps = (1, 4) if settings.quick else tuple(AIMS), EPISODES * DEMO_FRAMES
    acts: dict[str, Act] = {}
    for number in numbers:
        acts |= {f"{name}, N = {number}": repeated(EPISODES, episode(bank, number, **changes)) for name, changes in variants.items()}
        acts[f"head, {rows * number} rows"] = repeated(steps, workload.bare_head(bank.classifier, rows * number))
    note = f"Reward `random`; mode SAME_STEP, {EPISODES} episodes of {DEMO_FRAMES} steps; a share is that of the bare head's rate."
    section = Section(f"Steps per second, demo, bank warm, {what}", note, interleaved(acts, settings.rounds))
    for number in numbers:
        for name in variants:
            step, head = f"{name}, N = {number}", f"head, {rows * number} rows"
            section.rate(step, steps * number, "steps/s", aim=Aim("≥", AIMS[number]) if aims else None)
            section.ratio(head, step, name=f"{step}: share", over=head)
            if aims and number == 64:
                section.ratio(step, head, name=f"{step}: time of a step", aim=Aim("≤", LONGEST))
    return section


def of_ap_gym(settings: Settings) -> Section:
    """Measure the rates of ap_gym. If ap_gym cannot be imported, the section has no results."""
    section = Section(f"Steps per second, ap_gym's {OTHER}")
    try:
        ap_gym: Any = importlib.import_module("ap_gym")
    except ImportError as problem:
        section.note = f"Left out: {problem}; pip install ap_gym aiohttp."
        return section
    section.note = f"Version {ap_gym.__version__}, images of 28×28 pixels, its vector environment; calls that only reset do not count."
    numbers = (1, 4) if settings.quick else tuple(AIMS)
    section.times = interleaved({f"ap_gym, N = {number}": _ap_gym_episode(ap_gym, number) for number in numbers}, settings.rounds)
    for number in numbers:
        section.rate(f"ap_gym, N = {number}", OTHER_STEPS * number, "steps/s")
    return section


def _ap_gym_episode(ap_gym: Any, number: int) -> Act:
    """Return a function that runs an episode of N environments with random actions. The function also runs the step that begins the next
    episode."""
    env = ap_gym.make_vec(OTHER, number)
    env.reset(seed=0)
    env.action_space.seed(0)
    actions = cycle([env.action_space.sample() for _ in range(OTHER_STEPS)])
    return repeated(OTHER_STEPS + 1, lambda: env.step(next(actions)))


def environment(number: int, network: Classifier, clips: ClipSource, bank: Features | bool) -> AdaFocusVectorEnv:
    """Return a vector environment in the mode SAME_STEP. Each episode plays another clip."""
    return AdaFocusVectorEnv(
        number, network, clips, observation="reference", bank=bank, autoreset_mode="SAME_STEP", clip_order="epoch", grid=workload.GRID
    )


def stepping(number: int, network: Classifier, clips: ClipSource, bank: Features | bool) -> Act:
    """Return a function that takes a step with random actions on N clips, whose glances are cached."""
    env, rng = environment(number, network, clips, bank), np.random.default_rng(0)
    env.reset(seed=0)
    env.dynamics.features.glance_vectors(np.arange(len(clips)), np.zeros(len(clips), np.int64))
    return lambda: env.step(rng.integers(workload.GRID**2, size=number))


def episode(bank: MemoryBank, number: int, **arguments: Any) -> Act:
    """Return a function that runs an episode of N environments with random actions, on the device of the environment's results."""
    defaults = {"observation": "reference", "autoreset_mode": "SAME_STEP", "grid": workload.GRID}
    env = AdaFocusVectorEnv(number, bank.classifier, bank.clips, bank=bank, **{**defaults, **arguments})
    env.reset(seed=0)
    sampled = np.random.default_rng(0).integers(workload.GRID**2, size=(bank.num_steps, number))
    actions = cycle(torch.from_numpy(sampled).to(bank.classifier.device).unbind() if env.output == "torch" else sampled)
    return repeated(bank.num_steps, lambda: env.step(next(actions)))


if __name__ == "__main__":
    main("steps")
