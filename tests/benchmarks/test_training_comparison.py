"""The comparison of training methods with tiny networks: its table, and its count of multiply-adds against a count of the whole run."""

import json
from dataclasses import replace

import pytest
from conftest import TINY, slow_except
from PIL import Image
from tiny_training import SETTINGS, patch_demo, tiny_networks

from adafocus_env.demo.videos import CLASSES
from agents.config.command import compose_config
from agents.pipeline import driver, training_run
from benchmarks import training_comparison
from benchmarks.training_comparison import COMMANDS, METHODS, STARTS_FROM, TrainingComparison, check_runs, clips_of
from benchmarks.training_cost import training_multiply_adds
from classifiers import checkpoint, flops
from classifiers.classifier import Classifier
from classifiers.errors import InputError
from classifiers.flops import multiply_adds

SHARED = ["data.num_frames=4", "data.val=0.25", "network.width=4"]
OF_RL = [each for each in SETTINGS if each.startswith(("env.num_envs", "env.grid", "ppo."))]
FEW = ["learning.epochs=2"]
ROUND = [*OF_RL, "stages.finetune.epochs=1"]
OF_METHOD = {
    "ppo": OF_RL, "expected_pg": OF_RL, "end_to_end": FEW, "ppo_joint": ROUND, "expected_pg_joint": ROUND, "end_to_end_joint": FEW,
    "ppo_continuous": [each for each in OF_RL if each != "env.grid=3"],
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def networks():
    with tiny_networks(), pytest.MonkeyPatch.context() as patch:
        patch_demo(patch)
        yield


@pytest.fixture(scope="module")
def given(tmp_path_factory, clips):
    """Settings of a small study; ``clips`` has rendered the videos."""
    folder = tmp_path_factory.mktemp("classifier")
    checkpoint.save(Classifier(TINY, CLASSES).freeze(), folder)
    return {"tasks": ["track"], "seeds": [0], "overrides": SHARED, "classifier": str(folder), "device": "cpu"}


def study(given, methods, **settings):
    return TrainingComparison(**{**given, "methods": methods, "of_method": {each: OF_METHOD[each] for each in methods}, **settings})


@pytest.mark.parametrize("method", slow_except(["ppo", "end_to_end_joint"], METHODS))
def test_the_count_is_that_of_the_whole_training(tmp_path, given, monkeypatch, method):
    """But for small differences: a clip that is twice in a minibatch is encoded once."""
    start = STARTS_FROM.get(method)
    runs = check_runs(study(given, [*filter(None, [start]), method]), tmp_path)["track"]
    (config,) = runs[method]
    clips = clips_of(config)
    if start is not None:
        COMMANDS[METHODS[start][0]].main(runs[start][0])
    with monkeypatch.context() as patch:  # the final evaluation does not count
        patch.setattr(training_run, "report", lambda *args, **kwargs: {"policies": {}})
        patch.setattr(driver, "ablation", lambda *args: [])
        patch.setattr(flops, "_count", lambda classifier: flops.ClassifierFlops(1, 1, 1, 1))  # runs the networks, too
        counted = multiply_adds(lambda: COMMANDS[METHODS[method][0]].main(config), gradient=True)
    assert training_multiply_adds(config, clips) == pytest.approx(counted, rel=0.03)


@pytest.mark.slow
def test_a_study_makes_a_table_and_a_picture_and_repeats_nothing(tmp_path, given, monkeypatch):
    methods = ["ppo", "end_to_end", "ppo_joint", "end_to_end_joint"]
    training_comparison.main(study(given, methods, run=str(tmp_path), seeds=[0, 1]))
    table = (tmp_path / "table.md").read_text().splitlines()
    assert table[0] == "**track**" and [line.split(" | ")[0] for line in table[4:]] == [f"| {name}" for name in methods]
    measured = json.loads((tmp_path / "table.json").read_text())["track"]
    for method in methods:
        for seed, run in enumerate(measured[method]):
            policies = json.loads((tmp_path / f"track-{method}-{seed}" / "result.json").read_text())["policies"]
            assert run["top1"] == policies["learned"]["top1"] and run["oracle_top1_anytime"] == policies["oracle"]["top1_anytime"]
            assert run["multiply_adds"] > 0 and run["seconds"] > 0
    assert measured["ppo_joint"][0]["multiply_adds"] > measured["ppo"][0]["multiply_adds"]
    configs = check_runs(study(given, methods, seeds=[0, 1]), tmp_path)["track"]["end_to_end_joint"]
    joint = [training_multiply_adds(config, clips_of(config)) for config in configs]
    for alone, run, first in zip(joint, measured["end_to_end_joint"], measured["end_to_end"], strict=True):
        assert run["multiply_adds"] == alone + first["multiply_adds"]
    with Image.open(tmp_path / "cost.png") as picture:
        assert picture.width > 1000
    for name, command in list(COMMANDS.items()):
        monkeypatch.setitem(COMMANDS, name, replace(command, main=lambda config: pytest.fail("more than what is missing")))
    training_comparison.main(study(given, methods, run=str(tmp_path)))


def runs(tmp_path, *arguments):
    config = compose_config(TrainingComparison, "training_comparison", list(arguments), config_package="benchmarks.configs")
    return check_runs(config, tmp_path)


def test_the_default_is_all_methods_with_the_spatial_network_from_the_bundled_classifier(tmp_path):
    found = runs(tmp_path)
    assert set(found) == {"track", "mover"} and list(found["track"]) == [name for name in METHODS if name != "ppo_continuous"]
    configs = [config for by_method in found.values() for group in by_method.values() for config in group]
    assert {(config.network.name, config.classifier) for config in configs} == {("spatial", "auto")}
    assert [config.seed for config in found["track"]["ppo"]] == [0, 1, 2] and len({config.run for config in configs}) == len(configs)
    for first, joint in zip(found["track"]["end_to_end"], found["track"]["end_to_end_joint"], strict=True):
        assert joint.policy == str(tmp_path / first.run / "checkpoints" / "best")
    assert found["track"]["end_to_end"][0].freeze and not found["track"]["end_to_end_joint"][0].freeze


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["methods=[ppoo]"], "methods='ppoo' is not known; did you mean 'ppo'"),
        (["tasks=[]"], r"tasks must hold at least one value and none twice, got \[\]"),
        (["overrides=['env.action=skip']"], "^overrides: the command itself sets env.action=skip"),
        (["methods=[ppo]", "of_method={end_to_end: ['learning.epochs=3']}"], "^of_method must name methods that are run, got end_to_end;"),
        (["methods=[end_to_end_joint]"], "^methods must name end_to_end before end_to_end_joint, which starts from its policies, got"),
        (["classifier=small"], "^classifier must be a trained one, from which all methods start, got small with the task track;"),
        (["methods=[end_to_end]", "overrides=['env.grid=5']"], "^env.grid=5 has no effect"),
    ],
)
def test_a_wrong_study_is_refused_before_anything_runs(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        runs(tmp_path, *arguments)
