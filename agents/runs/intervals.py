"""How sure a mean over a few runs is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats


def interval(values: NDArray[np.float64], level: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Student's confidence interval of the mean over the first axis (runs, …): lower and upper ends. Of one run, its value twice."""
    mean = values.mean(0)
    if len(values) == 1:
        return mean, mean
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(0, ddof=1) / np.sqrt(len(values))
    return mean - half, mean + half
