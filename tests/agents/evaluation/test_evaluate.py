import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY_COST, slow_except
from PIL import Image, ImageDraw
from rich.console import Console

from adafocus_env.action import ContinuousAction, GridAction
from adafocus_env.clips.transforms import Targets
from adafocus_env.features.live import LiveFeatures
from adafocus_env.vector_env import AdaFocusVectorEnv
from agents.evaluation import evaluate as evaluation
from agents.evaluation.evaluate import evaluate, evaluate_policy
from agents.evaluation.looking import verdict
from agents.evaluation.metrics import (
    METRICS,
    Metric,
    PolicyEvaluation,
    add_gaps,
    interval,
    location_entropy,
    movement,
    step_metrics,
    summarize,
)
from agents.policies.baselines import RULES, CentrePatch, Oracle, RandomPatch
from agents.policies.networks import PolicyArchitecture, PolicyNetwork
from agents.runs import plots as pictures
from agents.runs.contact_sheet import GAP, HEADING, save_contact_sheet
from agents.runs.plots import save_comparison
from agents.runs.progress import Display
from agents.runs.report import ORDER, report, table
from classifiers.errors import InputError

FIGURE = pictures.Figure
GRID = GridAction(7, 96, 24)
MOVING = {"learned", "random", "centre", "gaussian", *RULES, "oracle", "greedy_oracle"}


@pytest.fixture(scope="module")
def policy():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return PolicyNetwork(PolicyArchitecture((16, 6, 6), channels=4, features=10, hidden=8), 7).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def evaluated(bank, policy):
    return evaluate(bank, policy, seed=0)


# One policy


@pytest.mark.parametrize(("clips_at_once", "patches_at_once"), slow_except([(5, 256)], [(1, 1), (5, 256), (11, 8)]))
def test_every_clip_is_evaluated_once_for_all_batch_sizes(bank, policy, evaluated, monkeypatch, clips_at_once, patches_at_once):
    monkeypatch.setattr(evaluation, "CLIPS_AT_ONCE", clips_at_once)
    monkeypatch.setattr(evaluation, "PATCHES_AT_ONCE", patches_at_once)
    again = evaluate(bank, policy, seed=0)
    for name in ("learned", "oracle", "greedy_oracle"):
        one, other = evaluated[1][name], again[1][name]
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
    """Return an evaluation with the given actions; its scores do not matter."""
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


def on_target(cells, visible, centre=(47.5, 47.5), side=14, frames=1, patch_mask=None):
    """Return an evaluation with a fixed box of the given side; class 0 is correct in every step except the first."""
    played = acting(cells, patch_mask=patch_mask)
    scores = np.zeros((*played.patch_mask.shape, 2), np.float32)
    scores[:, 0, 1] = 1
    middle = np.array(centre) + 0.5
    box = np.concatenate([middle - side / 2, middle + side / 2]).astype(np.float32)
    visible = np.array(visible)
    boxes = np.broadcast_to(box, (*visible.shape, 4))
    return replace(played, scores=scores, targets=Targets(boxes, visible))


def test_hits_are_patches_that_cover_three_quarters_of_a_visible_target():
    """Cell 24 is the patch of rows and columns 36 to 59; cell 25 starts at column 48."""
    measured = summarize(on_target([[24, 25, 24, 0]], [[True, True, False, True]]))
    assert measured["hit_rate"] == pytest.approx(1 / 3) and measured["steps"]["hit_rate"] == [1, 0, None, 0]
    for middle, hit in ((40.0, 1), (39.5, 1), (39.0, 0)):  # 11, 10.5 and 10 of its 14 columns are covered, from column 36 on
        assert summarize(on_target([[24]], [[True]], (47.5, middle - 0.5)))["hit_rate"] == hit
    assert summarize(on_target([[24, 0]], [[True, True]], patch_mask=[[True, False]]))["hit_rate"] == 1, "skipped frames do not count"


def test_the_first_patch_is_that_of_a_frame_with_the_target():
    mask = [[True, True, True], [False, True, True], [True, True, True], [False, False, True]]
    visible = [[True, True, True], [True, True, True], [False, False, False], [True, True, False]]
    played = on_target(np.zeros((4, 3), int), visible, patch_mask=mask)
    measured = summarize(played)
    assert measured["top1_first"] == 0.5, "wrong after step 1, right after step 2; two clips have no such patch"
    assert measured["top1_anytime"] == pytest.approx(2 / 3)
    assert measured["hit_rate"] == 0 and summarize(played)["hit_rate_interval"] == [0, 0]


def test_without_a_visible_target_nothing_is_known_of_hits():
    for measured in (summarize(on_target([[0]], [[False]])), summarize(on_target([[0]], [[True]], patch_mask=[[False]]))):
        assert not {"hit_rate", "hit_rate_interval", "top1_first", "top1_first_interval"} & set(measured)
        assert "hit_rate" not in measured["steps"] and measured["top1_anytime"] == 0


def test_the_frames_of_a_decision_share_its_patch():
    measured = summarize(on_target([[24, 0]], [[True, False, True, True]]))
    assert measured["hit_rate"] == pytest.approx(1 / 3) and measured["steps"]["hit_rate"] == [1, 0]


def test_intervals_are_those_of_the_bootstrap():
    """For a share of many clips, the interval equals the normal approximation; a ratio weights clips by their counts."""
    right = np.arange(400) % 4 == 0
    low, high = interval(right, np.ones(400))
    assert [low, high] == pytest.approx([0.25 - 1.96 * 0.0217, 0.25 + 1.96 * 0.0217], abs=0.005)
    assert interval(right, np.ones(400)) == [low, high], "the seed is fixed"
    assert interval(np.array([3, 0, 5]), np.array([3, 0, 5])) == [1, 1]


def test_shares_of_the_gap_are_shown_from_ten_points_on():
    results = {"random": {"top1": 0.5, "top1_anytime": 0.4}, "learned": {"top1": 0.55, "top1_anytime": 0.55}}
    add_gaps(results | {"greedy_oracle": {"top1": 0.6, "top1_anytime": 0.49}})
    assert results["learned"]["gap_top1"] == pytest.approx(0.5) and "gap_anytime" not in results["learned"]
    add_gaps(results | {"oracle": {"top1": 0.55, "top1_anytime": 0.6}, "greedy_oracle": {"top1": 0.6, "top1_anytime": 0.4}})
    assert results["learned"]["gap_anytime"] == pytest.approx(0.75), "ground truth comes before the greedy oracle"
    alone = {"random": {"top1": 0.5, "top1_anytime": 0.4}}
    add_gaps(alone)
    assert alone == {"random": {"top1": 0.5, "top1_anytime": 0.4}}


def test_the_caption_says_how_much_of_the_gap_is_closed(evaluated):
    learned = {**evaluated[0]["learned"], "gap_top1": 0.9234, "gap_anytime": 0.8}
    caption = table({**evaluated[0], "learned": learned}, "").caption
    assert "gap to the oracle closed: anytime 80%, top-1 92%" in caption
    without = {key: value for key, value in learned.items() if not key.startswith("gap_")}
    assert "gap" not in table({**evaluated[0], "learned": without}, "").caption


# The table


def test_every_policy_is_measured(evaluated, policy):
    measures, plays = evaluated
    assert set(measures) == set(ORDER) and set(plays) == MOVING
    for name, measured in measures.items():
        moving = {"kept", "location_entropy", "movement", "hit_rate"} if name in MOVING else set()
        ratios = {"top1_anytime"} | (moving & {"hit_rate"}) | ({"top1_first"} if name != "glance_only" else set())
        always = {"top1", "top5", "map", "confidence", "confidence_anytime", "gflops", "steps"}
        gaps = {key for key in measured if key.startswith("gap_")}
        assert set(measured) == always | moving | ratios | {f"{ratio}_interval" for ratio in ratios} | gaps, name
        assert set(measured["steps"]) == {"top1", "top5", "map"} | (moving & {"hit_rate"})
        for each, values in measured["steps"].items():
            assert len(values) == 4 and all(0 <= value <= 1 for value in values)
            assert each == "hit_rate" or values[-1] == measured[each]
        for ratio in ratios:
            low, high = measured[f"{ratio}_interval"]
            assert 0 <= low <= measured[ratio] <= high <= 1
        assert measured["top1_anytime"] == pytest.approx(np.mean(measured["steps"]["top1"]))
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
    assert not any({"hit_rate", "top1_first"} & set(measured) for measured in measures.values())
    assert [column.header for column in table(measures, "").columns] == ["policy", "anytime", "top-1", "GFLOPs"]


def test_the_labels_are_looked_up_and_never_seen_by_a_policy(bank, clips, policy, evaluated, monkeypatch):
    before = evaluated[1]
    monkeypatch.setattr(clips, "labels", np.roll(clips.labels, 1))
    after = evaluate(bank, policy, seed=0)[1]
    for name in ("learned", "random", "centre", "gaussian", *RULES, "oracle"):
        assert np.array_equal(before[name].actions, after[name].actions), name
    assert not np.array_equal(before["greedy_oracle"].actions, after["greedy_oracle"].actions)


def test_centre_is_the_same_for_every_clip(evaluated):
    assert (evaluated[1]["centre"].actions == CentrePatch(GRID).predict(np.zeros((1, 2), np.int64))[0]).all()


# The report


@pytest.fixture(scope="module")
def reported(bank, policy, tmp_path_factory):
    """Return the output in 80 columns and the result, for a data set with the metric mAP."""
    display = Display()
    display.console = Console(width=80, file=io.StringIO())
    folder = tmp_path_factory.mktemp("report")
    result = report(bank, policy, folder, display, seed=0, data="demo", metric="map")
    return display.console.file.getvalue(), result, folder


def test_the_result_names_data_metric_and_classes(reported, classifier, evaluated):
    result = reported[1]
    assert {key: result[key] for key in result if key != "policies"} == {
        "metric": "map", "seed": 0, "data": "demo", "split": "test", "clips": 12, "classes": list(classifier.classes),
        "classifier": classifier.fingerprint(), "note": verdict(*evaluated),
    }  # fmt: skip
    assert result["policies"] == evaluated[0]
    assert {path.name for path in reported[2].iterdir()} == {"result.png", "contact_sheet.png", "predictions.csv"}


def test_a_sentence_below_the_table_says_that_looking_does_not_matter(reported):
    """The policy has random weights."""
    note = reported[1]["note"]
    assert note.startswith("Looking does not matter") and reported[0].rstrip().endswith(note)


def test_the_table_has_map_beside_top_1_where_that_is_the_metric(reported, evaluated):
    lines = reported[0].replace(reported[1]["note"], "").splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in reported[0]
    (heading,) = [line for line in lines if "policy" in line]
    assert [word.strip() for word in heading.strip("┃").split("┃")] == [
        "policy", "first", "anytime", "top-1", "mAP", "hits", "GFLOPs"
    ]  # fmt: skip
    (learned,) = [line for line in lines if "learned" in line]
    measured = evaluated[0]["learned"]
    assert f"{measured['top1']:.1%} │ {measured['map']:.1%} │ {measured['hit_rate']:.1%}" in " ".join(learned.split())
    assert [column.header for column in table(evaluated[0], "").columns][3:] == ["top-1", "hits", "GFLOPs"]


def test_a_new_metric_is_one_entry(bank, policy, monkeypatch):
    metric = Metric(lambda e: None if e.actions is None else float(e.actions[0, 0]), "first cell", ".0f")
    monkeypatch.setitem(METRICS, "first_cell", metric)
    measures = evaluate(bank, policy, seed=0)[0]
    assert measures["centre"]["first_cell"] == 24 and "first_cell" not in measures["glance_only"]
    shown = table(measures, "").columns[-1]
    assert shown.header == "first cell" and list(shown.cells)[1:3] == [f"{measures['random']['first_cell']:.0f}", "24"]


def test_the_share_of_patches_is_a_column_where_a_policy_skips(evaluated):
    skipping = {**evaluated[0], "learned": {**evaluated[0]["learned"], "kept": 0.25}}
    assert "kept" not in [column.header for column in table(evaluated[0], "").columns]
    (column,) = [column for column in table(skipping, "").columns if column.header == "kept"]
    assert list(column.cells)[:2] == ["25.0%", "100.0%"] and "–" in list(column.cells)


def test_the_contact_sheet_has_a_line_with_the_hit_rate_where_it_is_known(bank, evaluated, tmp_path):
    played = evaluated[1]["learned"]
    for name, each in (("with", played), ("without", replace(played, targets=None))):
        save_contact_sheet(bank, each, tmp_path / f"{name}.png", rows=2)
    known, unknown = (Image.open(tmp_path / f"{name}.png") for name in ("with", "without"))
    assert known.size == (unknown.width, unknown.height + HEADING) and unknown.height == 2 * (2 * 96 + GAP)
    assert np.asarray(known)[:HEADING].min() == 0, "there is text"


def test_the_rows_of_the_contact_sheet_are_named_after_files(bank, evaluated, tmp_path, monkeypatch):
    texts = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, place, text, **options: texts.append(text))
    monkeypatch.setattr(bank.clips, "names", [f"class/Größe {clip}.mp4" for clip in range(len(bank.clips))])
    monkeypatch.setattr(bank.classifier, "classes", ("Straßenbahn an der Haltestelle", *bank.classifier.classes[1:]))
    save_contact_sheet(bank, evaluated[1]["learned"], tmp_path / "sheet.png", rows=2)
    first, last = [text.split("\n") for text in texts if "confidence" in text]
    assert first[0] == "Größe 0.mp4" and last[0] == f"Größe {len(bank.clips) - 1}.mp4"
    assert first[1].startswith("class Straßenbahn") and first[1].endswith("…") and last[1].startswith("class ")


def test_a_metric_that_is_not_known_is_refused(bank):
    with pytest.raises(InputError, match=r"metric='mAP' is not known; choose one of \['map', 'top1'\]"):
        report(bank, None, None, Display(), seed=0, data="demo", metric="mAP")


@pytest.mark.parametrize("metric", ["top1", "map"])
def test_the_picture_shows_the_metric_against_the_frames_looked_at(evaluated, tmp_path, monkeypatch, metric):
    figures = []
    monkeypatch.setattr(pictures, "Figure", lambda **options: figures.append(figure := FIGURE(**options)) or figure)
    save_comparison(evaluated[0], "", tmp_path / "result.png", metric=metric, num_frames=8)  # two frames per step
    (figure,) = figures
    charts = [axes for axes in figure.axes if axes.get_legend_handles_labels()[1][:1] == ["learned"]]
    assert [axes.get_ylabel() for axes in charts] == [{"top1": "top-1, %", "map": "mAP, %"}[metric], "hits, %"]
    for axes, key in zip(charts, (metric, "hit_rate"), strict=True):
        lines = {line.get_label(): line.get_xydata() for line in axes.lines}
        assert set(lines) == {"learned", "random", "oracle"}
        for name, points in lines.items():
            assert points[:, 0].tolist() == [2, 4, 6, 8]
            assert points[:, 1] == pytest.approx(100 * np.array(evaluated[0][name]["steps"][key]))
    bars = [axes.get_xlabel().splitlines()[0] for axes in figure.axes[: -len(charts)]]
    last = f"{charts[0].get_ylabel()[:-3]} after the last frame, %"
    assert bars == ["top-1 after the first patch, %", "anytime top-1, %", last, "hits, %", "GFLOPs per video"]


class Counting:
    """Any object with `predict`: it selects cell 1 in the first step, cell 2 in the next, and so on, from its recurrent state."""

    def __init__(self, observation):
        self.observation, self.seen = observation, []

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        assert deterministic and (state is None) == episode_start.all()
        self.seen.append(observation.shape[1:])
        count = np.zeros(len(observation), np.int64) if state is None else state
        return count + 1, count + 1


@pytest.mark.slow
@pytest.mark.parametrize(("observation", "shape"), [("reference", (2,)), ("vector", (16,)), ("map", (16, 6, 6))])
def test_any_object_with_predict_is_evaluated_and_keeps_its_state(bank, observation, shape):
    policy = Counting(observation)
    measures, plays = evaluate(bank, policy, seed=0)
    assert plays["learned"].actions.tolist() == [[1, 2, 3, 4]] * 12
    assert set(policy.seen) == {shape}
    assert measures["learned"]["gflops"] == measures["random"]["gflops"], "it runs no network"
