"""Conformer (Gulati et al., arXiv 2005.08100) without position encoding, batch first

Names of parameters are those of `torchaudio.models.Conformer`, and so are its numbers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Attention of a sequence to itself, with the parameters of `torch.nn.MultiheadAttention`

    Parameters
    ----------
    width, num_heads : int
    dropout : float
        Dropout of the attention's weights.
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, width) -> same shape"""
        packed = F.linear(x, self.in_proj_weight, self.in_proj_bias).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        output = F.scaled_dot_product_attention(query, key, value, dropout_p=self.dropout if self.training else 0.0)
        return self.out_proj(output.transpose(1, 2).flatten(2))


class ConvolutionModule(nn.Module):
    """Pointwise convolution with a gate, depthwise convolution, normalisation, pointwise convolution"""

    def __init__(self, width: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(width)
        self.sequential = nn.Sequential(
            nn.Conv1d(width, 2 * width, 1),
            nn.GLU(dim=1),
            nn.Conv1d(width, width, kernel_size, padding=(kernel_size - 1) // 2, groups=width),
            nn.BatchNorm1d(width),
            nn.SiLU(),
            nn.Conv1d(width, width, 1),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, width) -> same shape"""
        return self.sequential(self.layer_norm(x).transpose(1, 2)).transpose(1, 2)


class FeedForwardModule(nn.Module):
    """Two linear layers after a normalisation"""

    def __init__(self, width: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.sequential = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, ffn_dim),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(ffn_dim, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, width) -> same shape"""
        return self.sequential(x)


class ConformerLayer(nn.Module):
    """Half a feed-forward step, attention, convolution, half a feed-forward step, normalisation"""

    def __init__(self, width: int, ffn_dim: int, num_heads: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        self.ffn1 = FeedForwardModule(width, ffn_dim, dropout)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.self_attn = SelfAttention(width, num_heads, dropout)
        self.self_attn_dropout = nn.Dropout(dropout)
        self.conv_module = ConvolutionModule(width, kernel_size, dropout)
        self.ffn2 = FeedForwardModule(width, ffn_dim, dropout)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, width) -> same shape"""
        x = x + 0.5 * self.ffn1(x)
        x = x + self.self_attn_dropout(self.self_attn(self.self_attn_layer_norm(x)))
        x = x + self.conv_module(x)
        x = x + 0.5 * self.ffn2(x)
        return self.final_layer_norm(x)


class Conformer(nn.Module):
    """Layers of a Conformer

    Parameters
    ----------
    width, ffn_dim, num_heads, num_layers : int
        Width, feed-forward width, attention heads and number of layers.
    kernel_size : int
        Size of the depthwise convolutions, an odd number of frames.
    dropout : float
    """

    def __init__(
        self, width: int, ffn_dim: int, num_heads: int, num_layers: int, kernel_size: int, dropout: float
    ) -> None:
        super().__init__()
        self.conformer_layers = nn.ModuleList(
            ConformerLayer(width, ffn_dim, num_heads, kernel_size, dropout) for _ in range(num_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, width) -> same shape"""
        for layer in self.conformer_layers:
            x = layer(x)
        return x
