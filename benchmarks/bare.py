"""What results are compared with: the networks alone on tensors in memory, and the released scheme of inference."""

from collections.abc import Callable

import torch
from torch import Tensor

from adafocus_env.action import crop_patches
from agents.evaluation.inference import patches_of
from agents.policies.networks import PolicyNetwork
from benchmarks.timing import Act
from classifiers.classifier import Classifier
from classifiers.optimize import PRECISIONS, InferenceClassifier, NetworkRunner, execution_of


def bare_focus(classifier: Classifier, count: int) -> Act:
    """Return an act: the focuser on ``count`` random patches, with the execution of ``classifier``."""
    side = classifier.architecture.patch_size
    return _bare(classifier, "focuser_runner", torch.randn(count, 3, side, side))


def bare_glance(classifier: Classifier, count: int) -> Act:
    """Return an act: the glancer on ``count`` random frames of the glance size."""
    side = classifier.architecture.glance_size
    return _bare(classifier, "glancer_runner", torch.randn(count, 3, side, side))


def _bare(classifier: Classifier, which: str, images: Tensor) -> Act:
    images = images.to(classifier.device)
    if not isinstance(classifier, InferenceClassifier):
        network = classifier.glancer if which == "glancer_runner" else classifier.focuser
        return lambda: _call(network, [images])
    run: NetworkRunner = getattr(classifier, which)
    how = execution_of(classifier)
    call = how.glance_call if which == "glancer_runner" else how.focus_call
    layout = torch.channels_last if how.channels_last else torch.contiguous_format
    batches = [batch.to(PRECISIONS[how.precision], memory_format=layout, copy=True) for batch in images.split(call or len(images))]
    return lambda: _call(run.network(), batches)


@torch.no_grad()
def _call(network: Callable[..., object], batches: list[Tensor]) -> None:
    for batch in batches:
        network(batch, 1)


def bare_head(network: Classifier, rows: int) -> Act:
    """Return an act: one step of the head on ``rows`` rows."""
    glances = torch.rand(rows, 1, network.glancer.vector_size, device=network.device)
    focus_vectors, state = torch.rand(rows, 1, network.focuser.vector_size, device=network.device), network.initial_state(rows)

    @torch.no_grad()
    def act() -> None:
        network.classify(glances, focus_vectors, state)

    return act


def bare_policy(policy: PolicyNetwork, maps: Tensor) -> Act:
    """Return an act: actor and critic on the glance maps (N, T, C, h, w) of whole clips."""

    @torch.no_grad()
    def act() -> None:
        hidden = policy.encoder(maps)
        policy.actor(hidden), policy.critic(hidden)

    return act


def bare_update(policy: PolicyNetwork, maps: Tensor, epochs: int, minibatches: int) -> Act:
    """Return an act: forward and backward pass of every minibatch of every epoch, on whole clips."""
    policy.train().requires_grad_(True)

    def act() -> None:
        for _ in range(epochs):
            for minibatch in maps.chunk(minibatches):
                policy.zero_grad()
                hidden = policy.encoder(minibatch)
                (policy.actor(hidden).logsumexp(-1).mean() + policy.critic(hidden).mean()).backward()

    return act


@torch.inference_mode()
def step_by_step(classifier: Classifier, policy: PolicyNetwork, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Classify videos with recurrent heads as the released code does: all glances, then policy, focuser and head frame by frame.

    The loops of the released code over the images of a batch are left out; the scheme does not need them.

    Args:
        classifier: Frozen.
        policy: The policy on its glance maps.
        frames: Normalised, (N, T, 3, H, W).

    Returns:
        Actions (N, T) and class scores (N, T, K).
    """
    count, length = frames.shape[:2]
    maps, vectors = (each.unflatten(0, (count, length)) for each in classifier.glance(frames.flatten(0, 1)))
    hidden, state, rows = None, classifier.initial_state(count), torch.arange(count, device=frames.device)
    actions, scores = [], []
    for step in range(length):
        output, hidden = policy.encoder.gru(policy.encoder.frame(maps[:, step]).unsqueeze(1), hidden)
        action = policy.actor(output[:, 0]).argmax(-1)
        patches = crop_patches(frames[:, step], rows, patches_of(policy, classifier, action)[0], classifier.architecture.patch_size)
        score, state = classifier.classify(vectors[:, step, None], classifier.focus(patches)[:, None], state)
        actions.append(action)
        scores.append(score[:, 0])
    return torch.stack(actions, 1), torch.stack(scores, 1)
