"""Recordings of noise, of impulse responses of rooms, and of the sound of microphones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pyannote_prune.errors import InputError
from pyannote_prune.models.audio import find_recordings
from pyannote_prune.simulation.voices import read_mono

# decoded noise is kept, up to that many bytes
_CACHE_SIZE = 2**28
# what is kept of a response before its direct path, in seconds
_LEAD = 0.001


class Recordings:
    """A folder of recordings, read as they are needed

    Parameters
    ----------
    directory : Path or str
        Recordings at any depth below it.
    sample_rate : int, optional
        Defaults to 16000 (Hz).

    Raises
    ------
    InputError
        When there is no such directory, or no recording in it.
    """

    def __init__(self, directory: Path | str, sample_rate: int = 16000) -> None:
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise InputError(f"No such folder of recordings: {directory}.")
        self.sample_rate = sample_rate
        self.files = find_recordings(self.directory)
        self._cache: dict[Path, np.ndarray] = {}
        self._cached = 0

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """One recording at random: (num_samples,) float32 array."""
        return self.read(self.files[rng.integers(len(self.files))])

    def read(self, path: Path) -> np.ndarray:
        """Samples of a recording, mono: (num_samples,) float32 array."""
        if path in self._cache:
            return self._cache[path]
        mono = read_mono(path, self.sample_rate).astype(np.float32, copy=False)
        if self._cached + mono.nbytes <= _CACHE_SIZE:
            self._cache[path] = mono
            self._cached += mono.nbytes
        return mono


def recorded_noise(recordings: Recordings, num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Part of a recording of noise, repeated where it is shorter

    Parameters
    ----------
    recordings : Recordings
    num_samples : int
    rng : np.random.Generator

    Returns
    -------
    noise : (num_samples,) float32 array
        Noise of unit power, silent if the recording is.
    """
    samples = recordings.draw(rng)
    if not samples.size:
        return np.zeros(num_samples, np.float32)
    first = int(rng.integers(len(samples)))
    noise = np.resize(np.roll(samples, -first), num_samples).astype(np.float32)
    power = float(np.sqrt(np.mean(np.square(noise))))
    return noise / np.float32(power) if power > 1e-6 else np.zeros(num_samples, np.float32)


def align_response(response: np.ndarray, sample_rate: int, direct: float = 0.3) -> np.ndarray:
    """An impulse response that begins with the direct path, such that annotations stay aligned

    Parameters
    ----------
    response : (num_samples,) array
    sample_rate : int
    direct : float, optional
        Least strength of the direct path, relative to the strongest reflection. Defaults to 0.3.

    Returns
    -------
    aligned : (fewer samples,) float32 array
        Response of unit energy.
    """
    magnitude = np.abs(response)
    # far from the microphone, a bundle of reflections may be stronger than the direct path
    lead = round(_LEAD * sample_rate)
    first = int(np.argmax(magnitude >= direct * magnitude.max()))
    arrival = first + int(np.argmax(magnitude[first : first + lead]))
    response = response[max(0, arrival - lead) :]
    return (response / max(float(np.linalg.norm(response)), 1e-12)).astype(np.float32)
