import dataclasses
import json
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import TASK
from PIL import Image

import benchmarks
from adafocus_env.demo.renderer import JITTER, draw, render_video
from adafocus_env.demo.videos import CLASSES, PLACES, TASKS, DemoTask, demo, render, target_digit
from adafocus_env.demo.videos import _digits as digits_of
from adafocus_env.demo.videos import _scene as scene_of
from classifiers.errors import InputError

pytestmark = pytest.mark.usefixtures("in_process")
FEW = DemoTask(train_videos=3, test_videos=2, length=6)
RED = 105  # above the other colours: the ground is never that red, a marked digit is


@pytest.fixture
def rendered(tmp_path, monkeypatch):
    """Return the data set of a few videos, rendered in a separate cache folder."""
    monkeypatch.setenv("ADAFOCUS_CACHE", str(tmp_path / "one"))
    data = demo(FEW, val=0.0)
    render([*data.train, *data.test], FEW)
    return data


def decoded(path):
    with av.open(str(path)) as container:
        return container.streams.video[0], np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def centre_of_red(frame):
    """Return the centre (y, x) of the square of 16 pixels with the most red (the mean over all such squares)."""
    frame = frame.astype(np.float32)
    redness = (frame[..., 0] - frame[..., 1:].max(-1) - 60).clip(0)  # the ground is seldom that red
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(redness, 8), (16, 16)).sum((-1, -2))
    return np.argwhere(windows >= windows.max() * 0.999).mean(0) - 0.5


def test_videos_are_h264_files_of_the_right_length_and_size(worker_processes, rendered):
    for video in [*rendered.train, *rendered.test]:
        stream, frames = decoded(video.path)
        assert stream.codec_context.name == "h264" and frames.shape == (6, 96, 96, 3)
        assert frames.std() > 20 and np.abs(np.diff(frames.astype(int), axis=0)).mean() > 1


def test_the_track_is_where_the_reddish_digit_is(rendered):
    errors = []
    for video in [*rendered.train, *rendered.test]:
        track = json.loads(video.track.read_text())
        assert track.keys() == {"centre", "side", "visible", "label"} and (track["side"], track["label"]) == (14, video.label)
        assert track["visible"] == [True] * 6
        _, frames = decoded(video.path)
        errors += [np.abs(centre_of_red(frame) - centre).max() for frame, centre in zip(frames, track["centre"], strict=True)]
    assert np.median(errors) < 2 and np.mean(np.array(errors) < 5) > 0.9


def test_targets_move_smoothly_over_the_whole_frame(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAFOCUS_CACHE", str(tmp_path))
    task = DemoTask(train_videos=40, clutter=0)
    centres = np.stack([draw(scene_of(video, task))[1] for video in demo(task, val=0.0).train])
    steps = np.linalg.norm(np.diff(centres, axis=1), axis=-1)
    assert 2.5 < steps.mean() < 5 and steps.max() < 2 * task.speed
    assert centres.min() >= 6.5 and centres.max() <= 95 - 6.5
    for axis in range(2):
        assert centres[..., axis].min() < 12 and centres[..., axis].max() > 83


def test_the_clips_carry_the_track(clips):
    assert clips.has_truth
    boxes, visible = clips.targets(0)
    assert visible.all() and boxes[:, 2:] - boxes[:, :2] == pytest.approx(np.full((4, 2), 14.0), abs=1e-4)
    errors = []
    for clip in range(len(clips)):
        frames = clips.frames(clip).permute(0, 2, 3, 1).numpy()
        errors += [np.abs(centre_of_red(frame) - centre).max() for frame, centre in zip(frames, clips.truth(clip), strict=True)]
    assert np.median(errors) < 2 and np.mean(np.array(errors) < 5) > 0.9


def test_a_target_shows_its_class_at_patch_size():
    """The drawn digit belongs to the label: it resembles its own class most."""
    images, labels, _ = digits_of("train")
    means = np.stack([images[labels == label].mean(0).ravel() for label in range(10)])
    hits = 0
    for video in demo(TASK, val=0.0).train:
        target = scene_of(video, TASK).digits[0].ravel().astype(float)
        hits += int(np.linalg.norm(means - target, axis=1).argmin() == video.label)
    assert hits >= 10


def test_no_digit_is_used_in_both_parts():
    train, test = (digits_of(part)[0] for part in ("train", "test"))
    assert len(train) + len(test) == 1797 and len(test) > 400
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in test}
    data = demo(TASK, val=0.0)
    for videos, images in ((data.train, train), (data.test, test)):
        known = {image.tobytes() for image in images}
        assert all(digit.tobytes() in known for video in videos for digit in scene_of(video, TASK).digits)


def test_the_same_video_is_the_same_file_wherever_it_is_rendered(rendered, tmp_path, monkeypatch):
    monkeypatch.setenv("ADAFOCUS_CACHE", str(tmp_path / "two"))
    again = demo(FEW, val=0.0)
    for video, other in zip(rendered.train, again.train, strict=True):
        for _ in range(5):  # x264 can be lucky
            render_video(scene_of(other, FEW))
            assert video.path != other.path and video.name == other.name
            assert other.path.read_bytes() == video.path.read_bytes() and other.track.read_bytes() == video.track.read_bytes()
    assert len({video.path.read_bytes() for video in [*rendered.train, *rendered.test]}) == 5


def test_only_what_is_missing_is_rendered(rendered):
    videos = rendered.train
    before = [(video.path.read_bytes(), video.path.stat().st_mtime_ns) for video in videos]
    seen = []
    rendered.prepare(videos, progress=seen.append)
    assert seen == [] and [video.path.stat().st_mtime_ns for video in videos] == [time for _, time in before]
    videos[0].path.unlink()
    videos[1].track.unlink()
    rendered.prepare(videos, progress=seen.append)
    assert seen == [1, 1] and [video.path.read_bytes() for video in videos] == [content for content, _ in before]
    assert all(video.track.exists() for video in videos) and videos[2].path.stat().st_mtime_ns == before[2][1]
    left = {path.suffix for path in videos[0].path.parents[2].rglob("*") if path.is_file()}
    assert left == {".mp4", ".json"}, "unfinished files are left"


def test_classes_are_balanced():
    data = demo()
    assert (len(data.val), len(data.test), len(data.further)) == (500, 500, 500) and data.classes == CLASSES
    held_out = [video for video in data.val if int(video.path.stem) < 1500]
    assert np.bincount([video.label for video in [*data.train, *held_out]]).tolist() == [150] * 10
    for videos in (data.test, data.further):
        assert np.bincount([video.label for video in videos]).tolist() == [50] * 10
    assert np.bincount([video.label for video in data.val]).min() > 40
    names = [video.name for video in [*data.train, *data.val, *data.test, *data.further]]
    assert len(set(names)) == len(names) and len(data.train) + len(held_out) == 1500 and 100 < len(held_out) < 200


def test_validation_videos_are_those_held_out_and_more_of_the_same_digits():
    """The training videos, on which the bundled classifiers were trained, do not depend on the number of validation videos."""
    more = dataclasses.replace(TASK, val_videos=9)
    few, many, none = demo(TASK, val=0.3), demo(more, val=0.3), demo(more, val=0)
    assert many.train == few.train and many.val[: len(few.val)] == few.val and len(many.val) == 9 > len(few.val)
    assert [int(video.path.stem) for video in many.val[len(few.val) :]] == list(range(12, 12 + 9 - len(few.val)))
    assert none.val == () and len(none.train) == 12
    train = {image.tobytes() for image in digits_of("train")[0]}
    assert all(digit.tobytes() in train for video in many.val for digit in scene_of(video, TASK).digits)


@pytest.mark.slow
def test_the_further_clips_are_those_of_the_committed_list():
    """Their targets are images that are not the target of any other video, at least five of each class."""
    committed = json.loads((Path(benchmarks.__file__).parent / "further_clips.json").read_text())
    assert list(committed) == list(TASKS)
    for name, task in TASKS.items():
        data = demo(name)
        assert [[video.name, video.label, target_digit(video, task)] for video in data.further] == committed[name]
        tested = {target_digit(video, task) for video in data.test}
        targets = {(label, digit) for _, label, digit in committed[name]}
        assert not tested & {digit for _, digit in targets} and not {digit for _, digit in targets} & set(digits_of("train")[2].tolist())
        assert np.bincount([label for label, _ in targets], minlength=10).min() >= 5


def test_further_videos_need_digits_that_no_test_video_has():
    task = DemoTask(test_videos=4000)
    with pytest.raises(InputError, match="test_videos=4000 is too many for further videos: every test digit 0 is the target of"):
        scene_of(demo(task).further[0], task)


def test_the_number_of_videos_does_not_change_their_content_but_their_looks_do():
    small, large = demo(TASK, val=0.0), demo(dataclasses.replace(TASK, train_videos=20), val=0.0)
    assert [video.name for video in large.train[:12]] == [video.name for video in small.train]
    other = demo(dataclasses.replace(TASK, noise=3.0), val=0.0)
    assert not {video.name for video in other.train} & {video.name for video in small.train}


def test_a_video_that_cannot_be_rendered_is_named(tmp_path, worker_processes, monkeypatch):
    monkeypatch.setenv("ADAFOCUS_CACHE", str(tmp_path))
    data = demo(FEW, val=0.0)
    data.train[0].path.parents[1].mkdir(parents=True)
    data.train[0].path.parent.write_text("in the way")
    with pytest.raises(InputError, match=rf"demo video {data.train[0].path} could not be rendered: .*cannot write"):
        render(data.train[:1], FEW, num_workers=1)


def test_at_glance_size_the_place_of_a_target_can_be_told_by_its_colour(rendered):
    """The reddest pixel of a frame at 24 pixels lies within a patch's half side of the target."""
    near = []
    for video in [*rendered.train, *rendered.test]:
        centres = json.loads(video.track.read_text())["centre"]
        for frame, centre in zip(decoded(video.path)[1], centres, strict=True):
            small = np.asarray(Image.fromarray(frame).resize((24, 24), Image.Resampling.BILINEAR)).astype(float)
            redness = small[..., 0] - small[..., 1:].max(-1)
            y, x = np.unravel_index(redness.argmax(), redness.shape)
            near.append(np.abs(np.array([y, x]) * 4 + 1.5 - centre).max() < 12)
    assert np.mean(near) > 0.9


def test_the_videos_of_the_tasks_are_fixed():
    """A change of these keys requires a new version of the ids, since scores before and after it are not comparable."""
    assert {name: task.key for name, task in TASKS.items()} == {
        "track": "a52c1a89bb68",
        "mover": "dde4d3025a6c",
        "sparse": "d78cf5bd418f",
        "easy@v0": "823f5c0be57f",
        "normal@v0": "f518f8d811d4",
        "hard@v0": "d436d9b3b030",
        "sparse@v0": "7ba330f0fdbb",
        "memory@v0": "83d767d683c5",
    }
    assert TASKS["normal@v0"] == DemoTask() and demo().name == demo("track").name == "demo" and demo("mover").name == "demo-mover"
    drawn = {name: draw(scene_of(demo(name).train[0], task)) for name, task in TASKS.items()}
    seen = {
        name: (centres[[0, -1]].round(2).tolist(), pytest.approx(frames.mean(), abs=0.3)) for name, (frames, centres, _) in drawn.items()
    }
    assert seen == {
        "track": ([[57.08, 49.38], [80.07, 44.99]], 51.0),
        "mover": ([[14.82, 57.73], [32.04, 77.62]], 50.1),
        "sparse": ([[79.09, 39.7], [67.34, 34.54]], 51.9),
        "easy@v0": ([[11.07, 42.7], [30.0, 29.33]], 48.7),
        "normal@v0": ([[14.37, 37.53], [32.74, 29.62]], 48.2),
        "hard@v0": ([[72.93, 38.54], [48.37, 22.62]], 52.4),
        "sparse@v0": ([[59.2, 21.95], [76.68, 84.33]], 46.4),
        "memory@v0": ([[47.12, 47.69], [50.21, 47.66]], 48.0),
    }


def test_patch_size_and_numbers_of_videos_leave_the_videos_alone():
    assert dataclasses.replace(DemoTask(), patch_size=20, train_videos=3, val_videos=1, test_videos=2).key == DemoTask().key
    assert DemoTask(visible=0.5).key != DemoTask().key != DemoTask(cue=2).key


def quiet(task, videos, **appearance):
    """Return frames, centres and visible frames of videos without clutter and noise, and the drawn digits."""
    task = dataclasses.replace(task, train_videos=videos, clutter=0, noise=0.0, **appearance)
    scenes = [scene_of(video, task) for video in demo(task, val=0.0).train]
    return [(*draw(scene), scene) for scene in scenes]


def redness(frames, centre, reach=8):
    """Return the maximum of red minus the other colours around the centre of each frame."""
    y, x = centre.round().astype(int).T
    red = frames[..., 0].astype(int) - frames[..., 1:].max(-1)
    corners = zip(red, np.maximum(0, y - reach), np.maximum(0, x - reach), strict=True)
    return np.array([frame[top : top + 2 * reach, left : left + 2 * reach].max() for frame, top, left in corners])


def test_sparse_shows_the_target_in_a_third_of_the_frames_which_follow_one_another():
    firsts = []
    for frames, centres, visible, _ in quiet(TASKS["sparse@v0"], 24):
        shown = np.flatnonzero(redness(frames, centres) > RED)
        assert np.array_equal(shown, np.flatnonzero(visible))
        assert len(shown) == 8 and np.ptp(shown) == 7
        firsts.append(shown[0])
    assert min(firsts) < 4 and max(firsts) > 12 and len(set(firsts)) > 8


def test_memory_shows_a_cue_then_the_target_among_still_look_alikes_of_other_classes():
    squares = set()
    for frames, centres, visible, scene in quiet(TASKS["memory@v0"], 24):
        assert visible.tolist() == [False] * 4 + [True] * 12, "the disc is not the digit"
        cue, rest = centres[:4], centres[4:]
        assert (cue == cue[0]).all() and (rest == rest[0]).all(), "nothing moves within a scene"
        assert np.abs(cue[0] - rest[0]).max() <= 2 * JITTER and (cue[0] != rest[0]).all()
        row, column = (rest[0] // 32).astype(int)
        squares.add((row, column))
        red = frames[..., 0].astype(int) - frames[..., 1:].max(-1) > RED
        marked = red.reshape(len(frames), 3, 32, 3, 32).any((2, 4))
        assert (marked[:4].sum((1, 2)) == 1).all(), "the cue is the only mark in its frames"
        assert (marked[4:].sum((1, 2)) == 5).all() and marked[:, row, column].all()
        assert len(scene.digits) == 5
    assert len(squares) >= 7


def test_look_alikes_are_digits_of_other_classes_all_different():
    images, labels, _ = digits_of("train")
    known = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    for video in demo(dataclasses.replace(TASKS["memory@v0"], train_videos=30), val=0.0).train:
        classes = [known[digit.tobytes()] for digit in scene_of(video, TASKS["memory@v0"]).digits[:5]]
        assert classes[0] == video.label and len(set(classes)) == 5


def test_a_patch_on_one_still_digit_shows_nothing_of_another():
    task = TASKS["memory@v0"]
    between = task.size / PLACES - 2 * JITTER  # centres of two digits, in one axis at least
    off = (task.size - task.patch_size) / 6 / 2  # of the nearest of 7 cells
    assert between - task.target / 2 >= task.patch_size / 2 + off


def test_the_lesson_of_a_task_has_its_target_in_every_frame_and_no_look_alikes():
    assert TASKS["memory@v0"].classifier_training_task == DemoTask(target=16, clutter=4, cue=4) and TASKS[
        "sparse@v0"
    ].classifier_training_task == DemoTask(length=24)
    assert all(TASKS[name].classifier_training_task == TASKS[name] for name in ("easy@v0", "normal@v0", "hard@v0"))


@pytest.mark.parametrize(
    ("appearance", "message"),
    [
        ({"visible": 0.0}, r"visible must be above 0 and at most 1, got 0.0"),
        ({"visible": 1.5}, r"visible must be above 0 and at most 1, got 1.5"),
        ({"cue": 16}, r"cue must be from 0 to 15, fewer than length, got 16"),
        ({"cue": -1}, r"cue must be from 0 to 15, fewer than length, got -1"),
        ({"lookalikes": 3}, r"lookalikes must be from 0 to 8, and 0 without a cue, got 3 with cue=0"),
        ({"cue": 4, "lookalikes": 9}, r"lookalikes must be from 0 to 8, and 0 without a cue, got 9 with cue=4"),
    ],
)
def test_settings_that_cannot_be_drawn(appearance, message):
    with pytest.raises(InputError, match=message):
        DemoTask(**appearance)


def test_an_unknown_task():
    with pytest.raises(InputError, match=r"task='trakc' is not known; did you mean 'track'\? choose one of \['easy@v0', "):
        demo("trakc")
