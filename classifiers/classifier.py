"""The classifier, which consists of glancer, focuser, head and preprocessing, and the checks that a frozen classifier does not change."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter, is_
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from classifiers.backbones.backbone import build_backbone, check_name, check_shift
from classifiers.errors import InputError, lookup, refuse_if
from classifiers.heads import HEADS, MaxPerStepHead, SeparateMeanHead, averages_frames
from classifiers.protocols import Focuser, Glancer, Head

WEIGHTS = {"none": False, "default": True}
"""Initial weights of the backbones of a new classifier: random weights, or the pretrained weights of each backbone."""
RESIZES = {"antialias": {"align_corners": False, "antialias": True}, "align_corners": {"align_corners": True, "antialias": False}}
"""Bilinear resizing of frames for the glancer. It uses either antialiasing, or aligned corners, which AdaFocusV2's ResNet-50 glancer
needs."""


@dataclass(frozen=True)
class ClipFormat:
    """How clips are made from the videos that a classifier is trained on. Inference makes clips in the same way.

    Attributes:
        num_frames: T, frames per clip.
        glance_frames: Number of separately sampled frames for the glancer; 0: the glancer sees the focuser's frames.
        margin: Shorter side of the decoded frames as a multiple of the side of the crop.
        order: Order in which the networks see the frames, a name in `adafocus_env.videos.frame_sampling.ORDERS`.

    Raises:
        InputError: If a number is out of range. The message names the field.
    """

    num_frames: int = 8
    glance_frames: int = 0
    margin: float = 256 / 224
    order: Literal["time", "coarse_to_fine"] = "time"

    def __post_init__(self) -> None:
        for field, least in {"num_frames": 1, "glance_frames": 0, "margin": 1}.items():
            refuse_if(getattr(self, field) < least, f"{field} must be at least {least}, got {getattr(self, field)}")


@dataclass(frozen=True)
class Architecture:
    """The networks of a classifier and its preprocessing. Lengths are in pixels.

    Attributes:
        glancer: Name of the glancer's backbone: a name in `classifiers.backbones.backbone.BACKBONES`, torchvision/NAME or timm/NAME.
        focuser: Name, as for the glancer.
        head: Name in `classifiers.heads.HEADS`.
        hidden_size: Length of the head's state.
        dropout: Dropout probability of the head in training.
        size: Height and width of a frame.
        glance_size: Height and width to which the glancer's frames are resized.
        patch_size: P, height and width of a patch.
        mean: Mean of each channel (RGB). The mean is subtracted from pixel values in the range 0-1.
        std: Standard deviation of each channel. After the subtraction, pixel values are divided by the standard deviation.
        shift: Share of the channels that the temporal shift of both backbones moves in each direction; 0: no shift.
        shift_place: Location of the shift in the blocks, a name in `classifiers.backbones.temporal_shift.PLACES`.
        weights: Which initial weights the backbones of a new classifier have, a name in `WEIGHTS`; see `classifiers.backbones.imagenet`.
        head_steps: Number of steps of the head `max_per_step`, which has a separate linear layer for each step; 0 for other heads.
        resize: How the glancer's frames are resized, a name in `RESIZES`.

    Raises:
        InputError: If a name is unknown, or a number is out of range. The message names the field.
    """

    glancer: str
    focuser: str
    head: str
    hidden_size: int
    dropout: float
    size: int
    glance_size: int
    patch_size: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    shift: float = 0.0
    shift_place: str = "blockres"
    weights: str = "none"
    head_steps: int = 0
    resize: str = "antialias"

    def __post_init__(self) -> None:
        for field in ("glancer", "focuser"):
            check_name(field, getattr(self, field))
        lookup("head", self.head, HEADS)
        lookup("weights", self.weights, WEIGHTS)
        for field in ("hidden_size", "size", "glance_size"):
            refuse_if(getattr(self, field) < 1, f"{field}={getattr(self, field)} is too small; choose 1 or more")
        refuse_if(not 0 <= self.dropout <= 1, f"dropout={self.dropout} is out of range; choose a share from 0 to 1")
        refuse_if(
            not 0 < self.patch_size <= self.size,
            f"patch_size={self.patch_size} does not fit frames of {self.size} pixels; choose a patch_size from 1 to {self.size}",
        )
        check_shift(self.shift, self.shift_place)
        lookup("resize", self.resize, RESIZES)
        limited = HEADS[self.head] is MaxPerStepHead
        refuse_if(
            self.head_steps < limited or (self.head_steps > 0 and not limited),
            f"head_steps={self.head_steps} does not suit head={self.head!r}; set architecture.head_steps to the frames of a clip with "
            "head='max_per_step', and to 0 with any other",
        )

    @property
    def averages_frames(self) -> bool:
        """Whether the head averages the scores of frames, so that one decision may cover several frames."""
        return averages_frames(self.head)


class Classifier(nn.Module):
    """The networks f_G, f_L and f_C of AdaFocus (paper, section 3).

    A new object has random weights (see also `classifiers.backbones.imagenet`).

    Args:
        architecture: The networks.
        classes: Names of the K classes, in the order of the scores.

    Attributes:
        mode_changes: Number of calls of ``train``, ``eval`` and ``freeze`` so far. A call of any of these three methods makes cached copies
            of the networks invalid.
        clip_format: How clips are made from a video, if known.

    Raises:
        InputError: If a library's model cannot be used as a backbone, or if the networks have no blocks for the temporal shift.
    """

    mode_changes: int = 0
    clip_format: ClipFormat = ClipFormat()

    def __init__(self, architecture: Architecture, classes: Sequence[str]) -> None:
        super().__init__()
        self.architecture, self.classes = architecture, tuple(classes)
        glancer = build_backbone(architecture.glancer, len(self.classes))
        focuser = build_backbone(architecture.focuser, len(self.classes))
        if architecture.shift:
            glancer.insert_shift(architecture.shift, architecture.shift_place)
            focuser.insert_shift(architecture.shift, architecture.shift_place)
        build = HEADS[architecture.head]
        glance_size = glancer.vector_size if build.glance_part == "vector" else len(self.classes)
        extra: dict[str, int] = {}
        if build is MaxPerStepHead:
            extra = {"num_steps": architecture.head_steps}
        elif build is SeparateMeanHead:
            extra = {"glance_size": glance_size}
        head = build(
            glance_size + focuser.vector_size,
            len(self.classes),
            hidden_size=architecture.hidden_size,
            dropout=architecture.dropout,
            **extra,
        )
        self.glancer: Glancer = cast(Glancer, glancer)
        self.focuser: Focuser = cast(Focuser, focuser)
        self.head: Head = cast(Head, head)

    def normalise(self, frames: Tensor | NDArray[np.uint8]) -> Tensor:
        """Return the frames as the networks expect them: normalised, float32, with the same shape.

        Args:
            frames: Pixels from 0 to 255, uint8 (…, 3, H, W). A tensor stays on its device; a NumPy array moves to the classifier's device.

        Raises:
            InputError: If the frames are not uint8, or if the axis of the channels is not before height and width.
        """
        _check_pixels(frames)
        if isinstance(frames, np.ndarray):  # copied, because PyTorch supports neither read-only arrays nor negative strides
            frames = torch.from_numpy(frames.copy(order="K")).to(self.device)
        mean = frames.new_tensor(self.architecture.mean, dtype=torch.float32).view(3, 1, 1)
        std = frames.new_tensor(self.architecture.std, dtype=torch.float32).view(3, 1, 1)
        # Make one copy, then use in-place operations, because creating another large tensor would take as much time as a layer.
        return frames.to(torch.float32, copy=True).div_(255).sub_(mean).div_(std)

    def glance(self, frames: Tensor, num_frames: int = 1) -> tuple[Tensor, Tensor]:
        """Resize frames to the glance size, and return glance maps and glance vectors.

        Args:
            frames: Normalised frames (M·t, 3, H, W), ordered clip by clip.
            num_frames: t, glancer frames per clip. Only the temporal shift needs ``num_frames``.

        Returns:
            Maps (M·t, C, h, w) and vectors (M·t, C).

        Raises:
            InputError: If the number of frames is not a multiple of t.
        """
        return self.glancer(self.to_glance_size(frames), num_frames)

    def to_glance_size(self, frames: Tensor) -> Tensor:
        """Resize frames (M, 3, H, W) to the input of the glancer (M, 3, glance_size, glance_size)."""
        size = self.architecture.glance_size
        if frames.shape[-1] == size:
            return frames
        return F.interpolate(frames, (size, size), mode="bilinear", **RESIZES[self.architecture.resize])

    def focus(self, patches: Tensor, num_frames: int = 1) -> Tensor:
        """Return the focus vectors (M·f, F) of patches.

        Args:
            patches: Normalised patches (M·f, 3, P, P), ordered by decision.
            num_frames: f, patches per decision. Only the temporal shift needs ``num_frames``.

        Raises:
            InputError: If the number of patches is not a multiple of f.
        """
        return self.focuser(patches, num_frames)[1]

    def classify(self, glances: Tensor, focus_vectors: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the scores (N, T, K) and the new state (N, S), given glance vectors (N, T, C), focus vectors (N, T, F) and the old state
        (N, S)."""
        inputs = glances if self.head.glance_part == "vector" else self.glancer.scores(glances)
        return self.head(torch.cat([inputs, focus_vectors], dim=-1), state)

    def compare(self, glances: Tensor, focus_vectors: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Classify the next step of N clips with each of k alternative focus vectors.

        All k alternatives start from the same state of the head.

        Args:
            glances: Glance vectors (N, C).
            focus_vectors: (k, N, F).
            state: State (N, S) before the step.

        Returns:
            Scores (k, N, K), and the state (N, S) after the step with the first of the k focus vectors.
        """
        if compare := getattr(self.head, "compare", None):
            return compare(glances, focus_vectors, state)
        glances, states = (each.expand(len(focus_vectors), -1, -1).flatten(0, 1) for each in (glances, state))
        scores, states = self.classify(glances[:, None], focus_vectors.flatten(0, 1)[:, None], states)
        return scores.unflatten(0, focus_vectors.shape[:2])[:, :, 0], states[: state.shape[0]]

    def initial_state(self, num_clips: int) -> Tensor:
        """Return the head's state (num_clips, S) before the first step, which consists of zeros."""
        return torch.zeros(num_clips, self.head.state_size, device=self.device)

    def train(self, mode: bool = True) -> "Classifier":
        """Set training or evaluation mode. The call is counted in ``mode_changes``, because the weights may change afterwards."""
        self.mode_changes += 1
        return super().train(mode)

    def freeze(self) -> "Classifier":
        """Set all networks to eval mode without gradients, and return the classifier."""
        return self.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return next(self.parameters()).device

    def fingerprint(self, parts: Sequence[str] = ("focuser", "glancer", "head")) -> str:
        """Return a hash (64 hex digits) of all parameters and buffers of the given networks. Equal weights have equal hashes."""
        return hash_of({name: tensor for name, tensor in self.state_dict().items() if name.partition(".")[0] in parts})


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash (64 hex digits) of named tensors. The hash does not depend on the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        values = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)  # also if the tensor has expanded dimensions
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_pixels(frames: Tensor | NDArray[np.uint8]) -> None:
    """Check shape and dtype of frames, without waiting for a device."""
    shape, dtype = tuple(frames.shape), str(frames.dtype).removeprefix("torch.")
    if dtype != "uint8":
        hint = "; floats may lie in 0-1 or in 0-255, so convert them yourself" if dtype.startswith(("float", "bfloat")) else ""
        raise InputError(f"frames must be uint8, pixels from 0 to 255, got {dtype}{hint}")
    if len(shape) < 3 or shape[-3] != 3:
        move = "np.moveaxis(frames, -1, -3)" if isinstance(frames, np.ndarray) else "frames.movedim(-1, -3)"
        hint = f"; bring the channels before height and width: {move}" if len(shape) >= 3 and shape[-1] == 3 else ""
        raise InputError(f"frames must have the shape (…, 3, H, W), got {shape}{hint}")


def check_frozen(network: nn.Module) -> None:
    """Check that all modules of ``network`` are in eval mode. (In training mode, features depend on the batch and on random numbers.)

    Raises:
        InputError: If a module is in training mode.
    """
    refuse_if(
        any(module.training for module in network.modules()),
        "the classifier is in training mode; call classifier.freeze() first, so that its features stay the same",
    )


class WeightMonitor:
    """A fast check of whether the weights of a network may have changed.

    The check compares the identity, the memory address and PyTorch's version counter of every parameter and buffer, and the identity of
    every module. The check takes about 0.1 microseconds per tensor. The check does not detect changes that PyTorch does not count. Examples
    are writes through ``tensor.data`` (``weight.data.mul_(2)``) or through a NumPy view, steps of a fused optimizer, and changes of
    settings that are not tensors, such as the ``eps`` of a batch norm.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._record()

    def changed(self) -> bool:
        """Return whether the weights may have changed since the last call."""
        held = self._entries()
        if len(held) == len(self._held) and all(map(is_, held, self._held)) and self._writes() == self._seen:
            return False
        self._record()
        return True

    def _record(self) -> None:
        tables = [(module._modules, module._parameters, module._buffers) for module in self._network.modules()]
        self._tables: list[dict[str, Any]] = [table for three in tables for table in three if table]
        self._held = self._entries()  # the references prevent new tensors from reusing the memory
        self._tensors = [entry for entry in self._held if isinstance(entry, Tensor)]
        self._seen = self._writes()

    def _entries(self) -> list[object]:
        return list(chain.from_iterable(map(dict[str, Any].values, self._tables)))

    def _writes(self) -> tuple[list[int], list[int]]:
        return list(map(Tensor.data_ptr, self._tensors)), list(map(_VERSION, self._tensors))


_VERSION = attrgetter("_version")
