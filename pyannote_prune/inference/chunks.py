"""Speaker embeddings of chunks: one pass of the network for all speakers of a chunk."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from pyannote.audio import Model
from pyannote.audio.models.embedding import XVectorMFCC, XVectorSincNet
from pyannote.core import SlidingWindowFeature
from torch import Tensor, nn

from pyannote_prune.inference.devices import synchronize, upload
from pyannote_prune.inference.onnx_models import OnnxEmbedding
from pyannote_prune.models.embedding import CAMPPlus
from pyannote_prune.upstream import BaseWeSpeakerResNet, embedding_network

# whose statistics pooling takes weights shaped (batch, speakers, frames)
_POOLS_BY_SPEAKER = (BaseWeSpeakerResNet, CAMPPlus, OnnxEmbedding, XVectorMFCC, XVectorSincNet)


def pools_by_speaker(embedding: Any) -> bool:
    """Whether a pretrained embedding can embed all speakers of a chunk in one pass."""
    return isinstance(embedding_network(embedding), _POOLS_BY_SPEAKER)


def fold_batch_norms(model: Model) -> Model:
    """Same embeddings from fewer operations: a copy whose normalisations are part of the convolutions before them

    Those of CAM++ that come first, before a ReLU and a convolution, stay: a ReLU is between.

    Parameters
    ----------
    model : Model

    Returns
    -------
    folded : Model
        In evaluation mode. The same model where it has a structure that is not known.
    """
    if not isinstance(model, (BaseWeSpeakerResNet, CAMPPlus)):
        return model
    folded = copy.deepcopy(model).eval()
    for parent in folded.modules():
        for (name, conv), (next_name, following) in pairwise(list(parent.named_children())):
            # a normalisation, or one followed by its activation
            holder, norm_name = (
                (following, "batchnorm") if isinstance(following, nn.Sequential) else (parent, next_name)
            )
            norm = getattr(holder, norm_name, None)
            if isinstance(conv, (nn.Conv1d, nn.Conv2d)) and isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
                setattr(parent, name, nn.utils.fusion.fuse_conv_bn_eval(conv, norm))
                setattr(holder, norm_name, nn.Identity())
    return folded.to(memory_format=torch.channels_last)


def embedding_masks(embedding: Any, segmentations: SlidingWindowFeature, exclude_overlap: bool) -> np.ndarray:
    """Frames that each speaker of a chunk is embedded from, by upstream's rule

    Parameters
    ----------
    embedding : PyannoteAudioPretrainedSpeakerEmbedding
    segmentations : (num_chunks, num_frames, num_speakers) SlidingWindowFeature
        Binary.
    exclude_overlap : bool
        Leave out frames in which others speak too, where what remains is long enough to be embedded.

    Returns
    -------
    masks : (num_chunks, num_speakers, num_frames) float32 array
    """
    data = np.nan_to_num(segmentations.data, nan=0.0).astype(np.float32)
    masks = data.transpose(0, 2, 1)
    if not exclude_overlap:
        return masks
    clean = (data * (np.nansum(segmentations.data, axis=2, keepdims=True) < 2)).transpose(0, 2, 1)
    num_samples = segmentations.sliding_window.duration * embedding.sample_rate
    min_num_frames = math.ceil(data.shape[1] * embedding.min_num_samples / num_samples)
    return np.where(clean.sum(axis=2, keepdims=True) > min_num_frames, clean, masks)


def embed_chunks(
    embedding: Any,
    masks: np.ndarray,
    waveform_of: Callable[[int], Tensor],
    batch_size: int,
    progress: Callable[[int, int], None],
) -> np.ndarray:
    """Embed all speakers of all chunks

    Parameters
    ----------
    embedding : PyannoteAudioPretrainedSpeakerEmbedding
        One that `pools_by_speaker`.
    masks : (num_chunks, num_speakers, num_frames) float32 array
    waveform_of : callable
        From the index of a chunk to its (1, num_samples) waveform.
    batch_size : int
        Chunks of a pass.
    progress : callable
        Called with the number of chunks that are done and their total.

    Returns
    -------
    embeddings : (num_chunks, num_speakers, dimension) array
    """
    speaking = masks.any(axis=(1, 2))
    embeddings = np.empty((*masks.shape[:2], embedding.dimension), dtype=np.float32)
    silent = np.flatnonzero(~speaking)
    if len(silent):
        # without any frame, the embedding does not depend on the waveform
        embeddings[silent] = embedding(waveform_of(int(silent[0]))[None], masks=torch.zeros(1, *masks.shape[1:]))
    chunks = np.flatnonzero(speaking)
    progress(0, len(chunks))
    done = []
    for batch in _batches(chunks, batch_size):
        waveforms = torch.stack([waveform_of(int(chunk)) for chunk in batch])
        # as `embedding` does, but a GPU computes one batch while the next one is made
        inputs = (upload(waveforms, embedding.device), upload(torch.from_numpy(masks[batch]), embedding.device))
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done.append(embedding.model_(inputs[0], weights=inputs[1]).to("cpu", non_blocking=True))
        progress(int(np.searchsorted(chunks, batch[-1])) + 1, len(chunks))
    synchronize(embedding.device)
    if done:
        embeddings[chunks] = torch.cat(done)
    return embeddings


def _batches(chunks: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for first in range(0, len(chunks), size):
        yield chunks[first : first + size]
