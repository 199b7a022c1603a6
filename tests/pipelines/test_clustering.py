import numpy as np
import pytest
import scipy.cluster.hierarchy
from hypothesis import given, settings
from hypothesis import strategies as st
from pyannote.audio.pipelines import clustering as upstream
from pyannote.audio.pipelines.utils import SpeakerDiarizationMixin
from pyannote.core import SlidingWindow, SlidingWindowFeature

from pyannote_prune.pipelines import clustering
from pyannote_prune.pipelines.clustering import ClusteredSegmentations, linkage, save_memory

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


@pytest.mark.parametrize("bounds", [{}, {"num_clusters": 4}, {"max_clusters": 2}])
def test_same_clusters_as_upstream(bounds, monkeypatch):
    monkeypatch.setattr(clustering, "_MANY", 10)
    rng = np.random.default_rng(0)
    embeddings = (rng.normal(size=(3, 1, 16)) + 0.4 * rng.normal(size=(3, 60, 16))).reshape(60, 3, 16)
    data = (rng.random((60, 99, 3)) > 0.6).astype(np.float32)
    segmentations = SlidingWindowFeature(data, CHUNKS)
    parameters = {"method": "centroid", "min_cluster_size": 3, "threshold": 0.7}

    def clusters(saving):
        pipeline = upstream.AgglomerativeClustering(metric="cosine").instantiate(parameters)
        if saving:
            save_memory(pipeline)
            monkeypatch.setattr(upstream, "linkage", None)  # not to be used any more
        return pipeline(embeddings.copy(), segmentations=segmentations, **bounds)[0]

    wanted = clusters(saving=False)
    assert wanted.max() > 0
    np.testing.assert_array_equal(clusters(saving=True), wanted)


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
