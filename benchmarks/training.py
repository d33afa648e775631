"""Compare the time of training with the time of the network calls that training needs. The benchmark measures a training step of stages 0,
1 and 3, a step of end-to-end training, and the two phases of an iteration of PPO.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from torch import nn

from adafocus_env.clips.store import ClipSource
from adafocus_env.features.memory_bank import MemoryBank
from agents.config.settings import EndToEndConfig, EnvConfig, PPOConfig, SupervisedConfig
from agents.policies.networks import NetworkArchitecture, PolicyNetwork
from agents.policies.sb3 import extractor_of
from agents.rl.environment import make_environment
from agents.rl.settings import new_ppo
from agents.supervised.end_to_end import train_end_to_end
from agents.supervised.stages import finetune, train_on_random_patches, warm_up
from benchmarks import workload
from benchmarks.command import Settings, main
from benchmarks.results import Act, Aim, Section, Time, compare, interleaved, repeated, timed
from benchmarks.steps import PATCHES
from classifiers.classifier import Classifier

MINIBATCHES = 4
EPOCHS = 1000  # more epochs than the benchmark runs


def measure(settings: Settings) -> Iterator[Section]:
    """Yield all sections."""
    yield _stages(settings)
    yield _end_to_end(settings)
    yield _ppo(settings, workload.policy(settings), "")
    yield _ppo(settings, workload.spatial_policy(settings), ", spatial network")


def _stages(settings: Settings) -> Section:
    """Measure a training step of stages 0, 1 and 3, on all clips of a small store."""
    frames = 4 if settings.quick else 8
    clips, first = workload.clips(settings, 2, frames, train=False), workload.classifier(settings)
    policy = workload.policy(settings)
    config = SupervisedConfig(EPOCHS, len(clips), "sgd", learning_rate=1e-4, head_learning_rate=1e-4, frames=frames)
    stages: dict[str, Callable[[Classifier], Iterator[object]]] = {
        "stage 0, glancer": lambda network: warm_up(network, "glancer", clips, config, seed=0),
        "stage 0, focuser": lambda network: warm_up(network, "focuser", clips, config, seed=0),
        "stage 1": lambda network: train_on_random_patches(network, clips, config, seed=0),
        "stage 3": lambda network: finetune(network, policy, clips, config, seed=0),
    }
    pairs = {
        (name, f"{name}: bare"): (
            partial(next, stage(copy.deepcopy(first))), _bare_step(copy.deepcopy(first), name.partition("stage 0, ")[2], clips),
            Aim("≤", 1.1) if name == "stage 1" else None,
        )
        for name, stage in stages.items()
    }  # fmt: skip
    note = f"{len(clips)} clips of {frames} frames, SGD; the bare pass has no optimiser, no data and no crops."
    return compare("Training steps", note, pairs, settings.rounds)


def _bare_step(network: Classifier, backbone: str, clips: ClipSource) -> Act:
    """Return a function that runs a forward and a backward pass of the networks, on tensors in memory.

    If ``backbone`` is the name of a backbone, the function trains this backbone as stage 0 does. If ``backbone`` is empty, the function
    trains focuser and head.
    """
    size, count, device = network.architecture, len(clips) * clips.num_frames, network.device
    frames = torch.randn(count, 3, size.size, size.size, device=device)
    patches = torch.randn(count, 3, size.patch_size, size.patch_size, device=device)
    labels = torch.zeros(len(clips), dtype=torch.long, device=device)
    trained = [getattr(network, backbone)] if backbone else [network.focuser, network.head]
    modules = [cast(nn.Module, module).train().requires_grad_(True) for module in trained]

    def frame_scores() -> torch.Tensor:
        vectors = network.glance(frames)[1] if backbone == "glancer" else network.focuser(frames)[1]
        return getattr(network, backbone).scores(vectors).unflatten(0, (len(clips), -1)).mean(1)

    def patch_scores() -> torch.Tensor:
        with torch.no_grad():
            glances = network.glance(frames)[1].unflatten(0, (len(clips), -1))
        return network.classify(glances, network.focus(patches).unflatten(0, (len(clips), -1)))[0].flatten(0, 1)

    def act() -> None:
        scores = frame_scores() if backbone else patch_scores()
        for module in modules:
            module.zero_grad()
        nn.functional.cross_entropy(scores, labels.repeat_interleave(len(scores) // len(clips))).backward()

    return act


def _end_to_end(settings: Settings) -> Section:
    """Measure a step of end-to-end training of all networks, and a step of end-to-end training of the policy alone."""
    frames = 4 if settings.quick else 8
    clips, first = workload.clips(settings, 2, frames, train=False), workload.classifier(settings)
    first_policy = PolicyNetwork(workload.spatial_policy(settings).architecture, None, interpolated=True).to(first.device).eval()
    config = EndToEndConfig(EPOCHS, len(clips), learning_rate=1e-4)
    pairs: dict[tuple[str, str], tuple[Act, Act, Aim | None]] = {}
    for name, freeze, aim in (("end to end", False, Aim("≤", 1.1)), ("end to end, classifier frozen", True, None)):
        (network, policy), bare = copy.deepcopy((first, first_policy)), copy.deepcopy((first, first_policy))
        step = partial(next, train_end_to_end(network, policy, clips, config, seed=0, freeze=freeze))
        pairs[name, f"{name}: bare"] = step, _bare_end_to_end(*bare, clips, freeze=freeze), aim
    note = f"{len(clips)} clips of {frames} frames, SGD; the bare pass has no optimiser, no data and no crops; its patches have a gradient."
    return compare("End-to-end training steps", note, pairs, settings.rounds)


def _bare_end_to_end(network: Classifier, policy: PolicyNetwork, clips: ClipSource, *, freeze: bool) -> Act:
    """Return a function that runs a forward and a backward pass of end-to-end training, on tensors in memory.

    Focuser and head run twice; with ``freeze``, they run only once. In the first run, gradients with respect to the patches are computed,
    as in training.
    """
    size, shape, device = network.architecture, (len(clips), clips.num_frames), network.device
    frames = torch.randn(len(clips) * clips.num_frames, 3, size.size, size.size, device=device)
    images = torch.randn(1 if freeze else 2, len(frames), 3, size.patch_size, size.patch_size, device=device)
    patches = [each.contiguous(memory_format=torch.channels_last) for each in images]  # as the crop makes them
    patches[0].requires_grad_()
    labels = torch.zeros(len(frames), dtype=torch.long, device=device)
    trained = [policy.encoder, policy.actor, *([] if freeze else [network.glancer, network.focuser, network.head])]
    modules = [cast(nn.Module, module).train().requires_grad_(True) for module in trained]

    def act() -> None:
        with torch.set_grad_enabled(not freeze):
            maps, vectors = network.glance(frames)
        locations, scores = policy(maps.detach().unflatten(0, shape)), [] if freeze else [network.glancer.scores(vectors)]
        for each in patches:
            focus_vectors = network.focus(each)
            with torch.backends.cudnn.flags(enabled=not freeze):  # cuDNN's recurrent layers have no gradient in eval mode
                scores.append(network.classify(vectors.unflatten(0, shape), focus_vectors.unflatten(0, shape))[0].flatten(0, 1))
            scores += [] if freeze else [network.focuser.scores(focus_vectors)]
        loss = torch.stack([nn.functional.cross_entropy(each, labels) for each in scores]).sum() + locations.mean()
        patches[0].grad = None
        for module in modules:
            module.zero_grad()
        loss.backward()

    return act


def _ppo(settings: Settings, policy: PolicyNetwork, of: str) -> Section:
    """Measure an iteration of PPO: every clip is played once, then there are `n_epochs` passes over all clips.

    ``of`` is the text at the end of the title of the section.
    """
    rows, length = (4, 4) if settings.quick else (64, 16)
    bank = workload.warm_bank(settings, rows, length)
    config = PPOConfig(n_steps=length, batch_size=rows // MINIBATCHES * length)
    model = learner(bank, config, rows, policy.architecture)
    maps = bank.glance_maps(np.arange(rows)[:, None], np.arange(length)[None])
    phases: dict[str, list[Time]] = {"collection": [], "update": []}
    acts: dict[str, Act] = {
        "iteration": iterations(model, phases),
        "bare: policy": workload.bare_policy(policy, maps),
        "bare: head": repeated(length, workload.bare_head(bank.classifier, PATCHES * rows)),
        "bare: update": workload.bare_update(policy, maps, config.n_epochs, MINIBATCHES),
    }
    times = interleaved(acts, settings.rounds)
    times |= {name: measured[1:] for name, measured in phases.items()}
    times["bare: collection"] = [one + other for one, other in zip(times["bare: policy"], times["bare: head"], strict=True)]
    times["bare minimum"] = [one + other for one, other in zip(times["bare: collection"], times["bare: update"], strict=True)]
    note = f"{config.n_epochs} epochs of {MINIBATCHES} minibatches; head steps of {PATCHES} rows per clip."
    section = Section(f"PPO iteration, bank warm, T·N = {rows * length}{of}", note, times)
    section.ratio("iteration", "bare minimum", aim=None if settings.quick else Aim("≤", 1.25))
    section.ratio("collection", "bare: collection").ratio("update", "bare: update")
    section.ratio("collection", "iteration", name="collection: share of the iteration")
    held = sum(value.nbytes for value in vars(model.rollout_buffer).values() if isinstance(value, np.ndarray)) / 1e6
    return section.figure("the rollout's memory", held, "MB", over="257 MB of copied maps at full size", aim=Aim("≤", 5))


def learner(bank: MemoryBank, config: PPOConfig, rows: int, network: NetworkArchitecture) -> PPO:
    """Return a PPO model for ``rows`` environments, whose features are in ``bank``."""
    environment = make_environment(bank, EnvConfig(num_envs=rows, grid=workload.GRID, reward="random", baseline=1))
    model = new_ppo(environment, bank, config, network, seed=0)
    model.set_logger(configure(None, []))
    extractor_of(model.policy).bind(bank)
    return model


def iterations(model: PPO, phases: dict[str, list[Time]]) -> Act:
    """Return a function that runs one iteration of `PPO.learn` and records the times of its two phases."""
    _, callback = model._setup_learn(10**9, None, reset_num_timesteps=False)
    callback.on_training_start({}, {})
    assert model.env is not None
    collect = partial(model.collect_rollouts, model.env, callback, model.rollout_buffer, model.n_steps)

    def act() -> None:
        phases["collection"].append(timed(collect))
        phases["update"].append(timed(model.train))

    return act


if __name__ == "__main__":
    main("training")
