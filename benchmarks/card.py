"""A GPU, or the CPU in its place: its matrix peak, and times of acts that together fit into a budget."""

import time
from dataclasses import dataclass, field
from functools import partial

import torch

from adafocus_env.build import choose_device
from benchmarks.command import Settings
from benchmarks.results import Section
from benchmarks.timing import Act, Spread, Time, repeated, timed

BUDGET = 330.0  # seconds, of the six minutes that a run may take; the rest is for the start and for a section that takes longer
SAMPLE = 1.0  # seconds that an act is repeated for, in all rounds together
SIZES = {False: (4096, 8192, 16384), True: (64, 128)}


@dataclass
class Card:
    """What a section needs to know of the device.

    Attributes:
        settings: The settings of the run.
        peaks: FLOP/s of the best matrix product, a multiply-add being two, by the names of `precisions`.
        ends: Time of `time.perf_counter` at which the budget is used up.
    """

    settings: Settings
    peaks: dict[str, float] = field(default_factory=dict)
    ends: float = field(default_factory=lambda: time.perf_counter() + BUDGET)

    @property
    def device(self) -> torch.device:
        """The device."""
        return choose_device(self.settings.device)

    @property
    def left(self) -> float:
        """Seconds left of the budget."""
        return self.ends - time.perf_counter()

    def sampled(self, act: Act) -> list[Time]:
        """Return the mean time of an act in every round, whose number of repetitions fills the round's share of `SAMPLE`.

        Three untimed calls come first: compiling, choosing algorithms and recording CUDA graphs may take until the third.
        """
        quick, rounds = self.settings.quick, self.settings.rounds
        for _ in range(1 if quick else 3):
            act()
        count = max(1, int((0.01 if quick else SAMPLE) / rounds / max(timed(act).wall, 1e-6)))
        return [timed(repeated(count, act)) * (1 / count) for _ in range(rounds)]

    def share(self, section: Section, name: str, multiply_adds: float, precision: str) -> None:
        """Add the share of the matrix peak that the act ``name`` of so many multiply-adds reaches."""
        kind = "TF32" if precision == "float32" and "TF32" in self.peaks else precision
        if kind in self.peaks:
            shares = [100 * 2 * multiply_adds / each.wall / self.peaks[kind] for each in section.times[name]]
            section.figure(f"{name}: share of the peak", Spread.of(shares).median, "%", over=f"{kind} matrix peak")


def matrix_peak(card: Card) -> Section:
    """Measure products of square matrices of random numbers; sets `Card.peaks`."""
    section = Section("Matrix peak", "2·n³ FLOP in every product of n×n matrices; the best size of every precision.")
    for name, dtype, precision in precisions(card):
        torch.set_float32_matmul_precision(precision)
        try:
            best = {size: _product(card, section, f"{name}, n = {size}", size, dtype) for size in SIZES[card.settings.quick]}
        finally:
            torch.set_float32_matmul_precision("highest")
        size, card.peaks[name] = max(best.items(), key=lambda each: each[1])
        section.figure(f"{name}, n = {size}", card.peaks[name] / 1e12, "TFLOP/s")
    return section


def precisions(card: Card) -> list[tuple[str, torch.dtype, str]]:
    """Return names, dtypes, and PyTorch's setting for products of float32."""
    low = [(name, getattr(torch, name), "highest") for name in ("bfloat16", "float16")]
    tensor_cores = [("TF32", torch.float32, "high")] if card.device.type == "cuda" else []
    return [("float32", torch.float32, "highest"), *tensor_cores, *low]


def _product(card: Card, section: Section, name: str, size: int, dtype: torch.dtype) -> float:
    left, right = (torch.randn(size, size, device=card.device).to(dtype) for _ in range(2))
    section.times[name] = card.sampled(partial(torch.mm, left, right, out=torch.empty_like(left)))
    return 2 * size**3 / Spread.of([each.wall for each in section.times[name]]).median
