import gc
import json
import pickle
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_videos import TRAIN, make_video, make_videos, same
from PIL import Image
from videos import cut_in_half, square_frames

from adafocus_env.clips import stream as stream_module
from adafocus_env.clips.clip_spec import ClipSpec
from adafocus_env.clips.store import ClipStore
from adafocus_env.clips.stream import StreamingClips
from adafocus_env.vector_env import AdaFocusVectorEnv
from adafocus_env.videos.dataset import Video
from classifiers.errors import InputError

pytestmark = pytest.mark.usefixtures("in_process")
CLIP_BYTES = 4 * 3 * 32 * 32


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return make_videos(tmp_path_factory.mktemp("videos"), tracks=True)


def run_epoch(clips, number, seed=0, batch=2):
    """Return the readable clips of an epoch in order, with their frames."""
    order = clips.epoch(number, np.random.default_rng((seed, number)))
    chosen = [clips.readable_clips(part) for part in np.array_split(order, -(-len(order) // batch))]
    return {int(clip): clips.frames(clip) for part in chosen for clip in part}


def count_decoded(monkeypatch):
    """Record the clips that workers decode from now on, one list per call."""
    given, run = [], stream_module.run_in_workers

    def counting(function, tasks, **limits):
        given.append(tasks)
        return run(function, tasks, **limits)

    monkeypatch.setattr(stream_module, "run_in_workers", counting)
    return given


def test_the_draws_are_those_of_a_store_with_as_many_views(tmp_path, videos, worker_processes):
    clips = StreamingClips(videos, TRAIN)
    store = ClipStore(videos, TRAIN, folder=tmp_path)
    for view in (0, 1):
        drawn = run_epoch(clips, view)
        assert sorted(drawn) == list(range(5 * view, 5 * view + 5))
        for video in range(5):
            assert torch.equal(drawn[5 * view + video], store.frames(2 * video + view))
            assert clips.indices(5 * view + video).tolist() == store.indices(2 * video + view).tolist()
            assert np.array_equal(clips.truth(5 * view + video), store.truth(2 * video + view))
            assert clips.targets(5 * view + video) is None


def test_targets_are_those_of_a_store(tmp_path):
    (video,) = make_videos(tmp_path / "v", 1, tracks=True)
    video.track.write_text(json.dumps({**json.loads(video.track.read_text()), "side": 6, "visible": [True] * 10}))
    store, clips = ClipStore([video], TRAIN, folder=tmp_path / "cache"), StreamingClips([video], TRAIN)
    for number in range(2):
        for one, other in zip(clips.targets(number), store.targets(number), strict=True):
            assert np.array_equal(one, other)
    clips.targets(0).boxes[:] = 0
    assert np.array_equal(clips.targets(0).boxes, store.targets(0).boxes), "what is returned is a copy"


def test_every_epoch_draws_new_frames_and_crops_of_all_videos_in_a_new_order(videos):
    clips = StreamingClips(videos, TRAIN)
    assert len(clips) == 5 * stream_module.EPOCHS and clips.epoch_size == 5 and clips.num_frames == 4 and clips.size == 32
    first, second = run_epoch(clips, 0), run_epoch(clips, 1)
    assert sorted(first) == [0, 1, 2, 3, 4] and sorted(second) == [5, 6, 7, 8, 9]
    assert [clip % 5 for clip in first] != [clip % 5 for clip in second]
    assert all(first[clip].shape == (4, 3, 32, 32) and not torch.equal(first[clip], second[clip + 5]) for clip in first)
    assert clips.labels[list(second)].tolist() == [videos[clip % 5].label for clip in second]
    assert [clips.names[clip] for clip in second] == [videos[clip % 5].name for clip in second]
    assert clips.label_sets[6] == (1,) and clips.has_truth


def test_a_resumed_run_sees_what_it_would_have_seen(videos):
    whole = StreamingClips(videos, TRAIN)
    epochs = [run_epoch(whole, number) for number in range(3)]
    resumed = StreamingClips(videos, TRAIN, num_workers=1)
    assert resumed.fingerprint == whole.fingerprint
    again = run_epoch(resumed, 2)
    assert list(again) == list(epochs[2]) and same(again, epochs[2])
    assert StreamingClips(videos, ClipSpec(**{**vars(TRAIN), "seed": 1})).fingerprint != whole.fingerprint


def test_the_glancers_own_frames_come_with_the_same_crop(tmp_path, videos):
    settings = ClipSpec(**{**vars(TRAIN), "glance_frames": 3})
    clips, store = StreamingClips(videos, settings), ClipStore(videos, settings, folder=tmp_path)
    frames, glanced = clips.resampled(6, np.random.default_rng(0))
    assert torch.equal(frames, store.frames(3)) and torch.equal(glanced, store.glancer_frames(3)) and len(glanced) == 3
    assert torch.equal(clips.glancer_frames(6), glanced) and clips.glancer_indices(6).tolist() == store.glancer_indices(3).tolist()
    frames, glanced = StreamingClips(videos, TRAIN).resampled(6, np.random.default_rng(0))
    assert frames is glanced


def test_folders_of_images_are_drawn_from_too(tmp_path):
    folders = []
    for i in range(3):
        (tmp_path / f"v{i}").mkdir()
        for t, frame in enumerate(square_frames(40)):
            Image.fromarray(frame).save(tmp_path / f"v{i}" / f"image_{t + 1:05d}.jpg", quality=95)
        folders.append(Video(f"v{i}", tmp_path / f"v{i}", i))
    clips = StreamingClips(folders, TRAIN)
    drawn = [{clip % 3: clips.indices(clip).tolist() for clip in run_epoch(clips, number)} for number in (0, 1)]
    assert all(len(set(map(tuple, epoch.values()))) == 3 for epoch in drawn) and drawn[0] != drawn[1]
    assert not clips.has_truth and clips.truth(0) is None


def test_the_environment_sees_the_draw_that_a_reference_means(tmp_path, videos, classifier):
    settings = ClipSpec(num_frames=4, size=96, short_side=110, train=True, views=2)
    clips, store = StreamingClips(videos, settings), ClipStore(videos, settings, folder=tmp_path)
    chosen = clips.readable_clips(clips.epoch(1, np.random.default_rng(0))[:3])
    env = AdaFocusVectorEnv(3, classifier, clips, observation="reference", bank=False, clip_order="epoch")
    observation, info = env.reset(seed=0, options={"clips": chosen.tolist()})
    assert observation.tolist() == [[clip, 0] for clip in chosen] and info["name"].tolist() == [videos[clip - 5].name for clip in chosen]
    clips.readable_clips(clips.epoch(2, np.random.default_rng(0)))
    live, stored = env.dynamics.features, AdaFocusVectorEnv(3, classifier, store, bank=False).dynamics.features
    for clip in chosen:
        assert torch.equal(live.glance_maps(clip, np.arange(4)), stored.glance_maps(2 * (clip - 5) + 1, np.arange(4)))


def test_an_epoch_is_decoded_by_one_set_of_workers_ahead_of_its_use(videos, worker_processes, monkeypatch):
    clips, given = StreamingClips(videos, TRAIN), count_decoded(monkeypatch)
    order = clips.epoch(0, np.random.default_rng(0))
    deadline = time.monotonic() + 60
    while clips._decoder._coming and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not clips._decoder._coming, "nobody has asked for a clip, and all are there"
    for part in np.array_split(order, 3):
        for clip in clips.readable_clips(part):
            clips.frames(clip)
    assert [len(tasks) for tasks in given if tasks] == [5]
    clips.frames(order[0])
    assert [len(tasks) for tasks in given if tasks] == [5], "the last clips are kept"


@pytest.mark.slow
def test_no_more_memory_is_used_than_allowed(tmp_path, videos, monkeypatch):
    clips = StreamingClips(videos, TRAIN, memory=3 * CLIP_BYTES)
    most, keep = [], stream_module.Prefetcher._store

    def watched(self, clip, result):
        keep(self, clip, result)
        most.append(sum(clip.frames.nbytes for clip in self._cached.values()))

    monkeypatch.setattr(stream_module.Prefetcher, "_store", watched)
    drawn = {**run_epoch(clips, 0), **run_epoch(clips, 1)}
    assert max(most) <= 3 * CLIP_BYTES
    assert same(drawn, run_epoch_pair(videos))
    assert torch.equal(clips.frames(0), drawn[0]), "a clip that is gone is decoded again"


def run_epoch_pair(videos):
    clips = StreamingClips(videos, TRAIN)
    return {**run_epoch(clips, 0), **run_epoch(clips, 1)}


def test_a_batch_that_does_not_fit_in_memory_is_there_all_the_same(videos, monkeypatch):
    clips, given = StreamingClips(videos, TRAIN, memory=1), count_decoded(monkeypatch)
    assert len(run_epoch(clips, 0, batch=5)) == 5
    assert sum(map(len, given)) == 5, "every clip is decoded once"


@pytest.mark.slow
def test_clips_that_nobody_took_do_not_stop_the_next_epoch(videos):
    clips = StreamingClips(videos, TRAIN, memory=2 * CLIP_BYTES)
    for number in range(3):
        clips.readable_clips(clips.epoch(number, np.random.default_rng(0))[:1])
    assert len(run_epoch(clips, 3)) == 5
    assert len(clips.readable_clips(np.array([0, 1, 7]))) == 3, "numbers of earlier epochs mean what they meant"


def test_an_unreadable_video_is_named_once_and_left_out(tmp_path, caplog):
    videos = make_videos(tmp_path / "v", 4)
    cut_in_half(videos[1].path)
    clips = StreamingClips(videos, TRAIN)
    first = run_epoch(clips, 0)
    assert not caplog.records, "the epoch is not over"
    second = run_epoch(clips, 1)
    assert sorted(first) == [0, 2, 3] and sorted(second) == [4, 6, 7]
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1 and "1 video cannot be read and is left out:\n  c1/v1.mp4: cannot read" in warnings[0]
    assert [name for name, _ in clips.failures] == ["c1/v1.mp4"] and "truncated" in clips.failures[0][1]
    with pytest.raises(InputError, match=r"c1/v1.mp4 has no clip: cannot read .*truncated"):
        clips.frames(1)
    resumed = StreamingClips(videos, TRAIN)
    assert list(run_epoch(resumed, 1)) == list(second), "the order does not depend on what is known"


def test_videos_that_the_last_epoch_could_not_read_are_named_in_the_end(tmp_path, caplog):
    videos = make_videos(tmp_path / "v", 2)
    cut_in_half(videos[1].path)
    clips = StreamingClips(videos, TRAIN)
    run_epoch(clips, 0)
    del clips
    gc.collect()
    assert "1 video cannot be read and is left out:\n  c1/v1.mp4: " in caplog.text


def test_what_another_process_could_not_read_is_not_tried_again(tmp_path, videos, monkeypatch):
    clips = StreamingClips(videos, TRAIN)
    clips.leave_out([("c1/v1.mp4", "it is cut"), ("c1/v1.mp4", "it is cut")])
    given = count_decoded(monkeypatch)
    assert sorted(run_epoch(clips, 0)) == [0, 2, 3, 4] and [len(tasks) for tasks in given if tasks] == [4]
    assert clips.failures == [("c1/v1.mp4", "it is cut")]
    with pytest.raises(InputError, match=r"(?s)none of the 5 videos can be read:.*c1/v1.mp4: it is cut"):
        clips.leave_out([(name, "gone") for name in clips.names[:5]])


@pytest.mark.slow
def test_a_video_that_hangs_is_left_out(tmp_path, videos, worker_processes, monkeypatch):
    run = stream_module.run_in_workers
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    monkeypatch.setattr(
        stream_module, "run_in_workers", lambda function, *tasks, **limits: run("worker_tasks:decode_or_hang", *tasks, **limits)
    )
    clips = StreamingClips([*videos, make_video(tmp_path / "v", "hang.mp4")], TRAIN, time_limit=4)
    assert sorted(run_epoch(clips, 0)) == [0, 1, 2, 3, 4]
    assert clips.failures == [("hang.mp4", "it was not finished after 4 s and was stopped")]


def test_a_track_that_does_not_fit_is_reported(videos):
    wrong = replace(videos[1], track=videos[0].track)
    clips = StreamingClips([videos[0], wrong], TRAIN)
    assert list(run_epoch(clips, 0)) == [0]
    assert "one point (y, x) for each of the 11 frames, got (10, 2)" in clips.failures[0][1]


def test_workers_that_cannot_start_are_an_error_and_no_endless_wait(videos, worker_processes, monkeypatch):
    run = stream_module.run_in_workers
    monkeypatch.setattr(stream_module, "run_in_workers", lambda function, *tasks, **limits: run("no_such_module:decode", *tasks, **limits))
    clips = StreamingClips(videos, TRAIN)
    with pytest.raises(RuntimeError, match=r"(?s)a worker process could not start.*no_such_module"):
        run_epoch(clips, 0)


def test_no_readable_video_is_an_error(tmp_path):
    videos = make_videos(tmp_path / "v", 2)
    for video in videos:
        cut_in_half(video.path)
    clips = StreamingClips(videos, TRAIN)
    with pytest.raises(InputError, match=r"(?s)none of the 2 videos can be read:.*v\d.mp4: .*truncated.*v\d.mp4"):
        run_epoch(clips, 0)


def test_settings_that_cannot_be(videos):
    with pytest.raises(InputError, match="at least one video, got none"):
        StreamingClips([], TRAIN)
    with pytest.raises(InputError, match="train must be true for resampled clips, got false; make a ClipStore"):
        StreamingClips(videos, ClipSpec(**{**vars(TRAIN), "train": False}))


def test_missing_files_are_prepared_at_once(tmp_path, videos):
    prepared = []
    StreamingClips(videos, TRAIN, prepare=lambda videos: prepared.extend(video.name for video in videos))
    assert prepared == [video.name for video in videos]


def test_numbers_stay_below_what_references_can_hold(videos, monkeypatch):
    monkeypatch.setattr(stream_module, "REFERENCES", 13)
    clips = StreamingClips(videos, TRAIN)
    assert len(clips) == 10 and len(clips.labels) == len(clips.names) == 10
    first, third = run_epoch(clips, 0), run_epoch(clips, 2)
    assert same(first, third) and list(first) != list(third), "the draws of the first epoch come again, in another order"
    assert list(clips.names)[-1] == videos[4].name and clips.names[-1] == videos[4].name
    with pytest.raises(IndexError):
        clips.names[10]


def test_clips_can_be_sent_to_another_process(videos):
    clips = StreamingClips(videos, TRAIN)
    before = run_epoch(clips, 1)
    data = pickle.dumps(clips)
    assert len(data) < 20_000
    assert same(run_epoch(pickle.loads(data), 1), before)


def test_results_do_not_share_memory_with_what_is_kept(videos):
    clips = StreamingClips(videos, TRAIN)
    before = clips.frames(0).clone()
    clips.frames(0).zero_()
    clips.truth(0)[:] = 0
    assert torch.equal(clips.frames(0), before) and clips.truth(0).any()


def test_workers_end_with_the_clips(videos, worker_processes):
    clips = StreamingClips(videos, TRAIN, memory=1)  # so that the thread waits for somebody to ask
    clips.epoch(0, np.random.default_rng(0))
    threads = [thread for thread in threading.enumerate() if thread.name == "prefetch clips"]
    assert threads
    del clips
    gc.collect()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)
