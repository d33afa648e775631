"""The common entry points of all commands: `adafocus` and `python -m agents`."""

import importlib.metadata
import subprocess
import sys

import pytest

from agents.__main__ import main

pytestmark = pytest.mark.filterwarnings("ignore:'agents.* found in sys.modules:RuntimeWarning")  # other tests have imported the commands


@pytest.fixture
def console(monkeypatch):
    """Run `adafocus` with the given arguments in this process."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["/somewhere/bin/adafocus", *arguments])
        main()

    return run


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_commands_are_listed(console, capsys, arguments):
    console(*arguments)
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[1] for line in lines]
    assert {"train-ppo", "list-runs", "predict", "COMMAND"} <= set(names) and "inference" not in names
    assert "adafocus list-runs          List run folders with their results." in lines


@pytest.mark.parametrize("name", ["list-runs", "list_runs"])
def test_a_command_gets_the_other_arguments(console, capsys, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    console(name, "json=true", "root=.")
    assert capsys.readouterr().out.strip() == "[]"


def test_a_mistake_of_a_command_has_its_status(console, capsys):
    with pytest.raises(SystemExit) as stop:
        console("list-runs", "sort=size")
    assert stop.value.code == 2 and "sort must be 'run' or 'learned' or 'date', got 'size'" in capsys.readouterr().err


def test_an_unknown_command_is_refused(console, capsys):
    with pytest.raises(SystemExit) as stop:
        console("train-pp")
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("command='train-pp' is not known; did you mean 'train-ppo'? choose one of ['check-dataset',")


def test_the_version_is_that_of_the_package(console, capsys):
    console("--version")
    assert capsys.readouterr().out == f"{importlib.metadata.version('adafocus-env')}\n"


def test_the_module_runs_commands_too():
    done = subprocess.run([sys.executable, "-m", "agents", "list-runs", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("List run folders with their results.\n")
