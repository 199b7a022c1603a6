import io
import json
import os
import shutil
import struct
from functools import partial
from itertools import pairwise
from threading import Thread

import numpy as np
import pytest
import soundfile
from pyannote.audio import Pipeline
from pyannote.audio.pipelines.speaker_diarization import DiarizeOutput
from pyannote.core import Annotation, Segment
from pyannote.database.util import load_rttm

from pyannote_prune.pipelines import fingerprint, pretrained
from pyannote_prune.pipelines.output import to_rttm

TURNS = [(0.0, 4.0, "SPEAKER_00"), (3.0, 6.0, "SPEAKER_01"), (7.0, 8.5, "SPEAKER_00")]
EXCLUSIVE = [(0.0, 3.5, "SPEAKER_00"), (3.5, 6.0, "SPEAKER_01"), (7.0, 8.5, "SPEAKER_00")]


@pytest.fixture
def run(run):
    return partial(run, "diarize")


def annotate(turns, uri):
    annotation = Annotation(uri=uri)
    for track, (start, end, speaker) in enumerate(turns):
        annotation[Segment(start, end), track] = speaker
    return annotation


def turns_of(annotation):
    return [(*segment, speaker) for segment, _, speaker in annotation.itertracks(yield_label=True)]


class Scripted:
    """A pipeline whose answer is known."""

    legacy = False

    def __init__(self):
        self.asked = []

    def __call__(self, file, hook, **bounds):
        soundfile.info(file["audio"])  # an error that is not ours, for what is no audio
        if isinstance(file["audio"], io.BytesIO):
            file["audio"].seek(0)
        self.asked.append(file["uri"])
        hook("segmentation", None, completed=0, total=2)
        hook("segmentation", None, completed=2, total=2)
        hook("speaker_counting", "artifact", file=file)
        return DiarizeOutput(annotate(TURNS, file["uri"]), annotate(EXCLUSIVE, file["uri"]))


@pytest.fixture
def scripted(monkeypatch):
    pipeline = Scripted()
    monkeypatch.setattr(pretrained, "load_pipeline", lambda *_: pipeline)
    monkeypatch.setattr(fingerprint, "fingerprint", lambda *_: "any")
    return pipeline


@pytest.fixture
def folder(tmp_path):
    """Recordings at two depths, one of them broken, and what is no recording."""
    path = tmp_path / "recordings"
    (path / "monday").mkdir(parents=True)
    samples = np.sin(np.arange(9 * 8000) / 10) * np.linspace(0, 1, 9 * 8000)
    soundfile.write(path / "b.wav", samples, 8000)
    soundfile.write(path / "monday" / "a.FLAC", np.stack([samples, samples], axis=1), 8000, format="FLAC")
    (path / "broken.wav").write_text("this is no audio")
    (path / "notes.txt").write_text("not a recording")
    (path / ".b.wav").write_text("not a recording either")
    return path


def files_of(directory):
    """Files about recordings, at any depth."""
    paths = (path for path in directory.rglob("*") if path.is_file() and path.name != "manifest.jsonl")
    return sorted(path.relative_to(directory).as_posix() for path in paths)


def test_formats_of_a_real_pipeline(run, untrained, short, tmp_path):
    wanted = Pipeline.from_pretrained(untrained)(short)
    code, out, err = run(
        short, "-p", untrained, "-o", tmp_path, "--plot", "png", "--quiet",
        *("--format", "rttm", "--format", "json", "--format", "audacity", "--format", "webvtt", "--format", "rttm"),
    )  # fmt: skip
    assert (code, out, err) == (0, "", "")
    assert files_of(tmp_path) == ["short.json", "short.png", "short.rttm", "short.txt", "short.vtt"]
    turns = turns_of(load_rttm(tmp_path / "short.rttm")["short"])
    for turn, other in zip(turns, turns_of(wanted.speaker_diarization), strict=True):
        assert turn[:2] == pytest.approx(other[:2], abs=2e-3)
        assert turn[2] == other[2]
    content = json.loads((tmp_path / "short.json").read_text())
    assert (content["uri"], content["duration"]) == ("short", 12.0)
    assert len(content["turns"]) == len((tmp_path / "short.txt").read_text().splitlines()) == len(turns)


def test_exclusive(run, untrained, short):
    code, out, _ = run(short, "-p", untrained, "--exclusive", "--format", "json")
    content = json.loads(out)
    wanted = Pipeline.from_pretrained(untrained)(short).exclusive_speaker_diarization
    turns = content["turns"]
    assert code == 0
    assert [turn["speaker"] for turn in turns] == [speaker for *_, speaker in turns_of(wanted)]
    assert all(turn["end"] <= after["start"] for turn, after in pairwise(turns))
    assert content["overlap"] == 0


def test_exclusive_is_another_diarization(run, scripted, folder):
    recording = folder / "b.wav"
    for option, turns in ((), TURNS), (("--exclusive",), EXCLUSIVE):
        code, out, _ = run(recording, "-p", "any", *option)
        assert code == 0
        assert out == to_rttm(annotate(turns, "b"), 9.0)
    scripted.legacy = True
    code, _, err = run(recording, "-p", "any", "--exclusive")
    assert code == 2
    assert "--exclusive is not possible with any" in err


def test_folder(run, scripted, folder, tmp_path):
    output = tmp_path / "some" / "where"
    code, out, err = run(folder, "-p", "any", "-o", output)
    assert (code, out) == (2, "")
    assert files_of(output) == ["b.rttm", "monday/a.rttm"]
    for path, uri in (("monday/a", "a"), ("b", "b")):
        assert turns_of(load_rttm(output / f"{path}.rttm")[uri]) == TURNS
    assert "broken.wav: LibsndfileError" in err
    assert err.splitlines()[-1] == f"1 of 3 recordings failed: {folder / 'broken.wav'}."


def test_same_names_in_different_folders(run, scripted, folder, tmp_path):
    (folder / "broken.wav").unlink()
    (folder / "tues day").mkdir()
    shutil.copy(folder / "b.wav", folder / "tues day" / "b.wav")
    code, _, _ = run(folder, "-p", "any", "-o", tmp_path / "out", "-q")
    assert (code, files_of(tmp_path / "out")) == (0, ["b.rttm", "monday/a.rttm", "tues_day/b.rttm"])
    # recordings that are named one by one, as a shell does
    code, out, _ = run(folder / "b.wav", folder / "tues day" / "b.wav", "-p", "any", "-q")
    assert (code, [line.split()[1] for line in out.splitlines()[:: len(TURNS)]]) == (0, ["b", "tues_day/b"])
    # one that is named twice is one
    code, out, _ = run(folder, folder / "monday", folder / "b.wav", "-p", "any", "-q", "--format", "json")
    assert [json.loads(line)["uri"] for line in out.splitlines()] == ["b", "monday/a", "tues_day/b"]


def test_finished_recordings_are_skipped(run, scripted, folder, tmp_path):
    (folder / "broken.wav").unlink()
    options = ("-p", "any", "-o", tmp_path, "--plot", "svg")
    assert run(folder, *options)[0] == 0
    assert scripted.asked == ["b", "a"]
    (tmp_path / "b.svg").unlink()
    code, _, err = run(folder, *options)
    assert (code, scripted.asked) == (0, ["b", "a", "b"])
    assert "1 of 2 recordings are finished already" in err
    assert run(folder, *options)[0] == 0
    assert scripted.asked == ["b", "a", "b"]
    assert run(folder, *options, "--overwrite", "-q")[0] == 0
    assert scripted.asked == ["b", "a", "b", "b", "a"]


def test_formats_of_one_extension(run, scripted, folder, tmp_path):
    (folder / "broken.wav").unlink()
    assert run(folder, "-p", "any", "-o", tmp_path, "--format", "audacity")[0] == 0
    code, _, err = run(folder, "-p", "any", "-o", tmp_path, "--format", "txt")
    assert (code, scripted.asked) == (2, ["b", "a"])
    assert "holds results of another pipeline or of other settings" in err


def test_output_is_utf8_whatever_the_terminal_takes(run, scripted, folder, monkeypatch):
    content = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(content, encoding="cp1252"))
    (folder / "b.wav").rename(folder / "\u4f1a\u8bae.wav")
    code, _, _ = run(folder / "\u4f1a\u8bae.wav", "-p", "any", "-q")
    assert (code, content.getvalue().decode()) == (0, to_rttm(annotate(TURNS, "\u4f1a\u8bae"), 9.0))


def test_ctrl_c(run, scripted, folder, tmp_path, monkeypatch):
    (folder / "broken.wav").unlink()

    def stopped(self, file, hook, **bounds):
        if self.asked:
            raise KeyboardInterrupt
        return whole(self, file, hook, **bounds)

    whole = Scripted.__call__
    monkeypatch.setattr(Scripted, "__call__", stopped)
    code, _, err = run(folder, "-p", "any", "-o", tmp_path)
    assert code == 130
    assert err.splitlines()[-1] == (
        "Error: Interrupted: 1 of 2 recordings are finished and saved; rerun the same command to resume."
    )
    assert files_of(tmp_path)[0] == "b.rttm"
    assert not any(".part" in name for name in files_of(tmp_path))


def test_standard_input(run, scripted, folder, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((folder / "b.wav").read_bytes())))
    code, out, _ = run("-", "-p", "any", "-q")
    assert (code, out) == (0, to_rttm(annotate(TURNS, "stdin"), 9.0))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    code, _, err = run("-", "-p", "any", "-q")
    assert (code, err) == (2, "Error: - is empty: it has no samples.\n")
    monkeypatch.setattr("sys.stdin", None)
    code, _, err = run("-", "-p", "any", "-q")
    assert code == 2
    assert "standard input, which is closed" in err


def test_named_pipe(run, scripted, folder):
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    writer = Thread(target=lambda: pipe.write_bytes((folder / "b.wav").read_bytes()))
    writer.start()
    code, out, _ = run(pipe, "-p", "any", "-q")
    writer.join()
    assert (code, out) == (0, to_rttm(annotate(TURNS, "pipe"), 9.0))


def test_any_parameter(run, untrained, short, tmp_path, monkeypatch):
    loaded = []
    load = pretrained.load_pipeline
    monkeypatch.setattr(pretrained, "load_pipeline", lambda *arguments: loaded.append(load(*arguments)) or loaded[-1])

    def parameters(*options):
        code, _, err = run(short, "-p", untrained, "-q", "-o", tmp_path, "--overwrite", *options)
        return loaded[-1].parameters(instantiated=True) if code == 0 else err

    before = parameters()
    changed = parameters("--threshold", 1.5, "--set", "clustering.min_cluster_size=1")
    assert changed["clustering"] == {**before["clustering"], "threshold": 1.5, "min_cluster_size": 1}
    changed = parameters("--set", "clustering.method=average", "--set", "segmentation.min_duration_off=0.1")
    assert (changed["clustering"]["method"], changed["segmentation"]["min_duration_off"]) == ("average", 0.1)
    assert "clustering.threshold must be a number, from 0 to 2, got 50" in parameters("--threshold", 50)
    for setting in ("clustering.stop=1", "clustering=1", "stop=1"):
        told = parameters("--set", setting)
        assert f"{setting[:-2]} cannot be set to 1" in told
        assert "the pipeline has segmentation.min_duration_off, clustering" in told


def test_standard_output(run, scripted, folder):
    (folder / "broken.wav").unlink()
    code, out, err = run(folder, "-p", "any", "--format", "json")
    assert code == 0
    assert [json.loads(line)["uri"] for line in out.splitlines()] == ["b", "a"]
    assert "b, 0:09" in err
    assert "SPEAKER_01" in err
    assert "segmentation" not in err  # not a terminal
    code, out, err = run(folder / "b.wav", "-p", "any", "--format", "webvtt", "-q")
    assert (code, err) == (0, "")
    assert out.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:04.000\n<v SPEAKER_00>")


def test_pictures(run, scripted, folder, tmp_path):
    (folder / "broken.wav").unlink()
    shutil.move(folder / "b.wav", folder / "cost $5$ <b>.wav")
    assert run(folder, "-p", "any", "-o", tmp_path, "--plot", "png")[0] == 0
    header = (tmp_path / "monday" / "a.png").read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", header[16:])
    assert width == 1200
    assert 200 < height < 500
    assert run(folder, "-p", "any", "-o", tmp_path, "--plot", "svg")[0] == 0
    drawn = (tmp_path / "cost_$5$_<b>.svg").read_text()
    for text in ("SPEAKER_00", "SPEAKER_01", "overlap", "0:05", "cost_$5$_&lt;b&gt;, 0:09"):
        assert f">{text}</text>" in drawn
    assert run(folder, "-p", "any", "-o", tmp_path, "--plot", "html")[0] == 0
    assert "<h1>a</h1>" in (tmp_path / "monday" / "a.html").read_text()
    assert "<h1>cost_$5$_&lt;b&gt;</h1>" in (tmp_path / "cost_$5$_<b>.html").read_text()


def test_bad_options(run, scripted, folder, tmp_path):
    recording = folder / "b.wav"
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "taken" / "b.rttm").mkdir(parents=True)
    twins = tmp_path / "twins"
    twins.mkdir()
    for extension in ("flac", "wav"):
        soundfile.write(twins / f"a.{extension}", np.zeros(100), 8000)
    for arguments, named in [
        (
            (recording, "--format", "docx"),
            "--format must be one of rttm, json, audacity, webvtt, srt, csv, txt, textgrid, got 'docx'",
        ),
        ((recording, "--plot", "pdf", "-o", tmp_path), "--plot must be one of png, svg, html, got 'pdf'"),
        ((recording, "--plot", "png"), "--plot needs --output"),
        ((recording, "--format", "rttm", "--format", "json"), "Several formats (rttm, json) need --output"),
        ((folder, "--format", "webvtt"), "--format webvtt of several recordings needs --output"),
        ((tmp_path / "empty",), "holds no recording that can be read"),
        ((twins,), "Several recordings are named 'a'"),
        ((recording, "--format", "txt", "--format", "audacity", "-o", tmp_path), "would write the same files"),
        ((recording, "-o", tmp_path / "taken"), "b.rttm is a directory, but a file goes there"),
        ((recording, "--max-speakers", 300), "--max-speakers must be a whole number from 1 to 100, got 300"),
        (("https://example.org/a.wav",), "https://example.org/a.wav is a URL: download the recording"),
        ((recording, "--set", "clustering.threshold"), "is not a setting: expected NAME=VALUE"),
        ((recording, "-o", tmp_path / "file"), "--output must be a directory"),
        ((recording, "-o", tmp_path / "file" / "below"), "could not be created"),
    ]:
        code, out, err = run(*arguments, "-p", "any")
        assert (code, out) == (2, ""), arguments
        assert len(err.splitlines()) == 1, arguments
        assert err.startswith("Error: "), arguments
        assert named in err, arguments
