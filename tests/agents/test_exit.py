"""Evaluation and prediction with a conditional exit. Thresholds are fitted once on training clips, and both commands use them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_classifier
from PIL import Image
from predictions import lines_of, make_run, one_cell
from tiny_training import empty_plots, make_folder, patch_demo
from videos import square_frames, write_video

from agents import evaluate, export, predict
from agents.config.command import run_command
from agents.config.settings import Evaluate, Export, Predict
from agents.evaluation.conditional_exit import ExitFit
from agents.pipeline import exit_fitting
from agents.policies.networks import PolicyArchitecture, PolicyNetwork
from classifiers import checkpoint
from classifiers.classifier import ClipFormat

pytestmark = pytest.mark.usefixtures("in_process")
COMMANDS = {"evaluate": (evaluate.main, Evaluate), "predict": (predict.main, Predict)}
EXPORT = {"export": (export.main, Export)}


@pytest.fixture(autouse=True)
def small_demo(monkeypatch):
    patch_demo(monkeypatch)
    empty_plots(monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = PolicyNetwork(PolicyArchitecture((16, 6, 6), channels=4, features=10, hidden=8), 7).eval().requires_grad_(False)
    folder = tmp_path_factory.mktemp("runs") / "run"
    return make_run(folder, policy=policy, config="env: {}\nseed: 0\n"), write_video(folder.parent / "a.mp4", square_frames(20))


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "run")


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Return a function that runs a command and returns its status and output, on one line."""
    monkeypatch.chdir(tmp_path)

    def call(name, *arguments):
        status, (main, schema) = 0, {**COMMANDS, **EXPORT}[name]
        try:
            run_command(main, schema, name, arguments=[*map(str, arguments), *([] if name in EXPORT else ["device=cpu"])])
        except SystemExit as ended:
            status = ended.code
        return status, " ".join("".join(capsys.readouterr()).split())

    return call


def stored(run):
    return run / "checkpoints" / "best" / "exit.json"


def test_an_exit_is_a_row_a_curve_and_a_plot(call, run):
    status, printed = call("evaluate", f"run={run}", "exit=1", "out=out")
    assert status == 0 and "exit: fitting thresholds on 10 training clips" in printed and "conditional exit" in printed
    result = json.loads(Path("out/result.json").read_text())
    about, policies = result["exit"], result["policies"]
    fit = ExitFit.load(stored(run))
    assert about["thresholds"] == [value if np.isfinite(value) else None for value in fit.thresholds(1.0).values[:-1]]
    assert (about["p"], about["confidence"], about["train_clips"]) == (1, "softmax", 10) and 1 <= about["steps"] < 4
    assert policies["exit"]["gflops"] == pytest.approx(policies["learned"]["gflops"] * about["steps"] / 4, rel=1e-6)
    [point] = [point for point in about["curve"] if point["p"] == 1]
    assert point == {"p": 1, "gflops": policies["exit"]["gflops"], "steps": about["steps"], "map": policies["exit"]["map"],
        "top1": policies["exit"]["top1"], "top5": policies["exit"]["top5"]}  # fmt: skip
    assert len(about["curve"]) == 35
    with Image.open("out/exit.png") as picture:
        assert picture.width > 500 and len(np.unique(np.asarray(picture.convert("L")))) > 20


def test_a_prediction_says_where_each_window_ended(call, run, made):
    arguments = [f"run={run}", f"source={made[1]}", "window=0.4", "save=[json,sheet,video]", "workers=1"]
    status, printed = call("predict", *arguments, "exit=0.3", "out=early")
    assert status == 0 and "exit: fitting thresholds on 10 training clips" in printed
    assert call("predict", *arguments, "out=whole")[0] == 0
    (early,), (whole,) = lines_of(Path("early")), lines_of(Path("whole"))
    frames = [[frame for frame in early["frames"] if frame["window"] == number] for number in range(len(early["windows"]))]
    assert len(frames) > 1 and any(window["processed"] < 4 for window in early["windows"])
    for window, seen in zip(early["windows"], frames, strict=True):
        assert [frame["processed"] for frame in seen] == [number < window["processed"] for number in range(4)]
        last = seen[window["processed"] - 1]
        for frame in seen[window["processed"] :]:
            assert (frame["box"], frame["skipped"], frame["macs"]) == (None, False, 0)
            assert (frame["class"], frame["confidence"]) == (last["class"], last["confidence"])
        assert window["top"][0]["class"] == last["class"]
    for before, after in zip(early["frames"], whole["frames"], strict=True):
        assert after["processed"]
        assert not before["processed"] or (before["macs"], before["box"]) == (after["macs"], after["box"])
    assert early["macs"] < whole["macs"] and all(window["processed"] == 4 for window in whole["windows"])
    assert {path.name for path in Path("early").glob("a.*")} == {"a.png", "a.mp4"}
    status, printed = call("predict", *arguments, "exit=0.4", "out=early")
    assert status == 2 and "holds predictions that were made with another exit" in printed
    assert f"exit: thresholds from {stored(run)}" in call("predict", *arguments, "exit=0.4", "out=more")[1]


def test_without_a_run_thresholds_are_fitted_beforehand(call, run, made):
    given = [f"classifier={run}/checkpoints/classifier", f"policy={run}/checkpoints/best"]
    source = [f"source={made[1]}", "save=[json]", "workers=1", "exit=1"]
    status, printed = call("predict", *given, *source)
    assert status == 2 and "exit=1.0 needs thresholds fitted on training clips, and" in printed
    assert "exit.json does not exist; fit them once: python -m agents.evaluate classifier=" in printed
    assert call("predict", f"run={run}", *source, "out=first")[0] == 0 == call("predict", *given, *source, "out=second")[0]
    assert lines_of(Path("first")) == lines_of(Path("second"))
    checkpoint.save(random_classifier(seed=1), run / "checkpoints" / "classifier", clip_format=ClipFormat(4))
    status, printed = call("predict", *given, *source, "out=other")
    assert status == 2 and "exit thresholds must be those of the model: they are for classifier=" in printed


def test_an_exported_folder_has_the_exit_of_its_run(call, run, made):
    source = [f"source={made[1]}", "save=[json]", "workers=1", "exit=1"]
    assert call("export", f"run={run}", "out=before")[0] == 0 and not Path("before/exit.json").exists()
    assert call("predict", f"run={run}", *source, "out=first")[0] == 0
    assert call("export", f"run={run}", "out=after")[0] == 0
    assert "| conditional exit | fitted on 10 training clips" in Path("after/README.md").read_text()
    shutil.rmtree(run)
    assert call("predict", "classifier=after", "policy=after", *source, "out=second")[0] == 0
    assert lines_of(Path("first")) == lines_of(Path("second"))


def test_an_exit_of_other_weights_is_not_exported(call, run, made):
    assert call("predict", f"run={run}", f"source={made[1]}", "save=[json]", "workers=1", "exit=1")[0] == 0
    checkpoint.save(random_classifier(seed=1), run / "checkpoints" / "classifier", clip_format=ClipFormat(4))
    assert call("export", f"run={run}", "out=out")[0] == 0 and not Path("out/exit.json").exists()
    stored(run).write_text("{")
    status, printed = call("export", f"run={run}", "out=damaged")
    assert status == 2 and f"{stored(run)}" in printed and not Path("damaged").exists()


def test_training_clips_are_read_again_only_for_another_model(call, run, made, monkeypatch):
    command = ["predict", f"run={run}", f"source={made[1]}", "save=[json]", "workers=1", "exit=1", "force=true"]
    fitting = "exit: fitting thresholds on 10 training clips"
    assert fitting in call(*command)[1]
    assert f"exit: thresholds from {stored(run)}" in call(*command)[1]
    for change in (lambda text: "{", lambda text: text.replace('"num_frames": 4', '"num_frames": 5')):
        stored(run).write_text(change(stored(run).read_text()))
        assert fitting in call(*command)[1]
        assert ExitFit.load(stored(run)).model.num_frames == 4
    monkeypatch.setattr(exit_fitting, "MAX_CLIPS", 4)
    assert "exit: fitting thresholds on 4 training clips" in call(*command)[1]
    assert {len(values) for values in ExitFit.load(stored(run)).confidences.values()} == {4}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["exit=1", "keep=0.5"], "keep=0.5 has no effect: exit=1.0 ends videos early and uses the policy's threshold; leave one of"),
        (["exit=1", "budget=0.5"], "budget=0.5 has no effect: exit=1.0 ends videos early and uses the policy's threshold"),
        (["exit_confidence=score"], "exit_confidence=score has no effect: there is no conditional exit; set exit, or leave it out"),
        (["exit=0"], "exit must be a number above 0 or null, got 0"),
        (["exit=1", "exit_confidence=logit"], "exit_confidence must be 'softmax' or 'score', got 'logit'"),
    ],
)
def test_settings_that_do_not_fit_an_exit_are_refused(call, run, made, name, arguments, message):
    source = [f"source={made[1]}"] if name == "predict" else []
    status, printed = call(name, f"run={run}", *source, *arguments)
    assert status == 2 and message in printed


def test_an_exit_is_that_of_a_policy(call, run):
    status, printed = call("evaluate", f"classifier={run}/checkpoints/classifier", "data.num_frames=4", "exit=1")
    assert status == 2 and "exit=1.0 needs a policy, and there is none; give policy=DIR, or leave exit out" in printed


def test_an_exit_needs_training_videos(call, clips, tmp_path):
    run = make_run(tmp_path / "run", policy=one_cell(24), config="env: {}\nseed: 0\n")
    folder = make_folder(tmp_path / "videos")
    shutil.rmtree(folder / "train")
    classifier = random_classifier()
    classifier.classes = ("even", "odd", *classifier.classes[2:])
    checkpoint.save(classifier, run / "checkpoints" / "classifier")
    given = [f"classifier={run}/checkpoints/classifier", f"policy={run}/checkpoints/best", "data=folder", f"data.root={folder}"]
    status, printed = call("evaluate", *given, "data.num_frames=4", "grid=7", "exit=1")
    assert status == 2 and "exit is fitted on training videos, and data=folder has none; add some, or leave exit out" in printed
