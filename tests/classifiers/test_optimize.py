import copy
import dataclasses
import sys
import weakref

import pytest
import torch
from conftest import TINY, needs, random_classifier

from adafocus_env.demo.videos import CLASSES
from classifiers import optimize as execution
from classifiers.classifier import Classifier
from classifiers.errors import InputError
from classifiers.flops import classifier_flops
from classifiers.optimize import (
    PLAIN,
    Execution,
    check_precision,
    choose_execution,
    execution_of,
    optimized,
    supported_precisions,
    with_execution,
)  # fmt: skip

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images():
    """Return seven frames and eleven patches, which are not multiples of any batch size below."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 3, 96, 96, generator=generator), torch.randn(11, 3, 24, 24, generator=generator)


def features_of(classifier, images):
    return *classifier.glance(images[0]), classifier.focus(images[1])


def assert_close(found, wanted, tolerance):
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape and one.dtype == torch.float32
        assert (one - other).abs().max() <= tolerance * other.abs().max()


@pytest.mark.numerical
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("call", [0, 1, 4, 64])
def test_layout_and_size_of_calls_change_nothing_but_rounding(classifier, images, channels_last, call):
    other = with_execution(classifier, Execution(channels_last=channels_last, glance_call=call, focus_call=call))
    assert_close(features_of(other, images), features_of(classifier, images), 1e-5)


def test_an_empty_batch(classifier):
    maps, vectors = with_execution(classifier, Execution(channels_last=True, glance_call=4)).glance(torch.zeros(0, 3, 96, 96))
    assert maps.shape == (0, 16, 6, 6) and vectors.shape == (0, 16)


def test_calls_have_the_size_asked_for(images):
    classifier, sizes = random_classifier(), []
    other = with_execution(classifier, Execution(glance_call=4, focus_call=3))
    for run in (other.glancer_runner, other.focuser_runner):
        network = run.network()
        network.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    features_of(other, images)
    assert sizes == [4, 3, 3, 3, 3, 2]


@pytest.mark.numerical
@pytest.mark.parametrize("precision", [pytest.param(name, marks=needs(name)) for name in ("bfloat16", "float16")])
def test_a_low_precision_is_close_and_returns_float32(classifier, images, precision):
    other = with_execution(classifier, Execution(precision))
    found, wanted = features_of(other, images), features_of(classifier, images)
    assert_close(found, wanted, 0.02)
    assert not torch.equal(found[2], wanted[2])
    scores, state = other.classify(found[1][None], found[2][None, :7])
    assert scores.dtype == state.dtype == torch.float32


def test_weights_fingerprint_and_cost_stay_those_of_the_classifier(images):
    classifier = random_classifier()
    before, names = classifier.fingerprint(), list(classifier.state_dict())
    other = with_execution(classifier, Execution(supported_precisions(CPU)[-1], channels_last=True, glance_call=2))
    features_of(other, images)
    assert classifier.fingerprint() == other.fingerprint() == before
    assert list(other.state_dict()) == names
    assert classifier_flops(other) == classifier_flops(classifier)
    assert all(parameter.dtype == torch.float32 and parameter.is_contiguous() for parameter in other.parameters())


@pytest.mark.numerical
def test_a_changed_weight_renews_the_copy(images):
    classifier = random_classifier()
    other = with_execution(classifier, Execution(channels_last=True))
    before = features_of(other, images)
    with torch.no_grad():
        classifier.focuser.features[0][0].weight.mul_(2)
    after = features_of(other, images)
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[2], after[2])
    assert_close(after, features_of(classifier, images), 1e-5)


@pytest.mark.numerical
def test_images_of_a_clip_stay_together_where_they_are_mixed(images):
    shifted = dataclasses.replace(TINY, shift=0.25, shift_place="block", head="mean")
    classifier = Classifier(shifted, CLASSES).freeze()
    other = with_execution(classifier, Execution(channels_last=True, glance_call=4, focus_call=3))
    frames, patches = images[0][:6], images[1][:8]
    assert_close(other.glance(frames, num_frames=3), classifier.glance(frames, num_frames=3), 1e-5)
    assert_close([other.focus(patches, num_frames=4)], [classifier.focus(patches, num_frames=4)], 1e-5)
    with pytest.raises(InputError, match=r"num_frames=4 does not divide 6 images; give whole clips"):
        other.glance(frames, num_frames=4)


def test_a_head_can_be_trained_on_the_features(classifier, images):
    other = with_execution(classifier, Execution(channels_last=True))
    weight = torch.zeros(16, requires_grad=True)
    with torch.inference_mode():
        _, vectors = other.glance(images[0])
    (vectors * weight).sum().backward()
    assert weight.grad.abs().sum() > 0


@pytest.mark.numerical
def test_a_copy_runs_on_its_own_weights(images):
    other = with_execution(random_classifier(), Execution(channels_last=True))
    before = features_of(other, images)
    copied = copy.deepcopy(other)
    with torch.no_grad():
        copied.focuser.features[0][0].weight.mul_(2)
    assert torch.equal(features_of(other, images)[2], before[2]) and not torch.allclose(features_of(copied, images)[2], before[2])


def test_a_classifier_is_optimized_once_and_anew_when_it_may_have_learned(images):
    classifier = random_classifier()
    first = optimized(classifier)
    assert execution_of(first) == choose_execution(classifier) and optimized(classifier) is first is optimized(first)
    assert_close(features_of(first, images), features_of(classifier, images), 1e-5)
    as_it_is = with_execution(classifier, PLAIN)
    assert optimized(as_it_is) is as_it_is and as_it_is.glancer_runner.network() is classifier.glancer
    classifier.train()
    with pytest.raises(InputError, match="the classifier is in training mode"):
        optimized(classifier)
    for parameter in classifier.focuser.parameters():
        parameter.data.mul_(2)  # not counted by PyTorch, like a step of a fused optimizer
    classifier.freeze()
    assert_close(features_of(optimized(classifier), images), features_of(classifier, images), 1e-5)


def test_optimized_copies_go_with_their_classifier():
    classifier = random_classifier()
    gone = weakref.ref(optimized(classifier))
    del classifier
    assert gone() is None


def test_execution_of(classifier):
    wanted = Execution(channels_last=True)
    assert execution_of(classifier) == PLAIN and execution_of(with_execution(classifier, wanted)) == wanted
    assert execution_of(with_execution(with_execution(classifier, wanted), PLAIN)) == PLAIN


def test_calls_hold_as_many_pixels_whatever_the_size_of_an_image(classifier):
    paper = Classifier(dataclasses.replace(TINY, size=224, glance_size=224, patch_size=96), CLASSES).freeze()
    assert choose_execution(paper) == Execution(channels_last=True, glance_call=2, focus_call=32)
    assert choose_execution(paper, "bfloat16", compile=True) == Execution("bfloat16", True, True, glance_call=8, focus_call=16)
    small = choose_execution(classifier)
    assert (small.glance_call, small.focus_call) == (2 * 224**2 // 24**2, 32 * 96**2 // 24**2)


@pytest.mark.slow
def test_compiled_networks_return_the_same(images):
    """This is the only test that runs PyTorch's compiler."""
    try:
        execution.check_compiler()
    except InputError as missing:
        pytest.skip(str(missing))
    assert_compiled_alike(images[1])


def test_traced_networks_return_the_same(images, monkeypatch):
    """This is the fast form of the test, which runs traced graphs without generating C++."""
    compile_network, traced = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda call, **how: traced.append(call) or compile_network(call, **{**how, "backend": "eager"}))
    monkeypatch.setattr(execution, "check_compiler", lambda: None)
    assert_compiled_alike(images[1])
    assert len(traced) == 4, "two classifiers, and two copies more of the first"


def assert_compiled_alike(patches):
    """Check full batches, the rest, another classifier, and changed weights."""
    how = Execution(channels_last=True, compile=True, focus_call=8)
    first, second = random_classifier(0), random_classifier(1)
    for classifier, count in ((first, 11), (second, 8)):
        assert_close([with_execution(classifier, how).focus(patches[:count])], [classifier.focus(patches[:count])], 1e-5)
    other = with_execution(first, how)
    other.focus(patches[:8])
    with torch.no_grad():
        first.focuser.features[0][0].weight.mul_(2)
    with torch.inference_mode():
        assert_close([other.focus(patches[:8])], [first.focus(patches[:8])], 1e-5)


# Bad input


def test_a_classifier_in_training_mode_is_refused(images):
    classifier = random_classifier()
    other = with_execution(classifier, PLAIN)
    classifier.focuser.train()
    with pytest.raises(InputError, match=r"the classifier is in training mode; call classifier\.freeze\(\) first"):
        with_execution(classifier, PLAIN)
    with pytest.raises(InputError, match="this is an inference-only copy; train the original classifier"):
        other.focus(images[1])


def test_unknown_names_and_numbers_are_refused():
    with pytest.raises(InputError, match=r"precision='bf16' is not known; .*choose one of \['bfloat16', 'float16', 'float32'\]"):
        Execution("bf16")
    with pytest.raises(InputError, match="focus_call must be a number of images of at least 1, or 0 for no limit, got -1"):
        Execution(focus_call=-1)


def test_a_precision_that_the_device_lacks_is_refused(classifier, monkeypatch):
    monkeypatch.setattr(execution, "_works", lambda name, device: name != "float16")
    message = r"precision=float16 is not supported by this cpu; choose one of \['float32', 'bfloat16'\]"
    with pytest.raises(InputError, match=message):
        check_precision("float16", CPU)
    with pytest.raises(InputError, match=message):
        with_execution(classifier, Execution("float16"))


def test_compiling_without_a_compiler_is_refused(classifier, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"compile=true needs a C\+\+ compiler, but no-such-compiler was not found; install g\+\+"):
        with_execution(classifier, Execution(compile=True))
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr(execution.sysconfig, "get_path", lambda name: "/nowhere")
    with pytest.raises(InputError, match=r"compile=true needs Python's headers, but .nowhere.Python\.h was not found; install python3-dev"):
        with_execution(classifier, Execution(compile=True))
