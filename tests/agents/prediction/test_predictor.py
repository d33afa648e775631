from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from conftest import TASK, random_classifier
from PIL import Image
from predictions import CLASSES, bright_classifier, brightest, cell_in_video, make_run, one_cell, with_targets
from videos import cut_in_half, square_frames, turn, write_video

import agents
from adafocus_env.build import open_clips
from adafocus_env.demo.videos import demo
from adafocus_env.videos.containers import PYAV_SUFFIXES
from adafocus_env.videos.decoding import Failure
from agents.evaluation.inference import infer
from agents.prediction.clips import read_clip, request_for
from agents.prediction.predictor import Predictor, Unreadable
from agents.prediction.result import Prediction
from agents.prediction.video import write_video as write_video_of
from classifiers.classifier import ClipFormat
from classifiers.errors import InputError

pytestmark = pytest.mark.usefixtures("in_process")
CELLS = [8, 12, 24, 36, 40, 16, 30, 32, 9, 11, 23, 39]
QUARTER_TURNS = {-1: (0, 1, -1, 0), 2: (-1, 0, 0, -1), 1: (0, -1, 1, 0)}
UNEVEN = [0.0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.9, 1.0, 2.0, 2.04, 2.5, 3.5]


@pytest.fixture(scope="module")
def predictor():
    return Predictor(bright_classifier(), brightest())


def assert_on_targets(found, size):
    """Check that every patch is within a pixel of the target in its frame."""
    assert found.size == size
    expected = np.array([cell_in_video(CELLS[frame.index], size) for frame in found.frames])
    assert np.abs(found.boxes - expected).max() <= 1


@pytest.mark.parametrize("turns", [0, *QUARTER_TURNS])
def test_boxes_are_in_pixels_of_the_video_as_it_is_turned_for_display(tmp_path, predictor, turns):
    size = (180, 320)
    frames = with_targets(CELLS, size)
    path = write_video(tmp_path / "a.mp4", np.ascontiguousarray(np.rot90(frames, -turns, axes=(1, 2))))
    found = predictor(turn(path, QUARTER_TURNS[turns]) if turns else path)
    assert_on_targets(found, size)
    assert [frame.index for frame in found.frames] == [1, 4, 7, 10]
    assert np.allclose(found.times, np.array([1, 4, 7, 10]) / 25, atol=1e-3) and found.duration == pytest.approx(12 / 25, abs=1e-3)


@pytest.mark.parametrize(
    ("suffix", "size", "options"),
    [
        (".mp4", (320, 180), {}),
        (".mp4", (150, 240), {"pixel_aspect": Fraction(4, 3)}),
        (".mp4", (96, 96), {}),
        (".avi", (120, 160), {"codec": "mpeg4", "b": "4000000"}),
    ],
)
def test_boxes_fit_any_shape_of_frames_and_pixels(tmp_path, predictor, suffix, size, options):
    assert suffix != ".avi" or suffix in PYAV_SUFFIXES
    assert_on_targets(predictor(write_video(tmp_path / f"a{suffix}", with_targets(CELLS, size), **options)), size)


def test_frames_of_a_variable_rate_are_sampled_by_their_time(tmp_path, predictor):
    path = write_video(tmp_path / "a.mp4", with_targets(CELLS, (120, 160)), times=UNEVEN)
    found = predictor(path)
    assert_on_targets(found, (120, 160))
    assert np.allclose(found.times, [UNEVEN[frame.index] for frame in found.frames], atol=2e-3)
    middles = (np.arange(4) + 0.5) * found.duration / 4
    shown_until = np.array([*UNEVEN[1:], found.duration])[[frame.index for frame in found.frames]]
    assert (found.times <= middles + 1e-3).all() and (middles < shown_until).all()


def test_the_prediction_is_that_of_inference_on_test_clips(cache):
    classifier, policy = random_classifier(), one_cell(17)
    classifier.clip_format = ClipFormat(4, margin=1.0)
    data = demo(TASK, val=0.0)
    clips = open_clips(data, "test", num_frames=4, size=96)
    expected = infer(classifier, policy, classifier.normalise(torch.stack([clips.frames(number) for number in range(len(clips))])))
    found = {each.file: each for each in Predictor(classifier, policy).predict_all([video.path for video in data.test], batch_size=3)}
    for row, video in enumerate(data.test):
        result = found[str(video.path)]
        scores = expected.logits[row].softmax(-1)
        assert (
            result.boxes.tolist() == expected.boxes[row].tolist()
            and [frame.index for frame in result.frames] == clips.indices(row).tolist()
        )
        assert result.probabilities == pytest.approx(sorted(scores[-1].tolist(), reverse=True), abs=1e-5)
        assert result.classes[0] == classifier.classes[scores[-1].argmax()]
        assert [frame.confidence for frame in result.frames] == pytest.approx(scores.amax(-1).tolist(), abs=1e-5)
        assert result.macs == expected.macs[row] and len({frame.macs for frame in result.frames}) == 1


def test_skipped_frames_have_no_box_and_cost_less(tmp_path):
    classifier = random_classifier()
    classifier.clip_format = ClipFormat(4)
    policy = one_cell(3, skips=True)
    found = Predictor(classifier, policy)(write_video(tmp_path / "a.mp4"))
    first, *others = found.frames
    assert first.box is not None and all(frame.skipped and frame.box is None for frame in others)
    assert first.macs > others[0].macs > 0 and np.isnan(found.boxes[1:]).all()
    clip = read_clip(tmp_path / "a.mp4", classifier)
    assert infer(classifier, policy, classifier.normalise(clip.frames)[None]).macs.tolist() == [found.macs]
    assert found.full_macs > found.macs
    everything = Predictor(classifier, policy, keep_threshold=2.0)(tmp_path / "a.mp4")
    assert not any(frame.skipped for frame in everything.frames) and everything.macs == found.full_macs
    nothing = Predictor(classifier, policy, skipped="none", keep_threshold=-1.0)(tmp_path / "a.mp4")
    assert all(frame.skipped for frame in nothing.frames)


def test_windows_of_a_long_video_share_one_timeline(tmp_path, predictor, monkeypatch):
    cells = [CELLS[number % 12] for number in range(48)]
    path = write_video(tmp_path / "a.mp4", with_targets(cells, (120, 160)), fps=12)
    found = predictor(path, window=1.0, stride=0.5)
    assert np.allclose([(window.start, window.end) for window in found.windows], [(start / 2, start / 2 + 1) for start in range(7)])
    for frame in found.frames:
        window = found.windows[frame.window]
        assert (
            window.start - 1e-5 <= frame.time < window.end
            and np.abs(np.array(frame.box) - cell_in_video(cells[frame.index], (120, 160))).max() <= 1
        )
    by_class = {name: np.mean([dict(zip(w.classes, w.probabilities, strict=True))[name] for w in found.windows]) for name in CLASSES}
    assert dict(zip(found.classes, found.probabilities, strict=True)) == pytest.approx(by_class, abs=1e-6)
    assert len(found.to_dict()["windows"]) == 7 and found.full_macs == found.macs
    monkeypatch.setattr("agents.prediction.predictor.request_for", lambda *given: replace(request_for(*given), max_frames=8))
    again = predictor(path, window=1.0, stride=0.5)  # decoded two windows at a time
    assert again.boxes.tolist() == found.boxes.tolist() and again.classes == found.classes
    assert len(predictor(path, window=9.0).windows) == 1


def test_a_folder_of_images_has_the_rate_that_is_given(tmp_path, predictor):
    for number, frame in enumerate(with_targets(CELLS, (120, 160)), 1):
        Image.fromarray(frame).save(tmp_path / f"{number:03d}.png")
    [found] = predictor.predict_all([tmp_path], fps=4.0)
    assert_on_targets(found, (120, 160))
    assert found.duration == 3.0 and found.times.tolist() == [0.25, 1.0, 1.75, 2.5]


def test_videos_that_cannot_be_read_do_not_stop_the_others(tmp_path, predictor):
    good, bad = write_video(tmp_path / "good.mp4"), cut_in_half(write_video(tmp_path / "bad.mp4", square_frames(60)))
    found = list(predictor.predict_all([bad, good, tmp_path / "none.mp4"]))
    assert {each.file for each in found if isinstance(each, Prediction)} == {str(good)}
    reasons = {each.file: each.reason for each in found if isinstance(each, Unreadable)}
    assert "it is truncated" in reasons[str(bad)] and "there is no such file" in reasons[str(tmp_path / "none.mp4")]
    with pytest.raises(InputError, match=r"cannot read the video .*bad\.mp4: it is truncated"):
        predictor(bad)
    with pytest.raises(InputError, match=r"cannot read the video .*bad\.mp4: it is truncated"):
        read_clip(bad, predictor.classifier)


def test_a_video_that_takes_too_long_is_named(tmp_path, predictor, monkeypatch):
    path, killed = write_video(tmp_path / "a.mp4"), Failure("it was not finished after 60 s and was stopped")
    monkeypatch.setattr("agents.prediction.clips.run_in_workers", lambda *given, **options: (result for result in [(0, killed)]))
    with pytest.raises(InputError, match=r"a\.mp4: it was not finished after 60 s and was stopped"):
        predictor(path)


def test_the_json_object_holds_plain_values(tmp_path, predictor):
    found = predictor(write_video(tmp_path / "a.mp4", with_targets(CELLS, (96, 96)))).to_dict()
    assert found["file"] == str(tmp_path / "a.mp4") and (found["height"], found["width"]) == (96, 96)
    assert [set(each) for each in found["top"]] == [{"class", "probability"}] * 3
    assert set(found["frames"][0]) == {"frame", "time", "window", "box", "skipped", "class", "confidence", "macs", "processed"}
    assert found["frames"][0]["box"] == pytest.approx(cell_in_video(12, (96, 96)), abs=0.01) and found["macs"] > 0


def test_a_clip_is_read_as_the_classifier_expects_it(tmp_path, predictor):
    path, classifier = write_video(tmp_path / "a.mp4", with_targets(CELLS, (180, 320))), predictor.classifier
    clip = agents.read_clip(path, classifier)
    assert clip.frames.shape == (4, 3, 96, 96) and clip.frames.dtype == torch.uint8 and clip.glance_frames is clip.frames
    result = infer(classifier, predictor.policy, classifier.normalise(clip.frames)[None])
    assert np.allclose(clip.origin.boxes_in_video(result.boxes[0]), predictor(path).boxes)
    assert len(read_clip(path, classifier, num_frames=6).frames) == 6


def test_the_frames_of_the_glancer_may_be_others(tmp_path):
    classifier = bright_classifier()
    classifier.clip_format = ClipFormat(6, glance_frames=3)
    clip = read_clip(write_video(tmp_path / "a.mp4"), classifier)
    assert len(clip.frames) == 6 and len(clip.glance_frames) == 3 and clip.origin.indices.tolist() == [1, 3, 5, 7, 9, 11]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 0.0}, "window must be above 0, got 0.0"),
        ({"fps": -1.0}, "fps must be above 0, got -1.0"),
        ({"stride": 1.0}, "stride must be left out without window, got 1.0; set window, too"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_numbers_out_of_range_are_refused(predictor, arguments, message):
    with pytest.raises(InputError, match=message):
        next(predictor.predict_all(["a.mp4"], **arguments))


def test_names_of_classes_are_one_for_each():
    names = Predictor(bright_classifier(), brightest(), classes=["a", "b", "c"]).classes
    assert names == ("a", "b", "c")
    with pytest.raises(InputError, match="classes must have one name for each of the 3 classes of the classifier, got 2"):
        Predictor(bright_classifier(), brightest(), classes=["a", "b"])


def test_a_run_is_loaded_with_the_frames_that_it_was_trained_with(tmp_path):
    predictor = agents.Predictor.load(make_run(tmp_path / "run"), device="cpu")
    assert predictor.classifier.clip_format == ClipFormat(4) and predictor.skipped == "zeros"
    assert len(predictor(write_video(tmp_path / "a.mp4")).frames) == 4


# Pictures


@pytest.fixture(scope="module")
def turned(tmp_path_factory, predictor):
    """Return a rotated video with a variable frame rate and its prediction."""
    frames = np.ascontiguousarray(np.rot90(with_targets(CELLS, (160, 120)), -1, axes=(1, 2)))
    path = write_video(tmp_path_factory.mktemp("video") / "a.mp4", frames, times=UNEVEN, pixel_aspect=Fraction(2, 1))
    return predictor(turn(path, QUARTER_TURNS[1]))


def test_the_annotated_video_shows_every_frame_at_its_time(tmp_path, turned):
    turned.save_video(tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        frames = list(container.decode(video=0))
        times = [frame.time for frame in frames]
        pictures = [frame.to_ndarray(format="rgb24") for frame in frames]
    assert times == pytest.approx(UNEVEN, abs=2e-3)
    assert pictures[0].shape == (960 + 136, 480, 3), "pixels are twice as high as wide after the turn, and enlarged six times"
    first = turned.frames[0]
    picture = pictures[first.index].astype(int)
    top, left, bottom, right = (np.array(first.box) * [6, 3, 6, 3] + [0, 60, 0, 60]).astype(int)
    edge = picture[top + 20 : bottom - 20, left + 2]
    assert picture[top + 12 : bottom - 12, left + 12 : right - 12].mean() > 220, "the target"
    assert (edge[:, 0] > 200).all() and (edge[:, 2] < 170).all(), "the outline"
    assert picture[980:1060, 20:110].mean() > 200 and pictures[0][980:1060, 20:110].mean() < 80, "what the focuser sees, from then on"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.mp4"]


def test_the_contact_sheet_shows_every_sampled_frame(tmp_path, turned):
    turned.save_sheet(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 12 + 4 * 312 and sheet.height > 800
        assert (np.asarray(sheet.convert("RGB")) == (255, 190, 60)).all(-1).sum() > 1000


def test_without_an_encoder_there_is_no_annotated_video(tmp_path, turned, monkeypatch):
    monkeypatch.setattr("agents.prediction.video.CODECS", ("none",))
    with pytest.raises(
        InputError, match=r"PyAV has no encoder for MP4 files \(none\); install the wheels of av, or use save=\[json,sheet\]"
    ):
        write_video_of((turned, tmp_path / "out.mp4"))


def test_pictures_of_a_video_that_is_gone_name_it(tmp_path, turned):
    with pytest.raises(InputError, match=r"gone\.mp4"):
        replace(turned, file=str(tmp_path / "gone.mp4")).save_video(tmp_path / "out.mp4")
    with pytest.raises(InputError, match=r"gone\.mp4"):
        replace(turned, file=str(tmp_path / "gone.mp4")).save_sheet(tmp_path / "out.png")
    assert list(tmp_path.iterdir()) == []
