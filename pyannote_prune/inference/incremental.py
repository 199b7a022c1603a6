"""Speaker embeddings of the windows of audio that arrives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyannote_prune.inference.whole import place_frames


@dataclass
class FrameStream:
    """What the next frames of a speaker embedding need of those before; can be pickled

    Frames depend on audio after them. Those at the end are computed again when more has arrived, until `context`
    features follow them.

    Parameters
    ----------
    context : int
        Features of the filterbank on each side that a frame is computed with, an even number. The whole reach of the
        model would give the frames of the whole recording; most of what they depend on is nearer.
    span : float
        Seconds of frames to remember.
    samples : (num_samples,) Tensor
        Samples that the next feature begins with.
    features : (num_features, num_mel_bins) Tensor
        The last features.
    end : int
        Number of features until now.
    total : (num_mel_bins,) Tensor
        Sum of all features until now.
    frames : (channels, num_frames) Tensor
        The last frames that do not change any more.
    num_frames : int
        Number of frames until now that do not change any more.
    newest : (channels, num_newest) Tensor
        Frames that follow and may change.
    """

    context: int
    span: float
    samples: Tensor
    features: Tensor
    end: int
    total: Tensor
    frames: Tensor
    num_frames: int
    newest: Tensor

    @classmethod
    def start(cls, model: Any, context: int, span: float) -> FrameStream:
        """Begin, before any audio"""
        frames, empty, total = (torch.zeros(size, dtype=torch.float32) for size in ((model.channels, 0), 0, ()))
        return cls(context, span, empty, empty, 0, total, frames, 0, frames)


@torch.inference_mode()
def follow_frames(model: Any, stream: FrameStream, samples: Tensor) -> None:
    """Compute the frames of audio that arrives

    Parameters
    ----------
    model : FrameEmbedding or OnnxFrameEmbedding
    stream : FrameStream
        Moves on.
    samples : (num_samples,) Tensor
        At any level: it has no effect on the frames, from whose features their mean is taken off.
    """
    filterbank = model.filterbank
    samples = torch.cat([stream.samples, samples])
    if len(samples) < filterbank.size:
        stream.samples = samples
        return
    new = filterbank(samples[None, None].to(model.device))[0].cpu()
    stream.samples = samples[len(new) * filterbank.step :].clone()
    features = torch.cat([stream.features, new]) if stream.end else new
    stream.end += len(new)
    stream.total = stream.total + new.sum(0)
    # from the first feature that the first frame to compute depends on
    begin = max(0, 2 * stream.num_frames - stream.context)
    features = features[len(features) - (stream.end - begin) :]
    frames = model.frames((features - stream.total / stream.end)[None].to(model.device))[0].cpu()
    frames = frames[:, stream.num_frames - begin // 2 :]
    settled = max(0, (stream.end - stream.context) // 2 - stream.num_frames)
    stream.frames = torch.cat([stream.frames, frames[:, :settled]], 1)
    stream.newest = frames[:, settled:]
    stream.num_frames += settled
    keep = round(stream.span * model.hparams.sample_rate / (2 * filterbank.step))
    stream.frames = stream.frames[:, -keep:].clone()
    begin = max(0, 2 * stream.num_frames - stream.context)
    stream.features = features[len(features) - (stream.end - begin) :].clone()


@torch.inference_mode()
def embed_windows(
    model: Any, stream: FrameStream, masks: np.ndarray, starts: np.ndarray, duration: float
) -> np.ndarray:
    """Embed all speakers of windows of the last seconds

    Parameters
    ----------
    model : FrameEmbedding or OnnxFrameEmbedding
    stream : FrameStream
    masks : (num_windows, num_speakers, num_mask_frames) float32 array
        Frames in which each speaker of a window speaks.
    starts : (num_windows,) array
        In seconds.
    duration : float
        Of each window, in seconds.

    Returns
    -------
    embeddings : (num_windows, num_speakers, dimension) float32 array
        NaN where a speaker of a window has no frame.
    """
    frames = torch.cat([stream.frames, stream.newest], 1)
    first = model.receptive_field_center(0) / model.hparams.sample_rate
    step = model.receptive_field_center(1) / model.hparams.sample_rate - first
    times = first + step * np.arange(
        stream.num_frames - stream.frames.shape[1], stream.num_frames + stream.newest.shape[1]
    )
    weights = place_frames(torch.from_numpy(masks > 0.5), starts, duration, times).to(frames)
    count, size = weights.sum(2), weights.shape[:2]
    weights = weights.flatten(0, 1)
    sums, squares = weights @ frames.mT, weights @ frames.square().mT
    parts = (part.to(model.device) for part in (count.flatten(), sums, squares))
    return model.embed_sums(*parts).unflatten(0, size).cpu().numpy()
