"""Workloads of the benchmarks: networks with random weights, demo videos and random clips. Networks and clips have the sizes of the paper,
or tiny sizes.

The benchmarks compare their times with those of two references, which are also in this module: the bare networks on tensors in memory, and
inference as in the released code.
"""

import os
import platform
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adafocus_env.action import ACTIONS, Action
from adafocus_env.build import Split, choose_device, open_clips
from adafocus_env.clips.clip_spec import ClipSpec
from adafocus_env.clips.store import ClipSource
from adafocus_env.demo.videos import DemoTask, demo
from adafocus_env.features.memory_bank import MemoryBank
from adafocus_env.videos.dataset import DataSet, Video
from agents.config.policy import NetworkConfig
from agents.evaluation.inference import patches_of
from agents.policies.networks import PolicyArchitecture, PolicyNetwork, architecture_of
from agents.runs.system import system_information
from benchmarks.command import Settings
from benchmarks.results import Act
from classifiers.backbones.backbone import BACKBONES, Backbone
from classifiers.classifier import Architecture, Classifier
from classifiers.crop import crop_patches
from classifiers.model_zoo import ARCHITECTURES
from classifiers.optimize import (
    PLAIN,
    PRECISIONS,
    Execution,
    InferenceClassifier,
    check_precision,
    choose_execution,
    execution_of,
    supported_precisions,
    with_execution,
)  # fmt: skip

GRID = 7
DEFAULT = "float32, default settings"
SMALL = PolicyArchitecture((32, 8, 8), channels=4, features=16, hidden=16)


def choose_precision(settings: Settings) -> str:
    """Return the precision of the settings. "auto" means bfloat16 if the device supports it, otherwise float32.

    Raises:
        InputError: If the device cannot be used, or does not support the precision.
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
    """Return the architecture of the paper. With the setting ``quick``, return the architecture of the demo classifier."""
    return ARCHITECTURES["small" if settings.quick else "paper"]


def classifier(settings: Settings, **changes: Any) -> Classifier:
    """Return a frozen classifier with random weights. ``changes`` override fields of the architecture.

    The statistics of the batch norms are computed from one batch of random images.
    """
    torch.manual_seed(1)  # differs from the seed of `policy`
    network = Classifier(
        Architecture(**{**vars(architecture(settings)), **changes}), [str(number) for number in range(10 if settings.quick else 200)]
    )
    _fit_batch_norms(network)
    return network.to(choose_device(settings.device)).freeze()


def flat_classifier(settings: Settings) -> Classifier:
    """Return a classifier with cheap backbones, whose outputs have the same sizes as those of the usual backbones. With this classifier,
    benchmarks measure the time of everything except for the backbones."""
    BACKBONES.update(flat_glancer=_flat(settings, "glancer"), flat_focuser=_flat(settings, "focuser"))
    return classifier(settings, glancer="flat_glancer", focuser="flat_focuser")


def policy(settings: Settings, seed: int = 0, *, skips: bool = False) -> PolicyNetwork:
    """Return a policy with random weights. The weights are so large that cells and skipping decisions differ between frames."""
    torch.manual_seed(seed)
    network = PolicyNetwork(SMALL if settings.quick else PolicyArchitecture((1280, 7, 7)), GRID, skips=skips)
    with torch.no_grad():
        network.actor.weight.mul_(30)
        if skips:  # P(skip) must not depend on the number of patches, so that any share of frames is possible
            for parameter in (network.actor.weight, network.actor.bias):
                parameter[-3:-1] = 0
    return network.to(choose_device(settings.device)).eval().requires_grad_(False)


def spatial_policy(settings: Settings) -> PolicyNetwork:
    """Return a new policy of the default kind."""
    shape = SMALL.map_shape if settings.quick else (1280, 7, 7)
    torch.manual_seed(0)
    return PolicyNetwork(architecture_of(shape, 96 / 224, NetworkConfig()), GRID).to(choose_device(settings.device)).eval()


def executions(settings: Settings, network: Classifier) -> dict[str, Execution]:
    """Return the execution settings to compare: the plain settings, and the fastest known settings for every precision."""
    low = [] if settings.precision == "float32" else [settings.precision]
    found = {"float32": PLAIN, DEFAULT: choose_execution(network), **{name: choose_execution(network, name) for name in low}}
    if settings.compile:
        found |= {f"{name}, compiled": choose_execution(network, name, compile=True) for name in ("float32", *low)}
    return found


def plain_and_fastest(settings: Settings) -> dict[str, Classifier]:
    """Return the classifier with the plain execution settings, and with the fastest execution settings, which are the last of `executions`.

    The keys of the returned dictionary are the names of the execution settings.
    """
    plain = classifier(settings)
    name, how = list(executions(settings, plain).items())[-1]
    return {"float32": plain, name: with_execution(plain, how)}


class RandomClips(ClipSource):
    """Clips of random frames, without crops.

    Args:
        count: Number of clips.
        num_frames: T, frames per clip.
        size: Height and width of the frames in pixels.
    """

    has_truth = False
    failures = ()

    def __init__(self, count: int, num_frames: int, size: int) -> None:
        self.settings = ClipSpec(num_frames, size, size, train=True)
        self.labels: NDArray[np.int64] = np.arange(count) % 10
        self.label_sets = [(int(label),) for label in self.labels]
        self.names = [f"{number:04d}" for number in range(count)]
        self.fingerprint = f"random-{count}-{num_frames}-{size}"
        generator = torch.Generator().manual_seed(0)
        self._pixels = torch.randint(256, (count, num_frames, 3, size, size), dtype=torch.uint8, generator=generator)

    def frames(self, clip: int) -> Tensor:
        """Return frames (T, 3, size, size), uint8."""
        return self._pixels[clip]

    def glancer_frames(self, clip: int) -> Tensor:
        """Return the same as `frames`."""
        return self._pixels[clip]

    def resampled(self, clip: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return the frames twice."""
        return self._pixels[clip], self._pixels[clip]

    def skip_rng(self, clips: NDArray[np.int64], rng: np.random.Generator) -> None:
        """Do nothing, because this class uses no random numbers."""


def clips(settings: Settings, count: int, num_frames: int, *, train: bool = True) -> ClipSource:
    """Return at least ``count`` clips. Training clips are eight views of each video."""
    views = 8 if train else 1
    videos = make_videos(settings, -(-count // views))
    data = DataSet("benchmark", ("one",), videos, (), videos)
    return open_clips(data, "train" if train else "test", num_frames=num_frames, size=architecture(settings).size, views=views)


def demo_clips(settings: Settings, split: Split, num_frames: int) -> ClipSource:
    """Return clips of the demo videos. With the setting ``quick``, only a dozen videos are used."""
    videos = demo(DemoTask(train_videos=12, val_videos=0, test_videos=4, length=8), val=0.25) if settings.quick else demo()
    return open_clips(videos, split, num_frames=num_frames, size=ARCHITECTURES["small"].size)


def frames(settings: Settings, clips: int, num_frames: int, network: Classifier) -> Tensor:
    """Return normalised frames (clips, num_frames, 3, H, W) on the network's device."""
    size = network.architecture.size
    pixels = torch.randint(256, (clips, num_frames, 3, size, size), dtype=torch.uint8)
    return network.normalise(pixels.to(network.device))


def grid_action(network: Classifier) -> Action:
    """Return actions on the paper's grid, for frames of the size that ``network`` expects."""
    return ACTIONS["grid"](GRID, network.architecture.size, network.architecture.patch_size)


def bank_of(network: Classifier, clips: ClipSource) -> MemoryBank:
    """Return a full bank."""
    bank = MemoryBank(network, clips, grid_action(network))
    every, steps = np.arange(len(clips))[:, None], np.arange(clips.num_frames)[None]
    bank.glance_vectors(every, steps)
    for clip in every:
        bank.focus_vectors(clip[:, None], steps, np.zeros((1, clips.num_frames), np.int64))
    return bank


def warm_bank(settings: Settings, count: int, num_frames: int) -> MemoryBank:
    """Return a full bank of random clips. With a classifier of `flat_classifier`, the bank is filled fast, and environment steps take as
    long as with the networks of full size."""
    network = flat_classifier(settings)
    return bank_of(network, RandomClips(count, num_frames, network.architecture.size))


def make_videos(settings: Settings, count: int) -> tuple[Video, ...]:
    """Return ``count`` demo videos of the paper's frame size, which are rendered once."""
    large: dict[str, Any] = {} if settings.quick else {"size": 256, "length": 48, "target": 37, "distractor": 24}
    data = demo(DemoTask(train_videos=count, test_videos=1, **large), val=0.0)
    assert data.prepare is not None
    data.prepare(data.train)
    return tuple(data.train)


@torch.no_grad()
def _fit_batch_norms(network: Classifier) -> None:
    """Set the means and variances of batch norms from one batch in training mode, so that activations are neither huge nor zero."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    size = network.architecture
    network.train()
    network.glance(torch.randn(4, 3, size.size, size.size))
    network.focus(torch.randn(8, 3, size.patch_size, size.patch_size))
    for norm in norms:
        norm.momentum = 0.1


def _flat(settings: Settings, which: str) -> Callable[[int], Backbone]:
    """Return a function that makes cheap backbones. Each of these backbones is one convolution over large blocks of pixels.

    The outputs of these backbones are as large as those of the original backbones.
    """
    base = architecture(settings)
    size = BACKBONES[getattr(base, which)](2).vector_size
    side, cells = (base.glance_size, 8 if settings.quick else 7) if which == "glancer" else (base.patch_size, 3)

    def build(num_classes: int) -> Backbone:
        layers = nn.Sequential(nn.AvgPool2d(side // cells), nn.Conv2d(3, size, 1), nn.ReLU6())
        return Backbone(layers, size, num_classes, map_bounds=(0.0, 6.0))

    return build


# References of comparisons


def bare_backbone(classifier: Classifier, which: str, count: int) -> Act:
    """Return a function that runs the glancer or the focuser on ``count`` random images, with the execution settings of ``classifier``."""
    sizes = classifier.architecture
    side = sizes.glance_size if which == "glancer" else sizes.patch_size
    images = torch.randn(count, 3, side, side).to(classifier.device)
    if not isinstance(classifier, InferenceClassifier):
        return partial(_call, getattr(classifier, which), [images])
    how, runner = execution_of(classifier), getattr(classifier, f"{which}_runner")
    call = how.glance_call if which == "glancer" else how.focus_call
    layout = torch.channels_last if how.channels_last else torch.contiguous_format
    batches = [batch.to(PRECISIONS[how.precision], memory_format=layout, copy=True) for batch in images.split(call or len(images))]
    return lambda: _call(runner.network(), batches)


@torch.no_grad()
def _call(network: Callable[..., object], batches: list[Tensor]) -> None:
    for batch in batches:
        network(batch, 1)


def bare_head(network: Classifier, rows: int) -> Act:
    """Return a function that runs one step of the head on ``rows`` rows."""
    glances = torch.rand(rows, 1, network.glancer.vector_size, device=network.device)
    focus_vectors, state = torch.rand(rows, 1, network.focuser.vector_size, device=network.device), network.initial_state(rows)

    @torch.no_grad()
    def act() -> None:
        network.classify(glances, focus_vectors, state)

    return act


def bare_policy(policy: PolicyNetwork, maps: Tensor) -> Act:
    """Return a function that runs the actor and the critic on the glance maps (N, T, C, h, w) of whole clips."""

    @torch.no_grad()
    def act() -> None:
        hidden = policy.encoder(maps)
        policy.actor(hidden), policy.critic(hidden)

    return act


def bare_update(policy: PolicyNetwork, maps: Tensor, epochs: int, minibatches: int) -> Act:
    """Return a function that runs the forward and backward passes of an update: one for every minibatch of every epoch. Minibatches are
    whole clips."""
    policy.train().requires_grad_(True)

    def act() -> None:
        for _ in range(epochs):
            for minibatch in maps.chunk(minibatches):
                policy.zero_grad()
                hidden = policy.encoder(minibatch)
                (policy.actor(hidden).logsumexp(-1).mean() + policy.critic(hidden).mean()).backward()

    return act


@torch.inference_mode()
def step_by_step(classifier: Classifier, policy: PolicyNetwork, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Classify videos with a recurrent head as the released code does.

    All glances are computed first; after them, policy, focuser and head run frame by frame.

    The released code also has loops over the images of a batch. `step_by_step` leaves these loops out, because the computation does not
    need them.

    Args:
        classifier: A frozen classifier.
        policy: A policy on the classifier's glance maps.
        frames: Normalised frames (N, T, 3, H, W).

    Returns:
        Actions (N, T) and class scores (N, T, K).
    """
    count, length = frames.shape[:2]
    maps, vectors = (each.unflatten(0, (count, length)) for each in classifier.glance(frames.flatten(0, 1)))
    hidden, state, rows = None, classifier.initial_state(count), torch.arange(count, device=frames.device)
    actions, scores = [], []
    for step in range(length):
        output, hidden = policy.encoder.gru(policy.encoder.frame(maps[:, step]).unsqueeze(1), hidden)
        action = policy.actor(output[:, 0]).argmax(-1)
        patches = crop_patches(frames[:, step], rows, patches_of(policy, classifier, action)[0], classifier.architecture.patch_size)
        score, state = classifier.classify(vectors[:, step, None], classifier.focus(patches)[:, None], state)
        actions.append(action)
        scores.append(score[:, 0])
    return torch.stack(actions, 1), torch.stack(scores, 1)
