"""Make the inference of frozen networks faster by precision, memory layout, compilation and batch size. The weights do not change."""

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
from torch.fx.experimental.optimization import fuse

from classifiers.backbones.backbone import Backbone
from classifiers.classifier import Classifier, WeightMonitor, check_frozen
from classifiers.errors import InputError, lookup, refuse_if
from classifiers.protocols import FrameNetwork

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Execution:
    """Execution settings of glancer and focuser. The head always runs in float32, because it is small and its state accumulates errors.

    Attributes:
        precision: Precision of weights and activations, a name in `PRECISIONS`. Outputs are always float32.
        channels_last: Whether images and activations have the memory layout (height, width, channels).
        compile: Whether to compile both networks at first use, which takes one or two minutes. On a CPU, weights are compiled as constants.
            On a GPU, CUDA graphs are used.
        glance_call: Largest batch of the glancer. Larger batches are split. 0: no limit.
        focus_call: Largest batch of the focuser. Larger batches are split. 0: no limit.

    Raises:
        InputError: If the precision is unknown, or a number is negative.
    """

    precision: str = "float32"
    channels_last: bool = False
    compile: bool = False
    glance_call: int = 0
    focus_call: int = 0

    def __post_init__(self) -> None:
        lookup("precision", self.precision, PRECISIONS)
        for field in ("glance_call", "focus_call"):
            refuse_if(
                getattr(self, field) < 0,
                f"{field} must be a number of images of at least 1, or 0 for no limit, got {getattr(self, field)}",
            )


PLAIN = Execution()
"""Settings that run the original networks, not a copy. All images are processed in one call, and batch norms are not folded."""
# Key: whether the networks are compiled. Value: the fastest batch size on a CPU and the side of the images in pixels, first for MobileNetV2
# and then for ResNet-50.
_CPU_CALLS = {False: ((2, 224), (32, 96)), True: ((8, 224), (16, 96))}
_MAX_SHAPES = 64  # maximum number of compiled shapes per network; PyTorch runs further shapes without compilation


def choose_execution(classifier: Classifier, precision: str = "float32", compile: bool = False) -> Execution:
    """Return the settings that were fastest in measurements on a device of the same kind as the classifier's; see `benchmarks`.

    On a CPU, one call with large activations takes longer than many calls with small activations. Large activations do not fit in the
    cache, and the allocator returns their memory to the system and requests it again, page by page. Batches therefore have a fixed number
    of pixels. On a GPU, batches are limited only with CUDA graphs, because CUDA graphs need few different shapes.

    Args:
        classifier: The classifier. The classifier's device and image sizes determine the settings.
        precision: A name in `PRECISIONS`.
        compile: Whether to compile the networks.

    Raises:
        InputError: If the precision is unknown.
    """
    if classifier.device.type != "cpu":
        calls: tuple[int, ...] = (256, 256) if compile else (0, 0)
    else:
        images, sides = _CPU_CALLS[compile], (classifier.architecture.glance_size, classifier.architecture.patch_size)
        calls = tuple(max(1, count * measured**2 // side**2) for (count, measured), side in zip(images, sides, strict=True))
    return Execution(precision, channels_last=True, compile=compile, glance_call=calls[0], focus_call=calls[1])


def execution_of(classifier: Classifier) -> Execution:
    """Return the execution settings of ``classifier``."""
    return classifier.execution if isinstance(classifier, InferenceClassifier) else PLAIN


def optimized(classifier: Classifier) -> Classifier:
    """Return ``classifier`` with the fastest settings for float32 (`choose_execution`). Inference and banks use these settings.

    A classifier that already has execution settings is returned unchanged; for example, ``with_execution(classifier, PLAIN)`` keeps running
    the original networks. The result is cached and holds a copy of the weights. The copy is renewed if PyTorch's version counters show a
    change of the weights. The counters do not show the step of a fused optimizer; after such a step, a call of ``train()``, ``eval()`` or
    ``freeze()`` renews the copy. Forward hooks of the networks are called only with ``with_execution(classifier, PLAIN)``.

    Args:
        classifier: A frozen classifier.

    Raises:
        InputError: If the classifier is in training mode.
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
    """Return a classifier with the same weights, fingerprint and tensors, whose glancer and focuser run with the given settings.

    The returned classifier runs copies of the networks. The copies are made at first use, and again after a weight of ``classifier`` has
    changed. With `PLAIN`, the original networks run instead. Maps, vectors and scores are float32. Other images in the batch change the
    features of an image only by rounding errors.

    Args:
        classifier: A frozen classifier, with or without execution settings.
        execution: The settings.

    Raises:
        InputError: If the classifier is in training mode, if the device does not support the precision, or if a compiler is needed but not
            installed.
    """
    check_frozen(classifier)
    check_precision(execution.precision, classifier.device)
    if execution.compile:
        check_compiler()
    return InferenceClassifier(classifier, execution)


def check_precision(precision: str, device: torch.device) -> None:
    """Check that a device has instructions for computing in a precision.

    Raises:
        InputError: If the precision is unknown, or the device does not support it. The message lists supported precisions.
    """
    lookup("precision", precision, PRECISIONS)
    if not _works(precision, device):
        raise InputError(f"precision={precision} is not supported by this {device.type}; choose one of {supported_precisions(device)}")


def supported_precisions(device: torch.device) -> list[str]:
    """Return the names of the precisions that a device has instructions for. The list always contains float32."""
    return [name for name in PRECISIONS if _works(name, device)]


def check_compiler() -> None:
    """Check that PyTorch finds a compiler.

    Raises:
        InputError: If the compiler or Python's headers are missing.
    """
    refuse_if(
        shutil.which(compiler := os.environ.get("CXX", "g++")) is None,
        f"compile=true needs a C++ compiler, but {compiler} was not found; install g++, set CXX, or use compile=false",
    )
    refuse_if(
        not (headers := Path(sysconfig.get_path("include")) / "Python.h").exists(),
        f"compile=true needs Python's headers, but {headers} was not found; install python3-dev, or use compile=false",
    )


def _works(precision: str, device: torch.device) -> bool:
    """Return whether a device has instructions for a precision. (PyTorch emulates other precisions, slowly.)"""
    if precision == "float32":
        return True
    if device.type == "cuda":
        return precision == "float16" or torch.cuda.get_device_capability(device) >= (8, 0)
    query = {"bfloat16": "_is_mkldnn_bf16_supported", "float16": "_is_mkldnn_fp16_supported"}[precision]
    return device.type == "cpu" and bool(getattr(torch.ops.mkldnn, query)())


class InferenceClassifier(Classifier):
    """A classifier that shares the modules of another classifier and runs them with other settings; see `with_execution`.

    Args:
        classifier: A frozen classifier.
        execution: The settings.

    Attributes:
        glancer_runner: Runs the glancer.
        focuser_runner: Runs the focuser.
    """

    def __init__(self, classifier: Classifier, execution: Execution) -> None:
        nn.Module.__init__(self)
        self.architecture, self.classes, self.execution = classifier.architecture, classifier.classes, execution
        self.glancer, self.focuser, self.head = classifier.glancer, classifier.focuser, classifier.head
        self.clip_format = classifier.clip_format
        shifted = classifier.architecture.shift > 0
        self.glancer_runner = NetworkRunner(classifier.glancer, execution, execution.glance_call, shifted=shifted, outputs=(0, 1))
        self.focuser_runner = NetworkRunner(classifier.focuser, execution, execution.focus_call, shifted=shifted, outputs=(1,))
        self.eval()

    def glance(self, frames: Tensor, num_frames: int = 1) -> tuple[Tensor, Tensor]:
        """See `Classifier.glance`."""
        return tuple(self.glancer_runner(self.to_glance_size(frames), num_frames))  # type: ignore[return-value]

    def focus(self, patches: Tensor, num_frames: int = 1) -> Tensor:
        """See `Classifier.focus`."""
        return self.focuser_runner(patches, num_frames)[0]


class NetworkRunner:
    """A callable that runs one network in batches.

    Args:
        network: The frozen network.
        execution: The settings.
        call: Largest batch; 0: no limit.
        shifted: Whether there is a temporal shift. A temporal shift mixes the images of a clip, so that these images must stay in one
            batch.
        outputs: Indices of the outputs to return: 0 for maps, 1 for vectors.
    """

    def __init__(self, network: FrameNetwork, execution: Execution, call: int, *, shifted: bool, outputs: tuple[int, ...]) -> None:
        assert isinstance(network, nn.Module)
        self._network, self._execution, self._call, self._shifted, self._outputs = network, execution, call, shifted, outputs
        self._dtype = PRECISIONS[execution.precision]
        self._layout = torch.channels_last if execution.channels_last else torch.contiguous_format
        self._monitor = WeightMonitor(network)
        self._copy: Callable[..., Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_copy": None}  # copies and pickles create new copies of the network

    def __call__(self, images: Tensor, num_frames: int) -> list[Tensor]:
        """Return the float32 outputs for normalised images (M·t, 3, H, W).

        Raises:
            InputError: If the number of images is not a multiple of t = ``num_frames``, or the network is in training mode.
        """
        refuse_if(self._network.training, "this is an inference-only copy; train the original classifier")
        unit = num_frames if self._shifted else 1
        refuse_if(
            num_frames < 1 or len(images) % num_frames,
            f"num_frames={num_frames} does not divide {len(images)} images; give whole clips of num_frames images each",
        )
        length = max(1, self._call // unit) * unit if self._call else max(1, len(images))
        results: list[Tensor] = []
        # The network always runs in the same inference mode and gradient mode, so that nothing is compiled twice.
        # Inference mode is off, so that heads can be trained on the results.
        with torch.inference_mode(False), torch.no_grad():
            for start in range(0, max(1, len(images)), length):
                batch = images[start : start + length]
                outputs = self._run_batch(batch, length, unit)
                results = results or [self._empty_like(output, len(images)) for output in outputs]
                for result, output in zip(results, outputs, strict=True):
                    result[start : start + len(batch)] = output[: len(batch)]
        return results

    def _run_batch(self, images: Tensor, length: int, unit: int) -> list[Tensor]:
        """Run one batch.

        For a compiled network, pad the batch with zeros to a power of two, because such a network needs few different shapes.
        """
        count = min(length, unit << (len(images) // unit - 1).bit_length()) if self._execution.compile else len(images)
        padded = torch.empty((count, *images.shape[1:]), dtype=self._dtype, device=images.device, memory_format=self._layout)
        padded[: len(images)] = images
        padded[len(images) :] = 0
        outputs = self.network()(padded, unit)
        return [outputs[index] for index in self._outputs]

    def _empty_like(self, output: Tensor, count: int) -> Tensor:
        layout = self._layout if output.ndim == 4 else torch.contiguous_format
        return torch.empty((count, *output.shape[1:]), dtype=torch.float32, device=output.device, memory_format=layout)

    def network(self) -> Callable[..., Any]:
        """Return the network or its optimized copy. The copy is renewed after a weight has changed or moved."""
        if self._execution == PLAIN:
            return cast(Callable[..., Any], self._network)
        if self._monitor.changed() or self._copy is None:
            network = _fold_batch_norms(copy.deepcopy(self._network).double()).to(dtype=self._dtype).to(memory_format=self._layout)
            self._copy = _compile(network, next(network.parameters()).device) if self._execution.compile else network
        return self._copy


def _fold_batch_norms(network: nn.Module) -> nn.Module:
    """Fold the batch norms of the trunk into the preceding convolutions, if the trunk can be traced. Folding saves time and reduces
    rounding errors.

    The network must be float64, so that the folded weights are rounded only once.
    """
    if isinstance(network, Backbone) and network.shift is None:  # a trace would make the number of frames in hooks constant
        with contextlib.suppress(Exception):  # tracing third-party networks may raise any exception
            network.features = fuse(network.features)
    return network


def _compile(network: nn.Module, device: torch.device) -> Callable[..., Any]:
    """Return a compiled version of ``network``. The network is compiled again for every new input shape, up to `_MAX_SHAPES` shapes."""
    from torch._dynamo import config as dynamo  # imported here, because the import of the compiler takes seconds
    from torch._inductor import config as inductor

    def forward(images: Tensor, num_frames: int) -> Any:
        return network(images, num_frames)

    # PyTorch limits the number of compiled shapes per code object. Therefore, every network needs a separate code object.
    own = FunctionType(forward.__code__.replace(), forward.__globals__, closure=forward.__closure__)
    on_cpu = device.type == "cpu"
    compiled = torch.compile(own, dynamic=False, mode=None if on_cpu else "reduce-overhead")

    def run(images: Tensor, num_frames: int) -> Any:
        # These options are set here because options of torch.compile apply only after tracing.
        # The tracer must already know that the weights are constants.
        with dynamo.patch(recompile_limit=_MAX_SHAPES), inductor.patch(freezing=on_cpu):
            return compiled(images, num_frames)

    return run
