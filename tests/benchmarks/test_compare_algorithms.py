import json

import numpy as np
import pytest
from PIL import Image
from tiny_training import SETTINGS, patch_demo, tiny_networks

from agents import train
from agents.config.command import compose_config
from benchmarks import compare_algorithms
from benchmarks.compare_algorithms import CompareAlgorithms, algorithms_of, check_runs, overrides_of
from classifiers.errors import InputError

pytestmark = pytest.mark.usefixtures("in_process")
TINY = [setting for setting in SETTINGS if setting.partition("=")[0] not in ("data", "data.val", "device", "ppo.total_steps")]
DATA = ["classifier=small", "data.val=0.25", "algo.validate_every=32"]


@pytest.fixture(scope="module", autouse=True)
def networks():
    with tiny_networks(), pytest.MonkeyPatch.context() as patch:
        patch_demo(patch)
        yield


def bench(folder, **settings):
    plain = [setting for setting in TINY if not setting.startswith("ppo.")]
    given = {"id": "AdaFocus-v1", "total_steps": 64, "overrides": [*plain, *DATA], "device": "cpu", "run": str(folder)}
    compare_algorithms.main(CompareAlgorithms(**{**given, **settings}))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size:UserWarning")  # the updates of the tests are small
def test_a_study_makes_a_table_and_a_plot_and_repeats_nothing(tmp_path, capsys, monkeypatch):
    bench(tmp_path, algos=["a2c", "trpo"], seeds=[0, 1])
    rows = (tmp_path / "table.md").read_text().splitlines()
    assert rows[0].startswith("| algorithm | top-1 | gap closed |") and {row.split()[1] for row in rows[2:]} == {"a2c", "trpo"}
    for name, each in json.loads((tmp_path / "table.json").read_text()).items():
        results = [json.loads((tmp_path / f"{name}-{seed}" / "result.json").read_text())["policies"] for seed in (0, 1)]
        assert each["top1"] == [result["learned"]["top1"] for result in results] and each["steps"] >= 64 and each["cpu_minutes"] > 0
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 1000 and len(np.unique(np.asarray(picture.convert("L")))) > 20
    again = []
    monkeypatch.setattr(train, "main", lambda config: again.append(config.run) or pytest.fail("more than what is missing"))
    bench(tmp_path, algos=["a2c", "trpo"], seeds=[0, 1])
    assert not again
    with pytest.raises(pytest.fail.Exception):
        bench(tmp_path, algos=["a2c"], seeds=[0, 1, 2])
    assert again == [str(tmp_path / "a2c-2")]


def runs(tmp_path, *arguments):
    config = compose_config(CompareAlgorithms, "compare_algorithms", list(arguments), config_package="benchmarks.configs")
    return check_runs(config, tmp_path)


def test_an_id_is_the_problem_of_its_environment(tmp_path):
    assert overrides_of("AdaFocus-v1")[0] == "env.action=grid"
    assert overrides_of("AdaFocusContinuous-v1")[:2] == ["env.action=continuous", "env.baseline=1"]
    found = runs(tmp_path, "id=AdaFocusContinuous-v1", "algos=[sac,ppo]", "seeds=[3]", "total_steps=500")
    assert [(name, config.env.action, config.env.baseline, config.seed) for name, (config,) in found.items()] == [
        ("sac", "continuous", 1, 3), ("ppo", "continuous", 1, 3)
    ]  # fmt: skip
    assert (found["sac"][0].algo.total_steps, found["ppo"][0].ppo.total_steps) == (500, 500)


def test_the_default_is_all_algorithms_that_fit():
    cells = {"a2c", "ars", "dqn", "expected_pg", "imitation", "maskable_ppo", "ppo", "qrdqn", "recurrent_ppo", "trpo"}
    assert set(algorithms_of(CompareAlgorithms(id="AdaFocus-v1"))) == cells
    assert {"sac", "td3", "ddpg", "tqc", "crossq"} <= set(algorithms_of(CompareAlgorithms(id="AdaFocusContinuous-v1")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["id=AdaFocus-v1", "algos=[ppo,sac]"], r"algo=sac learns continuous actions only, and id=AdaFocus-v1 has discrete ones: .*ids"),
        (["id=AdaFocusContinuous-v1", "algos=[dqn]"], r"algo=dqn learns discrete actions only, and id=AdaFocusContinuous-v1 has"),
        (["id=AdaFocus-v2"], r"id='AdaFocus-v2' is not known; did you mean 'AdaFocus-v1'\?"),
        (["id=CartPole-v1"], r"id='CartPole-v1' is not known; .*choose one of \['AdaFocus"),
        (["algos=[pppo]", "id=AdaFocus-v1"], r"algo\.name='pppo' is not known; did you mean 'ppo'"),
        (["id=AdaFocus-v1", "algos=[a2c,ars]", "overrides=['network.memory=false']"], r"^network\.memory=false has no effect: .* algo=ars"),
        (["id=AdaFocus-v1", "overrides=['seed=3']"], r"^overrides: the command itself sets seed=3 in every run; leave it out"),
        (["id=AdaFocus-v1", "overrides=['device=cpu','data.task=mover']"], r"^overrides: the command .* sets device=cpu, data\.task=mover"),
        (["id=AdaFocus-v1", "total_steps=5", "overrides=['ppo.epochs=3']"], r"^overrides: the command itself sets ppo\.epochs=3"),
        (["id=AdaFocus-v1", "overrides=['env.cost_weight_rate=1']"], r"^env\.cost_weight_rate=1 has no effect: λ is constant"),
        (["seeds=[]", "id=AdaFocus-v1"], r"seeds must hold at least one value and none twice, got \[\]"),
        (["seeds=[1,1]", "id=AdaFocus-v1"], r"seeds must hold at least one value and none twice, got \[1, 1\]"),
    ],
)
def test_a_wrong_study_is_refused_before_anything_runs(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        runs(tmp_path, *arguments)
