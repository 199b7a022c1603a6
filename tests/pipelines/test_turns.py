import numpy as np
import pytest
from pyannote.audio import Pipeline
from pyannote.audio.pipelines.speaker_diarization import DiarizeOutput
from pyannote.core import Annotation, Segment, SlidingWindow, SlidingWindowFeature

from pyannote_prune.pipelines.turns import name_by_appearance, one_at_a_time


def annotate(turns):
    annotation = Annotation(uri="call")
    for track, (start, end, speaker) in enumerate(turns):
        annotation[Segment(start, end), track] = speaker
    return annotation


def test_names_by_appearance():
    """Names change, who is who and whose embedding is whose do not."""
    turns = [(0, 1, "C"), (1, 3, "A"), (2, 4, "C"), (5, 6, "B")]
    output = DiarizeOutput(annotate(turns), annotate(turns[:2]), np.array([[0.0], [1.0], [2.0]]))
    named = name_by_appearance(output)
    wanted = {"C": "SPEAKER_00", "A": "SPEAKER_01", "B": "SPEAKER_02"}
    assert named.speaker_diarization == annotate([(*turn[:2], wanted[turn[2]]) for turn in turns])
    assert named.exclusive_speaker_diarization == annotate([(*turn[:2], wanted[turn[2]]) for turn in turns[:2]])
    # A, B, C -> C, A, B
    assert named.speaker_embeddings.tolist() == [[2.0], [0.0], [1.0]]
    assert name_by_appearance(annotate(turns)) == named.speaker_diarization
    assert name_by_appearance(annotate(turns)).uri == "call"


def test_one_at_a_time():
    """A pause of A that is filled is B's; of what several say, all of it is somebody's."""
    turns = [(0, 10, "A"), (4, 4.4, "B"), (9, 12, "B"), (13, 14, "A")]
    exclusive = one_at_a_time(annotate(turns))
    assert [(*segment, speaker) for segment, _, speaker in exclusive.itertracks(yield_label=True)] == [
        (0, 4, "A"),
        (4, 4.4, "B"),
        (4.4, 9, "A"),
        (9, 12, "B"),
        (13, 14, "A"),
    ]
    assert exclusive.uri == "call"


@pytest.fixture
def pipeline(untrained):
    return Pipeline.from_pretrained(untrained)


def test_exclusive_turns_do_not_overlap(pipeline, short):
    """Though pauses up to half a second are filled, in which others speak."""
    turns = pipeline(short, num_speakers=2).exclusive_speaker_diarization
    assert len(turns.labels()) > 1
    assert not turns.get_overlap()


def durations(pipeline, on, off):
    """Turns of one speaker: 0.1 s, a pause of 0.2 s, 0.4 s, a pause of 1 s, 0.06 s."""
    data = np.zeros((120, 1))
    for start, end in ((5, 10), (20, 40), (90, 93)):
        data[start:end] = 1
    pipeline.instantiate({"segmentation": {"min_duration_on": on, "min_duration_off": off}})
    frames = SlidingWindow(start=0.0, duration=0.02, step=0.02)
    turns = pipeline.to_annotation(SlidingWindowFeature(data, frames), min_duration_off=off)
    return [round(segment.duration, 2) for segment in turns.itersegments()]


@pytest.mark.parametrize(
    ("on", "off", "wanted"),
    [
        (0.0, 0.0, [0.1, 0.4, 0.06]),
        (0.08, 0.0, [0.1, 0.4]),
        (0.2, 0.0, [0.4]),
        (0.0, 0.3, [0.7, 0.06]),
        (0.2, 0.3, [0.7]),
    ],
)
def test_durations(on, off, wanted, pipeline):
    assert durations(pipeline, on, off) == wanted


def test_durations_are_no_parameter_unless_given(pipeline):
    """Of published pipelines."""
    before = pipeline.parameters(instantiated=True)["segmentation"]
    assert before.keys() == {"min_duration_off"}
    pipeline.instantiate({"segmentation": {"min_duration_on": 0.1}})
    assert pipeline.parameters(instantiated=True)["segmentation"] == {"min_duration_on": 0.1, **before}


def test_options(run, untrained, short):
    spoken = {}
    for on in (0, 0.5):
        code, out, _ = run("diarize", short, "-p", untrained, "--min-duration-on", on, "--min-duration-off", 0.1, "-q")
        assert code == 0
        spoken[on] = [float(line.split()[4]) for line in out.splitlines()]
    assert min(spoken[0]) < 0.5
    assert spoken[0.5] == [duration for duration in spoken[0] if duration >= 0.5]


@pytest.mark.parametrize("option", ["--min-duration-on", "--min-duration-off"])
def test_bad_durations(option, run, short):
    assert run("diarize", short, option, 2) == (2, "", f"Error: {option} must be between 0 and 1 second, got 2.0.\n")
