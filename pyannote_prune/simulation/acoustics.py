"""Acoustics between mouth and file: rooms, telephones, noise."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.signal import butter, oaconvolve, sosfilt, welch

from pyannote_prune.errors import InputError
from pyannote_prune.simulation.surroundings import align_response

# reflections beyond these are too weak to be worth the time
_MAX_ORDER = 40
_POSITIONS = 6
# how far from the microphone everybody is in the far field, in metres
_FAR = 1.5
_SPECTRUM_SIZE = 512


@lru_cache(maxsize=512)
def room_responses(number: int, sample_rate: int, far: bool = False) -> list[np.ndarray]:
    """Impulse responses of a shoebox room, by the image method

    Parameters
    ----------
    number : int
        Number of the room: its size (3 to 9 by 3 to 7 by 2.4 to 3.5 m), reverberation time (0.15 to 0.6 s) and
        positions are drawn from it.
    sample_rate : int
    far : bool, optional
        Everybody is at least 1.5 m from the microphone, and the reverberation time is 0.3 to 0.9 s.
        Defaults to False.

    Returns
    -------
    responses : list of (num_samples,) float32 arrays
        From each of several positions to one microphone. They begin with the direct path, such that
        annotations stay aligned, and have unit energy.

    Raises
    ------
    InputError
        When pyroomacoustics is not installed.
    """
    try:
        import pyroomacoustics
    except ImportError:
        raise InputError("Simulating rooms needs pyroomacoustics: install pyannote-prune[simulation].") from None

    rng = np.random.default_rng([number, 7])
    size = rng.uniform([3.0, 3.0, 2.4], [9.0, 7.0, 3.5])
    shortest, longest = (0.3, 0.9) if far else (0.15, 0.6)
    try:
        absorption, order = pyroomacoustics.inverse_sabine(rng.uniform(shortest, longest), size)
    except ValueError:  # even walls that absorb everything would take longer
        absorption, order = 0.9, 5
    material = pyroomacoustics.Material(absorption)
    room = pyroomacoustics.ShoeBox(size, fs=sample_rate, materials=material, max_order=min(order, _MAX_ORDER))
    margin = np.array([0.5, 0.5, 0.9])
    places = rng.uniform(margin, size - margin, size=(_POSITIONS + 1, 3))
    while far and np.linalg.norm(places[:-1] - places[-1], axis=1).min() < _FAR:
        places = rng.uniform(margin, size - margin, size=(_POSITIONS + 1, 3))
    for place in places[:-1]:
        room.add_source(place)
    room.add_microphone(places[-1])
    room.compute_rir()
    # nearby, the direct path is the strongest
    return [align_response(response, sample_rate, 0.3 if far else 1.0) for response in room.rir[0]]


def telephone(samples: np.ndarray, sample_rate: int) -> np.ndarray:
    """Speech over a narrow-band telephone: 300 to 3400 Hz, 8-bit mu-law quantisation."""
    sections = butter(4, [300, 3400], btype="bandpass", fs=sample_rate, output="sos")
    filtered = sosfilt(sections, samples)
    peak = max(float(np.abs(filtered).max()), 1e-6)
    compressed = np.sign(filtered) * np.log1p(255 * np.abs(filtered) / peak) / np.log(256)
    quantised = np.round(compressed * 127) / 127
    return (peak * np.sign(quantised) * np.expm1(np.abs(quantised) * np.log(256)) / 255).astype(np.float32)


def equalize(samples: np.ndarray, model: np.ndarray, sample_rate: int) -> np.ndarray:
    """A recording with the long-term spectrum of another, as if both were of one microphone

    Parameters
    ----------
    samples, model : (num_samples,) arrays
    sample_rate : int

    Returns
    -------
    equalized : (num_samples,) float32 array
        No frequency is changed by more than 20 dB. Unchanged where one of both is silent.
    """
    # the squares of what is almost silent need double precision
    signals = [signal.astype(np.float64) for signal in (samples, model)]
    (frequencies, own), (_, other) = (welch(signal, sample_rate, nperseg=_SPECTRUM_SIZE) for signal in signals)
    if not (own.any() and other.any()):
        return samples.astype(np.float32)
    # bands as wide as those of hearing: what is narrower is the voice
    width = np.maximum(100.0, 0.2 * frequencies)
    bands = np.abs(frequencies[:, None] - frequencies) <= width[:, None]
    level, target = ((bands @ power) / bands.sum(1) for power in (own, other))
    floor = 1e-8 * max(level.max(), target.max())
    gain = np.clip(np.sqrt((target + floor) / (level + floor)), 0.1, 10.0)
    # linear phase, an odd number of taps: nothing is delayed
    response = np.roll(np.fft.irfft(gain), _SPECTRUM_SIZE // 2)[1:] * np.hanning(_SPECTRUM_SIZE - 1)
    return oaconvolve(samples, response, mode="same").astype(np.float32)


def noise(num_samples: int, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Stationary noise whose spectrum falls by 0 to 9 dB an octave, maybe with hum and a slow drift of its level

    Parameters
    ----------
    num_samples, sample_rate : int
    rng : np.random.Generator

    Returns
    -------
    noise : (num_samples,) float32 array
        Noise of unit power.
    """
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    frequencies = np.fft.rfftfreq(num_samples, 1 / sample_rate)
    samples = np.fft.irfft(spectrum / np.maximum(frequencies, 20.0) ** rng.uniform(0, 1.5), num_samples)
    samples /= np.std(samples) + 1e-12
    time = np.arange(num_samples) / sample_rate
    if rng.random() < 0.3:
        mains = rng.choice([50.0, 60.0])
        for harmonic in range(1, 4):
            phase = rng.uniform(0, 2 * np.pi)
            samples += rng.uniform(0, 0.5) / harmonic * np.sin(2 * np.pi * mains * harmonic * time + phase)
    drift = 1 + 0.5 * np.sin(2 * np.pi * time * rng.uniform(0.01, 0.1) + rng.uniform(0, 2 * np.pi))
    samples *= drift
    return (samples / np.sqrt(np.mean(samples**2))).astype(np.float32)
