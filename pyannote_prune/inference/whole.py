"""Speaker embeddings of chunks, of frames that are computed once for the whole recording."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from pyannote.core import SlidingWindow
from torch import Tensor

from pyannote_prune.inference.devices import upload

# seconds of the filterbank that are computed at a time
_BLOCK = 60
# speakers of chunks that are embedded at a time
_MANY_SUMS = 4096


@torch.inference_mode()
def embed_recording(
    model: Any,
    waveform: Tensor,
    masks: np.ndarray,
    chunks: SlidingWindow,
    progress: Callable[[int, int], None] = lambda completed, total: None,
) -> np.ndarray:
    """Embed all speakers of all chunks of a recording

    Parameters
    ----------
    model : FrameEmbedding or OnnxFrameEmbedding
    waveform : (1, num_samples) Tensor
        All of the recording.
    masks : (num_chunks, num_speakers, num_mask_frames) float32 array
        Frames in which each speaker of a chunk speaks, at any resolution: those above one half.
    chunks : SlidingWindow
        Positions of the chunks, in seconds. Chunks may exceed the end of the recording.
    progress : callable, optional
        Called with the number of chunks that are done and their total.

    Returns
    -------
    embeddings : (num_chunks, num_speakers, dimension) float32 array
        NaN where a speaker of a chunk has no frame.
    """
    num_chunks, num_speakers, _ = masks.shape
    speaking = torch.from_numpy(masks > 0.5)
    features = _features(model, waveform)
    features -= features.mean(0)
    # middle of the first frame, and from one to the next
    first = model.receptive_field_center(0) / model.hparams.sample_rate
    step = model.receptive_field_center(1) / model.hparams.sample_rate - first
    starts = np.array([chunks[index].start for index in range(num_chunks)])

    # whatever the default type of the process is
    zeros = partial(torch.zeros, num_chunks, num_speakers, dtype=torch.float32, device=model.device)
    count, sums, squares = zeros(), zeros(model.channels), zeros(model.channels)
    progress(0, num_chunks)
    for start, frames in model.blocks(features):
        times = first + step * np.arange(start, start + frames.shape[1])
        # chunks are in order, and a device need not be told which, but from where to where
        inside = slice(*np.searchsorted(starts, [times[0] - chunks.duration, times[-1]], side="right"))
        if inside.start == inside.stop:
            continue
        chosen = place_frames(speaking[inside], starts[inside], chunks.duration, times)
        # inner dimension last in memory, as matrix products like it
        weights, frames = upload(chosen, frames.device).to(frames).flatten(0, 1), frames.mT.contiguous()
        count[inside] += weights.sum(1).unflatten(0, (-1, num_speakers))
        sums[inside] += (weights @ frames).unflatten(0, (-1, num_speakers))
        squares[inside] += (weights @ frames.square()).unflatten(0, (-1, num_speakers))
        progress(int((starts + chunks.duration <= times[-1]).sum()), num_chunks)
    parts = (tensor.flatten(0, 1).split(_MANY_SUMS) for tensor in (count[..., None], sums, squares))
    embeddings = torch.cat([model.embed_sums(number[:, 0], total, square) for number, total, square in zip(*parts)])
    progress(num_chunks, num_chunks)
    return embeddings.unflatten(0, count.shape).cpu().numpy()


def place_frames(speaking: Tensor, starts: np.ndarray, duration: float, times: np.ndarray) -> Tensor:
    """Find the frames in which each speaker of chunks speaks

    Parameters
    ----------
    speaking : (num_chunks, num_speakers, num_mask_frames) boolean Tensor
    starts : (num_chunks,) array
        Starts of the chunks, in seconds.
    duration : float
        Of each of them, in seconds.
    times : (num_frames,) array
        Middles of the frames, in seconds.

    Returns
    -------
    chosen : (num_chunks, num_speakers, num_frames) boolean Tensor
    """
    num_mask_frames = speaking.shape[2]
    place = np.floor((times - starts[:, None]) / duration * num_mask_frames).astype(int)
    within = torch.from_numpy((place >= 0) & (place < num_mask_frames))
    index = torch.from_numpy(place.clip(0, num_mask_frames - 1))[:, None].expand(-1, speaking.shape[1], -1)
    return speaking.gather(2, index) & within[:, None]


def _features(model: Any, waveform: Tensor) -> Tensor:
    """(1, num_samples) -> (num_features, num_mel_bins)"""
    filterbank = model.filterbank
    missing = filterbank.size - waveform.shape[1]
    if missing > 0:
        waveform = torch.nn.functional.pad(waveform, (0, missing))
    size = _BLOCK * model.hparams.sample_rate // filterbank.step
    total = (waveform.shape[1] - filterbank.size) // filterbank.step + 1
    features = torch.empty(0)
    for start in range(0, total, size):
        last = min(start + size, total) - 1
        samples = waveform[:, start * filterbank.step : last * filterbank.step + filterbank.size]
        block = filterbank(upload(samples, model.device)[None])[0]
        # not joined afterwards: those of hours would be there twice
        features = block.new_empty(total, block.shape[1]) if start == 0 else features
        features[start : last + 1] = block
    return features
