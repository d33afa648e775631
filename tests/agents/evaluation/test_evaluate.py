import io
import math

import numpy as np
import pytest
import torch
from conftest import TINY_COST
from rich.console import Console

from adafocus_env.action import ContinuousAction, GridAction
from adafocus_env.features.live import LiveFeatures
from adafocus_env.vector_env import AdaFocusVectorEnv
from agents.evaluation import evaluate as evaluation
from agents.evaluation.evaluate import evaluate, evaluate_policy
from agents.evaluation.metrics import METRICS, Metric, PolicyEvaluation, location_entropy, movement, step_metrics
from agents.policies.baselines import CentrePatch, Oracle, RandomPatch
from agents.policies.networks import PolicyArchitecture, PolicyNetwork
from agents.runs import pictures
from agents.runs.pictures import save_comparison
from agents.runs.progress import Display
from agents.runs.report import ORDER, report, table
from classifiers.errors import InputError

FIGURE = pictures.Figure
GRID = GridAction(7, 96, 24)
MOVING = {"learned", "random", "centre", "gaussian", "saliency", "oracle", "greedy_oracle"}


@pytest.fixture(scope="module")
def policy():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return PolicyNetwork(PolicyArchitecture((16, 6, 6), channels=4, features=10, hidden=8), 7).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def evaluated(bank, policy):
    return evaluate(bank, policy, seed=0)


# One policy


@pytest.mark.parametrize(("clips_at_once", "patches_at_once"), [(1, 1), (5, 256), (11, 8)])
def test_every_clip_is_evaluated_once_for_all_batch_sizes(bank, policy, clips, monkeypatch, clips_at_once, patches_at_once):
    def results():
        evaluations = evaluate(bank, policy, seed=0)[1]
        return [evaluations[name] for name in ("learned", "oracle", "greedy_oracle")]

    whole = results()
    monkeypatch.setattr(evaluation, "CLIPS_AT_ONCE", clips_at_once)
    monkeypatch.setattr(evaluation, "PATCHES_AT_ONCE", patches_at_once)
    for one, other in zip(whole, results(), strict=True):
        assert one.actions.shape == (12, 4) and len(one.scores) == 12 and one.patch_mask.all()
        assert np.array_equal(one.actions, other.actions) and one.scores == pytest.approx(other.scores, abs=1e-5)


@pytest.mark.numerical
def test_confidence_and_correctness_are_those_of_the_classifier(bank, classifier, clips):
    played = evaluate_policy(bank, RandomPatch(bank.action, 0))
    for clip in range(12):
        glances = bank.glance_vectors(np.array(clip), np.arange(4))
        scores, _ = classifier.classify(glances[None], bank.focus_vectors(np.array(clip), np.arange(4), played.actions[clip])[None])
        probabilities = scores[0, -1].softmax(-1)
        assert played.confidence[clip] == pytest.approx(float(probabilities[clips.labels[clip]]), abs=1e-5)
        assert played.correct[clip] == (int(probabilities.argmax()) == clips.labels[clip])


@pytest.mark.numerical
def test_the_scores_are_those_of_the_environment_at_every_step(bank, clips):
    result = evaluate_policy(bank, RandomPatch(bank.action, 0))
    actions, scores = result.actions, result.scores
    env = AdaFocusVectorEnv(12, bank.classifier, clips, reward="confidence", grid=7, bank=bank, autoreset_mode="DISABLED")
    env.reset(seed=0, options={"clips": list(range(12))})
    for step in range(4):
        _, _, _, _, info = env.step(actions[:, step])
        assert np.array_equal(info["correct"], scores[:, step].argmax(-1) == clips.labels)
        probabilities = torch.from_numpy(scores[:, step]).softmax(-1)
        assert info["confidence"] == pytest.approx(probabilities[np.arange(12), clips.labels].numpy(), abs=1e-5)


@pytest.mark.numerical
def test_a_policy_chooses_the_same_in_the_environment_as_from_references(bank, clips):
    stepped = evaluation._in_environment(bank, Oracle(bank), "reference", "zeros")(np.arange(12))
    assert np.array_equal(stepped, evaluate_policy(bank, Oracle(bank)).actions)


@pytest.mark.numerical
def test_without_a_bank_the_scores_are_the_same_and_every_patch_is_seen_once(bank, classifier, clips, monkeypatch):
    seen = []
    live = LiveFeatures(classifier, clips, bank.action)
    focus = live.classifier.focus
    monkeypatch.setattr(live.classifier, "focus", lambda patches, num_frames=1: (seen.append(len(patches)), focus(patches))[1])
    scores = evaluate_policy(live, RandomPatch(bank.action, 0)).scores
    assert sum(seen) == 12 * 4
    monkeypatch.undo()
    assert scores == pytest.approx(evaluate_policy(bank, RandomPatch(bank.action, 0)).scores, abs=1e-4)


# Measures by hand


def acting(actions, action=GRID, patch_mask=None):
    """An evaluation with these actions; its scores are not read."""
    actions = np.array(actions)
    mask = np.ones(actions.shape[:2], bool) if patch_mask is None else np.array(patch_mask)
    return PolicyEvaluation(np.zeros((len(actions), 1, 2), np.float32), [(0,)] * len(actions), 0, mask, actions, action)


def test_location_entropy():
    assert location_entropy(acting(np.full((3, 4), 24))) == 0
    assert location_entropy(acting(np.arange(49).reshape(7, 7))) == pytest.approx(math.log(49))
    assert location_entropy(acting([[0, 0], [0, 48]])) == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert location_entropy(acting([[0, 9], [0, 48]], patch_mask=[[True, False], [True, True]])) == pytest.approx(
        -2 / 3 * math.log(2 / 3) - 1 / 3 * math.log(1 / 3)
    )
    assert location_entropy(acting([[0, 1]], patch_mask=[[False, False]])) == 0
    assert location_entropy(acting([[[0.5, 0.5], [0.51, 0.5], [0.99, 0.99]]], ContinuousAction(96, 24))) == pytest.approx(
        -2 / 3 * math.log(2 / 3) - 1 / 3 * math.log(1 / 3)
    )


def test_movement_in_fractions_of_the_frame_less_the_patch():
    def of(cells, grid=GRID):
        return movement(acting(cells, grid))

    assert of(np.full((3, 4), 24)) == 0
    assert of([[0, 6]]) == 1  # from the left border to the right one
    assert of([[0, 48]]) == pytest.approx(math.sqrt(2))
    assert of([[0, 6, 6], [3, 3, 24]]) == pytest.approx((1 + 0 + 0 + 0.5) / 4)
    assert of([[0], [48]]) == 0  # one frame per clip
    assert movement(acting([[0, 3, 6]], patch_mask=[[True, False, True]])) == 1  # between patches
    assert of([[0, 3]], GridAction(2, 24, 24)) == 0  # the patch is the frame


# The table


def test_every_policy_is_measured(evaluated, policy):
    measures, plays = evaluated
    assert set(measures) == set(ORDER) and set(plays) == MOVING
    for name, measured in measures.items():
        moving = {"kept", "location_entropy", "movement"} if name in MOVING else set()
        assert set(measured) == {"top1", "top5", "map", "confidence", "gflops", "steps"} | moving, name
        assert set(measured["steps"]) == {"top1", "top5", "map"}
        for each, values in measured["steps"].items():
            assert len(values) == 4 and all(0 <= value <= 1 for value in values) and values[-1] == measured[each]
        if moving:
            assert measured["top1"] == plays[name].correct.mean()
            assert measured["confidence"] == pytest.approx(plays[name].confidence.mean())
            assert measured["location_entropy"] == location_entropy(plays[name])
            assert measured["movement"] == movement(plays[name])
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
        for name, focus_vectors in (("glance_only", torch.zeros_like(whole)), ("full_frame", whole)):
            scores = classifier.classify(glances, focus_vectors)[0].numpy()
            assert evaluated[0][name]["top1"] == (scores[:, -1].argmax(-1) == clips.labels).mean()
            assert evaluated[0][name]["steps"] == step_metrics(scores, [(label,) for label in clips.labels])


def test_the_first_label_counts_for_accuracy_and_all_labels_for_map(bank, clips, evaluated, monkeypatch):
    monkeypatch.setattr(bank.clips, "label_sets", [(label, (label + 1) % 10) for label in clips.labels.tolist()])
    more, one = evaluate(bank, None, seed=0)[0], evaluated[0]
    for name in more:
        assert {key: more[name]["steps"][key] for key in ("top1", "top5")} == {key: one[name]["steps"][key] for key in ("top1", "top5")}
        assert more[name]["confidence"] == one[name]["confidence"] and more[name]["map"] != one[name]["map"]


def test_the_same_seed_gives_the_same_table(bank, policy, evaluated):
    assert evaluate(bank, policy, seed=0)[0] == evaluated[0]
    assert evaluate(bank, policy, seed=1)[0]["random"] != evaluated[0]["random"]


def test_without_truth_there_is_no_oracle_and_without_a_policy_nothing_learned(bank, clips, monkeypatch):
    monkeypatch.setattr(clips, "has_truth", False)
    names = []
    measures, plays = evaluate(bank, None, seed=0, progress=names.append)
    assert set(measures) == set(ORDER) - {"oracle", "learned"} == set(names)
    assert set(plays) == MOVING - {"oracle", "learned"}


def test_the_labels_are_looked_up_and_never_seen_by_a_policy(bank, clips, policy, monkeypatch):
    before = evaluate(bank, policy, seed=0)[1]
    monkeypatch.setattr(clips, "labels", np.roll(clips.labels, 1))
    after = evaluate(bank, policy, seed=0)[1]
    for name in ("learned", "random", "centre", "gaussian", "saliency", "oracle"):
        assert np.array_equal(before[name].actions, after[name].actions), name
    assert not np.array_equal(before["greedy_oracle"].actions, after["greedy_oracle"].actions)


def test_centre_is_the_same_for_every_clip(evaluated):
    assert (evaluated[1]["centre"].actions == CentrePatch(GRID).predict(np.zeros((1, 2), np.int64))[0]).all()


# The report


@pytest.fixture(scope="module")
def reported(bank, policy, tmp_path_factory):
    """What is printed in 80 columns, and the result, of a data set that is measured by mAP."""
    display = Display()
    display.console = Console(width=80, file=io.StringIO())
    folder = tmp_path_factory.mktemp("report")
    result = report(bank, policy, folder, display, seed=0, data="demo", metric="map")
    return display.console.file.getvalue(), result, folder


def test_the_result_names_data_metric_and_classes(reported, classifier, evaluated):
    result = reported[1]
    assert {key: result[key] for key in result if key != "policies"} == {
        "metric": "map", "seed": 0, "data": "demo", "split": "test", "clips": 12, "classes": list(classifier.classes),
        "classifier": classifier.fingerprint(),
    }  # fmt: skip
    assert result["policies"] == evaluated[0]
    assert {path.name for path in reported[2].iterdir()} == {"result.png", "contact_sheet.png"}


def test_the_table_has_map_beside_top_1_where_that_is_the_metric(reported, evaluated):
    lines = reported[0].splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in reported[0]
    (heading,) = [line for line in lines if "policy" in line]
    assert [word.strip() for word in heading.strip("┃").split("┃")] == [
        "policy", "top-1", "mAP", "GFLOPs", "location entropy", "movement"
    ]  # fmt: skip
    (learned,) = [line for line in lines if "learned" in line]
    measured = evaluated[0]["learned"]
    assert f"{measured['top1']:.1%} │ {measured['map']:.1%}" in " ".join(learned.split())
    assert [column.header for column in table(evaluated[0], "").columns][1:3] == ["top-1", "GFLOPs"]


def test_a_new_metric_is_one_entry(bank, policy, monkeypatch):
    metric = Metric(lambda e: None if e.actions is None else float(e.actions[0, 0]), "first", ".0f")
    monkeypatch.setitem(METRICS, "first_cell", metric)
    measures = evaluate(bank, policy, seed=0)[0]
    assert measures["centre"]["first_cell"] == 24 and "first_cell" not in measures["glance_only"]
    shown = table(measures, "")
    assert shown.columns[-1].header == "first" and list(shown.columns[-1].cells)[1:3] == [f"{measures['random']['first_cell']:.0f}", "24"]


def test_the_share_of_patches_is_a_column_where_a_policy_skips(evaluated):
    skipping = {**evaluated[0], "learned": {**evaluated[0]["learned"], "kept": 0.25}}
    assert "kept" not in [column.header for column in table(evaluated[0], "").columns]
    (column,) = [column for column in table(skipping, "").columns if column.header == "kept"]
    assert list(column.cells)[:2] == ["25.0%", "100.0%"] and "–" in list(column.cells)


def test_a_metric_that_is_not_known_is_refused(bank):
    with pytest.raises(InputError, match=r"metric='mAP' is not known; choose one of \['map', 'top1'\]"):
        report(bank, None, None, Display(), seed=0, data="demo", metric="mAP")


@pytest.mark.parametrize("metric", ["top1", "map"])
def test_the_picture_shows_the_metric_against_the_frames_looked_at(evaluated, tmp_path, monkeypatch, metric):
    figures = []
    monkeypatch.setattr(pictures, "Figure", lambda **options: figures.append(figure := FIGURE(**options)) or figure)
    save_comparison(evaluated[0], "", tmp_path / "result.png", metric=metric, num_frames=8)  # two frames per step
    (figure,) = figures
    lines = {line.get_label(): line.get_xydata() for axes in figure.axes for line in axes.lines}
    assert set(lines) == {"learned", "random", "oracle"}
    for name, points in lines.items():
        assert points[:, 0].tolist() == [2, 4, 6, 8]
        assert points[:, 1] == pytest.approx(100 * np.array(evaluated[0][name]["steps"][metric]))


class Counting:
    """Any object with `predict`: looks at cell 1 in the first step, at cell 2 in the next, by what it remembers of an episode."""

    def __init__(self, observation):
        self.observation, self.seen = observation, []

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        assert deterministic and (state is None) == episode_start.all()
        self.seen.append(observation.shape[1:])
        count = np.zeros(len(observation), np.int64) if state is None else state
        return count + 1, count + 1


@pytest.mark.parametrize(("observation", "shape"), [("reference", (2,)), ("vector", (16,)), ("map", (16, 6, 6))])
def test_any_object_with_predict_is_evaluated_and_keeps_its_state(bank, observation, shape):
    policy = Counting(observation)
    measures, plays = evaluate(bank, policy, seed=0)
    assert plays["learned"].actions.tolist() == [[1, 2, 3, 4]] * 12
    assert set(policy.seen) == {shape}
    assert measures["learned"]["gflops"] == measures["random"]["gflops"], "it runs no network"
