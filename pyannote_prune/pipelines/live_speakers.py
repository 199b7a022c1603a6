"""Speakers of audio that arrives: names that last, clustered again every few seconds."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pyannote.audio.pipelines.clustering import BaseClustering
from pyannote.core import SlidingWindow, SlidingWindowFeature
from scipy.optimize import linear_sum_assignment

from pyannote_prune.pipelines.bounds import GREATEST_NUMBER

# a speaker of a window without a name
NOBODY = -2
# seconds from one clustering to the next, of audio
PERIOD = 2.0
# windows that are clustered, those that stand for older ones included
MOST_WINDOWS = 400
# windows that stand for older ones of a speaker, at least
LEAST_EXEMPLARS = 4
# seconds of speech of a new speaker
LEAST_SPEECH = 1.0
# what counts for a speaker of a window who goes on speaking from the window before, in cosine distances
CONTINUITY = 0.3


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
        Numbers of speakers of the session, `NOBODY` for those who do not speak.
    seconds : float
        Of speech that it stands for, for each second of speech in it.
    """

    start: float
    scores: np.ndarray
    binary: np.ndarray
    embeddings: np.ndarray
    names: np.ndarray
    seconds: float = 1.0


@dataclass
class LiveSpeakers:
    """Speakers of a session until now; can be pickled

    Windows are clustered by the clustering of the pipeline, every few seconds, and clusters get the names under which
    most of their speech is known (Hungarian algorithm). Windows that are too many are replaced by averages over
    windows of one speaker, so that memory and time are bounded.

    Parameters
    ----------
    duration : float
        Of a window, in seconds.
    step : float
        From one window to the next, in seconds.
    stride : int
        One in so many windows is clustered.
    max_speakers : int
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

    def add(self, window: Window, clustering: BaseClustering) -> bool:
        """Take one more window, and cluster when it is time: whether it was"""
        self.num_windows += 1
        if self.num_windows % self.stride == 0 and window.binary.any():
            self.windows.append(window)
            if len(self.windows) > MOST_WINDOWS:
                self._condense()
        waited = (self.num_windows - self.clustered) * self.step
        early = len(self.windows) * self.step * self.stride < 5 * PERIOD
        if not self.windows or (waited < PERIOD and not early and self.centroids):
            return False
        self.clustered = self.num_windows
        self._cluster(clustering)
        return True

    def assign(self, windows: list[Window], constrained: bool) -> None:
        """Name the speakers of consecutive windows after the nearest centroids"""
        before = None
        for window in windows:
            window.names = self._nearest(window, before, constrained)
            before = window

    def _nearest(self, window: Window, before: Window | None, constrained: bool) -> np.ndarray:
        names = np.full(window.binary.shape[1], NOBODY)
        active = np.flatnonzero(window.binary.any(axis=0))
        if not len(active) or not self.centroids:
            return names
        known = list(self.centroids)
        centroids = np.stack([self.centroids[name] for name in known])
        similarity = np.nan_to_num(_unit(window.embeddings[active]) @ _unit(centroids).T, nan=-1.0)
        if before is not None:
            shift = round((window.start - before.start) / self.duration * len(window.binary))
            now, then = window.binary[: len(window.binary) - shift], before.binary[shift:]
            shared = now[:, active].T @ then / np.maximum(now[:, active].sum(axis=0), 1)[:, np.newaxis]
            for speaker, name in enumerate(before.names):
                if name in self.centroids:
                    similarity[:, known.index(name)] += CONTINUITY * shared[:, speaker]
        if constrained:
            rows, columns = linear_sum_assignment(similarity, maximize=True)
        else:
            rows, columns = np.arange(len(active)), similarity.argmax(axis=1)
        names[active[rows]] = np.array(known)[columns]
        return names

    def _cluster(self, clustering: BaseClustering) -> None:
        """Cluster all windows, and match the clusters with names."""
        frames = max(len(window.binary) for window in self.windows)
        binary = np.stack([window.binary for window in self.windows])
        embeddings = np.stack([window.embeddings for window in self.windows])
        sliding = SlidingWindow(start=0.0, duration=self.duration, step=self.step)
        try:
            clusters, _, centroids = clustering(
                embeddings=embeddings,
                segmentations=SlidingWindowFeature(binary, sliding),
                num_clusters=None,
                min_clusters=1,
                max_clusters=self.max_speakers,
                frames=None,
            )
        except ValueError:  # without one speaker who speaks alone for long enough
            return
        active = binary.any(axis=1)
        clusters = np.where(active & ~np.isnan(embeddings).any(axis=2), clusters, NOBODY)
        # of a frame, until the next window of the same audio
        share = self.step * self.stride / self.duration
        weights = np.array([window.seconds for window in self.windows])[:, np.newaxis] * binary.sum(axis=1)
        weights *= self.duration / frames * min(1.0, share)
        names = np.stack([window.names for window in self.windows])
        shared = np.zeros((len(centroids), self.num_names))
        known = (clusters >= 0) & (names >= 0)
        np.add.at(shared, (clusters[known], names[known]), weights[known])
        speech = np.bincount(clusters[clusters >= 0], weights[clusters >= 0], minlength=len(centroids))
        rows, columns = linear_sum_assignment(shared, maximize=True)
        matched = {int(row): int(column) for row, column in zip(rows, columns) if shared[row, column] > 0}
        self.centroids = {}
        for cluster in np.argsort(-speech):
            if speech[cluster] == 0 or np.isnan(centroids[cluster]).any():
                continue
            name = matched.get(int(cluster))
            if name is None:
                enough = speech[cluster] >= LEAST_SPEECH or not self.centroids
                if not enough or self.num_names >= GREATEST_NUMBER:
                    continue
                name, self.num_names = self.num_names, self.num_names + 1
            self.centroids[name] = centroids[cluster]

    def _condense(self) -> None:
        """Replace the older half of the windows by averages over two windows of one speaker."""
        half = len(self.windows) // 2
        old, self.windows = self.windows[:half], self.windows[half:]
        of_name: dict[int, list[tuple[np.ndarray, float]]] = defaultdict(list)
        for window in old:
            solo = (window.binary * (window.binary.sum(axis=1, keepdims=True) == 1)).mean(axis=0)
            for speaker, name in enumerate(window.names):
                embedding = window.embeddings[speaker]
                if name >= 0 and solo[speaker] >= 0.2 and not np.isnan(embedding).any():
                    of_name[int(name)].append((embedding, window.seconds * float(solo[speaker])))
        template = old[0]
        exemplars = []
        for name, items in of_name.items():
            while len(items) > LEAST_EXEMPLARS and len(items) > (len(old) // 2) * len(items) / half:
                items = [_merge(items[index : index + 2]) for index in range(0, len(items), 2)]
                break
            exemplars += [_exemplar(template, name, *item) for item in items]
        self.windows = exemplars + self.windows


def _merge(items: list[tuple[np.ndarray, float]]) -> tuple[np.ndarray, float]:
    weights = np.array([seconds for _, seconds in items])
    return np.average([embedding for embedding, _ in items], axis=0, weights=weights), float(weights.sum())


def _exemplar(template: Window, name: int, embedding: np.ndarray, seconds: float) -> Window:
    """Window in which one speaker speaks all the time."""
    binary = np.zeros_like(template.binary)
    binary[:, 0] = 1
    embeddings = np.full_like(template.embeddings, np.nan)
    embeddings[0] = embedding
    names = np.full_like(template.names, NOBODY)
    names[0] = name
    return Window(template.start, binary, binary, embeddings, names, seconds)


def _unit(vectors: Any) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
