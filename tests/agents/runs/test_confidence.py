import numpy as np
import pytest

from agents.runs.confidence import half_width, mean_text


def test_the_interval_is_students():
    assert half_width(np.array([0.8, 0.9, 1.0])) == pytest.approx(4.302653 * 0.1 / np.sqrt(3))
    assert half_width(np.array([[1.0, 0.8], [1.0, 1.0]])) == pytest.approx([0, 12.7062 * 0.1], rel=1e-5)


def test_a_single_run_has_no_interval():
    assert half_width(np.array([[0.7, 0.8]])).tolist() == [0, 0]
    assert mean_text(np.array([0.712]), ".1%") == "71.2%"
    assert mean_text(np.array([70.0, 71.0]), ".1f") == "70.5 ± 6.4"
