"""Pipelines converted from DiariZen repositories cluster as the original does."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from pyannote.audio import Pipeline
from pyannote.core import Annotation, SlidingWindow, SlidingWindowFeature

from pyannote_prune.errors import InputError
from pyannote_prune.pipelines import convert
from pyannote_prune.pipelines.rules import ClusteringRules
from tests.conftest import FIXTURES

# of one recording: what the original's clustering is given, and what it makes of it
ORIGINAL = FIXTURES / "clustering"
SETTINGS = json.loads((ORIGINAL / "settings.json").read_text())
DURATION = 60


@pytest.fixture(scope="module")
def recording():
    with np.load(ORIGINAL / "sim00.npz") as arrays:
        return dict(arrays)


@pytest.fixture
def converted(tmp_path, untrained):
    """Convert a repository with given settings of clustering."""

    def make(settings, plda="plda"):
        source = shutil.copytree(FIXTURES / "base-pruned", tmp_path / "source")
        text, _, _ = (source / "config.toml").read_text().partition("[clustering.args]")
        lines = (f"{name} = {json.dumps(value)}" for name, value in settings.items())
        (source / "config.toml").write_text(text + "\n".join(["[clustering.args]", *lines]))
        shutil.copytree(ORIGINAL / plda, source / "plda")
        return convert(source, tmp_path / "converted", embedding=untrained / "embedding")

    return make


def diarize(directory, segmentations, embeddings, monkeypatch, **bounds):
    """Annotation and clusters of a pipeline, of segmentations and embeddings that are given."""
    pipeline = Pipeline.from_pretrained(directory)
    monkeypatch.setattr(pipeline, "get_segmentations", lambda file, hook=None: segmentations)
    monkeypatch.setattr(pipeline, "get_embeddings", lambda *_, **__: embeddings.copy())
    found = []
    reconstruct = pipeline.reconstruct
    monkeypatch.setattr(pipeline, "reconstruct", lambda *args: (found.append(args[1]), reconstruct(*args))[1])
    file = {"waveform": torch.zeros(1, DURATION * 16000), "sample_rate": 16000, "uri": "sim00"}
    return pipeline(file, **bounds).speaker_diarization, found


def same_up_to_names(ours, theirs):
    pairs = set(zip(ours, theirs, strict=True))
    return len(pairs) == len({own for own, _ in pairs}) == len({other for _, other in pairs})


@pytest.mark.parametrize(("name", "plda"), [*((name, "plda") for name in SETTINGS), ("vbx", "plda2")])
def test_clusters_and_turns_of_the_original(name, plda, recording, converted, monkeypatch):
    chunks = SlidingWindow(start=0.0, duration=float(recording["duration"]), step=float(recording["step"]))
    segmentations = SlidingWindowFeature(recording["segmentations"].astype(np.float32), chunks)
    directory = converted(SETTINGS[name], plda)
    diarization, found = diarize(directory, segmentations, recording["embeddings"], monkeypatch)

    wanted = recording[f"{name}_clusters" if plda == "plda" else f"{name}_{plda}_clusters"]
    assert same_up_to_names(found[0].ravel().tolist(), wanted.ravel().tolist())
    if plda == "plda":
        turns = sorted((*segment, speaker) for segment, _, speaker in diarization.itertracks(yield_label=True))
        theirs = sorted(
            (*turn, label) for turn, label in zip(recording[f"{name}_turns"].tolist(), recording[f"{name}_labels"])
        )
        np.testing.assert_allclose([turn[:2] for turn in turns], [turn[:2] for turn in theirs], atol=1e-6)
        assert same_up_to_names([turn[2] for turn in turns], [turn[2] for turn in theirs])


@pytest.mark.parametrize("name", ["ahc13", "vbx"])
def test_silence(name, recording, converted, monkeypatch):
    """On which the original stops with an error."""
    chunks = SlidingWindow(start=0.0, duration=2.0, step=0.2)
    silence = SlidingWindowFeature(np.zeros((291, 99, 3), dtype=np.float32), chunks)
    diarization, _ = diarize(converted(SETTINGS[name]), silence, recording["embeddings"], monkeypatch)
    assert diarization == Annotation(uri="sim00")


def test_rules_are_in_the_configuration(converted):
    rules = yaml.safe_load((converted(SETTINGS["vbx"]) / "config.yaml").read_text())["pipeline"]["params"]
    assert rules["clustering_rules"] == {
        "min_solo_ratio": 0.1,
        "fall_back_to_all": True,
        "constrained_assignment": True,
        "assign_silent_speakers": True,
        "unassigned_as_speaker": True,
    }
    # of no effect in the original
    assert not {"min_speakers", "max_speakers"} & rules.keys()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"min_solo": 0.1}, "clustering_rules has no min_solo, only .*min_solo_ratio"),
        ({"min_solo_ratio": 2}, "min_solo_ratio of clustering_rules must be between 0 and 1, got 2"),
        ({"fall_back_to_all": "yes"}, "fall_back_to_all of clustering_rules must be true or false, got 'yes'"),
    ],
)
def test_unknown_rules(rules, message):
    with pytest.raises(InputError, match=message):
        ClusteringRules.read(rules)
