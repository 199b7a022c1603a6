"""Speaker embedding models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyannote_prune.checkpoints.lightning import VersionedCheckpoint
from pyannote_prune.upstream import BaseWeSpeakerResNet

# rows of one pass when speakers are cut out of chunks: those of similar length go together
_ROWS = 16
# frames (of 20 ms) of the segments that channels are re-weighted by
_SEGMENT = 100


class CAMPPlus(VersionedCheckpoint, BaseWeSpeakerResNet):
    """CAM++ of any shape: 80 mel bands > two-dimensional convolutions > densely connected TDNN > statistics > embedding

    Names of parameters are those of 3D-Speaker, whose checkpoints `load_state_dict` takes as they are for the
    default shape. Each layer of the TDNN has its own, which is what a pruned one needs.

    Its layers re-weight channels by averages over the chunk, so that a speaker cannot be told from others in
    it by pooling alone: frames of each speaker are taken out and put side by side first. All of a chunk's
    speakers together then cost about as much as the chunk does.

    Parameters
    ----------
    num_filters : int, optional
        Channels of the two-dimensional convolutions.
    tdnn_channels : int, optional
        Channels at the entrance of the TDNN.
    bottlenecks : sequence of sequence of int, optional
        Inner channels of each layer of each of the three blocks.
    growths : sequence of sequence of int, optional
        Channels that each layer adds to those that it reads.
    transitions : sequence of int, optional
        Channels after each block.
    dimension : int, optional
        Of embeddings.
    window_type : str, optional
        Of the filterbank.
    **kwargs
        More of the filterbank, and `task`, as upstream.

    References
    ----------
    Wang et al., "CAM++: A fast and efficient network for speaker verification using context-aware masking",
    Interspeech 2023
    """

    def __init__(
        self,
        num_filters: int = 32,
        tdnn_channels: int = 128,
        bottlenecks: Sequence[Sequence[int]] = ((128,) * 12, (128,) * 24, (128,) * 16),
        growths: Sequence[Sequence[int]] = ((32,) * 12, (32,) * 24, (32,) * 16),
        transitions: Sequence[int] = (256, 512, 512),
        dimension: int = 192,
        window_type: str = "povey",
        **kwargs: Any,
    ) -> None:
        super().__init__(window_type=window_type, **kwargs)
        bottlenecks, growths = [[*block] for block in bottlenecks], [[*block] for block in growths]
        transitions = [*transitions]
        self.save_hyperparameters("num_filters", "tdnn_channels", "bottlenecks", "growths", "transitions")
        self.save_hyperparameters({"dimension": dimension})

        self.head = _Head(num_filters)
        channels = num_filters * (self.hparams.num_mel_bins // 8)
        self.xvector = nn.ModuleDict()
        self.xvector["tdnn"] = _Unit(nn.Conv1d(channels, tdnn_channels, 5, stride=2, padding=2, bias=False))
        channels = tdnn_channels
        for number, (inner, added, after) in enumerate(zip(bottlenecks, growths, transitions, strict=True), start=1):
            block = nn.ModuleDict()
            for index, (bottleneck, growth) in enumerate(zip(inner, added, strict=True), start=1):
                block[f"tdnnd{index}"] = _DenseLayer(channels, bottleneck, growth, 1 if number == 1 else 2)
                channels += growth
            self.xvector[f"block{number}"] = block
            self.xvector[f"transit{number}"] = _Transition(channels, after)
            channels = after
        self.xvector["out_nonlinear"] = _nonlinear(channels)
        normalization = nn.Sequential()
        normalization.add_module("batchnorm", nn.BatchNorm1d(dimension, affine=False))
        linear = nn.Conv1d(2 * channels, dimension, 1, bias=False)
        self.xvector["dense"] = nn.ModuleDict({"linear": linear, "nonlinear": normalization})

    @property
    def dimension(self) -> int:
        """Dimension of embeddings"""
        return self.hparams.dimension

    def forward(self, waveforms: Tensor, weights: Tensor | None = None) -> Tensor:
        """Extract speaker embeddings

        Parameters
        ----------
        waveforms : (batch, 1, num_samples) Tensor
        weights : (batch, num_frames) or (batch, num_speakers, num_frames) Tensor, optional
            A speaker's frames are those whose weight is above one half, at any number of frames per chunk.

        Returns
        -------
        embeddings : (batch, dimension) or (batch, num_speakers, dimension) Tensor
            NaN for a speaker without a frame.
        """
        features = torch.vmap(self._fbank)(waveforms * (1 << 15))
        if weights is None:
            return self._embed(features)
        speakers = weights[:, None] if weights.ndim == 2 else weights
        speaking = F.interpolate(speakers.float(), features.shape[1], mode="nearest") > 0.5
        embeddings = features.new_full((*speakers.shape[:2], self.dimension), torch.nan)
        lengths = speaking.sum(2)
        rows = [(chunk, speaker) for chunk, speaker in lengths.nonzero().tolist()]
        rows.sort(key=lambda row: lengths[row])
        for first in range(0, len(rows), _ROWS):
            some = rows[first : first + _ROWS]
            chosen = [features[chunk, speaking[chunk, speaker]] for chunk, speaker in some]
            chunk, speaker = zip(*some, strict=True)
            embeddings[list(chunk), list(speaker)] = self._embed(
                nn.utils.rnn.pad_sequence(chosen, batch_first=True), torch.tensor([*map(len, chosen)])
            )
        return embeddings[:, 0] if weights.ndim == 2 else embeddings

    def _embed(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(batch, num_frames, num_mel_bins) features, of which `lengths` count, to (batch, dimension) embeddings."""
        num_frames = features.shape[1]
        if lengths is None:
            lengths = torch.full((len(features),), num_frames)
        lengths = lengths.to(features.device)
        keep = _mask(lengths, num_frames)
        features = (features - (features * keep.mT).sum(1, keepdim=True) / lengths[:, None, None]) * keep.mT
        x = self.xvector["tdnn"](self.head(features.mT, keep))
        lengths = (lengths + 1) // 2
        keep = _mask(lengths, x.shape[-1])
        segments = F.avg_pool1d(F.pad(keep, (0, -keep.shape[-1] % _SEGMENT)), _SEGMENT) * _SEGMENT
        for name, part in self.xvector.items():
            if name.startswith("block"):
                for layer in part.children():
                    x = torch.cat([x, layer(x, keep, lengths, segments)], dim=1)
            elif name.startswith("transit"):
                x = part(x)
        x = self.xvector["out_nonlinear"](x) * keep
        mean = x.sum(2) / lengths[:, None]
        variance = ((x - mean[..., None]).square() * keep).sum(2) / (lengths[:, None] - 1).clamp(min=1)
        statistics = torch.cat([mean, variance.sqrt()], dim=1)[..., None]
        linear, normalization = self.xvector["dense"].children()
        return normalization(linear(statistics)[..., 0])


def _mask(lengths: Tensor, num_frames: int) -> Tensor:
    """(batch, 1, num_frames), one where frames count."""
    return (torch.arange(num_frames, device=lengths.device) < lengths[:, None])[:, None].float()


def _nonlinear(channels: int) -> nn.Sequential:
    module = nn.Sequential()
    module.add_module("batchnorm", nn.BatchNorm1d(channels))
    module.add_module("relu", nn.ReLU(inplace=True))
    return module


class _Head(nn.Module):
    """Two-dimensional convolutions, which see one eighth of the bands at the end."""

    def __init__(self, num_filters: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, num_filters, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_filters)
        self.layer1 = nn.Sequential(_Residual(num_filters, 2), _Residual(num_filters, 1))
        self.layer2 = nn.Sequential(_Residual(num_filters, 2), _Residual(num_filters, 1))
        self.conv2 = nn.Conv2d(num_filters, num_filters, 3, stride=(2, 1), padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_filters)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        keep = keep[:, None]
        x = F.relu(self.bn1(self.conv1(x[:, None]))) * keep
        for residual in (*self.layer1, *self.layer2):
            x = residual(x, keep)
        x = F.relu(self.bn2(self.conv2(x))) * keep
        return x.flatten(1, 2)


class _Residual(nn.Module):
    def __init__(self, num_filters: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_filters, num_filters, 3, stride=(stride, 1), padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_filters)
        self.conv2 = nn.Conv2d(num_filters, num_filters, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_filters)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.append(nn.Conv2d(num_filters, num_filters, 1, stride=(stride, 1), bias=False))
            self.shortcut.append(nn.BatchNorm2d(num_filters))

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x))) * keep
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x)) * keep


class _Unit(nn.Module):
    """Convolution > normalisation > ReLU"""

    def __init__(self, linear: nn.Conv1d) -> None:
        super().__init__()
        self.linear = linear
        self.nonlinear = _nonlinear(linear.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.nonlinear(self.linear(x))


class _Transition(nn.Module):
    """Normalisation > ReLU > projection"""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.nonlinear = _nonlinear(in_channels)
        self.linear = nn.Conv1d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.nonlinear(x))


class _DenseLayer(nn.Module):
    """Bottleneck > convolution, each channel of which is weighted by what the recording and the segment are like"""

    def __init__(self, in_channels: int, bottleneck: int, growth: int, dilation: int) -> None:
        super().__init__()
        self.nonlinear1 = _nonlinear(in_channels)
        self.linear1 = nn.Conv1d(in_channels, bottleneck, 1, bias=False)
        self.nonlinear2 = _nonlinear(bottleneck)
        self.cam_layer = _ContextAwareMasking(bottleneck, growth, dilation)

    def forward(self, x: Tensor, keep: Tensor, lengths: Tensor, segments: Tensor) -> Tensor:
        return self.cam_layer(self.nonlinear2(self.linear1(self.nonlinear1(x))) * keep, lengths, segments)


class _ContextAwareMasking(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, dilation: int) -> None:
        super().__init__()
        self.linear_local = nn.Conv1d(in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.linear1 = nn.Conv1d(in_channels, 64, 1)
        self.linear2 = nn.Conv1d(64, out_channels, 1)

    def forward(self, x: Tensor, lengths: Tensor, segments: Tensor) -> Tensor:
        num_frames = x.shape[-1]
        sums = F.avg_pool1d(F.pad(x, (0, -num_frames % _SEGMENT)), _SEGMENT) * _SEGMENT
        context = x.sum(2, keepdim=True) / lengths[:, None, None] + sums / segments.clamp(min=1)
        weights = torch.sigmoid(self.linear2(F.relu(self.linear1(context))))
        return self.linear_local(x) * weights.repeat_interleave(_SEGMENT, dim=2)[..., :num_frames]
