"""How the frozen networks are run: precision, memory layout, compilation and the size of a call. The weights stay what they are."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo
from torch._inductor import config as inductor
from torch.fx.experimental.optimization import fuse

from classifiers.backbones.backbone import Backbone
from classifiers.classifier import Classifier
from classifiers.errors import InputError, lookup
from classifiers.protocols import FrameNetwork
from classifiers.weight_monitor import WeightMonitor

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Execution:
    """How glancer and focuser are run. The head stays as it is: it is small, and its state gathers rounding over the steps.

    Attributes:
        precision: a name in `PRECISIONS`, of weights and activations; what comes out is float32 in any case.
        channels_last: keep images and activations as (height, width, channels) in memory.
        compile: compile both networks when they are first used, which takes a minute or two. On a CPU with their weights folded in,
            on a GPU with CUDA graphs.
        glance_call: images in one call of the glancer, more are split into several calls; 0: as many as come.
        focus_call: patches in one call of the focuser, likewise.

    Raises:
        InputError: no such precision, or a negative number.
    """

    precision: str = "float32"
    channels_last: bool = False
    compile: bool = False
    glance_call: int = 0
    focus_call: int = 0

    def __post_init__(self) -> None:
        lookup("precision", self.precision, PRECISIONS)
        for field in ("glance_call", "focus_call"):
            if getattr(self, field) < 0:
                raise InputError(f"{field}={getattr(self, field)} is no number of images; choose 1 or more, or 0 for as many as come")


PLAIN = Execution()
"""The networks as they are: all images in one call, batch norms not folded, no copy."""
# Images in a call of MobileNetV2 and of ResNet-50 on a CPU, and their side in pixels, where they measured best; by `compile`.
_CPU_CALLS = {False: ((2, 224), (32, 96)), True: ((8, 224), (16, 96))}
_SIZES = 64  # for which one network is compiled; beyond them PyTorch would run it uncompiled


def choose_execution(classifier: Classifier, precision: str = "float32", compile: bool = False) -> Execution:
    """The settings that measured best for that precision, compiled or not, on the device of ``classifier``; see `benchmarks`.

    Big activations cost a CPU more than many calls do, since they do not stay in its cache and the allocator gives them back to the
    system and gets them anew, page by page. So a call there has so many pixels, and smaller images come in larger numbers. On a GPU
    all images that come are one call, but for CUDA graphs, which want few sizes; what is best there has not been measured yet.

    Args:
        classifier: its device and the sizes of its images decide.
        precision: a name in `PRECISIONS`.
        compile: compile the networks.

    Raises:
        InputError: no such precision.
    """
    if classifier.device.type != "cpu":
        calls: tuple[int, ...] = (256, 256) if compile else (0, 0)
    else:
        images, sides = _CPU_CALLS[compile], (classifier.architecture.glance_size, classifier.architecture.patch_size)
        calls = tuple(max(1, count * measured**2 // side**2) for (count, measured), side in zip(images, sides, strict=True))
    return Execution(precision, channels_last=True, compile=compile, glance_call=calls[0], focus_call=calls[1])


def execution_of(classifier: Classifier) -> Execution:
    """Return how the networks of ``classifier`` are run."""
    return classifier.execution if isinstance(classifier, InferenceClassifier) else PLAIN


def optimized(classifier: Classifier) -> Classifier:
    """Return ``classifier`` with the execution that measured best for float32 (`choose_execution`); what inference and banks use.

    A classifier that has an execution already is returned as it is, so ``with_execution(classifier, PLAIN)`` runs the networks unchanged.
    The result is cached: it holds a copy of the weights. The copy follows changes of weights that PyTorch counts; after a fused
    optimizer step, which PyTorch does not count, a call of ``train()``, ``eval()`` or ``freeze()`` renews it. Forward hooks of the
    networks are called with ``with_execution(classifier, PLAIN)`` only.

    Args:
        classifier: Frozen.

    Raises:
        InputError: The classifier is in training mode.
    """
    if isinstance(classifier, InferenceClassifier):
        return classifier
    made_from = classifier.device, classifier.mode_changes, classifier.glancer, classifier.focuser, classifier.head
    cached = _OPTIMIZED.get(classifier)
    if cached is None or cached[0] != made_from:
        cached = _OPTIMIZED[classifier] = made_from, with_execution(classifier, choose_execution(classifier))
    return cached[1]


_OPTIMIZED: WeakKeyDictionary[Classifier, tuple[tuple[object, ...], Classifier]] = WeakKeyDictionary()


def with_execution(classifier: Classifier, execution: Execution) -> Classifier:
    """A classifier with the same weights, fingerprint and tensors whose glancer and focuser run as ``execution`` says.

    The networks that run are copies, made when first used and made again after a weight of ``classifier`` has changed; with `PLAIN`
    they are those of ``classifier``. Maps, vectors and scores are float32. An image does not depend on those beside it but for rounding.

    Args:
        classifier: frozen; itself executed or not.
        execution: how.

    Raises:
        InputError: it is in training mode, its device cannot compute in that precision (says what works), or nothing can compile.
    """
    if any(module.training for module in classifier.modules()):
        raise InputError("the classifier is in training mode; call classifier.freeze() first: what learns is run as it is")
    check_precision(execution.precision, classifier.device)
    if execution.compile:
        check_compiler()
    return InferenceClassifier(classifier, execution)


def check_precision(precision: str, device: torch.device) -> None:
    """Checks that a device has instructions for a precision.

    Raises:
        InputError: no such precision, or the device lacks it (says what works).
    """
    lookup("precision", precision, PRECISIONS)
    if not _works(precision, device):
        working = supported_precisions(device)
        raise InputError(f"precision={precision} is not something that {device.type} here can compute with; choose one of {working}")


def supported_precisions(device: torch.device) -> list[str]:
    """Return the names of the precisions that a device has instructions for; float32 is always among them."""
    return [name for name in PRECISIONS if _works(name, device)]


def check_compiler() -> None:
    """Checks that there is what PyTorch compiles with.

    Raises:
        InputError: something is missing (says what).
    """
    if shutil.which(compiler := os.environ.get("CXX", "g++")) is None:
        raise InputError(f"compile=true needs a C++ compiler, and there is no {compiler}; install g++, set CXX, or use compile=false")
    if not (headers := Path(sysconfig.get_path("include")) / "Python.h").exists():
        raise InputError(f"compile=true needs Python's headers, and there is no {headers}; install python3-dev, or use compile=false")


def _works(precision: str, device: torch.device) -> bool:
    """PyTorch has slow substitutes on both kinds of devices, which would be no gain."""
    if precision == "float32":
        return True
    if device.type == "cuda":
        return precision == "float16" or torch.cuda.get_device_capability(device) >= (8, 0)
    query = {"bfloat16": "_is_mkldnn_bf16_supported", "float16": "_is_mkldnn_fp16_supported"}[precision]
    return device.type == "cpu" and bool(getattr(torch.ops.mkldnn, query)())


class InferenceClassifier(Classifier):
    """See `with_execution`; the parts are those of the classifier that it was made from.

    Args:
        classifier: frozen.
        execution: how its networks are run.

    Attributes:
        look: runs the glancer.
        look_closely: runs the focuser.
    """

    def __init__(self, classifier: Classifier, execution: Execution) -> None:
        nn.Module.__init__(self)
        self.architecture, self.classes, self.execution = classifier.architecture, classifier.classes, execution
        self.glancer, self.focuser, self.head = classifier.glancer, classifier.focuser, classifier.head
        shifted = classifier.architecture.shift > 0
        self.look = NetworkRunner(classifier.glancer, execution, execution.glance_call, shifted=shifted, outputs=(0, 1))
        self.look_closely = NetworkRunner(classifier.focuser, execution, execution.focus_call, shifted=shifted, outputs=(1,))
        self.eval()

    def glance(self, frames: Tensor, num_frames: int = 1) -> tuple[Tensor, Tensor]:
        """As `Classifier.glance`."""
        maps, vectors = self.look(self.to_glance_size(frames), num_frames)
        return maps, vectors

    def focus(self, patches: Tensor, num_frames: int = 1) -> Tensor:
        """As `Classifier.focus`."""
        return self.look_closely(patches, num_frames)[0]


class NetworkRunner:
    """Runs one network.

    Args:
        network: frozen.
        execution: how.
        call: images in one call; 0: as many as come.
        shifted: whether images of a clip are mixed, so that they must stay together.
        outputs: which of maps and vectors are wanted.
    """

    def __init__(self, network: FrameNetwork, execution: Execution, call: int, *, shifted: bool, outputs: tuple[int, ...]) -> None:
        assert isinstance(network, nn.Module)
        self._network, self._execution, self._call, self._shifted, self._outputs = network, execution, call, shifted, outputs
        self._watch = WeightMonitor(network)
        self._made: Callable[..., Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}  # copies and pickles make their own

    def __call__(self, images: Tensor, num_frames: int) -> list[Tensor]:
        """Normalised images (M·t, 3, H, W) → the wanted outputs, float32.

        Raises:
            InputError: the number of images is no multiple of t = ``num_frames``, or the network is being trained.
        """
        if self._network.training:
            raise InputError("a classifier with an execution of its own is frozen and cannot learn; train the one that it was made from")
        unit = num_frames if self._shifted else 1
        if num_frames < 1 or len(images) % num_frames:
            raise InputError(f"num_frames={num_frames} does not divide {len(images)} images; give whole clips of num_frames images each")
        length = max(1, self._call // unit) * unit if self._call else max(1, len(images))
        results: list[Tensor] = []
        # Always the same modes, so that nothing is compiled twice, and outside inference mode, so that heads can learn from the results.
        with torch.inference_mode(False), torch.no_grad():
            for start in range(0, max(1, len(images)), length):
                part = images[start : start + length]
                found = self._part(part, length, unit)
                results = results or [self._empty_like(value, len(images)) for value in found]
                for result, value in zip(results, found, strict=True):
                    result[start : start + len(part)] = value[: len(part)]
        return results

    def _part(self, images: Tensor, length: int, unit: int) -> list[Tensor]:
        """One call. A compiled network is given few sizes only, so the last images of many are filled up with zeros."""
        count = min(length, unit * _power_of_two(len(images) // unit)) if self._execution.compile else len(images)
        given = torch.empty((count, *images.shape[1:]), dtype=self._dtype, device=images.device, memory_format=self._form)
        given[: len(images)] = images
        given[len(images) :] = 0
        found = self.network()(given, unit)
        return [found[output] for output in self._outputs]

    def _empty_like(self, found: Tensor, count: int) -> Tensor:
        form = self._form if found.ndim == 4 else torch.contiguous_format
        return torch.empty((count, *found.shape[1:]), dtype=torch.float32, device=found.device, memory_format=form)

    def network(self) -> Callable[..., Any]:
        """What is called with images of the right precision and layout, made anew if a weight has changed or has moved."""
        if self._execution == PLAIN:
            return cast(Callable[..., Any], self._network)
        if self._watch.changed() or self._made is None:
            network = _folded(copy.deepcopy(self._network).double()).to(dtype=self._dtype)
            network = network.to(memory_format=self._form)
            self._made = _compiled(network, next(network.parameters()).device) if self._execution.compile else network
        return self._made

    @property
    def _dtype(self) -> torch.dtype:
        return PRECISIONS[self._execution.precision]

    @property
    def _form(self) -> torch.memory_format:
        return torch.channels_last if self._execution.channels_last else torch.contiguous_format


def _folded(network: nn.Module) -> nn.Module:
    """Fold the batch norms of the trunk into the convolutions before them, where it can be traced: faster, with fewer roundings.

    The network is in float64, so that the folded weights are rounded once.
    """
    if isinstance(network, Backbone) and network.shift is None:  # the shift's hooks depend on numbers that a trace would fix
        with contextlib.suppress(Exception):  # a trace runs a network on stand-ins for tensors, which can fail in any way
            network.features = fuse(network.features)
    return network


def _compiled(network: nn.Module, device: torch.device) -> Callable[..., Any]:
    """Compiles ``network`` for the sizes that it is called with, up to `_SIZES` of them; each at its first call."""

    def look(images: Tensor, num_frames: int) -> Any:
        return network(images, num_frames)

    # What is compiled is kept with the code of a function: one of its own keeps networks from using up each other's room.
    own = FunctionType(look.__code__.replace(), look.__globals__, closure=look.__closure__)
    on_cpu = device.type == "cpu"
    compiled = torch.compile(own, dynamic=False, mode=None if on_cpu else "reduce-overhead")

    def run(images: Tensor, num_frames: int) -> Any:
        # Not options of torch.compile: the tracer, which runs before they hold, must know that the weights are constants.
        with dynamo.patch(recompile_limit=_SIZES), inductor.patch(freezing=on_cpu):
            return compiled(images, num_frames)

    return run


def _power_of_two(count: int) -> int:
    """The lowest one that is not below ``count``."""
    return 1 << (count - 1).bit_length()
