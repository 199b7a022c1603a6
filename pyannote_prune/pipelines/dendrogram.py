"""Dendrograms of many embeddings, and where to cut them."""

from __future__ import annotations

import numpy as np
import scipy.cluster.hierarchy
from scipy.cluster.hierarchy import fcluster
from scipy.spatial.distance import cdist

try:
    import fastcluster
except ImportError:  # it is not there for every version of Python
    fastcluster = None

# SciPy is faster, but needs all distances at once: 100 MB for that many embeddings, four times as much for twice
_MANY = 5000
# cuts of a dendrogram that are compared
_MANY_CUTS = 200


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


def num_large(clusters: np.ndarray, min_size: int) -> int:
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
    merges = _numbered(dendrogram)
    order = np.argsort(np.abs(dendrogram[:, 2] - threshold))
    # everything in one cluster
    best, error = len(merges), abs(1 - num_clusters)
    # a merge that makes no large cluster does not change their number
    for merge in order[dendrogram[order, 3] >= min_size]:
        candidate = abs(num_large(cut_dendrogram(merges, merge), min_size) - num_clusters)
        if candidate < error or candidate == 0:
            best, error = merge, candidate
        if candidate == 0:
            break
    return cut_dendrogram(merges, best)


def best_cut(embeddings: np.ndarray, dendrogram: np.ndarray, num_clusters: int, min_size: int) -> np.ndarray:
    """Clusters of the cut that leaves the wanted number of large ones, with the least scatter

    Scatter is the sum of squared distances to the centroids of clusters, once embeddings of small clusters are given
    to the nearest large ones. Where no cut leaves as many of that size, smaller ones are large enough.

    Parameters
    ----------
    embeddings : (num_embeddings, dimension) array
    dendrogram : (num_embeddings - 1, 4) array
    num_clusters : int
        Wanted number of clusters.
    min_size : int
        Number of embeddings of a large cluster.

    Returns
    -------
    clusters : (num_embeddings,) array
        Numbered from 0: as many as wanted, or as there are embeddings.
    """
    num_embeddings = len(embeddings)
    num_clusters = min(num_clusters, num_embeddings)
    sizes = np.concatenate([np.ones(num_embeddings), dendrogram[:, 3]])
    merges = _numbered(dendrogram)
    for least in range(min_size, 0, -1):
        large = sizes >= least
        made = large[num_embeddings:]
        # a merge makes at most one large cluster of at most two
        change = made.astype(int) - large[merges[:, :2].astype(int)].sum(axis=1)
        candidates = np.flatnonzero(made & (large[:num_embeddings].sum() + np.cumsum(change) == num_clusters))
        if len(candidates):
            # of very many, some
            candidates = candidates[np.unique(np.linspace(0, len(candidates) - 1, _MANY_CUTS).round().astype(int))]
            cuts = [absorb_small(embeddings, cut_dendrogram(merges, merge), least) for merge in candidates]
            return min(cuts, key=lambda clusters: _scatter(embeddings, clusters))
    # not even one merge
    return np.arange(num_embeddings)


def _numbered(dendrogram: np.ndarray) -> np.ndarray:
    """Same merges, with their numbers for heights, which may be equal."""
    merges = dendrogram.copy()
    merges[:, 2] = np.arange(len(merges))
    return merges


def average_cut(embeddings: np.ndarray, dendrogram: np.ndarray, num_clusters: int, min_size: int) -> np.ndarray:
    """Clusters of average linkage, by cosines; where there are too many embeddings for all distances, `best_cut`

    Where there is little speech, those of average linkage change less with the sound of a recording than others.

    Parameters
    ----------
    embeddings : (num_embeddings, dimension) array
    dendrogram : (num_embeddings - 1, 4) array
        For `best_cut`, of the same embeddings.
    num_clusters : int
    min_size : int
        For `best_cut`: least number of embeddings of each.

    Returns
    -------
    clusters : (num_embeddings,) array
        Numbered from 0: as many as wanted, or as there are embeddings.
    """
    if len(embeddings) > _MANY:
        return best_cut(embeddings, dendrogram, num_clusters, min_size)
    merges = _numbered(linkage(embeddings, method="average", metric="cosine"))
    return cut_dendrogram(merges, len(merges) - num_clusters + 0.5)


def merge_into(embeddings: np.ndarray, clusters: np.ndarray, num_clusters: int) -> np.ndarray:
    """Clusters merged two by two, those first whose scatter grows least, until as many as wanted are left

    Merging clusters a and b, of n_a and n_b embeddings, adds n_a n_b / (n_a + n_b) times the squared distance of their
    centroids to the scatter (Ward, 1963).

    Parameters
    ----------
    embeddings : (num_embeddings, dimension) array
    clusters : (num_embeddings,) array
        Numbered from 0.
    num_clusters : int
        Wanted number of clusters.

    Returns
    -------
    clusters : (num_embeddings,) array
        Numbered from 0.
    """
    sizes, means = np.bincount(clusters).astype(float), centroids_of(embeddings, clusters)
    merged = clusters.copy()
    while len(sizes) > num_clusters:
        growth = np.outer(sizes, sizes) / np.add.outer(sizes, sizes) * cdist(means, means, metric="sqeuclidean")
        np.fill_diagonal(growth, np.inf)
        kept, gone = sorted(np.unravel_index(growth.argmin(), growth.shape))
        means[kept] = (sizes[[kept, gone]] @ means[[kept, gone]]) / sizes[[kept, gone]].sum()
        sizes[kept] += sizes[gone]
        sizes, means = np.delete(sizes, gone), np.delete(means, gone, axis=0)
        merged[merged == gone] = kept
        merged[merged > gone] -= 1
    return merged


def absorb_small(embeddings: np.ndarray, clusters: np.ndarray, min_size: float, metric: str = "cosine") -> np.ndarray:
    """Clusters whose small ones are given to the large ones with the nearest centroids

    Parameters
    ----------
    embeddings : (num_embeddings, dimension) array
    clusters : (num_embeddings,) array
        Numbered from 0. At least one must be large.
    min_size : float
        Number of embeddings of a large cluster.
    metric : str, optional
        Metric of SciPy. Defaults to "cosine".

    Returns
    -------
    clusters : (num_embeddings,) array
        Numbered from 0, large ones in their order.
    """
    is_large = np.bincount(clusters) >= min_size
    means = centroids_of(embeddings, clusters)
    number = np.cumsum(is_large) - 1
    if not is_large.all():
        number[~is_large] = cdist(means[~is_large], means[is_large], metric=metric).argmin(axis=1)
    return number[clusters]


def centroids_of(embeddings: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Means of the embeddings of each cluster, (num_clusters, dimension)"""
    return np.stack([embeddings[clusters == cluster].mean(axis=0) for cluster in range(clusters.max() + 1)])


def _scatter(embeddings: np.ndarray, clusters: np.ndarray) -> float:
    return float(np.square(embeddings - centroids_of(embeddings, clusters)[clusters]).sum())
