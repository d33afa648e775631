"""Warnings about the selection of the policy."""

import pytest

from agents.rl.trainer import Best, _doubts

FEW = "{} cannot distinguish policies; set data.val to a larger share, or add videos"
FULL = "the validation split is saturated, {} right: it says little about which policy is best; use harder videos"


@pytest.mark.parametrize(
    ("top1", "count", "expected"),
    [
        (0.9, 30, []), (0.98, 500, []), (None, 30, []), (0.5, 29, [FEW.format("29 validation clips")]),
        (0.992, 500, [FULL.format("99.2%")]), (1.0, 1, [FEW.format("1 validation clip"), FULL.format("100.0%")]),
    ],
)  # fmt: skip
def test_a_choice_that_means_little_is_doubted(top1, count, expected):
    assert list(_doubts(Best(32, 0.5, 0.5, top1), count)) == expected
