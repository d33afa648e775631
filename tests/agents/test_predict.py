"""The command that predicts videos, in this process."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
from predictions import lines_of, make_run, one_cell
from tiny_training import patch_demo
from videos import cut_in_half, square_frames, without_decoder, write_video

from adafocus_env.work_shard import WorkShard
from agents.config.command import run_command
from agents.config.effect import check_effect
from agents.config.settings import Predict
from agents.predict import main
from agents.prediction import output
from agents.prediction.output import OutputFolder
from classifiers.errors import InputError

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def call(run, capsys, monkeypatch, tmp_path):
    """Return a function that runs the command and returns its status and output, on one line."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, run=f"run={run}"):
        status = 0
        try:
            run_command(main, Predict, "predict", arguments=[*filter(None, [run]), "device=cpu", "workers=1", *arguments])
        except SystemExit as ended:
            status = ended.code
        return status, " ".join("".join(capsys.readouterr()).split())

    return call


@pytest.fixture
def folder(tmp_path):
    """Return a folder with three videos at two depths, a text file, and a hidden folder."""
    for name in ("a.mp4", "b/a.mp4", "b/c.avi"):
        write_video(tmp_path / "videos" / name, **({"codec": "mpeg4", "b": "1000000"} if name.endswith("avi") else {}))
    (tmp_path / "videos" / "notes.txt").write_text("no video")
    write_video(tmp_path / "videos" / ".hidden" / "x.mp4")
    return tmp_path / "videos"


FILES = {"videos/a.mp4", "videos/b/a.mp4", "videos/b/c.avi"}


def test_a_single_file_gets_json_a_sheet_and_a_video(call, tmp_path, worker_processes):
    write_video(tmp_path / "a b.mp4")
    status, printed = call("source=a b.mp4")
    assert status == 0 and "saved to predictions/a_b: predictions.jsonl, a b.png, a b.mp4" in printed
    assert {file.name for file in Path("predictions/a_b").glob("[!.]*")} == {"predictions.jsonl", "predict.json", "a b.png", "a b.mp4"}
    [line] = lines_of(Path("predictions/a_b"))
    assert line["file"] == "a b.mp4" and len(line["frames"]) == 4 and len(line["top"]) == 5 and "GFLOPs" in printed
    assert f"{line['top'][0]['probability']:.1%}" in printed
    status, printed = call("source=a b.mp4")
    assert status == 0 and "predictions.jsonl has all 1 video already (force=true starts over)" in printed


def test_a_folder_gets_one_line_for_each_video(call, folder):
    status, printed = call("source=videos", "out=out")
    assert status == 0 and "3 new predictions" in printed and "videos/s" in printed
    assert sorted(line["file"] for line in lines_of(Path("out"))) == sorted(FILES)
    assert not list(Path("out").rglob("*.png"))


def test_pictures_of_a_folder_are_named_after_its_videos(call, folder):
    write_video(folder / "a.mkv")
    assert call("source=videos", "out=out", "save=[sheet]")[0] == 0
    assert {str(path.relative_to("out")) for path in Path("out").rglob("*.png")} == {"a.mkv.png", "a.mp4.png", "b/a.png", "b/c.png"}


def test_pictures_that_are_missing_are_drawn_later(call, folder):
    assert call("source=videos/a.mp4", "save=[json]")[0] == 0
    assert call("source=videos/a.mp4", "save=[sheet]")[0] == 0
    assert Path("predictions/a/a.png").is_file() and len(lines_of(Path("predictions/a"))) == 1


@pytest.mark.parametrize("source", ["-", "videos/**/*.*"])
def test_lists_and_patterns_name_videos(call, folder, monkeypatch, source):
    monkeypatch.setattr(sys, "stdin", io.StringIO("videos/a.mp4\n\nvideos/b/a.mp4\nvideos/a.mp4\nvideos/b/c.avi\n"))
    assert call(f"source={source}", "out=out")[0] == 0
    assert sorted(line["file"] for line in lines_of(Path("out"))) == sorted(FILES)


class Killed(BaseException):
    pass


def test_an_interrupted_command_resumes_with_nothing_twice_and_nothing_missing(call, folder, monkeypatch):
    added = OutputFolder.add

    def add_and_die(self, prediction):
        added(self, prediction)
        if len(self.done) == 2:
            with self.path.open("a") as stream:
                stream.write('{"file": "videos/b')  # a kill while a line is written
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "add", add_and_die)
        with pytest.raises(Killed):
            call("source=videos", "out=out", "batch_size=1")
    (Path("out") / ".a.png.0123.part").touch()
    before = Path("out/predictions.jsonl").read_bytes().split(b"\n")[:2]
    status, printed = call("source=videos", "out=out", "batch_size=1")
    assert status == 0 and "2 of 3 videos were predicted before" in printed and "1 new prediction" in printed
    assert sorted(line["file"] for line in lines_of(Path("out"))) == sorted(FILES)
    assert Path("out/predictions.jsonl").read_bytes().split(b"\n")[:2] == before
    assert not list(Path("out").glob("*.part"))


def test_videos_that_cannot_be_read_are_listed_and_tried_again(call, folder, worker_processes):
    cut_in_half(write_video(folder / "cut.mp4", square_frames(60)))
    without_decoder(write_video(folder / "odd.mp4"))
    status, printed = call("source=videos", "out=out")
    assert status == 1 and "2 videos failed: cannot read the video videos/" in printed
    assert "cannot read the video videos/cut.mp4: it is truncated" in printed
    assert "PyAV has no decoder for its codec; convert it to H.264" in printed
    assert len(lines_of(Path("out"))) == 3
    write_video(folder / "cut.mp4")
    (folder / "odd.mp4").unlink()
    assert call("source=videos", "out=out")[0] == 0 and len(lines_of(Path("out"))) == 4


def test_a_picture_that_cannot_be_written_counts_as_a_failure(call, folder):
    Path("out").mkdir()
    Path("out/b").touch()  # where a folder is needed
    status, printed = call("source=videos", "out=out", "save=[sheet]", "force=true")
    assert status == 1 and "2 videos failed: videos/b/" in printed and "cannot write" in printed
    assert [line["file"] for line in lines_of(Path("out"))] == ["videos/a.mp4"]


def test_a_video_shorter_than_the_window_is_one_window(call, folder):
    status, printed = call("source=videos/a.mp4", "save=[json]", "window=0.25", "stride=0.125")
    assert status == 0 and len(lines_of(Path("predictions/a"))[0]["windows"]) > 1
    status, printed = call("source=videos/a.mp4", "save=[json]", "window=5", "out=out")
    assert status == 0 and "1 video shorter than window=5 s: one window each" in printed
    assert len(lines_of(Path("out"))[0]["windows"]) == 1


def test_other_predictions_are_not_mixed_in(call, folder, run, tmp_path):
    assert call("source=videos/a.mp4", "save=[json]", "out=out")[0] == 0
    status, printed = call("source=videos", "out=out", "window=0.2")
    assert status == 2 and "out=out holds predictions that were made with another window; set force=true to replace them" in printed
    assert [line["file"] for line in lines_of(Path("out"))] == ["videos/a.mp4"]
    assert call("source=videos/b", "out=out", "window=0.2", "force=true")[0] == 0
    assert {line["file"] for line in lines_of(Path("out"))} == {"videos/b/a.mp4", "videos/b/c.avi"}


def test_a_folder_of_other_files_is_not_written_to(call, folder):
    Path("notes").mkdir()
    Path("notes/a.txt").touch()
    status, printed = call("source=videos/a.mp4", "out=notes")
    assert status == 2 and "out=notes exists and holds other files; choose another folder, or set force=true" in printed
    status, printed = call("source=videos/a.mp4", "out=videos", "force=true")
    assert status == 2 and "out=videos: a.mp4 would replace the video itself; choose another folder" in printed


def test_a_folder_in_use_is_refused(call, folder):
    with OutputFolder(Path("out"), {}, force=False):
        status, printed = call("source=videos/a.mp4", "out=out")
    assert status == 2 and "another process is writing to out=out; wait for it" in printed


def shard_names():
    return sorted(path.name for path in Path("out").glob("*.jsonl"))


def test_shards_together_are_the_whole_source_and_are_merged(call, folder):
    assert call("source=videos", "out=whole", "batch_size=1")[0] == 0
    for index in (2, 1):
        status, printed = call("source=videos", "out=out", "batch_size=1", f"shard={index}/2")
        assert status == 0 and f"saved to out: predictions-{index}-of-2.jsonl; {3 - index} new prediction" in printed
    assert shard_names() == ["predictions-1-of-2.jsonl", "predictions-2-of-2.jsonl"]
    assert "predictions-1-of-2.jsonl has all 2 videos already" in call("source=videos", "out=out", "shard=1/2")[1]
    status, printed = call("source=videos", "out=out")
    assert status == 0 and "predictions.jsonl has all 3 videos already" in printed and shard_names() == ["predictions.jsonl"]
    by_file = [sorted(lines_of(Path(name)), key=lambda line: line["file"]) for name in ("out", "whole")]
    assert by_file[0] == by_file[1] and len(by_file[0]) == 3


def test_a_command_without_shards_predicts_what_the_shards_have_not(call, folder):
    call("source=videos", "out=out", "shard=1/2")
    with Path("out/predictions-1-of-2.jsonl").open("a") as stream:
        stream.write('{"file": "videos/b')  # a shard that was killed while it wrote a line
    status, printed = call("source=videos", "out=out")
    assert status == 0 and "2 of 3 videos were predicted before" in printed and shard_names() == ["predictions.jsonl"]
    assert sorted(line["file"] for line in lines_of(Path("out"))) == sorted(FILES)


def test_another_number_of_shards_predicts_nothing_twice(call, folder):
    call("source=videos", "out=out", "shard=1/2")
    for index in (1, 2, 3, 4):
        status, printed = call("source=videos", "out=out", f"shard={index}/4")
        assert status == 0 and ("shard=4/4 has no videos, because source=videos has fewer videos" in printed) == (index == 4)
    lines = [line for name in shard_names() for line in Path("out", name).read_text().splitlines()]
    assert sorted(json.loads(line)["file"] for line in lines) == sorted(FILES)


def test_an_interrupted_merge_is_done_again(call, folder, monkeypatch):
    for index in (1, 2):
        call("source=videos", "out=out", f"shard={index}/2")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda path, missing_ok=False: (_ for _ in ()).throw(Killed()) if "of-2.j" in path.name else None)
        with pytest.raises(Killed):
            call("source=videos", "out=out")
    assert len(shard_names()) == 3
    call("source=videos", "out=out")
    assert shard_names() == ["predictions.jsonl"] and sorted(line["file"] for line in lines_of(Path("out"))) == sorted(FILES)


def test_shards_are_written_at_the_same_time_but_each_by_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "PATIENCE", 0.1)
    out, busy = tmp_path / "out", "another process is writing to out="
    with OutputFolder(out, {}, force=False, shard=WorkShard(1, 2)) as one, OutputFolder(out, {}, force=False, shard=WorkShard(2, 2)) as two:
        assert (one.path.name, two.path.name) == ("predictions-1-of-2.jsonl", "predictions-2-of-2.jsonl")
        for arguments in ({"shard": WorkShard(2, 2)}, {}, {"force": True}, {"force": True, "origin": {"a": 1}, "shard": WorkShard(1, 3)}):
            with pytest.raises(InputError, match=busy):
                OutputFolder(**{"folder": out, "origin": {}, "force": False, **arguments})
    with OutputFolder(out, {}, force=False), pytest.raises(InputError, match=busy):
        OutputFolder(out, {}, force=False, shard=WorkShard(1, 2))
    OutputFolder(out, {}, force=False, shard=WorkShard(1, 2)).close()


def test_force_replaces_one_shard_or_all_predictions_of_other_weights(tmp_path):
    files = [tmp_path / f"predictions{suffix}.jsonl" for suffix in ("", "-1-of-2", "-2-of-2")]

    def opened(origin):
        for file in files:
            file.write_text(json.dumps({"file": file.name}) + "\n")
        OutputFolder(tmp_path, origin, force=True, shard=WorkShard(1, 2)).close()
        return [file.exists() for file in files]

    assert opened({"weights": 1}) == [True, False, True]
    assert opened({"weights": 1}) == [True, False, True]
    assert opened({"weights": 2}) == [False, False, False]


@pytest.mark.parametrize("shard", ["0/2", "3/2"])
def test_a_shard_out_of_range_is_refused(call, folder, shard):
    status, printed = call("source=videos", f"shard={shard}")
    assert status == 2 and f"shard must be I/N with 1 ≤ I ≤ N, got '{shard}'" in printed and not Path("predictions").exists()


def test_a_damaged_line_is_named(tmp_path):
    with OutputFolder(tmp_path / "out", {}, force=False) as folder:
        folder.path.write_text("not JSON\n")
    with pytest.raises(InputError, match=r"predictions\.jsonl is damaged in line 1; set force=true to start over"):
        OutputFolder(tmp_path / "out", {}, force=False)
    OutputFolder(tmp_path / "out", {}, force=True).close()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.mp4", "source=none.mp4 does not exist; give a video, a folder, a pattern such as 'videos/*.mp4', or - for a list"),
        ("*.mov", r"source=*.mov matches no videos (0 files and folders)"),
        ("empty", "source=empty holds no videos: neither files (.mp4"),
        ("-", "source=- reads paths of videos from standard input, one per line, and there were none"),
    ],
)
def test_a_source_without_videos_is_named(call, monkeypatch, source, message):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    Path("empty").mkdir()
    status, printed = call(f"source={source}")
    assert status == 2 and message in printed and not Path("predictions").exists()


def test_results_in_the_folder_of_the_videos_are_no_sources(call, folder):
    assert call("source=videos", "out=videos/out", "save=[video]")[0] == 0
    assert "has all 3 videos already" in call("source=videos", "out=videos/out", "save=[video]")[1]


def test_names_of_classes_come_from_a_file(call, folder):
    Path("names.txt").write_text("\n".join(f"Größe {number}" for number in range(10)))
    assert call("source=videos/a.mp4", "classes=names.txt", "save=[json]")[0] == 0
    assert lines_of(Path("predictions/a"))[0]["top"][0]["class"].startswith("Größe ")
    Path("names.txt").write_text("a\nb\n")
    status, printed = call("source=videos/a.mp4", "classes=names.txt")
    assert status == 2 and "classes must have one name for each of the 10 classes of the classifier, got 2" in printed
    status, printed = call("source=videos/a.mp4", "classes=none.txt")
    assert status == 2 and "classes=none.txt cannot be read" in printed and "one name per line" in printed


def test_either_a_run_or_a_classifier_is_given(call, run, folder):
    for given in ("", f"run={run}"):
        status, printed = call("source=videos/a.mp4", *([f"classifier={run}/checkpoints/classifier"] if given else []), run=given)
        assert status == 2 and ("give run=DIR, or classifier=DIR" in printed or "has a classifier; leave one of them out" in printed)
    classifier, policy = f"classifier={run}/checkpoints/classifier", f"policy={run}/checkpoints/best"
    assert call("source=videos/a.mp4", "save=[json]", classifier, policy, run="")[0] == 0


def test_an_unfinished_run_offers_its_best_policy(call, folder, tmp_path):
    unfinished = make_run(tmp_path / "unfinished", finished=False)
    status, printed = call("source=videos/a.mp4", run=f"run={unfinished}")
    assert status == 2 and f"policy={unfinished}/checkpoints/best" in printed


def test_a_budget_needs_a_policy_that_skips(call, folder):
    status, printed = call("source=videos/a.mp4", "keep=0.5")
    assert status == 2 and "keep=0.5 is for policies that skip frames; train one with ppo=skip, or leave it out" in printed


@pytest.mark.parametrize(("keep", "patches"), [(0.25, 1), (1.0, 4)])
def test_a_share_of_frames_is_met_as_on_the_validation_split(call, folder, tmp_path, monkeypatch, keep, patches):
    patch_demo(monkeypatch)
    skipping = make_run(tmp_path / "skipping", policy=one_cell(3, skips=True))
    status, printed = call("source=videos/a.mp4", "save=[json]", f"keep={keep}", run=f"run={skipping}")
    assert status == 0 and f"{keep:.1%} of the frames get a patch: skipping where P(skip) is" in printed
    assert sum(not frame["skipped"] for frame in lines_of(Path("predictions/a"))[0]["frames"]) == patches


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems refuse such names")
def test_names_that_are_not_utf_8_are_written_and_listed(call, folder):
    Path("videos/b/a.mp4").rename(os.fsdecode(b"videos/b/\xff.mp4"))
    Path(os.fsdecode(b"videos/\xfe.mp4")).touch()
    status, printed = call("source=videos", "out=out")
    assert status == 1 and "\\udcfe.mp4: the file is empty" in printed
    assert os.fsdecode(b"videos/b/\xff.mp4") in {line["file"] for line in lines_of(Path("out"))}
    assert "3 of 4 videos were predicted before" in call("source=videos", "out=out")[1]


@pytest.mark.parametrize(
    ("key", "given", "reason"),
    [
        ("classifier", {"run": "DIR"}, "run=DIR has a classifier; leave one of them out"),
        ("keep", {"classifier": "DIR"}, "it is solved on the validation split of a run; give run=DIR"),
        ("stride", {"run": "DIR"}, "the whole video is one window; set window, or leave it out"),
    ],
)
def test_a_key_without_an_effect_is_refused(key, given, reason):
    with pytest.raises(InputError, match=f"{key}=1 has no effect: {reason}"):
        check_effect(Predict(source="a.mp4", **given), {key: f"{key}=1"})


def test_what_predictions_depend_on_is_stored(call, folder):
    call("source=videos/a.mp4", "save=[json]", "out=out")
    origin = json.loads(Path("out/predict.json").read_text())
    assert origin["clip_format"]["num_frames"] == 4 and len(origin["classes"]) == 10 and len(origin["policy"]) == 64
