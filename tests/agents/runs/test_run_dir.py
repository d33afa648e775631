import json
import multiprocessing
import sys
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest

from agents.runs.run_dir import RunDir
from classifiers.errors import InputError

CONFIG = {
    "run": "x",
    "force": False,
    "device": "cpu",
    "seed": 1,
    "data": {"root": "${x} 'a'", "workers": 2},
    "ppo": {"lr": 1e-5, "nets": (3, 4)},
}


def opened(path: Path, config: dict = CONFIG, force: bool = False) -> RunDir:
    return RunDir.open(path, config, force=force)


def with_value(**changes: object) -> dict:
    return {**CONFIG, **changes}


def test_a_new_folder_holds_the_config_and_the_system(tmp_path):
    with opened(tmp_path / "a" / "b") as folder:
        assert not folder.finished
        assert folder.metrics() == []
    assert RunDir(tmp_path / "a" / "b").config() == with_value(ppo={"lr": 1e-5, "nets": [3, 4]})
    system = json.loads((tmp_path / "a" / "b" / "system.json").read_text())
    assert system["Numpy"] == np.__version__
    assert system["cpu_count"] >= 1
    assert system["command"] == sys.argv


def test_strings_that_read_as_another_type_stay_strings(tmp_path):
    texts = {"a": "1e-4", "b": "null", "c": "true", "d": "012", "e": "\\${y}", "f": "é\x07\u2028 ", "g": ""}
    with opened(tmp_path, texts) as folder:
        assert folder.config() == texts


def test_values_of_somebody_elses_config_are_not_looked_up(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "password")
    (tmp_path / "config.yaml").write_text("a: ${oc.env:SECRET}\nb: ['${a}', '\\\\\\${a}']\n")
    assert RunDir(tmp_path).config() == {"a": "${oc.env:SECRET}", "b": ["${a}", "\\${a}"]}


def test_the_same_config_resumes_and_execution_keys_may_change(tmp_path):
    with opened(tmp_path) as folder:
        folder.log({"step": 1})
    changed = with_value(run="y", device="cuda", data={**CONFIG["data"], "workers": 0}, force=True)
    with opened(tmp_path, changed) as folder:
        assert folder.metrics() == [{"step": 1}]
        assert folder.config()["device"] == "cuda"


def test_another_config_is_refused_by_its_keys(tmp_path):
    opened(tmp_path).close()
    other = with_value(seed=2, device="cuda", ppo={"lr": 1e-5, "clip": 0.2})
    with pytest.raises(InputError, match=r"another config .force=true starts over, another run=DIR keeps both") as problem:
        opened(tmp_path, other)
    assert str(problem.value).splitlines()[1:] == ["  ppo.clip: (absent) → 0.2", "  ppo.nets: [3, 4] → (absent)", "  seed: 1 → 2"]


def test_force_starts_over_but_keeps_what_no_run_wrote(tmp_path):
    with opened(tmp_path) as folder:
        folder.log({"step": 1})
        folder.write_result({})
    saved = ["last.json", "ppo-64.zip", "dqn-64.replay", "dqn-64.safetensors", "best/policy.json"]
    saved += ["stage0-glancer/done.json", "round1-stage2/best/policy.json"]
    ours = ["result.png", "contact_sheet.png", "predictions.csv", "report.html", "watch.gif"]
    ours += ["tensorboard/events", "wandb/run/files", "wandb_id"]
    ours += [f"checkpoints/{name}" for name in saved]
    theirs = ["notes.txt", ".notes", "plots/result.png", "checkpoints/notes.txt", "checkpoints/stage2-mine/policy.json"]
    for name in (*ours, *theirs):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("kept")
    opened(tmp_path / "seed=3").close()
    with opened(tmp_path, with_value(seed=2), force=True) as folder:
        assert not folder.finished
        assert folder.metrics() == []
        assert folder.config()["seed"] == 2
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*theirs, ".lock", "config.yaml", "system.json", *(f"seed=3/{name}" for name in (".lock", "config.yaml", "system.json"))}
    assert all((tmp_path / name).read_text() == "kept" for name in theirs)
    assert RunDir(tmp_path / "seed=3").config()["seed"] == 1


def test_force_does_not_follow_links(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "video.mp4").touch()
    opened(tmp_path / "run").close()
    for name in ("tensorboard", "mine"):
        (tmp_path / "run" / name).symlink_to(tmp_path / "mine")
    opened(tmp_path / "run", force=True).close()
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert (tmp_path / "run" / "mine" / "video.mp4").exists()


@pytest.mark.parametrize("force", [False, True])
def test_a_directory_with_other_files_is_refused_and_left_alone(tmp_path, force):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"is neither empty nor a run directory .*choose another run=DIR"):
        opened(tmp_path, force=force)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_a_killed_writer_left_is_removed(tmp_path):
    opened(tmp_path).close()
    leftovers = [tmp_path / f"{name}.0123.part" for name in (".result.json", "checkpoints/best/.policy.json")]
    others = [tmp_path / "checkpoints" / "best" / name for name in (".hidden", "notes.part")]
    for file in (*leftovers, *others):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    opened(tmp_path).close()
    assert not any(file.exists() for file in leftovers) and all(file.exists() for file in others)


def test_a_start_that_was_killed_between_its_files_is_repaired(tmp_path):
    (tmp_path / "system.json").write_text("{}")
    (tmp_path / ".config.yaml.x.part").touch()
    with opened(tmp_path) as folder:
        assert folder.config()["seed"] == 1


def test_a_path_of_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"run=.*file.* cannot be written .*choose another"):
        opened(tmp_path / "file")
    with pytest.raises(InputError, match=r"run=.*file/x cannot be written .Not a directory"):
        opened(tmp_path / "file" / "x")


def test_a_broken_config_is_named(tmp_path):
    (tmp_path / "config.yaml").write_text("a: [1")
    with pytest.raises(InputError, match=r"config.yaml cannot be read"):
        RunDir(tmp_path).config()
    (tmp_path / "config.yaml").write_text("[a, b]")
    with pytest.raises(InputError, match=r"config.yaml cannot be read \(it is a list in place of keys and values\); fix it or choose"):
        opened(tmp_path)
    with pytest.raises(InputError, match=r"is not a run directory: it has no config.yaml"):
        RunDir(tmp_path / "nowhere").config()


def test_metrics_keep_their_order_and_have_no_nan(tmp_path):
    infinite = [np.inf, np.array([1.0, np.nan])]
    with opened(tmp_path) as folder:
        folder.log({"step": np.int64(3), "a": np.float32(0.5), "nan": float("nan"), "inf": infinite, "word": "é\u2028"})
        assert folder.path("metrics.jsonl").read_bytes().decode() == (
            '{"step": 3, "a": 0.5, "nan": null, "inf": [null, [1.0, null]], "word": "é\u2028"}\n'
        )
        assert folder.metrics()[0]["word"] == "é\u2028"
        assert json.loads(folder.path("timing.jsonl").read_text())["seconds"] >= 0


def test_half_a_line_is_dropped_when_the_run_goes_on(tmp_path):
    with opened(tmp_path) as folder:
        folder.log({"step": 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "ret')
    assert RunDir(tmp_path).metrics() == [{"step": 1}]
    with opened(tmp_path) as folder:
        folder.log({"step": 2})
        assert folder.metrics() == [{"step": 1}, {"step": 2}]


def test_truncate_takes_back_what_came_after_the_checkpoint(tmp_path):
    with opened(tmp_path) as folder:
        for step in range(3):
            folder.log({"step": step})
        folder.truncate(2)
        assert [line["step"] for line in folder.metrics()] == [0, 1]
        assert folder.path("timing.jsonl").read_text().count("\n") == 2
        with pytest.raises(InputError, match="has 2 lines, but the checkpoint was made after 3; force=true starts over"):
            folder.truncate(3)
        folder.truncate(0)
        assert folder.path("metrics.jsonl").read_text() == ""


def test_the_result_marks_the_end_and_its_record_stays(tmp_path):
    with opened(tmp_path) as folder:
        with pytest.raises(InputError, match="the run is not finished; start it again"):
            folder.result()
        folder.write_result({"seed": 1, "policies": {"random": {"top1": np.float64(0.5)}}})
        (tmp_path / "system.json").write_text("that machine")
    assert (tmp_path / "result.json").read_text() == (
        '{\n  "policies": {\n    "random": {\n      "top1": 0.5\n    }\n  },\n  "seed": 1\n}\n'
    )
    with opened(tmp_path) as folder:
        assert folder.finished
        assert folder.result()["seed"] == 1
    assert (tmp_path / "system.json").read_text() == "that machine"


def hold(path: Path, ready: Event) -> None:
    with opened(path):
        ready.set()
        time.sleep(60)


def test_a_folder_in_use_is_refused_until_its_user_is_gone(tmp_path):
    context = multiprocessing.get_context("fork")  # a fresh process would import torch first, which takes seconds
    ready = context.Event()
    holder = context.Process(target=hold, args=(tmp_path, ready), daemon=True)
    holder.start()
    assert ready.wait(30)
    with pytest.raises(InputError, match=r"another process is using .*; wait for it, or choose another run=DIR"):
        opened(tmp_path)
    holder.kill()
    holder.join()
    with opened(tmp_path), pytest.raises(InputError, match="another process is using"):
        opened(tmp_path)


def test_two_runs_of_a_process_do_not_hold_each_other(tmp_path):
    with opened(tmp_path / "a"), opened(tmp_path / "b"):
        pass
    opened(tmp_path / "a").close()
