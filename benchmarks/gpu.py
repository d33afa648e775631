"""What a GPU does: its matrix peak, the CUDA tests, and rates of everything that runs on it, in six minutes.

    python -m benchmarks.gpu            # on one GPU; writes its table beside the others
    python -m benchmarks.gpu --quick    # the same code at tiny sizes, on a CPU too

Networks have random weights and clips random pixels, so that nothing has to be carried along. A section that fails shows its traceback,
the others are measured all the same, and the command exits with status 1.
"""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from adafocus_env.features.memory_bank import MemoryBank
from adafocus_env.settings import NumberFormat
from adafocus_env.vector_env import AdaFocusVectorEnv
from agents.config.settings import PPOConfig, SupervisedConfig
from agents.evaluation.inference import infer, policy_flops
from agents.supervised.random_patches import train_on_random_patches
from benchmarks import workload
from benchmarks.card import Card, matrix_peak
from benchmarks.clock import Act, Time
from benchmarks.command import Settings, main
from benchmarks.crossings import crossings
from benchmarks.env_steps import PATCHES, bank_of, bare_head
from benchmarks.ppo import MINIBATCHES, iterations, learner
from benchmarks.random_clips import RandomClips
from benchmarks.released import step_by_step
from benchmarks.sections import Section, at_most
from classifiers.classifier import Classifier
from classifiers.errors import InputError
from classifiers.flops import classifier_flops, video_flops
from classifiers.optimize import check_precision, choose_execution, with_execution

ROOT = Path(__file__).parent.parent
TESTS, TESTS_SECONDS = ROOT / "tests" / "adafocus_env" / "test_cuda.py", 120
COMPILING = 90.0  # seconds that have to be left for compiled networks: what compiles cannot be stopped
LENGTH = {False: 16, True: 4}  # frames of a clip
EPOCHS = 10**6  # more than are asked for


def measure(settings: Settings) -> Iterator[Section]:
    """All sections; the peak comes first, since the others are compared with it."""
    card = Card(settings)
    if card.device.type != "cuda" and not settings.quick:
        yield Section("GPU", "Left out: there is no GPU here. --quick runs the same at tiny sizes on the CPU.")
        return
    for part in PARTS:
        yield guarded(part, card)


def guarded(part: Callable[[Card], Section], card: Card) -> Section:
    """What ``part`` measures; where it fails, a section with the traceback."""
    try:
        return part(card)
    except Exception:  # of any kind: the sections after it may work
        return Section(part.__name__, "Failed.", failure=traceback.format_exc())


def cuda_tests(card: Card) -> Section:
    """Runs the tests that need a GPU, in another process.

    Raises:
        RuntimeError: some fail.
    """
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-n", "0", "-p", "no:cacheprovider", "-r", "s", "--tb=short", str(TESTS)]
    done = subprocess.run(command, cwd=ROOT, timeout=TESTS_SECONDS, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    counts = {what: int(count) for count, what in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", done.stdout)}
    if done.returncode or not counts:
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stdout[-6000:]}")
    section = Section("CUDA tests", f"`{' '.join(command[1:-1])} tests/{TESTS.name}`")
    for what, count in counts.items():
        section.figure(what, count, "tests")
    return section


def bank_filling(card: Card) -> Section:
    """Glances of all frames, and focus vectors of all their cells, into a bank that is new each time."""
    count, length = (1, 2) if card.settings.quick else (8, LENGTH[False])
    plain = workload.classifier(card.settings)
    clips, cost = RandomClips(count, length, plain.architecture.size), classifier_flops(plain)
    multiply_adds = count * length * (cost.glance + workload.GRID**2 * cost.focus)
    note = f"{count} clips of {length} frames, {workload.GRID**2} cells in each; frames come from the host's memory."
    section = Section("Bank filling", note)
    for precision, network in _networks(card, plain).items():
        section.times[precision] = card.sampled(partial(bank_of, network, clips))
        section.rate(precision, count, "clips/s")
        card.share(section, precision, multiply_adds, precision)
    return section


def stage_1(card: Card) -> Section:
    """Steps of training on random patches."""
    count, length = (2, 2) if card.settings.quick else (32, LENGTH[False])
    plain = workload.classifier(card.settings)
    clips, cost = RandomClips(count, length, plain.architecture.size), classifier_flops(plain)
    note = f"Steps of {count} clips of {length} frames, SGD. Counted: a glance, and a patch three times (forward and backward)."
    section = Section("Stage 1", note)
    for precision in _precisions(card):
        config = SupervisedConfig(
            EPOCHS, count, "sgd", learning_rate=1e-4, head_learning_rate=1e-4,
            precision=cast(NumberFormat, precision), channels_last=precision != "float32",
        )  # fmt: skip
        training = train_on_random_patches(copy.deepcopy(plain), clips, config, seed=0)
        section.times[precision] = card.sampled(partial(next, training))
        section.rate(precision, count, "clips/s")
        card.share(section, precision, count * length * (cost.glance + 3 * cost.focus), precision)
    return section


def ppo(card: Card) -> Section:
    """Iterations of PPO with all features in the bank."""
    rows, length = (4 if card.settings.quick else 64), LENGTH[card.settings.quick]
    network, template = workload.flat_classifier(card.settings), workload.policy(card.settings)
    bank = bank_of(network, RandomClips(rows, length, network.architecture.size))
    model = learner(bank, PPOConfig(n_steps=length, batch_size=rows // MINIBATCHES * length), rows, template.architecture)
    before, parts = network.fingerprint(), dict[str, list[Time]](collection=[], update=[])
    section = Section("PPO", f"Bank warm, {rows} environments, {length} steps, {model.n_epochs} epochs of {MINIBATCHES} minibatches.")
    section.times["iteration"] = card.sampled(iterations(model, parts))
    section.times |= {name: measured[1:] for name, measured in parts.items()}
    for name in section.times:
        section.rate(name, rows * length, "steps/s")
    if network.fingerprint() != before:
        raise RuntimeError("PPO changed the frozen classifier")
    return section


def inference(card: Card) -> Section:
    """All patches in one batch, against one patch of every clip after the other, as the released code does."""
    patches, batches = ((24, 32), (1, 2)) if card.settings.quick else ((96, 128), (1, 64))
    section = Section("Parallel inference", f"Clips of {LENGTH[card.settings.quick]} frames; step by step is the released scheme.")
    for patch in patches:
        plain = workload.classifier(card.settings, patch_size=patch)
        for batch in batches:
            _inference(card, section, _networks(card, plain), f"P = {patch}, batch {batch}", batch)
    return section


def compiled_inference(card: Card) -> Section:
    """The same for compiled networks with CUDA graphs, as long as there is time to compile them."""
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
    """Whole episodes, with the resets at their ends, of environments whose tensors stay on the device."""
    numbers, length = ((2, 4) if card.settings.quick else (64, 256, 1024, 4096)), LENGTH[card.settings.quick]
    network = workload.flat_classifier(card.settings)
    bank = bank_of(network, RandomClips(min(64, numbers[-1]), length, network.architecture.size))
    note = f"Bank warm, random actions, episodes of {length} steps and the resets at their ends, reward `random`."
    section = Section("Environment steps, tensors on the device", note)
    for number in numbers:
        for observation in ("reference", "dict", "map")[: 3 if number <= 1024 else 2]:
            name = f"{observation}, N = {number}"
            section.times[name] = [_part(time, length) for time in card.sampled(episode(bank, number, observation=observation))]
            section.rate(name, number, "steps/s")
        section.times[f"head, {PATCHES * number} rows"] = card.sampled(bare_head(network, PATCHES * number))
        section.ratio(f"reference, N = {number}", f"head, {PATCHES * number} rows", name=f"reference, N = {number}: a step")
    return section


def host_synchronisations(card: Card) -> Section:
    """How often a step makes the host wait, counted by the profiler."""
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
        asked = arguments.get("output") != "numpy" and "action" not in arguments
        section.figure(name, sum(counts.values()) / length, "a step", aim=at_most(0) if asked else None)
        for what, count in counts.items():
            section.figure(f"{name}: {what}", count / length, "a step")
    return section


PARTS: tuple[Callable[[Card], Section], ...] = (
    matrix_peak, host_synchronisations, env_steps, bank_filling, stage_1, ppo, inference, cuda_tests, compiled_inference
)  # fmt: skip
"""In the order of what is worth most where time runs out."""


def episode(bank: MemoryBank, number: int, **arguments: Any) -> Callable[[], None]:
    """An act: an episode of ``number`` environments, its actions, which were drawn before, on the device."""
    given = {"observation": "reference", "output": "torch", "autoreset_mode": "SAME_STEP", "clip_order": "epoch", "grid": workload.GRID}
    env = AdaFocusVectorEnv(number, bank.classifier, bank.clips, bank=bank, **{**given, **arguments})
    env.reset(seed=0)
    drawn = np.random.default_rng(0).integers(workload.GRID**2, size=(bank.num_steps, number))
    actions = cycle(torch.from_numpy(drawn).to(bank.classifier.device).unbind() if env.output == "torch" else drawn)

    def act() -> None:
        for _ in range(bank.num_steps):
            env.step(next(actions))

    return act


def _precisions(card: Card) -> list[str]:
    """float32, and the low precision where the device computes in it: some CPUs do not."""
    try:
        check_precision(card.settings.precision, card.device)
    except InputError:
        return ["float32"]
    return ["float32", card.settings.precision]


def _networks(card: Card, plain: Classifier) -> dict[str, Classifier]:
    """As it is, and in the low precision with the settings that are chosen for it; by precision."""
    low = _precisions(card)[1:]
    return {"float32": plain, **{name: with_execution(plain, choose_execution(plain, name)) for name in low}}


def _inference(
    card: Card, section: Section, networks: dict[str, Classifier], where: str, batch: int, *, one_by_one: bool = True
) -> None:
    length, policy = LENGTH[card.settings.quick], workload.policy(card.settings)
    frames: Tensor | None = None
    for precision, network in networks.items():
        frames = workload.frames(card.settings, batch, length, network) if frames is None else frames
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


def _part(time: Time, count: int) -> Time:
    return Time(time.wall / count, time.cpu / count)


if __name__ == "__main__":
    main(["gpu"])
