"""The training commands from videos to `result.json`, with tiny networks and a few updates."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_training
import torch
from conftest import TASK, TINY
from in_process import decode_by
from tiny_training import (
    NEW,
    POLICIES,
    Crash,
    assert_same,
    crash,
    left_by_force,
    make_folder,
    patch_demo,
    result,
    tiny_networks,
    train,
)  # fmt: skip

from adafocus_env.build import open_clips
from adafocus_env.dataset_registry import build_data
from adafocus_env.demo.videos import demo
from adafocus_env.videos.decoding import run_in_workers
from agents import evaluate
from agents.config.command import compose_config
from agents.config.settings import DataConfig, EnvConfig, Evaluate
from agents.evaluation.evaluate import evaluate_policy
from agents.pipeline import builders
from agents.pipeline.training_run import TrainingRun
from agents.policies.networks import load_policy, save_policy
from agents.runs.plots import save_comparison
from agents.runs.run_dir import RunDir
from classifiers import checkpoint
from classifiers.classifier import Classifier
from classifiers.errors import InputError

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture(scope="module", autouse=True)
def networks():
    with tiny_networks():
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory, clips):
    """Return the folder of videos, which ``clips`` has rendered, and a file that is not a video."""
    folder = make_folder(tmp_path_factory.mktemp("videos"))
    (folder / "train" / "[notes].txt").touch()
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory, root, cache):
    """Return the folder and the output of the first run, uninterrupted and without cached classifiers."""
    shutil.rmtree(cache / "classifiers", ignore_errors=True)  # other tests may have left one
    folder = tmp_path_factory.mktemp("runs") / "first"
    with pytest.MonkeyPatch.context() as patch:  # all of it, as the program does it
        decode_by(run_in_workers, patch)
        patch.setattr("agents.runs.report.save_comparison", save_comparison)
        return folder, train(f"run={folder}", f"data.root={root}")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, root, first):
    """Return a run that Ctrl-C ended after the second of four updates."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDir, "log", RunDir.log)
        tiny_training.at_update(2, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(SystemExit) as ended:
            train(f"run={folder}", f"data.root={root}")
    assert ended.value.code == 130
    return folder


@pytest.fixture
def run(tmp_path, root):
    """Return the arguments of a run in a separate folder."""
    return f"run={tmp_path / 'run'}", f"data.root={root}"


# From videos to a result


def test_the_data_set_is_summed_up_once(first, root):
    summary = f"data: folder in {root}: 2 classes; 2 train, 6 val, 4 test videos; 1 file or folder not used: train/[notes].txt "
    assert first[1].count(summary) == first[1].count("data: ") == 1


def test_a_folder_without_a_classifier_gets_one_in_the_same_command(first):
    folder, printed = first
    assert "classifier: none fits this data set; stages 0 and 1 train one now, and it is cached for the next run" in printed
    assert [name for name in ("stage 0: glancer", "stage 0: focuser", "stage 1: random patches", "stage 2: policy") if name in printed] == [
        "stage 0: glancer", "stage 0: focuser", "stage 1: random patches", "stage 2: policy"
    ]  # fmt: skip
    names = {"config.yaml", "system.json", "metrics.jsonl", "timing.jsonl", "result.json", "result.png", "contact_sheet.png"}
    names |= {"predictions.csv", "checkpoints", "tensorboard"}
    assert names == {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    assert (folder / "result.png").read_bytes().startswith(b"\x89PNG")


def test_the_metrics_have_a_line_an_update(first):
    lines = RunDir(first[0]).metrics()
    assert [(line["stage"], line["update"], line["steps"]) for line in lines] == [(2, n, 32 * n) for n in (1, 2, 3, 4)]
    assert all({"return", "accuracy", "entropy", "value_loss", "val_top1", "val_confidence"} <= set(line) for line in lines)
    assert not any("second" in key or "time" in key.replace("anytime", "") for line in lines for key in line)
    assert len((first[0] / "timing.jsonl").read_text().splitlines()) == 4


def test_the_result_has_the_form_of_the_design(first):
    found = json.loads((first[0] / "result.json").read_text())
    assert set(found) == {"policies", "metric", "seed", "data", "split", "clips", "classes", "classifier", "seconds", "best", "note"}
    assert (found["seed"], found["data"], found["split"], found["metric"], found["clips"]) == (0, "folder", "test", "top1", 4)
    assert found["classes"] == ["even", "odd"]
    assert set(found["policies"]) == POLICIES  # no oracle: these videos have no ground truth
    for name in POLICIES - {"glance_only", "full_frame"}:
        assert {"top1", "map", "gflops", "location_entropy", "movement"} <= set(found["policies"][name])
        assert len(found["policies"][name]["steps"]["top1"]) == 4
    assert set(found["seconds"]) == {"render", "train", "evaluate"}


def test_the_best_policy_is_the_last_of_the_best_on_the_validation_part(first):
    card = json.loads((first[0] / "checkpoints" / "best" / "policy.json").read_text())
    lines = RunDir(first[0]).metrics()
    best = max(lines, key=lambda line: (line["val_confidence_anytime"], line["update"]))
    assert card["steps"] == best["steps"] and card["metrics"] == {key: best[key] for key in best if key.startswith("val_")}
    assert set(card["metrics"]) == {"val_top1", "val_top1_anytime", "val_confidence", "val_confidence_anytime"}  # there is no track
    score = best["val_confidence_anytime"]
    assert json.loads((first[0] / "result.json").read_text())["best"] == {"steps": best["steps"], "val_confidence_anytime": score}
    assert f"best policy: step {best['steps']} of 128, anytime confidence {score:.3f} on 6 validation clips" in first[1]
    assert "warning: 6 validation clips cannot distinguish policies; set data.val to a larger share, or add videos" in first[1]
    assert load_policy(first[0] / "checkpoints" / "best").grid == 3


def test_the_classifier_does_not_change_in_stage_2(first, cache):
    used = result(first[0])["classifier"]
    kept = {checkpoint.read_card(card.parent).fingerprint for card in (cache / "classifiers").glob("*/card.json")}
    assert used in kept
    assert checkpoint.load(first[0] / "checkpoints" / "classifier").fingerprint() == used
    assert json.loads((first[0] / "checkpoints" / "best" / "policy.json").read_text())["classifier"] == used


def test_a_classifier_that_changes_in_stage_2_is_noticed(run, first, monkeypatch):
    from agents.rl import trainer

    def spoil(features, config, observation):
        env = make(features, config, observation)
        original = env.venv.vector.step

        def step(actions):
            with torch.no_grad():
                features.classifier.head.fc.bias += 1
            return original(actions)

        env.venv.vector.step = step
        return env

    make = trainer.make_environment
    monkeypatch.setattr(trainer, "make_environment", spoil)
    with pytest.raises(RuntimeError, match="the classifier changed while the policy was trained on it"):
        train(*run, "ppo.total_steps=8")
    assert not (Path(run[0].partition("=")[2]) / "result.json").exists()


@pytest.mark.slow
def test_the_demo_videos_have_an_oracle(tmp_path, monkeypatch):
    patch_demo(monkeypatch)
    train(f"run={tmp_path}", "data.name=demo", "classifier=small", "ppo.total_steps=32")
    found = result(tmp_path)
    assert set(found["policies"]) == POLICIES | {"oracle"} and found["data"] == "demo"
    assert found["policies"]["oracle"]["movement"] > 0
    assert "val_hit_rate" in RunDir(tmp_path).metrics()[-1] and {"hit_rate", "top1_first"} <= set(found["policies"]["learned"])


@pytest.mark.slow
def test_evaluate_on_further_clips(tmp_path, monkeypatch, capsys):
    patch_demo(monkeypatch)
    checkpoint.save(Classifier(TINY, tuple("0123456789")).freeze(), tmp_path / "classifier")
    arguments = [f"classifier={tmp_path / 'classifier'}", f"out={tmp_path / 'out'}", "data.num_frames=4", "device=cpu", "grid=3"]
    evaluate.main(compose_config(Evaluate, "evaluate", [*arguments, "further=true"]))
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (found["split"], found["clips"]) == ("further", 4) and "demo, further split, 4 clips" in capsys.readouterr().out
    videos = demo(TASK).further
    assert all(video.path.is_file() for video in videos) and all("/further/" in video.name for video in videos)


def test_only_the_demo_videos_have_further_clips(root):
    with pytest.raises(InputError, match="further=true: data=folder has no further videos; only data=demo has them"):
        evaluate.main(compose_config(Evaluate, "evaluate", ["data=folder", f"data.root={root}", "further=true"]))
    with pytest.raises(InputError, match="clips='further': there are no further videos in data=folder; choose 'test', or the demo videos"):
        open_clips(build_data(DataConfig(name="folder", root=str(root))), "further", num_frames=4, size=96)


# The same again


@pytest.mark.slow
def test_the_next_run_uses_the_kept_classifier_and_the_same_seed_gives_the_same(tmp_path, run, first):
    printed = train(*run)
    assert "classifier: the one trained before on this data set" in printed and "stage 0" not in printed
    assert_same(tmp_path / "run", first[0])


@pytest.mark.slow
def test_another_seed_gives_another_policy_on_the_same_classifier(tmp_path, run, first):
    train(*run, "seed=1")
    assert result(tmp_path / "run")["classifier"] == result(first[0])["classifier"]
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() != (first[0] / "metrics.jsonl").read_bytes()


def stands_above(title, printed):
    """Return whether a table has the given title, wrapped in any way."""
    return "".join(title.split()) in "".join(printed.split())


def test_a_finished_run_shows_its_table_and_does_nothing(first, root, monkeypatch):
    monkeypatch.setattr(TrainingRun, "clips", lambda self: pytest.fail("it works again"))
    before = {path: path.read_bytes() for path in first[0].rglob("*") if path.is_file()}
    printed = train(f"run={first[0]}", f"data.root={root}")
    assert stands_above(f"folder ({root}), test split, 4 clips: finished before (force=true starts over)", printed)
    assert all(name in printed for name in POLICIES)
    assert {path: path.read_bytes() for path in first[0].rglob("*") if path.is_file()} == before


def test_force_leaves_nothing_of_a_run_finished_or_not(tmp_path, first, stopped):
    assert left_by_force(first[0], tmp_path / "finished") == left_by_force(stopped, tmp_path / "stopped") == NEW


@pytest.mark.slow
def test_the_test_labels_decide_nothing(tmp_path, first):
    other = make_folder(tmp_path / "videos", test_labels=1)
    train(f"run={tmp_path / 'run'}", f"data.root={other}")
    folder = tmp_path / "run"
    assert (folder / "metrics.jsonl").read_bytes() == (first[0] / "metrics.jsonl").read_bytes()
    for name in ("best/policy.safetensors", "best/policy.json", "classifier/classifier.safetensors"):
        assert (folder / "checkpoints" / name).read_bytes() == (first[0] / "checkpoints" / name).read_bytes()
    mine, theirs = result(folder)["policies"], result(first[0])["policies"]
    assert all(mine[name]["top1"] == pytest.approx(1 - theirs[name]["top1"]) for name in POLICIES - {"greedy_oracle"})  # two classes


def evaluated(*arguments):
    evaluate.main(compose_config(Evaluate, "evaluate", arguments))


def test_evaluate_repeats_the_table(tmp_path, first):
    before = {path: path.read_bytes() for path in first[0].rglob("*") if path.is_file()}
    evaluated(f"run={first[0]}", f"out={tmp_path}", "device=cpu")
    assert {**result(tmp_path), "best": result(first[0])["best"]} == result(first[0])
    assert (tmp_path / "contact_sheet.png").read_bytes() == before[first[0] / "contact_sheet.png"]
    assert {path: path.read_bytes() for path in first[0].rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_evaluate_takes_a_classifier_and_a_policy(tmp_path, first, root, capsys):
    parts = [f"{name}={first[0] / 'checkpoints' / folder}" for name, folder in (("classifier", "classifier"), ("policy", "best"))]
    data = ["data=folder", f"data.root={root}", "data.num_frames=4", "device=cpu"]
    evaluated(*parts, *data, f"out={tmp_path}")
    assert {**result(tmp_path), "best": result(first[0])["best"]} == result(first[0])
    printed = capsys.readouterr().out
    assert "learned" in printed and stands_above(f"folder ({root}), test split, 4 clips", printed)
    assert printed.count("; 1 file or folder not used: train/[notes].txt\n") == 1
    with pytest.raises(InputError, match=r"^grid=5 has no effect: the policy chooses cells of a 3×3 grid; leave it out$"):
        evaluated(*parts, *data, "grid=5")
    with pytest.raises(InputError, match=r"^video_div=2 has no effect: the policy's glance maps say how many decisions there are"):
        evaluated(*parts, *data, "video_div=2")
    with pytest.raises(InputError, match=r"^skipped=last has no effect: there is no policy that skips frames; leave it out$"):
        evaluated(*parts, *data, "skipped=last")


def test_evaluate_refuses_a_run_that_is_not_finished_and_other_classes(stopped, root):
    with pytest.raises(InputError, match="is not finished; start its command again to finish it"):
        evaluated(f"run={stopped}")
    with pytest.raises(InputError, match=r"^run=.*none does not exist; give the folder of a finished run \(python -m"):
        evaluated(f"run={stopped / 'none'}")
    message = r"classifier=demo was trained on 10 classes .*; the data set folder has 2 classes .* It does not know 'even', 'odd'\."
    with pytest.raises(InputError, match=message):
        evaluated("classifier=demo", "data=folder", f"data.root={root}")
    with pytest.raises(InputError, match="classifier=auto: none is bundled for data=folder; give classifier=DIR"):
        evaluated("data=folder", f"data.root={root}")


@pytest.fixture
def tests_alone(tmp_path, root):
    """Return a folder with the test videos of one class and without training videos."""
    shutil.copytree(root / "test" / "odd", tmp_path / "videos" / "test" / "odd")
    return tmp_path / "videos"


@pytest.mark.slow
def test_a_run_is_measured_on_the_videos_that_are_typed(tmp_path, first, tests_alone, capsys):
    evaluated(f"run={first[0]}", "data=folder", f"data.root={tests_alone}", f"out={tmp_path / 'out'}", "device=cpu", "bank=false", "seed=3")
    found, whole = result(tmp_path / "out"), result(first[0])
    assert stands_above(f"folder ({tests_alone}), test split, 2 clips", capsys.readouterr().out)
    assert (found["data"], found["split"], found["clips"], found["seed"]) == ("folder", "test", 2, 3)
    assert found["classes"] == ["even", "odd"] and "greedy_oracle" not in found["policies"]
    assert found["classifier"] == whole["classifier"], "and its frames are 4, as the run's"
    assert len(found["policies"]["learned"]["steps"]["top1"]) == 4
    assert found["policies"]["learned"]["top1"] == right_answers(first[0], label=1), "odd is class 1 here too"


def right_answers(folder, label):
    """Return the accuracy of a run's policy on the test videos of a class."""
    data = build_data(DataConfig(**RunDir(folder).config()["data"]))
    classifier = checkpoint.load(folder / "checkpoints" / "classifier")
    clips = open_clips(data, "test", num_frames=4, size=96)
    features = builders.features_of(classifier, clips, EnvConfig(grid=3))
    played = evaluate_policy(features, load_policy(folder / "checkpoints" / "best"))
    return played.correct[clips.labels == label].mean()


def test_a_demo_run_takes_no_folder_in_silence(tmp_path, first):
    """The settings of the run decide: this one read a folder."""
    with pytest.raises(InputError, match=rf"^data\.root: {tmp_path / 'none'} does not exist"):
        evaluated(f"run={first[0]}", f"data.root={tmp_path / 'none'}")
    with pytest.raises(InputError, match=r"^data\.root=x has no effect: data=demo does not read it"):
        evaluated(f"run={first[0]}", "data=demo", "data.root=x")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("classifier=demo", r"^classifier=demo has no effect: run=.* has a classifier and a policy; leave it out"),
        ("policy=DIR", r"^policy=DIR has no effect: run=.* has a classifier and a policy"),
        ("grid=5", r"^grid=5 has no effect: run=.* determines it"),
        ("data.views=2", r"^data\.views=2 has no effect: it applies to training clips"),
        ("skipped=last", r"^skipped=last has no effect: there is no policy that skips frames"),
        ("data.num_frames=0", "num_frames must be an integer of at least 1, got 0"),
        ("precision=float8", "precision must be 'float32' or .*, got 'float8'"),
        ("bank=true bank_gib=-1", r"bank_gib must be a number above 0 or null, got -1"),
        ("keep=0.5", r"keep=0\.5 is for policies that skip frames"),
    ],
)
def test_each_key_beside_a_run_counts_or_is_refused(first, argument, message):
    with pytest.raises(InputError, match=message):
        evaluated(f"run={first[0]}", "device=cpu", *argument.split())


def test_a_folder_of_tests_alone_is_for_evaluation(run, tests_alone, first):
    with pytest.raises(InputError, match=rf"^data\.root: {tests_alone} has test/ but no train/, which is enough for"):
        train(run[0], f"data.root={tests_alone}")
    (tests_alone / "test" / "odd").rename(tests_alone / "test" / "strange")
    with pytest.raises(InputError, match=r"the data set folder has 1 classes \(strange\)\. It does not know 'strange'"):
        evaluated(f"run={first[0]}", f"data.root={tests_alone}")


# Stopped, killed, crashed


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, stopped, root, first):
    assert len(RunDir(stopped).metrics()) == 2 and not (stopped / "result.json").exists()
    folder = shutil.copytree(stopped, tmp_path / "run")
    assert "resuming after 64 steps" in train(f"run={folder}", f"data.root={root}")
    assert_same(folder, first[0])
    assert len((folder / "timing.jsonl").read_text().splitlines()) == 4


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_from_its_checkpoint(tmp_path, run, first):
    """The third update is logged, but the last checkpoint is that of the second update."""
    command = [sys.executable, tiny_training.__file__, "3", *run]
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "tests")])
    process = subprocess.run(command, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert len(RunDir(tmp_path / "run").metrics()) == 3
    assert "resuming after 64 steps" in train(*run)
    assert_same(tmp_path / "run", first[0])


@pytest.mark.parametrize(
    ("place", "what"),
    [
        pytest.param("agents.rl.trainer.save_training_state", "before the first checkpoint", marks=pytest.mark.slow),
        ("agents.rl.saved_model.write_text", "between the state and the file that points to it"),
        pytest.param("agents.policies.networks.write_text", "between the weights and the card of the policy", marks=pytest.mark.slow),
        pytest.param("agents.pipeline.training_run.report", "before the result", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_crashed_anywhere_ends_as_if_it_had_not(tmp_path, run, first, place, what):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        patch.setattr(place, crash)
        train(*run)
    train(*run)
    assert_same(tmp_path / "run", first[0])


def test_a_classifier_that_was_half_saved_is_saved_again(tmp_path, root, first, cache, monkeypatch):
    """The process is killed when one of the two files is written and the other is not."""
    names, placed, replace = {checkpoint.CARD, checkpoint.WEIGHTS}, [], Path.replace

    def place(self, target):
        if target.parent == cached and target.name in names:
            placed.append(target.name)
        return crash() if len(placed) == 2 else replace(self, target)

    folders = [card.parent for card in (cache / "classifiers").glob("*/card.json")]
    (cached,) = [folder for folder in folders if checkpoint.read_card(folder).fingerprint == result(first[0])["classifier"]]
    moved = shutil.move(cached, tmp_path / "kept")
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(Path, "replace", place)
        train(f"run={tmp_path / 'run'}", f"data.root={root}")
    assert len(names & {path.name for path in cached.iterdir()}) == 1
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(TrainingRun, "train_policy", crash)
        train(f"run={tmp_path / 'run'}", f"data.root={root}")
    assert (cached / checkpoint.WEIGHTS).read_bytes() == (Path(moved) / checkpoint.WEIGHTS).read_bytes()


# Files from elsewhere


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "ppo-64.safetensors").unlink(), r"ppo-64\.safetensors is missing; force=true starts the run over"),
        (lambda folder: (folder / "last.json").write_text("{"), r"last\.json cannot be read \(.*\); force=true starts the run over"),
        (lambda folder: (folder / "last.json").write_text("{}"), r"last\.json cannot be read \(KeyError\('file'\)\)"),
        (
            lambda folder: (folder / "last.json").write_text('{"file": "ppo-64.zip", "signature": ""}'),
            r"ppo-64\.zip was written by an earlier version, whose training states are not read; force=true starts the run over",
        ),
        (lambda folder: (folder.parent / "metrics.jsonl").write_text(""), "has 0 lines, but the checkpoint was made after 2; force=true"),
    ],
)
def test_a_run_folder_with_broken_files_says_what_to_do(tmp_path, stopped, root, spoil, message):
    folder = shutil.copytree(stopped, tmp_path / "run")
    spoil(folder / "checkpoints")
    with pytest.raises(InputError, match=message):
        train(f"run={folder}", f"data.root={root}")


# Settings that do not fit


def test_a_classifier_of_other_classes_is_refused(run):
    message = r"classifier=demo was trained on 10 classes \(0, 1, 2, 3, 4, …\); the data set folder has 2 classes \(even, odd\)"
    with pytest.raises(InputError, match=message):
        train(*run, "classifier=demo")


@pytest.mark.parametrize(("typed", "meant"), [("smal", "small"), ("dmo", "demo"), ("papper", "paper"), ("aut", "auto")])
def test_a_misspelt_classifier_suggests_the_nearest(run, typed, meant):
    with pytest.raises(InputError, match=rf"classifier='{typed}' is not known and no such folder exists; did you mean '{meant}'\?"):
        train(*run, f"classifier={typed}")


def test_a_mistyped_value_does_not_take_the_run_folder(tmp_path, root):
    folder = f"run={tmp_path / 'run'}"
    with pytest.raises(InputError, match=r"data\.root is missing: add data\.root=DIR, the folder of data=folder, with one subfolder"):
        train(folder)
    with pytest.raises(InputError, match=rf"data\.root: {tmp_path / 'none'} does not exist"):
        train(folder, f"data.root={tmp_path / 'none'}")
    with pytest.raises(InputError, match="classifier='nonesuch' is not known"):  # and not: another config
        train(folder, f"data.root={root}", "classifier=nonesuch")


def test_a_run_that_measured_something_keeps_its_folder(tmp_path, stopped, root):
    folder = shutil.copytree(stopped, tmp_path / "run")
    with pytest.raises(InputError, match="holds a run with another config"):
        train(f"run={folder}", f"data.root={root}", "seed=3")
    assert RunDir(folder).config()["seed"] == 0


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_cannot_be_is_refused(run, seed):
    with pytest.raises(InputError, match=f"seed must be an integer of at least 0 and below 4294967296, got {seed}"):
        train(*run, f"seed={seed}")
    with pytest.raises(InputError, match=f"seed must be .*, got {seed}"):
        evaluated(f"seed={seed}")


def test_an_unknown_data_set_is_refused(run):
    with pytest.raises(InputError, match=r"data\.name='kinetics' is not known; .*choose one of \['actnet', 'demo', 'fcvid', 'folder', "):
        train(*run, "data.name=kinetics")


def test_a_policy_to_start_from_is_what_training_starts_from(tmp_path, run, first, monkeypatch):
    from agents.policies.sb3 import to_network
    from agents.rl.trainer import TrainingCallback

    best, seen = first[0] / "checkpoints" / "best", []
    monkeypatch.setattr(TrainingCallback, "_on_training_start", lambda self: seen.append(to_network(self.model.policy)) or crash())
    with pytest.raises(Crash):
        train(*run, f"policy={best}", "network.hidden=16")  # the sizes are those of the policy
    wanted = load_policy(best).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in seen[0].state_dict().items())


def test_a_policy_to_start_from_that_does_not_fit_is_refused(tmp_path, run, first):
    best = first[0] / "checkpoints" / "best"
    with pytest.raises(InputError, match=r"policy=.*best: the policy chooses cells of a 3×3 .*, the environment offers cells of a 4×4"):
        train(*run, f"policy={best}", "env.grid=4")
    with pytest.raises(InputError, match=r"policy=.* holds no policy\.json"):
        train(*run, f"policy={tmp_path / 'none'}")
    policy = load_policy(best)
    other = type(policy)(type(policy.architecture)((8, 6, 6), 4, 8, 8), 3)
    save_policy(other, tmp_path / "other", {})
    with pytest.raises(InputError, match=r"the policy reads glance maps of shape \(8, 6, 6\), the classifier's glancer makes \(16, 6, 6\)"):
        train(*run, f"policy={tmp_path / 'other'}")


def test_the_smallest_run_there_can_be(tmp_path, root):
    """The run has one frame per clip, fewer clips than environments, fewer steps than a rollout, no validation split and no bank."""
    rollout = ["env.num_envs=20", "ppo.total_steps=1", "ppo.n_steps=1", "ppo.batch_size=10"]
    train(f"run={tmp_path}", f"data.root={root}", "data.num_frames=1", "data.val=0", "env.bank=false", *rollout)
    (line,) = RunDir(tmp_path).metrics()
    assert (line["update"], line["steps"]) == (1, 20) and "val_top1" not in line
    assert result(tmp_path)["policies"]["learned"]["movement"] == 0
    evaluated(f"run={tmp_path}", f"out={tmp_path / 'out'}", "device=cpu")
    assert {**result(tmp_path / "out"), "best": {"steps": 20}} == result(tmp_path), "without validation the last policy"


# What comes with the package


def test_every_classifier_that_comes_with_the_package_loads():
    for name in checkpoint.list_classifiers():
        classifier = checkpoint.load(name)
        folder = checkpoint.BUNDLED[name]
        assert sum(path.stat().st_size for path in folder.iterdir()) < 1_000_000
        assert classifier.classes == tuple("0123456789") and not classifier.training
        assert classifier.fingerprint() == checkpoint.read_card(name).fingerprint
    assert "demo" in checkpoint.list_classifiers()
    assert builders.choose_classifier("auto", demo(), torch.device("cpu")).classes == tuple("0123456789")
