"""The wording of messages."""

import pytest

from classifiers.errors import count_of


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [(1, ["clip"], "1 clip"), (0, ["clip"], "0 clips"), (2000, ["clip"], "2,000 clips"), (1, ["class", "classes"], "1 class"),
     (3, ["class", "classes"], "3 classes")],
)  # fmt: skip
def test_a_number_has_its_noun(number, words, text):
    assert count_of(number, *words) == text
