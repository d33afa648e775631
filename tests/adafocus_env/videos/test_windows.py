import numpy as np
import pytest
from videos import square_frames, write_video

from adafocus_env.videos import readers
from adafocus_env.videos.frame_sampling import segment_indices
from adafocus_env.videos.readers import DecodeError, PyAVReader, open_reader
from adafocus_env.videos.windows import WindowRequest, decode_windows, duration_of, frames_in, window_spans

UNEVEN = [*np.arange(20) * 0.02, *(0.4 + np.arange(10) * 0.2)]  # 50 frames per second, then 5


def test_without_a_length_there_is_one_window():
    assert window_spans(7.0, None, None).tolist() == [[0.0, 7.0]]


def test_a_video_shorter_than_the_window_is_one_window():
    assert window_spans(3.0, 4.0, 1.0).tolist() == [[0.0, 3.0]]


@pytest.mark.parametrize(
    ("window", "stride", "starts"),
    [(2.0, None, [0, 2, 4, 5]), (3.5, None, [0, 3.5]), (3.0, 1.5, [0, 1.5, 3, 4]), (7.0, 2.0, [0]), (1.0, 3.0, [0, 3, 6])],
)
def test_windows_begin_at_every_stride_and_the_last_ends_with_the_video(window, stride, starts):
    spans = window_spans(7.0, window, stride)
    assert spans[:, 0].tolist() == starts and np.allclose(spans[:, 1] - spans[:, 0], window) and spans[-1, 1] == 7.0


@pytest.mark.parametrize(("length", "count"), [(40, 8), (37, 8), (5, 8), (1, 4)])
@pytest.mark.parametrize("rate", [25.0, 29.97])
def test_at_a_constant_rate_the_frames_are_those_of_a_test_clip(length, count, rate):
    times = np.round(np.arange(length) / rate, 3)  # as in Matroska files, in milliseconds
    assert frames_in(times, 0.0, duration_of(times, 1 / rate), count).tolist() == segment_indices(length, count).tolist()


def test_at_a_variable_rate_frames_are_shown_in_the_middle_of_equal_segments():
    times = np.array(UNEVEN)
    chosen = frames_in(times, 0.0, 2.4, 8)
    middles = 0.15 + 0.3 * np.arange(8)
    following = np.append(times, 2.4)[chosen + 1]
    assert (times[chosen] <= middles + 1e-6).all() and (middles < following).all()
    assert chosen.tolist() == [7, 20, 21, 23, 24, 26, 27, 29]


def test_a_window_without_a_new_frame_shows_the_one_before():
    assert frames_in(np.array([0.0, 0.1, 5.0]), 2.0, 3.0, 2).tolist() == [1, 1]


@pytest.mark.parametrize("reader", ["decord", "av"])
def test_readers_know_when_frames_are_shown(tmp_path, monkeypatch, reader):
    if reader == "av":
        monkeypatch.setattr(readers, "file_reader", lambda: "av")
    path = write_video(tmp_path / "a.mp4", square_frames(30), times=UNEVEN)
    assert np.abs(open_reader(path).times() - UNEVEN).max() < 1e-3
    assert np.abs(open_reader(write_video(tmp_path / "b.mp4", fps=10)).times() - np.arange(12) / 10).max() < 1e-3


def test_windows_are_decoded_from_any_of_them_on(tmp_path):
    frames = square_frames(40)
    path = write_video(tmp_path / "a.mp4", frames, fps=10)
    whole = decode_windows(WindowRequest(path, 4, 48, glance_frames=2, window=1.0, stride=0.5))
    assert whole.frames.shape == (7, 6, 48, 64, 3) and whole.size == (48, 64) and whole.duration == pytest.approx(4.0)
    assert whole.indices[2].tolist() == [11, 13, 16, 18, 12, 17]
    assert np.allclose(whole.times, whole.indices / 10, atol=1e-3)
    assert np.abs(whole.frames.astype(int) - frames[whole.indices]).mean() < 6
    later = decode_windows(WindowRequest(path, 4, 48, glance_frames=2, window=1.0, stride=0.5, first=5))
    assert (later.frames == whole.frames[5:]).all() and (later.spans == whole.spans).all()


def test_the_frames_of_a_window_come_in_the_order_asked_for(tmp_path):
    path = write_video(tmp_path / "a.mp4", square_frames(40), fps=10)
    time, other = (decode_windows(WindowRequest(path, 4, 48, window=1.0, order=order)) for order in ("time", "coarse_to_fine"))
    for name in ("frames", "indices", "times"):
        assert np.array_equal(getattr(other, name), getattr(time, name)[:, [1, 0, 3, 2]])


def test_a_request_returns_a_limited_number_of_windows(tmp_path):
    path = write_video(tmp_path / "a.mp4", square_frames(40), fps=10)
    request = WindowRequest(path, 100, 24, window=1.0, max_frames=250)
    assert request.windows_at_once == 2
    found = decode_windows(request)
    assert len(found.frames) == 2 and len(found.spans) == 4


def test_where_a_file_does_not_say_its_times_the_mean_rate_does(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "file_reader", lambda: "av")
    monkeypatch.setattr(PyAVReader, "times", lambda self: None)
    path = write_video(tmp_path / "a.mp4", square_frames(20), fps=10)
    assert np.allclose(decode_windows(WindowRequest(path, 4, 48)).times, [[0.2, 0.7, 1.2, 1.7]])


def test_a_video_whose_times_span_too_many_windows_is_refused(tmp_path):
    path = write_video(tmp_path / "a.mp4", square_frames(12))
    with pytest.raises(DecodeError, match=r"a\.mp4: it lasts 0\.48 s, which is more than 1,000,000 windows at a distance of 1e-07 s"):
        decode_windows(WindowRequest(path, 4, 24, window=0.1, stride=1e-7))
    assert len(decode_windows(WindowRequest(path, 4, 24, stride=1e-7)).spans) == 1
