"""Run everything in docs/extend.md: files, commands with small sizes, and scripts."""

import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TASK
from tiny_training import SETTINGS, make_folder

from adafocus_env import build
from adafocus_env.demo.videos import demo
from adafocus_env.observation import OBSERVATIONS
from adafocus_env.reward import REWARDS
from agents import evaluate, train, train_ppo, train_stages
from agents.config.command import compose_config, run_command
from agents.config.settings import Evaluate, Train, TrainPPO, TrainStages
from agents.policies.networks import NETWORKS, load_policy
from classifiers import checkpoint
from classifiers.backbones.backbone import BACKBONES
from classifiers.errors import InputError
from classifiers.model_zoo import ARCHITECTURES

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_process")]

PAGE = Path(__file__).parents[1] / "docs" / "extend.md"
SECTIONS = dict(re.findall(r"^## (An? .*?)\n(.*?)(?=^## )", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))
COMMANDS = {
    "agents.train_ppo": (train_ppo.main, TrainPPO, "train_ppo"),
    "agents.train": (train.main, Train, "train"),
    "agents.train_stages": (train_stages.main, TrainStages, "train_stages"),
    "agents.evaluate": (evaluate.main, Evaluate, "evaluate"),
}
TABLES = (REWARDS, OBSERVATIONS, NETWORKS, BACKBONES, ARCHITECTURES)


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def place(tmp_path, monkeypatch, clips):
    """Change to a folder with a dozen videos, from which modules are imported; restore the tables afterwards."""
    for table in TABLES:
        for name, value in table.items():
            monkeypatch.setitem(table, name, value)
    before = [set(table) for table in TABLES]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(build, "demo", lambda task: demo(TASK, val=0.0))
    make_folder(tmp_path / "videos")
    yield tmp_path
    for table, names in zip(TABLES, before, strict=True):
        for name in set(table) - names:
            del table[name]
    for module in tmp_path.glob("my_*.py"):
        sys.modules.pop(module.stem, None)


def run_small(command):
    """Run a printed command with the sizes of the tests."""
    python, dash, module, *printed = shlex.split(command)
    assert (python, dash) == ("python", "-m")
    main, schema, name = COMMANDS[module]
    sizes = [] if schema is Evaluate else [*SETTINGS, "data.root=videos"]
    if schema is Train:
        left = ("ppo.", "network.") if any("algo.observation" in each for each in printed) else ("ppo.",)
        sizes = [each for each in sizes if not each.startswith(left)] + ["algo.total_steps=128", "algo.settings.n_steps=4"]
    run_command(main, schema, name, arguments=[*printed, *sizes])


def play(section):
    """Write the files of a section, run its commands, then its scripts; return the output of each script."""
    scripts = []
    for block in blocks(SECTIONS[section], "python"):
        first = re.match(r"# (my_\w+\.py)\n", block)
        if first:
            Path(first[1]).write_text(block, encoding="utf-8")
        else:
            scripts.append(block)
    for block in blocks(SECTIONS[section], "bash"):
        for command in block.splitlines():
            run_small(command)
    for script in scripts:
        exec(compile(script, "docs/extend.md", "exec"), {"__name__": "__main__"})


def test_the_page_has_all_that_it_promises():
    assert list(SECTIONS) == ["A reward", "An observation", "A backbone", "A policy network", "An algorithm"]
    tables = re.findall(r"^\| `([\w.]+)\.([A-Z_]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(tables) == 7 and all(isinstance(getattr(importlib.import_module(module), name), dict) for module, name in tables)


def test_a_reward(place, capsys):
    play("A reward")
    (config,) = place.glob("runs/*/config.yaml")
    assert "reward: bits" in config.read_text()
    reward = REWARDS["bits"].value(*np.array([[0.5], [0.1], [0.125]], np.float32))
    assert reward == pytest.approx(2.0)
    assert "'confidence':" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size:UserWarning")  # the updates of the tests are small
def test_an_observation(place, capsys):
    play("An observation")
    assert list(place.glob("runs/*/result.json"))
    assert capsys.readouterr().out.endswith("(4, 64)\n")


@pytest.mark.slow
def test_a_backbone(place, monkeypatch):
    play("A backbone")
    card = json.loads((place / "runs/light/checkpoints/classifier/card.json").read_text())
    assert card["architecture"]["focuser"] == "light_focuser"
    evaluated = compose_config(Evaluate, "evaluate", ["run=runs/light"])
    with pytest.raises(InputError, match=r"run=runs/light was made with plugin=my_backbone, .*: add plugin=my_backbone"):
        evaluate.main(evaluated)
    monkeypatch.delitem(BACKBONES, "light_focuser")
    with pytest.raises(InputError, match="focuser='light_focuser' is not known"):
        checkpoint.load("runs/light/checkpoints/classifier")


def test_a_policy_network(place, monkeypatch):
    play("A policy network")
    best = place / "runs/linear/checkpoints/best"
    assert json.loads((best / "policy.json").read_text())["network"]["kind"] == "linear"
    monkeypatch.delitem(NETWORKS, "linear")
    with pytest.raises(InputError, match=r"network\.kind='linear' is not known; .* or set plugin=MODULE"):
        load_policy(best)


def test_an_algorithm(place, capsys):
    play("An algorithm")
    assert list(place.glob("runs/*/result.json"))
    learned, random = map(float, capsys.readouterr().out.splitlines()[-1].split())
    assert 0 <= learned <= 1 and 0 <= random <= 1
