"""The convolutions between the waveform and the Transformer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyannote_prune.inference.kernels import convolve, is_plain_inference
from pyannote_prune.wavlm.configuration import PrunedWavLMConfig

# Rows (time steps) of the first convolution that are computed at a time on a CPU, and how many convolutions
# are: what they put out stays in the cache. The others have little to put out.
_BLOCK_ROWS = 4096
_BLOCK_DEPTH = 3


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
        if isinstance(self.layer_norm, nn.GroupNorm):
            return F.gelu(self.layer_norm(self.conv(x)))
        if x.device.type == "cpu":
            # with channels last in memory, such that the normalisation and the next layer read what is contiguous
            x = convolve(x.transpose(1, 2).contiguous(), self.conv.weight, self.conv.bias, self.conv.stride[0])
        else:
            x = self.conv(x).transpose(1, 2)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        return F.gelu(x).transpose(1, 2)


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
        if self._can_go_by_blocks(waveforms):
            return torch.stack([self._forward_by_blocks(waveform) for waveform in waveforms]) * self.channel_scale
        x = waveforms.unsqueeze(1)
        for layer in self.conv_layers:
            x = layer(x)
        return x.transpose(1, 2) * self.channel_scale

    def _can_go_by_blocks(self, waveforms: Tensor) -> bool:
        """Whether this is plain inference on a CPU, without gates or other hooks."""
        hooked = any(layer._forward_hooks or layer._forward_pre_hooks for layer in self.conv_layers)
        return is_plain_inference(waveforms) and not hooked

    def _forward_by_blocks(self, waveform: Tensor) -> Tensor:
        """(samples,) -> (frames, channels)

        Same numbers as layer by layer, with channels last, such that normalisations read what is contiguous,
        and block by block, since the first layers put out a hundred megabytes for a few seconds.
        """
        layers = [_Folded(layer, waveform) for layer in self.conv_layers]
        depth = min(_BLOCK_DEPTH, len(layers))
        # samples between two rows of the deepest layer of a block, and samples that one is computed from
        num_rows, hop, field = len(waveform), 1, 1
        for layer in layers[:depth]:
            num_rows = (num_rows - layer.kernel_size) // layer.stride + 1
            field += (layer.kernel_size - 1) * hop
            hop *= layer.stride
        size = max(1, _BLOCK_ROWS * layers[0].stride // hop)

        blocks = []
        for first in range(0, num_rows, size):
            last = min(first + size, num_rows)
            x = waveform[first * hop : (last - 1) * hop + field].view(1, -1, 1)
            for layer in layers[:depth]:
                x = layer(x)
            blocks.append(x)
        x = torch.cat(blocks, dim=1)
        for layer in layers[depth:]:
            x = layer(x)
        return x[0]


class _Folded:
    """One convolution with its normalisation, (1, time, in_channels) -> (1, shorter time, out_channels)

    Normalisation over time, once the waveform is known, is a scale and an offset of each channel, which are
    folded into the convolution.
    """

    def __init__(self, layer: nn.Module, waveform: Tensor) -> None:
        assert isinstance(layer, ConvLayer)
        conv, norm = layer.conv, layer.layer_norm
        self.kernel_size, self.stride = conv.kernel_size[0], conv.stride[0]
        self.weight, self.bias = conv.weight, conv.bias
        self.norm = norm if isinstance(norm, nn.LayerNorm) else None
        if isinstance(norm, nn.GroupNorm):
            mean, variance = _output_statistics(conv, waveform)
            scale = norm.weight * torch.rsqrt(variance + norm.eps)
            self.weight = conv.weight * scale[:, None, None]
            # the bias of the convolution is part of the mean, and goes with it
            self.bias = norm.bias - (mean - (0 if conv.bias is None else conv.bias)) * scale

    def __call__(self, x: Tensor) -> Tensor:
        x = convolve(x, self.weight, self.bias, self.stride)
        if self.norm is not None:
            x = F.layer_norm(x, x.shape[2:], self.norm.weight, self.norm.bias, self.norm.eps)
        return F.gelu(x)


def _output_statistics(conv: nn.Conv1d, waveform: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance over time of each channel that a convolution puts out, (channels,) both

    From the mean and covariance of what it sees: a few numbers, instead of all its output.
    """
    offset = waveform.mean()
    seen = (waveform - offset).unfold(0, conv.kernel_size[0], conv.stride[0])
    weight = conv.weight[:, 0]
    mean = seen.mean(0)
    covariance = seen.T @ seen / len(seen) - torch.outer(mean, mean)
    variance = ((weight @ covariance) * weight).sum(1)
    mean = weight @ (mean + offset) + (0 if conv.bias is None else conv.bias)
    return mean, variance
