"""Temporal heads: features of the steps so far → class scores after every step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class GRUHead(nn.Module):
    """The paper's f_C: a GRU over [glance vector, focus vector], dropout, a linear layer.

    Args:
        feature_size: length of the features of one step.
        num_classes: K.
        hidden_size: S, length of the GRU's state.
        dropout: share of the GRU's output that is dropped in training.
    """

    def __init__(self, feature_size: int, num_classes: int, *, hidden_size: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.gru = nn.GRU(feature_size, hidden_size, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(hidden_size, num_classes)
        self.state_size = hidden_size

    def forward(self, features: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features (N, T, feature_size), state (N, S) or None → scores (N, T, K) and the state (N, S) after them."""
        hidden, last = self.gru(features, None if state is None else state.unsqueeze(0))
        return self.fc(self.dropout(hidden)), last.squeeze(0)


class LinearHead(nn.Module):
    """The linear alternative: class probabilities of every step by itself, averaged over the steps so far.

    The scores are the logarithm of that average, so that their softmax is the average. The state holds the sum of the
    probabilities and the number of steps.

    Args:
        feature_size: length of the features of one step.
        num_classes: K.
        hidden_size: not used; there so that all heads are built alike.
        dropout: share of the features that is dropped in training.
    """

    def __init__(self, feature_size: int, num_classes: int, *, hidden_size: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(feature_size, num_classes)
        self.state_size = num_classes + 1

    def forward(self, features: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features (N, T, feature_size), state (N, K + 1) or None → scores (N, T, K) and the state (N, K + 1) after them."""
        probabilities = self.fc(self.dropout(features)).softmax(-1)
        sums = torch.cat([probabilities, torch.ones_like(probabilities[..., :1])], dim=-1).cumsum(1)
        if state is not None:
            sums = sums + state.unsqueeze(1)
        means = sums[..., :-1] / sums[..., -1:]
        return means.clamp_min(torch.finfo(means.dtype).tiny).log(), sums[:, -1]


HEADS: dict[str, Callable[..., nn.Module]] = {"gru": GRUHead, "linear": LinearHead}
