import io

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from pyannote_prune.errors import InputError
from pyannote_prune.models.audio import Audio
from pyannote_prune.pipelines.recording import check_file, decode


def decoded(path, channel=None, rate=16000):
    return decode(Audio.validate_file({"audio": str(path)}), rate, channel)


@pytest.fixture
def stereo(tmp_path):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (3000, 2)).astype(np.float32)
    path = tmp_path / "stereo.wav"
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    return path, torch.from_numpy(samples.T)


def test_channels(stereo):
    path, samples = stereo
    torch.testing.assert_close(decoded(path)["waveform"], samples.mean(0, keepdim=True))
    for channel in (0, 1):
        torch.testing.assert_close(decoded(path, channel)["waveform"], samples[channel : channel + 1])
    # what a file says of itself comes first
    torch.testing.assert_close(decode({"audio": path, "channel": 1}, 16000, 0)["waveform"], samples[1:])
    with pytest.raises(InputError, match="no channel 2 among 2"):
        decoded(path, 2)


def test_more_than_one_block(tmp_path):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 8000 * 61).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", samples, 8000, subtype="FLOAT")
    actual = decoded(tmp_path / "long.wav", rate=8000)["waveform"]
    torch.testing.assert_close(actual, torch.from_numpy(samples)[None])


def test_resampled_as_by_torchaudio(tmp_path):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 22050).astype(np.float32)
    soundfile.write(tmp_path / "other.wav", samples, 22050, subtype="FLOAT")
    recording = decoded(tmp_path / "other.wav")
    wanted = torchaudio.functional.resample(torch.from_numpy(samples)[None], 22050, 16000)
    torch.testing.assert_close(recording["waveform"], wanted)
    assert recording["sample_rate"] == 16000


@pytest.mark.parametrize("extension", ["flac", "ogg", "mp3"])
def test_formats(extension, tmp_path):
    time = np.arange(16000) / 16000
    soundfile.write(tmp_path / f"tone.{extension}", 0.5 * np.sin(2 * np.pi * 440 * time), 16000)
    waveform = decoded(tmp_path / f"tone.{extension}")["waveform"]
    assert waveform.shape[1] == pytest.approx(16000, abs=2000)
    assert torch.fft.rfft(waveform[0, 1000:15000]).abs().argmax() / 14000 * 16000 == pytest.approx(440, abs=2)


def test_file_object_is_left_at_its_beginning(stereo):
    path, samples = stereo
    content = io.BytesIO(path.read_bytes())
    recording = decode(Audio.validate_file(content), 16000, 0)
    torch.testing.assert_close(recording["waveform"], samples[:1])
    assert content.tell() == 0


def test_writes_reach_the_file():
    file = {"waveform": torch.zeros(1, 100), "sample_rate": 16000, "uri": "x", "channel": 0}
    recording = decode(file, 16000)
    recording["cache"] = 1
    assert file["cache"] == 1
    assert recording["channel"] is None  # selected already
    assert file["channel"] == 0


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint16])
def test_sample_rates_of_numpy(kind):
    """As SciPy's reader of wav files returns them."""
    waveform = torch.rand(1, 8000, generator=torch.Generator().manual_seed(0))
    files = [{"waveform": waveform, "sample_rate": rate} for rate in (kind(8000), 8000)]
    actual, wanted = (decode(check_file(file), 16000)["waveform"] for file in files)
    assert actual.shape == (1, 16000)
    torch.testing.assert_close(actual, wanted, atol=0, rtol=0)


@pytest.mark.parametrize("array", [np.arange(16000.0), torch.zeros(2, 8)])
def test_arrays_are_not_printed(array):
    with pytest.raises(InputError) as raised:
        check_file(array)
    shown = f"{type(array).__name__} of shape {tuple(array.shape)}"
    assert str(raised.value).startswith(f"{shown} is not a recording: expected a path, a binary file, or a dictionary")
    assert len(str(raised.value)) < 200


def test_bad_recordings(tmp_path):
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    with pytest.raises(InputError, match=r"empty\.wav is empty"):
        decoded(tmp_path / "empty.wav")
    (tmp_path / "text.wav").write_text("this is no audio")
    with pytest.raises(InputError, match=r"text\.wav could not be read as audio"):
        decoded(tmp_path / "text.wav")
    (tmp_path / "nothing.wav").touch()
    with pytest.raises(InputError, match=r"nothing\.wav could not be read as audio"):
        decoded(tmp_path / "nothing.wav")
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan, 0.0]), 16000, subtype="FLOAT")
    with pytest.raises(InputError, match=r"nan\.wav has samples that are not finite"):
        decoded(tmp_path / "nan.wav")
