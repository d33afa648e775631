import math

import numpy as np
import pytest
import torch
from conftest import TINY_COST

from adafocus_env.action import GridAction
from agents import evaluation
from agents.baselines import CentrePatch, GreedyOracle, Oracle, RandomPatch
from agents.evaluation import evaluate, location_entropy, movement, play, play_learned
from agents.policies import GlancePolicy, PolicyNetwork
from agents.report import ORDER

GRID = GridAction(7, 96, 24)
MOVING = {"learned", "random", "centre", "gaussian", "oracle", "greedy_oracle"}


@pytest.fixture(scope="module")
def policy():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return GlancePolicy(PolicyNetwork((16, 6, 6), channels=4, features=10, hidden=8), 7).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def evaluated(bank, policy):
    return evaluate(bank, policy, seed=0)


# Playing


@pytest.mark.parametrize("at_once", [1, 5, 11])
def test_every_clip_is_played_once_whatever_is_played_at_once(bank, policy, clips, monkeypatch, at_once):
    def plays():
        return [
            play_learned(bank, policy),
            play(bank, lambda env: Oracle(bank.grid, clips)),
            play(bank, lambda env: GreedyOracle(env.dynamics)),
        ]

    whole = plays()
    monkeypatch.setattr(evaluation, "CLIPS_AT_ONCE", at_once)
    for one, other in zip(whole, plays(), strict=True):
        assert one.cells.shape == (12, 4) and one.correct.shape == one.confidence.shape == (12,)
        assert np.array_equal(one.cells, other.cells) and np.array_equal(one.correct, other.correct)
        assert np.allclose(one.confidence, other.confidence, atol=1e-6)


def test_what_was_played_is_what_the_classifier_says(bank, classifier, clips):
    played = play(bank, lambda env: RandomPatch(bank.grid, 0))
    for clip in range(12):
        glances = bank.vectors(np.array(clip), np.arange(4))
        scores, _ = classifier.classify(glances[None], bank.foci(np.array(clip), np.arange(4), played.cells[clip])[None])
        probabilities = scores[0, -1].softmax(-1)
        assert played.confidence[clip] == pytest.approx(float(probabilities[clips.labels[clip]]), abs=1e-5)
        assert played.correct[clip] == (int(probabilities.argmax()) == clips.labels[clip])


# Measures by hand


def test_location_entropy():
    assert location_entropy(np.full((3, 4), 24), 49) == 0
    assert location_entropy(np.arange(49).reshape(7, 7), 49) == pytest.approx(math.log(49))
    assert location_entropy(np.array([[0, 0], [0, 48]]), 49) == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))


def test_movement_in_fractions_of_the_frame_less_the_patch():
    assert movement(np.full((3, 4), 24), GRID) == 0
    assert movement(np.array([[0, 6]]), GRID) == 1  # from the left border to the right one
    assert movement(np.array([[0, 48]]), GRID) == pytest.approx(math.sqrt(2))
    assert movement(np.array([[0, 6, 6], [3, 3, 24]]), GRID) == pytest.approx((1 + 0 + 0 + 0.5) / 4)
    assert movement(np.array([[0], [48]]), GRID) == 0  # one frame a clip
    assert movement(np.array([[0, 3]]), GridAction(2, 24, 24)) == 0  # the patch is the frame


# The table


def test_every_policy_is_measured(evaluated, policy):
    measures, plays = evaluated
    assert set(measures) == set(ORDER) and set(plays) == MOVING
    for name, measured in measures.items():
        both = {"confidence", "location_entropy", "movement"} if name in MOVING else set()
        assert set(measured) == {"top1", "gflops"} | both, name
        assert 0 <= measured["top1"] <= 1
        if both:
            assert measured["top1"] == plays[name].correct.mean()
            assert measured["confidence"] == pytest.approx(plays[name].confidence.mean())
            assert measured["location_entropy"] == location_entropy(plays[name].cells, 49)
            assert measured["movement"] == movement(plays[name].cells, GRID)
    assert measures["centre"]["location_entropy"] == measures["centre"]["movement"] == 0
    assert measures["random"]["location_entropy"] > 2.5


def test_the_cost_of_every_policy(evaluated):
    glance, focus = 12**2 * 3 * 9 * 8 + 6**2 * 8 * 9 * 16, 12**2 * 3 * 9 * 8 + 6**2 * 8 * 9 * 32
    policy = 6 * 6 * 16 * 4 + 6 * 6 * 4 * 10 + 3 * 8 * (10 + 8) + 8 * 49
    gflops = {name: measured["gflops"] for name, measured in evaluated[0].items()}
    assert gflops["learned"] == pytest.approx(4 * (TINY_COST + policy) / 1e9)
    assert gflops["random"] == gflops["oracle"] == gflops["greedy_oracle"] == pytest.approx(4 * TINY_COST / 1e9)
    assert gflops["glance_only"] == pytest.approx(4 * (TINY_COST - focus) / 1e9)
    assert gflops["full_frame"] == pytest.approx(4 * (TINY_COST - focus + 16 * focus) / 1e9)
    assert glance + focus < TINY_COST


def test_glance_only_and_full_frame_by_hand(evaluated, classifier, clips):
    frames = classifier.normalise(torch.stack([clips.frames(clip) for clip in range(12)]))
    with torch.no_grad():
        glances = classifier.glance(frames.flatten(0, 1))[1].unflatten(0, (12, 4))
        whole = classifier.focus(frames.flatten(0, 1)).unflatten(0, (12, 4))
        for name, foci in (("glance_only", torch.zeros_like(whole)), ("full_frame", whole)):
            answers = classifier.classify(glances, foci)[0][:, -1].argmax(-1).numpy()
            assert evaluated[0][name]["top1"] == (answers == clips.labels).mean()


def test_the_same_seed_gives_the_same_table(bank, policy, evaluated):
    assert evaluate(bank, policy, seed=0)[0] == evaluated[0]
    assert evaluate(bank, policy, seed=1)[0]["random"] != evaluated[0]["random"]


def test_without_truth_there_is_no_oracle_and_without_a_policy_nothing_learned(bank, clips, monkeypatch):
    monkeypatch.setattr(clips, "has_truth", False)
    told = []
    measures, plays = evaluate(bank, None, seed=0, progress=told.append)
    assert set(measures) == set(ORDER) - {"oracle", "learned"} == set(told)
    assert set(plays) == MOVING - {"oracle", "learned"}


def test_the_labels_are_looked_up_and_never_seen_by_a_policy(bank, clips, policy, monkeypatch):
    before = evaluate(bank, policy, seed=0)[1]
    monkeypatch.setattr(clips, "labels", np.roll(clips.labels, 1))
    after = evaluate(bank, policy, seed=0)[1]
    for name in ("learned", "random", "centre", "gaussian", "oracle"):
        assert np.array_equal(before[name].cells, after[name].cells), name
    assert not np.array_equal(before["greedy_oracle"].cells, after["greedy_oracle"].cells)


def test_centre_is_the_same_for_every_clip(evaluated):
    assert (evaluated[1]["centre"].cells == CentrePatch(GRID).predict(np.zeros((1, 2), np.int64))[0]).all()
