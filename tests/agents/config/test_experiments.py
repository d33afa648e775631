"""The published experiments of AdaFocus: the config of every published result can be loaded, and its networks can be built."""

import functools
import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from conftest import slow_except
from omegaconf import OmegaConf

from adafocus_env.features.live import count_steps
from adafocus_env.videos.published import PUBLISHED
from agents.config.command import compose_config
from agents.config.policy import KEYS
from agents.config.settings import TrainPPO, TrainStages
from agents.policies.networks import PolicyArchitecture, PolicyNetwork, architecture_of
from agents.rl.settings import check_ppo
from benchmarks import published_flops
from classifiers.classifier import Classifier
from classifiers.model_zoo import ARCHITECTURES

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "configs" / "experiment"
PLAIN = {
    "actnet": {96: (71.9, 17.2), 128: (75.0, 26.6), 160: (76.0, 38.6), 192: (76.7, 53.3)},
    "sthv1": {144: (47.0, 23.5), 160: (47.6, 27.5), 176: (48.1, 33.7)},
    "sthv2": {144: (59.7, 23.5), 160: (60.2, 27.5), 176: (60.7, 33.7)},
}  # experiment → patch size → mAP or top-1 in per cent and GFLOPs per video
SKIPPING = {
    128: {47: (73.3, 15.3), 67: (74.2, 19.6), 89: (74.8, 24.4)},
    160: {47: (74.9, 20.3), 67: (75.5, 27.2), 89: (75.9, 34.6)},
    192: {47: (75.8, 27.8), 67: (76.6, 37.4), 89: (76.9, 47.8)},
}  # patch size → per cent of the frames focused → mAP and GFLOPs per video on ActivityNet
SIZES = dict.fromkeys(("actnet", "fcvid", "minik"), (96, 128, 160, 192)) | dict.fromkeys(("sthv1", "sthv2"), (144, 160, 176))
POINTS = [
    *((name, size, None) for name, sizes in SIZES.items() for size in sizes),
    *(("actnet_skip", size, gflops) for size, points in SKIPPING.items() for _, gflops in points.values()),
]  # experiment, patch_size and env.target_gflops of every published point
FAST = [("actnet", 96, None), ("actnet_skip", 128, 15.3), ("fcvid", 96, None), ("sthv1", 144, None)]


def arguments(name, size, gflops):
    target = [] if gflops is None else [f"env.target_gflops={gflops}"]
    return [f"experiment={name}", f"patch_size={size}", *target, "data.root=DIR"]


@functools.cache
def experiment(name, size, gflops=None):
    """Return the config of one published point; treat it as read-only."""
    return compose_config(TrainStages, "train_stages", arguments(name, size, gflops))


@functools.cache
def flops_at(size):
    """Return the multiply-adds of a video of ActivityNet."""
    return published_flops.flops_of(published_flops.FAMILIES["ActivityNet"], size)


def test_every_data_set_has_an_experiment():
    assert {path.stem for path in FOLDER.glob("*.yaml") if not path.stem.endswith("_v2")} == {*SIZES, "actnet_skip"}
    assert set(SIZES) == set(PUBLISHED) - {"jester"}  # which is of AdaFocusV2 alone


@pytest.mark.parametrize("name", [*SIZES, "actnet_skip"])
def test_files_begin_with_their_command_and_the_published_figures(name):
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert re.fullmatch(rf"# python -m agents.train_stages experiment={name} patch_size=\d+ (env\.\S+ )?data.root=DIR", lines[1])
    metric = "top-1" if name.startswith("sth") else "mAP"
    figures = [line for line in lines if "GFLOPs per video" in line]
    if name == "actnet_skip":
        expected = [
            f"#   {size}: mAP {accuracy} at {gflops} GFLOPs per video, {share} %"
            for size, points in SKIPPING.items()
            for share, (accuracy, gflops) in points.items()
        ]
    else:
        points = PLAIN.get(name, {}).items()
        expected = [f"#   {size}: {metric} {accuracy} at {gflops} GFLOPs per video" for size, (accuracy, gflops) in points]
    assert figures == expected


def test_the_documentation_lists_every_published_point():
    paper, skipping = ((ROOT / "docs" / name).read_text() for name in ("paper.md", "skipping.md"))
    for name, points in PLAIN.items():
        for size, (accuracy, gflops) in points.items():
            assert re.search(rf"\| {size} \| (mAP|top-1) {accuracy} \| {gflops} \| .*`experiment={name} patch_size={size} ", paper)
    for size, points in SKIPPING.items():
        for share, (accuracy, gflops) in points.items():
            assert f"| {size} | {share} % | {accuracy} | `patch_size={size} env.target_gflops={gflops}` |" in skipping


@pytest.mark.parametrize(("size", "share"), slow_except([(128, 47)], list(product(SKIPPING, (47, 67, 89)))))
def test_a_target_in_gflops_is_the_published_share_of_frames(size, share):
    gflops = SKIPPING[size][share][1]
    config, plain = experiment("actnet_skip", size, gflops), experiment("actnet", size)
    assert (config.env.action, config.env.target_gflops, config.env.target_keep) == ("skip", gflops, None)
    assert replace(flops_at(size), head_skips=True).keep_for(gflops) == pytest.approx(share / 100, abs=0.02)
    changed = ("action", "target_gflops", "skipped", "cost_weight_rate")
    alike = replace(config, env=replace(config.env, **{key: getattr(plain.env, key) for key in changed}))
    assert alike == plain, "all other settings are those of the plain experiment"


@pytest.mark.parametrize(("name", "point"), [("actnet", (96,)), ("sthv2", (144,)), ("actnet_skip", (128, 19.6))])
def test_the_defaults_are_a_published_point(name, point):
    assert compose_config(TrainStages, "train_stages", [f"experiment={name}", "data.root=DIR"]) == experiment(name, *point)


class Lengths:
    """The attributes of clips that the number of decisions depends on."""

    def __init__(self, data):
        self.num_frames = data.num_frames
        self.settings = type("Settings", (), {"num_glance_frames": data.glance_frames or data.num_frames})


@pytest.mark.parametrize(("name", "size", "gflops"), slow_except(FAST, POINTS))
def test_a_published_point_loads_and_its_networks_can_be_built(name, size, gflops):
    config = experiment(name, size, gflops)
    data, something = name.split("_")[0], name.startswith("sth")
    published = PUBLISHED[data]
    assert (config.data.name, config.patch_size, config.data.num_frames) == (data, size, published.num_frames)
    assert config.data.views == "resample" and not config.env.bank
    with torch.device("meta"):
        classifier = Classifier(
            replace(ARCHITECTURES[config.classifier], patch_size=config.patch_size), [str(each) for each in range(published.num_classes)]
        )
        steps = count_steps(classifier, Lengths(config.data), config.env.video_div)
        maps = 1280 * (config.data.glance_frames or config.data.num_frames) // steps
        network = architecture_of((maps, 7, 7), config.patch_size / 224, config.network)
        assert isinstance(network, PolicyArchitecture)
        grid = None if config.env.action == "continuous" else config.env.grid
        policy = PolicyNetwork(network, grid, config.network.std, skips=gflops is not None)
    assert steps == (1 if something else 16) and policy.grid == (None if something else 7)
    assert sum(parameter.numel() for parameter in policy.parameters()) > 7e6
    check_ppo(config.ppo, config.env, steps, config.network)


@pytest.mark.parametrize(("name", "size", "gflops"), slow_except([("actnet_skip", 128, 15.3), ("sthv1", 144, None)], POINTS))
def test_a_published_point_loads_for_stage_2_alone(name, size, gflops):
    config = compose_config(TrainPPO, "train_ppo", [*arguments(name, size, gflops), "classifier=DIR"])
    whole = experiment(name, size, gflops)
    assert (config.env, config.ppo, config.network) == (whole.env, whole.ppo, whole.network)


def test_the_published_policy_network_is_written_out():
    """The defaults of the policy network may change without changing what is published."""
    for name, channels in (("released", 32), ("released_continuous", 64)):
        network = OmegaConf.load(ROOT / "configs" / "ppo" / f"{name}.yaml").network
        assert set(network) == {"name", *KEYS["published"], "std"} and network.name == "published"
        assert (network.channels, network.features, network.hidden, network.memory) == (channels, 1024, 1024, True)


def test_the_published_hyper_parameters():
    actnet = experiment("actnet", 128)
    stages = actnet.stages
    rates = [(stage.epochs, stage.learning_rate, stage.head_learning_rate) for stage in (stages.random_patches, stages.finetune)]
    assert rates == [(50, 5e-4, 0.05), (10, 0, 5e-3)]
    assert [(stage.epochs, stage.learning_rate, stage.frames) for stage in (stages.glancer, stages.focuser)] == [(15, 0.01, 16)] * 2
    for stage in (stages.glancer, stages.focuser, stages.random_patches, stages.finetune):
        assert (stage.optimizer, stage.momentum, stage.weight_decay, stage.schedule, stage.batch_size) == ("sgd", 0.9, 1e-4, "cosine", 64)
    assert (actnet.ppo.epochs, actnet.ppo.learning_rate, actnet.ppo.gamma, actnet.ppo.n_epochs) == (50, 3e-4, 0.7, 1)
    assert (actnet.ppo.clip_range, actnet.ppo.vf_coef, actnet.ppo.ent_coef, actnet.env.num_envs) == (0.2, 0.5, 0.01, 64)
    assert ARCHITECTURES["paper"].dropout == 0.8
    something = experiment("sthv2", 144)
    stages = something.stages
    for stage in (stages.glancer, stages.focuser):
        assert (stage.epochs, stage.schedule, stage.milestones, stage.dropout) == (50, "step", [20, 40], 0.5)
    rates = [
        (stage.epochs, stage.learning_rate, stage.head_learning_rate, stage.batch_size, stage.dropout)
        for stage in (stages.random_patches, stages.finetune)
    ]
    assert rates == [(10, 1e-5, 0.01, 64, 0.5), (10, 0, 5e-4, 32, 0)]
    assert (something.network.std, something.network.batch_norm, something.ppo.batch_statistics) == (0.25, True, True)
