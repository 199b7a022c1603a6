"""Sound of a conversation: places, microphones, noise and levels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.signal import fftconvolve

from pyannote_prune.errors import InputError
from pyannote_prune.simulation.acoustics import equalize, noise, room_responses, telephone
from pyannote_prune.simulation.surroundings import Recordings, align_response, recorded_noise

# root mean square of speech at 0 dB
LEVEL = 0.05
# shares: of conversations with recorded noise, of rooms whose responses are measured ones where there are any, and of
# conversations with the spectrum of another microphone
_NOISY, _MEASURED, _OTHER_MICROPHONE = 0.5, 0.5, 1 / 3


class Renderer:
    """Mixer of the tracks of single speakers, each in their place

    Parameters
    ----------
    sample_rate : int
    reverberation, telephone, num_rooms, equalization, snr, level_spread, level, far_field : optional
        As in [`Simulator`][pyannote_prune.simulation.Simulator].
    noise, responses, microphones : Path or str, optional
        Folders, see there.

    Raises
    ------
    InputError
        When an argument is out of range, or a folder is missing or empty.
    """

    def __init__(
        self,
        sample_rate: int,
        reverberation: float = 0.6,
        telephone: float = 0.2,
        num_rooms: int = 64,
        equalization: float = 0.5,
        snr: tuple[float, float] = (5.0, 35.0),
        level_spread: float = 5.0,
        level: tuple[float, float] = (-15.0, 10.0),
        far_field: float = 0.0,
        noise: Path | str | None = None,
        responses: Path | str | None = None,
        microphones: Path | str | None = None,
    ) -> None:
        if reverberation + telephone > 1:
            raise InputError(
                f"reverberation and telephone exclude each other: {reverberation} + {telephone} is more than 1."
            )
        if not 0 <= level_spread < math.inf:
            raise InputError(f"level_spread must be a number of dB, at least 0, got {level_spread}.")
        for name, (low, high) in {"snr": snr, "level": level}.items():
            if not -math.inf < low <= high < math.inf:
                raise InputError(f"{name} must be the least and greatest number of dB, got {low} and {high}.")
        self.sample_rate = sample_rate
        self.reverberation = reverberation
        self.telephone = telephone
        self.num_rooms = num_rooms
        self.equalization = equalization
        self.lowest_snr, self.highest_snr = snr
        self.level_spread = level_spread
        self.softest, self.loudest = level
        self.far_field = far_field
        folders = {"noise": noise, "responses": responses, "microphones": microphones}
        self.recordings = {
            name: Recordings(folder, sample_rate) for name, folder in folders.items() if folder is not None
        }

    def settings(self) -> dict[str, Any]:
        """Settings of the sound, as plain numbers and strings."""
        settings = {name: value for name, value in vars(self).items() if name not in ("sample_rate", "recordings")}
        return {**settings, **{name: str(recordings.directory) for name, recordings in self.recordings.items()}}

    def render(self, tracks: Mapping[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """Mix

        Parameters
        ----------
        tracks : dict
            (num_samples,) float32 array of each speaker.
        rng : np.random.Generator

        Returns
        -------
        mixture : (num_samples,) float32 array
        """
        if rng.random() < self.equalization:
            model = list(tracks.values())[rng.integers(len(tracks))]
            tracks = {name: equalize(track, model, self.sample_rate) for name, track in tracks.items()}
        place = rng.random()
        num_samples = len(next(iter(tracks.values())))
        responses = self._responses(rng) if place < self.reverberation else []
        mixture = np.zeros(num_samples, dtype=np.float32)
        for index, track in enumerate(tracks.values()):
            gain = _gain(rng.uniform(-self.level_spread, self.level_spread))
            if responses:
                track = fftconvolve(track, responses[index % len(responses)])[:num_samples]
            elif place > 1 - self.telephone:
                # each at their own end of the line
                track = telephone(track, self.sample_rate)
            mixture += gain * track
        snr = rng.uniform(self.lowest_snr, self.highest_snr)
        mixture += LEVEL * _gain(-snr) * noise(num_samples, self.sample_rate, rng)
        if "noise" in self.recordings and rng.random() < _NOISY:
            snr = rng.uniform(self.lowest_snr, self.highest_snr)
            mixture += LEVEL * _gain(-snr) * recorded_noise(self.recordings["noise"], num_samples, rng)
        if "microphones" in self.recordings and rng.random() < _OTHER_MICROPHONE:
            coloured = equalize(mixture, self.recordings["microphones"].draw(rng), self.sample_rate)
            mixture = coloured * np.float32(np.linalg.norm(mixture) / max(float(np.linalg.norm(coloured)), 1e-12))
        mixture *= _gain(rng.uniform(self.softest, self.loudest))
        return mixture / max(1.0, float(np.abs(mixture).max()) / 0.99)

    def _responses(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Impulse responses from different places of a room, in random order."""
        if "responses" in self.recordings and rng.random() < _MEASURED:
            measured = self.recordings["responses"]
            room = measured.files[rng.integers(len(measured.files))].parent
            available = [
                align_response(measured.read(path), self.sample_rate) for path in measured.files if path.parent == room
            ]
        else:
            far = self.far_field > 0 and bool(rng.random() < self.far_field)
            available = room_responses(int(rng.integers(self.num_rooms)), self.sample_rate, far)
        return [available[index] for index in rng.permutation(len(available))]


def _gain(decibels: float) -> np.float32:
    return np.float32(10 ** (decibels / 20))
