"""Audio as it arrives: all of it, and step by step at the rate and level of the models."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pyannote_prune.errors import InputError
from pyannote_prune.models.audio import resample
from pyannote_prune.pipelines.recording import GREATEST_GAIN, LEVEL, LOUDEST

# of the running level: bins of a decibel from the faintest level up, and frames at the usual level (in decibels) that
# it starts with, so that a noise before the first word is not taken for speech
_FAINTEST, _NUM_BINS, _USUAL, _PRIOR_FRAMES = -120, 121, -26, 25
# times the longer of two sampling periods that a resampled sample depends on, on each side (SciPy's, rounded up)
_FILTER_WIDTH = 11
# samples of an array, at most, that smaller ones are joined to
_BLOCK = 2**20


class RunningLevel:
    """Level of a recording until now, and what brings it to the level of normalised ones; can be pickled

    Same as `decode` with `normalize`, for audio that has not ended: levels of all frames of 20 ms are counted by
    decibels.

    Parameters
    ----------
    sample_rate : int
    """

    def __init__(self, sample_rate: int) -> None:
        self.size = max(1, sample_rate // 50)
        self.counts = np.zeros(_NUM_BINS, dtype=np.int64)
        self.counts[_USUAL - _FAINTEST] = _PRIOR_FRAMES
        self.total, self.number = 0.0, 0

    def centre(self, samples: Tensor) -> Tensor:
        """Take the running mean off samples, and count them"""
        self.total += float(samples.sum(dtype=torch.float64))
        self.number += len(samples)
        samples = samples - self.total / self.number
        frames = samples[: len(samples) // self.size * self.size].view(-1, self.size)
        decibels = 10 * frames.square().mean(1).clamp(min=1e-30).log10().numpy() - _FAINTEST
        np.add.at(self.counts, decibels.round().astype(int).clip(0, _NUM_BINS - 1), 1)
        return samples

    @property
    def gain(self) -> float:
        """Factor that brings all but the loudest 5 % of frames to the level of normalised recordings"""
        loud = int(np.searchsorted(np.cumsum(self.counts), 0.95 * self.counts.sum()))
        return float(min(LEVEL / 10 ** ((loud + _FAINTEST) / 20), GREATEST_GAIN))


class ArrivingAudio:
    """Audio as it arrives; can be pickled

    All of it is kept, in the type in which it comes: two bytes a sample of 16 bits, four of others.

    Parameters
    ----------
    sample_rate : int
        Of the audio, in Hz.
    model_rate : int
        Rate of the models.
    step : int
        Samples at that rate that are taken at a time.
    normalize : bool
        Bring steps to the level of normalised recordings, as far as it is known.
    """

    def __init__(self, sample_rate: int, model_rate: int, step: int, normalize: bool) -> None:
        self.sample_rate, self.model_rate, self.step = sample_rate, model_rate, step
        self.level = RunningLevel(model_rate) if normalize else None
        self.chunks: list[np.ndarray] = []
        self.num_samples = 0
        # at the rate of the models, not taken yet
        self.waiting = torch.zeros(0, dtype=torch.float32)
        # of the audio: what the next resampled samples depend on
        common = math.gcd(sample_rate, model_rate)
        self._unit, self._resampled_unit = sample_rate // common, model_rate // common
        width = _FILTER_WIDTH * max(1, -(-sample_rate // model_rate))
        self._context = -(-width // self._unit) * self._unit
        self._tail = torch.zeros(0, dtype=torch.float32)
        self._before = 0

    def push(self, samples: Any) -> None:
        """Take more audio

        Parameters
        ----------
        samples : (num_samples,) or (1, num_samples) array or Tensor
            16-bit integers, or floating-point numbers in [-1, 1].

        Raises
        ------
        InputError
            When they are anything else. Nothing is taken then.
        """
        chunk = _check(samples)
        if not len(chunk):
            return
        self.chunks.append(chunk)
        # as a binary counter carries: few arrays, whatever the sizes of pushes
        while len(self.chunks) > 1 and _joins(*self.chunks[-2:]):
            self.chunks[-2:] = [np.concatenate(self.chunks[-2:])]
        self.num_samples += len(chunk)
        self._convert(torch.cat([self._tail, _to_float(chunk)]), last=False)

    def take(self) -> tuple[Tensor, Tensor] | None:
        """Take the next step

        Returns
        -------
        samples, levelled : (step,) Tensors, or None
            As they are, but for a constant offset where the level is that of normalised recordings, and at that level.
            None while there are too few.
        """
        if len(self.waiting) < self.step:
            return None
        samples, self.waiting = self.waiting[: self.step], self.waiting[self.step :].clone()
        if self.level is None:
            return samples, samples
        samples = self.level.centre(samples)
        return samples, samples * self.level.gain

    def end(self) -> None:
        """Complete the last step with zeros: no more audio follows"""
        self._convert(self._tail, last=True)
        missing = -len(self.waiting) % self.step
        self.waiting = F.pad(self.waiting, (0, missing))

    @property
    def duration(self) -> float:
        """Seconds until now"""
        return self.num_samples / self.sample_rate

    def whole(self) -> Tensor:
        """All of the audio, as `decode` takes it: (1, num_samples)"""
        waveform = torch.empty(1, self.num_samples, dtype=torch.float32)
        start = 0
        for chunk in self.chunks:
            waveform[0, start : start + len(chunk)] = _to_float(chunk)
            start += len(chunk)
        return waveform

    def _convert(self, tail: Tensor, last: bool) -> None:
        """Resample as much as does not depend on what follows, in whole units, so that phases stay the same."""
        if self.sample_rate == self.model_rate:
            self.waiting = torch.cat([self.waiting, tail])
            return
        after = 0 if last else self._context
        units = max(0, len(tail) - self._before - after) // self._unit
        end = len(tail) if last else self._before + units * self._unit
        if end > self._before:
            resampled = resample(tail[: end + after], self.sample_rate, self.model_rate)
            first = self._before // self._unit * self._resampled_unit
            count = len(resampled) if last else units * self._resampled_unit
            self.waiting = torch.cat([self.waiting, resampled[first : first + count]])
        before = min(end, self._context)
        self._tail, self._before = tail[end - before :].clone(), before


def _check(samples: Any) -> np.ndarray:
    if isinstance(samples, Tensor):
        samples = samples.detach().cpu().numpy()
    if not isinstance(samples, np.ndarray) or not (samples.ndim == 1 or (samples.ndim == 2 and len(samples) == 1)):
        shape = tuple(getattr(samples, "shape", ()))
        raise InputError(
            f"Samples must be an array of one channel, (samples,), got a {type(samples).__name__} of shape {shape}."
        )
    chunk = samples.reshape(-1)
    if chunk.dtype == np.int16:
        return chunk.copy()
    if not np.issubdtype(chunk.dtype, np.floating):
        raise InputError(f"Samples must be 16-bit integers or floating-point numbers, got {chunk.dtype}.")
    chunk = chunk.astype(np.float32)
    if not np.isfinite(chunk).all():
        raise InputError("Samples must be finite numbers, got NaN or infinity: this push was left out.")
    if len(chunk) and np.abs(chunk).max() > LOUDEST:
        raise InputError(f"Samples are as large as {np.abs(chunk).max():.3g}: expected numbers in [-1, 1].")
    return chunk


def _joins(before: np.ndarray, after: np.ndarray) -> bool:
    return before.dtype == after.dtype and len(before) <= len(after) and len(before) + len(after) <= _BLOCK


def _to_float(chunk: np.ndarray) -> Tensor:
    """Floating-point numbers in [-1, 1], as soundfile makes them of 16 bits."""
    if chunk.dtype == np.int16:
        return torch.from_numpy(chunk).float() / 32768
    return torch.from_numpy(chunk)
