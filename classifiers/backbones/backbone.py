"""Backbones map images to feature maps and pooled vectors. Backbones also have a frame classifier, which is a linear layer.

Here and in the other modules, functions import torchvision only when they need it, because torchvision imports PyTorch's compiler, which
takes seconds.
"""

import math
from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from classifiers.backbones.efficientnet_lite import lite_trunk
from classifiers.backbones.library import LIBRARIES, check_model, measure, trunk
from classifiers.backbones.temporal_shift import PLACES, TemporalShift, put_into
from classifiers.errors import InputError, lookup, refuse_if


class Backbone(nn.Module):
    """A convolutional trunk, global pooling and a linear frame classifier.

    Args:
        features: The trunk, which maps images (N, 3, H, W) to maps (N, channels, h, w).
        channels: Number of channels of the maps, which is also the length of the pooled vector.
        num_classes: K, number of classes of the frame classifier.
        pool: How a map is pooled to a vector.
        map_bounds: Lowest and highest possible value of a map.

    Attributes:
        shift: The temporal shift in the trunk, if any.
    """

    def __init__(
        self,
        features: nn.Module,
        channels: int,
        num_classes: int,
        *,
        pool: Literal["mean", "max"] = "mean",
        map_bounds: tuple[float, float] = (-math.inf, math.inf),
    ) -> None:
        super().__init__()
        self.features = features
        self.dropout = nn.Dropout(0.0)  # dropout of the frame classifier; a stage may set it during training
        self.fc = nn.Linear(channels, num_classes)
        self.pool = pool
        self.map_channels = self.vector_size = channels
        self.map_bounds = map_bounds
        self.shift: TemporalShift | None = None

    def insert_shift(self, fraction: float, place: str) -> None:
        """Insert a temporal shift; see `classifiers.backbones.temporal_shift.put_into`.

        Raises:
            InputError: If the fraction is out of range, if the place is unknown, or if the trunk has no modules at this place. The message
                names the field.
        """
        check_shift(fraction, place)
        self.shift = put_into(self.features, fraction, place)

    def forward(self, images: Tensor, num_frames: int = 1) -> tuple[Tensor, Tensor]:
        """Return the maps (N, C, h, w) and pooled vectors (N, C) of images.

        Args:
            images: Normalised images (N, 3, H, W), ordered clip by clip.
            num_frames: Number of images per clip. Only the temporal shift needs ``num_frames``.

        Raises:
            InputError: If N is not a multiple of ``num_frames``.
        """
        if num_frames < 1 or images.shape[0] % num_frames:  # not len, which is a constant in exports
            raise InputError(f"num_frames={num_frames} does not divide {len(images)} images; give whole clips of num_frames images each")
        if self.shift is not None:
            self.shift.num_frames = num_frames
        maps = self.features(images)
        return maps, maps.mean((2, 3)) if self.pool == "mean" else maps.amax((2, 3))

    def scores(self, vectors: Tensor) -> Tensor:
        """Return the class scores (N, K) for pooled vectors (N, C)."""
        return self.fc(self.dropout(vectors))


def _layer(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True)
    )


def _mobilenet_v2_trunk() -> nn.Module:
    from torchvision.models import mobilenet_v2

    return mobilenet_v2(weights=None).features


def _resnet50_trunk() -> nn.Module:
    from torchvision.models import resnet50

    return nn.Sequential(*list(resnet50(weights=None).children())[:-2])


BACKBONES: dict[str, Callable[[int], Backbone]] = {
    # The paper's glancer. For images of 224 pixels, maps have the shape (1280, 7, 7); values are in [0, 6] because of the last ReLU6.
    "mobilenet_v2": lambda num_classes: Backbone(_mobilenet_v2_trunk(), 1280, num_classes, map_bounds=(0.0, 6.0)),
    # The paper's focuser. Vectors have the length 2048; values are at least 0 because of the last ReLU.
    "resnet50": lambda num_classes: Backbone(_resnet50_trunk(), 2048, num_classes, map_bounds=(0.0, math.inf)),
    # For images of 224 pixels, maps have the shape (1280, 7, 7), with values in [0, 6].
    # Lite2 is 10 % wider and 20 % deeper than Lite0; its vectors are as long as those of Lite0.
    "efficientnet_lite0": lambda num_classes: Backbone(lite_trunk(1.0, 1.0), 1280, num_classes, map_bounds=(0.0, 6.0)),
    "efficientnet_lite2": lambda num_classes: Backbone(lite_trunk(1.1, 1.2), 1280, num_classes, map_bounds=(0.0, 6.0)),
    # Two layers for glances of about 32 pixels. Maps have the shape (32, 8, 8), with values in [0, 6].
    # Because of max-pooling, a glancer that learns the classes becomes sensitive to the features that mark a small target.
    "small_glancer": lambda num_classes: Backbone(
        nn.Sequential(_layer(3, 16, stride=2), _layer(16, 32, stride=2)), 32, num_classes, pool="max", map_bounds=(0.0, 6.0)
    ),
    # Three layers for patches of about 24 pixels. Because of max-pooling, clutter around a target has little effect.
    "small_focuser": lambda num_classes: Backbone(
        nn.Sequential(_layer(3, 24, kernel=5, stride=2), _layer(24, 48, stride=2), _layer(48, 96, stride=2)),
        96,
        num_classes,
        pool="max",
        map_bounds=(0.0, 6.0),
    ),
}
"""Backbones by name, as functions of the number of classes."""


def build_backbone(name: str, num_classes: int) -> Backbone:
    """Return a backbone with random weights. Nothing is downloaded.

    Args:
        name: A name in `BACKBONES`, or ``torchvision/NAME`` or ``timm/NAME``.
        num_classes: K, number of classes.

    Raises:
        InputError: If the model is unknown, or has no feature map.
    """
    if "/" not in name:
        return lookup("backbone", name, BACKBONES)(num_classes)
    measured = measure(name)
    return Backbone(trunk(name), measured.channels, num_classes, map_bounds=measured.bounds)


def check_name(field: str, name: str) -> None:
    """Check the name of a backbone. (Whether a library's model can be a backbone is checked when it is built.)

    Raises:
        InputError: If the library or the model is unknown, or if the library is not installed. For an unknown name, the message suggests
            the nearest name.
    """
    if "/" in name:
        check_model(field, name)
        return
    refuse_if(
        name not in BACKBONES and name in LIBRARIES["torchvision"].names(),
        f"{field}={name!r} is not known; did you mean 'torchvision/{name}'?",
    )
    lookup(field, name, BACKBONES)


def check_shift(fraction: float, place: str) -> None:
    """Check the settings of the shift.

    Raises:
        InputError: If the fraction is out of range, or the place is unknown.
    """
    refuse_if(
        not 0 <= fraction <= 0.5,
        f"shift={fraction} is out of range; choose a share of the channels from 0 to 0.5 (the paper's is 1/8, 0 is none)",
    )
    lookup("shift_place", place, PLACES)
