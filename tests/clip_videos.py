"""Write the videos for tests of clips, and compare the frames that are read from them."""

import json

import torch
from videos import square_centres, square_frames, write_video

from adafocus_env.clips.clip_spec import ClipSpec
from adafocus_env.videos.dataset import Video

TRAIN = ClipSpec(num_frames=4, size=32, short_side=48, train=True, views=2)


def make_videos(root, n=5, tracks=False):
    return [make_video(root, f"c{i % 2}/v{i}.mp4", i, tracks) for i in range(n)]


def make_video(root, name, i=0, track=False):
    path = root / name
    if not path.exists():
        write_video(path, square_frames(10 + i, colour=(220, 40 * i % 256, 40)))
    if track:
        path.with_suffix(".json").write_text(json.dumps({"centre": square_centres(10 + i).tolist()}))
    return Video(name, path, i % 2, path.with_suffix(".json") if track else None)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
