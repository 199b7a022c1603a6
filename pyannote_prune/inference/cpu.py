"""Modules as a CPU executes them, in float32: products by oneDNN, blocks that fit the cache, spectra."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyannote_prune.inference.derive import Replacements, share, sharing
from pyannote_prune.inference.distances import BackwardKeys, DistanceEncoder
from pyannote_prune.inference.kernels import (
    RecomputedAttention,
    attend,
    convolve,
    kernel_spectrum,
    linear,
    multiply_spectra,
)
from pyannote_prune.models.conformer import ConvolutionModule, SelfAttention
from pyannote_prune.wavlm.attention import Attention
from pyannote_prune.wavlm.feature_extractor import ConvLayer, FeatureExtractor
from pyannote_prune.wavlm.modeling import Encoder
from pyannote_prune.wavlm.positional import PositionalConvEmbedding

# Rows (time steps) of the first convolution that are computed at a time, and how many convolutions
# are: what they put out stays in the cache. The others have little to put out.
_BLOCK_ROWS = 4096
_BLOCK_DEPTH = 3


class FastLinear(nn.Linear):
    """`torch.nn.Linear` by oneDNN"""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)"""
        return linear(x, self.weight, self.bias)


class FastSelfAttention(SelfAttention):
    """Attention of the Conformer, one head at a time"""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, width) -> same shape"""
        packed = linear(x, self.in_proj_weight, self.in_proj_bias).unflatten(-1, (3, self.num_heads, -1))
        return self.out_proj(attend(*packed.permute(2, 0, 3, 1, 4)))


class FrozenConvolution(ConvolutionModule):
    """Convolution module with channels last, its normalisation part of the depthwise convolution"""

    depthwise: tuple[Tensor, Tensor]

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, width) -> same shape"""
        first: Any
        last: Any
        between: Any
        first, between, last = self.sequential[0], self.sequential[2], self.sequential[5]
        x = F.glu(linear(self.layer_norm(x), first.weight[..., 0], first.bias), dim=-1)
        weight, bias = self.depthwise
        # as an image of one row, whose channels are last in memory
        image = x.unsqueeze(1).permute(0, 3, 1, 2)
        padding = (0, between.padding[0])
        y = F.conv2d(image, weight, bias, padding=padding, groups=len(weight)).permute(0, 2, 3, 1).squeeze(1)
        return self.sequential[6](linear(F.silu(y), last.weight[..., 0], last.bias))


def _freeze_convolution(module: nn.Module) -> FrozenConvolution:
    twin = share(module, FrozenConvolution)
    conv: Any
    norm: Any
    conv, norm = twin.sequential[2], twin.sequential[3]
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    weight = (conv.weight * scale[:, None, None]).unsqueeze(2).detach()
    bias = (norm.bias + (conv.bias - norm.running_mean) * scale).detach()
    twin.__dict__["depthwise"] = (weight.contiguous(memory_format=torch.channels_last), bias)
    return twin


class FrozenEncoder(DistanceEncoder):
    """The same, with the position bias of the last number of frames kept"""

    known: dict[int, Tensor | None]

    def position_bias(self, num_frames: int) -> Tensor | None:
        """(original heads, 2 * num_frames - 1), by increasing `key - query`"""
        if num_frames not in self.known:
            self.known.clear()
            self.known[num_frames] = self.distance_bias(num_frames)
        return self.known[num_frames]


def _freeze_encoder(module: nn.Module) -> FrozenEncoder:
    twin = share(module, FrozenEncoder)
    twin.__dict__["known"] = {}
    return twin


class BackwardKeysByItem(BackwardKeys):
    """The same, one item of the batch at a time"""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, gate: Tensor, bias: Tensor) -> Tensor:
        """Arguments as in `kernels.attend` -> (batch, frames, surviving heads * head_dim)"""
        return attend(query, key, value, gate, bias)


class TrainableBackwardKeys(BackwardKeys):
    """The same, with gradients"""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, gate: Tensor, bias: Tensor) -> Tensor:
        """Arguments as in `kernels.attend` -> (batch, frames, surviving heads * head_dim)"""
        if self.training and self.dropout:
            return super().attend(query, key, value, gate, bias)
        output = RecomputedAttention.apply(query, key, value, gate.to(bias.dtype), bias)
        return output.transpose(1, 2).flatten(2)


class SpectralPositional(PositionalConvEmbedding):
    """Position embedding by products of spectra, several times faster: its kernel is long (128 frames)"""

    def spectrum(self) -> Tensor:
        """Of the kernels as they are"""
        return kernel_spectrum(_full(self.conv.weight), self.conv.groups)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, hidden_size) -> (batch, frames, hidden_size)"""
        with torch.autocast("cpu", enabled=False):
            bias = _full(self.conv.bias)
            return F.gelu(multiply_spectra(x.to(bias.dtype), self.spectrum(), bias)).to(self.conv.bias.dtype)


def _full(x: Tensor) -> Tensor:
    """In a precision that has a Fourier transform"""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class FrozenPositional(SpectralPositional):
    """The same, with spectra of the weights at the time when it is made"""

    known: Tensor

    def spectrum(self) -> Tensor:
        """Of the kernels as they were"""
        return self.known


def _freeze(module: nn.Module) -> FrozenPositional:
    twin = share(module, FrozenPositional)
    twin.__dict__["known"] = SpectralPositional.spectrum(twin).detach()
    return twin


class ChannelsLast(ConvLayer):
    """Convolution with channels last in memory: the normalisation and the next layer read what is contiguous"""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in_channels, time) -> (batch, out_channels, shorter time)"""
        if isinstance(self.layer_norm, nn.GroupNorm):
            return super().forward(x)
        x = convolve(x.transpose(1, 2).contiguous(), self.conv.weight, self.conv.bias, self.conv.stride[0])
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        return F.gelu(x).transpose(1, 2)


class BlockExtractor(FeatureExtractor):
    """Feature extractor that goes block by block: its first layers put out a hundred megabytes for a few seconds"""

    def forward(self, waveforms: Tensor) -> Tensor:
        """(batch, samples) -> (batch, frames, channels)"""
        return torch.stack([self._extract(waveform) for waveform in waveforms]) * self.channel_scale

    def _extract(self, waveform: Tensor) -> Tensor:
        """(samples,) -> (frames, channels)"""
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


# plain inference in float32
FROZEN: Replacements = {
    nn.Linear: sharing(FastLinear),
    SelfAttention: sharing(FastSelfAttention),
    ConvolutionModule: _freeze_convolution,
    Encoder: _freeze_encoder,
    Attention: sharing(BackwardKeysByItem),
    PositionalConvEmbedding: _freeze,
    FeatureExtractor: sharing(BlockExtractor),
}

# whatever needs gradients, gates or autocast: each part computes what the reference computes
TRAINABLE: Replacements = {
    Encoder: sharing(DistanceEncoder),
    Attention: sharing(TrainableBackwardKeys),
    PositionalConvEmbedding: sharing(SpectralPositional),
    ConvLayer: sharing(ChannelsLast),
}
