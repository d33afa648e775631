import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from agents.evaluation.metrics import confidence, hits, mean_average_precision, step_metrics, top_k
from classifiers.errors import InputError

RELEASED = json.loads((Path(__file__).parents[2] / "data" / "released_metrics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def drawn():
    """Return the scores (200, 1, 20) and label sets of the stored results."""
    rs = np.random.RandomState(7)  # its draws are the same in every version of NumPy
    scores = rs.randn(200, 1, 20).astype(np.float32)
    return scores, [tuple(rs.choice(20, rs.choice([1, 2, 3], p=[0.6, 0.3, 0.1]), replace=False).tolist()) for _ in scores]


def firsts(labels):
    return np.array([found[0] for found in labels])


def one_step(rows):
    """Return rows of scores as (N, 1, K) float32."""
    return np.array(rows, np.float32)[:, None]


# As the authors' code


def test_map_is_the_authors_where_every_class_occurs(drawn):
    scores, labels = drawn
    assert 100 * mean_average_precision(scores, labels)[0] == pytest.approx(RELEASED["map_all_labels"], rel=1e-6)
    assert 100 * mean_average_precision(scores, [found[:1] for found in labels])[0] == pytest.approx(RELEASED["map_first_label"], rel=1e-6)


def test_map_is_right_where_a_class_is_absent_and_the_authors_code_is_not(drawn):
    scores, labels = drawn
    without = [tuple(6 if label == 5 else label for label in found) for found in labels]
    stored = RELEASED["map_all_labels_class_5_absent"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = 100 * mean_average_precision(scores, without)[0]
    assert found == pytest.approx(stored["without_renumbering"], rel=1e-6)
    assert abs(found - stored["authors"]) > 0.05


def test_accuracy_counts_the_first_label_only(drawn):
    scores, labels = drawn
    measured = step_metrics(scores, labels)
    assert {name: 100 * measured[name][0] for name in ("top1", "top5")} == pytest.approx(RELEASED["accuracy_first_label"], rel=1e-6)
    assert top_k(scores, np.array([found[-1] for found in labels]), 5) != measured["top5"]


@pytest.mark.parametrize("k", [1, 2, 5, 19])
def test_accuracy_is_that_of_scikit_learn_where_scores_differ(drawn, k):
    scores, labels = drawn
    assert top_k(scores, firsts(labels), k)[0] == top_k_accuracy_score(firsts(labels), scores[:, 0], k=k, labels=range(20))


# By hand


def test_map_by_hand():
    scores = np.log(one_step([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.1, 0.9]]))
    # class 0 ranks clips 0, 1, 2, 3 and has 0 and 2: (1/1 + 2/3) / 2; class 1 ranks 3, 2, 1, 0 and has 3, 1: (1/1 + 2/3) / 2
    assert mean_average_precision(scores, [(0,), (1,), (0,), (1,)]) == pytest.approx([5 / 6])
    assert mean_average_precision(scores, [(0,), (1,), (0, 1), (1,)]) == pytest.approx([(5 / 6 + 1) / 2])
    assert mean_average_precision(scores, [(0,), (0,), (0,), (0,)]) == [0.5]  # an absent class counts 0


def test_map_ranks_the_softmax_and_not_the_scores(drawn):
    scores, labels = drawn
    moved = scores + np.random.default_rng(0).normal(size=(200, 1, 1)).astype(np.float32)  # the softmax stays what it is
    assert mean_average_precision(moved, labels) == pytest.approx(mean_average_precision(scores, labels), abs=1e-4)


def test_map_ranks_certain_predictions():
    """Softmax scores that are all 1 in float32."""
    scores = one_step([[20.0, 0.0], [22.0, 0.0], [24.0, 0.0]])
    assert mean_average_precision(scores, [(1,), (0,), (0,)]) == [1.0]


def test_map_of_equal_scores_does_not_depend_on_the_order_of_the_clips():
    scores, labels = one_step([[0.0, 0.0]] * 4), [(0,), (1,), (1,), (1,)]
    assert mean_average_precision(scores, labels) == mean_average_precision(scores, labels[::-1]) == [(0.25 + 0.75) / 2]


def test_of_equal_scores_the_lower_class_comes_first():
    scores = one_step([[1.0, 2.0, 2.0, 0.0]] * 4)
    assert hits(scores, np.arange(4), 1)[:, 0].tolist() == [False, True, False, False]
    assert hits(scores, np.arange(4), 2)[:, 0].tolist() == [False, True, True, False]
    assert hits(scores, np.arange(4), 3)[:, 0].tolist() == [True, True, True, False]
    assert hits(np.zeros((4, 1, 4), np.float32), np.arange(4), 1)[:, 0].tolist() == [True, False, False, False]  # as argmax


def test_confidence_is_the_softmax_score_of_the_label():
    scores = np.log(np.array([[[0.2, 0.8], [0.5, 0.5]], [[0.9, 0.1], [0.3, 0.7]]], np.float32))
    assert confidence(scores, np.array([1, 0])) == pytest.approx(np.array([[0.8, 0.5], [0.9, 0.3]]))


def test_every_step_is_measured_on_its_own():
    scores = np.random.default_rng(3).normal(size=(30, 4, 7)).astype(np.float32)
    labels = [(clip % 7, (clip + 3) % 7) for clip in range(30)]
    measured = step_metrics(scores, labels)
    assert set(measured) == {"top1", "top5", "map"} and all(len(values) == 4 for values in measured.values())
    for step in range(4):
        assert {name: values[step : step + 1] for name, values in measured.items()} == step_metrics(scores[:, step : step + 1], labels)
        answers = scores[:, step].argmax(-1)
        assert measured["top1"][step] == np.mean(answers == np.arange(30) % 7)


@pytest.mark.parametrize(("classes", "names"), [(2, {"top1", "map"}), (5, {"top1", "map"}), (6, {"top1", "top5", "map"})])
def test_top_5_says_something_from_six_classes_on(classes, names):
    scores = np.random.default_rng(0).normal(size=(20, 1, classes)).astype(np.float32)
    assert set(step_metrics(scores, [(clip % classes,) for clip in range(20)])) == names
    assert (top_k(scores, np.arange(20) % classes, 5)[0] == 1) == (classes <= 5)


def test_one_clip_with_two_classes():
    measured = step_metrics(one_step([[0.3, 0.1]]), [(0,)])
    assert measured == {"top1": [1.0], "map": [0.5]}
    assert step_metrics(one_step([[0.3, 0.1]]), [(0, 1)])["map"] == [1.0]


# What cannot be measured

BROKEN = np.zeros((2, 3, 4), np.float32)
BROKEN[1, 2, 0] = np.nan


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros((2, 4), np.float32), [(0,), (1,)], r"scores have shape \(2, 4\); give \(N, T, K\)"),
        (np.zeros((0, 3, 4), np.float32), [], r"scores have shape \(0, 3, 4\); .* of one clip or more"),
        (np.zeros((2, 3, 4), np.float32), [(0,)], "labels are those of 1 clips, scores of 2; give one set of labels per clip"),
        (np.zeros((2, 3, 4), np.float32), [(0,), ()], "labels of clip 1 are empty; give each clip one label or more"),
        (np.zeros((2, 3, 4), np.float32), [(0,), (1, 4)], r"labels of clip 1 are \(1, 4\); they must be integers from 0 to 3"),
        (np.zeros((2, 3, 4), np.float32), [(-1,), (1,)], r"labels of clip 0 are \(-1,\); they must be integers"),
        (BROKEN, [(0,), (1,)], "scores of clip 1 hold nan after step 3: the classifier's weights are broken; take another"),
    ],
)
def test_what_cannot_be_measured_is_refused(scores, labels, message):
    with pytest.raises(InputError, match=message):
        step_metrics(scores, labels)
