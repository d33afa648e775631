import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adafocus_env.clips.clip_spec import ClipSpec, fixed_crop
from adafocus_env.dataset_registry import build_data
from adafocus_env.videos.class_folders import folder
from adafocus_env.videos.dataset import Video, check_train_split, with_classes
from adafocus_env.videos.splits import hold_out
from agents.config.command import compose_config
from agents.config.settings import TrainPPO
from classifiers.errors import InputError


def videos(n, num_classes=2):
    return [Video(f"c{i % num_classes}/v{i}.mp4", Path(f"/data/c{i % num_classes}/v{i}.mp4"), i % num_classes) for i in range(n)]


def names(part):
    return {video.name for video in part}


def touch(root, *files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def two_classes(root, n=10):
    return touch(root, *(f"{label}/{i}.mp4" for label in ("cat", "dog") for i in range(n)))


def test_holding_out_depends_on_names_alone():
    everything = videos(400)
    train, val = hold_out(everything, 0.1)
    assert 20 <= len(val) <= 60 and len(train) + len(val) == 400
    assert names(hold_out(everything[::-1], 0.1)[1]) == names(val)
    assert names(hold_out(everything[:200], 0.1)[1]) == names(val) & names(everything[:200])
    moved = [Video(video.name, Path("/elsewhere") / video.name, video.label) for video in everything]
    assert names(hold_out(moved, 0.1)[1]) == names(val)
    assert names(val) <= names(hold_out(everything, 0.2)[1])


def test_the_split_never_changes_between_versions():
    assert sorted(names(hold_out(videos(40), 0.1)[1])) == ["c0/v36.mp4", "c1/v13.mp4", "c1/v15.mp4", "c1/v19.mp4", "c1/v33.mp4"]


@given(st.integers(0, 30), st.integers(1, 8), st.floats(0, 0.99))
def test_small_sets_keep_both_parts_and_all_classes(n, num_classes, share):
    everything = videos(n, num_classes)
    train, val = hold_out(everything, share)
    assert names(train) | names(val) == names(everything) and len(train) + len(val) == n
    if n >= 2 and share > 0:
        assert train and val
    if n >= num_classes + 1:
        assert {video.label for video in train} == {video.label for video in everything}


@pytest.mark.parametrize("share", [-0.1, 1.0, 2])
def test_a_share_out_of_range_is_an_error(share):
    with pytest.raises(InputError, match=r"data.val: must be a share in \[0, 1\), got"):
        hold_out(videos(4), share)


def test_folder_with_given_parts(tmp_path):
    touch(tmp_path, "train/dog/a.mp4", "train/dog/b.MKV", "train/cat/c.avi", "train/cat/d.avi", "test/dog/e.webm", "test/cat/f.mp4")
    touch(tmp_path, "train/dog/.hidden.mp4", "train/dog/notes.txt", ".DS_Store", "train/.git/x/y.mp4")
    data = folder(tmp_path, val=0)
    assert data.classes == ("cat", "dog") and data.val == () and data.prepare is None
    assert names(data.train) == {"train/cat/c.avi", "train/cat/d.avi", "train/dog/a.mp4", "train/dog/b.MKV"}
    assert {(video.name, video.label) for video in data.test} == {("test/dog/e.webm", 1), ("test/cat/f.mp4", 0)}
    assert data.test[0].path == tmp_path / "test/cat/f.mp4"


@pytest.mark.parametrize(("typed", "mirrored"), [([], {True, False}), (["data.flip=false"], {False})])
def test_training_clips_are_mirrored_unless_it_is_turned_off(tmp_path, typed, mirrored):
    config = compose_config(TrainPPO, "train_ppo", ["data=folder", f"data.root={two_classes(tmp_path, 40)}", *typed]).data
    data = build_data(config)
    assert data.flip is (True in mirrored)
    spec = ClipSpec(8, 96, 96, train=True, flip=data.flip)
    assert {fixed_crop(spec, (8, 3, 96, 128), video, 0).flip for video in data.train} == mirrored


def test_folder_is_split_the_same_way_wherever_it_lies(tmp_path):
    data, moved = folder(two_classes(tmp_path / "a", 40)), folder(two_classes(tmp_path / "b", 40))
    for part in ("train", "val", "test"):
        assert names(getattr(data, part)) == names(getattr(moved, part))
        assert len(getattr(data, part)) >= 2
    assert len(names(data.train) | names(data.val) | names(data.test)) == 80
    assert 8 <= len(data.test) <= 28


@given(st.lists(st.integers(1, 6), min_size=2, max_size=5))
def test_every_class_keeps_a_training_and_if_it_can_a_test_video(tmp_path_factory, counts):
    root = tmp_path_factory.mktemp("set")
    touch(root, *(f"{label}/{i}.mp4" for label, count in enumerate(counts) for i in range(count)))
    if max(counts) == 1:
        with pytest.raises(InputError, match="only one video"):
            folder(root)
        return
    data = folder(root, val=0)
    assert {video.label for video in data.train} == set(range(len(counts)))
    assert {video.label for video in data.test} == {label for label, count in enumerate(counts) if count > 1}


def test_folders_of_images_are_videos(tmp_path):
    touch(tmp_path, *(f"{label}/clip{i}/image_{t:05d}.jpg" for label in "ab" for i in range(3) for t in range(2)))
    data = folder(tmp_path, val=0)
    assert names(data.train) | names(data.test) == {f"{label}/clip{i}" for label in "ab" for i in range(3)}


def test_what_is_not_used_is_listed_and_counted_in_the_summary(tmp_path):
    two_classes(tmp_path, 5)
    touch(tmp_path, "cat/notes.txt", "cat/poster.webp", "dog/more/a.mp4", "loose.mp4", ".DS_Store", "cat/.cache/x")
    (tmp_path / "empty").mkdir()
    data = folder(tmp_path)
    assert data.classes == ("cat", "dog") and len(data.train) + len(data.val) + len(data.test) == 10
    assert data.unused == ("cat/notes.txt", "cat/poster.webp", "dog/more/ (no images)", "empty/ (no videos)", "loose.mp4")
    counts = f"2 classes; {len(data.train)} train, {len(data.val)} val, {len(data.test)} test videos"
    assert data.summary == f"data: folder in {tmp_path}: {counts}; 5 files or folders not used: {', '.join(data.unused)}"
    touch(tmp_path, "sheep/a.txt", "sheep/b.txt", "wolf")
    assert folder(tmp_path).summary.endswith("empty/ (no videos), loose.mp4 … and 2 more")


def test_tracks_beside_the_videos_are_read(tmp_path):
    touch(tmp_path, "train/cat/a.mp4", "train/cat/a.track.json", "train/dog/b.1/0.jpg", "train/dog/b.1.track.json", "train/dog/b.2/0.jpg")
    touch(tmp_path, "test/cat/c.mp4", "test/cat/d.track.json")
    data = folder(tmp_path, val=0)
    tracks = {video.name: video.track and video.track.name for video in (*data.train, *data.test)}
    assert tracks == {"train/cat/a.mp4": "a.track.json", "train/dog/b.1": "b.1.track.json", "train/dog/b.2": None, "test/cat/c.mp4": None}
    assert data.unused == ("test/cat/d.track.json",)


def test_what_is_not_used_beside_given_parts_is_listed(tmp_path):
    touch(tmp_path, "train/cat/a.mp4", "train/dog/b.mp4", "test/cat/c.mp4")
    assert folder(tmp_path).unused == ()
    assert folder(tmp_path).summary == f"data: folder in {tmp_path}: 2 classes; 1 train, 1 val, 1 test videos"
    touch(tmp_path, "labels.csv", "valid/cat/d.mp4", "train/e.mp4", "test/dog/f.txt", "train/cat/g/image_00001.jpg")
    data = folder(tmp_path)
    assert data.unused == ("labels.csv", "valid/ (not train or test)", "train/e.mp4", "test/dog/ (no videos)")
    (tmp_path / "labels.csv").unlink()
    shutil.rmtree(tmp_path / "valid")
    (tmp_path / "test/dog/f.txt").rename(tmp_path / "test/dog/f.mp4")
    assert folder(tmp_path).summary.endswith("; 1 file or folder not used: train/e.mp4")


def build(root, case):
    root.mkdir()
    if case == "file":
        root.rmdir()
        root.touch()
    elif case == "missing":
        root.rmdir()
    elif case == "one class":
        touch(root, "dog/a.mp4", "dog/b.mp4")
    elif case == "no videos":
        touch(root, "dog/a.txt", "cat/b.txt")
    elif case == "videos without classes":
        touch(root, "a.mp4", "b.mp4")
    elif case == "one video each":
        touch(root, "dog/a.mp4", "cat/b.mp4")
    elif case == "train alone":
        touch(root, "train/dog/a.mp4", "train/cat/b.mp4")
    elif case == "unknown test class":
        touch(root, "train/dog/a.mp4", "train/cat/b.mp4", "test/cow/c.mp4")
    elif case == "empty test":
        touch(root, "train/dog/a.mp4", "train/cat/b.mp4", "test/dog/c.txt")
    return root


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "set does not exist; give a folder with one subfolder of videos for each class"),
        ("file", "set is not a folder"),
        ("empty", "set is empty"),
        ("one class", "has only one class, 'dog'; at least two"),
        ("no videos", "has no videos to learn from: none of the 2 class folders"),
        ("videos without classes", "none of the 0 class folders"),
        ("one video each", "every class in .*set has only one video"),
        ("train alone", "has train/ but no test/; add it"),
        ("unknown test class", "has classes that .*train has no videos of: cow"),
        ("empty test", "test holds no videos"),
    ],
)
def test_unusable_folders_are_named_with_what_to_do(tmp_path, case, message):
    with pytest.raises(InputError, match=f"^data.root: .*{message}"):
        folder(build(tmp_path / "set", case))


def test_a_folder_with_a_test_part_alone_is_for_evaluation(tmp_path):
    data = folder(touch(tmp_path, "test/dog/a.mp4", "test/dog/b.mp4"))
    assert (data.classes, data.train, data.val, len(data.test)) == (("dog",), (), (), 2)
    message = r"^data\.root: DIR has test/ but no train/, which is enough for python -m agents\.evaluate, but not to train; add it, or put"
    with pytest.raises(InputError, match=message):
        check_train_split(data, "DIR")
    check_train_split(folder(touch(tmp_path, "train/dog/c.mp4", "train/cat/d.mp4")), "DIR")


def test_classes_of_a_folder_are_numbered_as_a_classifier_does(tmp_path):
    data = folder(touch(tmp_path, "test/dog/a.mp4", "test/cat/b.mp4"))
    wanted = ("pig", "dog", "cow", "cat")
    renumbered = with_classes(data, wanted)
    assert renumbered.classes == wanted
    assert {video.name: wanted[video.label] for video in renumbered.test} == {"test/dog/a.mp4": "dog", "test/cat/b.mp4": "cat"}
    assert with_classes(data, ("dog", "cow")) is data, "a class that the classifier does not know is for the caller to refuse"


def test_a_name_that_is_not_utf8_is_told(tmp_path):
    two_classes(tmp_path)
    try:
        (tmp_path / "cat" / os.fsdecode(b"\xe9t\xe9.mp4")).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(InputError, match=r"^data.root: the name b'\\xe9t\\xe9.mp4' in .*cat is not valid UTF-8; rename it"):
        folder(tmp_path)


def test_one_label_and_accuracy_unless_a_set_says_otherwise(tmp_path):
    data = folder(two_classes(tmp_path))
    assert data.metric == "top1" and data.train[0].labels == () and data.train[0].num_frames is None
