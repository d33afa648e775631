"""The sentence at the end of a run that says whether the choice of patches matters."""

import numpy as np
import pytest

from agents.evaluation.looking import verdict
from agents.evaluation.metrics import PolicyEvaluation, summarize

CLIPS, STEPS = 200, 4


def played(right_after, share=1.0, skips=False):
    """Return an evaluation in which the given share of the clips is correct from a step on (STEPS: never), and the others never are."""
    scores = np.zeros((CLIPS, STEPS, 2), np.float32)
    scores[..., 1] = 1
    scores[: round(share * CLIPS), right_after:, 0] = 2
    mask = np.ones((CLIPS, STEPS), bool)
    mask[:, 0] = not skips
    return PolicyEvaluation(scores, [(0,)] * CLIPS, 0.0, mask)


def said(random, greedy=None, learned=None):
    evaluations = {"random": random, "learned": learned, "greedy_oracle": greedy}
    evaluations = {name: each for name, each in evaluations.items() if each is not None}
    return verdict({name: summarize(each) for name, each in evaluations.items()}, evaluations)


def test_nothing_is_said_where_the_policy_gains():
    assert said(played(0, 0.5), played(0), played(0, 0.8)) is None
    assert said(played(0, 0.5), learned=played(0, 0.8)) is None


def test_it_is_said_where_the_best_patches_gain_less_than_ten_points():
    expected = (
        "Looking does not matter in these clips: even the best patches for the true class gain little over random ones "
        "(top-1 +9.0 points, anytime +9.0 points)."
    )
    assert said(played(0, 0.5), played(0, 0.59)) == expected
    assert said(played(0, 0.5), played(0, 0.59), played(0, 0.58)) == expected, "even if the policy gains"


@pytest.mark.parametrize("greedy", [played(0, 0.6), played(2, 1.0)])
def test_ten_points_in_either_accuracy_suffice(greedy):
    """Accuracy increases from 50 % to 60 % in every step, or only in the last two, where 100 % leave the mean over steps at 50 %."""
    assert said(played(0, 0.5), greedy) is None


def test_it_is_said_where_random_patches_are_as_good_as_the_policy():
    random, learned = played(0, 0.5), played(1, 0.5)
    sentence = said(random, None, learned)
    assert sentence.startswith(
        "Looking does not matter with this policy: random patches are as good, within the 95 % interval (gain: "
        "top-1 +0.0 points, from +0.0 to +0.0, anytime -12.5 points, from -14."
    )
    assert said(random, played(0), learned) == sentence[:-1] + "; the greedy oracle shows that better patches exist."


def test_the_same_clips_are_compared():
    """Five points exceed the noise of the difference if all other clips are equal, although both intervals overlap."""
    assert said(played(0, 0.5), learned=played(0, 0.55)) is None
    assert "from +0.0 to +1.5" in said(played(0, 0.5), learned=played(0, 0.505))


def test_a_gain_in_the_mean_over_steps_alone_counts():
    assert said(played(2, 0.5), learned=played(0, 0.5)) is None


def test_a_policy_that_skips_is_not_compared():
    assert said(played(0, 0.5), learned=played(0, 0.5)) is not None
    assert said(played(0, 0.5), learned=played(0, 0.5, skips=True)) is None
