"""Predict a video with only ONNX Runtime, NumPy and decord, without importing PyTorch or AdaFocus-Env.

    python -m agents.export run=DIR format=onnx out=FOLDER
    python examples/onnx_predict.py FOLDER video.mp4

Classes and boxes equal those of ``python -m agents.predict`` where decord is installed. Only ``agents.predict`` can read folders of images,
videos that are rotated for display, and containers such as AVI, which decord does not read reliably.
"""

import json
import sys
from pathlib import Path

import decord
import numpy as np
import onnxruntime


def frame_numbers(times: np.ndarray, count: int) -> np.ndarray:
    """Divide the video into ``count`` equal segments, and return the numbers of the frames in their middle.

    If the frame rate is constant, all segments have the same number of frames; otherwise, they have the same duration.
    """
    times = np.sort(times).astype(np.float64) - times.min()
    length, period = len(times) / count, times[-1] / max(1, len(times) - 1)
    if np.abs(times - np.linspace(0, times[-1], len(times))).max() > period / 2:
        return np.searchsorted(times, (np.arange(count) + 0.5) * length * period + 1e-6, side="right") - 1
    length = max(1, length)  # a video with fewer frames than segments: all frames, then the last frame again
    return np.minimum(length / 2 + length * np.arange(count), len(times) - 1).astype(int)


def read_frames(video: str, short_side: int, orders: list[list[int]]) -> tuple[np.ndarray, tuple[int, int]]:
    """Return resized frames (n, H, W, 3) and the video's (height, width). The frames are those of the first order, then of the next."""
    size = decord.VideoReader(video)[0].shape[:2]
    height, width = (max(round(side * short_side / min(size)), short_side) for side in size)
    reader = decord.VideoReader(video, width=width, height=height)
    times = reader.get_frame_timestamp(range(len(reader)))[:, 0]
    return reader.get_batch(np.concatenate([frame_numbers(times, len(order))[order] for order in orders])).asnumpy(), size


def predict(folder: Path | str, video: Path | str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the names of the classes (K,), their probabilities after every frame (T, K), and the boxes (T, 4); skipped frames are NaN."""
    about = json.loads(Path(folder, "metadata.json").read_text(encoding="utf-8"))
    run = {file.stem: onnxruntime.InferenceSession(str(file)).run for file in Path(folder).glob("*.onnx")}
    count, size = about["num_frames"], about["size"]
    pixels, shown = read_frames(str(video), about["short_side"], [about["frame_order"], about["glance_order"]])
    top, left = origin = (np.array(pixels.shape[1:3]) - size) // 2  # of the square in the middle
    frames = pixels[None, :, top : top + size, left : left + size]

    maps, glances = run["glancer"](None, {"frames": frames[:, count:]})
    corners, mask = run["policy"](["corners", "patch_mask"], {"maps": maps})
    [vectors] = run["focuser"](None, {"frames": frames[:, :count], "corners": corners, "patch_mask": mask})
    [[probabilities]] = run["head"](None, {"glance_vectors": glances, "focus_vectors": vectors, "patch_mask": mask})

    corners = np.rint(corners[0]) + origin
    boxes = np.hstack([corners, corners + about["patch_size"]]) * np.tile(np.divide(shown, pixels.shape[1:3]), 2)  # in the video's pixels
    boxes[~mask[0]] = np.nan
    return np.array(about["classes"]), probabilities, boxes.repeat(count // len(boxes), axis=0)


if __name__ == "__main__":
    classes, probabilities, boxes = predict(*sys.argv[1:])
    for number in np.argsort(-probabilities[-1], kind="stable")[:5]:
        print(f"{classes[number]}: {probabilities[-1, number]:.1%}")  # noqa: T201
    print(boxes.round(1))  # noqa: T201
