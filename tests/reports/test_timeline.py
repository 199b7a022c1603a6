"""Pictures of diarizations."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pyannote.core import Annotation, Segment

from pyannote_prune.reports.timeline import GREY, plot_timeline, speaker_lanes


def conversation(speakers):
    """Speaker n speaks for n seconds, one after the other."""
    annotation, start = Annotation(uri="meeting"), 0.0
    for number in range(1, speakers + 1):
        annotation[Segment(start, start + number)] = f"SPEAKER_{number}"
        start += number
    return annotation


def test_natural_order():
    assert list(speaker_lanes(conversation(11))) == [f"SPEAKER_{number}" for number in range(1, 12)]
    mixed = Annotation()
    for second, name in enumerate(("b", "7", "CHANNEL_10", "CHANNEL_9", "a2x10", "a2x9", "")):
        mixed[Segment(second, second + 1)] = name
    assert list(speaker_lanes(mixed)) == ["", "7", "CHANNEL_9", "CHANNEL_10", "a2x9", "a2x10", "b"]


@given(st.integers(0, 40), st.integers(2, 20))
def test_least_speech_is_summed_up(speakers, most):
    annotation = conversation(speakers)
    lanes = speaker_lanes(annotation, most)
    assert len(lanes) == min(speakers, most)
    assert sum(lane.duration() for lane in lanes.values()) == sum(range(speakers + 1))
    if speakers > most:
        assert list(lanes)[-1] == f"{speakers - most + 1} others"
        assert next(iter(lanes)) == f"SPEAKER_{speakers - most + 2}"


def test_a_page_of_lanes(tmp_path):
    plot_timeline(conversation(60), np.zeros(60 * 61 * 50), 100, tmp_path / "many.svg")
    drawn = (tmp_path / "many.svg").read_text()
    assert ">41 others</text>" in drawn
    assert GREY in drawn.split('id="axes_2"')[1]
    assert ">SPEAKER_60</text>" in drawn
    assert ">SPEAKER_41</text>" not in drawn
    height = float(drawn.split('height="')[1].split("pt")[0])
    assert height < 12 * 72
