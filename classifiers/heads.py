"""Temporal heads: features of the steps so far → class scores after every step.

`MaxPerStepHead` and `SeparateMeanHead` are those of AdaFocusV2 (arXiv 2112.14238). Its auxiliary heads, which only training uses, are the
frame classifiers of the backbones, `classifiers.backbones.backbone.Backbone.fc`: a linear layer on every glance vector and one on every
focus vector. Every checkpoint holds them, so that a training can continue with them; neither head reads them.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from classifiers.errors import refuse_if


class GRUHead(nn.Module):
    """The paper's f_C: a GRU over [glance vector, focus vector], dropout, a linear layer.

    Args:
        feature_size: Length of the features of one step.
        num_classes: K.
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
        """Return the lowest and highest value of a state up to that step: it is an average of hyperbolic tangents."""
        return -1.0, 1.0

    def forward(self, features: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features (N, T, feature_size), state (N, S) or None → scores (N, T, K) and the state (N, S) after them."""
        hidden, last = self.gru(in_order_of_steps(features), None if state is None else state.unsqueeze(0))
        return self.fc(self.dropout(hidden)), last.squeeze(0)

    def compare(self, glances: Tensor, focus_vectors: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step with each of several focus vectors, without dropout; shared products are computed once; see `Classifier`."""
        of_input, of_state, input_bias, state_bias = self.gru.all_weights[0]
        of_glance, of_focus = of_input.tensor_split((glances.shape[1],), dim=1)
        inputs = F.linear(focus_vectors, of_focus).add_(F.linear(glances, of_glance, input_bias)).chunk(3, -1)
        before = F.linear(state, of_state, state_bias).chunk(3, -1)
        reset, keep = ((now + then).sigmoid_() for now, then in zip(inputs[:2], before[:2], strict=True))
        states = inputs[2].addcmul(reset, before[2]).tanh_().lerp_(state, keep)
        return F.linear(states, self.fc.weight, self.fc.bias), states[0]


class LinearHead(nn.Module):
    """The linear alternative: class probabilities of every single step, averaged over the steps so far.

    The scores are the logarithm of that average, so that their softmax is the average. The state holds the sum of the
    probabilities and the number of steps.

    Args:
        feature_size: Length of the features of one step.
        num_classes: K.
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
        """Return the lowest and highest value of a state up to that step: sums of probabilities, and a count."""
        return 0.0, float(num_steps)

    def forward(self, features: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features (N, T, feature_size), state (N, K + 1) or None → scores (N, T, K) and the state (N, K + 1) after them."""
        means, state = _means_so_far(self.fc(self.dropout(features)).softmax(-1), state)
        return means.clamp_min(torch.finfo(means.dtype).tiny).log(), state


class MeanHead(nn.Module):
    """The mean of scores, f_C of the Something-Something family: a linear layer scores every focus vector.

    The mean of its scores and the mean of the glancer's scores over the steps so far are added. The state holds the sum of all scores
    and the number of steps.

    Args:
        feature_size: K + F, the glancer's scores and the focus vector of one step.
        num_classes: K.
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
        """Features (N, T, K + F), state (N, K + 1) or None → scores (N, T, K) and the state (N, K + 1) after them."""
        glanced, focus_vectors = features.tensor_split((self.num_classes,), dim=-1)
        return _means_so_far(glanced + self.fc(self.dropout(focus_vectors)), state)


class MaxHead(nn.Module):
    """Max-pooling over the steps so far, as AdaFocusV2 classifies (arXiv 2112.14238; before it FrameExit, arXiv 2104.13400).

    A linear layer and a ReLU map [glance vector, focus vector] of every step to S numbers. The state is their maximum so far, initially
    zeros; a linear layer scores it. The published head, `MaxPerStepHead`, has a batch norm before the ReLU and a linear layer per step;
    here all steps share one, so that clips may have any number of steps.

    Args:
        feature_size: Length of the features of one step.
        num_classes: K.
        hidden_size: S, length of the state.
        dropout: Share of the state that is dropped in training, before it is scored.
    """

    glance_part: Literal["vector", "scores"] = "vector"

    def __init__(self, feature_size: int, num_classes: int, *, hidden_size: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.hidden = nn.Linear(feature_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(hidden_size, num_classes)
        self.state_size = hidden_size

    def state_bounds(self, num_steps: int) -> tuple[float, float]:
        """Return the lowest and highest value of a state."""
        return 0.0, math.inf

    def forward(self, features: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features (N, T, feature_size), state (N, S) or None → scores (N, T, K) and the state (N, S) after them."""
        highest = self.hidden(features).relu().cummax(1).values
        if state is not None:
            highest = torch.maximum(highest, state.unsqueeze(1))
        return self.fc(self.dropout(highest)), highest[:, -1]


class MaxPerStepHead(nn.Module):
    """The published head of AdaFocusV2 on ActivityNet, FCVID and Mini-Kinetics: a running maximum with one linear layer per step.

    A linear layer, batch norm and a ReLU map [glance vector, focus vector] of every step to S numbers; over all clips and steps, batch norm
    does not know the order. The maximum so far, initially zeros, is scored by the linear layer of the step. The state holds that maximum
    and the number of steps.

    Args:
        feature_size: Length of the features of one step.
        num_classes: K.
        hidden_size: S, numbers of which the maximum is taken.
        dropout: Share of the maxima that is dropped in training, before they are scored.
        num_steps: T, steps that have a linear layer; a clip may have fewer.
    """

    glance_part: Literal["vector", "scores"] = "vector"

    def __init__(self, feature_size: int, num_classes: int, *, hidden_size: int, dropout: float = 0.0, num_steps: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(feature_size, hidden_size), nn.BatchNorm1d(hidden_size), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.ModuleList(nn.Linear(hidden_size, num_classes) for _ in range(num_steps))
        self.state_size = hidden_size + 1

    def state_bounds(self, num_steps: int) -> tuple[float, float]:
        """Return the lowest and highest value of a state."""
        return 0.0, math.inf

    def forward(self, features: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features (N, T, feature_size), state (N, S + 1) or None → scores (N, T, K) and the state (N, S + 1) after them.

        Raises:
            InputError: There are more steps than linear layers. A GPU finds it later where they are those of a state, with a device-side
                assertion, which ends the process.
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
        """Maxima (N, S) → scores (N, K), each row by the linear layer of its step (N,), which the host reads.

        Each layer scores all rows, so that no score depends on how many clips are at the same step.
        """
        first, *others = steps.unique().tolist() or [0]
        scores = self.fc[first](highest)
        for step in others:
            scores = torch.where((steps == step)[:, None], self.fc[step](highest), scores)
        return scores

    def _score_by_all(self, highest: Tensor, steps: Tensor) -> Tensor:
        """Do the same by all layers at once, so that the host does not wait for the steps."""
        weight, bias = (torch.cat([getattr(layer, name) for layer in self.fc]) for name in ("weight", "bias"))
        scores = F.linear(highest, weight, bias).unflatten(-1, (len(self.fc), -1))
        return scores.gather(1, steps[:, None, None].expand(-1, 1, scores.shape[-1]))[:, 0]


class SeparateMeanHead(nn.Module):
    """The head of AdaFocusV2 on Something-Something and Jester: a linear layer for glance vectors and another one for focus vectors.

    The means of the scores of either over the steps so far are added. Unlike `MeanHead` it does not use the glancer's frame classifier,
    which is an auxiliary head there. In the published training the vectors' gradient stops at this head. The state holds the sum of all
    scores and the number of steps.

    Args:
        feature_size: C + F, the glance vector and the focus vector of one step.
        num_classes: K.
        hidden_size: Not used; all heads have the same arguments.
        dropout: Share of the vectors that is dropped in training.
        glance_size: C.
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
        """Features (N, T, C + F), state (N, K + 1) or None → scores (N, T, K) and the state (N, K + 1) after them."""
        glances, focus_vectors = self.dropout(features).tensor_split((self.glance_fc.in_features,), dim=-1)
        return _means_so_far(self.glance_fc(glances) + self.focus_fc(focus_vectors), state)


HEADS: dict[str, type[GRUHead | LinearHead | MeanHead | MaxHead | MaxPerStepHead | SeparateMeanHead]] = {
    "gru": GRUHead, "linear": LinearHead, "mean": MeanHead, "max": MaxHead,
    "max_per_step": MaxPerStepHead, "separate_mean": SeparateMeanHead,
}  # fmt: skip


def check_steps(head_steps: int, num_frames: int) -> None:
    """Check that a head scores clips of that length.

    Args:
        head_steps: Steps that it has a linear layer for; 0: no limit.
        num_frames: Frames of a clip.

    Raises:
        InputError: The clips are longer.
    """
    refuse_if(
        0 < head_steps < num_frames,
        f"the head 'max_per_step' has linear layers for {head_steps} frames, the clips have {num_frames}; set data.num_frames to at most "
        f"{head_steps}, or train a classifier with architecture.head_steps={num_frames}",
    )


def averages_frames(head: str) -> bool:
    """Return whether the head of that name averages the scores of frames, so that one decision may stand for several of them."""
    return getattr(HEADS[head], "averages_frames", False)


def in_order_of_steps(features: Tensor) -> Tensor:
    """Return features (N, T, F) with memory ordered step by step: a GRU on a CPU is at least twice as fast on contiguous steps."""
    return features.transpose(0, 1).contiguous().transpose(0, 1)


def _means_so_far(values: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Values (N, T, K) → the mean of those up to each step, and the state (N, K + 1): their sum and their number."""
    sums = torch.cat([values, torch.ones_like(values[..., :1])], dim=-1).cumsum(1)
    if state is not None:
        sums = sums + state.unsqueeze(1)
    return sums[..., :-1] / sums[..., -1:], sums[:, -1]
