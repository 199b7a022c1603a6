import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from pyannote_prune.errors import InputError
from pyannote_prune.models import filterbank
from pyannote_prune.models.filterbank import MelFilterbank


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(400, 4000),
    st.sampled_from([8000, 16000]),
    st.integers(20, 60),
    st.sampled_from([(25.0, 10.0), (20.0, 12.5)]),
    st.sampled_from(torchaudio.compliance.kaldi.WINDOWS),
)
def test_equals_kaldi(batch, num_samples, sample_rate, num_mel_bins, frames, window_type):
    torch.manual_seed(num_samples)
    waveforms = 0.1 * torch.randn(batch, 1, num_samples) + 0.05
    length, shift = frames
    features = MelFilterbank(sample_rate, num_mel_bins, length, shift, 0.0, window_type)(waveforms)
    for waveform, actual in zip(waveforms, features, strict=True):
        wanted = torchaudio.compliance.kaldi.fbank(
            waveform * 2**15,
            sample_frequency=sample_rate,
            num_mel_bins=num_mel_bins,
            frame_length=length,
            frame_shift=shift,
            window_type=window_type,
        )
        torch.testing.assert_close(actual, wanted, atol=1e-4, rtol=0)


def test_dither():
    """Noise of its standard deviation: four times the energy for twice of it."""
    silence = torch.zeros(4, 1, 16000)
    one, two = (MelFilterbank(16000, 80, 25.0, 10.0, dither, "povey")(silence) for dither in (1.0, 2.0))
    assert (two - one).mean().item() == pytest.approx(torch.tensor(4.0).log().item(), abs=0.05)


def test_gradients():
    """Of waveforms, silence included."""
    waveforms = torch.randn(2, 1, 1600, dtype=torch.float64)
    waveforms[1] = 0
    waveforms.requires_grad_()
    bank = MelFilterbank(16000, 20, 25.0, 10.0, 0.0, "hamming").double()
    features = bank(waveforms)
    (gradient,) = torch.autograd.grad(features.sum(), waveforms)
    assert gradient.isfinite().all()
    direction = torch.randn_like(waveforms)
    direction[1] = 0
    with torch.no_grad():
        slope = (bank(waveforms + 1e-6 * direction) - bank(waveforms - 1e-6 * direction)).sum() / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-5)


def test_transforms_where_they_are_right(monkeypatch):
    """On the CPU, for devices that are not trusted with them."""
    assert "mps" in filterbank._WITHOUT_FFT
    monkeypatch.setattr(filterbank, "_WITHOUT_FFT", ("cuda",))
    devices = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "fft" in str(function):
                devices.append(args[0].device.type)
            return function(*args, **(kwargs or {}))

    with FakeTensorMode(), Recorder():
        bank = MelFilterbank(16000, 80, 25.0, 10.0, 0.0, "povey")
        bank.window, bank.bands = torch.empty(400, device="cuda"), torch.empty(80, 256, device="cuda")
        features = bank(torch.empty(2, 1, 16000, device="cuda"))
    assert devices == ["cpu"]
    assert features.device.type == "cuda"


def test_refuses():
    with pytest.raises(InputError, match=r"window_type must be one of hamming, .*, got 'triangle'\."):
        MelFilterbank(16000, 80, 25.0, 10.0, 0.0, "triangle")
    with pytest.raises(InputError, match=r"^Waveforms of 399 samples are too short: give at least 400, one frame\.$"):
        MelFilterbank(16000, 80, 25.0, 10.0, 0.0, "povey")(torch.zeros(1, 1, 399))
