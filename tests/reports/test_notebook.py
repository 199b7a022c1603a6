"""Diarizations in notebooks."""

import base64
import io
import sys

import numpy as np
import pytest
import soundfile
from pyannote.core import Annotation, Segment

from pyannote_prune.errors import InputError
from pyannote_prune.reports.notebook import interactive


@pytest.fixture
def annotation():
    annotation = Annotation(uri="meeting")
    annotation[Segment(0.5, 3.0), "a"] = "SPEAKER_01"
    annotation[Segment(2.5, 4.0), 7] = "SPEAKER_00"
    return annotation


def test_widget(annotation, tmp_path):
    pytest.importorskip("ipyannote", reason="ipyannote is not installed")
    # a format and channels that the widget does not read by itself
    samples = 0.5 * np.sin(np.arange(5 * 8000) / 10)
    soundfile.write(tmp_path / "meeting.flac", np.stack([samples, samples], axis=1), 8000)
    widget = interactive(annotation, tmp_path / "meeting.flac")
    turns = [(*segment, speaker) for segment, _, speaker in annotation.itertracks(yield_label=True)]
    assert [(*segment, speaker) for segment, _, speaker in widget.annotation.itertracks(yield_label=True)] == turns
    _, played = widget.children[0].audio_as_base64.split(",")
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(played)))
    assert (rate, heard.shape) == (16000, (5 * 16000,))
    assert np.corrcoef(heard[::2], samples)[0, 1] > 0.99


def test_not_installed(annotation, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipyannote", None)
    with pytest.raises(InputError, match="pip install ipyannote"):
        interactive(annotation, "meeting.wav")
