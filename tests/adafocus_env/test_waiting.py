"""The progress display while an environment renders, decodes and fills its bank: on stderr, and only in the main process."""

import re

import gymnasium as gym
import numpy as np
import pytest

from adafocus_env import waiting
from adafocus_env.clips import store
from adafocus_env.features import memory_bank
from adafocus_env.waiting import Waiting
from classifiers import checkpoint


@pytest.fixture
def at_once(monkeypatch):
    """Print lines without a pause between them."""
    monkeypatch.setattr(waiting, "EVERY", 0.0)


def test_a_pipe_gets_a_line_now_and_then(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    work = Waiting("decode videos", 2000)
    for first in (0, 1000):  # the pause is counted over all pieces of the work
        with work.shown() as at:
            for done in range(first, first + 1000, 100):
                now[0] += 4
                at(done)
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err == "decode videos: 700 of 2,000\ndecode videos: 1,500 of 2,000\n"


def test_other_processes_are_quiet(capsys, monkeypatch, at_once):
    monkeypatch.setattr(waiting, "parent_process", lambda: "main")
    with Waiting("decode videos", 2).shown() as at:
        at(1)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_that_disappears(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with Waiting("decode videos", 2).shown() as at:
        at(1)
    printed = capsys.readouterr().err
    assert "decode videos" in printed and "1/2" in printed and printed.endswith("\x1b[2K")


def test_the_first_use_of_an_id_is_shown(capsys, monkeypatch, tmp_path, classifier, at_once):
    checkpoint.save(classifier, tmp_path / "classifier")
    monkeypatch.setitem(checkpoint.BUNDLED, "demo", tmp_path / "classifier")
    monkeypatch.setenv("ADAFOCUS_CACHE", str(tmp_path))
    monkeypatch.setattr(store, "SHARD_SIZE", 2)
    monkeypatch.setattr(memory_bank, "MANY", 2)
    env = gym.make_vec("AdaFocus-v1", 4, vectorization_mode="vector_entry_point", clips="test", baseline="all")
    env.reset(options={"clips": [0, 1, 2, 5]})
    printed = capsys.readouterr()
    assert printed.out == "" and len(list(tmp_path.rglob("*.mp4"))) == 6
    assert re.findall(r"render videos: (\d) of 6", printed.err) == list("123456"), "all that a reset needs is rendered together"
    assert re.findall(r"decode videos: (\d) of 500", printed.err) == list("123456")
    env.step(np.zeros(4, np.int64))
    assert re.findall(r"fill the feature bank: ([\d,]+) of 4,000", capsys.readouterr().err)[-1] in ("4", "32")


def test_clips_that_are_given_are_shown_by_who_gives_them(capsys, classifier, clips, at_once, monkeypatch):
    monkeypatch.setattr(memory_bank, "MANY", 1)
    env = gym.make_vec("AdaFocus-v1", 4, vectorization_mode="vector_entry_point", clips=clips, classifier=classifier)
    env.reset()
    env.step(np.zeros(4, np.int64))
    assert capsys.readouterr().err == ""
