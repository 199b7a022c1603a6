"""Formats of a diarization, and the totals of its speakers."""

from __future__ import annotations

import csv
import html
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from pyannote.core import Annotation, Segment


@dataclass(frozen=True)
class SpeakerTotal:
    """Total speech of a speaker

    Parameters
    ----------
    speaker : str
    turns : int
    seconds : float
        Duration of speech, to the millisecond.
    share : float
        Share in the seconds of all speakers: shares sum up to 1, if there is any speech.
    """

    speaker: str
    turns: int
    seconds: float
    share: float


def speaker_totals(diarization: Annotation) -> list[SpeakerTotal]:
    """Total speech of each speaker, by name."""
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


def to_json(diarization: Annotation, duration: float, voices: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """One JSON object in one line

    Its "uri"; "duration" and "overlap" in seconds; "speakers", the fields of
    [`SpeakerTotal`][pyannote_prune.pipelines.output.SpeakerTotal]; "turns", in the order of their starts,
    with "start" and "end" in seconds. What `voices` holds of a speaker is added to its fields.
    """
    voices = voices or {}
    diarization = to_milliseconds(diarization)
    content = {
        "uri": diarization.uri,
        "duration": round(duration, 3),
        "overlap": round(diarization.get_overlap().duration(), 3),
        "speakers": [asdict(total) | {**voices.get(total.speaker, {})} for total in speaker_totals(diarization)],
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


def to_srt(diarization: Annotation, duration: float) -> str:
    """Subtitles of SubRip that show who speaks: one per turn."""
    cues = []
    for number, (start, end, speaker) in enumerate(_turns(diarization), start=1):
        times = f"{_timestamp(start)} --> {_timestamp(end)}".replace(".", ",")
        cues.append(f"{number}\n{times}\n{speaker}\n")
    return "\n".join(cues)


def to_csv(diarization: Annotation, duration: float) -> str:
    """Comma-separated values (RFC 4180) under a header: start and end in seconds, and speaker."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["start", "end", "speaker"])
    writer.writerows([f"{start:.3f}", f"{end:.3f}", speaker] for start, end, speaker in _turns(diarization))
    return text.getvalue()


def to_text(diarization: Annotation, duration: float) -> str:
    """Lines for people: start and end in hours, minutes and seconds, and speaker."""
    return "".join(
        f"{_timestamp(start)}  {_timestamp(end)}  {speaker}\n" for start, end, speaker in _turns(diarization)
    )


def to_textgrid(diarization: Annotation, duration: float) -> str:
    """A TextGrid of Praat, in its long text format: an interval tier per speaker, whose pauses are empty."""
    diarization = to_milliseconds(diarization)
    speakers = diarization.labels()
    last = max([round(duration, 3), *(segment.end for segment in diarization.itersegments())])
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {last:.3f}"]
    lines += ["tiers? <exists>", f"size = {len(speakers)}", "item []:"]
    for tier, speaker in enumerate(speakers, start=1):
        name = speaker.replace('"', '""')
        turns = diarization.label_timeline(speaker).support()
        edges = [0.0, *(edge for turn in turns for edge in turn), last]
        # pauses and turns take turns
        parts = [
            (start, end, name if index % 2 else "") for index, (start, end) in enumerate(pairwise(edges)) if start < end
        ]
        lines += [f"    item [{tier}]:", '        class = "IntervalTier"', f'        name = "{name}"']
        lines += ["        xmin = 0", f"        xmax = {last:.3f}", f"        intervals: size = {len(parts)}"]
        for index, (start, end, text) in enumerate(parts, start=1):
            lines += [
                f"        intervals [{index}]:",
                f"            xmin = {start:.3f}",
                f"            xmax = {end:.3f}",
            ]
            lines += [f'            text = "{text}"']
    return "\n".join(lines) + "\n"


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
        Extension of its files.
    write : callable
        From a diarization and the duration of its recording, in seconds, to text. That of JSON takes `voices` as well.
    concatenates : bool
        Whether texts of several recordings make one text.
    """

    extension: str
    write: Callable[..., str]
    concatenates: bool


FORMATS = {
    "rttm": Format("rttm", to_rttm, concatenates=True),
    "json": Format("json", to_json, concatenates=True),
    "audacity": Format("txt", to_audacity, concatenates=False),
    "webvtt": Format("vtt", to_webvtt, concatenates=False),
    "srt": Format("srt", to_srt, concatenates=False),
    "csv": Format("csv", to_csv, concatenates=False),
    "txt": Format("txt", to_text, concatenates=False),
    "textgrid": Format("TextGrid", to_textgrid, concatenates=False),
}
