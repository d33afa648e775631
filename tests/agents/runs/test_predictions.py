import csv
from dataclasses import replace

import numpy as np
import pytest

from adafocus_env.action import GridAction, boxes_of, with_skipping
from adafocus_env.features.live import LiveFeatures
from agents.evaluation.evaluate import evaluate, evaluate_policy
from agents.evaluation.metrics import confidence, count_hits, hits
from agents.policies.baselines import Baseline, RandomPatch
from agents.runs.predictions import Predictions, save_predictions
from classifiers.errors import InputError

GRID = GridAction(7, 96, 24)


@pytest.fixture(scope="module")
def plays(bank):
    """Return evaluations with random patches of another seed in place of a learned policy."""
    return evaluate(bank, RandomPatch(GRID, 5), seed=0)[1]


@pytest.fixture(scope="module")
def file(bank, plays, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "predictions.csv"
    save_predictions(bank, plays, path)
    return path


def test_every_clip_has_a_row_and_equal_evaluations_equal_bytes(file, bank, plays, tmp_path):
    with file.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["file"] for row in rows] == list(bank.clips.names)
    assert [row["label"] for row in rows] == [bank.classifier.classes[label] for label in bank.clips.labels]
    assert [name for name in rows[0] if name.endswith("_4")] == ["confidence_4", "box_4", "hit_4", "random_box_4"]
    save_predictions(bank, plays, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == file.read_bytes()


def test_what_is_read_is_what_was_evaluated(file, plays):
    read, learned = Predictions(file), plays["learned"]
    assert len(read) == len(learned.labels) and read.policies == list(plays)
    assert read.by_step("confidence") == pytest.approx(confidence(learned.scores, learned.labels), abs=1e-4)
    assert np.array_equal(read.boxes(), boxes_of(GRID, learned.actions))
    assert np.array_equal(read.boxes("random"), boxes_of(GRID, plays["random"].actions))
    counted = count_hits(learned)
    assert np.nansum(read.by_step("hit")) == counted[0].sum() and np.isfinite(read.by_step("hit")).sum() == (counted[1] > 0).sum()
    for name in ("learned", "random", "greedy_oracle"):
        assert np.array_equal(read.correct(name), plays[name].correct), name
        assert read.anytime(name) == pytest.approx(hits(plays[name].scores, plays[name].labels, 1).mean(1), abs=1e-4), name
        assert read.confidence(name) == pytest.approx(plays[name].confidence, abs=1e-4), name


def test_skipped_steps_have_no_box_and_unknown_targets_no_hits(bank, plays, tmp_path):
    class EveryOther(Baseline):
        action_space = with_skipping(GRID).space

        def choose(self, references):
            return np.where(references[:, 1] % 2, 49, 7)

    learned = replace(evaluate_policy(LiveFeatures(bank.classifier, bank.clips, GRID), EveryOther()), targets=None)
    save_predictions(bank, {**plays, "learned": learned}, tmp_path / "predictions.csv")
    read = Predictions(tmp_path / "predictions.csv")
    assert np.array_equal(np.isnan(read.boxes()).all(-1)[0], [False, True, False, True])
    assert read.boxes()[0, 0].tolist() == [12, 0, 36, 24]
    assert "hit_1" not in (tmp_path / "predictions.csv").read_text()


@pytest.mark.parametrize("text", ["", "file,label\na,b\n"])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "predictions.csv").write_text(text)
    with pytest.raises(InputError, match=r"predictions\.csv must have rows with the columns file, .*, got none in (file|prediction);"):
        Predictions(tmp_path / "predictions.csv")
