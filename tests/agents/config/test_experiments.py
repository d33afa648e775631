"""The published rows as configs: each loads, builds its networks, and says what was published."""

import functools
import re
from dataclasses import replace
from importlib.resources import files

import pytest
import torch
from conftest import slow_except

from adafocus_env.features.live import count_steps
from adafocus_env.videos.published import PUBLISHED
from agents.config.command import compose_config
from agents.config.settings import TrainPPO, TrainStages
from agents.evaluation.budgets import VideoCost
from agents.policies.networks import PolicyArchitecture, PolicyNetwork
from agents.rl.ppo import check_ppo
from benchmarks import published_flops as published_cost
from classifiers.classifier import Classifier
from classifiers.model_zoo import ARCHITECTURES

FOLDER = files("configs") / "experiment"
NAMES = sorted(entry.name.removesuffix(".yaml") for entry in FOLDER.iterdir() if entry.name.endswith(".yaml"))
SIZES = dict.fromkeys(("actnet", "fcvid", "minik"), (96, 128, 160, 192)) | dict.fromkeys(("sthv1", "sthv2"), (144, 160, 176))
SKIPPING = {
    128: {47: (73.3, 15.3), 67: (74.2, 19.6), 89: (74.8, 24.4)},
    160: {47: (74.9, 20.3), 67: (75.5, 27.2), 89: (75.9, 34.6)},
    192: {47: (75.8, 27.8), 67: (76.6, 37.4), 89: (76.9, 47.8)},
}  # patch size → per cent of the frames kept → mAP and GFLOPs a video on ActivityNet


@functools.cache
def experiment(name):
    """The stages of one, composed once: nobody changes it."""
    return compose_config(TrainStages, "train_stages", [f"experiment={name}", "data.root=DIR"])


@functools.cache
def parts_at(size):
    """Multiply-adds of the parts of ActivityNet's networks for a frame of 16."""
    return {name: value // 16 for name, value in published_cost.parts(published_cost.FAMILIES["ActivityNet"], size).items()}


def test_there_is_one_for_every_published_row():
    skipping = [f"actnet_{size}_skip{keep}" for size, points in SKIPPING.items() for keep in points]
    assert sorted([f"{data}_{size}" for data, sizes in SIZES.items() for size in sizes] + skipping) == NAMES
    assert set(SIZES) == set(PUBLISHED)


@pytest.mark.parametrize(("size", "keep"), slow_except([(128, 47)], [(size, keep) for size, points in SKIPPING.items() for keep in points]))
def test_a_point_with_skipped_frames_is_a_share_of_frames(size, keep):
    config = experiment(f"actnet_{size}_skip{keep}")
    accuracy, gflops = SKIPPING[size][keep]
    assert (config.env.action, config.env.target_gflops, config.env.target_keep) == ("skip", gflops, None)
    parts = parts_at(size)
    cost = VideoCost(16, parts["glancer"] + parts["policy"], parts["focuser"] + parts["head"])
    assert cost.keep_for(gflops) == pytest.approx(keep / 100, abs=0.02)
    told = (FOLDER / f"actnet_{size}_skip{keep}.yaml").read_text()
    assert f"some {keep} % of the frames; published (AdaFocus+): mAP {accuracy} at {gflops} GFLOPs" in told
    plain = experiment(f"actnet_{size}")
    changed = ("action", "target_gflops", "skipped", "cost_weight_rate")
    alike = replace(config, env=replace(config.env, **{key: getattr(plain.env, key) for key in changed}))
    assert alike == plain, "nothing else differs"


class Lengths:
    """The only thing about clips that the number of decisions depends on."""

    def __init__(self, data):
        self.num_frames = data.num_frames
        self.settings = type("Settings", (), {"num_glance_frames": data.glance_frames or data.num_frames})


@pytest.mark.parametrize("name", slow_except(["actnet_96", "actnet_128_skip47", "fcvid_96", "sthv1_144"], NAMES))
def test_it_loads_and_its_networks_can_be_built(name):
    config = experiment(name)
    data, size, *skipping = name.split("_")
    published, something = PUBLISHED[data], data.startswith("sth")
    assert (config.data.name, config.patch_size, config.data.num_frames) == (data, int(size), published.num_frames)
    assert config.data.views == "fresh" and not config.env.bank
    with torch.device("meta"):
        classifier = Classifier(
            replace(ARCHITECTURES[config.classifier], patch_size=config.patch_size), [str(each) for each in range(published.num_classes)]
        )
        steps = count_steps(classifier, Lengths(config.data), config.env.video_div)
        maps = 1280 * (config.data.glance_frames or config.data.num_frames) // steps
        sizes = config.network.channels, config.network.features, config.network.hidden, config.network.batch_norm
        network = PolicyArchitecture((maps, 7, 7), *sizes)
        grid = None if config.env.action == "continuous" else config.env.grid
        policy = PolicyNetwork(network, grid, config.network.std, skips=bool(skipping))
    assert steps == (1 if something else 16) and policy.grid == (None if something else 7)
    assert sum(parameter.numel() for parameter in policy.parameters()) > 7e6
    check_ppo(config.ppo, config.env, steps, config.network)


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_with_its_command_and_its_published_figures(name):
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    assert lines[:2] == ["# @package _global_", f"# python -m agents.train_stages experiment={name} data.root=DIR"]
    assert re.match(rf"# .*patches of {name.split('_')[1]} pixels", lines[2])


@pytest.mark.parametrize("name", slow_except(["actnet_128_skip47", "sthv1_144"], NAMES))
def test_it_loads_for_stage_2_alone(name):
    config = compose_config(TrainPPO, "train_ppo", [f"experiment={name}", "data.root=DIR", "classifier=DIR"])
    assert (config.env, config.ppo, config.network) == (experiment(name).env, experiment(name).ppo, experiment(name).network)


def test_the_published_hyper_parameters():
    actnet = experiment("actnet_128")
    stages = actnet.stages
    rates = [(stage.epochs, stage.learning_rate, stage.head_learning_rate) for stage in (stages.random_patches, stages.finetune)]
    assert rates == [(50, 5e-4, 0.05), (10, 0, 5e-3)]
    assert [(stage.epochs, stage.learning_rate, stage.frames) for stage in (stages.glancer, stages.focuser)] == [(15, 0.01, 16)] * 2
    for stage in (stages.glancer, stages.focuser, stages.random_patches, stages.finetune):
        assert (stage.optimizer, stage.momentum, stage.weight_decay, stage.schedule, stage.batch_size) == ("sgd", 0.9, 1e-4, "cosine", 64)
    assert (actnet.ppo.epochs, actnet.ppo.learning_rate, actnet.ppo.gamma, actnet.ppo.n_epochs) == (50, 3e-4, 0.7, 1)
    assert (actnet.ppo.clip_range, actnet.ppo.vf_coef, actnet.ppo.ent_coef, actnet.env.num_envs) == (0.2, 0.5, 0.01, 64)
    assert ARCHITECTURES["paper"].dropout == 0.8
    something = experiment("sthv2_144")
    stages = something.stages
    for stage in (stages.glancer, stages.focuser):
        assert (stage.epochs, stage.schedule, stage.milestones, stage.dropout) == (50, "step", [20, 40], 0.5)
    rates = [
        (stage.epochs, stage.learning_rate, stage.head_learning_rate, stage.batch_size, stage.dropout)
        for stage in (stages.random_patches, stages.finetune)
    ]
    assert rates == [(10, 1e-5, 0.01, 64, 0.5), (10, 0, 5e-4, 32, 0)]
    assert (something.network.std, something.network.batch_norm, something.ppo.batch_statistics) == (0.25, True, True)
