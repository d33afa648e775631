"""A GPU, or the CPU in its place: its measured matrix peak, and times that are calibrated so that all of them fit into a budget."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from adafocus_env.build import choose_device
from benchmarks.clock import Act, Spread, Time, timed
from benchmarks.command import Settings
from benchmarks.sections import Section

BUDGET = 330.0  # seconds, of the six minutes that a run may take; the rest is for starting and for what a section overruns
SAMPLE = 1.0  # seconds that an act is repeated for, all rounds together
SIZES = {False: (4096, 8192, 16384), True: (64, 128)}


@dataclass
class Card:
    """What a section needs to know of where it is measured.

    Attributes:
        settings: of the run.
        peaks: FLOP/s of the best matrix product, a multiply-add being two, by the names of `precisions`.
        ends: when the budget is used up, by `time.perf_counter`.
    """

    settings: Settings
    peaks: dict[str, float] = field(default_factory=dict)
    ends: float = field(default_factory=lambda: time.perf_counter() + BUDGET)

    @property
    def device(self) -> torch.device:
        """Where it is measured."""
        return choose_device(self.settings.device)

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return self.ends - time.perf_counter()

    def sampled(self, act: Act) -> list[Time]:
        """Times of one act each: as many in a round as its share of `SAMPLE` has room for, after a first that is not counted.

        What the first does besides (compiling, choosing algorithms, recording CUDA graphs) may take until the third.
        """
        rounds = 1 if self.settings.quick else self.settings.rounds
        for _ in range(1 if self.settings.quick else 3):
            act()
        count = max(1, int((0.01 if self.settings.quick else SAMPLE) / rounds / max(timed(act).wall, 1e-6)))
        return [Time(each.wall / count, each.cpu / count) for each in (timed(partial(_repeat, act, count)) for _ in range(rounds))]

    def share(self, section: Section, name: str, multiply_adds: float, precision: str) -> None:
        """Adds what share of the matrix peak the act ``name`` of so many multiply-adds reaches."""
        kind = "TF32" if precision == "float32" and "TF32" in self.peaks else precision
        if kind in self.peaks:
            reached = Spread.of([100 * 2 * multiply_adds / each.wall / self.peaks[kind] for each in section.times[name]])
            section.figure(f"{name}: share of the peak", reached.median, "%", over=f"{kind} matrix peak")


def matrix_peak(card: Card) -> Section:
    """Products of square matrices of random numbers; sets `Card.peaks`."""
    section = Section("Matrix peak", "2·n³ FLOP in each product of n×n matrices; the best size of each precision.")
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
    """Names, dtypes, and PyTorch's setting for products of float32."""
    low = [(name, getattr(torch, name), "highest") for name in ("bfloat16", "float16")]
    tensor_cores = [("TF32", torch.float32, "high")] if card.device.type == "cuda" else []
    return [("float32", torch.float32, "highest"), *tensor_cores, *low]


def _product(card: Card, section: Section, name: str, size: int, dtype: torch.dtype) -> float:
    one, other = (torch.randn(size, size, device=card.device).to(dtype) for _ in range(2))
    out = torch.empty_like(one)
    section.times[name] = card.sampled(partial(_multiply, one, other, out))
    return 2 * size**3 / Spread.of([each.wall for each in section.times[name]]).median


def _multiply(one: Tensor, other: Tensor, out: Tensor) -> Tensor:
    return torch.mm(one, other, out=out)


def _repeat(act: Callable[[], object], count: int) -> None:
    for _ in range(count):
        act()
