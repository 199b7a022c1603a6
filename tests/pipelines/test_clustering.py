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

from pyannote_prune.pipelines import clustering
from pyannote_prune.pipelines.clustering import ClusteredSegmentations, PortablePLDA, linkage, save_memory

CHUNKS = SlidingWindow(start=0.0, duration=2.0, step=0.5)
FRAMES = SlidingWindow(start=0.0, duration=0.04, step=0.02)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("method", ["centroid", "ward", "average"])
def test_linkage(method, missing, monkeypatch):
    monkeypatch.setattr(clustering, "_MANY", 10)
    if missing:
        monkeypatch.setattr(clustering, "fastcluster", None)
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


BOUNDS = st.one_of(
    st.integers(1, 6).map(lambda number: between(number, number, number)),
    st.tuples(st.integers(1, 4), st.integers(0, 6)).map(lambda pair: between(pair[0], sum(pair))),
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
    parameters = {"method": method, "min_cluster_size": min_cluster_size, "threshold": threshold}
    theirs = upstream.AgglomerativeClustering(metric="cosine")
    ours = save_memory(theirs)
    assert type(ours) is clustering.AgglomerativeClustering
    with warnings.catch_warnings(), mock.patch.object(clustering, "_MANY", 10):
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
    bounds=BOUNDS,
)
@settings(max_examples=100, deadline=None)
def test_same_vbx_clusters_as_upstream(plda, seed, num_speakers, num_chunks, threshold, constrained, bounds):
    embeddings, segmentations = conversation(seed, num_speakers, num_chunks, dimension=16)
    speaking, _, _ = upstream.BaseClustering().filter_embeddings(embeddings, segmentations)
    # K-means makes no more clusters than there are embeddings
    assume(bounds["min_clusters"] <= len(speaking))
    theirs = upstream.VBxClustering(PLDA.from_pretrained(plda), constrained_assignment=constrained)
    ours = save_memory(theirs)
    assert type(ours) is clustering.VBxClustering
    parameters = {"threshold": threshold, "Fa": 0.07, "Fb": 0.8}
    with mock.patch.object(clustering, "_MANY", 10):
        actual, wanted = (
            one.instantiate(parameters)(embeddings.copy(), segmentations=segmentations, **bounds)
            for one in (ours, theirs)
        )
    assert_same(actual, wanted)


def test_pldas_can_be_pickled(plda):
    embeddings = np.random.default_rng(0).normal(size=(5, 16))
    wanted = PLDA.from_pretrained(plda)
    actual = pickle.loads(pickle.dumps(PortablePLDA.from_pretrained(plda)))
    np.testing.assert_array_equal(actual(embeddings), wanted(embeddings))
    np.testing.assert_array_equal(actual.phi, wanted.phi)


def test_too_few_large_clusters_are_told(capsys):
    """In a warning: standard output is for results."""
    ours = save_memory(upstream.AgglomerativeClustering(metric="cosine"))
    ours.instantiate({"method": "centroid", "min_cluster_size": 20, "threshold": 0.1})
    embeddings = np.concatenate([np.repeat(np.eye(4)[:2], 20, axis=0), np.eye(4)[2:]])[:, np.newaxis]
    segmentations = SlidingWindowFeature(np.ones((len(embeddings), 99, 1)), CHUNKS)
    with pytest.warns(UserWarning, match="2 clusters were found, not 4: a min_cluster_size below 4 may help"):
        ours(embeddings, segmentations=segmentations, num_clusters=4)
    assert capsys.readouterr().out == ""


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
    actual = SpeakerDiarizationMixin.to_diarization(ClusteredSegmentations(segmentations, hard_clusters), count)
    np.testing.assert_array_equal(actual.data, wanted.data)
    assert vars(actual.sliding_window) == vars(wanted.sliding_window)
