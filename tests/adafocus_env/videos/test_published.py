"""The published data sets in miniature, from frames and from videos."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_classifier, slow_except
from PIL import Image
from published_sets import make_frames, make_lists, make_videos, paths
from videos import square_frames

from adafocus_env.build import open_clips
from adafocus_env.dataset_registry import build_data
from adafocus_env.videos.published import PUBLISHED, published
from adafocus_env.videos.readers import DecodeError, DecodeRequest, decode_clip
from agents.config.command import compose_config
from agents.config.settings import TrainPPO
from agents.pipeline.builders import choose_classifier
from classifiers import checkpoint
from classifiers.errors import InputError

pytestmark = pytest.mark.usefixtures("in_process")
PUBLISHED_NUMBERS = {"actnet": (200, 16, "map"), "fcvid": (239, 16, "map"), "minik": (200, 16, "top1")} | dict.fromkeys(
    ("sthv1", "sthv2"), (174, 12, "top1")
) | {"jester": (27, 12, "top1")}


def names(part):
    return [video.name for video in part]


def data_config(*overrides):
    return compose_config(TrainPPO, "train_ppo", overrides).data


@pytest.mark.parametrize("name", slow_except(["sthv1"], PUBLISHED))
def test_a_set_is_the_same_from_frames_and_from_videos(tmp_path, name):
    root = make_frames(make_videos(make_lists(tmp_path, name), name), name)
    frames, videos = (build_data(data_config(f"data={name}", f"data.root={root}", f"data.source={s}")) for s in ("frames", "videos"))
    for data in (frames, videos):
        assert data.classes == ("left turn", "right turn")
        assert set(names(data.train + data.val)) == set(paths(name)[:4]) and len(data.val) >= 1
        assert names(data.test) == paths(name)[4:] and [video.label for video in data.test] == [0, 1]
        clips = open_clips(data, "test", num_frames=5, size=40)
        assert not clips.failures and clips.indices(0).tolist() == [2, 6, 10, 14, 18]
    assert names(frames.val) == names(videos.val)
    seen = [open_clips(data, "test", num_frames=5, size=40).frames(1).float() for data in (frames, videos)]
    assert (seen[0] - seen[1]).abs().mean() < 6  # both compress


@pytest.mark.parametrize("name", PUBLISHED)
def test_configs_and_rows_hold_what_is_published(tmp_path, name):
    config, about = data_config(f"data={name}", f"data.root={tmp_path}"), PUBLISHED[name]
    assert (about.num_classes, about.num_frames, about.metric) == PUBLISHED_NUMBERS[name]
    assert (config.name, config.num_frames, config.source) == (name, about.num_frames, "auto")
    data = published(name, make_frames(make_lists(tmp_path, name), name))
    assert (data.name, data.metric, data.flip) == (name, about.metric, not name.startswith(("sth", "jester")))


def test_all_labels_are_kept_and_the_first_is_trained_on(tmp_path):
    data = published("actnet", make_videos(make_lists(tmp_path, "actnet"), "actnet"), val=0)
    assert {video.name: (video.label, video.labels) for video in data.train + data.test} == {
        "a": (0, (0,)), "b": (1, (1,)), "c": (1, (1, 0)), "d": (0, (0,)), "e": (0, (0,)), "f": (1, (1, 0)),
    }  # fmt: skip


def test_frames_are_taken_where_both_are_there(tmp_path):
    root = make_videos(make_lists(tmp_path, "actnet"), "actnet")
    assert published("actnet", root).test[0].path == root / "videos" / "e.mp4"
    make_frames(root, "actnet")
    assert published("actnet", root).test[0].path == root / "frames" / "e"


def test_videos_may_have_any_known_suffix_and_lists_may_name_it(tmp_path):
    root = make_videos(make_lists(tmp_path, "actnet"), "actnet", suffix=".MKV")
    (root / "videos" / "e.json").touch()
    (root / "actnet_val_split.txt").write_text("e,20,0\nf.mp4,20,1\n")
    assert [video.path.name for video in published("actnet", root).test] == ["e.MKV", "f.MKV"]
    (root / "videos" / "e.mp4").touch()
    assert published("actnet", root).test[0].path.name == "e.mp4"  # always the same one of two


def test_the_length_of_a_raw_video_is_its_own(tmp_path):
    data = published("sthv2", make_videos(make_lists(tmp_path, "sthv2"), "sthv2", num_frames=9), val=0)
    clips = open_clips(data, "test", num_frames=3, size=40)
    assert not clips.failures and clips.indices(0).tolist() == [1, 4, 7]


def test_a_missing_video_is_left_out_when_clips_are_made(tmp_path, caplog):
    root = make_videos(make_lists(tmp_path, "actnet"), "actnet")
    (root / "videos" / "e.mp4").unlink()
    clips = open_clips(published("actnet", root), "test", num_frames=3, size=40)
    assert clips.names == ["f"] and "e: cannot read the video" in caplog.text and "there is no such file" in caplog.text


def test_what_differs_from_the_publication_is_told(tmp_path, caplog):
    published("actnet", make_videos(make_lists(tmp_path, "actnet"), "actnet"))
    assert "classInd.txt has 2 classes; ActivityNet was published with 200" in caplog.text
    assert "actnet_train_split.txt: lines with fewer than 3 frames, which are dropped: 1" in caplog.text


def spoil(root, case):
    about = PUBLISHED["actnet"]
    if case == "no lists":
        (root / about.train_list).unlink()
    elif case == "no classes":
        (root / about.class_file).unlink()
    elif case == "one class":
        (root / about.class_file).write_text("left turn\n")
    elif case == "bad lines":
        (root / about.train_list).write_text("a,20,2\nb,20\n")
        (root / about.test_list).write_text("e 20 0\n")
    elif case == "shared":
        (root / about.test_list).write_text("e,20,0\na,20,0\n")
    elif case == "short test":
        (root / about.test_list).write_text("e,2,0\n")
    elif case == "other names":
        (root / "videos").rename(root / "old")
        for file in (root / "old").iterdir():
            file.rename(root / "old" / f"v_{file.name}")
        (root / "old").rename(root / "videos")
    elif case == "nothing":
        (root / "videos").rename(root / "clips")


@pytest.mark.parametrize(
    ("case", "source", "message"),
    [
        ("no lists", "auto", r"the list .*actnet_train_split.txt cannot be read \(No such file"),
        ("no classes", "auto", r"the class file .*classInd.txt cannot be read \(No such file"),
        ("one class", "auto", r"classInd.txt has 1 classes; at least two"),
        ("bad lines", "auto", r"has 2 lines [^$]*line 1: the label 2 is beyond [^$]*line 2: 2 of [^$]*val_split.txt has 1 line"),
        ("shared", "auto", r"actnet_val_split.txt has 1 line that cannot be used:\n  line 2: a is also in actnet_train_split.txt"),
        ("short test", "auto", r"the list .*actnet_val_split.txt holds no video"),
        ("other names", "auto", r"none of the 6 videos of the lists, as 'a', has a video \(.*\) in .*videos, where there is 'v_\w.mp4'"),
        ("nothing", "auto", r"has neither frames/ with a folder of frames for each video nor videos/"),
        ("whole", "frames", r"^data.source=frames: .*frames is not a folder; put the frames there, or use data.source=auto"),
        ("whole", "vidoes", r"^data.source='vidoes' is not known; did you mean 'videos'\?"),
    ],
)
def test_sets_that_cannot_be_used(tmp_path, case, source, message):
    root = make_videos(make_lists(tmp_path, "actnet"), "actnet")
    spoil(root, case)
    with pytest.raises(InputError, match=message):
        published("actnet", root, source=source)


def test_frame_folders_of_other_names(tmp_path):
    root = make_lists(tmp_path, "actnet")
    (root / "frames" / "v_a").mkdir(parents=True)
    with pytest.raises(InputError, match=r"has a folder of frames in .*frames, where there is 'v_a'$"):
        published("actnet", root)


@pytest.mark.parametrize("name", ["actnet", "sthv1"])
def test_a_root_is_needed(tmp_path, name):
    with pytest.raises(InputError, match=f"data.root is missing: add data.root=DIR, the folder of data={name}, with the published lists"):
        build_data(data_config(f"data={name}"))
    with pytest.raises(InputError, match=f"data.root: .*nowhere does not exist; .* and the lists of {PUBLISHED[name].title}"):
        build_data(data_config(f"data={name}", f"data.root={tmp_path / 'nowhere'}"))


# Numbered frames


def folder_of(tmp_path, numbers, pattern="image_%05d.jpg") -> Path:
    (tmp_path / "v").mkdir()
    for number, frame in zip(numbers, square_frames(len(numbers)), strict=True):
        Image.fromarray(frame).save(tmp_path / "v" / (pattern % number), quality=95)
    return tmp_path / "v"


def request(folder, stated, pattern="image_%05d.jpg"):
    return DecodeRequest(folder, 4, num_frames_stated=stated, frame_name=pattern)


@pytest.mark.parametrize("pattern", ["image_%05d.jpg", "%05d.jpg", "%06d.jpg"])
def test_other_files_in_a_folder_of_frames_do_not_matter(tmp_path, pattern):
    folder = folder_of(tmp_path, range(1, 13), pattern)
    for other in ("0.jpg", "thumbnail.jpg", "image_1.jpg", "image_0000013.jpg", "00013.png", "x_00001.jpg"):
        (folder / other).write_bytes(b"no image")
    clip = decode_clip(request(folder, 12, pattern))
    assert (clip.num_frames, clip.indices.tolist()) == (12, [1, 4, 7, 10])
    assert np.abs(clip.frames.astype(int) - square_frames(12)[[1, 4, 7, 10]]).mean() < 6


@pytest.mark.parametrize(
    ("numbers", "stated", "reason"),
    [
        ([1, 2, 3, 5, 6], 6, r"the frame image_00004.jpg is missing before the last, image_00006.jpg$"),
        ([1, 2, 6], 6, r"the frame image_00003.jpg and 2 more are missing before the last"),
        ([2, 3, 4], 4, r"the frame image_00001.jpg is missing"),
        ([1, 2, 3, 4], 6, r"the list says 6 frames, and the folder holds 4 \(the last is image_00004.jpg\); extract them again"),
        ([1, 2, 3, 4, 5, 6, 7], 6, r"the list says 6 frames, and the folder holds 7"),
        ([0, 1, 2, 3], 4, r"its frames must begin at image_00001.jpg, got image_00000.jpg; rename them"),
        ([], 4, r"the folder holds no frame named like image_00001.jpg"),
    ],
)
def test_frames_that_do_not_fit_the_list(tmp_path, numbers, stated, reason):
    with pytest.raises(DecodeError, match=rf"cannot read the video .*v: {reason}"):
        decode_clip(request(folder_of(tmp_path, numbers), stated))


def test_clips_are_made_anew_when_the_list_states_another_number(tmp_path, caplog):
    data = published("sthv2", make_frames(make_lists(tmp_path, "sthv2"), "sthv2"), val=0)
    assert len(open_clips(data, "test", num_frames=3, size=40)) == 2
    wrong = replace(data, test=(replace(data.test[0], num_frames=21), data.test[1]))
    assert open_clips(wrong, "test", num_frames=3, size=40).names == ["6"]
    assert "the list says 21 frames, and the folder holds 20" in caplog.text


# A classifier and a data set that number their classes differently


@pytest.mark.parametrize(
    ("trained", "message"),
    [
        (("right turn", "left turn"), "same names in another order: the first that differs is class 0, 'right turn' for the classifier"),
        (("left turn", "u turn"), "not the same names: the first that differs is class 1, 'u turn' for the classifier and 'right turn' in"),
        (("0", "1"), "Its classes have no names; if it was imported, import it again with classes=FILE"),
        (("a", "b", "c"), "was trained on 3 classes .*Use classifier=auto"),
    ],
)
def test_a_classifier_of_other_classes_is_refused(tmp_path, trained, message):
    data = published("actnet", make_videos(make_lists(tmp_path, "actnet"), "actnet"))
    classifier = random_classifier()
    classifier.classes = trained
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "load", lambda *_: classifier)
        with pytest.raises(InputError, match=message):
            choose_classifier(str(tmp_path), data, torch.device("cpu"))
