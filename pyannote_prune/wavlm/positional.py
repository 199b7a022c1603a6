"""The convolution that tells the Transformer about positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyannote_prune.wavlm.configuration import PrunedWavLMConfig


class WeightNorm(nn.Module):
    """Weight of a convolution as magnitude and direction, one magnitude per tap of the kernel

    Salimans and Kingma, arXiv 1602.07868. Names are those of `torch.nn.utils.parametrizations.weight_norm`, whose
    modules cannot be pickled.

    Parameters
    ----------
    weight : (out_channels, in_channels, kernel_size) Tensor
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.original0 = nn.Parameter(self.magnitude(weight))
        self.original1 = nn.Parameter(weight.clone())

    @staticmethod
    def magnitude(weight: Tensor) -> Tensor:
        """Norm of each tap: (out_channels, in_channels, kernel_size) -> (1, 1, kernel_size)"""
        return torch.linalg.vector_norm(weight, dim=(0, 1), keepdim=True)

    def forward(self) -> Tensor:
        """Weight, (out_channels, in_channels, kernel_size)"""
        return self.original1 * (self.original0 / self.magnitude(self.original1))


class NormalizedConv1d(nn.Module):
    """Grouped convolution whose weight is normalised, "same" padding; an even kernel gives one frame more"""

    def __init__(self, channels: int, kernel_size: int, groups: int) -> None:
        super().__init__()
        conv = nn.Conv1d(channels, channels, kernel_size, groups=groups)
        self.kernel_size, self.groups = kernel_size, groups
        self.bias = nn.Parameter(conv.bias.detach())  # type: ignore[union-attr]
        self.parametrizations = nn.ModuleDict({"weight": WeightNorm(conv.weight.detach())})

    @property
    def weight(self) -> Tensor:
        """(channels, channels / groups, kernel_size)"""
        return self.parametrizations["weight"]()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, frames) -> (batch, channels, frames), one frame more for an even kernel"""
        weight, bias, dtype = self.weight, self.bias, x.dtype
        if x.device.type != "cpu":
            return self._convolve(x, weight, bias)
        # in bfloat16, PyTorch 2.14 convolves narrow groups and long kernels wrongly on processors with AMX
        with torch.autocast("cpu", enabled=False):
            full = torch.float32 if weight.dtype == torch.bfloat16 else weight.dtype
            return self._convolve(x.to(full), weight.to(full), bias.to(full)).to(dtype)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv1d(x, weight, bias, padding=self.kernel_size // 2, groups=self.groups)


class PositionalConvEmbedding(nn.Module):
    """Position embedding computed by a grouped convolution over time"""

    def __init__(self, config: PrunedWavLMConfig) -> None:
        super().__init__()
        self.conv = NormalizedConv1d(
            config.hidden_size, config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, hidden_size) -> (batch, frames, hidden_size)"""
        return F.gelu(self.conv(x.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
