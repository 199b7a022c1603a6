"""`stream`: recordings, pipes and microphones, as they come."""

import io
import itertools
import json
import os
import re
import shutil
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import yaml
from pyannote.database.util import load_rttm

from pyannote_prune import embedded_pipeline
from pyannote_prune.corpora.sound import PipedSound, open_sound
from pyannote_prune.errors import InputError
from tests.conftest import SAMPLE

RATE = 16000


@pytest.fixture
def recording(tmp_path, monkeypatch):
    """Three seconds of the sample conversation, in the current directory."""
    samples, rate = soundfile.read(SAMPLE, dtype="int16")
    monkeypatch.chdir(tmp_path)
    soundfile.write("meeting.wav", samples[6 * rate : 9 * rate], rate)
    return samples[6 * rate : 9 * rate]


def pipe(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(content))))


def lines(out):
    return [json.loads(line) for line in out.splitlines()]


def told(updates):
    """Final turns, to a tenth of a second."""
    turns = [turn for update in updates for turn in update["final"]]
    return [(round(turn["start"], 1), round(turn["end"], 1), turn["speaker"]) for turn in turns]


def test_every_way_in_gives_the_result_of_diarize(run, recording, untrained, monkeypatch):
    options = ("--pipeline", str(untrained), "--output", "live.rttm")
    assert run("diarize", "meeting.wav", "--pipeline", str(untrained), "--output", ".", "-q")[0] == 0
    expected = load_rttm("meeting.rttm").get("meeting")
    assert expected
    code, from_file, err = run("stream", "meeting.wav", *options)
    assert code == 0, err
    assert load_rttm("live.rttm")["meeting"] == expected
    *updates, whole = lines(from_file)
    assert whole["uri"] == "meeting"
    assert len(whole["turns"]) == len(expected)
    assert all(update.keys() == {"time", "final_until", "final", "tentative"} for update in updates)

    pipe(monkeypatch, recording.tobytes())
    code, out, err = run("stream", "-", *options)
    assert code == 0, err
    # at other times, where blocks have other sizes
    assert told(lines(out)[:-1]) == told(updates)
    assert [*load_rttm("live.rttm")["stream"].itertracks()] == [*expected.itertracks()]


def test_headers_of_pipes(recording):
    header = Path("meeting.wav").read_bytes()[:44]
    for content in (
        recording.tobytes(),
        header + recording.tobytes(),
        # as ffmpeg writes it to a pipe, whose length it does not know
        header[:4] + b"\xff\xff\xff\xff" + header[8:40] + b"\xff\xff\xff\xff" + recording.tobytes(),
        # with a chunk before the samples
        header[:36] + b"LIST" + struct.pack("<I", 3) + b"abc\0" + header[36:] + recording.tobytes(),
        # with a cover after them
        header + recording.tobytes() + b"id3 " + struct.pack("<I", 50000) + bytes(range(250)) * 200,
    ):
        pipe = io.BytesIO(content)
        sound = PipedSound(pipe, RATE)
        assert sound.sample_rate == RATE
        with sound.blocks() as blocks:
            np.testing.assert_array_equal(np.concatenate(list(blocks)), recording)
        # whoever writes it gets rid of all
        assert not pipe.read()


@pytest.mark.parametrize("channel", [None, 0, 1])
def test_two_channels(tmp_path, channel):
    """Their average, or the one that the pipeline takes"""
    samples = np.random.default_rng(0).integers(-1000, 1000, (5000, 2)).astype(np.int16)
    soundfile.write(tmp_path / "stereo.wav", samples, 8000)
    piped = PipedSound(io.BytesIO((tmp_path / "stereo.wav").read_bytes()), RATE)
    for sound in (piped, open_sound(str(tmp_path / "stereo.wav"), RATE)):
        assert sound.sample_rate == 8000
        with sound.blocks(channel) as blocks:
            read = np.concatenate(list(blocks))
        read = read / 32768 if read.dtype == np.int16 else read
        expected = samples.mean(axis=1) if channel is None else samples[:, channel]
        np.testing.assert_allclose(read, expected / 32768, atol=1e-7)


def test_the_channel_of_the_pipeline(run, recording, monkeypatch):
    """As `diarize` takes it, from a file and from a pipe"""
    shutil.copytree(embedded_pipeline(), "second")
    config = Path("second/config.yaml")
    content = yaml.safe_load(config.read_text())
    content["pipeline"]["params"]["channel"] = 1
    config.write_text(yaml.safe_dump(content))
    soundfile.write("stereo.wav", np.stack([np.roll(recording, RATE), recording], 1), RATE)
    options = ("--pipeline", "second", "--output", "live.rttm")
    code, expected, err = run("diarize", "stereo.wav", "--pipeline", "second", "-q")
    assert code == 0 and expected, err
    assert run("stream", "stereo.wav", *options)[0] == 0
    assert Path("live.rttm").read_text() == expected
    pipe(monkeypatch, Path("stereo.wav").read_bytes())
    assert run("stream", "-", *options)[0] == 0
    assert Path("live.rttm").read_text() == expected.replace("stereo", "stream")

    pipe(monkeypatch, Path("meeting.wav").read_bytes())
    for audio, name in (("meeting.wav", "meeting.wav"), ("-", "Standard input")):
        code, out, err = run("stream", audio, "--pipeline", "second")
        assert (code, out) == (2, "")
        assert f"{name} has no channel 1" in err


def test_channels_that_cancel(recording):
    """The first of them, as the pipeline decodes it"""
    soundfile.write("opposite.wav", np.stack([recording, -recording], 1), RATE)
    with (
        pytest.warns(UserWarning, match="channel 0 is used alone"),
        open_sound("opposite.wav", RATE).blocks() as blocks,
    ):
        np.testing.assert_array_equal(np.concatenate(list(blocks)) * 32768, recording)


def test_the_table_of_a_terminal(run, recording, untrained):
    code, out, err = run("stream", "meeting.wav", "--pipeline", str(untrained), "--format", "table", "--speed", "100")
    assert code == 0, err
    assert "speaker" in out and "meeting" in out


def test_microphone(run, untrained, recording, monkeypatch):
    """Until Ctrl-C, after which the recording until then is diarized; a fake device"""

    class Device:
        def __init__(self, rate, blocksize, channels, dtype):
            assert (rate, channels, dtype) == (RATE, 1, "int16")
            self.blocks = iter(np.split(recording[: 30 * 1600], 30))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def read(self, size):
            try:
                return next(self.blocks)[:, None], False
            except StopIteration:
                raise KeyboardInterrupt from None

    monkeypatch.setitem(sys.modules, "sounddevice", SimpleNamespace(InputStream=Device, PortAudioError=OSError))
    code, out, err = run("stream", "--microphone", "--pipeline", str(untrained), "--output", "live.rttm")
    assert code == 0, err
    assert lines(out)[-1]["duration"] == 3.0
    assert load_rttm("live.rttm")["stream"]
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    code, _, err = run("stream", "--microphone")
    assert code == 2
    assert "pyannote-prune[microphone]" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "Give one of"),
        (("meeting.wav", "--microphone"), "Give one of"),
        (("missing.wav",), "No such recording"),
        (("meeting.wav", "--format", "xml"), "--format must be"),
        (("meeting.wav", "--speed", "0"), "--speed must be"),
        (("-", "--speed", "1"), "--speed is for recordings"),
        (("meeting.wav", "--latency", "0.1"), "--latency must be"),
        (("meeting.wav", "--max-speakers", "0"), "--max-speakers must be"),
        (("-", "--rate", "1"), "--rate must be"),
        (("meeting.wav", "--output", "."), "is a directory"),
    ],
)
def test_bad_input(run, recording, words, message, monkeypatch):
    pipe(monkeypatch, b"")
    code, out, err = run("stream", *words)
    assert (code, out) == (2, "")
    assert message in err


def test_the_output_is_checked_before_the_session(run, recording, untrained):
    Path("file").touch()
    os.mkfifo("pipe")
    for output in ("file/live.rttm", f"{'long' * 100}.rttm", "pipe"):
        code, out, err = run("stream", "meeting.wav", "--pipeline", untrained, "--output", output)
        assert (code, out) == (2, ""), err
        assert output in err
    assert sorted(path.name for path in Path().iterdir()) == ["file", "meeting.wav", "pipe"]


def test_names_of_files(run, recording, untrained):
    """With spaces, which RTTM does not allow, and of all characters that a system allows"""
    Path("meeting.wav").rename("my meeting.wav")
    output = Path("new", f"{'l' * 250}.rttm")
    code, _, err = run("stream", "my meeting.wav", "--pipeline", untrained, "--output", output)
    assert code == 0, err
    assert load_rttm(output)["my_meeting"]
    assert list(Path("new").iterdir()) == [output]


def test_closed_standard_input(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    code, out, err = run("stream", "-")
    assert (code, out) == (2, "")
    assert "closed" in err


@pytest.mark.parametrize("content", [b"RIFF\0\0", b"RIFF\0\0\0\0WAVEfmt ", b"RIFF\0\0\0\0WAVEdata\0\0\0\0"])
def test_broken_header(content):
    with pytest.raises(InputError, match="ends before"):
        PipedSound(io.BytesIO(content), RATE)


def test_a_header_that_is_cut_off(recording):
    content = Path("meeting.wav").read_bytes()
    for size in range(4, 44):
        with pytest.raises(InputError, match="ends before"):
            PipedSound(io.BytesIO(content[:size]), RATE)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        *((form, {}) for form in ("FLAC", "OGG", "MP3", "AIFF", "CAF", "AU", "RF64", "W64", "NIST")),
        ("WAV", {"endian": "BIG"}),
    ],
)
def test_other_formats_are_no_samples(recording, form, options):
    content = io.BytesIO()
    soundfile.write(content, recording, RATE, format=form, **options)
    content.seek(0)
    with pytest.raises(InputError, match="ffmpeg -i"):
        PipedSound(content, RATE)


@pytest.mark.parametrize("content", [b"ID3\x04", b"\0\0\0 ftypisom", b"\x1aE\xdf\xa3", b"RIFF\0\0\0\0AVI "])
def test_other_containers_are_no_samples(content):
    with pytest.raises(InputError, match="ffmpeg -i"):
        PipedSound(io.BytesIO(content.ljust(100, b"\0")), RATE)


def test_quiet_samples_are_of_no_format():
    """Whatever they begin with"""
    for first, second in itertools.product(range(-500, 500, 3), (-300, -1, 0, 1, 16, 300)):
        sound = PipedSound(io.BytesIO(np.array([first, second] * 8, dtype="<i2").tobytes()), RATE)
        with sound.blocks() as blocks:
            assert len(np.concatenate(list(blocks))) == 16


def test_samples_of_other_kinds_are_refused(tmp_path):
    soundfile.write(tmp_path / "float.wav", np.zeros(100), RATE, subtype="FLOAT")
    with pytest.raises(InputError, match="pcm_s16le"):
        PipedSound(io.BytesIO((tmp_path / "float.wav").read_bytes()), RATE)


@pytest.mark.slow
def test_the_recording_of_a_terminal(run, tmp_path, monkeypatch):
    """What docs/live.md shows: twelve seconds of the sample conversation, through ffmpeg, in tmux"""
    page = (Path(__file__).parents[2] / "docs" / "live.md").read_text()
    (shown,) = re.findall(r"```json\n(.*?)```", page, flags=re.DOTALL)
    samples, rate = soundfile.read(SAMPLE, stop=12 * RATE, dtype="int16")
    soundfile.write(tmp_path / "part.wav", samples, rate)
    pipe(monkeypatch, (tmp_path / "part.wav").read_bytes())
    code, out, err = run("stream", "-")
    assert code == 0, err
    expected = lines(shown)

    assert told(lines(out)[:-1])[: len(told(expected[:-1]))] == told(expected[:-1])
    assert lines(out)[-1]["speakers"] == expected[-1]["speakers"]
