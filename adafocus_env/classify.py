"""Compute class scores from glance vectors, focus vectors and a patch mask, for whole clips or for one step of the environment.

In a skipped step, which has no patch, the input of the head is:

| ``skipped`` | input of the head |
|---|---|
| `zeros` | zeros in place of the focus vector |
| `last` | the focus vector of the last patch; zeros before the first |
| `none` | none: the head takes no step, and state and scores stay the same; before its first step, all classes have the same score |

If a clip has no patch at all, the option makes no difference: the clip is classified from its glance vectors, with zeros in place of the
focus vectors.
"""

from typing import Literal

import torch
from torch import Tensor

from classifiers.classifier import Classifier
from classifiers.errors import lookup

Skipped = Literal["zeros", "last", "none"]
SKIPPED: dict[str, Skipped] = {"zeros": "zeros", "last": "last", "none": "none"}


def find_skipped(skipped: str) -> Skipped:
    """Check that ``skipped`` is the name of an option, and return the name.

    Raises:
        InputError: If the option is unknown. The message suggests the nearest.
    """
    return lookup("skipped", skipped, SKIPPED)


def classify_clips(
    classifier: Classifier,
    glances: Tensor,
    focus_vectors: Tensor,
    patch_mask: Tensor | None = None,
    skipped: str = "zeros",
    *,
    num_frames: int = 1,
) -> Tensor:
    """Return the class scores (N, T, K) of N clips after each of their T frames.

    If the given features are averages over the frames of a step, T is the number of steps.

    Evaluation, inference and training call this function with focus vectors from different sources. This function calls the head once for
    all steps, which is several times as fast as one call per step. The environment has to use `classify_step` instead, because actions may
    depend on earlier scores.

    Args:
        classifier: The classifier with the head.
        glances: Glance vectors (N, T, C) of all frames.
        focus_vectors: Focus vectors (M, F) of the M frames with a patch, clip by clip.
        patch_mask: (N, T) bool, true for the frames with a patch; None: all frames have a patch.
        skipped: Input of the head in frames without a patch; see the table above.
        num_frames: Number of frames per decision. Either all frames of a decision have a patch, or no frame of the decision has a patch.
            The option `last` repeats the mean of the focus vectors of the last decision with patches.

    Raises:
        InputError: If the option is unknown.
    """
    option = find_skipped(skipped)
    if patch_mask is None:
        return classifier.classify(glances, focus_vectors.unflatten(0, glances.shape[:2]))[0]
    inputs = glances.new_zeros(*patch_mask.shape, classifier.focuser.vector_size)
    inputs[patch_mask] = focus_vectors
    if option == "none":
        return _classify_patches_only(classifier, glances, inputs, patch_mask)
    if option == "last":
        inputs = repeat_last(inputs, patch_mask, num_frames)
    return classifier.classify(glances, inputs)[0]


def classify_step(
    classifier: Classifier, glances: Tensor, focus_vectors: Tensor, state: Tensor, skip: Tensor | None = None, before: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Classify the next step of N clips with each of k alternative focus vectors. All k alternatives start from the same state of the head.

    Args:
        classifier: The classifier with the head.
        glances: Glance vectors (N, C).
        focus_vectors: (k, N, F), the focus vectors. For a skipped step, the caller passes the substitute for the focus vector from the
            table above.
        state: (N, S), state of the head before the step.
        skip: (m, N) bool with m ≤ k. If an entry is true, the head takes no step for this focus vector and clip (``skipped="none"``). If
            ``skip`` is None, the head always takes a step.
        before: (N, K), softmax scores before the step. If the head takes no step, the result contains the scores before the step.

    Returns:
        Softmax scores (k, N, K) for all k inputs, and the state (N, S) after the step with the first input.
    """
    scores, states = classifier.compare(glances, focus_vectors, state)
    probabilities = scores.softmax(-1)
    if skip is not None and before is not None:
        no_step = skip[..., None]
        probabilities = torch.cat([before.where(no_step, probabilities[: len(skip)]), probabilities[len(skip) :]])
        states = state.where(no_step[0], states)
    return probabilities, states


def classify_glances(classifier: Classifier, glances: Tensor) -> Tensor:
    """Return the class scores (N, K) of clips without any patch, from their glance vectors (N, T, C)."""
    return classifier.classify(glances, glances.new_zeros(*glances.shape[:2], classifier.focuser.vector_size))[0][:, -1]


def repeat_last(focus_vectors: Tensor, patch_mask: Tensor, num_frames: int) -> Tensor:
    """Fill the skipped frames of ``focus_vectors`` (N, T, F) with the mean focus vector of the last decision that has patches.

    Skipped frames before the first decision with patches are filled with zeros.
    """
    focused = patch_mask[:, ::num_frames]
    means = focus_vectors.unflatten(1, (-1, num_frames)).mean(2)
    steps = torch.arange(focused.shape[1], device=patch_mask.device)
    last = torch.where(focused, steps, 0).cummax(1).values  # before the first patch, step 0, whose vector is zero
    repeated = means.gather(1, last[..., None].expand_as(means)).repeat_interleave(num_frames, dim=1)
    return focus_vectors.where(patch_mask[..., None], repeated)


def _classify_patches_only(classifier: Classifier, glances: Tensor, focus_vectors: Tensor, patch_mask: Tensor) -> Tensor:
    """Return the class scores (N, T, K) if the head takes steps only for the frames with a patch.

    Before the call of the head, the frames with a patch are moved to the start of each row.
    """
    longest = max(1, int(patch_mask.sum(1).max()))
    order = (~patch_mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest, None]
    packed = (values.gather(1, order.expand(-1, -1, values.shape[-1])) for values in (glances, focus_vectors))
    scores, _ = classifier.classify(*packed)
    scores = torch.cat([torch.zeros_like(scores[:, :1]), scores], dim=1)  # equal scores before the first step
    num_patches = patch_mask.cumsum(1)[..., None]
    scores = scores.gather(1, num_patches.expand(-1, -1, scores.shape[-1]))
    if (without := ~patch_mask.any(1)).any():
        scores[without, -1] = classify_glances(classifier, glances[without])
    return scores
