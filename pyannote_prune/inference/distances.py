"""Attention that is given the position bias by distance, instead of for each pair of frames."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pyannote_prune.wavlm.attention import MASKED, Attention
from pyannote_prune.wavlm.modeling import Encoder


class DistanceEncoder(Encoder):
    """Encoder whose layers are given the position bias by distance: see [`BackwardKeys`][]"""

    def position_bias(self, num_frames: int) -> Tensor | None:
        """(original heads, 2 * num_frames - 1), by increasing `key - query`"""
        return self.distance_bias(num_frames)


class BackwardKeys(Attention):
    """Attention whose keys go backwards

    The (query, key) matrix of biases is constant along its diagonals. With keys in reverse order it is constant along
    anti-diagonals, which is a strided view of the distances: no copy, no gather.
    """

    def gate(self, x: Tensor) -> Tensor:
        """(batch, frames, hidden_size) -> (batch, surviving heads, frames, 1)"""
        if not isinstance(self.gru_rel_pos_linear, nn.Linear):  # but a quantised one
            return super().gate(x)
        # the 8 outputs are summed by fours: summing the weights first is the same, and cheaper
        weight = self.gru_rel_pos_linear.weight.view(2, 4, -1).sum(1)
        bias = self.gru_rel_pos_linear.bias.view(2, 4).sum(1)
        a, b = F.linear(x.unflatten(-1, (self.total_heads, -1)), weight, bias).sigmoid().unbind(-1)
        gate = a * (b * self.gru_rel_pos_const - 1.0) + 2.0
        return gate[..., self.head_index].transpose(1, 2).unsqueeze(-1)

    def forward(self, x: Tensor, position_bias: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """As in [`Attention`][], with a `position_bias` by distance"""
        if not self.heads or position_bias is None:
            return self.out_proj(x)
        query, key_value = self.qkv_proj(x).tensor_split([len(self.heads) * self.head_dim], dim=-1)
        query = query.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        key, value = key_value.flip(1).unflatten(-1, (2, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        bias = self.pairs(position_bias[self.head_index].flip(-1), x.shape[1])
        gate = self.gate(x)
        if mask is None:
            return self.out_proj(self.attend(query, key, value, gate, bias))
        scores = (gate * bias)[..., : x.shape[1]].masked_fill(~mask.flip(-1)[:, None, None], MASKED)
        return self.out_proj(self.attend_with(query, key, value, scores))

    def pairs(self, by_distance: Tensor, num_frames: int) -> Tensor:
        """(heads, 2 * num_frames - 1), by decreasing distance -> (heads, num_frames, num_frames or more)"""
        return by_distance.unfold(-1, num_frames, 1)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, gate: Tensor, bias: Tensor) -> Tensor:
        """Arguments as in `kernels.attend` -> (batch, frames, surviving heads * head_dim)"""
        return self.attend_with(query, key, value, gate * bias)

    def attend_with(self, query: Tensor, key: Tensor, value: Tensor, scores: Tensor) -> Tensor:
        """The same, with (batch, heads, frames, frames) `scores` that are added to those of the pairs"""
        dropout = self.dropout if self.training else 0.0
        output = F.scaled_dot_product_attention(query, key, value, scores.to(query.dtype), dropout)
        return output.transpose(1, 2).flatten(2)
