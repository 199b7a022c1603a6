"""A corpus of short recordings, and diarizers whose recordings end the process that they are in."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
from pyannote.core import Annotation, Segment

from pyannote_prune.corpora import Diarizer
from pyannote_prune.corpora.diarizer import Outcome
from pyannote_prune.corpora.jobs import find_jobs
from pyannote_prune.pipelines.output import to_rttm
from tests.conftest import SAMPLE

ROOT = Path(__file__).parents[2]


@dataclass
class Scripted(Diarizer):
    """Says of a recording that somebody speaks all the time, at once; its name tells what goes wrong, and where."""

    diary: str = ""

    def __reduce__(self):
        return Scripted, tuple(vars(self)[name] for name in self.__dataclass_fields__)

    def setup(self):
        if self.pipeline == "killer":
            os.kill(os.getpid(), signal.SIGKILL)

    def made_by(self):
        return {"pipeline": "scripted", "settings": {}}

    def process(self, job, hook=None):
        with open(self.diary, "a") as file:
            file.write(f"{job.uri}\n")
        times = Path(self.diary).read_text().split().count(job.uri)
        if job.uri.startswith("kills") or (job.uri.startswith("stumbles") and times == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if job.uri.startswith("hangs"):
            time.sleep(600)
        duration = soundfile.info(job.path).duration
        diarization = Annotation(uri=job.uri)
        diarization[Segment(0, duration)] = "SPEAKER_00"
        return Outcome(job.uri, 0.5, duration, diarization, {"rttm": to_rttm(diarization, duration).encode()})


@pytest.fixture
def corpus(tmp_path):
    """Makes a folder with a recording of each name."""

    def make(*names):
        folder = tmp_path / "recordings"
        folder.mkdir()
        for index, name in enumerate(names):
            soundfile.write(folder / f"{name}.wav", np.zeros(8000 + 800 * index), 8000)
        return find_jobs([str(folder)])

    return make


@pytest.fixture
def cuts(tmp_path):
    """Makes a folder with that many recordings of real speech, of 2 to 5 seconds."""

    def make(number):
        samples, rate = soundfile.read(SAMPLE)
        folder = tmp_path / "cuts"
        folder.mkdir()
        draw = np.random.default_rng(0)
        for index in range(number):
            begin = draw.integers(6 * rate, 24 * rate)
            soundfile.write(
                folder / f"{index:04d}.wav", samples[begin : begin + draw.integers(2 * rate, 5 * rate)], rate
            )
        return folder

    return make


def rttms_of(directory):
    return {path.name: path.read_bytes() for path in directory.glob("*.rttm")}
