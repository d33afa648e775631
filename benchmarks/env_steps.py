"""Steps of the environment against the networks' calls that they cannot do without."""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
from benchmarks.bare import bare_focus
from benchmarks.clock import interleaved
from benchmarks.command import Settings, main
from benchmarks.sections import Section, at_most
from classifiers import checkpoint
from classifiers.classifier import Classifier

STEPS = 4  # of an episode at full size, where beginning one costs next to nothing; on the demo they are as many as usual
PATCHES = 2  # a step looks at the one that was chosen, and at a random one that the reward compares with


def measure(settings: Settings) -> Iterator[Section]:
    """All sections."""
    yield _live(settings)
    yield from _warm(settings)
    yield _cold(settings)
    yield _faces(settings)


def _live(settings: Settings) -> Section:
    """Glances are there already, patches are looked at."""
    plain = workload.classifier(settings)
    numbers = (1, 4) if settings.quick else (1, 8, 64)
    clips = workload.clips(settings, numbers[-1], STEPS)
    networks = dict([("float32", plain), workload.fastest_of(settings, plain)])
    acts: dict[str, Callable[[], object]] = {}
    for name, network in networks.items():
        for number in numbers:
            acts[f"step, {name}, N = {number}"] = stepping(number, network, clips, bank=False)
            acts[f"focuser, {name}, {PATCHES * number} patches"] = bare_focus(network, PATCHES * number)
    section = Section("Environment step, live", "Glances are kept; the reward `random` looks at two patches a clip.")
    section.times = interleaved(acts, 1 if settings.quick else settings.rounds)
    for name in networks:
        for number in numbers:
            aim = at_most(1.1) if number == 64 else None
            section.ratio(f"step, {name}, N = {number}", f"focuser, {name}, {PATCHES * number} patches", aim=aim)
    return section


def _warm(settings: Settings) -> Iterator[Section]:
    """All features are in the bank; what is left is the head."""
    numbers = (1, 4) if settings.quick else (1, 8, 64)
    flat, shipped = workload.flat_classifier(settings), checkpoint.load("demo", choose_device(settings.device))
    yield _warm_steps(settings, "at full size", flat, workload.clips(settings, numbers[-1], STEPS), numbers, 1.25)
    yield _warm_steps(settings, "on the demo", shipped, workload.demo_clips(settings, "val", DEMO_FRAMES), numbers, 1.6)


def _warm_steps(
    settings: Settings, where: str, network: Classifier, clips: ClipSource, numbers: tuple[int, ...], limit: float
) -> Section:
    bank, repeats = bank_of(network, clips), 1 if settings.quick else 20
    acts: dict[str, Callable[[], object]] = {}
    for number in numbers:
        acts[f"step, N = {number}"] = repeated(repeats, stepping(number, network, clips, bank=bank))
        acts[f"head, {PATCHES * number} rows"] = repeated(repeats, bare_head(network, PATCHES * number))
    section = Section(f"Environment step, bank warm, {where}", f"Each time is that of {repeats} steps.")
    section.times = interleaved(acts, 1 if settings.quick else settings.rounds)
    for number in numbers:
        section.ratio(f"step, N = {number}", f"head, {PATCHES * number} rows", aim=at_most(limit) if number == 64 else None)
    return section


def _cold(settings: Settings) -> Section:
    """An empty bank: the first step in which all clips of a store are looked at."""
    _, network = workload.fastest_of(settings, workload.classifier(settings))
    number = 2
    clips = workload.clips(settings, number, 1, train=False)
    note = f"N = {number}: every step is the first one in a bank of its own, whose glances are there."
    section = Section("Environment step, bank cold", note)
    cells, action = workload.GRID**2, workload.grid_action(network)

    def fresh() -> Callable[[], object]:
        bank = MemoryBank(network, clips, action)
        bank.glance_vectors(np.arange(number), np.zeros(number, np.int64))
        return stepping(number, network, clips, bank=bank)

    rounds = 1 if settings.quick else settings.rounds
    steps = iter([fresh() for _ in range(rounds + 1)])
    acts = {"step": lambda: next(steps)(), "focuser, all cells": bare_focus(network, number * cells)}
    section.times = interleaved(acts, rounds)
    return section.ratio("step", "focuser, all cells")


def _faces(settings: Settings) -> Section:
    """The same step of all faces, bank warm: what a face adds."""
    network, number, repeats = workload.flat_classifier(settings), 4 if settings.quick else 64, 1 if settings.quick else 20
    clips = workload.clips(settings, number, STEPS)
    bank = bank_of(network, clips)
    vector, rows = environment(number, network, clips, bank), AdaFocusVecEnv(environment(number, network, clips, bank))
    actions = np.zeros(number, np.int64)
    for env in (vector, rows):
        env.reset()
    acts: dict[str, Callable[[], object]] = {
        "dynamics": repeated(repeats, dynamics_step(environment(number, network, clips, bank))),
        "AdaFocusVectorEnv": repeated(repeats, lambda: vector.step(actions)),
        "AdaFocusVecEnv": repeated(repeats, lambda: rows.step(actions)),
    }
    note = f"Each time is that of {repeats} steps; an episode of {STEPS} steps ends every {STEPS}."
    section = Section(f"Faces, bank warm, N = {number}", note)
    single = AdaFocusEnv(network, clips, observation="reference", bank=bank)
    acts["AdaFocusEnv, N = 1"] = repeated(repeats, single_step(single))
    acts["AdaFocusVectorEnv, N = 1"] = repeated(repeats, stepping(1, network, clips, bank=bank))
    section.times = interleaved(acts, 1 if settings.quick else settings.rounds)
    section.ratio("AdaFocusVectorEnv", "dynamics").ratio("AdaFocusVecEnv", "AdaFocusVectorEnv")
    return section.ratio("AdaFocusEnv, N = 1", "AdaFocusVectorEnv, N = 1")


def environment(number: int, network: Classifier, clips: ClipSource, bank: Features | bool) -> AdaFocusVectorEnv:
    """A vector environment whose every episode begins at once, each with a clip of its own."""
    return AdaFocusVectorEnv(
        number, network, clips, observation="reference", bank=bank, autoreset_mode="SAME_STEP", clip_order="epoch", grid=workload.GRID
    )


def stepping(number: int, network: Classifier, clips: ClipSource, bank: Features | bool) -> Callable[[], object]:
    """An act: a step of N clips with random actions. All glances are there when it begins."""
    env, rng = environment(number, network, clips, bank), np.random.default_rng(0)
    env.reset(seed=0)
    features = env.dynamics.features
    features.glance_vectors(np.arange(len(clips)), np.zeros(len(clips), np.int64))
    return lambda: env.step(rng.integers(workload.GRID**2, size=number))


def single_step(env: AdaFocusEnv) -> Callable[[], object]:
    """An act: a step of the single environment, and a reset where an episode ended."""
    env.reset(seed=0)

    def act() -> None:
        if env.step(0)[2]:
            env.reset()

    return act


def dynamics_step(env: AdaFocusVectorEnv) -> Callable[[], object]:
    """An act: a step of the dynamics alone, restarted where the episodes ended."""
    dynamics = env.dynamics
    env.reset(seed=0)
    chosen, drawn = dynamics.clip.copy(), dynamics.baseline.copy()
    actions = np.zeros(dynamics.num_clips, np.int64)

    def act() -> None:
        if dynamics.step(actions).terminated.all():
            dynamics.restart(chosen, drawn)

    return act


def bare_head(network: Classifier, rows: int) -> Callable[[], object]:
    """An act: one step of the head for so many rows."""
    device = network.device
    glances = torch.rand(rows, 1, network.glancer.vector_size, device=device)
    focus_vectors, state = torch.rand(rows, 1, network.focuser.vector_size, device=device), network.initial_state(rows)

    @torch.no_grad()
    def act() -> None:
        network.classify(glances, focus_vectors, state)

    return act


def bank_of(network: Classifier, clips: ClipSource) -> MemoryBank:
    """A full bank."""
    bank = MemoryBank(network, clips, workload.grid_action(network))
    every, steps = np.arange(len(clips))[:, None], np.arange(clips.num_frames)[None]
    bank.glance_vectors(every, steps)
    for clip in every:
        bank.focus_vectors(clip[:, None], steps, np.zeros((1, clips.num_frames), np.int64))
    return bank


def repeated(times: int, act: Callable[[], object]) -> Callable[[], None]:
    """An act that is so many of them: for those that take less than a clock's unrest."""

    def acts() -> None:
        for _ in range(times):
            act()

    return acts


if __name__ == "__main__":
    main(["env_steps"])
