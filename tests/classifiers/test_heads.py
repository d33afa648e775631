"""The heads of AdaFocusV2: the running maximum with a linear layer per step, and separate means of glances and focus vectors."""

import dataclasses

import pytest
import torch
from conftest import TINY

from adafocus_env.demo.videos import CLASSES
from classifiers import checkpoint
from classifiers.classifier import Classifier
from classifiers.errors import InputError
from classifiers.heads import MaxPerStepHead, SeparateMeanHead


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def head():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = MaxPerStepHead(6, 3, hidden_size=5, dropout=0.5, num_steps=4)
        torch.nn.init.normal_(head.hidden[1].running_mean, std=0.1)
    return head.eval()


def test_each_step_scores_the_maximum_so_far_by_its_own_layer(head):
    inputs = features(2, 4, 6)
    each = head.hidden(inputs.flatten(0, 1)).unflatten(0, (2, 4))
    scores, state = head(inputs)
    for step in range(4):
        assert torch.allclose(scores[:, step], head.fc[step](each[:, : step + 1].amax(1)), atol=1e-6)
    assert torch.equal(state, torch.cat([each.amax(1), torch.full((2, 1), 4.0)], dim=1))


def test_step_by_step_equals_whole_clips_also_where_clips_are_at_different_steps(head):
    inputs = features(3, 4, 6)
    whole, last = head(inputs)
    state = torch.zeros(3, head.state_size)
    for step in range(4):
        scores, state = head(inputs[:, step : step + 1], state)
        assert torch.allclose(scores[:, 0], whole[:, step], atol=1e-6)
    assert torch.allclose(state, last)
    ahead = [torch.zeros(1, head.state_size), head(inputs[1:2, :1])[1], head(inputs[2:, :2])[1]]
    following = torch.stack([inputs[0, :2], inputs[1, 1:3], inputs[2, 2:4]])
    scores, _ = head(following, torch.cat(ahead))
    for clip in range(3):
        assert torch.allclose(scores[clip], whole[clip, clip : clip + 2], atol=1e-6)


def test_a_device_is_not_waited_for(head):
    inputs, steps = features(5, 6), torch.tensor([0, 3, 1, 1, 2])
    maxima = head.hidden(inputs)
    assert torch.allclose(head._score_by_all(maxima, steps), head._score_by_layer(maxima, steps), atol=1e-6)
    on_meta = head.to("meta")  # whose values cannot be read
    scores, state = on_meta(torch.empty(5, 2, 6, device="meta"), torch.empty(5, head.state_size, device="meta"))
    assert scores.shape == (5, 2, 3) and state.shape == (5, 6)


def test_a_clip_may_be_shorter_but_not_longer_than_the_head(head):
    inputs = features(2, 5, 6)
    assert head(inputs[:, :3])[0].shape == (2, 3, 3)
    message = r"has linear layers for 4 frames, the clips have 5; set data.num_frames to at most 4, or .* architecture.head_steps=5"
    with pytest.raises(InputError, match=message):
        head(inputs)
    _, state = head(inputs[:, :3])
    with pytest.raises(InputError, match=message):
        head(inputs[:, 3:], state)


def test_batch_norm_counts_every_step_of_every_clip_once(head):
    inputs = features(2, 4, 6)
    linear, norm, _ = head.train().hidden
    norm.reset_running_stats()
    head(inputs)
    assert torch.allclose(norm.running_mean, 0.1 * linear(inputs).mean((0, 1)), atol=1e-6)
    assert norm.num_batches_tracked == 1


def test_dropout_acts_in_training_alone(head):
    inputs = features(2, 4, 6)
    assert torch.equal(head(inputs)[0], head(inputs)[0])
    head.dropout.train()
    assert not torch.equal(head(inputs)[0], head(inputs)[0])


def test_glances_and_focus_vectors_are_scored_separately_and_averaged():
    head = SeparateMeanHead(7, 3, dropout=0.5, glance_size=4).eval()
    inputs = features(2, 4, 7)
    scores, last = head(inputs)
    for step in range(4):
        glances, focus_vectors = inputs[:, : step + 1].split([4, 3], dim=-1)
        assert torch.allclose(scores[:, step], head.glance_fc(glances).mean(1) + head.focus_fc(focus_vectors).mean(1), atol=1e-6)
    _, state = head(inputs[:, :2])
    scores_after, state = head(inputs[:, 2:], state)
    assert torch.allclose(scores_after, scores[:, 2:], atol=1e-6) and torch.allclose(state, last)


@pytest.mark.parametrize(("name", "steps"), [("max_per_step", 6), ("separate_mean", 0)])
def test_a_classifier_with_such_a_head_is_saved_and_loaded_by_its_card(tmp_path, name, steps):
    architecture = dataclasses.replace(TINY, head=name, head_steps=steps)
    classifier = Classifier(architecture, CLASSES).freeze()
    checkpoint.save(classifier, tmp_path)
    loaded = checkpoint.load(tmp_path)
    assert loaded.architecture == architecture and loaded.architecture.averages_frames == (name == "separate_mean")
    glances, focus_vectors = features(2, 6, 16), features(2, 6, 32)
    assert torch.equal(loaded.classify(glances, focus_vectors)[0], classifier.classify(glances, focus_vectors)[0])


@pytest.mark.parametrize(("changes"), [{"head": "max_per_step"}, {"head": "separate_mean", "head_steps": 8}, {"head_steps": -1}])
def test_steps_that_do_not_suit_the_head_are_refused(changes):
    with pytest.raises(InputError, match=r"head_steps=.* does not suit head="):
        dataclasses.replace(TINY, **changes)


def test_frames_are_resized_as_the_architecture_says():
    frames = features(1, 3, 96, 96)
    for resize, options in (("antialias", {"antialias": True}), ("align_corners", {"align_corners": True})):
        classifier = Classifier(dataclasses.replace(TINY, resize=resize), CLASSES)
        expected = torch.nn.functional.interpolate(frames, (24, 24), mode="bilinear", **options)
        assert torch.equal(classifier.to_glance_size(frames), expected)
