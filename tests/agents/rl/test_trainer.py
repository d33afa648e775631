"""Warnings about the selection of the policy, and trainings that diverge."""

import pytest
import torch
from tiny_algorithms import learn, metrics, settings

from agents.config.settings import PPOConfig
from agents.rl.model_state import State
from agents.rl.trainer import Best, _doubts
from classifiers.errors import InputError

FEW_STEPS = PPOConfig(total_steps=96, n_steps=8, batch_size=16, n_epochs=2, validate_every=1, save_every=1)
FEW = "{} cannot distinguish policies; set data.val to a larger share, or add videos"
FULL = "the validation split is saturated, {} right: it says little about which policy is best; use harder videos"


@pytest.mark.parametrize(
    ("top1", "count", "expected"),
    [
        (0.9, 30, []), (0.98, 500, []), (None, 30, []), (0.5, 29, [FEW.format("29 validation clips")]),
        (0.992, 500, [FULL.format("99.2%")]), (1.0, 1, [FEW.format("1 validation clip"), FULL.format("100.0%")]),
    ],
)  # fmt: skip
def test_a_choice_that_means_little_is_doubted(top1, count, expected):
    assert list(_doubts(Best(32, 0.5, 0.5, top1), count)) == expected


@pytest.mark.parametrize(("name", "loss"), [("ppo", "mse_loss"), ("a2c", "mse_loss"), ("dqn", "smooth_l1_loss")])
def test_a_loss_that_is_not_finite_is_named_and_leaves_the_last_good_checkpoint(name, loss, bank, tmp_path, monkeypatch):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    real, calls = getattr(torch.nn.functional, loss), ["count"]

    def counted(*arguments, **options):
        calls.append(arguments)
        return real(*arguments, **options) * (float("nan") if calls[0] == "poison" and len(calls) > number else 1)

    monkeypatch.setattr(torch.nn.functional, loss, counted)
    learn(whole, bank, settings(name), ppo=FEW_STEPS)
    number, calls = len(calls) // 2 + 1, ["poison"]
    advice = r"choose a lower learning rate or clip the gradient \(the last good checkpoint, .*checkpoints\)"
    with pytest.raises(InputError, match=f"the policy diverged: .* holds values that are not finite; {advice}"):
        learn(folder, bank, settings(name), ppo=FEW_STEPS)
    [state] = (folder / "checkpoints").glob(f"{name}-*.safetensors")
    assert all(tensor.isfinite().all() for tensor in State.read(state).tensors.values() if tensor.is_floating_point())
    calls = ["count"]  # the cause is gone
    learn(folder, bank, settings(name), ppo=FEW_STEPS)
    assert metrics(folder) == metrics(whole)
