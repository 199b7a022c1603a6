"""Conversations made from recordings of single speakers: their turns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from pyannote.core import Annotation, Segment
from scipy.signal import resample_poly

from pyannote_prune.errors import InputError
from pyannote_prune.simulation.rendering import LEVEL, Renderer
from pyannote_prune.simulation.turn_taking import TurnTaking
from pyannote_prune.simulation.voices import Voices, speech_regions

# speeds that are cheap to resample to, as ratios of small numbers
_SPEEDS = [Fraction(number, 20) for number in range(16, 26)]
# far enough apart to be told from one another
_DISTINCT_SPEEDS = [Fraction(number, 20) for number in (15, 17, 19, 21, 23, 26)]
# how long a conversation has gone on before what is kept of it begins, in seconds
_MAX_LEAD = 8.0
# recordings that are joined to make a long turn, at most
_MAX_PARTS = 8
# of an utterance that is cut, in seconds
_FADE = 0.02
# options that conversations did not depend on at first, with what they were then
_LATER = {"level_spread": 5.0, "softest": -15.0, "loudest": 10.0, "far_field": 0.0, "turn_taking": None}


@dataclass(frozen=True)
class Conversation:
    """A simulated conversation

    Parameters
    ----------
    waveform : (num_samples,) float32 array
    sample_rate : int
    annotation : Annotation
        Turns of each speaker, by the energy of their speech before rooms and noise.
    """

    waveform: np.ndarray
    sample_rate: int
    annotation: Annotation


class Simulator:
    """Simulator of conversations, from recordings of single speakers

    Speakers take turns at random; a turn follows after a pause, or starts before the end of the last one.
    Each speaker has a loudness, a speed (and pitch), and a place in a room or a telephone; there is noise.

    Recordings of different speakers are often of different microphones, and a model that learns to tell these
    apart fails where people share one. `alike` and `equalization` are against that.

    Parameters
    ----------
    voices : Voices, Path or str
        Or the directory of [`Voices`][pyannote_prune.simulation.Voices].
    speakers : Path, str, or iterable of str, optional
        Speakers of that directory to use, see there. Defaults to all of them.
    num_speakers : (int, int), optional
        Least and greatest number of speakers of a conversation. Defaults to 1 and 4.
    overlap : float, optional
        Probability that a change of speakers overlaps. Defaults to 0.3.
    mean_pause, mean_overlap : float, optional
        Mean durations of pauses and of overlaps, in seconds. Default to 0.5 and 0.7.
    reverberation, telephone : float, optional
        Probabilities that a conversation takes place in a room (0.6), or over the telephone (0.2).
    num_rooms : int, optional
        Number of rooms. Defaults to 64.
    speed : float, optional
        Probability that the recordings of a speaker are played faster or slower, by up to a quarter.
        Defaults to 0.5.
    alike : float, optional
        Probability that the speakers of a conversation, if they are two to six, are one voice at different
        speeds, at least a tenth apart. Defaults to 0.3.
    equalization : float, optional
        Probability that the recordings of a conversation are filtered to have one long-term spectrum.
        Defaults to 0.5.
    snr : (float, float), optional
        Range of signal-to-noise ratios, in dB. Defaults to 5 and 35.
    level_spread : float, optional
        Largest deviation of a speaker's level from the average, in dB. Defaults to 5.
    level : (float, float), optional
        Range of gains of the whole conversation, in dB; at 0 dB speech has a root mean square of 0.05.
        Defaults to -15 and 10.
    far_field : float, optional
        Share of rooms in which everybody is far from the microphone. Defaults to 0.
    turn_taking : TurnTaking, Path or str, optional
        Lengths of turns, pauses, overlaps and back-channels in real conversations (or an RTTM file of some), instead
        of `overlap`, `mean_pause` and `mean_overlap`.
    noise : Path or str, optional
        Folder of recordings of noise, one of which is added to half of the conversations.
    responses : Path or str, optional
        Folder of measured impulse responses, which half of the rooms are made of. Those of a room belong into a
        folder of their own.
    microphones : Path or str, optional
        Folder of recordings of any speech. A third of the conversations, noise included, get the long-term
        spectrum of one of them.

    Raises
    ------
    InputError
        When there are fewer voices than speakers of a conversation, or an argument is out of range.
    """

    def __init__(
        self,
        voices: Voices | Path | str,
        speakers: Path | str | Iterable[str] | None = None,
        num_speakers: tuple[int, int] = (1, 4),
        overlap: float = 0.3,
        mean_pause: float = 0.5,
        mean_overlap: float = 0.7,
        reverberation: float = 0.6,
        telephone: float = 0.2,
        num_rooms: int = 64,
        speed: float = 0.5,
        alike: float = 0.3,
        equalization: float = 0.5,
        snr: tuple[float, float] = (5.0, 35.0),
        level_spread: float = 5.0,
        level: tuple[float, float] = (-15.0, 10.0),
        far_field: float = 0.0,
        turn_taking: TurnTaking | Path | str | None = None,
        noise: Path | str | None = None,
        responses: Path | str | None = None,
        microphones: Path | str | None = None,
    ) -> None:
        self.voices = voices if isinstance(voices, Voices) else Voices(voices, speakers)
        least, greatest = num_speakers
        if not 1 <= least <= greatest:
            raise InputError(f"num_speakers must be the least and greatest number, at least 1, got {num_speakers}.")
        if greatest > len(self.voices.speakers):
            raise InputError(
                f"Conversations of {greatest} speakers need as many voices, got {len(self.voices.speakers)}: give a "
                "folder for each speaker, or a smaller num_speakers."
            )
        probabilities = {
            "overlap": overlap,
            "reverberation": reverberation,
            "telephone": telephone,
            "speed": speed,
            "alike": alike,
            "equalization": equalization,
            "far_field": far_field,
        }
        for name, value in probabilities.items():
            if not 0 <= value <= 1:
                raise InputError(f"{name} is a probability, in [0, 1], got {value}.")
        self.renderer = Renderer(
            self.voices.sample_rate,
            reverberation,
            telephone,
            num_rooms,
            equalization,
            snr,
            level_spread,
            level,
            far_field,
            noise,
            responses,
            microphones,
        )
        self.num_speakers = (least, greatest)
        self.overlap = overlap
        self.mean_pause = mean_pause
        self.mean_overlap = mean_overlap
        self.speed = speed
        self.alike = alike
        if turn_taking is not None and not isinstance(turn_taking, TurnTaking):
            turn_taking = TurnTaking.from_rttm(turn_taking)
        self.turn_taking = turn_taking

    def settings(self) -> dict[str, Any]:
        """Settings of conversations, as plain numbers, strings and lists."""
        settings = {name: value for name, value in vars(self).items() if name not in ("voices", "renderer")}
        settings |= {
            "num_speakers": list(self.num_speakers),
            "speakers": self.voices.speakers,
            "turn_taking": None if self.turn_taking is None else asdict(self.turn_taking),
            **self.renderer.settings(),
        }
        # corpora that were begun before there were these go on
        return {name: value for name, value in settings.items() if name not in _LATER or value != _LATER[name]}

    @property
    def sample_rate(self) -> int:
        """Of the voices, in Hz."""
        return self.voices.sample_rate

    def conversation(self, duration: float, rng: np.random.Generator) -> Conversation:
        """Simulate

        Parameters
        ----------
        duration : float
            In seconds.
        rng : np.random.Generator
            Everything is drawn from it.

        Returns
        -------
        conversation : Conversation
            Excerpt of exactly that duration from a longer conversation.
        """
        num_samples = round(duration * self.sample_rate)
        cast = self._cast(rng)
        chosen = list(cast)
        tracks = {name: np.zeros(num_samples, dtype=np.float32) for name in chosen}
        annotation = Annotation()

        ends: dict[str, float] = {}

        def say(speaker: str, start: float, length: float | None) -> float:
            """Let a speaker say something, once she has said what she was saying, and tell when it ends."""
            start = max(start, ends.get(speaker, start))
            utterance = self._utterance(*cast[speaker], rng, length)
            _add(tracks[speaker], utterance, round(start * self.sample_rate))
            for first, last in speech_regions(utterance, self.sample_rate):
                region = Segment(max(0.0, start + first), min(duration, start + last))
                if region:
                    annotation[region, annotation.new_track(region)] = speaker
            ends[speaker] = start + len(utterance) / self.sample_rate
            return ends[speaker]

        speaker = chosen[rng.integers(len(chosen))]
        start = -rng.uniform(0, _MAX_LEAD)
        while start < duration:
            others = [name for name in chosen if name != speaker]
            end = say(speaker, start, None if self.turn_taking is None else self.turn_taking.length(rng))
            if self.turn_taking is not None:
                for after, length in self.turn_taking.interjections(end - start, rng) if others else []:
                    other = others[rng.integers(len(others))]
                    if ends.get(other, start) <= start + after:  # not while she speaks herself
                        say(other, start + after, length)
                changes, pause = self.turn_taking.follow(rng)
                if changes and others:
                    speaker = others[rng.integers(len(others))]
                else:
                    pause = max(pause, 0.0)
                start = max(end + pause, start + 0.1)
                continue
            before, speaker = speaker, chosen[rng.integers(len(chosen))]
            if speaker != before and rng.random() < self.overlap:
                # never so early as to start before the turn that it interrupts
                start = max(end - rng.exponential(self.mean_overlap), start + 0.1)
            else:
                start = end + rng.exponential(self.mean_pause)

        waveform = self.renderer.render(tracks, rng)
        return Conversation(waveform, self.sample_rate, annotation.support(collar=0.0))

    def _cast(self, rng: np.random.Generator) -> dict[str, tuple[str, Fraction]]:
        """Voice and speed of each speaker."""
        least, greatest = self.num_speakers
        count = int(rng.integers(least, greatest + 1))
        if 1 < count <= len(_DISTINCT_SPEEDS) and rng.random() < self.alike:
            voice = str(rng.choice(self.voices.speakers))
            speeds = [_DISTINCT_SPEEDS[index] for index in rng.permutation(len(_DISTINCT_SPEEDS))[:count]]
            return {f"{voice}@{float(speed)}": (voice, speed) for speed in speeds}
        cast = {}
        for voice in rng.choice(self.voices.speakers, size=count, replace=False):
            speed = _SPEEDS[rng.integers(len(_SPEEDS))] if rng.random() < self.speed else Fraction(1)
            cast[str(voice)] = (str(voice), speed)
        return cast

    def _utterance(self, speaker: str, speed: Fraction, rng: np.random.Generator, length: float | None) -> np.ndarray:
        """Speech of a speaker, of a given length or of that of a recording."""
        samples = self._recording(speaker, speed, rng)
        if length is None:
            return samples
        size = max(1, round(length * self.sample_rate))
        parts = [samples]
        for _ in range(_MAX_PARTS - 1):
            if sum(map(len, parts)) >= size:
                break
            pause = np.zeros(round(rng.uniform(0.1, 0.5) * self.sample_rate), np.float32)
            parts += [pause, self._recording(speaker, speed, rng)]
        return _excerpt(np.concatenate(parts), size, self.sample_rate, rng)

    def _recording(self, speaker: str, speed: Fraction, rng: np.random.Generator) -> np.ndarray:
        samples = self.voices.utterance(speaker, rng)
        if speed != 1:
            samples = resample_poly(samples, speed.denominator, speed.numerator).astype(np.float32)
        # equally loud, whatever the recording
        regions = speech_regions(samples, self.sample_rate)
        speech = [samples[round(a * self.sample_rate) : round(b * self.sample_rate)] for a, b in regions]
        power = np.mean(np.square(np.concatenate(speech))) if speech else 0.0
        return samples * np.float32(LEVEL / np.sqrt(power)) if power > 0 else samples


def _excerpt(samples: np.ndarray, size: int, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """(num_samples,) -> at most (size,), anywhere in it, that begins and ends softly"""
    if len(samples) <= size:
        return samples
    first = int(rng.integers(len(samples) - size + 1))
    excerpt = samples[first : first + size].copy()
    fade = np.linspace(0, 1, min(round(_FADE * sample_rate), size // 2), dtype=np.float32)
    excerpt[: len(fade)] *= fade
    excerpt[size - len(fade) :] *= fade[::-1]
    return excerpt


def _add(track: np.ndarray, samples: np.ndarray, start: int) -> None:
    """Add samples to a track in place, as far as they are inside of it."""
    first, last = max(0, start), min(len(track), start + len(samples))
    if first < last:
        track[first:last] += samples[first - start : last - start]
