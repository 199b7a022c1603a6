"""Recordings are diarized as by DiariZen's own code, from the repository to the annotation."""

import pytest
import soundfile
import torch
from pyannote.audio import Pipeline
from pyannote.audio.models.embedding import wespeaker
from pyannote.core import Segment, Timeline
from pyannote.database.util import load_rttm
from pyannote.metrics.diarization import DiarizationErrorRate

from pyannote_prune.pipelines import convert
from tests.conftest import FIXTURES, SAMPLE
from tests.pipelines.original import SETTINGS, narrow_resnet, write_embedding, write_repository


@pytest.fixture
def embedding(tmp_path, monkeypatch):
    monkeypatch.setattr(wespeaker, "ResNet34", narrow_resnet)
    samples, _ = soundfile.read(SAMPLE, dtype="float32")
    return write_embedding(tmp_path / "embedding.bin", torch.from_numpy(samples))


@pytest.mark.parametrize("clustering", SETTINGS)
def test_end_to_end(clustering, embedding, tmp_path):
    repository = write_repository(tmp_path / "repository", clustering)
    pipeline = Pipeline.from_pretrained(convert(repository, tmp_path / "converted", embedding=embedding))
    diarization = pipeline(SAMPLE).speaker_diarization
    with open(tmp_path / "ours.rttm", "w") as file:
        diarization.write_rttm(file)
    ours = load_rttm(tmp_path / "ours.rttm")["sample"]
    theirs = load_rttm(FIXTURES / "original" / f"{clustering}.rttm")[clustering]
    error = DiarizationErrorRate(collar=0.0, skip_overlap=False)
    assert round(100 * error(theirs, ours, uem=Timeline([Segment(0, 30)])), 2) == 0.0
    assert len(ours.labels()) == len(theirs.labels()) > 1
