"""Statistics of who speaks when, taken from annotations of real conversations."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pyannote.core import Annotation, Segment
from pyannote.database.util import load_rttm

from pyannote_prune.errors import InputError, describe

# a back-channel ("mm-hm") is at most that long, in seconds, and begins and ends while another person speaks
MAX_BACKCHANNEL = 1.0
# longer silences are breaks rather than pauses, in seconds
_MAX_PAUSE = 5.0


@dataclass(frozen=True)
class TurnTaking:
    """Statistics of turns in real conversations

    All durations are in seconds. Each sequence is a sample of real values, of which those of simulated conversations
    are drawn.

    Parameters
    ----------
    lengths : sequence of float
        Lengths of turns.
    pauses : sequence of float
        From the end of a turn to the next one of the same speaker, where nobody speaks in between.
    changes : sequence of float
        From the end of a turn to the beginning of another speaker's, negative where they overlap.
    backchannels : sequence of float
        Lengths of back-channels, which do not interrupt the turn that they are spoken in.
    backchannel_rate : float
        Number of back-channels per second of turns.
    """

    lengths: tuple[float, ...]
    pauses: tuple[float, ...]
    changes: tuple[float, ...]
    backchannels: tuple[float, ...] = ()
    backchannel_rate: float = 0.0

    @classmethod
    def from_annotations(cls, annotations: Iterable[Annotation]) -> TurnTaking:
        """Measure

        Parameters
        ----------
        annotations : iterable of Annotation
            Annotations of whole recordings, or of excerpts.

        Raises
        ------
        InputError
            When there are fewer than two turns that follow each other.
        """
        lengths: list[float] = []
        pauses: list[float] = []
        changes: list[float] = []
        backchannels: list[float] = []
        for annotation in annotations:
            turns, short = _split(annotation)
            lengths += [turn.duration for turn, _ in turns]
            backchannels += short
            for (turn, speaker), (following, next_speaker) in itertools.pairwise(turns):
                gap = min(following.start - turn.end, _MAX_PAUSE)
                if next_speaker == speaker:
                    pauses.append(gap)
                else:
                    changes.append(max(gap, -turn.duration))
        if not pauses and not changes:
            raise InputError("Turn-taking needs annotations in which turns follow each other: found none.")
        rate = len(backchannels) / sum(lengths)
        return cls(tuple(lengths), tuple(pauses), tuple(changes), tuple(backchannels), rate)

    @classmethod
    def from_rttm(cls, path: Path | str) -> TurnTaking:
        """Measure what an RTTM file annotates

        Raises
        ------
        InputError
            When there is no such file, when it is not an RTTM file, or when it has too few turns.
        """
        if not Path(path).is_file():
            raise InputError(f"No such file of annotations: {path}.")
        try:
            annotations = load_rttm(str(path))
        except Exception as error:  # pandas raises anything
            raise InputError(f"{path} could not be read as RTTM ({describe(error)}).") from error
        return cls.from_annotations(annotations.values())

    def length(self, rng: np.random.Generator) -> float:
        """Length of a turn, in seconds."""
        return float(rng.choice(self.lengths))

    def follow(self, rng: np.random.Generator) -> tuple[bool, float]:
        """Whether the next turn is of another speaker, and how many seconds after the end of the last it begins."""
        index = int(rng.integers(len(self.changes) + len(self.pauses)))
        if index < len(self.changes):
            return True, self.changes[index]
        return False, self.pauses[index - len(self.changes)]

    def interjections(self, length: float, rng: np.random.Generator) -> list[tuple[float, float]]:
        """Back-channels in a turn

        Parameters
        ----------
        length : float
            Length of the turn, in seconds.
        rng : np.random.Generator

        Returns
        -------
        backchannels : list of (float, float)
            Start, from the beginning of the turn, and length of each.
        """
        count = int(rng.poisson(self.backchannel_rate * length)) if self.backchannels else 0
        return [(float(rng.uniform(0, length)), float(rng.choice(self.backchannels))) for _ in range(count)]


def _split(annotation: Annotation) -> tuple[list[tuple[Segment, str]], list[float]]:
    """Turns in the order of their beginnings, and lengths of back-channels."""
    segments = [
        (segment, label) for label in annotation.labels() for segment in annotation.label_timeline(label).support()
    ]
    turns, backchannels = [], []
    for segment, label in segments:
        inside = any(segment in other and speaker != label for other, speaker in segments)
        if inside and segment.duration <= MAX_BACKCHANNEL:
            backchannels.append(segment.duration)
        else:
            turns.append((segment, label))
    return sorted(turns, key=lambda turn: (turn[0].start, turn[0].end, turn[1])), backchannels
