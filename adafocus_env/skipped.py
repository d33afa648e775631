"""What the head gets on a step that looks at no patch, for whole clips; `adafocus_env.dynamics` does the same step by step.

| option | on a skipped step |
|---|---|
| `zeros` | zeros in place of the focus vector |
| `last` | the focus vector of the patch last looked at; zeros before the first |
| `none` | no head step: state and scores stay as they were; before the first head step all classes are as likely |

A clip of which every frame is skipped is answered from the glance vectors, with zeros in place of the focus vectors, whatever the option.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from classifiers.classifier import Classifier
from classifiers.errors import lookup

Skipped = Literal["zeros", "last", "none"]
SKIPPED: dict[str, Skipped] = {"zeros": "zeros", "last": "last", "none": "none"}
"""The options by name, for what a user typed."""


def find_skipped(skipped: str) -> Skipped:
    """The option of that name.

    Raises:
        InputError: there is none (suggests the nearest).
    """
    return lookup("skipped", skipped, SKIPPED)


def classify_focused(
    classifier: Classifier, glances: Tensor, focus_vectors: Tensor, patch_mask: Tensor, skipped: Skipped, *, num_frames: int = 1
) -> Tensor:
    """Class scores (N, T, K) after every step of clips that look at some of their frames only.

    Args:
        classifier: its head.
        glances: glance vectors (N, T, C) of all frames.
        focus vectors: focus vectors (M, F) of the M frames that are kept, clip after clip.
        patch_mask: (N, T) bool.
        skipped: what the head gets in the others.
        num_frames: frames of a decision, which are kept or skipped together: the last focus vector is the mean over them.
    """
    spread = focus_vectors.new_zeros(*patch_mask.shape, focus_vectors.shape[-1])
    spread[patch_mask] = focus_vectors
    if skipped == "none":
        return _kept_steps_alone(classifier, glances, spread, patch_mask)
    if skipped == "last":
        spread = _last_of(spread, patch_mask, num_frames)
    return classifier.classify(glances, spread)[0]


def answer_unseen(classifier: Classifier, glances: Tensor) -> Tensor:
    """Glance vectors (N, T, C) of clips without a patch → the class scores (N, K) that answer them."""
    nothing = glances.new_zeros(*glances.shape[:2], classifier.focuser.vector_size)
    return classifier.classify(glances, nothing)[0][:, -1]


def _last_of(focus_vectors: Tensor, patch_mask: Tensor, num_frames: int) -> Tensor:
    """Focus vectors (N, T, F), zeros where skipped → those of the decision last looked at in their place, still zeros before the first."""
    looked = patch_mask[:, ::num_frames]
    means = focus_vectors.unflatten(1, (-1, num_frames)).mean(2)
    steps = torch.arange(looked.shape[1], device=patch_mask.device)
    last = torch.where(looked, steps, 0).cummax(1).values  # step 0 where none was kept, which holds zeros then
    repeated = means.gather(1, last[..., None].expand_as(means)).repeat_interleave(num_frames, dim=1)
    return focus_vectors.where(patch_mask[..., None], repeated)


def _kept_steps_alone(classifier: Classifier, glances: Tensor, focus_vectors: Tensor, patch_mask: Tensor) -> Tensor:
    """The head runs over the kept steps of each clip, which come first in its row, and no further than the longest row asks for."""
    longest = max(1, int(patch_mask.sum(1).max()))
    order = (~patch_mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest, None]
    packed = (each.gather(1, order.expand(-1, -1, each.shape[-1])) for each in (glances, focus_vectors))
    scores, _ = classifier.classify(*packed)
    scores = torch.cat([torch.zeros_like(scores[:, :1]), scores], dim=1)  # equal scores before the first step
    taken = patch_mask.cumsum(1)[..., None]
    scores = scores.gather(1, taken.expand(-1, -1, scores.shape[-1]))
    if (unseen := ~patch_mask.any(1)).any():
        scores[unseen, -1] = answer_unseen(classifier, glances[unseen])
    return scores
