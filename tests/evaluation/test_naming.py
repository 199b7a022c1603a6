"""Rates of right, wrong and unknown names."""

import numpy as np
import pytest
import soundfile
from pyannote.audio.pipelines.speaker_diarization import DiarizeOutput
from pyannote.core import Annotation, Segment

from pyannote_prune.errors import InputError
from pyannote_prune.evaluation import naming
from pyannote_prune.evaluation.naming import Heard, calibrate, score
from pyannote_prune.pipelines import EnrolledVoices

VOICES = EnrolledVoices(["ann", "ben"], np.eye(3)[:2], np.ones(3))


def towards(voice, distance):
    """Embedding of a voice, 0 or 1, at a cosine distance, and at 1 from the other one."""
    embedding = np.zeros(3)
    embedding[voice], embedding[2] = 1 - distance, np.sqrt(1 - (1 - distance) ** 2)
    return embedding


def heard(uri, *speakers):
    """A conversation in which each speaker (person, seconds, embedding) has one turn."""
    annotation, start = Annotation(uri=uri), 0
    for number, (_, seconds, _) in enumerate(speakers):
        annotation[Segment(start, start + seconds)] = f"SPEAKER_{number:02d}"
        start += seconds
    output = DiarizeOutput(annotation, annotation.copy(), np.array([embedding for *_, embedding in speakers]))
    return Heard(output, {f"SPEAKER_{number:02d}": person for number, (person, *_) in enumerate(speakers)})


def test_rates():
    conversations = [
        heard("a", ("ann", 3, towards(0, 0.1)), ("ben", 1, towards(1, 0.45))),
        heard("b", ("ann", 4, towards(0, 0.15)), ("cat", 5, towards(1, 0.35))),
        heard("c", ("ben", 2, towards(0, 0.55)), ("dan", 5, towards(1, 0.95))),
    ]
    results = score(conversations, VOICES, seed=7)
    rows = {row["threshold"]: row for row in results.rows}
    # none of the distances of two different people, the least of which is 0.35, is below
    assert results.about["threshold"] == 0.35
    assert (results.about["enrolled"], results.about["speakers"], results.about["seed"]) == (2, 6, 7)
    assert list(rows) == [0.2, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8]

    def rates(threshold):
        row = rows[threshold]
        return [pytest.approx(row[key]) for key in ("right", "wrong", "unknown", "strangers", "accepted", "rejected")]

    # of 10 s of ann and ben, and 10 s of others; of 8 comparisons with another voice, and 4 with one's own
    assert rates(0.2) == [70, 0, 30, 0, 0, 100 / 4 * 2]
    assert rates(0.4) == [70, 0, 30, 50, 100 / 8, 100 / 4 * 2]
    assert rates(0.5) == [80, 0, 20, 50, 100 / 8, 100 / 4]
    assert rates(0.6) == [80, 20, 0, 50, 100 / 8 * 2, 100 / 4]


def test_rates_of_links():
    """Of pairs of speakers in different conversations, one person or two."""
    ann, ben, other = np.eye(3)
    conversations = [heard("a", ("ann", 1, ann), ("ben", 1, ben)), heard("b", ("ann", 1, ann), ("cat", 1, ben))]
    for row in score(conversations, VOICES).rows:
        assert (row["linked"], row["mixed"]) == (100, pytest.approx(100 / 3))
    conversations = [heard("a", ("ann", 1, ann)), heard("b", ("ann", 1, ben), ("cat", 1, other))]
    for row in score(conversations, VOICES).rows:
        assert (row["linked"], row["mixed"]) == (0, 0)
    assert score(conversations[:1], VOICES).rows[0]["linked"] is None


def test_conversations_are_of_other_recordings_than_enrollment(tmp_path, monkeypatch):
    """Half of the people are enrolled, with recordings that no conversation is made of."""
    rng = np.random.default_rng(0)
    for speaker in range(6):
        for number in range(3 if speaker else 1):
            path = tmp_path / f"p{speaker}" / f"{number}.wav"
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path, rng.normal(size=16000) / 20, 16000)
    used = {}

    def enroll(recordings, pipeline, progress):
        used["enrolled"] = recordings
        return EnrolledVoices(list(recordings), np.eye(len(recordings)), np.ones(len(recordings)))

    class Simulator:
        def __init__(self, voices, **options):
            used["simulated"] = voices.files
            self.real = real(voices, reverberation=0.0, telephone=0.0, **options)

        def conversation(self, duration, rng):
            return self.real.conversation(2.0, rng)

    def pipeline(file):
        annotation = Annotation(uri=file["uri"])
        annotation[Segment(0, 2)] = "SPEAKER_00"
        return DiarizeOutput(annotation, annotation.copy(), np.ones((1, len(used["enrolled"]))))

    real = naming.Simulator
    monkeypatch.setattr(naming, "enroll", enroll)
    monkeypatch.setattr(naming, "Simulator", Simulator)
    results = calibrate(pipeline, tmp_path, num_conversations=2)
    enrolled, simulated = used["enrolled"], used["simulated"]
    assert len(enrolled) == 3
    assert set(enrolled) < set(simulated) == {f"p{speaker}" for speaker in range(6)}
    assert "p0" not in enrolled
    for name, files in enrolled.items():
        assert len(files) == 1
        assert not set(files) & set(simulated[name])
    assert results.rows == calibrate(pipeline, tmp_path, num_conversations=2).rows
    assert results.about["conversations"] == 2


def test_too_few_people(tmp_path):
    for name in "ann", "ben":
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "a.wav", np.zeros(100), 16000)
    soundfile.write(tmp_path / name / "b.wav", np.zeros(100), 16000)
    with pytest.raises(InputError, match=r"two people or more with two recordings or more, got 30 .* and 1 such"):
        calibrate(None, tmp_path)
