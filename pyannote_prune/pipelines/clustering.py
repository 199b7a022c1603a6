"""Clustering of many embeddings, and what is made of it, in little memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import scipy.cluster.hierarchy
from pyannote.audio.core.plda import PLDA
from pyannote.audio.pipelines.clustering import AgglomerativeClustering as UpstreamAgglomerativeClustering
from pyannote.audio.pipelines.clustering import BaseClustering
from pyannote.audio.pipelines.clustering import VBxClustering as UpstreamVBxClustering
from pyannote.core import Segment, SlidingWindowFeature
from scipy.cluster.hierarchy import fcluster
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans

from pyannote_prune.pipelines.rules import ClusteringRules
from pyannote_prune.upstream import cluster_vbx

try:
    import fastcluster
except ImportError:  # it is not there for every version of Python
    fastcluster = None

# SciPy is faster, but needs all distances at once: 100 MB for that many embeddings, four times as much for twice
_MANY = 5000
# of VBx, as published: iterations at most, and the prior that a speaker is kept above
VBX_ITERATIONS, VBX_LEAST_PRIOR = 20, 1e-7


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


def cut_dendrogram(dendrogram: np.ndarray, height: float) -> np.ndarray:
    """Clusters of the merges below a height

    Parameters
    ----------
    dendrogram : (num_embeddings - 1, 4) array
    height : float

    Returns
    -------
    clusters : (num_embeddings,) array
        Numbered from 0.
    """
    return fcluster(dendrogram, height, criterion="distance") - 1


def _num_large(clusters: np.ndarray, min_size: int) -> int:
    return int((np.bincount(clusters) >= min_size).sum())


def cut_into(dendrogram: np.ndarray, num_clusters: int, threshold: float, min_size: int) -> np.ndarray:
    """Clusters of the cut nearest to a threshold that leaves the wanted number of large ones, or the nearest number

    Parameters
    ----------
    dendrogram : (num_embeddings - 1, 4) array
    num_clusters : int
        Wanted number of large clusters.
    threshold : float
        Height that the cut should be near.
    min_size : int
        Number of embeddings of a large cluster.

    Returns
    -------
    clusters : (num_embeddings,) array
    """
    # cut by the number of merges: their heights may repeat, or decrease
    merges = dendrogram.copy()
    merges[:, 2] = np.arange(len(merges))
    order = np.argsort(np.abs(dendrogram[:, 2] - threshold))
    # everything in one cluster
    best, error = len(merges), abs(1 - num_clusters)
    # a merge that makes no large cluster does not change their number
    for merge in order[dendrogram[order, 3] >= min_size]:
        candidate = abs(_num_large(cut_dendrogram(merges, merge), min_size) - num_clusters)
        if candidate < error or candidate == 0:
            best, error = merge, candidate
        if candidate == 0:
            break
    return cut_dendrogram(merges, best)


class _Ruled(BaseClustering):
    """What upstream's clusterings have in common, by rules that can be chosen."""

    rules = ClusteringRules()

    def filter_embeddings(
        self, embeddings: np.ndarray, segmentations: SlidingWindowFeature, min_active_ratio: float = 0.2
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Choose the embeddings that are clustered: those of speakers who speak alone for long enough

        Parameters
        ----------
        embeddings : (num_chunks, num_speakers, dimension) array
        segmentations : (num_chunks, num_frames, num_speakers) SlidingWindowFeature
            Binary.
        min_active_ratio : float, optional
            Least share of a chunk that they speak alone, unless the rules have one.

        Returns
        -------
        chosen : (num_embeddings, dimension) array
        chunks, speakers : (num_embeddings,) arrays
            Indices of the chosen ones.
        """
        if self.rules.min_solo_ratio is None:
            return super().filter_embeddings(embeddings, segmentations, min_active_ratio)
        data = segmentations.data
        solo = (data * (data.sum(axis=2, keepdims=True) == 1)).sum(axis=1)
        usable = (data.sum(axis=1) > 0) & ~np.isnan(embeddings).any(axis=2)
        chosen = usable & (solo >= round(self.rules.min_solo_ratio * data.shape[1]))
        if self.rules.fall_back_to_all and chosen.sum() < 2:
            chosen = usable
        chunks, speakers = np.where(chosen)
        return embeddings[chunks, speakers], chunks, speakers

    def constrained_argmax(self, soft_clusters: np.ndarray) -> np.ndarray:
        """Assign the speakers of each chunk to different clusters: upstream's, for any number of clusters

        Parameters
        ----------
        soft_clusters : (num_chunks, num_speakers, num_clusters) array
            NaN where an embedding is missing.

        Returns
        -------
        hard_clusters : (num_chunks, num_speakers) array
            -2 for speakers beyond the number of clusters.
        """
        scores = np.nan_to_num(soft_clusters, nan=np.nanmin(soft_clusters))
        # upstream's numbers end at 127
        hard = np.full(scores.shape[:2], -2, dtype=np.int32)
        for clusters, chunk in zip(hard, scores):
            speakers, assigned = linear_sum_assignment(chunk, maximize=True)
            clusters[speakers] = assigned
        return hard


class AgglomerativeClustering(_Ruled, UpstreamAgglomerativeClustering):
    """Agglomerative clustering: upstream's, with a `linkage` that saves memory

    Parameters
    ----------
    metric : str, optional
        Defaults to "cosine".
    constrained_assignment : bool, optional
        Defaults to False.
    rules : ClusteringRules, optional
        Default to upstream's.
    """

    def __init__(
        self, metric: str = "cosine", constrained_assignment: bool = False, rules: ClusteringRules = _Ruled.rules
    ) -> None:
        super().__init__(metric=metric, constrained_assignment=constrained_assignment)
        self.rules = rules

    def cluster(
        self,
        embeddings: np.ndarray,
        min_clusters: int,
        max_clusters: int,
        num_clusters: int | None = None,
    ) -> np.ndarray:
        """Cluster embeddings, then give those of small clusters to the nearest large ones

        Parameters
        ----------
        embeddings : (num_embeddings, dimension) array
        min_clusters, max_clusters : int
            Bounds on the number of clusters.
        num_clusters : int, optional
            Number of clusters, when known.

        Returns
        -------
        clusters : (num_embeddings,) array
        """
        if len(embeddings) == 1:
            return np.zeros(1, dtype=np.intp)
        metric = self.metric
        if metric == "cosine" and self.method in ("centroid", "median", "ward"):
            # defined for Euclidean distances only, which order unit vectors as cosines do
            embeddings, metric = _normalize(embeddings), "euclidean"
        dendrogram = linkage(embeddings, method=self.method, metric=metric)
        min_size = min(self.min_cluster_size, max(1, round(0.1 * len(embeddings))))
        clusters = cut_dendrogram(dendrogram, self.threshold)
        found = _num_large(clusters, min_size)
        if not min_clusters <= found <= max_clusters:
            num_clusters = min_clusters if found < min_clusters else max_clusters
        if num_clusters is not None and found != num_clusters:
            clusters = cut_into(dendrogram, num_clusters, self.threshold, min_size)
            found = _num_large(clusters, min_size)
            if found != num_clusters:
                warnings.warn(
                    f"{found} clusters were found, not {num_clusters}: a min_cluster_size below {min_size} may help.",
                    stacklevel=2,
                )
        if found == 0:
            return np.zeros_like(clusters)
        is_large = np.bincount(clusters) >= min_size
        centroids = np.stack([embeddings[clusters == cluster].mean(axis=0) for cluster in range(len(is_large))])
        # large clusters keep their order, small ones take the number of the nearest
        number = np.cumsum(is_large) - 1
        if not is_large.all():
            distances = cdist(centroids[~is_large], centroids[is_large], metric=self.metric)
            number[~is_large] = distances.argmin(axis=1)
        return number[clusters]


class PortablePLDA(PLDA):
    """PLDA of VBx clustering: upstream's, which can be pickled

    Parameters
    ----------
    transform_npz, plda_npz : str, Path or bytes
        Paths of files, or their contents.
    lda_dimension : int, optional
    """

    def __init__(self, transform_npz: str | Path | bytes, plda_npz: str | Path | bytes, lda_dimension: int = 128):
        files = (transform_npz, plda_npz)
        self.contents = tuple(file if isinstance(file, bytes) else Path(file).read_bytes() for file in files)
        super().__init__(*map(BytesIO, self.contents), lda_dimension)

    def __reduce__(self) -> tuple[type[PortablePLDA], tuple[bytes, bytes, int]]:
        return type(self), (*self.contents, self.lda_dimension)


class VBxClustering(_Ruled, UpstreamVBxClustering):
    """VBx clustering: upstream's, with a `linkage` that saves memory

    Parameters
    ----------
    plda : PLDA
    metric : str, optional
        Defaults to "cosine".
    constrained_assignment : bool, optional
        Defaults to True.
    rules : ClusteringRules, optional
        Default to upstream's.
    """

    def __init__(
        self,
        plda: PLDA,
        metric: str = "cosine",
        constrained_assignment: bool = True,
        rules: ClusteringRules = _Ruled.rules,
    ) -> None:
        super().__init__(plda, metric=metric, constrained_assignment=constrained_assignment)
        self.rules = rules

    def __call__(
        self,
        embeddings: np.ndarray,
        segmentations: SlidingWindowFeature,
        num_clusters: int | None = None,
        min_clusters: int = 1,
        max_clusters: float = np.inf,
        **kwargs: Any,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cluster the speakers of all chunks

        Parameters
        ----------
        embeddings : (num_chunks, num_speakers, dimension) array
        segmentations : (num_chunks, num_frames, num_speakers) SlidingWindowFeature
            Binary.
        num_clusters : int, optional
            Number of clusters, when known.
        min_clusters, max_clusters : int, optional
            Bounds on the number of clusters.

        Returns
        -------
        hard_clusters : (num_chunks, num_speakers) array
        soft_clusters : (num_chunks, num_speakers, num_clusters) array
            The higher, the likelier.
        centroids : (num_clusters, dimension) array
        """
        some, _, _ = self.filter_embeddings(embeddings, segmentations=segmentations)
        num_chunks, num_speakers, _ = embeddings.shape
        if len(some) < 2:
            hard = np.zeros((num_chunks, num_speakers), dtype=np.int8)
            return hard, np.ones((num_chunks, num_speakers, 1)), some.mean(axis=0, keepdims=True)

        normalized = _normalize(some)
        dendrogram = linkage(normalized, method="centroid", metric="euclidean")
        initial = cut_dendrogram(dendrogram, self.threshold)
        responsibilities, priors = cluster_vbx(
            initial, self.plda(some), self.plda.phi, Fa=self.Fa, Fb=self.Fb, maxIters=VBX_ITERATIONS
        )
        kept = responsibilities[:, priors > VBX_LEAST_PRIOR]
        centroids = kept.T @ some / kept.sum(axis=0)[:, np.newaxis]

        constrained = self.constrained_assignment
        if not min_clusters <= len(centroids) <= max_clusters:
            num_clusters = int(min_clusters if len(centroids) < min_clusters else max_clusters)
        if num_clusters and num_clusters != len(centroids):
            # as many as wanted, rather than one for each speaker of a chunk
            constrained = False
            labels = KMeans(num_clusters, n_init=3, random_state=42, copy_x=False).fit_predict(normalized)
            centroids = np.stack([some[labels == cluster].mean(axis=0) for cluster in range(num_clusters)])

        distances = cdist(embeddings.reshape(num_chunks * num_speakers, -1), centroids, metric=self.metric)
        soft = 2 - distances.reshape(num_chunks, num_speakers, -1)
        if not constrained:
            return soft.argmax(axis=2), soft, centroids
        if not self.rules.assign_silent_speakers:
            # those who do not speak choose last
            soft[segmentations.data.sum(axis=1) == 0] = soft.min() - 1
        hard = self.constrained_argmax(soft)
        if self.rules.unassigned_as_speaker:
            return with_unassigned(hard, soft, centroids)
        return hard, soft, centroids


def _normalize(embeddings: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)


def with_unassigned(
    hard_clusters: np.ndarray, soft_clusters: np.ndarray, centroids: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clusters that have members, renumbered, the first of them of all that were left without one

    Parameters
    ----------
    hard_clusters : (num_chunks, num_speakers) array
        -2 for none.
    soft_clusters : (num_chunks, num_speakers, num_clusters) array
    centroids : (num_clusters, dimension) array

    Returns
    -------
    hard_clusters, soft_clusters, centroids : arrays
        Of the new clusters. The centroid of those without one is zero.
    """
    kept, renumbered = np.unique(hard_clusters, return_inverse=True)
    # a last column and row, for those without a cluster
    soft = np.concatenate([soft_clusters, np.full((*hard_clusters.shape, 1), np.nan)], axis=2)
    rows = np.where(kept < 0, len(centroids), kept)
    return (
        renumbered.reshape(hard_clusters.shape),
        soft[..., rows],
        np.concatenate([centroids, np.zeros_like(centroids[:1])])[rows],
    )


def save_memory(clustering: BaseClustering, rules: ClusteringRules = _Ruled.rules) -> BaseClustering:
    """Same clustering, not instantiated, by a class of this module; the given one where there is none

    Parameters
    ----------
    clustering : BaseClustering
        Of upstream.
    rules : ClusteringRules, optional
        Default to upstream's.
    """
    constrained = rules.constrained_assignment
    options: dict[str, Any] = {
        "metric": clustering.metric,
        "constrained_assignment": clustering.constrained_assignment if constrained is None else constrained,
        "rules": rules,
    }
    if type(clustering) is UpstreamAgglomerativeClustering:
        return AgglomerativeClustering(**options)
    if type(clustering) is UpstreamVBxClustering:
        return VBxClustering(clustering.plda, **options)
    return clustering


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
