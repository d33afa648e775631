import shutil
from collections import namedtuple
from functools import partial
from pathlib import Path

import pytest
import yaml
from conftest import TASK, random_classifier

import configs
from adafocus_env.build import build_features, open_clips
from adafocus_env.demo import videos as demo_module
from adafocus_env.features import disk_bank as bank_folder
from adafocus_env.features.disk_bank import SHARD_SIZE, DiskBank
from adafocus_env.features.live import LiveFeatures
from agents import fill_feature_bank as fill_bank
from classifiers import checkpoint


@pytest.fixture
def small_demo(monkeypatch):
    monkeypatch.setattr(demo_module, "demo", partial(demo_module.demo, TASK))
    return demo_module.demo


@pytest.fixture
def saved(tmp_path):
    checkpoint.save(random_classifier(), tmp_path / "classifier")
    return tmp_path / "classifier"


def typed(saved, out, *more):
    return [f"classifier={saved}", f"out={out}", "data.num_frames=4", "grid=3", "data.val=0.3", *more]


def banks(saved, out, data):
    classifier = checkpoint.load(saved)
    for split in ("train", "val", "test"):
        clips = open_clips(data, split, num_frames=4, size=96)
        bank = build_features(classifier, clips, grid=3, bank=out)
        assert isinstance(bank, DiskBank)
        yield split, bank


def test_what_was_filled_ahead_is_found_by_training(saved, tmp_path, small_demo, capsys, monkeypatch):
    fill_bank.main(typed(saved, tmp_path / "out"))
    out = capsys.readouterr().out
    assert out.count("data: demo: 10 classes; ") == 1
    for split, bank in banks(saved, tmp_path / "out", small_demo(val=0.3)):
        assert bank.missing_bytes() == 0
        assert f"{split}: bank: {len(bank.clips)} clips in {bank.folder}, " in out and f"fill {split}" in out
        assert f"{len(bank.clips)}/{len(bank.clips)}" in out and "still to be computed" in out
    monkeypatch.setattr(LiveFeatures, "glance", None)
    fill_bank.main(typed(saved, tmp_path / "out"))
    assert ", all computed" in capsys.readouterr().out


def test_shares_are_filled_on_their_own(saved, tmp_path, small_demo, monkeypatch):
    monkeypatch.setattr(fill_bank, "SPLITS", {"train": ("train",)})
    for share in (0, 1):
        fill_bank.main(typed(saved, tmp_path / f"out{share}", f"shard={share}/2", "split=train"))
        _, bank = next(banks(saved, tmp_path / f"out{share}", small_demo(val=0.3)))
        assert [path.name for path in bank.folder.glob("*.bin")] == [f"{share:06d}.bin"] and len(bank.clips) > SHARD_SIZE
    shutil.copytree(tmp_path / "out0", tmp_path / "out1", dirs_exist_ok=True)
    _, bank = next(banks(saved, tmp_path / "out1", small_demo(val=0.3)))
    assert bank.missing_bytes() == 0


def test_the_defaults_are_those_of_the_commands_that_train():
    for name in fill_bank.DATA_SETS:
        expected = yaml.safe_load((Path(configs.__file__).parent / "data" / f"{name}.yaml").read_text(encoding="utf-8"))
        given = fill_bank.Arguments("c", "o", data=name)
        assert fill_bank._num_frames(given) == expected["num_frames"]
        assert fill_bank._glance_frames(given) == expected.get("glance_frames", 0)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("shard=2/2", "shard=2/2 is no share of the work; give I/N, the I-th of N from 0: shard=0/4, …, shard=3/4"),
        ("shard=1", "shard=1 is no share of the work; give I/N"),
        ("shard=a/b", "shard=a/b is no share of the work; give I/N"),
        ("split=tets", "split='tets' is not known; did you mean 'test'"),
        ("data=dmo", "data='dmo' is not known; did you mean 'demo'"),
        ("data=folder", "data.root is missing: add data.root=DIR, the folder of data=folder"),
        ("data=actnet", "data.root is missing: add data.root=DIR, the folder of data=actnet"),
        ("data.val=much", "data.val=much: data.val must be a number"),
        ("data.num_frames=-1", "data.num_frames=-1: a clip needs at least 1 frame"),
        ("bank_dtype=int8", "bank_dtype='int8' is not known"),
        ("action=grd", "action='grd' is not known; did you mean 'grid'"),
        ("grdi=7", "there is no key 'grdi'; did you mean 'grid'?"),
        ("grid=x", "grid=x: grid must be a whole number of cells"),
        ("device=gpu", "device='gpu' cannot be used here"),
        ("video_div=2", "video_div=2 needs a classifier with the head 'mean'"),
        ("out=", "out is missing: add out=VALUE"),
    ],
)
def test_mistakes_are_told_in_one_line(saved, tmp_path, small_demo, capsys, argument, message):
    with pytest.raises(SystemExit) as ended:
        fill_bank.main(typed(saved, tmp_path / "out", argument))
    shown = capsys.readouterr()
    assert ended.value.code == 2 and message in shown.err and shown.err.count("\n") == 1
    assert not list((tmp_path / "out").glob("*/*"))


def test_a_classifier_for_other_classes_is_refused(tmp_path, saved, small_demo, capsys):
    for place in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "videos" / place / "one").mkdir(parents=True)
        (tmp_path / "videos" / place / "one" / "0.png").write_bytes(b"")
    with pytest.raises(SystemExit):
        fill_bank.main(typed(saved, tmp_path / "out", "data=folder", f"data.root={tmp_path / 'videos'}"))
    assert f"classifier={saved} was trained on other classes than those of data=folder" in capsys.readouterr().err


def test_no_room_for_all_parts_together(saved, tmp_path, small_demo, capsys, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(bank_folder.shutil, "disk_usage", lambda path: usage(200_000))  # train alone would fit
    with pytest.raises(SystemExit):
        fill_bank.main(typed(saved, tmp_path / "out"))
    assert "must fit in 195.3 KiB (free on the disk), got" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*/*.bin"))


def test_help_is_the_docstring(capsys):
    fill_bank.main(["--help"])
    assert capsys.readouterr().out.startswith("Fills a feature bank on disk ahead")
