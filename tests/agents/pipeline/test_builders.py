"""The construction of clips from settings, and its progress display."""

import io
from dataclasses import replace

import pytest
from conftest import TASK
from rich.console import Console

from adafocus_env.demo.videos import demo
from agents.config.settings import DataConfig
from agents.pipeline.builders import build_split
from agents.runs.progress import Display

pytestmark = pytest.mark.usefixtures("in_process")


def test_rendering_is_called_rendering(clips, tmp_path, monkeypatch):
    monkeypatch.setenv("ADAFOCUS_CACHE", str(tmp_path))
    now, text, data = [0.0], io.StringIO(), demo(TASK, val=0.0)
    display = Display(Console(file=text, width=80), clock=lambda: now[0])

    def prepare(videos, progress):
        for _ in videos:
            now[0] += 10
            progress(1)
            display.remind()
        data.prepare(videos)

    found = build_split(replace(data, prepare=prepare), "test", DataConfig(num_frames=4), 96, display)
    lines = text.getvalue().splitlines()
    assert len(found) == 4 and lines[0].startswith("render test 75%") and lines[1] == "render test: 4 in 0:00:40"
    assert lines[2].startswith("decode test: 4 in ")
    build_split(replace(data, prepare=None), "test", DataConfig(num_frames=4), 96, display)
    assert "render" not in "".join(text.getvalue().splitlines()[3:])
