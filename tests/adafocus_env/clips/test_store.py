import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_videos import TRAIN, make_video, make_videos, same
from conftest import TASK
from videos import cut_in_half, square_centres, square_frames, write_video

from adafocus_env.build import open_clips
from adafocus_env.cache_dir import cache_folder
from adafocus_env.clips import clip_spec as draws
from adafocus_env.clips import store as clips
from adafocus_env.clips.store import ClipSpec, ClipStore
from adafocus_env.clips.stream import StreamingClips
from adafocus_env.demo.videos import demo
from adafocus_env.videos.dataset import DataSet, Video
from agents.config.settings import DataConfig
from agents.pipeline.builders import build_clips, build_split
from agents.runs.progress import Display
from classifiers.atomic_files import replacing
from classifiers.errors import InputError

pytestmark = pytest.mark.usefixtures("in_process")
TEST = ClipSpec(num_frames=4, size=48, short_side=48, train=False)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return make_videos(tmp_path_factory.mktemp("videos"), tracks=True)


def all_frames(store):
    return {(store.names[i], i % store.settings.views): store.frames(i) for i in range(len(store))}


def test_test_clips_are_middle_frames_cropped_in_the_centre(tmp_path, videos, worker_processes):
    store = ClipStore(videos, TEST, folder=tmp_path)
    assert (len(store), store.num_frames, store.size, store.failures) == (5, 4, 48, [])
    assert store.names == [video.name for video in videos]
    assert store.labels.tolist() == [0, 1, 0, 1, 0] and store.labels.dtype == np.int64
    assert store.indices(0).tolist() == [1, 3, 6, 8]
    frames = store.frames(0)
    assert frames.shape == (4, 3, 48, 48) and frames.dtype == torch.uint8 and frames.is_contiguous()
    expected = square_frames(10, colour=(220, 0, 40))[[1, 3, 6, 8], :, 8:56].transpose(0, 3, 1, 2)
    assert np.abs(frames.numpy().astype(int) - expected).mean() < 6


def test_truth_follows_the_frames_and_the_crop(tmp_path, videos):
    store = ClipStore(videos, TEST, folder=tmp_path)
    assert store.has_truth
    assert np.array_equal(store.truth(0), square_centres(10)[[1, 3, 6, 8]] - [0, 8]) and store.truth(0).dtype == np.float32
    train = ClipStore(videos, TRAIN, folder=tmp_path)
    seen = 0
    for clip in range(len(train)):
        for frame, (y, x) in zip(train.frames(clip), train.truth(clip).round().astype(int), strict=True):
            if 2 <= y < 30 and 2 <= x < 30:
                seen += 1
                assert frame[0, y, x] > 180 > frame[2, y, x], "the square is not where the truth says"
    assert seen > 10


def test_truth_is_scaled_with_the_stored_frames(tmp_path, videos):
    store = ClipStore(videos[:1], ClipSpec(num_frames=4, size=24, short_side=24, train=False), folder=tmp_path)
    expected = (square_centres(10)[[1, 3, 6, 8]] + 0.5) / 2 - 0.5 - [0, 4]
    assert np.allclose(store.truth(0), expected)


def with_targets(video, visible, side=6):
    """Return the video with the target's size and visibility in its track."""
    track = json.loads(video.track.read_text())
    video.track.write_text(json.dumps({**track, "side": side, "visible": visible}))
    return video


def test_targets_are_boxes_around_the_truth_in_the_frames_that_show_them(tmp_path):
    """The centre of pixel i is at i + ½, and a box of 6 pixels extends 3 pixels to either side."""
    visible = [number != 3 for number in range(10)]
    (video,) = [with_targets(video, visible) for video in make_videos(tmp_path / "v", 1, tracks=True)]
    store = ClipStore([video], TEST, folder=tmp_path / "cache")
    boxes, shown = store.targets(0)
    centres = store.truth(0) + 0.5
    assert store.indices(0).tolist() == [1, 3, 6, 8] and shown.tolist() == [True, False, True, True]
    assert boxes == pytest.approx(np.concatenate([centres - 3, centres + 3], axis=1)) and boxes.dtype == np.float32
    again = ClipStore([video], TEST, folder=tmp_path / "cache")
    assert all(np.array_equal(one, other) for one, other in zip(again.targets(0), store.targets(0), strict=True)), "as they were stored"
    small = ClipStore([video], ClipSpec(num_frames=4, size=24, short_side=24, train=False), folder=tmp_path / "cache")
    centres = small.truth(0) + 0.5
    assert small.targets(0).boxes == pytest.approx(np.concatenate([centres - 1.5, centres + 1.5], axis=1), abs=1e-5)


def test_targets_follow_crop_and_flip_and_are_not_visible_outside(tmp_path):
    videos = [with_targets(video, [True] * n) for n, video in enumerate(make_videos(tmp_path / "v", 5, tracks=True), 10)]
    store = ClipStore(videos, ClipSpec(**{**vars(TRAIN), "views": 6}), folder=tmp_path / "cache")
    seen = []
    for clip in range(len(store)):
        (boxes, visible), centres = store.targets(clip), store.truth(clip) + 0.5
        assert (boxes[:, 2:] > boxes[:, :2]).all(), "also where the crop is mirrored"
        assert (boxes[:, :2] + boxes[:, 2:]) / 2 == pytest.approx(centres, abs=1e-4)
        assert np.array_equal(visible, ((centres >= 0) & (centres <= 32)).all(1))
        seen += visible.tolist()
    assert True in seen and False in seen


def test_a_track_of_centres_alone_has_no_targets(tmp_path, videos):
    store = ClipStore(videos, TEST, folder=tmp_path)
    assert store.has_truth and store.targets(0) is None


def test_clips_without_tracks_that_an_earlier_version_decoded_are_read(tmp_path, monkeypatch):
    videos = make_videos(tmp_path / "v", 2)
    before = all_frames(ClipStore(videos, TEST, folder=tmp_path / "cache"))
    (index,) = (tmp_path / "cache").rglob("index.json")
    stored = json.loads(index.read_text())
    for clip in stored["clips"]:
        del clip["track"]
        clip["truth"] = None
    index.write_text(json.dumps(stored))
    monkeypatch.setattr(clips, "run_in_workers", None)
    assert same(all_frames(ClipStore(videos, TEST, folder=tmp_path / "cache")), before)


def test_videos_without_tracks_have_no_truth(tmp_path):
    store = ClipStore(make_videos(tmp_path / "v", 2), TEST, folder=tmp_path / "cache")
    assert not store.has_truth and store.truth(0) is None and store.targets(0) is None


def test_a_second_start_decodes_nothing(tmp_path, videos, monkeypatch):
    done = []
    first = ClipStore(videos, TRAIN, folder=tmp_path, progress=done.append)
    assert done[-1] == len(first) == 10 and done == sorted(done)
    monkeypatch.setattr(clips, "run_in_workers", None)
    second = ClipStore(videos, TRAIN, folder=tmp_path)
    assert second.fingerprint == first.fingerprint and same(all_frames(first), all_frames(second))


def test_draws_depend_on_seed_name_and_view_alone(tmp_path, videos):
    store = ClipStore(videos, TRAIN, folder=tmp_path / "a")
    reordered = ClipStore(videos[::-1], TRAIN, folder=tmp_path / "b", num_workers=1)
    assert same(all_frames(store), all_frames(reordered))
    fewer = all_frames(ClipStore(videos[2:4], TRAIN, folder=tmp_path / "c"))
    assert same(fewer, {key: frames for key, frames in all_frames(store).items() if key in fewer})
    assert not torch.equal(store.frames(0), store.frames(1)), "two views are two draws"
    other = ClipStore(videos, ClipSpec(**{**vars(TRAIN), "seed": 1}), folder=tmp_path / "a")
    assert not same(all_frames(store), all_frames(other))


def test_fresh_draws_a_new_crop_of_the_same_frames(tmp_path, videos):
    store = ClipStore(videos, TRAIN, folder=tmp_path)
    both = [store.resampled(0, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert all(frames is glanced for frames, glanced in both), "without separate frames for the glancer"
    drawn = [frames for frames, _ in both]
    assert drawn[0].shape == (4, 3, 32, 32)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


SEPARATE = ClipSpec(num_frames=6, size=48, short_side=48, train=False, glance_frames=4)


def test_the_glancer_may_have_frames_of_its_own(tmp_path, videos):
    store = ClipStore(videos, SEPARATE, folder=tmp_path)
    assert store.num_frames == 6 and store.indices(0).tolist() == [0, 2, 4, 5, 7, 9] and store.glancer_indices(0).tolist() == [1, 3, 6, 8]
    assert store.frames(0).shape == (6, 3, 48, 48) and store.glancer_frames(0).shape == (4, 3, 48, 48)
    assert store.truth(0).shape == (6, 2) and np.array_equal(store.truth(0), square_centres(10)[store.indices(0)] - [0, 8])
    shared = ClipStore(videos, ClipSpec(**{**vars(SEPARATE), "num_frames": 4, "glance_frames": 0}), folder=tmp_path)
    assert torch.equal(store.glancer_frames(0), shared.frames(0)) and torch.equal(shared.glancer_frames(0), shared.frames(0))
    assert shared.glancer_indices(0).tolist() == shared.indices(0).tolist() == [1, 3, 6, 8]


def test_the_glancers_own_frames_are_drawn_by_themselves_and_share_the_crop(tmp_path, videos):
    once = {**vars(TRAIN), "views": 1}
    separate = ClipStore(videos, ClipSpec(**{**once, "glance_frames": 4}), folder=tmp_path)
    shared = ClipStore(videos, ClipSpec(**once), folder=tmp_path)
    assert same(all_frames(separate), all_frames(shared)), "what the focuser sees does not depend on it"
    assert any(separate.indices(i).tolist() != separate.glancer_indices(i).tolist() for i in range(5))
    seen = 0
    for i in range(5):
        where = dict(zip(separate.indices(i).tolist(), separate.frames(i), strict=True))
        again = dict(zip(separate.glancer_indices(i).tolist(), separate.glancer_frames(i), strict=True))
        fresh = [dict(zip(n, f, strict=True)) for n, f in zip((where, again), separate.resampled(i, np.random.default_rng(3)), strict=True)]
        for frame in where.keys() & again.keys():
            seen += 1
            assert torch.equal(where[frame], again[frame]) and torch.equal(fresh[0][frame], fresh[1][frame])
    assert seen > 3


def test_clips_without_anything_new_keep_their_place_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(draws, "file_reader", lambda: "decord")
    videos = [Video("a/x.mp4", Path("nowhere/x.mp4"), 1), Video("b/y.mp4", Path("nowhere/y.mp4"), 0)]

    def hashes(settings, videos=videos):
        store = ClipStore(videos, settings, folder=tmp_path, prepare=lambda videos: None, lazy=True)
        return draws.content_key(videos, settings, prepared=True)[:16], store.fingerprint[:16]

    assert hashes(TEST) == ("f4817dca06fc30a1", "0890e35a04ebebb8")  # of version 0.1.0
    assert hashes(TRAIN) == ("37faf9a1ed2e081a", "c3dad9e2d0ebf108")
    avi = [replace(v, path=v.path.with_suffix(".AVI")) for v in videos]
    assert hashes(TEST, avi) != hashes(TEST), "decord read it then, and PyAV reads it now"
    one_label = [Video(v.name, v.path, v.label, labels=()) for v in videos]
    assert hashes(TRAIN, one_label) == hashes(TRAIN)
    several, stated = [replace(v, labels=(v.label, 7)) for v in videos], [replace(v, num_frames=9, frame_name="%05d.jpg") for v in videos]
    released = ClipSpec(**{**vars(TRAIN), "sampling": "released"})
    changed = [hashes(ClipSpec(**{**vars(TRAIN), "glance_frames": 4})), hashes(released), hashes(TRAIN, stated)]
    assert len({key for key, _ in [hashes(TRAIN), *changed]}) == 4
    assert hashes(TRAIN, several)[0] == hashes(TRAIN)[0] and hashes(TRAIN, several)[1] != hashes(TRAIN)[1]


def test_all_labels_of_a_clip_the_one_in_labels_first(tmp_path, videos):
    labelled = [replace(videos[0], label=3, labels=(3, 1, 3)), videos[1], replace(videos[2], label=2, labels=(0, 2))]
    store = ClipStore(labelled, ClipSpec(**{**vars(TRAIN), "views": 1}), folder=tmp_path)
    assert store.labels.tolist() == [3, 1, 2] and store.label_sets == [(3, 1), (1,), (2, 0)]


def test_what_a_list_says_of_the_length_reaches_the_reader():
    video = Video("a", Path("a.mp4"), 0, num_frames=77)
    assert draws.request(TRAIN, video, 0).num_frames_stated == 77


def test_an_epoch_is_a_permutation_of_all_clips(tmp_path, videos):
    store = ClipStore(videos, TRAIN, folder=tmp_path, lazy=True)
    first = store.epoch(0, np.random.default_rng(0))
    assert sorted(first) == list(range(10)) and store.epoch_size == 10
    assert np.array_equal(first, np.random.default_rng(0).permutation(10))
    assert np.array_equal(store.readable_clips(first), first)


def test_the_settings_of_the_command_line_reach_the_clips():
    data = demo(TASK, val=0.0)
    opened = open_clips(data, "train", num_frames=4, size=96, glance_frames=2, sampling="released", lazy=True)
    assert (opened.settings.glance_frames, opened.settings.sampling) == (2, "released")
    assert open_clips(data, "test", num_frames=4, size=96, glance_frames=2, lazy=True).settings.glance_frames == 2
    built = build_split(data, "train", DataConfig(num_frames=4, sampling="released"), 96, Display())
    assert built.settings.sampling == "released" and len(built) == 12


def test_fresh_clips_depend_on_the_seed_and_stored_ones_do_not():
    data = demo(TASK, val=0.0)
    config = DataConfig(num_frames=4, views="resample")
    fresh, again, other = (build_split(data, "train", config, 96, Display(), seed=seed) for seed in (3, 3, 4))
    assert fresh.fingerprint == again.fingerprint != other.fingerprint
    numbers = [[clips.indices(clip).tolist() for clip in clips.readable_clips(np.arange(3))] for clips in (fresh, other)]
    assert numbers[0] != numbers[1]
    stored = {build_split(data, "train", DataConfig(num_frames=4), 96, Display(), seed=seed).fingerprint for seed in (3, 4)}
    assert stored == {open_clips(data, "train", num_frames=4, size=96).fingerprint}


def test_results_do_not_share_memory_with_the_store(tmp_path, videos):
    store = ClipStore(videos, TEST, folder=tmp_path)
    before = store.frames(0).clone()
    store.frames(0).zero_()
    assert torch.equal(store.frames(0), before)


def test_the_fingerprint_tells_apart_what_differs(tmp_path, videos):
    def fingerprint(videos=videos, **changed):
        return ClipStore(videos, ClipSpec(**{**vars(TRAIN), **changed}), folder=tmp_path, lazy=True).fingerprint

    relabelled = [Video(v.name, v.path, 1 - v.label, v.track) for v in videos]
    variants = [fingerprint(), fingerprint(seed=1), fingerprint(size=24), fingerprint(flip=False), fingerprint(views=1)]
    variants += [fingerprint(num_frames=5), fingerprint(short_side=40), fingerprint(train=False)]
    variants += [fingerprint(relabelled), fingerprint(videos[1:])]
    assert len(set(variants)) == len(variants)
    assert fingerprint(train=False) == fingerprint(train=False, seed=1, flip=False), "test clips have no draws"


def test_a_changed_file_is_decoded_again(tmp_path):
    videos = make_videos(tmp_path / "v", 2)
    before = ClipStore(videos, TEST, folder=tmp_path / "cache")
    write_video(videos[0].path, 255 - square_frames(10))
    after = ClipStore(videos, TEST, folder=tmp_path / "cache")
    assert after.fingerprint != before.fingerprint
    assert not torch.equal(after.frames(0), before.frames(0)) and torch.equal(after.frames(1), before.frames(1))


def test_more_clips_than_a_shard_holds(tmp_path, videos, monkeypatch):
    whole = all_frames(ClipStore(videos, TRAIN, folder=tmp_path / "one"))
    monkeypatch.setattr(clips, "SHARD_SIZE", 3)
    store = ClipStore(videos, TRAIN, folder=tmp_path / "many")
    assert len(list(tmp_path.glob("many/*/0*"))) == 4
    assert same(all_frames(store), whole)


def test_broken_videos_are_left_out_and_named(tmp_path, caplog, monkeypatch, worker_processes):
    videos = make_videos(tmp_path / "v", 4)
    cut_in_half(videos[1].path)
    videos[2].path.write_text("this is text")
    store = ClipStore(videos, TRAIN, folder=tmp_path / "cache")
    assert store.names == [videos[0].name] * 2 + [videos[3].name] * 2 and store.labels.tolist() == [0, 0, 1, 1]
    assert [name for name, _ in store.failures] == [videos[1].name, videos[2].name]
    assert "truncated" in store.failures[0][1] and str(videos[1].path) in store.failures[0][1]
    assert "2 videos cannot be read and are left out" in caplog.text and videos[2].name in caplog.text
    assert store.frames(3).shape == (4, 3, 32, 32)
    monkeypatch.setattr(clips, "run_in_workers", None)  # nothing is decoded again, broken ones included
    again = ClipStore(videos, TRAIN, folder=tmp_path / "cache")
    assert again.failures == store.failures and again.fingerprint == store.fingerprint


def test_one_warning_names_the_unreadable_videos_of_all_splits(tmp_path, caplog):
    videos = make_videos(tmp_path / "v", 6)
    for video in videos[1::2]:
        cut_in_half(video.path)
    data = DataSet("folder", ("a", "b"), *(tuple(videos[first : first + 2]) for first in (0, 2, 4)))
    built = build_clips(data, DataConfig(num_frames=4), 48, Display(), seed=0)
    (warning,) = (record.getMessage() for record in caplog.records)
    assert warning.startswith("3 videos cannot be read and are left out:\n  c1/v1.mp4: cannot read the video")
    assert all(name in warning for part in (built.train, built.val, built.test) for name, _ in part.failures)
    assert warning.count(str(cache_folder() / "clips")) == 3, "where it is stored that they failed"


def test_a_reader_that_hangs_is_reported(tmp_path, videos, worker_processes, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))

    run = clips.run_in_workers
    monkeypatch.setattr(clips, "run_in_workers", lambda function, *tasks, **limits: run("worker_tasks:decode_or_hang", *tasks, **limits))
    hang = make_video(tmp_path / "v", "hang.mp4")
    store = ClipStore([hang, *videos], TEST, folder=tmp_path / "cache", time_limit=4)
    assert store.failures == [("hang.mp4", "it was not finished after 4 s and was stopped")]
    assert len(store) == len(videos)
    again = ClipStore([hang, *videos], TEST, folder=tmp_path / "cache")
    undisturbed = ClipStore(videos, TEST, folder=tmp_path / "other")
    for clip in range(len(videos)):
        assert torch.equal(store.frames(clip), undisturbed.frames(clip)) and torch.equal(again.frames(clip), undisturbed.frames(clip))


def test_no_readable_video_is_an_error_and_is_tried_again(tmp_path):
    videos = make_videos(tmp_path / "v", 2)
    for video in videos:
        cut_in_half(video.path)
    for _ in range(2):
        with pytest.raises(InputError, match=r"(?s)none of the 2 videos can be read:.*c0/v0.mp4: .*truncated.*c1/v1.mp4"):
            ClipStore(videos, TEST, folder=tmp_path / "cache")
    with pytest.raises(InputError, match="at least one video, got none"):
        ClipStore([], TEST, folder=tmp_path / "cache")


def test_a_track_that_does_not_fit_is_reported(tmp_path, videos):
    wrong = make_video(tmp_path, "wrong.mp4", track=True)
    wrong.track.write_text(json.dumps({"centre": [[1, 2]]}))
    missing = make_video(tmp_path, "missing.mp4", track=True)
    missing.track.unlink()
    hidden = with_targets(make_video(tmp_path, "hidden.mp4", track=True), [True])
    large = with_targets(make_video(tmp_path, "large.mp4", track=True), [True] * 10, side="large")
    listed = make_video(tmp_path, "listed.mp4", track=True)
    listed.track.write_text("[]")
    store = ClipStore([*videos, wrong, missing, hidden, large, listed], TEST, folder=tmp_path / "cache")
    assert [name for name, _ in store.failures] == ["wrong.mp4", "missing.mp4", "hidden.mp4", "large.mp4", "listed.mp4"]
    assert "hidden.json must hold true or false in visible for each of the 10 frames" in store.failures[2][1]
    assert "large.json cannot be read" in store.failures[3][1] and "listed.json cannot be read" in store.failures[4][1]
    assert "one point (y, x) for each of the 10 frames, got (1, 2)" in store.failures[0][1]
    assert "missing.json cannot be read" in store.failures[1][1]


def test_a_lazy_store_prepares_and_decodes_what_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "SHARD_SIZE", 2)
    root, prepared = tmp_path / "v", []
    videos = [Video(f"c0/v{i}.mp4", root / f"c0/v{i}.mp4", 0) for i in range(5)]

    def prepare(missing):
        prepared.append([video.name for video in missing])
        for video in missing:
            make_video(root, video.name, int(video.path.stem[1:]))

    store = ClipStore(videos, TEST, folder=tmp_path / "cache", prepare=prepare, lazy=True)
    assert len(store) == 5 and not prepared and not root.exists()
    store.frames(3), store.frames(2)
    assert prepared == [["c0/v2.mp4", "c0/v3.mp4"]]
    eager = ClipStore(videos, TEST, folder=tmp_path / "cache", prepare=prepare)
    assert len(prepared) == 2 and sorted(prepared[1]) == ["c0/v0.mp4", "c0/v1.mp4", "c0/v4.mp4"]
    assert same(all_frames(store), all_frames(eager)) and eager.fingerprint == store.fingerprint


def test_a_broken_video_in_a_lazy_store_is_an_error(tmp_path):
    videos = make_videos(tmp_path / "v", 2)
    cut_in_half(videos[1].path)
    store = ClipStore(videos, TEST, folder=tmp_path / "cache", lazy=True)
    assert store.frames(0).shape == (4, 3, 48, 48)
    with pytest.raises(InputError, match=r"c1/v1.mp4 has no clip: cannot read .*truncated"):
        store.frames(1)


def test_a_store_can_be_sent_to_another_process(tmp_path, videos):
    store = ClipStore(videos, TRAIN, folder=tmp_path)
    store.frames(0)
    data = pickle.dumps(store)
    assert len(data) < 20_000
    assert same(all_frames(pickle.loads(data)), all_frames(store))


def break_shard(folder, how):
    if how == "frames cut":
        cut_in_half(folder / "frames.bin")
    elif how == "frames missing":
        (folder / "frames.bin").unlink()
    elif how == "index cut":
        cut_in_half(folder / "index.json")
    elif how == "index of another kind":
        (folder / "index.json").write_text("[1, 2]")
    elif how == "index empty":
        (folder / "index.json").write_text("")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["frames cut", "frames missing", "index cut", "index of another kind", "index empty"])
def test_a_broken_shard_is_made_again_and_leftovers_are_removed(tmp_path, videos, how):
    before = all_frames(ClipStore(videos[:2], TEST, folder=tmp_path))
    (shard,) = tmp_path.glob("*/00000")
    break_shard(shard, how)
    (shard.parent / ".00000.77.part").mkdir()
    assert same(all_frames(ClipStore(videos[:2], TEST, folder=tmp_path)), before)
    assert sorted(path.name for path in shard.parent.iterdir()) == ["00000", "lock"]


PACK = """
import json, sys, time
from pathlib import Path
from adafocus_env.clips.store import ClipSpec, ClipStore
from adafocus_env.videos.dataset import DataSet, Video
root, cache, n, slow = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
videos = [Video(f"c{i % 2}/v{i}.mp4", root / f"c{i % 2}/v{i}.mp4", i % 2) for i in range(n)]
def progress(done):
    print("done", done, flush=True)
    time.sleep(slow)
store = ClipStore(videos, ClipSpec(num_frames=4, size=48, short_side=48, train=False), folder=cache, progress=progress)
print("sum", int(sum(store.frames(i).sum() for i in range(len(store)))), flush=True)
"""


def start_packing(root, cache, n, slow=0.0):
    command = [sys.executable, "-c", PACK, str(root), str(cache), str(n), str(slow)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_a_kill_while_packing_leaves_nothing_half_done_and_the_next_one_takes_over(tmp_path):
    videos, cache = make_videos(tmp_path / "v"), tmp_path / "cache"
    killed = start_packing(tmp_path / "v", cache, 5, slow=100)
    assert killed.stdout.readline() == "done 1\n"
    waiting = start_packing(tmp_path / "v", cache, 5)
    assert "another process is making the decoded clips" in waiting.stderr.readline()
    assert not list(cache.glob("*/0*")) and list(cache.glob("*/.0*.part"))
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    output, _ = waiting.communicate(timeout=60)
    assert waiting.returncode == 0
    store = ClipStore(videos, TEST, folder=cache)
    assert output.splitlines()[-1] == f"sum {int(sum(store.frames(i).sum() for i in range(5)))}"
    assert not list(cache.glob("*/.0*.part"))


@pytest.mark.slow
def test_two_processes_on_an_empty_cache_decode_once(tmp_path):
    make_videos(tmp_path / "v")
    both = [start_packing(tmp_path / "v", tmp_path / "cache", 5, slow=0.1) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    lines = [output.splitlines() for output, _ in outputs]
    assert sorted(len(output) for output in lines) == [1, 6], "one decodes five clips, the other none"
    assert lines[0][-1] == lines[1][-1]


def test_a_full_disk_is_named_with_the_way_out(tmp_path, videos):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # a real refusal to write: 5 clips are 184 kB
    try:
        with pytest.raises(InputError, match=f"cannot write to the cache folder {tmp_path}.*free some space, or set .*ADAFOCUS_CACHE"):
            ClipStore(videos, TEST, folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.glob("*/0*")) and not list(tmp_path.glob("*/.0*"))
    assert len(ClipStore(videos, TEST, folder=tmp_path)) == 5


REMOVED = "was removed while this command was using it; start the same command again, which recreates missing files"


def test_a_store_that_is_removed_before_its_first_use_is_named(tmp_path, videos):
    store = ClipStore(videos, TEST, folder=tmp_path)
    shutil.rmtree(tmp_path)
    with pytest.raises(InputError, match=f"{tmp_path}/.*/00000/frames.bin {REMOVED}"):
        store.frames(0)


def test_a_store_that_is_removed_while_it_is_used_goes_on(tmp_path, videos):
    store = ClipStore(videos, TEST, folder=tmp_path)
    before = store.frames(0)
    shutil.rmtree(tmp_path)
    assert torch.equal(store.frames(0), before)


def test_a_store_that_is_removed_while_it_is_decoded_is_named(tmp_path, videos):
    with pytest.raises(InputError, match=f"{tmp_path}/.*/.*frames.bin {REMOVED}"):
        ClipStore(videos, TEST, folder=tmp_path, num_workers=1, progress=lambda done: shutil.rmtree(tmp_path, ignore_errors=True))
    assert len(ClipStore(videos, TEST, folder=tmp_path)) == 5


@pytest.mark.parametrize("lost", ["path", "track"])
@pytest.mark.parametrize("kind", [ClipStore, StreamingClips])
def test_prepared_videos_that_are_removed_are_no_unreadable_ones(tmp_path, kind, lost):
    videos = make_videos(tmp_path / "videos", 2, tracks=True)
    folder = {} if kind is StreamingClips else {"folder": tmp_path / "clips"}
    with pytest.raises(InputError, match=f"{getattr(videos[1], lost)} {REMOVED}"):
        clips = kind(videos, TRAIN, prepare=lambda videos: getattr(videos[1], lost).unlink(), **folder)
        clips.readable_clips(clips.epoch(0, np.random.default_rng(0)))
    assert not list(tmp_path.glob("clips/*/0*")), "and it is not kept that they could not be read"


def test_a_folder_that_is_removed_while_a_file_is_written_is_named(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path / 'cache'} {REMOVED}"), replacing(tmp_path / "cache" / "card.json"):
        shutil.rmtree(tmp_path / "cache")


def test_a_cache_folder_that_cannot_be_written_names_the_variable(tmp_path, videos, monkeypatch):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv("ADAFOCUS_CACHE", str(place))
        with pytest.raises(InputError, match=f"cannot write to the cache folder {place}: .*ADAFOCUS_CACHE, which moves it"):
            cache_folder()
        with pytest.raises(InputError, match="ADAFOCUS_CACHE, which moves it"):
            ClipStore(videos, TEST, folder=place)


def test_the_cache_folder_is_where_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAFOCUS_CACHE", str(tmp_path / "a" / "b"))
    assert cache_folder() == tmp_path / "a" / "b" and cache_folder().is_dir() and not list(cache_folder().iterdir())
    monkeypatch.delenv("ADAFOCUS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert cache_folder() == tmp_path / "xdg" / "adafocus-env"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_frames": 0}, "num_frames: must be at least 1, got 0"),
        ({"views": 0}, "views: must be at least 1, got 0"),
        ({"size": 64}, "short_side: must be at least size = 64, got 48"),
        ({"seed": -1}, "seed: must be at least 0, got -1"),
        ({"glance_frames": -1}, "glance_frames: must be at least 0, got -1"),
        ({"sampling": "release"}, "sampling='release' is not known; did you mean 'released'?"),
        ({"scales": (1.0, 1.5)}, "scales: must be shares above 0 and up to 1"),
    ],
)
def test_settings_are_checked(changed, message):
    with pytest.raises(InputError, match=message):
        ClipSpec(**{**vars(TRAIN), **changed})
