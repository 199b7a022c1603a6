"""What is scored of live diarization: turns as they were when they had to be final."""

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from pyannote.core import Annotation, Segment

from pyannote_prune.errors import InputError
from pyannote_prune.evaluation.live import follow_live
from pyannote_prune.pipelines.live_turns import Turn
from pyannote_prune.pipelines.streaming import Update


class Scripted:
    """A session that tells a second of speech at each whole second, half a second late, and changes its mind once."""

    def __init__(self, channel=None):
        self.time, self.diarization = 0.0, Annotation(uri="talk")
        self.channel, self.pushed = channel, []

    def stream(self, latency, sample_rate, uri, **bounds):
        self.asked = (latency, sample_rate, uri, bounds)
        return self

    def push(self, samples):
        self.pushed += samples.tolist()
        before, self.time = self.time, round(self.time + len(samples) / 1000, 6)
        final, tentative = [], []
        if int(before - 0.5) < int(self.time - 0.5):
            second = int(self.time - 0.5)
            final = [Turn(second - 1.0, float(second), "SPEAKER_00")]
            self.diarization[Segment(second - 1, second)] = "SPEAKER_00"
        if self.time in (1.2, 1.3, 1.4):
            tentative = [Turn(1.0, 1.2, "SPEAKER_01" if self.time == 1.2 else "SPEAKER_00")]
        return Update(self.time, 0.0, final, tentative)

    def end(self):
        self.diarization[Segment(2.9, 3)] = "SPEAKER_00"


def test_changes_and_delay(tmp_path):
    soundfile.write(tmp_path / "talk.wav", np.zeros((3000, 2)), 1000)
    pipeline = Scripted()
    file = {"uri": "talk", "audio": str(tmp_path / "talk.wav")}
    diarization, figures = follow_live(pipeline, file, 0.5, num_speakers=2)
    assert pipeline.asked == (0.5, 1000, "talk", {"num_speakers": 2})
    assert diarization is pipeline.diarization
    # told at 1.5 and 2.5 s, of seconds whose middles are a second before
    assert figures.as_dict() == pytest.approx({"seconds": 3.0, "changes": 1, "speech": 2.0, "waited": 2.0})


@pytest.mark.parametrize(
    ("own", "of_file", "expected"),
    [(None, {}, 0.25), (1, {}, 0.5), (1, {"channel": None}, 0.5), (1, {"channel": 0}, 0.0)],
)
def test_the_channel_is_that_of_whole_recordings(tmp_path, own, of_file, expected):
    soundfile.write(tmp_path / "talk.wav", np.tile([0, 0.5], (500, 1)), 1000)
    pipeline = Scripted(own)
    follow_live(pipeline, {"uri": "talk", "audio": str(tmp_path / "talk.wav"), **of_file}, 0.5)
    assert pipeline.pushed == [expected] * 500
    with pytest.raises(InputError, match="no channel 2"):
        follow_live(Scripted(2), {"uri": "talk", "audio": str(tmp_path / "talk.wav")}, 0.5)


def test_pipelines_without_sessions_are_refused():
    with pytest.raises(InputError, match="whole recordings alone"):
        follow_live(SimpleNamespace(), {"uri": "talk"}, 0.5)
