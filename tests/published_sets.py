"""Write the published data sets in miniature, with real JPEG frames, real MP4 files, and lists in the published format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from videos import square_frames, write_video

from adafocus_env.videos.published import PUBLISHED

LINES = {
    "actnet": (["a,20,0,0,0", "b,20,1", "c,20,1,0", "d,20,0", "short,2,1"], ["e,20,0", "f,20,1,0,1"]),
    "fcvid": (["a,20,0", "b,20,1", "c,20,1,0", "d,20,0", "short,2,1"], ["e,20,0", "f,20,1,0"]),
    "minik": (
        ["train/left turn/a 20 0", "train/right turn/b 20 1", "train/right turn/c 20 1", "train/left turn/d 20 0",
         "train/left turn/short 2 0"],
        ["val/left turn/e 20 0", "val/right turn/f 20 1"],
    ),
    "sthv1": (["1 20 0", "2 20 1", "3 20 1", "4 20 0", "9 2 1"], ["5 20 0", "6 20 1"]),
    "sthv2": (["1 20 0", "2 20 1", "3 20 1", "4 20 0", "9 2 1"], ["5 20 0", "6 20 1"]),
    "jester": (["1 20 0", "2 20 1", "3 20 1", "4 20 0", "9 2 1"], ["5 20 0", "6 20 1"]),
}
CLASSES = {"actnet": "0,left turn\n1,right turn\n", "fcvid": "1 left turn\n2 right turn\n"}


def make_lists(root: Path, name: str) -> Path:
    """Write class file and lists of two classes below ``root``, and return ``root``."""
    about = PUBLISHED[name]
    train, test = LINES[name]
    for file, text in (
        (about.class_file, CLASSES.get(name, "left turn\nright turn\n")),
        (about.train_list, "\n".join(train) + "\n"),
        (about.test_list, "\n".join(test) + "\n"),
    ):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text)
    return root


def paths(name: str) -> list[str]:
    """Return the paths of the videos in both lists, without the video that is too short."""
    lines = [line for part in LINES[name] for line in part if "short" not in line and not line.startswith("9")]
    return [line.split(",")[0] if "," in line else line.rsplit(" ", 2)[0] for line in lines]


def make_frames(root: Path, name: str, num_frames: int = 20) -> Path:
    """Write a folder of JPEG frames for every video, each in a different shade."""
    about = PUBLISHED[name]
    for number, path in enumerate(paths(name)):
        folder = root / about.frames / path
        folder.mkdir(parents=True)
        for t, frame in enumerate(_frames(number, num_frames)):
            Image.fromarray(frame).save(folder / (about.frame_name % (t + 1)), quality=95)
    return root


def make_videos(root: Path, name: str, num_frames: int = 20, suffix: str = ".mp4") -> Path:
    """Write an MP4 file for every video."""
    for number, path in enumerate(paths(name)):
        write_video(root / "videos" / f"{path}{suffix}", _frames(number, num_frames))
    return root


def _frames(number: int, num_frames: int) -> np.ndarray:
    frames = square_frames(num_frames)
    return np.minimum(frames, 255 - 20 * number).astype(np.uint8)
