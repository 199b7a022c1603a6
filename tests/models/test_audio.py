"""Recordings in folders, and what FFmpeg reads."""

import io

import numpy as np
import pytest
import soundfile
import torch
from pyannote.core import Segment

from pyannote_prune.errors import InputError
from pyannote_prune.models import audio
from pyannote_prune.models.audio import Audio, find_recordings
from pyannote_prune.pipelines.recording import decode
from pyannote_prune.simulation.voices import read_mono
from pyannote_prune.upstream import ffmpeg_is_installed


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "recordings"
    (path / "deep").mkdir(parents=True)
    for name in ("a.wav", "deep/b.WAV"):
        soundfile.write(path / name, np.zeros(100), 8000, format="WAV")
    for name in ("c.m4a", "deep/d.mp4", "e.webm", "f.aac", "g.WMA", "notes.txt", ".hidden.m4a"):
        (path / name).write_text("no audio")
    return path


def names(folder):
    return [path.relative_to(folder).as_posix() for path in find_recordings(folder)]


def test_recordings_that_ffmpeg_reads(folder, monkeypatch):
    monkeypatch.setattr(audio, "ffmpeg_is_installed", lambda: True)
    assert names(folder) == ["a.wav", "c.m4a", "deep/b.WAV", "deep/d.mp4", "e.webm", "f.aac", "g.WMA"]


def test_recordings_that_are_skipped_are_named(folder, monkeypatch):
    monkeypatch.setattr(audio, "ffmpeg_is_installed", lambda: False)
    with pytest.warns(UserWarning, match="FFmpeg") as warned:
        assert names(folder) == ["a.wav", "deep/b.WAV"]
    for name in ("c.m4a", "deep/d.mp4", "e.webm", "f.aac", "g.WMA"):
        assert name in str(warned[0].message)
    for path in (folder / "a.wav", folder / "deep" / "b.WAV"):
        path.unlink()
    with pytest.raises(InputError, match=r"holds no recording that can be read \(.*c.m4a.*FFmpeg"):
        find_recordings(folder)


@pytest.mark.filterwarnings("ignore:Skipped in")
def test_links_to_folders_are_followed(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    soundfile.write(elsewhere / "z.wav", np.zeros(100), 8000)
    (folder / "link").symlink_to(elsewhere)
    (folder / "deep" / "circle").symlink_to(folder)
    (folder / "another").symlink_to(folder / "deep")
    assert [name for name in names(folder) if name.lower().endswith(".wav")] == ["a.wav", "deep/b.WAV", "link/z.wav"]


@pytest.mark.parametrize("installed", [True, False])
def test_ffmpeg_is_only_missing_where_it_is(installed, monkeypatch, tmp_path):
    monkeypatch.setattr(audio, "ffmpeg_is_installed", lambda: installed)
    path = tmp_path / "broken.wav"
    path.write_text("no audio at all")
    with pytest.raises(InputError, match=r"broken.wav could not be read as audio: ") as raised:
        decode({"audio": str(path)}, 16000)
    assert ("FFmpeg" in str(raised.value) and "not installed" in str(raised.value)) != installed


@pytest.mark.skipif(not ffmpeg_is_installed(), reason="needs the libraries of FFmpeg")
def test_a_recording_that_only_ffmpeg_reads(tmp_path):
    from torchcodec.encoders import AudioEncoder

    tone = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(32000) / 16000)
    AudioEncoder(tone[None], sample_rate=16000).to_file(str(tmp_path / "tone.m4a"))
    (path,) = find_recordings(tmp_path)
    assert decode({"audio": str(path)}, 16000)["waveform"].shape[1] == pytest.approx(32000, abs=2000)
    assert read_mono(path, 16000).std() == pytest.approx(0.5 / 2**0.5, abs=0.05)


def test_samples_far_beyond_full_scale():
    waveform = torch.full((1, 16000), 1e30)
    with pytest.raises(InputError, match=r"loud has samples as large as 1e\+30: expected numbers in \[-1, 1\]"):
        decode({"waveform": waveform, "sample_rate": 16000, "uri": "loud"}, 16000)


def test_flac_that_was_written_to_a_pipe(tmp_path, recwarn):
    """Its header says nothing of its length."""
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 8000 * 61).astype(np.float32)
    whole, piped = tmp_path / "whole.flac", tmp_path / "piped.flac"
    soundfile.write(whole, samples, 8000)
    content = bytearray(whole.read_bytes())
    content[21] &= 0xF0  # number of samples: 36 bits of the first block
    content[22:26] = bytes(4)
    piped.write_bytes(content)
    read = audio.Audio()
    assert read.get_duration(piped) == read.get_duration(whole) == 61
    assert torch.equal(read(piped)[0], read(whole)[0])
    assert torch.equal(read({"audio": io.BytesIO(content)})[0], read(whole)[0])
    part = Segment(59.5, 60.5)
    assert torch.equal(read.crop(piped, part)[0], read.crop(whole, part)[0])
    with pytest.raises(ValueError, match="61"):
        read.crop(piped, Segment(60.5, 62))
    assert not list(recwarn)


def test_file_object_at_its_end():
    file = io.BytesIO()
    soundfile.write(file, np.zeros(8000), 8000, format="wav")
    waveform, rate = audio.Audio()(file)
    assert (waveform.shape, rate) == ((1, 8000), 8000)


@pytest.mark.parametrize("rate", [22254, 44099])
def test_rates_with_few_factors_in_common(rate, monkeypatch):
    # whose kernel has up to 700 million numbers
    monkeypatch.setattr("torchaudio.functional.resample", None)
    sines = [torch.sin(2 * torch.pi * 440 * torch.arange(samples) / samples)[None] for samples in (rate, 16000)]
    waveform, resampled = Audio(sample_rate=16000)({"waveform": sines[0].repeat(2, 1), "sample_rate": rate})
    assert (waveform.shape, waveform.dtype, resampled) == ((2, 16000), torch.float32, 16000)
    torch.testing.assert_close(waveform[:1, 500:-500], sines[1][:, 500:-500], atol=5e-3, rtol=0)
