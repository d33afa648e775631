"""The published experiments of AdaFocusV2: the config of every published result can be loaded, and its networks can be built."""

import functools
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import slow_except

from adafocus_env.videos.published import PUBLISHED
from agents.config.command import compose_config
from agents.config.settings import TrainEndToEnd
from agents.policies.networks import PolicyNetwork, architecture_of
from agents.policies.published_v2 import PublishedV2Architecture
from classifiers.classifier import Classifier
from classifiers.model_zoo import ARCHITECTURES

ROOT = Path(__file__).parents[3]
PLAIN, RES50 = "", "paper_v2_res50"
POINTS = {
    ("actnet", PLAIN): {96: (77.4, 17.6), 128: (79.0, 27.0), 160: (79.9, 39.0)},
    ("actnet", RES50): {96: (77.5, 24.8), 128: (78.9, 34.1), 160: (80.2, 46.1)},
    ("fcvid", PLAIN): {128: (85.0, 27.0)},
    ("fcvid", RES50): {128: (84.5, 34.1)},
    ("minik", PLAIN): {128: (75.4, 27.0)},
    ("minik", RES50): {128: (74.0, 34.1)},
    ("sthv1", PLAIN): {128: (47.0, 18.5), 144: (48.2, 23.5), 160: (48.6, 27.5), 176: (49.6, 33.7)},
    ("sthv2", PLAIN): {128: (59.6, 18.5), 144: (60.5, 23.5), 160: (60.8, 27.5), 176: (61.3, 33.7)},
    ("jester", PLAIN): {128: (96.6, 18.5), 176: (96.9, 33.7)},
}  # experiment and glancer → patch size → mAP or top-1 in per cent and GFLOPs per video
CASES = [(name, glancer, size) for (name, glancer), points in POINTS.items() for size in points]
FAST = [("actnet", PLAIN, 96), ("actnet", RES50, 96), ("minik", PLAIN, 128), ("jester", PLAIN, 176)]
NAMES = sorted({name for name, _ in POINTS})
LARGE = ("actnet", "fcvid", "minik")


@functools.cache
def experiment(name, glancer, size):
    """Return the config of one published point; treat it as read-only."""
    chosen = [f"classifier={glancer}"] if glancer else []
    return compose_config(TrainEndToEnd, "train_end_to_end", [f"experiment={name}_v2", *chosen, f"patch_size={size}", "data.root=DIR"])


class Lengths:
    """The attributes of clips that the number of decisions depends on."""

    def __init__(self, data):
        self.num_frames = data.num_frames
        self.settings = type("Settings", (), {"num_glance_frames": data.glance_frames or data.num_frames})


def test_every_data_set_has_an_experiment():
    assert set(NAMES) == set(PUBLISHED)
    assert {path.stem for path in (ROOT / "configs" / "experiment").glob("*_v2.yaml")} == {f"{name}_v2" for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_files_begin_with_their_command_and_the_published_figures(name):
    lines = (ROOT / "configs" / "experiment" / f"{name}_v2.yaml").read_text().splitlines()
    assert lines[1] == f"# python -m agents.train_end_to_end experiment={name}_v2 patch_size={min(POINTS[name, PLAIN])} data.root=DIR"
    metric = "mAP" if name in ("actnet", "fcvid") else "top-1"
    points = [point for glancer in (PLAIN, RES50) for point in POINTS.get((name, glancer), {}).items()]
    expected = [f"#   {size}: {metric} {accuracy} at {gflops} GFLOPs per video" for size, (accuracy, gflops) in points]
    assert [line for line in lines if "GFLOPs per video" in line] == expected


def test_the_documentation_lists_every_published_point():
    paper = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    for name, glancer, size in CASES:
        accuracy, gflops = POINTS[name, glancer][size]
        command = f"experiment={name}_v2{' classifier=' if glancer else ''}{glancer} patch_size={size} "
        assert re.search(rf"\| {size} \| (mAP|top-1) {accuracy} \| {gflops} \| .*`{command}", paper), command


@pytest.mark.parametrize("name", NAMES)
def test_the_defaults_are_a_published_point(name):
    assert compose_config(TrainEndToEnd, "train_end_to_end", [f"experiment={name}_v2", "data.root=DIR"]) == experiment(
        name, PLAIN, min(POINTS[name, PLAIN])
    )


@pytest.mark.parametrize(("name", "glancer", "size"), slow_except(FAST, CASES))
def test_a_published_point_loads_and_its_networks_can_be_built(name, glancer, size):
    from adafocus_env.features.live import count_steps

    config, published = experiment(name, glancer, size), PUBLISHED[name]
    assert (config.data.name, config.patch_size, config.data.num_frames) == (name, size, published.num_frames)
    assert config.data.views == "resample" and not config.env.bank and config.env.action == "interpolated"
    with torch.device("meta"):
        architecture = replace(ARCHITECTURES[config.classifier], patch_size=config.patch_size)
        classifier = Classifier(architecture, [str(each) for each in range(published.num_classes)])
        steps = count_steps(classifier, Lengths(config.data), config.env.video_div)
        maps, _ = classifier.glance(torch.zeros(1, 3, 224, 224))
        channels = maps.shape[1] * (config.data.glance_frames or config.data.num_frames) // steps
        network = architecture_of((channels, *maps.shape[2:]), config.patch_size / 224, config.network)
        policy = PolicyNetwork(network, None, interpolated=True)
    assert isinstance(network, PublishedV2Architecture) and network.channels == 64
    assert (steps, network.features, network.hidden, network.memory) == ((16, 2048, 2048, True) if name in LARGE else (1, 1024, 512, False))
    assert config.data.order == ("coarse_to_fine" if name in LARGE else None)
    assert architecture.head == ("max_per_step" if name in LARGE else "separate_mean")
    published_policy = [parameter.numel() for name, parameter in policy.named_parameters() if not name.startswith("critic.")]
    if name == "actnet" and not glancer:  # as published: 31.69 and 26.75 million
        assert sum(published_policy) / 1e6 == pytest.approx(31.69, abs=0.005)
        assert sum(parameter.numel() for parameter in classifier.head.parameters()) / 1e6 == pytest.approx(26.75, abs=0.005)


def test_the_published_hyper_parameters():
    def rates(config):
        learning = config.learning
        ratios = (learning.policy_ratio, learning.glancer_ratio, learning.focuser_ratio, learning.head_ratio)
        return learning.learning_rate, ratios, learning.epochs, learning.batch_size, learning.weight_decay, learning.max_grad_norm

    for name in ("actnet", "fcvid"):
        assert rates(experiment(name, PLAIN, 128)) == (0.002, (0.1, 0.5, 1, 5), 50, 32, 1e-4, None)
    assert rates(experiment("minik", PLAIN, 128)) == (0.003, (0.1, 0.5, 1, 5), 50, 48, 1e-4, None)
    for name in ("sthv1", "sthv2", "jester"):
        assert rates(experiment(name, PLAIN, 128)) == (0.01, (0.01, 0.5, 1, 1), 50, 32, 5e-4, 20)
    for (name, glancer), points in POINTS.items():
        config = experiment(name, glancer, min(points))
        assert (config.learning.optimizer, config.learning.momentum, config.learning.schedule) == ("sgd", 0.9, "cosine_epochs")
        assert config.architecture.weights == "default"
