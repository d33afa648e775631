"""Means over the runs of several seeds, with confidence intervals."""

import numpy as np
from numpy.typing import NDArray


def half_width(values: NDArray[np.float64], level: float = 0.95) -> NDArray[np.float64]:
    """Return half the width of Student's confidence interval for the mean over the first axis. For a single run, return zero."""
    from scipy import stats  # imported here: it takes a second, and single runs do not need it

    if len(values) == 1:
        return np.zeros_like(values[0])
    return stats.t.interval(level, len(values) - 1)[1] * stats.sem(values)


def mean_text(values: NDArray[np.float64], form: str) -> str:
    """Return the mean as text in a format such as ``.1%``, followed by ± half the width of its interval if there are several runs."""
    spread = f" ± {half_width(values):{form}}" if len(values) > 1 else ""
    return f"{values.mean():{form}}{spread}"
