"""Crop patches: at whole pixels, as AdaFocus does, or at real-valued corners by interpolation (AdaFocusV2, arXiv:2112.14238).

Interpolated patches are differentiable with respect to the location. A crop at whole pixels has no gradient with respect to the location.
"""

import math

import torch
from torch import Tensor


def crop_patches(frames: Tensor, source: Tensor, corners: Tensor, patch_size: int) -> Tensor:
    """Crop patches out of frames in one gather operation, without a loop or a device synchronisation.

    Patches at real-valued corners are interpolated. The memory layout of the result is ``torch.channels_last``, which makes convolutions on
    a CPU faster.

    Args:
        frames: (M, 3, H, W), any dtype.
        source: (N,) int64, index of the frame of each patch.
        corners: (N, 2), (top, left) of each patch in pixels, as int64 or floating point. For floating point, see
            `crop_at_corners`.
        patch_size: P in pixels.

    Returns:
        Patches (N, 3, P, P) with the dtype of the frames. Interpolated patches have the more precise of the dtypes of frames and corners.
    """
    if corners.is_floating_point():
        return crop_at_corners(frames, source, corners, patch_size)
    windows = frames.permute(0, 2, 3, 1).unfold(1, patch_size, 1).unfold(2, patch_size, 1).permute(0, 1, 2, 4, 5, 3)
    return windows[source, corners[:, 0], corners[:, 1]].permute(0, 3, 1, 2)  # windows: a view (M, rows, columns, P, P, 3)


def crop_at_locations(frames: Tensor, locations: Tensor, patch_size: int) -> Tensor:
    """Crop one patch out of every frame, differentiable with respect to the location.

    Args:
        frames: (…, 3, H, W), floating point.
        locations: (…, 2) in [0, 1] as (row, column), broadcast over the leading axes of the frames. For frames (N, T, 3, H, W), locations
            (N, 1, 2) give one location per clip. The corner of the patch at location a is a · (H − P, W − P), without rounding.
        patch_size: P, height and width of a patch in pixels.

    Returns:
        Patches (…, 3, P, P).
    """
    *leading, _, height, width = frames.shape
    corners = locations * locations.new_tensor([height - patch_size, width - patch_size])
    flat, source = frames.reshape(-1, 3, height, width), torch.arange(math.prod(leading), device=frames.device)
    patches = crop_at_corners(flat, source, corners.expand(*leading, 2).reshape(-1, 2), patch_size)
    return patches.reshape(*leading, 3, patch_size, patch_size)


def crop_at_corners(frames: Tensor, source: Tensor, corners: Tensor, patch_size: int) -> Tensor:
    """Crop patches out of frames. Pixel (i, j) of a patch is the value of the frame at (top + i, left + j), interpolated bilinearly.

    Pixels outside of a frame are 0. If a corner lies on whole pixels, the result is a plain crop. The gradient with respect to a corner is
    the slope of the bilinear surface. On whole pixels, the gradient is the slope towards the bottom right. All pixels of a patch have the
    same interpolation weights. Therefore, a patch needs only one gather of (P + 1)² pixels and two weighted sums. Results and gradients are
    deterministic on every device. The memory layout of the result is ``torch.channels_last``.

    Args:
        frames: (M, 3, H, W), floating point.
        source: (N,) int64, index of the frame of each patch.
        corners: (N, 2), (top, left) of each patch in pixels, real numbers.
        patch_size: P in pixels.

    Returns:
        Patches (N, 3, P, P). The dtype is the more precise of the dtypes of frames and corners.
    """
    first = corners.detach().floor()
    offsets = torch.arange(patch_size + 1, device=frames.device)
    rows, columns = first.long().unsqueeze(-1).add(offsets).unbind(1)
    last_row, last_column = frames.shape[-2] - 1, frames.shape[-1] - 1
    inside = ((rows >= 0) & (rows <= last_row))[:, :, None] & ((columns >= 0) & (columns <= last_column))[:, None]
    pixels = frames.permute(0, 2, 3, 1)[source[:, None, None], rows.clamp(0, last_row)[:, :, None], columns.clamp(0, last_column)[:, None]]
    precision = torch.promote_types(frames.dtype, corners.dtype)
    pixels = pixels.to(precision) * inside.unsqueeze(-1)
    down, right = (corners - first).to(precision)[..., None, None, None].unbind(1)
    pixels = torch.lerp(pixels[:, :-1], pixels[:, 1:], down)
    pixels = torch.lerp(pixels[:, :, :-1], pixels[:, :, 1:], right)
    return pixels.permute(0, 3, 1, 2)
