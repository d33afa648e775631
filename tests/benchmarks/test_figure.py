"""The figure of the README."""

import json
from pathlib import Path

import pytest

from benchmarks.figure import FigureSettings, main
from classifiers.errors import InputError

BOARD = {task: {name: {"top1_anytime": [0.5, 0.6]} for name in ("random", "ppo")} for task in ("track", "mover")}


@pytest.fixture
def board(tmp_path):
    (tmp_path / "board.json").write_text(json.dumps(BOARD), encoding="utf-8")
    return tmp_path / "board.json"


def test_a_picture_is_drawn(board):
    out = board.with_name("figure.png")
    main(FigureSettings(board=str(board), out=str(out), policies=["ppo", "random"]))
    assert out.read_bytes().startswith(b"\x89PNG")


def test_policies_without_a_row_are_refused(board):
    with pytest.raises(InputError, match="policies must be rows of track, got oracle; choose from random, ppo"):
        main(FigureSettings(board=str(board), out="unused.png", policies=["ppo", "oracle"]))


def test_the_leaderboard_has_every_row_of_the_default():
    rows = json.loads((Path(__file__).parents[2] / "docs" / "leaderboard.json").read_text(encoding="utf-8"))
    assert all(set(FigureSettings().policies) <= set(of_task) for of_task in rows.values())
