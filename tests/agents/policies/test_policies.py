import dataclasses
import json
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file, save_file
from stable_baselines3 import PPO

from adafocus_env.action import ContinuousAction
from adafocus_env.features.memory_bank import MemoryBank
from agents.config.settings import EnvConfig, NetworkConfig, PPOConfig
from agents.policies.networks import CARD, WEIGHTS, PolicyArchitecture, PolicyNetwork, load_policy, save_policy
from agents.policies.sb3 import PatchActorCriticPolicy, load_network, to_network, update_running_stats
from agents.rl.environment import make_environment
from agents.rl.saved_model import load_training_state, save_training_state
from agents.rl.settings import check_ppo, new_ppo, total_steps
from classifiers.errors import InputError

pytestmark = pytest.mark.numerical

NETWORK = PolicyArchitecture((16, 6, 6), channels=4, features=10, hidden=8)
WITH_NORM = PolicyArchitecture((16, 6, 6), channels=4, features=10, hidden=8, batch_norm=True)
REFERENCES = torch.tensor([[3, 0], [7, 1], [3, 2], [3, 3], [0, 0], [7, 1], [11, 3]])  # clips and steps in any order, some twice


def tiny_ppo(bank, seed=5):
    config = PPOConfig(n_steps=4, batch_size=8)
    return new_ppo(make_environment(bank, EnvConfig(num_envs=4)), bank, config, NETWORK, seed)


@pytest.fixture
def ppo(bank):
    model = tiny_ppo(bank)
    model.policy.features_extractor.bind(bank)
    return model


def continuous_ppo(locations, network=NETWORK, *, seed=5, std=0.25, **changes):
    """Return a PPO model on continuous locations with four environments, bound to the features."""
    config = PPOConfig(**{"n_steps": 4, "batch_size": 8, **changes})
    env = make_environment(locations, EnvConfig(num_envs=4, action="continuous", baseline=1))
    model = new_ppo(env, locations, config, network, seed, std)
    model.policy.features_extractor.bind(locations)
    return model


def after_every_update(model, look):
    """Return a list to which the result of ``look`` is appended after every update."""
    found, train = [], model.train
    model.train = lambda: (train(), found.append(look()))
    return found


def statistics(model):
    """Return copies of the running statistics of a model's policy, with the count of batches last."""
    return [tensor.clone() for tensor in model.policy.features_extractor.encoder.buffers()]


@pytest.fixture(scope="module")
def locations(classifier, clips):
    """Return features of the clips of ``bank`` for continuous locations."""
    return MemoryBank(classifier, clips, ContinuousAction(96, 24))


@pytest.fixture
def policy():
    torch.manual_seed(0)
    return PolicyNetwork(NETWORK, 7).eval().requires_grad_(False)


@pytest.fixture
def maps(bank):
    """Return the glance maps of all clips (12, 4, 16, 6, 6)."""
    return bank.glance_maps(np.arange(12)[:, None], np.arange(4)[None])


def hidden_by_hand(extractor, maps):
    """Return the expected output of the extractor: its GRU run over each clip separately, read at the given steps."""
    with torch.no_grad():
        return torch.stack([extractor.encoder(maps[clip][None])[0, step] for clip, step in REFERENCES])


# By reference


@pytest.mark.parametrize("grad", [True, False])
def test_references_give_the_hidden_states_of_the_clips_glances(ppo, maps, grad):
    extractor = ppo.policy.features_extractor
    with torch.set_grad_enabled(grad):
        hidden = extractor(REFERENCES.float())  # as Stable-Baselines3 hands them over
    assert hidden.shape == (7, 8) and hidden.requires_grad is grad
    assert torch.allclose(hidden, hidden_by_hand(extractor, maps), atol=1e-6)
    assert torch.equal(hidden[1], hidden[5])


def test_the_policy_in_stable_baselines3_equals_the_one_on_maps(ppo, maps):
    ours = to_network(ppo.policy)
    clip, step = REFERENCES.T
    logits = torch.log_softmax(ours(maps)[clip, step], -1)
    with torch.no_grad():
        theirs = ppo.policy.get_distribution(REFERENCES).distribution.logits
        values = ppo.policy.predict_values(REFERENCES)
    assert torch.allclose(theirs, logits, atol=1e-6)
    assert torch.allclose(values, ours.critic(ours.encoder(maps))[clip, step], atol=1e-6)
    actions, _ = ppo.predict(REFERENCES.numpy(), deterministic=True)
    assert actions.tolist() == ours.act(maps)[clip, step].tolist()


def test_a_step_of_the_recurrence_depends_on_earlier_glances_only(policy, maps):
    changed = maps.clone()
    changed[:, 2] += 1
    before, after = policy(maps), policy(changed)
    assert torch.equal(before[:, :2], after[:, :2])
    assert (before[:, 2:] != after[:, 2:]).any(-1).all()


def test_without_memory_a_step_depends_on_its_own_glance_only(maps, tmp_path):
    policy = PolicyNetwork(dataclasses.replace(NETWORK, memory=False), 7).eval().requires_grad_(False)
    changed = maps.clone()
    changed[:, 2] += 1
    before, after = policy(maps), policy(changed)
    assert torch.equal(before[:, [0, 1, 3]], after[:, [0, 1, 3]]) and (before[:, 2] != after[:, 2]).any(-1).all()
    assert torch.allclose(before[:, :1], policy(maps[:, :1])) and torch.allclose(before[:, 3:], policy(maps[:, 3:]), atol=1e-6)
    save_policy(policy, tmp_path, {})
    assert torch.equal(load_policy(tmp_path)(maps), before)


def test_in_the_steps_of_a_rollout_the_gru_runs_once(ppo):
    extractor, calls = ppo.policy.features_extractor, []
    extractor.encoder.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    clips = torch.tensor([4, 2, 4])
    with torch.no_grad():
        for step in range(4):
            extractor(torch.stack([clips, torch.full((3,), step)], 1))
        assert calls == [2]  # clip 4 is in two rows
        extractor(torch.tensor([[4, 0], [5, 0]]))
    assert calls == [2, 2]


UPDATES = {
    "adam": lambda p: torch.optim.Adam(p, 0.1, foreach=False),
    "adam, all at once": lambda p: torch.optim.Adam(p, 0.1, foreach=True),
    "adam, fused": lambda p: torch.optim.Adam(p, 0.1, fused=True),
    "sgd, all at once": lambda p: torch.optim.SGD(p, 0.1, foreach=True),
}


@pytest.mark.parametrize("make", UPDATES.values(), ids=UPDATES)
def test_cached_outputs_are_dropped_after_an_update_of_the_weights(ppo, maps, make):
    extractor = ppo.policy.features_extractor
    optimizer = make(extractor.parameters())
    with torch.no_grad():
        before = extractor(REFERENCES)
    extractor(REFERENCES).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        after = extractor(REFERENCES)
    assert not torch.allclose(before, after, atol=1e-4)
    assert torch.allclose(after, hidden_by_hand(extractor, maps), atol=1e-6)


def test_cached_outputs_are_dropped_with_loaded_weights(ppo, bank, maps):
    extractor = ppo.policy.features_extractor
    with torch.no_grad():
        before = extractor(REFERENCES)
        ppo.policy.load_state_dict(tiny_ppo(bank, seed=6).policy.state_dict())
        after = extractor(REFERENCES)
    assert not torch.allclose(before, after, atol=1e-4)
    assert torch.allclose(after, hidden_by_hand(extractor, maps), atol=1e-6)


def test_cached_outputs_are_not_used_in_an_update(ppo):
    extractor = ppo.policy.features_extractor
    with torch.no_grad():
        extractor(REFERENCES)
    extractor(REFERENCES).sum().backward()
    assert all(parameter.grad is not None for parameter in extractor.parameters())


def test_gradients_are_those_of_the_network_on_maps(ppo, maps):
    extractor = ppo.policy.features_extractor
    parameters = list(extractor.parameters())
    ours = torch.autograd.grad(extractor(REFERENCES).square().sum(), parameters)
    clip, step = REFERENCES.T
    direct = torch.autograd.grad(extractor.encoder(maps)[clip, step].square().sum(), parameters)
    for mine, wanted in zip(ours, direct, strict=True):
        assert wanted.abs().max() > 0
        assert torch.allclose(mine, wanted, atol=1e-5)


def test_an_extractor_without_glances_says_so(bank):
    with pytest.raises(RuntimeError, match=r"has no glances to read: call bind\(features\) first"):
        tiny_ppo(bank).predict(np.zeros((3, 2), np.int64))


# Weights in and out


def test_weights_go_from_one_policy_to_the_other_and_back(ppo, bank, maps):
    ours = to_network(ppo.policy)
    assert not ours.training and not any(parameter.requires_grad for parameter in ours.parameters())
    other = tiny_ppo(bank, seed=6)
    assert not torch.equal(to_network(other.policy)(maps), ours(maps))
    load_network(other.policy, ours)
    assert torch.equal(to_network(other.policy)(maps), ours(maps))
    with torch.no_grad():
        ppo.policy.action_net.weight.zero_()
    assert ours.actor.weight.abs().min() > 0  # a copy


FRESH_PROCESS = """
import json, sys
import torch
from stable_baselines3 import PPO
from agents import load_policy
from agents.policies.sb3 import to_network

zipped, folder, maps = sys.argv[1:]
maps = torch.load(maps, weights_only=True)
model = PPO.load(zipped, device="cpu")
policies = [load_policy(folder), to_network(model.policy)]
print(json.dumps([model.policy.features_extractor.source is None, *(policy.act(maps).tolist() for policy in policies)]))
"""


@pytest.mark.slow
def test_saved_policies_need_no_glance_source_and_run_on_maps_of_any_video_in_a_fresh_process(ppo, bank, tmp_path):
    ppo.save(tmp_path / "ppo.zip")
    held = sum(tensor.numel() for tensor in bank.glance_maps(np.arange(12)[:, None], np.arange(4)[None])) * 4
    assert (tmp_path / "ppo.zip").stat().st_size < 90_000 < held
    policy = to_network(ppo.policy)
    save_policy(policy, tmp_path / "policy", {"classifier": "0" * 64})
    assert sorted(path.name for path in (tmp_path / "policy").iterdir()) == [CARD, WEIGHTS]
    maps = 6 * torch.rand(2, 5, 16, 6, 6, generator=torch.Generator().manual_seed(0))  # five frames: no clip of the store
    torch.save(maps, tmp_path / "maps.pt")
    paths = [str(tmp_path / name) for name in ("ppo.zip", "policy", "maps.pt")]
    result = subprocess.run([sys.executable, "-c", FRESH_PROCESS, *paths], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == [True, policy.act(maps).tolist(), policy.act(maps).tolist()]


@pytest.fixture
def saved(policy, tmp_path):
    save_policy(policy, tmp_path / "policy", {"steps": 7})
    return tmp_path / "policy"


def test_a_policy_comes_back_as_it_was_saved(saved, policy, maps):
    loaded = load_policy(saved)
    assert (loaded.architecture, loaded.grid) == (NETWORK, 7)
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(loaded(maps), policy(maps))
    assert json.loads((saved / CARD).read_text()) == {
        "network": {
            "kind": "published", "map_shape": [16, 6, 6], "channels": 4, "features": 10, "hidden": 8, "batch_norm": False, "memory": True,
            "grid": 7, "std": 0.25,
        },
        "steps": 7,
    }  # fmt: skip


def test_cards_that_know_neither_batch_norm_nor_std_still_load(saved, policy, maps):
    (saved / CARD).write_text(json.dumps({"network": SIZES}))
    loaded = load_policy(saved)
    assert (loaded.architecture, loaded.grid, loaded.std) == (NETWORK, 7, 0.25)
    assert torch.equal(loaded(maps), policy(maps))


def test_a_continuous_policy_with_batch_norm_comes_back_as_it_was_saved(maps, tmp_path):
    torch.manual_seed(0)
    policy = PolicyNetwork(PolicyArchitecture((16, 6, 6), channels=4, features=10, hidden=8, batch_norm=True), None, 0.5)
    policy(maps)  # in training mode: the running statistics move
    policy.eval().requires_grad_(False)
    save_policy(policy, tmp_path, {})
    loaded = load_policy(tmp_path)
    assert (loaded.architecture, loaded.grid, loaded.std) == (policy.architecture, None, 0.5)
    assert loaded.encoder.frame[1].running_mean.abs().min() > 0
    assert torch.equal(loaded.act(maps), policy.act(maps))


def test_a_continuous_policy_acts_by_the_locations_of_its_forward_pass(maps):
    policy = PolicyNetwork(NETWORK, None)
    locations = policy.act(maps)
    assert locations.shape == (12, 4, 2) and locations.dtype == torch.float32
    assert torch.equal(locations, policy(maps)) and locations.min() >= 0 and locations.max() <= 1
    with torch.no_grad():
        policy.actor.weight.zero_()
        policy.actor.bias.copy_(torch.tensor([50.0, -50.0]))
    assert policy.act(maps)[0, 0].tolist() == pytest.approx([1, 0])


@pytest.mark.parametrize("std", [0, -0.25, float("nan"), float("inf"), "0.25", True])
def test_standard_deviations_that_are_none(std):
    with pytest.raises(InputError, match=r"std must be a positive number, such as the paper's 0\.25, got "):
        PolicyNetwork(NETWORK, None, std)


@pytest.mark.parametrize("grid", [0, -1, 2.5, "7", True])
def test_grids_that_are_none(grid):
    with pytest.raises(InputError, match=r"grid must be a positive whole number of cells, or None for a continuous policy, got "):
        PolicyNetwork(NETWORK, grid)


def test_a_policy_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=rf"policy={tmp_path / 'none'} holds no policy\.json"):
        load_policy(tmp_path / "none")


@pytest.mark.parametrize("keep", [0, 8, 500, -1])
def test_truncated_weights_of_a_policy_are_refused(saved, keep):
    (saved / WEIGHTS).write_bytes((saved / WEIGHTS).read_bytes()[:keep])
    with pytest.raises(InputError, match=r"policy\.safetensors is not a readable safetensors file \(.+\); train or copy"):
        load_policy(saved)


def test_a_flipped_bit_in_a_policy_is_named_or_changes_nothing(saved):
    data, before = (saved / WEIGHTS).read_bytes(), load_policy(saved).state_dict()
    refused = 0
    for position in np.random.default_rng(0).integers(len(data) * 8, size=60).tolist():
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        (saved / WEIGHTS).write_bytes(flipped)
        try:
            after = load_policy(saved).state_dict()
            assert all(torch.equal(after[name], before[name]) for name in before)
        except InputError as problem:
            assert "policy.safetensors" in str(problem)
            refused += 1
    assert refused > 50


def test_policies_of_earlier_versions_have_no_checksum_and_are_read(saved):
    before = load_policy(saved).state_dict()
    save_file(load_file(saved / WEIGHTS), saved / WEIGHTS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_policy(saved).state_dict().items())


def test_missing_weights_of_a_policy_are_refused(saved):
    (saved / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"policy\.safetensors is not a readable safetensors file"):
        load_policy(saved)


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a pickle was run",)


def test_a_pickle_or_a_zip_in_place_of_a_policy_is_refused_and_never_run(saved, ppo, tmp_path):
    (tmp_path / "policy.pkl").write_bytes(pickle.dumps(Trap()))
    ppo.save(tmp_path / "ppo.zip")
    for name in ("policy.pkl", "ppo.zip"):
        with pytest.raises(InputError, match=rf"{name} is a file; a checkpoint is a folder with policy\.json .*\(pickles are not read\)"):
            load_policy(tmp_path / name)
        (saved / WEIGHTS).write_bytes((tmp_path / name).read_bytes())
        with pytest.raises(InputError, match=r"policy\.safetensors is not a readable safetensors file"):
            load_policy(saved)


SIZES = {"map_shape": [16, 6, 6], "channels": 4, "features": 10, "hidden": 8, "grid": 7}


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"network": {**SIZES, "hidden": 9}}, r"actor\.weight has shape \(49, 8\) instead of \(49, 9\)"),
        ({"network": {**SIZES, "grid": 5}}, r"actor\.bias has shape \(49,\) instead of \(25,\)"),
        ({"network": {**SIZES, "map_shape": [16, 6]}}, r"policy\.json: network=.* does not describe a policy"),
        ({"network": {**SIZES, "features": -1}}, r"policy\.json: network=.* does not describe a policy"),
        ({"network": {**SIZES, "grid": None}}, r"actor\.bias has shape \(49,\) instead of \(2,\)"),
        ({"network": {**SIZES, "std": 0}}, r"policy\.json: network=.* does not describe a policy \(std must be a positive number"),
        ({"network": {**SIZES, "batch_norm": True}}, r"missing.*encoder\.frame\.1\.bias"),
        ({"network": {**SIZES, "depth": 2}}, r"policy\.json: network=.* does not describe a policy .*'depth'"),
        ({"network": {"grid": 7}}, r"policy\.json: network=.* does not describe a policy .*'map_shape'"),
        ({}, r"policy\.json: network=None does not describe a policy"),
    ],
)
def test_cards_that_do_not_fit_the_weights_of_a_policy(saved, card, message):
    (saved / CARD).write_text(json.dumps(card))
    with pytest.raises(InputError, match=message):
        load_policy(saved)


def test_a_policy_of_other_sizes_is_not_written_into_stable_baselines3(ppo):
    other = PolicyNetwork(PolicyArchitecture((16, 6, 6), channels=4, features=10, hidden=9), 7)
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_network(ppo.policy, other)


@pytest.mark.parametrize("grid", [5, None])
def test_a_policy_for_other_actions_is_not_written_into_stable_baselines3(ppo, grid):
    with pytest.raises(InputError, match=rf"start from has grid={grid}, the environment grid=7 \(None: continuous locations\)"):
        load_network(ppo.policy, PolicyNetwork(NETWORK, grid))


def test_a_policy_for_a_grid_is_not_written_into_a_continuous_one(locations):
    with pytest.raises(InputError, match=r"start from has grid=7, the environment grid=None \(None: continuous locations\)"):
        load_network(continuous_ppo(locations).policy, PolicyNetwork(NETWORK, 7))


@pytest.mark.parametrize(
    "space",
    [spaces.Discrete(51), spaces.Discrete(49, start=1), spaces.Box(-1, 1, (2,)), spaces.Box(0, 1, (4,)), spaces.MultiDiscrete([7, 7])],
)
def test_action_spaces_that_are_no_environments(bank, space):
    observations = make_environment(bank, EnvConfig(num_envs=1)).observation_space
    with pytest.raises(InputError, match=r"the action space must be Discrete\(G²\), the cells of a grid, or Box.*; got (Disc|Box|Multi)"):
        PatchActorCriticPolicy(observations, space, lambda _: 1e-3)


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan")])
def test_a_standard_deviation_that_is_not_positive_is_refused_in_a_command_too(locations, std):
    with pytest.raises(InputError, match=rf"std must be a positive number, .* got {std}"):
        continuous_ppo(locations, std=std)


# Continuous locations, in Stable-Baselines3


def test_locations_are_sampled_around_the_sigmoid_with_a_fixed_deviation(locations, maps):
    model = continuous_ppo(locations, std=0.4)
    ours, (clip, step) = to_network(model.policy), REFERENCES.T
    assert (ours.grid, ours.std) == (None, 0.4)
    with torch.no_grad():
        normal = model.policy.get_distribution(REFERENCES).distribution
    assert torch.allclose(normal.mean, ours(maps)[clip, step], atol=1e-6)
    assert torch.allclose(normal.stddev, torch.tensor(0.4))
    chosen, _ = model.predict(REFERENCES.numpy(), deterministic=True)
    assert np.allclose(chosen, ours.act(maps)[clip, step], atol=1e-6)


def test_log_probabilities_are_those_of_the_sampled_locations_and_only_the_environment_sees_them_clipped(locations):
    model = continuous_ppo(locations, std=2.0)
    sent, send = [], model.env.step_async
    model.env.step_async = lambda actions: (sent.append(actions), send(actions))
    model.learn(16)
    buffer = model.rollout_buffer
    sampled = torch.from_numpy(buffer.actions).reshape(-1, 2)  # flattened by the update, clip by clip
    assert sampled.min() < 0 and sampled.max() > 1
    assert np.stack(sent).min() == 0 and np.stack(sent).max() == 1
    stored, by_hand = torch.from_numpy(buffer.log_probs).ravel(), continuous_ppo(locations, std=2.0)
    _, log_probs, entropy = by_hand.policy.evaluate_actions(torch.from_numpy(buffer.observations), sampled)
    assert torch.allclose(stored, log_probs, atol=1e-5)
    assert entropy.tolist() == pytest.approx([2 * (0.5 * np.log(2 * np.pi * np.e) + np.log(2))] * 16)


def test_the_deviation_is_not_learned(locations):
    model = continuous_ppo(locations)
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    model.learn(32)
    same = [name for name, tensor in model.policy.state_dict().items() if torch.equal(tensor, before[name])]
    assert same == ["log_std"]


def test_a_continuous_ppo_comes_back_from_its_file(locations, maps, tmp_path):
    model = continuous_ppo(locations, std=0.4)
    model.learn(16)
    model.save(tmp_path / "ppo.zip")
    model.policy.save(tmp_path / "policy.pth")
    for loaded in (PPO.load(tmp_path / "ppo.zip").policy, PatchActorCriticPolicy.load(tmp_path / "policy.pth")):
        assert loaded.std == 0.4 and not loaded.log_std.requires_grad
        assert torch.equal(to_network(loaded)(maps), to_network(model.policy)(maps))


# Batch norm


@pytest.mark.parametrize("batch", [False, True])
def test_the_first_ratio_of_an_update_is_one(locations, batch):
    model = continuous_ppo(locations, WITH_NORM, n_steps=None, batch_size=None, n_epochs=1, batch_statistics=batch, ortho_init=False)
    seen = after_every_update(model, lambda: [model.logger.name_to_value[f"train/{key}"] for key in ("approx_kl", "clip_fraction")])
    model.learn(5 * 16)
    assert np.allclose(seen, 0, atol=1e-7) and len(seen) == 5


@pytest.mark.parametrize("batch", [False, True])
def test_a_rollout_is_played_with_the_statistics_that_the_update_uses(locations, batch):
    model = continuous_ppo(locations, WITH_NORM, n_steps=None, batch_size=None, n_epochs=1, batch_statistics=batch)
    model.learn(16)
    extractor = model.policy.features_extractor
    with torch.no_grad():
        model.policy.set_training_mode(False)
        with extractor.rollout_mode():
            played = extractor(REFERENCES)
        evaluated = extractor(REFERENCES)
    model.policy.set_training_mode(True)
    assert torch.allclose(played, extractor(REFERENCES), atol=1e-6)
    assert torch.allclose(played, evaluated, atol=1e-3) is not batch


def test_running_statistics_take_in_the_clips_to_be_played_once_after_every_update(locations):
    model = continuous_ppo(locations, WITH_NORM, n_steps=8, batch_size=16, n_epochs=2)
    taken = after_every_update(model, lambda: statistics(model))
    model.learn(3 * 32)
    assert [int(each[-1]) for each in taken] == [1, 2, 3]
    model.predict(REFERENCES.numpy())
    model.policy.set_training_mode(True)
    model.policy.evaluate_actions(REFERENCES, torch.full((len(REFERENCES), 2), 0.5))
    assert all(torch.equal(a, b) for a, b in zip(statistics(model), taken[-1], strict=True))


def test_a_first_rollout_is_normalised_by_its_own_statistics(locations):
    model = continuous_ppo(locations, WITH_NORM, n_steps=4, batch_size=16, learning_rate=1e-9)
    model.learn(16)
    clips = np.unique(model.rollout_buffer.observations[..., 0].astype(int))
    encoder = model.policy.features_extractor.encoder
    inputs = encoder.frame[0](locations.glance_maps(clips[:, None], np.arange(4)[None]).flatten(0, 1))
    assert torch.allclose(encoder.frame[1].running_mean, inputs.mean((0, 2, 3)), atol=1e-5)


def test_with_batch_statistics_only_what_is_learned_from_moves_the_running_ones(locations):
    model = continuous_ppo(locations, WITH_NORM, n_steps=None, batch_size=None, n_epochs=1, batch_statistics=True)
    counts = after_every_update(model, lambda: int(statistics(model)[-1]))
    model.learn(3 * 16)
    model.predict(REFERENCES.numpy())
    assert counts == [1, 2, 3] and int(statistics(model)[-1]) == 3


def test_statistics_travel_with_the_weights(locations, maps):
    model = continuous_ppo(locations, WITH_NORM)
    model.learn(16)
    ours, other = to_network(model.policy), continuous_ppo(locations, WITH_NORM, seed=6)
    load_network(other.policy, ours)
    for ours_now, theirs in zip(statistics(model), statistics(other), strict=True):
        assert torch.equal(ours_now, theirs)
    chosen, _ = model.predict(REFERENCES.numpy(), deterministic=True)
    clip, step = REFERENCES.T
    assert np.allclose(chosen, ours.act(maps)[clip, step], atol=1e-6)


@pytest.mark.parametrize("batch", [False, True])
def test_a_stopped_ppo_with_batch_norm_goes_on_as_if_it_had_not_been(locations, maps, tmp_path, batch):
    settings = {"n_steps": None, "batch_size": None, "batch_statistics": batch}
    stopped = continuous_ppo(locations, WITH_NORM, **settings)
    stopped.learn(16)
    save_training_state(stopped, tmp_path, {})
    resumed = continuous_ppo(locations, WITH_NORM, **settings)
    assert load_training_state(resumed, tmp_path) == {}
    resumed.learn(32, reset_num_timesteps=False)
    through = continuous_ppo(locations, WITH_NORM, **settings)
    through.learn(48)
    assert torch.equal(to_network(resumed.policy)(maps), to_network(through.policy)(maps))


def test_the_mean_over_the_first_batches_then_over_the_last():
    norm, generator = torch.nn.BatchNorm1d(3), torch.Generator().manual_seed(0)
    batches = [5 + torch.randn(20, 3, generator=generator) for _ in range(12)]
    for batch in batches[:10]:
        update_running_stats(norm, batch)
    assert torch.allclose(norm.running_mean, torch.stack(batches[:10]).mean((0, 1)), atol=1e-5)
    assert torch.allclose(norm.running_var, torch.stack([batch.var(0) for batch in batches[:10]]).mean(0), atol=1e-5)
    before = norm.running_mean.clone()
    update_running_stats(norm, batches[10])
    assert torch.allclose(norm.running_mean, 0.9 * before + 0.1 * batches[10].mean(0), atol=1e-6)
    assert norm.training and norm.momentum == 0.1


# The settings of PPO


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_steps": 6}, r"ppo\.n_steps must be a multiple of the 4 steps of an episode, got 6"),
        ({"batch_size": 10}, r"ppo\.batch_size must be a multiple of the 4 steps of an episode, got 10"),
        ({"n_steps": 4, "batch_size": 6}, r"ppo\.batch_size must be a multiple of the 4 steps of an episode, got 6"),
        ({"normalize_returns": True}, r"ppo\.gae_lambda must be 1 with ppo\.normalize_returns=true, got 0\.95"),
        ({"batch_statistics": True}, r"ppo\.batch_statistics=true is for policies with batch norm; set network\.batch_norm=true"),
    ],
)
def test_settings_of_ppo_that_exclude_each_other(change, message):
    with pytest.raises(InputError, match=message):
        check_ppo(PPOConfig(**{"n_steps": 8, "batch_size": 8, **change}), EnvConfig(num_envs=4), 4, NETWORK)


@pytest.mark.parametrize("n_steps", [1, None])
def test_an_update_of_a_single_step_is_refused(n_steps):
    with pytest.raises(InputError, match=r"ppo\.n_steps=1 with env\.num_envs=1 is an update of a single step"):
        check_ppo(PPOConfig(n_steps=n_steps, batch_size=2), EnvConfig(num_envs=1), 1, NetworkConfig())


@pytest.mark.parametrize("change", [{"n_steps": 8}, {"batch_size": 8}])
def test_statistics_of_a_batch_need_rollout_and_batch_to_be_the_same_clips(change):
    config = PPOConfig(**{"n_steps": None, "batch_size": None, "batch_statistics": True, **change})
    with pytest.raises(InputError, match=r"minibatches of a whole rollout: set ppo\.n_steps=null and ppo\.batch_size=null"):
        check_ppo(config, EnvConfig(num_envs=4), 4, NetworkConfig(batch_norm=True))


def test_batch_norm_needs_several_glances(bank):
    with pytest.raises(InputError, match=r"env\.num_envs must be 3 or more with network\.batch_norm=true and one decision per clip, got 2"):
        check_ppo(PPOConfig(), EnvConfig(num_envs=2), 1, NetworkConfig(batch_norm=True))
    check_ppo(PPOConfig(), EnvConfig(num_envs=2), 2, NetworkConfig(batch_norm=True))
    single = SimpleNamespace(clips=SimpleNamespace(epoch_size=1), num_steps=1)
    with pytest.raises(InputError, match=r"network\.batch_norm=true needs more than a single glance to learn from; give more videos"):
        new_ppo(make_environment(bank, EnvConfig(num_envs=4)), single, PPOConfig(), WITH_NORM, 0)


def test_epochs_are_converted_to_steps(bank):
    assert total_steps(PPOConfig(epochs=3), bank) == 3 * 12 * 4
    assert total_steps(PPOConfig(total_steps=5), bank) == 5


def test_one_decision_a_clip_leaves_any_number_of_steps():
    check_ppo(PPOConfig(n_steps=7, batch_size=3), EnvConfig(num_envs=4), 1, NetworkConfig())
