"""What a session of live diarization told, and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pyannote.core import Annotation

from pyannote_prune.errors import InputError
from pyannote_prune.models.audio import Audio, unreadable
from pyannote_prune.pipelines.streaming import Update

# seconds of a push
_PUSH = 0.1


@dataclass
class LiveFigures:
    """How often names changed, and how long they took

    Parameters
    ----------
    seconds : float
        Of audio.
    changes : int
        Tentative turns whose speaker was no longer among those who spoke in the middle of it one update later.
    speech : float
        Seconds of final turns, those of several speakers at once counted each.
    waited : float
        Sum over them of the seconds of audio that had come since.
    """

    seconds: float = 0.0
    changes: int = 0
    speech: float = 0.0
    waited: float = 0.0

    def count(self, before: Update | None, update: Update) -> None:
        """Take one more update, and the one before it"""
        self.seconds = update.time
        for turn in update.final:
            duration = turn.end - turn.start
            self.speech += duration
            self.waited += duration * (update.time - (turn.start + turn.end) / 2)
        for turn in before.tentative if before is not None else ():
            middle = (turn.start + turn.end) / 2
            now = {each.speaker for each in (*update.final, *update.tentative) if each.start <= middle < each.end}
            self.changes += bool(now) and turn.speaker not in now

    def as_dict(self) -> dict[str, float]:
        """The figures, by name"""
        return asdict(self)


def follow_live(
    pipeline: Any, file: Mapping[str, Any], latency: float, **bounds: int
) -> tuple[Annotation, LiveFigures]:
    """Push a recording through a session, a tenth of a second at a time

    Parameters
    ----------
    pipeline : SpeakerDiarization
    file : mapping
        pyannote file.
    latency : float
        In seconds.
    **bounds
        Number of speakers, or bounds on it.

    Returns
    -------
    diarization : Annotation
        All turns as they were when they had to be final.
    figures : LiveFigures

    Raises
    ------
    InputError
        When the pipeline has no sessions, or when the recording is unreadable or lacks the channel of the pipeline.
    """
    if not hasattr(pipeline, "stream"):
        raise InputError(f"A {type(pipeline).__name__} takes whole recordings alone, no audio as it arrives.")
    channel = pipeline.channel if file.get("channel") is None else file["channel"]
    try:
        waveform, sample_rate = Audio(mono="downmix")({**file, "channel": channel})
    except Exception as error:  # soundfile and FFmpeg fail in many ways
        raise unreadable(file["uri"], error) from error
    session = pipeline.stream(latency, sample_rate, uri=file["uri"], **bounds)
    figures, before = LiveFigures(), None
    for samples in waveform[0].split(round(_PUSH * sample_rate)):
        update = session.push(samples)
        figures.count(before, update)
        before = update
    session.end()
    return session.diarization, figures
