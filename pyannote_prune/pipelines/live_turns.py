"""Turns of audio that arrives: final ones, which never change, and tentative ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pyannote_prune.pipelines.live_speakers import Window


@dataclass(frozen=True)
class Turn:
    """A stretch of speech of one speaker

    Parameters
    ----------
    start, end : float
        In seconds.
    speaker : str
    """

    start: float
    end: float
    speaker: str


@dataclass
class LiveTurns:
    """Turns of a session until now; can be pickled

    Each frame has as many speakers as the windows over it say on average, those that most of its windows name, as in
    the reconstruction of a whole recording.

    Parameters
    ----------
    step, first : float
        From one frame to the next, and middle of the first one, in seconds.
    min_duration_on, min_duration_off : float
        Turns that are shorter are left out, pauses that are shorter are filled, as far as they are not final.
    most : int
        Speakers at once.
    """

    step: float
    first: float
    min_duration_on: float
    min_duration_off: float
    most: int
    num_final: int = 0
    # activity of all speakers in the last final frames
    last: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=bool))
    final: list[Turn] = field(default_factory=list)

    def advance(
        self, windows: Sequence[Window], num_names: int, end: int, num_final: int
    ) -> tuple[list[Turn], list[Turn]]:
        """Move on

        Parameters
        ----------
        windows : sequence of Window
            All over frames that are not final.
        num_names : int
            Number of speakers until now.
        end : int
            Number of frames until now.
        num_final : int
            Number of those that become final.

        Returns
        -------
        final, tentative : lists of Turn
            Turns that became final, and those that follow.
        """
        begin, known = self.num_final, len(self.last)
        active = np.zeros((known + max(0, end - begin), num_names), dtype=bool)
        active[:known, : self.last.shape[1]] = self.last
        active[known:] = self._activity(windows, num_names, begin, end)
        self._smooth(active, known)
        settled = known + max(0, min(num_final, end) - begin)
        final = list(self._runs(active, known, settled, begin - known))
        tentative = list(self._runs(active, settled, len(active), begin - known))
        self.final = join([*self.final, *final])
        remember = int(max(self.min_duration_on, self.min_duration_off) / self.step) + 2
        self.last = active[max(0, settled - remember) : settled].copy()
        self.num_final = begin + settled - known
        return final, tentative

    def _activity(self, windows: Sequence[Window], num_names: int, begin: int, end: int) -> np.ndarray:
        """(frames, names) activity from frame `begin` to `end`."""
        size = max(0, end - begin)
        counts, number = np.zeros(size), np.zeros(size)
        scores = np.zeros((size, num_names))
        for window in windows:
            start = round(window.start / self.step)
            first, last = max(begin, start), min(end, start + len(window.binary))
            if first >= last:
                continue
            here, there = slice(first - begin, last - begin), slice(first - start, last - start)
            counts[here] += window.binary[there].sum(axis=1)
            number[here] += 1
            for name in np.unique(window.names[window.names >= 0]):
                scores[here, name] += window.scores[there][:, window.names == name].max(axis=1)
        counts = np.minimum(np.rint(counts / np.maximum(number, 1)), self.most)
        ranks = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)
        return (ranks < counts[:, np.newaxis]) & (scores > 0)

    def _smooth(self, active: np.ndarray, known: int) -> None:
        """Fill short pauses and leave out short turns, after the first `known` frames."""
        for column in active.T:
            for first, last in _stretches(~column):
                inside = first > 0 and last < len(column)
                if inside and last > known and (last - first) * self.step <= self.min_duration_off:
                    column[max(first, known) : last] = True
            for first, last in _stretches(column):
                if first >= known and last < len(column) and (last - first) * self.step < self.min_duration_on:
                    column[first:last] = False

    def _runs(self, active: np.ndarray, begin: int, end: int, offset: int) -> list[Turn]:
        """Turns within rows `begin` to `end`, in the order of their starts."""
        turns = [
            Turn(self._time(offset + begin + first), self._time(offset + begin + last), f"SPEAKER_{name:02d}")
            for name, column in enumerate(active[begin:end].T)
            for first, last in _stretches(column)
        ]
        return sorted(turns, key=lambda turn: (turn.start, turn.end, turn.speaker))

    def _time(self, frame: int) -> float:
        return round(self.first + frame * self.step, 6)


def join(turns: Sequence[Turn]) -> list[Turn]:
    """Turns of a speaker that follow each other without a pause, as one, in the order of their starts"""
    joined: list[Turn] = []
    latest: dict[str, int] = {}
    for turn in turns:
        index = latest.get(turn.speaker)
        if index is not None and joined[index].end == turn.start:
            joined[index] = replace(joined[index], end=turn.end)
        else:
            latest[turn.speaker] = len(joined)
            joined.append(turn)
    return joined


def _stretches(column: np.ndarray) -> list[tuple[int, int]]:
    """Starts and ends (not included) of stretches of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], column, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))
