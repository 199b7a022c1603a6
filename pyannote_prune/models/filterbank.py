"""Mel filterbank of Kaldi."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchaudio.compliance.kaldi import get_mel_banks

from pyannote_prune.errors import InputError

_WINDOWS: dict[str, Callable[[int], Tensor]] = {
    "hamming": lambda size: torch.hamming_window(size, periodic=False),
    "hanning": lambda size: torch.hann_window(size, periodic=False),
    "povey": lambda size: torch.hann_window(size, periodic=False) ** 0.85,
    "blackman": lambda size: torch.blackman_window(size, periodic=False),
    "rectangular": torch.ones,
}
# devices whose Fourier transforms pyannote.audio does not trust
_WITHOUT_FFT = ("mps",)


class MelFilterbank(nn.Module):
    """Logarithms of the energies of mel bands, as Kaldi computes them

    Same numbers as `torchaudio.compliance.kaldi.fbank`, from whole batches, in operations that can be exported,
    compiled and differentiated. It has no weights, and nothing of it is in checkpoints.

    Parameters
    ----------
    sample_rate : int
        In Hz.
    num_mel_bins : int
        Bands, between 20 Hz and half the sample rate.
    frame_length, frame_shift : float
        In milliseconds.
    dither : float
        Standard deviation of the noise that is added to samples, whose range is that of 16 bits.
    window_type : {"hamming", "hanning", "povey", "blackman", "rectangular"}

    Raises
    ------
    InputError
        When there is no such window.

    References
    ----------
    Kaldi, `src/feat/feature-window.cc`, `feature-fbank.cc` and `mel-computations.cc`
    """

    window: Tensor
    bands: Tensor

    def __init__(
        self,
        sample_rate: int,
        num_mel_bins: int,
        frame_length: float,
        frame_shift: float,
        dither: float,
        window_type: str,
    ) -> None:
        super().__init__()
        if window_type not in _WINDOWS:
            raise InputError(f"window_type must be one of {', '.join(_WINDOWS)}, got {window_type!r}.")
        self.size = int(sample_rate * frame_length * 0.001)
        self.step = int(sample_rate * frame_shift * 0.001)
        self.dither = dither
        # the next power of two
        self.fft_size = 1 << (self.size - 1).bit_length()
        self.register_buffer("window", _WINDOWS[window_type](self.size), persistent=False)
        # frequencies are those of Kaldi: from 20 Hz, to the end, none of them warped
        bands, _ = get_mel_banks(num_mel_bins, self.fft_size, sample_rate, 20.0, 0.0, 100.0, -500.0, 1.0)
        self.register_buffer("bands", bands, persistent=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Compute features

        Parameters
        ----------
        waveforms : (batch, 1, num_samples) Tensor
            Between -1 and 1.

        Returns
        -------
        features : (batch, num_frames, num_mel_bins) Tensor
            Features of whole frames.

        Raises
        ------
        InputError
            When waveforms are shorter than a frame.
        """
        if waveforms.shape[-1] < self.size:
            raise InputError(
                f"Waveforms of {waveforms.shape[-1]} samples are too short: give at least {self.size}, one frame."
            )
        frames = (waveforms[:, 0] * (1 << 15)).unfold(1, self.size, self.step)
        if self.dither:
            frames = frames + self.dither * torch.randn(frames.shape, dtype=frames.dtype, device=frames.device)
        frames = frames - frames.mean(2, keepdim=True)
        # pre-emphasis
        frames = frames - 0.97 * torch.cat([frames[..., :1], frames[..., :-1]], dim=2)
        frames = frames * self.window
        transformed = frames.cpu() if frames.device.type in _WITHOUT_FFT else frames
        spectrum = torch.fft.rfft(transformed, self.fft_size)[..., :-1].abs().to(frames.device)
        energies = spectrum.square() @ self.bands.mT
        return energies.clamp(min=torch.finfo(torch.float).eps).log()
