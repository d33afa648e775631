"""The skipping study: its methods on policies with random weights, and the command with tiny networks."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import SETTINGS, patch_demo, tiny_networks

from agents import evaluate, train_ppo
from agents.config.command import compose_config
from agents.config.settings import Evaluate
from agents.evaluation.budgets import patch_mask_at
from agents.evaluation.evaluate import flops_of
from agents.evaluation.inference import infer, policy_flops
from agents.pipeline import evaluate_saved as measured_again
from agents.policies.networks import PolicyArchitecture, PolicyNetwork
from benchmarks import skipping_study
from benchmarks.skipping_methods import METHODS, PolicyOutputs, Problem, every_frame
from benchmarks.skipping_study import SkippingStudy
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


def problem_of(bank, policy, keep, skipped="zeros"):
    split = PolicyOutputs.of(bank, policy, skipped)
    return Problem(split, split, keep, flops_of(bank, skipped, policy_flops(policy)), seed=0)


@pytest.mark.parametrize("skipped", OPTIONS)
def test_all_methods_meet_the_budget(bank, policy, skipped):
    for keep in (0.5, 0.75):
        problem = problem_of(bank, policy, keep, skipped)
        spent = {}
        for name, method in METHODS.items():
            result = method(problem)
            assert result.scores.shape == (12, 10) and result.num_patches.max() <= 4 and result.num_steps.min() >= 1
            spent[name] = result.num_patches.mean() / 4, problem.flops.total(result.num_patches, result.num_steps).mean()
        for name in ("learned", "saliency"):
            assert spent[name][0] == keep
        for name in ("uniform", "random"):
            assert spent[name][0] == keep, "a whole number of frames"
        for name in ("exit", "greedy oracle", "learned + exit"):
            assert spent[name][0] <= keep + 0.15, name
        assert spent["exit at equal GFLOPs"][1] == pytest.approx(problem.flops.at(keep), rel=0.1)
        assert spent["exit"][1] < spent["uniform"][1], "a video that is stopped is not glanced at to its end"


@pytest.mark.parametrize("skipped", OPTIONS)
def test_costs_and_answers_are_those_of_inference(bank, policy, skipped):
    split = PolicyOutputs.of(bank, policy, skipped)
    threshold = float(np.quantile(split.skip[..., 0], 0.15))
    patch_mask = patch_mask_at(split.skip, threshold)
    frames = bank.classifier.normalise(torch.stack([bank.clips.frames(clip) for clip in range(12)]))
    found = infer(bank.classifier, policy, frames, skipped=skipped, keep_threshold=threshold)
    assert np.array_equal(found.patch_mask.numpy(), patch_mask) and patch_mask.any() and (patch_mask.sum(1) == 0).any()
    assert np.allclose(split.scores(patch_mask)[:, -1], found.logits[:, -1], atol=1e-4)
    flops = flops_of(bank, skipped, policy_flops(policy))
    assert flops.total(patch_mask.sum(1), np.full(12, 4)).tolist() == found.macs.tolist()
    assert every_frame(split).num_patches.tolist() == [4] * 12


def test_the_greedy_oracle_skips_more_for_a_higher_price(bank, policy):
    shares = [METHODS["greedy oracle"](problem_of(bank, policy, keep)).num_patches.sum() for keep in (0.25, 0.5, 1)]
    assert shares == sorted(shares) and shares[0] < shares[-1]


# The command


@pytest.fixture
def networks(monkeypatch):
    with tiny_networks():
        patch_demo(monkeypatch)
        yield


PLAIN = [each for each in SETTINGS if each.split("=")[0] not in ("data", "device", "ppo.total_steps", "network.width")]
FLAT = ["network.name=published", "network.channels=4", "network.features=8", "network.hidden=8"]  # soon says where to skip
OVERRIDES = [*PLAIN, *FLAT, "classifier=small", "ppo.total_steps=64", "env.grid=3"]


def study(folder, **settings):
    given = {"tasks": ["track"], "seeds": [0, 1], "keeps": [0.5, 0.75], "overrides": OVERRIDES, "run": str(folder), "device": "cpu"}
    skipping_study.main(SkippingStudy(**{**given, **settings}))


@pytest.mark.slow
def test_the_command_makes_a_table_and_a_plot_and_repeats_nothing(tmp_path, monkeypatch, networks):
    study(tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert "**demo, test split**" in table and "| 50% kept | 75% kept |" in table and all(f"| {name} |" in table for name in METHODS)
    table_json = json.loads((tmp_path / "table.json").read_text())["track"]
    assert [point["keep"] for point in table_json["learned"]] == [0.5, 0.75] and len(table_json["learned"][0]["top1"]) == 2
    results = [json.loads((tmp_path / f"track-{seed}" / "result.json").read_text()) for seed in (0, 1)]
    assert all(result["policies"]["learned"]["gflops"] <= table_json["every frame"][0]["gflops"][0] * 1.001 for result in results)
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.width > 500 and len(np.unique(np.asarray(picture.convert("L")))) > 20
    monkeypatch.setattr(train_ppo, "main", lambda config: pytest.fail("more than what is missing"))
    study(tmp_path, seeds=[1], keeps=[0.5])
    assert_evaluate_meets_budgets(tmp_path, table_json)
    with pytest.raises(pytest.fail.Exception):
        study(tmp_path, seeds=[2])


def assert_evaluate_meets_budgets(root, table_json):
    """Check that `agents.evaluate` solves the same thresholds, from a share or from GFLOPs."""
    least, most = (table_json[name][0]["gflops"][0] for name in ("learned", "every frame"))

    def evaluated(**settings):
        evaluate.main(Evaluate(run=str(root / "track-0"), device="cpu", out=str(root / "again"), **settings))
        return json.loads((root / "again" / "result.json").read_text())["policies"]["learned"]

    by_share, by_cost = evaluated(keep=0.75), evaluated(budget=most)
    point = table_json["learned"][1]
    assert (by_share["kept"], by_share["top1"]) == (point["kept"][0], point["top1"][0])
    assert by_share["gflops"] == pytest.approx(point["gflops"][0]) and least < by_share["gflops"] < most
    assert by_cost["kept"] == 1 and by_cost["gflops"] == pytest.approx(most)
    for settings, message in (
        ({"budget": 1.0}, r"budget must be from .* got 1\.0"),
        ({"keep": 0.5, "budget": 1.0}, r"budget=1\.0, keep=0\.5: set one of them"),
    ):
        with pytest.raises(InputError, match=message):
            evaluated(**settings)


def test_a_budget_needs_a_policy_that_skips_and_a_validation_part(policy):
    data = SimpleNamespace(val=())
    for player in (None, PolicyNetwork(policy.architecture, 7)):
        with pytest.raises(InputError, match=r"keep=0\.5 is for policies that skip frames; train one with ppo=skip"):
            measured_again.check_solvable(Evaluate(keep=0.5), data, player)
    for data.train, advice in (((), "there are no training videos to take it from"), (("a",), "set data.val to a share of the training")):
        with pytest.raises(InputError, match=rf"budget=19\.6 is solved on the validation split, which is empty: {advice}"):
            measured_again.check_solvable(Evaluate(budget=19.6), data, policy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tasks=[track,harder]"], r"tasks must be a list, each 'track' or .*, got 'harder'"),
        (["seeds=[]"], r"seeds must hold at least one value and none twice, got \[\]"),
        (["keeps=[0.5,0.5]"], r"keeps must hold at least one value and none twice, got \[0\.5, 0\.5\]"),
        (["overrides=['data.task=mover']"], r"^overrides: the command itself sets data\.task=mover in every run; leave it out"),
        (["overrides=['network.std=1']"], r"^network\.std=1 has no effect: env\.action=skip has cells"),
        (["keeps=[1.2]"], r"keeps must be a list, each a number above 0 and at most 1, got 1\.2"),
        (["keeps=[0.1]"], r"keeps must be at least 0\.125, got 0\.1; an exit needs one frame of every clip"),
    ],
)
def test_a_wrong_study_is_refused_before_anything_runs(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        skipping_study.check_runs(compose_config(SkippingStudy, "skipping_study", arguments, config_package="benchmarks.configs"), tmp_path)


def test_a_run_without_a_validation_split_has_no_budget(tmp_path):
    run = SimpleNamespace(root=tmp_path, config=lambda: {"data": {"val": 0.0}, "env": {}})
    with pytest.raises(InputError, match=r"has no validation split to solve budgets on: set data\.val"):
        skipping_study.measure(run, SkippingStudy(device="cpu"))
