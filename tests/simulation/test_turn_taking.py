import itertools

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from pyannote.core import Annotation, Segment

from pyannote_prune.errors import InputError
from pyannote_prune.simulation import TurnTaking
from tests.simulation.test_simulation import FREQUENCIES, RATE, clean, tone


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    """Speakers who never stop."""
    directory = tmp_path_factory.mktemp("voices")
    for name, frequency in FREQUENCIES.items():
        soundfile.write(directory / f"{name}.flac", tone(frequency, 5.0), RATE)
    return directory


def annotate(*turns) -> Annotation:
    """Turns as (speaker, start, end)."""
    annotation = Annotation(uri="meeting")
    for number, (speaker, start, end) in enumerate(turns):
        annotation[Segment(start, end), number] = speaker
    return annotation


def test_what_is_measured():
    """Ana speaks twice, Ben interrupts her, and says "mm-hm" while Cleo speaks."""
    meeting = annotate(("ana", 0, 2), ("ana", 3, 5), ("ben", 4, 6), ("cleo", 7, 12), ("ben", 8, 8.5))
    turns = TurnTaking.from_annotations([meeting])
    assert turns.lengths == pytest.approx((2, 2, 2, 5))
    assert turns.pauses == pytest.approx((1,))
    assert turns.changes == pytest.approx((-1, 1))
    assert turns.backchannels == pytest.approx((0.5,))
    assert turns.backchannel_rate == pytest.approx(1 / 11)
    twice = TurnTaking.from_annotations([meeting, meeting])
    assert twice.lengths == turns.lengths * 2
    assert twice.backchannel_rate == pytest.approx(turns.backchannel_rate)


def test_breaks_are_no_pauses():
    turns = TurnTaking.from_annotations([annotate(("ana", 0, 1), ("ben", 100, 101), ("ben", 201, 202))])
    assert (turns.changes, turns.pauses) == ((5,), (5,))


def test_rttm(tmp_path):
    meeting = annotate(("ana", 0, 2), ("ben", 3, 4))
    path = tmp_path / "meeting.rttm"
    path.write_text(meeting.to_rttm())
    assert TurnTaking.from_rttm(path).changes == pytest.approx((1,))
    with pytest.raises(InputError, match="No such file of annotations"):
        TurnTaking.from_rttm(tmp_path / "nothing.rttm")
    path.write_text("these are no turns\n")
    with pytest.raises(InputError, match=r"meeting\.rttm could not be read as RTTM"):
        TurnTaking.from_rttm(path)
    path.write_text(annotate(("ana", 0, 2)).to_rttm())
    with pytest.raises(InputError, match="turns follow each other: found none"):
        TurnTaking.from_rttm(path)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(0.1, 9), min_size=1, max_size=4),
    st.lists(st.floats(-3, 3), min_size=1, max_size=4),
    st.lists(st.floats(0, 3), max_size=4),
    st.integers(0, 99),
)
def test_draws_are_real_values(lengths, changes, pauses, seed):
    rng = np.random.default_rng(seed)
    turns = TurnTaking(tuple(lengths), tuple(pauses), tuple(changes), (0.3,), 0.5)
    assert turns.length(rng) in lengths
    changed, pause = turns.follow(rng)
    assert pause in (changes if changed else pauses)
    for start, length in turns.interjections(4.0, rng):
        assert 0 <= start <= 4
        assert length == 0.3


def test_conversations_follow_them(voices):
    """Turns of one second that begin 0.3 s before the last one ends, and nobody goes on twice."""
    simulator = clean(voices, turn_taking=TurnTaking((1.0,), (), (-0.3,)), num_speakers=(2, 2))
    conversation = simulator.conversation(20.0, np.random.default_rng(0))
    measured = TurnTaking.from_annotations([conversation.annotation])
    assert not measured.pauses
    assert np.median(measured.lengths) == pytest.approx(1.0, abs=0.05)
    assert np.median(measured.changes) == pytest.approx(-0.3, abs=0.1)


def test_backchannels(voices):
    """In long turns of one speaker at a time, short ones of others."""
    turns = TurnTaking((8.0,), (), (0.5,), (0.4,), 0.25)
    conversation = clean(voices, turn_taking=turns).conversation(60.0, np.random.default_rng(1))
    measured = TurnTaking.from_annotations([conversation.annotation])
    assert len(measured.backchannels) > 4
    # what is silent in a recording is not annotated
    assert np.max(measured.backchannels) == pytest.approx(0.4, abs=0.05)
    alone = clean(voices, turn_taking=turns, num_speakers=(1, 1)).conversation(20.0, np.random.default_rng(1))
    assert len(alone.annotation.labels()) == 1


def test_long_turns_are_made_of_several_recordings(voices):
    simulator = clean(voices, turn_taking=TurnTaking((10.0,), (), (0.0,)), num_speakers=(2, 2))
    conversation = simulator.conversation(30.0, np.random.default_rng(2))
    order = [label for _, _, label in conversation.annotation.itertracks(yield_label=True)]
    changes = sum(one != other for one, other in itertools.pairwise(order))
    assert 2 <= changes <= 3
