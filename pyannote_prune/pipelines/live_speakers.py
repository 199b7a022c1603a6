"""Speakers of audio that arrives: names that last, clustered again every few seconds."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pyannote.audio.pipelines.clustering import BaseClustering
from pyannote.core import SlidingWindow, SlidingWindowFeature
from scipy.optimize import linear_sum_assignment

# a speaker of a window without a name
NOBODY = -2
# seconds from one clustering to the next, of audio
PERIOD = 2.0
# seconds of windows with speech before which each of them is followed by a clustering
EARLY = 60.0
# windows that are clustered, those that stand for older ones included
MOST_WINDOWS = 400
# windows that stand for older ones of a speaker, at least
LEAST_EXEMPLARS = 4
# seconds of speech of a cluster that is a new speaker
LEAST_SPEECH = 0.5
# cosine distance from all others of a known voice that stays where the clustering does not find it any more
APART = 0.5


@dataclass
class Window:
    """A window, and who speaks in it

    Parameters
    ----------
    start : float
        In seconds.
    scores, binary : (num_frames, num_speakers) arrays
        Activity of its speakers.
    embeddings : (num_speakers, dimension) array
        NaN where there is none.
    names : (num_speakers,) array
        Numbers of speakers of the session, as they were told: `NOBODY` for those who do not speak.
    weight : float
        Seconds that each of its frames stands for.
    """

    start: float
    scores: np.ndarray
    binary: np.ndarray
    embeddings: np.ndarray
    names: np.ndarray
    weight: float
    voices: np.ndarray = field(init=False)
    solo: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.embed(self.embeddings)

    def embed(self, embeddings: np.ndarray) -> None:
        """Set the embeddings: of unit length in `voices`, and frames in which their speakers speak alone in `solo`"""
        self.embeddings = embeddings
        missing = np.isnan(embeddings).any(axis=1)
        self.voices = np.where(missing[:, np.newaxis], 0, _unit(embeddings))
        alone = self.binary.sum(axis=1) == 1
        self.solo = np.where(missing, 0, alone @ self.binary)


@dataclass
class LiveSpeakers:
    """Speakers of a session until now; can be pickled

    A speaker of a window is the one whose average voice is nearest. Windows are clustered by the clustering of the
    pipeline every few seconds: clusters get the names under which most of their speech is known (Hungarian
    algorithm), or new ones. Windows that are too many are replaced by averages over windows of one
    speaker, so that memory and time are bounded.

    Parameters
    ----------
    duration : float
        Of a window, in seconds.
    step : float
        From one window to the next, in seconds.
    stride : int
        One in so many windows is clustered.
    max_speakers : int
        Of the session, for names that were told stay.
    """

    duration: float
    step: float
    stride: int
    max_speakers: int
    windows: list[Window] = field(default_factory=list)
    centroids: dict[int, np.ndarray] = field(default_factory=dict)
    num_names: int = 0
    num_windows: int = 0
    clustered: int = 0

    def follow(self, window: Window, recent: Sequence[Window], clustering: BaseClustering) -> None:
        """Take one more window, and name its speakers and those of others that are not final

        Parameters
        ----------
        window : Window
        recent : sequence of Window
            Consecutive ones that may change, the new one last.
        clustering : BaseClustering
        """
        self.num_windows += 1
        if self.num_windows % self.stride == 0 and window.binary.any():
            self.windows.append(window)
            if len(self.windows) > MOST_WINDOWS:
                self._condense()
        waited = (self.num_windows - self.clustered) * self.step
        early = len(self.windows) * self.step * self.stride < EARLY
        if self.windows and (waited >= PERIOD or early or not self.centroids):
            self.clustered = self.num_windows
            self._cluster(clustering)
        for each in recent:
            each.names = self._nearest(each, clustering.constrained_assignment)

    def _nearest(self, window: Window, constrained: bool) -> np.ndarray:
        """(num_speakers,) names of the speakers of a window: those of the nearest voices."""
        names = np.full(window.binary.shape[1], NOBODY)
        active = np.flatnonzero(window.binary.any(axis=0))
        if not len(active) or not self.centroids:
            return names
        known = np.array(list(self.centroids))
        similarity = window.voices[active] @ np.stack(list(self.centroids.values())).T
        if constrained:
            rows, columns = linear_sum_assignment(similarity, maximize=True)
        else:
            rows, columns = np.arange(len(active)), similarity.argmax(axis=1)
        names[active[rows]] = known[columns]
        return names

    def _cluster(self, clustering: BaseClustering) -> None:
        """Cluster all windows, and match the clusters with names."""
        solo = np.stack([window.solo * window.weight for window in self.windows])
        if not solo.any():
            return
        binary = np.stack([window.binary for window in self.windows])
        embeddings = np.stack([window.embeddings for window in self.windows])
        sliding = SlidingWindow(start=0.0, duration=self.duration, step=self.step)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the average of no embedding
            clusters, _, centroids = clustering(
                embeddings=embeddings,
                segmentations=SlidingWindowFeature(binary, sliding),
                num_clusters=None,
                min_clusters=1,
                max_clusters=self.max_speakers,
            )
        if np.isnan(centroids).any():  # nobody spoke alone for long enough
            centroids = solo.flatten() @ np.nan_to_num(embeddings.reshape(solo.size, -1))[np.newaxis]
        clusters = np.where(solo > 0, clusters, NOBODY)
        names = np.stack([window.names for window in self.windows])
        shared = np.zeros((len(centroids), self.num_names))
        both = (clusters >= 0) & (names >= 0)
        np.add.at(shared, (clusters[both], names[both]), solo[both])
        speech = np.bincount(clusters[clusters >= 0], solo[clusters >= 0], minlength=len(centroids))
        rows, columns = linear_sum_assignment(shared, maximize=True)
        matched = {int(row): int(column) for row, column in zip(rows, columns) if shared[row, column] > 0}
        before, self.centroids = self.centroids, {}
        for cluster in np.argsort(-speech):
            name = matched.get(int(cluster))
            if name is None:
                enough = speech[cluster] >= LEAST_SPEECH or not self.centroids
                if speech[cluster] == 0 or not enough or self.num_names >= self.max_speakers:
                    continue
                name, self.num_names = self.num_names, self.num_names + 1
            self.centroids[name] = _unit(centroids[cluster])
        # a speaker whom the clustering does not find any more
        for name, voice in before.items():
            far = all(1 - voice @ other > APART for other in self.centroids.values())
            if name not in self.centroids and far:
                self.centroids[name] = voice

    def _condense(self) -> None:
        """Replace the older half of the windows by averages over two windows of one speaker."""
        half = len(self.windows) // 2
        old, self.windows = self.windows[:half], self.windows[half:]
        of_name: dict[int, list[tuple[np.ndarray, float]]] = defaultdict(list)
        for window in old:
            solo = window.solo * window.weight
            for speaker, name in enumerate(window.names):
                if name >= 0 and solo[speaker] > 0:
                    of_name[int(name)].append((window.voices[speaker], float(solo[speaker])))
        exemplars = []
        for name, items in of_name.items():
            if len(items) >= 2 * LEAST_EXEMPLARS:
                items = [_merge(items[index : index + 2]) for index in range(0, len(items), 2)]
            exemplars += [_exemplar(old[0], name, *item) for item in items]
        self.windows = exemplars + self.windows


def _merge(items: list[tuple[np.ndarray, float]]) -> tuple[np.ndarray, float]:
    weights = np.array([weight for _, weight in items])
    return np.average([embedding for embedding, _ in items], axis=0, weights=weights), float(weights.sum())


def _exemplar(template: Window, name: int, embedding: np.ndarray, seconds: float) -> Window:
    """Window in which one speaker speaks all the time."""
    binary = np.zeros_like(template.binary)
    binary[:, 0] = 1
    embeddings = np.full_like(template.embeddings, np.nan)
    embeddings[0] = embedding
    names = np.full_like(template.names, NOBODY)
    names[0] = name
    return Window(template.start, binary, binary, embeddings, names, seconds / len(binary))


def _unit(vectors: Any) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
