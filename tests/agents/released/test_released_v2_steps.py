"""One training step of AdaFocusV2 in float64, compared with a step of the authors' code."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import released_weights
import torch
from released_weights import frames, released_v2, results, save
from torch import nn

from agents.config.settings import EndToEndConfig
from agents.released.checkpoint import read_released
from agents.supervised.end_to_end import LOSSES, actor_of, networks_of, two_path_scores
from agents.supervised.epochs import OPTIMIZERS, weighted_loss

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
WEIGHTS = list(LOSSES.values())
PUBLISHED = {"activitynet": EndToEndConfig(), "something": EndToEndConfig(
    learning_rate=0.01, policy_ratio=0.01, head_ratio=1, weight_decay=5e-4, max_grad_norm=20
)}  # fmt: skip
ORDER = {  # of the stored losses; the family Something-Something has its random path first
    "activitynet": ("policy", "glance", "policy_patch", "random", "glance", "random_patch"),
    "something": ("random", "glance", "random_patch", "policy", "glance", "policy_patch"),
}


@dataclass
class Step:
    """The results of this project and of the authors' code."""

    stored: dict[str, np.ndarray]
    modules: dict[str, nn.Module]
    found: dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def same_bits():
    """Make weights and frames bit-identical to those of the stored results, if this CPU has the kernels of that machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(released_weights, "normal", lambda shape, generator: torch.randn(shape, generator=generator))
        if not np.array_equal(frames(2, 16, 224, 20220614).flatten()[:64], results("activitynet_v2")["input.first64"]):
            pytest.skip("torch.randn has other last bits on this CPU: a step cannot be compared to 1e-8")
        yield


def inputs(family):
    """Return frames of the focuser and of the glancer, labels of all decisions, and random locations."""
    labels = torch.from_numpy(results("steps_v2")[f"{family}.labels"])
    if family == "activitynet":
        both = frames(2, 4, 224, 20220614).double()
        return both, both, labels.repeat_interleave(4), uniform((2, 4, 2), 20220615)
    return frames(4, 6, 224, 20220617).double(), frames(4, 4, 224, 20220616).double(), labels, uniform((4, 1, 2), 20220618)


def uniform(shape, seed):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).double()


def networks(family, folder):
    """Return classifier and policy in float64 and training mode, without dropout, for 4 frames (4 and 6)."""
    shapes = {f"classifier.classifiers.{step}.1.{kind}": None for step in range(4, 16) for kind in ("weight", "bias")}
    if family == "something":
        shapes = {"policy_stn.0.weight": (64, 5120, 1, 1)}
    released = read_released(save(released_v2(f"{family}_v2", **shapes), folder), patch_size=96 if family == "activitynet" else 128)
    for network in (released.classifier, released.policy):
        network.double().train().requires_grad_(True)
        for layer in network.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
    return released.classifier, released.policy


def modules_of(family, classifier, policy):
    """Return the modules by their names in the authors' code."""
    policy_stn = nn.ModuleList([policy.encoder, policy.actor])
    glancer, focuser, head = classifier.glancer, classifier.focuser, classifier.head
    if family == "something":
        return {
            "policy_stn": policy_stn, "global_CNN": nn.ModuleList([glancer, head.glance_fc]),
            "local_CNN": nn.ModuleList([focuser, head.focus_fc]),
        }  # fmt: skip
    return {
        "policy_stn": policy_stn, "global_CNN": glancer.features, "global_CNN_fc": glancer.fc, "local_CNN": focuser.features,
        "local_CNN_fc": focuser.fc, "classifier": head,
    }  # fmt: skip


def layers_of(family, classifier):
    """Yield module, name and layer of the linear layers of the second family, which form the head and the auxiliary heads."""
    if family == "activitynet":
        return []
    head, glancer, focuser = classifier.head, classifier.glancer, classifier.focuser
    of_head = [("global_CNN", "new_fc.weight", head.glance_fc), ("local_CNN", "new_fc.weight", head.focus_fc)]
    return [*of_head, ("global_CNN", "new_new_fc.weight", glancer.fc), ("local_CNN", "new_new_fc.weight", focuser.fc)]


def norm(tensors):
    return torch.stack([tensor.norm() for tensor in tensors]).norm().item()


@pytest.fixture(scope="module", params=["activitynet", "something"])
def step(request, tmp_path_factory):
    """Return a step of a family: losses, gradients, weights after the step, and the losses of the same batch with these weights."""
    family = request.param
    classifier, policy = networks(family, tmp_path_factory.mktemp(family))
    modules, config = modules_of(family, classifier, policy), PUBLISHED[family]
    focused, glanced, labels, locations = inputs(family)
    chosen = []
    policy.register_forward_hook(lambda module, maps, output: chosen.append(output))
    scores = two_path_scores(classifier, policy, focused, glanced, locations)
    loss, losses = weighted_loss(scores, labels, WEIGHTS)
    by_output = [torch.autograd.grad(losses[number], chosen[0], retain_graph=True)[0] for number in (0, 3)]
    chosen[0].retain_grad()  # only now: each call of autograd.grad would add to it
    trained = [*networks_of(classifier, config), actor_of(policy, config)]
    optimizer = OPTIMIZERS["sgd"]([{"params": each.module.parameters(), "lr": each.learning_rate} for each in trained], config)
    loss.backward()
    gradients = {name: norm([each.grad for each in module.parameters()]) for name, module in modules.items()}
    layers = {f"{name}.{kind}": norm([layer.weight.grad]) for name, kind, layer in layers_of(family, classifier)}
    total = None
    if config.max_grad_norm is not None:
        total = nn.utils.clip_grad_norm_([each for network in trained for each in network.module.parameters()], config.max_grad_norm).item()
    before = {name: [each.detach().clone() for each in module.parameters()] for name, module in modules.items()}
    optimizer.step()
    moved = {
        name: norm([after.detach() - old for after, old in zip(module.parameters(), before[name], strict=True)])
        for name, module in modules.items()
    }
    with torch.no_grad():
        after, losses_after = weighted_loss(two_path_scores(classifier, policy, focused, glanced, locations), labels, WEIGHTS)
    terms = [dict(zip(LOSSES, each, strict=True)) for each in (losses, losses_after)]
    found = {
        "loss": loss.item(), "loss_after": after.item(), "locations": chosen[0].detach(), "grad": chosen[0].grad, "by_output": by_output,
        "terms": [terms[0][name].item() for name in ORDER[family]], "terms_after": [terms[1][name].item() for name in ORDER[family]],
        "gradients": gradients, "moved": moved, "clip_total_norm": total, "layers": layers,
    }  # fmt: skip
    stored = {name.removeprefix(f"{family}."): value for name, value in results("steps_v2").items() if name.startswith(f"{family}.")}
    return Step(stored, modules, found)


def close(found, stored, rel=1e-8):
    assert np.allclose(found, stored, rtol=rel, atol=1e-12), np.abs(np.asarray(found) - stored).max()


def test_the_losses(step):
    close(step.found["loss"], step.stored["loss"])
    close(step.found["terms"], step.stored["loss_terms"])


def test_the_locations_and_their_gradients(step):
    locations = step.stored["actions"] if "actions" in step.stored else step.stored["action"][:, None]
    close(step.found["locations"], locations)
    gradient = step.stored["grad_actions"] if "grad_actions" in step.stored else step.stored["grad_action"][:, None]
    close(step.found["grad"], gradient)
    if "grad_actions_from_logits" in step.stored:  # by the weight of each loss
        close(0.5 * step.found["by_output"][0], step.stored["grad_actions_from_logits"])
        close(0.5 * step.found["by_output"][1], step.stored["grad_actions_from_local_logits"])
    else:
        assert not step.found["by_output"][0].any(), "no gradient of the head reaches the policy"


def test_the_gradient_of_every_network(step):
    found = step.found["gradients"] | step.found["layers"]
    assert {f"grad_norm.{name}" for name in found} == {name for name in step.stored if name.startswith("grad_norm.")}
    for name, gradient in found.items():
        close(gradient, step.stored[f"grad_norm.{name}"])


def test_batch_norms_of_the_focuser_are_updated_by_both_paths(step):
    """The focuser's are updated twice in each of the two steps, those of glancer and policy once."""
    counts = {name: {int(value) for key, value in module.state_dict().items() if "tracked" in key} for name, module in step.modules.items()}
    once, twice = {"policy_stn": {2}, "global_CNN": {2}}, {"local_CNN": {4}, "classifier": {4}}
    assert {name: count for name, count in counts.items() if count} == once | {name: twice[name] for name in twice if name in step.modules}


def test_the_weights_after_the_step(step):
    for name, moved in step.found["moved"].items():
        close(moved, step.stored[f"step_norm.{name}"], rel=1e-6)
    if "clip_total_norm" in step.stored:
        close(step.found["clip_total_norm"], step.stored["clip_total_norm"])
    close(step.found["loss_after"], step.stored["loss_after"], rel=1e-6)
    close(step.found["terms_after"], step.stored["loss_terms_after"], rel=1e-6)
