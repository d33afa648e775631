import json
import sys

import pytest
from tiny_training import SETTINGS, make_folder, tiny_networks

from adafocus_env import dataset_registry
from agents import check_dataset, fill_feature_bank, train_ppo
from agents.config.command import run_command
from agents.config.plugin import import_plugin
from agents.config.settings import CheckDataset, Evaluate, FillFeatureBank, TrainPPO
from classifiers.errors import InputError


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a function that writes an importable module, which is forgotten after the test."""
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
    with pytest.raises(InputError, match="is not the name of a module"):
        import_plugin(name)


def test_what_a_module_raises_keeps_its_traceback(write):
    write("l1_needs", "import l1_not_installed")
    with pytest.raises(ModuleNotFoundError, match="l1_not_installed"):
        import_plugin("l1_needs")


def test_commands_import_it_before_they_start(write):
    write("l1_first", "")
    seen = []
    run_command(lambda config: seen.append("l1_first" in sys.modules), Evaluate, "evaluate", arguments=["plugin=l1_first"])
    assert seen == [True]


DATA_SET = """
import dataclasses
from adafocus_env.dataset_registry import DATASETS, DataSource
from adafocus_env.videos.class_folders import folder

def build(data):
    return dataclasses.replace(folder(data.root, val=data.val), name="mine")

DATASETS["mine"] = DataSource(build, "videos of mine", reads=("root",))
"""


@pytest.fixture
def mine(write, tmp_path, clips):
    """Return arguments for a plugin's data set, a folder of a dozen videos."""
    write("l1_data", DATA_SET)
    yield ["plugin=l1_data", "data.name=mine", f"data.root={make_folder(tmp_path / 'videos')}", "data.num_frames=4"]
    dataset_registry.DATASETS.pop("mine", None)


def test_a_data_set_of_a_plugin_is_checked(mine, capsys):
    run_command(check_dataset.main, CheckDataset, "check_dataset", arguments=[*mine, "workers=2"])
    assert "mine: clips of 4 frames" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_command(check_dataset.main, CheckDataset, "check_dataset", arguments=[*mine, "data.task=mover"])
    assert capsys.readouterr().err.startswith("data.task=mover has no effect: data=mine does not read it")


def test_a_data_set_of_a_plugin_has_a_bank_and_is_trained_on(mine, tmp_path):
    settings = [each for each in SETTINGS if not each.startswith("data")]
    with tiny_networks():
        run = [f"run={tmp_path / 'run'}", "classifier=small", "data.val=0.25"]
        run_command(train_ppo.main, TrainPPO, "train_ppo", arguments=[*mine, *settings, *run])
        bank = [f"classifier={tmp_path / 'run/checkpoints/classifier'}", f"out={tmp_path / 'bank'}", "grid=3", "data.val=0.25"]
        run_command(fill_feature_bank.main, FillFeatureBank, "fill_feature_bank", arguments=[*mine, *bank])
    assert json.loads((tmp_path / "run/result.json").read_text())["data"] == "mine"
    assert len(list((tmp_path / "bank").glob("*/*.bin"))) == 3
