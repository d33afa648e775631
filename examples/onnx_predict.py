"""Predict a video with only ONNX Runtime, NumPy and decord (or PyAV), without importing PyTorch or AdaFocus-Env.

    python -m agents.export run=DIR format=onnx out=FOLDER
    python examples/onnx_predict.py FOLDER video.mp4

Classes and boxes equal those of ``python -m agents.predict``. Only ``agents.predict`` can read folders of images, and videos that are
rotated for display.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Array = NDArray[Any]


def read_frames(video: str, short_side: int, choose: Callable[[Array], Array]) -> tuple[Array, tuple[int, int]]:
    """Return resized frames (n, H, W, 3) and the video's (height, width). ``choose`` is a function that takes the times of all frames and
    returns the indices of the frames to use."""
    try:
        import decord

        size = decord.VideoReader(video)[0].shape[:2]
        height, width = (max(round(side * short_side / min(size)), short_side) for side in size)
        reader = decord.VideoReader(video, width=width, height=height)
        return reader.get_batch(choose(reader.get_frame_timestamp(range(len(reader)))[:, 0])).asnumpy(), size
    except ImportError:  # decord has no wheels for some systems
        import av

        frames = list(av.open(video).decode(video=0))
        size = frames[0].height, frames[0].width
        height, width = (max(round(side * short_side / min(size)), short_side) for side in size)
        chosen = [frames[number] for number in choose(np.array([frame.time for frame in frames]))]
        return np.stack([frame.reformat(width, height, "rgb24").to_ndarray() for frame in chosen]), size


def frame_numbers(times: Array, count: int) -> Array:
    """Divide the video into ``count`` equal segments, and return the numbers of the frames in their middle.

    If the frame rate is constant, all segments have the same number of frames; otherwise, they have the same duration.
    """
    times = np.sort(times).astype(np.float64) - times.min()
    segment, period = len(times) / count, times[-1] / max(1, len(times) - 1)
    if 2 * np.abs(times - np.linspace(0, times[-1], len(times))).max() > period:
        middles = (np.arange(count) + 0.5) * (times[-1] + period) / count
        return np.maximum(np.searchsorted(times, middles + 1e-6, side="right") - 1, 0)
    return np.minimum(np.arange(count), len(times) - 1) if segment <= 1 else (segment / 2 + segment * np.arange(count)).astype(int)


def predict(folder: Path | str, video: Path | str) -> tuple[Array, Array, Array]:
    """Return the names of the classes (K,), their probabilities after every frame (T, K), and the boxes (T, 4); skipped frames are NaN."""
    about = json.loads(Path(folder, "metadata.json").read_text(encoding="utf-8"))
    run = {file.stem: onnxruntime.InferenceSession(str(file)).run for file in Path(folder).glob("*.onnx")}
    count, size, patch, repeats = about["num_frames"], about["size"], about["patch_size"], about["num_frames"] // about["decisions"]
    orders = about["frame_order"], about["glance_order"]  # the orders in which the networks see the frames
    pixels, shown = read_frames(
        str(video), about["short_side"], lambda times: np.concatenate([frame_numbers(times, len(each))[each] for each in orders])
    )
    top, left = ((side - size) // 2 for side in pixels.shape[1:3])
    frames = pixels[:, top : top + size, left : left + size].astype(np.float32) / 255
    frames = ((frames - np.float32(about["mean"])) / np.float32(about["std"])).transpose(0, 3, 1, 2)

    maps, glance_vectors = run["glancer"](None, {"frames": frames[None, count:]})
    [corners], patch_mask = run["policy"](["corners", "patch_mask"], {"maps": maps})
    decided = frames[:count].reshape(-1, repeats, *frames.shape[1:])  # the frames of a decision have the same patch
    if about["patch_crop"] == "interpolated":
        [patches] = run["crop"](None, {"crop_frames": decided, "corners": corners})
    else:
        patches = np.stack([each[..., y : y + patch, x : x + patch] for each, (y, x) in zip(decided, corners, strict=True)])
    corners = np.rint(corners.repeat(repeats, axis=0))
    vectors = np.zeros((1, len(patches), repeats, about["focus_size"]), np.float32)
    if patch_mask.any():
        [vectors[patch_mask]] = run["focuser"](None, {"patches": patches[patch_mask[0]]})
    [[probabilities]] = run["head"](None, {"glance_vectors": glance_vectors, "focus_vectors": vectors, "patch_mask": patch_mask})

    scale = np.divide(shown, pixels.shape[1:3])  # to pixels of the video
    boxes = (np.hstack([corners, corners + patch]) + np.tile([top, left], 2)) * np.tile(scale, 2)
    boxes[~patch_mask[0].repeat(repeats)] = np.nan
    return np.array(about["classes"]), probabilities, boxes


if __name__ == "__main__":
    classes, probabilities, boxes = predict(*sys.argv[1:])
    for number in np.argsort(-probabilities[-1], kind="stable")[:5]:
        print(f"{classes[number]}: {probabilities[-1, number]:.1%}")  # noqa: T201
    print(boxes.round(1))  # noqa: T201
