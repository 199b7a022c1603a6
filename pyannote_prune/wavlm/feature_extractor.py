"""The convolutions between the waveform and the Transformer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyannote_prune.wavlm.configuration import PrunedWavLMConfig


class ConvLayer(nn.Module):
    """One convolution of the feature extractor, with its normalisation if it has one."""

    def __init__(self, config: PrunedWavLMConfig, index: int) -> None:
        super().__init__()
        channels = config.conv_dim[index]
        self.conv = nn.Conv1d(
            config.conv_dim[index - 1] if index else 1,
            channels,
            config.conv_kernel[index],
            stride=config.conv_stride[index],
            bias=config.conv_bias,
        )
        self.layer_norm: nn.Module | None = None
        if config.feat_extract_norm == "layer":
            self.layer_norm = nn.LayerNorm(channels)
        elif index == 0:
            self.layer_norm = nn.GroupNorm(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, time) -> (batch, out_channels, shorter time)"""
        x = self.conv(x)
        if isinstance(self.layer_norm, nn.GroupNorm):  # over time
            x = self.layer_norm(x)
        elif self.layer_norm is not None:  # over channels
            x = self.layer_norm(x.transpose(1, 2)).transpose(1, 2)
        return F.gelu(x)


class FeatureExtractor(nn.Module):
    """Convolutions without padding, then one learned scale per channel.

    The scale is where pruning keeps the gates of the last convolution's channels: a LayerNorm
    follows, so that they cannot be folded into the projection.
    """

    def __init__(self, config: PrunedWavLMConfig) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList(ConvLayer(config, index) for index in range(len(config.conv_dim)))
        self.channel_scale = nn.Parameter(torch.ones(config.conv_dim[-1]), requires_grad=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        """(batch, samples) -> (batch, frames, channels)"""
        x = waveforms.unsqueeze(1)
        for layer in self.conv_layers:
            x = layer(x)
        return x.transpose(1, 2) * self.channel_scale
