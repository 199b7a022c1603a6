"""Self-attention with any number of surviving heads."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from pyannote_prune.wavlm.configuration import PrunedWavLMConfig
from pyannote_prune.wavlm.low_rank import make_linear

# smallest score that is finite in half precision too
MASKED = -1e4

# by the name that a configuration calls its `attn_implementation`
_IMPLEMENTATIONS = AttentionInterface()


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    dropout: float,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention by the formula, with the arguments of those that `transformers.AttentionInterface` knows

    Parameters
    ----------
    module : Module
        Dropout is applied while it is in training mode.
    query, key, value : (batch, heads, frames, head_dim) Tensor
    attention_mask : (batch, heads, frames, frames) Tensor
        Added to the scores.
    dropout, scaling : float
        Probability of dropping a weight; factor of the products.

    Returns
    -------
    output : (batch, frames, heads, head_dim) Tensor
    weights : (batch, heads, frames, frames) Tensor
    """
    weights = (query @ key.transpose(2, 3) * scaling + attention_mask).softmax(-1)
    output = F.dropout(weights, dropout, module.training) @ value
    return output.transpose(1, 2), weights


class BiasOnly(nn.Module):
    """Output projection without inputs: its bias."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor) -> Tensor:
        """(..., out_features) -> same shape, whatever the values"""
        return torch.zeros_like(x) + self.bias


class Attention(nn.Module):
    """Self-attention over the surviving heads, with gated relative position bias.

    The gate of each head is computed from the slice of the attention's input that belongs to it,
    by original index. Where no head is left the output is the bias of the output projection.
    """

    head_index: Tensor

    def __init__(self, config: PrunedWavLMConfig, index: int) -> None:
        super().__init__()
        self.config = config
        self.heads = config.remaining_heads[index]
        self.total_heads = config.num_attention_heads
        self.head_dim = config.head_dim
        self.dropout = config.attention_dropout
        inner = len(self.heads) * self.head_dim
        name, width = f"encoder.layers.{index}.attention", config.hidden_size
        self.out_proj = make_linear(config, f"{name}.out_proj", inner, width) if self.heads else BiasOnly(width)
        if self.heads:
            self.qkv_proj = make_linear(config, f"{name}.qkv_proj", width, 3 * inner)
            self.gru_rel_pos_linear = nn.Linear(self.head_dim, 8)
            self.gru_rel_pos_const = nn.Parameter(torch.ones(self.total_heads))
            self.register_buffer("head_index", torch.tensor(self.heads), persistent=False)

    def gate(self, x: Tensor) -> Tensor:
        """(batch, frames, hidden_size) -> (batch, surviving heads, frames, 1)"""
        projected = self.gru_rel_pos_linear(x.unflatten(-1, (self.total_heads, -1)))
        a, b = projected.unflatten(-1, (2, 4)).sum(-1).sigmoid().unbind(-1)
        gate = a * (b * self.gru_rel_pos_const - 1.0) + 2.0
        return gate[..., self.head_index].transpose(1, 2).unsqueeze(-1)

    def forward(self, x: Tensor, position_bias: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Attend

        Parameters
        ----------
        x : (batch, frames, hidden_size) Tensor
        position_bias : (original heads, frames, frames) Tensor
            Ungated, for each (query, key). Unused where no head is left.
        mask : (batch, frames) Tensor of bool, optional
            True for frames that are attended to.

        Returns
        -------
        output : (batch, frames, hidden_size) Tensor
        """
        if not self.heads or position_bias is None:
            return self.out_proj(x)
        query, key, value = self.qkv_proj(x).unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        bias = self.gate(x) * position_bias[self.head_index]
        if mask is not None:
            bias = bias.masked_fill(~mask[:, None, None], MASKED)
        attend = _IMPLEMENTATIONS.get(self.config._attn_implementation, eager_attention)
        dropout = self.dropout if self.training else 0.0
        output, _ = attend(self, query, key, value, bias.to(query.dtype), dropout=dropout, scaling=self.head_dim**-0.5)
        return self.out_proj(output.flatten(2))
