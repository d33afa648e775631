"""Temporal heads compute class scores after every step from the features of the steps so far.

`MaxPerStepHead` and `SeparateMeanHead` are the heads of AdaFocusV2 (arXiv 2112.14238). AdaFocusV2 also has two auxiliary heads, which are
used only in training: one linear layer for glance vectors and one linear layer for focus vectors. The auxiliary heads are the frame
classifiers of the backbones (`classifiers.backbones.backbone.Backbone.fc`). Every checkpoint contains the frame classifiers, so that
training can continue. `MaxPerStepHead` and `SeparateMeanHead` do not use the frame classifiers.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from classifiers.errors import refuse_if


class GRUHead(nn.Module):
    """The paper's head f_C: a GRU over the concatenated glance and focus vectors, followed by dropout and a linear layer.

    Args:
        feature_size: Length of the features of one step.
        num_classes: K, number of classes.
        hidden_size: S, length of the GRU's state.
        dropout: Share of the GRU's output that is dropped in training.
    """

    glance_part: Literal["vector", "scores"] = "vector"

    def __init__(self, feature_size: int, num_classes: int, *, hidden_size: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.gru = nn.GRU(feature_size, hidden_size, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(hidden_size, num_classes)
        self.state_size = hidden_size

    def state_bounds(self, num_steps: int) -> tuple[float, float]:
        """Return the lowest and highest possible value of a state. A state is an average of hyperbolic tangents."""
        return -1.0, 1.0

    def forward(self, features: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return scores (N, T, K) and the new state (N, S) for features (N, T, feature_size) and the old state (N, S) or None."""
        hidden, last = self.gru(in_order_of_steps(features), None if state is None else state.unsqueeze(0))
        return self.fc(self.dropout(hidden)), last.squeeze(0)

    def compare(self, glances: Tensor, focus_vectors: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step with each of several focus vectors, without dropout; see `classifiers.classifier.Classifier.compare`.

        Products that all k steps have in common are computed only once.
        """
        of_input, of_state, input_bias, state_bias = self.gru.all_weights[0]
        of_glance, of_focus = of_input.tensor_split((glances.shape[1],), dim=1)
        inputs = F.linear(focus_vectors, of_focus).add_(F.linear(glances, of_glance, input_bias)).chunk(3, -1)
        before = F.linear(state, of_state, state_bias).chunk(3, -1)
        reset, keep = ((now + then).sigmoid_() for now, then in zip(inputs[:2], before[:2], strict=True))
        states = inputs[2].addcmul(reset, before[2]).tanh_().lerp_(state, keep)
        return F.linear(states, self.fc.weight, self.fc.bias), states[0]


class LinearHead(nn.Module):
    """A head without a GRU: a linear layer classifies every single step, and the class probabilities are averaged over the steps so far.

    The scores are the logarithm of this average, so that the softmax of the scores is the average. The state holds the sum of the
    probabilities and the number of steps.

    Args:
        feature_size: Length of the features of one step.
        num_classes: K, number of classes.
        hidden_size: Not used; all heads have the same arguments.
        dropout: Share of the features that is dropped in training.
    """

    glance_part: Literal["vector", "scores"] = "vector"

    def __init__(self, feature_size: int, num_classes: int, *, hidden_size: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(feature_size, num_classes)
        self.state_size = num_classes + 1

    def state_bounds(self, num_steps: int) -> tuple[float, float]:
        """Return the lowest and highest possible value of a state in the first ``num_steps`` steps.

        A state holds sums of probabilities and the number of steps.
        """
        return 0.0, float(num_steps)

    def forward(self, features: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return scores (N, T, K) and the new state (N, K + 1) for features (N, T, feature_size) and the old state (N, K + 1) or None."""
        means, state = _means_so_far(self.fc(self.dropout(features)).softmax(-1), state)
        return means.clamp_min(torch.finfo(means.dtype).tiny).log(), state


class MeanHead(nn.Module):
    """The head f_C of the Something-Something family, which averages scores.

    A linear layer computes class scores from every focus vector. The scores of the focus vector are added to the glancer's scores, and the
    sums are averaged over the steps so far. The state holds the sum of all scores and the number of steps.

    Args:
        feature_size: K + F, length of the glancer's scores and of the focus vector of one step.
        num_classes: K, number of classes.
        hidden_size: Not used; all heads have the same arguments.
        dropout: Share of the focus vectors that is dropped in training.
    """

    glance_part: Literal["vector", "scores"] = "scores"
    averages_frames = True

    def __init__(self, feature_size: int, num_classes: int, *, hidden_size: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(feature_size - num_classes, num_classes)
        self.state_size = num_classes + 1

    def forward(self, features: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return scores (N, T, K) and the new state (N, K + 1) for features (N, T, K + F) and the old state (N, K + 1) or None."""
        glanced, focus_vectors = features.tensor_split((self.num_classes,), dim=-1)
        return _means_so_far(glanced + self.fc(self.dropout(focus_vectors)), state)


class MaxHead(nn.Module):
    """A head with max-pooling over the steps so far, as in AdaFocusV2 (arXiv 2112.14238) and earlier in FrameExit (arXiv 2104.13400).

    A linear layer and a ReLU map the glance and focus vectors of every step to S numbers. The state is the maximum of these numbers over
    the steps so far, and starts with zeros. A second linear layer computes class scores from the state. The published head,
    `MaxPerStepHead`, has a batch norm before the ReLU and a separate second layer for each step. In `MaxHead`, all steps share the second
    layer, so that clips may have any number of steps.

    Args:
        feature_size: Length of the features of one step.
        num_classes: K, number of classes.
        hidden_size: S, length of the state.
        dropout: Share of the state that is dropped in training, before the class scores are computed.
    """

    glance_part: Literal["vector", "scores"] = "vector"

    def __init__(self, feature_size: int, num_classes: int, *, hidden_size: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.hidden = nn.Linear(feature_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(hidden_size, num_classes)
        self.state_size = hidden_size

    def state_bounds(self, num_steps: int) -> tuple[float, float]:
        """Return the lowest and highest possible value of a state."""
        return 0.0, math.inf

    def forward(self, features: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return scores (N, T, K) and the new state (N, S) for features (N, T, feature_size) and the old state (N, S) or None."""
        highest = self.hidden(features).relu().cummax(1).values
        if state is not None:
            highest = torch.maximum(highest, state.unsqueeze(1))
        return self.fc(self.dropout(highest)), highest[:, -1]


class MaxPerStepHead(nn.Module):
    """The published head of AdaFocusV2 on ActivityNet, FCVID and Mini-Kinetics: a running maximum with one linear layer per step.

    A linear layer, batch norm and a ReLU map the glance and focus vectors of every step to S numbers. Batch norm treats all clips and steps
    as one batch, regardless of their order. The maximum of the S numbers over the steps so far starts with zeros. The linear layer of the
    current step computes class scores from this maximum. The state holds the maximum and the number of steps.

    Args:
        feature_size: Length of the features of one step.
        num_classes: K, number of classes.
        hidden_size: S, length of the vectors whose maximum is computed.
        dropout: Share of the maxima that is dropped in training, before the class scores are computed.
        num_steps: T, number of steps that have a linear layer. A clip may have fewer steps.
    """

    glance_part: Literal["vector", "scores"] = "vector"

    def __init__(self, feature_size: int, num_classes: int, *, hidden_size: int, dropout: float = 0.0, num_steps: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(feature_size, hidden_size), nn.BatchNorm1d(hidden_size), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.ModuleList(nn.Linear(hidden_size, num_classes) for _ in range(num_steps))
        self.state_size = hidden_size + 1

    def state_bounds(self, num_steps: int) -> tuple[float, float]:
        """Return the lowest and highest possible value of a state."""
        return 0.0, math.inf

    def forward(self, features: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return scores (N, T, K) and the new state (N, S + 1) for features (N, T, feature_size) and the old state (N, S + 1) or None.

        Raises:
            InputError: If there are more steps than linear layers. On a GPU, the number of steps in ``state`` is checked later, by a
                device-side assertion, which ends the process.
        """
        length, on_host = features.shape[1], features.device.type == "cpu"
        taken = 0 if state is None or not on_host else int(max(state[:, -1].tolist(), default=0))
        check_steps(len(self.fc), taken + length)
        highest = self.hidden(features.flatten(0, 1)).unflatten(0, features.shape[:2]).cummax(1).values
        before = highest.new_zeros(features.shape[0]) if state is None else state[:, -1]
        if state is None:
            scores = [layer(maxima) for layer, maxima in zip(self.fc, self.dropout(highest).unbind(1), strict=False)]
        else:
            highest = torch.maximum(highest, state[:, None, :-1])
            score = self._score_by_layer if on_host else self._score_by_all
            scores = [score(maxima, before.long() + step) for step, maxima in enumerate(self.dropout(highest).unbind(1))]
        return torch.stack(scores, dim=1), torch.cat([highest[:, -1], before[:, None] + length], dim=-1)

    def _score_by_layer(self, highest: Tensor, steps: Tensor) -> Tensor:
        """Return the scores (N, K) for maxima (N, S). Every row uses the linear layer of its step in ``steps`` (N,).

        The host waits for ``steps``. Each layer scores all rows, so that no score depends on how many clips are at the same step.
        """
        first, *others = steps.unique().tolist() or [0]
        scores = self.fc[first](highest)
        for step in others:
            scores = torch.where((steps == step)[:, None], self.fc[step](highest), scores)
        return scores

    def _score_by_all(self, highest: Tensor, steps: Tensor) -> Tensor:
        """Do the same as `_score_by_layer`, but apply all layers in one product, so that the host does not wait for ``steps``."""
        weight, bias = (torch.cat([getattr(layer, name) for layer in self.fc]) for name in ("weight", "bias"))
        scores = F.linear(highest, weight, bias).unflatten(-1, (len(self.fc), -1))
        return scores.gather(1, steps[:, None, None].expand(-1, 1, scores.shape[-1]))[:, 0]


class SeparateMeanHead(nn.Module):
    """The head of AdaFocusV2 on Something-Something and Jester: a linear layer for glance vectors and another one for focus vectors.

    The scores of each layer are averaged over the steps so far, and the two averages are added. Unlike `MeanHead`, this head does not use
    the glancer's frame classifier, which is an auxiliary head in AdaFocusV2. In the published training, the loss of this head sends no
    gradient to the glance and focus vectors. The state holds the sum of all scores and the number of steps.

    Args:
        feature_size: C + F, length of the glance vector and of the focus vector of one step.
        num_classes: K, number of classes.
        hidden_size: Not used; all heads have the same arguments.
        dropout: Share of the glance and focus vectors that is dropped in training.
        glance_size: C, length of the glance vector.
    """

    glance_part: Literal["vector", "scores"] = "vector"
    averages_frames = True

    def __init__(self, feature_size: int, num_classes: int, *, hidden_size: int = 0, dropout: float = 0.0, glance_size: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.glance_fc = nn.Linear(glance_size, num_classes)
        self.focus_fc = nn.Linear(feature_size - glance_size, num_classes)
        self.state_size = num_classes + 1

    def forward(self, features: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return scores (N, T, K) and the new state (N, K + 1) for features (N, T, C + F) and the old state (N, K + 1) or None."""
        glances, focus_vectors = self.dropout(features).tensor_split((self.glance_fc.in_features,), dim=-1)
        return _means_so_far(self.glance_fc(glances) + self.focus_fc(focus_vectors), state)


HEADS: dict[str, type[GRUHead | LinearHead | MeanHead | MaxHead | MaxPerStepHead | SeparateMeanHead]] = {
    "gru": GRUHead, "linear": LinearHead, "mean": MeanHead, "max": MaxHead,
    "max_per_step": MaxPerStepHead, "separate_mean": SeparateMeanHead,
}  # fmt: skip


def check_steps(head_steps: int, num_frames: int) -> None:
    """Check that a head can classify clips with the given number of frames.

    Args:
        head_steps: Number of steps for which the head has a linear layer; 0: no limit.
        num_frames: Number of frames of a clip.

    Raises:
        InputError: If the clips have more frames than the head allows.
    """
    refuse_if(
        0 < head_steps < num_frames,
        f"the head 'max_per_step' has linear layers for {head_steps} frames, the clips have {num_frames}; set data.num_frames to at most "
        f"{head_steps}, or train a classifier with architecture.head_steps={num_frames}",
    )


def averages_frames(head: str) -> bool:
    """Return whether the head called ``head`` averages the scores of frames, so that one decision may cover several frames."""
    return getattr(HEADS[head], "averages_frames", False)


def in_order_of_steps(features: Tensor) -> Tensor:
    """Return features (N, T, F) with a memory layout in which every step is contiguous.

    A GRU on a CPU is at least twice as fast with this layout.
    """
    return features.transpose(0, 1).contiguous().transpose(0, 1)


def _means_so_far(values: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the mean of the values (N, T, K) up to each step, and the new state (N, K + 1).

    The state holds the sum and the number of the values.
    """
    sums = torch.cat([values, torch.ones_like(values[..., :1])], dim=-1).cumsum(1)
    if state is not None:
        sums = sums + state.unsqueeze(1)
    return sums[..., :-1] / sums[..., -1:], sums[:, -1]
