"""The curve of all ways to skip: on policies of random weights, and as a command with the tiny networks."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TASK
from PIL import Image
from tiny_training import SETTINGS, tiny_networks

from adafocus_env.demo.videos import demo
from agents import evaluate, train_ppo
from agents.config.command import compose_config
from agents.config.settings import Evaluate, SkipCurve
from agents.evaluation.budgets import cost_of, patch_mask_at
from agents.evaluation.inference import infer
from agents.pipeline import builders
from agents.pipeline import evaluate_saved as measured_again
from agents.policies.networks import PolicyArchitecture, PolicyNetwork
from benchmarks import skipping_study as skip_curve
from benchmarks.skip_competitors import WAYS, Part, Task, every_frame
from classifiers.errors import InputError

OPTIONS = ("zeros", "last", "none")


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(3)
    policy = PolicyNetwork(PolicyArchitecture((16, 6, 6), channels=4, features=10, hidden=8), 7, skips=True).eval()
    with torch.no_grad():
        policy.actor.weight.mul_(20)
        policy.actor.bias[-1] = 3.9
    return policy


def task_of(bank, policy, keep, skipped="zeros"):
    part = Part.of(bank, policy, skipped)
    return Task(part, part, keep, cost_of(bank, policy, skipped), seed=0)


@pytest.mark.parametrize("skipped", OPTIONS)
def test_all_ways_keep_to_the_budget(bank, policy, skipped):
    for keep in (0.5, 0.75):
        task = task_of(bank, policy, keep, skipped)
        spent = {}
        for name, way in WAYS.items():
            answers = way(task)
            assert answers.scores.shape == (12, 10) and answers.num_patches.max() <= 4 and answers.seen.min() >= 1
            spent[name] = answers.num_patches.mean() / 4, task.cost.of(answers.num_patches, answers.seen).mean()
        for name in ("learned", "saliency"):
            assert spent[name][0] == keep
        for name in ("uniform", "random"):
            assert spent[name][0] == keep, "a whole number of frames"
        for name in ("exit", "greedy oracle", "learned + exit"):
            assert spent[name][0] <= keep + 0.15, name
        assert spent["exit at equal GFLOPs"][1] == pytest.approx(task.cost.at(keep), rel=0.1)
        assert spent["exit"][1] < spent["uniform"][1], "a video that is stopped is not glanced at to its end"


@pytest.mark.parametrize("skipped", OPTIONS)
def test_costs_and_answers_are_those_of_inference(bank, policy, skipped):
    part = Part.of(bank, policy, skipped)
    threshold = float(np.quantile(part.skip[..., 0], 0.15))
    patch_mask = patch_mask_at(part.skip, threshold)
    frames = bank.classifier.normalise(torch.stack([bank.clips.frames(clip) for clip in range(12)]))
    found = infer(bank.classifier, policy, frames, skipped=skipped, keep_threshold=threshold)
    assert np.array_equal(found.patch_mask.numpy(), patch_mask) and patch_mask.any() and (patch_mask.sum(1) == 0).any()
    assert np.allclose(part.scores(patch_mask)[:, -1], found.logits[:, -1], atol=1e-4)
    cost = cost_of(bank, policy, skipped)
    assert cost.of(patch_mask.sum(1), np.full(12, 4)).tolist() == found.macs.tolist()
    assert every_frame(part).num_patches.tolist() == [4] * 12


def test_the_greedy_oracle_skips_more_for_a_higher_price(bank, policy):
    shares = [WAYS["greedy oracle"](task_of(bank, policy, keep)).num_patches.sum() for keep in (0.25, 0.5, 1)]
    assert shares == sorted(shares) and shares[0] < shares[-1]


# The command


@pytest.fixture
def networks(monkeypatch):
    with tiny_networks():
        monkeypatch.setitem(builders.DATA_SETS, "demo", lambda config: demo(TASK, val=config.val))
        yield


PLAIN = [each for each in SETTINGS if each.split("=")[0] not in ("data", "device", "ppo.total_steps")]
OVERRIDES = [*PLAIN, "classifier=small", "ppo.total_steps=64", "env.grid=3"]


def curve(folder, **settings):
    given = {"tasks": ["normal"], "seeds": [0, 1], "keeps": [0.5, 0.75], "overrides": OVERRIDES, "run": str(folder), "device": "cpu"}
    skip_curve.main(SkipCurve(**{**given, **settings}))


@pytest.mark.slow
def test_the_command_makes_a_table_and_a_picture_and_repeats_nothing(tmp_path, monkeypatch, networks):
    curve(tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert "**demo, test split**" in table and "| 50% kept | 75% kept |" in table and all(f"| {name} |" in table for name in WAYS)
    told = json.loads((tmp_path / "table.json").read_text())["normal"]
    assert [point["keep"] for point in told["learned"]] == [0.5, 0.75] and len(told["learned"][0]["top1"]) == 2
    results = [json.loads((tmp_path / f"normal-{seed}" / "result.json").read_text()) for seed in (0, 1)]
    assert all(result["policies"]["learned"]["gflops"] <= told["every frame"][0]["gflops"][0] * 1.001 for result in results)
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.width > 500 and len(np.unique(np.asarray(picture.convert("L")))) > 20
    monkeypatch.setattr(train_ppo, "main", lambda config: pytest.fail("more than what is missing"))
    curve(tmp_path, seeds=[1], keeps=[0.5])
    assert_evaluate_meets_budgets(tmp_path, told)
    with pytest.raises(pytest.fail.Exception):
        curve(tmp_path, seeds=[2])


def assert_evaluate_meets_budgets(root, told):
    """`agents.evaluate` solves the same thresholds, from a share or from GFLOPs."""
    least, most = (told[name][0]["gflops"][0] for name in ("learned", "every frame"))

    def evaluated(**settings):
        evaluate.main(Evaluate(run=str(root / "normal-0"), device="cpu", out=str(root / "again"), **settings))
        return json.loads((root / "again" / "result.json").read_text())["policies"]["learned"]

    by_share, by_cost = evaluated(keep=0.75), evaluated(budget=most)
    point = told["learned"][1]
    assert (by_share["kept"], by_share["top1"]) == (point["kept"][0], point["top1"][0])
    assert by_share["gflops"] == pytest.approx(point["gflops"][0]) and least < by_share["gflops"] < most
    assert by_cost["kept"] == 1 and by_cost["gflops"] == pytest.approx(most)
    for settings, message in (
        ({"budget": 1.0}, r"budget=1\.0 GFLOPs a video cannot be met: glances alone cost"),
        ({"keep": 0.5, "budget": 1.0}, r"budget=1\.0, keep=0\.5: give one of them"),
        ({"keep": 1.5}, r"keep=1\.5 is no share of frames to keep"),
    ):
        with pytest.raises(InputError, match=message):
            evaluated(**settings)


def test_a_budget_needs_a_policy_that_skips_and_a_validation_part(policy):
    data = SimpleNamespace(val=())
    for player in (None, PolicyNetwork(policy.architecture, 7)):
        with pytest.raises(InputError, match=r"keep=0\.5 is for policies that skip frames; train one with ppo=skip"):
            measured_again.check_solvable(Evaluate(keep=0.5), data, player)
    for data.train, advice in (((), "there are no training videos to take it from"), (("a",), "set data.val to a share of the training")):
        with pytest.raises(InputError, match=rf"budget=19\.6 is solved on the validation part, which is empty: {advice}"):
            measured_again.check_solvable(Evaluate(budget=19.6), data, policy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tasks=[normal,harder]"], r"tasks='harder' is not known; did you mean 'hard'\?"),
        (["seeds=[]"], r"seeds=\[\]: give each once, and one at least"),
        (["keeps=[0.5,0.5]"], r"keeps=\[0\.5, 0\.5\]: give each once"),
        (["overrides=['data.task=hard']"], r"^overrides: the command itself sets data\.task=hard in every run; leave it out"),
        (["overrides=['network.std=1']"], r"^network\.std=1 has no effect: env\.action=skip has cells"),
        (["keeps=[1.2]"], r"keep=1\.2 is no share of frames to keep"),
        (["keeps=[0.1]"], r"keeps=0\.1 is less than one frame of a clip, .*; choose 0\.125 or more"),
    ],
)
def test_what_makes_no_curve_is_refused_before_anything_runs(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        skip_curve.check_runs(compose_config(SkipCurve, "skip_curve", arguments), tmp_path)


def test_a_run_without_a_validation_part_has_no_budget(tmp_path):
    run = SimpleNamespace(root=tmp_path, config=lambda: {"data": {"val": 0.0}, "env": {}})
    with pytest.raises(InputError, match=r"has no validation part to solve budgets on: set data\.val"):
        skip_curve.measure(run, SkipCurve(device="cpu"))
