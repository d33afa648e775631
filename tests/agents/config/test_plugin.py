import sys
from dataclasses import dataclass

import pytest

from agents.config import arguments
from agents.config.command import compose_config
from agents.config.plugin import import_plugin
from agents.config.settings import Evaluate, TrainPPO
from classifiers.errors import InputError


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a module that can be imported; forgets it afterwards."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, code):
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.delitem(sys.modules, name, raising=False)

    return write


@pytest.mark.parametrize("name", ["l1_no_such_module", "l1_no_such_module.inner", "l1_no_such_module.py"])
def test_a_module_that_is_not_there_is_named(name):
    with pytest.raises(InputError, match=f"^plugin={name}: there is no module 'l1_no_such_module'.* such as plugin=my_reward"):
        import_plugin(name)


def test_a_file_name_is_no_module(write):
    write("l1_plain", "")
    with pytest.raises(InputError, match=r"^plugin=l1_plain\.py: there is no module 'l1_plain\.py'"):
        import_plugin("l1_plain.py")


@pytest.mark.parametrize("name", [".", "..x", ".x"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(InputError, match="is no name of a module"):
        import_plugin(name)


def test_what_a_module_raises_keeps_its_traceback(write):
    write("l1_needs", "import l1_not_installed")
    with pytest.raises(ModuleNotFoundError, match="l1_not_installed"):
        import_plugin("l1_needs")


def test_small_commands_import_it_first(write):
    @dataclass
    class Given:
        plugin: str = ""

    write("l1_first", "")
    seen = []
    arguments.run_command(lambda given: seen.append("l1_first" in sys.modules) or 0, Given, "", ["plugin=l1_first"])
    assert seen == [True]


def test_composed_commands_have_the_key():
    assert compose_config(TrainPPO, "train_ppo", ["plugin=a.b"]).plugin == "a.b"
    assert compose_config(Evaluate, "evaluate", ["plugin=a.b"]).plugin == "a.b"
