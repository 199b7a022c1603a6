"""Final turns are those that would be found at the end, told piece by piece."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pyannote_prune.pipelines.live_speakers import NOBODY, Window
from pyannote_prune.pipelines.live_turns import LiveTurns, Turn

FRAMES, HOP, STEP, NAMES = 20, 0.02, 5, 3


def windows_of(seed, number):
    generator = np.random.default_rng(seed)
    for index in range(number):
        binary = (generator.random((FRAMES, 2)) < generator.choice([0.05, 0.5, 0.95], 2)).astype(np.float32)
        names = np.where(binary.any(axis=0), generator.permutation(NAMES)[:2], NOBODY)
        start = (index * STEP + STEP - FRAMES) * HOP
        yield Window(start, binary, binary, np.full((2, 4), np.nan), names, 0.1)


@given(st.integers(0, 1000), st.integers(1, 12), st.integers(0, 30))
@settings(max_examples=50, deadline=None)
def test_pieces_make_the_whole(seed, number, late):
    """Without smoothing, and when nobody is renamed: whatever the latency, once all windows over a frame are there"""
    windows, whole, parts = list(windows_of(seed, number)), *(LiveTurns(HOP, 0.0125, 0.0, 0.0, 2) for _ in "ab")
    end = number * STEP
    whole.advance(windows, NAMES, end, end)
    told = []
    for index in range(number):
        time = (index + 1) * STEP
        final, tentative = parts.advance(windows[: index + 1], NAMES, time, max(0, time - FRAMES - late))
        told += final
        until = 0.0125 + parts.num_final * HOP
        assert all(turn.end <= until + 1e-6 for turn in told)
        assert all(turn.start >= until - 1e-6 for turn in tentative)
    parts.advance(windows, NAMES, end, end)
    assert sorted(map(str, parts.final)) == sorted(map(str, whole.final))


def test_most_speakers_at_once_and_smoothing():
    binary = np.zeros((FRAMES, 2), np.float32)
    binary[2:9, 0], binary[11:18, 0], binary[5:7, 1] = 1, 1, 1
    window = Window(0.0, binary, binary, np.full((2, 4), np.nan), np.array([0, 1]), 0.1)
    plain = LiveTurns(HOP, 0.01, 0.0, 0.0, 2)
    final, tentative = plain.advance([window], 2, FRAMES, FRAMES)
    assert not tentative
    assert final == [Turn(0.05, 0.19, "SPEAKER_00"), Turn(0.11, 0.15, "SPEAKER_01"), Turn(0.23, 0.37, "SPEAKER_00")]
    smooth = LiveTurns(HOP, 0.01, 0.05, 0.04, 2)
    assert smooth.advance([window], 2, FRAMES, FRAMES)[0] == [Turn(0.05, 0.37, "SPEAKER_00")]
    alone = LiveTurns(HOP, 0.01, 0.0, 0.0, 1)
    assert {turn.speaker for turn in alone.advance([window], 2, FRAMES, FRAMES)[0]} == {"SPEAKER_00"}
