"""The numbers and sentences of the page, from artificial predictions."""

import re
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from agents.page import verdict
from agents.page.verdict import Estimate, estimate, findings, gain, headline


@dataclass
class Predicted:
    """Predictions with given correct clips of each policy; anytime accuracies are half as high."""

    right: dict

    @property
    def policies(self):
        return list(self.right)

    def correct(self, policy="learned"):
        return np.array(self.right[policy], np.float64)

    def anytime(self, policy="learned"):
        return self.correct(policy) / 2


class Run:
    def __init__(self, right, **measured):
        self.predictions = Predicted(right)
        self.result = {"policies": {"learned": {"gflops": 0.01, **measured}, "full_frame": {"gflops": 0.1}, "random": {"hit_rate": 0.1}}}


def run_with(learned, random, **others):
    """Return a run of 100 clips; each policy is correct on the given number of first clips."""
    rules = {"saliency": random + 2, "motion": random, **others}
    rights = {"learned": learned, "random": random, **rules}
    return Run({name: np.arange(100) < count for name, count in rights.items()}, hit_rate=0.93)


def test_a_single_run_has_the_paired_bootstrap_over_its_clips():
    run = run_with(89, 48)
    difference = run.predictions.correct() - run.predictions.correct("random")
    found = stats.bootstrap([difference], np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    assert gain([run]).mean == pytest.approx(41)
    assert gain([run]).half == pytest.approx(50 * (found.high - found.low), abs=0.8)
    unpaired = stats.bootstrap([run.predictions.correct()], np.mean, rng=np.random.default_rng(0)).confidence_interval
    assert estimate([run.predictions.correct()]).half == pytest.approx(50 * (unpaired.high - unpaired.low), abs=0.8)


def test_equal_policies_differ_by_nothing_however_few_clips_there_are():
    run = run_with(50, 50)
    assert gain([run]) == Estimate(0.0, 0.0), "the same clips are right: the pairs leave no spread"


def test_several_runs_have_students_interval_over_seeds():
    runs = [run_with(80, 50), run_with(84, 50), run_with(82, 50)]
    assert gain(runs).mean == pytest.approx(32)
    assert gain(runs).half == pytest.approx(4.303 * 2 / np.sqrt(3), abs=1e-3)


@pytest.mark.parametrize(
    ("learned", "random", "sentence"),
    [
        (89, 48, r"The learned policy gains 41 ± (9|10) points over random patches\."),
        (20, 48, r"The learned policy loses 28 ± (8|9) points against random patches\."),
        (49, 48, r"The learned policy cannot be distinguished from random patches: \+1(\.0)? ± \d(\.\d)? points\."),
        (47, 48, r"The learned policy cannot be distinguished from random patches: −1(\.0)? ± \d(\.\d)? points\."),
    ],
)
def test_the_headline_names_the_direction_only_where_the_interval_does(learned, random, sentence):
    assert re.fullmatch(sentence, headline([run_with(learned, random)]))


def test_the_findings_compare_with_rules_oracle_and_cost():
    text = " ".join(findings([run_with(89, 48, oracle=90, greedy_oracle=100)]))
    assert "classifies 89.0 % of the clips correctly; random patches reach 48.0 %" in text
    assert "it gains 20" in text and "covers the target in 93 % of the frames that show it; a random patch in 10 %" in text
    assert "The best of 5 rules that learn nothing, saliency, gains 2 ± " in text
    assert "The oracle, which knows where the target is, reaches 90.0 %: the learned policy closes 98 % of that gap" in text
    assert "A video costs 0.01 GFLOPs, 10.0 times less than with whole frames" in text


def test_without_truth_the_greedy_oracle_stands_and_hits_are_left_out():
    run = run_with(89, 48, greedy_oracle=100)
    del run.result["policies"]["learned"]["hit_rate"]
    text = " ".join(findings([run]))
    assert "The greedy oracle, which knows the class" in text and "covers" not in text
    text = " ".join(findings([run_with(50, 48, oracle=55)]))
    assert "reaches 55.0 %." in text, "the gap is less than 10 points"


def test_a_metric_that_a_run_lacks_is_not_a_number():
    assert np.isnan(verdict.mean_of([run_with(89, 48)], "oracle", "top1"))
