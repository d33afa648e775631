import dataclasses
import json
import multiprocessing
import os
import pickle
import shutil
import signal
from collections import namedtuple

import numpy as np
import pytest
import torch
from conftest import TASK, TINY, random_classifier

from adafocus_env.action import ContinuousAction, GridAction
from adafocus_env.build import build_features, open_clips
from adafocus_env.demo.videos import CLASSES, demo
from adafocus_env.features import disk_bank as bank_folder
from adafocus_env.features.disk_bank import CARD, DiskBank, check_room
from adafocus_env.features.live import LiveFeatures
from adafocus_env.features.memory_bank import DTYPES, NETWORKS, MemoryBank, RoomError
from adafocus_env.vector_env import AdaFocusVectorEnv
from classifiers.classifier import Classifier
from classifiers.errors import InputError

GRID = GridAction(3, 96, 24)
EVERY = (np.arange(12)[:, None, None], np.arange(4)[:, None], np.arange(9))


def answers(bank):
    clips, steps, cells = EVERY
    return (
        bank.glance_maps(clips[:, 0], steps[:, 0]),
        bank.glance_vectors(clips[:, 0], steps[:, 0]),
        bank.focus_vectors(clips, steps, cells),
    )


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def files(bank):
    return sorted(path.name for path in bank.folder.glob("*.bin"))


@pytest.fixture
def networks_rest(monkeypatch):
    """Make every further computation of features fail."""

    def rest():
        monkeypatch.setattr(LiveFeatures, "glance", None)
        monkeypatch.setattr(LiveFeatures, "focus_vectors", None)

    return rest


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bank_on_disk_answers_what_one_in_memory_does_and_is_found_again(classifier, clips, tmp_path, dtype, networks_rest):
    expected = answers(MemoryBank(classifier, clips, GRID, dtype=dtype))
    first = DiskBank(classifier, clips, GRID, tmp_path, dtype=dtype)
    assert first.missing_bytes() == first.num_bytes
    assert equal(answers(first), expected) and all(each.dtype == torch.float32 for each in expected)
    networks_rest()
    again = DiskBank(classifier, clips, GRID, tmp_path, dtype=dtype)
    assert equal(answers(again), expected)
    assert again.missing_bytes() == 0 and sum((again.folder / name).stat().st_size for name in files(again)) == again.num_bytes


def test_shards_are_made_when_one_of_their_clips_is_asked_for(classifier, clips, tmp_path):
    bank = DiskBank(classifier, clips, GRID, tmp_path)
    bank.glance_vectors(np.array([11]), np.array([0]))
    assert files(bank) == ["000001.bin"] and bank.missing_bytes() == 8 * bank.layout.clip_bytes + 32
    assert answers(bank)[2].shape == (12, 4, 9, 32) and files(bank) == ["000000.bin", "000001.bin"]


def test_everything_that_features_depend_on_has_its_own_place(classifier, clips, tmp_path):
    others = open_clips(demo(TASK, val=0.0), "test", num_frames=4, size=96)
    banks = [
        DiskBank(classifier, clips, GRID, tmp_path),
        DiskBank(random_classifier(3), clips, GRID, tmp_path),
        DiskBank(classifier, others, GRID, tmp_path),
        DiskBank(classifier, clips, GridAction(5, 96, 24), tmp_path),
        DiskBank(classifier, clips, ContinuousAction(96, 24), tmp_path),
        DiskBank(classifier, clips, GRID, tmp_path, dtype="float16"),
    ]
    assert len({bank.folder for bank in banks}) == len(banks)
    banks[0].glance_vectors(np.array([0]), np.array([0]))
    assert json.loads((banks[0].folder / CARD).read_text())["networks"] == classifier.fingerprint(NETWORKS)


def test_a_changed_weight_moves_on_to_another_bank(clips, tmp_path):
    classifier = random_classifier()
    bank = DiskBank(classifier, clips, GRID, tmp_path)
    before, folder = answers(bank), bank.folder
    with torch.no_grad():
        classifier.focuser.features[0][0].weight.mul_(1.5)
        classifier.glancer.features[0][0].weight.mul_(1.5)
    after = answers(bank)
    assert bank.folder != folder and not any(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert equal(after, answers(MemoryBank(classifier, clips, GRID)))
    classifier.load_state_dict(random_classifier().state_dict())
    assert equal(answers(bank), before) and bank.folder == folder


def flip(path):
    with path.open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 1]))


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


@pytest.mark.parametrize("damage", [flip, cut, empty])
def test_a_damaged_shard_is_computed_anew_and_said_so(classifier, clips, tmp_path, damage, caplog):
    bank = DiskBank(classifier, clips, GRID, tmp_path)
    expected = answers(bank)
    path = bank.folder / "000000.bin"
    damage(path)
    again = DiskBank(classifier, clips, GRID, tmp_path)
    assert equal(answers(again), expected)
    assert caplog.messages == [f"bank: {path} is damaged (its checksum is wrong) and is computed again"]
    caplog.clear()
    assert equal(answers(DiskBank(classifier, clips, GRID, tmp_path)), expected) and not caplog.messages


def test_a_shard_that_is_removed_as_soon_as_it_is_written_is_named(classifier, clips, tmp_path, monkeypatch):
    bank = DiskBank(classifier, clips, GRID, tmp_path)
    monkeypatch.setattr(bank_folder, "write_shard", lambda path, arrays: shutil.rmtree(tmp_path))
    with pytest.raises(InputError, match=r"000000\.bin was removed while this command was using it; start the same command again"):
        bank.fill()


def test_a_filling_that_was_cut_short_goes_on(classifier, clips, tmp_path, monkeypatch):
    bank = DiskBank(classifier, clips, GRID, tmp_path)
    glance = LiveFeatures.glance

    def fails(features, clip):
        if clip == 10:
            raise KeyboardInterrupt
        return glance(features, clip)

    monkeypatch.setattr(LiveFeatures, "glance", fails)
    with pytest.raises(KeyboardInterrupt):
        bank.fill()
    assert files(bank) == ["000000.bin"]
    computed, done = [], []
    monkeypatch.setattr(LiveFeatures, "glance", lambda features, clip: computed.append(clip) or glance(features, clip))
    (bank.folder / ".000001.bin.x.part").write_bytes(b"what a killed process left")
    DiskBank(classifier, clips, GRID, tmp_path).fill(progress=done.append)
    assert computed == [8, 9, 10, 11] and done == [8, 12]
    assert not list(bank.folder.glob(".*.part"))


def fill_elsewhere(folder, stop):
    """Fill a bank in another process; with ``stop``, kill it when it has computed ten of twelve clips."""
    torch.set_num_threads(1)
    clips = open_clips(demo(TASK, val=0.0), "train", num_frames=4, size=96)
    bank = DiskBank(random_classifier(), clips, GRID, folder)
    if stop:
        glance = LiveFeatures.glance

        def killed(features, clip):
            if clip == 10:
                os.kill(os.getpid(), signal.SIGKILL)
            return glance(features, clip)

        LiveFeatures.glance = killed
    bank.fill()


@pytest.mark.slow
def test_a_killed_process_and_two_at_once_leave_a_whole_bank(classifier, clips, tmp_path, networks_rest):
    fork = multiprocessing.get_context("fork")  # has everything imported already
    for group in ([True], [False, False]):
        processes = [fork.Process(target=fill_elsewhere, args=(tmp_path, stop)) for stop in group]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == (-signal.SIGKILL if group == [True] else 0)
        assert files(DiskBank(classifier, clips, GRID, tmp_path)) == ["000000.bin", "000001.bin"][: len(group)]
    expected = answers(MemoryBank(classifier, clips, GRID))
    networks_rest()
    bank = DiskBank(classifier, clips, GRID, tmp_path)
    for one, other in zip(answers(bank), expected, strict=True):
        assert torch.allclose(one, other, atol=1e-6, rtol=0)


def test_shares_of_the_work_make_a_whole_bank(classifier, clips, tmp_path, networks_rest):
    first, second = DiskBank(classifier, clips, GRID, tmp_path / "a"), DiskBank(classifier, clips, GRID, tmp_path / "b")
    first.fill(0, 2)
    second.fill(1, 2)
    assert (first.num_clips(0, 2), second.num_clips(1, 2)) == (8, 4) and first.missing_bytes(0, 2) == second.missing_bytes(1, 2) == 0
    shutil.copytree(second.folder, first.folder, dirs_exist_ok=True)
    networks_rest()
    answers(first)


@pytest.mark.parametrize("decisions", [1, 2])
def test_decisions_and_continuous_actions(clips, tmp_path, decisions):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        averaging = Classifier(dataclasses.replace(TINY, head="mean", shift=0.125, shift_place="block"), CLASSES).freeze()
    for action, actions in ((GRID, np.array([4, 8])), (ContinuousAction(96, 24), np.array([[0.2, 1.0], [0.5, 0.0]], np.float32))):
        index = np.array([11, 3]), np.array([0, decisions - 1])
        disk, live = (
            make(averaging, clips, action, *where, video_div=decisions) for make, where in ((DiskBank, [tmp_path]), (LiveFeatures, []))
        )
        assert disk.num_steps == decisions and disk.map_shape == live.map_shape
        for one, other in (
            (disk.glance_maps(*index), live.glance_maps(*index)),
            (disk.focus_vectors(*index, actions), live.focus_vectors(*index, actions)),
        ):
            assert one.shape == other.shape and torch.allclose(one, other, atol=1e-5)


def test_a_bank_travels_to_another_process(classifier, clips, tmp_path):
    bank = DiskBank(classifier, clips, GRID, tmp_path)
    expected = answers(bank)
    assert equal(answers(pickle.loads(pickle.dumps(bank))), expected)


def test_environments_take_a_folder(classifier, clips, tmp_path, networks_rest):
    def play(bank):
        env = AdaFocusVectorEnv(2, classifier, clips, grid=3, observation="vector", bank=bank)
        env.reset(seed=0)
        return [each for step in range(4) for each in env.step(np.array([step, 8 - step]))[:2]]

    expected = play(True)
    assert all(map(np.array_equal, play(tmp_path), expected))
    networks_rest()
    assert all(map(np.array_equal, play(str(tmp_path)), expected))


# Bad input


def test_a_full_disk_is_reported_before_anything_is_computed(classifier, clips, tmp_path, monkeypatch):
    bank = DiskBank(classifier, clips, GRID, tmp_path)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(bank_folder.shutil, "disk_usage", lambda path: usage(bank.num_bytes - 1))
    message = (
        r"bank: 12 clips in .*, 165\.1 KiB, 165\.1 KiB of them still to be computed must fit in 165\.1 KiB \(free on the disk\), "
        r"got 165\.1 KiB; free some space, choose another folder, store less \(bank_dtype=float16 or bfloat16\), or compute the features "
        r"live \(bank=false\)"
    )
    with pytest.raises(RoomError, match=message):
        build_features(classifier, clips, grid=3, bank=tmp_path)
    assert list(tmp_path.iterdir()) == []
    bank.fill()
    build_features(classifier, clips, grid=3, bank=str(tmp_path))


def test_room_is_looked_for_where_the_folder_will_be(tmp_path, monkeypatch):
    asked = []
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(bank_folder.shutil, "disk_usage", lambda path: asked.append(path) or usage(10))
    check_room(tmp_path / "a" / "b", 10, "bank")
    assert asked == [tmp_path]


def test_folders_that_cannot_be_used(classifier, clips, tmp_path):
    (tmp_path / "file").write_text("")
    bank = DiskBank(classifier, clips, GRID, tmp_path / "file")
    with pytest.raises(InputError, match=r"bank: cannot write to the folder .*file/[0-9a-f]{32}: .*; choose another one"):
        answers(bank)


def test_a_bound_in_memory_is_refused_for_a_folder(classifier, clips, tmp_path):
    with pytest.raises(InputError, match=r"bank_gib=1.0 limits a bank in memory, but this bank is stored in .*; leave bank_gib out"):
        build_features(classifier, clips, bank=tmp_path, bank_gib=1)
