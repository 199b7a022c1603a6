"""Speaker embedding models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyannote.audio import Model
from pyannote.audio.core.task import Task
from torch import Tensor, nn
from torch.nn import functional as F

from pyannote_prune.checkpoints.lightning import VersionedCheckpoint
from pyannote_prune.models.audio import Audio
from pyannote_prune.models.filterbank import MelFilterbank
from pyannote_prune.upstream import multi_conv_num_frames, multi_conv_receptive_field_size

# rows of one pass when speakers are cut out of chunks: those of similar length go together
_ROWS = 16
# frames (of 20 ms) of the segments that channels are re-weighted by
_SEGMENT = 100


class CAMPPlus(VersionedCheckpoint, Model):
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
        Dimension of embeddings.
    sample_rate : int, optional
        In Hz.
    num_channels : int, optional
        Channels of audio. Only mono is supported.
    num_mel_bins : int, optional
        Bands of the filterbank.
    frame_length, frame_shift : float, optional
        Frames of the filterbank, in milliseconds.
    dither : float, optional
        Standard deviation of the noise that the filterbank adds to samples, whose range is that of 16 bits.
    window_type : {"povey", "hamming", "hanning", "blackman", "rectangular"}, optional
        Window of the filterbank.
    task : Task, optional

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
        sample_rate: int = 16000,
        num_channels: int = 1,
        num_mel_bins: int = 80,
        frame_length: float = 25.0,
        frame_shift: float = 10.0,
        dither: float = 0.0,
        window_type: str = "povey",
        task: Task | None = None,
    ) -> None:
        super().__init__(sample_rate=sample_rate, num_channels=num_channels, task=task)
        bottlenecks, growths = [[*block] for block in bottlenecks], [[*block] for block in growths]
        transitions = [*transitions]
        self.save_hyperparameters("num_filters", "tdnn_channels", "bottlenecks", "growths", "transitions", "dimension")
        self.save_hyperparameters("num_mel_bins", "frame_length", "frame_shift", "dither", "window_type")

        self.audio = Audio(sample_rate=sample_rate, mono="downmix")
        self.filterbank = MelFilterbank(sample_rate, num_mel_bins, frame_length, frame_shift, dither, window_type)
        self.head = _Head(num_filters)
        # each of three convolutions keeps half of the bands, rounded up
        channels = num_filters * -(-num_mel_bins // 8)
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
        normalization.add_module("batchnorm", _RowNorm(dimension, affine=False))
        linear = nn.Conv1d(2 * channels, dimension, 1, bias=False)
        self.xvector["dense"] = nn.ModuleDict({"linear": linear, "nonlinear": normalization})

    @property
    def dimension(self) -> int:
        """Dimension of embeddings"""
        return self.hparams.dimension

    @property
    def _convolutions(self) -> dict[str, list[int]]:
        """The filterbank and the first layer of the TDNN, by which frames become fewer."""
        return {
            "kernel_size": [self.filterbank.size, 5],
            "stride": [self.filterbank.step, 2],
            "padding": [0, 2],
            "dilation": [1, 1],
        }

    def num_frames(self, num_samples: int) -> int:
        """Number of frames that statistics are computed of, from the number of samples"""
        return multi_conv_num_frames(num_samples, **self._convolutions)

    def receptive_field_size(self, num_frames: int = 1) -> int:
        """Number of samples that are needed for a number of frames

        Convolutions that keep the number of frames do not count, here as in pyannote's own models.
        """
        return multi_conv_receptive_field_size(num_frames, **self._convolutions)

    def receptive_field_center(self, frame: int = 0) -> int:
        """Index of the sample in the middle of those that a frame is computed from"""
        step = self.receptive_field_size(2) - self.receptive_field_size(1)
        return frame * step + (self.receptive_field_size(1) - 1) // 2

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

        Raises
        ------
        InputError
            When waveforms are shorter than a frame of the filterbank.
        """
        features = self.filterbank(waveforms)
        if weights is None:
            return self._embed(features)
        speaking = speaking_frames(weights, features.shape[1])
        return self._embed_speakers(features, speaking).unflatten(0, weights.shape[:-1])

    def _embed_speakers(self, features: Tensor, speaking: Tensor) -> Tensor:
        """(batch, num_frames, num_mel_bins) features, of which each of (batch * num_speakers, num_frames) rows chooses
        some, to (batch * num_speakers, dimension) embeddings."""
        num_rows, num_frames = speaking.shape
        lengths = speaking.sum(1)
        # a speaker's frames first, in their order
        frames = (torch.arange(num_frames, device=speaking.device) + num_frames * ~speaking).argsort(1)
        chunks = torch.arange(num_rows, device=speaking.device) // (num_rows // features.shape[0])
        if self.training or torch.compiler.is_compiling():
            # normalisations see all rows; shapes do not depend on what is in weights
            groups = [(torch.arange(num_rows, device=speaking.device), num_frames)]
        else:
            rows = lengths.argsort()
            counts: list[int] = lengths[rows].tolist()  # the only time that a GPU is waited for
            silent = counts.count(0)
            longest_of = [counts[min(first + _ROWS, num_rows) - 1] for first in range(silent, num_rows, _ROWS)]
            groups = list(zip(rows[silent:].split(_ROWS), longest_of))
        embeddings = features.new_zeros(num_rows, self.dimension)
        for some, longest in groups:
            chosen = features[chunks[some, None], frames[some, :longest]]
            embeddings[some] = self._embed(chosen, lengths[some].clamp(min=1))
        return embeddings.masked_fill(lengths[:, None] == 0, torch.nan)

    def _embed(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(batch, num_frames, num_mel_bins) features, of which `lengths` count, to (batch, dimension) embeddings."""
        return self.summarize(self.enter(features, lengths), None if lengths is None else (lengths + 1) // 2)

    def enter(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """First layers: (batch, num_features, num_mel_bins) -> (batch, channels, num_frames), half as many, rounded up

        Parameters
        ----------
        features : (batch, num_features, num_mel_bins) Tensor
            Output of the filterbank.
        lengths : (batch,) Tensor, optional
            Number of features that count. Defaults to all.
        """
        keep = None if lengths is None else _mask(lengths, features.shape[1]).to(features)
        count = features.shape[1] if lengths is None else lengths[:, None, None]
        x = features.mT
        x = _masked(x - _masked(x, keep).sum(2, keepdim=True) / count, keep)
        return self.xvector["tdnn"](self.head(x, keep))

    def summarize(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """All other layers: (batch, channels, num_frames), of which `lengths` count -> (batch, dimension)"""
        every = lengths is None
        if lengths is None:
            lengths = torch.full((x.shape[0],), x.shape[2], device=x.device)
        counted = _mask(lengths, x.shape[2]).to(x)
        keep = None if every else counted
        kept = _segment_means(counted).clamp(min=0.5 / _SEGMENT)
        segment = torch.arange(x.shape[2], device=x.device) // _SEGMENT
        for name, part in self.xvector.items():
            if name.startswith("block"):
                for layer in part.children():
                    x = torch.cat([x, layer(x, keep, lengths, kept, segment)], dim=1)
            elif name.startswith("transit"):
                x = part(x)
        x = _masked(self.xvector["out_nonlinear"](x), keep)
        mean = x.sum(2) / lengths[:, None]
        variance = _masked((x - mean[..., None]).square(), keep).sum(2) / (lengths[:, None] - 1).clamp(min=1)
        # not zero, where the gradient of the root is infinite
        deviation = variance.clamp(min=torch.finfo(variance.dtype).tiny).sqrt()
        statistics = torch.cat([mean, deviation], dim=1)[..., None]
        linear, normalization = self.xvector["dense"].children()
        return normalization(linear(statistics)[..., 0])


def speaking_frames(weights: Tensor, num_frames: int) -> Tensor:
    """Frames of each speaker: (..., any number of frames) weights -> (rows, num_frames), one row for each speaker"""
    return F.interpolate(weights.flatten(0, -2)[:, None].float(), num_frames, mode="nearest")[:, 0] > 0.5


def _mask(lengths: Tensor, num_frames: int) -> Tensor:
    """(batch, 1, num_frames), true where frames count."""
    return (torch.arange(num_frames, device=lengths.device) < lengths[:, None])[:, None]


def _masked(x: Tensor, keep: Tensor | None) -> Tensor:
    """Zeros where frames do not count; None where all do."""
    return x if keep is None else x * keep


class _RowNorm(nn.BatchNorm1d):
    """Batch normalisation that takes one row in training, too, which has no variance, as it does in evaluation"""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


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

    def forward(self, x: Tensor, keep: Tensor | None) -> Tensor:
        keep = None if keep is None else keep[:, None]
        x = _masked(F.relu(self.bn1(self.conv1(x[:, None]))), keep)
        for residual in (*self.layer1, *self.layer2):
            x = residual(x, keep)
        x = _masked(F.relu(self.bn2(self.conv2(x))), keep)
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

    def forward(self, x: Tensor, keep: Tensor | None) -> Tensor:
        y = _masked(F.relu(self.bn1(self.conv1(x))), keep)
        return _masked(F.relu(self.bn2(self.conv2(y)) + self.shortcut(x)), keep)


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

    def forward(self, x: Tensor, keep: Tensor | None, lengths: Tensor, kept: Tensor, segment: Tensor) -> Tensor:
        x = _masked(self.nonlinear2(self.linear1(self.nonlinear1(x))), keep)
        return self.cam_layer(x, lengths, kept, segment)


class _ContextAwareMasking(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, dilation: int) -> None:
        super().__init__()
        self.linear_local = nn.Conv1d(in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.linear1 = _Linear(in_channels, 64, 1)
        self.linear2 = _Linear(64, out_channels, 1)

    def forward(self, x: Tensor, lengths: Tensor, kept: Tensor, segment: Tensor) -> Tensor:
        """Of (batch, channels, num_frames), given which part of each segment counts, and which each frame is in."""
        context = x.sum(2, keepdim=True) / lengths[:, None, None] + _segment_means(x) / kept
        weights = torch.sigmoid(self.linear2(F.relu(self.linear1(context))))
        return self.linear_local(x) * weights.index_select(2, segment)


class _Linear(nn.Conv1d):
    """Convolution of single frames as a matrix product, which is faster where there are few"""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.mT, self.weight[..., 0], self.bias).mT


def _segment_means(x: Tensor) -> Tensor:
    """(batch, channels, num_frames) to (batch, channels, num_segments), of which the last may be shorter."""
    if torch.compiler.is_compiling():
        # an empty segment more: a size that is one in the example of an export would be so for ever
        num_frames = x.shape[2]
        return F.avg_pool1d(F.pad(x, (0, (num_frames // _SEGMENT + 2) * _SEGMENT - num_frames)), _SEGMENT)
    return F.avg_pool1d(x, _SEGMENT, ceil_mode=True)
