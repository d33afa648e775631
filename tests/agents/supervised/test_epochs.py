import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from clip_videos import TRAIN, make_videos
from conftest import random_classifier
from supervised_stages import CONFIG, LEARNING, STAGES, trained
from videos import cut_in_half

from adafocus_env.clips.store import ClipStore
from adafocus_env.clips.stream import StreamingClips
from agents.config.command import compose_config
from agents.config.settings import SupervisedConfig, TrainStages
from agents.supervised import epochs
from agents.supervised.epochs import train_epochs
from agents.supervised.stage_model import Trainable
from agents.supervised.stages import train_on_random_patches
from classifiers.errors import InputError

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_changes_what_it_trains_and_nothing_else(clips, stage):
    before = copy.deepcopy(random_classifier().state_dict())
    classifier, measured = trained(stage, clips)
    changed = {name for name, tensor in classifier.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.startswith(LEARNING[stage])}  # batch-norm statistics are among them
    assert not any(module.training for module in classifier.modules())
    assert not any(parameter.requires_grad for parameter in classifier.parameters())
    assert [set(epoch) for epoch in measured] == [{"loss", "accuracy", "learning_rate"}] * 2
    assert all(0 <= epoch["accuracy"] <= 1 and epoch["loss"] > 0 for epoch in measured)


@pytest.mark.parametrize("stage", STAGES)
def test_equal_seeds_give_equal_losses_and_weights(clips, stage):
    def run(seed):
        torch.manual_seed(7)  # of the dropout
        classifier, measured = trained(stage, clips, seed=seed)
        return classifier.fingerprint(), measured

    assert run(1) == run(1)
    assert run(1) != run(2)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "step"])
def test_the_loss_falls(clips, optimizer, schedule):
    rate = 0.1 if optimizer == "sgd" else 0.03
    milestones = [8] if schedule == "step" else []
    config = SupervisedConfig(
        epochs=10, batch_size=4, learning_rate=rate, optimizer=optimizer, schedule=schedule, milestones=milestones, frames=4
    )
    losses = [epoch["loss"] for epoch in trained("glancer", clips, config)[1]]
    assert losses[-1] < min(losses[0], math.log(10)) - 0.2  # ln 10: what guessing costs


def test_every_clip_comes_once_an_epoch_in_a_new_order(clips):
    classifier, orders = random_classifier(), []

    def scores(batch):
        orders.append(batch.clips)
        assert batch.frames.shape == (len(batch.clips), 4, 3, 96, 96) and batch.frames.dtype == torch.uint8
        assert batch.labels.tolist() == clips.labels[batch.clips].tolist()
        return classifier.glancer.scores(classifier.glance(classifier.normalise(batch.frames[:, 0]))[1]), batch.labels

    list(train_epochs([Trainable(classifier.glancer, 0.01)], clips, scores, CONFIG, seed=0, device=classifier.device))
    assert [len(batch) for batch in orders] == [4, 4, 4] * 2  # as even as they can be: none of a single clip
    first, second = np.concatenate(orders[:3]), np.concatenate(orders[3:])
    assert sorted(first) == sorted(second) == list(range(12)) and not np.array_equal(first, second)


def watched(config, monkeypatch, clips, stage="random patches"):
    """Record the arguments of the optimiser, and its learning rates at every step."""
    made, rates = [], []
    for name, make in list(epochs.OPTIMIZERS.items()):

        def making(groups, config, make=make):
            optimizer = make(groups, config)
            made.append(optimizer)
            optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append([group["lr"] for group in optimizer.param_groups]))
            return optimizer

        monkeypatch.setitem(epochs.OPTIMIZERS, name, making)
    trained(stage, clips, config)
    return made[0], rates


def test_rates_fall_to_a_tenth_at_the_milestones(clips, monkeypatch):
    config = SupervisedConfig(
        epochs=5, batch_size=6, optimizer="sgd", schedule="step", milestones=[2, 4], learning_rate=0.01, head_learning_rate=0.1
    )
    _, rates = watched(config, monkeypatch, clips)
    expected = [[0.01 * factor, 0.1 * factor] for factor in (1, 1, 0.1, 0.1, 0.01) for _ in range(2)]  # two batches an epoch
    assert np.allclose(rates, expected)


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
def test_momentum_and_decay_reach_the_optimiser(clips, monkeypatch, schedule):
    config = SupervisedConfig(epochs=1, optimizer="sgd", momentum=0.7, weight_decay=0.02, schedule=schedule)
    optimizer, _ = watched(config, monkeypatch, clips)
    assert {(group["momentum"], group["weight_decay"]) for group in optimizer.param_groups} == {(0.7, 0.02)}


def test_dropout_is_set_for_a_stage_and_put_back(clips):
    seen = []
    for dropout, expected in ((0.0, 0.0), (0.3, 0.3), (None, 0.5)):
        classifier = random_classifier()
        classifier.head.dropout.register_forward_hook(lambda module, *_: seen.append((module.p, module.training)))
        epochs = train_on_random_patches(classifier, clips, SupervisedConfig(epochs=2, dropout=dropout), seed=0)
        next(epochs)
        assert set(seen) == {(expected, True)} and classifier.head.dropout.p == 0.5, "between epochs it is as it was"
        epochs.close()
        seen.clear()


def test_dropout_where_there_is_none_is_an_error(clips):
    config, cpu = SupervisedConfig(epochs=1, dropout=0.5), torch.device("cpu")
    with pytest.raises(InputError, match=r"dropout=0.5 has no effect: the trained networks have no dropout; leave it out"):
        next(train_epochs([Trainable(torch.nn.Linear(1, 1), 0.1)], clips, lambda batch: None, config, seed=0, device=cpu))


def test_a_loss_that_is_no_number_names_the_epoch_and_the_clips(clips):
    classifier, calls = random_classifier(), []

    def scores(batch):
        calls.append(batch.clips)
        vectors = classifier.glance(classifier.normalise(batch.frames[:, 0]))[1]
        return classifier.glancer.scores(vectors) * (math.nan if len(calls) == 5 else 1), batch.labels

    with pytest.raises(InputError, match=r"the loss is nan in epoch 2, with the clips .*; choose a lower learning_rate") as caught:
        list(train_epochs([Trainable(classifier.glancer, 0.01)], clips, scores, CONFIG, seed=0, device=classifier.device))
    assert all(clips.names[clip] in str(caught.value) for clip in calls[-1]) and len(calls[-1]) == 4
    assert not any(module.training for module in classifier.modules())


def batches_of(store, epochs=1, batch_size=3):
    """Return all batches of a training."""
    classifier, seen = random_classifier(), []

    def scores(batch):
        seen.append(batch)
        return classifier.glancer.scores(torch.zeros(len(batch.labels), 16)), batch.labels

    config = SupervisedConfig(epochs=epochs, batch_size=batch_size)
    list(train_epochs([Trainable(classifier.glancer, 0.01)], store, scores, config, seed=0, device=classifier.device))
    return seen


def test_the_glancers_frames_of_a_batch(clips, tmp_path):
    assert all(batch.glance_frames is batch.frames for batch in batches_of(clips))
    videos = make_videos(tmp_path / "v")
    store = ClipStore(videos, replace(TRAIN, views=1, glance_frames=3), folder=tmp_path / "cache")
    for batch in batches_of(store):
        assert batch.frames.shape[1:] == (4, 3, 32, 32) and batch.glance_frames.shape == (len(batch.clips), 3, 3, 32, 32)


def test_fresh_clips_are_new_in_every_epoch_and_unreadable_ones_left_out(tmp_path):
    videos = make_videos(tmp_path, 7)
    for i in (1, 4):
        cut_in_half(videos[i].path)
    store = StreamingClips(videos, TRAIN)
    seen = batches_of(store, epochs=2, batch_size=2)
    shown = {int(clip): frames for batch in seen for clip, frames in zip(batch.clips, batch.frames, strict=True)}
    assert sorted(shown) == [0, 2, 3, 5, 6, 7, 9, 10, 12, 13]
    assert all(torch.equal(frames, store.frames(clip)) for clip, frames in shown.items())
    assert all(len(batch.clips) > 0 and batch.labels.tolist() == store.labels[batch.clips].tolist() for batch in seen)


def test_the_settings_of_the_command_line_know_milestones_and_dropout():
    config = compose_config(TrainStages, "train_stages", ["stages.glancer.milestones=[20,40]", "stages.glancer.dropout=0.5"])
    assert (config.stages.glancer.milestones, config.stages.glancer.dropout) == ([20, 40], 0.5)


def test_no_epochs_leave_the_weights_as_they_are(clips):
    for stage in STAGES:
        classifier, measured = trained(stage, clips, SupervisedConfig(epochs=0))
        assert measured == [] and classifier.fingerprint() == random_classifier().fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "step"}, r"milestones=\[\] do not go with schedule=step; set some, such as \[20, 40\]"),
        ({"milestones": [3]}, r"milestones=\[3\] do not go with schedule=one_cycle; only schedule=step has milestones"),
        ({"schedule": "step", "milestones": [4, 2]}, r"milestones must be strictly increasing epochs of at least 1, .* got \[4, 2\]"),
        ({"schedule": "step", "milestones": [0]}, r"milestones must be strictly increasing epochs of at least 1, .* got \[0\]"),
    ],
)
def test_settings_that_cannot_be(clips, change, message):
    with pytest.raises(InputError, match=message):
        trained("glancer", clips, SupervisedConfig(**change))
