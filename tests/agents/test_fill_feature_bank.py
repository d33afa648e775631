import shutil
from collections import namedtuple
from functools import partial

import pytest
from conftest import TASK, random_classifier
from tiny_training import patch_demo

from adafocus_env.build import build_features, open_clips
from adafocus_env.demo import videos
from adafocus_env.demo.videos import demo
from adafocus_env.features import disk_bank as bank_folder
from adafocus_env.features.disk_bank import SHARD_SIZE, DiskBank
from adafocus_env.features.live import LiveFeatures
from agents.config.command import run_command
from agents.config.settings import FillFeatureBank
from agents.fill_feature_bank import main
from classifiers import checkpoint

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def small_demo(monkeypatch):
    patch_demo(monkeypatch)
    return partial(demo, TASK)


@pytest.fixture
def saved(tmp_path):
    checkpoint.save(random_classifier(), tmp_path / "classifier")
    return tmp_path / "classifier"


def typed(saved, out, *more):
    return [f"classifier={saved}", f"out={out}", "data.num_frames=4", "grid=3", "data.val=0.3", *more]


def fill(*arguments):
    run_command(main, FillFeatureBank, "fill_feature_bank", arguments=arguments)


def banks(saved, out, data):
    classifier = checkpoint.load(saved)
    for split in ("train", "val", "test"):
        clips = open_clips(data, split, num_frames=4, size=96)
        bank = build_features(classifier, clips, grid=3, bank=out)
        assert isinstance(bank, DiskBank)
        yield split, bank


def test_what_was_filled_ahead_is_found_by_training(saved, tmp_path, small_demo, capsys, monkeypatch):
    fill(*typed(saved, tmp_path / "out"))
    out = capsys.readouterr().out
    assert out.count("data: demo: 10 classes; ") == 1
    for split, bank in banks(saved, tmp_path / "out", small_demo(val=0.3)):
        assert bank.missing_bytes() == 0
        assert f"{split}: bank: {len(bank.clips)} clips in {bank.folder}, " in out and f"fill {split}" in out
        assert f"{len(bank.clips)}/{len(bank.clips)}" in out and "still to be computed" in out
    monkeypatch.setattr(LiveFeatures, "glance", None)
    fill(*typed(saved, tmp_path / "out"))
    assert ", all computed" in capsys.readouterr().out


def test_shards_are_filled_on_their_own(saved, tmp_path, small_demo):
    for share in (0, 1):
        fill(*typed(saved, tmp_path / f"out{share}", f"shard={share + 1}/2", "split=train"))
        _, bank = next(banks(saved, tmp_path / f"out{share}", small_demo(val=0.3)))
        assert [path.name for path in bank.folder.glob("*.bin")] == [f"{share:06d}.bin"] and len(bank.clips) > SHARD_SIZE
    shutil.copytree(tmp_path / "out0", tmp_path / "out1", dirs_exist_ok=True)
    _, bank = next(banks(saved, tmp_path / "out1", small_demo(val=0.3)))
    assert bank.missing_bytes() == 0


def test_shards_in_one_folder_are_the_same_bank_as_one_job(saved, tmp_path, small_demo):
    for shard in ("2/3", "1/3", "3/3"):
        fill(*typed(saved, tmp_path / "shards", f"shard={shard}"))
    fill(*typed(saved, tmp_path / "whole"))
    files = {path.relative_to(tmp_path / "whole"): path.read_bytes() for path in (tmp_path / "whole").rglob("*.bin")}
    assert files and files == {path.relative_to(tmp_path / "shards"): path.read_bytes() for path in (tmp_path / "shards").rglob("*.bin")}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("shard=0/2", "shard must be I/N with 1 ≤ I ≤ N, got '0/2'; shards are counted from 1: shard=1/4, …, shard=4/4"),
        ("split=tets", "split must be 'train' or 'val' or 'test' or 'all', got 'tets'; did you mean 'test'"),
        ("data=dmo", "data='dmo' is not known; did you mean 'demo'"),
        ("data=folder", "data.root is missing: add data.root=DIR, the folder of data=folder"),
        ("data=actnet", "data.root is missing: add data.root=DIR, the folder of data=actnet"),
        ("data.val=much", "data.val must be a number of at least 0 and below 1, got 'much'"),
        ("data.num_frames=-1", "data.num_frames must be an integer of at least 1, got -1"),
        ("data.views=resample", "data.views must be a number of clips per video to store features, got resample"),
        ("bank_dtype=int8", "bank_dtype must be 'float32' or 'float16' or 'bfloat16', got 'int8'"),
        ("action=grd", "action must be 'grid' or 'continuous' or 'interpolated' or 'skip' or 'continuous_skip', got 'grd'; did you mean"),
        ("grdi=7", "grdi is not a setting; did you mean 'grid'?"),
        ("grid=x", "grid must be an integer of at least 1, got 'x'"),
        ("device=gpu", "device='gpu' cannot be used here"),
        ("video_div=2", "video_div=2 needs a classifier with the head 'mean' or 'separate_mean'"),
        ("out=", "out is missing: add out=VALUE"),
    ],
)
def test_mistakes_are_told_in_one_line(saved, tmp_path, small_demo, capsys, argument, message):
    with pytest.raises(SystemExit) as ended:
        fill(*typed(saved, tmp_path / "out", argument))
    shown = capsys.readouterr()
    assert ended.value.code == 2 and message in shown.err and shown.err.count("\n") == 1
    assert not list((tmp_path / "out").glob("*/*"))


def test_a_classifier_for_other_classes_is_refused(tmp_path, saved, small_demo, capsys):
    for place in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "videos" / place / "one").mkdir(parents=True)
        (tmp_path / "videos" / place / "one" / "0.png").write_bytes(b"")
    with pytest.raises(SystemExit):
        fill(*typed(saved, tmp_path / "out", "data=folder", f"data.root={tmp_path / 'videos'}"))
    assert f"classifier={saved} was trained on other classes than those of data=folder" in capsys.readouterr().err


def test_no_room_for_all_parts_together(saved, tmp_path, small_demo, capsys, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(bank_folder.shutil, "disk_usage", lambda path: usage(200_000))  # train alone would fit
    with pytest.raises(SystemExit):
        fill(*typed(saved, tmp_path / "out"))
    assert "must fit in 195.3 KiB (free on the disk), got" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*/*.bin"))


def test_help_begins_with_the_docstring(capsys):
    fill("--help")
    assert capsys.readouterr().out.startswith("Fill a feature bank on disk in advance")


def test_the_bank_of_any_task_is_filled(saved, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(videos, "TASKS", dict.fromkeys(videos.TASKS, TASK))
    fill(f"classifier={saved}", f"out={tmp_path / 'out'}", "data.num_frames=4", "grid=3", "data.task=mover", "split=test")
    assert "data: demo-mover: 10 classes; " in capsys.readouterr().out and list((tmp_path / "out").glob("*/*.bin"))
