"""Measure how fast a GPU multiplies matrices (its matrix peak) and how fast it runs all workloads. This takes about six minutes.

    python -m benchmarks.gpu            # on one GPU; writes a table with the other results
    python -m benchmarks.gpu --quick    # the same code at tiny sizes, also on a CPU

`python -m pytest -m cuda` runs the tests of this benchmark. Networks have random weights and clips have random pixels, so the benchmark
needs no files. If a section fails, its traceback is shown, the other sections are still measured, and the command exits with status 1.
"""

import copy
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch

from adafocus_env.build import choose_device
from agents.config.settings import PPOConfig, SupervisedConfig
from agents.evaluation.inference import infer, policy_flops
from agents.supervised.stages import train_on_random_patches
from benchmarks import workload
from benchmarks.command import Settings, main
from benchmarks.results import Act, Section, Spread, Time, repeated, timed
from benchmarks.steps import PATCHES, episode
from benchmarks.training import MINIBATCHES, iterations, learner
from classifiers.classifier import Classifier
from classifiers.flops import classifier_flops, video_flops
from classifiers.optimize import choose_execution, with_execution

LENGTH = {False: 16, True: 4}  # frames of a clip
EPOCHS = 10**6  # more than will run

SAMPLE = 1.0  # seconds for which a function is repeated, in all rounds together
SIZES = {False: (4096, 8192, 16384), True: (64, 128)}  # of matrices


@dataclass
class Card:
    """The device properties that the sections of the benchmark use.

    Attributes:
        settings: The settings of the run.
        peaks: dictionary from a precision, as named in `matrix_peak`, to the FLOP/s of its fastest matrix product. Here, a multiply-add
            counts as two.
    """

    settings: Settings
    peaks: dict[str, float] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """The device."""
        return choose_device(self.settings.device)

    def sampled(self, act: Act) -> list[Time]:
        """Return the mean time of a function in every round. In every round, the function is called so often that all rounds together take
        about `SAMPLE` seconds.

        Three untimed calls come first, because compilation, the choice of algorithms and the recording of CUDA graphs may take three calls.
        """
        quick, rounds = self.settings.quick, self.settings.rounds
        for _ in range(1 if quick else 3):
            act()
        count = max(1, int((0.01 if quick else SAMPLE) / rounds / max(timed(act).wall, 1e-6)))
        return [timed(repeated(count, act)) * (1 / count) for _ in range(rounds)]

    def rate(self, section: Section, name: str, act: Act, count: int, multiply_adds: float, precision: str) -> None:
        """Measure a function that processes ``count`` clips; add its rate and its share of the matrix peak."""
        section.times[name] = self.sampled(act)
        section.rate(name, count, "clips/s")
        self.share(section, name, multiply_adds, precision)

    def share(self, section: Section, name: str, multiply_adds: float, precision: str) -> None:
        """Add the share of the matrix peak that the function ``name`` reaches with this number of multiply-adds."""
        kind = "TF32" if precision == "float32" and "TF32" in self.peaks else precision
        if kind in self.peaks:
            shares = [100 * 2 * multiply_adds / each.wall / self.peaks[kind] for each in section.times[name]]
            section.figure(f"{name}: share of the peak", Spread.of(shares).median, "%", over=f"{kind} matrix peak")


def measure(settings: Settings) -> Iterator[Section]:
    """Yield all sections. The first section measures the matrix peak, with which the results of the other sections are compared."""
    card = Card(settings)
    if card.device.type != "cuda" and not settings.quick:
        yield Section("GPU", "Left out: there is no GPU here. --quick runs the same at tiny sizes on the CPU.")
        return
    for measurement in MEASUREMENTS:
        try:
            section = measurement(card)
        except Exception:  # later sections may still work
            section = Section(measurement.__name__, "Failed.", failure=traceback.format_exc())
        yield section


def matrix_peak(card: Card) -> Section:
    """Measure products of random square matrices, and set `Card.peaks`."""
    section = Section("Matrix peak", "2·n³ FLOP in every product of n×n matrices; the best size of every precision.")
    for name in ("float32", *(["TF32"] if card.device.type == "cuda" else []), "bfloat16", "float16"):
        dtype = torch.float32 if name == "TF32" else getattr(torch, name)
        torch.set_float32_matmul_precision("high" if name == "TF32" else "highest")
        try:
            best = {size: _product(card, section, f"{name}, n = {size}", size, dtype) for size in SIZES[card.settings.quick]}
        finally:
            torch.set_float32_matmul_precision("highest")
        size, card.peaks[name] = max(best.items(), key=lambda each: each[1])
        section.figure(f"{name}, n = {size}", card.peaks[name] / 1e12, "TFLOP/s")
    return section


def _product(card: Card, section: Section, name: str, size: int, dtype: torch.dtype) -> float:
    left, right = (torch.randn(size, size, device=card.device).to(dtype) for _ in range(2))
    section.times[name] = card.sampled(partial(torch.mm, left, right, out=torch.empty_like(left)))
    return 2 * size**3 / Spread.of([each.wall for each in section.times[name]]).median


def bank_filling(card: Card) -> Section:
    """Fill a new bank with the glances of all frames and the focus vectors of all cells of these frames."""
    count, length = (1, 2) if card.settings.quick else (8, LENGTH[False])
    plain = workload.classifier(card.settings)
    clips, cost = workload.RandomClips(count, length, plain.architecture.size), classifier_flops(plain)
    multiply_adds = count * length * (cost.glance + workload.GRID**2 * cost.focus)
    note = f"{count} clips of {length} frames, {workload.GRID**2} cells per frame; frames come from the host's memory."
    section = Section("Bank filling", note)
    for precision, network in _networks(card, plain).items():
        card.rate(section, precision, partial(workload.bank_of, network, clips), count, multiply_adds, precision)
    return section


def stage_1(card: Card) -> Section:
    """Run training steps on random patches."""
    count, length = (2, 2) if card.settings.quick else (32, LENGTH[False])
    plain = workload.classifier(card.settings)
    clips, cost = workload.RandomClips(count, length, plain.architecture.size), classifier_flops(plain)
    note = f"Steps of {count} clips of {length} frames, SGD. Counted: a glance, and a patch three times (forward and backward)."
    section = Section("Stage 1", note)
    for precision in dict.fromkeys(("float32", card.settings.precision)):
        config = SupervisedConfig(
            EPOCHS, count, "sgd", learning_rate=1e-4, head_learning_rate=1e-4, precision=cast(Any, precision),
            channels_last=precision != "float32",
        )
        training = train_on_random_patches(copy.deepcopy(plain), clips, config, seed=0)
        multiply_adds = count * length * (cost.glance + 3 * cost.focus)
        card.rate(section, precision, partial(next, training), count, multiply_adds, precision)
    return section


def ppo(card: Card) -> Section:
    """Run iterations of PPO with all features in the bank."""
    rows, length = (4 if card.settings.quick else 64), LENGTH[card.settings.quick]
    bank, architecture = workload.warm_bank(card.settings, rows, length), workload.policy(card.settings).architecture
    model = learner(bank, PPOConfig(n_steps=length, batch_size=rows // MINIBATCHES * length), rows, architecture)
    phases: dict[str, list[Time]] = {"collection": [], "update": []}
    section = Section("PPO", f"Bank warm, {rows} environments, {length} steps, {model.n_epochs} epochs of {MINIBATCHES} minibatches.")
    section.times["iteration"] = card.sampled(iterations(model, phases))
    section.times |= {name: measured[1:] for name, measured in phases.items()}
    for name in section.times:
        section.rate(name, rows * length, "steps/s")
    return section


def inference(card: Card) -> Section:
    """Measure inference with all patches in one batch, and inference frame by frame as in the released code."""
    patches, batches = ((24, 32), (1, 2)) if card.settings.quick else ((96, 128), (1, 64))
    section = Section("Parallel inference", f"Clips of {LENGTH[card.settings.quick]} frames; step by step is the released scheme.")
    for patch in patches:
        plain = workload.classifier(card.settings, patch_size=patch)
        for batch in batches:
            _inference(card, section, _networks(card, plain), f"P = {patch}, batch {batch}", batch)
    return section


def compiled_inference(card: Card) -> Section:
    """Run inference with compiled networks and CUDA graphs. `compiled_inference` is the last section, because compilation may take
    minutes."""
    section = Section("Parallel inference, compiled", "Compiled with CUDA graphs, in the low precision, P = 96.")
    if not card.settings.compile or card.settings.quick:
        section.note = "Left out: --no-compile or --quick."
        return section
    plain, precision = workload.classifier(card.settings), card.settings.precision
    networks = {precision: with_execution(plain, choose_execution(plain, precision, compile=True))}
    for batch in (1, 64):
        _inference(card, section, networks, f"P = 96, batch {batch}", batch, one_by_one=False)
    return section


def env_steps(card: Card) -> Section:
    """Run whole episodes, including resets, of environments whose tensors stay on the device."""
    numbers, length = ((2, 4) if card.settings.quick else (64, 256, 1024, 4096)), LENGTH[card.settings.quick]
    bank = workload.warm_bank(card.settings, min(64, numbers[-1]), length)
    note = f"Bank warm, random actions, episodes of {length} steps and the resets at their ends, reward `random`."
    section = Section("Environment steps, tensors on the device", note)
    for number in numbers:
        for observation in ("reference", "dict", "map")[: 3 if number <= 1024 else 2]:
            name = f"{observation}, N = {number}"
            act = episode(bank, number, observation=observation, output="torch", clip_order="epoch")
            section.times[name] = [time * (1 / length) for time in card.sampled(act)]
            section.rate(name, number, "steps/s")
        section.times[f"head, {PATCHES * number} rows"] = card.sampled(workload.bare_head(bank.classifier, PATCHES * number))
        section.ratio(f"reference, N = {number}", f"head, {PATCHES * number} rows", name=f"reference, N = {number}: a step")
    return section


MEASUREMENTS: tuple[Callable[[Card], Section], ...] = (
    matrix_peak, env_steps, bank_filling, stage_1, ppo, inference, compiled_inference
)  # fmt: skip
"""The sections, in the order of their importance, in case the time does not suffice for all of them."""


def _networks(card: Card, plain: Classifier) -> dict[str, Classifier]:
    """Return a float32 classifier, and a classifier in the low precision with the execution settings for it. The keys are precisions."""
    low = {name: with_execution(plain, choose_execution(plain, name)) for name in [card.settings.precision] if name != "float32"}
    return {"float32": plain, **low}


def _inference(
    card: Card, section: Section, networks: Mapping[str, Classifier], where: str, batch: int, *, one_by_one: bool = True
) -> None:
    length, policy = LENGTH[card.settings.quick], workload.policy(card.settings)
    frames = workload.frames(card.settings, batch, length, next(iter(networks.values())))
    for precision, network in networks.items():
        multiply_adds = batch * video_flops(network, length, length, policy_step=policy_flops(policy)).total()
        parallel, sequential = f"{where}, {precision}, parallel", f"{where}, {precision}, step by step"
        card.rate(section, parallel, partial(infer, network, policy, frames), batch, multiply_adds, precision)
        if one_by_one:
            section.times[sequential] = card.sampled(partial(workload.step_by_step, network, policy, frames))
            section.rate(sequential, batch, "clips/s").ratio(sequential, parallel, over="parallel")


if __name__ == "__main__":
    main("gpu")
