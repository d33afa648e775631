"""The first script of the README is run as printed, but for its numbers: a dozen videos, and few steps where it learns."""

import re
from pathlib import Path

import pytest
from conftest import TASK

from adafocus_env import build
from adafocus_env.demo.videos import demo

README = Path(__file__).parents[1] / "README.md"
SMALL = {r"learn\([\d_]+\)": "learn(64)", r"num_envs=\d+": "num_envs=4", r"range\(500\)": "range(4)"}


@pytest.fixture
def script():
    """The first block of Python, with small numbers in place of the printed ones."""
    script = re.search(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)[1]
    for printed, small in SMALL.items():
        script = re.sub(printed, small, script)
    return script


def test_the_first_script_runs(script, monkeypatch, clips, capsys):
    monkeypatch.setattr(build, "demo", lambda task: demo(TASK, val=0.0))
    exec(compile(script, "README.md", "exec"), {"__name__": "__main__"})
    assert "gym" in script and capsys.readouterr().out.strip()
