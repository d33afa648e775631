"""`python -m agents.train_end_to_end` with tiny networks: runs can be stopped at any time, and all other commands accept these runs."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import slow_except
from tiny_training import NEW, POLICIES, SETTINGS, Crash, assert_same, crash, left_by_force, make_folder, result, tiny_networks, train

import agents
from agents import evaluate, list_runs, report, train_end_to_end, train_ppo
from agents.config.command import compose_config, run_command
from agents.config.settings import Evaluate, ListRuns, Report, TrainEndToEnd, TrainPPO
from agents.evaluation.inference import infer
from agents.policies.networks import PolicyNetwork, load_policy, save_policy
from agents.policies.spatial import SpatialArchitecture
from agents.runs.run_dir import RunDir
from agents.supervised.end_to_end import LOSSES
from classifiers import checkpoint
from classifiers.errors import InputError

pytestmark = pytest.mark.usefixtures("in_process")
FEW = [
    "data=folder", "data.num_frames=4", "data.val=0.25", "device=cpu", "network.width=4", "learning.epochs=3", "learning.batch_size=3",
]  # fmt: skip
CONTINUOUS = POLICIES - {"greedy_oracle"}  # which needs the cells of a grid


@pytest.fixture(scope="module", autouse=True)
def networks():
    with tiny_networks():
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory, clips):
    """Return the folder of videos, which ``clips`` has rendered."""
    return make_folder(tmp_path_factory.mktemp("videos"))


def end_to_end(folder, root, *overrides):
    """Run the command in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tiny_training.SETTINGS", FEW)
        arguments = [f"run={folder}", f"data.root={root}", *overrides]
        return train(*arguments, command=train_end_to_end, schema=TrainEndToEnd, name="train_end_to_end")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, root):
    """Return the folder and the output of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, end_to_end(folder, root)


def test_a_run_from_random_weights(whole):
    folder, printed = whole
    lines = RunDir(folder).metrics()
    assert [(line["stage"], line["epoch"]) for line in lines] == [("end to end", number) for number in (1, 2, 3)]
    validated = {"val_top1", "val_top1_anytime", "val_confidence", "val_confidence_anytime"}
    assert all({"loss", "accuracy", "learning_rate", *validated, *(f"loss_{name}" for name in LOSSES)} <= set(line) for line in lines)
    assert "end to end: epoch 3/3" in printed
    assert set(result(folder)["policies"]) == CONTINUOUS
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best", "classifier", "end_to_end"}


def test_the_best_epoch_is_the_result(whole):
    folder, printed = whole
    scores = [line["val_confidence_anytime"] for line in RunDir(folder).metrics()]
    best = max(range(3), key=lambda number: (scores[number], number))
    assert result(folder)["best"] == {"epoch": best + 1, "val_confidence_anytime": scores[best]}
    assert f"end to end: the best is epoch {best + 1} of 3, anytime confidence {scores[best]:.3f} on " in printed
    cards = [checkpoint.read_card(folder / "checkpoints" / name) for name in ("classifier", "end_to_end/best")]
    assert cards[0].fingerprint == cards[1].fingerprint == result(folder)["classifier"]
    assert cards[0].command == "python -m agents.train_end_to_end" and cards[0].parent is None
    policy = json.loads((folder / "checkpoints" / "best" / "policy.json").read_text())
    assert policy["classifier"] == cards[0].fingerprint and policy["epoch"] == best + 1


def test_a_finished_run_is_shown_again(whole, root):
    assert "finished before (force=true starts over)" in end_to_end(whole[0], root)


# Interruptions


def at_line(number, act):
    """Call ``act`` when the metrics have the given number of lines."""
    log = RunDir.log

    def logged(self, metrics):
        log(self, metrics)
        if len(self.metrics()) == number:
            act()

    return logged


def die(line, *arguments):
    """Run the command in this process, which is killed when the metrics have the given number of lines."""
    RunDir.log = at_line(int(line), lambda: os.kill(os.getpid(), signal.SIGKILL))
    with tiny_networks():
        end_to_end(*arguments)


@pytest.mark.slow
def test_a_killed_training_ends_as_if_it_had_not_been(tmp_path, root, whole):
    folders = Path(__file__).parents[1], Path(__file__).parent, Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    code = f"import sys; from {Path(__file__).stem} import die; die(*sys.argv[1:])"
    killed = subprocess.run([sys.executable, "-c", code, "2", str(tmp_path), str(root)], env=environment, capture_output=True, timeout=200)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert len(RunDir(tmp_path).metrics()) == 2
    end_to_end(tmp_path, root)
    assert_same(tmp_path, whole[0])


@pytest.mark.slow
def test_a_training_that_crashed_after_every_line_ends_as_if_it_had_not(tmp_path, root, whole, monkeypatch):
    for number in (1, 2, 3):
        with monkeypatch.context() as patch, pytest.raises(Crash):
            patch.setattr(RunDir, "log", at_line(number, crash))
            end_to_end(tmp_path, root)
    end_to_end(tmp_path, root)
    assert_same(tmp_path, whole[0])


@pytest.mark.parametrize("number", slow_except([3], [1, 3]))
def test_a_training_that_was_asked_to_stop_goes_on_from_there(tmp_path, root, whole, number, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(RunDir, "log", at_line(number, lambda: signal.raise_signal(signal.SIGTERM)))
        end_to_end(tmp_path, root)
    assert ended.value.code == 130
    end_to_end(tmp_path, root)
    assert_same(tmp_path, whole[0])


@pytest.mark.slow
def test_a_training_that_died_in_its_evaluation_only_evaluates(tmp_path, root, whole, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr("agents.pipeline.training_run.report", crash)
        end_to_end(tmp_path, root)
    with monkeypatch.context() as patch:
        patch.setattr("agents.supervised.end_to_end.two_path_scores", lambda *_: pytest.fail("a finished training is run again"))
        end_to_end(tmp_path, root)
    assert_same(tmp_path, whole[0])


def test_force_leaves_nothing_of_a_run(tmp_path, whole):
    assert left_by_force(whole[0], tmp_path / "copy") == NEW


# Other commands


@pytest.mark.slow
def test_evaluation_finds_the_same(tmp_path, whole, root):
    folder = whole[0]
    evaluate.main(compose_config(Evaluate, "evaluate", [f"run={folder}", f"out={tmp_path / 'run'}", "device=cpu"]))
    assert result(tmp_path / "run")["policies"] == result(folder)["policies"]
    given = [f"classifier={folder / 'checkpoints/classifier'}", f"policy={folder / 'checkpoints/best'}", "data=folder", f"data.root={root}"]
    given += ["data.num_frames=4", f"out={tmp_path / 'given'}", "device=cpu"]
    evaluate.main(compose_config(Evaluate, "evaluate", given))
    assert result(tmp_path / "given")["policies"] == result(folder)["policies"]


def test_inference_and_prediction_accept_it(whole, clips):
    classifier = checkpoint.load(whole[0] / "checkpoints" / "classifier")
    policy = load_policy(whole[0] / "checkpoints" / "best")
    assert policy.interpolated
    inferred = infer(classifier, policy, classifier.normalise(torch.stack([clips.frames(clip) for clip in (0, 1)])))
    assert inferred.actions.shape == (2, 4, 2) and inferred.logits.shape == (2, 4, 2) and bool(inferred.patch_mask.all())
    predictor = agents.Predictor.load(str(whole[0]))
    assert predictor is not None


def test_it_is_listed_and_has_a_page(whole, capsys):
    list_runs.main(ListRuns(root=str(whole[0].parent), json=True))
    (listed,) = [run for run in json.loads(capsys.readouterr().out) if run["run"] == "whole"]
    assert (listed["command"], listed["state"]) == ("train_end_to_end", "finished")
    assert listed["learned"] == result(whole[0])["policies"]["learned"]["top1"]
    report.main(Report(run=str(whole[0]), clips=0))
    page = (whole[0] / "report.html").read_text()
    (whole[0] / "report.html").unlink()
    assert "epoch: when the policy was selected" in page and "Validation metrics against epochs" in page


@pytest.mark.slow
def test_reinforcement_learning_continues_from_it(tmp_path, whole, root):
    kept = whole[0] / "checkpoints"
    few = ["env.action=interpolated", "env.baseline=1", f"policy={kept / 'best'}", f"classifier={kept / 'classifier'}"]
    settings = [each for each in SETTINGS if not each.startswith(("stages.", "env.grid", "network."))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tiny_training.SETTINGS", settings)
        train(f"run={tmp_path}", f"data.root={root}", *few, command=train_ppo, schema=TrainPPO, name="train_ppo")
    assert set(result(tmp_path)["policies"]) == CONTINUOUS
    assert result(tmp_path)["classifier"] == result(whole[0])["classifier"]


# From a trained classifier


@pytest.fixture(scope="module")
def frozen(tmp_path_factory, root, whole):
    """Return a run that trains only the policy."""
    folder = tmp_path_factory.mktemp("runs") / "frozen"
    end_to_end(folder, root, f"classifier={whole[0] / 'checkpoints/classifier'}", "freeze=true", "learning.epochs=2")
    return folder


def test_a_frozen_classifier_stays_as_it_is(frozen, whole):
    cards = [checkpoint.read_card(folder / "checkpoints" / "classifier") for folder in (frozen, whole[0])]
    assert cards[0].fingerprint == cards[1].fingerprint
    assert sorted(path.name for path in (frozen / "checkpoints").iterdir()) == ["best", "classifier", "end_to_end"]
    assert [sorted(key for key in line if key.startswith("loss")) for line in RunDir(frozen).metrics()] == [["loss", "loss_alone"]] * 2


def test_training_continues_from_classifier_and_policy(tmp_path, root, whole, frozen):
    kept = frozen / "checkpoints"
    end_to_end(tmp_path, root, f"classifier={kept / 'classifier'}", f"policy={kept / 'best'}", "learning.epochs=1")
    card = checkpoint.read_card(tmp_path / "checkpoints" / "classifier")
    before = checkpoint.read_card(kept / "classifier").fingerprint
    assert card.parent == before != card.fingerprint


@pytest.mark.slow
def test_patches_at_whole_pixels_after_training(tmp_path, root):
    """The environments of the policy are then the continuous ones."""
    end_to_end(tmp_path, root, "env.action=continuous", "learning.epochs=1")
    policy = load_policy(tmp_path / "checkpoints" / "best")
    assert policy.grid is None and not policy.interpolated
    assert set(result(tmp_path)["policies"]) == CONTINUOUS


@pytest.mark.slow
def test_without_a_validation_split_the_last_epoch_is_the_result(tmp_path, root):
    end_to_end(tmp_path, root, "data.val=0", "learning.epochs=2")
    assert not any(key.startswith("val_") for line in RunDir(tmp_path).metrics() for key in line)
    assert result(tmp_path)["best"] == {"epoch": 2}


# Bad input


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("ppo.total_steps=5", r"^ppo\.total_steps=5 has no effect: end-to-end training uses no reinforcement learning; set the keys"),
        ("ppo=released", r"^ppo=released has no effect: .*, or use python -m agents\.train_ppo$"),
        ("algo=sac", r"^algo=sac has no effect: .*, or use python -m agents\.train$"),
        ("stages.glancer.epochs=1", r"^stages\.glancer\.epochs=1 has no effect: .* has one stage; .* python -m agents\.train_stages$"),
        ("env.reward=random", r"^env\.reward=random has no effect: end-to-end training uses no reinforcement learning"),
        ("env.target_keep=0.5", r"^env\.target_keep=0\.5 has no effect: end-to-end training uses no reinforcement learning"),
        ("env.grid=5", r"^env\.grid=5 has no effect: .* neither cells nor skipped frames"),
        ("network.std=0.3", r"^network\.std=0\.3 has no effect: .* samples no locations"),
        ("learning.momentum=0.5", r"^learning\.momentum=0\.5 has no effect: adamw does not read it; set learning\.optimizer=sgd"),
        ("learning.ratio=1", r"^learning\.ratio is not a setting; did you mean 'head_ratio'\? choose one of accumulate, batch_size"),
        ("learning.epochs=0", r"^learning\.epochs must be an integer of at least 1, got 0"),
    ],
)
def test_settings_of_other_commands_are_refused_by_name(argument, message, capsys):
    with pytest.raises(SystemExit) as ended:
        run_command(train_end_to_end.main, TrainEndToEnd, "train_end_to_end", arguments=[argument])
    assert ended.value.code == 2
    assert re.search(message, capsys.readouterr().err.strip())


def policy_folder(folder, grid, *, skips=False):
    save_policy(PolicyNetwork(SpatialArchitecture((16, 6, 6), 0.25, width=4), grid, skips=skips), folder, {})
    return f"policy={folder}"


def test_policies_without_a_location_are_refused(tmp_path, root):
    with pytest.raises(InputError, match=r"chooses cells of a 3×3 grid .*, the environment offers locations at which patches are interpol"):
        end_to_end(tmp_path / "run", root, policy_folder(tmp_path / "grid", 3))
    with pytest.raises(InputError, match=r"policy=.* skips frames, which has no gradient; train one with env\.action=continuous"):
        end_to_end(tmp_path / "run", root, policy_folder(tmp_path / "skips", None, skips=True), "env.action=continuous")
    with pytest.raises(InputError, match=r"chooses continuous locations .*, the environment offers locations at which patches are interp"):
        end_to_end(tmp_path / "run", root, policy_folder(tmp_path / "whole pixels", None))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["env.action=grid"], r"env\.action must be interpolated or continuous with end-to-end training, got grid: cells and skipping"),
        (["env.action=continuous_skip"], r"env\.action must be interpolated or continuous with .*, got continuous_skip"),
        (["patch_size=97"], "patch_size=97 does not fit frames of 96 pixels; choose a patch_size from 1 to 96"),
        (["freeze=true"], r"freeze=true needs a trained classifier, but classifier=auto is a new one here: give classifier=DIR"),
        (["learning.schedule=step"], r"milestones=\[\] do not go with schedule=step; set some, such as \[20, 40\]"),
        (["env.video_div=2"], "video_div=2 needs a classifier with the head 'mean'"),
    ],
)
def test_settings_that_cannot_be(tmp_path, root, overrides, message):
    with pytest.raises(InputError, match=message):
        end_to_end(tmp_path, root, *overrides)
