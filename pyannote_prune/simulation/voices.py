"""Recordings of single speakers, and the speech in them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from pyannote_prune.errors import InputError
from pyannote_prune.models.audio import Audio, find_recordings, unreadable

# an utterance is cut out of what is longer, in seconds
MAX_UTTERANCE = 12.0
# decoded recordings are kept, up to that many bytes
_CACHE_SIZE = 2**30
# speech is what is at most that much weaker, in dB, than the loud parts of a recording
_DYNAMIC_RANGE = 35.0
# shorter pauses, in seconds, belong to the speech around them
_MIN_PAUSE = 0.3
_FRAME = 0.01


class Voices:
    """Recordings of single speakers

    Parameters
    ----------
    directory : Path or str
        Recordings in a folder (at any depth below it) are of the speaker that the folder is named after;
        a recording directly in `directory` is of a speaker of its own.
    speakers : Path, str, or iterable of str, optional
        Speakers to use, or a file that lists them, one per line. Defaults to all of them.
    sample_rate : int, optional
        Defaults to 16000 (Hz).

    Raises
    ------
    InputError
        When there is no such directory, no recording in it, or none of a speaker that was asked for.
    """

    def __init__(
        self, directory: Path | str, speakers: Path | str | Iterable[str] | None = None, sample_rate: int = 16000
    ) -> None:
        directory = Path(str(directory))  # a folder named 3 is a number in settings
        if not directory.is_dir():
            raise InputError(f"No such folder of voices: {directory}.")
        self.sample_rate = sample_rate
        self.files: dict[str, list[Path]] = {}
        for path in find_recordings(directory):
            inside = path.relative_to(directory)
            self.files.setdefault(inside.parts[0] if len(inside.parts) > 1 else inside.stem, []).append(path)
        if speakers is not None:
            wanted = read_speakers(speakers)
            missing = sorted(set(wanted) - set(self.files))
            if missing:
                raise InputError(f"{directory} holds no recording of {missing[0]!r}, one of the speakers asked for.")
            self.files = {speaker: self.files[speaker] for speaker in wanted}
        self._cache: dict[Path, np.ndarray] = {}
        self._cached = 0

    @property
    def speakers(self) -> list[str]:
        """Names of the speakers."""
        return list(self.files)

    def utterance(self, speaker: str, rng: np.random.Generator) -> np.ndarray:
        """One recording of a speaker, or part of it, at random

        Parameters
        ----------
        speaker : str
        rng : np.random.Generator

        Returns
        -------
        samples : (num_samples,) float32 array
            At most 12 seconds.
        """
        files = self.files[speaker]
        samples = self._read(files[rng.integers(len(files))])
        excess = len(samples) - round(MAX_UTTERANCE * self.sample_rate)
        if excess > 0:
            first = rng.integers(excess)
            samples = samples[first : len(samples) - (excess - first)]
        return samples.astype(np.float32) / 32768

    def _read(self, path: Path) -> np.ndarray:
        """Samples of a recording as 16-bit integers, half the size of floating-point numbers."""
        if path in self._cache:
            return self._cache[path]
        mono = read_mono(path, self.sample_rate)
        decoded = np.clip(mono * 32768, -32768, 32767).astype(np.int16)
        if self._cached + decoded.nbytes <= _CACHE_SIZE:
            self._cache[path] = decoded
            self._cached += decoded.nbytes
        return decoded


def read_mono(path: Path, sample_rate: int) -> np.ndarray:
    """Samples of a recording, the mean of its channels, at a rate: (num_samples,) array

    Raises
    ------
    InputError
        When it could not be read.
    """
    try:
        waveform, rate = Audio()(path)
    except Exception as error:  # soundfile and FFmpeg fail in many ways
        raise unreadable(path, error) from error
    mono = waveform.numpy().mean(axis=0)
    return mono if rate == sample_rate else resample_poly(mono, sample_rate, rate)


def read_speakers(speakers: Path | str | Iterable[str]) -> list[str]:
    """Names of speakers, or those that a file lists, one per line."""
    if not isinstance(speakers, (Path, str)):
        return list(speakers)
    if not Path(speakers).is_file():
        raise InputError(f"No such list of speakers: {speakers}.")
    return [name for line in Path(speakers).read_text().splitlines() if (name := line.strip())]


def speech_regions(samples: np.ndarray, sample_rate: int) -> list[tuple[float, float]]:
    """Regions of speech in a clean recording of one speaker, by its energy

    Parameters
    ----------
    samples : (num_samples,) array
    sample_rate : int

    Returns
    -------
    regions : list of (start, end)
        In seconds. Pauses shorter than 0.3 s belong to the speech around them.
    """
    size = round(_FRAME * sample_rate)
    num_frames = len(samples) // size
    if num_frames == 0:
        return []
    energy = np.square(samples[: num_frames * size].astype(np.float64)).reshape(num_frames, size).mean(axis=1)
    energy = np.convolve(energy, np.ones(3) / 3, mode="same")
    loud = np.quantile(energy, 0.95)
    active = energy > max(loud * 10 ** (-_DYNAMIC_RANGE / 10), 1e-10)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], active, [False]]).astype(int)))
    regions: list[tuple[float, float]] = []
    for first, last in edges.reshape(-1, 2):
        start, end = float(first * _FRAME), float(last * _FRAME)
        if regions and start - regions[-1][1] < _MIN_PAUSE:
            regions[-1] = (regions[-1][0], end)
        else:
            regions.append((start, end))
    return regions
