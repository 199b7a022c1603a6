"""Reconstruction of a diarization from clusters, in little memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pyannote.core import Segment, SlidingWindowFeature


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
