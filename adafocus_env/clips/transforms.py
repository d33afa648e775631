"""Sample the crop and flip of a clip, and apply them to all of its frames."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from classifiers.errors import refuse_if

SCALES = (1.0, 0.875, 0.75, 0.66)
_SNAP = 3  # pixels; a side that differs from the final size by less than this is set to the final size, which avoids resampling


@dataclass(frozen=True)
class Crop:
    """A rectangle to cut out of the frames, in pixels, and whether the result is mirrored horizontally."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False


def centre_crop(height: int, width: int, size: int) -> Crop:
    """Return the square with sides of ``size`` pixels in the middle of frames of (height, width).

    Raises:
        InputError: if the frames are smaller than the square.
    """
    refuse_if(
        min(height, width) < size,
        f"size: a crop of {size} pixels does not fit in frames of {height}×{width}; no side may be shorter than {size}",
    )
    return Crop((height - size) // 2, (width - size) // 2, size, size)


def sample_crop(
    height: int, width: int, size: int, rng: np.random.Generator, *, scales: Sequence[float] = SCALES, flip: bool = True
) -> Crop:
    """Sample a multi-scale crop at a random position. With ``flip``, the crop is mirrored with probability ½.

    The height and the width of the crop are each the shorter side of the frames times one of ``scales``. The two scales are equal or
    neighbours in ``scales``. Every position at which the crop fits is possible, including the last row and the last column.

    Args:
        height: height of the frames in pixels.
        width: width of the frames in pixels.
        size: side of the resized crop in pixels. A side of the crop that is nearly ``size`` is set to ``size``.
        rng: source of random numbers. The number of random numbers used depends only on ``flip``.
        scales: fractions of the shorter side, largest first.
        flip: whether the crop may be mirrored.
    """
    shorter = min(height, width)
    sides = [_side(shorter, scale, size) for scale in scales]
    pairs = [(i, j) for i in range(len(sides)) for j in range(len(sides)) if abs(i - j) <= 1]
    i, j = pairs[rng.integers(len(pairs))]
    top = int(rng.integers(height - sides[i] + 1))
    left = int(rng.integers(width - sides[j] + 1))
    return Crop(top, left, sides[i], sides[j], flip=flip and bool(rng.integers(2)))


def apply_crop(frames: Tensor, crop: Crop, size: int) -> Tensor:
    """Cut ``crop`` out of all frames and resize it to ``size``.

    A crop that already has the size ``size`` is copied without resampling. Crops of other sizes are resized bilinearly with antialiasing.

    Args:
        frames: (T, 3, H, W) uint8.
        crop: the rectangle to cut out.
        size: side of the result in pixels.

    Returns:
        A new tensor (T, 3, size, size) uint8.
    """
    cut = frames[..., crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    if (crop.height, crop.width) != (size, size):
        from torchvision.transforms.v2.functional import resize  # imports PyTorch's compiler, which takes seconds

        cut = resize(cut, [size, size], antialias=True)
    if cut.device.type == "cpu":  # torch uses threads even for small copies, which can be 100× slower on a busy machine
        pixels = cut.numpy()
        return torch.from_numpy((pixels[..., ::-1] if crop.flip else pixels).copy())
    return cut.flip(-1) if crop.flip else cut.clone(memory_format=torch.contiguous_format)


def map_points(points: NDArray[np.floating], crop: Crop, size: int) -> NDArray[np.float32]:
    """Convert points in the stored frames to points in the frames that `apply_crop` returns.

    Points outside the crop lie outside the frames of the result.

    Args:
        points: (..., 2) as (y, x) in pixels; (0, 0) is the centre of the top left pixel.
        crop: the crop applied to the frames.
        size: side of the result in pixels.

    Returns:
        Points (..., 2) float32 as (y, x), in pixels of the result.
    """
    mapped = rescale_points(np.asarray(points) - (crop.top, crop.left), (crop.height, crop.width), (size, size))
    if crop.flip:
        mapped = np.stack([mapped[..., 0], size - 1 - mapped[..., 1]], axis=-1)
    return mapped.astype(np.float32)


def rescale_points(points: NDArray[np.floating], old: tuple[int, int], new: tuple[int, int]) -> NDArray[np.float64]:
    """Convert points (..., 2), as (y, x) in pixels, from frames of size ``old`` (height, width) to the same frames resized to ``new``."""
    return (np.asarray(points, np.float64) + 0.5) * (np.array(new) / np.array(old)) - 0.5


def _side(shorter: int, scale: float, size: int) -> int:
    side = int(shorter * scale)
    return size if abs(side - size) < _SNAP and size <= shorter else max(side, 1)
