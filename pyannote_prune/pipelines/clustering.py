"""Clustering of many embeddings, and what is made of it, in little memory."""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType

import numpy as np
import scipy.cluster.hierarchy
from pyannote.audio.pipelines.clustering import BaseClustering
from pyannote.core import Segment, SlidingWindowFeature

try:
    import fastcluster
except ImportError:  # it is not there for every version of Python
    fastcluster = None

# SciPy is faster, but needs all distances at once: 100 MB for that many embeddings, four times as much for twice
_MANY = 5000


def linkage(embeddings: np.ndarray, method: str, metric: str) -> np.ndarray:
    """Same dendrogram as `scipy.cluster.hierarchy.linkage`, without all distances where there are many

    Parameters
    ----------
    embeddings : (num_embeddings, dimension) array
    method, metric : str
        As for SciPy. Of any metric but Euclidean, distances are needed.

    Returns
    -------
    dendrogram : (num_embeddings - 1, 4) array
    """
    many = fastcluster is not None and len(embeddings) > _MANY
    if many and metric == "euclidean" and method in ("centroid", "median", "ward", "single"):
        return fastcluster.linkage_vector(embeddings, method=method, metric=metric)
    return scipy.cluster.hierarchy.linkage(embeddings, method=method, metric=metric)


def save_memory(clustering: BaseClustering) -> None:
    """Make one of upstream's clusterings use the `linkage` of this file: its own code, with another global."""
    cls = type(clustering)
    methods = {
        name: FunctionType(
            method.__code__,
            {**method.__globals__, "linkage": linkage},
            name,
            method.__defaults__,
            method.__closure__,
        )
        for name, method in vars(cls).items()
        if isinstance(method, FunctionType) and "linkage" in method.__code__.co_names
    }
    object.__setattr__(clustering, "__class__", type(cls.__name__, (cls,), methods))


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
