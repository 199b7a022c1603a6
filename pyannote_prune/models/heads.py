"""Heads: from frame-level features to the input of a powerset classifier."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from pyannote_prune.errors import InputError
from pyannote_prune.models.conformer import Conformer


class ConformerHead(nn.Module):
    """Projection, normalisation, Conformer (Gulati et al., arXiv 2005.08100) without position encoding

    Parameters
    ----------
    in_features : int
        Number of features per frame.
    hidden_size : int, optional
        Width of the Conformer. None for that of the features, without projection nor normalisation.
    ffn_dim, num_heads, num_layers : int, optional
        Feed-forward width, attention heads and number of its layers.
    kernel_size : int, optional
        Size of its depthwise convolutions, an odd number of frames.
    dropout : float, optional
    linear_size, num_linear_layers : int, optional
        Width and number of linear layers that follow. Defaults to none.

    Raises
    ------
    InputError
        When `kernel_size` is even, or `hidden_size` no multiple of `num_heads`.
    """

    def __init__(
        self,
        in_features: int,
        hidden_size: int | None = 256,
        ffn_dim: int = 1024,
        num_heads: int = 4,
        num_layers: int = 4,
        kernel_size: int = 31,
        dropout: float = 0.1,
        linear_size: int = 128,
        num_linear_layers: int = 0,
    ) -> None:
        super().__init__()
        self.projection = self.layer_norm = None
        if hidden_size is None:
            hidden_size = in_features
        else:
            self.projection = nn.Linear(in_features, hidden_size)
            self.layer_norm = nn.LayerNorm(hidden_size)
        if kernel_size % 2 == 0:
            raise InputError(f"kernel_size of the Conformer must be odd, got {kernel_size}.")
        if hidden_size % num_heads:
            raise InputError(
                f"hidden_size of the Conformer must be a multiple of num_heads, got {hidden_size} and {num_heads}."
            )
        self.conformer = Conformer(hidden_size, ffn_dim, num_heads, num_layers, kernel_size, dropout)
        sizes = [hidden_size] + [linear_size] * num_linear_layers
        self.out_features = sizes[-1]
        self.linear = _linear_layers(sizes)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, frames, in_features) -> (batch, frames, out_features)"""
        if self.projection is not None and self.layer_norm is not None:
            features = self.layer_norm(self.projection(features))
        return self.linear(self.conformer(features))


class LSTMHead(nn.Module):
    """LSTM and linear layers, as in pyannote's `SSeRiouSS`

    Parameters
    ----------
    in_features : int
        Number of features per frame.
    hidden_size, num_layers, bidirectional, dropout : optional
        Arguments of the LSTM.
    linear_size, num_linear_layers : int, optional
        Width and number of the linear layers that follow.
    """

    def __init__(
        self,
        in_features: int,
        hidden_size: int = 128,
        num_layers: int = 4,
        bidirectional: bool = True,
        dropout: float = 0.0,
        linear_size: int = 128,
        num_linear_layers: int = 2,
    ) -> None:
        super().__init__()
        self.lstm = nn.LSTM(
            in_features,
            hidden_size,
            num_layers=num_layers,
            bidirectional=bidirectional,
            dropout=dropout,
            batch_first=True,
        )
        sizes = [hidden_size * (2 if bidirectional else 1)] + [linear_size] * num_linear_layers
        self.out_features = sizes[-1]
        self.linear = _linear_layers(sizes)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, frames, in_features) -> (batch, frames, out_features)"""
        x, _ = self.lstm(features)
        return self.linear(x)


class _LinearLayers(nn.ModuleList):
    """Linear layers, each followed by a leaky rectifier"""

    def forward(self, x: Tensor) -> Tensor:
        for linear in self:
            x = F.leaky_relu(linear(x))
        return x


def _linear_layers(sizes: list[int]) -> _LinearLayers:
    return _LinearLayers(nn.Linear(before, after) for before, after in pairwise(sizes))
