"""The command that checks a data set, on small real videos and frames."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from published_sets import make_frames, make_lists, make_videos, paths
from rich.console import Console
from tiny_training import patch_demo
from videos import cut_in_half, square_frames, write_video

from adafocus_env.validate_data import PARTS, Report
from agents.check_dataset import main
from agents.config.command import run_command
from agents.config.settings import CheckDataset

pytestmark = pytest.mark.usefixtures("in_process")
HERE = Path(__file__).parents[1]


def call(capsys, *arguments):
    """Run the command in this process; return its status, its output and its stderr."""
    status = 0
    try:
        run_command(main, CheckDataset, "check_dataset", arguments=[*arguments, "workers=2"])
    except SystemExit as ended:
        status = ended.code
    return status, *capsys.readouterr()


def found(report):
    return {(finding["kind"], finding["part"], finding["video"]) for finding in json.loads(report.read_text())["findings"]}


@pytest.fixture
def minik(tmp_path):
    """Write Mini-Kinetics with four training videos (one of them held out) and two test videos, from both sources."""
    return make_frames(make_videos(make_lists(tmp_path / "data", "minik"), "minik"), "minik")


@pytest.mark.parametrize("source", ["frames", "videos"])
def test_a_whole_set_passes(tmp_path, capsys, minik, source):
    report = tmp_path / "report.json"
    status, shown, said = call(capsys, "data=minik", f"data.root={minik}", f"data.source={source}", f"out={report}")
    assert status == 0 and "nothing was found" in shown and "6/6 videos" in said
    content = json.loads(report.read_text())
    assert content["videos"] == {"train": 3, "val": 1, "test": 2} and content["findings"] == []
    assert content["place"] == str(minik / source) and content["num_frames"] == 16
    assert content["fps"] == ({"25.0": 6} if source == "videos" else {}) and content["short_sides"] == {"48": 6}
    assert ("frame rate: 25 fps" in shown) == (source == "videos")
    assert ("not stored in images" in shown and "not the published 360 pixels: in 6 videos" in shown) == (source == "frames")


def test_the_reports_of_all_shards_together_are_the_whole_report(tmp_path, capsys, minik):
    (minik / "frames/train/right turn/b/image_00007.jpg").unlink()
    (minik / "frames/train/right turn/c/image_00020.jpg").unlink()
    with next(minik.glob("*train*.txt")).open("a") as lines:
        lines.write("not a line\n")
    command = ["data=minik", f"data.root={minik}", f"out={tmp_path / 'report.json'}"]
    status, *_ = call(capsys, *command)
    whole = json.loads((tmp_path / "report.json").read_text())
    statuses = [call(capsys, *command, f"shard={index}/3")[0] for index in (1, 2, 3)]
    parts = [json.loads((tmp_path / f"report-{index}-of-3.json").read_text()) for index in (1, 2, 3)]
    assert status == max(statuses) == 1 and len(whole["findings"]) > 1
    assert sorted(map(str, whole["findings"])) == sorted(str(finding) for part in parts for finding in part["findings"])
    for split in whole["videos"]:
        assert whole["videos"][split] == sum(part["videos"][split] for part in parts)
    assert whole["short_sides"]["48"] == sum(part["short_sides"].get("48", 0) for part in parts)
    assert whole["notes"][0] in parts[0]["notes"] and not any(whole["notes"][0] in part["notes"] for part in parts[1:])


def test_a_shard_out_of_range_is_refused(capsys):
    assert "shard must be I/N with 1 ≤ I ≤ N, got '0/2'" in call(capsys, "shard=0/2")[2]


def test_everything_that_is_wrong_with_frames_is_told(tmp_path, capsys, minik):
    (minik / "frames/train/right turn/b/image_00007.jpg").unlink()
    (minik / "frames/train/right turn/c/image_00020.jpg").unlink()
    (minik / "frames/train/left turn/d/image_00010.jpg").write_bytes(b"no image")
    with (minik / "mini_train_videofolder.txt").open("a") as file:
        file.write("train/left turn/gone 20 0\ntrain/left turn/e 20 7\ntrain/left turn\nval/left turn/e 20 0\n")
    report = tmp_path / "report.json"
    status, shown, _ = call(capsys, "data=minik", f"data.root={minik}", f"out={report}")
    assert status == 1 and f"all of it is in {report}" in shown
    parts = {finding[2]: finding[1] for finding in found(report)}
    assert {(kind, video) for kind, _, video in found(report)} == {
        ("missing", "train/left turn/gone"),
        ("unreadable", "train/right turn/b"), ("unreadable", "train/right turn/c"), ("unreadable", "train/left turn/d"),
        ("mislabelled", "train/left turn/e"), ("bad line", ""), ("bad line", "val/left turn/e"),
    }  # fmt: skip
    assert parts["val/left turn/e"] == "test" and parts[""] == "train"
    for text in (
        "the frame image_00007.jpg is missing before the last, image_00020.jpg",
        "the list says 20 frames, and the folder holds 19",
        "its image image_00010.jpg cannot be read",
        "mini_train_videofolder.txt line 7: the label 7 is beyond the 2 classes of the class file",
        "mini_train_videofolder.txt line 8: 2 of the 3 fields",
        "mini_val_videofolder.txt line 1: val/left turn/e is also in mini_train_videofolder.txt (line 9)",
    ):
        assert text in shown


def test_everything_that_is_wrong_with_videos_is_told(tmp_path, capsys, minik, worker_processes):
    videos = minik / "videos"
    cut_in_half(videos / "train/left turn/a.mp4")
    write_video(videos / "val/left turn/e.mp4", square_frames(20, 60, 80), fps=10)
    write_video(videos / "val/right turn/f.mp4", square_frames(5))
    (minik / "mini_val_videofolder.txt").write_text("val/left turn/e 20 1\nval/right turn/f 20 1\n")
    report = tmp_path / "report.json"
    status, shown, _ = call(capsys, "data=minik", f"data.root={minik}", "data.source=videos", f"out={report}")
    assert status == 1
    assert {(kind, video) for kind, _, video in found(report)} == {
        ("unreadable", "train/left turn/a"), ("mislabelled", "val/left turn/e"), ("short", "val/right turn/f"),
    }  # fmt: skip
    assert "its label is 1 (right turn), its folder that of 0 (left turn)" in shown
    assert "5 frames, fewer than a clip's 16; the last one is repeated" in shown
    assert "frame rate: 25 fps (median); 1 of 5 videos differ: 10 in 1" in shown
    assert "shorter side: 48 pixels (median); 1 of 5 videos differ: 60 in 1" in shown
    assert "classes without a test video (1): left turn" in shown


def test_short_videos_are_told_and_can_be_used(capsys, minik):
    status, shown, _ = call(capsys, "data=minik", f"data.root={minik}", "data.num_frames=30")
    assert status == 0 and shown.count("20 frames, fewer than a clip's 30") == 6 and "out=FILE writes all of it to a file" in shown


def test_a_class_folder_may_be_written_with_underscores(capsys, tmp_path):
    root = make_lists(tmp_path, "minik")
    for name in ("mini_train_videofolder.txt", "mini_val_videofolder.txt"):
        (root / name).write_text((root / name).read_text().replace("left turn", "Left_Turn"))
    for path in paths("minik"):
        write_video(root / "videos" / f"{path.replace('left turn', 'Left_Turn')}.mp4", square_frames(20))
    assert call(capsys, "data=minik", f"data.root={root}")[0] == 0


def test_many_findings_of_a_kind_are_cut_on_the_terminal_alone(tmp_path, capsys, minik):
    with (minik / "mini_train_videofolder.txt").open("a") as file:
        file.writelines(f"train/left turn/gone{i:02d} 20 0\n" for i in range(25))
        file.write("oops\n")
    report = tmp_path / "report.json"
    status, shown, _ = call(capsys, "data=minik", f"data.root={minik}", f"out={report}")
    assert status == 1 and shown.count("there is no such video") == 10 and "  and 15 more" in shown and "line 31: 1 of the 3" in shown
    assert len(found(report)) == 26


def test_a_folder_of_videos_and_the_demo(tmp_path, capsys, monkeypatch, clips):
    for label in ("cat", "dog"):
        for i in range(3):
            write_video(tmp_path / label / f"{i}.mp4", square_frames(20))
    cut_in_half(tmp_path / "dog" / "1.mp4")
    (tmp_path / "dog" / "notes.txt").touch()
    report = tmp_path / ".report.json"
    status, shown, _ = call(capsys, "data=folder", f"data.root={tmp_path}", f"out={report}")
    assert "not used (1):\n  dog/notes.txt\n" in shown and json.loads(report.read_text())["unused"] == ["dog/notes.txt"]
    assert status == 1 and "dog/1.mp4: it is truncated" in shown and "folder: clips of 8 frames" in shown
    patch_demo(monkeypatch)
    status, shown, _ = call(capsys, "data=demo")
    assert status == 0 and "frame rate: 8 fps" in shown


def test_files_that_are_not_used_are_no_faults_and_cut_on_the_terminal():
    report = Report("folder", 8, None, dict.fromkeys(PARTS, 3), unused=[f"cat/{i}.txt" for i in range(12)])
    console = Console(file=io.StringIO(), width=80)
    report.show(console, None)
    shown = console.file.getvalue()
    assert "not used (12):\n  cat/0.txt\n" in shown and "cat/9.txt\n  and 2 more\nout=FILE writes all of it to a file" in shown
    assert report.num_faults == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data=actnett", "data.root=x"], "data='actnett' is not known; did you mean 'actnet'?"),
        (["data.name=mine"], "data.name='mine' is not known; did you mean 'minik'?"),
        (["data=actnet"], "data.root is missing: add data.root=DIR, the folder of data=actnet"),
        (["data=actnet", "data.root=/nowhere"], "data.root: /nowhere does not exist; give the folder with classInd.txt"),
        (["data=actnet", "data.rot=x"], "data.rot is not a setting; did you mean 'root'?"),
        (["data.num_frames=0"], "data.num_frames must be an integer of at least 1, got 0"),
        (["data.num_frames=few"], "data.num_frames must be an integer of at least 1, got 'few'"),
        (["out=/nowhere/report.json"], "out=/nowhere/report.json cannot be written; give a file in a folder that exists"),
        (["workers=0"], "workers must be an integer of at least 1 or null, got 0"),
    ],
)
def test_mistakes_end_with_a_message_and_status_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        run_command(main, CheckDataset, "check_dataset", arguments=arguments)
    assert ended.value.code == 2 and capsys.readouterr().err.startswith(message)


def test_the_command_as_users_run_it(tmp_path, minik):
    (minik / "frames/val/right turn/f/image_00007.jpg").unlink()
    command = [sys.executable, "-m", "agents.check_dataset", "data=minik", f"data.root={minik}", "workers=2", "out=report.json"]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "COLUMNS": "80"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1, result.stderr
    assert found(tmp_path / "report.json") == {("unreadable", "test", "val/right turn/f")}
    table = [line for line in result.stdout.splitlines() if "│" in line]
    assert [line.split()[1] for line in table] == ["train", "val", "test"] and max(map(len, table)) <= 80


def test_the_help_page_comes_without_work(capsys):
    run_command(main, CheckDataset, "check_dataset", arguments=["--help"])
    assert "python -m agents.check_dataset data=actnet data.root=DIR" in capsys.readouterr().out
