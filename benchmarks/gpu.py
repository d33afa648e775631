"""A GPU in six minutes: its matrix peak, the CUDA tests, and the rates of all that runs on it.

    python -m benchmarks.gpu            # on one GPU; writes its table beside the others
    python -m benchmarks.gpu --quick    # the same code at tiny sizes, on a CPU too

Networks have random weights and clips random pixels, so that no files are needed. A section that fails shows its traceback, the other
sections are still measured, and the command exits with status 1.
"""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from adafocus_env.features.memory_bank import MemoryBank
from adafocus_env.settings import NumberFormat
from adafocus_env.vector_env import AdaFocusVectorEnv
from agents.config.settings import PPOConfig, SupervisedConfig
from agents.evaluation.inference import infer, policy_flops
from agents.supervised.stages import train_on_random_patches
from benchmarks import workload
from benchmarks.bare import bare_head, step_by_step
from benchmarks.card import Card, matrix_peak
from benchmarks.command import Settings, main
from benchmarks.crossings import crossings
from benchmarks.random_clips import RandomClips
from benchmarks.results import Aim, Section
from benchmarks.steps import PATCHES
from benchmarks.timing import Act, Time, repeated
from benchmarks.training import MINIBATCHES, iterations, learner
from benchmarks.workload import bank_of
from classifiers.classifier import Classifier
from classifiers.errors import InputError
from classifiers.flops import classifier_flops, video_flops
from classifiers.optimize import check_precision, choose_execution, with_execution

ROOT = Path(__file__).parent.parent
TESTS, TESTS_SECONDS = ROOT / "tests" / "adafocus_env" / "test_cuda.py", 120
COMPILING = 90.0  # seconds that must be left for compiled networks, since compiling cannot be stopped
LENGTH = {False: 16, True: 4}  # frames of a clip
EPOCHS = 10**6  # more than are run


def measure(settings: Settings) -> Iterator[Section]:
    """Yield all sections, first the peak that the others are compared with."""
    card = Card(settings)
    if card.device.type != "cuda" and not settings.quick:
        yield Section("GPU", "Left out: there is no GPU here. --quick runs the same at tiny sizes on the CPU.")
        return
    for measurement in MEASUREMENTS:
        yield guarded(measurement, card)


def guarded(measurement: Callable[[Card], Section], card: Card) -> Section:
    """Return the section of a measurement; if it fails, a section with the traceback."""
    try:
        return measurement(card)
    except Exception:  # of any kind: the sections after it may work
        return Section(measurement.__name__, "Failed.", failure=traceback.format_exc())


def cuda_tests(card: Card) -> Section:
    """Run the tests that need a GPU, in another process.

    Raises:
        RuntimeError: some fail.
    """
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-n", "0", "-p", "no:cacheprovider", "-r", "s", "--tb=short", str(TESTS)]
    done = subprocess.run(command, cwd=ROOT, timeout=TESTS_SECONDS, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    counts = {outcome: int(count) for count, outcome in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", done.stdout)}
    if done.returncode or not counts:
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stdout[-6000:]}")
    section = Section("CUDA tests", f"`{' '.join(command[1:-1])} tests/{TESTS.name}`")
    for outcome, count in counts.items():
        section.figure(outcome, count, "tests")
    return section


def bank_filling(card: Card) -> Section:
    """Fill a new bank with the glances of all frames and the focus vectors of all their cells."""
    count, length = (1, 2) if card.settings.quick else (8, LENGTH[False])
    plain = workload.classifier(card.settings)
    clips, cost = RandomClips(count, length, plain.architecture.size), classifier_flops(plain)
    multiply_adds = count * length * (cost.glance + workload.GRID**2 * cost.focus)
    note = f"{count} clips of {length} frames, {workload.GRID**2} cells per frame; frames come from the host's memory."
    section = Section("Bank filling", note)
    for precision, network in _networks(card, plain).items():
        section.times[precision] = card.sampled(partial(bank_of, network, clips))
        section.rate(precision, count, "clips/s")
        card.share(section, precision, multiply_adds, precision)
    return section


def stage_1(card: Card) -> Section:
    """Run training steps on random patches."""
    count, length = (2, 2) if card.settings.quick else (32, LENGTH[False])
    plain = workload.classifier(card.settings)
    clips, cost = RandomClips(count, length, plain.architecture.size), classifier_flops(plain)
    note = f"Steps of {count} clips of {length} frames, SGD. Counted: a glance, and a patch three times (forward and backward)."
    section = Section("Stage 1", note)
    for precision in _precisions(card):
        number_format = cast(NumberFormat, precision)
        config = SupervisedConfig(
            EPOCHS, count, "sgd", learning_rate=1e-4, head_learning_rate=1e-4, precision=number_format, channels_last=precision != "float32"
        )
        training = train_on_random_patches(copy.deepcopy(plain), clips, config, seed=0)
        section.times[precision] = card.sampled(partial(next, training))
        section.rate(precision, count, "clips/s")
        card.share(section, precision, count * length * (cost.glance + 3 * cost.focus), precision)
    return section


def ppo(card: Card) -> Section:
    """Run iterations of PPO with all features in the bank."""
    rows, length = (4 if card.settings.quick else 64), LENGTH[card.settings.quick]
    network, template = workload.flat_classifier(card.settings), workload.policy(card.settings)
    bank = bank_of(network, RandomClips(rows, length, network.architecture.size))
    model = learner(bank, PPOConfig(n_steps=length, batch_size=rows // MINIBATCHES * length), rows, template.architecture)
    before, phases = network.fingerprint(), dict[str, list[Time]](collection=[], update=[])
    section = Section("PPO", f"Bank warm, {rows} environments, {length} steps, {model.n_epochs} epochs of {MINIBATCHES} minibatches.")
    section.times["iteration"] = card.sampled(iterations(model, phases))
    section.times |= {name: measured[1:] for name, measured in phases.items()}
    for name in section.times:
        section.rate(name, rows * length, "steps/s")
    if network.fingerprint() != before:
        raise RuntimeError("PPO changed the frozen classifier")
    return section


def inference(card: Card) -> Section:
    """Run inference with all patches in one batch, and frame by frame as the released code does."""
    patches, batches = ((24, 32), (1, 2)) if card.settings.quick else ((96, 128), (1, 64))
    section = Section("Parallel inference", f"Clips of {LENGTH[card.settings.quick]} frames; step by step is the released scheme.")
    for patch in patches:
        plain = workload.classifier(card.settings, patch_size=patch)
        for batch in batches:
            _inference(card, section, _networks(card, plain), f"P = {patch}, batch {batch}", batch)
    return section


def compiled_inference(card: Card) -> Section:
    """Run inference with compiled networks and CUDA graphs, if there is time to compile them."""
    section = Section("Parallel inference, compiled", "Compiled with CUDA graphs, in the low precision, P = 96.")
    if not card.settings.compile or card.settings.quick:
        section.note = "Left out: --no-compile or --quick."
        return section
    networks: dict[str, Classifier] = {}
    for batch in (1, 64):
        if card.left < COMPILING:
            section.note += f" Left out: batch {batch}, since {card.left:.0f} seconds are left and compiling may take {COMPILING:.0f}."
            continue
        if not networks:
            plain = workload.classifier(card.settings)
            networks = {card.settings.precision: with_execution(plain, choose_execution(plain, card.settings.precision, compile=True))}
        _inference(card, section, networks, f"P = 96, batch {batch}", batch, one_by_one=False)
    return section


def env_steps(card: Card) -> Section:
    """Run whole episodes, with the resets at their ends, of environments whose tensors stay on the device."""
    numbers, length = ((2, 4) if card.settings.quick else (64, 256, 1024, 4096)), LENGTH[card.settings.quick]
    network = workload.flat_classifier(card.settings)
    bank = bank_of(network, RandomClips(min(64, numbers[-1]), length, network.architecture.size))
    note = f"Bank warm, random actions, episodes of {length} steps and the resets at their ends, reward `random`."
    section = Section("Environment steps, tensors on the device", note)
    for number in numbers:
        for observation in ("reference", "dict", "map")[: 3 if number <= 1024 else 2]:
            name = f"{observation}, N = {number}"
            section.times[name] = [time * (1 / length) for time in card.sampled(episode(bank, number, observation=observation))]
            section.rate(name, number, "steps/s")
        section.times[f"head, {PATCHES * number} rows"] = card.sampled(bare_head(network, PATCHES * number))
        section.ratio(f"reference, N = {number}", f"head, {PATCHES * number} rows", name=f"reference, N = {number}: a step")
    return section


def host_synchronisations(card: Card) -> Section:
    """Count with the profiler how often a step makes the host wait."""
    number, length = (4 if card.settings.quick else 64), LENGTH[card.settings.quick]
    network = workload.flat_classifier(card.settings)
    bank = bank_of(network, RandomClips(number, length, network.architecture.size))
    note = f"Bank warm, N = {number}; an episode of {length} steps and the reset at its end. See benchmarks/crossings.py."
    section = Section("Host synchronisations of an environment step", note)
    kinds: dict[str, dict[str, Any]] = {
        **{f"{name}, torch": {"observation": name} for name in ("reference", "map", "vector", "dict")},
        "skip, torch": {"observation": "reference_looks", "action": "skip"},
        "reference, numpy": {"output": "numpy"},
    }
    for name, arguments in kinds.items():
        act = episode(bank, number, **arguments)
        act()
        counts = crossings(act)
        aim = Aim("≤", 0) if "output" not in arguments and "action" not in arguments else None
        section.figure(name, sum(counts.values()) / length, "per step", aim=aim)
        for kind, count in counts.items():
            section.figure(f"{name}: {kind}", count / length, "per step")
    return section


MEASUREMENTS: tuple[Callable[[Card], Section], ...] = (
    matrix_peak, host_synchronisations, env_steps, bank_filling, stage_1, ppo, inference, cuda_tests, compiled_inference
)  # fmt: skip
"""The most important ones first, in case time runs out."""


def episode(bank: MemoryBank, number: int, **arguments: Any) -> Act:
    """Return an act: an episode of ``number`` environments with random actions, which are on the device already."""
    defaults = {"observation": "reference", "output": "torch", "autoreset_mode": "SAME_STEP", "clip_order": "epoch", "grid": workload.GRID}
    env = AdaFocusVectorEnv(number, bank.classifier, bank.clips, bank=bank, **{**defaults, **arguments})
    env.reset(seed=0)
    sampled = np.random.default_rng(0).integers(workload.GRID**2, size=(bank.num_steps, number))
    actions = cycle(torch.from_numpy(sampled).to(bank.classifier.device).unbind() if env.output == "torch" else sampled)
    return repeated(bank.num_steps, lambda: env.step(next(actions)))


def _precisions(card: Card) -> list[str]:
    """Return float32, and the low precision if the device supports it."""
    try:
        check_precision(card.settings.precision, card.device)
    except InputError:
        return ["float32"]
    return ["float32", card.settings.precision]


def _networks(card: Card, plain: Classifier) -> dict[str, Classifier]:
    """Return the classifier in float32 and in the low precision with the execution chosen for it, by precision."""
    low = _precisions(card)[1:]
    return {"float32": plain, **{name: with_execution(plain, choose_execution(plain, name)) for name in low}}


def _inference(
    card: Card, section: Section, networks: Mapping[str, Classifier], where: str, batch: int, *, one_by_one: bool = True
) -> None:
    length, policy = LENGTH[card.settings.quick], workload.policy(card.settings)
    frames = workload.frames(card.settings, batch, length, next(iter(networks.values())))
    for precision, network in networks.items():
        multiply_adds = batch * video_flops(network, length, length, policy_step=policy_flops(policy)).total()
        parallel, sequential = f"{where}, {precision}, parallel", f"{where}, {precision}, step by step"
        acts: dict[str, Act] = {parallel: partial(infer, network, policy, frames)}
        if one_by_one:
            acts[sequential] = partial(step_by_step, network, policy, frames)
        for name, act in acts.items():
            section.times[name] = card.sampled(act)
            section.rate(name, batch, "clips/s")
        if one_by_one:
            section.ratio(sequential, parallel, over="parallel")
        card.share(section, parallel, multiply_adds, precision)


if __name__ == "__main__":
    main("gpu")
