"""People by name on the command line: `enroll`, `diarize --voices` and `--same-names`."""

import json

import numpy as np
import pytest
import soundfile
from pyannote.audio.pipelines.speaker_diarization import DiarizeOutput
from pyannote.core import Annotation, Segment

from pyannote_prune.pipelines import pretrained

PEOPLE = {"ann": [1.0, 0.0, 0.1], "ben": [0.0, 1.0, 0.0], "cat": [0.1, 0.0, 1.0], "dan": [-1.0, 0.0, 0.0]}
# who speaks in which recording, a second each
CALLS = {"monday": ["cat", "ann"], "sunday": ["dan", "cat"], "tuesday": ["ann", "dan", "ben"]}


class Scripted:
    """A pipeline that recognizes the people in a recording by the name of its file."""

    legacy = False

    def __init__(self):
        self._embedding = self.Embedding()
        self.asked = []

    class Embedding:
        sample_rate = 16000

        def __call__(self, waveforms):
            return np.ones((1, 3), np.float32)

    def __call__(self, file, num_speakers=None, hook=None, **bounds):
        soundfile.info(file if isinstance(file, str) else file["audio"])
        uri = file.split("/")[-1].partition(".")[0] if isinstance(file, str) else file["uri"]
        self.asked.append(uri)
        annotation = Annotation(uri=uri)
        people = CALLS.get(uri, [uri])
        for start, _ in enumerate(people):
            annotation[Segment(start, start + 1)] = f"SPEAKER_{start:02d}"
        # louder or softer
        embeddings = [(start + 1) * np.array(PEOPLE[person]) for start, person in enumerate(people)]
        return DiarizeOutput(annotation, annotation.copy(), np.array(embeddings))


@pytest.fixture
def scripted(monkeypatch):
    pipeline = Scripted()
    monkeypatch.setattr(pretrained, "load_pipeline", lambda *_: pipeline)
    return pipeline


@pytest.fixture
def room(tmp_path, scripted, monkeypatch):
    """People, and calls between them."""
    monkeypatch.chdir(tmp_path)
    for name, files in (("people", ["ann", "ben"]), ("calls", CALLS)):
        (tmp_path / name).mkdir()
        for file in files:
            soundfile.write(tmp_path / name / f"{file}.wav", np.zeros(4000), 1000)
    return tmp_path


def names(out):
    return {
        content["uri"]: [turn["speaker"] for turn in content["turns"]] for content in map(json.loads, out.splitlines())
    }


def test_enrolled_people_are_named(run, room):
    code, out, err = run("enroll", "people", "made/voices.safetensors")
    assert (code, out) == (0, "")
    assert err == "made/voices.safetensors: 2 voices (ann, ben).\n"
    assert [path.name for path in (room / "made").iterdir()] == ["voices.safetensors"]
    for voices in "made/voices.safetensors", "people":
        code, out, _ = run("diarize", "calls", "--voices", voices, "--format", "json", "-q")
        assert code == 0
        assert names(out) == {
            "monday": ["SPEAKER_00", "ann"],
            "sunday": ["SPEAKER_00", "SPEAKER_01"],
            "tuesday": ["ann", "SPEAKER_00", "ben"],
        }
        ann = next(about for about in json.loads(out.splitlines()[0])["speakers"] if about["speaker"] == "ann")
        assert ann["embedding"] == pytest.approx([2.0, 0.0, 0.2])
        assert ann["distances"] == {"ann": 0.0, "ben": 1.0}
        assert list(ann) == ["speaker", "turns", "seconds", "share", "embedding", "distances"]
    code, out, _ = run("diarize", "calls/monday.wav", "--voices", "people", "-q")
    assert [line.split()[7] for line in out.splitlines()] == ["SPEAKER_00", "ann"]
    # no biometric data unless asked for
    code, out, _ = run("diarize", "calls/monday.wav", "--format", "json", "-q")
    assert list(json.loads(out)["speakers"][0]) == ["speaker", "turns", "seconds", "share"]


@pytest.mark.parametrize("order", [("monday", "sunday", "tuesday"), ("tuesday", "monday", "sunday")])
def test_same_names(run, room, order):
    calls = [f"calls/{call}.wav" for call in order]
    code, out, _ = run("diarize", *calls, "--same-names", "--voices", "people", "--format", "json", "-q")
    assert code == 0
    assert list(names(out)) == list(order)
    assert names(out) == {
        "monday": ["SPEAKER_00", "ann"],
        "sunday": ["SPEAKER_01", "SPEAKER_00"],
        "tuesday": ["ann", "SPEAKER_01", "ben"],
    }
    code, out, _ = run("diarize", *calls, "--same-names", "--format", "json", "-q")
    assert names(out) == {
        "monday": ["SPEAKER_00", "SPEAKER_01"],
        "sunday": ["SPEAKER_02", "SPEAKER_00"],
        "tuesday": ["SPEAKER_01", "SPEAKER_02", "SPEAKER_03"],
    }
    assert all(about["distances"] == {} for about in json.loads(out.splitlines()[0])["speakers"])


def test_same_names_beside_a_broken_recording(run, room):
    (room / "calls" / "sunday.wav").write_text("no audio")
    code, _, err = run("diarize", "calls", "--same-names", "-o", "out", "--plot", "svg", "-q")
    assert code == 2
    assert err.splitlines()[-1] == "1 of 3 recordings failed: calls/sunday.wav."
    assert sorted(path.name for path in (room / "out").iterdir()) == [
        "manifest.jsonl", "monday.rttm", "monday.svg", "tuesday.rttm", "tuesday.svg",
    ]  # fmt: skip


def test_same_names_are_of_all_recordings(run, room, scripted):
    """Names of recordings that are finished may change once there are others."""
    assert run("diarize", "calls/monday.wav", "--same-names", "-o", "out")[0] == 0
    scripted.asked.clear()
    code, _, err = run("diarize", "calls", "--same-names", "-o", "out")
    assert (code, scripted.asked) == (0, ["monday", "sunday", "tuesday"])
    assert "1 of 3 recordings are finished already in out (diarized again for --same-names)." in err
    scripted.asked.clear()
    assert run("diarize", "calls", "--same-names", "-o", "out")[0] == 0
    assert scripted.asked == []


def test_voice_threshold(run, room):
    def named(*options):
        code, out, _ = run("diarize", "calls/monday.wav", "--voices", "people", "--format", "json", "-q", *options)
        assert code == 0
        return names(out)["monday"]

    assert named("--voice-threshold", 0) == ["SPEAKER_00", "SPEAKER_01"]
    assert named("--voice-threshold", 2) == ["ben", "ann"]


def test_bad_input(run, room, scripted):
    (room / "voices.txt").write_text("no voices")
    (room / "empty").mkdir()
    call = "calls/monday.wav"
    for arguments, told in [
        (("enroll", "people", "calls"), "calls is a directory: name a file for the voices"),
        (("enroll", "empty", "voices"), "empty holds no voices: expected NAME.wav"),
        (("diarize", call, "--voices", "nowhere"), "There are no enrolled voices nowhere"),
        (("diarize", call, "--voices", "voices.txt"), "voices.txt holds no enrolled voices"),
        (("diarize", call, "--voices", "people", "--voice-threshold", "nan"), "--voice-threshold must be a cosine"),
        (("diarize", call, "--voices", "people", "--voice-threshold", "3"), "from 0 to 2, got 3.0"),
        (("diarize", call, "--voice-threshold", "1"), "--voice-threshold is for --voices and --same-names"),
        (("diarize", call, "--voices", "people", "--channel", "each"), "leave out --voices and --same-names"),
        (("diarize", call, "--same-names", "--channel", "each"), "leave out --voices and --same-names"),
    ]:
        code, out, err = run(*arguments)
        assert (code, out) == (2, ""), arguments
        assert len(err.splitlines()) == 1, err
        assert err.startswith("Error: "), arguments
        assert told in err, arguments
    scripted.legacy = True
    for option in ("--voices", "people"), ("--same-names",):
        code, _, err = run("diarize", call, *option)
        assert (code, len(err.splitlines())) == (2, 1)
        assert f"{option[0]} is not possible with" in err
