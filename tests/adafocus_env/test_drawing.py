"""Colours, fonts, enlarged frames and outlines."""

import numpy as np
from PIL import Image, ImageDraw

from adafocus_env.drawing import enlarged, focused, font, outline, shorten


def drawn(text):
    picture = Image.new("L", (200, 40))
    ImageDraw.Draw(picture).text((5, 5), text, fill=255, font=font(16))
    return np.asarray(picture)


def test_names_of_any_alphabet_are_drawn():
    """A letter that the font lacks would be drawn like U+FFFF, as a box."""
    missing = drawn("\uffff")
    for letter in "éßøłЖΩאع":
        assert drawn(letter).any() and not np.array_equal(drawn(letter), missing), letter


def test_long_names_are_cut():
    text = "Straßenbahnhaltestelle"
    assert shorten(text, 500, 14) == text
    cut = shorten(text, 80, 14)
    assert cut.endswith("…") and text.startswith(cut[:-1]) and font(14).getlength(cut) <= 80 and shorten(text, 1, 14) == ""


def test_a_small_frame_is_enlarged_by_a_whole_number():
    frame = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    picture, scale = enlarged(frame, 5)
    assert scale == 3 and np.array_equal(np.asarray(picture), frame.repeat(3, 0).repeat(3, 1))
    assert enlarged(frame, 1)[1] == 1


def test_the_outline_of_a_box_has_a_dark_rim():
    picture = Image.new("RGB", (40, 40), "grey")
    outline(ImageDraw.Draw(picture), (5, 5, 15, 15), (2, 2), (255, 0, 0), 2)
    row = np.asarray(picture)[20]
    assert row[9].tolist() == [0, 0, 0] and row[[10, 11, 28, 29], 0].tolist() == [255] * 4 and row[20].tolist() == [128] * 3


def test_what_the_focuser_sees_is_the_patch_at_its_resolution():
    frame = np.zeros((96, 96, 3), np.uint8)
    frame[10:34, 20:44] = 200
    assert (np.asarray(focused(frame, (10, 20, 34, 44), 24, 72)) == 200).all()
