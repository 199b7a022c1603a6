import itertools
import pickle
import warnings
from unittest import mock

import numpy as np
import pytest
import scipy.cluster.hierarchy
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pyannote.audio.core.plda import PLDA
from pyannote.audio.pipelines import clustering as upstream
from pyannote.audio.pipelines.utils import SpeakerDiarizationMixin
from pyannote.core import SlidingWindow, SlidingWindowFeature

from pyannote_prune.pipelines import clustering, dendrogram, reconstruction
from pyannote_prune.pipelines.clustering import PortablePLDA, save_memory
from pyannote_prune.pipelines.dendrogram import linkage
from pyannote_prune.pipelines.reconstruction import ClusteredSegmentations
from pyannote_prune.pipelines.rules import ClusteringRules

CHUNKS = SlidingWindow(start=0.0, duration=2.0, step=0.5)
FRAMES = SlidingWindow(start=0.0, duration=0.04, step=0.02)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("method", ["centroid", "ward", "average"])
def test_linkage(method, missing, monkeypatch):
    monkeypatch.setattr(dendrogram, "_MANY", 10)
    if missing:
        monkeypatch.setattr(dendrogram, "fastcluster", None)
    embeddings = np.random.default_rng(0).normal(size=(60, 8))
    wanted = scipy.cluster.hierarchy.linkage(embeddings, method=method, metric="euclidean")
    np.testing.assert_allclose(linkage(embeddings, method=method, metric="euclidean"), wanted, atol=1e-9)


def conversation(seed, num_speakers, num_chunks, dimension):
    """Embeddings around as many speakers, some missing, and who is active when."""
    rng = np.random.default_rng(seed)
    speakers = rng.normal(size=(num_speakers, dimension))
    embeddings = speakers[rng.integers(num_speakers, size=(num_chunks, 3))]
    embeddings = embeddings + rng.uniform(0.1, 1) * rng.normal(size=embeddings.shape)
    embeddings[rng.random((num_chunks, 3)) < 0.1] = np.nan
    embeddings[0, 0] = speakers[0]
    data = (rng.random((num_chunks, 99, 3)) > rng.uniform(0.4, 0.7, size=(num_chunks, 1, 3))).astype(np.float32)
    data[0] = [1, 0, 0]
    return embeddings, SlidingWindowFeature(data, CHUNKS)


def between(least, most, number=None):
    return {"num_clusters": number, "min_clusters": least, "max_clusters": most}


# told a number, ours differs: see test_told_number
BOUNDS = st.one_of(
    st.tuples(st.integers(1, 4), st.integers(1, 6)).map(lambda pair: between(pair[0], sum(pair))),
    st.just(between(1, np.inf)),
)


def assert_same(actual, wanted):
    for mine, theirs in zip(actual, wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-9)


@given(
    seed=st.integers(0, 10_000),
    num_speakers=st.integers(1, 6),
    num_chunks=st.integers(1, 40),
    method=st.sampled_from(["average", "centroid", "complete", "ward"]),
    threshold=st.floats(0.2, 1.5),
    min_cluster_size=st.integers(1, 12),
    bounds=BOUNDS,
)
@settings(max_examples=150, deadline=None)
def test_same_agglomerative_clusters_as_upstream(
    seed, num_speakers, num_chunks, method, threshold, min_cluster_size, bounds
):
    embeddings, segmentations = conversation(seed, num_speakers, num_chunks, dimension=16)
    speaking, _, _ = upstream.BaseClustering().filter_embeddings(embeddings, segmentations)
    # of no more embeddings than that, the number is known
    assume(bounds["min_clusters"] == 1 or bounds["min_clusters"] < len(speaking))
    parameters = {"method": method, "min_cluster_size": min_cluster_size, "threshold": threshold}
    theirs = upstream.AgglomerativeClustering(metric="cosine")
    ours = save_memory(theirs)
    assert type(ours) is clustering.AgglomerativeClustering
    with warnings.catch_warnings(), mock.patch.object(dendrogram, "_MANY", 10):
        warnings.simplefilter("ignore")
        actual, wanted = (
            one.instantiate(parameters)(embeddings.copy(), segmentations=segmentations, **bounds)
            for one in (ours, theirs)
        )
    assert_same(actual, wanted)


@pytest.fixture(scope="module")
def plda(tmp_path_factory):
    """Transforms of random numbers, of full rank."""
    directory, rng = tmp_path_factory.mktemp("plda"), np.random.default_rng(0)
    mean1, mean2, mu, noise = (0.1 * rng.normal(size=size) for size in (16, 8, 8, (8, 8)))
    np.savez(directory / "xvec_transform.npz", mean1=mean1, mean2=mean2, lda=rng.normal(size=(16, 8)))
    np.savez(directory / "plda.npz", mu=mu, tr=np.eye(8) + noise, psi=rng.uniform(1, 5, 8))
    return directory


@given(
    seed=st.integers(0, 10_000),
    num_speakers=st.integers(1, 6),
    num_chunks=st.integers(1, 40),
    threshold=st.floats(0.5, 0.8),
    constrained=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_same_vbx_clusters_as_upstream(plda, seed, num_speakers, num_chunks, threshold, constrained):
    embeddings, segmentations = conversation(seed, num_speakers, num_chunks, dimension=16)
    speaking, _, _ = upstream.BaseClustering().filter_embeddings(embeddings, segmentations)
    # clusters a single embedding, or none, whatever it is told
    assume(len(speaking) > 1)
    theirs = upstream.VBxClustering(PLDA.from_pretrained(plda), constrained_assignment=constrained)
    ours = save_memory(theirs)
    assert type(ours) is clustering.VBxClustering
    parameters = {"threshold": threshold, "Fa": 0.07, "Fb": 0.8}
    with mock.patch.object(dendrogram, "_MANY", 10):
        actual, wanted = (
            one.instantiate(parameters)(embeddings.copy(), segmentations=segmentations, **between(1, np.inf))
            for one in (ours, theirs)
        )
    assert_same(actual, wanted)


def test_pldas_can_be_pickled(plda):
    embeddings = np.random.default_rng(0).normal(size=(5, 16))
    wanted = PLDA.from_pretrained(plda)
    actual = pickle.loads(pickle.dumps(PortablePLDA.from_pretrained(plda)))
    np.testing.assert_array_equal(actual(embeddings), wanted(embeddings))
    np.testing.assert_array_equal(actual.phi, wanted.phi)


@given(
    seed=st.integers(0, 10_000),
    num_speakers=st.integers(1, 6),
    num_chunks=st.integers(3, 40),
    number=st.integers(1, 8),
    min_cluster_size=st.integers(1, 12),
    method=st.sampled_from(["AgglomerativeClustering", "VBxClustering"]),
)
@settings(max_examples=100, deadline=None)
def test_told_number(plda, seed, num_speakers, num_chunks, number, min_cluster_size, method):
    """As many clusters, or as many as there are embeddings."""
    embeddings, segmentations = conversation(seed, num_speakers, num_chunks, dimension=16)
    ours, num_embeddings = clustering_of(method, plda, min_cluster_size), 0
    chosen, _, _ = ours.filter_embeddings(embeddings, segmentations)
    num_embeddings = len(chosen)
    assume(num_embeddings > 1)
    # embeddings that are equal cannot be told apart
    assume(len(np.unique(chosen, axis=0)) == num_embeddings)
    hard, soft, centroids = ours(embeddings, segmentations=segmentations, **between(number, number, number))
    assert len(centroids) == soft.shape[2] == min(number, num_embeddings)
    assert hard.max() < number


def clustering_of(method, plda, min_cluster_size=12, **rules):
    if method == "AgglomerativeClustering":
        theirs = upstream.AgglomerativeClustering(metric="cosine")
        parameters = {"method": "centroid", "min_cluster_size": min_cluster_size, "threshold": 0.7}
    else:
        theirs = upstream.VBxClustering(PLDA.from_pretrained(plda))
        parameters = {"threshold": 0.6, "Fa": 0.07, "Fb": 0.8}
    return save_memory(theirs, ClusteringRules(**rules)).instantiate(parameters)


@pytest.mark.parametrize("method", ["AgglomerativeClustering", "VBxClustering"])
@pytest.mark.parametrize("sizes", [(40, 40), (60, 9, 9), (50, 30, 10, 6), (30, 25, 20, 15, 10)])
def test_told_the_true_number(method, sizes, tmp_path):
    """Clusters are the speakers, however unequal, among a few embeddings of nobody."""
    rng = np.random.default_rng(len(sizes))
    truth = np.concatenate([np.repeat(np.arange(len(sizes)), sizes), np.full(3, -1)])
    speakers = 3 * np.linalg.qr(rng.normal(size=(16, 16)))[0]
    embeddings = np.concatenate([speakers[truth[:-3]], rng.normal(size=(3, 16))]) + 0.4 * rng.normal(
        size=(len(truth), 16)
    )
    order = rng.permutation(len(truth))
    segmentations = SlidingWindowFeature(np.ones((len(truth), 99, 1)), CHUNKS)
    # of embeddings as they are
    np.savez(tmp_path / "xvec_transform.npz", mean1=np.zeros(16), mean2=np.zeros(16), lda=np.eye(16))
    np.savez(tmp_path / "plda.npz", mu=np.zeros(16), tr=3 * np.eye(16), psi=np.full(16, 8.0))
    ours = clustering_of(method, tmp_path)
    hard, _, _ = ours(embeddings[order, np.newaxis], segmentations=segmentations, **between(*3 * [len(sizes)]))
    pairs = {pair for pair in zip(truth[order].tolist(), hard[:, 0].tolist()) if pair[0] >= 0}
    assert len(pairs) == len({cluster for _, cluster in pairs}) == len(sizes)


@given(seed=st.integers(0, 10_000), found=st.integers(1, 6), number=st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_merge_into(seed, found, number):
    """Each merge is the one, of all pairs, with the least scatter."""
    rng = np.random.default_rng(seed)
    clusters = rng.permutation(np.concatenate([np.arange(found), rng.integers(found, size=20)]))
    embeddings = rng.normal(size=(len(clusters), 4)) + clusters[:, np.newaxis]

    def scatter(candidate):
        groups = (embeddings[candidate == cluster] for cluster in np.unique(candidate))
        return sum(np.square(group - group.mean(axis=0)).sum() for group in groups)

    wanted = clusters
    for left in range(found, number, -1):
        pairs = itertools.combinations(range(left), 2)
        merged = [np.where(wanted == second, first, wanted) for first, second in pairs]
        wanted = np.unique(min(merged, key=scatter), return_inverse=True)[1]
    np.testing.assert_array_equal(dendrogram.merge_into(embeddings, clusters, number), wanted)


@pytest.mark.parametrize("method", ["AgglomerativeClustering", "VBxClustering"])
def test_told_fewer(method, plda):
    """Speakers that were found are merged, none is split."""
    embeddings, segmentations = conversation(3, num_speakers=5, num_chunks=40, dimension=16)
    ours = clustering_of(method, plda, min_cluster_size=1, constrained_assignment=False)
    found, _, centroids = ours(embeddings.copy(), segmentations=segmentations, **between(1, np.inf))
    told, _, _ = ours(embeddings.copy(), segmentations=segmentations, **between(2, 2, 2))
    chunks, speakers = ours.filter_embeddings(embeddings, segmentations)[1:]
    pairs = set(zip(found[chunks, speakers].tolist(), told[chunks, speakers].tolist()))
    assert len(centroids) > 2
    assert len({new for _, new in pairs}) == 2
    assert len(pairs) == len({old for old, _ in pairs})


@pytest.mark.parametrize("method", ["AgglomerativeClustering", "VBxClustering"])
@pytest.mark.parametrize("times", [1, 6])
def test_ghosts(method, times, tmp_path):
    """Two speakers, however long they talk, and a few embeddings of nobody, the more the longer."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "xvec_transform.npz", mean1=np.zeros(16), mean2=np.zeros(16), lda=np.eye(16))
    np.savez(tmp_path / "plda.npz", mu=np.zeros(16), tr=3 * np.eye(16), psi=np.full(16, 8.0))
    speakers = 3 * np.linalg.qr(rng.normal(size=(16, 16)))[0]
    truth = np.repeat([0, 1, 2, 3], np.array([150, 100, 4, 4]) * times)
    embeddings = (speakers[truth] + 0.3 * rng.normal(size=(len(truth), 16)))[:, np.newaxis]
    segmentations = SlidingWindowFeature(np.ones((len(truth), 99, 1)), CHUNKS)
    found = {}
    for share in (0.0, 0.03):
        ours = clustering_of(method, tmp_path, min_speaker_share=share)
        _, _, centroids = ours(embeddings.copy(), segmentations=segmentations, **between(1, np.inf))
        found[share] = len(centroids)
    assert found[0.03] == 2
    # of agglomerative clustering, as many as reach its least number of chunks
    assert found[0.0] == (2 if times == 1 and method == "AgglomerativeClustering" else 4)


def test_number_of_speakers_of_any_length(tmp_path):
    """As many of a recording that goes on for long: there is more evidence that one in two rooms is two."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "xvec_transform.npz", mean1=np.zeros(16), mean2=np.zeros(16), lda=np.eye(16))
    np.savez(tmp_path / "plda.npz", mu=np.zeros(16), tr=2 * np.eye(16), psi=np.full(16, 8.0))
    speakers = 3 * np.linalg.qr(rng.normal(size=(16, 16)))[0][:2]
    rooms = np.repeat(speakers, 2, axis=0) + 0.5 * rng.normal(size=(4, 16))
    found = {}
    for times, size in itertools.product((1, 20), (None, 40)):
        embeddings = np.repeat(rooms, 10 * times, axis=0)
        embeddings = (embeddings + 0.1 * rng.normal(size=embeddings.shape))[:, np.newaxis]
        segmentations = SlidingWindowFeature(np.ones((len(embeddings), 99, 1)), CHUNKS)
        ours = clustering_of("VBxClustering", tmp_path, reference_size=size)
        found[times, size] = len(ours(embeddings, segmentations=segmentations, **between(1, np.inf))[2])
    assert found[1, None] == found[1, 40] == found[20, 40] < found[20, None]


@pytest.mark.parametrize("number", [1, 2, 5, 12, 30])
def test_average_cut(number):
    """Clusters of SciPy where heights differ; the wanted number where they are equal, too."""
    embeddings = np.random.default_rng(0).normal(size=(12, 4))
    tree = linkage(embeddings, "centroid", "euclidean")
    hierarchy = scipy.cluster.hierarchy
    wanted = hierarchy.fcluster(hierarchy.linkage(embeddings, "average", "cosine"), number, "maxclust")
    found = dendrogram.average_cut(embeddings, tree, number, 1)
    assert ((found[:, None] == found) == (wanted[:, None] == wanted)).all()
    alike = np.ones((12, 4))
    assert len(np.unique(dendrogram.average_cut(alike, tree, number, 1))) == min(number, 12)
    with mock.patch.object(dendrogram, "_MANY", 10):
        assert len(np.unique(dendrogram.average_cut(embeddings, tree, number, 1))) == min(number, 12)


def test_best_cut_of_many():
    """Compares only some of thousands of cuts, and knows none of fewer embeddings than clusters."""
    embeddings = np.random.default_rng(0).normal(size=(900, 3))
    tree = linkage(embeddings, "centroid", "euclidean")
    for number in (1, 2, 7, 900):
        assert len(np.unique(dendrogram.best_cut(embeddings, tree, number, 1))) == number
    assert (
        len(np.unique(dendrogram.best_cut(embeddings[:2], linkage(embeddings[:2], "centroid", "euclidean"), 5, 1))) == 2
    )


@given(seed=st.integers(0, 10_000), num_chunks=st.integers(1, 9), num_clusters=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_reconstruction_chunk_by_chunk(seed, num_chunks, num_clusters):
    rng = np.random.default_rng(seed)
    segmentations = SlidingWindowFeature((rng.random((num_chunks, 99, 3)) > 0.5).astype(np.float32), CHUNKS)
    hard_clusters = rng.choice([-2, *range(num_clusters)], size=(num_chunks, 3))
    hard_clusters[0, 0] = num_clusters - 1
    count = SpeakerDiarizationMixin.speaker_count(segmentations, FRAMES, warm_up=(0.0, 0.0))

    # by hand, all at once
    whole = np.full((num_chunks, 99, num_clusters), np.nan)
    for chunk, cluster in np.ndindex(num_chunks, num_clusters):
        speakers = hard_clusters[chunk] == cluster
        if speakers.any():
            whole[chunk, :, cluster] = segmentations.data[chunk][:, speakers].max(axis=1)
    wanted = SpeakerDiarizationMixin.to_diarization(SlidingWindowFeature(whole, CHUNKS), count)
    with mock.patch.object(reconstruction, "_BLOCK", 20):
        actual = reconstruction.to_diarization(ClusteredSegmentations(segmentations, hard_clusters), count)
    np.testing.assert_array_equal(actual.data, wanted.data)
    assert vars(actual.sliding_window) == vars(wanted.sliding_window)
