import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyannote.core import Annotation, Segment
from pyannote.database.util import load_rttm

from pyannote_prune.pipelines.output import (
    FORMATS,
    speaker_totals,
    to_audacity,
    to_json,
    to_rttm,
    to_webvtt,
)

DURATION = 3700.0
# by hand: A speaks 10 + 5 s, B 5 + 20 s; both at once from 8 to 10 and from 3600 to 3605
TURNS = [(0.0, 10.0, "A"), (8.0, 13.0, "B"), (3600.0, 3605.0, "A"), (3600.0, 3620.0, "B")]


@pytest.fixture
def diarization():
    annotation = Annotation(uri="meeting")
    for track, (start, end, speaker) in enumerate(reversed(TURNS)):
        annotation[Segment(start, end), track] = speaker
    return annotation


@pytest.fixture
def silence():
    return Annotation(uri="silence")


def test_rttm(diarization, tmp_path):
    path = tmp_path / "meeting.rttm"
    path.write_text(to_rttm(diarization, DURATION))
    read = load_rttm(path)["meeting"]
    assert [(*segment, speaker) for segment, _, speaker in read.itertracks(yield_label=True)] == TURNS


def test_json(diarization):
    text = to_json(diarization, DURATION)
    assert text.count("\n") == 1
    assert json.loads(text) == {
        "uri": "meeting",
        "duration": 3700.0,
        "overlap": 7.0,
        "speakers": [
            {"speaker": "A", "turns": 2, "seconds": 15.0, "share": 0.375},
            {"speaker": "B", "turns": 2, "seconds": 25.0, "share": 0.625},
        ],
        "turns": [{"start": start, "end": end, "speaker": speaker} for start, end, speaker in TURNS],
    }


@given(
    turns=st.lists(
        st.tuples(st.floats(0, 4000), st.floats(0.001, 60), st.sampled_from("ABC")),
        min_size=1,
        max_size=8,
        unique_by=lambda turn: turn[0],
    )
)
def test_formats_agree(turns):
    """To the millisecond."""
    annotation = Annotation(uri="meeting")
    for start, duration, speaker in turns:
        annotation[Segment(start, start + duration), speaker] = speaker
    content = json.loads(to_json(annotation, 5000.0))
    wanted = [(round(1000 * turn["start"]), round(1000 * turn["end"]), turn["speaker"]) for turn in content["turns"]]
    rttm = [line.split() for line in to_rttm(annotation, 5000.0).splitlines()]
    starts = [(round(1000 * float(line[3])), round(1000 * float(line[4])), line[7]) for line in rttm]
    assert [(start, start + duration, speaker) for start, duration, speaker in starts] == wanted
    cues = re.findall(r"(\d+):(\d+):(\d+)\.(\d+) --> (\d+):(\d+):(\d+)\.(\d+)\n<v (\w)>", to_webvtt(annotation, 5000.0))
    times = [[int(number) for number in cue[:8]] for cue in cues]
    ends = [
        tuple(3_600_000 * hours + 60_000 * minutes + 1000 * seconds + rest for hours, minutes, seconds, rest in pair)
        for pair in ((time[:4], time[4:]) for time in times)
    ]
    assert [(*pair, cue[8]) for pair, cue in zip(ends, cues, strict=True)] == wanted


def test_audacity(diarization):
    lines = to_audacity(diarization, DURATION).splitlines()
    read = [line.split("\t") for line in lines]
    assert [(float(start), float(end), speaker) for start, end, speaker in read] == TURNS


def test_webvtt(diarization):
    header, *cues = to_webvtt(diarization, DURATION).strip().split("\n\n")
    assert header == "WEBVTT"
    read = []
    for cue in cues:
        times, text = cue.splitlines()
        match = re.fullmatch(r"(\d\d):(\d\d):(\d\d\.\d{3}) --> (\d\d):(\d\d):(\d\d\.\d{3})", times)
        start, end = (3600 * int(h) + 60 * int(m) + float(s) for h, m, s in (match.groups()[:3], match.groups()[3:]))
        speaker = re.fullmatch(r"<v (.+)>(.+)</v>", text).group(1)
        read.append((start, end, speaker))
    assert read == TURNS


def test_webvtt_escapes_names():
    annotation = Annotation(uri="meeting")
    annotation[Segment(59.9996, 61.5)] = "R&D <Ann>"
    assert to_webvtt(annotation, 70.0) == (
        "WEBVTT\n\n00:01:00.000 --> 00:01:01.500\n<v R&amp;D &lt;Ann&gt;>R&amp;D &lt;Ann&gt;</v>\n"
    )


def test_no_speech(silence):
    texts = {name: format.write(silence, 5.0) for name, format in FORMATS.items()}
    assert texts["rttm"] == texts["audacity"] == ""
    assert texts["webvtt"] == "WEBVTT\n"
    content = json.loads(texts["json"])
    assert (content["duration"], content["speakers"], content["turns"]) == (5.0, [], [])
    assert speaker_totals(silence) == []
