"""The exported folder that every command accepts, and its card, without ONNX."""

import json
import re
from pathlib import Path

import gymnasium
import pytest
from predictions import make_run, one_cell
from videos import write_video

from agents import Predictor
from agents.config.command import run_command
from agents.config.effect import check_effect
from agents.config.settings import Export
from agents.export import main
from agents.policies.networks import save_policy
from agents.prediction.checkpoints import load_checkpoints
from classifiers import checkpoint
from classifiers.atomic_files import replacing
from classifiers.errors import InputError

pytestmark = pytest.mark.usefixtures("in_process")
MEASURED = {
    "policies": {
        "learned": {"top1": 0.75, "top1_anytime": 0.5, "top1_anytime_interval": [0.25, 0.625], "gflops": 0.00125, "hit_rate": 0.9},
        "random": {"top1": 0.5, "top1_anytime": 0.25, "top1_anytime_interval": [0.125, 0.375], "gflops": 0.00125},
    },
    "metric": "top1", "data": "demo", "split": "test", "clips": 500,
}  # fmt: skip


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Return a function that runs the command in an empty folder and returns its status and output, on one line."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        status = 0
        try:
            run_command(main, Export, "export", arguments=arguments)
        except SystemExit as ended:
            status = ended.code
        return status, " ".join("".join(capsys.readouterr()).split())

    return call


@pytest.fixture
def run(tmp_path):
    """Return a finished run whose policy skips frames, with results and the command that made it."""
    run = make_run(tmp_path / "runs" / "a run", policy=one_cell(5, skips=True))
    policy = json.loads((run / "checkpoints/best/policy.json").read_text())
    (run / "checkpoints/best/policy.json").write_text(json.dumps({**policy, "skipped": "last", "steps": 128}))
    (run / "result.json").write_text(json.dumps(MEASURED))
    (run / "system.json").write_text(json.dumps({"command": ["/x/agents/train_ppo.py", "ppo=skip", "data.root=a b"]}))
    return run


def test_the_folder_of_a_run_is_taken_by_every_reader(call, run, tmp_path, clips):
    assert call(f"run={run}") == (0, "saved to exports/a run-folder")
    out = Path("exports/a run-folder")
    assert {file.name for file in out.iterdir()} == {
        "README.md", "card.json", "classifier.safetensors", "policy.json", "policy.safetensors"
    }  # fmt: skip
    video = write_video(tmp_path / "a.mp4")
    expected = Predictor.load(run)(video).to_dict()
    assert Predictor.load(out)(video).to_dict() == expected == Predictor.load(out, out)(video).to_dict()
    classifier, policy, skipped = load_checkpoints(out, None, "cpu")
    assert classifier.clip_format.num_frames == 4 and policy.keep_threshold == 0.5 and skipped == "last"
    assert json.loads((out / "policy.json").read_text()) == json.loads((run / "checkpoints/best/policy.json").read_text())
    env = gymnasium.make("AdaFocus-v1", classifier=str(out), clips=clips, bank=False)
    assert env.unwrapped.dynamics.features.classifier.fingerprint() == checkpoint.read_card(run / "checkpoints/classifier").fingerprint


def test_the_card_says_how_good_it_is_and_how_it_was_made(call, run):
    assert call(f"run={run}", "out=out")[0] == 0
    card = Path("out/README.md").read_text()
    assert card.startswith("# a run\n") and card.endswith("```\n") and "\n\n\n" not in card
    assert "Measured on 500 clips of the test split of `demo`." in card
    assert "| policy | anytime | top-1 | hits | GFLOPs |\n|---|---:|---:|---:|---:|\n" in card
    assert "| `learned` | 50.0% [25.0%, 62.5%] | 75.0% | 90.0% | 0.0013 |\n| `random` | 25.0% [12.5%, 37.5%] | 50.0% | – | 0.0013 |" in card
    assert "```bash\npython -m agents.train_ppo ppo=skip 'data.root=a b'\n```" in card
    assert "cells of a 7 × 7 grid; skips a frame where P(skip) is 0.5 or more" in card
    assert "| classes | 10: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 |" in card and "| input | 4 frames of a video" in card
    assert all(f"\n## {heading}\n" in card for heading in ("Metrics", "How it was made", "Intended use and limits", "How to load it"))


def test_commands_of_the_card_exist(call):
    assert call("classifier=demo", "policy=demo", "out=out")[0] == 0
    card = Path("out/README.md").read_text()
    commands = re.findall(r"python -m agents\.(\w+)", card)
    assert set(commands) == {"export", "predict", "evaluate", "train_ppo"}
    assert "None are stored" not in card and "- `val_hit_rate`: 0.944" in card and "synthetic demo videos" in card
    assert "python -m benchmarks.rebuild_bundled task=track" in card


@pytest.mark.parametrize("arguments", [["classifier=demo"], ["classifier=demo", "policy=demo"]])
def test_bundled_names(call, arguments):
    assert call(*arguments) == (0, "saved to exports/demo-folder")
    bundled, exported = load_checkpoints(Path("demo"), None, "cpu"), load_checkpoints(Path("exports/demo-folder"), None, "cpu")
    assert bundled[0].fingerprint() == exported[0].fingerprint() and bundled[0].clip_format == exported[0].clip_format
    assert bundled[1].card() == exported[1].card()


def test_folders_of_a_classifier_and_a_policy_without_measurements(call, run, tmp_path):
    save_policy(one_cell(3), tmp_path / "policy", {})
    assert call(f"classifier={run}/checkpoints/classifier", f"policy={tmp_path}/policy", "out=out")[0] == 0
    card = Path("out/README.md").read_text()
    assert "None are stored with the weights." in card and "The commands are not known." in card and "| training data | not known |" in card


def test_an_unfinished_run_offers_its_best_policy(call, tmp_path):
    unfinished = make_run(tmp_path / "unfinished", finished=False)
    status, printed = call(f"run={unfinished}")
    assert status == 2 and f"policy={unfinished}/checkpoints/best" in printed and not Path("exports").exists()


def test_a_folder_that_exists_is_replaced_with_force_alone(call, run):
    assert call(f"run={run}", "out=out")[0] == 0
    Path("out/notes.txt").touch()
    Path("out/glancer.onnx").touch()  # of an earlier export in another format
    status, printed = call("classifier=demo", "out=out")
    assert status == 2 and "out=out exists; choose another folder, or set force=true to replace the export in it" in printed
    assert call("classifier=demo", "out=out", "force=true")[0] == 0
    assert Path("out/notes.txt").exists() and not Path("out/glancer.onnx").exists()
    assert checkpoint.load("out").fingerprint() == checkpoint.load("demo").fingerprint()
    Path("file").touch()
    status, printed = call("classifier=demo", "out=file", "force=true")
    assert status == 2 and "out=file is a file; choose a folder" in printed


def test_what_an_interrupted_export_leaves_is_no_checkpoint(call, run, monkeypatch):
    class Killed(BaseException):
        pass

    def die(path):
        raise Killed

    assert call(f"run={run}", "out=out")[0] == 0
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("classifiers.checkpoint.replacing", lambda path: die(path) if path.name == "card.json" else replacing(path))
        call("classifier=demo", "out=out", "force=true")
    with pytest.raises(InputError, match=r"classifier=out holds no card\.json"):
        checkpoint.load("out")
    assert call("classifier=demo", "out=out", "force=true")[0] == 0


def test_models_of_other_algorithms_are_named(call, run):
    best = run / "checkpoints" / "best"
    (best / "policy.json").unlink()
    (best / "model.json").write_text(json.dumps({"algo": "recurrent_ppo"}))
    status, printed = call(f"run={run}")
    assert status == 2 and "best is a model of algo=recurrent_ppo and cannot be exported; give one with a policy network" in printed


def test_a_run_with_a_plugin_needs_it(call, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_plugin.py").write_text("")
    run = make_run(tmp_path / "run", config="plugin: my_plugin\n")
    status, printed = call(f"run={run}")
    assert status == 2 and "was made with plugin=my_plugin" in printed
    assert call(f"run={run}", "plugin=my_plugin", "out=out")[0] == 0
    card = Path("out/README.md").read_text()
    assert "classifier=DIR policy=DIR plugin=my_plugin source=video.mp4" in card and "\nimport my_plugin\n" in card


def test_a_folder_that_cannot_be_written_is_named(call, tmp_path):
    (tmp_path / "exports").touch()
    status, printed = call("classifier=demo")
    assert status == 2 and "out=exports/demo-folder cannot be written (Not a directory); choose another folder" in printed


def test_either_a_run_or_a_classifier_is_given(call, run):
    assert call()[0] == 2 and "give run=DIR, or classifier=DIR with its policy=DIR" in call()[1]
    with pytest.raises(InputError, match="classifier=1 has no effect: run=DIR has a classifier; leave one of them out"):
        check_effect(Export(run="DIR"), {"classifier": "classifier=1"})


def test_missing_packages_are_named_with_the_command_that_installs_them(call, monkeypatch):
    monkeypatch.setattr("agents.exporting.onnx_files.PACKAGES", ("json", "onnxscrypt"))
    status, printed = call("classifier=demo", "format=onnx")
    assert status == 2 and "format=onnx needs onnxscrypt: pip install 'adafocus-env[onnx]', or choose format=folder" in printed


def test_the_help_page(capsys):
    run_command(main, Export, "export", arguments=["--help"])
    assert "python -m agents.export run=DIR format=onnx" in capsys.readouterr().out
