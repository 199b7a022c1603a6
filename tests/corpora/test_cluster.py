"""A Ray cluster on this machine: actors and nodes are lost, and the rest is finished."""

import pytest

from pyannote_prune.corpora import Diarizer
from pyannote_prune.corpora.cluster import connect, diarize_on_ray
from pyannote_prune.errors import InputError
from tests.corpora.conftest import ROOT, Scripted


def test_no_such_cluster():
    pytest.importorskip("ray")
    with pytest.raises(InputError, match=r"--ray 127\.0\.0\.1:1: nothing answers there"):
        connect("127.0.0.1:1")


@pytest.fixture
def nodes(monkeypatch):
    """A cluster of two nodes that this process is connected to, and its second node."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 10**8, "include_dashboard": False}
    )
    second = cluster.add_node(num_cpus=1, object_store_memory=10**8)
    ray.init(cluster.address, log_to_driver=False, logging_level="error")
    yield cluster, second
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
def test_lost_node_and_killed_actor(nodes, corpus, tmp_path):
    cluster, second = nodes
    jobs = corpus("hangs", "kills", "stumbles", *(f"fine{index}" for index in range(20)))
    given = Scripted(diary=str(tmp_path / "diary"))
    outcomes = {}
    for job, outcome in diarize_on_ray(given, jobs, timeout=60):
        outcomes[job.uri] = outcome
        if len(outcomes) == 5:
            cluster.remove_node(second, allow_graceful=False)
    assert outcomes.keys() == {job.uri for job in jobs}
    errors = {uri: outcome.error for uri, outcome in outcomes.items() if outcome.error}
    assert errors.keys() == {"hangs", "kills"}
    assert "took longer than" in errors["hangs"]
    assert "ended 2 processes" in errors["kills"]


@pytest.mark.slow
def test_data_set(nodes, untrained, short):
    import ray.data

    given = {"pipeline": str(untrained)}
    rows = [{"audio_filepath": str(short), "num_speakers": 2}, {"audio_filepath": "nothing.wav", "num_speakers": 2}]
    results = ray.data.from_items(rows).map_batches(Diarizer, fn_constructor_kwargs=given, batch_size=1, concurrency=1)
    found, failed = sorted(results.take_all(), key=lambda row: row["error"] is not None)
    assert (found["speakers"], found["duration"], found["error"]) == (2, 12.0, None)
    assert "No such recording" in failed["error"]
