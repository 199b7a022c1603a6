"""Speaker embedding with frames computed once for a whole recording, then pooled for each speaker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from pyannote_prune.errors import InputError
from pyannote_prune.models.embedding import CAMPPlus, speaking_frames

# frames of the filterbank that a frame depends on, on each side of its own: two-dimensional convolutions, then the
# first layer of the TDNN, which keeps every second frame
_HEAD_REACH, _ENTRANCE_REACH = 10, 2


class PooledFrames:
    """Speaker embedding from frames that are the same for all speakers of a recording

    Subclasses say how: by `frames`, `embed_statistics`, `reach` and `channels`.
    """

    filterbank: Any

    @property
    def reach(self) -> int:
        """Number of frames of the filterbank that a frame depends on, on each side"""
        raise NotImplementedError

    @property
    def channels(self) -> int:
        """Number of channels of a frame"""
        raise NotImplementedError

    def frames(self, features: Tensor) -> Tensor:
        """(batch, num_features, num_mel_bins), less their mean -> (batch, channels, num_frames), half as many"""
        raise NotImplementedError

    def embed_statistics(self, statistics: Tensor) -> Tensor:
        """(num_speakers, 2 * channels) means and deviations -> (num_speakers, dimension)"""
        raise NotImplementedError

    def blocks(self, features: Tensor, size: int = 3000) -> Iterator[tuple[int, Tensor]]:
        """Compute the frames of a recording block by block: the same numbers, in less memory

        Parameters
        ----------
        features : (num_features, num_mel_bins) Tensor
            Output of the filterbank, less its mean.
        size : int, optional
            Features of a block, an even number. Defaults to 3000, half a minute.

        Yields
        ------
        start, frames : int, (channels, num_frames) Tensor
            Index of the first frame of the block, and all of them.
        """
        context = self.reach + self.reach % 2
        for start in range(0, len(features), size):
            before = min(start, context)
            block = features[start - before : start + size + context]
            count = (min(size, len(features) - start) + 1) // 2
            yield start // 2, self.frames(block[None])[0, :, before // 2 : before // 2 + count]

    def pool(self, frames: Tensor, weights: Tensor) -> Tensor:
        """Make embeddings of frames

        Parameters
        ----------
        frames : (batch, channels, num_frames) Tensor
        weights : (batch, num_speakers, num_frames) Tensor
            Weight of each frame in the mean and the deviation of a speaker.

        Returns
        -------
        embeddings : (batch, num_speakers, dimension) Tensor
            NaN for a speaker without a frame.
        """
        weights = weights.to(frames)
        count = weights.sum(2)
        sums = weights @ frames.mT
        squares = weights @ frames.square().mT
        return self.embed_sums(count.flatten(), sums.flatten(0, 1), squares.flatten(0, 1)).unflatten(0, count.shape)

    def embed_sums(self, count: Tensor, sums: Tensor, squares: Tensor) -> Tensor:
        """Make embeddings of sums over frames, which can be added up over blocks

        Parameters
        ----------
        count : (num_speakers,) Tensor
            Sum of weights.
        sums, squares : (num_speakers, channels) Tensor
            Weighted sums of frames, and of their squares.

        Returns
        -------
        embeddings : (num_speakers, dimension) Tensor
            NaN for a speaker without a frame.
        """
        total = count.clamp(min=1)[:, None]
        mean = sums / total
        variance = (squares - total * mean.square()) / (total - 1).clamp(min=1)
        # rounding may leave less than nothing, and the gradient of the root of nothing is infinite
        deviation = variance.clamp(min=1e-8).sqrt()
        embeddings = self.embed_statistics(torch.cat([mean, deviation], dim=1))
        return embeddings.masked_fill(count[:, None] == 0, torch.nan)

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
        frames = self.frames(features - features.mean(1, keepdim=True))
        if weights is None:
            weights = frames.new_ones(len(frames), frames.shape[2])
        speaking = speaking_frames(weights, frames.shape[2]).unflatten(0, (len(frames), -1))
        return self.pool(frames, speaking).flatten(0, 1).unflatten(0, weights.shape[:-1])


class FrameEmbedding(PooledFrames, CAMPPlus):
    """CAM++ without context: no layer looks at averages over the chunk

    Each frame depends on two seconds around it alone. Those of a recording can be computed once, block by block, and a
    speaker's embedding is made of the mean and the deviation of the frames in which she speaks, be it in a chunk or in
    all of a recording. Parameters are those of [`CAMPPlus`][pyannote_prune.models.CAMPPlus], and their names, too, but
    for those of the context.

    Parameters
    ----------
    **kwargs
        As [`CAMPPlus`][pyannote_prune.models.CAMPPlus].
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for layer in self.layers():
            del layer.cam_layer.linear1, layer.cam_layer.linear2

    def layers(self) -> Iterator[Any]:
        """Layers of the densely connected TDNN, from the first to the last"""
        for name, part in self.xvector.items():
            if name.startswith("block"):
                yield from part.children()

    @property
    def reach(self) -> int:
        """Number of frames of the filterbank that a frame depends on, on each side"""
        dilations = sum(layer.cam_layer.linear_local.dilation[0] for layer in self.layers())
        return _HEAD_REACH + _ENTRANCE_REACH + 2 * dilations

    def frames(self, features: Tensor) -> Tensor:
        """Compute frames

        Parameters
        ----------
        features : (batch, num_features, num_mel_bins) Tensor
            Output of the filterbank, less its mean over the recording.

        Returns
        -------
        frames : (batch, channels, num_frames) Tensor
            Half as many as features, rounded up.
        """
        x = self.xvector["tdnn"](self.head(features.mT, None))
        parts: Iterable[tuple[str, Any]] = self.xvector.items()
        for name, part in parts:
            if name.startswith("block"):
                for layer in part.children():
                    inner = layer.nonlinear2(layer.linear1(layer.nonlinear1(x)))
                    x = torch.cat([x, layer.cam_layer.linear_local(inner)], dim=1)
            elif name.startswith("transit"):
                x = part(x)
        return self.xvector["out_nonlinear"](x)

    @property
    def channels(self) -> int:
        """Number of channels of a frame"""
        return int(self.hparams.transitions[-1])

    def embed_statistics(self, statistics: Tensor) -> Tensor:
        """(num_speakers, 2 * channels) means and deviations -> (num_speakers, dimension)"""
        linear, normalization = self.xvector["dense"].children()
        return normalization(linear(statistics[..., None])[..., 0])


@torch.inference_mode()
def without_context(model: CAMPPlus, waveforms: Iterable[Tensor]) -> FrameEmbedding:
    """CAM++ with its average context: the starting point for training a `FrameEmbedding`

    Parameters
    ----------
    model : CAMPPlus
    waveforms : iterable of (num_samples,) Tensor
        Speech of many speakers.

    Returns
    -------
    without : FrameEmbedding
        Model of the same shape, in evaluation mode: channels have the average weights of the context.

    Raises
    ------
    InputError
        When there is no waveform.
    """
    seen: dict[int, list[Tensor]] = {}
    handles = []
    parts: Iterable[tuple[str, Any]] = model.xvector.items()
    context = [layer.cam_layer for name, part in parts if name.startswith("block") for layer in part.values()]
    for index, layer in enumerate(context):
        remember = seen.setdefault(index, []).append
        handles.append(
            layer.linear2.register_forward_hook(
                lambda module, inputs, output, remember=remember: remember(output.sigmoid().mean((0, 2)))
            )
        )
    model.eval()
    try:
        for waveform in waveforms:
            model(waveform[None, None].to(model.device))
    finally:
        for handle in handles:
            handle.remove()
    if not seen[0]:
        raise InputError("The average context needs at least one recording, got none.")
    without = FrameEmbedding(**dict(model.hparams))
    without.specifications = model.specifications
    without.setup()
    own = without.state_dict()
    state = {key: tensor.clone() for key, tensor in model.state_dict().items() if key in own}
    without.load_state_dict(state)
    for layer, averages in zip(without.layers(), seen.values(), strict=True):
        layer.cam_layer.linear_local.weight.mul_(torch.stack(averages).mean(0)[:, None, None])
    return without.eval()
