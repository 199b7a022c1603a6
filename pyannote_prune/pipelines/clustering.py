"""Clustering of the speakers of all chunks."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from pyannote.audio.core.plda import PLDA
from pyannote.audio.pipelines.clustering import AgglomerativeClustering as UpstreamAgglomerativeClustering
from pyannote.audio.pipelines.clustering import BaseClustering
from pyannote.audio.pipelines.clustering import VBxClustering as UpstreamVBxClustering
from pyannote.core import SlidingWindowFeature
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from pyannote_prune.pipelines.dendrogram import (
    absorb_small,
    average_cut,
    best_cut,
    cut_dendrogram,
    cut_into,
    linkage,
    merge_into,
    num_large,
)
from pyannote_prune.pipelines.rules import ClusteringRules
from pyannote_prune.upstream import cluster_vbx

# of VBx, as published: iterations at most, and the prior that a speaker is kept above
VBX_ITERATIONS, VBX_LEAST_PRIOR = 20, 1e-7
# of VBx that is told the number of speakers: least share of embeddings of each when it starts, and how often it may
# start again with half the regularization
VBX_LEAST_SHARE, VBX_HALVINGS = 0.05, 6


class _Ruled(BaseClustering):
    """Common part of upstream's clusterings, with selectable rules."""

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
        min_size = max(min_size, round(self.rules.min_speaker_share * len(embeddings)))
        clusters = cut_dendrogram(dendrogram, self.threshold)
        found = num_large(clusters, min_size)
        if num_clusters is not None and found < num_clusters:
            # rather than the nearest to the threshold, which may split off a few embeddings of nobody
            return best_cut(embeddings, dendrogram, num_clusters, min_size)
        if num_clusters is None and not min_clusters <= found <= max_clusters:
            wanted = min_clusters if found < min_clusters else max_clusters
            clusters = cut_into(dendrogram, wanted, self.threshold, min_size)
            found = num_large(clusters, min_size)
        if found == 0:
            return np.zeros_like(clusters)
        clusters = absorb_small(embeddings, clusters, min_size, self.metric)
        return clusters if num_clusters is None else merge_into(embeddings, clusters, num_clusters)


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
            centroids = some if len(some) else np.full((1, some.shape[1]), np.nan)
            return hard, np.ones((num_chunks, num_speakers, 1)), centroids

        normalized = _normalize(some)
        dendrogram = linkage(normalized, method="centroid", metric="euclidean")
        features = self.plda(some)
        responsibilities = self._infer(cut_dendrogram(dendrogram, self.threshold), features)
        if self.rules.min_speaker_share > 0:
            responsibilities = self._merge_small(normalized, responsibilities)
        found = responsibilities.shape[1]
        told = num_clusters
        if told is None and not min_clusters <= found <= max_clusters:
            told = int(min_clusters if found < min_clusters else max_clusters)
        if told is not None and found != told:
            clusters = _hard(responsibilities)
            if clusters.max() + 1 >= told:
                responsibilities = np.eye(told)[merge_into(normalized, clusters, told)]
            else:
                responsibilities = self._infer_told(normalized, dendrogram, features, told)
        centroids = responsibilities.T @ some / responsibilities.sum(axis=0)[:, np.newaxis]

        distances = cdist(embeddings.reshape(num_chunks * num_speakers, -1), centroids, metric=self.metric)
        soft = 2 - distances.reshape(num_chunks, num_speakers, -1)
        if not self.constrained_assignment:
            return soft.argmax(axis=2), soft, centroids
        if not self.rules.assign_silent_speakers:
            # those who do not speak choose last
            soft[segmentations.data.sum(axis=1) == 0] = soft.min() - 1
        hard = self.constrained_argmax(soft)
        if self.rules.unassigned_as_speaker and told is None:
            return with_unassigned(hard, soft, centroids)
        return hard, soft, centroids

    def _infer(self, initial: np.ndarray, features: np.ndarray, relaxation: float = 1.0) -> np.ndarray:
        """(num_embeddings, num_clusters) responsibilities of the clusters that VBx keeps."""
        size = self.rules.reference_size
        regularization = self.Fb if size is None else self.Fb * max(1.0, len(features) / size)
        responsibilities, priors = cluster_vbx(
            initial, features, self.plda.phi, Fa=self.Fa, Fb=regularization / relaxation, maxIters=VBX_ITERATIONS
        )
        return responsibilities[:, priors > VBX_LEAST_PRIOR]

    def _merge_small(self, normalized: np.ndarray, responsibilities: np.ndarray) -> np.ndarray:
        """Responsibilities of speakers with enough embeddings, once those of others are merged with the nearest."""
        clusters = _hard(responsibilities)
        least = min(self.rules.min_speaker_share * len(clusters), np.bincount(clusters).max())
        merged = absorb_small(normalized, clusters, least)
        return np.eye(merged.max() + 1)[merged]

    def _infer_told(
        self, normalized: np.ndarray, dendrogram: np.ndarray, features: np.ndarray, num_clusters: int
    ) -> np.ndarray:
        """Responsibilities of as many clusters: VBx starts with that many, less regularized where it drops some."""
        initial = average_cut(normalized, dendrogram, num_clusters, max(1, round(VBX_LEAST_SHARE * len(normalized))))
        for halvings in range(VBX_HALVINGS):
            responsibilities = self._infer(initial, features, 2**halvings)
            if responsibilities.shape[1] == initial.max() + 1:
                return responsibilities
        return np.eye(initial.max() + 1)[initial]


def _hard(responsibilities: np.ndarray) -> np.ndarray:
    """(num_embeddings,) clusters of the largest responsibilities, numbered from 0 without gaps."""
    return np.unique(responsibilities.argmax(axis=1), return_inverse=True)[1]


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
        Arrays of the new clusters. The centroid of a cluster without one is zero.
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
        Clustering of upstream.
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
