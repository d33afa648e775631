import dataclasses
import re
import threading

import numpy as np
import pytest
import torch
from conftest import TASK, TINY, random_classifier

from adafocus_env.action import GridAction
from adafocus_env.build import build_features, choose_device, open_clips
from adafocus_env.demo.videos import demo
from adafocus_env.env import AdaFocusEnv
from adafocus_env.features import live as features_module
from adafocus_env.features import memory_bank as bank_module
from adafocus_env.features.live import CALL_PIXELS, LiveFeatures
from adafocus_env.features.memory_bank import DTYPES, MemoryBank, check_bank
from adafocus_env.vector_env import AdaFocusVectorEnv
from agents.config.command import compose_config
from agents.config.settings import Evaluate, TrainPPO
from classifiers.classifier import Classifier
from classifiers.errors import InputError
from classifiers.optimize import InferenceClassifier

pytestmark = [pytest.mark.numerical, pytest.mark.filterwarnings("error")]
GRID = GridAction(3, 96, 24)
CLIPS, STEPS = np.array([3, 0, 3, 11]), np.array([2, 0, 0, 3])
CELLS = np.array([[0, 8], [4, 4], [1, 7], [5, 6]])


def requests(features, clips=CLIPS, steps=STEPS, cells=CELLS):
    return (
        features.glance_maps(clips, steps),
        features.glance_vectors(clips, steps),
        features.focus_vectors(clips[:, None], steps[:, None], cells),
    )


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_bank_holds_what_the_networks_say(classifier, clips):
    live, bank = requests(LiveFeatures(classifier, clips, GRID)), requests(MemoryBank(classifier, clips, GRID))
    for a, b, shape in zip(live, bank, [(4, 16, 6, 6), (4, 16), (4, 2, 32)], strict=True):
        assert a.shape == b.shape == shape and a.dtype == b.dtype == torch.float32
        assert torch.allclose(a, b, atol=1e-6, rtol=0)
    assert not equal([live[0][0]], [live[0][1]])


def test_the_maps_of_whole_clips_are_those_of_their_steps(classifier, clips):
    arguments = classifier, clips, GRID
    limited = MemoryBank(*arguments, max_bytes=2 * MemoryBank(*arguments).layout.clip_bytes)
    for features in (MemoryBank(*arguments), MemoryBank(*arguments, dtype="float16"), limited, LiveFeatures(*arguments)):
        wanted = features.glance_maps(CLIPS[:, None], np.arange(4)[None])
        assert equal(features.clip_maps(CLIPS), wanted)


def test_a_bank_of_all_clips_does_not_copy_their_maps(classifier, clips):
    bank = MemoryBank(classifier, clips, GRID)
    first, again = bank.clip_maps(np.array([3, 3]))
    assert first.data_ptr() == again.data_ptr()


def test_a_bank_caches_the_frames_of_few_clips(classifier, clips, monkeypatch):
    read = []
    frames = clips.frames
    monkeypatch.setattr(clips, "frames", lambda clip: read.append(clip) or frames(clip))
    for count, expected in ((1, [0, 1, 0]), (2, [0, 1])):
        read.clear()
        monkeypatch.setattr(bank_module, "CACHED_FRAMES", count)
        bank = MemoryBank(classifier, clips, GRID)
        for clip in (0, 1):
            bank.glance_vectors(np.array([clip]), np.array([0]))
        bank.focus_vectors(np.array([0]), np.array([0]), np.array([0]))
        assert read == expected


def test_index_arrays_broadcast(classifier, clips):
    bank, live = MemoryBank(classifier, clips, GRID), LiveFeatures(classifier, clips, GRID)
    every = np.arange(9)
    for features in (live, bank):
        assert features.glance_vectors(np.array([[3], [0]]), np.arange(4)).shape == (2, 4, 16)
        assert features.glance_maps(np.array([[3], [0]]), np.arange(4)).shape == (2, 4, 16, 6, 6)
        focus_vectors = features.focus_vectors(np.array([[[3]], [[0]]]), np.arange(4)[:, None], every)
        assert focus_vectors.shape == (2, 4, 9, 32)
        assert torch.allclose(
            focus_vectors[1, 2, 7], features.focus_vectors(np.array([0]), np.array([2]), np.array([7]))[0], atol=1e-6, rtol=0
        )


def test_values_do_not_depend_on_the_order_or_the_company_of_requests(classifier, clips):
    together = requests(MemoryBank(classifier, clips, GRID))
    backwards = MemoryBank(classifier, clips, GRID)
    for cell in reversed(range(9)):
        for clip in reversed(range(12)):
            backwards.focus_vectors(np.array([clip]), np.array([clip % 4]), np.array([cell]))
    assert equal(requests(backwards), together)
    alone = MemoryBank(classifier, clips, GRID)
    for row in reversed(range(4)):
        one = slice(row, row + 1)
        assert equal(requests(alone, CLIPS[one], STEPS[one], CELLS[one]), [values[one] for values in together])
    assert equal(requests(alone), together), "a hit differs from the miss that filled it"


def test_each_value_is_computed_once(classifier, clips, monkeypatch):
    bank = MemoryBank(classifier, clips, GRID)
    first = requests(bank)
    monkeypatch.setattr(LiveFeatures, "glance", None)
    monkeypatch.setattr(LiveFeatures, "focus_vectors", None)
    assert equal(requests(bank), first)


def in_place(classifier):
    with torch.no_grad():
        classifier.focuser.features[0][0].weight.mul_(1.5)
        classifier.glancer.features[0][0].weight.mul_(1.5)


def other_weights(classifier):
    classifier.load_state_dict(random_classifier(7).state_dict())


def statistics(classifier):
    classifier.focuser.features[0][1].running_mean += 1
    classifier.glancer.features[0][1].running_mean += 1


def new_parameters(classifier):
    for network in (classifier.focuser, classifier.glancer):
        network.features[0][0].weight = torch.nn.Parameter(network.features[0][0].weight * 1.5, requires_grad=False)


def new_data(classifier):
    for network in (classifier.focuser, classifier.glancer):
        network.features[0][0].weight.data = network.features[0][0].weight.data * 1.5


@pytest.mark.parametrize("make", [MemoryBank, LiveFeatures])
@pytest.mark.parametrize("change", [in_place, other_weights, statistics, new_parameters, new_data])
def test_a_changed_weight_is_never_answered_with_old_values(clips, change, make):
    classifier = random_classifier()
    bank = make(classifier, clips, GRID)
    before = requests(bank)
    change(classifier)
    after = requests(bank)
    assert not any(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert equal(after, requests(make(classifier, clips, GRID)))


def test_weights_that_were_written_again_unchanged_keep_the_bank(clips, monkeypatch):
    classifier = random_classifier()
    bank = MemoryBank(classifier, clips, GRID)
    before = requests(bank)
    classifier.load_state_dict(random_classifier().state_dict())
    monkeypatch.setattr(LiveFeatures, "glance", None)
    assert equal(requests(bank), before)


def test_a_bank_is_shared_by_equal_classifiers_clips_and_grids(bank, clips):
    again = open_clips(demo(TASK, val=0.0), "train", num_frames=4, size=96)
    assert build_features(random_classifier(), again, grid=7, bank=bank, device="cpu") is bank


def test_banks_of_something_else_are_refused(classifier, clips, bank):
    others = open_clips(demo(TASK, val=0.0), "test", num_frames=4, size=96)
    refused = "the bank belongs to another {}; make a MemoryBank for this one, or pass bank=True"
    with pytest.raises(InputError, match=refused.format("classifier")):
        check_bank(bank, random_classifier(3), clips, bank.action)
    with pytest.raises(InputError, match=refused.format("clips")):
        check_bank(bank, classifier, others, bank.action)
    with pytest.raises(InputError, match=refused.format("patch geometry")):
        build_features(classifier, clips, grid=5, bank=bank, device="cpu")
    with pytest.raises(InputError, match=refused.format("classifier and another clips and another patch geometry")):
        build_features(random_classifier(3), others, grid=5, bank=bank, device="cpu")


def test_equal_weights_that_see_frames_otherwise_are_another_classifier(bank, clips):
    for change in ({"mean": (0.5, 0.5, 0.5)}, {"glance_size": 32}):
        other = Classifier(dataclasses.replace(TINY, **change), bank.classifier.classes)
        other.load_state_dict(bank.classifier.state_dict())
        with pytest.raises(InputError, match="the bank belongs to another classifier; "):
            check_bank(bank, other.freeze(), clips, bank.action)


def test_a_bank_that_is_too_large_for_the_memory(classifier, clips, monkeypatch):
    need = 4 * 12 * 4 * (16 * 6 * 6 + 16 + 9 * 32)
    memory = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 2 * need}
    monkeypatch.setattr(bank_module.os, "sysconf", memory.__getitem__)
    MemoryBank(classifier, clips, GRID)
    memory["SC_PHYS_PAGES"] -= 1
    message = (
        r"bank: the features of 12 clips must fit in 165\.0 KiB \(half of the memory\), got 165\.0 KiB; store them on disk "
        r"\(bank=FOLDER\), store only the last used clips \(bank_gib=N\), or compute them live \(bank=false\)"
    )
    with pytest.raises(InputError, match=message):
        MemoryBank(classifier, clips, GRID)


# How numbers are stored


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_value_is_always_what_was_stored(classifier, clips, dtype):
    exact = requests(MemoryBank(classifier, clips, GRID))
    bank = MemoryBank(classifier, clips, GRID, dtype=dtype)
    miss, hit = requests(bank), requests(bank)
    assert equal(miss, hit) and equal(miss, [values.to(DTYPES[dtype]).float() for values in exact])
    assert not equal(miss, exact) and bank.num_bytes == MemoryBank(classifier, clips, GRID).num_bytes // 2


def test_numbers_that_float16_cannot_hold(clips):
    classifier = random_classifier()
    classifier.focuser.features[1][1].weight.data.fill_(1e7)
    classifier.focuser.features[1][2] = torch.nn.ReLU().eval()
    for dtype in ("float32", "bfloat16"):
        assert requests(MemoryBank(classifier, clips, GRID, dtype=dtype))[2].isfinite().all()
    with pytest.raises(InputError, match=r"bank_dtype=float16 cannot store features above 65504; choose bfloat16 or float32"):
        requests(MemoryBank(classifier, clips, GRID, dtype="float16"))


def test_dtypes_that_are_not_known(classifier, clips):
    with pytest.raises(InputError, match=r"bank_dtype must be 'float32' or 'float16' or 'bfloat16', got 'float61'"):
        build_features(classifier, clips, bank=True, bank_dtype="float61")


@pytest.mark.parametrize(("patches", "calls"), [(64, [64, 17] * 4), (100, [81] * 4), (1000, [324] * 3)])
def test_cells_are_computed_in_calls_that_are_always_the_same(classifier, clips, monkeypatch, patches, calls):
    """The cells of a step take several calls or one; or all four steps of a clip take one call."""
    monkeypatch.setitem(CALL_PIXELS, "cpu", patches * 24**2)
    sizes, focus = [], InferenceClassifier.focus
    monkeypatch.setattr(InferenceClassifier, "focus", lambda *given, **lookup: sizes.append(len(given[1])) or focus(*given, **lookup))
    fine = GridAction(9, 96, 24)
    bank = MemoryBank(classifier, clips, fine)
    assert bank.focus_vectors(CLIPS, STEPS, np.array([0, 80, 3, 4])).shape == (4, 32)
    assert sizes == calls
    assert torch.allclose(
        bank.focus_vectors(CLIPS, STEPS, np.array([80] * 4)),
        LiveFeatures(classifier, clips, fine).focus_vectors(CLIPS, STEPS, np.array([80] * 4)),
        atol=1e-6,
    )


def test_several_threads_fill_a_bank_as_one_does(classifier, clips, monkeypatch):
    """The values are bit-identical, and every group of cells is computed once."""
    used, compute = [], LiveFeatures.cell_focus_vectors
    monkeypatch.setattr(LiveFeatures, "cell_focus_vectors", lambda *given: used.append(threading.get_ident()) or compute(*given))

    def filled(workers):
        used.clear()
        monkeypatch.setattr(features_module, "idle_workers", lambda device: workers)
        focus_vectors = MemoryBank(classifier, clips, GRID).focus_vectors(
            np.arange(12)[:, None, None], np.arange(4)[:, None], np.arange(GRID.num_cells)
        )
        assert len(used) == 12 * len(LiveFeatures(classifier, clips, GRID).groups)
        return focus_vectors

    alone = filled(1)
    assert set(used) == {threading.get_ident()}
    assert torch.equal(filled(3), alone) and len(set(used)) > 1


# A bounded bank


def bounded(classifier, clips, capacity):
    whole = MemoryBank(classifier, clips, GRID)
    bank = MemoryBank(classifier, clips, GRID, max_bytes=capacity * whole.layout.clip_bytes + 1)
    assert bank.num_bytes == capacity * whole.layout.clip_bytes
    return whole, bank


@pytest.mark.parametrize("capacity", [1, 3, 11])
def test_a_bounded_bank_answers_what_an_unbounded_one_does(classifier, clips, capacity):
    whole, bank = bounded(classifier, clips, capacity)
    rng = np.random.default_rng(0)
    for _ in range(20):
        shape = tuple(rng.integers(1, 5, size=2))
        index = rng.integers(12, size=shape), rng.integers(4, size=(shape[0], 1)), rng.integers(9, size=shape)
        for name, count in (("glance_maps", 2), ("glance_vectors", 2), ("focus_vectors", 3)):
            assert torch.equal(getattr(bank, name)(*index[:count]), getattr(whole, name)(*index[:count]))
    every = np.arange(12)
    assert torch.equal(bank.glance_vectors(every[:, None], np.arange(4)), whole.glance_vectors(every[:, None], np.arange(4)))


def test_the_clip_not_asked_for_the_longest_goes(classifier, clips, monkeypatch):
    _, bank = bounded(classifier, clips, 3)
    computed, glance = [], LiveFeatures.glance
    monkeypatch.setattr(LiveFeatures, "glance", lambda features, clip: computed.append(clip) or glance(features, clip))
    for clip in (5, 6, 7, 5, 8, 5, 7, 6):
        bank.glance_vectors(np.array([clip]), np.array([0]))
    assert computed == [5, 6, 7, 8, 6]


def test_a_changed_weight_empties_a_bounded_bank(clips):
    classifier = random_classifier()
    _, bank = bounded(classifier, clips, 2)
    requests(bank)
    in_place(classifier)
    assert equal(requests(bank), requests(MemoryBank(classifier, clips, GRID)))


def test_bounds_that_hold_no_clip(classifier, clips):
    for gib, message in (
        (1e-6, r"bank_gib must be at least the size of one clip, 13\.8 KiB, got 1\.0 KiB; choose a larger bank_gib, or bank=false"),
        (0, "bank_gib must be a number above 0 or null, got 0"),
        (float("nan"), "bank_gib must be a number above 0 or null, got nan"),
    ):
        for bank in (True, "auto"):
            with pytest.raises(InputError, match=message):
                build_features(classifier, clips, grid=3, bank=bank, bank_gib=gib)


# Where a bank is only the default


def test_what_does_not_fit_is_computed_live_unless_a_bank_was_asked_for(classifier, clips, monkeypatch, caplog):
    monkeypatch.setattr(bank_module.os, "sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 100_000}.__getitem__)
    assert isinstance(AdaFocusEnv(classifier, clips).dynamics.features, LiveFeatures)
    assert re.fullmatch(
        r"bank: the features of 12 clips must fit in 48\.8 KiB \(half of the memory\), got .*; .* Features are computed live "
        "instead: slower, with the same results",
        caplog.messages[0],
    )
    with pytest.raises(InputError, match=r"must fit in 48\.8 KiB \(half of the memory\)"):
        AdaFocusEnv(classifier, clips, bank=True)
    with pytest.raises(InputError, match=r"must fit in 48\.8 KiB \(half of the memory\)"):
        AdaFocusVectorEnv(2, classifier, clips, bank=True)
    assert isinstance(AdaFocusEnv(classifier, clips, grid=3, bank=True, bank_gib=2**-16).dynamics.features, MemoryBank)


def test_what_fits_is_kept_by_default(classifier, clips):
    assert isinstance(AdaFocusEnv(classifier, clips).dynamics.features, MemoryBank)
    assert isinstance(AdaFocusVectorEnv(2, classifier, clips).dynamics.features, MemoryBank)


@pytest.mark.parametrize(("typed", "value"), [("true", True), ("false", False), ("auto", "auto"), ("banks/a", "banks/a")])
def test_the_command_line_takes_a_folder_or_a_truth_value(typed, value):
    config = compose_config(TrainPPO, "train_ppo", [f"env.bank={typed}", "env.bank_dtype=bfloat16", "env.bank_gib=1.5"])
    assert (config.env.bank, config.env.bank_dtype, config.env.bank_gib) == (value, "bfloat16", 1.5)
    assert compose_config(TrainPPO, "train_ppo").env.bank == compose_config(Evaluate, "evaluate").bank == "auto"


# What goes together


def test_a_classifier_in_training_mode_is_refused(clips):
    with pytest.raises(InputError, match=r"the classifier is in training mode; call classifier\.freeze\(\) first"):
        build_features(random_classifier().train(), clips, grid=7, bank=True, device="cpu")


@pytest.mark.parametrize("make", [MemoryBank, LiveFeatures])
def test_features_refuse_a_classifier_of_which_a_part_is_in_training_mode(clips, make):
    classifier = random_classifier()
    classifier.focuser.features[1][1].train()
    with pytest.raises(InputError, match=r"the classifier is in training mode; call classifier\.freeze\(\) first"):
        make(classifier, clips, GRID)


def test_clips_of_another_size_are_refused(classifier):
    small = open_clips(demo(TASK, val=0.0), "test", num_frames=4, size=64)
    with pytest.raises(InputError, match="the clips have size=64, the classifier expects size=96; pack them at that size"):
        build_features(classifier, small, grid=7, bank=True, device="cpu")


def test_clips_with_more_classes_are_refused(clips):
    three = Classifier(TINY, "abc").freeze()
    with pytest.raises(InputError, match=r"labels up to 9, the classifier knows 3 classes \(from 0\); use a classifier"):
        build_features(three, clips, grid=7, bank=True, device="cpu")


def test_devices():
    assert choose_device("cpu") == torch.device("cpu") and choose_device("auto").type in ("cpu", "cuda")
    for name in ("gpu", "cuda:99"):
        with pytest.raises(InputError, match=f"device='{name}' cannot be used here .*; choose auto, cpu, cuda or cuda:N"):
            choose_device(name)


def test_unknown_parts_of_a_data_set():
    with pytest.raises(InputError, match="clips must be 'train', 'val', 'test', 'further' or a ClipStore, got 'tets'"):
        open_clips(demo(TASK), "tets", num_frames=4, size=96)
