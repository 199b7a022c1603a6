"""Names of speakers: of enrolled voices, and the same across recordings."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyannote.audio.pipelines.speaker_diarization import DiarizeOutput
from pyannote.core import Annotation, Segment

from pyannote_prune.errors import InputError
from pyannote_prune.pipelines import EnrolledVoices, describe_voices, identify, link_speakers
from pyannote_prune.pipelines.identification import DEFAULT_THRESHOLD

DIMENSION = 4


def output_of(embeddings, uri="call", speakers=None):
    """A turn per speaker, of whole seconds, in the order of embeddings; names are of another order."""
    speakers = speakers or [f"SPEAKER_{number:02d}" for number in range(len(embeddings))]
    annotation = Annotation(uri=uri)
    for start, speaker in enumerate(speakers):
        annotation[Segment(start, start + 1)] = speaker
    rows = np.array(embeddings, dtype=float)[np.argsort(speakers)] if speakers else np.zeros((0, DIMENSION))
    return DiarizeOutput(annotation, annotation.copy(), rows)


def names_of(output):
    return [speaker for *_, speaker in output.speaker_diarization.itertracks(yield_label=True)]


def heard(output):
    """Embeddings in the order of turns."""
    labels = output.speaker_diarization.labels()
    return np.array([output.speaker_embeddings[labels.index(name)] for name in names_of(output)])


def voices_of(**embeddings):
    return EnrolledVoices(list(embeddings), np.array(list(embeddings.values())), np.ones(DIMENSION))


def random_embeddings(rng, count):
    return rng.normal(size=(count, DIMENSION))


ANN, BEN, CAT = np.eye(DIMENSION)[:3]


def test_close_voices_give_their_names():
    output = output_of([CAT, ANN + 0.1 * BEN, np.ones(DIMENSION)], speakers=["SPEAKER_02", "SPEAKER_00", "SPEAKER_01"])
    named = identify(output, voices_of(ann=ANN, ben=BEN), threshold=0.4)
    assert names_of(named) == ["SPEAKER_00", "ann", "SPEAKER_01"]
    assert named.exclusive_speaker_diarization == named.speaker_diarization
    assert np.array_equal(heard(named), heard(output))
    assert named.speaker_diarization.uri == "call"
    # what was given stays as it was
    assert names_of(output) == ["SPEAKER_02", "SPEAKER_00", "SPEAKER_01"]
    described = describe_voices(named, voices_of(ann=ANN, ben=BEN))
    assert described["ann"]["embedding"] == [1.0, 0.1, 0.0, 0.0]
    assert described["ann"]["distances"]["ann"] == pytest.approx(1 - 1 / math.sqrt(1.01), abs=1e-4)
    assert described["SPEAKER_00"]["distances"] == {"ann": 1.0, "ben": 1.0}
    assert describe_voices(named)["ann"]["distances"] == {}


def test_a_voice_names_one_speaker():
    """The nearest speaker, unless all are named better otherwise."""
    near, nearer = ANN + 0.3 * CAT, ANN + 0.2 * CAT
    assert names_of(identify(output_of([near, nearer]), voices_of(ann=ANN), 0.5)) == ["SPEAKER_00", "ann"]
    # the first is nearest to ann, but only it can be ben
    first, second = ANN + 0.9 * BEN, ANN + 1.2 * CAT
    assert names_of(identify(output_of([first, second]), voices_of(ann=ANN, ben=BEN), 0.5)) == ["ben", "ann"]


@pytest.mark.parametrize("missing", [np.zeros(DIMENSION), np.full(DIMENSION, np.nan)])
def test_speakers_without_embeddings_stay_unknown(missing):
    output = output_of([missing, ANN])
    voices = voices_of(ann=ANN, ben=BEN)
    named = identify(output, voices, 2.0)
    assert names_of(named) == ["SPEAKER_00", "ann"]
    assert describe_voices(named, voices)["SPEAKER_00"] == {"embedding": None, "distances": {}}
    first, second = link_speakers([output, output_of([missing], "other")], threshold=2.0)
    assert not set(names_of(first)) & set(names_of(second))


def test_no_speaker_at_all():
    nobody = DiarizeOutput(Annotation(uri="a"), Annotation(uri="a"), np.zeros((0, DIMENSION)))
    assert names_of(identify(nobody, voices_of(ann=ANN))) == []
    assert describe_voices(nobody, voices_of(ann=ANN)) == {}
    assert [names_of(output) for output in link_speakers([nobody, output_of([ANN], "b")])] == [[], ["SPEAKER_00"]]
    assert link_speakers([]) == []


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), threshold=st.floats(0, 2))
def test_names_depend_on_no_order(seed, threshold):
    rng = np.random.default_rng(seed)
    num_speakers, num_voices = rng.integers(1, 6, size=2)
    speakers, people = random_embeddings(rng, num_speakers), random_embeddings(rng, num_voices)
    names = [f"person{number}" for number in range(num_voices)]
    named = identify(output_of(speakers), EnrolledVoices(names, people, np.ones(DIMENSION)), threshold)

    order = rng.permutation(num_voices)
    voices = EnrolledVoices([names[index] for index in order], 5 * people[order], np.ones(DIMENSION))
    labels = [f"SPEAKER_{number:02d}" for number in rng.permutation(num_speakers)]
    again = identify(output_of(speakers, speakers=labels), voices, threshold)
    assert names_of(again) == names_of(named)
    assert np.array_equal(heard(again), speakers)
    assert len(set(names_of(named))) == num_speakers
    for name, about in describe_voices(named, voices).items():
        if name in names:
            assert about["distances"][name] <= threshold
    # naming twice changes nothing
    assert names_of(identify(again, voices, threshold)) == names_of(named)


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), threshold=st.floats(0, 2))
def test_links_depend_on_no_order(seed, threshold):
    rng = np.random.default_rng(seed)
    outputs = [
        output_of(random_embeddings(rng, rng.integers(0, 4)), uri=f"call{number}") for number in range(rng.integers(5))
    ]
    linked = link_speakers(outputs, threshold=threshold)
    order = rng.permutation(len(outputs))
    again = link_speakers([outputs[index] for index in order], threshold=threshold)
    assert [names_of(again[list(order).index(index)]) for index in range(len(outputs))] == list(map(names_of, linked))
    for before, after in zip(outputs, linked, strict=True):
        assert len(set(names_of(after))) == len(names_of(before))
        assert np.array_equal(heard(after), heard(before))
    # numbered without gaps
    numbered = sorted({name for output in linked for name in names_of(output)})
    assert numbered == [f"SPEAKER_{number:02d}" for number in range(len(numbered))]


def test_an_unknown_voice_has_one_name_in_all_recordings():
    voices = voices_of(ann=ANN)
    recordings = [[ANN, BEN], [CAT, BEN + 0.2 * CAT], [BEN, ANN, BEN + 0.1 * ANN]]
    outputs = [identify(output_of(speakers, f"call{n}"), voices, 0.3) for n, speakers in enumerate(recordings)]
    linked = link_speakers(outputs, voices.names, 0.3)
    # BEN is there twice in the last: two speakers of one recording are two people
    assert list(map(names_of, linked[:2])) == [["ann", "SPEAKER_00"], ["SPEAKER_01", "SPEAKER_00"]]
    assert names_of(linked[2]) in (["SPEAKER_00", "ann", "SPEAKER_02"], ["SPEAKER_02", "ann", "SPEAKER_00"])


@pytest.mark.parametrize("threshold", [math.nan, -0.1, 2.1, math.inf, "close", None, True])
def test_thresholds_that_are_no_distance(threshold):
    for name in (
        lambda output: identify(output, voices_of(ann=ANN), threshold),
        lambda output: link_speakers([output], (), threshold),
    ):
        with pytest.raises(InputError, match="threshold must be a cosine distance, from 0 to 2, got"):
            name(output_of([ANN]))


@pytest.mark.parametrize("legacy", [True, False])
def test_outputs_that_cannot_be_named(legacy):
    annotation = output_of([ANN]).speaker_diarization
    output = annotation if legacy else DiarizeOutput(annotation, annotation)
    for name in (
        lambda: identify(output, voices_of(ann=ANN)),
        lambda: link_speakers([output]),
        lambda: describe_voices(output),
    ):
        with pytest.raises(InputError, match="Speakers without embeddings cannot be named: set `legacy: false`"):
            name()
    with pytest.raises(InputError, match="embeddings of 2 numbers, voices of 4"):
        identify(output_of([ANN[:2]]), voices_of(ann=ANN))


def test_the_default_threshold_is_the_one_whose_rates_are_documented():
    page = (Path(__file__).parents[2] / "docs" / "voices.md").read_text()
    assert re.findall(r"^threshold: ([\d.]+)", page, re.MULTILINE) == [f"{DEFAULT_THRESHOLD:.2f}"]
