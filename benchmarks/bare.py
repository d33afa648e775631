"""The limit: the networks alone, on images that have the right precision, layout and number of a call already."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from classifiers.classifier import Classifier
from classifiers.optimize import PRECISIONS, InferenceClassifier, NetworkRunner, execution_of


def bare_focus(classifier: Classifier, count: int) -> Callable[[], object]:
    """An act: the focuser on ``count`` random patches, as the execution of ``classifier`` calls it."""
    side = classifier.architecture.patch_size
    return _bare(classifier, "focuser_runner", torch.randn(count, 3, side, side))


def bare_glance(classifier: Classifier, count: int) -> Callable[[], object]:
    """An act: the glancer on ``count`` random frames of the glance size."""
    side = classifier.architecture.glance_size
    return _bare(classifier, "glancer_runner", torch.randn(count, 3, side, side))


def _bare(classifier: Classifier, which: str, images: Tensor) -> Callable[[], object]:
    images = images.to(classifier.device)
    if not isinstance(classifier, InferenceClassifier):
        network = classifier.glancer if which == "glancer_runner" else classifier.focuser
        return lambda: _called(network, [images])
    run: NetworkRunner = getattr(classifier, which)
    how = execution_of(classifier)
    call = how.glance_call if which == "glancer_runner" else how.focus_call
    layout = torch.channels_last if how.channels_last else torch.contiguous_format
    parts = [part.to(PRECISIONS[how.precision], memory_format=layout, copy=True) for part in images.split(call or len(images))]
    return lambda: _called(run.network(), parts)


@torch.no_grad()
def _called(network: Callable[..., object], parts: list[Tensor]) -> None:
    for part in parts:
        network(part, 1)
