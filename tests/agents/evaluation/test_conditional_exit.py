"""Conditional exit: thresholds are compared with the released code, and clips that end early with inference on whole clips."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FINE_GRID, TINY, TINY_COST
from predictions import bright_classifier, brightest

from adafocus_env.action import ContinuousAction
from adafocus_env.features.live import LiveFeatures
from agents.evaluation.conditional_exit import (
    CONFIDENCES,
    ExitFit,
    ExitModel,
    ExitThresholds,
    confidence_of,
    exit_file,
    exit_shares,
    exit_steps,
    fit_thresholds,
)
from agents.evaluation.evaluate import evaluate_policy, flops_of
from agents.evaluation.exit_curve import PUBLISHED_P, exit_curve, stop
from agents.evaluation.inference import infer, infer_batches, infer_clips, policy_flops
from agents.evaluation.metrics import PolicyEvaluation
from agents.policies.networks import PolicyArchitecture, PolicyNetwork
from agents.policies.spatial import SpatialArchitecture
from classifiers.classifier import Classifier
from classifiers.errors import InputError
from classifiers.flops import VideoFlops
from classifiers.optimize import InferenceClassifier

pytestmark = [pytest.mark.numerical, FINE_GRID]

RELEASED = np.load(Path(__file__).parents[2] / "data" / "released_exit.npz")
CLASSES = tuple("abcdefghij")


# Thresholds


def released_scores(count: int, seed: int) -> np.ndarray:
    """Return scores (count, 16, 10) of clips with labels 0, 1, … 9, 0, …, more often correct at later steps, as in the released arrays."""
    noise = torch.randn(count, 16, 10, generator=torch.Generator("cpu").manual_seed(seed))
    right = torch.nn.functional.one_hot(torch.arange(count) % 10, 10).float().view(count, 1, 10)
    return (noise + right * (0.2 * torch.arange(1, 17).float().view(1, 16, 1))).numpy()


@pytest.fixture(scope="module")
def released_fit():
    model = ExitModel("a" * 64, "b" * 64, 16, 16, 128, "zeros", None)
    return ExitFit.of(model, "train", released_scores(200, 31))


def test_shares_thresholds_and_counts_are_those_of_the_released_code(released_fit):
    assert np.allclose(PUBLISHED_P, RELEASED["p"])
    scores = released_scores(120, 32)
    for p, shares, thresholds, counts in zip(*(RELEASED[name] for name in ("p", "proportions", "thresholds", "counts")), strict=True):
        assert np.allclose(exit_shares(p, 16), shares, atol=1e-6)
        found = released_fit.thresholds(p, "score")
        never, always = thresholds == 1e8, thresholds == -1e8
        assert np.array_equal(found.values == np.inf, never) and np.array_equal(found.values == -np.inf, always)
        assert np.allclose(found.values[~never & ~always], thresholds[~never & ~always], rtol=1e-6)
        assert np.bincount(found.steps(scores), minlength=16).tolist() == counts.tolist()


def test_cost_and_accuracy_are_those_of_the_released_code(released_fit):
    steps, full = 16, float(RELEASED["full_gflops"]) * 1e9
    flops = VideoFlops(steps, glancer=round(0.3 * full), policy=0, focuser=round(full) - round(0.3 * full), head=0)
    labels = [(clip % 10,) for clip in range(120)]
    evaluation = PolicyEvaluation(released_scores(120, 32), labels, full, np.ones((120, steps), bool))
    curve = exit_curve(evaluation, released_fit, "score", flops)
    assert [point["p"] for point in curve] == RELEASED["p"].tolist()
    assert [point["gflops"] for point in curve] == pytest.approx(RELEASED["gflops"].tolist(), rel=1e-6)
    assert [100 * point["map"] for point in curve] == pytest.approx(RELEASED["map"].tolist(), abs=1e-4)
    whole = stop(evaluation, np.full(120, 15), flops)
    assert whole.macs / 1e9 == pytest.approx(float(RELEASED["full_gflops"]), rel=1e-6)


def test_every_clip_leaves_once_and_the_most_confident_first():
    confidences = np.random.default_rng(0).random((100, 4))
    shares = np.array([0.25, 0.004, 0.5, 0.246])
    thresholds = fit_thresholds(confidences, shares)
    steps = exit_steps(confidences, thresholds)
    assert np.bincount(steps, minlength=4).tolist() == [25, 0, 50, 25]
    assert thresholds[1] == np.inf and thresholds[3] == -np.inf, "less than a clip never leaves, and the last step takes all"
    assert confidences[steps == 0, 0].min() == thresholds[0] > confidences[steps > 0, 0].max()
    assert fit_thresholds(np.ones((5, 3)), np.array([0.4, 0.4, 0.2])).tolist() == [1, np.inf, -np.inf], "equal ones leave together"


def test_a_constant_on_all_scores_changes_the_raw_score_alone():
    scores = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    assert np.allclose(confidence_of(scores, "softmax"), confidence_of(scores + 7, "softmax"), atol=1e-6)
    assert np.allclose(confidence_of(scores, "score") + 7, confidence_of(scores + 7, "score"), atol=1e-6)
    assert confidence_of(scores, "softmax") == pytest.approx(torch.from_numpy(scores).softmax(-1).amax(-1).numpy())


@pytest.mark.parametrize("p", [0, -1, float("nan"), float("inf"), True])
def test_p_is_above_0(p):
    with pytest.raises(InputError, match=r"exit must be a number above 0, such as 1\.2, got "):
        exit_shares(p, 4)


def test_an_unknown_confidence_is_named(released_fit):
    for call in (lambda: released_fit.thresholds(1, "scores"), lambda: confidence_of(np.zeros((1, 2)), "scores")):
        with pytest.raises(InputError, match=r"exit_confidence='scores'.*score"):
            call()


def test_a_fit_is_stored_exactly(tmp_path, released_fit):
    released_fit.save(tmp_path / "exit.json")
    loaded = ExitFit.load(tmp_path / "exit.json")
    assert (loaded.model, loaded.data) == (released_fit.model, "train")
    assert all(np.array_equal(loaded.confidences[kind], released_fit.confidences[kind]) for kind in CONFIDENCES)
    assert exit_file(tmp_path) == tmp_path / "exit.json" and exit_file("demo").parts[-2:] == ("exit", "demo.json")


@pytest.mark.parametrize(
    "damage",
    [
        lambda stored: stored.pop("data"),
        lambda stored: stored["confidences"].pop("score"),
        lambda stored: stored["model"].update(num_steps=3),
    ],
)
def test_a_damaged_fit_is_named(tmp_path, released_fit, damage):
    path = tmp_path / "exit.json"
    released_fit.save(path)
    stored = json.loads(path.read_text())
    damage(stored)
    path.write_text(json.dumps(stored))
    with pytest.raises(InputError, match=r"exit\.json does not hold confidences of training clips .*; remove it, and fit them again"):
        ExitFit.load(path)
    path.write_text("{")
    with pytest.raises(InputError, match=r"exit\.json is not valid JSON"):
        ExitFit.load(path)


# Inference

CASES = {
    "published": (PolicyArchitecture((16, 6, 6), channels=4, features=10, hidden=8), 7, False, "zeros"),
    "no memory": (PolicyArchitecture((16, 6, 6), channels=4, features=10, hidden=8, memory=False), 7, False, "zeros"),
    "spatial": (SpatialArchitecture((16, 6, 6), 0.25, width=4, depth=2), 7, False, "zeros"),
    "continuous": (SpatialArchitecture((16, 6, 6), 0.25, width=4), None, False, "zeros"),
    "zeros": (PolicyArchitecture((16, 6, 6), channels=4, features=10, hidden=8), 7, True, "zeros"),
    "last": (PolicyArchitecture((16, 6, 6), channels=4, features=10, hidden=8), 7, True, "last"),
    "none": (SpatialArchitecture((16, 6, 6), 0.25, width=4), None, True, "none"),
}


def strong_policy(case: str) -> tuple[PolicyNetwork, str]:
    """Return a policy with random weights that are large enough for patches and skipped frames to differ between clips."""
    architecture, grid, skips, skipped = CASES[case]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        policy = PolicyNetwork(architecture, grid, skips=skips).eval().requires_grad_(False)
    for parameter in policy.actor.parameters():
        parameter.mul_(10)
    return policy, skipped


@pytest.fixture(scope="module")
def frames(classifier, clips):
    return classifier.normalise(torch.stack([clips.frames(clip) for clip in range(len(clips))]))


def half_leave(logits: torch.Tensor) -> ExitThresholds:
    """Return thresholds with which clips exit after every step, fitted on the same clips."""
    confidences = confidence_of(logits.numpy(), "softmax")
    return nudged(ExitThresholds(fit_thresholds(confidences, exit_shares(1, confidences.shape[1])), "softmax", None))


def nudged(thresholds: ExitThresholds) -> ExitThresholds:
    """Change thresholds slightly: they equal the confidence of a clip, which differs by rounding in other batches."""
    return replace(thresholds, values=thresholds.values - 1e-5)


def threshold_of(policy: PolicyNetwork, classifier: Classifier, frames: torch.Tensor) -> float | None:
    """Return a threshold at which half of the frames are skipped, and all frames of some clips."""
    if not policy.skips:
        return None
    maps = classifier.glance(frames.flatten(0, 1))[0].unflatten(0, frames.shape[:2])
    return float(policy.choose(maps)[1][:, :, 0].median())


@pytest.mark.parametrize("case", CASES)
def test_an_early_end_changes_nothing_before_it(classifier, frames, case):
    policy, skipped = strong_policy(case)
    threshold = threshold_of(policy, classifier, frames)
    whole = infer(classifier, policy, frames, skipped=skipped, keep_threshold=threshold)
    thresholds = half_leave(whole.logits)
    found = infer(classifier, policy, frames, skipped=skipped, keep_threshold=threshold, exit=thresholds)
    steps = thresholds.steps(whole.logits.numpy())
    assert set(steps) == {0, 1, 2, 3} and whole.processed.all()
    assert (found.processed.sum(1) - 1).tolist() == steps.tolist() and found.processed[:, 0].all()
    before = found.processed
    for name in ("actions", "boxes", "patch_mask", "logits"):
        assert torch.allclose(getattr(found, name)[before].float(), getattr(whole, name)[before].float(), atol=1e-4), name
    assert not found.boxes[~before].any() and not found.patch_mask[~before].any()
    ends = whole.logits[torch.arange(len(steps)), torch.from_numpy(steps)]
    assert torch.allclose(found.logits[:, -1], ends, atol=1e-4)
    assert (found.logits[~before] == found.logits[:, -1:].expand_as(found.logits)[~before]).all()
    if policy.skips:
        assert 0 < whole.patch_mask.float().mean() < 1


def test_nothing_runs_after_the_exit(classifier, frames, monkeypatch):
    policy, _ = strong_policy("published")
    thresholds = half_leave(infer(classifier, policy, frames).logits)
    seen = {"glance": [], "focus": [], "classify": []}
    for name, calls in seen.items():
        method = getattr(InferenceClassifier, name)
        monkeypatch.setattr(InferenceClassifier, name, lambda self, first, *rest, method=method, calls=calls, **more: (
            calls.append(len(first)), method(self, first, *rest, **more))[1])  # fmt: skip
    found = infer(classifier, policy, frames, exit=thresholds)
    running = found.processed.sum(0).tolist()
    assert running[0] == 12 > running[1] > running[2] > running[3] > 0
    assert all(calls[-4:] == running for calls in seen.values())
    flops = policy_flops(policy)
    assert found.macs.tolist() == [(TINY_COST + flops) * steps for steps in found.processed.sum(1).tolist()]
    all_at_once = ExitThresholds(np.full(4, -np.inf), "softmax", None)
    assert infer(classifier, policy, frames, exit=all_at_once).processed.sum(1).tolist() == [1] * 12
    assert [calls[-1] for calls in seen.values()] == [12, 12, 12], "one step"


def test_an_encoder_without_steps_reads_all_glances_again(clips):
    classifier, policy = bright_classifier(), brightest()
    frames = classifier.normalise(torch.stack([clips.frames(clip) for clip in range(4)]))
    whole = infer(classifier, policy, frames)
    found = infer(classifier, policy, frames, exit=ExitThresholds(np.array([np.inf] * 3 + [-np.inf]), "softmax", None))
    assert torch.equal(found.actions, whole.actions) and torch.allclose(found.logits, whole.logits, atol=1e-5) and found.processed.all()


def test_several_frames_of_a_decision_end_together(clips):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        classifier = Classifier(replace(TINY, head="mean"), CLASSES).freeze()
        policy = PolicyNetwork(PolicyArchitecture((32, 6, 6), channels=4, features=10, hidden=8), 7).eval().requires_grad_(False)
    frames = classifier.normalise(torch.stack([clips.frames(clip) for clip in range(12)]))
    whole = infer(classifier, policy, frames)
    thresholds = half_leave(whole.logits[:, 1::2])
    found = infer(classifier, policy, frames, exit=thresholds)
    assert found.actions.shape == (12, 2) and set(found.processed.sum(1).tolist()) == {2, 4}
    assert (found.processed.sum(1) // 2 - 1).tolist() == thresholds.steps(whole.logits[:, 1::2].numpy()).tolist()
    assert torch.allclose(found.logits[found.processed], whole.logits[found.processed], atol=1e-4)
    assert (found.macs * 2).tolist() == [whole.macs[0] * (2 if one.all() else 1) for one in found.processed]


def test_evaluation_and_inference_end_at_the_same_steps(classifier, clips, frames):
    policy, _ = strong_policy("continuous")
    features = LiveFeatures(classifier, clips, ContinuousAction(96, 24))
    evaluation = evaluate_policy(features, policy)
    model = ExitModel.of(classifier, policy, 4, 4, skipped="zeros")
    fit = ExitFit.of(model, "train", evaluation.scores)
    flops = flops_of(features, policy_step=policy_flops(policy))
    for kind in CONFIDENCES:
        thresholds = nudged(fit.thresholds(1.0, kind))
        stopped = stop(evaluation, thresholds.steps(evaluation.scores), flops)
        found = torch.cat([each.processed for each in infer_clips(classifier, policy, clips, exit=thresholds, batch_size=5)])
        assert np.array_equal(found.numpy(), stopped.patch_mask) and 0.3 < found.float().mean() < 0.9
        results = list(infer_batches(classifier, policy, [(clips.frames(0)[None],) * 2], exit=thresholds))
        assert results[0].processed.sum() == found[0].sum()
        assert stopped.macs == infer(classifier, policy, frames, exit=thresholds).macs.double().mean().item()
    costs = [point["gflops"] for point in exit_curve(evaluation, fit, "softmax", flops)]
    assert min(costs) < 0.6 * max(costs) and max(costs) < evaluation.macs / 1e9 * 2


# Thresholds of another model


@pytest.fixture(scope="module")
def fitted(classifier, clips):
    policy, _ = strong_policy("published")
    model = ExitModel.of(classifier, policy, 4, 4, skipped="zeros")
    return policy, ExitFit.of(model, "train", np.zeros((5, 4, 10))).thresholds(1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier": "0" * 64}, "they are for classifier=000000000000 and it has classifier="),
        ({"policy": "0" * 64}, "they are for policy=000000000000 and it has policy="),
        ({"num_frames": 16}, "they are for num_frames=16 and it has num_frames=4; fit them again on its training clips"),
        ({"num_steps": 2}, "they are for num_steps=2 and it has num_steps=4"),
        ({"patch_size": 32}, "they are for patch_size=32 and it has patch_size=24"),
        ({"skipped": "last"}, "they are for skipped=last and it has skipped=zeros"),
        ({"keep_threshold": 0.5}, "they are for keep_threshold=0.5 and it has keep_threshold=None"),
    ],
)
def test_thresholds_of_another_model_are_refused_by_name(classifier, frames, fitted, change, message):
    policy, thresholds = fitted
    assert infer(classifier, policy, frames[:1], exit=thresholds).processed.any()
    with pytest.raises(InputError, match=f"exit thresholds must be those of the model: {message}"):
        infer(classifier, policy, frames[:1], exit=replace(thresholds, model=replace(thresholds.model, **change)))


def test_a_temporal_shift_has_no_exit(clips, fitted):
    classifier = Classifier(replace(TINY, shift=0.125, shift_place="block"), CLASSES).freeze()
    with pytest.raises(InputError, match="exit must be left out with a classifier with temporal shift, which mixes all frames of a clip"):
        infer(classifier, fitted[0], torch.zeros(1, 4, 3, 96, 96), exit=replace(fitted[1], model=None))


def test_a_policy_that_cannot_skip_has_no_threshold_on_the_way_either(classifier, frames, fitted):
    with pytest.raises(InputError, match=r"keep_threshold=0\.5 is for policies that skip; train one with env\.action=skip"):
        infer(classifier, fitted[0], frames[:1], keep_threshold=0.5, exit=replace(fitted[1], model=None))


def test_a_policy_for_another_glancer_is_refused_on_the_way_too(classifier, frames, fitted):
    other = PolicyNetwork(PolicyArchitecture((32, 8, 8), channels=4, features=10, hidden=8), 7)
    with pytest.raises(InputError, match=r"glance maps of shape \(32, 8, 8\), the classifier's glancer makes \(16, 6, 6\)"):
        infer(classifier, other, frames[:1], exit=replace(fitted[1], model=None))
