import csv
import io
import json
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyannote.core import Annotation, Segment
from pyannote.database.util import load_rttm

from pyannote_prune.pipelines.output import (
    FORMATS,
    speaker_totals,
    to_audacity,
    to_csv,
    to_json,
    to_milliseconds,
    to_rttm,
    to_srt,
    to_text,
    to_textgrid,
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


def test_srt(diarization):
    cues = to_srt(diarization, DURATION).strip().split("\n\n")
    assert cues[0].splitlines() == ["1", "00:00:00,000 --> 00:00:10,000", "A"]
    assert cues[3].splitlines() == ["4", "01:00:00,000 --> 01:00:20,000", "B"]
    assert len(cues) == len(TURNS)


def test_csv(diarization):
    diarization = diarization.rename_labels({"B": 'B, "the other"'})
    rows = list(csv.DictReader(io.StringIO(to_csv(diarization, DURATION))))
    read = [(float(row["start"]), float(row["end"]), row["speaker"]) for row in rows]
    assert read == [(start, end, {"A": "A", "B": 'B, "the other"'}[speaker]) for start, end, speaker in TURNS]


def test_text(diarization):
    assert to_text(diarization, DURATION).splitlines()[1:3] == [
        "00:00:08.000  00:00:13.000  B",
        "01:00:00.000  01:00:05.000  A",
    ]


def tiers_of(text):
    """Intervals (start, end, text) by tier, as Praat reads its long text format."""
    tiers = {}
    for tier in re.split(r"\n    item \[\d+\]:", text)[1:]:
        name = re.search(r'name = "(.*)"', tier)[1]
        size = int(re.search(r"intervals: size = (\d+)", tier)[1])
        found = re.findall(r'\[\d+\]:\n +xmin = ([\d.]+)\n +xmax = ([\d.]+)\n +text = "(.*)"', tier)
        assert len(found) == size
        tiers[name] = [(float(start), float(end), text) for start, end, text in found]
    return tiers


def test_textgrid(diarization):
    text = to_textgrid(diarization, DURATION)
    assert text.startswith('File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\nxmax = 3700.000\n')
    assert tiers_of(text)["A"] == [(0, 10, "A"), (10, 3600, ""), (3600, 3605, "A"), (3605, 3700, "")]
    assert tiers_of(text)["B"][0] == (0, 8, "")
    quoted = to_textgrid(diarization.rename_labels({"A": 'A "x"'}), DURATION)
    assert 'name = "A ""x"""' in quoted


@given(
    st.lists(st.tuples(st.floats(0, 50), st.floats(0, 20), st.sampled_from("ABC"))),
    st.floats(0.1, 60),
)
def test_tiers_of_a_textgrid_are_whole(turns, duration):
    annotation = Annotation(uri="meeting")
    for track, (start, length, speaker) in enumerate(turns):
        annotation[Segment(start, start + length), track] = speaker
    text = to_textgrid(annotation, duration)
    whole = float(re.search(r"xmax = ([\d.]+)", text)[1])
    for speaker, intervals in tiers_of(text).items():
        assert (intervals[0][0], intervals[-1][1]) == (0, whole)
        assert all(end == after for (_, end, _), (after, _, _) in pairwise(intervals))
        assert all(start < end for start, end, _ in intervals)
        spoken = sum(end - start for start, end, name in intervals if name)
        assert spoken == pytest.approx(to_milliseconds(annotation).label_duration(speaker), abs=1e-6)


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
