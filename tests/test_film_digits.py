"""Test examples/film_digits.py on films that the tests write."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from videos import square_frames, write_video

from adafocus_env.videos.class_folders import folder
from adafocus_env.videos.readers import open_reader

pytestmark = pytest.mark.usefixtures("in_process")
SMALL = ["--side", "48", "--digit", "12", "--frames", "4", "--shapes", "1"]


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    yield importlib.import_module("film_digits")
    sys.modules.pop("film_digits")


def write_film(path, num_frames=24, fps=10):
    """Write a film whose background gets brighter by 8 of 255 from frame to frame."""
    return str(write_video(path, square_frames(num_frames), fps=fps))


def made(module, out, *films, more=()):
    module.main([*films, "--out", str(out), "--train", "20", "--test", "10", *SMALL, *more])
    return folder(out, val=0.0)


def style(module, **changes):
    return module.Style(**{"side": 48, "digit": 12, "length": 4, "shapes": 0, **changes})


def shades(video):
    """Return the background of the first and the last frame of a video. (Digit and shapes cover less than half of it.)"""
    return np.median(open_reader(video.path).get_frames([0, 3]), axis=(1, 2, 3))


def test_a_data_set_of_ten_classes_with_tracks_is_written(module, tmp_path, capsys):
    films = [write_film(tmp_path / f"{name}.mp4") for name in ("one", "two")]
    data = made(module, tmp_path / "out", *films)
    assert capsys.readouterr().out.splitlines() == ["train: 20 videos from one.mp4", "test: 10 videos from two.mp4"]
    assert data.classes == tuple("0123456789") and data.unused == ()
    assert [video.label for video in data.train] == [label for label in range(10) for _ in range(2)]
    assert all(video.track and "/one-" in video.name for video in data.train) and all("/two-" in video.name for video in data.test)
    reader = open_reader(data.train[0].path)
    assert (len(reader), reader.size, reader.fps) == (4, (48, 48), 10)


def test_the_same_seed_makes_the_same_files(module, tmp_path):
    film = write_film(tmp_path / "film.mp4")
    outs = [made(module, tmp_path / name, film, more=["--seed", name[0]]) for name in ("0", "0 again", "1")]
    files = [b"".join(video.path.read_bytes() + video.track.read_bytes() for video in out.train) for out in outs]
    assert files[0] == files[1] != files[2]


def test_a_single_film_is_split_by_time_with_a_gap(module, tmp_path, capsys):
    data = made(module, tmp_path / "out", write_film(tmp_path / "film.mp4"))
    assert capsys.readouterr().out.splitlines() == [
        "train: 20 videos from film.mp4 (0% to 70%)", "test: 10 videos from film.mp4 (75% to 100%)"
    ]  # fmt: skip
    assert max(shades(video)[1] for video in data.train) + 8 < min(shades(video)[0] for video in data.test)


def test_films_are_split_by_file(module):
    films = [Path(name) for name in "abcdefgh"]
    named = lambda split: {name: [footage.film.name for footage in each] for name, each in split.items()}  # noqa: E731
    assert named(module.split_films(films)) == {"train": list("abcdef"), "test": list("gh")}
    assert named(module.split_films(films[:3])) == {"train": list("ab"), "test": list("c")}
    assert named(module.split_films(films[:1], films[4:6])) == {"train": ["a"], "test": ["e", "f"]}
    for repeated in ((films, films[4:6]), ([films[0], films[0]], ())):
        with pytest.raises(SystemExit, match=r"a film must be for training or for testing, got [ae] for both; name it once"):
            module.split_films(*repeated)


def test_no_digit_image_occurs_in_both_splits(module):
    (train, train_labels), (test, test_labels) = (module.digits(split) for split in ("train", "test"))
    assert len(train) == len(train_labels) and len(test) == len(test_labels) and len(train) + len(test) == 1797
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in test}
    assert set(train_labels) == set(test_labels) == set(range(10))


def test_a_film_is_read_ten_times_a_second(module, tmp_path):
    film = tmp_path / "film.mp4"
    write_film(film, num_frames=24, fps=20)
    first, second = module.windows(film, [0, 7], 4, 2, 48)
    for window, number in ((first, 0), (second, 7)):
        assert np.allclose(window[:, 1, 1].mean(-1), 16 * (number + np.arange(4)), atol=3)
    with pytest.raises(SystemExit, match=r"film.mp4 ends before its last frame; is it truncated\?"):
        list(module.windows(film, [9], 4, 2, 48))


def test_the_track_is_where_the_digit_is_and_it_has_no_colour(module):
    rng = np.random.default_rng(0)
    ground = np.full((4, 48, 48, 3), 120, np.uint8)
    frames, centres = module.compose(ground, module.digits("train")[0][0], style(module), rng)
    assert (frames == frames[..., :1]).all(), "grey"
    for frame, centre in zip(frames, centres, strict=True):
        changed = np.argwhere(frame[..., 0] != 120)
        assert np.abs((changed.min(0) + changed.max(0)) / 2 - centre).max() <= 2
        assert np.ptp(changed, axis=0).max() <= 12 + 4
        assert frame.max() > 180 and frame.min() < 50, "ink and the line around it"
    assert np.ptp(centres, axis=0).max() > 1, "it moves"


def test_shapes_are_below_the_digit_and_have_its_greys(module):
    ground = np.full((4, 48, 48, 3), 120, np.uint8)
    image = module.digits("train")[0][0]
    with_shapes, centres = module.compose(ground, image, style(module, shapes=3), np.random.default_rng(0))
    alone = (with_shapes != 120).any(-1)
    for frame, changed, (y, x) in zip(with_shapes, alone, centres.round().astype(int), strict=True):
        changed = changed.copy()
        changed[y - 9 : y + 10, x - 9 : x + 10] = False
        assert changed.any() and (frame == frame[..., :1]).all()


def test_the_camera_pans(module):
    """The videos of a still film move."""
    still = np.repeat(np.random.default_rng(0).integers(0, 255, (1, 96, 128, 3), dtype=np.uint8), 4, axis=0)
    panned = module.pan(still, 48, np.random.default_rng(1))
    assert panned.shape == (4, 48, 48, 3) and (np.diff(panned.astype(int), axis=0) != 0).any((1, 2, 3)).all()


def test_paths_stay_inside(module):
    path = module.walk(500, np.array([20.0, 3.0]), 4.0, np.random.default_rng(0))
    assert path.min() >= 0 and (path.max(0) <= [20, 3]).all() and (np.ptp(path, axis=0) > [19, 2.5]).all()
    assert np.linalg.norm(np.diff(path, axis=0), axis=1).max() <= 4 + 1e-9


def test_what_cannot_be_made_is_refused(module, tmp_path):
    film = write_film(tmp_path / "short.mp4")
    with pytest.raises(SystemExit, match=r"short.mp4 \(75% to 100%\) has 6 frames, 10 per second: too few for videos of 8 frames; lower"):
        made(module, tmp_path / "out", film, more=["--frames", "8"])
    with pytest.raises(SystemExit, match=r"--digit must be from 8 to 37 pixels with --side 48, got 38"):
        made(module, tmp_path / "out", film, more=["--digit", "38"])
    with pytest.raises(SystemExit, match=r"--side must be even for H.264, got 49"):
        made(module, tmp_path / "out", film, more=["--side", "49"])
    assert not (tmp_path / "out").exists()
    made(module, tmp_path / "out", film)
    with pytest.raises(SystemExit, match=r"--out must be a folder without train/ and test/, got .*out; remove them or choose another one"):
        made(module, tmp_path / "out", film)
