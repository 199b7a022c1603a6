"""Reconstruction of a diarization from clusters, in little memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pyannote.audio import Inference
from pyannote.core import Segment, SlidingWindowFeature

# frames that are ranked at a time: indices of all frames at once are gigabytes where there are many speakers
_BLOCK = 10_000


class ClusteredSegmentations:
    """Segmentations whose speakers are clusters, chunk by chunk: of all chunks at once they can fill gigabytes

    As much of a `SlidingWindowFeature` as `Inference.aggregate` needs.

    Parameters
    ----------
    segmentations : (num_chunks, num_frames, num_speakers) SlidingWindowFeature
    hard_clusters : (num_chunks, num_speakers) array
        Cluster of each speaker of each chunk, -2 for none.
    """

    def __init__(self, segmentations: SlidingWindowFeature, hard_clusters: np.ndarray) -> None:
        self.segmentations = segmentations
        self.hard_clusters = hard_clusters
        self.sliding_window = segmentations.sliding_window
        num_chunks, num_frames, _ = segmentations.data.shape
        # a shape, of no size
        self.data = np.broadcast_to(np.nan, (num_chunks, num_frames, np.max(hard_clusters) + 1))

    def __iter__(self) -> Iterator[tuple[Segment, np.ndarray]]:
        """Segment and (num_frames, num_clusters) scores of each chunk, NaN where a cluster does not speak"""
        for clusters, (chunk, segmentation) in zip(self.hard_clusters, self.segmentations):
            scores = np.full(self.data.shape[1:], np.nan)
            for cluster in np.unique(clusters[clusters != -2]):
                scores[:, cluster] = np.max(segmentation[:, clusters == cluster], axis=1)
            yield chunk, scores


def to_diarization(segmentations: ClusteredSegmentations, count: SlidingWindowFeature) -> SlidingWindowFeature:
    """Same as upstream's `to_diarization`, with frames ranked in blocks

    Parameters
    ----------
    segmentations : ClusteredSegmentations
    count : (total_num_frames, 1) SlidingWindowFeature
        Number of speakers of each frame.

    Returns
    -------
    discrete_diarization : (total_num_frames, num_clusters) SlidingWindowFeature
        As many ones in each frame as speak in it. There are more columns where more speak than there are clusters.
    """
    activations = Inference.aggregate(
        segmentations, count.sliding_window, hamming=False, missing=0.0, skip_average=True
    )
    at_once = int(np.max(count.data))
    if (missing := at_once - activations.data.shape[1]) > 0:
        activations.data = np.pad(activations.data, ((0, 0), (0, missing)))
    extent = activations.extent & count.extent
    activations = activations.crop(extent, return_data=False)
    counts = count.crop(extent, return_data=False).data[:, 0]
    data = activations.data[: len(counts)]
    binary = np.zeros_like(activations.data)
    for start in range(0, len(data), _BLOCK):
        ranked = np.argsort(-data[start : start + _BLOCK], axis=-1)[:, :at_once]
        rows, ranks = np.nonzero(np.arange(at_once) < counts[start : start + len(ranked), np.newaxis])
        binary[start + rows, ranked[rows, ranks]] = 1.0
    return SlidingWindowFeature(binary, activations.sliding_window)
