"""Policies that skip frames: training, saving, thresholds, and inference in one pass over whole videos."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import FINE_GRID, random_classifier
from gymnasium import spaces
from rich.console import Console

from adafocus_env.action import ACTIONS, ContinuousAction, with_skipping
from adafocus_env.classify import SKIPPED
from adafocus_env.dynamics import Dynamics
from adafocus_env.features.live import LiveFeatures
from agents.config.settings import AlgoConfig, EnvConfig, NetworkConfig, PPOConfig, SupervisedConfig
from agents.evaluation.evaluate import evaluate, evaluate_policy, flops_of
from agents.evaluation.inference import infer, infer_clips, policy_flops
from agents.policies.baselines import LearnedPolicy
from agents.policies.contrib import SpatialSoftmaxPolicy
from agents.policies.networks import PolicyArchitecture, PolicyNetwork, load_policy, patch_mask_below, save_policy
from agents.policies.sb3 import load_network, parse_action_space, to_network
from agents.rl.environment import PIDLagrangian, check_targets, make_environment, pid_lagrangian
from agents.rl.settings import algorithm_settings, new_ppo
from agents.rl.trainer import train_policy
from agents.runs.progress import Display
from agents.runs.report import table
from agents.runs.run_dir import RunDir
from agents.supervised.stages import finetune
from classifiers.errors import InputError
from classifiers.optimize import PLAIN, with_execution

pytestmark = [pytest.mark.numerical, FINE_GRID]

NETWORK = PolicyArchitecture((16, 6, 6), channels=4, features=10, hidden=8)
CHOSEN = np.array([0, 5, 7, 11])
KINDS = {"skip": 7, "continuous_skip": None}


def skipping_policy(grid):
    """Return a policy with random weights, large enough for actions to differ between clips and steps, some of which skip."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        policy = PolicyNetwork(NETWORK, grid, skips=True).eval().requires_grad_(False)
    for parameter in policy.encoder.frame.parameters():
        parameter.mul_(10)
    policy.actor.weight.mul_(10)
    policy.actor.bias[-1] += 4 if grid else -2
    return policy


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def policy(kind):
    return skipping_policy(KINDS[kind])


@pytest.fixture
def features(kind, bank, classifier, clips):
    return bank if kind == "skip" else LiveFeatures(classifier, clips, ContinuousAction(96, 24))


@pytest.fixture(scope="module")
def frames(classifier, clips):
    return classifier.normalise(torch.stack([clips.frames(int(clip)) for clip in CHOSEN]))


@pytest.fixture
def maps(bank):
    return bank.glance_maps(np.arange(12)[:, None], np.arange(4)[None])


def ppo_on(features, kind, **env):
    config = EnvConfig(num_envs=4, action=kind, baseline=1, **env)
    model = new_ppo(make_environment(features, config), features, PPOConfig(n_steps=4, batch_size=8), NETWORK, 5)
    model.policy.features_extractor.bind(features)
    return model


# The network


@pytest.mark.parametrize(("name", "expected"), {"grid": (7, False), "skip": (7, True), "continuous": (None, False),
                                                "continuous_skip": (None, True)}.items())  # fmt: skip
def test_action_spaces_are_parsed(name, expected):
    assert parse_action_space(ACTIONS[name](7, 96, 24).space) == expected


def test_no_grid_is_taken_for_another_with_skipping():
    for grid in range(2, 60):
        assert parse_action_space(spaces.Discrete(grid**2)) == (grid, False)
        assert parse_action_space(spaces.Discrete(grid**2 + 1)) == (grid, True)


def test_locations_and_the_probability_to_skip_come_apart(policy, maps):
    locations, skip = policy.choose(maps)
    output = policy(maps)
    assert skip.shape == (12, 4, 4) and skip.dtype == torch.float32 and 0 < skip.min() < skip.max() < 1
    if policy.grid:
        best, cell = output[..., :49].max(-1)
        assert torch.equal(skip >= 0.5, output[..., 49] >= best) and torch.equal(locations[..., None].expand(-1, -1, 4), cell)
        chances = output.softmax(-1)
        assert torch.allclose(skip, chances[..., 49] / (chances[..., 49] + chances[..., :49].amax(-1)), atol=1e-5)
        return
    assert torch.equal(locations[:, :, None].expand(-1, -1, 4, -1), output[..., :2])
    sampled = torch.distributions.Normal(output[..., 2], policy.std).sample((4000,))
    assert torch.allclose((sampled >= 0.5).float().mean(0), skip, atol=0.04)


def test_the_output_for_skipping_depends_on_the_number_of_patches(policy, maps):
    states, actor = policy.encoder(maps), policy.actor
    output, last = actor.for_all_counts(states), torch.nn.functional.linear(states, actor.weight, actor.bias)[..., -3:]
    for num_patches in range(4):
        assert torch.allclose(output[:, :, num_patches], actor(torch.cat([states, torch.full((12, 4, 1), num_patches)], dim=-1)), atol=1e-5)
        expected = last[..., 2] + last[..., 0] * (num_patches > 0) + last[..., 1] * np.log(1 + num_patches)
        assert torch.allclose(output[:, :, num_patches, -1], expected, atol=1e-5)
    assert policy.choose(maps)[1].std(dim=2).min() > 0


def one_by_one(skip, threshold):
    """Compute the patch mask clip by clip and step by step."""
    patch_mask = torch.zeros(skip.shape[:2], dtype=torch.bool)
    for clip in range(len(skip)):
        for step in range(skip.shape[1]):
            patch_mask[clip, step] = skip[clip, step, int(patch_mask[clip].sum())] < threshold
    return patch_mask


def test_a_threshold_gives_the_patch_mask(policy, maps, kind):
    action, (locations, skip) = ACTIONS[kind](7, 96, 24), policy.choose(maps)
    half = float(skip.median())
    for threshold in (half, np.inf, -np.inf):
        expected = one_by_one(skip, threshold)
        assert torch.equal(patch_mask_below(skip, threshold), expected) and (threshold == half or bool(expected.all()) == (threshold > 0))
        acted = policy.act(maps, threshold).numpy()
        assert np.array_equal(action.patch_mask(acted), expected.numpy())
        assert np.array_equal(action.to_patch_action(acted)[expected.numpy()], locations.numpy()[expected.numpy()])
        assert action.check(acted.reshape(48, *action.space.shape), 48).dtype == action.space.dtype
    likely = policy.act(maps).numpy()
    assert 0 < action.patch_mask(likely).mean() < 1 and np.array_equal(action.patch_mask(likely), one_by_one(skip, 0.5).numpy())
    policy.keep_threshold = half
    assert np.array_equal(action.patch_mask(policy.act(maps).numpy()), one_by_one(skip, half).numpy())
    with pytest.raises(InputError, match=r"keep_threshold must be a probability to skip, such as 0\.5, got nan"):
        policy.act(maps, float("nan"))


def test_policies_that_cannot_skip_have_no_threshold(maps):
    policy = PolicyNetwork(NETWORK, 7)
    assert not policy.choose(maps)[1].any()
    with pytest.raises(InputError, match=r"keep_threshold=0\.5 is for policies that skip; train one with env\.action=skip"):
        policy.act(maps, 0.5)
    with pytest.raises(InputError, match="skips must be True or False, got 1; set it to whether the policy may skip frames"):
        PolicyNetwork(NETWORK, 7, skips=1)


def test_a_policy_that_skips_comes_back_as_it_was_saved(policy, maps, tmp_path):
    policy.keep_threshold = 0.3
    save_policy(policy, tmp_path, {})
    loaded = load_policy(tmp_path)
    assert loaded.skips and loaded.keep_threshold == 0.3 and loaded.grid == policy.grid and torch.equal(loaded.act(maps), policy.act(maps))
    card = json.loads((tmp_path / "policy.json").read_text())
    del card["network"]["skips"], card["network"]["keep_threshold"]
    (tmp_path / "policy.json").write_text(json.dumps(card))
    with pytest.raises(InputError, match=r"actor\.bias has shape"):
        load_policy(tmp_path)


# Learning


def test_half_of_the_steps_skip_at_first(features, kind, maps):
    model = ppo_on(features, kind)
    references = torch.tensor([[clip, step, num_patches] for clip in range(12) for step in range(4) for num_patches in range(step + 1)])
    sampled, action = model.policy(references)[0].detach().numpy(), ACTIONS[kind](7, 96, 24)
    assert 0.3 < action.patch_mask(sampled).mean() < 0.7


def test_what_ppo_predicts_is_what_the_policy_does(features, kind, policy, maps):
    model = ppo_on(features, kind)
    load_network(model.policy, policy)
    acted, action = to_network(model.policy).act(maps).numpy(), ACTIONS[kind](7, 96, 24)
    num_patches = np.zeros(12, np.int64)
    for step in range(4):
        predicted, _ = model.predict(np.stack([np.arange(12), np.full(12, step), num_patches], 1), deterministic=True)
        patch_mask = action.patch_mask(predicted)
        assert np.array_equal(patch_mask, action.patch_mask(acted[:, step]))
        assert np.allclose(action.to_patch_action(predicted[patch_mask]), action.to_patch_action(acted[patch_mask, step]), atol=1e-5)
        num_patches += patch_mask
    assert 0 < num_patches.mean() < 4
    model.learn(16)
    assert model.num_timesteps == 16


@pytest.mark.parametrize("skips", [True, False])
def test_a_policy_that_skips_and_one_that_cannot_are_not_mixed_up(bank, skips):
    model = ppo_on(bank, "grid" if skips else "skip")
    reason = "skips frames, the environment's cannot skip" if skips else "cannot skip, the environment's skips frames"
    with pytest.raises(InputError, match=f"the policy to start from {reason}; set env.action accordingly"):
        load_network(model.policy, PolicyNetwork(NETWORK, 7, skips=skips))


def test_a_policy_without_the_number_of_patches_is_refused(bank):
    env = make_environment(bank, EnvConfig(num_envs=4, action="skip"), "reference")
    model = new_ppo(env, bank, PPOConfig(n_steps=4, batch_size=8), NETWORK, 5)
    with pytest.raises(InputError, match="observation must be 'reference_looks'"):
        to_network(model.policy)


def test_a_spatial_softmax_policy_cannot_skip():
    space = spaces.Box(0, 100, (2,), np.int64)
    with pytest.raises(InputError, match=r"a SpatialSoftmaxPolicy .* cannot skip; set env\.action=grid or continuous"):
        SpatialSoftmaxPolicy(space, spaces.Discrete(50), map_shape=(16, 6, 6), patch_share=0.25)


# One pass


@pytest.mark.parametrize("skipped", SKIPPED)
def test_one_pass_equals_the_environment_step_by_step(classifier, clips, features, policy, frames, skipped):
    found = infer(classifier, policy, frames, skipped=skipped)
    assert 0 < found.patch_mask.float().mean() < 1
    dynamics = Dynamics(features, 4, reward="confidence", action=with_skipping(features.action), skipped=skipped)
    dynamics.restart(CHOSEN, np.zeros((4, 4, 0, *dynamics.action.space.shape)))
    player, spent = LearnedPolicy(policy, features), np.zeros(4, np.int64)
    for step in range(4):
        actions, _ = player.predict(np.stack([CHOSEN, np.full(4, step)], 1))
        outcome = dynamics.step(actions)
        assert np.allclose(actions, found.actions[:, step], atol=1e-6)
        assert outcome.boxes.tolist() == found.boxes[:, step].tolist()
        assert dynamics.action.patch_mask(actions).tolist() == found.patch_mask[:, step].tolist()
        assert torch.allclose(found.logits[:, step].softmax(-1), dynamics.scores, atol=1e-5)
        spent += outcome.multiply_adds
    assert found.macs.tolist() == (spent + 4 * policy_flops(policy)).tolist()


@pytest.mark.parametrize("skipped", SKIPPED)
def test_the_focuser_sees_the_selected_patches_of_all_videos_in_one_call(classifier, policy, frames, skipped):
    calls, plain = [], with_execution(classifier, PLAIN)
    infer(plain, policy, frames, skipped=skipped)  # whose costs are counted, which takes calls of copies
    handle = classifier.focuser.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    try:
        found = [infer(plain, policy, frames, skipped=skipped, keep_threshold=each) for each in (None, np.inf, -np.inf)]
    finally:
        handle.remove()
    assert calls == [int(found[0].patch_mask.sum()), 16] and calls[0] < 16  # and none where all is skipped
    nothing = classifier.classify(classifier.glance(frames.flatten(0, 1))[1].unflatten(0, (4, 4)), torch.zeros(4, 4, 32))[0]
    assert torch.allclose(found[2].logits[:, -1], nothing[:, -1], atol=1e-5)
    assert not found[2].boxes.any() and found[1].macs.tolist() == [int(found[1].macs[0])] * 4


def test_a_video_does_not_depend_on_those_beside_it(classifier, policy, frames):
    for skipped in SKIPPED:
        together, alone = infer(classifier, policy, frames, skipped=skipped), infer(classifier, policy, frames[2:3], skipped=skipped)
        assert torch.allclose(together.logits[2:3], alone.logits, atol=1e-5) and together.macs[2] == alone.macs[0]


def test_whole_stores_are_read_with_the_same_options(classifier, policy, clips, frames):
    (found,) = infer_clips(classifier, policy, clips, batch_size=12, skipped="last", keep_threshold=0.4)
    one = infer(classifier, policy, frames, skipped="last", keep_threshold=0.4)
    assert torch.equal(found.patch_mask[CHOSEN], one.patch_mask) and torch.allclose(found.logits[CHOSEN], one.logits, atol=1e-5)


def test_an_option_of_inference_that_is_none(classifier, policy, frames):
    with pytest.raises(InputError, match=r"skipped='lost' is not known; did you mean 'last'\?"):
        infer(classifier, policy, frames, skipped="lost")


# Evaluation


def test_a_policy_that_skips_is_measured_by_its_patch_mask(features, policy, classifier, clips):
    measures, plays = evaluate(features, policy, seed=0, skipped="none")
    every = infer(classifier, policy, classifier.normalise(torch.stack([clips.frames(clip) for clip in range(12)])), skipped="none")
    assert measures["learned"]["kept"] == pytest.approx(float(every.patch_mask.float().mean())) and measures["random"]["kept"] == 1
    assert measures["learned"]["gflops"] == pytest.approx(float(every.macs.double().mean()) / 1e9)
    right = every.logits[:, -1].argmax(-1).numpy() == clips.labels
    assert plays["learned"].correct.tolist() == right.tolist() and plays["learned"].patch_mask.tolist() == every.patch_mask.tolist()
    assert measures["learned"]["movement"] > 0 and measures["learned"]["location_entropy"] > 0
    assert "kept" in [column.header for column in table(measures, "").columns]
    assert "kept" not in [column.header for column in table({"random": measures["random"]}, "").columns]


# The cost weight


def test_the_controlled_cost_weight_settles_where_the_target_is_met():
    cost_weight, patch_mask, now = PIDLagrangian(0.47, 0.05, 0.0), 0.5, 0.0
    for _ in range(100):
        patch_mask += 0.3 * (0.95 / (1 + np.exp(20 * (now - 0.1))) - patch_mask)  # a policy that needs some updates to follow
        now = cost_weight.update(patch_mask)
    assert abs(patch_mask - 0.47) < 0.005 and now > 0
    assert PIDLagrangian(0.9, 0.05, 0.0).update(0.1) == 0  # λ is never negative


def test_gflops_are_a_share(bank):
    policy = PolicyNetwork(NETWORK, 7, skips=True)
    flops = flops_of(bank, "zeros", policy_flops(policy))
    least, most = flops.at(0) / 1e9, flops.at(1) / 1e9
    cost_weight = pid_lagrangian(EnvConfig(action="skip", target_gflops=least + 0.3 * (most - least)), bank, NETWORK)
    assert cost_weight.target == pytest.approx(0.3)
    assert most * 1e9 == pytest.approx(infer(bank.classifier, policy, torch.zeros(1, 4, 3, 96, 96), keep_threshold=np.inf).macs.item())
    assert least * 1e9 == pytest.approx(infer(bank.classifier, policy, torch.zeros(1, 4, 3, 96, 96), keep_threshold=-np.inf).macs.item())
    assert pid_lagrangian(EnvConfig(action="skip"), bank, NETWORK) is None
    with pytest.raises(InputError, match=r"env\.target_gflops=100\.0: budget must be from 0\.00\d+ .* to 0\.00\d+ "):
        pid_lagrangian(EnvConfig(action="skip", target_gflops=100), bank, NETWORK)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_keep": 0.4, "target_gflops": 1.0}, r"env\.target_keep=0\.4 and env\.target_gflops=1\.0 exclude each other; set one"),
        ({"target_keep": 0.4, "action": "grid"}, r"env\.target_keep=0\.4 needs actions that can skip: set env\.action=skip or"),
        ({"target_gflops": 0.4, "action": "grid"}, r"env\.target_gflops=0\.4 needs actions that can skip: set env\.action=skip or"),
    ],
)
def test_targets_that_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        check_targets(EnvConfig(**{"action": "skip", **changes}))


# Stage 3


@pytest.mark.parametrize("skipped", SKIPPED)
def test_stage_3_focuses_what_the_policy_selects(clips, kind, policy, maps, skipped):
    classifier, seen = random_classifier(), []
    classifier.focuser.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    before, config = classifier.fingerprint(), SupervisedConfig(epochs=4, batch_size=12, learning_rate=0.0, head_learning_rate=0.03)
    losses = [epoch["loss"] for epoch in finetune(classifier, policy, clips, config, seed=0, skipped=skipped)]
    assert classifier.fingerprint() != before and losses[-1] < losses[0]
    assert len(seen) == 4 and all(0 < count < 48 for count in seen)
    list(finetune(classifier, policy, clips, dataclasses.replace(config, epochs=1), seed=0, skipped=skipped, keep_threshold=np.inf))
    assert seen[-1] == 48


def test_stage_3_without_such_an_option(clips, policy):
    with pytest.raises(InputError, match="skipped='drop' is not known"):
        finetune(random_classifier(), policy, clips, SupervisedConfig(), seed=0, skipped="drop")


# Runs


SETTINGS = EnvConfig(num_envs=4, action="skip", skipped="last", target_keep=0.4, cost_weight_rate=0.1)
SIZES = NetworkConfig(channels=4, features=8, hidden=8)
DISPLAY = Display(Console(quiet=True))


def learn(folder, bank, env=SETTINGS):
    config = PPOConfig(total_steps=128, n_steps=8, batch_size=16, n_epochs=1, validate_every=1, save_every=1)
    with RunDir.open(folder, {}, force=False) as run:
        return train_policy(bank, bank, run, DISPLAY, algorithm_settings(bank, env, SIZES, config), env=env, seed=0)


def test_a_run_with_a_target_goes_on_as_if_it_had_not_been_stopped(tmp_path, bank, monkeypatch):
    policy, log = learn(tmp_path / "whole", bank), RunDir.log

    def logged(self, metrics):
        if metrics["update"] == 3:
            raise KeyboardInterrupt  # the last checkpoint is of the second update
        log(self, metrics)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunDir, "log", logged)
        learn(tmp_path / "cut", bank)
    learn(tmp_path / "cut", bank)
    lines = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == lines
    updates = list(map(json.loads, lines.splitlines()))
    cost_weight, patch_mask = PIDLagrangian(0.4, 0.1, 0.0), [line["kept"] for line in updates]
    assert [line["cost_weight"] for line in updates] == [
        0.0,
        *(cost_weight.update(share) for share in patch_mask[:-1]),
    ] and cost_weight.integral != 0
    assert [line["val_kept"] for line in updates] == pytest.approx([0.4] * 4, abs=0.02)  # by the threshold that is saved with the policy
    assert evaluate_policy(bank, policy, skipped="last").patch_mask.mean() == pytest.approx(0.4, abs=0.02) and policy.keep_threshold != 0.5


def test_with_a_cost_weight_the_best_policy_pays_for_its_patches(tmp_path, bank):
    learn(tmp_path, bank, dataclasses.replace(SETTINGS, target_keep=None, cost_weight=100.0))
    updates = RunDir(tmp_path).metrics()
    assert {line["cost_weight"] for line in updates} == {100.0}
    card = json.loads((tmp_path / "checkpoints" / "best" / "policy.json").read_text())
    assert card["metrics"]["val_kept"] == min(line["val_kept"] for line in updates)


def test_maskable_ppo_never_skips_a_whole_clip(tmp_path, bank, monkeypatch):
    pytest.importorskip("sb3_contrib")
    ended, step = [], Dynamics.step

    def watched(self, actions, rows=None):
        outcome = step(self, actions, rows)
        if outcome.terminated.all():
            ended.append(self.num_patches > 0)
        return outcome

    monkeypatch.setattr(Dynamics, "step", watched)
    settings = {"n_steps": 4, "batch_size": None, "n_epochs": 1, "policy_kwargs": {"net_arch": []}}
    algo = AlgoConfig("maskable_ppo", total_steps=160, settings=settings)
    with RunDir.open(tmp_path, {}, force=False) as run:
        env = EnvConfig(num_envs=4, action="skip", grid=7, cost_weight=100.0)
        train_policy(bank, None, run, DISPLAY, algorithm_settings(bank, env, SIZES, PPOConfig(), algo), env=env, seed=0)
    assert len(ended) == 10 and np.stack(ended).all()


def test_a_target_is_for_ppo(bank):
    with pytest.raises(InputError, match=r"env\.target_keep=0\.4 is for PPO only; set env\.cost_weight with algo=a2c"):
        algorithm_settings(bank, SETTINGS, SIZES, PPOConfig(), AlgoConfig("a2c"))
