"""Formats of a diarization, and the totals of its speakers."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from pyannote.core import Annotation, Segment


@dataclass(frozen=True)
class SpeakerTotal:
    """What a speaker says in all

    Parameters
    ----------
    speaker : str
    turns : int
    seconds : float
        Of speech, to the millisecond.
    share : float
        Of the seconds of all speakers: shares sum up to 1, where there is any speech.
    """

    speaker: str
    turns: int
    seconds: float
    share: float


def speaker_totals(diarization: Annotation) -> list[SpeakerTotal]:
    """What each speaker says in all, by name."""
    turns = Counter(speaker for _, _, speaker in _turns(diarization))
    seconds = {speaker: diarization.label_duration(speaker) for speaker in diarization.labels()}
    whole = sum(seconds.values())
    return [
        SpeakerTotal(speaker, turns[speaker], round(spoken, 3), round(spoken / whole, 4))
        for speaker, spoken in seconds.items()
    ]


def to_milliseconds(diarization: Annotation) -> Annotation:
    """Same turns, whose starts and ends are whole milliseconds: what is shorter than half of one is left out

    Durations are in RTTM, ends in other formats: rounded each by themselves, they would differ.
    """
    rounded = Annotation(uri=diarization.uri)
    for segment, track, speaker in diarization.itertracks(yield_label=True):
        start, end = round(segment.start, 3), round(segment.end, 3)
        if start < end:
            rounded[Segment(start, end), track] = speaker
    return rounded


def to_rttm(diarization: Annotation, duration: float) -> str:
    """Lines of NIST's Rich Transcription Time Marked format, as pyannote.core writes them."""
    return to_milliseconds(diarization).to_rttm()


def to_json(diarization: Annotation, duration: float) -> str:
    """One JSON object in one line

    Its "uri"; "duration" and "overlap" in seconds; "speakers", the fields of
    [`SpeakerTotal`][pyannote_prune.pipelines.output.SpeakerTotal]; "turns", in the order of their starts,
    with "start" and "end" in seconds.
    """
    diarization = to_milliseconds(diarization)
    content = {
        "uri": diarization.uri,
        "duration": round(duration, 3),
        "overlap": round(diarization.get_overlap().duration(), 3),
        "speakers": [asdict(total) for total in speaker_totals(diarization)],
        "turns": [{"start": start, "end": end, "speaker": speaker} for start, end, speaker in _turns(diarization)],
    }
    return json.dumps(content) + "\n"


def to_audacity(diarization: Annotation, duration: float) -> str:
    """A label track of Audacity: start and end in seconds, and speaker, separated by tabs."""
    return "".join(f"{start:.3f}\t{end:.3f}\t{speaker}\n" for start, end, speaker in _turns(diarization))


def to_webvtt(diarization: Annotation, duration: float) -> str:
    """Subtitles (W3C WebVTT) that show who speaks: one cue per turn, in the voice of its speaker."""
    cues = ["WEBVTT\n"]
    for start, end, speaker in _turns(diarization):
        name = html.escape(speaker, quote=False)
        cues.append(f"{_timestamp(start)} --> {_timestamp(end)}\n<v {name}>{name}</v>\n")
    return "\n".join(cues)


def _timestamp(seconds: float) -> str:
    whole, milliseconds = divmod(round(1000 * seconds), 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}.{milliseconds:03d}"


def _turns(diarization: Annotation) -> Iterator[tuple[float, float, str]]:
    for segment, _, speaker in to_milliseconds(diarization).itertracks(yield_label=True):
        yield segment.start, segment.end, speaker


@dataclass(frozen=True)
class Format:
    """A way to write a diarization

    Parameters
    ----------
    extension : str
        Of its files.
    write : callable
        From a diarization and the duration of its recording, in seconds, to text.
    concatenates : bool
        Whether texts of several recordings make one text.
    """

    extension: str
    write: Callable[[Annotation, float], str]
    concatenates: bool


FORMATS = {
    "rttm": Format("rttm", to_rttm, concatenates=True),
    "json": Format("json", to_json, concatenates=True),
    "audacity": Format("txt", to_audacity, concatenates=False),
    "webvtt": Format("vtt", to_webvtt, concatenates=False),
}
