"""What is measured: networks with random weights and demo videos, at the paper's size or at a tiny one."""

import os
import platform
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adafocus_env.action import ACTIONS, Action
from adafocus_env.build import Split, choose_device, open_clips
from adafocus_env.clips.store import ClipSource
from adafocus_env.demo.renderer import DemoTask
from adafocus_env.demo.videos import demo
from adafocus_env.features.memory_bank import MemoryBank
from adafocus_env.videos.dataset import DataSet, Video
from agents.policies.networks import PolicyArchitecture, PolicyNetwork
from agents.runs.system import system_information
from benchmarks.command import Settings
from classifiers.backbones.backbone import BACKBONES, Backbone
from classifiers.classifier import Architecture, Classifier
from classifiers.model_zoo import ARCHITECTURES
from classifiers.optimize import PLAIN, Execution, check_precision, choose_execution, supported_precisions, with_execution

GRID = 7
DEFAULT = "float32, default settings"
SMALL = PolicyArchitecture((32, 8, 8), channels=4, features=16, hidden=16)


def choose_precision(settings: Settings) -> str:
    """Return the precision of the settings; "auto" is bfloat16 where the device supports it, otherwise float32.

    Raises:
        InputError: the device does not support the precision, or cannot be used.
    """
    device = choose_device(settings.device)
    if settings.precision == "auto":
        return "bfloat16" if "bfloat16" in supported_precisions(device) else "float32"
    check_precision(settings.precision, device)
    return settings.precision


def prepare(settings: Settings) -> None:
    """Set the number of threads and PyTorch's seed."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(0)


def machine() -> dict[str, Any]:
    """Return the machine and the versions, for the heading of a result."""
    info = system_information()
    processor = f"{platform.processor() or platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"
    about = {"processor": processor, "cores": info["cpu_count"], "threads": torch.get_num_threads(), "torch": torch.__version__}
    load = {"load": round(os.getloadavg()[0], 1)} if hasattr(os, "getloadavg") else {}
    return {**about, **load, "GPU": info["cuda_device"] or "none", "commit": str(info["commit"])[:12]}


def architecture(settings: Settings) -> Architecture:
    """Return the paper's architecture, or the demo's where it has to be quick."""
    return ARCHITECTURES["small" if settings.quick else "paper"]


def classifier(settings: Settings, **changes: Any) -> Classifier:
    """Return a frozen classifier with random weights and batch norms that fit them; ``changes`` are of the architecture."""
    network = Classifier(
        Architecture(**{**vars(architecture(settings)), **changes}), [str(number) for number in range(10 if settings.quick else 200)]
    )
    _fit_batch_norms(network)
    return network.to(choose_device(settings.device)).freeze()


def flat_classifier(settings: Settings) -> Classifier:
    """Return a classifier with outputs and a head of the same sizes and cheap backbones: to measure all but the backbones."""
    BACKBONES.update(flat_glancer=_flat(settings, "glancer"), flat_focuser=_flat(settings, "focuser"))
    return classifier(settings, glancer="flat_glancer", focuser="flat_focuser")


def policy(settings: Settings, seed: int = 0, *, skips: bool = False) -> PolicyNetwork:
    """Return a policy with random weights, so large that cells, and whether it skips, differ from frame to frame."""
    torch.manual_seed(seed)
    network = PolicyNetwork(SMALL if settings.quick else PolicyArchitecture((1280, 7, 7)), GRID, skips=skips)
    with torch.no_grad():
        network.actor.weight.mul_(30)
        if skips:  # P(skip) that does not depend on the number of patches allows any share of frames
            for parameter in (network.actor.weight, network.actor.bias):
                parameter[-3:-1] = 0
    return network.to(choose_device(settings.device)).eval().requires_grad_(False)


def executions(settings: Settings, network: Classifier) -> dict[str, Execution]:
    """Return the executions to compare: plain, and the fastest known ones of every precision."""
    low = [] if settings.precision == "float32" else [settings.precision]
    found = {"float32": PLAIN, DEFAULT: choose_execution(network), **{name: choose_execution(network, name) for name in low}}
    if settings.compile:
        found |= {f"{name}, compiled": choose_execution(network, name, compile=True) for name in ("float32", *low)}
    return found


def fastest_of(settings: Settings, network: Classifier) -> tuple[str, Classifier]:
    """Return the last, and fastest, of `executions`: its name, and the classifier with it."""
    name, how = list(executions(settings, network).items())[-1]
    return name, with_execution(network, how)


def clips(settings: Settings, count: int, num_frames: int, *, train: bool = True) -> ClipSource:
    """Return at least ``count`` clips; training clips are eight views of every video."""
    views = 8 if train else 1
    videos = make_videos(settings, -(-count // views))
    data = DataSet("benchmark", ("one",), videos, (), videos)
    return open_clips(data, "train" if train else "test", num_frames=num_frames, size=architecture(settings).size, views=views)


def demo_clips(settings: Settings, split: Split, num_frames: int) -> ClipSource:
    """Return clips of the demo videos, or of a dozen of them where it has to be quick."""
    videos = demo(DemoTask(train_videos=12, test_videos=4, length=8), val=0.25) if settings.quick else demo()
    return open_clips(videos, split, num_frames=num_frames, size=ARCHITECTURES["small"].size)


def frames(settings: Settings, clips: int, num_frames: int, network: Classifier) -> Tensor:
    """Return normalised frames (clips, num_frames, 3, H, W) on the network's device."""
    size = network.architecture.size
    pixels = torch.randint(256, (clips, num_frames, 3, size, size), dtype=torch.uint8)
    return network.normalise(pixels.to(network.device))


def grid_action(network: Classifier) -> Action:
    """Return the paper's grid on the frames of ``network``."""
    return ACTIONS["grid"](GRID, network.architecture.size, network.architecture.patch_size)


def bank_of(network: Classifier, clips: ClipSource) -> MemoryBank:
    """Return a full bank."""
    bank = MemoryBank(network, clips, grid_action(network))
    every, steps = np.arange(len(clips))[:, None], np.arange(clips.num_frames)[None]
    bank.glance_vectors(every, steps)
    for clip in every:
        bank.focus_vectors(clip[:, None], steps, np.zeros((1, clips.num_frames), np.int64))
    return bank


def make_videos(settings: Settings, count: int) -> tuple[Video, ...]:
    """Return ``count`` demo videos as large as the paper's frames; they are rendered once."""
    large = {} if settings.quick else {"size": 256, "length": 48, "target": 37, "distractor": 24}
    data = demo(DemoTask(train_videos=count, test_videos=1, **large), val=0.0)
    assert data.prepare is not None
    data.prepare(data.train)
    return tuple(data.train)


@torch.no_grad()
def _fit_batch_norms(network: Classifier) -> None:
    """Set means and variances by one batch in training mode, so that activations are neither huge nor zero."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    size = network.architecture
    network.train()
    network.glance(torch.randn(4, 3, size.size, size.size))
    network.focus(torch.randn(8, 3, size.patch_size, size.patch_size))
    for norm in norms:
        norm.momentum = 0.1


def _flat(settings: Settings, which: str) -> Any:
    """Return a constructor of backbones: one convolution over large blocks, with the output sizes of the backbone it replaces."""
    base = architecture(settings)
    whole = BACKBONES[getattr(base, which)](2)
    side, cells = (base.glance_size, 8 if settings.quick else 7) if which == "glancer" else (base.patch_size, 3)
    return partial(_flat_backbone, side // cells, whole.vector_size)


def _flat_backbone(block: int, vector_size: int, num_classes: int) -> Backbone:
    layers = nn.Sequential(nn.AvgPool2d(block), nn.Conv2d(3, vector_size, 1), nn.ReLU6())
    return Backbone(layers, vector_size, num_classes, map_bounds=(0.0, 6.0))
