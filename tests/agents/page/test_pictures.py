"""Heat maps, animations and charts."""

import base64
import io
import re
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from agents.page import charts
from agents.page.pictures import BAR, animation, coverage, heat_map, peak_in_words, stacked


def opened(url):
    """Return the picture of a data URL."""
    return Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1])))


def test_coverage_counts_the_boxes_over_each_pixel():
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 4], [np.nan] * 4, [-5, 2, 1, 9]])
    shares = np.zeros((4, 4))
    shares[0:2, 0:2] += 1
    shares[1:3, 1:4] += 1
    shares[0:1, 2:4] += 1
    assert coverage(boxes, 4) == pytest.approx(shares / 3)
    assert (coverage(np.full((2, 4), np.nan), 4) == 0).all()
    assert stacked([np.zeros((2, 3, 4)), np.ones((1, 3, 4))]).shape == (9, 4)


@pytest.mark.parametrize(("row", "column", "words"), [(0, 0, "top left"), (4, 4, "centre"), (8, 4, "bottom"), (5, 8, "right")])
def test_the_peak_is_named(row, column, words):
    shares = np.zeros((9, 9))
    shares[row, column] = 1
    assert peak_in_words(shares) == words


def test_a_heat_map_is_brightest_at_its_highest():
    shares = np.linspace(0, 0.5, 16).reshape(4, 4)
    picture = np.asarray(opened(heat_map(shares, 0.5)).convert("L")).astype(int)
    assert picture.shape == (4, 4) and picture[0, 0] < 10 and picture[3, 3] > 240
    assert np.asarray(opened(heat_map(shares, 1.0)).convert("L"))[3, 3] < 200, "of a scale that goes further"
    assert opened(heat_map(np.zeros((4, 4)), 0.0)).size == (4, 4)


def test_a_clip_loops_with_its_patches():
    frames = np.full((3, 96, 96, 3), 90, np.uint8)
    box = np.array([[12.0, 24.0, 36.0, 48.0]] * 3)
    box[1] = np.nan
    moving, still = animation(frames, {"learned": box})
    picture = opened(moving)
    assert (picture.n_frames, picture.info["loop"], picture.size) == (3, 0, (192, 192 + BAR))
    for number in range(3):
        picture.seek(number)
        red, green, _ = picture.convert("RGB").getpixel((60, 25))  # on the upper outline
        assert (red > green + 60) == (number != 1)
    assert opened(still).size == picture.size and getattr(opened(still), "n_frames", 1) == 1


# Charts


def test_a_chart_takes_its_colours_from_the_page():
    with mpl.rc_context(charts.STYLE):
        figure = Figure()
        figure.add_subplot(title="a < b").plot([0, 1], color=charts.COLOURS["learned"])
        svg = charts.to_svg(figure, "mine", 'what "it" shows')
    assert svg.startswith('<svg viewBox="') and 'aria-label="what &#34;it&#34; shows"' in svg[:200]
    assert "var(--learned)" in svg and "var(--ink)" in svg and not re.search(r"#0100\d\d", svg)
    assert "a &lt; b" in svg and "<metadata" not in svg
    identifiers = re.findall(r'\bid="([^"]*)"', svg)
    assert all(each.startswith("mine-") for each in identifiers)
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]*)', svg)) <= set(identifiers)


def test_rounds_of_training_are_drawn_one_after_the_other():
    lines = [{"steps": 10, "val": 0.1}, {"steps": 20}, {"steps": 30, "val": 0.2}, {"epoch": 1, "val": 1}, {"steps": 10, "val": 0.3}]
    steps, values = charts._curve(lines, "val")
    assert steps.tolist() == [10, 30, 40] and values == pytest.approx([10, 20, 30])
    assert len(charts._curve(lines, "other")[0]) == 0


def test_labels_of_close_points_are_moved_apart():
    heights = charts._spread([50, 93, 92, 10], least=6)
    ordered = sorted(heights)
    assert all(after - before >= 6 - 1e-9 for before, after in pairwise(ordered))
    assert heights.tolist() == [50, 95.5, 89.5, 10], "labels that are far from others stay at their points"
